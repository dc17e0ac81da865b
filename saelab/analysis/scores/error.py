"""How large the error is, in the units of the activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.scores.registry import Score, Seen, register

if TYPE_CHECKING:
    from torch import Tensor


@register("mse")
class MSE(Score):
    """|y - x_hat|^2 / d_out, mean over rows: the squared error of an element, in squared raw units.

    SAELens' mse is that of a row, d_out times as large. Not to be compared between hook points, whose units
    differ; FVU is.
    """

    def of_rows(self, seen: Seen) -> Mapping[str, Tensor]:
        return {"error": seen.error / seen.y.shape[1], "rows": seen.rows}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return sums["error"] / sums["rows"]


@register("log2_mse")
class Log2MSE(MSE):
    """log2 of `mse`, as FAST (arXiv 2506.07691) reports it; compare it only with other log2 values."""

    def value(self, sums: Mapping[str, Any]) -> Any:
        return np.log2(super().value(sums))


@register("error_norm")
class ErrorNorm(Score):
    """|y - x_hat|, mean over rows, in raw units: dictionary_learning's l2_loss."""

    def of_rows(self, seen: Seen) -> Mapping[str, Tensor]:
        return {"norm": seen.error.sqrt(), "rows": seen.rows}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return sums["norm"] / sums["rows"]
