"""What is near a latent, each beside what chance gives: directions, neurons, latents that fire with it, and
those that fire instead of it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from saelab.analysis.results_near import Hint, Neuron, Relatives, Similar, Together
from saelab.arguments import a_store, an_integer, checked
from saelab.stores.compare import largest_cosine
from saelab.stores.directions import cosines, unit_blocks
from saelab.stores.labels import judged_labels
from saelab.types import StoreError

if TYPE_CHECKING:
    from saelab.stores import FeatureStore

SHARE = 0.99
"""What chance stays below with this probability is the yardstick beside each measure."""
TYPICAL = 64
"""Latents whose nearest neighbours say what is usual in an SAE."""
OTHERS = 200
"""Latents whose firings say how much two of them overlap by chance."""
DRAWS = 2_000
"""Random directions whose largest neurons are the control."""
TOP_NEURONS = 10
CANDIDATES = 20
"""Latents of the nearest directions that are looked at for hints."""


@checked(store=a_store, latent=an_integer(), n=an_integer(), seed=an_integer())
def relatives(store: FeatureStore, latent: int, n: int = 10, *, seed: int = 0) -> Relatives:
    """What is near a latent: directions, latents that fire with it or instead of it, neurons.

    A latent that fires on the same tokens as another of a near direction, but on fewer common rows than the
    tokens alone would give, is what splitting and absorption look like: one fires instead of the other. Of
    each token the rows are counted on which both would fire if neither knew of the other,
    sum over t of a_t b_t / v_t, of a_t and b_t firings on v_t rows that show it.

    Args:
        store: The SAE's store.
        latent: Its number.
        n: Of each kind, at most.
        seed: Of the latents that are drawn for controls.

    Raises:
        RangeError: The latent is out of range.
    """
    latent = store.latent(latent).latent
    reasons: list[str] = []
    try:
        near, chance, usual = _similar(store, latent, max(n, CANDIDATES), seed)
        neurons, aligned, aligned_chance = _neurons(store.directions[latent])
    except StoreError as error:  # older stores have no directions
        reasons.append(str(error))
        near, chance, usual = [], float("nan"), float("nan")
        neurons, aligned, aligned_chance = [], (np.nan, np.nan), (np.nan, np.nan)
    partners = store.partners(latent, n)
    together = [
        Together(int(p), int(c), float(c / lift), float(j))
        for p, c, j, lift in zip(*(partners[x] for x in ("partner", "count", "jaccard", "lift")), strict=True)
    ]
    hints, overlap = [], float("nan")
    if store.kept != "full":
        reasons.append(f"Latents that fire instead of it need all codes; this store has {store.kept}.")
    else:
        aligned_ones = [s for s in near if s.cosine > chance]
        hints, overlap = _hints(store, latent, aligned_ones, seed)
    return Relatives(
        latent,
        tuple(near[:n]),
        chance,
        usual,
        tuple(together),
        tuple(neurons),
        aligned,
        aligned_chance,
        tuple(hints[:n]),
        overlap,
        tuple(each[1:] for each in judged_labels(store, latent)),
        tuple(reasons),
    )


def _similar(store: FeatureStore, latent: int, n: int, seed: int) -> tuple[list[Similar], float, float]:
    """The nearest; what chance stays below; what is usual in this SAE."""
    directions = store.directions
    wanted = np.asarray(directions[latent], np.float32)
    if not wanted.any():
        return [], float("nan"), float("nan")
    wanted /= np.float32(np.linalg.norm(wanted))
    cosine = cosines(directions, wanted)
    cosine[latent] = -np.inf
    others = int(np.isfinite(cosine).sum())
    n = min(n, others)
    if n < 1:
        return [], float("nan"), float("nan")
    best = np.argpartition(-cosine, n - 1)[:n]
    best = best[np.lexsort((best, -cosine[best]))]
    near = [Similar(int(j), float(cosine[j])) for j in best]
    chance = float(largest_cosine(SHARE, others, len(wanted)))
    return near, chance, _usual(store, seed)


@functools.lru_cache(maxsize=8)
def _usual(store: FeatureStore, seed: int) -> float:
    """The median cosine of a latent's nearest, of some latents; it is worked out once of a store."""
    directions = store.directions
    drawn = np.random.default_rng(seed).permutation(len(directions))[:TYPICAL]
    some = np.asarray(directions[np.sort(drawn)], np.float32)
    at = np.sort(drawn)[some.any(1)]
    some = some[some.any(1)]
    some /= np.linalg.norm(some, axis=1, keepdims=True)
    best = np.full(len(at), -np.inf)
    for first, rows in unit_blocks(directions):
        cosine = rows @ some.T
        cosine[~rows.any(1)] = -np.inf
        own = np.flatnonzero((at >= first) & (at < first + len(rows)))
        cosine[at[own] - first, own] = -np.inf
        best = np.maximum(best, cosine.max(0, initial=-np.inf))
    best = best[np.isfinite(best)]
    return float(np.median(best)) if len(best) else float("nan")


