"""SAELens, versions 3 to 6: a folder with `cfg.json` and `sae_weights.safetensors` (read at 6.54.12;
what older versions wrote is put into the terms of version 6 first: see saelens_legacy).

cfg.json: {"architecture", "d_in", "d_sae", "dtype", "apply_b_dec_to_input", "normalize_activations",
"reshape_activations", "metadata": {"sae_lens_version", "hook_name", ...}, ...}.

Tensors: W_enc [d_in d_sae], W_dec [d_sae d_out], b_enc [d_sae], b_dec [d_out]; jumprelu has threshold [d_sae]
besides, gated b_gate, b_mag and r_mag [d_sae] instead of b_enc, skip transcoders W_skip [d_out d_in],
matching pursuit W_dec and b_dec alone. scaling_factor [d_sae] of versions before 6 multiplies codes in the
decoder.

With `rescale_acts_by_decoder_norm` topk ranks and returns pre * n, n = ||W_dec||, and decodes codes / n: the
same as W_enc n, b_enc n and W_dec / n without it, which is how it is loaded. Training checkpoints of
batchtopk and matryoshka SAEs are loaded as SAELens saves them for inference: folded in the same way, then
jumprelu with `topk_threshold` for every latent.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from saelab.config import is_integer, is_number
from saelab.files import write_bytes, write_json
from saelab.formats.plain import Plain, build, hook_of, of
from saelab.formats.reading import TensorFile, refuse
from saelab.formats.saelens_legacy import modern
from saelab.formats.settings import harmless, known, only
from saelab.formats.source import Found, Source
from saelab.sae import SAE
from saelab.types import short

NAME = "saelens"
CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"
VERSION = "6.54.12"
"""Of SAELens, whose files these are."""

_RULES = {
    "standard": "relu",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "abstopk": "abs_topk",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
    "matching_pursuit": "matching_pursuit",
}
_NORMALISE = {"none": "none", "layer_norm": "zscore", "constant_norm_rescale": "sphere"}
_NOT_FOLDED = {
    "expected_average_only_in": "the factor that inputs were divided by is not in the file",
    "covariance_whitening": "the mean and matrix that whiten inputs are not in the file",
}
_DTYPES = {
    prefix + name: getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16")
    for prefix in ("", "torch.")
}
_KEYS = set(
    "architecture d_in d_sae dtype device apply_b_dec_to_input normalize_activations reshape_activations "
    "metadata sae_lens_version d_out k rescale_acts_by_decoder_norm residual_threshold max_iterations "
    "stop_on_duplicate_support".split()
)
OPTIONS = {
    "norm_scaling_factor": "What inputs are multiplied by where normalize_activations is "
    "expected_average_only_in: the registry of SAELens states it for some releases.",
}
_FACTORS = {"scaling_factor", "finetuning_scaling_factor"}
# of training configurations; they say nothing of how a trained SAE encodes
_TRAINING_KEYS = set(
    "decoder_init_norm l1_coefficient lp_norm l1_warm_up_steps jumprelu_init_threshold jumprelu_bandwidth "
    "jumprelu_sparsity_loss_mode l0_coefficient l0_warm_up_steps pre_act_loss_coefficient "
    "jumprelu_tanh_scale jumprelu_ste_to_input target_l0 use_sparse_activations aux_loss_coefficient "
    "topk_threshold_lr matryoshka_widths use_matryoshka_aux_loss".split()
)


def find(source: Source) -> Found | None:
    """cfg.json with an architecture and a width, beside sae_weights.safetensors."""
    config = source.config(CONFIG_FILE)
    if config is None or not source.has(WEIGHTS_FILE):
        return None
    said = {"architecture", "activation_fn_str", "hook_name", "hook_point"}
    if "d_in" not in config or not said & set(config):
        return None
    evidence = (
        f"{CONFIG_FILE} has architecture {short(config.get('architecture'))} and version "
        f"{short(_version(config))}, beside {WEIGHTS_FILE}"
    )
    return Found(source, evidence, config, WEIGHTS_FILE, CONFIG_FILE)


def load(found: Found) -> SAE:
    """The SAE that SAELens makes of the folder."""
    path, config, file = found.path, dict(found.config), found.file
    if _major(config, path) < 6:
        config = modern(config, path)
    if "normalize_activations" in found.source.said:
        config["normalize_activations"] = found.source.said["normalize_activations"]
    architecture = _checked(config, found)
    d_in, d_sae = _size(config, "d_in", path), _size(config, "d_sae", path)
    transcodes = architecture.endswith("transcoder")
    d_out = _size({"d_out": 768} | config, "d_out", path) if transcodes else d_in
    subtract = config.get("apply_b_dec_to_input", True)
    if not isinstance(subtract, bool) or (transcodes and subtract):
        rule = "False in transcoders" if transcodes else "true or false"
        refuse(f"apply_b_dec_to_input in {path} must be {rule}", short(subtract))
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_enc": (d_sae,), "b_dec": (d_out,)}
    if architecture == "matching_pursuit":
        del shapes["W_enc"], shapes["b_enc"]
    elif architecture == "gated":
        del shapes["b_enc"]
        shapes |= {"b_gate": (d_sae,), "b_mag": (d_sae,), "r_mag": (d_sae,)}
    elif architecture.startswith("jumprelu"):
        # training checkpoints of an older kind hold its logarithm, which SAELens turns into it
        shapes["log_threshold" if "log_threshold" in file.info else "threshold"] = (d_sae,)
    elif architecture.endswith("batchtopk"):
        shapes["topk_threshold"] = ()
    if architecture.endswith("skip_transcoder"):
        shapes["W_skip"] = (d_out, d_in)
    weights = _weights(file, shapes, _DTYPES[config.get("dtype", "float32")], found.source.dtype)
    threshold = weights.get("threshold")
    if "log_threshold" in weights:
        threshold = weights["log_threshold"].exp()
    if "topk_threshold" in weights:
        if not weights["topk_threshold"] > 0:
            refuse(f"topk_threshold in {file.path} must be above 0", "one that training has not set yet")
        threshold = weights["topk_threshold"] * torch.ones(d_sae)
    metadata = config.get("metadata", {})
    normalise = _normalise(config, d_in, found)
    factors = _factors(config, file, d_sae, path)
    if architecture == "matching_pursuit":
        return build(
            _pursuit(config, weights, normalise, hook_of(metadata.get("hook_name"), path), path), path
        )
    sae = Plain(
        rule=_RULES[architecture],  # type: ignore[arg-type]
        W_enc=weights["W_enc"],
        b_enc=weights["b_gate"] if architecture == "gated" else weights["b_enc"],
        W_dec=weights["W_dec"] if factors is None else weights["W_dec"] * factors[:, None],
        b_dec=weights["b_dec"],
        subtract=subtract,
        normalise=normalise or "none",
        k=config.get("k", 100) if _RULES[architecture] in ("topk", "abs_topk") else None,
        threshold=threshold,
        r_mag=weights.get("r_mag"),
        b_mag=weights.get("b_mag"),
        W_skip=weights["W_skip"].t() if "W_skip" in weights else None,
        transcodes=transcodes,
        hook=hook_of(metadata.get("hook_name"), path),
        hook_out=hook_of(metadata.get("hook_name_out"), path) if transcodes else None,
    )
    rescale = config.get("rescale_acts_by_decoder_norm", architecture.endswith("batchtopk"))
    if not isinstance(rescale, bool):
        refuse(f"rescale_acts_by_decoder_norm in {path} must be true or false", short(rescale))
    if rescale and "topk" in architecture:
        sae = sae.folded(sae.W_dec.norm(dim=-1), file.path)
    if normalise is None:
        sae = sae.scaled(float(_factor(found)), path)
    loaded = build(sae, path)
    loaded.stored_dtype = file.info["W_dec"].dtype
    return loaded


def save(sae: SAE, folder: Path) -> None:
    """What SAELens loads without a warning and with the same codes."""
    plain = of(sae, NAME)
    architecture = {v: k for k, v in reversed(_RULES.items())} | {
        "jumprelu": "jumprelu",
        "batchtopk": "jumprelu",
        "matryoshka": "jumprelu",
    }
    why = None if plain.rule in architecture else "SAELens has no such rule"
    if plain.rule == "matching_pursuit":
        why = _other_pursuit(plain)
    if why is not None:
        refuse(
            "An SAE saved as saelens must be one that it can hold exactly",
            f"{sae.config.title!r}, codes selected by {plain.rule}: {why}",
            "Save it as 'saelab'.",
        )
    name = architecture[plain.rule]
    if plain.transcodes:
        if name not in ("standard", "jumprelu"):
            refuse(
                "A transcoder saved as saelens must be ReLU or JumpReLU",
                f"{sae.config.title!r} with sparsity {plain.rule!r}",
                "Save it as 'saelab'.",
            )
        name = ("jumprelu_" if name == "jumprelu" else "") + (
            "transcoder" if plain.W_skip is None else "skip_transcoder"
        )
    d_in, d_sae = plain.W_enc.shape
    tensors = {"W_enc": plain.W_enc, "W_dec": plain.W_dec, "b_enc": plain.b_enc, "b_dec": plain.b_dec}
    if plain.rule == "gated":
        tensors |= {"b_gate": tensors.pop("b_enc"), "b_mag": plain.b_mag, "r_mag": plain.r_mag}
    if plain.threshold is not None:
        tensors["threshold"] = plain.threshold * torch.ones(d_sae)
    if plain.W_skip is not None:
        tensors["W_skip"] = plain.W_skip.t()
    hook = None if plain.hook is None else plain.hook.name
    metadata = {"sae_lens_version": VERSION, "sae_lens_training_version": VERSION, "hook_name": hook}
    if plain.transcodes:
        metadata["hook_name_out"] = None if plain.hook_out is None else plain.hook_out.name
    config = {
        "architecture": name,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": plain.subtract,
        "normalize_activations": {v: k for k, v in _NORMALISE.items()}[plain.normalise],
        # SAELens reads z by head there
        "reshape_activations": "hook_z" if hook is not None and hook.endswith("hook_z") else "none",
        "metadata": metadata,
    }
    if plain.transcodes:
        config["d_out"] = plain.W_dec.shape[1]
    if plain.rule == "matching_pursuit":
        del tensors["W_enc"], tensors["b_enc"]
        renamed = {"stop_on_duplicate": "stop_on_duplicate_support"}
        config |= {
            renamed.get(k, k): v
            for k, v in plain.pursuit.items()
            if k not in ("finish_step", "whole_product")
        }
    if plain.k is not None and "topk" in name:
        config |= {"k": plain.k, "rescale_acts_by_decoder_norm": False}
    kept = {key: tensor.contiguous() for key, tensor in tensors.items() if tensor is not None}
    write_bytes(folder / WEIGHTS_FILE, safetensors.torch.save(kept))
    write_json(folder / CONFIG_FILE, config)


def _other_pursuit(plain: Plain) -> str | None:
    """Why SAELens' matching pursuit gives other codes, None where it gives the same."""
    if not (plain.W_dec.norm(dim=1) - 1).abs().max() <= 2e-6:
        return "it needs decoder rows of norm 1 in raw units, as with normalise='none'"
    if plain.pursuit["whole_product"]:
        return "its codes are never below 0, as with whole_product=False"
    if not plain.pursuit["finish_step"]:
        return "it looks at the residual after a step, as with finish_step=True"
    if not plain.subtract and plain.b_dec.any():
        return "it adds b_dec only where it subtracts it"
    return None


