"""Recipes that read and write several places: transcoders and crosscoders."""

from __future__ import annotations

from dataclasses import replace

from saelab.sae.architectures import jump_relu, pre_act, rules_of, with_auxk
from saelab.sae.batchwise import BatchTopK
from saelab.sae.config import Option, Recipe, register
from saelab.sae.dictionaries import Joint
from saelab.sae.option_groups import BATCH, ENCODER, JUMP, L0, L1, NORMALISE_ONE, REVIVAL, START, decoder
from saelab.sae.options import of_selection, one_of, widths
from saelab.sae.sparsifiers import ReLU, TopK


def _transcoder(line: str, skip: bool = False) -> Recipe:
    return Recipe(
        line=line,
        options={
            **BATCH,
            "k": replace(BATCH["k"], check=of_selection),
            "sparsity": Option(
                "topk",
                one_of("topk", "batchtopk", "l1", "jumprelu"),
                "Whether rows keep k each, or k on average over a batch, or an L1 penalty decides, or "
                "thresholds learned under an L0 penalty.",
                structural=True,
            ),
            **L1,
            **L0,
            **JUMP,
            **REVIVAL,
            "normalise": NORMALISE_ONE,
            **START,
            **decoder(),
        },
        sparsifier=lambda c: {
            "topk": lambda: TopK(c.options["k"]),
            "batchtopk": lambda: BatchTopK(c.options["k"], c.options["threshold_decay"]),
            "l1": ReLU,
            "jumprelu": lambda: jump_relu(c),
        }[c.options["sparsity"]](),
        losses=lambda c: with_auxk(
            "mse", *{"l1": ["l1"], "jumprelu": ["l0", *pre_act(c)]}.get(c.options["sparsity"], [])
        )(c),
        rules=lambda c: rules_of(*([] if c.options["sparsity"] == "l1" else ["unit_norm"]))(c),
        transcodes=True,
        skip=skip,
    )


register(
    "transcoder",
    _transcoder("Transcoder: from the input of a part of the model to its output."),
)
register(
    "skip_transcoder",
    _transcoder(
        "Skip transcoder: a transcoder with a linear map of the input beside (2501.18823).", skip=True
    ),
)
register(
    "crosscoder",
    Recipe(
        line="Crosscoder: one code for several layers or models (Lindsey et al. 2024).",
        options={
            "widths": Option(
                (), widths, "Width of each activation that is read, side by side.", structural=True
            ),
            "sparsity": Option(
                "batchtopk",
                one_of("batchtopk", "topk", "l1"),
                "'batchtopk' ranks codes times the norms of their directions, 'topk' the codes of a row "
                "as they are; 'l1' penalises their product.",
                structural=True,
            ),
            "norms": Option(
                "sum",
                one_of("sum", "joint"),
                "Of a latent's direction: the sum of its places' norms, or the norm of all as one.",
                structural=True,
            ),
            **BATCH,
            "k": replace(BATCH["k"], check=of_selection),
            **L1,
            **REVIVAL,
            **ENCODER,
            "normalise": NORMALISE_ONE,
        },
        sparsifier=lambda c: {
            "batchtopk": lambda: BatchTopK(c.options["k"], c.options["threshold_decay"], by_norm=True),
            "topk": lambda: TopK(c.options["k"]),
            "l1": ReLU,
        }[c.options["sparsity"]](),
        losses=lambda c: with_auxk("mse", *(["l1"] if c.options["sparsity"] == "l1" else []))(c),
        rules=rules_of(),
        dictionary=lambda c: Joint(c.d_sae, c.widths, c.options["norms"] == "joint"),
    ),
)
