"""Every causal language model family of transformers that can be built tiny, with random weights."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

# what configurations call their sizes: a family is given those that it knows
SIZES: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "n_embd": 32, "d_model": 32, "embed_dim": 32,
    "intermediate_size": 48, "ffn_dim": 48, "dff": 48, "moe_intermediate_size": 24, "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48, "shared_intermediate_size": 48, "shared_expert_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2,
    "num_layers": 2, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 4, "n_head": 4,
    "n_heads": 4, "attention_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "n_positions": 64, "n_ctx": 64, "max_seq_len": 64, "seq_length": 64, "word_embed_proj_dim": 32,
    "rotary_dim": 4, "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "state_size": 4,
    "mamba_d_state": 4, "mamba_dt_rank": 4, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 4, "mamba_d_ssm": 64, "lru_width": 32,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "n_group": 1, "topk_group": 1, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "expansion_ratio": 2, "use_mamba_kernels": False,
    "first_k_dense_replace": 1, "sliding_window": 6, "attention_chunk_size": 6, "local_attention": 6,
    "use_sliding_window": True, "max_window_layers": 1, "attention_window_size": 6, "is_decoder": True,
    "num_dense_layers": 1, "embedding_size": 32, "global_head_dim": 8, "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 300, "num_kv_shared_layers": 0, "laurel_rank": 4, "altup_num_inputs": 2,
    "dim_model_base": 8, "num_nextn_predict_layers": 0, "max_seq_length": 64,
}  # fmt: skip

LARGE = 3_000_000
"""Parameters above which a family counts as one whose sizes are not known here."""


def names() -> list[str]:
    """Of all families, whether or not they can be built."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@cache
def _config(family: str, **own: Any) -> Any:
    made = CONFIG_MAPPING[family]
    known = {*inspect.signature(made.__init__).parameters, *getattr(made, "__dataclass_fields__", {})}
    known |= {name for cls in made.__mro__ for name in getattr(cls, "__annotations__", {})}
    return made(**{name: value for name, value in {**SIZES, **own}.items() if name in known})


def build(family: str, seed: int = 0, **changes: Any) -> nn.Module | None:
    """A tiny random model that reads tokens, in eval mode, or None where these sizes are not enough."""
    for heads in (SIZES["num_key_value_heads"], SIZES["num_attention_heads"]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                config = copy.deepcopy(_config(family, num_key_value_heads=heads))
                for name, value in changes.items():
                    setattr(config, name, value)
                with torch.device("meta"):
                    sketch = transformers.AutoModelForCausalLM.from_config(config)
                if sum(p.numel() for p in sketch.parameters()) > LARGE:
                    return None
                torch.manual_seed(seed)
                model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
                with torch.no_grad():
                    padded = torch.tensor([[1, 1, 1], [1, 1, 0]])
                    model(torch.tensor([[1, 2, 3], [4, 5, 0]]), attention_mask=padded, use_cache=False)
            except Exception:  # sizes that do not fit together, in one of a hundred ways
                continue
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.ndim == 2:
                    p.copy_(torch.randn(p.shape, generator=draw) * p.shape[-1] ** -0.5)
                elif "norm" in name.lower() or ".ln" in name:
                    p.add_(torch.randn(p.shape, generator=draw) * 0.3)
        return model
    return None


def every() -> Iterator[tuple[str, nn.Module]]:
    """(family, model) of those that can be built."""
    for family in names():
        model = build(family)
        if model is not None:
            yield family, model
