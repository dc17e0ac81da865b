"""SAELens, version 6: a folder with `cfg.json` and `sae_weights.safetensors` (read at 6.54.12).

cfg.json: {"architecture", "d_in", "d_sae", "dtype", "apply_b_dec_to_input", "normalize_activations",
"reshape_activations", "metadata": {"sae_lens_version", "hook_name", ...}, ...}.

Tensors: W_enc [d_in d_sae], W_dec [d_sae d_out], b_enc [d_sae], b_dec [d_out]; jumprelu has threshold [d_sae]
besides, gated b_gate, b_mag and r_mag [d_sae] instead of b_enc, skip transcoders W_skip [d_out d_in].

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

from saelab.config import write_bytes, write_json
from saelab.formats.plain import Plain, build, hook_of, of
from saelab.formats.reading import TensorFile, json_file, refuse, safetensors_file, short
from saelab.sae import SAE

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
    "metadata sae_lens_version d_out k rescale_acts_by_decoder_norm".split()
)
# of training configurations; they say nothing of how a trained SAE encodes
_TRAINING_KEYS = set(
    "decoder_init_norm l1_coefficient lp_norm l1_warm_up_steps jumprelu_init_threshold jumprelu_bandwidth "
    "jumprelu_sparsity_loss_mode l0_coefficient l0_warm_up_steps pre_act_loss_coefficient "
    "jumprelu_tanh_scale jumprelu_ste_to_input target_l0 use_sparse_activations aux_loss_coefficient "
    "topk_threshold_lr matryoshka_widths use_matryoshka_aux_loss".split()
)


def recognise(folder: Path) -> str | None:
    """cfg.json with an architecture and a width, beside sae_weights.safetensors."""
    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).exists():
        return None
    config = json_file(folder / CONFIG_FILE)
    if "d_in" not in config or not {"architecture", "activation_fn_str", "hook_name", "hook_point"} & set(
        config
    ):
        return None
    return (
        f"{CONFIG_FILE} has architecture {short(config.get('architecture'))} and version "
        f"{short(_version(config))}, beside {WEIGHTS_FILE}"
    )


def read(folder: Path) -> tuple[dict[str, Any], TensorFile]:
    """The config and the tensors' header."""
    return json_file(folder / CONFIG_FILE), safetensors_file(folder / WEIGHTS_FILE)


