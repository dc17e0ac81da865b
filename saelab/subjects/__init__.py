"""Models that can be read and edited at hook points: Hugging Face language models, and any torch module."""

from __future__ import annotations

from saelab.subjects.language import LanguageModel
from saelab.subjects.loading import load_subject
from saelab.subjects.torch_module import TorchModule
from saelab.subjects.vision import VisionModel

__all__ = ["LanguageModel", "TorchModule", "VisionModel", "load_subject"]
