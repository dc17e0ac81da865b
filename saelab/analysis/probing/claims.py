"""Figures of several tasks in one claim, beside several controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saelab.analysis.controls import Beside, Sums, beside_each
from saelab.config import integer, is_number
from saelab.types import ConfigError, short

UNTRAINED, SHUFFLED, RANDOM = "untrained SAE", "shuffled labels", "random latents"


class Shares:
    """How often something was right, by task and unit: the mean over tasks has an interval over units. Of
    tasks that are taken off it the mean is subtracted.

    Args:
        sums: Where it is counted; None for sums of its own.
    """

    def __init__(self, sums: Sums | None = None) -> None:
        self.sums = Sums() if sums is None else sums
        self._names: dict[str, bool] = {}

    def add(
        self,
        name: str,
        unit: np.ndarray,
        value: np.ndarray,
        *,
        off: bool = False,
        of: np.ndarray | None = None,
    ) -> None:
        """Add a task.

        Args:
            name: Of the task.
            unit: int64 [n], numbers of documents.
            value: [n], what is averaged.
            off: Whether it is one of those whose mean is subtracted.
            of: [n], of how many each value is the sum; None for one.
        """
        self._names[name] = off
        self.sums.add(unit, **{f"{name}\n": value, f"{name}\nn": np.ones(len(unit)) if of is None else of})

    def of(self, sums: Mapping[str, Any]) -> Any:
        """Mean over tasks of each task's mean, less that of those that are taken off; a task of which no unit
        was drawn is left out."""
        sides = []
        for side in (False, True):
            names = [name for name, off in self._names.items() if off == side]
            with np.errstate(divide="ignore", invalid="ignore"):
                means = [np.asarray(sums[f"{k}\n"] / np.asarray(sums[f"{k}\nn"])) for k in names]
            table = np.stack(means) if means else np.zeros(1)
            known = np.isfinite(table)
            sides.append(np.where(known, table, 0).sum(0) / np.maximum(known.sum(0), 1))
        return sides[0] - sides[1]


def claim(of: Shares, controls: Mapping[str, Shares], seed: int, n: int) -> Beside:
    """The mean over tasks beside that of each control, the first first.

    Args:
        of: What is claimed.
        controls: What each is -> the same of it, of the same tasks.
        seed: Of the draws that give the intervals.
        n: Units that judge.
    """
    return beside_each(of.sums, {what: each.sums for what, each in controls.items()}, of.of, seed, n)


def halves(n: int, held_out: float, seed: int) -> np.ndarray:
    """bool [n]: which of n documents judge.

    Args:
        n: Documents.
        held_out: Share of them.
        seed: Of the draw.
    """
    chosen = np.zeros(n, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(n)[: round(n * held_out)]] = True
    return chosen


def share(name: str, value: Any) -> None:
    """Refuse what is no share of documents. Raises ConfigError."""
    if not is_number(value) or not 0 < value < 1:
        message = f"{name} must be between 0 and 1. Got {short(value)}. Pass {name}=0.3."
        raise ConfigError(message)


def counts(name: str, values: Any) -> tuple[int, ...]:
    """Numbers of latents, ascending. Raises ConfigError."""
    if not isinstance(values, Sequence) or isinstance(values, str) or not len(values):
        message = f"{name} must be a list of integers. Got {short(values)}. Pass e.g. {name}=(1, 5)."
        raise ConfigError(message)
    return tuple(sorted({integer(f"Each of {name}", value, 1) for value in values}))


def settle(suite: Any, numbers: str, *least_one: str) -> None:
    """Check the options of a frozen suite, and put them in their final form. Raises ConfigError.

    Args:
        suite: Which has a `held_out`.
        numbers: Name of its option that holds numbers of latents.
        *least_one: Names of those that are integers >= 1.
    """
    object.__setattr__(suite, numbers, counts(numbers, getattr(suite, numbers)))
    share("held_out", suite.held_out)
    for name in least_one:
        object.__setattr__(suite, name, integer(name, getattr(suite, name), 1))


def few_enough(name: str, values: Sequence[int], d_sae: int) -> None:
    """Refuse more latents than there are. Raises ConfigError."""
    if max(values) > d_sae:
        message = (
            f"{name} must not exceed the number of latents, d_sae={d_sae}. Got {max(values)}. Pass fewer."
        )
        raise ConfigError(message)


__all__ = [
    "RANDOM", "SHUFFLED", "UNTRAINED", "Shares", "claim", "counts", "few_enough", "halves", "settle", "share",
]  # fmt: skip
