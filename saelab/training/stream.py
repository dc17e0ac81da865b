"""Activations made while training: the model runs ahead in a thread of its own, rows are mixed in blocks."""

from __future__ import annotations

import itertools
import json
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saelab import dist
from saelab.corpora import Corpus
from saelab.harvesting.batches import batches, check_hooks, corpus_of, count_rows
from saelab.harvesting.packing import check_packing
from saelab.training.rows import Stream
from saelab.types import ConfigError, CorpusError, HookPoint

if TYPE_CHECKING:
    from saelab.types import Subject


class ModelStream(Stream):
    """Rows of hook points, made as they are needed; see `saelab.stream`.

    The corpus is read in passes, without end. Rows gather in blocks of about `buffer_rows`; a block is
    shuffled and given out whole, so what a batch holds depends on the seed and on its own block alone: a run
    that continues counts the rows before its block (without a forward pass where the subject has tokens) and
    makes only that block again. At most three blocks and a few model batches are in memory.
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
    ) -> None:
        self.subject, self.corpus = subject, corpus_of(subject, corpus)
        self.hooks = check_hooks(subject, hooks, self.corpus)
        check_packing(packing, long)
        self.buffer_rows, self.batch_size, self.packing, self.long = buffer_rows, batch_size, packing, long
        self.n_rows = buffer_rows

    def width(self, hook: HookPoint | str) -> int:
        return self.subject.width(hook)

    def reading(self, hooks: Sequence[str]) -> ModelStream:
        return ModelStream(self.subject, self.corpus, hooks, *self._settings())

    def _settings(self) -> tuple[int, int, str, str]:
        return self.buffer_rows, self.batch_size, self.packing, self.long

    def key(self) -> str:
        return "|".join(map(str, self.hooks))

    def gather(self, at: Tensor) -> Tensor:
        """A stream has no row numbers; batches come in order."""
        message = (
            "A stream gives rows in its own order. Got a request by number. Harvest into a store instead."
        )
        raise ConfigError(message)

    def fingerprint(self) -> str:
        corpus = self.corpus.fingerprint() if isinstance(self.corpus, Corpus) else _digest(self.corpus)
        parts = [
            self.subject.fingerprint(),
            corpus,
            self.key(),
            *self._settings(),
        ]
        return sha256(json.dumps(parts).encode()).hexdigest()

    def batches(self, size: int, seed: int, start: int = 0) -> Generator[Tensor, None, None]:
        """Endless full batches [size width], the hooks side by side, from batch `start` on; where ranks share
        them, this rank's part of each (all of them run the model on everything)."""
        per_block = max(1, self.buffer_rows // size)
        first, at = divmod(start, per_block)
        with _Ahead(self._blocks(per_block * size, first)) as blocks:
            for number in itertools.count(first):
                block = next(blocks)
                # mixed, so that neighbouring blocks and seeds share no order
                mixed = (seed * 0x9E3779B1 + number * 0x85EBCA6B + 0x5AE1AB) % 2**63
                order = torch.randperm(len(block), generator=torch.Generator().manual_seed(mixed))
                for i in range(at, per_block):
                    yield block[dist.rows.part(order[i * size : (i + 1) * size]).to(block.device)]
                at = 0

    def _blocks(self, rows: int, first: int) -> Iterator[Tensor]:
        """Blocks [rows width] in corpus order, pass after pass, from block `first` on."""
        held: list[Tensor] = []
        n = 0
        for acts in self._acts(first * rows):
            held.append(acts)
            n += len(acts)
            while n >= rows:
                joined = torch.cat(held)
                yield joined[:rows]
                held, n = [joined[rows:]], n - rows

    def _acts(self, skip: int) -> Iterator[Tensor]:
        """Activations [n width] in corpus order, pass after pass, without the first `skip` rows."""
        options: dict[str, Any] = {"batch_size": self.batch_size, "packing": self.packing, "long": self.long}
        while True:
            first = passed = 0
            if skip:
                for n_rows, n_documents in count_rows(self.subject, self.corpus, self.hooks, **options):
                    if passed + n_rows > skip:
                        break
                    passed, first = passed + n_rows, first + n_documents
                else:
                    skip %= _some(passed, self.corpus)
                    continue
                skip -= passed
            seen = 0
            for batch in batches(self.subject, self.corpus, self.hooks, first=first, **options):
                acts = torch.cat([batch.acts[str(hook)].float() for hook in self.hooks], dim=1)
                seen += len(acts)
                cut = min(skip, len(acts))
                skip -= cut
                if cut < len(acts):
                    yield acts[cut:]
            _some(seen + passed, self.corpus)


def stream(
    subject: Subject,
    corpus: Any,
    hook: HookPoint | str | Sequence[HookPoint | str],
    *,
    buffer_rows: int = 65_536,
    batch_size: int = 16,
    packing: str = "document",
    long: str = "truncate",
) -> ModelStream:
    """Activations for `saelab.train`, made while it trains; nothing is stored.

    The model reads the corpus in passes, a thread ahead of the trainer. Rows are mixed within blocks of
    `buffer_rows`: pass at least what some hundreds of documents hold, or the rows of a batch share few
    documents. hook: one, or several, of which each config reads its own. batch_size: documents a forward
    pass. packing, long: see `saelab.harvest`.
    Raises HookError, CorpusError, ConfigError.
    """
    if isinstance(buffer_rows, bool) or not isinstance(buffer_rows, int) or buffer_rows < 1:
        message = f"buffer_rows must be an integer of at least 1. Got {buffer_rows!r}. Pass e.g. 65_536."
        raise ConfigError(message)
    hooks = [hook] if isinstance(hook, (str, HookPoint)) else list(hook)
    return ModelStream(subject, corpus, hooks, buffer_rows, batch_size, packing, long)


def _digest(samples: Sequence[Any]) -> str:
    """Of arrays and tensors their bytes, of other samples what they print as."""
    digest = sha256()
    for sample in samples:
        digest.update(np.asarray(sample).tobytes() if hasattr(sample, "__array__") else repr(sample).encode())
    return digest.hexdigest()


def _some(rows: int, corpus: Any) -> int:
    if not rows:
        message = f"A corpus must hold rows besides BOS. Got none in {corpus!r}. Pass longer texts."
        raise CorpusError(message)
    return rows


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
