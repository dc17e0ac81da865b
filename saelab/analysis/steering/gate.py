"""The threshold of a gate, measured on inputs that it should leave alone and on inputs that it should not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.controls import wilson
from saelab.analysis.steering import ranking
from saelab.analysis.steering.known import apart, check_unseen, distinct, latents_of, parts, remember
from saelab.analysis.steering.pooled import corpus_of
from saelab.analysis.steering.selected import documents_of
from saelab.analysis.steering.separation import Roc, auroc, auroc_interval, roc
from saelab.arguments import a_subject, an_integer, checked, listed, one_of, real
from saelab.config import boolean
from saelab.errors import headline
from saelab.harvesting.batches import batches, check_hooks, side_by_side
from saelab.interventions.by_sae import OfConcept
from saelab.types import ConfigError, short

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from torch import Tensor

    from saelab.corpora import Document
    from saelab.sae import SAE
    from saelab.types import Subject

POINTS = 200
"""Of a curve that is drawn, at most."""
RIDGE = 0.01
"""Strength of the penalty on the weights of a probe."""


@dataclass(frozen=True)
class Opens:
    """How often a gate opens, of one kind of samples."""

    share: float
    interval: tuple[float, float]
    """95 % (Wilson's, which holds near 0 and 1 too)"""
    n: int

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.3g} % [{100 * low:.3g}, {100 * high:.3g}] of {self.n:,}"


@dataclass(frozen=True)
class GateCurve:
    """The threshold of a gate, the curve that it was read off, and what it does on samples held out."""

    edit: Any = field(repr=False)
    """the edit with this threshold"""
    threshold: float
    met: bool
    """whether a threshold keeps both limits on the calibration part; else this is the one that opens on most
    target inputs while it keeps `max_clean`"""
    max_clean: float
    min_target: float
    per: str
    """what counts as one of the clean ones: "input" or "token" """
    curve: Roc = field(repr=False)
    """of the calibration part: shares of clean (`false`) and of target (`true`) above each threshold"""
    clean: Opens
    """of the calibration part"""
    target: Opens
    held_out_clean: Opens
    """of samples that had no part in the choice of the threshold"""
    held_out_target: Opens
    auroc: float
    """of the held-out part: clean inputs against target inputs, by the signal of each"""
    auroc_interval: tuple[float, float]
    fitted: frozenset[str] = field(repr=False)
    """hashes of the calibration part; `effect` refuses these samples"""
    held_out: tuple[tuple[Document, ...], tuple[Document, ...]] = field(repr=False)
    """the held-out samples, clean and target: to measure with"""

    def check(self, data: Iterable[Any]) -> None:
        """Refuse samples that the threshold was fitted on: texts, Documents, or what else the subject reads.

        Raises:
            CorpusError: There are some.
        """
        check_unseen(documents_of(data), self.fitted, "the gate")

    def to_frame(self) -> pd.DataFrame:
        """One line a threshold: threshold, clean and target, the shares on which the gate opens."""
        import pandas as pd

        columns = {"threshold": self.curve.threshold, "clean": self.curve.false, "target": self.curve.true}
        return pd.DataFrame(columns)

    def figure(self) -> go.Figure:
        """The ROC curve of the calibration part, the limits, and the threshold that was chosen."""
        import plotly.graph_objects as go

        figure = go.Figure(
            go.Scatter(
                x=self.curve.false, y=self.curve.true, customdata=self.curve.threshold, mode="lines",
                line={"shape": "hv", "color": "#0072b2"}, name="calibration part",
                hovertemplate="above %{customdata:.4g}<br>clean %{x:.3f}<br>target %{y:.3f}<extra></extra>",
            )
        )  # fmt: skip
        figure.add_scatter(
            x=[self.clean.share], y=[self.target.share], mode="markers",
            name=f"threshold {self.threshold:.4g}",
            marker={"size": 12, "symbol": "circle-open", "line": {"width": 3}, "color": "#d55e00"},
        )  # fmt: skip
        figure.add_scatter(
            x=[self.held_out_clean.share], y=[self.held_out_target.share], mode="markers", name="held out",
            marker={"size": 11, "symbol": "diamond", "color": "#009e73"},
        )  # fmt: skip
        figure.add_vline(x=self.max_clean, line={"dash": "dot", "color": "#999999"})
        figure.add_hline(y=self.min_target, line={"dash": "dot", "color": "#999999"})
        return figure.update_layout(
            title=f"gate: AUROC {self.auroc:.3f} on held-out inputs", template="plotly_white", height=440,
            xaxis_title=f"share of clean {self.per}s on which it opens",
            yaxis_title="share of target inputs on which it opens",
        )  # fmt: skip

    __repr__ = headline

    def __str__(self) -> str:
        low, high = self.auroc_interval
        verdict = (
            f"threshold {self.threshold:.4g} keeps both limits"
            if self.met
            else f"no threshold keeps both limits; the best is {self.threshold:.4g}"
        )
        limits = (
            f"<= {100 * self.max_clean:g} % of clean {self.per}s, >= {100 * self.min_target:g} % of target"
        )
        return "\n".join([
            f"{verdict} ({limits})",
            f"calibration: clean {self.per}s {self.clean}; target inputs {self.target}",
            f"held out: clean {self.per}s {self.held_out_clean}; target inputs {self.held_out_target}",
            f"AUROC {self.auroc:.4g} [{low:.4g}, {high:.4g}] on held-out inputs",
        ])  # fmt: skip


