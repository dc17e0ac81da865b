"""How far activations lie from natural ones: norm, Mahalanobis distance, nearest neighbour."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 4096
"""Natural rows that neighbours are looked for among."""
BLOCK = 1024


@dataclass(frozen=True)
class Natural:
    """Natural activations of a hook point, as a yardstick."""

    rows: Tensor
    """float32 [m width], those that neighbours are looked for among"""
    mean: Tensor
    """float64 [width]"""
    whiten: Tensor
    """float64 [width width]: (x - mean) @ whiten has the covariance of the identity"""
    mahalanobis_of_others: float
    """mean Mahalanobis distance of natural rows that had no part in mean and covariance"""
    nearest_of_others: float
    """mean distance of these to the nearest of `rows`"""

    @classmethod
    def fit(cls, rows: Tensor, others: Tensor) -> Natural:
        """Mean, covariance and neighbours of some natural rows; others say what is usual.

        Args:
            rows: [n width].
            others: [m width], of other samples.
        """
        wide = rows.double().cpu()
        mean = wide.mean(0)
        values, vectors = torch.linalg.eigh(shrunk_covariance(wide))
        whiten = vectors * values.clamp_min(values.max() * 1e-12).rsqrt()
        step = -(-len(rows) // MOST)
        some = rows[::step].float().cpu()
        blank = cls(some, mean, whiten, 1.0, 1.0)
        usual = [float(each(others).mean()) for each in (blank.mahalanobis, blank.nearest)]
        return cls(some, mean, whiten, *usual)

    def mahalanobis(self, x: Tensor) -> Tensor:
        """float64 [n]: sqrt((x - mean)^T covariance^-1 (x - mean)) of rows [n width]."""
        return ((x.double().cpu() - self.mean) @ self.whiten).norm(dim=1)

    def nearest(self, x: Tensor) -> Tensor:
        """float64 [n]: Euclidean distance of rows [n width] to the nearest natural one."""
        found = [torch.cdist(part.float().cpu(), self.rows).amin(1) for part in x.split(BLOCK)]
        return torch.cat(found).double() if found else torch.zeros(0, dtype=torch.float64)

    def ratios(self, x: Tensor) -> dict[str, Tensor]:
        """Both distances in units of what is usual for natural rows, of rows [n width]."""
        return {
            "mahalanobis": self.mahalanobis(x) / self.mahalanobis_of_others,
            "nearest": self.nearest(x) / self.nearest_of_others,
        }


def shrunk_covariance(x: Tensor) -> Tensor:
    """The covariance of rows [n width], shrunk towards a multiple of the identity so that it can be inverted
    whatever n is (Ledoit and Wolf 2004)."""
    n, width = x.shape
    centred = x - x.mean(0)
    sample = centred.T @ centred / n
    size = sample.diagonal().mean()
    squares = centred.square()
    # mean squared distance of x x^T from the sample covariance, and of that from the identity
    noise = ((squares.T @ squares) / n - sample.square()).sum() / (n * width)
    apart = (sample - size * torch.eye(width, dtype=x.dtype)).square().sum() / width
    weight = float((noise / apart).clamp(0, 1)) if apart > 0 else 1.0
    return (1 - weight) * sample + weight * size * torch.eye(width, dtype=x.dtype)


__all__ = ["Natural", "shrunk_covariance"]