def load(folder: Path, config: dict[str, Any], file: TensorFile) -> SAE:
    """The SAE that SAELens makes of the folder."""
    path = folder / CONFIG_FILE
    architecture = _checked(config, path)
    d_in, d_sae = _size(config, "d_in", path), _size(config, "d_sae", path)
    transcodes = architecture.endswith("transcoder")
    d_out = _size({"d_out": 768} | config, "d_out", path) if transcodes else d_in
    subtract = config.get("apply_b_dec_to_input", True)
    if not isinstance(subtract, bool) or (transcodes and subtract):
        rule = "False in transcoders" if transcodes else "true or false"
        refuse(f"apply_b_dec_to_input in {path} must be {rule}", short(subtract))
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_enc": (d_sae,), "b_dec": (d_out,)}
    if architecture == "gated":
        del shapes["b_enc"]
        shapes |= {"b_gate": (d_sae,), "b_mag": (d_sae,), "r_mag": (d_sae,)}
    elif architecture == "jumprelu":
        # training checkpoints of an older kind hold its logarithm, which SAELens turns into it
        shapes["log_threshold" if "log_threshold" in file.info else "threshold"] = (d_sae,)
    elif architecture.endswith("batchtopk"):
        shapes["topk_threshold"] = ()
    elif architecture == "skip_transcoder":
        shapes["W_skip"] = (d_out, d_in)
    weights = _weights(file, shapes, _DTYPES[config.get("dtype", "float32")])
    threshold = weights.get("threshold")
    if "log_threshold" in weights:
        threshold = weights["log_threshold"].exp()
    if "topk_threshold" in weights:
        if not weights["topk_threshold"] > 0:
            refuse(f"topk_threshold in {file.path} must be above 0", "one that training has not set yet")
        threshold = weights["topk_threshold"] * torch.ones(d_sae)
    metadata = config.get("metadata", {})
    sae = Plain(
        rule=_RULES[architecture],  # type: ignore[arg-type]
        W_enc=weights["W_enc"],
        b_enc=weights["b_gate"] if architecture == "gated" else weights["b_enc"],
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"],
        subtract=subtract,
        normalise=_normalise(config, d_in, path),
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
    loaded = build(sae, path)
    loaded.stored_dtype = file.info["W_enc"].dtype
    return loaded


def save(sae: SAE, folder: Path) -> None:
    """What SAELens loads without a warning and with the same codes."""
    plain = of(sae, NAME)
    architecture = {v: k for k, v in reversed(_RULES.items())} | {
        "batchtopk": "jumprelu",
        "matryoshka": "jumprelu",
    }
    name = architecture[plain.rule]
    if plain.transcodes:
        if plain.rule != "relu":
            refuse(
                "A transcoder saved as saelens must be ReLU",
                f"{sae.config.title!r} with sparsity {plain.rule!r}",
                "Save it as 'saelab'.",
            )
        name = "transcoder" if plain.W_skip is None else "skip_transcoder"
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
    if plain.k is not None and "topk" in name:
        config |= {"k": plain.k, "rescale_acts_by_decoder_norm": False}
    data = safetensors.torch.save({key: t.contiguous() for key, t in tensors.items()})  # type: ignore[union-attr]
    write_bytes(folder / WEIGHTS_FILE, data)
    write_json(folder / CONFIG_FILE, config)


def _version(config: dict[str, Any]) -> Any:
    metadata = config.get("metadata")
    inner = metadata.get("sae_lens_version") if isinstance(metadata, dict) else None
    return config.get("sae_lens_version") or inner


def _checked(config: dict[str, Any], path: Path) -> str:
    """The architecture, after everything in the config that does not depend on the tensors was checked."""
    version = _version(config)
    major = re.match(r"(\d{1,9})\.", version) if isinstance(version, str) else None
    if major is None or int(major[1]) < 6:
        refuse(
            f"{path} must be of SAELens 6 or later",
            f"sae_lens_version {short(version)}",
            "Load it with SAELens 6 and save it again.",
        )
    if not isinstance(config.get("metadata", {}), dict):
        refuse(f"metadata in {path} must be an object", short(config["metadata"]))
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or architecture not in _RULES:
        refuse(
            f"The architecture in {path} must be one of {', '.join(_RULES)}",
            short(architecture),
            "saelab does not read others of SAELens.",
        )
    # left by some releases of version 6; only True would change the codes
    finetuned = config.get("finetuning_scaling_factor", False)
    unknown = sorted(set(config) - _KEYS - _TRAINING_KEYS - {"finetuning_scaling_factor"})
    if unknown or finetuned is not False:
        refuse(
            f"{path} must hold only settings whose meaning saelab knows",
            short(unknown or {"finetuning_scaling_factor": finetuned}),
            "A setting that is passed over may change the codes: remove it if you know that it does not.",
        )
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


def _normalise(config: dict[str, Any], d_in: int, path: Path) -> str:
    value = config.get("normalize_activations", "none")
    if isinstance(value, str) and value in _NOT_FOLDED:
        refuse(
            f"The normalisation in {path} must be part of the weights",
            f"{value!r}: {_NOT_FOLDED[value]}",
            "Let SAELens fold it (fold_activation_norm_scaling_factor, fold_activation_whitening) and save.",
        )
    if not isinstance(value, str) or value not in _NORMALISE:
        refuse(f"normalize_activations in {path} must be one of {', '.join(_NORMALISE)}", short(value))
    if value == "layer_norm" and d_in < 2:
        refuse(f"layer_norm in {path} must have d_in >= 2", str(d_in), "One number has no deviation.")
    return _NORMALISE[value]


def _size(config: dict[str, Any], key: str, path: Path) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
        refuse(f"{key} in {path} must be an integer in 1..2^31-1", short(value))
    return value


def _weights(file: TensorFile, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, Tensor]:
    """Exactly these tensors in these shapes, through the config's dtype as SAELens casts them, in float32."""
    extra = sorted(set(file.info) - set(shapes))
    if extra == ["scaling_factor"]:  # SAELens drops it where it is 1
        if not (file.read("scaling_factor") == 1).all():
            refuse(f"scaling_factor in {file.path} must be 1", "another", "saelab has no finetuning factors.")
    elif extra:
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
        tensor = file.read(name)
        weights[name] = tensor.to(tensor.dtype if name == "topk_threshold" else dtype).float()
    return weights