def drawn(curve: GateCurve) -> dict[str, Any]:
    """What is drawn of a gate: its curve, thinned where it has many points, and how it does.

    Args:
        curve: Of `calibrate_gate`.

    Returns:
        What JSON can hold. threshold, clean, target: of each point, the highest threshold first, and those
        that an edit can have alone; chosen: the threshold; met; n: [clean, target] inputs of the calibration
        part; max_clean, min_target; auroc: [value, low, high], and held_out: {clean, target} of [share, low,
        high, n], both of the held-out part, None where there is no number.
    """
    threshold = curve.curve.threshold
    usable = np.flatnonzero(threshold >= 0)
    some = usable[np.linspace(0, len(usable) - 1, min(len(usable), POINTS)).round().astype(int)]
    at = int(usable[np.abs(threshold[usable] - curve.threshold).argmin()])
    some = np.unique([*some, at])
    held = {"clean": curve.held_out_clean, "target": curve.held_out_target}
    return {
        "threshold": threshold[some].tolist(),
        "clean": curve.curve.false[some].tolist(),
        "target": curve.curve.true[some].tolist(),
        "chosen": curve.threshold,
        "met": curve.met,
        "n": [curve.clean.n, curve.target.n],
        "max_clean": curve.max_clean,
        "min_target": curve.min_target,
        "auroc": numbers(curve.auroc, *curve.auroc_interval),
        "held_out": {name: [*numbers(each.share, *each.interval), each.n] for name, each in held.items()},
    }


def numbers(*values: float) -> list[float | None]:
    """Numbers that JSON can hold: None for those that are not finite."""
    return [float(value) if np.isfinite(value) else None for value in values]


