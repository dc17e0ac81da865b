"""How much of a graph's logits comes through each node, and how much of it errors leave unexplained.

Formulae of circuit-tracer (Hanna & Piotrowski 2025) after Ameisen et al. 2025, "Circuit Tracing".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from saelab.analysis.controls import Sums
from saelab.types import ConfigError


def shares_of(adjacency: np.ndarray) -> np.ndarray:
    """float64: |weights|, of each target as shares of their sum; zeros where there are none.

    Args:
        adjacency: [targets sources].
    """
    size = np.abs(adjacency.astype(np.float64))
    return size / np.maximum(size.sum(1, keepdims=True), 1e-300)


def influence_of(shares: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64 [nodes]: weights (A + A^2 + ...), which ends since a node is made of what comes before it.

    Args:
        shares: A, [nodes nodes].
        weights: [nodes], of what is explained.

    Raises:
        ConfigError: A node leads back to itself.
    """
    found, now = np.zeros(len(weights)), weights
    for _ in range(len(weights) + 1):
        now = now @ shares
        if not now.any():
            return found
        found = found + now
    message = (
        "A node must be made of what comes before it. Got a graph in which a node leads back to itself. Pass "
        "one without circles."
    )
    raise ConfigError(message)


def cumulative_of(influence: np.ndarray) -> np.ndarray:
    """float64 [nodes]: the share of the sum that each has together with all that have more.

    Args:
        influence: [nodes].
    """
    order = np.argsort(-influence, kind="stable")
    found = np.empty(len(order))
    found[order] = np.cumsum(influence[order]) / max(influence.sum(), 1e-300)
    return found


def threshold_of(scores: np.ndarray, share: float) -> float:
    """The least score of the fewest that make up a share of the sum.

    Args:
        scores: [n], >= 0.
        share: From 0 to 1.
    """
    ordered = np.sort(scores)[::-1]
    total = np.cumsum(ordered)
    if not len(ordered) or not total[-1] > 0:
        return 0.0
    return float(ordered[min(int(np.searchsorted(total / total[-1], share)), len(ordered) - 1)])


def sums_of(
    adjacency: np.ndarray, weights: np.ndarray, embedding: np.ndarray, error: np.ndarray, position: np.ndarray
) -> Sums:
    """What the two scores of a graph are computed of, for each position of the text apart.

    Args:
        adjacency: [nodes nodes].
        weights: [nodes], of the logits.
        embedding: bool [nodes].
        error: bool [nodes]: errors, and whatever else is not followed further.
        position: int [nodes].
    """
    shares = shares_of(adjacency)
    influence = influence_of(shares, weights)
    through = influence + weights
    known = 1 - shares[:, error].sum(1)
    sums = Sums()
    sums.add(
        position,
        tokens=influence * embedding,
        errors=influence * error,
        known=through * known,
        through=through,
    )
    return sums


def replacement(of: Mapping[str, Any]) -> Any:
    """The share of the influence on the logits that ends in embeddings rather than in errors.

    Args:
        of: Sums by name.
    """
    return of["tokens"] / (of["tokens"] + of["errors"])


def completeness(of: Mapping[str, Any]) -> Any:
    """The share of what goes into a node that comes from no error, by the influence of nodes. Those that
    nothing leads to count as known, as in circuit-tracer.

    Args:
        of: Sums by name.
    """
    return of["known"] / of["through"]


__all__ = [
    "completeness", "cumulative_of", "influence_of", "replacement", "shares_of", "sums_of", "threshold_of",
]  # fmt: skip
