"""What a model of timm makes of images, in the form of Hugging Face's image processors."""

from __future__ import annotations

import importlib
import math
from typing import Any

from saelab.errors import needing


class TimmProcessor:
    """The transform of timm's own data config of a model.

    Args:
        model: That timm made.

    Raises:
        MissingDependency: timm is not installed.
    """

    def __init__(self, model: Any) -> None:
        with needing("A model's own transform", "timm", "timm"):
            timm: Any = importlib.import_module("timm.data")
        self.config = dict(timm.resolve_model_data_config(model))
        self.transform: Any = timm.create_transform(**self.config, is_training=False)
        height, width = self.config["input_size"][-2:]
        squashes = self.config.get("crop_mode") == "squash"
        scaled = [math.floor(side / self.config["crop_pct"]) for side in (height, width)]
        self.do_resize, self.do_center_crop = True, True
        both = {"height": scaled[0], "width": scaled[1]}
        self.size = both if squashes or scaled[0] != scaled[1] else {"shortest_edge": scaled[0]}
        self.crop_size = {"height": height, "width": width}

    def __call__(
        self,
        images: list[Any],
        return_tensors: str = "pt",
        do_normalize: bool = True,
        do_rescale: bool = True,
    ) -> dict[str, Any]:
        """Images as the model takes them.

        Args:
            images: PIL images.
            return_tensors: "pt".
            do_normalize: False leaves pixels in 0..1.
            do_rescale: False, with do_normalize, gives pixels in 0..255.
        """
        import torch

        steps = list(self.transform.transforms)
        kept = steps if do_normalize else [s for s in steps if type(s).__name__ != "Normalize"]
        made = []
        for image in images:
            for step in kept:
                image = step(image)
            made.append(image if do_rescale else image * 255)
        return {"pixel_values": torch.stack(made)}
