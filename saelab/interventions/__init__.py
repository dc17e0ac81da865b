"""Edits of a subject's activations: each says where it edits, composes by order, and goes through JSON.

Every file of this folder that registers an edit is found by itself, and its class is a name of this module:
`saelab.interventions.Scale`.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from saelab.interventions.directions import latent_means, mean_difference, probe_direction
from saelab.interventions.live import applied
from saelab.interventions.registry import Edit, counted, register, registered
from saelab.interventions.splice import Splices, spliced
from saelab.interventions.storage import load, save

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)


def __getattr__(name: str) -> Any:
    found = _edits().get(name)
    if found is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return found


def __dir__() -> list[str]:
    return [*__all__, *_edits()]


def _edits() -> dict[str, type[Edit]]:
    own = f"{__name__}."
    return {cls.__name__: cls for cls in registered().values() if cls.__module__.startswith(own)}


__all__ = [
    "Edit", "Splices", "applied", "counted", "latent_means", "load", "mean_difference", "probe_direction",
    "register", "registered", "save", "spliced",
]  # fmt: skip
