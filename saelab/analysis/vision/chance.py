"""What chance alone would give: p-values by permutation, and how many of those that are flagged are false."""

from __future__ import annotations

import numpy as np

from saelab.analysis.vision.codes import Energies

ENOUGH = 10
"""Draws as extreme as what was seen, after which a latent's p-value is settled."""
AT_ONCE = 500
ROUNDING = 1e-9


def permutation_p(
    first: Energies, second: Energies, *, paired: bool = False, draws: int = 20_000, seed: int = 0
) -> np.ndarray:
    """p-values of |mean of second - mean of first| in each column, two-sided, were rows of both exchangeable.

    Draws deal the rows anew to the two sides (or swap the sides of each pair), the same for all columns. A
    column is drawn for until 10 draws were as extreme, p = 10 / draws, or `draws` are done, p = (such + 1) /
    (draws + 1) (Besag and Clifford 1991): small p-values cost many draws, but few columns have them.

    Args:
        first: [n m].
        second: [n' m]; of pairs n' = n.
        paired: Whether row i of both belongs together.
        draws: At most.
        seed: Of the draws.

    Returns:
        float64 [m]; 1 where a column is all zeros.
    """
    from scipy.sparse import vstack

    table: Energies = second - first if paired else vstack([first, second])
    table = table.astype(np.float64).tocsc()
    n, m = table.shape
    n_second = second.shape[0]
    total = np.asarray(table.sum(0)).ravel()
    centre = np.zeros(m) if paired else total * n_second / n
    own = total if paired else np.asarray(second.astype(np.float64).sum(0)).ravel()
    size = np.asarray(abs(table).sum(0)).ravel()
    seen = np.abs(own - centre) - ROUNDING * size  # sums in another order differ by rounding
    p, such = np.ones(m), np.zeros(m, np.int64)
    left = np.flatnonzero(size > 0)
    rng, done = np.random.default_rng(seed), 0
    while len(left) and done < draws:
        weights = _dealt(rng, min(AT_ONCE, draws - done), n, n_second, paired)
        drawn = np.abs(np.asarray(table[:, left].T @ weights.T) - centre[left, None])
        counts = such[left, None] + np.cumsum(drawn >= seen[left, None], axis=1)
        settled = counts[:, -1] >= ENOUGH
        at = (counts >= ENOUGH).argmax(1)
        p[left[settled]] = ENOUGH / (done + at[settled] + 1)
        such[left] = counts[:, -1]
        left, done = left[~settled], done + weights.shape[0]
    p[left] = (such[left] + 1) / (done + 1)
    return p


def _dealt(rng: np.random.Generator, draws: int, n: int, n_second: int, paired: bool) -> np.ndarray:
    """float64 [draws n]: 1 or -1 for each pair; else 1 for the rows of the second side."""
    if paired:
        return rng.integers(0, 2, (draws, n)) * 2.0 - 1
    own = np.zeros(n)
    own[:n_second] = 1
    return rng.permuted(np.broadcast_to(own, (draws, n)), axis=1)


def false_discovery(p: np.ndarray) -> np.ndarray:
    """q-values: the least false-discovery rate at which each is flagged (Benjamini and Hochberg 1995), the
    smallest of p_(j) m / j over those that are no smaller.

    Args:
        p: float64 [m].

    Returns:
        float64 [m].
    """
    order = np.argsort(p, kind="stable")
    raised = p[order] * len(p) / np.arange(1, len(p) + 1)
    out = np.empty(len(p))
    out[order] = np.minimum.accumulate(raised[::-1])[::-1].clip(max=1)
    return out


__all__ = ["false_discovery", "permutation_p"]