@checked(
    clean=listed, target=listed, subject=a_subject, max_clean=real(0), min_target=real(0),
    per=one_of("input", "token"), probe=boolean, held_out=real(0), seed=an_integer(),
    batch_size=an_integer(1),
)  # fmt: skip
def calibrate_gate(
    edit: Any,
    clean: Iterable[Any],
    target: Iterable[Any],
    *,
    subject: Subject,
    max_clean: float = 0.05,
    min_target: float = 0.9,
    per: str = "input",
    probe: bool = True,
    held_out: float = 0.5,
    seed: int = 0,
    batch_size: int = 16,
) -> GateCurve:
    """Find the threshold at which a gate opens on target inputs and leaves clean ones alone.

    Of all thresholds that keep both limits the one is taken that tells the calibration part apart best, in
    the middle of the gap where there is one. Where none keeps both, it is the one that opens on most target
    inputs while it keeps `max_clean`, and the result says so.

    Before that a probe is fitted for edits of a concept (`Erase` and `Substitute`) that have none: a logistic
    one, on the mean activations of the samples of the calibration part. It finds words of a concept that had
    no part in the choice of its latents, which these latents often pass over.

    Args:
        edit: A gated edit, with gate="input" or "token"; its present threshold does not matter.
        clean: Samples that the gate should leave alone.
        target: Samples that it should open on.
        subject: The model.
        max_clean: The share of clean inputs (or tokens) on which it may open.
        min_target: The share of target inputs on which it must open.
        per: What is counted of the clean samples: "input" by their own signal (the highest, or for `Erase`
            the mean, of their positions), or each "token".
        probe: Whether one is fitted; else the signal stays as the edit has it.
        held_out: Share of the samples on which the threshold is judged.
        seed: Of the parts and the interval.
        batch_size: Samples of a pass.

    Returns:
        The curve, and under `edit` the edit with the threshold, and the probe.

    Raises:
        ConfigError: The edit has no gate, or a limit is no share.
        CorpusError: Fewer than four different samples on a side, a sample on both.
    """
    for name, value in (("max_clean", max_clean), ("min_target", min_target), ("held_out", held_out)):
        if not 0 <= value <= 1 or (name == "held_out" and value in (0, 1)):
            message = f"{name} must be a share. Got {value}. Pass e.g. {name}=0.5."
            raise ConfigError(message)
    hook = _gated(edit)
    clean_documents, clean_keys = distinct("clean", documents_of(clean, subject.corpus))
    target_documents, target_keys = distinct("target", documents_of(target, subject.corpus))
    apart("clean", clean_keys, "target", target_keys)
    rng = np.random.default_rng(seed)
    no, yes = (parts(len(each), held_out, rng) for each in (clean_documents, target_documents))
    if probe and isinstance(edit, OfConcept) and edit.probe is None:
        sides = [clean_documents[i] for i in no[0]], [target_documents[i] for i in yes[0]]
        edit = dataclasses.replace(edit, probe=_probe(edit.sae, hook, subject, *sides, batch_size))
    quiet = _signals(edit, hook, subject, clean_documents, batch_size)
    loud = _signals(edit, hook, subject, target_documents, batch_size)
    peaks = [_of_inputs(edit, side) for side in (quiet, loud)]

    def counted(at: np.ndarray) -> np.ndarray:
        return peaks[0][at] if per == "input" else np.concatenate([quiet[i] for i in at])

    curve = roc(peaks[1][yes[0]], counted(no[0]))
    threshold, met = _chosen(curve, max_clean, min_target)
    keys = [clean_keys[i] for i in no[0]] + [target_keys[i] for i in yes[0]]
    lone = peaks[0][no[1]], peaks[1][yes[1]]
    result = GateCurve(
        edit=dataclasses.replace(edit, threshold=threshold),
        threshold=threshold,
        met=met,
        max_clean=max_clean,
        min_target=min_target,
        per=per,
        curve=curve,
        clean=_opens(counted(no[0]), threshold),
        target=_opens(peaks[1][yes[0]], threshold),
        held_out_clean=_opens(counted(no[1]), threshold),
        held_out_target=_opens(lone[1], threshold),
        auroc=auroc(lone[1], lone[0]),
        auroc_interval=auroc_interval(lone[1], lone[0], seed),
        fitted=frozenset(keys),
        held_out=(
            tuple(clean_documents[i] for i in no[1]),
            tuple(target_documents[i] for i in yes[1]),
        ),
    )
    remember(result.edit.sae, latents_of(result.edit), result.fitted)
    return result


def opens_on(edit: Any, subject: Subject, documents: Sequence[Document], batch_size: int = 16) -> np.ndarray:
    """bool [documents]: whether the gate of an edit opens in each, of the untouched subject.

    Args:
        edit: A gated edit with its threshold.
        subject: The model.
        documents: Samples.
        batch_size: Of a pass.

    Raises:
        ConfigError: The edit has no gate.
    """
    signals = _signals(edit, _gated(edit), subject, documents, batch_size)
    return _of_inputs(edit, signals) > edit.threshold


