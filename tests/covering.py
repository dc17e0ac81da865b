"""Few rows of choices in which every two that can occur together do: a covering array of strength 2."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

Row = tuple[Any, ...]


def pairs(row: Row) -> set[tuple[int, Any, int, Any]]:
    """Every two of its choices: (factor, choice, other factor, choice)."""
    return {(i, a, j, b) for (i, a), (j, b) in itertools.combinations(enumerate(row), 2)}


def covering(factors: Sequence[Sequence[Any]], fits: Callable[[Row], bool]) -> list[Row]:
    """Rows of one choice per factor. Every two choices of two factors that are together in a row that `fits`
    are together in one of these. The same arguments give the same rows.

    Those of the first two factors are gone through, and each takes the rest that covers most; what is left
    over then takes rows of its own.
    """
    numbers: dict[tuple[int, Any, int, Any], int] = {}
    possible: dict[Row, list[tuple[int, Row]]] = {}
    for row in filter(fits, itertools.product(*factors)):
        covered = sum(1 << numbers.setdefault(pair, len(numbers)) for pair in pairs(row))
        possible.setdefault(row[:2], []).append((covered, row))
    made, missing = [], (1 << len(numbers)) - 1
    while missing:
        for rows in possible.values():
            covered, row = max(rows, key=lambda each: (each[0] & missing).bit_count())
            if covered & missing:
                made.append(row)
                missing &= ~covered
    return made
