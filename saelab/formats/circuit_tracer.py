"""circuit-tracer's transcoders: one file a layer, `layer_3.safetensors`, in a folder whose YAML files tell
the model and the hook points (read at 0.5.0).

    codes = relu(x W_enc^T + b_enc), or JumpReLU with activation_function.threshold
    y_hat = codes W_dec + b_dec + x W_skip^T                    (W_skip [d_out d_in], where there is one)

W_enc and W_dec are both [d_sae d_model]. Cross-layer transcoders (W_enc_3.safetensors beside
W_dec_3.safetensors) are refused: each of their latents writes to every later layer.
"""

from __future__ import annotations

import re
from typing import Any

from saelab.formats.layout import SAME, take
from saelab.formats.layout import done as finished
from saelab.formats.plain import Plain
from saelab.formats.reading import refuse
from saelab.formats.settings import DECIDE, ignored, known
from saelab.formats.source import Found, Source
from saelab.formats.vocabulary import ACTIVATIONS
from saelab.sae import SAE
from saelab.types import HookPoint, short

NAME = "circuit_tracer"
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
    name = source.weights
    cross = name if name is not None and _CROSS.fullmatch(name) else None
    if cross is None and name is None:
        cross = next((file for file in source.files if _CROSS.fullmatch(file)), None)
    if cross is not None:
        return Found(source, f"{cross} is named as cross-layer transcoders are", {}, cross)
    config = next((file for file in CONFIG_FILES if source.has(file)), None)
    if name is None or config is None or not _FILE.fullmatch(name):
        return None
    if not source.holds(name, *SAME):
        return None
    return Found(source, f"{name} beside {config}", source.yaml(config) or {}, name, config)


def load(found: Found) -> SAE:
    """The SingleLayerTranscoder."""
    if _CROSS.fullmatch(found.weights):
        refuse(
            f"A transcoder in {found.source.folder} must write to one layer",
            "a cross-layer transcoder, whose latents write to every later layer",
            "An SAE writes to one place: no part of it gives what the whole gives.",
        )
    names = dict(SAME)
    if "W_skip" in found.file.info:
        names["W_skip"] = "W_skip"
    if _THRESHOLD in found.file.info:
        names["threshold"] = _THRESHOLD
    weights = take(found, names, transposed=("W_enc", "W_skip"), transcodes=True)
    rule = "jumprelu" if "threshold" in weights else "relu"
    _check_settings(found, rule)
    layer = _FILE.fullmatch(found.weights)
    hooks: dict[str, Any] = {"hook": "mlp.hook_in", "hook_out": "hook_mlp_out"}
    for ours, key in (("hook", "feature_input_hook"), ("hook_out", "feature_output_hook")):
        value = found.config.get(key)
        hooks[ours] = value if isinstance(value, str) and 0 < len(value) < 200 else hooks[ours]
    points = {k: HookPoint(f"blocks.{int(layer[1])}.{v}") for k, v in hooks.items()} if layer else {}
    plain = Plain(rule=rule, subtract=False, transcodes=True, **points, **weights)
    return finished(plain, found, "W_enc")


def _check_settings(found: Found, rule: str) -> None:
    """Of config.yaml every setting; of the logs of training, in which everything stands, those that decide
    the codes."""
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
