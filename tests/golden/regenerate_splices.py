"""Write splices/: SAEs and transcoders spliced into tiny models by SAELens' HookedSAETransformer: logits,
codes, errors, and the gradients of a loss.

Run it where SAELens is installed: `PYTHONPATH=. python tests/golden/regenerate_splices.py`, after
`pip install torch sae-lens` in an environment of its own. Written with sae-lens 6.54.12, transformer-lens
3.9.0 and transformers 5.24.0. It imports nothing of saelab: the models are of Hugging Face, with weights out
of a frozen stream of random numbers, and are converted by TransformerLens.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

FOLDER = Path(__file__).with_name("splices")
ARRAYS = FOLDER / "theirs.safetensors"
WIDTH, LATENTS, VOCABULARY, BOS = 16, 24, 29, 0
MODELS = ("gpt2", "llama")
RAW = {"apply_b_dec_to_input": False}
SAES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "z": ("standard", "blocks.0.attn.hook_z",
          {"reshape_activations": "hook_z", "normalize_activations": "constant_norm_rescale"}),
    "stream": ("jumprelu", "blocks.0.hook_resid_post", {}),
    "attention": ("topk", "blocks.1.hook_attn_out", {"k": 5, "normalize_activations": "layer_norm"}),
    "mlp": ("transcoder", "blocks.1.mlp.hook_in", {"d_out": WIDTH, **RAW}),
    "end": ("gated", "blocks.1.hook_resid_post", {}),
}  # fmt: skip
"""name -> (architecture, hook point that it reads, settings)"""
TARGETS = {"mlp": "blocks.1.hook_mlp_out"}


def model(kind: str) -> nn.Module:
    """A Hugging Face model of two blocks."""
    shared = {
        "vocab_size": VOCABULARY,
        "bos_token_id": BOS,
        "eos_token_id": BOS,
        "tie_word_embeddings": False,
    }
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=WIDTH, n_layer=2, n_head=2, n_positions=16, **shared)
    else:
        config = transformers.LlamaConfig(
            hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=16, rms_norm_eps=1e-5, **shared,
        )  # fmt: skip
    config._attn_implementation = "eager"
    made: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        fill(made)
        for name, parameter in made.named_parameters():
            if parameter.ndim == 1 and name.endswith("weight"):  # of norms
                parameter.add_(1)
    return made.eval()


def fill(module: nn.Module) -> None:
    """Weights by the order of their names: numpy promises never to change this stream."""
    for number, (_, parameter) in enumerate(sorted(module.named_parameters())):
        draw = np.random.RandomState(number).standard_normal(parameter.shape)
        parameter.copy_(torch.from_numpy(draw).float() * (0.2 if parameter.ndim == 1 else 0.4))


def ids() -> Tensor:
    """int64 [3, 7], BOS first in all but the last text, whose BOS is in the middle."""
    draw = np.random.RandomState(7).randint(1, VOCABULARY, (3, 7))
    draw[:2, 0] = draw[2, 3] = BOS
    return torch.from_numpy(draw)


def loss_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """The cross-entropy of what follows."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def cases() -> list[tuple[str, bool, bool]]:
    """(model, whether errors stay, whether BOS is spliced too)"""
    return [(kind, error, bos) for kind in MODELS for error in (True, False) for bos in (True, False)]


def name_of(kind: str, error: bool, bos: bool) -> str:
    """Of a case, in the file."""
    return f"{kind}/{'error' if error else 'none'}/{'all' if bos else 'rows'}"


def write_saes() -> None:
    """SAEs of theirs, as they save them."""
    from sae_lens.registry import get_sae_class
    from sae_lens.saes.sae import SAEMetadata

    for name, (architecture, hook, settings) in SAES.items():
        cls, config = get_sae_class(architecture)
        metadata = SAEMetadata(model_name="tiny", hook_name=hook, hook_name_out=TARGETS.get(name))
        sae = cls(config(d_in=WIDTH, d_sae=LATENTS, metadata=metadata, **settings))
        with torch.no_grad():
            fill(sae)
            if architecture == "jumprelu":
                sae.threshold.abs_()
        sae.save_model(FOLDER / name)


def hooked(kind: str) -> Any:
    """Their model with the same weights."""
    from sae_lens import HookedSAETransformer
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions

    shared: dict[str, Any] = {
        "d_model": WIDTH, "n_layers": 2, "n_heads": 2, "d_head": WIDTH // 2, "n_ctx": 16,
        "d_vocab": VOCABULARY, "eps": 1e-5, "device": "cpu", "use_attn_result": False,
    }  # fmt: skip
    if kind == "gpt2":
        config = HookedTransformerConfig(
            **shared, d_mlp=4 * WIDTH, act_fn="gelu_new", normalization_type="LN",
            original_architecture="GPT2LMHeadModel",
        )  # fmt: skip
        weights = weight_conversions.convert_gpt2_weights(model(kind), config)
    else:
        config = HookedTransformerConfig(
            **shared, d_mlp=24, act_fn="silu", normalization_type="RMS", gated_mlp=True, final_rms=True,
            positional_embedding_type="rotary", rotary_dim=WIDTH // 2, rotary_base=10_000,
            rotary_adjacent_pairs=False, n_key_value_heads=1, original_architecture="LlamaForCausalLM",
        )  # fmt: skip
        weights = weight_conversions.convert_llama_weights(model(kind), config)
    made = HookedSAETransformer(config)
    made.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return made.eval()


def run(kind: str, error: bool, bos: bool) -> dict[str, Tensor]:
    """What they make of a case."""
    from sae_lens.saes.sae import SAE

    theirs, tokens = hooked(kind), ids()
    wanted = model(kind)(tokens).logits
    torch.testing.assert_close(theirs(tokens), wanted, atol=1e-5, rtol=1e-5)  # no SAE: the same model
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(value: Tensor, hook: Any) -> Tensor:
            if value.requires_grad:
                value.retain_grad()
            kept[name] = value
            return value

        return hook

    saes = {name: SAE.load_from_disk(FOLDER / name) for name in SAES}
    hooks = []
    for name in SAES:
        place = TARGETS.get(name, SAES[name][1])
        hooks.append((f"{place}.hook_sae_acts_post", keep(f"codes/{name}")))
        if error:
            hooks.append((f"{place}.hook_sae_error", keep(f"errors/{name}")))
    skipped: Any = False if bos else [BOS]
    with (
        theirs.saes(saes=list(saes.values()), use_error_term=error, exclude_special_tokens=skipped),
        theirs.hooks(fwd_hooks=hooks),
    ):
        logits = theirs(tokens)
        loss_of(logits, tokens).backward()
    found = {"logits": logits, "embedding": theirs.W_E.grad, **kept}
    found |= {f"grad/{name}": value.grad for name, value in kept.items() if value.grad is not None}
    found |= {f"W_enc/{name}": sae.W_enc.grad for name, sae in saes.items()}
    return {name: value.detach().contiguous() for name, value in found.items()}


def main() -> None:
    """Write everything anew."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    warnings.simplefilter("ignore")
    write_saes()
    found = {f"{name_of(*case)}/{key}": value for case in cases() for key, value in run(*case).items()}
    safetensors.torch.save_file(found, ARRAYS)
    print(len(found), "arrays,", sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file()), "bytes")


if __name__ == "__main__":
    main()
