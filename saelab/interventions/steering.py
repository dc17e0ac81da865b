"""Steering: a direction is added to the activations."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from saelab.arguments import floats
from saelab.config import is_number
from saelab.interventions.by_sae import Gated, finite, latent_of, moved
from saelab.interventions.gates import Gate, Rows
from saelab.interventions.registry import AtOnePlace, counted, register
from saelab.types import ConfigError, Context, HookPoint, NonFiniteError, ShapeError, nearest, short

Size = Literal["unit", "max", "norm"]


@register("steer")
@dataclass(frozen=True, eq=False)
class Steer(Gated):
    """x' = x + alpha * s * d_k: the direction of one latent is added, wherever the gate is open. d_k is its
    row of W_dec in units of the activations (times the norm of the row, of an SAE that normalises rows), and

        s = 1                  scale="unit": alpha is added to the code
        s = peak               scale="max":  alpha is in units of the latent's largest activation
        s = ||x|| / ||d_k||    scale="norm": alpha is in units of the norm of the activation, here and now.

    With gate="constant" nothing is encoded. A transcoder's direction is added at its target. A crosscoder's
    is added at each of its hook points, which a constant gate alone allows.

    Attributes:
        sae: The SAE.
        latent: Which.
        alpha: 0 changes nothing, below 0 pushes away.
        scale: Its unit.
        gate: Where it acts: everywhere ("constant"), in the inputs in which the latent exceeds `threshold`
            anywhere ("input"), or at the positions where it does ("token").
        threshold: What its code must exceed in size; None with gate="constant".
        peak: The latent's largest activation, with scale="max": `store.latent(latent).max`.
        hook: Where it works, if not where the SAE says; not with a transcoder or a crosscoder.

    Raises:
        ConfigError: An option is none of these, or the threshold or the peak is missing.
        RangeError: The latent is none of the SAE's.
    """

    ACROSS: ClassVar[bool] = True

    latent: int
    alpha: float
    scale: Size = "unit"
    gate: Gate = "constant"
    threshold: float | None = None
    peak: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "latent", latent_of(self.sae, self.latent))
        object.__setattr__(self, "alpha", finite("alpha", self.alpha))
        if self.scale not in get_args(Size):
            message = (
                f"scale must be one of {', '.join(get_args(Size))}. Got {short(self.scale)}. "
                f"{nearest(str(self.scale), get_args(Size))}Pass one of these."
            )
            raise ConfigError(message)
        if (self.peak is None) == (self.scale == "max") or not (self.peak is None or is_number(self.peak)):
            message = (
                f"A peak must stand beside scale='max', and nowhere else. Got {short(self.peak)} with "
                f"scale={self.scale!r}. Pass peak=store.latent(latent).max with scale='max'."
            )
            raise ConfigError(message)
        if self.peak is not None:
            object.__setattr__(self, "peak", finite("peak", self.peak))
        if self.peak == 0 and self.alpha:
            message = (
                f"Latent {self.latent} has a largest activation of 0: it is dead, and steering by it in "
                "units of that changes nothing."
            )
            warnings.warn(message, stacklevel=3)
        if self.sae.config.widths and self.gate != "constant":
            message = (
                "An SAE of several hook points can steer with gate='constant' alone: what it encodes is "
                f"known at the last only. Got gate={self.gate!r}. Leave it out."
            )
            raise ConfigError(message)

    @property
    def touched(self) -> tuple[int, ...]:
        return (self.latent,)

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        return self.sae.writes if self._blind and self.hook is None else super().hooks

    @property
    def _blind(self) -> bool:
        """Whether it acts without a look at what the SAE reads."""
        return self.gate == "constant" and not self.sae.per_row

    def direction(self) -> Tensor:
        """d_k in units of the activations [d_out], but for the norm of a row of an SAE that normalises
        rows."""
        return (self.sae.W_dec[self.latent] * self.sae.out_scale).detach()

    def __call__(self, acts: Tensor, context: Context) -> Tensor:
        if not self._blind:
            return super().__call__(acts, context)
        direction = self.direction()
        if self.sae.config.widths:
            direction = direction.split(list(self.sae.config.widths_out))[self.hooks.index(context.hook)]
        return pushed(acts, self._push(direction, acts), context, "An SAE's direction")

    def rows(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        scale = self.sae.scale(x)
        delta = self._push(self.direction() if scale is None else self.direction() * scale.norm, y)
        if self.gate != "constant":
            z = self.sae.encode_some(x, self.touched)
            delta = torch.where(self.open(z, x, rows), delta, 0)
        return moved(y, delta)

    def _push(self, direction: Tensor, y: Tensor) -> Tensor:
        """alpha * s * d_k."""
        if self.scale != "norm":
            return direction * (self.alpha * (1.0 if self.peak is None else self.peak))
        norm = y.to(direction).norm(dim=-1, keepdim=True)
        length = direction.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(direction.dtype).tiny)
        return self.alpha * norm * (direction / length)


@register("add_direction")
@dataclass(frozen=True, eq=False)
class AddDirection(AtOnePlace):
    """x' = x + alpha * vector, everywhere: steering without an SAE, the baseline of steering with one.
    `saelab.interventions.mean_difference` and `probe_direction` find such vectors.

    Attributes:
        hook: Where.
        vector: [width].
        alpha: 0 changes nothing.

    Raises:
        ConfigError: alpha is not finite.
        ShapeError: The vector is no vector; in a pass, it has another width than the activations.
        NonFiniteError: The vector holds NaN or infinity.
    """

    vector: Tensor
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        vector = floats("vector", self.vector)
        if vector.ndim != 1:
            message = (
                f"The vector must be a tensor of floats, [width]. Got {vector.dtype} {list(vector.shape)}. "
                "Pass one direction."
            )
            raise ShapeError(message)
        if not vector.isfinite().all():
            message = f"The vector must be finite. Got {short(vector)}. Take NaN and infinity out of it."
            raise NonFiniteError(message)
        object.__setattr__(self, "vector", vector.detach())
        object.__setattr__(self, "alpha", finite("alpha", self.alpha))

    def __call__(self, acts: Tensor, context: Context) -> Tensor:
        return pushed(acts, self.vector * self.alpha, context, "The vector")


def pushed(acts: Tensor, delta: Tensor, context: Context, what: str) -> Tensor:
    """Activations with something added wherever they count.

    Args:
        acts: [samples, positions, width].
        delta: [width], or one for each position.
        context: What the edit is told.
        what: The delta is, for the message.

    Raises:
        ShapeError: It has another width.
    """
    if delta.shape[-1] != acts.shape[-1]:
        message = (
            f"{what} must be of the width of the activations at {context.hook.name!r}, {acts.shape[-1]}. Got "
            f"{delta.shape[-1]}. Take it from this hook point."
        )
        raise ShapeError(message)
    new = moved(acts, delta.to(acts.device))
    return new if context.counted is None else torch.where(counted(acts, context)[..., None], new, acts)


__all__ = ["AddDirection", "Steer", "pushed"]
