"""FVU, the fraction of variance unexplained: one definition for training, evaluation and tests.

    FVU = sum_i ||x_i - x_hat_i||^2 / sum_i ||x_i - mu||^2,    mu the mean of all rows

a ratio of sums about the global mean. It is 0 for a perfect reconstruction, 1 for predicting the mean.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from saelab import dist
from saelab.arguments import checked, floats
from saelab.types import ShapeError


class FVU:
    """Streaming FVU: `update` with batches of any size, `value` at any time. Sums are in float64, and the
    variance is merged about running means (Chan et al. 1979), so large means and many batches cost no
    precision."""

    def __init__(self) -> None:
        self.n = 0
        self.error = 0.0
        self._mean: Tensor | None = None
        self._deviation = 0.0

    def __repr__(self) -> str:
        return f"FVU({self.n:,} rows)"

    @checked(x=floats, x_hat=floats)
    def update(self, x: Float[Tensor, "*lead d_in"], x_hat: Float[Tensor, "*lead d_in"]) -> None:
        """Add rows.

        Args:
            x: Activations.
            x_hat: Their reconstruction.

        Raises:
            ShapeError: The shapes differ.
        """
        if x.shape != x_hat.shape:
            msg = (
                f"x and x_hat must have one shape. Got {tuple(x.shape)} and {tuple(x_hat.shape)}. Pass "
                f"the same rows."
            )
            raise ShapeError(msg)
        x = x.detach().reshape(-1, x.shape[-1]).double()
        if not len(x):
            return
        mean = x.mean(0)
        error = float((x - x_hat.detach().reshape(x.shape).double()).square().sum())
        self._add(len(x), error, mean, float((x - mean).square().sum()))

    def over_ranks(self) -> FVU:
        """That of the rows of all ranks."""
        mean = None if self._mean is None else self._mean.cpu()
        whole = FVU()
        for n, error, centre, deviation in dist.rows.everyone((self.n, self.error, mean, self._deviation)):
            if centre is not None:
                whole._add(n, error, centre, deviation)
        return whole

    def _add(self, n: int, error: float, mean: Tensor, deviation: float) -> None:
        self.error += error
        self._deviation += deviation
        if self._mean is None:
            self._mean = mean
        else:
            shift = mean - self._mean
            self._deviation += float(shift.square().sum()) * self.n * n / (self.n + n)
            self._mean = self._mean + shift * (n / (self.n + n))
        self.n += n

    @property
    def value(self) -> float:
        """The FVU of all rows so far; NaN before the first row; for rows that are all equal 0 if exact,
        else inf."""
        if not self.n:
            return float("nan")
        if self._deviation == 0:
            return 0.0 if self.error == 0 else float("inf")
        return self.error / self._deviation


def fvu(x: Float[Tensor, "*lead d_in"], x_hat: Float[Tensor, "*lead d_in"]) -> float:
    """FVU of one set of rows: their squared error over their squared distance from the mean.

    Args:
        x: Activations.
        x_hat: Their reconstruction.
    """
    stream = FVU()
    stream.update(x, x_hat)
    return stream.value


__all__ = ["FVU", "fvu"]
