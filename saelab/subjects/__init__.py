"""Models that can be read and edited at hook points: Hugging Face language models, and any torch module.

What is public stands in `__init__.pyi`; each name loads on first use, so that a Lab opens without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
