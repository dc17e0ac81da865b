"""Making latents stronger, weaker or absent, everywhere or where they fire."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from saelab.config import integer
from saelab.interventions.by_sae import SAEEdit
from saelab.interventions.registry import register
from saelab.types import ConfigError, RangeError, nearest, short

Gate = Literal["constant", "input", "token"]


@register("scale")
@dataclass(frozen=True, eq=False)
class Scale(SAEEdit):
    """x' = x + decode(z') - decode(z), where some latents of z' are those of z times a factor. The error of
    the SAE stays, and a row whose codes do not change keeps every bit.

    Attributes:
        sae: The SAE.
        latents: Which.
        factor: 0 removes them, 1 leaves all as it is, -1 turns them round.
        gate: Where a latent is scaled: everywhere ("constant"), in the samples in which it exceeds
            `threshold` anywhere ("input"), or at the positions where it does ("token").
        threshold: What a code must exceed in size, in the units of codes; 0 with gate="constant".
        hook: Where it works, if not where the SAE says; not with a transcoder.

    Raises:
        ConfigError: An option is none of these.
        RangeError: A latent is none of the SAE's.
    """

    latents: tuple[int, ...]
    factor: float
    gate: Gate = "constant"
    threshold: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            latents, factor, threshold = tuple(self.latents), float(self.factor), float(self.threshold)
        except (TypeError, ValueError) as error:
            message = (
                f"latents must be a list, factor and threshold numbers. Got {short(self.latents)}, "
                f"{short(self.factor)} and {short(self.threshold)} ({error}). Pass e.g. [3], 0.0."
            )
            raise ConfigError(message) from None
        remedy, last = "Pass latents of this SAE.", self.sae.d_sae - 1
        latents = tuple(integer("A latent", j, 0, last, error=RangeError, remedy=remedy) for j in latents)
        if not latents or len(set(latents)) < len(latents):
            message = f"latents must name at least one, each once. Got {short(latents)}. Drop repeated ones."
            raise ConfigError(message)
        if not math.isfinite(factor):
            message = f"factor must be finite. Got {factor}. Pass e.g. 0 to remove the latents."
            raise ConfigError(message)
        if self.gate not in get_args(Gate):
            message = (
                f"gate must be one of {', '.join(get_args(Gate))}. Got {short(self.gate)}. "
                f"{nearest(str(self.gate), get_args(Gate))}Pass one of these."
            )
            raise ConfigError(message)
        if not 0 <= threshold < math.inf or (self.gate == "constant" and threshold):
            message = (
                f"threshold must be >= 0, and 0 with gate='constant'. Got {threshold} with "
                f"gate={self.gate!r}. Pass gate='token' to scale where a latent exceeds it."
            )
            raise ConfigError(message)
        for name, value in (("latents", latents), ("factor", factor), ("threshold", threshold)):
            object.__setattr__(self, name, value)

    def rows(self, x: Tensor, y: Tensor, sample: Tensor) -> Tensor:
        latents = list(self.latents)
        z = self.sae.encode(x)[:, latents]
        change = torch.where(self._open(z.detach(), sample), z * (self.factor - 1), 0)
        delta = change @ self.sae.W_dec[latents] * self.sae.out_scale
        scale = self.sae.scale(x)
        if scale is not None:
            delta = delta * scale.norm
        moved = (y.to(torch.promote_types(y.dtype, delta.dtype)) + delta).to(y.dtype)
        return torch.where((change != 0).any(-1, keepdim=True), moved, y)

    def _open(self, z: Tensor, sample: Tensor) -> Tensor:
        """bool [n latents]: where a latent is scaled."""
        if self.gate == "constant":
            return torch.ones_like(z, dtype=torch.bool)
        size = z.abs()
        if self.gate == "input":
            peak = size.new_zeros(int(sample[-1]) + 1, size.shape[1])
            size = peak.scatter_reduce(0, sample[:, None].expand_as(size), size, "amax")[sample]
        return size > self.threshold


__all__ = ["Scale"]
