"""saelab: train, read and steer sparse autoencoders from a notebook.

What is public stands in `__init__.pyi`; each name loads on first use, so `import saelab` is quick and imports
no torch.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
