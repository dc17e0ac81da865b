"""What a feature store keeps of each latent, from codes sorted by (latent, row). Plain arrays in and out.

Throughout, a code is (fired, row, value): `fired` int [c] is the latent counted from the first of the block,
ascending, and `row` int64 [c] ascends within a latent. There are n latents in the block.

Whatever is kept can be put together from parts: a whole's statistics, strongest and spread examples follow
from those of its parts, in whatever way the rows were divided.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from saelab.seeds import GOLDEN, splitmix

BINS = 40
STRATA = 8
QUOTAS = 5
TOP_NAMES = 3


class Statistics(NamedTuple):
    """Figures of each latent of a block; zeros where one never fires."""

    count: np.ndarray
    """int64 [n]"""
    sum: np.ndarray
    """float64 [n], of the values"""
    sum_abs: np.ndarray
    """float64 [n], of |value|"""
    min: np.ndarray
    """float32 [n]"""
    max: np.ndarray
    """float32 [n]"""
    min_abs: np.ndarray
    """float32 [n], least |value|"""
    negative: np.ndarray
    """int64 [n]: of the count, how many are < 0"""
    histogram: np.ndarray
    """int64 [n BINS]: np.histogram(values, edges)"""

    @property
    def max_abs(self) -> np.ndarray:
        """float32 [n], largest |value|"""
        return np.maximum(self.max, -self.min)

    @property
    def edges(self) -> np.ndarray:
        """float64 [n BINS+1] of the histogram's bins, see `_grid`."""
        first, step = _histogram_grid(self.min, self.max)
        return (first[:, None] + np.arange(BINS + 1)) * step[:, None]


def statistics(fired: np.ndarray, value: np.ndarray, n: int) -> Statistics:
    """Count, sums, range and histogram of each latent's values."""
    wide, strength = value.astype(np.float64), np.abs(value)
    low, high = _range(fired, value, n)
    first, step = _histogram_grid(low, high)
    bins = np.floor(wide / step[fired]).astype(np.int64) - first[fired]
    return Statistics(
        count=np.bincount(fired, minlength=n),
        sum=np.bincount(fired, weights=wide, minlength=n),
        sum_abs=np.bincount(fired, weights=strength.astype(np.float64), minlength=n),
        min=low,
        max=high,
        min_abs=_range(fired, strength, n)[0],
        negative=np.bincount(fired[value < 0], minlength=n),
        histogram=np.bincount(fired * np.int64(BINS) + bins, minlength=n * BINS).reshape(n, BINS),
    )


def combined(parts: list[Statistics]) -> Statistics:
    """Statistics over the rows of all parts, from those of each."""
    n = len(parts[0].count)

    def extreme(name: str, best: np.ufunc, none: float) -> np.ndarray:
        each = [np.where(p.count > 0, getattr(p, name), np.float32(none)) for p in parts]
        return np.where(count > 0, best.reduce(each), np.float32(0))

    count = np.sum([p.count for p in parts], axis=0)
    low, high = extreme("min", np.minimum, np.inf), extreme("max", np.maximum, -np.inf)
    first, step = _histogram_grid(low, high)
    histogram = np.zeros(n * BINS, np.int64)
    for part in parts:
        was_first, was_step = _histogram_grid(part.min, part.max)
        latent, at = np.nonzero(part.histogram)
        # both steps are powers of two, the part's the smaller: its bins lie whole within the new ones
        times = (step[latent] / was_step[latent]).astype(np.int64)
        bins = (was_first[latent] + at) // times - first[latent]
        np.add.at(histogram, latent * BINS + bins, part.histogram[latent, at])
    return Statistics(
        count,
        np.sum([p.sum for p in parts], axis=0),
        np.sum([p.sum_abs for p in parts], axis=0),
        low,
        high,
        extreme("min_abs", np.minimum, np.inf),
        np.sum([p.negative for p in parts], axis=0),
        histogram.reshape(n, BINS),
    )


