"""Where the modules of a Hugging Face causal language model lie, and the hook points that they give.

One table of attribute names instead of a class per architecture: GPT-2, GPT-J, GPT-Neo, GPT-NeoX (Pythia),
OPT, BLOOM, Falcon, Phi, Llama, Mistral, Qwen, Gemma, OLMo and others differ only in these names. Whether what
is found is what it is called, `saelab.subjects.streams` measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from saelab.subjects.hooks import Site, View
from saelab.subjects.streams import settle
from saelab.types import SubjectError

AS_MODULE = 'saelab.TorchModule(model, lambda texts: tokenizer(texts, return_tensors="pt", padding=True))'
LAYERS = (
    "transformer.h", "model.layers", "gpt_neox.layers", "model.decoder.layers", "transformer.blocks",
    "model.language_model.layers", "language_model.model.layers", "backbone.layers",
)  # fmt: skip
FINAL_NORM = ("ln_f", "norm", "final_layer_norm", "final_layernorm", "norm_f")
EMBED_NORM = ("word_embeddings_layernorm",)  # BLOOM
POSITIONS = ("wpe", "embed_positions")
ATTENTION = ("attn.attention", "attn", "self_attn", "attention", "self_attention")
ATTENTION_OUT = ("o_proj", "c_proj", "out_proj", "dense", "proj")
MLP = ("mlp", "feed_forward", "ffn", "")  # "": the block itself holds fc1 and fc2 (OPT)
MLP_OUT = ("down_proj", "c_proj", "dense_4h_to_h", "fc_out", "fc2")
MLP_IN = ("gate_proj", "c_fc", "dense_h_to_4h", "fc_in", "fc1", "up_proj")


class Architecture:
    """The modules of one model by role, found through the table above.

    points: TransformerLens name -> Site, in the order of the pass; those of the stream before `settle`.
    final_norm, layers: the modules; n_heads: query heads; rotary: whether q and k are rotated.
    missing: name -> why a usual hook point does not exist here.
    Raises SubjectError with the paths tried where the layers are not found.
    """

    def __init__(self, model: nn.Module) -> None:
        found = [(path, m) for path in LAYERS if isinstance(m := _get(model, path), nn.ModuleList) and len(m)]
        if not found:
            msg = (
                "A language model's blocks must lie at a known path. "
                f"Got {type(model).__name__} with none of: {', '.join(LAYERS)}. "
                f"Read it at its modules' paths: {AS_MODULE}."
            )
            raise SubjectError(msg)
        path, self.layers = found[0]
        stem: Any = _get(model, path.rpartition(".")[0])
        config: Any = getattr(model, "config", None)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        self.config = config
        self.n_heads: int | None = getattr(config, "num_attention_heads", None)
        self.final_norm = _first(stem, FINAL_NORM)
        self.missing: dict[str, str] = {}
        self.points: dict[str, Site] = {}
        embed = getattr(model, "get_input_embeddings", lambda: None)()
        if isinstance(embed, nn.Module):
            self.points["hook_embed"] = Site(_first(stem, EMBED_NORM) or embed)
        named = any("rotary" in name for name, _ in model.named_modules())
        self.rotary = named or hasattr(config, "rotary_dim")
        positions = _first(stem, POSITIONS)
        if positions is not None:
            self.points["hook_pos_embed"] = Site(positions)
        for i, block in enumerate(self.layers):
            self.points |= block_points(f"blocks.{i}", block)
        if self.final_norm is not None:
            self.points["ln_final.hook_out"] = Site(self.final_norm)

    def settle(self, view: View, forward: Callable[[], Any]) -> None:
        """Keep the points of the stream that are what they are called, by passes over a few tokens.

        Raises:
            SubjectError: The model ends in an error.
        """
        try:
            self.points, self.missing = settle(list(self.layers), self.points, view, forward)
        except Exception as error:
            message = (
                f"A language model must read a few tokens. Got {type(error).__name__}: {str(error)[:300]}. "
                "Load it on a device where it runs."
            )
            raise SubjectError(message) from error


def block_points(prefix: str, block: nn.Module) -> dict[str, Site]:
    """The hook points of a transformer's block, as the names of its parts promise them.

    Args:
        prefix: What their names begin with: "blocks.3".
        block: With attention, an MLP, or both.
    """
    attention = _first(block, ATTENTION)
    attention_out = _first(attention, ATTENTION_OUT)
    mlp = _first(block, MLP)
    mlp_in, mlp_out = _first(mlp, MLP_IN), _first(mlp, MLP_OUT)
    if mlp is block and (mlp_in is None or mlp_out is None):
        mlp = mlp_in = mlp_out = None
    # what a branch adds to the stream is the output of its second norm, or of its scale, where it has one
    post_mlp = _first(block, ("post_feedforward_layernorm", "post_mlp_layernorm", "layer_scale2", "ls2"))
    names = ("post_self_attn_layernorm", "post_attention_layernorm", "layer_scale1", "ls1")
    post_attention = _first(block, names) if post_mlp is not None else None

    points = {f"{prefix}.hook_resid_pre": Site(block, "in")}
    if attention is not None and attention_out is not None:
        points[f"{prefix}.attn.hook_in"] = Site(attention, "in")
        points[f"{prefix}.attn.hook_z"] = Site(attention_out, "in")
        points[f"{prefix}.hook_attn_out"] = Site(post_attention or attention_out)
    if mlp is not None:
        entry: Any = mlp_in if mlp is block else mlp
        points[f"{prefix}.mlp.hook_in"] = Site(entry, "in")
        end: Any = mlp_out if mlp is block else mlp
        points[f"{prefix}.mlp.hook_out"] = Site(end)
    if mlp_in is not None and mlp_out is not None:
        points[f"{prefix}.mlp.hook_pre"] = Site(mlp_in)
        linear = _get(mlp, "up_proj") if _get(mlp, "gate_proj") is mlp_in else None
        if linear is not None:
            points[f"{prefix}.mlp.hook_pre_linear"] = Site(linear)
    if mlp_out is not None:
        points[f"{prefix}.mlp.hook_post"] = Site(mlp_out, "in")
    if mlp is not None:
        points[f"{prefix}.hook_mlp_out"] = Site(post_mlp or mlp_out or mlp)
    points[f"{prefix}.hook_resid_post"] = Site(block)
    return points


def _first(module: nn.Module | None, names: Sequence[str]) -> Any:
    if module is None:
        return None
    for name in names:
        if not name:
            return module
        found = _get(module, name)
        if isinstance(found, nn.Module):
            return found
    return None


def _get(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


__all__ = ["ATTENTION", "LAYERS", "Architecture", "block_points"]
