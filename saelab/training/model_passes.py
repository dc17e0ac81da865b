"""Passes of a model as it is, over a corpus that is read again and again: what training through it compares
with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from saelab.harvesting.outliers import FIRST_ROWS, Limits
from saelab.seeds import mixed
from saelab.subjects.reading import How
from saelab.types import CorpusError, HookPoint, check_finite

if TYPE_CHECKING:
    from saelab.interventions.registry import Edit
    from saelab.types import Inputs


@dataclass
class Pass:
    """One pass of the model as it is."""

    inputs: Inputs
    acts: Mapping[str, Tensor]
    """of hook points that are read"""
    arriving: Mapping[str, Tensor]
    """the same, with the edits of others"""
    kept: Tensor
    """bool [samples positions]: the rows"""
    targets: Tensor
    """int64 [samples positions], -1 where nothing is foretold"""
    logp: Tensor | None
    """[samples positions d_vocab], where it is compared with"""

    def kl(self, output: Tensor) -> Tensor:
        """Nats of KL(this pass || another), a mean over the positions where something is foretold.

        Args:
            output: Logits [samples positions d_vocab] of the other.
        """
        assert self.logp is not None
        return self._mean((self.logp.exp() * (self.logp - output.float().log_softmax(-1))).sum(-1))

    def ce(self, output: Tensor) -> Tensor:
        """Nats of another pass's own loss, over the same positions.

        Args:
            output: Logits [samples positions d_vocab] of the other.
        """
        logp = output.float().log_softmax(-1)
        return self._mean(-logp.gather(2, self.targets.clamp_min(0)[..., None])[..., 0])

    def _mean(self, terms: Tensor) -> Tensor:
        where = self.targets >= 0
        return (terms * where).sum() / where.sum().clamp_min(1)


class Place(NamedTuple):
    """How far the corpus was read."""

    epoch: int = 0
    document: int = 0
    """the first of its stretch"""
    passes: int = 0
    """of the stretch, in the order drawn for it, before this one"""
    rows: int = 0
    """of this one"""

    @classmethod
    def of(cls, kept: Any) -> Place:
        """The place that a checkpoint's tensor holds."""
        return cls(*kept.tolist())


class Passes:
    """The passes of a subject over a corpus, without end; those of a stretch of documents in an order that
    the seed draws.

    Args:
        subject: A model that says logits of targets (`HasTargets`).
        corpus: What `subject.corpus` gave.
        hooks: What is read.
        how: The corpus.
        seed: Of the order.
        probabilities: Whether log-probabilities are kept.
        edits: Of others, with which rows arrive.
    """

    def __init__(
        self,
        subject: Any,
        corpus: Any,
        hooks: Sequence[HookPoint],
        how: How,
        seed: int,
        probabilities: bool,
        edits: Sequence[Edit] = (),
    ) -> None:
        self.subject, self.corpus, self.hooks = subject, corpus, hooks
        self.how, self.seed, self.probabilities, self.edits = how, seed, probabilities, edits
        self.limits: Limits | None = None
        self._counted = [0, 0]

    def within(self, multiple: float) -> None:
        """Let no rows count from now on that are beyond a multiple of the median norm, of the first rows of
        the corpus, at any of the hook points. Raises ConfigError."""
        first, n = [], 0
        for each, _ in self.after(Place()):
            first.append({name: x[each.kept] for name, x in each.arriving.items()})
            n += int(each.kept.sum())
            if n >= FIRST_ROWS:
                break
        self.limits = Limits.of_first(multiple, first)

    def outliers(self) -> dict[str, Any] | None:
        """The limits, how many rows of those read were beyond them, and of how many; None without limits."""
        left_out, of = self._counted
        return None if self.limits is None else {**asdict(self.limits), "left_out": left_out, "of": of}

    def after(self, place: Place) -> Iterator[tuple[Pass, Place]]:
        """Those from a place on, each with where it begins. Raises CorpusError where there are no rows."""
        size = self.subject.stretch(self.how)
        for epoch in itertools.count(place.epoch):
            rows = int(place != Place())  # what was read before had some
            numbered = itertools.islice(enumerate(self.corpus), place.document, None)
            while stretch := list(itertools.islice(numbered, size)):
                reading = self.subject.read(stretch, self.how)
                waiting = list(reading.passes())
                # of a seed torch takes the lower 32 bits
                drawn = mixed(mixed(self.seed, epoch), stretch[0][0])
                generator = torch.Generator().manual_seed(drawn)
                order = torch.randperm(len(waiting), generator=generator).tolist()
                for number in range(place.passes, len(order)):
                    samples, inputs = waiting[order[number]]
                    found = self._pass(reading, samples, inputs)
                    rows += int(found.kept.sum())
                    yield found, Place(epoch, stretch[0][0], number, place.rows)
                    place = place._replace(rows=0)
                place = Place(epoch + 1)
            if not rows:
                message = (
                    f"A corpus must hold rows besides BOS. Got none in {self.corpus!r}. Pass longer texts."
                )
                raise CorpusError(message)

    def _pass(self, reading: Any, samples: Sequence[int], inputs: Inputs) -> Pass:
        run = self.subject.run(inputs, read=self.hooks)
        acts = dict(run.acts)
        first = acts[str(self.hooks[0])]
        kept = torch.zeros(first.shape[:2], dtype=torch.bool)
        for at, sample in enumerate(samples):
            kept[at, reading.kept(sample, at, inputs, run)] = True
        arriving = acts
        if self.edits:
            arriving = dict(self.subject.run(inputs, read=self.hooks, edits=self.edits).acts)
        for name, each in (*acts.items(), *(arriving.items() if self.edits else ())):
            check_finite(each[kept.to(each.device)], f"Activations at {name}")
        kept = kept.to(first.device)
        if self.limits is not None:
            before = int(kept.sum())
            kept[kept.clone()] = self.limits.kept({n: x[kept] for n, x in arriving.items()})
            self._counted[0] += before - int(kept.sum())
            self._counted[1] += before
        logp = run.output.float().log_softmax(-1) if self.probabilities else None
        targets = self.subject.targets(inputs).to(run.output.device)
        return Pass(inputs, acts, arriving, kept, targets, logp)


__all__ = ["Pass", "Passes", "Place"]
