"""Recipes that vary BatchTopK: a floor for each row, directions that are pushed apart."""

from __future__ import annotations

from typing import Any

from saelab.sae.architectures import rules_of, with_auxk
from saelab.sae.batchwise import BatchTopK, FlooredBatchTopK
from saelab.sae.config import Option, Recipe, SAEConfig, register
from saelab.sae.option_groups import BATCH, COMMON, REVIVAL
from saelab.sae.options import integer_from, real
from saelab.types import ConfigError


def _floor(name: str, value: Any, config: SAEConfig) -> None:
    integer_from(1, "d_sae")(name, value, config)
    if value > config.options["k"]:
        message = (
            f"{name} must be at most k={config.options['k']}, which all rows have on average. Got {value}. "
            "Pass less, or a larger k."
        )
        raise ConfigError(message)


register(
    "batchtopk_floor",
    Recipe(
        line="BatchTopK with a floor: k a row on average over a batch, and some for each row.",
        options={
            **BATCH,
            "floor": Option(1, _floor, "Latents that each row keeps at least.", structural=True),
            **REVIVAL,
            **COMMON,
        },
        sparsifier=lambda c: FlooredBatchTopK(*(c.options[key] for key in ("k", "threshold_decay", "floor"))),
        losses=with_auxk("mse"),
        rules=rules_of("unit_norm"),
        divides=("data",),
    ),
)
register(
    "ortsae",
    Recipe(
        line="OrtSAE: BatchTopK whose decoder directions are pushed apart (2509.22033).",
        options={
            **BATCH,
            "orthogonality": Option(
                0.25,
                real(0),
                "Weight of the mean squared cosine of each direction and its nearest, relative to the "
                "normalised squared error.",
            ),
            "chunk": Option(
                8192,
                integer_from(2),
                "Latents among which the nearest is looked for, drawn anew each step; a step takes "
                "d_sae * chunk cosines.",
            ),
            **REVIVAL,
            **COMMON,
        },
        sparsifier=lambda c: BatchTopK(c.options["k"], c.options["threshold_decay"]),
        losses=lambda c: with_auxk("mse", *(["orthogonality"] if c.options["orthogonality"] else []))(c),
        rules=rules_of("unit_norm"),
        divides=("data",),
    ),
)