def _version(config: dict[str, Any]) -> Any:
    metadata = config.get("metadata")
    inner = metadata.get("sae_lens_version") if isinstance(metadata, dict) else None
    return config.get("sae_lens_version") or inner


def _major(config: dict[str, Any], path: Path) -> int:
    """Of the version that wrote it; before 6 some said nothing."""
    version = _version(config)
    if version is None:
        return 5
    major = re.match(r"(\d{1,9})\.", version) if isinstance(version, str) else None
    if major is None:
        refuse(f"sae_lens_version in {path} must be a version", short(version))
    return int(major[1])


def _checked(config: dict[str, Any], found: Found) -> str:
    """The architecture, after everything in the config that does not depend on the tensors was checked."""
    path = found.path
    if not isinstance(config.get("metadata", {}), dict):
        refuse(f"metadata in {path} must be an object", short(config["metadata"]))
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or architecture not in _RULES:
        refuse(
            f"The architecture in {path} must be one of {', '.join(_RULES)}",
            short(architecture),
            "Codes of temporal SAEs depend on the rows before them, by attention: no SAE of saelab has that."
            if architecture == "temporal"
            else "saelab does not read others of SAELens.",
        )
    known(config, _KEYS | _TRAINING_KEYS | {"finetuning_scaling_factor"}, found)
    harmless(config.get("metadata"), "metadata", found)
    if "topk" not in architecture and _RULES[architecture] != "jumprelu":  # whose thresholds say it all
        only(config.get("k"), [None], "k", found)
    if "topk" not in architecture:
        only(config.get("rescale_acts_by_decoder_norm"), [None, False], "rescale_acts_by_decoder_norm", found)
    dtype = config.get("dtype", "float32")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        refuse(f"dtype in {path} must be one of {', '.join(_DTYPES)}", short(dtype))
    shape = config.get("reshape_activations", "none")
    hook = config.get("metadata", {}).get("hook_name")
    if shape not in ("none", "hook_z"):
        refuse(f"reshape_activations in {path} must be 'none' or 'hook_z'", short(shape))
    if shape == "hook_z" and hook is not None and not str(hook).endswith("_z"):
        refuse(f"A hook with reshape_activations='hook_z' in {path} must end with _z", short(hook))
    for key in ("hook_head_index", "hook_head_index_out"):
        if config.get("metadata", {}).get(key) is not None:
            refuse(
                f"{path} must read whole activations",
                f"{key} {short(config['metadata'][key])}",
                "saelab cannot name the hook of one head.",
            )
    return architecture


