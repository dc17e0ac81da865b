"""How far a picture of many vectors can be trusted: what becomes of their neighbours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from saelab.analysis.controls import CONFIDENCE, DRAWS

NEIGHBOURS = 10
SAMPLE = 1500
"""Latents among which ranks are compared, at most, and of which neighbours are looked for among all."""


class Share(NamedTuple):
    """A number between 0 and 1 with its bootstrap interval over latents, 95 %."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Faith(NamedTuple):
    """What a picture keeps of the neighbours in the whole space."""

    trustworthiness: Share
    """1 but for those near in the picture that are not in the space (Venna and Kaski 2001)"""
    continuity: Share
    """1 but for those near in the space that are not in the picture"""
    kept: Share
    """share of the `NEIGHBOURS` nearest of all latents that are so in the picture too"""


def faith(rows: np.ndarray, picture: np.ndarray, *, seed: int = 0) -> Faith:
    """Judge a picture, on a sample of the latents.

    Trustworthiness and continuity as scikit-learn defines them, among the sample; `kept` of the sample's
    latents among all.

    Args:
        rows: float32 [m width], unit vectors, m >= 3: nearness is their cosine.
        picture: float32 [m d], where they are drawn: nearness is the distance.
        seed: Of the sample and the intervals.
    """
    rng = np.random.default_rng(seed)
    m = len(rows)
    at = np.sort(rng.choice(m, min(m, SAMPLE), replace=False))
    k = max(1, min(NEIGHBOURS, (len(at) - 1) // 2))
    far = _distances(rows[at], rows[at], unit=True), _distances(picture[at], picture[at])
    for distances in far:
        np.fill_diagonal(distances, np.inf)  # none is a neighbour of its own
    orders = [np.argsort(distances, axis=1, kind="stable") for distances in far]
    ranks = [_ranks(order) for order in orders]
    values = [
        _intrusion(ranks[0], orders[1][:, :k], k),
        _intrusion(ranks[1], orders[0][:, :k], k),
        _kept(rows, picture, at, min(NEIGHBOURS, m - 1)),
    ]
    draws = rng.multinomial(len(at), np.full(len(at), 1 / len(at)), size=DRAWS) / len(at)
    tail = 50 * (1 - CONFIDENCE)

    def share(each: np.ndarray) -> Share:
        low, high = np.percentile(draws @ each, [tail, 100 - tail])
        return Share(float(each.mean()), float(low), float(high))

    return Faith(*map(share, values))


def _distances(a: np.ndarray, b: np.ndarray, unit: bool = False) -> np.ndarray:
    """[a b]: squared distances, or 1 - cosine of unit vectors, in float64."""
    product = a.astype(np.float64) @ b.astype(np.float64).T
    if unit:
        return 1 - product
    squares = [np.einsum("ij,ij->i", x, x, dtype=np.float64) for x in (a, b)]
    return np.maximum(squares[0][:, None] + squares[1] - 2 * product, 0)


def _ranks(order: np.ndarray) -> np.ndarray:
    """[n n]: the rank of j among those of i, the nearest is 1."""
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, order.shape[1] + 1)[None].repeat(len(order), 0), 1)
    return ranks


def _intrusion(ranks: np.ndarray, near: np.ndarray, k: int) -> np.ndarray:
    """[n], whose mean is 1 - 2 / (n k (2 n - 3 k - 1)) sum_i sum_j max(0, r(i, j) - k) over the k that are
    near i elsewhere."""
    n = len(ranks)
    past = np.maximum(np.take_along_axis(ranks, near, 1) - k, 0).sum(1)
    return 1 - past * (2.0 / (k * (2.0 * n - 3.0 * k - 1.0)))


def _kept(rows: np.ndarray, picture: np.ndarray, at: np.ndarray, k: int) -> np.ndarray:
    """[len(at)]: share of the k nearest among all that both have."""
    from sklearn.neighbors import NearestNeighbors

    found = []
    step = max(1, (1 << 24) // len(rows))
    tree = NearestNeighbors(n_neighbors=k + 1, algorithm="kd_tree").fit(picture)
    for low in range(0, len(at), step):
        some = at[low : low + step]
        cosine = rows[some] @ rows.T
        cosine[np.arange(len(some)), some] = -np.inf
        space = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        drawn = tree.kneighbors(picture[some], return_distance=False)
        for own, near, shown in zip(some, space, drawn, strict=True):
            # of points that lie on each other the latent itself need not be the first
            found.append(len(np.intersect1d(near, shown[shown != own][:k])) / k)
    return np.array(found)


__all__ = ["NEIGHBOURS", "Faith", "Share", "faith"]
