"""circuit-tracer's transcoders: one file a layer, `layer_3.safetensors`, in a folder whose YAML files tell
the model and the hook points (read at 0.5.0).

    codes = relu(x W_enc^T + b_enc), or JumpReLU with activation_function.threshold
    y_hat = codes W_dec + b_dec + x W_skip^T                    (W_skip [d_out d_in], where there is one)

W_enc and W_dec are both [d_sae d_model]. The latents of a cross-layer transcoder (W_enc_3.safetensors beside
W_dec_3.safetensors, its W_dec_3 [d_sae layers d_model]) write to every later layer. They load as one SAE of
the recipe "clt"; layer=3 loads those of one layer, as a transcoder whose output is what they add to layers 3,
4, ... side by side, with the bias of layer 3; what the whole gives at a layer is the sum of what all of them
give there.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch

from saelab.config import is_integer
from saelab.formats.layout import SAME, take
from saelab.formats.layout import done as finished
from saelab.formats.plain import Plain, build
from saelab.formats.reading import refuse
from saelab.formats.settings import DECIDE, ignored, known
from saelab.formats.source import Found, Source
from saelab.formats.vocabulary import ACTIVATIONS
from saelab.sae import SAE, recipe
from saelab.types import HookPoint, short

NAME = "circuit_tracer"
OPTIONS = {"layer": "Which one, where a folder holds the transcoders of several layers."}
CONFIG_FILES = ("config.yaml", "wandb-config.yaml", "wanb-config.yaml")  # the last as released

_KEYS = set(
    "model_name model_kind feature_input_hook feature_output_hook scan transcoders repo_id subfolder layers "
    "d_model d_transcoder d_sae d_feature dtype n_layers source revision".split()
)
_THRESHOLD = "activation_function.threshold"
_FILE = re.compile(r"layer_(\d{1,4})\.safetensors")
_CROSS = re.compile(r"W_(enc|dec)_\d{1,4}\.safetensors")


def find(source: Source) -> Found | None:
    """layer_{n}.safetensors beside YAML files, or a cross-layer transcoder's files."""
    name, layer = source.weights, source.given.get("layer")
    cross = name if name is not None and _CROSS.fullmatch(name) else None
    if cross is None and name is None:
        cross = next((file for file in source.files if _CROSS.fullmatch(file)), None)
    config = next((file for file in CONFIG_FILES if source.has(file)), None)
    if cross is not None:
        settings = {} if config is None else source.yaml(config) or {}
        own = f"W_enc_{layer}.safetensors"
        evidence = f"{cross} is named as cross-layer transcoders are"
        return Found(source, evidence, settings, own if source.has(own) else cross, config)
    if name is None and source.has(f"layer_{layer}.safetensors"):
        name = f"layer_{layer}.safetensors"
    if name is None or config is None or not _FILE.fullmatch(name):
        return None
    if not source.holds(name, *SAME):
        return None
    return Found(source, f"{name} beside {config}", source.yaml(config) or {}, name, config)


def load(found: Found) -> SAE:
    """The SingleLayerTranscoder."""
    if _CROSS.fullmatch(found.weights):
        return _cross(found)
    names = dict(SAME)
    if "W_skip" in found.file.info:
        names["W_skip"] = "W_skip"
    if _THRESHOLD in found.file.info:
        names["threshold"] = _THRESHOLD
    weights = take(found, names, transposed=("W_enc", "W_skip"), transcodes=True)
    rule = "jumprelu" if "threshold" in weights else "relu"
    _check_settings(found, rule)
    layer = _FILE.fullmatch(found.weights)
    points = _hooks(found, int(layer[1])) if layer else {}
    if layer and found.source.given.get("layer", int(layer[1])) != int(layer[1]):
        refuse(f"layer of {found.path.parent / found.weights} must be {int(layer[1])}",
               short(found.source.given["layer"]), "Leave it out.")  # fmt: skip
    plain = Plain(rule=rule, subtract=False, transcodes=True, **points, **weights)
    return finished(plain, found, "W_enc")


def layers(source: Source) -> list[int]:
    """The layers of which the folder has a transcoder, each in a file or two of its own."""
    pattern = r"W_enc_(\d{1,4})\.safetensors" if any(map(_CROSS.fullmatch, source.files)) else _FILE.pattern
    return sorted(int(found[1]) for file in source.files if (found := re.fullmatch(pattern, file)))


def _hooks(found: Found, layer: int) -> dict[str, Any]:
    hooks: dict[str, Any] = {"hook": "mlp.hook_in", "hook_out": "hook_mlp_out"}
    for ours, key in (("hook", "feature_input_hook"), ("hook_out", "feature_output_hook")):
        value = found.config.get(key)
        hooks[ours] = value if isinstance(value, str) and 0 < len(value) < 200 else hooks[ours]
    return {k: HookPoint(f"blocks.{layer}.{v}") for k, v in hooks.items()}


