"""SAELens' splice in a process of its own: `splice_worker.py SHAPE D_SAE SAMPLES POSITIONS THREADS`.

SHAPE: JSON of the sizes of a model like Llama (with n_key_value_heads) or GPT-2, which gets random weights,
and the layer that is edited. At each line on stdin it runs the same batch three times, and answers by a line
of JSON: seconds of the plain `HookedSAETransformer`, of one in which the SAE is spliced with its error term,
and of that with a hook at its codes that scales five latents, which is how a latent is edited there.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch


def main() -> None:
    # libraries print: the answers get stdout for themselves
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    shape, d_sae, samples, positions, threads = json.loads(sys.argv[1]), *map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    calls = runs(shape, d_sae, samples, positions)
    for _ in sys.stdin:
        seconds = {}
        for name, call in calls.items():
            begin = time.thread_time()
            with torch.no_grad():
                call()
            seconds[name] = time.thread_time() - begin
        print(json.dumps(seconds), file=out, flush=True)


def runs(shape: dict[str, int], d_sae: int, samples: int, positions: int) -> dict[str, Callable[[], Any]]:
    """What is run, by name."""
    from sae_lens import HookedSAETransformer, JumpReLUSAE, JumpReLUSAEConfig
    from transformer_lens import HookedTransformerConfig

    layer = shape.pop("layer")
    llama = {
        "act_fn": "silu", "normalization_type": "RMS", "positional_embedding_type": "rotary",
        "rotary_dim": shape["d_head"], "final_rms": True, "gated_mlp": True,
    }  # fmt: skip
    gpt2 = {"act_fn": "gelu_new", "normalization_type": "LN"}
    config = HookedTransformerConfig(
        **shape, **(llama if "n_key_value_heads" in shape else gpt2), device="cpu"
    )
    model = HookedSAETransformer(config).eval()
    hook = f"blocks.{layer}.hook_resid_post"
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=shape["d_model"], d_sae=d_sae))
    sae.cfg.metadata.hook_name = hook
    sae.use_error_term = True
    for weights in (sae.W_enc, sae.W_dec):
        torch.nn.init.kaiming_uniform_(weights)
    ids = torch.randint(shape["d_vocab"], (samples, positions), generator=torch.Generator().manual_seed(0))

    def scaled(codes: torch.Tensor, hook: Any) -> torch.Tensor:
        codes[..., :5] *= 2
        return codes

    edits = [(f"{hook}.hook_sae_acts_post", scaled)]
    return {
        "plain": lambda: model(ids),
        "splice": lambda: model.run_with_saes(ids, saes=[sae]),
        "edit": lambda: model.run_with_hooks_with_saes(ids, saes=[sae], fwd_hooks=edits),
    }


if __name__ == "__main__":
    main()
