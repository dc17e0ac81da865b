"""Options of recipes and their checks: (name, value, config) -> None, raising ConfigError."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saelab.config import integer, is_integer, is_number
from saelab.sae.config import SAEConfig
from saelab.types import ConfigError, nearest


def integer_from(
    low: int, high: str | None = None, *, optional: bool = False
) -> Callable[[str, Any, SAEConfig], None]:
    """An integer from `low` to the config's field `high`."""

    def check(name: str, value: Any, config: SAEConfig) -> None:
        if value is None and optional:
            return
        top = 2**63 if high is None else getattr(config, high)
        if is_integer(value) and low <= value <= top:
            return
        if high is None:
            integer(name, value, low)
        remedy = "Pass a whole number." if not is_integer(value) else f"Pass {name}>={low}."
        if is_integer(value) and value > top:
            remedy = f"Pass {name}<={top} or widen the SAE."
        msg = f"{name} must be between {low} and {high}={top}. Got {value!r}. {remedy}"
        raise ConfigError(msg)

    return check


def average(name: str, value: Any, config: SAEConfig) -> None:
    """k on average, of which a batch may have a fraction."""
    if is_integer(value) or not is_number(value):
        integer_from(1, "d_sae")(name, value, config)
    elif not 0 < value <= config.d_sae:
        msg = f"{name} must be above 0 and at most d_sae={config.d_sae}. Got {value!r}. Pass e.g. {name}=0.5."
        raise ConfigError(msg)


def of_selection(name: str, value: Any, config: SAEConfig) -> None:
    """k where the sparsity keeps k latents; elsewhere it is not used, and a narrow SAE need not say so."""
    kept = {"topk": integer_from(1, "d_sae"), "batchtopk": average}
    kept.get(config.options["sparsity"], integer_from(1))(name, value, config)


def in_each_row(name: str, value: Any, config: SAEConfig) -> None:
    if is_number(value) and not is_integer(value) and 0 < value < config.d_sae:
        msg = (
            f"{name} must be whole where each row keeps {name} latents. Got {value!r}. Pass a whole number, "
            "or use batchtopk, whose rows keep it on average."
        )
        raise ConfigError(msg)
    integer_from(1, "d_sae")(name, value, config)


def by_norm(name: str, value: Any, config: SAEConfig) -> None:
    flag(name, value, config)
    if value and (config.options["decoder_norm"] != "free" or config.options["dictionary"] == "frozen"):
        msg = (
            f"{name} has a meaning where decoder rows are not of norm 1. Got {value} with decoder_norm="
            f"{config.options['decoder_norm']!r} and dictionary={config.options['dictionary']!r}. Pass "
            "decoder_norm='free', or leave it out."
        )
        raise ConfigError(msg)


def of_jumprelu(name: str, value: Any, config: SAEConfig) -> None:
    real(0)(name, value, config)
    if value and config.options.get("sparsity", "jumprelu") != "jumprelu":
        msg = (
            f"{name} needs thresholds that are learned. Got {value!r} with "
            f"sparsity={config.options['sparsity']!r}. Pass sparsity='jumprelu', or leave it out."
        )
        raise ConfigError(msg)


def real(low: float, high: float | None = None) -> Callable[[str, Any, SAEConfig], None]:
    def check(name: str, value: Any, config: SAEConfig) -> None:
        if (
            not is_number(value)
            or not low <= value <= (float("inf") if high is None else high)
            or value == float("inf")
        ):
            upper = "finite" if high is None else f"at most {high}"
            msg = f"{name} must be a number of at least {low} and {upper}. Got {value!r}. Pass one."
            raise ConfigError(msg)

    return check


def groups(name: str, value: Any, config: SAEConfig) -> None:
    if value is None:
        return
    good = isinstance(value, tuple) and all(is_integer(size) and size >= 1 for size in value)
    if not good or sum(value) != config.d_sae:
        msg = (
            f"{name} must be sizes of at least 1 that add up to d_sae={config.d_sae}, or None. Got "
            f"{value!r}. Pass a list like [d_sae // 4, d_sae - d_sae // 4]."
        )
        raise ConfigError(msg)


def positive(name: str, value: Any, config: SAEConfig) -> None:
    real(0)(name, value, config)
    if value == 0:
        msg = f"{name} must be greater than 0. Got {value!r}. Pass a small number instead."
        raise ConfigError(msg)


def positive_share(name: str, value: Any, config: SAEConfig) -> None:
    real(0, 1)(name, value, config)
    positive(name, value, config)


def flag(name: str, value: Any, config: SAEConfig) -> None:
    if not isinstance(value, bool):
        msg = f"{name} must be True or False. Got {value!r}. Pass a bool."
        raise ConfigError(msg)


def one_of(*choices: str) -> Callable[[str, Any, SAEConfig], None]:
    def check(name: str, value: Any, config: SAEConfig) -> None:
        if value not in choices:
            hint = nearest(str(value), choices)
            raise ConfigError(
                f"{name} must be one of {', '.join(map(repr, choices))}. Got {value!r}. {hint}".strip()
            )

    return check


def start_of_k(name: str, value: Any, config: SAEConfig) -> None:
    integer_from(1, "d_sae", optional=True)(name, value, config)
    if value is not None and value < config.options["k"]:
        msg = f"{name} must be at least k={config.options['k']}. Got {value}. Pass more, or None."
        raise ConfigError(msg)


def target_l0(name: str, value: Any, config: SAEConfig) -> None:
    if value is None:
        return
    positive(name, value, config)
    if value > config.d_sae:
        msg = f"{name} must be at most d_sae={config.d_sae}. Got {value!r}. Pass less, or widen the SAE."
        raise ConfigError(msg)
    for weight in ("l1", "l0"):
        if config.options.get(weight) == 0:
            msg = f"{name} moves the weight {weight}, which must not be 0. Got 0. Leave {weight} out."
            raise ConfigError(msg)


def target_weight(name: str, value: Any, config: SAEConfig) -> None:
    if value is None:
        return
    positive(name, value, config)
    if config.options["target_l0"] is None or config.options.get("penalty", "l0") != "l0":
        msg = (
            f"{name} weighs how far the L0 of an l0 penalty is from target_l0. Got {value!r} without one. "
            "Pass target_l0=, or leave it out."
        )
        raise ConfigError(msg)


def resampling(name: str, value: Any, config: SAEConfig) -> None:
    integer_from(1, optional=True)(name, value, config)
    if value is not None and config.options.get("dictionary", "free") != "free":
        kind = config.options["dictionary"]
        msg = f"{name} needs free decoder rows. Got {value} with {kind} ones. Pass None."
        raise ConfigError(msg)


def sigma(name: str, value: Any, config: SAEConfig) -> None:
    if value is not None:
        positive(name, value, config)
    if not config.options["sampling"] and value != 1:
        msg = f"Without sampling {name} must be 1. Got {value!r}. Pass {name}=1, or sampling=True."
        raise ConfigError(msg)


def widths(name: str, value: Any, config: SAEConfig) -> None:
    good = isinstance(value, tuple) and len(value) > 1 and all(is_integer(w) and w >= 1 for w in value)
    if not good or sum(value) != config.d_in:
        msg = (
            f"{name} must be two or more widths that add up to d_in={config.d_in}. Got {value!r}. "
            "Pass the width of each activation that the crosscoder reads."
        )
        raise ConfigError(msg)
    if config.hooks and len(config.hooks) != len(value):
        msg = f"{name} must be one for each of the {len(config.hooks)} hooks. Got {len(value)}. Pass as many."
        raise ConfigError(msg)
