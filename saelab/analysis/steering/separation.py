"""How well a number tells two kinds of samples apart: ROC, the area under it, and its interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from saelab.analysis.controls import CONFIDENCE, DRAWS


class Roc(NamedTuple):
    """Shares of either kind above each threshold, the highest threshold first."""

    threshold: np.ndarray
    """float64 [n + 1]; what is > it counts as positive. The first is the largest of all numbers, above which
    nothing is"""
    false: np.ndarray
    """float64 [n + 1], share of the negative ones above it"""
    true: np.ndarray
    """float64 [n + 1], share of the positive ones above it"""


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Share of pairs in which the positive one is higher, ties counting half. NaN where a side is empty."""
    if not len(positive) or not len(negative):
        return float("nan")
    ones = np.ones((1, len(positive))), np.ones((1, len(negative)))
    return float(areas(np.asarray(positive), np.asarray(negative), *ones)[0])


def auroc_interval(
    positive: np.ndarray, negative: np.ndarray, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float]:
    """The bootstrap interval of the area, drawing from each kind anew.

    Args:
        positive: [n].
        negative: [m].
        seed: Of the draws.
        draws: How many.

    Returns:
        (low, high), 95 %; NaN with fewer than two of a kind.
    """
    if min(len(positive), len(negative)) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    found, step = [], max(1, (1 << 22) // (len(positive) + len(negative)))
    for first in range(0, draws, step):
        size = min(step, draws - first)
        weights = [rng.multinomial(n, np.full(n, 1 / n), size=size) for n in (len(positive), len(negative))]
        found.append(areas(np.asarray(positive), np.asarray(negative), *weights))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.concatenate(found), [tail, 100 - tail])
    return float(low), float(high)


def areas(positive: np.ndarray, negative: np.ndarray, p: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Areas for weights p [draws, positive], n [draws, negative] of the samples."""
    _, at = np.unique(np.concatenate([positive, negative]), return_inverse=True)
    at = at.reshape(-1)
    size = int(at.max()) + 1
    ups, downs = (np.zeros((len(w), size)) for w in (p, n))
    for draw in range(len(p)):
        ups[draw] = np.bincount(at[: len(positive)], weights=p[draw], minlength=size)
        downs[draw] = np.bincount(at[len(positive) :], weights=n[draw], minlength=size)
    below = np.cumsum(downs, 1) - downs / 2
    return (ups * below).sum(1) / (p.sum(1) * n.sum(1))


def roc(positive: np.ndarray, negative: np.ndarray) -> Roc:
    """The shares above every threshold at which they change.

    Thresholds lie half-way between neighbouring values, but the first, which is the largest, and the last,
    below them all.

    Args:
        positive: [n].
        negative: [m].
    """
    values = np.unique(np.concatenate([positive, negative]).astype(np.float64))
    between = (values[1:] + values[:-1]) / 2
    lowest = values[0] - max(abs(values[0]), 1.0)
    threshold = np.concatenate([values[-1:], between[::-1], [lowest]])
    true, false = (
        (len(x) - np.searchsorted(np.sort(np.asarray(x, np.float64)), threshold, side="right")) / len(x)
        for x in (positive, negative)
    )
    return Roc(threshold, false, true)


__all__ = ["Roc", "areas", "auroc", "auroc_interval", "roc"]
