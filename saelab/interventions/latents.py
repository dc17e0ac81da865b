"""Making latents stronger, weaker, absent or others: edits of their codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from saelab.arguments import is_listed, one_of
from saelab.interventions.by_sae import CodeEdit, Gated, OfConcept, Several, finite, latent_of
from saelab.interventions.gates import Gate, Rows
from saelab.interventions.registry import register
from saelab.types import ConfigError, short


def _threshold_of_version_1(data: dict) -> dict:
    return {**data, "threshold": None if data.get("gate") == "constant" else data.get("threshold", 0.0)}


@register("scale")
@dataclass(frozen=True, eq=False)
class Scale(Gated, Several, CodeEdit):
    """x' = x + decode(z') - decode(z), where some latents of z' are those of z times a factor, each where its
    own gate is open. The error of the SAE stays, and a row whose codes do not change keeps every bit.

    Attributes:
        sae: The SAE.
        latents: Which.
        factor: 0 removes them, 1 leaves all as it is, -1 turns them round.
        gate: Where a latent is scaled: everywhere ("constant"), in the inputs in which it exceeds
            `threshold` anywhere ("input"), or at the positions where it does ("token").
        threshold: What a code must exceed in size, in the units of codes; None with gate="constant".
        hook: Where it works, if not where the SAE says; not with a transcoder.

    Raises:
        ConfigError: An option is none of these.
        RangeError: A latent is none of the SAE's.
    """

    VERSION: ClassVar[int] = 2
    MIGRATIONS: ClassVar[dict] = {1: _threshold_of_version_1}

    latents: tuple[int, ...]
    factor: float
    gate: Gate = "constant"
    threshold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "factor", finite("factor", self.factor))

    def change(self, z: Tensor, x: Tensor, rows: Rows) -> Tensor:
        return torch.where(self.open(z, x, rows), z * (self.factor - 1), 0)


@register("erase")
@dataclass(frozen=True, eq=False)
class Erase(OfConcept, CodeEdit):
    """x' = x + decode(z') - decode(z), where all latents of a concept are multiplied by tau in the inputs
    that hold the concept (Interpret then Deactivate, arXiv 2503.09446, with the error kept). Inputs that the
    gate does not flag keep every bit.

    What the gate looks at is how much of the activation the concept's latents make, at each position:
    ||sum_j z_j d_j||, with the directions d_j in units of the activations; or what a probe of the activation
    says, errors of the SAE and all. Of an input it is the mean over the positions that count (as the paper
    has it: the largest alone is noise of a single position).

    Attributes:
        sae: The SAE.
        latents: Those of the concept.
        tau: 0 removes them; the paper turns them round by -6 or -8; 1 leaves all as it is.
        gate: "input": in inputs whose mean exceeds `threshold`; "token": at the positions where the concept
            does; "constant": everywhere.
        threshold: What it must exceed; None with gate="constant".
        probe: What the gate looks at, as `saelab.analysis.calibrate_gate` fits it; None: ||sum_j z_j d_j||.
        hook: Where it works, if not where the SAE says; not with a transcoder.

    Raises:
        ConfigError: An option is none of these, or the threshold is missing.
        RangeError: A latent is none of the SAE's.
    """

    VERSION: ClassVar[int] = 2
    MIGRATIONS: ClassVar[dict] = {1: dict}

    latents: tuple[int, ...]
    tau: float = 0.0
    gate: Gate = "input"
    threshold: float | None = None
    probe: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tau", finite("tau", self.tau))

    def change(self, z: Tensor, x: Tensor, rows: Rows) -> Tensor:
        return torch.where(self.open(z, x, rows), z * (self.tau - 1), 0)


@register("clamp")
@dataclass(frozen=True, eq=False)
class Clamp(CodeEdit):
    """x' = x + decode(z') - decode(z), where one latent of z' has a fixed value: of an SAE with signed codes
    its sign chooses the pole (AbsTopK, arXiv 2510.00404).

    Attributes:
        sae: The SAE.
        latent: Which.
        value: Its code, everywhere.
        hook: Where it works, if not where the SAE says; not with a transcoder.

    Raises:
        ConfigError: The value is not finite.
        RangeError: The latent is none of the SAE's.
    """

    latent: int
    value: float

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "latent", latent_of(self.sae, self.latent))
        object.__setattr__(self, "value", finite("value", self.value))

    @property
    def touched(self) -> tuple[int, ...]:
        return (self.latent,)

    def change(self, z: Tensor, x: Tensor, rows: Rows) -> Tensor:
        return self.value - z


@register("ablate")
@dataclass(frozen=True, eq=False)
class Ablate(Several, CodeEdit):
    """x' = x + decode(z') - decode(z), where some latents of z' are 0 or their means.

    Attributes:
        sae: The SAE.
        latents: Which.
        to: "zero" or "mean".
        means: The mean code of each latent over all rows, with to="mean"
            (`saelab.interventions.latent_means` gives them).
        hook: Where it works, if not where the SAE says; not with a transcoder.

    Raises:
        ConfigError: An option is none of these, or the means are missing or of another number.
        RangeError: A latent is none of the SAE's.
    """

    latents: tuple[int, ...]
    to: Literal["zero", "mean"] = "zero"
    means: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("zero", "mean")("to", self.to)
        needed = len(self.latents) if self.to == "mean" else 0
        means = () if self.means is None else self.means
        if not is_listed(means) or len(tuple(means)) != needed:
            message = (
                f"Ablation to {self.to!r} needs {needed} means for {len(self.latents)} latents. Got "
                f"{short(self.means)}. Pass means=saelab.interventions.latent_means(store, latents) with "
                "to='mean' alone."
            )
            raise ConfigError(message)
        means = tuple(finite("A mean", value) for value in means)
        object.__setattr__(self, "means", means or None)

    def change(self, z: Tensor, x: Tensor, rows: Rows) -> Tensor:
        return (0 if self.means is None else z.new_tensor(self.means)) - z


@register("swap")
@dataclass(frozen=True, eq=False)
class Swap(CodeEdit):
    """x' = x + decode(z') - decode(z), where the code of one latent is given to another: z'_remove = 0 and
    z'_add = z_add + z_remove.

    Attributes:
        sae: The SAE.
        remove: The latent that loses its code.
        add: The latent that gets it.
        hook: Where it works, if not where the SAE says; not with a transcoder.

    Raises:
        ConfigError: Both are the same.
        RangeError: A latent is none of the SAE's.
    """

    remove: int
    add: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("remove", "add"):
            object.__setattr__(self, name, latent_of(self.sae, getattr(self, name)))
        if self.remove == self.add:
            message = f"A latent must be swapped for another. Got {self.remove} twice. Pass two latents."
            raise ConfigError(message)

    @property
    def touched(self) -> tuple[int, ...]:
        return (self.remove, self.add)

    def change(self, z: Tensor, x: Tensor, rows: Rows) -> Tensor:
        return z[:, :1] * z.new_tensor([-1.0, 1.0])
