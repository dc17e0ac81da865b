"""dictionary_learning (saprmarks): a folder with `ae.pt`, a state dict, and `config.json` (read at 0.1.0).

config.json: {"trainer": {"dict_class", "activation_dim", "dict_size", "k", ...}, "buffer": {...}}; only
dict_class and k say how a dictionary encodes, the rest how it was trained. Linear layers are stored
[outputs inputs], hence transposed to ours; matryoshka and jumprelu dictionaries as ours.

    AutoEncoder             relu((x - bias) W + c)
    AutoEncoderNew          relu(x W + c)
    GatedAutoEncoder        (p + gate_bias > 0) relu(exp(r_mag) p + mag_bias),  p = (x - decoder_bias) W
    AutoEncoderTopK         the k largest of relu((x - b_dec) W + c); its threshold is not used
    BatchTopKSAE            relu(pre) where it exceeds one threshold, pre = (x - b_dec) W + c
    MatryoshkaBatchTopKSAE  the same
    JumpReluAutoEncoder     relu(pre) where pre exceeds the latent's threshold, pre = x W + c

Crosscoders of its fork (science-of-finetuning) are in dictionary_crosscoders.py, variational SAEs of another
in dictionary_vsae.py. The library gives an AutoEncoder unit decoder rows when it loads it (codes times the
norms), unless they are so up to torch.allclose: so does this.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.config import is_integer
from saelab.files import write_bytes, write_json
from saelab.formats import dictionary_vsae
from saelab.formats.dictionary_crosscoders import crosscoder
from saelab.formats.plain import Plain, build, of
from saelab.formats.reading import TensorFile, refuse
from saelab.formats.settings import harmless, known, only
from saelab.formats.source import Found, Source
from saelab.sae import SAE
from saelab.types import HookPoint, short

NAME = "dictionary_learning"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "ae.pt"
OPTIONS = {
    "keep_relative_variance": "Whether a crosscoder with activation statistics was made with it: True.",
    **dictionary_vsae.OPTIONS,
}

_LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
_SAME = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_CLASSES: dict[str, tuple[str, dict[str, str]]] = {
    "AutoEncoder": ("relu", _LINEAR | {"b_dec": "bias"}),
    "AutoEncoderNew": ("relu", _LINEAR | {"b_dec": "decoder.bias"}),
    "GatedAutoEncoder": (
        "gated",
        _LINEAR | {"b_enc": "gate_bias", "b_dec": "decoder_bias", "r_mag": "r_mag", "b_mag": "mag_bias"},
    ),
    "AutoEncoderTopK": ("topk", _LINEAR | {"b_dec": "b_dec", "k": "k", "threshold": "threshold"}),
    "BatchTopKSAE": ("batchtopk", _LINEAR | {"b_dec": "b_dec", "k": "k", "threshold": "threshold"}),
    "MatryoshkaBatchTopKSAE": (
        "matryoshka",
        _SAME | {"k": "k", "threshold": "threshold", "group_sizes": "group_sizes"},
    ),
    "JumpReluAutoEncoder": ("jumprelu", _SAME | {"threshold": "threshold"}),
}
"""dict_class -> (rule, our name -> theirs)."""
_MISSPELT = {"MatroyshkaBatchTopKSAE": "MatryoshkaBatchTopKSAE"}
_WEIGHTS = (WEIGHTS_FILE, "model.safetensors")
_CROSSCODERS = ("CrossCoder", "BatchTopKCrossCoder")
_RAW_INPUT = {"AutoEncoderNew", "JumpReluAutoEncoder"}
"""Those that do not subtract the decoder bias."""
# what its trainers write; other settings may change the meaning of the weights
_KEYS = set(
    "dict_class trainer_class trainer activation_dim dict_size k layer lm_name submodule_name lr lr_schedule "
    "steps warmup_steps decay_start seed device wandb_name l1_penalty l1_penalty_warmup sparsity_penalty "
    "sparsity_warmup_steps sparsity_function sparsity_queue_length n_sparsity_updates p_start p_end "
    "anneal_start anneal_end resample_steps ghost_threshold bandwidth target_l0 auxk_alpha "
    "top_k_aux threshold_beta threshold_start_step group_fractions group_weights group_sizes".split()
)

_CROSSCODER_KEYS = set(
    "num_layers use_mse_loss max_steps same_init_for_all_layers norm_init_scale init_with_transpose "
    "encoder_layers pretrained_ae dict_class_kwargs activation_normalizer code_normalization".split()
)


def find(source: Source) -> Found | None:
    """config.json with trainer.dict_class, or the settings of the trainer that names none, beside ae.pt."""
    config = source.config(CONFIG_FILE)
    trainer = None if config is None else config.get("trainer")
    weights = source.name or next((name for name in _WEIGHTS if source.has(name)), WEIGHTS_FILE)
    if config is None or not isinstance(trainer, dict) or not source.has(weights):
        return None
    if not (weights in _WEIGHTS or source.alone or source.format == NAME):
        return None  # the configuration may be of another file here
    if "dict_class" in trainer:
        what = f"trainer.dict_class {short(trainer['dict_class'])}"
    elif dictionary_vsae.is_masked(trainer):
        what = "the settings of a masked VSAETopK"
    else:
        return None
    return Found(source, f"{CONFIG_FILE} has {what}, beside {weights}", config, weights, CONFIG_FILE)


def load(found: Found) -> SAE:
    """The dictionary that `dictionary_learning.utils.load_dictionary` gives."""
    path, config = found.path, found.config
    file, trainer = _state(found.file), config.get("trainer")
    if not isinstance(trainer, dict):
        refuse(f"trainer in {path} must be an object", short(trainer))
    known(config, ("trainer", "buffer"), found)
    harmless(config.get("buffer"), "buffer", found)
    name = trainer.get("dict_class", dictionary_vsae.MASKED)
    name = _MISSPELT.get(name, name) if isinstance(name, str) else name
    if name in _CROSSCODERS:
        known(trainer, _KEYS | _CROSSCODER_KEYS, found)
        stored = int(file.read("k")) if name == "BatchTopKCrossCoder" and "k" in file.info else None
        only(trainer.get("k"), [None, stored], "k", found)
        return crosscoder(found, file, name)
    if name in dictionary_vsae.CLASSES:
        return dictionary_vsae.variational(found, file, name, _hook(trainer.get("submodule_name")))
    if not isinstance(name, str) or name not in _CLASSES:
        refuse(
            f"dict_class in {path} must be one of {', '.join(_CLASSES)}",
            short(name),
            "saelab does not read others of dictionary_learning.",
        )
    known(trainer, _KEYS, found)
    rule, keys = _CLASSES[name]
    for key in () if "k" in keys else ("k", "group_sizes"):
        only(trainer.get(key), [None], key, found)
    _check_shapes(name, keys, trainer, file)
    dtype = found.source.dtype
    weights = {ours: file.read(theirs, dtype) for ours, theirs in keys.items() if theirs in file.info}
    if keys["W_enc"] == "encoder.weight":
        weights |= {"W_enc": weights["W_enc"].t(), "W_dec": weights["W_dec"].t()}
    threshold = weights.get("threshold")
    if rule in ("batchtopk", "matryoshka") and not (threshold is not None and threshold >= 0):
        refuse(
            f"threshold in {file.path} must be at least 0",
            "-1, which stands for one that training has not set" if threshold is not None else "none",
            "Train it for longer than threshold_start_step, or set the threshold.",
        )
    plain = Plain(
        rule=rule,  # type: ignore[arg-type]
        W_enc=weights["W_enc"],
        b_enc=weights["b_enc"],
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"],
        subtract=name not in _RAW_INPUT,
        k=_k(trainer, weights.get("k"), path) if "k" in keys else None,
        threshold=None if rule == "topk" else threshold,
        r_mag=weights.get("r_mag"),
        b_mag=weights.get("b_mag"),
        groups=tuple(weights["group_sizes"].tolist()) if "group_sizes" in weights else None,
        hook=_hook(trainer.get("submodule_name")),
    )
    if name == "AutoEncoder" and not _unit(plain.W_dec):
        plain = plain.folded(plain.W_dec.norm(dim=1), file.path)
    loaded = build(plain, path)
    loaded.stored_dtype = file.info[keys["W_enc"]].dtype
    return loaded


def _state(file: TensorFile) -> TensorFile:
    """The dictionary's own tensors: of a training backup those under `ae`, of a compiled one without the name
    that torch.compile puts before them."""
    if file.extra.get("step") is not None and any(name.startswith("ae.") for name in file.info):
        file = file.within("ae.")
    compiled = "_orig_mod."
    return file.within(compiled) if all(name.startswith(compiled) for name in file.info) else file


def save(sae: SAE, folder: Path) -> None:
    """What `load_dictionary` loads with the same codes."""
    plain = of(sae, NAME)
    names = {rule: name for name, (rule, _) in _CLASSES.items()}
    if plain.transcodes or plain.normalise != "none" or plain.rule not in names:
        what = "a transcoder" if plain.transcodes else f"normalise={plain.normalise!r}"
        what = what if plain.rule in names else f"codes selected by {plain.rule}"
        refuse(
            "An SAE saved as dictionary_learning must be one that it can hold exactly",
            f"{sae.config.title!r}: {what}",
            "Save it as 'saelab'.",
        )
    name = names[plain.rule]
    if plain.rule == "relu":  # the library rescales the rows of an AutoEncoder, not of the other
        name = "AutoEncoder" if plain.subtract and _unit(plain.W_dec) else "AutoEncoderNew"
    plain = plain.moved(name not in _RAW_INPUT)
    keys = _CLASSES[name][1]
    d_in, d_sae = plain.W_enc.shape
    values: dict[str, Tensor | None] = {key: getattr(plain, key, None) for key in keys}
    if keys["W_enc"] == "encoder.weight":
        values |= {"W_enc": plain.W_enc.t(), "W_dec": plain.W_dec.t()}
    trainer: dict[str, Any] = {"dict_class": name, "activation_dim": d_in, "dict_size": d_sae}
    if "k" in keys:
        trainer["k"] = plain.k
        values["k"] = torch.tensor(plain.k, dtype=torch.int32)
        values["threshold"] = torch.tensor(-1.0) if plain.threshold is None else plain.threshold
    if "group_sizes" in keys:
        trainer["group_sizes"] = list(plain.groups or ())
        values["group_sizes"] = torch.tensor(plain.groups)
    hook = "" if plain.hook is None else plain.hook.name
    layer = re.match(r"blocks\.(\d+)\.", hook)
    residual = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", hook)
    trainer |= {
        "layer": int(layer[1]) if layer else None,
        "lm_name": "",
        "submodule_name": f"resid_post_layer_{residual[1]}" if residual else hook,
    }
    buffer = io.BytesIO()
    torch.save({keys[key]: tensor.contiguous() for key, tensor in values.items()}, buffer)  # type: ignore[union-attr]
    write_bytes(folder / WEIGHTS_FILE, buffer.getvalue())
    write_json(folder / CONFIG_FILE, {"trainer": trainer, "buffer": {"ctx_len": None}})


def _check_shapes(name: str, keys: dict[str, str], trainer: dict[str, Any], file: TensorFile) -> None:
    """The biases tell d_in and d_sae, which everything else must fit."""
    # older files lack them
    optional = {"k", "threshold"} if name == "AutoEncoderTopK" else set()
    names = set(keys.values())
    if file.info.keys() - names or names - optional - file.info.keys():
        refuse(
            f"{file.path} must hold {', '.join(sorted(names))}, as {name} does",
            short(sorted(file.info)),
            "A training backup is not a dictionary: save its 'ae'.",
        )
    sizes = [file.info[keys[bias]].shape for bias in ("b_dec", "b_enc")]
    if any(len(size) != 1 or not 1 <= size[0] < 2**31 for size in sizes):
        refuse(f"The biases in {file.path} must be vectors", short(sizes))
    d_in, d_sae = sizes[0][0], sizes[1][0]
    for key, size in (("activation_dim", d_in), ("dict_size", d_sae)):
        if trainer.get(key, size) != size:
            refuse(f"{key} must fit {file.path}, where it is {size}", short(trainer[key]))
    linear = keys["W_enc"] == "encoder.weight"
    shapes = {
        "W_enc": (d_sae, d_in) if linear else (d_in, d_sae),
        "W_dec": (d_in, d_sae) if linear else (d_sae, d_in),
        "b_enc": (d_sae,), "b_dec": (d_in,), "r_mag": (d_sae,), "b_mag": (d_sae,), "k": (),
        "threshold": (d_sae,) if name == "JumpReluAutoEncoder" else (),
    }  # fmt: skip
    for ours, theirs in keys.items():
        info = file.info.get(theirs)
        if info is None:
            continue
        integral = ours in ("k", "group_sizes")
        good = info.shape == shapes[ours] if ours in shapes else len(info.shape) == 1
        if not good or info.dtype.startswith("int") != integral or not (integral or "float" in info.dtype):
            wanted = shapes.get(ours, "[n]")
            kind = "integers" if integral else "floating point"
            refuse(
                f"{theirs} in {file.path} must be of shape {wanted}, {kind}", f"{info.shape}, {info.dtype}"
            )


def _k(trainer: dict[str, Any], stored: Tensor | None, path: Path) -> int:
    """From config and tensors, which must agree."""
    k = trainer.get("k", None if stored is None else int(stored))
    if not is_integer(k) or (stored is not None and k != int(stored)):
        got = f"{short(k)} and {None if stored is None else int(stored)}"
        refuse(f"k in {path} must be an integer, the same as in {WEIGHTS_FILE}", got)
    return k


def _unit(W_dec: Tensor) -> bool:
    norms = W_dec.norm(dim=1)
    return torch.allclose(norms, torch.ones_like(norms))


def _hook(name: Any) -> HookPoint | None:
    """The hook point that a submodule's name stands for where that is certain: the library's own names of
    residual streams, and those that saelab writes."""
    if not isinstance(name, str):
        return None
    residual = re.fullmatch(r"resid_post_layer_(\d{1,6})", name)
    if residual:
        return HookPoint(f"blocks.{residual[1]}.hook_resid_post")
    return HookPoint(name) if re.fullmatch(r"blocks\.\d{1,6}\.[a-z_.]{1,80}", name) else None
