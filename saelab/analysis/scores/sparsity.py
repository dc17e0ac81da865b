"""How much codes weigh, and how many latents fire nearly always."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.scores.registry import Fired, Score, Seen, register

if TYPE_CHECKING:
    from torch import Tensor

OFTEN = 0.1


@register("l1")
class L1(Score):
    """sum of |code| of a row, mean, in units of the normalised input: the l1 of SAELens, the l1_loss of
    dictionary_learning. It depends on the lengths of decoder rows."""

    def of_rows(self, seen: Seen) -> Mapping[str, Tensor]:
        return {"size": seen.size, "rows": seen.rows}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return sums["size"] / sums["rows"]


@register("hoyer")
class Hoyer(Score):
    """(sqrt(d_sae) - |f|_1 / |f|_2) / (sqrt(d_sae) - 1), mean over rows where a latent is on: 1 where one
    alone is, 0 where all are equal (Hoyer 2004; `saelab.analysis.hoyer`). L0 says nothing of that."""

    def of_rows(self, seen: Seen) -> Mapping[str, Tensor]:
        some = seen.length > 0
        ratio = (seen.size / seen.length).where(some, 0.0)
        root = seen.d_sae**0.5
        share = (root - ratio) / (root - 1) if seen.d_sae > 1 else ratio
        return {"share": share.where(some, 0.0), "rows": some.long()}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return sums["share"] / sums["rows"]


@register("dense")
class Dense(Score):
    """Share of latents that fire on more than a tenth of the rows. The histogram behind it is
    `report.core.tables["densities"]`."""

    def of_latents(self, fired: Fired) -> Mapping[str, np.ndarray]:
        return {"often": fired.density > OFTEN, "latents": np.ones(len(fired.rows))}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return sums["often"] / sums["latents"]
