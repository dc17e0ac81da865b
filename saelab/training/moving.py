"""How weights move, and in which space: the learning rate over a run, the optimizer, whitening."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from saelab.arguments import an_integer, checked, one_of
from saelab.config import integer, is_integer, is_number
from saelab.types import ConfigError, short

Shape = Literal["linear", "constant", "cosine", "restarts"]
Kind = Literal["adam", "adamw", "signum", "muon"]
PARTS = ("W_enc", "W_dec")


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a run, as a share of the highest: it rises linearly over `warmup`, follows its
    shape, and falls linearly to 0 over the last `decay`.

    With T steps between the two and s of them done the shapes are "linear" and "constant": 1; "cosine":
    end + (1 - end) (1 + cos(pi s / T)) / 2; "restarts": the same over each of `cycles` equal parts
    (Loshchilov & Hutter 2017). What SAELens calls "constant", "cosineannealing" and
    "cosineannealingwarmrestarts" with lr_warm_up_steps, lr_decay_steps and lr_end is the same step for step;
    dictionary_learning's decay_start is steps - decay.

    Args:
        shape: "linear" (a plateau, then a fall over the last 20 %), "constant", "cosine" or "restarts".
        warmup: Steps, or the share of the run; None for 5 %, at most 1,000 steps.
        decay: Steps, or the share of the run; None for 20 % of "linear", for none of the others.
        end: What "cosine" and "restarts" fall to.
        cycles: Of "restarts".

    Raises:
        ConfigError: An unknown shape, or a value out of range or without a meaning for the shape.
    """

    shape: Shape = "linear"
    warmup: int | float | None = None
    decay: int | float | None = None
    end: float = 0.0
    cycles: int = 1

    def __post_init__(self) -> None:
        one_of(*get_args(Shape))("shape", self.shape)
        for name in ("warmup", "decay"):
            value = getattr(self, name)
            good = value is None or (is_integer(value) and value >= 0)
            if not good and not (is_number(value) and 0 <= value <= 1):
                message = (
                    f"{name} must be a number of steps, or a share of the run between 0.0 and 1.0. Got "
                    f"{value!r}. Pass e.g. {name}=500 or {name}=0.05."
                )
                raise ConfigError(message)
        if not is_number(self.end) or not 0 <= self.end <= 1:
            message = f"end must be a share of lr between 0 and 1. Got {self.end!r}. Pass e.g. end=0.1."
            raise ConfigError(message)
        integer("cycles", self.cycles, 1)
        of = {"cycles": ("restarts",), "end": ("cosine", "restarts")}
        for name, default in (("cycles", 1), ("end", 0)):
            if getattr(self, name) != default and self.shape not in of[name]:
                message = (
                    f"{name} has no meaning for a {self.shape} schedule. Got {getattr(self, name)}. Leave it "
                    f"out, or pass shape={of[name][0]!r}."
                )
                raise ConfigError(message)

    @checked(steps=an_integer(1))
    def over(self, steps: int) -> Schedule:
        """The same with its lengths in steps.

        Args:
            steps: Of the run.

        Raises:
            ConfigError: It is no positive integer.
        """
        warmup, decay = self._lengths(steps)
        return replace(self, warmup=warmup, decay=decay)

    def _lengths(self, steps: int) -> tuple[int, int]:
        warmup = min(1000, steps // 20) if self.warmup is None else _steps(self.warmup, steps)
        usual = steps // 5 if self.shape == "linear" else 0
        decay = usual if self.decay is None else _steps(self.decay, steps)
        return min(warmup, steps), min(decay, steps)

    @checked(step=an_integer(0), steps=an_integer(1))
    def factor(self, step: int, steps: int) -> float:
        """The share of the highest learning rate.

        Args:
            step: From 0.
            steps: Of the run.

        Raises:
            ConfigError: They are no such integers.
        """
        warmup, decay = self._lengths(steps)
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        fall = min(1.0, (steps - step) / decay) if decay else 1.0
        if self.shape in ("linear", "constant"):
            return rise * fall
        whole = max(1, steps - warmup - decay)
        done, each = min(max(0, step - warmup), whole), max(1, whole // self.cycles)
        part = 1.0 if done == whole else (done % each) / each if self.cycles > 1 else done / whole
        return rise * fall * (self.end + (1 - self.end) * (1 + math.cos(math.pi * part)) / 2)


@dataclass(frozen=True)
class Optimizer:
    """What makes an update of the gradients.

    "adam" and "adamw" are torch's; with weight_decay w the first adds w * weight to the gradient, the second
    takes lr * w * weight off the weight. "signum" (Bernstein et al. 2018): lr times the sign of the
    gradients' moving average m = b1 m + (1 - b1) g, so that each weight moves by lr, as far as Adam moves it
    at first; sparsify's. "muon": matrices by torch.optim.Muon (their moving average made orthogonal, at the
    step size of AdamW), biases and other vectors by AdamW. Rules of a recipe (decoder rows of norm 1, ...)
    apply before and after it as ever.

    Args:
        kind: "adam", "adamw", "signum" or "muon".
        betas: Weights of the past in the moving averages of gradient and squared gradient; signum and Muon's
            matrices use the first.
        weight_decay: Of the chosen parts, a step.
        parts: Which weights decay: "W_enc", "W_dec", "b_enc", "b_dec", or what else the SAE has.

    Raises:
        ConfigError: An unknown kind, or a value out of range.
    """

    kind: Kind = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        one_of(*get_args(Kind))("kind", self.kind)
        betas = tuple(self.betas) if isinstance(self.betas, Iterable) else ()
        if len(betas) != 2 or not all(is_number(beta) and 0 <= beta < 1 for beta in betas):
            message = (
                f"betas must be two numbers of at least 0 and below 1. Got {self.betas!r}. Pass (0.9, 0.999)."
            )
            raise ConfigError(message)
        if not is_number(self.weight_decay) or not 0 <= self.weight_decay < math.inf:
            message = (
                f"weight_decay must be a finite number of at least 0. Got {self.weight_decay!r}. Pass e.g. "
                "weight_decay=0.01."
            )
            raise ConfigError(message)
        parts = (
            () if isinstance(self.parts, str) or not isinstance(self.parts, Iterable) else tuple(self.parts)
        )
        if not parts or not all(isinstance(part, str) for part in parts):
            message = f"parts must be names of weights. Got {short(self.parts)}. Pass e.g. {PARTS}."
            raise ConfigError(message)
        object.__setattr__(self, "betas", (float(betas[0]), float(betas[1])))
        object.__setattr__(self, "parts", parts)

    @property
    def moments(self) -> int:
        """Numbers that it keeps of each weight, at most."""
        return 1 if self.kind == "signum" else 2


@dataclass(frozen=True)
class Whitening:
    """How training whitens rows.

    Args:
        shrinkage: The share a of the mean variance in each direction's, from 0 (the covariance as it is) to 1
            (rows are only centred and scaled).

    Raises:
        ConfigError: It is out of range.
    """

    shrinkage: float = 0.01

    def __post_init__(self) -> None:
        if not is_number(self.shrinkage) or not 0 <= self.shrinkage <= 1:
            message = (
                f"shrinkage must be a share between 0 and 1. Got {self.shrinkage!r}. Pass shrinkage=0.01."
            )
            raise ConfigError(message)


def _steps(length: int | float, steps: int) -> int:
    return int(length) if is_integer(length) else round(length * steps)


__all__ = ["Optimizer", "Schedule", "Whitening"]
