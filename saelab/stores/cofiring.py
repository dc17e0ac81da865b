"""Which latents of two stores fire on the same rows. The rows of each latent of ours lie on disk, and of each
row the latents of theirs that fire on it. phi falls as their count grows, so of all that fire with a latent
equally often the rarest is best: see `saelab.stores.meetings`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from saelab.stores import meetings
from saelab.stores.meetings import WIDTH, Lines, blocks, lined
from saelab.stores.protocol import Latents
from saelab.stores.summaries import first_of_each
from saelab.types import StoreError

CHUNK_CODES = 1 << 22
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
        firsts = range(0, len(rank), meetings.MOST)
        with ExitStack() as stack:
            files = [(self._new(stack, f"first-{i}"), self._new(stack, f"lines-{i}")) for i in firsts]
            written = [0] * len(files)
            for n, row, place in self.their.by_row():
                number = rank[place]
                for i, first in enumerate(firsts):
                    own = (number >= first) & (number < first + meetings.MOST)
                    at, some = row[own], number[own] - first
                    start, lines = lined(at, some, n)
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
        rows = functools.partial(firings.of, shift=shift)
        for met in meetings.meetings(lines, np.diff(firings.bounds), rows, n):
            kept = _undominated(met.at, met.together, n)
            at = np.r_[met.at[kept], met.at_once]
            number = np.r_[met.number[kept], met.once]
            together = np.r_[met.together[kept], np.ones(len(met.once), np.int64)]
            ours, size = mine.latents[met.low : met.high], met.high - met.low
            score = _phi(together, mine.count[met.low + at], firings.counts[number], mine.n_rows)
            order, rank = first_of_each(np.lexsort((partners[number], -score, at)), at, n)
            partner, value = np.zeros((size, n), np.int64), np.full((size, n), -np.inf)
            partner[at[order], rank], value[at[order], rank] = partners[number[order]], score[order]
            best.add(ours, partner, value)
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


def _met(lines: Lines, row: np.ndarray) -> np.ndarray:
    """int64: numbers of all that fire on any of the rows."""
    found = [np.zeros(0, np.uint16)]
    for low, high in blocks(lines.sizes(row), meetings.BLOCK_PAIRS):
        found.append(np.unique(lines.lists(row[low:high])))
    number = np.unique(np.concatenate(found))
    return number[number < meetings.MOST].astype(np.int64) + lines.low


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
