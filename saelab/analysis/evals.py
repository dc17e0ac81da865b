"""Scores of an SAE, each beside its control: on any subject, a store of activations, or tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from saelab.analysis import scores
from saelab.analysis.blocks import Block
from saelab.analysis.controls import Sums, beside, untrained
from saelab.analysis.densities import densities
from saelab.analysis.outliers import Tally, outliers
from saelab.analysis.places import Places, fvu_of_places
from saelab.analysis.report import Report, Scores
from saelab.analysis.report_json import options_of
from saelab.analysis.reports import Reports
from saelab.analysis.scores import Fired, Score, Seen, Spliced
from saelab.analysis.sources import Ground, Look, Passes, first_look
from saelab.analysis.suites import Found, Suite, chosen
from saelab.arguments import an_integer, checked, full_sae, maybe
from saelab.errors import fitting
from saelab.types import ConfigError, SaelabError

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
    crosscoder on all that it reads, from the activations of the untouched model. What one that stands for
    several hook points explains of each is in `report.core.tables["places"]`.

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
    saes = sae if isinstance(sae, Mapping) else {"": sae}
    core: dict[str, Report] = {}
    for group in _of_one_place(saes):
        core |= _core(group, ground)
    reports = {name: _with_suites(core[name], each, ground, asked) for name, each in saes.items()}
    return Reports(reports) if isinstance(sae, Mapping) else reports[""]


def _with_suites(report: Report, sae: SAE, ground: Ground, asked: Sequence[Suite]) -> Report:
    """What a suite refuses is left out, the others still run."""
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


def _of_one_place(saes: Mapping[str, SAE]) -> list[dict[str, SAE]]:
    """SAEs that read and write the same hook points, which share the subject's passes."""
    found: dict[Any, dict[str, SAE]] = {}
    for name, sae in saes.items():
        config = sae.config
        found.setdefault((config.hook, config.hook_out, config.hooks), {})[name] = sae
    return list(found.values())


def _core(saes: Mapping[str, SAE], ground: Ground) -> dict[str, Report]:
    """The scores of `saelab.analysis.scores` of SAEs of one place, which share the subject's passes."""
    source, *_ = [ground.source(sae) for sae in saes.values()]  # checks the widths of each
    look = first_look(source)
    known = scores.registered()
    left_out = {name: why for name, score in known.items() if (why := source.lacks(score.needs)) is not None}
    measured = {name: score for name, score in known.items() if name not in left_out}
    arms = {name: _Arm(sae, measured) for name, sae in saes.items()}
    controls = _controls(arms, look.first, ground.seed)
    splicing = any(score.needs is not None for score in measured.values())
    passes = source if splicing and isinstance(source, Passes) else None
    losses = Sums()
    every = list({id(arm): arm for arm in (*arms.values(), *controls.values())}.values())
    modes = [(arm.sae, arm.sae.training) for arm in every]
    try:
        for arm in every:
            arm.sae.eval()
        for block in source.blocks():
            base = passes.losses(block, look.mean) if passes is not None else None
            for arm in every:
                x_hat = arm.add(block, look)
                if passes is not None and base is not None:
                    arm.splice(block, passes.spliced(block, x_hat, base))
            if base is not None:
                told = {"clean": base.clean, "ablated": base.ablated, "zeroed": base.zeroed}
                losses.add(np.arange(len(base.n)), n=base.n, **told)
    finally:
        for sae, mode in modes:
            sae.train(mode)
    for arm in every:
        arm.finish()
    n = losses.total("n")
    lost = {f"loss_{name}": losses.total(name) / n for name in losses.names() if name != "n"}
    rows = source.fingerprint()
    return {
        name: _report(arm, controls[name], ground.seed, source.name, left_out, rows, lost)
        for name, arm in arms.items()
    }


def _controls(arms: Mapping[str, _Arm], first: tuple[Tensor, Tensor], seed: int) -> dict[str, _Arm]:
    """The untrained SAE beside each; those of one configuration have one."""
    made: list[_Arm] = []
    found = {}
    for name, arm in arms.items():
        own = (arm.sae.config, arm.sae.device, arm.sae.dtype)
        same = (each for each in made if (each.sae.config, each.sae.device, each.sae.dtype) == own)
        control = next(same, None)
        if control is None:
            made.append(control := _Arm(untrained(arm.sae, *first, seed=seed), arm.measured))
        found[name] = control
    return found


def _report(
    arm: _Arm,
    control: _Arm,
    seed: int,
    hook: str,
    left_out: Mapping[str, str],
    rows: str,
    lost: Mapping[str, float],
) -> Report:
    found = {
        name: beside(arm.sums[name], control.sums[name], score.value, seed)
        for name, score in arm.measured.items()
    }
    core = [name for name in Scores.__dataclass_fields__ if name in found]
    sae, fired = arm.sae, {"this SAE": arm.fired, "untrained SAE": control.fired}
    tallies = {"this SAE": arm.tally, "untrained SAE": control.tally}
    tables = {"densities": densities(fired, arm.n_rows), "outliers": outliers(tallies)}
    if arm.places.widths:
        tables["places"] = fvu_of_places(arm.places, control.places, seed)
    return Report(
        hook=hook,
        n_rows=arm.n_rows,
        loss_clean=lost.get("loss_clean"),
        loss_ablated=lost.get("loss_ablated"),
        loss_zeroed=lost.get("loss_zeroed"),
        sae=Scores(**{name: found[name].value for name in core}),
        untrained=Scores(**{name: found[name].control for name in core}),
        scores=found,
        left_out=left_out,
        rows=rows,
        about={
            "recipe": sae.config.title,
            "d_in": sae.d_in,
            "d_sae": sae.d_sae,
            "fingerprint": sae.fingerprint(),
        },
        core=Found({}, tables=tables),
    )


class _Arm:
    """One SAE with the sums of its scores."""

    def __init__(self, sae: SAE, measured: Mapping[str, Score]) -> None:
        self.sae, self.measured = sae, measured
        self.sums = {name: Sums() for name in measured}
        self.fired = np.zeros(sae.d_sae, dtype=np.int64)
        self.tally, self.places = Tally(), Places(sae)
        self.n_rows = 0

    def add(self, block: Block, look: Look) -> Tensor:
        """Count some rows; gives x_hat."""
        import torch

        with torch.no_grad():
            x = block.x.to(self.sae.device)
            forward = self.sae(x, sparse=True)
            x_hat = forward.x_hat
            y, mean = block.y.to(x_hat.device), look.mean.to(x_hat.device)
            seen = Seen(x, y, x_hat, forward.codes, mean, look.ordinary)
            self.tally.add(seen)
            self.fired += seen.fired.cpu().numpy()
            self.n_rows += len(x)
            self.places.add(seen, block.unit)
            units, at = np.unique(block.unit, return_inverse=True)
            for name, score in self.measured.items():
                found = {key: value.cpu().numpy() for key, value in score.of_rows(seen).items()}
                summed = {key: np.bincount(at, each, len(units)) for key, each in found.items()}
                if summed:
                    self.sums[name].add(units, **summed)
        return x_hat.to(block.y.device)

    def splice(self, block: Block, spliced: Spliced) -> None:
        for name, score in self.measured.items():
            if found := score.of_samples(spliced):
                self.sums[name].add(block.samples, **found)

    def finish(self) -> None:
        """Count the latents, once all rows were seen."""
        fired = Fired(self.fired, self.n_rows, self.sae)
        for name, score in self.measured.items():
            if found := score.of_latents(fired):
                self.sums[name].add(np.arange(self.sae.d_sae), **found)


__all__ = ["evaluate"]
