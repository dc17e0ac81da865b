"""What part of an image a model sees, and where its patches lie in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from saelab.config import is_integer

MOST_OFF = 2.0
"""Pixels of what the model sees by which a processor's own output may differ from what is foretold."""


class Box(NamedTuple):
    """A rectangle in an image, in pixels from its upper left corner; outside of the image where the processor
    pads."""

    left: float
    top: float
    right: float
    bottom: float

    def within(self, rows: int, columns: int, row: int, column: int) -> Box:
        """One cell of a grid over it.

        Args:
            rows: Of the grid.
            columns: Of the grid.
            row: From 0, from above.
            column: From 0.
        """
        x, y = (self.right - self.left) / columns, (self.bottom - self.top) / rows
        left, top = self.left + column * x, self.top + row * y
        return Box(left, top, left + x, top + y)


Seeing = Callable[[int, int], Box]
"""(height, width) of an image -> the part of it that the model sees."""


def seeing(processor: Any) -> Seeing | None:
    """What an image processor makes of images: it resizes, then cuts the middle out, or pads around it.

    None where it does something else: what its options say is compared with what it does to a slope of grey.
    """
    found = _told(processor)
    return found if found is not None and _holds(processor, found) else None


def _told(processor: Any) -> Seeing | None:
    """As the options of Hugging Face's processors say it."""
    size = _sides(getattr(processor, "size", None)) if getattr(processor, "do_resize", False) else {}
    crop = _sides(getattr(processor, "crop_size", None)) if _crops(processor) else {}
    percent = getattr(processor, "crop_pct", None)
    shortest = size.get("shortest_edge")
    if shortest and percent and not crop:  # ConvNext: small pictures are cut, large ones are not
        cut = shortest < 384
        size = {"shortest_edge": int(shortest / percent)} if cut else {"height": shortest, "width": shortest}
        crop = {"height": shortest, "width": shortest} if cut else {}

    def resized(height: int, width: int) -> tuple[float, float] | None:
        if not size:
            return height, width
        if "height" in size and "width" in size:
            return size["height"], size["width"]
        if set(size) != {"shortest_edge"}:
            return None
        short, long = sorted((height, width))
        other = int(size["shortest_edge"] * long / short)
        return (size["shortest_edge"], other) if height <= width else (other, size["shortest_edge"])

    def box(height: int, width: int) -> Box:
        own = resized(height, width)
        assert own is not None
        cut = (crop.get("height", own[0]), crop.get("width", own[1]))
        top, left = ((whole - kept) // 2 for whole, kept in zip(own, cut, strict=True))
        down, across = height / own[0], width / own[1]
        return Box(left * across, top * down, (left + cut[1]) * across, (top + cut[0]) * down)

    return None if resized(4, 8) is None else box


def _crops(processor: Any) -> bool:
    return bool(getattr(processor, "do_center_crop", False))


def _sides(size: Any) -> dict[str, int]:
    """The sides that a processor's size sets."""
    if is_integer(size):
        return {"shortest_edge": size}
    items = dict(size) if isinstance(size, Mapping) else vars(size) if hasattr(size, "__dict__") else {}
    return {name: int(side) for name, side in items.items() if is_integer(side)}


def _holds(processor: Any, box: Seeing) -> bool:
    """Whether images of two forms come out as foretold, by where their greys went."""
    from PIL import Image

    for height, width in ((240, 320), (330, 250)):
        ramps = np.linspace(0, 255, width)[None, :].repeat(height, 0)
        downs = np.linspace(0, 255, height)[:, None].repeat(width, 1)
        image = Image.fromarray(np.stack([ramps, downs, ramps], -1).round().astype(np.uint8))
        try:
            made = processor(images=[image], return_tensors="pt", do_normalize=False, do_rescale=False)
            pixels = np.asarray(made["pixel_values"][0], dtype=np.float64)
        except (TypeError, ValueError, KeyError):
            return False
        if pixels.ndim != 3 or len(pixels) != 3:
            return False
        seen = box(height, width)
        for axis, plane, first, last, whole in (
            (1, pixels[0], seen.left, seen.right, width),
            (0, pixels[1], seen.top, seen.bottom, height),
        ):
            n = plane.shape[axis]
            middle = np.arange(n // 4, n - n // 4)
            expected = (first + (middle + 0.5) / n * (last - first) - 0.5) / (whole - 1) * 255
            # along the middle of the image, beside which a processor may have padded
            across = plane.shape[1 - axis]
            found = plane.take(range(across * 3 // 8, across * 5 // 8), 1 - axis).mean(1 - axis)[middle]
            inside = (expected >= 0) & (expected <= 255)
            unit = 255 / whole * (last - first) / n
            if np.abs(found - expected)[inside].max(initial=0) > MOST_OFF * unit + 1:
                return False
    return True


def cut(image: np.ndarray, box: Box) -> np.ndarray:
    """The part of an image in a box, black where there is none.

    Args:
        image: uint8 [h w 3].
        box: Of the part, rounded to whole pixels.
    """
    left, top, right, bottom = (round(side) for side in box)
    out = np.zeros((max(bottom - top, 1), max(right - left, 1), *image.shape[2:]), image.dtype)
    inside = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    y, x = max(-top, 0), max(-left, 0)
    out[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return out