def _neurons(row: np.ndarray) -> tuple[list[Neuron], tuple[float, float], tuple[float, float]]:
    """The largest of a direction, the share of its squared norm in them, and in those of random ones."""
    row = np.asarray(row, np.float64)
    norm = float(np.linalg.norm(row))
    if not norm:
        return [], (0.0, 0.0), _chance_shares(len(row))
    row = row / norm
    best = np.argsort(-np.abs(row), kind="stable")[:TOP_NEURONS]
    squares = row[best] ** 2
    own = float(squares[0]), float(squares.sum())
    return [Neuron(int(i), float(row[i])) for i in best], own, _chance_shares(len(row))


@functools.lru_cache(maxsize=16)
def _chance_shares(width: int) -> tuple[float, float]:
    """Shares of the squared norm in the largest neuron, and in the ten largest, of a random direction."""
    random = np.random.default_rng(0)
    largest, ten = [], []
    for first in range(0, DRAWS, 100):
        squares = random.standard_normal((min(100, DRAWS - first), width)) ** 2
        squares /= squares.sum(1, keepdims=True)
        k = min(TOP_NEURONS, width)
        top = -np.partition(-squares, k - 1, axis=1)[:, :k]
        largest.append(top.max(1))
        ten.append(top.sum(1))
    one, more = (float(np.quantile(np.concatenate(x), SHARE)) for x in (largest, ten))
    return one, more


def _hints(store: FeatureStore, latent: int, near: list[Similar], seed: int) -> tuple[list[Hint], float]:
    """Those of the near ones that fire on the same, most first; the overlap that chance stays below."""
    random = np.random.default_rng(seed)
    alive = np.flatnonzero(store.latents()["count"].to_numpy() > 0)
    known = {latent, *(s.latent for s in near)}
    alive = alive[~np.isin(alive, list(known))]
    drawn = random.choice(alive, min(OTHERS, len(alive)), replace=False)
    counts = _shown(store, [latent, *(s.latent for s in near), *drawn.tolist()])
    mine = counts.get(latent)
    if mine is None or not len(drawn):
        return [], float("nan")

    def overlap(other: int) -> float:
        shown, count = counts.get(other, mine_none)
        common, a, b = np.intersect1d(mine[0], shown, assume_unique=True, return_indices=True)
        if not len(common):
            return 0.0
        return float(np.minimum(mine[1][a] / mine[1].sum(), count[b] / count.sum()).sum())

    mine_none = np.zeros(0, np.int64), np.zeros(0, np.int64)
    limit = float(np.quantile([overlap(int(j)) for j in drawn], SHARE))
    alike = [(s, o) for s in near if (o := overlap(s.latent)) > limit]
    if not alike:
        return [], limit
    rows = store.codes(latent)[0]
    everywhere = _everywhere(store)
    out = []
    for s, o in alike:
        shown, count = counts[s.latent]
        common, a, b = np.intersect1d(mine[0], shown, assume_unique=True, return_indices=True)
        p, q = mine[1][a] / everywhere[common], count[b] / everywhere[common]
        expected = float((everywhere[common] * p * q).sum())
        # of two sets of a and b out of v rows the common ones are hypergeometric
        v = np.maximum(everywhere[common] - 1, 1)
        spread = float(np.sqrt((everywhere[common] ** 2 * p * q * (1 - p) * (1 - q) / v).sum()))
        both = len(np.intersect1d(rows, store.codes(s.latent)[0], assume_unique=True))
        out.append(Hint(s.latent, s.cosine, o, both, expected, spread))
    return sorted(out, key=lambda hint: (-hint.overlap, hint.latent)), limit


def _shown(store: FeatureStore, latents: list[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """latent -> (numbers of what it fires on, ascending, and how often)."""
    sql = (
        "select latent, shown, count from firings where latent in (select unnest(?::int[])) "
        "order by latent, shown"
    )
    table = store.query(sql, [latents], "arrow")
    latent, shown, count = (table.column(i).to_numpy() for i in range(3))
    found, starts = np.unique(latent, return_index=True)
    parts = zip(np.split(shown, starts[1:]), np.split(count, starts[1:]), strict=True)
    return dict(zip(found.tolist(), parts, strict=True)) if len(latent) else {}


def _everywhere(store: FeatureStore) -> np.ndarray:
    """int64: rows that show each thing."""
    return store.query("select count from vocabulary order by shown", format="arrow").column(0).to_numpy()


__all__ = ["relatives"]