def _factor(found: Found) -> Any:
    """What inputs are multiplied by, as the user or else the registry says."""
    return {**found.source.said, **found.source.given}["norm_scaling_factor"]


def _normalise(config: dict[str, Any], d_in: int, found: Found) -> str | None:
    """Ours, or None for a factor that the user gave."""
    path, value = found.path, config.get("normalize_activations", "none")
    # the registry states factors of SAEs whose files say that they need none, too
    registered = "norm_scaling_factor" in found.source.said and value == "expected_average_only_in"
    if "norm_scaling_factor" in found.source.given or registered:
        factor = _factor(found)
        if value != "expected_average_only_in" or not is_number(factor) or not factor > 0:
            refuse(
                f"norm_scaling_factor must be > 0, and {path} of normalisation expected_average_only_in",
                f"{factor!r} and {short(value)}",
                "Leave it out, or pass what the registry of SAELens states.",
            )
        return None
    if isinstance(value, str) and value in _NOT_FOLDED:
        refuse(
            f"The normalisation in {path} must be part of the weights",
            f"{value!r}: {_NOT_FOLDED[value]}",
            "Let SAELens fold it (fold_activation_norm_scaling_factor, fold_activation_whitening) and save, "
            "or pass load_sae(..., norm_scaling_factor=...) as its registry states it.",
        )
    if not isinstance(value, str) or value not in _NORMALISE:
        refuse(f"normalize_activations in {path} must be one of {', '.join(_NORMALISE)}", short(value))
    if value == "layer_norm" and d_in < 2:
        refuse(f"layer_norm in {path} must have d_in >= 2", str(d_in), "One number has no deviation.")
    return _NORMALISE[value]


