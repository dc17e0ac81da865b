"""One picture, out of whatever holds it: pixels that a model and a person see alike, and a small picture."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from saelab.errors import needing
from saelab.types import CorpusError

SMALL = 64
"""Pixels of a side up to which a picture is kept as it is."""
MAX_PIXELS = 64_000_000
"""Of a file that is decoded: 192 MB as bytes of red, green and blue."""
MOST_BYTES = 1 << 16
"""Of a small picture: what a feature store keeps of a document at most."""
QUALITIES = (85, 70, 50, 30, 10)


def picture_of(image: Any, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The pixels of an image as a person sees it, uint8 [height width 3].

    It is turned as its EXIF says; transparent parts are white; of an animation the first picture counts;
    CMYK, palettes, greys and 16 bits become red, green and blue of 8 bits.

    Args:
        image: A path, the bytes of a file, a PIL image, or an array or tensor [H W], [H W C] or [C H W] with
            1, 3 or 4 channels: uint8, or floats in 0..1.
        max_pixels: Files and PIL images of more are refused before they are decoded.

    Raises:
        CorpusError: It is no image, a broken or a huge one.
        MissingDependency: Pillow is not installed.
    """
    need_pillow()
    if isinstance(image, str | Path | bytes):
        return _decoded(image, max_pixels)
    from PIL import Image

    if isinstance(image, Image.Image):
        return _guarded(image, repr(getattr(image, "filename", "") or "an image"), max_pixels)
    pixels = _pixels(image)
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=-1)
    if pixels.shape[-1] == 4:
        return _on_white(Image.fromarray(pixels))
    return np.ascontiguousarray(pixels)


def thumbnail(image: Any, size: int = 96) -> bytes:
    """A small picture of an image, of at most 64 KiB and with nothing but pixels in it: PNG where the image
    is small itself, else JPEG.

    Args:
        image: See `picture_of`.
        size: Longer side, in pixels.

    Raises:
        CorpusError: It is no image.
    """
    need_pillow()
    from PIL import Image

    if not isinstance(image, str | Path | bytes | Image.Image):
        grey = _pixels(image)
        picture = Image.fromarray(grey if grey.ndim == 2 else picture_of(image))
    else:
        picture = Image.fromarray(picture_of(image))
    lossless = max(picture.size) <= SMALL
    picture.thumbnail((size, size))
    if lossless and len(made := _encoded(picture, "PNG")) <= MOST_BYTES:
        return made
    for quality in QUALITIES:
        made = _encoded(picture, "JPEG", quality=quality)
        if len(made) <= MOST_BYTES:
            return made
    picture.thumbnail((SMALL, SMALL))
    return _encoded(picture, "JPEG", quality=QUALITIES[-1])


def need_pillow() -> None:
    """Raises MissingDependency where Pillow is not installed."""
    with needing("An image", "Pillow", "pillow"):
        import PIL.Image  # noqa: F401


def _encoded(picture: Any, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def _decoded(file: str | Path | bytes, max_pixels: int) -> np.ndarray:
    from PIL import Image

    named = f"{len(file):,} bytes" if isinstance(file, bytes) else repr(os.fspath(file))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a bomb: its pixels are counted below
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                return _guarded(image, named, max_pixels)
    except CorpusError:
        raise
    except Exception as error:  # each of Pillow's many plug-ins has its own for a file that it cannot read
        first = str(error).strip().split("\n", 1)[0][:200]
        message = (
            f"An image file must be readable. Got {named}: {type(error).__name__}: {first} Get it again, or "
            "leave it out (broken='skip')."
        )
        raise CorpusError(message) from error


def _guarded(image: Any, named: str, max_pixels: int) -> np.ndarray:
    """The pixels of an opened image, once its size is known to be bearable."""
    width, height = image.size
    if width * height > max_pixels:
        message = (
            f"An image must have at most {max_pixels:,} pixels. Got {width} x {height} in {named}. "
            "Shrink it, or pass max_pixels=."
        )
        raise CorpusError(message)
    from PIL import ImageOps

    try:
        image.load()
        turned = ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, KeyError, IndexError) as error:
        message = (
            f"An image must be whole. Got {named}: {error}. Get it again, or leave it out (broken='skip')."
        )
        raise CorpusError(message) from error
    return _coloured(turned, named)


def _coloured(image: Any, named: str) -> np.ndarray:
    """uint8 [h w 3] of a PIL image of any mode."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        low, high = float(values.min(initial=0)), float(values.max(initial=0))
        most = 1.0 if image.mode == "F" else 255.0 if image.mode == "I" and high <= 255 else 65535.0
        if not (np.isfinite([low, high]).all() and 0 <= low <= high <= most):
            message = (
                f"Pixels must be of 8 or 16 bits, or floats in 0..1. Got {low:.3g}..{high:.3g} of mode "
                f"{image.mode!r} in {named}. Scale them first."
            )
            raise CorpusError(message)
        grey = (values / most * 255).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _on_white(image.convert("RGBA"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _on_white(image: Any) -> np.ndarray:
    from PIL import Image

    under = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(under, image).convert("RGB"))


def _pixels(image: Any) -> np.ndarray:
    """uint8 [H W] or [H W C]."""
    array = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    good = array.size > 0 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))
    if not good or array.dtype.kind not in "uif":
        message = (
            "An image must be [H W], [H W C] or [C H W] with 1, 3 or 4 channels of numbers. Got "
            f"{list(array.shape)} of {array.dtype}. Pass pixels, or use saelab.corpora.samples."
        )
        raise CorpusError(message)
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (np.isfinite([low, high]).all() and low >= -1e-3 and high <= 1 + 1e-3):
            message = (
                f"Pixels that are floats must be in 0..1. Got {low:.3g}..{high:.3g}. Pass the image as it is "
                "before the subject's prepare normalises it."
            )
            raise CorpusError(message)
        array = (array.clip(0, 1) * 255).round()
    elif int(array.min()) < 0 or int(array.max()) > 255:
        got = f"{array.min()}..{array.max()}"
        message = f"Pixels that are integers must be in 0..255. Got {got}. Scale them first."
        raise CorpusError(message)
    return array.astype(np.uint8)
