"""The scores that `saelab.evaluate` gives. Each file of this folder registers some: a new one is one file."""

from __future__ import annotations

import importlib
import pkgutil

from saelab.analysis.scores.registry import Fired, Score, Seen, Spliced, register, registered

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = ["Fired", "Score", "Seen", "Spliced", "register", "registered"]