def _factors(config: dict[str, Any], file: TensorFile, d_sae: int, path: Path) -> Tensor | None:
    """[d_sae]: what a fine-tuned SAE multiplies codes by in its decoder; SAELens drops those that are 1."""
    said = config.get("finetuning_scaling_factor", False)
    if not isinstance(said, bool):
        refuse(f"finetuning_scaling_factor in {path} must be true or false", short(said))
    names = sorted(_FACTORS & set(file.info))
    if not names:
        return None
    factors = file.read(names[0], torch.float32)
    if len(names) > 1 or factors.shape != (d_sae,):
        refuse(f"{names[0]} in {file.path} must be alone and of shape [{d_sae}]", str(tuple(factors.shape)))
    if torch.allclose(factors, torch.ones(d_sae)):
        return None
    if not said:
        refuse(
            f"Factors in {file.path} must be 1 where {path} says finetuning_scaling_factor=false",
            "others",
            "One of them is wrong: SAELens refuses it too.",
        )
    return factors


def _pursuit(
    config: dict[str, Any], weights: dict[str, Tensor], normalise: str | None, hook: Any, path: Path
) -> Plain:
    """SAELens takes a direction's product with the residual as its code, so rows must be of norm 1; and its
    decoder adds b_dec only where the encoder subtracts it."""
    W_dec, subtract = weights["W_dec"], config.get("apply_b_dec_to_input", True)
    most = (W_dec.norm(dim=1) - 1).abs().max()
    if not most <= 2e-6:
        refuse(
            f"Decoder rows of matching pursuit in {path.parent} must be of norm 1",
            f"norms off by {float(most):.2g}",
            "SAELens takes products with them for codes, saelab coefficients: the same for unit rows alone.",
        )
    if normalise is None:
        refuse(f"Matching pursuit in {path} must not need norm_scaling_factor", "it", "Fold it in SAELens.")
    limit = config.get("max_iterations")
    return Plain(
        rule="matching_pursuit",
        W_enc=W_dec.t(),
        b_enc=torch.zeros(len(W_dec)),
        W_dec=W_dec,
        b_dec=weights["b_dec"] if subtract else torch.zeros_like(weights["b_dec"]),
        subtract=subtract,
        normalise=normalise,
        pursuit={
            "max_iterations": W_dec.shape[1] if limit is None else limit,
            "residual_threshold": config.get("residual_threshold", 1e-2),
            "stop_on_duplicate": config.get("stop_on_duplicate_support", True),
            "finish_step": True,
        },
        hook=hook,
    )


