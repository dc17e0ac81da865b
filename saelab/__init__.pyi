from . import (
    analysis,
    compat,
    corpora,
    embedded,
    formats,
    harvesting,
    interventions,
    sae,
    scale,
    stores,
    subjects,
    training,
    types,
    widgets,
)
from .analysis import evaluate
from .formats import load_sae, save_sae
from .harvesting import harvest, index
from .interventions import spliced
from .lab import Lab
from .lab.watching import watch
from .sae import SAE, SAEConfig, recipe, recipes
from .stores import ActivationStore, FeatureStore
from .subjects import LanguageModel, TorchModule, VisionModel, load_subject
from .training import stream, train
from .types import HookPoint, SaelabError

__version__: str

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
    "VisionModel",
    "analysis",
    "compat",
    "corpora",
    "embedded",
    "evaluate",
    "formats",
    "harvest",
    "harvesting",
    "index",
    "interventions",
    "load_sae",
    "load_subject",
    "recipe",
    "recipes",
    "sae",
    "save_sae",
    "scale",
    "spliced",
    "stores",
    "stream",
    "subjects",
    "train",
    "training",
    "types",
    "watch",
    "widgets",
]
