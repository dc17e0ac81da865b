from .generation import Step
from .language import LanguageModel
from .loading import load_subject
from .torch_module import TorchModule
from .vision import VisionModel

__all__ = ["LanguageModel", "Step", "TorchModule", "VisionModel", "load_subject"]
