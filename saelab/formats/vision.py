"""SAEs of vision models that are pickles of their configuration and weights: ViT-Prisma,
mats_sae_training_for_ViTs (HugoFry) and PatchSAE, and SAELens before version 3 (read at 6c19417, f828b49,
763eceb, and v0.1.0 to v2.1.3).

{"cfg", "state_dict"} or {"config", "autoencoder"}, or `weights.pt` beside `config.json`. All of them write
`.pt` with torch.save and, SAELens to version 0, `.pkl.gz` with pickle.dump. Tensors have the names and
orientation of SAELens. b_dec is subtracted, after rows are normalised, unless SAELens's apply_b_dec_to_input
is false:

    relu((norm(x) - b_dec) W_enc + b_enc),  gated as in SAELens,  or the k largest, then relu

Prisma's norm is layer_norm unless its config says otherwise; the others, which have no such setting, have
none. normalize_activations of SAELens 2 divides by a mean norm that it does not store: only false is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saelab.config import is_integer
from saelab.formats.layout import SAME, done, flag, positive, take
from saelab.formats.plain import Plain, hook_of
from saelab.formats.reading import TensorFile, refuse
from saelab.formats.saelens_legacy import TRAINED
from saelab.formats.settings import HARMLESS, known, only
from saelab.formats.source import Found, Source
from saelab.sae import SAE
from saelab.types import short

NAME = "vision"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "weights.pt"
OPTIONS = {
    "normalise": "'none' or 'layer_norm', for files that do not say which of the libraries wrote them."
}

_GATED = {"b_gate": "b_gate", "r_mag": "r_mag", "b_mag": "b_mag"}
_SETTINGS = set("__class__ hook_point hook_point_layer layer_subtype activation_fn_str block_layer".split())
"""Settings that only these libraries have; others have cfg and state_dict too."""
_CODES = set(
    "__class__ d_in d_sae d_out architecture activation_fn activation_fn_str activation_fn_kwargs "
    "activation_fn_kwargs.k normalize_activations apply_b_dec_to_input is_transcoder gated_sae topk_sae "
    "jumprelu_sae matryoshka_sae hook_point_head_index".split()
)
# of training a transcoder, a TopK and others, whose own settings say whether it is one
_TRAINING = TRAINED | set(
    "_device _dtype transcoder_with_skip_connection out_hook_point_layer layer_out_subtype "
    "_custom_hook_point "
    "topk_k topk_aux_k topk_aux_coefficient jumprelu_bandwidth jumprelu_init_threshold "
    "jumprelu_l0_coefficient matryoshka_levels matryoshka_min_group_fraction activation_vectors_per_example "
    "n_batches_in_store store_size max_batch_size_for_vit_forward_pass create_dataloader mse_cls_coefficient "
    "dead_feature_estimation_method experiment_metadata hook_eval shuffle_every_n_buffers "
    "log_final_model_to_wandb "
    "model_batch_size n_running_sparsity store_batch_size_images unique_id hook_transformer_block_layer "
    "sae_lens_version sae_lens_training_version".split()
)
_NO_NORM = ("sae_training", "src.sae_training", "sae_lens.training")
"""Modules of configurations that have no setting for the norm."""
_NORMALISE = {"none": "none", "layer_norm": "zscore", "constant_norm_rescale": "sphere"}


def find(source: Source) -> Found | None:
    """A pickle of a configuration object and weights; weights.pt beside a config with Prisma's settings."""
    config = source.config(CONFIG_FILE) if source.alone or source.name is None else None
    if config is not None and source.has(WEIGHTS_FILE) and "hook_point_layer" in config and "d_in" in config:
        evidence = f"{CONFIG_FILE} has hook_point_layer, beside {WEIGHTS_FILE}"
        return Found(source, evidence, config, WEIGHTS_FILE, CONFIG_FILE)
    file = source.tensors()
    if file is None or source.weights is None:
        return None
    for settings, state in (("cfg.", "state_dict."), ("config.", "autoencoder.state_dict.")):
        said = file.within(settings).extra
        if _SETTINGS & set(said) and {f"{state}W_enc", f"{state}W_dec"} <= set(file.info):
            evidence = f"{source.weights} has {settings[:-1]} and {state[:-1]}"
            return Found(source, evidence, said, source.weights)
    return None


