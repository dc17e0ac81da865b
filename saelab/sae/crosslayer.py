"""The recipe of cross-layer transcoders: several layers written from one code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from saelab.config import is_integer
from saelab.sae.architectures import jump_relu, pre_act, rules_of, with_auxk
from saelab.sae.batchwise import BatchTopK
from saelab.sae.config import Option, Recipe, SAEConfig, register
from saelab.sae.layered import CrossLayer
from saelab.sae.option_groups import BATCH, JUMP, L0, L1, NORMALISE_ONE, REVIVAL, START
from saelab.sae.options import integer_from, of_selection, one_of, real
from saelab.sae.sparsifiers import ReLU, TopK
from saelab.types import ConfigError, short


def _layers(name: str, value: Any, config: SAEConfig) -> None:
    integer_from(1, "d_sae")(name, value, config)
    for size in ("d_in", "d_out", "d_sae"):
        if (found := getattr(config, size)) % value:
            message = (
                f"{size} must be a multiple of {name}={value}: that of one layer, times the layers. Got "
                f"{found}. Pass {size}={value} * {max(1, found // value)}."
            )
            raise ConfigError(message)
    if config.hook is not None or config.hook_out is not None:
        message = (
            f"A cross-layer transcoder names what it reads and writes by hooks and hooks_out, one a layer. "
            f"Got hook={config.hook and str(config.hook)!r} and hook_out="
            f"{config.hook_out and str(config.hook_out)!r}. Pass hooks=[...], hooks_out=[...]."
        )
        raise ConfigError(message)
    if config.hooks and len(config.hooks) != value:
        message = f"hooks must be one for each of {value} layers. Got {len(config.hooks)}. Pass as many."
        raise ConfigError(message)


def _hooks_out(name: str, value: Any, config: SAEConfig) -> None:
    good = isinstance(value, tuple) and all(isinstance(hook, str) and hook for hook in value)
    layers = config.options["layers"]
    if not good or (is_integer(layers) and len(value) not in (0, layers)):
        message = (
            f"{name} must be names of hook points, one for each of {layers} layers, or none. Got "
            f"{short(value)}. Pass e.g. {name}=['blocks.0.hook_mlp_out', ...]."
        )
        raise ConfigError(message)


register(
    "clt",
    Recipe(
        line="Cross-layer transcoder: latents read a layer's MLP, write to all later ones (Ameisen 2025).",
        options={
            "layers": Option(
                1,
                _layers,
                "Layers side by side in its input, in its output and in its latents, d_sae / layers each.",
                structural=True,
            ),
            "hooks_out": Option((), _hooks_out, "Names of the hook points that it writes, one a layer."),
            "sparsity": Option(
                "batchtopk",
                one_of("batchtopk", "topk", "l1", "jumprelu"),
                "'batchtopk' keeps k a row on average over a batch, 'topk' k of each row, both over the "
                "latents of all layers, ranked by codes times norms of directions; 'l1' penalises their "
                "product; 'jumprelu' learns thresholds under sum_j tanh(c f_j ||W_dec_j||) (Ameisen et al. "
                "2025).",
                structural=True,
            ),
            **BATCH,
            "k": replace(BATCH["k"], check=of_selection),
            **L1,
            **{name: option for name, option in L0.items() if name != "target_weight"},
            "tanh_scale": Option(
                4.0, real(0), "c of the tanh penalty, for inputs of each layer scaled to norm sqrt(d)."
            ),
            **JUMP,
            **{name: option for name, option in REVIVAL.items() if not name.startswith("resample")},
            "normalise": NORMALISE_ONE,
            **START,
        },
        sparsifier=lambda c: {
            "batchtopk": lambda: BatchTopK(c.options["k"], c.options["threshold_decay"], by_norm=True),
            "topk": lambda: TopK(c.options["k"], by_norm=True),
            "l1": ReLU,
            "jumprelu": lambda: jump_relu(c),
        }[c.options["sparsity"]](),
        losses=lambda c: with_auxk(
            "mse", *{"l1": ["l1"], "jumprelu": ["tanh", *pre_act(c)]}.get(c.options["sparsity"], [])
        )(c),
        rules=rules_of(),
        dictionary=lambda c: CrossLayer(c.d_sae, c.width_out, c.options["layers"]),
        transcodes=True,
        divides=("data",),
    ),
)
