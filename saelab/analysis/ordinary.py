"""Rows of usual length, apart from attention sinks and massive activations, one of which weighs as much as
thousands of others in a mean square."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saelab.harvesting.outliers import FIRST_ROWS, lengths

if TYPE_CHECKING:
    from torch import Tensor


OUTLIER = 10.0
"""Rows longer than this multiple of the median are outliers, as `max_norm=10` leaves them out."""


@dataclass(frozen=True)
class Ordinary:
    """What rows of usual length are."""

    limit: float
    """the norm that they have at most: OUTLIER times the median of the first 4,096 rows"""
    mean: Tensor
    """float64 [d_out]: of them"""

    def rows(self, y: Tensor) -> Tensor:
        """bool [rows]: which are."""
        return lengths(y) <= self.limit


class FirstLook:
    """Sums over rows that come block by block, from which follows what is usual."""

    def __init__(self) -> None:
        self._held: list[Tensor] = []
        self._total: Tensor | None = None
        self._limit: float | None = None
        self._n = 0

    def add(self, y: Tensor) -> None:
        """Count rows [n d_out]."""
        if self._limit is None:
            self._held.append(y)
            if sum(map(len, self._held)) < FIRST_ROWS:
                return
            self._decide()
        else:
            self._count(y)

    def ordinary(self) -> Ordinary:
        """What is usual of all rows that were counted, at least one."""
        if self._limit is None:
            self._decide()
        assert self._limit is not None
        assert self._total is not None
        return Ordinary(self._limit, self._total / max(self._n, 1))

    def _decide(self) -> None:
        import torch

        held, self._held = torch.cat(self._held), []
        median = float(lengths(held[:FIRST_ROWS]).median())
        self._limit = OUTLIER * median if median > 0 else math.inf
        self._count(held)

    def _count(self, y: Tensor) -> None:
        assert self._limit is not None
        usual = y[lengths(y) <= self._limit].double()
        summed = usual.sum(0)
        self._total = summed if self._total is None else self._total + summed
        self._n += len(usual)


__all__ = ["OUTLIER", "FirstLook", "Ordinary"]