def _of_inputs(edit: Any, signals: Sequence[np.ndarray]) -> np.ndarray:
    """float64 [inputs]: of the signals of their positions what the gate judges each input by."""
    mean = edit.gate == "input" and edit.POOL == "mean"
    return np.array([(each.mean() if mean and len(each) else each.max(initial=0)) for each in signals])


def _gated(edit: Any) -> Any:
    """Where an edit's gate reads. Raises ConfigError where it has none."""
    fields = getattr(edit, "__dataclass_fields__", {})
    has = callable(getattr(edit, "signal", None)) and {"threshold", "sae"} <= set(fields)
    gate = getattr(edit, "gate", None)
    if not has or isinstance(edit, type) or gate == "constant":
        got = f"gate={gate!r}" if has else short(edit, 80)
        message = (
            f"A gate is calibrated of an edit that has one. Got {got}. Pass e.g. "
            "saelab.interventions.Erase(sae, latents, gate='input', threshold=0.0)."
        )
        raise ConfigError(message)
    return edit.hooks[0]


def _probe(
    sae: SAE, hook: Any, subject: Any, clean: Sequence[Document], target: Sequence[Document], batch_size: int
) -> Tensor:
    """float32 [d_in + 1]: weights by which the means of samples are told apart, and a constant by which the
    least of them comes to 0."""
    import torch

    rows = _rows(lambda x: x, sae, hook, subject, [*clean, *target], batch_size)
    means = np.stack([each.mean(0) if len(each) else np.zeros(sae.config.d_in) for each in rows])
    size = ranking.spread(means)
    truth = (np.arange(len(means)) >= len(clean)).astype(np.float64)
    weights = ranking.logistic((means - means.mean(0)) / size, truth, "l2", RIDGE)[0] / size
    return torch.tensor([*weights, -(means @ weights).min()], dtype=torch.float32)


def _signals(
    edit: Any, hook: Any, subject: Any, documents: Sequence[Document], batch_size: int
) -> list[np.ndarray]:
    """float64 [rows] of each sample: the signal that the gate compares with its threshold, of its largest
    latent."""
    found = _rows(edit.signal, edit.sae, hook, subject, documents, batch_size)
    return [each.max(1) for each in found]


def _rows(
    of: Callable[[Any], Any], sae: SAE, hook: Any, subject: Any, documents: Sequence[Document],
    batch_size: int,
) -> list[np.ndarray]:  # fmt: skip
    """float64 [rows c] of each sample: what a function makes of the activations that the SAE reads."""
    import torch

    corpus = corpus_of(documents)
    hooks = check_hooks(subject, [hook], corpus)
    found: list[list[np.ndarray]] = [[] for _ in documents]
    for batch in batches(subject, corpus, hooks, batch_size=batch_size):
        with torch.no_grad():
            values = of(side_by_side(batch.acts, hooks).to(sae.device))
        rows = values.reshape(len(batch), -1).double().cpu().numpy()
        sample = batch.rows.origin[:, 0]
        for number in np.unique(sample):
            found[number].append(rows[sample == number])
    return [np.concatenate(each) if each else np.zeros((0, 1)) for each in found]


def _chosen(curve: Roc, max_clean: float, min_target: float) -> tuple[float, bool]:
    """The threshold, and whether it keeps both limits."""
    usable = (curve.threshold >= 0) & (curve.false <= max_clean)  # the first one is: nothing is above it
    both = usable & (curve.true >= min_target)
    best = both if both.any() else usable
    gain = np.where(best, curve.true - (curve.false if both.any() else 0), -np.inf)
    top = np.flatnonzero(gain == gain.max())
    # of equal ones the highest: it leaves most alone
    return float(curve.threshold[top[0]]), bool(both.any())


def _opens(signal: np.ndarray, threshold: float) -> Opens:
    n, opened = len(signal), int((signal > threshold).sum())
    return Opens(opened / n if n else float("nan"), wilson(opened, n), n)


__all__ = ["GateCurve", "Opens", "calibrate_gate", "drawn", "numbers", "opens_on"]
