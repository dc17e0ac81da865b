"""The suites that `saelab.evaluate` runs beside the core scores. Each file of this folder registers one."""

from __future__ import annotations

import importlib
import pkgutil

from saelab.analysis.suites.registry import Found, Suite, chosen, register, registered

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = ["Found", "Suite", "chosen", "register", "registered"]
