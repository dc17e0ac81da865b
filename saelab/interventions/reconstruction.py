"""Replacing activations wholesale, by an SAE's reconstruction or by a constant: the edits of evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saelab.types import HookError, HookPoint, ShapeError

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.sae import SAE


@dataclass(frozen=True)
class Reconstruct:
    """x' = decode(encode(x)): pure reconstruction, the error of the SAE is dropped.

    keep_first: leave the first position of each sample as it is. SAEs are trained without the BOS position,
    whose norm is far out of range in most language models.
    """

    hook: HookPoint
    sae: SAE
    keep_first: bool = False

    def __call__(self, acts: Tensor, rows: Tensor | None = None) -> Tensor:
        if self.sae.config.d_out is not None:
            message = (
                "Reconstruct writes what it reads. Got a transcoder, whose output belongs elsewhere. "
                "Pass an autoencoder, or compute sae(x).x_hat and use Replace at its target."
            )
            raise HookError(message)
        x_hat = self.sae(acts).x_hat.to(acts.dtype)
        if self.keep_first:
            x_hat[:, 0] = acts[:, 0]
        return x_hat

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "reconstruct",
            "hook": self.hook.name,
            "sae": self.sae.fingerprint(),
            "keep_first": self.keep_first,
        }


@dataclass(frozen=True)
class Replace:
    """x' = values: activations that were computed elsewhere, of the batch that comes.

    values: [samples positions width].
    """

    hook: HookPoint
    values: Tensor

    def __call__(self, acts: Tensor, rows: Tensor | None = None) -> Tensor:
        if acts.shape != self.values.shape:
            message = (
                f"Values must be of the shape of the activations, {tuple(acts.shape)}. Got "
                f"{tuple(self.values.shape)}. Read and replace the same batch."
            )
            raise ShapeError(message)
        return self.values.to(acts)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "replace", "hook": self.hook.name, "values": self.values.tolist()}


@dataclass(frozen=True)
class MeanAblate:
    """x' = mean, a constant vector [d_in]: everything that the hook point says about this text is removed."""

    hook: HookPoint
    mean: Tensor
    keep_first: bool = False

    def __call__(self, acts: Tensor, rows: Tensor | None = None) -> Tensor:
        out = self.mean.to(acts).expand_as(acts).clone()
        if self.keep_first:
            out[:, 0] = acts[:, 0]
        return out

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "mean_ablate",
            "hook": self.hook.name,
            "mean": self.mean.tolist(),
            "keep_first": self.keep_first,
        }
