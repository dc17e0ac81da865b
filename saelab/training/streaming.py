"""Activations made while training: the model runs ahead in a thread, its rows are mixed in a buffer."""

from __future__ import annotations

import itertools
import json
import queue
import threading
from collections import deque
from collections.abc import Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from saelab.arguments import a_subject, checked, listed
from saelab.config import integer
from saelab.harvesting.batches import batches, check_hooks, count_rows
from saelab.harvesting.outliers import FIRST_ROWS, Limits, multiple_or_none
from saelab.seeds import mixed
from saelab.subjects.reading import How
from saelab.training.rows import Rows, Stream
from saelab.types import ConfigError, CorpusError, HookError, HookPoint

if TYPE_CHECKING:
    from saelab.types import Subject


K = TypeVar("K", bound=Hashable)
Batches = Generator[Tensor, None, None]


class ModelStream(Stream):
    """Rows of hook points, made as they are needed; see `saelab.stream`.

    The corpus is read in passes, without end. Rows are mixed in a buffer of about `buffer_rows`, as FAST does
    (arXiv 2506.07691): it is shuffled, half of it is given out, and that half is filled again. So every row
    is given out once a pass, and rows of a document are spread over several refills. What a batch holds
    follows from the seed: a run that continues works out which rows are in the buffer and makes only those
    again, from the oldest on (about sixteen halves back; the rows before are counted without a forward pass
    where the subject has tokens). At most the buffer, two halves and a few model batches are in memory.
    """

    def __init__(
        self,
        subject: Subject,
        corpus: Any,
        hooks: Sequence[HookPoint | str],
        buffer_rows: int,
        batch_size: int,
        packing: str,
        long: str,
        max_norm: float | None = None,
    ) -> None:
        self.subject, self.corpus = subject, subject.corpus(corpus)
        self.hooks = check_hooks(subject, hooks, self.corpus)
        subject.stretch(How(batch_size, packing, long))  # refuses what it cannot do
        self.buffer_rows, self.batch_size, self.packing, self.long = buffer_rows, batch_size, packing, long
        self.max_norm = max_norm
        self._counted = [0, 0]
        self.n_rows = buffer_rows

    def width(self, hook: HookPoint | str) -> int:
        return self.subject.width(hook)

    def reading(self, hooks: Sequence[str]) -> ModelStream:
        return ModelStream(self.subject, self.corpus, hooks, *self._settings())

    def _settings(self) -> tuple[Any, ...]:
        settings = (self.buffer_rows, self.batch_size, self.packing, self.long)
        # streams from before it was an option have the same fingerprint without
        return settings if self.max_norm is None else (*settings, self.max_norm)

    @cached_property
    def limits(self) -> Limits | None:
        """The norms that rows may have, from the first of the corpus; None for all rows."""
        if self.max_norm is None:
            return None
        looked_at = batches(self.subject, self.corpus, self.hooks, max_rows=FIRST_ROWS, **self._options())
        return Limits.of_first(self.max_norm, (batch.acts for batch in looked_at))

    def outliers(self) -> dict[str, Any] | None:
        limits, (left_out, of) = self.limits, self._counted
        return None if limits is None else {**asdict(limits), "left_out": left_out, "of": of}

    def _options(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size, "packing": self.packing, "long": self.long}

    def key(self) -> str:
        return "|".join(map(str, self.hooks))

    def gather(self, at: Tensor) -> Tensor:
        """A stream has no row numbers; batches come in order."""
        message = (
            "A stream gives rows in its own order. Got a request by number. Harvest into a store instead."
        )
        raise ConfigError(message)

    def fingerprint(self) -> str:
        told = [
            self.subject.fingerprint(),
            self.corpus.fingerprint(),
            self.key(),
            *self._settings(),
        ]
        return sha256(json.dumps(told).encode()).hexdigest()

    def batches(self, size: int, seed: int, start: int = 0) -> Generator[Tensor, None, None]:
        """Endless full batches [size width], the hooks side by side, from batch `start` on."""
        (given,) = together([(self, seed)], size, start)
        yield from given

    def mixed(
        self, blocks: Iterator[Tensor], low: int, numbers: Tensor, size: int, seed: int, start: int
    ) -> Iterator[Tensor]:
        """The batches from `start` on, out of blocks of rows from number `low` on. numbers: of the rows that
        the buffer holds first."""
        half = len(numbers) // 2
        first, at = divmod(start, half // size)
        reader = _Reader(blocks, low)
        buffer = reader.pick(numbers)
        for refill in itertools.count(first):
            order = _shuffled(half, seed, refill).to(buffer.device)
            out = buffer[order[:half]]
            for i in range(at, half // size):
                yield out[i * size : (i + 1) * size]
            at = 0
            buffer = torch.cat([buffer[order[half:]], reader.take(half)])

    def of_one_pass(self) -> Hashable:
        """Equal for streams whose rows may come out of one pass of the model: without limits, which are of
        the hook points that a stream reads, of any of them."""
        hooks = None if self.max_norm is None else self.key()
        return id(self.subject), id(self.corpus), self._settings(), hooks

    def called_alike(self, hooks: Sequence[str]) -> bool:
        """Whether hook points are called equally often in a pass, and so have the same rows."""
        try:
            next(batches(self.subject, self.corpus, self.reading(hooks).hooks, max_rows=1, **self._options()))
        except HookError:
            return False
        return True

    def first_numbers(self, size: int, seed: int, start: int) -> Tensor:
        """int64 [2 half]: numbers, counted over all passes, of the rows that the buffer holds at a batch."""
        batches_of_half = max(1, self.buffer_rows // 2 // size)
        return _buffer(batches_of_half * size, seed, start // batches_of_half)

    def blocks(self, rows: int, skip: int) -> Iterator[Tensor]:
        """Blocks [rows width] in corpus order, pass after pass, without the first `skip` rows."""
        held: list[Tensor] = []
        n = 0
        for acts in self._acts(skip):
            held.append(acts)
            n += len(acts)
            while n >= rows:
                joined = torch.cat(held)
                yield joined[:rows]
                held, n = [joined[rows:]], n - rows

    def _acts(self, skip: int) -> Iterator[Tensor]:
        """Activations [n width] in corpus order, pass after pass, without the first `skip` rows."""
        options, limits = self._options(), self.limits
        while True:
            first = passed = 0
            if skip:
                how = How(**options)
                for n_rows, n_documents in count_rows(self.subject, self.corpus, self.hooks, how, limits):
                    if passed + n_rows > skip:
                        break
                    passed, first = passed + n_rows, first + n_documents
                else:
                    skip %= _some(passed, self.corpus)
                    continue
                skip -= passed
            seen = 0
            given = batches(self.subject, self.corpus, self.hooks, first=first, limits=limits, **options)
            for batch in given:
                acts = torch.cat([batch.acts[str(hook)].float() for hook in self.hooks], dim=1)
                seen += len(acts)
                self._counted[0] += batch.outliers
                self._counted[1] += batch.outliers + len(acts)
                cut = min(skip, len(acts))
                skip -= cut
                if cut < len(acts):
                    yield acts[cut:]
            _some(seen + passed, self.corpus)


@checked(subject=a_subject)
def stream(
    subject: Subject,
    corpus: Any,
    hook: HookPoint | str | Sequence[HookPoint | str],
    *,
    buffer_rows: int = 65_536,
    batch_size: int = 16,
    packing: str = "document",
    long: str = "split",
    max_norm: float | None = None,
) -> ModelStream:
    """Activations for `saelab.train`, made while it trains; nothing is stored.

    The model reads the corpus in passes, a thread ahead of the trainer. Rows are mixed in a buffer, of which
    half is given out and filled again.

    Args:
        subject: The model.
        corpus: Texts for language models, else samples that subject.prepare takes.
        hook: One, or several, of which each config reads its own.
        buffer_rows: Rows of the buffer: pass at least what some hundreds of documents hold, or the rows of a
            batch share few documents.
        batch_size: Documents of a forward pass.
        packing: "document", "dialogue", "blocks" or "blocks_masked", see `saelab.harvest`.
        long: Documents longer than the context are read in pieces, each after a BOS of its own ("split"),
            cut ("truncate") or refused ("error").
        max_norm: Leave out rows whose norm is beyond this multiple of the median norm, at any of the hook
            points that a config reads: attention sinks, massive activations. The median is that of the first
            4,096 rows. A run that continues has to run the model over the rows before, to know their norms.

    Returns:
        What `train` takes as `acts`.

    Raises:
        HookError: The subject has no such hook point.
        CorpusError: The corpus is empty.
        ConfigError: An argument is out of range.
    """
    buffer_rows = integer("buffer_rows", buffer_rows, 1)
    batch_size = integer("batch_size", batch_size, 1)
    hooks = [hook] if isinstance(hook, (str, HookPoint)) else list(listed("hook", hook))
    max_norm = multiple_or_none("max_norm", max_norm)
    return ModelStream(subject, corpus, hooks, buffer_rows, batch_size, packing, long, max_norm)


def _some(rows: int, corpus: Any) -> int:
    if not rows:
        message = f"A corpus must hold rows besides BOS. Got none in {corpus!r}. Pass longer texts."
        raise CorpusError(message)
    return rows


def _shuffled(half: int, seed: int, refill: int) -> Tensor:
    """The order of the buffer at a refill: its first half is given out, the rest stays."""
    # mixed, so that neighbouring refills and seeds share no order
    return torch.randperm(2 * half, generator=torch.Generator().manual_seed(mixed(seed, refill)))


def _buffer(half: int, seed: int, refill: int) -> Tensor:
    """int64 [2 half]: numbers, counted over all passes, of the rows that the buffer holds at a refill."""
    numbers = torch.arange(2 * half)
    for before in range(refill):
        fresh = torch.arange((before + 2) * half, (before + 3) * half)
        numbers = torch.cat([numbers[_shuffled(half, seed, before)[half:]], fresh])
    return numbers


class _Reader:
    """Rows by number out of blocks that come in order."""

    def __init__(self, blocks: Iterator[Tensor], low: int) -> None:
        self._blocks, self._at = blocks, low
        self._left: Tensor | None = None

    def pick(self, numbers: Tensor) -> Tensor:
        """The rows of these numbers [n width], in their order; those before the largest are gone then."""
        ordered, order = numbers.sort()
        out: Tensor | None = None
        done = 0
        while done < len(ordered):
            block = next(self._blocks)
            end = self._at + len(block)
            upto = int(torch.searchsorted(ordered, end))
            if out is None:
                out = block.new_empty(len(numbers), block.shape[1])
            rows = (ordered[done:upto] - self._at).to(block.device)
            out[order[done:upto].to(block.device)] = block[rows]
            done = upto
            if done == len(ordered):
                self._left = block[int(ordered[-1]) + 1 - self._at :]
            self._at = end
        assert out is not None
        return out

    def take(self, n: int) -> Tensor:
        """The next n rows."""
        assert self._left is not None
        while len(self._left) < n:
            self._left = torch.cat([self._left, next(self._blocks)])
        rows, self._left = self._left[:n], self._left[n:]
        return rows


def together(
    readers: Sequence[tuple[ModelStream, int]], size: int, start: int = 0
) -> list[Generator[Tensor, None, None]]:
    """The batches of several streams of one source, each with its own seed, out of one pass of the model;
    those of each are the same as alone.

    They are read in step: what one has read and another has not is held. Where one ends, all do.

    Args:
        readers: (stream, seed), of one subject, corpus and way of reading; where rows are left out, of the
            same hook points.
        size: Rows of a batch.
        start: The batch to begin with.
    """
    whole, streams = readers[0][0], [stream for stream, _ in readers]
    hooks = list(dict.fromkeys(hook for stream in streams for hook in map(str, stream.hooks)))
    if len(hooks) > len(whole.hooks):
        whole = whole.reading(hooks)
    numbers = [stream.first_numbers(size, seed, start) for stream, seed in readers]
    low = min(int(each.min()) for each in numbers)
    shared = _Shared(_Ahead(whole.blocks(len(numbers[0]) // 2, low)), len(readers))
    widths = {hook: whole.width(hook) for hook in hooks}
    ends = dict(zip(hooks, itertools.accumulate(widths.values()), strict=True))

    def given(i: int, stream: ModelStream, seed: int) -> Generator[Tensor, None, None]:
        at = [slice(ends[hook] - widths[hook], ends[hook]) for hook in map(str, stream.hooks)]
        blocks = (
            block if list(map(str, stream.hooks)) == hooks else torch.cat([block[:, each] for each in at], 1)
            for block in shared.of(i)
        )
        try:
            yield from stream.mixed(blocks, low, numbers[i], size, seed, start)
        finally:
            shared.close()

    return [given(i, stream, seed) for i, (stream, seed) in enumerate(readers)]


def opened(sources: Mapping[K, tuple[Rows, int]], size: int, start: int) -> dict[K, Batches]:
    """Endless batches of each source with its seed, from batch `start` on. Streams of one subject and corpus
    share a pass of the model.

    Args:
        sources: (rows, seed) by any name.
        size: Rows of a batch.
        start: The batch to begin with.
    """
    found: dict[K, Batches] = {}
    groups: dict[Hashable, dict[K, tuple[ModelStream, int]]] = {}
    for name, (rows, seed) in sources.items():
        if isinstance(rows, ModelStream):
            groups.setdefault(rows.of_one_pass(), {})[name] = rows, seed
        else:
            found[name] = rows.batches(size, seed, start)
    for group in groups.values():
        readers = list(group.values())
        every = list(dict.fromkeys(str(hook) for stream, _ in readers for hook in stream.hooks))
        first = readers[0][0]
        if len(every) == len(first.hooks) or first.called_alike(every):
            found |= dict(zip(group, together(readers, size, start), strict=True))
        else:
            found |= {name: stream.batches(size, seed, start) for name, (stream, seed) in group.items()}
    return {name: found[name] for name in sources}


class _Shared:
    """Items that several readers get, each all of them; what not all have had is held."""

    def __init__(self, ahead: _Ahead, readers: int) -> None:
        self._ahead, self._held = ahead, [deque[Any]() for _ in range(readers)]
        self._open = self._closed = False

    def of(self, reader: int) -> Iterator[Any]:
        """Those of one reader, without end."""
        while True:
            if not self._held[reader]:
                item = self._next()
                for held in self._held:
                    held.append(item)
            yield self._held[reader].popleft()

    def close(self) -> None:
        """End the thread."""
        if self._open and not self._closed:
            self._closed = True
            self._ahead.__exit__()

    def _next(self) -> Any:
        if self._closed:
            message = "A reader of the stream has ended, and with it all."
            raise RuntimeError(message)
        if not self._open:
            self._open = True
            self._ahead.__enter__()
        return next(self._ahead)


class _Ahead:
    """An iterator that a thread runs ahead of its reader; what it raises is raised to the reader."""

    def __init__(self, items: Iterator[Tensor]) -> None:
        self._items = items
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="saelab-stream", daemon=True)

    def __enter__(self) -> _Ahead:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def __next__(self) -> Tensor:
        kind, value = self._queue.get()
        if kind == "error":
            raise value
        return value

    def _work(self) -> None:
        try:
            for item in self._items:
                if not self._put(("item", item)):
                    return
        except BaseException as error:
            self._put(("error", error))

    def _put(self, what: tuple[str, Any]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(what, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
