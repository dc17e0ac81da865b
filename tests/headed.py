"""What is asked of attention heads, as calls with right arguments, for `fuzzed`."""

from __future__ import annotations

from functools import partial
from typing import Any

import subjects_zoo as zoo

import saelab
from saelab import analysis


def calls(things: Any) -> dict[str, tuple[Any, ...]]:
    """Name -> function, right arguments, and others that it takes.

    Args:
        things: The `Things` of `fuzzed`, whose model has four heads.
    """
    model, folder = things.model, things.folder / "headvis"
    heads = saelab.SAE.create(saelab.recipe("relu", d_in=32, d_sae=8, hook="blocks.1.attn.hook_z"))
    told = analysis.head_attribution(heads, 4)
    words = [*zoo.TEXTS, "a b", "c d", "e f", "g h", "i j"]
    of = {"subject": model, "sae": heads}
    asked = {"subject": model, "sae": things.model_sae, "text": "a b", "latent": 1, "dest": 1}
    roles = {"found": analysis.families(model, heads, words, least=2), "attribution": told}
    texts = {"subject": model, "corpus": ["a b c", "b c d"], "n": 2, "drawn": 1}
    return {
        "dfa": (analysis.dfa, asked),
        "DFA.top": (analysis.dfa(**asked).top, {"n": 2}),
        "edge_changes": (analysis.edge_changes, asked, ("n", "seed")),
        "edge_effects": (analysis.edge_effects, asked),
        "EdgeEffects.top": (analysis.edge_effects(**asked).top, {"n": 2}),
        "recursive_dfa": (analysis.recursive_dfa, asked, ("saes", "depth", "width")),
        "families": (
            partial(analysis.families, least=2), {**of, "corpus": words},
            ("max_rows", "bar", "strength", "seed"),
        ),
        "head_attribution": (analysis.head_attribution, {"sae": heads, "n_heads": 4}, ("sizes",)),
        "HeadAttribution.top": (told.top, {"head": 1, "n": 2}),
        "head_examples": (analysis.head_examples, texts, ("documents", "length", "seed")),
        "HeadExamples.head": (analysis.read_headvis(folder).head, {"layer": 1, "head": 0}),
        "head_losses": (
            partial(analysis.head_losses, max_rows=8), {**of, "corpus": ["a b"]},
            ("n_heads", "ablation", "seed"),
        ),
        "head_roles": (analysis.head_roles, roles, ("n", "kind", "seed")),
        "induction_scores": (analysis.induction_scores, {"subject": model, "n": 2, "length": 4}, ("seed",)),
        "prefix_curves": (
            analysis.prefix_curves, {"subject": model, "lengths": [2], "n": 2, "length": 24}, ("seed",)
        ),
        "read_headvis": (analysis.read_headvis, {"folder": folder}),
    }  # fmt: skip
