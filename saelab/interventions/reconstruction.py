"""Replacing activations wholesale, by an SAE's reconstruction or by a constant: the edits of evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from saelab.interventions.by_sae import SAEEdit
from saelab.interventions.gates import Rows
from saelab.interventions.registry import AtOnePlace, counted, register
from saelab.types import Context, ShapeError


@register("reconstruct")
@dataclass(frozen=True, eq=False)
class Reconstruct(SAEEdit):
    """x' = decode(encode(x)): pure reconstruction, the error of the SAE is dropped. A transcoder puts what it
    makes of its input at its target.

    Attributes:
        sae: The SAE.
        hook: Where it works, if not where the SAE says; not with a transcoder.
    """

    def rows(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        return self.sae(x).x_hat


@register("replace")
@dataclass(frozen=True, eq=False)
class Replace(AtOnePlace):
    """x' = values: activations that were computed elsewhere, of the batch that comes.

    Attributes:
        hook: Where.
        values: [samples positions width]. Those of positions that do not count are not used.
    """

    values: Tensor

    def __call__(self, acts: Tensor, context: Context) -> Tensor:
        if acts.shape != self.values.shape:
            message = (
                f"Values must be of the shape of the activations, {tuple(acts.shape)}. Got "
                f"{tuple(self.values.shape)}. Read and replace the same batch."
            )
            raise ShapeError(message)
        here = counted(acts, context)
        acts[here] = self.values.to(acts)[here]
        return acts


@register("mean_ablate")
@dataclass(frozen=True, eq=False)
class MeanAblate(AtOnePlace):
    """x' = mean: everything that the hook point says about this input is removed.

    Attributes:
        hook: Where.
        mean: [width].
    """

    mean: Tensor

    def __call__(self, acts: Tensor, context: Context) -> Tensor:
        if self.mean.shape != acts.shape[-1:]:
            message = (
                f"The mean must be of the width of the activations, ({acts.shape[-1]},). Got "
                f"{tuple(self.mean.shape)}. Take it over the rows of this hook point."
            )
            raise ShapeError(message)
        acts[counted(acts, context)] = self.mean.to(acts)
        return acts


__all__ = ["MeanAblate", "Reconstruct", "Replace"]
