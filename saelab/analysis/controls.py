"""Controls: what a score is of an SAE that knows nothing, and how sure the score itself is.

A score is computed from sums over units (documents, rows), the same way for the SAE and for its control, so
an interval follows by drawing the units again (bootstrap). A score comes as `Beside` its control; one that
has no control is `Alone` and says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from saelab.sae import SAE

DRAWS = 1000
CONFIDENCE = 0.95
MOST_UNITS = 4096
DRAWN_AT_ONCE = 1 << 20
"""Items that are drawn at once: memory does not grow with them."""
SCORE, OWN = "score", "this SAE"
"""Columns of a table of figures: what each is called, and its value."""
Z = 1.959964
"""Standard deviations that hold 95 % of a normal distribution."""


class Control(NamedTuple):
    """The same score of something that knows nothing."""

    what: str
    """it is: "untrained SAE", "shuffled labels", "random directions\""""
    value: float
    interval: tuple[float, float]
    """95 % of `value`"""


@dataclass(frozen=True)
class Beside:
    """A score beside the same score of its control, on the same rows."""

    value: float
    control: float
    interval: tuple[float, float]
    """95 % of `value`, by drawing the units again"""
    control_interval: tuple[float, float]
    """95 % of `control`"""
    n: int
    """units that were drawn from: documents, or rows where there are no documents"""
    what: str = "untrained SAE"
    """what the control is"""
    also: tuple[Control, ...] = ()
    """further controls"""

    @property
    def apart(self) -> bool:
        """Whether its interval meets that of no control."""
        low, high = self.interval
        others = [self.control_interval, *(control.interval for control in self.also)]
        return all(low > other[1] or high < other[0] for other in others)

    def __str__(self) -> str:
        low, high = self.interval
        head = f"{self.value:.4g} [{low:.4g}, {high:.4g}] (n={self.n:,}); {self.what} {self.control:.4g}"
        return ", ".join([head, *(f"{control.what} {control.value:.4g}" for control in self.also)])


@dataclass(frozen=True)
class Alone:
    """A figure that has no control."""

    value: float
    why: str
    """why it has none: "a property of the model, not of the SAE\""""
    n: int | None = None

    def __str__(self) -> str:
        return f"{self.value:.4g} (no control: {self.why})"


def controls_of(claim: Beside | Alone) -> dict[str, float]:
    """What a figure stands beside, by what it is.

    Args:
        claim: The figure.
    """
    if isinstance(claim, Alone):
        return {}
    return {claim.what: claim.control} | {control.what: control.value for control in claim.also}


def interval_of(claim: Beside | Alone) -> tuple[float, float]:
    """The 95 % interval of a figure; NaN where it has none.

    Args:
        claim: The figure.
    """
    return claim.interval if isinstance(claim, Beside) else (float("nan"), float("nan"))


def framed(claims: Mapping[str, Beside | Alone]) -> pd.DataFrame:
    """One line for each figure: this SAE, each control (NaN where it stands beside none of that kind), and
    the 95 % interval of this SAE's.

    Args:
        claims: Figures by name.
    """
    import pandas as pd

    lines = [
        {SCORE: name, OWN: claim.value, **controls_of(claim)}
        | dict(zip(("from", "to"), interval_of(claim), strict=True))
        for name, claim in claims.items()
    ]
    ends = ["from", "to"]
    columns = [name for line in lines for name in line if name not in ends]
    return pd.DataFrame(lines, columns=list(dict.fromkeys([*columns, *ends]))).set_index(SCORE)


def untrained(sae: SAE, rows: Tensor, targets: Tensor | None = None, seed: int = 0) -> SAE:
    """The control of every score of an SAE: one of its configuration with random weights.

    It knows as much of the data as training begins with: its mean and scale.

    Args:
        sae: whose configuration and device it has.
        rows: activations [n d_in] that it starts from.
        targets: of the same rows [n d_out], for transcoders.
        seed: of its weights.

    Returns:
        An SAE in eval mode.
    """
    from saelab.sae import SAE

    given = None if targets is None else targets.float().cpu()
    return SAE.create(sae.config, seed, rows.float().cpu(), given).to(sae.device).eval()


