"""Reconstruction, sparsity, and what the reconstruction costs the subject: the scores that stand first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.scores.registry import Fired, Score, Seen, Spliced, register
from saelab.capabilities import HasLoss

if TYPE_CHECKING:
    from torch import Tensor


@register("fvu")
class FVU(Score):
    """sum |y - x_hat|^2 / sum |y - mean y|^2 over all rows: 0 is perfect, 1 is what the mean gives.

    1 - FVU is SAELens' explained_variance. dictionary_learning's frac_variance_explained forgives a constant
    error: it is 1 - Var(y - x_hat) / Var(y), at least 1 - FVU.
    """

    def of_rows(self, seen: Seen) -> Mapping[str, Tensor]:
        return {"error": seen.error, "deviation": seen.deviation}

    def value(self, sums: Mapping[str, Any]) -> Any:
        exact = np.where(np.asarray(sums["error"]) == 0, 0.0, np.inf)
        return np.where(sums["deviation"] > 0, sums["error"] / sums["deviation"], exact)


@register("fvu_ordinary")
class OrdinaryFVU(FVU):
    """FVU over the rows whose norm is at most 10 times the median, about their own mean: without attention
    sinks and massive activations, one of which weighs as much as thousands of others in FVU. The table
    `outliers` says how many are left out, and how much of the error and of the variance is theirs.
    """

    def of_rows(self, seen: Seen) -> Mapping[str, Tensor]:
        return {"error": seen.error * seen.usual, "deviation": seen.usual_deviation * seen.usual}


@register("l0")
class L0(Score):
    """Latents != 0 on a row, mean; as SAELens and dictionary_learning have it."""

    def of_rows(self, seen: Seen) -> Mapping[str, Tensor]:
        return {"on": seen.on, "rows": seen.rows}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return sums["on"] / sums["rows"]


@register("dead")
class Dead(Score):
    """Share of latents that never fired on these rows: 1 - dictionary_learning's frac_alive."""

    def of_latents(self, fired: Fired) -> Mapping[str, np.ndarray]:
        return {"never": fired.rows == 0, "latents": np.ones(len(fired.rows))}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return sums["never"] / sums["latents"]


@register("loss")
class Loss(Score):
    """The subject's loss with the activations replaced by the reconstruction: of language models the
    next-token cross-entropy, in nats.

    It is SAELens' ce_loss_with_sae, but for the mean: theirs leaves out targets that follow a special token.
    dictionary_learning's loss_reconstructed replaces BOS and padding too, which are no rows here.
    """

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
