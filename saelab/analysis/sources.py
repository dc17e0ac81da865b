"""Rows that are scored: of a subject over a corpus, of a store of activations, or of a tensor."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelab.analysis.blocks import Block, Kept
from saelab.analysis.ordinary import FirstLook, Ordinary
from saelab.analysis.splicing import Clean, Splicing, Untouched
from saelab.arguments import floats
from saelab.capabilities import lacking
from saelab.harvesting.batches import check_hooks, side_by_side
from saelab.subjects.reading import How
from saelab.types import ConfigError, CorpusError, HookPoint, ShapeError, check_finite

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.analysis.scores import Spliced
    from saelab.sae import SAE
    from saelab.types import Subject

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Ground:
    """What every SAE of one evaluation is measured on."""

    subject: Subject | None
    """None where activations alone are given"""
    corpus: Any
    """what the subject reads, which can be read again; or the activations: a store, or a tensor [n d_in]"""
    max_rows: int | None = None
    batch_size: int = 16
    seed: int = 0
    kept: Kept = field(default_factory=Kept, repr=False, compare=False)
    """of the subject's passes"""

    @classmethod
    def of(cls, subject: Any, corpus: Any, max_rows: int | None, batch_size: int, seed: int) -> Ground:
        """The ground that a subject and a corpus make, or activations.

        Raises:
            ConfigError: A subject without a corpus, activations with one, or something else.
            CorpusError: The corpus is none that the subject reads.
        """
        import torch

        from saelab.stores import ActivationStore

        if isinstance(subject, np.ndarray):
            subject = floats("subject", subject)
        if isinstance(subject, ActivationStore | torch.Tensor):
            if corpus is not None:
                message = (
                    "Activations are scored as they are. Got a corpus beside them. Leave it out, or pass the "
                    "subject."
                )
                raise ConfigError(message)
            return cls(None, subject, max_rows, batch_size, seed)
        if not callable(getattr(subject, "read", None)):
            message = (
                "An SAE is evaluated on a subject, a store of activations or a tensor. Got a "
                f"{type(subject).__name__}. Pass e.g. saelab.load_subject(...)."
            )
            raise ConfigError(message)
        if corpus is None:
            message = (
                "A subject needs a corpus to be evaluated on. Got None. Pass texts, or what else it reads."
            )
            raise ConfigError(message)
        return cls(subject, subject.corpus(corpus), max_rows, batch_size, seed)

    def source(self, sae: SAE) -> Rows | Passes:
        """The rows that an SAE reads and writes. Raises HookError, ShapeError."""
        if self.subject is None:
            return Rows(sae, self.corpus, self.max_rows)
        return Passes(sae, self)


class Rows:
    """A store of activations, or tensors."""

    name: str

    def __init__(self, sae: SAE, acts: Any, max_rows: int | None) -> None:
        import torch

        self._max = max_rows
        if isinstance(acts, torch.Tensor):
            if acts.ndim != 2 or acts.shape[1] != sae.d_in or sae.config.d_out is not None:
                message = (
                    f"Activations must be [n {sae.d_in}], of an autoencoder. Got {list(acts.shape)} for a "
                    f"{sae.config.recipe}. Pass a store of both ends for a transcoder."
                )
                raise ShapeError(message)
            self.name = str(sae.config.hook or "activations")
            self._acts: Any = acts
            self._reads = self._writes = None
            return
        self._acts = acts
        self._reads, self._writes = [str(h) for h in sae.reads], [str(h) for h in sae.writes]
        for hooks, width in ((self._reads, sae.d_in), (self._writes, sae.d_out)):
            found = sum(acts.width(hook) for hook in hooks)
            if found != width:
                message = (
                    f"The store must have the SAE's width at {' + '.join(hooks)}, {width}. Got {found}. "
                    "Pass a store of the model that the SAE was trained on."
                )
                raise ShapeError(message)
        self.name = _named(self._reads, self._writes)

    def __repr__(self) -> str:
        return repr(self._acts)

    def lacks(self, capability: type | None) -> str | None:
        """Why a capability is not at hand; None where it is."""
        return None if capability is None else "activations alone have no loss: pass the subject and a corpus"

    def __len__(self) -> int:
        return len(self._acts) if self._max is None else min(len(self._acts), self._max)

    def fingerprint(self) -> str:
        """Hex digest of what the rows are of."""
        if hasattr(self._acts, "fingerprint"):
            return self._acts.fingerprint()
        return hashlib.sha256(self._acts[: len(self)].cpu().numpy().tobytes()).hexdigest()

    def blocks(self) -> Iterator[Block]:
        import torch

        n = len(self)
        for low in range(0, n, ROWS_AT_ONCE):
            at = np.arange(low, min(low + ROWS_AT_ONCE, n))
            if self._reads is None:
                x = self._acts[low : low + len(at)].float()
                check_finite(x, "Activations")
                yield Block(x, x, at)
                continue
            found = {hook: self._acts.acts(at, hook) for hook in {*self._reads, *(self._writes or ())}}
            x, y = (torch.cat([found[h] for h in hooks], 1) for hooks in (self._reads, self._writes or ()))
            yield Block(x, y, self._acts.rows(at, self._reads[0]).rows[:, 0].numpy())


