"""How well a score tells what is of a circuit from what is not: ROC, average precision, F1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from saelab.types import ConfigError

if TYPE_CHECKING:
    import pandas as pd

CODES, SHUFFLED, UNTRAINED = "codes", "shuffled labels", "untrained SAE"
BARS = {SHUFFLED: 0.10, UNTRAINED: 0.05}
"""By how much the AUC of the codes must exceed that of each control."""


class Roc(NamedTuple):
    """Points of a receiver operating characteristic, from none called to all; equal scores are one step."""

    fpr: np.ndarray
    """float64 [points]: share of what is not of the circuit that is called"""
    tpr: np.ndarray
    """float64 [points]: share of the circuit that is called"""
    thresholds: np.ndarray
    """float64 [points]: the least score that is called; infinite at the first point"""


@dataclass(frozen=True, eq=False)
class CodeTest:
    """Whether the codes of heads tell a circuit: the heads of one, or the edges between them."""

    task: str
    kind: Literal["node", "edge"]
    truth: np.ndarray
    """bool [items]: whether a head, or an edge, is of the circuit"""
    scores: dict[str, np.ndarray]
    """arm -> float64 [seeds, items]: the codes, their controls, and estimates by gradients"""
    drawn: dict[str, np.ndarray]
    """arm -> float64 [draws, items]: scores by prompts that were drawn anew, the same for all arms, each of
    one seed"""

    @property
    def bars(self) -> dict[str, float]:
        """Control -> by how much the AUC of the codes must exceed its own."""
        return dict(BARS)

    @property
    def heads(self) -> int:
        """Items of the circuit."""
        return int(self.truth.sum())

    @property
    def of(self) -> int:
        """Items."""
        return len(self.truth)

    @cached_property
    def auc(self) -> dict[str, np.ndarray]:
        """Arm -> float64 [seeds], the area under the ROC curve; by chance 1/2."""
        return self._measured(auc)

    @cached_property
    def auc_interval(self) -> dict[str, tuple[float, float]]:
        """Arm -> 95 % of its AUC, drawn over prompts and seeds."""
        return {arm: _spread(auc(of, self.truth)) for arm, of in self.drawn.items()}

    @cached_property
    def average_precision(self) -> dict[str, np.ndarray]:
        """Arm -> float64 [seeds], the average precision; by chance about the circuit's share of all."""
        return self._measured(average_precision)

    @cached_property
    def gain(self) -> dict[str, tuple[float, float]]:
        """Other arm -> 95 % of what the AUC of the codes has over it, drawn over prompts, paired."""
        return self._gained(auc)

    @cached_property
    def precision_gain(self) -> dict[str, tuple[float, float]]:
        """Other arm -> 95 % of what the average precision of the codes has over it, likewise."""
        return self._gained(average_precision)

    def roc(self, arm: str = CODES) -> list[Roc]:
        """The ROC curve of each seed.

        Args:
            arm: One of those of `scores`.

        Raises:
            ConfigError: There is no such arm.
        """
        from sklearn.metrics import roc_curve

        if arm not in self.scores:
            message = f"arm must be one of {', '.join(self.scores)}. Got {arm!r}. Pass one of these."
            raise ConfigError(message)
        return [Roc(*roc_curve(self.truth, each, drop_intermediate=False)) for each in self.scores[arm]]

    def mean_roc(self, arm: str = CODES) -> tuple[np.ndarray, np.ndarray]:
        """The mean of the ROC curves of all seeds: at each share of what is not of the circuit, the mean
        share of the circuit. The area under it is the mean AUC.

        Args:
            arm: One of those of `scores`.

        Returns:
            Both shares, float64 [points], from none called to all.

        Raises:
            ConfigError: There is no such arm.
        """
        grid = np.arange(self.of - self.heads + 1)
        curves = [(np.rint(roc.fpr * grid[-1]).astype(int), roc.tpr) for roc in self.roc(arm)]
        # a curve may rise at once: both ends of each rise
        ends = [np.mean([_height(grid, *curve, last) for curve in curves], 0) for last in (False, True)]
        return np.repeat(grid / grid[-1], 2), np.stack(ends, 1).ravel()

    def f1(self, other: CodeTest) -> dict[str, np.ndarray]:
        """F1 at a threshold that was chosen on another task, where F1 is largest.

        Args:
            other: The test of the other task, whose scores are on the same scale.

        Returns:
            Arm -> float64 [seeds]; the threshold of each seed is that of the other's same seed.

        Raises:
            ConfigError: It is this very task, or has other arms.
        """
        self._another(other)
        return {arm: _f1s(self, other, self.scores[arm], other.scores[arm]) for arm in self.scores}

    def f1_gain(self, other: CodeTest) -> dict[str, tuple[float, float]]:
        """Other arm -> 95 % of what the F1 of the codes has over it: both the threshold and the scores by
        prompts drawn anew, paired.

        Args:
            other: As for `f1`.

        Raises:
            ConfigError: As for `f1`.
        """
        self._another(other)
        drawn = {arm: _f1s(self, other, self.drawn[arm], other.drawn[arm]) for arm in self.drawn}
        return {arm: _spread(drawn[CODES] - drawn[arm]) for arm in drawn if arm != CODES}

    @property
    def title(self) -> str:
        """What the score may be called: a "node score" (or "edge score") where it beats both controls, by .10
        and by .05 with an interval above 0; else a "diversity score", for it says how varied a head is, not
        what it does."""
        beaten = all(
            self.auc[CODES].mean() - self.auc[control].mean() >= bar and self.gain[control][0] > 0
            for control, bar in BARS.items()
        )
        return f"{self.kind} score" if beaten else "diversity score"

    def to_frame(self, other: CodeTest | None = None) -> pd.DataFrame:
        """A row an arm: AUC and average precision, the least and largest over seeds, and 95 % of what the
        codes have over it; with the test of another task F1 too, at the threshold chosen there.

        Args:
            other: As for `f1`, or None.
        """
        import pandas as pd

        parts = [
            ("auc", self.auc, self.gain),
            ("average_precision", self.average_precision, self.precision_gain),
        ]
        if other is not None:
            parts.append(("f1", self.f1(other), self.f1_gain(other)))
        columns: dict[str, list[object]] = {"arm": list(self.scores)}
        for name, values, gains in parts:
            every = [values[arm] for arm in self.scores]
            over = [gains.get(arm, (np.nan, np.nan)) for arm in self.scores]
            columns[name] = [float(v.mean()) for v in every]
            columns[f"{name}_least"] = [float(v.min()) for v in every]
            columns[f"{name}_largest"] = [float(v.max()) for v in every]
            columns[f"{name}_gain_low"] = [low for low, _ in over]
            columns[f"{name}_gain_high"] = [high for _, high in over]
        return pd.DataFrame(columns)

    def __str__(self) -> str:
        arms = "; ".join(f"{arm} {values.mean():.3f}" for arm, values in self.auc.items())
        precision = "; ".join(f"{arm} {values.mean():.3f}" for arm, values in self.average_precision.items())
        gains = "; ".join(f"over {arm} [{low:+.3f}, {high:+.3f}]" for arm, (low, high) in self.gain.items())
        why = ": it does not beat its controls" if self.title == "diversity score" else ""
        return (
            f"{self.title.capitalize()} of {self.task!r}{why}\n"
            f"  AUC of {self.heads} {self.kind}s among {self.of}: {arms}\n  {gains}\n"
            f"  average precision (by chance {self.truth.mean():.3f}): {precision}"
        )

    __repr__ = __str__

    def _measured(self, measure: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
        return {arm: measure(of, self.truth) for arm, of in self.scores.items()}

    def _gained(
        self, measure: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> dict[str, tuple[float, float]]:
        drawn = {arm: measure(of, self.truth) for arm, of in self.drawn.items()}
        return {arm: _spread(drawn[CODES] - drawn[arm]) for arm in drawn if arm != CODES}

    def _another(self, other: CodeTest) -> None:
        if other.task == self.task or other.kind != self.kind or set(other.scores) != set(self.scores):
            message = (
                "A threshold must be chosen on another task, by the same scores. Got "
                f"{other.kind}s of {other.task!r} by {', '.join(other.scores)}, for {self.kind}s of "
                f"{self.task!r} by {', '.join(self.scores)}. Pass the test of another task."
            )
            raise ConfigError(message)


def auc(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: how often one of the circuit scores above one that is not, ties half. By the
    ranks of all (Mann & Whitney 1947).

    Args:
        scores: [..., items].
        truth: bool [items].

    Returns:
        float64 [...].
    """
    from scipy.stats import rankdata

    own = truth.sum()
    below = rankdata(scores, axis=-1)[..., truth].sum(-1) - own * (own + 1) / 2
    return np.asarray(below / (own * (~truth).sum()))


def average_precision(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The precision at each score, weighted by the recall that is gained there; equal scores are called
    together.

    Args:
        scores: [..., items].
        truth: bool [items].

    Returns:
        float64 [...].
    """
    from scipy.stats import rankdata

    # of each of the circuit: how many are called with it, and how many of those are of the circuit
    called = rankdata(-scores, method="max", axis=-1)[..., truth]
    hit = rankdata(-scores[..., truth], method="max", axis=-1)
    return np.asarray((hit / called).mean(-1))


def f1(scores: np.ndarray, truth: np.ndarray, threshold: float) -> float:
    """Harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN), of what scores at least a threshold.

    The authors' program reports the harmonic mean of sensitivity and specificity under this name.

    Args:
        scores: [items].
        truth: bool [items].
        threshold: The least score that is called.
    """
    called = scores >= threshold
    return float(2 * (called & truth).sum() / (called.sum() + truth.sum()))


def best_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """The threshold of the largest F1; of equal ones the highest.

    Args:
        scores: [items].
        truth: bool [items].
    """
    levels = np.unique(scores)[::-1]
    called = scores[:, None] >= levels
    values = 2 * (called & truth[:, None]).sum(0) / (called.sum(0) + truth.sum())
    return float(levels[values.argmax()])


def _height(grid: np.ndarray, others: np.ndarray, own: np.ndarray, last: bool) -> np.ndarray:
    """A curve's height at numbers of others: at its last point there or at its first, or between points."""
    x, first = np.unique(others, return_index=True)
    final = np.r_[first[1:], len(others)] - 1
    i = np.searchsorted(x, grid)
    before = np.maximum(i - 1, 0)
    rise = (own[first][i] - own[final][before]) / np.maximum(x[i] - x[before], 1)
    between = own[final][before] + rise * (grid - x[before])
    return np.where(x[i] == grid, own[final if last else first][i], between)


def _f1s(test: CodeTest, other: CodeTest, scores: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    found = []
    for i, each in enumerate(scores):
        threshold = best_threshold(theirs[i % len(theirs)], other.truth)
        found.append(f1(each, test.truth, threshold))
    return np.array(found)


def _spread(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


__all__ = [
    "BARS", "CODES", "SHUFFLED", "UNTRAINED", "CodeTest", "Roc", "auc", "average_precision", "best_threshold",
    "f1",
]  # fmt: skip
