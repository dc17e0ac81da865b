"""Whether reconstructions point where activations do, and how long they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saelab.analysis.scores.registry import Score, Seen, register

if TYPE_CHECKING:
    from torch import Tensor


@register("cosine")
class Cosine(Score):
    """Cosine of x_hat with y, mean over rows: SAELens' and dictionary_learning's cossim. Rows of zeros count
    0; theirs are NaN."""

    def of_rows(self, seen: Seen) -> Mapping[str, Tensor]:
        y, x_hat = seen.lengths
        cosine = seen.product / (y * x_hat).clamp_min(1e-300)
        return {"cosine": cosine.where(y * x_hat > 0, 0.0), "rows": seen.rows}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return sums["cosine"] / sums["rows"]


@register("length_ratio")
class LengthRatio(Score):
    """sum |x_hat| / sum |y| over rows: below 1 where reconstructions are too short (shrinkage).

    In `l2_ratio`, that of SAELens and dictionary_learning, short rows count as much as long ones.
    """

    def of_rows(self, seen: Seen) -> Mapping[str, Tensor]:
        y, x_hat = seen.lengths
        return {"x_hat": x_hat, "y": y}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return sums["x_hat"] / sums["y"]


@register("l2_ratio")
class L2Ratio(Score):
    """|x_hat| / |y|, mean over rows: the l2_ratio of SAELens and dictionary_learning. Rows of zeros are left
    out; theirs are NaN or infinite."""

    def of_rows(self, seen: Seen) -> Mapping[str, Tensor]:
        y, x_hat = seen.lengths
        return {"ratio": (x_hat / y).where(y > 0, 0.0), "rows": (y > 0).long()}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return sums["ratio"] / sums["rows"]


@register("relative_bias")
class RelativeBias(Score):
    """sum |x_hat|^2 / sum y . x_hat over rows: 1 where no other factor of x_hat would be nearer to y, below
    where it is too short (Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 10).

    The relative_reconstruction_bias of SAELens and dictionary_learning; SAELens takes the mean over batches
    of each batch's own.
    """

    def of_rows(self, seen: Seen) -> Mapping[str, Tensor]:
        return {"squared": seen.lengths[1].square(), "product": seen.product}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return sums["squared"] / sums["product"]
