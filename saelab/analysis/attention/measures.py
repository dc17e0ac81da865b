"""What a pattern is like: a figure for each position that looks, of any heads."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

MEASURES = {
    "previous": "attention to the position before",
    "self": "attention to the position itself",
    "first": "attention to the first position",
    "spread": "entropy of the attention, in nats",
    "distance": "mean distance, in positions",
}
"""Names -> what they are."""


def row_measures(pattern: np.ndarray) -> Mapping[str, np.ndarray]:
    """The measures of a pattern, of every position behind the first.

    Args:
        pattern: [.. n n], from each position (the last but one axis) to each; rows sum to 1.

    Returns:
        A name of `MEASURES` -> [.. n-1].
    """
    rows, n = pattern[..., 1:, :], pattern.shape[-1]
    at = np.arange(1, n)
    away = np.abs(at[:, None] - np.arange(n)).astype(pattern.dtype)
    return {
        "previous": rows[..., at - 1, at - 1],
        "self": rows[..., at - 1, at],
        "first": rows[..., 0],
        "spread": _entropy(rows),
        "distance": (rows * away).sum(-1),
    }


def even_pattern(n: int) -> np.ndarray:
    """float64 [n n]: of a head that attends to all positions before, and to its own, alike.

    Args:
        n: Positions.
    """
    return np.tri(n) / np.arange(1, n + 1)[:, None]


def _entropy(rows: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.nan_to_num(rows * np.log(rows)).sum(-1)


__all__ = ["MEASURES", "even_pattern", "row_measures"]
