"""The SAEs that one call of train makes: of configs, hook points and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from saelab.arguments import listed
from saelab.config import integer
from saelab.harvesting.batches import matching
from saelab.sae.config import SAEConfig
from saelab.training.arguments import check_configs
from saelab.types import ConfigError, HookPoint, short


class Member(NamedTuple):
    """One of them."""

    config: SAEConfig
    seed: int
    name: str
    """of its folder: number, recipe, and what else sets it apart"""
    of: int
    """number of its config"""


def members(
    config: SAEConfig | Sequence[SAEConfig], acts: Any, hooks: Any, seed: int, seeds: Any
) -> list[Member]:
    """Every config at every hook point with every seed, in this order.

    Args:
        config: One, or several.
        acts: The rows, which say which hook points there are.
        hooks: Names or patterns of hook points at which each config is trained; None for the config's own.
        seed: Of all, where there are no seeds.
        seeds: Of weights and order; None for `seed` alone.

    Raises:
        ConfigError: There is no config, a seed is none, or a config has its hook point already.
        HookError: The rows have no such hook points.
    """
    configs = list(config) if isinstance(config, Sequence) else [config]
    check_configs(configs)
    named = [None] if hooks is None else chosen(acts, hooks)
    drawn = [seed] if seeds is None else _seeds(seed, seeds)
    found = []
    for i, each in enumerate(configs):
        for hook in named:
            own = each if hook is None else _at(each, hook)
            for number in drawn:
                more = ["" if hook is None else f"-{hook}", "" if seeds is None else f"-seed{number}"]
                found.append(Member(own, number, f"{len(found)}-{each.recipe}{''.join(more)}", i))
    return found


def chosen(acts: Any, hooks: Any) -> list[str]:
    """Those of the hook points of a store or stream that names or patterns mean, in their order.

    Args:
        acts: The rows, which say which hook points there are.
        hooks: A name or pattern, or several.

    Raises:
        ConfigError: The rows name no hook points.
        HookError: A pattern matches none of them.
    """
    known = [str(hook) for hook in getattr(acts, "hooks", ())]
    if not known:
        message = (
            "hooks chooses among the hook points of a store or a stream. Got it with rows that name none. "
            "Leave hooks out, or pass saelab.harvest(...) of them."
        )
        raise ConfigError(message)
    asked = [hooks] if isinstance(hooks, str | HookPoint) else listed("hooks", hooks)
    return list(dict.fromkeys(name for each in asked for name in matching(str(each), known)))


def _seeds(seed: int, seeds: Any) -> list[int]:
    drawn = [integer("seeds", each, 0) for each in listed("seeds", seeds)]
    if seed or not drawn or len(set(drawn)) < len(drawn):
        message = (
            "seeds are different numbers from 0 on, without seed beside them. Got "
            f"seeds={short(drawn)}, seed={seed}. Pass seeds=[0, 1, 2]."
        )
        raise ConfigError(message)
    return drawn


def _at(config: SAEConfig, hook: str) -> SAEConfig:
    if config.d_out is not None or config.widths or config.hook is not None:
        message = (
            "hooks gives each SAE the hook point that it reads, of configs that have none and read one. Got "
            f"{config.title} with {'hook=' + repr(config.hook.name) if config.hook else 'several places'}. "
            "Leave hooks out, or hook out of the recipe."
        )
        raise ConfigError(message)
    return replace(config, hook=HookPoint(hook))


__all__ = ["Member", "members"]
