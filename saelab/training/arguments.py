"""What `train` was asked for, checked and completed: Settings."""

from __future__ import annotations

import math
import numbers
from typing import Any, TypeVar

from saelab.arguments import an_integer, checked
from saelab.config import integer, integer_or_none, is_number
from saelab.devices import dtype_name
from saelab.harvesting.outliers import multiple_or_none
from saelab.sae.config import SAEConfig
from saelab.training.moving import Optimizer, Schedule, Whitening
from saelab.training.run import Origin, Settings
from saelab.training.whitening import check
from saelab.types import ConfigError, short

T = TypeVar("T", Schedule, Optimizer)

INIT_ROWS = 16_384
EVALUATE_ROWS = 1024
"""Held-out rows that are measured before the end, unless said otherwise."""
PRECISIONS = ("float32", "bfloat16")


@checked(d_sae=an_integer(1))
def learning_rate(d_sae: int) -> float:
    """The default learning rate: 7.5e-4 * sqrt(2^14 / d_sae).

    The scaling with width is that of Gao et al. (2024, figure 3); the factor is 3.75 times theirs, which
    suits the short runs (1,000 to 10,000 steps) of this library.
    """
    return 7.5e-4 * math.sqrt(2**14 / d_sae)


def complete(
    config: SAEConfig,
    *,
    steps: int,
    batch_size: int,
    seed: int = 0,
    lr: float | str = "auto",
    log_every: int | None = None,
    precision: str = "float32",
    accumulate: int = 1,
    held_out: Any = None,
    evaluate_every: int | None = None,
    evaluate_rows: int | None = None,
    schedule: str | Schedule = "linear",
    optimizer: str | Optimizer = "adam",
    clip: float | None = 1.0,
    max_norm: float | None = None,
    whiten: bool | Whitening = False,
    start: Origin | None = None,
) -> Settings:
    """The Settings of one SAE. Raises ConfigError."""
    lr = learning_rate(config.d_sae) if lr == "auto" else lr
    if not is_number(lr) or not 0 < lr < math.inf:
        message = f"lr must be a positive finite number or 'auto'. Got {lr!r}. Leave it out for 'auto'."
        raise ConfigError(message)
    accumulate = integer("accumulate", accumulate, 1)
    log_every = integer_or_none("log_every", log_every, 1)
    evaluate_every = integer_or_none("evaluate_every", evaluate_every, 1)
    evaluate_rows = integer_or_none("evaluate_rows", evaluate_rows, 2)  # one row has no variance
    n_held_out = 0
    if isinstance(held_out, numbers.Real):
        n_held_out = integer("held_out", held_out, 2)
    for name, value in (("evaluate_every", evaluate_every), ("evaluate_rows", evaluate_rows)):
        if held_out is None and value is not None:
            message = (
                f"{name} needs held-out rows. Got {name}={value} and no held_out. Pass held_out=1000 or rows "
                "of their own."
            )
            raise ConfigError(message)
    if accumulate > batch_size:
        message = (
            f"accumulate must be at most batch_size={batch_size}: a micro-batch has a row or more. "
            f"Got {accumulate}. Pass accumulate<={batch_size}."
        )
        raise ConfigError(message)
    return Settings(
        steps=steps,
        batch_size=batch_size,
        seed=integer("seed", seed, 0),
        lr=float(lr),
        clip=_clip(clip),
        dead_after=config.options["dead_after"] or max(1, min(10_000_000, steps * batch_size // 10)),
        init_rows=max(INIT_ROWS, config.options.get("candidates") or 0),
        log_every=log_every or max(1, steps // 100),
        precision=dtype_name(precision, PRECISIONS, name="precision"),  # type: ignore[arg-type]
        accumulate=accumulate,
        held_out=n_held_out,
        evaluate_every=None if held_out is None else evaluate_every or max(1, steps // 10),
        evaluate_rows=evaluate_rows,
        schedule=made_of("schedule", schedule, Schedule).over(steps),
        optimizer=made_of("optimizer", optimizer, Optimizer),
        max_norm=multiple_or_none("max_norm", max_norm),
        whiten=_whitening(config, whiten, start),
        start=start,
    )


def made_of(name: str, value: Any, kind: type[T]) -> T:
    """One by its name, with what is usual for it, or as given."""
    if isinstance(value, kind | str):
        return kind(value) if isinstance(value, str) else value  # type: ignore[arg-type]
    message = (
        f"{name} must be a name, or a saelab.training.{kind.__name__}. Got {short(value)}. Leave it out for "
        "the usual one."
    )
    raise ConfigError(message)


def _whitening(config: SAEConfig, value: Any, start: Origin | None) -> Whitening | None:
    if not isinstance(value, bool | Whitening):
        message = f"whiten must be True or a saelab.training.Whitening. Got {short(value)}. Pass whiten=True."
        raise ConfigError(message)
    if value is False:
        return None
    check(config)
    if start is not None:
        message = (
            "whiten is for runs that start anew: an SAE to start from reads raw rows. Got both. Leave out "
            "start or whiten."
        )
        raise ConfigError(message)
    return Whitening() if value is True else value


def _clip(value: Any) -> float | None:
    if value is None or (is_number(value) and 0 < value < math.inf):
        return None if value is None else float(value)
    message = (
        f"clip must be a positive finite number, or None for gradients as they are. Got {value!r}. Pass "
        "clip=1.0."
    )
    raise ConfigError(message)


def count_steps(steps: int | None, tokens: int | None, batch_size: int) -> int:
    """Steps in all: as given, or the batches that hold `tokens` rows. Raises ConfigError."""
    if (steps is None) == (tokens is None):
        message = (
            f"train needs steps or tokens, one of them. Got steps={steps!r}, tokens={tokens!r}. "
            "Pass e.g. steps=1000."
        )
        raise ConfigError(message)
    if tokens is not None:
        return -(-integer("tokens", tokens, 1) // batch_size)
    return integer("steps", steps, 1)


def check_configs(configs: list[Any]) -> None:
    """Raises ConfigError unless there is a config and all are SAEConfigs."""
    for config in configs or [None]:
        if not isinstance(config, SAEConfig):
            message = (
                f"train needs an SAEConfig. Got {type(config).__name__}. Make one by saelab.recipe(...)."
            )
            raise ConfigError(message)
        if config.entry.fitted:
            message = (
                "A recipe that is trained must have gradients to follow. Got "
                f"{config.title!r}, which is fitted. Call saelab.training.classical(acts, method, d_sae=...)."
            )
            raise ConfigError(message)
