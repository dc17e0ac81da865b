"""The documents of a store: listed, searched and sorted; one of them is open as a heatmap."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import traitlets

from saelab.arguments import flag
from saelab.stores.records import DocumentRecord
from saelab.types import StoreError
from saelab.widgets import still
from saelab.widgets.base import View
from saelab.widgets.questions import Ask
from saelab.widgets.selection import Selection
from saelab.widgets.sides import Side
from saelab.widgets.source import HasSources
from saelab.widgets.wire import Packed, clean

PAGE = 50
"""Documents whose lines are asked for together."""
KEPT = 8
"""Documents that are kept open in the kernel."""
PAGE_DOCUMENTS, PAGE_OPEN = 1_000, 40
"""Documents that a page lists, and those that it can open, at most."""
SNIPPET = 240
"""Characters of a document's beginning, at most."""
FIRST = Ask("list", {"way": "text", "words": "", "sort": "document", "latent": -1, "descending": 1})


class CorpusView(View):
    """Documents beside the one that is chosen, coloured by the chosen latent.

    Args:
        corpus: A `saelab.analysis.stored.StoredCorpus`, or what answers as it does.
        labels: () -> {latent: label}.
        options: See `View`.
    """

    kind = "corpus"
    follows = ("latent", "latents", "row", "document")
    kept = traitlets.Unicode("full").tag(sync=True)

    def __init__(self, corpus: Any, labels: Callable[[], Mapping[int, str]] = dict, **options: Any) -> None:
        self.corpus, self.labels_of = corpus, labels
        self._open: OrderedDict[tuple[int, int], Side] = OrderedDict()
        super().__init__(kept=corpus.store.kept, **options)

    @staticmethod
    def of(
        lab: HasSources, document: int | None = None, *, sae: str | None = None, follow: bool = True
    ) -> CorpusView:
        """The documents that were indexed: read, searched and sorted, one of them open.

        They are searched by text, token, latent, or an SQL expression over the store's table `documents`, and
        sorted by number, length, what the chosen latent does in them, or by the model's loss of those for
        which it is asked. The open one comes from the store, without the model, or is read by the model.

        Args:
            lab: whose store it is.
            document: opened at first.
            sae: name of the SAE; None: the chosen one.
            follow: choose that document in every linked view; else the view is one of its own.

        Raises:
            StoreError: The SAE has no store.
            RangeError: There is no such document.
        """
        source = lab.source(sae)
        corpus = source.questions["corpus"]()
        if document is not None:
            corpus.store.document(document)
        selection = source.selection if flag("follow", follow) else Selection(sae=source.selection.sae)
        chosen = {} if document is None else {"document": document}
        return CorpusView(
            corpus, source.questions["labels"], selection=selection, edits=source.edits, **chosen
        )

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        return {
            "list": self._list,
            "lines": self._lines,
            "surprise": self._surprise,
            "place": self._place,
            "codes": lambda document, model=0: self._side(document, model).codes_answer(self.labels_of()),
            "chunk": lambda number, document, model=0: self._side(document, model).chunk(number),
            "along": lambda latent, document, model=0: self._side(document, model).along(latent),
            "layer": lambda name, unit, document, model=0: self._side(document, model).layer(name, unit),
        }

    def first(self) -> Iterable[Ask]:
        opened = [] if self.document is None else [Ask("codes", {"document": self.document})]
        return [FIRST, *self._asks_lines(PAGE), *opened]

    def exported(self) -> Iterable[Ask]:
        latent = self.latent
        numbers = [] if self.document is None else [self.document]
        if latent is not None and self.corpus.store.kept != "none":
            numbers += self.corpus.find("text", "", "strongest", latent, True).documents.tolist()
        else:
            numbers += range(self.corpus.store.n_documents)
        some = list(dict.fromkeys(numbers))[:PAGE_OPEN]
        opened = (Ask("codes", {"document": int(number)}) for number in some)
        return [FIRST, *self._asks_lines(PAGE_DOCUMENTS), *opened]

    def left_out(self) -> str:
        n, said = self.corpus.store.n_documents, []
        if n > PAGE_DOCUMENTS:
            said.append(f"the lines of documents after the first {PAGE_DOCUMENTS:,}")
        if n > PAGE_OPEN:
            said.append(f"what latents do on all but {PAGE_OPEN} of {n:,} documents")
        return " and ".join(said)

    def text(self) -> str:
        store = self.corpus.store
        lines = [f"{store.n_documents:,} documents, {store.n_rows:,} rows"]
        held = store.documents(range(min(10, store.n_documents)))
        lines += [f"{number:>6}  {_snippet(record)[:80]}" for number, record in held.items()]
        if self.document is not None:
            lines += ["", f"document {self.document}", str(self._side(self.document, 0).codes)]
        return "\n".join(lines)

    def html(self) -> str:
        store = self.corpus.store
        held = store.documents(range(min(still.LINES, store.n_documents)))
        lines = [[str(number), record.title, _snippet(record)[:100]] for number, record in held.items()]
        shown = [
            still.note(f"{store.n_documents:,} documents, {store.n_rows:,} rows; the first:"),
            still.grid(["document", "", "begins"], lines),
        ]
        if self.document is not None:
            title = store.document(self.document).title
            shown.append(f"<div><b>{still.escaped(title)}</b></div>")
            shown.append(still.sample(self._side(self.document, 0).codes, self.latent, self.labels_of()))
        return still.frame(*shown)

    def _side(self, document: int, model: int) -> Side:
        """A document as the store has it, or read by the model; the latest are kept."""
        key = (document, model)
        if key not in self._open:
            if model:
                codes, layers = self.corpus.read(document), tuple(self.corpus.layers())
                side = Side(codes, layers, lambda: self.corpus.predict(document))
            else:
                side = Side(self.corpus.stored(document))
            self._open[key] = side
            while len(self._open) > KEPT:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]

    def _list(self, way: str, words: str, sort: str, latent: int, descending: int) -> Packed:
        found = self.corpus.find(way, words, sort, None if latent < 0 else latent, bool(descending))
        header = {"what": found.what, "all": self.corpus.store.n_documents}
        fields = {"documents": found.documents.astype(np.int32), "score": found.score.astype(np.float32)}
        return Packed(header, fields)

    def _lines(self, documents: str) -> Packed:
        held = self.corpus.store.documents(_numbers(documents))
        lines = [[n, clean(record.title), clean(_snippet(record))] for n, record in held.items()]
        return Packed({}, {"lines": lines})

    def _surprise(self, documents: str) -> Packed:
        return Packed({"seconds": self.corpus.surprise(_numbers(documents))})

    def _place(self, row: int) -> Packed:
        """Where a row of the store is: its document, and its number among that document's rows."""
        store = self.corpus.store
        found = store.query(
            "select document, first_row from documents where first_row <= ? and ? < first_row + n_rows",
            [row, row],
        )
        if found.empty:
            message = f"row must be below {store.n_rows:,}. Got {row}. Choose one of the store."
            raise StoreError(message)
        return Packed({"document": int(found["document"][0]), "at": row - int(found["first_row"][0])})

    def _asks_lines(self, most: int) -> list[Ask]:
        numbers = range(min(most, self.corpus.store.n_documents))
        pages = (numbers[first : first + PAGE] for first in range(0, len(numbers), PAGE))
        return [Ask("lines", {"documents": ",".join(map(str, page))}) for page in pages]


def _numbers(documents: str) -> list[int]:
    return [int(number) for number in documents.split(",") if number]


def _snippet(record: DocumentRecord) -> str:
    """How a document begins."""
    return record.text[:SNIPPET] or record.title