def shuffled(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """The same labels on other rows: base rates are kept, truth is not.

    Args:
        labels: [n].
        seed: Seed of the draw.
    """
    return np.random.default_rng(seed).permutation(labels)


def random_directions(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Unit vectors of which every direction is as likely as any other.

    Args:
        n: How many.
        d: Their width.
        seed: Seed of the draw.

    Returns:
        float32 [n d].
    """
    found = np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


class Sums:
    """Sums of several quantities, for each unit apart; of more than 8,192 units for equal groups of
    neighbours, so that memory does not grow with them.

    >>> sums = Sums()
    >>> sums.add([0, 0, 1], error=[1.0, 2.0, 4.0], n=[1, 1, 1])
    >>> sums.total("error"), sums.n_units
    (7.0, 2)

    Args:
        apart: Whether every unit is kept apart, however many there are.
    """

    def __init__(self, *, apart: bool = False) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._apart = apart
        self.n_units = 0
        self.group = 1
        """units of which one sum is"""

    def add(self, unit: Any, **values: Any) -> None:
        """Add quantities of rows.

        Args:
            unit: int [n], the unit of each; numbers from 0 on, those of earlier calls may come again.
            **values: float [n] of each quantity.
        """
        unit = np.asarray(unit, dtype=np.int64)
        if not len(unit):
            return
        self.n_units = max(self.n_units, int(unit.max()) + 1)
        while not self._apart and self._groups > 2 * MOST_UNITS:
            self.group *= 2
            for name, each in self._sums.items():
                even = np.pad(each, (0, len(each) % 2))
                self._sums[name] = even[::2] + even[1::2]
        at = unit // self.group
        low = int(at.min())
        for name, value in values.items():
            summed = np.bincount(at - low, np.asarray(value, dtype=np.float64))
            held = self._sums.get(name, np.zeros(0))
            if len(held) < low + len(summed):  # with room, so that not every call copies what there is
                held = np.pad(held, (0, 2 * (low + len(summed)) - len(held)))
            held[low : low + len(summed)] += summed
            self._sums[name] = held

    @property
    def _groups(self) -> int:
        return -(-self.n_units // self.group)

    def of(self, name: str) -> np.ndarray:
        """float64 [units, or groups of them] of a quantity; zeros where it was never added."""
        out = np.zeros(self._groups)
        held = self._sums.get(name, out)[: len(out)]
        out[: len(held)] = held
        return out

    def total(self, name: str) -> float:
        """Over all units."""
        return float(self._sums.get(name, np.zeros(1)).sum())

    def names(self) -> list[str]:
        """Names of the quantities."""
        return list(self._sums)


Score = Callable[[Mapping[str, Any]], Any]
"""From quantity -> its sum (numbers, or arrays of them) to the score (or scores)."""


def interval(sums: Sums, score: Score, seed: int = 0, draws: int = DRAWS) -> tuple[float, float]:
    """The bootstrap interval of a score: 2.5th and 97.5th percentile over units drawn with replacement
    (Efron 1979).

    Args:
        sums: of the units. More than 4096 of them are drawn in groups of equal size.
        score: see `Score`; it must take arrays.
        seed: of the draws.
        draws: how many.

    Returns:
        (low, high); NaN with fewer than two units.
    """
    names = sums.names()
    if sums.n_units < 2:
        return float("nan"), float("nan")
    table = np.stack([sums.of(name) for name in names], axis=1)
    n = len(table)
    if n > MOST_UNITS:
        table = np.add.reduceat(table, np.linspace(0, n, MOST_UNITS, endpoint=False).astype(int))
        n = len(table)
    drawn = _weights(n, draws, seed) @ table
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.asarray(score(dict(zip(names, drawn.T, strict=True))), dtype=np.float64)
    tail = 50 * (1 - CONFIDENCE)
    known = scores[np.isfinite(scores)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)


@lru_cache(maxsize=2)  # scores of one evaluation draw the same units: documents, latents
def _weights(n: int, draws: int, seed: int) -> np.ndarray:
    """float64 [draws n]: how often each unit is drawn."""
    found = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
    found.flags.writeable = False
    return found


def wilson(found: int, of: int) -> tuple[float, float]:
    """95 % interval of a share, found / of (Wilson 1927); NaN of none.

    Args:
        found: How many.
        of: Of how many.
    """
    if not of:
        return float("nan"), float("nan")
    p, z = found / of, Z
    middle, wide = p + z * z / (2 * of), z * np.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    scale = 1 + z * z / of
    return max(0.0, float((middle - wide) / scale)), min(1.0, float((middle + wide) / scale))


def beside(of: Sums, control: Sums, score: Score, seed: int = 0, what: str = "untrained SAE") -> Beside:
    """A score of two sums over the same units, with its intervals.

    Args:
        of: Sums of what is scored.
        control: Sums of the control.
        score: What is computed of them.
        seed: Seed of the draws that give the intervals.
        what: The control is.
    """
    return beside_each(of, {what: control}, score, seed)


def beside_each(
    of: Sums, controls: Mapping[str, Sums], score: Score, seed: int = 0, n: int | None = None
) -> Beside:
    """A score of sums over the same units, with its intervals, beside that of each control.

    Args:
        of: Sums of what is scored.
        controls: What each is -> its sums, the first first.
        score: What is computed of them.
        seed: Seed of the draws that give the intervals.
        n: Units that count; None for those of `of`.
    """
    told = {what: with_interval(sums, score, seed) for what, sums in controls.items()}
    return against(with_interval(of, score, seed), told, of.n_units if n is None else n)


class Measured(NamedTuple):
    """A score of some sums."""

    value: float
    interval: tuple[float, float]
    """95 % of it"""


def with_interval(sums: Sums, score: Score, seed: int = 0) -> Measured:
    """A score of sums, with its interval.

    Args:
        sums: Of the units.
        score: What is computed of them.
        seed: Seed of the draws.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        totals = {name: np.float64(sums.total(name)) for name in sums.names()}
        value = float(score(totals))
    return Measured(value, interval(sums, score, seed))


def against(own: Measured, controls: Mapping[str, Measured], n: int) -> Beside:
    """What was measured beside what was measured of controls.

    Args:
        own: What is claimed.
        controls: What each is -> the same of it, the first first.
        n: Units that were drawn from.
    """
    (what, first), *rest = controls.items()
    also = tuple(Control(name, *each) for name, each in rest)
    return Beside(own.value, first.value, own.interval, first.interval, n, what, also)


def correlation(
    guess: np.ndarray, true: np.ndarray, control: np.ndarray, what: str, *, ranks: bool = False, seed: int = 0
) -> Beside:
    """Pearson's correlation of two quantities, or Spearman's, beside that of a control with the second.

    Intervals draw the items with replacement, the same for the control; ranks are taken anew in each draw,
    for those of all items would make the interval of another figure.

    Args:
        guess: [n].
        true: [n].
        control: [n], what stands in the guess's place.
        what: The control is.
        ranks: Whether it is Spearman's.
        seed: Of the draws.

    Returns:
        The two; NaN where all values are equal.
    """
    from scipy.stats import rankdata

    def measured(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, y = (rankdata(each, axis=-1) if ranks else each for each in (x, y))
        x, y = (each - each.mean(-1, keepdims=True) for each in (x, y))
        with np.errstate(divide="ignore", invalid="ignore"):
            return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))

    n, true = len(true), np.asarray(true, dtype=np.float64)
    at_once = max(1, DRAWN_AT_ONCE // max(1, n))
    values, intervals = [], []
    for each in (np.asarray(guess, dtype=np.float64), np.asarray(control, dtype=np.float64)):
        values.append(float(measured(each, true)))
        rng, parts = np.random.default_rng(seed), []
        for low in range(0, DRAWS, at_once):
            draws = rng.integers(0, n, (min(at_once, DRAWS - low), n))
            parts.append(measured(each[draws], true[draws]))
        drawn = np.concatenate(parts)
        known = drawn[np.isfinite(drawn)]
        tail = 50 * (1 - CONFIDENCE)
        low, high = np.percentile(known, [tail, 100 - tail]) if len(known) else (float("nan"), float("nan"))
        intervals.append((float(low), float(high)))
    return Beside(values[0], values[1], intervals[0], intervals[1], n, what)


__all__ = [
    "OWN",
    "SCORE",
    "Alone",
    "Beside",
    "Control",
    "Measured",
    "Sums",
    "against",
    "beside",
    "beside_each",
    "controls_of",
    "correlation",
    "framed",
    "interval",
    "interval_of",
    "random_directions",
    "shuffled",
    "untrained",
    "wilson",
    "with_interval",
]
