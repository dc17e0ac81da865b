"""saelab: train, read and steer sparse autoencoders from a notebook.

The public names load on first use, so `import saelab` is quick and imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# public name -> (module, attribute); attribute None means the module itself
_PUBLIC: dict[str, tuple[str, str | None]] = {
    "types": ("saelab.types", None),
    "analysis": ("saelab.analysis", None),
    "corpora": ("saelab.corpora", None),
    "embedded": ("saelab.embedded", None),
    "formats": ("saelab.formats", None),
    "scale": ("saelab.scale", None),
    "stores": ("saelab.stores", None),
    "ActivationStore": ("saelab.stores", "ActivationStore"),
    "FeatureStore": ("saelab.stores", "FeatureStore"),
    "HookPoint": ("saelab.types", "HookPoint"),
    "SaelabError": ("saelab.types", "SaelabError"),
    "SAE": ("saelab.sae", "SAE"),
    "SAEConfig": ("saelab.sae", "SAEConfig"),
    "recipe": ("saelab.sae", "recipe"),
    "recipes": ("saelab.sae", "recipes"),
    "LanguageModel": ("saelab.subjects", "LanguageModel"),
    "TorchModule": ("saelab.subjects", "TorchModule"),
    "load_subject": ("saelab.subjects", "load_subject"),
    "load_sae": ("saelab.formats", "load_sae"),
    "save_sae": ("saelab.formats", "save_sae"),
    "harvest": ("saelab.harvesting", "harvest"),
    "index": ("saelab.harvesting", "index"),
    "stream": ("saelab.training", "stream"),
    "train": ("saelab.training", "train"),
    "evaluate": ("saelab.analysis", "evaluate"),
    "Lab": ("saelab.lab", "Lab"),
}

__all__ = [
    "SAE",
    "ActivationStore",
    "FeatureStore",
    "HookPoint",
    "Lab",
    "LanguageModel",
    "SAEConfig",
    "SaelabError",
    "TorchModule",
    "__version__",
    "analysis",
    "corpora",
    "embedded",
    "evaluate",
    "formats",
    "harvest",
    "index",
    "load_sae",
    "load_subject",
    "recipe",
    "recipes",
    "save_sae",
    "scale",
    "stores",
    "stream",
    "train",
    "types",
]

if TYPE_CHECKING:
    from saelab import analysis, corpora, embedded, formats, scale, stores, types
    from saelab.analysis import evaluate
    from saelab.formats import load_sae, save_sae
    from saelab.harvesting import harvest, index
    from saelab.lab import Lab
    from saelab.sae import SAE, SAEConfig, recipe, recipes
    from saelab.stores import ActivationStore, FeatureStore
    from saelab.subjects import LanguageModel, TorchModule, load_subject
    from saelab.training import stream, train
    from saelab.types import HookPoint, SaelabError


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        message = f"module 'saelab' has no attribute {name!r}"
        raise AttributeError(message)
    module_name, attribute = _PUBLIC[name]
    module = importlib.import_module(module_name)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
