"""Detect and replace: what a concept has touched gives way to natural activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from saelab.arguments import floats
from saelab.interventions.by_sae import OfConcept
from saelab.interventions.gates import Gate, Rows
from saelab.interventions.registry import register
from saelab.types import NonFiniteError, ShapeError


@register("substitute")
@dataclass(frozen=True, eq=False)
class Substitute(OfConcept):
    """Where a concept shows, the activation becomes the natural one that is nearest to what is left without
    the concept:

        x' = argmin over n in natural of ||n - (x - sum_j z_j d_j)||    where ||sum_j z_j d_j|| > threshold.

    Edited activations are then activations that the model has had, which scaled ones need not be. (SAEs find
    a concept well, but latents turned down leave the distribution: "Look but don't touch", arXiv 2606.31699.)

    Attributes:
        sae: The SAE.
        latents: Those of the concept.
        natural: [n, width] activations at the place that is written, of inputs without the concept.
        gate: "token": the positions where the concept shows; "input": all of an input whose mean exceeds the
            threshold.
        threshold: What the concept must exceed.
        probe: What the gate looks at, as `saelab.analysis.calibrate_gate` fits it; None: ||sum_j z_j d_j||.
        hook: Where it works, if not where the SAE says; not with a transcoder.

    Raises:
        ConfigError: An option is none of these, or the threshold is missing.
        RangeError: A latent is none of the SAE's.
        ShapeError: natural is no matrix of rows as wide as what is written.
        NonFiniteError: natural holds NaN or infinity.
    """

    VERSION: ClassVar[int] = 2
    MIGRATIONS: ClassVar[dict] = {1: dict}

    latents: tuple[int, ...]
    natural: Tensor
    gate: Gate = "token"
    threshold: float | None = None
    probe: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        natural = floats("natural", self.natural)
        if natural.ndim != 2 or not len(natural) or natural.shape[1] != self.sae.d_out:
            message = (
                f"natural must be rows [n, {self.sae.d_out}] of activations. Got {list(natural.shape)}. Read "
                "them at the hook point that is written."
            )
            raise ShapeError(message)
        if not natural.isfinite().all():
            message = "natural must be finite. Got NaN or infinity in it. Drop these rows."
            raise NonFiniteError(message)
        object.__setattr__(self, "natural", natural.detach())

    def rows(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        z = self.sae.encode_some(x, self.touched)
        flagged = self.open(z, x, rows)[:, 0]
        if not flagged.any():
            return y
        natural = self.natural.to(self.sae.device, self.sae.dtype)
        left = y[flagged].to(natural) - self.decoded(z[flagged], x[flagged])
        new = y.clone()
        new[flagged] = natural[torch.cdist(left, natural).argmin(1)].to(y)
        return new


__all__ = ["Substitute"]
