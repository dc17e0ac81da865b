"""Training: losses, rules, and one trainer for every recipe.

What is public stands in `__init__.pyi`; each name loads on first use, so that a run's folder is read without
torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
