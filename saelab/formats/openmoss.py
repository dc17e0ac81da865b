"""OpenMOSS: Llama Scope (`hyperparams.json`) and llamascopium (`config.json` with sae_type or d_model).

With s = sqrt(d_model) / the data set's mean norm (s_in at the input, s_out at the target) and n = ||W_dec||
by latent, both compute relu or JumpReLU of pre * n, pre = (s_in x) W_enc + b_enc, and x_hat = (codes W_dec +
b_dec) / s_out, but in other units:

    llamascopium  codes = pre where pre n > threshold; thresholds are stored as logarithms (read at 2.0.0b34)
    Llama Scope   when it is loaded, s and n go into the weights, and codes = pre where pre > threshold, one
                  number, with pre already times n and in units of raw inputs (read at v1.1.0)

Tensors of Llama Scope are those of torch.nn.Linear, of llamascopium W_E [d_model d_sae], b_E, W_D, b_D.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from saelab.config import is_number
from saelab.formats.layout import LINEAR, flag, positive, take
from saelab.formats.layout import done as finished
from saelab.formats.plain import Plain, hook_of
from saelab.formats.reading import TensorFile, refuse
from saelab.formats.settings import known
from saelab.formats.source import Found, Source
from saelab.sae import SAE
from saelab.types import short

NAME = "openmoss"
OLD, NEW = "hyperparams.json", "config.json"

_PLACES = (
    "sae_weights.safetensors",
    "sae_weights.pt",
    "checkpoints/pruned.safetensors",
    "checkpoints/pruned.pt",
    "checkpoints/final.safetensors",
    "checkpoints/final.pt",
)
_NAMES = {"W_enc": "W_E", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D"}
_NORM = "dataset_average_activation_norm"
_THRESHOLDS = ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold")
# neither says what a trained SAE computes
_TRAINING = set(
    "sae_type expansion_factor d_sae device dtype seed use_triton_kernel jumprelu_threshold_window lp "
    "sparsity_threshold_for_triton_spmm_kernel init_decoder_norm init_encoder_norm strict_loading "
    "sae_pretrained_name_or_path remove_gradient_parallel_to_decoder_directions l1_coefficient "
    "init_encoder_with_decoder_transpose_factor init_encoder_with_decoder_transpose force_unit_decoder_norm "
    "exp_name use_ghost_grads project_name lm_config model_name device_mesh tensor_parallel "
    "fp16 init_search sparsity_include_decoder_norm_warmup use_tensor_parallel".split()
)
_SETTINGS = {
    _NORM,
    *"hook_point_in hook_point_out hook_points d_model act_fn jump_relu_threshold top_k".split(),
    "norm_activation",
    *"sparsity_include_decoder_norm apply_decoder_bias_to_pre_encoder use_decoder_bias".split(),
    "use_glu_encoder",
}


def find(source: Source) -> Found | None:
    """hyperparams.json; config.json with d_model, expansion_factor and a hook_point_in or sae_type."""
    for name in (OLD, NEW):
        config = source.config(name)
        if config is None or not {"d_model", "expansion_factor"} <= set(config):
            continue
        if not {"hook_point_in", "sae_type"} & set(config):
            continue
        weights = next((place for place in _PLACES if source.has(place)), _PLACES[0])
        return Found(source, f"{name} has d_model and expansion_factor", config, weights, name)
    return None


def load(found: Found) -> SAE:
    """What SparseAutoEncoder.from_pretrained gives, in the units of raw activations."""
    config = found.config
    known(config, _TRAINING | _SETTINGS, found)
    kind = config.get("sae_type", "sae")
    if kind != "sae":
        refuse(
            f"sae_type in {found.path} must be sae",
            short(kind),
            "Lorsa, molt, CLT and crosscoders with an encoder for each hook point are no SAEs of one input.",
        )
    for key in ("use_glu_encoder",):
        if config.get(key, False) is not False:
            refuse(f"{key} in {found.path} must be false", short(config[key]), "saelab has no such encoder.")
    file = found.file
    if any(name.startswith("sae.") for name in file.info):  # torch files keep it under that name
        file = file.within("sae.")
    bare = {n: file.info[n] for n in file.info if not n.startswith(_NORM)}
    plain = _plain(found, file, set(file.info) - set(bare))
    sae = finished(plain, found, next(iter(found.file.info)))
    sae.stored_dtype = next(info.dtype for info in bare.values() if len(info.shape) == 2)
    return sae


def _plain(found: Found, file: TensorFile, norms: set[str]) -> Plain:
    config = found.config
    linear = "encoder.weight" in file.info
    names = dict(LINEAR if linear else _NAMES)
    threshold = next((name for name in _THRESHOLDS if name in file.info), None)
    if threshold is not None:
        names["threshold"] = threshold
    if not flag(config.get("use_decoder_bias", True), "use_decoder_bias", found):
        refuse(f"use_decoder_bias in {found.path} must be true", "false", "Write zeros for it.")
    hooks = [hook_of(config.get(key), found.path) for key in ("hook_point_in", "hook_point_out")]
    transcodes = hooks[1] is not None and hooks[1] != hooks[0]
    transposed = ("W_enc", "W_dec") if linear else ()
    weights = take(found, names, file=file, transposed=transposed, ignored=norms, transcodes=transcodes)
    d_in = weights["W_enc"].shape[0]
    if positive(config["d_model"], "d_model", found) != d_in:
        refuse(f"d_model in {found.path} must fit the tensors, where it is {d_in}", str(config["d_model"]))
    logs = weights.pop("threshold", None)
    s_in, s_out = _scales(found, file, d_in)
    subtract = flag(config.get("apply_decoder_bias_to_pre_encoder", False), "apply_decoder_bias", found)
    plain = Plain(
        rule="relu",
        subtract=subtract,
        transcodes=transcodes,
        hook=hooks[0],
        hook_out=hooks[1] if transcodes else None,
        **weights,
    )
    by_norm = flag(config.get("sparsity_include_decoder_norm", True), "sparsity_include_decoder_norm", found)
    if found.config_file == OLD:
        return _old(found, plain, s_in, s_out, by_norm)
    n = plain.W_dec.norm(dim=1) if by_norm else torch.ones(plain.W_dec.shape[0])
    act = config.get("act_fn", "relu")
    if act == "jumprelu":
        if logs is None:
            refuse(f"{file.path} must hold {_THRESHOLDS[0]}, as act_fn says", "no thresholds")
        # pre n > t where pre > t / n, and codes are pre
        plain = replace(plain, rule="jumprelu", threshold=logs.exp() / n)
    elif act == "topk":
        if not torch.allclose(n, n.mean()):
            refuse(
                f"Decoder rows in {found.path.parent} must be of one norm where act_fn is topk",
                "others, by which latents are ranked but codes not multiplied",
                "No SAE of saelab ranks by one thing and gives another.",
            )
        plain = replace(plain, rule="topk", k=positive(config.get("top_k", 50), "top_k", found))
    elif act != "relu":
        refuse(
            f"act_fn in {found.path} must be relu, jumprelu or topk", short(act), "batchtopk needs its batch."
        )
    return plain.scaled(s_in, found.path, s_out)


def _old(found: Found, plain: Plain, s_in: float, s_out: float, by_norm: bool) -> Plain:
    """What Llama Scope does to its weights when it is loaded: raw pre-activations, times n."""
    config, act = found.config, found.config.get("act_fn", "relu")
    threshold = config.get("jump_relu_threshold", 0.0)
    if not is_number(threshold):
        refuse(f"jump_relu_threshold in {found.path} must be a number", short(threshold))
    if plain.transcodes and plain.subtract:
        refuse(f"A transcoder in {found.path} must not subtract its decoder's bias", "one that does")
    # b_dec is of scaled outputs, and of scaled inputs where it is subtracted
    plain = replace(
        plain, b_enc=plain.b_enc / s_in, b_dec=plain.b_dec / s_out, W_dec=plain.W_dec * (s_in / s_out)
    )
    if by_norm:
        plain = plain.folded(plain.W_dec.norm(dim=1), found.path)
    if act == "jumprelu" or (act == "topk" and threshold > 0):
        return replace(plain, rule="jumprelu", threshold=torch.full_like(plain.b_enc, threshold))
    if act == "topk":
        return replace(plain, rule="topk", k=positive(config.get("top_k"), "top_k", found))
    if act != "relu":
        refuse(f"act_fn in {found.path} must be relu, jumprelu or topk", short(act))
    return plain


def _scales(found: Found, file: TensorFile, d_in: int) -> tuple[float, float]:
    """What inputs and targets are multiplied by: 1 where norms are folded already."""
    config = found.config
    kind = config.get("norm_activation", "token-wise" if found.config_file == OLD else "dataset-wise")
    if kind in ("inference", "none", None):
        return 1.0, 1.0
    if kind != "dataset-wise":
        refuse(
            f"norm_activation in {found.path} must be dataset-wise or inference",
            short(kind),
            "Rows or batches divided by norms of their own need another SAE than saelab has.",
        )
    norms: Any = config.get(_NORM)
    if found.config_file == OLD:
        norms = [norms.get(side) for side in ("in", "out")] if isinstance(norms, dict) else [None, None]
    else:
        hooks = (config.get("hook_point_in"), config.get("hook_point_out", config.get("hook_point_in")))
        norms = [_number(file, f"{_NORM}.{hook}") for hook in hooks]
    if not all(is_number(norm) and norm > 0 for norm in norms):
        refuse(f"{_NORM} of {found.path} must be set and > 0", short(norms), "Compute it, or fold it.")
    return d_in**0.5 / norms[0], d_in**0.5 / norms[1]


def _number(file: TensorFile, name: str) -> float | None:
    if name not in file.info or file.info[name].shape not in ((), (1,)):
        return None
    value: Tensor = file.read(name)
    return float(value)