def load(found: Found) -> SAE:
    """The SAE that the configuration and the weights make."""
    config, file = found.config, _state(found.file)
    known(config, HARMLESS | _TRAINING | _CODES, found)
    architecture = config.get("architecture", "standard")
    for key in ("is_transcoder", "jumprelu_sae", "matryoshka_sae"):
        only(config.get(key), [None, False], key, found)
    if config.get("gated_sae"):
        architecture = "gated"
    only(config.get("hook_point_head_index"), [None], "hook_point_head_index", found)
    only(config.get("topk_sae"), [None, False], "topk_sae", found)
    activation = config.get("activation_fn_str", config.get("activation_fn", "relu"))
    if architecture not in ("standard", "gated") or activation not in ("relu", "topk"):
        refuse(
            f"The SAE in {found.path} must be standard or gated, its activation relu or topk",
            f"{short(architecture)}, {short(activation)}",
            "saelab has no other of these libraries.",
        )
    if activation == "relu":
        only(_kwargs(config).get("k"), [None], "k", found)
    if architecture == "gated" and activation == "topk":
        refuse(f"A gated SAE in {found.path} must have activation relu", "topk", "saelab has no such SAE.")
    names, unused = dict(SAME), {"scaling_factor"}
    if architecture == "gated":
        if not set(_GATED) <= set(file.info):
            refuse(f"A gated SAE in {file.path} must hold {', '.join(_GATED)}", short(sorted(file.info)))
        # its b_enc is there and not used
        names, unused = names | _GATED | {"b_enc": "b_gate"}, unused | {"b_enc"}
        del names["b_gate"]
    if "scaling_factor" in file.info and not (file.read("scaling_factor") == 1).all():
        refuse(f"scaling_factor in {file.path} must be 1", "others", "saelab does not read it here.")
    weights = take(found, names, file=file, ignored=unused)
    d_in, d_sae = weights["W_enc"].shape
    for key, size in (("d_in", d_in), ("d_sae", d_sae)):
        if config.get(key, size) not in (size, None):
            refuse(f"{key} in {found.path} must fit the tensors, where it is {size}", short(config[key]))
    rule: Any = "gated" if architecture == "gated" else activation
    k = _k(config, found) if rule == "topk" else None
    plain = Plain(
        rule=rule,
        subtract=flag(config.get("apply_b_dec_to_input", True), "apply_b_dec_to_input", found),
        normalise=_norm(found),
        k=k,
        hook=_hook(config, found),
        **weights,
    )
    return done(plain, found, next(name for name in found.file.info if name.endswith("W_enc")))


def _state(file: TensorFile) -> TensorFile:
    for prefix in ("state_dict.", "autoencoder.state_dict."):
        if any(name.startswith(prefix) for name in file.info):
            return file.within(prefix)
    return file


def _norm(found: Found) -> str:
    config = found.config
    kind = config.get("__class__", "").rsplit(".", 1)
    if "normalize_activations" in config:
        value = config["normalize_activations"]
    elif kind[0].startswith(_NO_NORM):
        value = "none"
    elif kind[0].startswith("vit_prisma"):
        value = "layer_norm"
    else:
        value = found.asked("normalise", "it does not say how inputs are normalised")
    value = "none" if value is None or value is False else value
    if not isinstance(value, str) or value not in _NORMALISE:
        refuse(f"normalize_activations in {found.path} must be one of {', '.join(_NORMALISE)}", short(value))
    return _NORMALISE[value]


def _kwargs(config: Mapping[str, Any]) -> dict[str, Any]:
    options = config.get("activation_fn_kwargs")
    return options if isinstance(options, dict) else {"k": config.get("activation_fn_kwargs.k")}


def _k(config: Mapping[str, Any], found: Found) -> int:
    return positive(_kwargs(config).get("k"), "k", found)


def _hook(config: Mapping[str, Any], found: Found) -> Any:
    """blocks.{layer}.{subtype}, where the name has a place for the layer."""
    name, layer = config.get("hook_point"), config.get("hook_point_layer")
    if name is None and isinstance(config.get("layer_subtype"), str) and is_integer(layer):
        name = f"blocks.{layer}.{config['layer_subtype']}"
    if isinstance(name, str) and "{layer}" in name and is_integer(layer):
        name = name.replace("{layer}", str(layer))
    return hook_of(name, found.path)
