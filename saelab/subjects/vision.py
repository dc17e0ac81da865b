"""Hugging Face image models as subjects: their own image processor, and rows that know their patch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saelab.config import is_integer
from saelab.devices import torch_device
from saelab.subjects.reading import How, SampleReading
from saelab.subjects.torch_module import TorchModule
from saelab.types import CorpusError, MissingDependency, SubjectError, short


class VisionModel(TorchModule):
    """A vision transformer or another image model, read and edited at module paths.

    Rows of a hook point that has a position for each patch show where the patch lies; positions before the
    patches (class and register tokens) are "extra". Maps of a CNN are grids of their own. How many patches
    there are follows from the image that the processor gives and the model's patch size.

    Args:
        model: of Hugging Face, taking `pixel_values`; put into eval mode.
        processor: its image processor: (images=[...], return_tensors="pt") -> pixel_values.

    Raises:
        SubjectError: The processor gives no pixel_values.
    """

    def __init__(self, model: nn.Module, processor: Any) -> None:
        self.processor = processor
        super().__init__(model, prepare=self._pixels, example=[_blank()])
        assert self._sample is not None
        height, width = self._sample.data["pixel_values"].shape[-2:]
        patch = _patch(getattr(model, "config", None))
        self.grid: tuple[int, int] | None = None if patch is None else (height // patch, width // patch)

    @classmethod
    def load(cls, name: str | Path, device: str | torch.device = "cpu") -> VisionModel:
        """The model of a folder or a hub id, with its processor.

        Args:
            name: The folder or id.
            device: A torch device.

        Raises:
            SubjectError: It cannot be found, or is no image model.
            MissingDependency: Pillow is not installed.
        """
        place = torch_device(device, error=SubjectError)
        from transformers import AutoImageProcessor, AutoModel

        try:
            processor = AutoImageProcessor.from_pretrained(str(name))
            model = AutoModel.from_pretrained(str(name))
        except ImportError as error:
            message = "Image processors need Pillow. It is not installed. Run: pip install pillow"
            raise MissingDependency(message) from error
        except Exception as error:
            first = str(error).strip().split("\n", 1)[0][:300]
            message = (
                f"An image model must load with its processor. Got {str(name)!r}: {first} Pass a folder that "
                "save_pretrained wrote, or VisionModel(model, processor)."
            )
            raise SubjectError(message) from None
        return cls(getattr(model, "vision_model", model).to(place).requires_grad_(False), processor)

    def read(self, documents: Sequence[tuple[int, Any]], how: How) -> SampleReading:
        """How consecutive images are read: each is one sample, its patches in a grid.

        Args:
            documents: (number, item) of each.
            how: Batches and the like.
        """
        return SampleReading(documents, how.batch_size, self.prepare, self._lies())

    def seen(self, sample: Any) -> Any:
        """An image as the model sees it: the sample itself, unless the processor cuts or pads it."""
        if not (getattr(self.processor, "do_center_crop", False) or getattr(self.processor, "do_pad", False)):
            return sample
        made = self.processor(images=[sample], return_tensors="pt", do_normalize=False, do_rescale=False)
        return made["pixel_values"][0].clamp(0, 255).to(torch.uint8)

    def _lies(self) -> Callable[[Any, int], str | None] | None:
        if self.grid is None:
            return None
        height, width = self.grid

        def layout(raw: Any, n: int) -> str | None:
            extra = n - height * width
            if extra < 0:  # a hook point without patches, such as a pooled vector
                return None
            return f"grid {height}x{width}" if not extra else f"extra {extra}, grid {height}x{width}"

        return layout

    def _pixels(self, raw: Sequence[Any]) -> dict[str, Any]:
        try:
            made = self.processor(images=list(raw), return_tensors="pt")
        except (ValueError, TypeError) as error:
            message = (
                f"Samples must be images that the model's processor takes. Got {type(raw[0]).__name__}: "
                f"{error}. Pass PIL images or uint8 arrays [H W C]."
            )
            raise CorpusError(message) from None
        if not isinstance(made, Mapping) or "pixel_values" not in made:
            message = (
                f"An image processor must give pixel_values. Got {short(list(made) if made else made)} of "
                f"{type(self.processor).__name__}. Pass the processor that belongs to the model."
            )
            raise SubjectError(message)
        return {"pixel_values": made["pixel_values"]}


def _blank() -> Any:
    """A picture to try the model on."""
    ramp = torch.linspace(0, 255, 64)
    planes = [ramp[:, None].expand(64, 64), ramp.expand(64, 64), ramp.flip(0).expand(64, 64)]
    return torch.stack(planes, -1).to(torch.uint8).numpy()


def _patch(config: Any) -> int | None:
    config = getattr(config, "vision_config", config)
    size = getattr(config, "patch_size", None)
    return size if is_integer(size) and size > 0 else None


__all__ = ["VisionModel"]