def _cross(found: Found) -> SAE:
    """The latents of one layer of a cross-layer transcoder."""
    source, layer = found.source, found.source.given.get("layer")
    there = layers(source)
    if layer is None:
        return _whole(found, there)
    if not is_integer(layer) or layer not in there:
        refuse(
            f"layer must be one that {source.folder} has latents of",
            f"layer={layer!r}",
            f"Pass layer= (it has {short(there)}) for those of one layer, whose outputs are side by side, or "
            "leave it out for all of them.",
        )
    file, second = source.open(f"W_enc_{layer}.safetensors"), source.open(f"W_dec_{layer}.safetensors")
    names = [f"{name}_{layer}" for name in ("W_enc", "b_enc", "b_dec")]
    optional = {f"threshold_{layer}"} & set(file.info)
    if set(file.info) != {*names, *optional} or set(second.info) != {f"W_dec_{layer}"}:
        refuse(f"{file.path} must hold {', '.join(names)}", short(sorted([*file.info, *second.info])))
    dtype = source.dtype
    W_enc, b_enc, b_dec = (file.read(name, dtype) for name in names)
    W_dec = second.read(f"W_dec_{layer}", dtype)
    d_sae, d = W_enc.shape if W_enc.ndim == 2 else (0, 0)
    last = max(there) - layer + 1
    if W_dec.shape != (d_sae, last, d) or b_enc.shape != (d_sae,) or b_dec.shape != (d,) or not d:
        shapes = [tuple(t.shape) for t in (W_enc, b_enc, b_dec, W_dec)]
        refuse(f"Tensors of layer {layer} in {source.folder} must fit each other, W_dec [d_sae {last} d]",
               short(shapes))  # fmt: skip
    threshold = file.read(f"threshold_{layer}", dtype).reshape(-1) if optional else None
    if threshold is not None and threshold.shape != (d_sae,):
        refuse(f"threshold_{layer} in {file.path} must be one a latent", str(tuple(threshold.shape)))
    _check_settings(found, "relu" if threshold is None else "jumprelu")
    points = _hooks(found, layer)
    if last > 1:  # no hook point is several
        del points["hook_out"]
    bias = torch.zeros(last * d, dtype=dtype)
    bias[:d] = b_dec
    plain = Plain(
        rule="relu" if threshold is None else "jumprelu",
        W_enc=W_enc.t(),
        b_enc=b_enc,
        W_dec=W_dec.reshape(d_sae, last * d),
        b_dec=bias,
        subtract=False,
        threshold=threshold,
        transcodes=True,
        **points,
    )
    sae = build(plain, found.path)
    sae.stored_dtype = file.info[names[0]].dtype
    return sae


def _whole(found: Found, there: list[int]) -> SAE:
    """All layers of a cross-layer transcoder, as one SAE."""
    if there != list(range(len(there))):
        refuse(f"{found.source.folder} must hold every layer from 0 on", short(there), "Pass layer=.")
    own = [replace(found.source, given={**found.source.given, "layer": layer}) for layer in there]
    parts = [_cross(replace(found, source=source)) for source in own]
    first, n = parts[0], len(parts)
    kinds = {(part.d_in, part.d_sae, hasattr(part.sparsifier, "raw_threshold")) for part in parts}
    if len(kinds) > 1:
        refuse(
            f"Layers in {found.source.folder} must be of one width, number of latents and activation",
            short([(part.d_in, part.d_sae) for part in parts]),
            "Call saelab.formats.load_layers for one SAE a layer.",
        )
    jump = hasattr(first.sparsifier, "raw_threshold")
    ends = [_hooks(found, layer) for layer in there]
    config = recipe(
        "clt",
        d_in=n * first.d_in,
        d_out=n * first.d_in,
        d_sae=n * first.d_sae,
        layers=n,
        sparsity="jumprelu" if jump else "l1",
        normalise="none",
        hooks=[each["hook"] for each in ends],
        hooks_out=[str(each["hook_out"]) for each in ends],
        log_threshold=not jump,
    )
    tensors = {
        "W_enc": torch.cat([part.W_enc.detach().t() for part in parts]).t(),
        "b_enc": torch.cat([part.b_enc.detach() for part in parts]),
        "b_dec": torch.cat([part.b_dec.detach()[: first.d_in] for part in parts]),
        "dictionary.W_dec": torch.cat([part.W_dec.detach().reshape(-1, first.d_in) for part in parts]),
        "input_scale": torch.ones(config.d_in),
        "output_scale": torch.ones(config.d_in),
    }
    if jump:
        raw = [part.state_dict()["sparsifier.raw_threshold"] for part in parts]
        tensors["sparsifier.raw_threshold"] = torch.cat(raw)
    sae = SAE.from_tensors(config, tensors)
    sae.stored_dtype = first.stored_dtype
    return sae


def _check_settings(found: Found, rule: str) -> None:
    """Check every setting of config.yaml, and those of the training logs that decide the codes."""
    known(found.config if found.config_file == CONFIG_FILES[0] else {}, _KEYS, found)
    for name in CONFIG_FILES[1:]:
        for key, value in (found.source.yaml(name) or {}).items():
            said = value.get("value") if isinstance(value, dict) else value
            means = str(said).lower().replace("_", "")
            if key in DECIDE - ignored(found) and said and ACTIVATIONS.get(means) != rule:
                refuse(
                    f"{key} in {found.source.folder / name} must be what the tensors say, {rule!r}",
                    short(said),
                    f"Where you know that it does not matter, pass load_sae(..., ignore=[{key!r}]).",
                )
