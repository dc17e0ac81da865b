"""How subjects read a corpus: which passes a stretch of documents takes, and which rows they give.

Harvesting knows no kind of subject: it asks for a `Reading`, runs its passes, and keeps the positions that it
says are rows, in the order of the documents.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch

from saelab.corpora import Corpus, Document, as_corpus, samples
from saelab.layout import LINE, Layout, Place, Segment
from saelab.subjects.packing import Packed, check_packing, packed, stretch_size
from saelab.types import ConfigError, HookError, Inputs, Run, Shown

if TYPE_CHECKING:
    from torch import Tensor

FACETS = {"line": "position", "grid": "patch", "list": "item", "extra": "extra"}
"""Kind of a segment -> what its rows show where the subject does not say it."""


@dataclass(frozen=True)
class How:
    """How a corpus is read."""

    batch_size: int = 16
    """samples that run together"""
    packing: str = "document"
    long: str = "split"
    include_bos: bool = False


class Rows(NamedTuple):
    """The rows of some documents, in their order."""

    origin: np.ndarray
    """int64 [n 3]: (document number, position in the document, call)"""
    shown: np.ndarray
    """int32 [n]: what each row shows, a number in `vocabulary`"""
    vocabulary: list[Shown]
    ids: np.ndarray
    """int32 [n]: the subject's own number of what a row shows, such as a token id; -1 where it has none"""
    special: np.ndarray
    """bool [n]: what a chat template or the tokenizer wrote"""
    counted: np.ndarray
    """bool [n]: all but BOS, which is a row where it is asked for"""

    def only(self, at: slice | np.ndarray) -> Rows:
        """Some of them: a slice, or bool [n]."""
        others = (self.ids[at], self.special[at], self.counted[at])
        return Rows(self.origin[at], self.shown[at], self.vocabulary, *others)


class Reading(ABC):
    """What a subject makes of consecutive documents.

    A sample is what a pass reads as one; samples are numbered in the order of the documents.
    """

    n_samples: int
    cut: Mapping[int, int] = {}
    """number of each document that was cut at the context -> tokens left out"""

    @abstractmethod
    def passes(self) -> Iterator[tuple[Sequence[int], Inputs]]:
        """(numbers of the samples, their inputs) of each forward pass."""

    @abstractmethod
    def kept(self, sample: int, at: int, inputs: Inputs, run: Run) -> slice | Tensor:
        """Which positions of a sample are rows. at: its place in the pass."""

    @abstractmethod
    def rows(self, calls: int = 1) -> Rows:
        """All rows, once every sample was kept. calls: of the hook points in a pass; the rows of a document
        then come call by call."""

    def count(self) -> int | None:
        """How many rows there are, where that is known without a pass; else None."""
        return None

    def limit(self, n: int) -> None:
        """Leave out the samples that are not needed for n rows, where that is known without a pass."""
        return

    @abstractmethod
    def end(self, n_samples: int) -> None:
        """Leave out the samples after these, which were kept."""

    @abstractmethod
    def layouts(self) -> list[str]:
        """How the positions of each document lie, once every sample was kept."""


class TokenReading(Reading):
    """Documents as token sequences.

    Args:
        packed: what is read as one sample, in the order of the documents.
        batch_size: samples of a pass; they are sorted by length, so that padding costs little.
        prepare: (lists of ids, segments or None) -> inputs.
        strings: ids -> text of each token for people.
        bos_id: of the token that is put first, or None.
    """

    def __init__(
        self,
        packed: Packed,
        batch_size: int,
        prepare: Callable[..., Inputs],
        strings: Callable[[Sequence[int]], list[str]],
        bos_id: int | None,
    ) -> None:
        self.samples, self.cut, self.n_documents = packed
        self._bos_id = bos_id
        self.n_samples = len(self.samples)
        self._batch_size, self._prepare, self._strings = batch_size, prepare, strings
        self._kept = [_positions(sample.counted) for sample in self.samples]

    def passes(self) -> Iterator[tuple[Sequence[int], Inputs]]:
        by_length = sorted(range(self.n_samples), key=lambda i: len(self.samples[i].ids))
        for first in range(0, self.n_samples, self._batch_size):
            some = by_length[first : first + self._batch_size]
            ids, segments = [self.samples[i].ids for i in some], [self.samples[i].segments for i in some]
            yield some, self._prepare(ids, segments) if segments[0] else self._prepare(ids)

    def kept(self, sample: int, at: int, inputs: Inputs, run: Run) -> slice | Tensor:
        return self._kept[sample]

    def rows(self, calls: int = 1) -> Rows:
        counted = self._all("counted", np.bool_)
        columns = [self._all(name, np.int64)[counted] for name in ("documents", "positions")]
        origin = np.stack([*columns, np.zeros(len(columns[0]), np.int64)], axis=1)
        ids = self._all("ids", np.int32)[counted]
        distinct, shown = np.unique(ids, return_inverse=True)
        vocabulary = [Shown("token", text) for text in self._strings(distinct.tolist())]
        special = self._all("special", np.bool_)[counted]
        bos = ids == (-1 if self._bos_id is None else self._bos_id)
        return Rows(origin, shown.astype(np.int32), vocabulary, ids, special, ~bos)

    def count(self) -> int | None:
        return sum(sum(sample.counted) for sample in self.samples)

    def limit(self, n: int) -> None:
        held = np.cumsum([sum(sample.counted) for sample in self.samples])
        self.end(int(np.searchsorted(held, n)) + 1)

    def end(self, n_samples: int) -> None:
        self.samples = self.samples[:n_samples]
        self.n_samples = len(self.samples)

    def layouts(self) -> list[str]:
        return [str(LINE)] * self.n_documents

    def _all(self, name: str, kind: type) -> np.ndarray:
        n = sum(len(sample.ids) for sample in self.samples)
        return np.fromiter(itertools.chain.from_iterable(getattr(s, name) for s in self.samples), kind, n)


