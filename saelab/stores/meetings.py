"""How often the latents of one SAE fire on the same rows as others, counted out of lists that are sorted.

Of each row the latents that fire on it lie in lines of numbers. A latent's list is what all its rows hold:
sorted, it says how often each of the others fires with it. Others are numbered from the rarest on: of all
that fire with a latent equally often, the first then have the most in common with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

BLOCK_PAIRS = 1 << 22
WIDTH = 16
"""Numbers of a line: a row takes as many lines as it needs, the last one filled up."""
MOST = (1 << 16) - 1
"""Others that lines may number: 16 bits are sorted several times as fast as 32."""


class Lines:
    """Which of the others fire on each row, as numbers from `low` on.

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


def lined(row: np.ndarray, number: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Firings in lines.

    Args:
        row: int [c], ascending from 0 on.
        number: int [c], below MOST.
        n: How many rows there are.

    Returns:
        (first line of each row int64 [n], lines uint16 [lines WIDTH]).
    """
    fires = np.bincount(row, minlength=n)
    sizes = -(-fires // WIDTH)
    first = np.cumsum(sizes) - sizes
    lines = np.full((sizes.sum(), WIDTH), MOST, np.uint16)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(fires) - fires, fires)
    lines.reshape(-1)[(first * WIDTH)[row] + nth] = number
    return first, lines


class Meetings(NamedTuple):
    """Which others some latents fire together with, and on how many rows."""

    low: int
    """the first of the latents"""
    high: int
    """the one after the last"""
    at: np.ndarray
    """int64 [p], ascending: the latent, counted from low, of what it fires with more than once"""
    number: np.ndarray
    """int64 [p], of the other; ascending for each latent"""
    together: np.ndarray
    """int64 [p]: on how many rows both fire"""
    at_once: np.ndarray
    """int64 [q], ascending: the latent of what it fires with once"""
    once: np.ndarray
    """int64 [q], of the other: the first n for each latent"""


def meetings(
    lines: Lines, fires: np.ndarray, rows: Callable[[int, int], np.ndarray], n: int
) -> Iterator[Meetings]:
    """What latents fire together with, so many latents at a time that their lists are bounded.

    Args:
        lines: Of the others.
        fires: int64 [latents], how many rows each latent has.
        rows: The rows of latents low..high-1, one latent's after the other's.
        n: So many others that it fires with once are told of each latent.

    Yields:
        Those of neighbouring latents.
    """
    sizes, bounds = np.zeros(len(fires), np.int64), np.r_[0, np.cumsum(fires)]
    for low, high in blocks(fires, BLOCK_PAIRS):
        total = np.r_[0, np.cumsum(lines.sizes(rows(low, high)))]
        sizes[low:high] = np.diff(total[bounds[low : high + 1] - bounds[low]])
    for low, high in blocks(sizes, BLOCK_PAIRS):
        row, ends = rows(low, high), np.r_[0, np.cumsum(sizes[low:high])]
        if ends[-1] > BLOCK_PAIRS:  # one latent whose list is too long to be held
            found = counted(lines, row)
            number, once = np.flatnonzero(found > 1), np.flatnonzero(found == 1)[:n]
            at, at_once = (np.zeros(len(x), np.int64) for x in (number, once))
            together = found[number]
        else:
            at, number, together, at_once, once = _sorted(lines.lists(row), ends, n)
        number, once = (x.astype(np.int64) + lines.low for x in (number, once))
        yield Meetings(low, high, at, number, together, at_once, once)


def counted(lines: Lines, row: np.ndarray) -> np.ndarray:
    """On how many rows each of the others fires.

    Args:
        lines: Of the others.
        row: int64, the rows.

    Returns:
        int64 [MOST].
    """
    found = np.zeros(MOST + 1, np.int64)
    for low, high in blocks(lines.sizes(row), BLOCK_PAIRS):
        found += np.bincount(lines.lists(row[low:high]), minlength=MOST + 1)
    return found[:MOST]


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
