"""Corpora of images: what a vision subject reads, with small pictures for people."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saelab.arguments import checked, listed, maybe, sequence
from saelab.config import integer
from saelab.corpora.documents import Corpus, Document
from saelab.types import CorpusError, MissingDependency

SMALL = 64
"""Pixels of a side up to which a picture is kept as it is."""


@checked(items=listed, ids=maybe(sequence), labels=maybe(sequence))
def images(
    items: Sequence[Any] | Iterable[Any],
    labels: Sequence[Any] | None = None,
    ids: Sequence[str] | None = None,
    *,
    size: int = 96,
    name: str = "images",
) -> Corpus:
    """A corpus of images, each with a small picture of it that views and exports show.

    Args:
        items: paths, PIL images, or arrays and tensors [H W], [H W C] or [C H W] with 1, 3 or 4 channels:
            uint8, or floats in 0..1. A sequence that loads an item when it is asked for is not read into
            memory. The subject's `prepare` gets them as they are; of a path, the PIL image.
        labels: of each, a string or several, for people and for scores.
        ids: of each; by default its number, or a path's name.
        size: longer side of the small pictures, in pixels.
        name: of the corpus, for people.

    Raises:
        CorpusError: There is none, or another number of labels or ids.
        ConfigError: A size outside of 8..512; once it is read, a label that is no string and no list of them.
        MissingDependency: Pillow is not installed.
    """
    need_pillow()
    size = integer("size", size, 8, 512)
    known: Any = items if hasattr(items, "__getitem__") and hasattr(items, "__len__") else list(items)
    n = len(known)
    if not n:
        message = "A corpus must hold at least one image. Got none. Pass paths, arrays or PIL images."
        raise CorpusError(message)
    for what, given in (("labels", labels), ("ids", ids)):
        if given is not None and len(given) != n:
            message = f"{what} must be one for each of {n} images. Got {len(given)}. Pass as many, or None."
            raise CorpusError(message)

    def make() -> Iterator[Document]:
        for i in range(n):
            item = known[i]
            sample = _opened(item) if isinstance(item, str | Path) else item
            id = ids[i] if ids is not None else Path(item).name if isinstance(item, str | Path) else str(i)
            own = () if labels is None else _labels(labels[i])
            text = ", ".join(own) or f"image {id}"
            media = thumbnail(sample, size)
            yield Document(id, text, kind="image", sample=sample, labels=own, media=media)

    def key() -> str:
        digest = hashlib.sha256()
        for i in range(n):
            item = known[i]
            data = Path(item).read_bytes() if isinstance(item, str | Path) else np.asarray(item).tobytes()
            digest.update(data)
        return digest.hexdigest()

    return Corpus(make, name, key, n)


def _labels(given: Any) -> tuple[str, ...]:
    """Of one image."""
    return (given,) if isinstance(given, str) else tuple(map(str, listed("Each of labels", given)))


def thumbnail(image: Any, size: int = 96) -> bytes:
    """A small picture of an image: PNG where it is small itself, else JPEG.

    Args:
        image: see `images`.
        size: longer side, in pixels.

    Raises:
        CorpusError: It is no image.
    """
    from PIL import Image

    picture = image if isinstance(image, Image.Image) else Image.fromarray(_pixels(image))
    lossless = max(picture.size) <= SMALL
    small = picture.copy()
    small.thumbnail((size, size))
    if small.mode not in ("L", "RGB"):
        small = small.convert("RGB")
    out = io.BytesIO()
    small.save(out, "PNG" if lossless else "JPEG", **({} if lossless else {"quality": 85}))
    return out.getvalue()


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


def _opened(path: str | Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        message = f"An image file must be readable. Got {path}: {error}. Get it again, or leave it out."
        raise CorpusError(message) from error


def need_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        message = "Images need Pillow. It is not installed. Run: pip install pillow"
        raise MissingDependency(message) from error