def _range(fired: np.ndarray, value: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(least, largest) value of each latent, float32 [n]; 0 where it never fires."""
    low, high = np.zeros(n, np.float32), np.zeros(n, np.float32)
    alive = np.flatnonzero(np.bincount(fired, minlength=n))
    starts = np.searchsorted(fired, alive)
    if len(starts):
        low[alive] = np.minimum.reduceat(value, starts)
        high[alive] = np.maximum.reduceat(value, starts)
    return low, high


def _histogram_grid(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The grid of histograms of values from low to high: it always reaches 0."""
    first, step = _grid(np.minimum(low, 0), np.maximum(high, 0), BINS)
    return first, step


def _grid(low: np.ndarray, high: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """(number of the first bin int64 [n], step float64 [n]) of bins [i * step, (i + 1) * step) that hold
    low..high, at most `bins` of them.

    The step is the smallest such power of two, but not below the resolution of float32 at the larger end.
    So a smaller range has the same step or one of which it is a multiple, and its bins lie whole within those
    of the larger: grids of parts go together without loss. More than `bins` / 2 of the bins are used, unless
    the values can hardly be told apart; a step is below (high - low) / (bins / 2 - 1).
    """
    low, high = low.astype(np.float64), high.astype(np.float64)
    most = np.maximum(np.abs(low), np.abs(high))
    _, exponent = np.frexp((high - low) / bins)
    _, finest = np.frexp(most)
    step = np.ldexp(1.0, np.maximum(exponent - 1, finest - 24))
    step[most == 0] = 1 / 32
    while True:
        first = np.floor(low / step)
        wide = np.floor(high / step) - first >= bins
        if not wide.any():
            return first.astype(np.int64), step
        step[wide] *= 2


class ShownCounts(NamedTuple):
    """How often each latent fires on rows that show each thing, sorted by latent, then most often first, then
    number."""

    latent: np.ndarray
    """int64 [p], counted from the first of the block"""
    shown: np.ndarray
    """int64 [p], number in the vocabulary"""
    count: np.ndarray
    """int64 [p], codes != 0"""
    negative: np.ndarray
    """int64 [p], of these < 0"""


def shown_counts(
    latent: np.ndarray, shown: np.ndarray, count: np.ndarray | None, negative: np.ndarray, n_shown: int
) -> ShownCounts:
    """Sums over equal (latent, shown). count: of each entry; None: each is one code."""
    pair = latent.astype(np.int64) * n_shown + shown
    order = np.argsort(pair, kind="stable")
    pair = pair[order]
    starts = np.flatnonzero(np.r_[True, pair[1:] != pair[:-1]][: len(pair)])
    total = np.diff(np.r_[starts, len(pair)]) if count is None else _sums(count[order], starts)
    below = _sums(negative[order], starts) if negative.any() else np.zeros(len(starts), np.int64)
    latent, shown = np.divmod(pair[starts], max(n_shown, 1))
    order = np.argsort((latent << 40) - total, kind="stable")
    return ShownCounts(latent[order], shown[order], total[order], below[order])


def _sums(x: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """int64: of the neighbours from each start to the next."""
    return np.add.reduceat(x, starts, dtype=np.int64) if len(starts) else np.zeros(0, np.int64)


def top_names(counts: ShownCounts, names: np.ndarray, n: int, negative: bool = False) -> list[list[str]]:
    """The names of what each latent is > 0 (or < 0) on most often, at most three; of equals the first."""
    often = counts.negative if negative else counts.count - counts.negative
    some = np.flatnonzero(often)
    if counts.negative.any():
        some = some[np.lexsort((counts.shown[some], -often[some], counts.latent[some]))]
    best, _ = first_of_each(some, counts.latent, TOP_NAMES)
    out: list[list[str]] = [[] for _ in range(n)]
    for at in best:
        out[counts.latent[at]].append(str(names[counts.shown[at]]))
    return out


def strongest(fired: np.ndarray, value: np.ndarray, n: int, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """(code number, rank) of the `keep` largest |value| of each latent, ties to the lower row."""
    return first_of_each(np.argsort(_keys(fired, ~_bits(np.abs(value))), kind="stable"), fired, keep)


def _keys(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """uint64: numbers that are sorted by high, then low, uint32. A stable sort of them is several times as
    fast as one by two arrays."""
    return (high.astype(np.uint64) << np.uint64(32)) | low


def _bits(strength: np.ndarray) -> np.ndarray:
    """uint32 in the order of float32 >= 0."""
    return strength.view(np.uint32)


def at_least(strength: np.ndarray, bounds: np.ndarray, keep: int, none: float = 0) -> np.ndarray:
    """The `keep` largest of each stretch strength[bounds[j]:bounds[j+1]] are not below this; `none` where it
    has no more, or keep is 0."""
    lengths = np.diff(bounds)
    limit = np.full(len(lengths), none, strength.dtype)
    if keep == 1:
        some = np.flatnonzero(lengths)
        largest = np.maximum.reduceat(strength, bounds[some]) if len(some) else limit[:0]
        limit[some] = np.where(lengths[some] > 1, largest, none)
        return limit
    for j in np.flatnonzero(lengths > keep) if keep else ():
        at = lengths[j] - keep
        own = strength[bounds[j] : bounds[j + 1]].copy()
        own.partition(at)
        limit[j] = own[at]
    return limit


def spread(
    fired: np.ndarray,
    row: np.ndarray,
    value: np.ndarray,
    draw: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    keep: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(code number, rank, stratum) of firings of each latent from weak to strong, spread over its |value|s.

    The strata are the bins of `_grid` over low..high, float32 [n], the range of a latent's |value|s: equal
    steps, at least 5 and at most 8 of them unless values can hardly be told apart. Each gives a fifth of
    `keep`, rounded up, or all of its firings where it has fewer: those with the smallest `draw`, of equals
    the lower row. draw: float64 [c], see `draws`.
    """
    strength = np.abs(value)
    first, step = _grid(low, high, STRATA)
    stratum = np.floor(strength / step[fired]).astype(np.int64) - first[fired]
    group = fired * np.int64(STRATA) + stratum
    n_groups = len(low) * STRATA
    quota = -(-keep // QUOTAS)
    held = np.bincount(group, minlength=n_groups)
    # only so many low draws of a group are sorted that they almost surely hold its quota; where not, all are
    limit = (quota + 8 * np.sqrt(quota) + 16) / np.maximum(held, 1)
    near = draw <= limit[group]
    short = np.bincount(group[near], minlength=n_groups) < np.minimum(quota, held)
    left = np.flatnonzero(near | short[group])
    chosen, _ = first_of_each(left[_by_draw(group[left], draw[left], n_groups)], group, quota)

    chosen = np.sort(chosen)
    chosen = chosen[np.argsort(_keys(fired[chosen], _bits(strength[chosen])), kind="stable")]
    chosen, rank = first_of_each(chosen, fired, len(chosen) + 1)
    return chosen, rank, stratum[chosen]


def _by_draw(group: np.ndarray, draw: np.ndarray, n_groups: int) -> np.ndarray:
    """The order by group, then draw, of equals the earlier."""
    bits = min(53, 64 - n_groups.bit_length())
    key = (group.astype(np.uint64) << np.uint64(bits)) | (draw * 2.0**bits).astype(np.uint64)
    order = np.argsort(key, kind="stable")
    key = key[order]
    if bits < 53 and (key[1:] == key[:-1]).any():  # draws that differ in what was left out
        return np.lexsort((draw, group))
    return order


def latent_keys(seed: int, latent: np.ndarray) -> np.ndarray:
    """uint64 [n]: of each latent's own draws."""
    return splitmix(splitmix(latent.astype(np.uint64) + np.uint64(1)) ^ row_draw_key(seed))


def row_draw_key(seed: int) -> np.uint64:
    """The key of the draws by which whole rows are sampled."""
    return splitmix(np.array([seed % 2**64], dtype=np.uint64))[0]


def row_keys(document: np.ndarray, position: np.ndarray, call: np.ndarray | int = 0) -> np.ndarray:
    """uint64 [c]: a row's own number, which follows from its document's id, its position and call alone.

    document: uint64 [c], hash of the document's id. position: int [c] in the document. call: int [c].
    """
    place = position.astype(np.uint64) + (np.asarray(call, np.uint64) << np.uint64(32))
    return splitmix(document + (place + np.uint64(1)) * np.uint64(GOLDEN))


def draws(key: np.ndarray | np.uint64, row_key: np.ndarray) -> np.ndarray:
    """float64 [c] in [0, 1): the output of SplitMix64 (Steele et al. 2014) for the state key + row_key."""
    return (splitmix(key + row_key) >> np.uint64(11)) * 2.0**-53


def stretches(start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(offsets int32 [w + 1], rows of all windows one after the other) of the windows start..stop-1."""
    offsets = np.r_[0, np.cumsum(stop - start)].astype(np.int32)
    return offsets, np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], stop - start)


def values_at(
    latent: np.ndarray, row: np.ndarray, value: np.ndarray, wanted_latent: np.ndarray, wanted_row: np.ndarray
) -> np.ndarray:
    """Values of codes sorted by (latent, row) at the wanted pairs, 0 where there is none."""
    # one number a pair; both fit, since a store of 2^31 latents or 2^32 rows would not fit a disk
    key = (latent.astype(np.int64) << 32) | row
    wanted = (wanted_latent.astype(np.int64) << 32) | wanted_row
    at = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
    return np.where(key[at] == wanted, value[at], np.float32(0))


def first_of_each(order: np.ndarray, group: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The first n of each group in `order`, where the members of a group are neighbours, and their ranks.

    group: of every code, not only of those in `order`.
    """
    of = group[order]
    starts = np.flatnonzero(np.r_[True, of[1:] != of[:-1]][: len(of)])
    rank = np.arange(len(of)) - np.repeat(starts, np.diff(np.r_[starts, len(of)]))
    kept = rank < n
    return order[kept], rank[kept]