class SampleReading(Reading):
    """Documents that are one sample each, whose positions are known when they were run.

    Args:
        documents: (number, document) in order.
        batch_size: of a pass.
        prepare: raw samples -> inputs.
        layout: (raw sample, positions) -> how they lie; None, or where it gives None: as the tensor at the
            hook point has them, a grid where it has rows and columns, else a line.
        label: (inputs, sample, position) -> what a row shows; None: where it lies.
        shown: (place, layout) -> what a row shows, where there is no label; None: where it lies.
        counts: (what a position shows, layout) -> whether it is a row; None: all are.
        whole: Make every position a row, those that do not count too.
    """

    def __init__(
        self,
        documents: Sequence[tuple[int, Document]],
        batch_size: int,
        prepare: Callable[[Sequence[Any]], Inputs],
        layout: Callable[[Any, int], str | None] | None = None,
        label: Callable[[Inputs, int, int], str] | None = None,
        *,
        shown: Callable[[Place, Layout], Shown] | None = None,
        counts: Callable[[Shown, Layout], bool] | None = None,
        whole: bool = False,
    ) -> None:
        self._shown: Callable[[Place, Layout], Shown] = shown or _where
        self._counts, self._whole = counts, whole
        self._counted: dict[tuple[Layout, int], tuple[list[Shown], np.ndarray]] = {}
        self.documents, self.n_samples = documents, len(documents)
        self._batch_size, self._prepare, self._layout, self._label = batch_size, prepare, layout, label
        self._layouts: list[Layout] = [LINE] * self.n_samples
        self._n = [0] * self.n_samples
        self._labels: list[list[str]] = [[] for _ in documents]

    def passes(self) -> Iterator[tuple[Sequence[int], Inputs]]:
        for first in range(0, self.n_samples, self._batch_size):
            some = range(first, min(first + self._batch_size, self.n_samples))
            yield some, self._prepare([self.documents[i][1].raw for i in some])

    def kept(self, sample: int, at: int, inputs: Inputs, run: Run) -> slice | Tensor:
        positions = {name: x.shape[1] // run.calls.get(name, 1) for name, x in run.acts.items()}
        if len(set(positions.values())) > 1:
            message = (
                f"Hook points that are harvested together must have the same positions. Got {positions}. "
                "Harvest them one by one."
            )
            raise HookError(message)
        first, n = next(iter(positions.items()))
        document, space = self.documents[sample][1], run.spaces.get(first)
        # padding is no row; a hook point that has other positions than the inputs has none
        if inputs.lengths is not None and space is None and n == _width(inputs):
            n = int(inputs.lengths[at])
        said = None if self._layout is None else self._layout(document.raw, n)
        if said is not None:
            self._layouts[sample] = Layout.parse(said)
            self._layouts[sample].check(n, f"document {document.id!r} at {first}")
        else:
            self._layouts[sample] = _found(space, n) if inputs.lengths is None else LINE
        self._n[sample] = n
        if self._label is not None:
            self._labels[sample] = [self._label(inputs, at, i) for i in range(n)]
        if self._counts is None or self._whole:
            return slice(0, n)
        return _positions(self._places(self._layouts[sample], n)[1].tolist())

    def _places(self, layout: Layout, n: int) -> tuple[list[Shown], np.ndarray]:
        """What each of n positions shows, and bool [n]: whether it counts as a row."""
        if (layout, n) not in self._counted:
            shown = [self._shown(layout.place(at), layout) for at in range(n)]
            counts = [self._counts is None or self._counts(each, layout) for each in shown]
            self._counted[layout, n] = shown, np.array(counts, bool)
        return self._counted[layout, n]

    def rows(self, calls: int = 1) -> Rows:
        numbers: dict[Shown, int] = {}
        shown, origin, counted = [], [], []
        known: dict[tuple[Layout, int], np.ndarray] = {}
        for i, (number, _) in enumerate(self.documents):
            layout, n = self._layouts[i], self._n[i]
            found, counts = self._places(layout, n)
            kept = np.arange(n) if self._whole else np.flatnonzero(counts)
            if self._label is not None:
                found = [Shown(each.facet, name) for each, name in zip(found, self._labels[i], strict=True)]
            if self._label is not None or (layout, n) not in known:
                own = [numbers.setdefault(found[at], len(numbers)) for at in kept]
                known[layout, n] = np.array(own, np.int32)
            shown.append(np.tile(known[layout, n], calls))
            counted.append(np.tile(counts[kept], calls))
            at, call = np.tile(kept, calls), np.repeat(np.arange(calls), len(kept))
            origin.append(np.stack([np.full(len(at), number), at, call], axis=1))
        origins = np.concatenate(origin).astype(np.int64) if origin else np.zeros((0, 3), np.int64)
        every = np.concatenate(shown) if shown else np.zeros(0, np.int32)
        counts = np.concatenate(counted) if counted else np.zeros(0, bool)
        n = len(origins)
        return Rows(origins, every, list(numbers), np.full(n, -1, np.int32), np.zeros(n, bool), counts)

    def end(self, n_samples: int) -> None:
        self.documents = self.documents[:n_samples]
        self.n_samples = len(self.documents)

    def layouts(self) -> list[str]:
        return list(map(str, self._layouts))


class ReadsTexts:
    """The way of a subject that `HasTokens` through a corpus of texts and dialogues."""

    def corpus(self, data: Any) -> Corpus:
        """Texts, Documents or a Corpus as a Corpus.

        Raises:
            CorpusError: It is empty.
        """
        return as_corpus(data)

    def prime(self, document: Document) -> None:
        """Nothing: texts have one form."""

    def stretch(self, how: How) -> int:
        """Documents that `read` takes at once.

        Raises:
            ConfigError: An unknown packing.
        """
        check_packing(how.packing, how.long)
        return stretch_size(how.batch_size, how.packing)

    def read(self, documents: Sequence[tuple[int, Document]], how: How) -> TokenReading:
        """How consecutive documents are read: packed as `how` says.

        Args:
            documents: (number in the corpus, document).
            how: see `saelab.harvest`.

        Raises:
            CorpusError: A document is empty, too long, or no dialogue where one is needed.
        """
        own: Any = self
        found = packed(own, documents, how.packing, how.long, how.include_bos)
        return TokenReading(found, how.batch_size, own.prepare_tokens, own.token_strings, own.bos_id)


class ReadsSamples:
    """The way of a subject through a corpus of samples, which run as they are."""

    def corpus(self, data: Any) -> Corpus:
        """Samples that `prepare` takes as a Corpus.

        Raises:
            CorpusError: There is none.
        """
        return samples(data)

    def prime(self, document: Document) -> None:
        """Nothing, unless the subject learns from a sample."""

    def stretch(self, how: How) -> int:
        """Documents that `read` takes at once.

        Raises:
            ConfigError: A packing, which samples have not.
        """
        if how.packing != "document":
            message = (
                f"Only texts are packed. Got packing={how.packing!r} for a {type(self).__name__}. "
                "Leave it out."
            )
            raise ConfigError(message)
        return 16 * how.batch_size

    def read(self, documents: Sequence[tuple[int, Document]], how: How) -> SampleReading:
        """How consecutive documents are read: each is one sample.

        Args:
            documents: (number in the corpus, document).
            how: its batch size counts.
        """
        own = cast(Any, self)
        return SampleReading(documents, how.batch_size, own.prepare, label=own.label)


def _where(place: Place, layout: Layout) -> Shown:
    return Shown(FACETS[place.kind], place.name)


def _found(space: Sequence[int] | None, n: int) -> Layout:
    """The layout of a tensor's own positions."""
    if space is not None and len(space) == 2 and space[0] * space[1] == n > 1:
        return Layout((Segment("grid", n, space[1]),))
    return Layout((Segment("extra", 1),)) if n == 1 else LINE


def _width(inputs: Inputs) -> int | None:
    """Positions of the inputs, padding included."""
    mask: Any = inputs.data.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        return int(mask.shape[1])
    return None if inputs.lengths is None else int(inputs.lengths.max(initial=0))


def _positions(counted: Sequence[bool]) -> slice | Tensor:
    """Where the rows of a sequence are: a slice, which copies nothing, if they are neighbours."""
    n = sum(counted)
    start = counted.index(True) if n else 0
    together = all(counted[start : start + n])
    return slice(start, start + n) if together else torch.tensor(counted).nonzero()[:, 0]


__all__ = [
    "FACETS",
    "How",
    "Reading",
    "ReadsSamples",
    "ReadsTexts",
    "Rows",
    "SampleReading",
    "TokenReading",
]
