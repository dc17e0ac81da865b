"""Reconstruction, sparsity, and what the reconstruction costs the subject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.scores.registry import Score, Seen, Spliced, register
from saelab.capabilities import HasLoss

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.sae import SAE


@register("fvu")
class FVU(Score):
    """sum |y - x_hat|^2 / sum |y - mean y|^2 over all rows: 0 is perfect, 1 is what the mean gives."""

    def of_rows(self, seen: Seen) -> Mapping[str, Tensor]:
        y = seen.y.double()
        return {
            "error": (y - seen.x_hat.double()).square().sum(1),
            "deviation": (y - seen.mean.double()).square().sum(1),
        }

    def value(self, sums: Mapping[str, Any]) -> Any:
        exact = np.where(np.asarray(sums["error"]) == 0, 0.0, np.inf)
        return np.where(sums["deviation"] > 0, sums["error"] / sums["deviation"], exact)


@register("l0")
class L0(Score):
    """Latents != 0 on a row, mean."""

    def of_rows(self, seen: Seen) -> Mapping[str, Tensor]:
        on = (seen.codes != 0).sum(1)
        return {"on": on, "rows": on.new_ones(len(on))}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return sums["on"] / sums["rows"]


@register("dead")
class Dead(Score):
    """Share of latents that never fired on these rows."""

    def of_latents(self, fired: np.ndarray, sae: SAE) -> Mapping[str, np.ndarray]:
        return {"never": fired == 0, "latents": np.ones(len(fired))}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return sums["never"] / sums["latents"]


@register("loss")
class Loss(Score):
    """The subject's loss with the activations replaced by the reconstruction: of language models the
    next-token cross-entropy, in nats."""

    needs = HasLoss

    def of_samples(self, spliced: Spliced) -> Mapping[str, np.ndarray]:
        return {"loss": spliced.loss, "n": spliced.n}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return sums["loss"] / sums["n"]


@register("loss_recovered")
class LossRecovered(Score):
    """(loss ablated - loss) / (loss ablated - loss clean): 1 is the subject itself, 0 is mean ablation."""

    needs = HasLoss

    def of_samples(self, spliced: Spliced) -> Mapping[str, np.ndarray]:
        return {"loss": spliced.loss, "clean": spliced.clean, "ablated": spliced.ablated}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return (sums["ablated"] - sums["loss"]) / (sums["ablated"] - sums["clean"])