class Passes:
    """A subject over a corpus."""

    def __init__(self, sae: SAE, ground: Ground) -> None:
        subject: Any = ground.subject
        self.subject, self.corpus, self._max = subject, ground.corpus, ground.max_rows
        self._kept, self._n_read = ground.kept, 0
        self.reads = check_hooks(subject, sae.reads, self.corpus)
        self.writes = check_hooks(subject, sae.writes, self.corpus)
        self.widths = [subject.width(hook) for hook in self.writes]
        for hooks, width in ((self.reads, sae.d_in), (self.writes, sae.d_out)):
            found = sum(subject.width(hook) for hook in hooks)
            if found != width:
                message = (
                    f"The SAE must have the width of {' + '.join(map(str, hooks))}, {found}. Got {width}. "
                    "Pass the subject that it was trained on."
                )
                raise ShapeError(message)
        self.how = How(ground.batch_size, long="truncate")
        self._splicing = Splicing(subject, self.writes, self.widths)
        beside = [] if self._splicing.stream is None else [HookPoint.of(self._splicing.stream)]
        self._hooks = list({str(hook): hook for hook in [*self.reads, *self.writes, *beside]}.values())
        self.name = _named(list(map(str, self.reads)), list(map(str, self.writes)))

    def __repr__(self) -> str:
        return repr(self.corpus)

    def lacks(self, capability: type | None) -> str | None:
        """Why a capability is not at hand; None where it is."""
        missing = [] if capability is None else lacking(self.subject, capability)
        if not missing:
            return None
        return f"a {type(self.subject).__name__} lacks {', '.join(missing)}"

    def blocks(self) -> Iterator[Block]:
        """The rows pass by pass, as often as they are asked for: kept where they fit into memory."""
        # of the same hook points a crosscoder reads more than an autoencoder whose passes go on from one
        for block in self._kept.blocks((tuple(self.reads), tuple(self.writes)), self._passes):
            self._n_read = block.n_read
            yield block

    def _passes(self) -> Iterator[Block]:
        import torch

        seen = done = n_read = 0
        hooks = self._hooks
        documents, size = iter(enumerate(self.corpus)), self.subject.stretch(self.how)
        while stretch := list(itertools.islice(documents, size)):
            n_read += len(stretch)
            reading = self.subject.read(stretch, self.how)
            for samples, inputs in reading.passes():
                run = self.subject.run(inputs, read=hooks, output=False)
                first = next(iter(run.acts.values()))
                kept = torch.zeros(first.shape[:2], dtype=torch.bool)
                calls = run.calls.get(str(hooks[0]), 1)
                for at, sample in enumerate(samples):
                    kept[at].view(calls, -1)[:, reading.kept(sample, at, inputs, run)] = True
                rows = {name: acts[kept.to(acts.device)] for name, acts in run.acts.items()}
                for name, each in rows.items():
                    check_finite(each, f"Activations at {name}")
                numbers = [done + sample for sample in samples]
                unit = np.array(numbers, dtype=np.int64)[kept.nonzero()[:, 0].numpy()]
                x, y = side_by_side(rows, self.reads), side_by_side(rows, self.writes)
                yield Block(x, y, unit, inputs, run.acts, kept, numbers, n_read)
                seen += len(x)
                if self._max is not None and seen >= self._max:
                    return
            done += reading.n_samples

    def fingerprint(self) -> str:
        """Hex digest of the documents that were read for the rows."""
        return self.corpus.take(max(1, self._n_read)).fingerprint()

    def losses(self, block: Block, mean: Tensor) -> Untouched:
        """What the samples of a block lose as they are, with the mean [d_out], and with zeros."""
        return self._splicing.untouched(block, mean)

    def spliced(self, block: Block, rows: Tensor, base: Untouched) -> Spliced:
        """What they lose with others in place of the rows, [rows d_out]."""
        return self._splicing.spliced(block, rows, base)

    def clean(self, block: Block) -> Clean:
        """What they lose as they are, and nothing else: one pass where `losses` takes three."""
        return self._splicing.clean(block)

    def changed(self, block: Block, rows: Tensor, base: Clean) -> tuple[np.ndarray, np.ndarray | None]:
        """[samples] each: loss with others in place of the rows, and KL; None without `HasTargets`."""
        return self._splicing.changed(block, rows, base)

    def loss(self, block: Block, rows: Tensor) -> np.ndarray:
        """[samples]: of that the loss alone."""
        return self._splicing.loss(block, rows)


class Look(NamedTuple):
    """What a first reading of rows tells a second, which measures."""

    mean: Tensor
    """float64 [d_out]: of all rows that are written"""
    first: tuple[Tensor, Tensor]
    """x and y of the first block, of which an untrained SAE is made"""
    ordinary: Ordinary
    """which rows are of usual length"""


def first_look(source: Rows | Passes, seen: Callable[[Block], object] | None = None) -> Look:
    """A first reading of all rows. Memory does not grow with them.

    Args:
        source: Of the rows.
        seen: Called with each block that has rows.

    Raises:
        CorpusError: There are none.
    """
    total: Tensor | None = None
    first: tuple[Tensor, Tensor] | None = None
    n_rows, look = 0, FirstLook()
    for block in source.blocks():
        if len(block.y):
            summed = block.y.double().sum(0)
            total, n_rows = summed if total is None else total + summed, n_rows + len(block.y)
            look.add(block.y)
            first = first or (block.x, block.y)
            if seen is not None:
                seen(block)
    if total is None or first is None:
        message = f"There must be rows to score. Got none in {source!r}. Pass longer texts, or more samples."
        raise CorpusError(message)
    return Look(total / n_rows, first, look.ordinary())


def _named(reads: Sequence[str], writes: Sequence[str]) -> str:
    names = [" + ".join(hooks) for hooks in (reads, writes)]
    return names[0] if names[0] == names[1] else " -> ".join(names)


__all__ = ["Ground", "Look", "Passes", "Rows", "first_look"]
