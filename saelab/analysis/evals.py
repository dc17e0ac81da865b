"""Scores of an SAE, each beside its control: on any subject, a store of activations, or tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis import scores
from saelab.analysis.controls import Beside, Sums, beside, untrained
from saelab.analysis.scores import Score, Seen, Spliced
from saelab.analysis.sources import Block, Passes, source_of
from saelab.arguments import an_integer, checked, full_sae, maybe
from saelab.capabilities import HasLoss
from saelab.errors import fitting, headline
from saelab.types import CorpusError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from saelab.corpora import Document
    from saelab.sae import SAE
    from saelab.stores import ActivationStore
    from saelab.types import Subject


@dataclass(frozen=True)
class Scores:
    """The core scores of one SAE on one corpus; see `saelab.analysis.scores` for what each is. None where the
    subject cannot tell."""

    fvu: float
    l0: float
    dead: float
    loss: float | None = None
    loss_recovered: float | None = None


@dataclass(frozen=True)
class Report:
    """Scores of an SAE beside those of an untrained SAE of the same configuration, on the same rows."""

    hook: str
    n_rows: int
    loss_clean: float | None
    """the subject untouched, in nats for language models; None where it has no loss"""
    loss_ablated: float | None
    """the activations replaced by their mean"""
    sae: Scores
    untrained: Scores
    scores: Mapping[str, Beside] = field(default_factory=dict)
    """every score by its name, beside its control, with intervals over documents (of "dead": over latents)"""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """scores that could not be measured, and why"""

    def to_frame(self) -> pd.DataFrame:
        """One line for each score: this SAE, untrained SAE, and the 95 % interval of this SAE's."""
        import pandas as pd

        columns = ["this SAE", "untrained SAE", "from", "to"]
        lines = [[s.value, s.control, *s.interval] for s in self.scores.values()]
        return pd.DataFrame(lines, index=pd.Index(self.scores, name="score"), columns=columns)

    __repr__ = headline

    def __str__(self) -> str:
        head = f"{self.hook}, {self.n_rows:,} rows"
        if self.loss_clean is not None:
            head += f"; loss {self.loss_clean:.3f} clean, {self.loss_ablated:.3f} ablated"
        lines = [head, self.to_frame().to_string(float_format=lambda v: f"{v:.4g}")]
        return "\n".join([*lines, *(f"{name}: left out, {why}" for name, why in self.left_out.items())])


@fitting("A batch", "Pass a lower batch_size, or an SAE of less latents.")
@checked(sae=full_sae, max_rows=maybe(an_integer(1)), batch_size=an_integer(1), seed=an_integer())
def evaluate(
    sae: SAE,
    subject: Subject | ActivationStore | Tensor,
    corpus: Iterable[str | Document] | Any = None,
    *,
    max_rows: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> Report:
    """Reconstruction, sparsity and effect on the loss, beside an untrained SAE.

    Rows are those of `saelab.harvest`; where the loss is measured, other positions (BOS, padding) are kept as
    they are. Documents longer than the context are cut at it. A transcoder is scored on its target, a
    crosscoder on all that it reads, from the activations of the untouched model.

    Args:
        sae: whose scores are wanted.
        subject: the model, any that can be read at the SAE's hook points; or activations that are at hand: a
            store, or a tensor [n d_in]. What needs the model's loss is left out of a report then, by name.
        corpus: what the subject reads; none with a store or a tensor.
        max_rows: stop after this many rows.
        batch_size: samples of a forward pass.
        seed: of the untrained SAE, and of the draws that give the intervals.

    Returns:
        The report.

    Raises:
        DeviceMemoryError: A batch does not fit into memory.
        HookError: The SAE names no hook point, or one that the subject does not have.
        ShapeError: The activations have another width than the SAE.
        CorpusError: There are no rows.
        ConfigError: A subject without a corpus, or activations with one.
    """
    source = source_of(sae, subject, corpus, max_rows, batch_size)
    # the first pass finds the mean, the second measures: flat memory at the price of a partial forward
    total: Tensor | None = None
    first: tuple[Tensor, Tensor] | None = None
    n_rows = 0
    for block in source.blocks():
        summed = block.y.double().sum(0)
        total, n_rows = summed if total is None else total + summed, n_rows + len(block.y)
        first = first or ((block.x, block.y) if len(block.y) else None)
    if total is None or first is None:
        message = f"There must be rows to score. Got none in {corpus!r}. Pass longer texts, or more samples."
        raise CorpusError(message)
    mean = total / n_rows
    control = untrained(sae, *first, seed=seed)
    known = scores.registered()
    left_out = {name: why for name, score in known.items() if (why := source.lacks(score.needs)) is not None}
    measured = {name: score for name, score in known.items() if name not in left_out}
    arms = [_Arm(each, measured) for each in (sae, control)]
    splicing = any(score.needs is HasLoss for score in measured.values())
    passes = source if splicing and isinstance(source, Passes) else None
    losses = Sums()
    mode = sae.training
    sae.eval()
    try:
        for block in source.blocks():
            base = passes.losses(block, mean) if passes is not None else None
            for arm in arms:
                x_hat = arm.add(block, mean)
                if passes is not None and base is not None:
                    arm.splice(block, passes.loss(block, x_hat), base)
            if base is not None:
                losses.add(np.arange(len(base.n)), **vars(base))
    finally:
        sae.train(mode)
    of, beside_it = (arm.finished() for arm in arms)
    found = {name: beside(of[name], beside_it[name], score.value, seed) for name, score in measured.items()}
    clean, ablated = (
        losses.total(name) / losses.total("n") if splicing else None for name in ("clean", "ablated")
    )
    core = list(Scores.__dataclass_fields__)
    return Report(
        hook=source.name,
        n_rows=n_rows,
        loss_clean=clean,
        loss_ablated=ablated,
        sae=Scores(**{name: found[name].value for name in core if name in found}),
        untrained=Scores(**{name: found[name].control for name in core if name in found}),
        scores=found,
        left_out=left_out,
    )


class _Arm:
    """One SAE with the sums of its scores."""

    def __init__(self, sae: SAE, measured: Mapping[str, Score]) -> None:
        self.sae, self.measured = sae, measured
        self.sums = {name: Sums() for name in measured}
        self.fired = np.zeros(sae.d_sae, dtype=np.int64)

    def add(self, block: Block, mean: Tensor) -> Tensor:
        """Count some rows; gives x_hat."""
        import torch

        with torch.no_grad():
            x = block.x.to(self.sae.device)
            forward = self.sae(x)
            codes, x_hat = forward.codes, forward.x_hat
            seen = Seen(x, block.y.to(x_hat.device), x_hat, codes, mean.to(x_hat.device))
            self.fired += (codes != 0).sum(0).cpu().numpy()
            for name, score in self.measured.items():
                found = {key: value.cpu().numpy() for key, value in score.of_rows(seen).items()}
                if found:
                    self.sums[name].add(block.unit, **found)
        return x_hat.to(block.y.device)

    def splice(self, block: Block, loss: np.ndarray, base: Spliced) -> None:
        spliced = Spliced(base.n, loss, base.clean, base.ablated)
        for name, score in self.measured.items():
            if found := score.of_samples(spliced):
                self.sums[name].add(block.samples, **found)

    def finished(self) -> dict[str, Sums]:
        for name, score in self.measured.items():
            if found := score.of_latents(self.fired, self.sae):
                self.sums[name].add(np.arange(self.sae.d_sae), **found)
        return self.sums


__all__ = ["Report", "Scores", "evaluate"]
