"""What a feature store keeps of each latent, from codes sorted by (latent, row). Plain arrays in and out.

Throughout, a code is (fired, row, value): `fired` int [c] is the latent counted from the first of the block,
ascending, and `row` int64 [c] ascends within a latent. There are n latents in the block.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BINS = 40
STRATA = 5
TOP_TOKENS = 3
GAMMA = 0x9E3779B97F4A7C15


class Statistics(NamedTuple):
    """Of each latent of a block; zeros (edges 0..1) where one never fires."""

    count: np.ndarray
    """int64 [n]"""
    mean: np.ndarray
    """float64 [n], over firings"""
    min: np.ndarray
    """float32 [n]"""
    max: np.ndarray
    """float32 [n]"""
    negative: np.ndarray
    """int64 [n]: of the count, how many are < 0"""
    mean_abs: np.ndarray
    """float64 [n], of |value| over firings"""
    histogram: np.ndarray
    """int64 [n BINS]: np.histogram(values, edges)"""
    edges: np.ndarray
    """float64 [n BINS+1]: equal steps, see `_edges`"""


def statistics(fired: np.ndarray, value: np.ndarray, n: int) -> Statistics:
    """Count, mean, range and histogram of each latent's values."""
    count = np.bincount(fired, minlength=n)
    negative = np.bincount(fired[value < 0], minlength=n)
    wide = value.astype(np.float64)
    mean = np.bincount(fired, weights=wide, minlength=n) / np.maximum(count, 1)
    mean_abs = np.bincount(fired, weights=np.abs(wide), minlength=n) / np.maximum(count, 1)
    low, high = _range(fired, value, n)
    edges = _edges(low.astype(np.float64), high.astype(np.float64))
    left, right = edges[:, 0], edges[:, -1]
    place = (value - left[fired]) / (right - left)[fired] * BINS
    bins = np.clip(place.astype(np.int64), 0, BINS - 1)
    # rounding may put a value beside its bin: the edges decide, as in np.histogram
    bins -= value < edges[fired, bins]
    bins += (value >= edges[fired, bins + 1]) & (bins < BINS - 1)
    histogram = np.bincount(fired * np.int64(BINS) + bins, minlength=n * BINS).reshape(n, BINS)
    return Statistics(count, mean, low, high, negative, mean_abs, histogram, edges)