def _size(config: dict[str, Any], key: str, path: Path) -> int:
    value = config.get(key)
    if not is_integer(value) or not 1 <= value < 2**31:
        refuse(f"{key} in {path} must be an integer in 1..2^31-1", short(value))
    return value


def _weights(
    file: TensorFile, shapes: dict[str, tuple[int, ...]], through: torch.dtype, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Exactly these tensors in these shapes, through the config's dtype as SAELens casts them, in `dtype`."""
    extra = sorted(set(file.info) - set(shapes) - _FACTORS)
    if extra:
        refuse(f"{file.path} must hold only {', '.join(shapes)}, as its config says", short(extra))
    weights = {}
    for name, shape in shapes.items():
        info = file.info.get(name)
        if info is None or info.shape != shape or not info.dtype.startswith(("float", "bfloat")):
            got = "nothing" if info is None else f"{info.shape}, {info.dtype}"
            refuse(
                f"{name} in {file.path} must be of shape {shape} and floating point, as its config says", got
            )
    for name in shapes:
        stored = getattr(torch, file.info[name].dtype)
        # the EMA is of float64 there whatever the dtype; casting what is stored so already changes nothing
        if name == "topk_threshold" or torch.promote_types(stored, through) == through:
            weights[name] = file.read(name, dtype)
        else:
            weights[name] = file.read(name, through).to(dtype)
    return weights
