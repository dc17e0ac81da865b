"""Corpora of images: what a vision subject reads, with small pictures for people."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from saelab.arguments import checked, listed, maybe, sequence
from saelab.config import integer
from saelab.corpora.documents import Corpus, Document
from saelab.corpora.pictures import need_pillow, picture_of, thumbnail
from saelab.types import CorpusError


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
            sample = picture_of(item) if isinstance(item, str | Path) else item
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
