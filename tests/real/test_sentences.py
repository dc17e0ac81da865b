"""all-MiniLM-L6-v2 through TorchModule: a working line, and sentences that mean the same lie together."""

from __future__ import annotations

import torch

import saelab

SENTENCES = [
    "A dog runs across the park.",
    "A puppy is running over the grass.",
    "The bank raised its interest rates.",
    "Lending money became dearer.",
]


def test_sentences_through_torch_module(minilm, tmp_path):
    inputs = minilm.prepare(SENTENCES)
    hook = "encoder.layer.5"
    acts = minilm.run(inputs, read=hook).acts[hook]
    mask = inputs.data["attention_mask"][:, :, None]
    means = torch.nn.functional.normalize((acts * mask).sum(1) / mask.sum(1), dim=-1)
    near = means @ means.T
    assert min(near[0, 1], near[2, 3]) > max(near[0, 2], near[0, 3], near[1, 2], near[1, 3]) + 0.1
    with torch.no_grad():
        whole = minilm.module(**inputs.data).last_hidden_state
    assert torch.equal(acts, whole)
    store = saelab.harvest(minilm, SENTENCES * 10, [hook], tmp_path / "acts", max_rows=250, progress=False)
    config = saelab.recipe("topk", d_in=384, d_sae=256, k=8, hook=hook)
    sae = saelab.train(config, store, steps=30, batch_size=125, seed=0, progress=False).sae
    found = saelab.index(minilm, sae, SENTENCES, tmp_path / "features", progress=False)
    assert found.n_latents == 256
