"""Whether reconstructions point where activations do, and how long they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saelab.analysis.scores.registry import Score, Seen, register

if TYPE_CHECKING:
    from torch import Tensor


@register("cosine")
class Cosine(Score):
    """Cosine of x_hat with y, mean over rows; rows of zeros count 0."""

    def of_rows(self, seen: Seen) -> Mapping[str, Tensor]:
        y, x_hat = seen.y.double(), seen.x_hat.double()
        lengths = y.norm(dim=1) * x_hat.norm(dim=1)
        cosine = (y * x_hat).sum(1) / lengths.clamp_min(1e-300)
        return {"cosine": cosine.where(lengths > 0, 0.0), "rows": cosine.new_ones(len(cosine))}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return sums["cosine"] / sums["rows"]


@register("length_ratio")
class LengthRatio(Score):
    """sum |x_hat| / sum |y| over rows: below 1 where reconstructions are too short (shrinkage)."""

    def of_rows(self, seen: Seen) -> Mapping[str, Tensor]:
        return {"x_hat": seen.x_hat.double().norm(dim=1), "y": seen.y.double().norm(dim=1)}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return sums["x_hat"] / sums["y"]
