"""What the reconstruction costs the subject, beside zero ablation and by what it foretells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from saelab.analysis.scores.registry import Score, Spliced, register
from saelab.capabilities import HasLoss, HasTargets


@register("loss_recovered_zero")
class LossRecoveredZero(Score):
    """(loss zeroed - loss) / (loss zeroed - loss clean): 1 is the subject itself, 0 is what zeros in place of
    the rows give.

    SAELens' ce_loss_score and dictionary_learning's frac_recovered, but that both zero BOS and padding too,
    and dictionary_learning reconstructs them. Zeros often cost more than the mean (`loss_recovered`), and
    flatter then.
    """

    needs = HasLoss

    def of_samples(self, spliced: Spliced) -> Mapping[str, np.ndarray]:
        return {"loss": spliced.loss, "clean": spliced.clean, "zeroed": spliced.zeroed}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return (sums["zeroed"] - sums["loss"]) / (sums["zeroed"] - sums["clean"])


@register("kl")
class KL(Score):
    """KL(subject || subject with the reconstruction) of what is foretold, mean over targets, in nats.

    SAELens' kl_div_with_sae, but that theirs takes in the last position, after which nothing comes.
    """

    needs = HasTargets

    def of_samples(self, spliced: Spliced) -> Mapping[str, np.ndarray]:
        return {} if spliced.kl is None else {"kl": spliced.kl, "n": spliced.n}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return sums["kl"] / sums["n"]


@register("kl_recovered_zero")
class KLRecoveredZero(Score):
    """1 - KL / KL with zeros in place of the rows: SAELens' kl_div_score, with the differences of `kl`."""

    needs = HasTargets

    def of_samples(self, spliced: Spliced) -> Mapping[str, np.ndarray]:
        if spliced.kl is None or spliced.kl_zeroed is None:
            return {}
        return {"kl": spliced.kl, "zeroed": spliced.kl_zeroed}

    def value(self, sums: Mapping[str, Any]) -> Any:
        return 1 - sums["kl"] / sums["zeroed"]
