"""Recipes that vary others: BatchTopK with a floor for each row or directions that are pushed apart, JumpReLU
under a cap."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from saelab.sae.architectures import pre_act, rules_of, with_auxk
from saelab.sae.batchwise import BatchTopK, FlooredBatchTopK
from saelab.sae.config import Option, Recipe, SAEConfig, register
from saelab.sae.dictionaries import Dictionary
from saelab.sae.kernels import top_k_csr
from saelab.sae.option_groups import BATCH, COMMON, JUMP, L0, REVIVAL, ROW
from saelab.sae.options import integer_from, real
from saelab.sae.sparsifiers import JumpReLU
from saelab.types import ConfigError


class CappedJumpReLU(JumpReLU):
    """JumpReLU of the k largest pre-activations of each row: what exceeds the learned threshold of its
    latent, but at most k. The thresholds decide how many a row needs (Rajamanoharan et al. 2024b), the cap
    bounds what rows of many weak latents cost (the selection of Gao et al. 2024), and only what it lets
    through gives thresholds gradients.

    pre [n d_sae] -> codes [n d_sae], at most k non-zero in a row. Parameter as of JumpReLU.
    """

    def __init__(self, d_sae: int, k: int, *rest: Any) -> None:
        super().__init__(d_sae, *rest)
        self.k = k

    def forward(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> Tensor:
        return self.scatter(pre, *self.select(pre.detach(), x, dictionary))

    def select(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> tuple[Tensor, Tensor]:
        return top_k_csr(pre, self.k)

    def some(self, pre: Tensor, latents: Tensor, dictionary: Dictionary) -> Tensor | None:
        return None

    def extra_repr(self) -> str:
        return f"k={self.k}, {super().extra_repr()}"


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
    "jumprelu_topk",
    Recipe(
        line="JumpReLU under TopK: learned thresholds, and at most k latents a row.",
        options={
            **ROW,
            "k": replace(ROW["k"], line="Latents that a row may have at most."),
            **L0,
            **JUMP,
            **REVIVAL,
            **COMMON,
        },
        sparsifier=lambda c: CappedJumpReLU(
            c.d_sae,
            *(c.options[key] for key in ("k", "threshold", "bandwidth", "log_threshold", "ste_to_input")),
        ),
        losses=lambda c: with_auxk("mse", "l0", *pre_act(c))(c),
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
