"""Small pictures of samples, cut as the model sees them: what lies under a grid of patches."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from saelab.capabilities import HasPictures
from saelab.corpora.pictures import thumbnail
from saelab.errors import SaelabError

if TYPE_CHECKING:
    from saelab.corpora import Document
    from saelab.harvesting.batches import Batch
    from saelab.types import Subject


def picture(subject: Subject, document: Document, size: int = 96) -> bytes | None:
    """A picture of a sample as a grid of its positions covers it; None where it is no image.

    Args:
        subject: whose grid it is.
        document: with the sample.
        size: longer side, in pixels.
    """
    with contextlib.suppress(SaelabError, ImportError, ValueError, TypeError):
        raw = document.raw
        return thumbnail(subject.seen(raw) if isinstance(subject, HasPictures) else raw, size)
    return None


def pictured(subject: Subject, found: Iterable[Batch]) -> Iterator[Batch]:
    """Batches whose documents' pictures, where they have one under a grid, are cut as the model sees them."""
    for batch in found:
        documents = batch.documents
        if isinstance(subject, HasPictures):
            documents = [
                dataclasses.replace(each, media=picture(subject, each) or each.media)
                if each.media and "grid" in layout
                else each
                for each, layout in zip(documents, batch.layouts, strict=True)
            ]
        yield dataclasses.replace(batch, documents=documents)
