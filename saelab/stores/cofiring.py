"""Which latents of two stores fire on the same rows, counted out of lists that are sorted.

The rows of each latent of ours lie on disk, and of each row the latents of theirs that fire on it, numbered
from the rarest on. A latent's list is what all its rows hold: sorted, it says how often each of theirs fires
with it. phi falls as their count grows, so of all that fire with a latent equally often the first is best.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from saelab.stores.protocol import Latents
from saelab.stores.summaries import first_of_each
from saelab.types import StoreError

BLOCK_PAIRS = 1 << 22
CHUNK_CODES = 1 << 22
WIDTH = 16
"""Latents of a line: a row takes as many lines as it needs, the last one filled up."""
MOST = (1 << 16) - 1
"""Latents that one file of lines may number: 16 bits are sorted several times as fast as 32."""
LAYERS = 8
"""Up to so many partners of each latent are looked for by leaving out what cannot be among them."""


class Side:
    """The latents of a store that take part, and their firings.

    Args:
        store: Whose.
        min_rows: Latents that fire on fewer rows, or on all, take no part.
    """

    def __init__(self, store: Latents, min_rows: int) -> None:
        self.store, self.n_rows, self.n_latents = store, store.n_rows, store.n_latents
        count = store.latents()["count"].to_numpy()
        self.latents = np.flatnonzero((count >= min_rows) & (count < store.n_rows))
        self.count = count[self.latents].astype(np.float64)

    def by_latent(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(place among `latents`, row) of firings sorted by both, a bounded number at a time."""
        total = np.r_[0, np.cumsum(self.count)]
        for low, high in blocks(self.count, CHUNK_CODES):
            if total[high] > total[low]:
                of = self.latents[low], self.latents[high - 1]
                sql = "select latent, row from codes_by_latent where latent between ? and ? and value != 0"
                yield self._asked(sql, *map(int, of))

    def by_row(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(number of rows, row counted from the first, place among `latents`) of one stretch of rows after
        the other, sorted by row."""
        rows = max(1, int(self.n_rows * min(1.0, CHUNK_CODES / max(self.count.sum(), 1))))
        for low in range(0, self.n_rows, rows):
            high = min(low + rows, self.n_rows)
            sql = "select latent, row from codes_by_row where row >= ? and row < ? and value != 0"
            place, row = self._asked(sql, low, high)
            yield high - low, row - low, place

    def _asked(self, sql: str, *values: int) -> tuple[np.ndarray, np.ndarray]:
        codes = self.store.query(sql, list(values), format="arrow")
        latent, row = codes["latent"].to_numpy(), codes["row"].to_numpy()
        number = np.full(self.n_latents, -1, np.int32)
        number[self.latents] = np.arange(len(self.latents), dtype=np.int32)
        place = number[latent]
        kept = place >= 0
        return (place, row) if kept.all() else (place[kept], row[kept])


class Firings:
    """The firings of both stores, on disk.

    Args:
        folder: Where files are written.
        mine: Whose latents are asked about.
        their: Where partners are.

    Raises:
        StoreError: There is no room for them.
    """

    def __init__(self, folder: str | Path, mine: Any, their: Any) -> None:
        self.mine, self.their, self._folder = mine, their, Path(folder)
        rare = np.argsort(their.count, kind="stable")
        self.partners, self.counts = their.latents[rare], their.count[rare]
        try:
            self.lines = self._write_lines(np.argsort(rare))
            fires = np.zeros(len(mine.latents), np.int64)
            with ExitStack() as stack:
                file = self._new(stack, "rows")
                for place, row in mine.by_latent():
                    fires += np.bincount(place, minlength=len(fires))
                    row.astype(np.uint32).tofile(file)
        except OSError as error:
            message = (
                f"Firings are laid on disk to be compared. Got: {error}. Free some space in {self._folder}."
            )
            raise StoreError(message) from error
        self.bounds = np.r_[0, np.cumsum(fires)]
        self.rows = self._mapped("rows", np.uint32)

    def of(self, low: int, high: int, shift: int) -> np.ndarray:
        """int64: rows of theirs on which latents low..high-1 of ours fire, shifted by so many."""
        row = self.rows[self.bounds[low] : self.bounds[high]].astype(np.int64) + shift
        row[row >= self.mine.n_rows] -= self.mine.n_rows
        return row

    def _write_lines(self, rank: np.ndarray) -> list[Lines]:
        firsts = range(0, len(rank), MOST)
        with ExitStack() as stack:
            files = [(self._new(stack, f"first-{i}"), self._new(stack, f"lines-{i}")) for i in firsts]
            written = [0] * len(files)
            for n, row, place in self.their.by_row():
                number = rank[place]
                for i, first in enumerate(firsts):
                    own = (number >= first) & (number < first + MOST)
                    at, some = row[own], number[own] - first
                    fire = np.bincount(at, minlength=n)
                    size = -(-fire // WIDTH)
                    start = np.cumsum(size) - size
                    lines = np.full((size.sum(), WIDTH), MOST, np.uint16)
                    nth = np.arange(len(at)) - np.repeat(np.cumsum(fire) - fire, fire)
                    lines.reshape(-1)[(start * WIDTH)[at] + nth] = some
                    (written[i] + start).tofile(files[i][0])
                    lines.tofile(files[i][1])
                    written[i] += len(lines)
            for (file, _), n in zip(files, written, strict=True):
                np.array([n]).tofile(file)
        return [
            Lines(
                i,
                self._mapped(f"first-{i}", np.int64),
                self._mapped(f"lines-{i}", np.uint16).reshape(-1, WIDTH),
            )
            for i in firsts
        ]

    def _new(self, stack: ExitStack, name: str) -> Any:
        return stack.enter_context((self._folder / name).open("wb"))

    def _mapped(self, name: str, kind: type) -> np.ndarray:
        path = self._folder / name
        # a plain array, since each of a hundred thousand slices of a memmap would be looked at as one
        return np.asarray(np.memmap(path, kind, "r")) if path.stat().st_size else np.zeros(0, kind)


class Lines:
    """Which latents of theirs fire on each row, as numbers from `low` on.

    Args:
        low: The first number.
        first: int64 [n_rows + 1], the first line of each row.
        table: uint16 [lines WIDTH], numbers less `low`, MOST where a line is not full.
    """

    def __init__(self, low: int, first: np.ndarray, table: np.ndarray) -> None:
        self.low, self._first, self._table = low, first, table

    def sizes(self, row: np.ndarray) -> np.ndarray:
        """int64: length of the list that each row gives."""
        return (self._first[row + 1] - self._first[row]) * WIDTH

    def lists(self, row: np.ndarray) -> np.ndarray:
        """uint16: the lists of these rows, one after the other."""
        first = self._first[row]
        n = self._first[row + 1] - first
        line = np.repeat(first - (np.cumsum(n) - n), n) + np.arange(n.sum())
        return np.take(self._table, line, axis=0).reshape(-1)


def best_cofiring(firings: Firings, n: int, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """The n partners of each latent with the largest phi, of equals the lower.

    phi = (N n_ij - n_i n_j) / sqrt(n_i (N - n_i) n_j (N - n_j)).

    Args:
        firings: Of both.
        n: How many.
        shift: By so many rows theirs are shifted.

    Returns:
        (partner int64 [n_latents n], phi float64 [n_latents n]), -1 and NaN where there is none.
    """
    mine, partners = firings.mine, firings.partners
    best = Best(mine.n_latents, n)
    if not len(partners):
        return best.found()
    for lines in firings.lines:
        for low, high, at, number, together in _lists(firings, lines, n, shift):
            number += lines.low
            score = _phi(together, mine.count[low:high][at], firings.counts[number], mine.n_rows)
            order, rank = first_of_each(np.lexsort((partners[number], -score, at)), at, n)
            partner, value = np.zeros((high - low, n), np.int64), np.full((high - low, n), -np.inf)
            partner[at[order], rank], value[at[order], rank] = partners[number[order]], score[order]
            best.add(mine.latents[low:high], partner, value)
    # where too few fire together, or less than by chance, those that never do come in between
    limit = _phi(0, mine.count, firings.counts[:1], mine.n_rows)
    for i in np.flatnonzero(best.score[mine.latents, -1] <= limit).tolist():
        row = firings.of(i, i + 1, shift)
        own = np.concatenate([_met(lines, row) for lines in firings.lines])
        apart = np.ones(len(partners), bool)
        apart[own] = False
        some = np.flatnonzero(apart[: n + len(own)])[:n]
        score = _phi(0, mine.count[i], firings.counts[some], mine.n_rows)
        best.add(mine.latents[[i]], partners[some][None], score[None])
    return best.found()


def _phi(together: np.ndarray | int, ours: np.ndarray, theirs: np.ndarray, total: int) -> np.ndarray:
    variance = ours * (total - ours) * theirs * (total - theirs)
    return np.clip((total * np.float64(together) - ours * theirs) / np.sqrt(variance), -1, 1)


def _lists(
    firings: Firings, lines: Lines, n: int, shift: int
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]]:
    """(low, high, latent counted from low, number in `lines`, rows on which both fire): among the latents of
    ours low..high-1 and all of theirs those pairs that may be among the best n."""
    fires = np.diff(firings.bounds)
    sizes = np.zeros(len(fires), np.int64)
    for low, high in blocks(fires, CHUNK_CODES):
        total = np.r_[0, np.cumsum(lines.sizes(firings.of(low, high, shift)))]
        sizes[low:high] = np.diff(total[firings.bounds[low : high + 1] - firings.bounds[low]])
    for low, high in blocks(sizes, BLOCK_PAIRS):
        row, bounds = firings.of(low, high, shift), np.r_[0, np.cumsum(sizes[low:high])]
        if bounds[-1] > BLOCK_PAIRS:  # one latent whose list is too long to be held
            met = _count(lines, row)
            number = np.flatnonzero(met > 1)
            at, together = np.zeros(len(number), np.int64), met[number]
            once = np.flatnonzero(met == 1)[:n]
            at_once = np.zeros(len(once), np.int64)
        else:
            at, number, together, at_once, once = _sorted(lines.lists(row), bounds, n)
        kept = _undominated(at, together, n)
        yield (
            low,
            high,
            np.r_[at[kept], at_once],
            np.r_[number[kept], once].astype(np.int64),
            np.r_[together[kept], np.ones(len(once), np.int64)],
        )


def _sorted(lists: np.ndarray, bounds: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
    """(list, number, how often) of all that is in a list more than once, and (list, number) of the first n
    that are in it once, both sorted. Sorts the lists lists[bounds[i]:bounds[i+1]] in place."""
    for start, stop in itertools.pairwise(bounds.tolist()):
        lists[start:stop].sort(kind="stable")
    new = np.empty(len(lists) + 1, bool)
    np.not_equal(lists[1:], lists[:-1], out=new[1:-1])
    new[bounds] = True
    first, last = np.flatnonzero(new[:-1] > new[1:]), np.flatnonzero(new[:-1] < new[1:])
    at = np.repeat(np.arange(len(bounds) - 1), np.diff(np.searchsorted(first, bounds)))
    number = lists[first]
    some = number < MOST
    once = np.flatnonzero(new[:-1] & new[1:])
    start = np.searchsorted(once, bounds)
    held = np.minimum(np.diff(start), n)
    at_once = np.repeat(np.arange(len(held)), held)
    once = lists[once[np.repeat(start[:-1] - (np.cumsum(held) - held), held) + np.arange(held.sum())]]
    real = once < MOST
    return at[some], number[some], (last - first + 1)[some], at_once[real], once[real]


def _undominated(at: np.ndarray, together: np.ndarray, n: int) -> np.ndarray:
    """Places of all pairs but those to which n of the same list are superior, being rarer and firing together
    as often at least. The pairs are sorted by list, then from the rarest on."""
    left = np.arange(len(at))
    if n > LAYERS:
        return left
    kept = []
    key = (at << 32) | together
    for _ in range(n):
        first = np.ones(len(key), bool)
        np.greater(key[1:], np.maximum.accumulate(key)[:-1], out=first[1:])
        kept.append(left[first])
        left, key = left[~first], key[~first]
    return np.concatenate(kept)


def _count(lines: Lines, row: np.ndarray) -> np.ndarray:
    """int64 [MOST]: on how many of the rows each latent of theirs fires."""
    found = np.zeros(MOST + 1, np.int64)
    for low, high in blocks(lines.sizes(row), BLOCK_PAIRS):
        found += np.bincount(lines.lists(row[low:high]), minlength=MOST + 1)
    return found[:MOST]


def _met(lines: Lines, row: np.ndarray) -> np.ndarray:
    """int64: numbers of all that fire on any of the rows."""
    found = [np.zeros(0, np.uint16)]
    for low, high in blocks(lines.sizes(row), BLOCK_PAIRS):
        found.append(np.unique(lines.lists(row[low:high])))
    number = np.unique(np.concatenate(found))
    return number[number < MOST].astype(np.int64) + lines.low


def blocks(sizes: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Neighbours whose sizes are together at most so large, or one alone.

    Args:
        sizes: Of each.
        most: How large.

    Yields:
        (low, high).
    """
    total, low = np.r_[0, np.cumsum(sizes)], 0
    while low < len(sizes):
        high = max(int(np.searchsorted(total, total[low] + most, side="right")) - 1, low + 1)
        yield low, high
        low = high


class Best:
    """The n largest scores of each latent out of blocks of scores, of equals the lower partner.

    Args:
        n_latents: How many latents.
        n: How many scores of each.
    """

    def __init__(self, n_latents: int, n: int) -> None:
        self.partner = np.full((n_latents, n), -1, np.int64)
        self.score = np.full((n_latents, n), -np.inf)

    def add(self, at: np.ndarray, partner: np.ndarray, score: np.ndarray) -> None:
        """More partners [a m] of the latents `at` [a] and their scores [a m], -inf of none."""
        score = np.concatenate([self.score[at], score], 1)
        partner = np.concatenate([self.partner[at], partner], 1)
        order = np.lexsort((partner, -score), axis=1)[:, : self.partner.shape[1]]
        self.score[at] = np.take_along_axis(score, order, 1)
        self.partner[at] = np.take_along_axis(partner, order, 1)

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """(partner, score), -1 and NaN where there was none."""
        none = ~np.isfinite(self.score)
        return np.where(none, -1, self.partner), np.where(none, np.nan, self.score)
