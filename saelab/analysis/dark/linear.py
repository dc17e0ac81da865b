"""Least squares judged on rows that had no part in it: each fold's is fitted to the rows of all others.

Rows come in blocks and only sums are kept, so that any number of them fits into memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saelab.seeds import GOLDEN, mixed, splitmix
from saelab.types import CorpusError

if TYPE_CHECKING:
    from torch import Tensor

DEPENDENT = 1e-10
"""Share of the largest eigenvalue of the correlations below which a direction is a sum of the others."""


def fold_of(unit: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each row's document, int64 [n]: a corpus may repeat itself with a period, a hash does not.

    Args:
        unit: int64 [n], the document of each row.
        folds: How many.
        seed: Of the hash.
    """
    with np.errstate(over="ignore"):
        number = unit.astype(np.uint64) * np.uint64(GOLDEN) + np.uint64(mixed(seed))
    return (splitmix(number) % np.uint64(folds)).astype(np.int64)


@dataclass(frozen=True)
class Fit:
    """target ~ target_mean + (x - x_mean) @ weights."""

    weights: Tensor
    """float64 [d t]"""
    x_mean: Tensor
    target_mean: Tensor
    """float64 [t]: of the rows of the fit, which is what knowing nothing of x foretells"""

    def __call__(self, x: Tensor) -> Tensor:
        """float64 [n t] for x [n d]."""
        return self.target_mean + (x.double() - self.x_mean) @ self.weights


class Crossed:
    """Sums of rows by fold, from which the fits follow."""

    def __init__(self, folds: int) -> None:
        self._folds: list[_Moments | None] = [None] * folds
        self._origin: Tensor | None = None

    def add(self, fold: np.ndarray, x: Tensor, targets: Tensor) -> None:
        """Count rows.

        Args:
            fold: int64 [n].
            x: [n d].
            targets: [n t].
        """
        import torch

        x, targets = x.double(), targets.double()
        if self._origin is None:  # sums of squares about where the rows are lose no digits
            self._origin = x.mean(0)
        x = x - self._origin
        for k in np.unique(fold).tolist():
            at = torch.from_numpy(np.flatnonzero(fold == k))
            own = _Moments.of(x[at], targets[at])
            before = self._folds[k]
            self._folds[k] = own if before is None else before.plus(own)

    def fits(self) -> list[Fit]:
        """Each fold's, of the rows of all others.

        Raises:
            CorpusError: There are fewer than twice as many rows in a fit as it has unknowns.
        """
        whole = self._whole()
        least = min(whole.n - (each.n if each else 0) for each in self._folds)
        need = 2 * (len(whole.x) + 1)
        if least < need:
            documents = "Pass more rows, of several documents"
            message = (
                f"What is linear is fitted to rows of other documents, of which there must be {need} for "
                f"{len(whole.x)} dimensions. Got {least} of {whole.n}. {documents}."
            )
            raise CorpusError(message)
        return [(whole.minus(each) if each else whole).fit(self._origin) for each in self._folds]

    def fit(self) -> Fit:
        """That of all rows: for rows that are none of these."""
        return self._whole().fit(self._origin)

    def _whole(self) -> _Moments:
        there = [each for each in self._folds if each is not None]
        whole = there[0]
        for each in there[1:]:
            whole = whole.plus(each)
        return whole


@dataclass(frozen=True)
class _Moments:
    """Sums over rows, of x less an origin."""

    n: int
    x: Tensor
    t: Tensor
    xx: Tensor
    xt: Tensor

    @classmethod
    def of(cls, x: Tensor, t: Tensor) -> _Moments:
        return cls(len(x), x.sum(0), t.sum(0), x.t() @ x, x.t() @ t)

    def plus(self, other: _Moments) -> _Moments:
        return _Moments(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def minus(self, other: _Moments) -> _Moments:
        return _Moments(*(a - b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def fit(self, origin: Tensor | None) -> Fit:
        import torch

        x_mean, t_mean = self.x / self.n, self.t / self.n
        xx = self.xx / self.n - torch.outer(x_mean, x_mean)
        xt = self.xt / self.n - torch.outer(x_mean, t_mean)
        deviation = xx.diagonal().clamp_min(0).sqrt()
        one = torch.where(deviation > 0, 1 / deviation.clamp_min(1e-300), 0.0)
        values, vectors = torch.linalg.eigh(one[:, None] * xx * one)
        keep = values > DEPENDENT * values[-1]
        inverse = vectors[:, keep] / values[keep] @ vectors[:, keep].t()
        weights = one[:, None] * (inverse @ (one[:, None] * xt))
        return Fit(weights, x_mean if origin is None else x_mean + origin, t_mean)


__all__ = ["Crossed", "Fit", "fold_of"]