def _range(fired: np.ndarray, value: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(least, largest) value of each latent, float32 [n]; 0 where it never fires."""
    low, high = np.zeros(n, np.float32), np.zeros(n, np.float32)
    alive = np.flatnonzero(np.bincount(fired, minlength=n))
    starts = np.searchsorted(fired, alive)
    if len(starts):
        low[alive] = np.minimum.reduceat(value, starts)
        high[alive] = np.maximum.reduceat(value, starts)
    return low, high


def _edges(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """float64 [n BINS+1]: edges of the bins of latents whose values go from low to high, float64 [n].

    Equal steps from min(0, low) to max(0, high), 0..1 where both are 0. Where a latent has both signs, 0 is
    an edge, so that no bin mixes them: of the ways to share out the bins the one with the smallest step that
    reaches both low and high.
    """
    left = np.minimum(low, 0)
    right = np.where((low == 0) & (high == 0), 1.0, np.maximum(high, 0))
    edges = left[:, None] + (right - left)[:, None] * np.linspace(0, 1, BINS + 1)
    both = np.flatnonzero((low < 0) & (high > 0))
    below = np.arange(1, BINS)  # bins left of 0
    steps = np.maximum(-low[both, None] / below, high[both, None] / (BINS - below))
    best = steps.argmin(1)
    step = np.take_along_axis(steps, best[:, None], 1)
    edges[both] = step * (np.arange(BINS + 1) - below[best][:, None])
    # rounding must not leave the extreme values outside
    edges[:, 0], edges[:, -1] = np.minimum(edges[:, 0], left), np.maximum(edges[:, -1], right)
    return edges


def top_tokens(fired: np.ndarray, token: np.ndarray, names: list[str], n: int) -> list[list[str]]:
    """The tokens that each latent fires on most often, at most three; of equals, the first in `names`.

    token: int [c], index into `names` of each code's token.
    """
    pair, count = np.unique(fired.astype(np.int64) * len(names) + token, return_counts=True)
    latent, name = np.divmod(pair, max(len(names), 1))
    best, _ = first_of_each(np.lexsort((-count, latent)), latent, TOP_TOKENS)
    out: list[list[str]] = [[] for _ in range(n)]
    for at in best:
        out[latent[at]].append(names[name[at]])
    return out


def strongest(fired: np.ndarray, value: np.ndarray, n: int, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """(code number, rank) of the `keep` largest |value| of each latent, ties to the lower row."""
    strength = np.abs(value)
    bounds = np.searchsorted(fired, np.arange(n + 1))
    lengths = np.diff(bounds)
    # a full sort costs more than the whole model; most codes lie below what a latent's n-th largest is
    limit = np.zeros(n, np.float32)
    for j in np.flatnonzero(lengths > keep) if keep else ():
        at = lengths[j] - keep
        limit[j] = np.partition(strength[bounds[j] : bounds[j + 1]], at)[at]
    left = np.flatnonzero(strength >= limit[fired])
    order = left[np.lexsort((-strength[left], fired[left]))]
    return first_of_each(order, fired, keep)


def spread(
    fired: np.ndarray, row: np.ndarray, value: np.ndarray, keys: np.ndarray, keep: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(code number, rank, stratum) of `keep` firings of each latent from weak to strong, spread over its
    |value|s.

    The strata are five equal parts of [min |value|, max |value|]; each gives a fifth of `keep` (the strong
    ones the remainder), or all of its firings where it has fewer. The chosen are those with the smallest
    `draws`, which depend on seed, latent and row alone: any order of work chooses the same. Of equal |value|s
    the lower row comes first. keys: of each latent's draws, uint64 [n].
    """
    strength = np.abs(value)
    low, high = _range(fired, strength, len(keys))
    width = high.astype(np.float64) - low
    share = (strength - low.astype(np.float64)[fired]) / np.where(width > 0, width, 1)[fired]
    stratum = np.minimum((share * STRATA).astype(np.int64), STRATA - 1)
    stratum[width[fired] == 0] = STRATA - 1  # a single value is the top of its range
    group = fired * np.int64(STRATA) + stratum
    n_groups = len(width) * STRATA
    quota = np.tile(keep // STRATA + (np.arange(STRATA) >= STRATA - keep % STRATA), len(width))
    held = np.bincount(group, minlength=n_groups)

    draw = draws(keys[fired], row)
    # only so many low draws of a group are sorted that they almost surely hold its quota; where not, all are
    limit = (quota + 8 * np.sqrt(quota) + 16) / np.maximum(held, 1)
    near = draw <= limit[group]
    short = np.bincount(group[near], minlength=n_groups) < np.minimum(quota, held)
    left = np.flatnonzero(near | short[group])
    order = left[np.lexsort((draw[left], group[left]))]
    chosen, _ = first_of_each(order, group, quota)

    chosen = chosen[np.lexsort((row[chosen], strength[chosen], fired[chosen]))]
    chosen, rank = first_of_each(chosen, fired, len(chosen) + 1)
    return chosen, rank, stratum[chosen]


def latent_keys(seed: int, latent: np.ndarray) -> np.ndarray:
    """uint64 [n]: the seed of each latent's own stream of draws."""
    start = _mixed(np.array([seed % 2**64], dtype=np.uint64))
    return _mixed(_mixed(latent.astype(np.uint64) + np.uint64(1)) ^ start)


def draws(key: np.ndarray, row: np.ndarray) -> np.ndarray:
    """float64 [c] in [0, 1): number `row` of the SplitMix64 stream (Steele et al. 2014) of seed `key`."""
    state = key + (row.astype(np.uint64) + np.uint64(1)) * np.uint64(GAMMA)
    return (_mixed(state) >> np.uint64(11)) * 2.0**-53


def windows(
    first: np.ndarray, last: np.ndarray, row: np.ndarray, window: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first row of each window, offsets int32 [w + 1], rows of all windows one after the other).

    first, last: rows at which the document of each row of the store begins and ends; no window leaves it.
    """
    start = np.maximum(row - window[0], first[row])
    stop = np.minimum(row + window[1], last[row]) + 1
    offsets = np.r_[0, np.cumsum(stop - start)].astype(np.int32)
    rows = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], stop - start)
    return start, offsets, rows


def values_at(
    latent: np.ndarray, row: np.ndarray, value: np.ndarray, wanted_latent: np.ndarray, wanted_row: np.ndarray
) -> np.ndarray:
    """Values of codes sorted by (latent, row) at the wanted pairs, 0 where there is none."""
    # one number a pair; both fit, since a store of 2^31 latents or 2^32 rows would not fit a disk
    key = (latent.astype(np.int64) << 32) | row
    wanted = (wanted_latent.astype(np.int64) << 32) | wanted_row
    at = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
    return np.where(key[at] == wanted, value[at], np.float32(0))


def first_of_each(order: np.ndarray, group: np.ndarray, n: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of `order`, in which the members of a group are neighbours, the first n of each group and their ranks.

    group: of every code, not only of those in `order`. n: one number, or one a group.
    """
    of = group[order]
    starts = np.flatnonzero(np.r_[True, of[1:] != of[:-1]][: len(of)])
    rank = np.arange(len(of)) - np.repeat(starts, np.diff(np.r_[starts, len(of)]))
    kept = rank < (n[of] if isinstance(n, np.ndarray) else n)
    return order[kept], rank[kept]


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64; uint64 arithmetic wraps."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
