"""An SAE on disk: `config.json` (read it first) beside `sae.safetensors`.

config.json: {"format": "saelab", "version": 1, "config": SAEConfig, "weights": {"file", "dtype", "sha256"},
"units": ...}.

sae.safetensors: W_enc [d_in d_sae], b_enc, b_dec, input_scale [], dictionary.*, sparsifier.* (scalars always
in float32), of transcoders output_scale [] and W_skip.

The weights are written first and config.json last, so a folder whose config.json fits its hash is whole.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from saelab.config import from_dict, to_dict
from saelab.files import Stamp, write_bytes, write_json
from saelab.sae.architectures import RECIPES
from saelab.sae.recipes import SAEConfig
from saelab.types import ConfigError, FormatError, NonFiniteError, StoreError, nearest

if TYPE_CHECKING:
    from saelab.sae.model import SAE

STAMP = Stamp("saelab", 1, remedy="Pass a folder that sae.save wrote.")
MAX_CONFIG_BYTES = 2**24
CONFIG_FILE, WEIGHTS_FILE = "config.json", "sae.safetensors"
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_UNITS = {
    "input_scale": "mean Euclidean norm of the raw inputs at the start of training; 1 without normalisation",
    "output_scale": "the same of a transcoder's raw targets",
    "codes": "multiples of W_dec rows, in units of x / input_scale",
    "sparsifier.threshold": "units of pre, the pre-activations of x / input_scale; of a crosscoder, of pre "
    "times the summed norms of a latent's directions",
    "sparsifier.log_threshold": "natural logarithm of thresholds in units of pre",
    "sparsifier.raw_threshold": "thresholds in units of pre; 0 and less are relu",
    "sparsifier.bias, b_gate, b_mag": "units of pre; b_mag after the factor exp(r_mag)",
    "b_enc, b_dec, W_dec": "units of x / input_scale",
}


def save(sae: SAE, folder: Path, dtype: str) -> Path:
    """See SAE.save."""
    if dtype not in _DTYPES:
        hint = nearest(str(dtype), _DTYPES)
        message = f"dtype must be one of {', '.join(_DTYPES)}. Got {dtype!r}. {hint}Pass one of these."
        raise ConfigError(message)
    sae.check_parameters()
    tensors = {}
    for name, tensor in _tensors(sae).items():
        tensors[name] = tensor.to(
            _DTYPES[dtype] if tensor.ndim and tensor.is_floating_point() else tensor.dtype
        )
        if not torch.isfinite(tensors[name]).all():
            msg = (
                f"{name} must fit {dtype}. Got a value of {float(tensor.abs().max()):.3g}. Save as "
                f"float32 or bfloat16."
            )
            raise NonFiniteError(msg)
    data = safetensors.torch.save(tensors, metadata={"format": STAMP.format})
    write_bytes(folder / WEIGHTS_FILE, data)
    manifest = {
        **STAMP.fields(),
        "config": to_dict(sae.config),
        "weights": {"file": WEIGHTS_FILE, "dtype": dtype, "sha256": hashlib.sha256(data).hexdigest()},
        "units": _UNITS,
    }
    write_json(folder / CONFIG_FILE, manifest)
    return folder


def load(cls: type[SAE], folder: Path) -> SAE:
    """See SAE.load."""
    manifest = _manifest(folder)
    try:
        config = from_dict(SAEConfig, manifest.get("config"))
    except ConfigError as error:
        msg = f"The config in {folder / CONFIG_FILE} must be valid. {error}"
        raise FormatError(msg) from error
    weights = manifest.get("weights")
    if (
        not isinstance(weights, dict)
        or weights.get("file") != WEIGHTS_FILE
        or weights.get("dtype") not in _DTYPES
    ):
        msg = (
            f"{folder / CONFIG_FILE} must name {WEIGHTS_FILE!r} and a dtype out of {', '.join(_DTYPES)}. "
            f"Got {str(weights)[:200]}. Save the SAE again."
        )
        raise FormatError(msg)
    tensors = _read_tensors(folder / WEIGHTS_FILE, weights.get("sha256"))
    _check_tensor(
        "W_enc", tensors, (config.d_in, config.d_sae), folder / WEIGHTS_FILE
    )  # bounds the memory below
    with torch.device("meta"):  # an option may ask for more memory than the file has tensors
        expected = cls(config).state_dict()
    for name in tensors:
        if name not in expected:
            hint = nearest(name, expected)
            message = (
                f"{folder / WEIGHTS_FILE} must hold only {', '.join(expected)}. Got {name!r}. "
                f"{hint}Save the SAE again."
            )
            raise FormatError(message)
    for name, tensor in expected.items():
        _check_tensor(name, tensors, tuple(tensor.shape), folder / WEIGHTS_FILE, tensor.dtype)
    sae = cls(config)
    sae.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()})
    sae.stored_dtype = weights["dtype"]
    try:
        sae.check_parameters()
    except NonFiniteError as error:
        msg = f"The weights in {folder} must be usable. {error}"
        raise FormatError(msg) from error
    least = min(float(sae.input_scale.min()), float(sae.out_scale.min()))
    if not least > 0:
        msg = f"Input and output scales must be > 0. Got {least} in {folder}. Save the SAE again."
        raise FormatError(msg)
    return sae.eval()


def fingerprint(sae: SAE) -> str:
    """See SAE.fingerprint. Of the config only what differs from the defaults, so that an SAE keeps its
    fingerprint when recipes get new options."""
    config = to_dict(sae.config)
    known = RECIPES[sae.config.recipe].options
    chosen = {name: v for name, v in sae.config.options.items() if v != known[name].default}
    config = {
        name: config[name] for name in ("d_in", "d_sae", "recipe", "hook", "d_out", "hook_out", "hooks")
    }
    said = {name: value for name, value in config.items() if value not in (None, [])} | {"options": chosen}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, tensor in sorted(_tensors(sae).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _tensors(sae: SAE) -> dict[str, Tensor]:
    """Every parameter and buffer on the CPU, contiguous, floats as float32."""
    state = {}
    for name, tensor in sae.state_dict().items():
        tensor = tensor.detach().cpu()
        state[name] = (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
    return state


def _manifest(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG_FILE).is_file():
        msg = (
            f"An SAE's folder must hold {CONFIG_FILE} and {WEIGHTS_FILE}. Got {folder}, which has no "
            f"{CONFIG_FILE}. "
            "Pass the folder that sae.save or saelab.train wrote."
        )
        raise StoreError(msg)
    return STAMP.read(folder / CONFIG_FILE, "SAE's config.json", MAX_CONFIG_BYTES)


def _read_tensors(path: Path, sha256: Any) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        msg = (
            f"An SAE's folder must hold a readable {WEIGHTS_FILE}. Got {error.strerror or error} at {path}. "
            "Copy the whole folder again."
        )
        raise StoreError(msg) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        msg = (
            f"{path} must have the SHA-256 that {CONFIG_FILE} states ({str(sha256)[:12]}...). "
            f"Got {hashlib.sha256(data).hexdigest()[:12]}... in {len(data):,} bytes: truncated or altered. "
            "Copy the folder again or save the SAE again."
        )
        raise FormatError(msg)
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        msg = f"{path} must be a safetensors file. Got: {error}. Save the SAE again."
        raise FormatError(msg) from error


def _check_tensor(
    name: str,
    tensors: dict[str, Tensor],
    shape: tuple[int, ...],
    path: Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    if name not in tensors:
        message = f"{path} must hold {name!r}. Got only {sorted(tensors)}. Save the SAE again."
        raise FormatError(message)
    got = tensors[name]
    if tuple(got.shape) != shape or got.is_floating_point() != dtype.is_floating_point:
        kind = "floating point" if dtype.is_floating_point else str(dtype)
        message = (
            f"{name} in {path} must be of shape {shape} and {kind}, as the config says. "
            f"Got {tuple(got.shape)}, {got.dtype}. The files do not belong together: copy both again."
        )
        raise FormatError(message)
