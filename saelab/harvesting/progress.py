"""The progress bar of a pass over a corpus: rows a second and the time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from saelab.config import boolean
from saelab.progress import new_bar

if TYPE_CHECKING:
    from tqdm import tqdm

    from saelab.corpora import Corpus
    from saelab.harvesting.batches import Batch


class Progress:
    """Counts rows. How many there will be is `max_rows`, or what the documents read so far let expect of a
    corpus whose number of documents is known, whichever is less."""

    def __init__(
        self, bar: tqdm, max_rows: int | None, n_documents: int | None, rows: int = 0, documents: int = 0
    ) -> None:
        self.bar, self.max_rows, self.n_documents = bar, max_rows, n_documents
        self.rows, self.documents = rows, documents

    def add(self, batch: Batch) -> None:
        """Another batch is done."""
        self.rows += len(batch)
        self.documents += len(batch.documents)
        if self.n_documents:
            expected = round(self.rows * self.n_documents / max(self.documents, 1))
            self.bar.total = expected if self.max_rows is None else min(expected, self.max_rows)
        self.bar.update(len(batch))


@contextmanager
def progress_bar(
    name: str, corpus: Corpus, max_rows: int | None, shown: bool, rows: int = 0, documents: int = 0
) -> Iterator[Progress]:
    """A bar over the rows of a corpus, of which `rows` of `documents` are done already."""
    options: dict[str, Any] = {
        "unit": "row",
        "unit_scale": True,
        "desc": name,
        "disable": not boolean("progress", shown),
    }
    with new_bar(total=max_rows, initial=rows, **options) as bar:
        yield Progress(bar, max_rows, corpus.n_documents, rows, documents)
