"""Scores of an SAE, each beside its control: on any subject, a store of activations, or tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from saelab.analysis import scores
from saelab.analysis.controls import Sums, beside, untrained
from saelab.analysis.report import Report, Scores
from saelab.analysis.report_json import options_of
from saelab.analysis.reports import Reports
from saelab.analysis.scores import Score, Seen, Spliced
from saelab.analysis.sources import Block, Ground, Passes
from saelab.analysis.suites import Found, Suite, chosen
from saelab.arguments import an_integer, checked, full_sae, maybe
from saelab.capabilities import HasLoss
from saelab.errors import fitting
from saelab.types import ConfigError, CorpusError, SaelabError

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.corpora import Document
    from saelab.sae import SAE
    from saelab.stores import ActivationStore
    from saelab.types import Subject


def _saes(name: str, value: Any) -> SAE | Mapping[str, SAE]:
    """An SAE, or several by name."""
    if not isinstance(value, Mapping):
        return full_sae(name, value)
    if not value:
        message = f"{name} must be an SAE, or several by name. Got none. Pass {name}={{'mine': sae}}."
        raise ConfigError(message)
    return {str(key): full_sae(f"{name}[{key!r}]", each) for key, each in value.items()}


@overload
def evaluate(
    sae: SAE,
    subject: Subject | ActivationStore | Tensor,
    corpus: Any = None,
    *,
    suites: Sequence[str | Suite] = ...,
    max_rows: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> Report: ...
@overload
def evaluate(
    sae: Mapping[str, SAE],
    subject: Subject | ActivationStore | Tensor,
    corpus: Any = None,
    *,
    suites: Sequence[str | Suite] = ...,
    max_rows: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> Reports: ...
@fitting("A batch", "Pass a lower batch_size, or an SAE of less latents.")
@checked(sae=_saes, max_rows=maybe(an_integer(1)), batch_size=an_integer(1), seed=an_integer())
def evaluate(
    sae: SAE | Mapping[str, SAE],
    subject: Subject | ActivationStore | Tensor,
    corpus: Iterable[str | Document] | Any = None,
    *,
    suites: Sequence[str | Suite] | str | Suite = ("core",),
    max_rows: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> Report | Reports:
    """Scores of an SAE, or of several on the same rows, each beside its control and with an interval.

    The core (reconstruction, sparsity and effect on the loss, beside an untrained SAE) is in every report.
    Rows are those of `saelab.harvest`; where the loss is measured, other positions (BOS, padding) are kept as
    they are. Documents longer than the context are cut at it. A transcoder is scored on its target, a
    crosscoder on all that it reads, from the activations of the untouched model.

    Args:
        sae: Whose scores are wanted; several by name.
        subject: The model, any that can be read at the SAE's hook points; or activations that are at hand: a
            store, or a tensor [n d_in]. What needs the model's loss is left out of a report then, by name.
        corpus: What the subject reads; none with a store or a tensor.
        suites: What is measured beside the core (`saelab.analysis.suites`): names, or suites with options of
            their own. One that cannot be run is left out by name, with the reason.
        max_rows: Stop after this many rows.
        batch_size: Samples of a forward pass.
        seed: Of the untrained SAE, and of the draws that give the intervals.

    Returns:
        The `Report` of one SAE, the `Reports` of several.

    Raises:
        DeviceMemoryError: A batch does not fit into memory.
        HookError: The SAE names no hook point, or one that the subject does not have.
        ShapeError: The activations have another width than the SAE.
        CorpusError: There are no rows.
        ConfigError: A subject without a corpus, activations with one, a suite that is unknown, or no SAE.
    """
    asked = chosen(suites)
    ground = Ground.of(subject, corpus, max_rows, batch_size, seed)
    if not isinstance(sae, Mapping):
        return _report(sae, ground, asked)
    return Reports({name: _report(each, ground, asked) for name, each in sae.items()})


def _report(sae: SAE, ground: Ground, asked: Sequence[Suite]) -> Report:
    """One SAE's: the core, then each suite; what a suite refuses is left out, the others still run."""
    report = _core(sae, ground)
    found: dict[str, Found] = {}
    left_out = dict(report.left_out)
    for suite in asked:
        why = suite.lacks(ground)
        if why is None:
            try:
                found[suite.name] = suite.run(sae, ground)
            except SaelabError as error:
                why = str(error)
        if why is not None:
            left_out[suite.name] = why
            continue
        left_out |= {f"{suite.name}: {name}": told for name, told in found[suite.name].left_out.items()}
    told = {suite.name: options_of(suite) for suite in asked}
    return replace(report, suites=found, left_out=left_out, options=told)


def _core(sae: SAE, ground: Ground) -> Report:
    """The scores of `saelab.analysis.scores`."""
    source = ground.source(sae)
    # the first pass finds the mean, the second measures: flat memory at the price of a partial forward
    total: Tensor | None = None
    first: tuple[Tensor, Tensor] | None = None
    n_rows = 0
    for block in source.blocks():
        summed = block.y.double().sum(0)
        total, n_rows = summed if total is None else total + summed, n_rows + len(block.y)
        first = first or ((block.x, block.y) if len(block.y) else None)
    if total is None or first is None:
        message = (
            f"There must be rows to score. Got none in {ground.corpus!r}. Pass longer texts, or more samples."
        )
        raise CorpusError(message)
    mean = total / n_rows
    control = untrained(sae, *first, seed=ground.seed)
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
    found = {
        name: beside(of[name], beside_it[name], score.value, ground.seed) for name, score in measured.items()
    }
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
        rows=source.fingerprint(),
        about={
            "recipe": sae.config.title,
            "d_in": sae.d_in,
            "d_sae": sae.d_sae,
            "fingerprint": sae.fingerprint(),
        },
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


__all__ = ["evaluate"]
