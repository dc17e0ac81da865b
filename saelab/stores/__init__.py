"""Stores: folders of files with a manifest, written whole or not at all. Opening a feature store needs no
torch.

What is public stands in `__init__.pyi`; each name loads on first use, so that what a store says of itself is
read without pandas and DuckDB.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
