"""Who wrote a latent of SmolLM2: 30 layers of 9 heads on 3 key-value heads, rotary."""

from __future__ import annotations

import numpy as np
import pytest
import real_models
import torch

import saelab
from saelab.analysis import dfa, recursive_dfa
from saelab.analysis.attention.effects import pre_without

LAYER = 12


def untrained(smollm2, name):
    """An SAE that starts from rows of the place, so that its latents fire."""
    hook = f"blocks.{LAYER}.{name}"
    texts, _ = real_models.texts(4, characters=300)
    rows = smollm2.run(smollm2.prepare(texts[:1]), hook, output=False).acts[hook][0, 1:]
    config = saelab.recipe("topk", d_in=rows.shape[1], d_sae=512, k=32, hook=hook)
    return saelab.SAE.create(config, 0, rows), texts[1:]


@pytest.mark.parametrize("name", ["attn.hook_z", "hook_resid_post"])
def test_parts_sum_to_what_a_hook_sees(smollm2, name):
    sae, texts = untrained(smollm2, name)
    hook, attentions = str(sae.hook), [untrained(smollm2, "attn.hook_z")[0]]
    for text in texts:
        x = smollm2.run(smollm2.prepare([text]), hook, output=False).acts[hook][0].double()
        dest = len(x) - 1
        latent = int(sae.encode(x[-1:].float()).argmax())
        b = sae.b_dec.double() if sae.config.options["apply_b_dec_to_input"] else 0
        with torch.no_grad():
            column = sae.W_enc[:, latent].double()
            pre = float((x[dest] / sae.input_scale.double() - b) @ column + sae.b_enc[latent])
        found = dfa(smollm2, sae, text, latent, dest)
        assert found.total == pytest.approx(pre, abs=1e-4)
        assert found.parts.shape == (1 if name == "attn.hook_z" else LAYER + 1, 9, len(x))
        tree = recursive_dfa(smollm2, sae, text, latent, dest, attentions, depth=3)
        np.testing.assert_allclose(tree.sums, pre, atol=1e-3)


def test_a_part_is_what_changes_without_its_edge(smollm2):
    sae, (text, *_) = untrained(smollm2, "attn.hook_z")
    found = dfa(smollm2, sae, text, 7, 20)
    edges = found.top(12)
    changes = found.pre - pre_without(smollm2, sae, smollm2.prepare([text]), 7, 20, edges)
    np.testing.assert_allclose(changes, [edge.part for edge in edges], atol=1e-4)
