"""An SAE on disk: `config.json` (read it first) beside `sae.safetensors`.

config.json: {"format": "saelab", "version": 1, "config": SAEConfig, "weights": {"file", "dtype", "sha256"},
"units": ...}.

sae.safetensors: W_enc [d_in d_sae], b_enc, b_dec, input_scale [], dictionary.*, sparsifier.* (scalars always
in float32), of transcoders output_scale [] and W_skip. Of a cross-layer transcoder of L layers W_enc is
[d_in / L d_sae], the scales are [d_in] and [d_out], and dictionary.W_dec has only what latents write.

config.json takes its place last: until then the weights that the old one speaks of stay beside the new ones,
under another name. So a folder holds the old SAE or the new one, whole, at every moment.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saelab.config import from_dict, to_dict
from saelab.devices import dtype_name, holding
from saelab.files import SAE_STAMP, new_file, read_json_or_none, write_json, writing
from saelab.files import sha256 as sha256_of
from saelab.sae.config import SAEConfig
from saelab.tensors import DTYPES, Entry, Pieces, Reader, blocks, is_finite, memory, write
from saelab.types import ConfigError, FormatError, NonFiniteError, StoreError, nearest, short

MAX_CONFIG_BYTES = 2**24
CONFIG_FILE, WEIGHTS_FILE = "config.json", "sae.safetensors"
_KEPT_FILE = ".sae.safetensors-old"
_SECTIONS = ("config", "weights", "units")
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


class Stored(NamedTuple):
    """What a folder holds."""

    config: SAEConfig
    tensors: dict[str, Tensor]
    """By name, floats as float32, in the layout that was asked for."""
    dtype: str
    """In which the file has the weights."""


def save(config: SAEConfig, tensors: Mapping[str, Tensor], folder: Path, dtype: str) -> None:
    """See SAE.save. tensors: its state_dict."""
    dtype = dtype_name(dtype, tuple(_DTYPES))
    check_finite(tensors)
    given = {name: _pieces(tensor, _stored_as(tensor, dtype)) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        for piece in _numbers(tensor) if given[name].dtype in (torch.float16, torch.bfloat16) else ():
            if not is_finite(piece.to(given[name].dtype)):
                message = (
                    f"{name} must fit {dtype}. Got a value of {float(piece.abs().max()):.3g}. Save as "
                    "float32 or bfloat16."
                )
                raise NonFiniteError(message)
    ordered = dict(sorted(given.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    with writing(folder / WEIGHTS_FILE), new_file(folder / WEIGHTS_FILE) as temporary:
        sha256 = write(temporary, ordered, {"format": SAE_STAMP.format})
        _keep(folder)
    manifest = {
        **SAE_STAMP.fields(),
        "config": to_dict(config),
        "weights": {"file": WEIGHTS_FILE, "dtype": dtype, "sha256": sha256},
        "units": _UNITS,
    }
    write_json(folder / CONFIG_FILE, manifest)
    (folder / _KEPT_FILE).unlink(missing_ok=True)


def _keep(folder: Path) -> None:
    """Give the weights that config.json speaks of another name beside their own."""
    weights, kept = folder / WEIGHTS_FILE, folder / _KEPT_FILE
    said = read_json_or_none(folder / CONFIG_FILE) or {}
    said = said.get("weights")
    if not weights.is_file() or not isinstance(said, dict) or sha256_of(weights) != said.get("sha256"):
        return  # those that it speaks of are kept already, or there are none
    kept.unlink(missing_ok=True)
    try:
        kept.hardlink_to(weights)
    except (OSError, NotImplementedError):  # a disk without links
        shutil.copyfile(weights, kept)


def load(folder: Path, like: Callable[[SAEConfig], Mapping[str, Tensor]]) -> Stored:
    """See SAE.load.

    Args:
        folder: Where it is.
        like: config -> the tensors that an SAE of it has, of any content (on the meta device): their names,
            shapes, dtypes and layouts.

    Raises:
        StoreError: Where there is none.
        FormatError: Where it is truncated, altered, inconsistent or of a newer version.
    """
    if not (folder / CONFIG_FILE).is_file():
        message = (
            f"An SAE's folder must hold {CONFIG_FILE} and {WEIGHTS_FILE}. Got {folder}, which has no "
            f"{CONFIG_FILE}. Pass the folder that sae.save or saelab.train wrote."
        )
        raise StoreError(message)
    manifest = SAE_STAMP.read(folder / CONFIG_FILE, "SAE's config.json", MAX_CONFIG_BYTES)
    unknown = sorted(set(manifest) - {"format", "version", *_SECTIONS})
    if unknown:
        message = (
            f"{folder / CONFIG_FILE} must hold {', '.join(_SECTIONS)} and no more. Got {short(unknown)} too. "
            "What is passed over may change the codes: save the SAE again."
        )
        raise FormatError(message)
    try:
        config = from_dict(SAEConfig, manifest.get("config"))
    except ConfigError as error:
        message = f"The config in {folder / CONFIG_FILE} must be valid. {error}"
        raise FormatError(message) from error
    weights = manifest.get("weights")
    if (
        not isinstance(weights, dict)
        or weights.get("file") != WEIGHTS_FILE
        or weights.get("dtype") not in list(_DTYPES)
    ):
        message = (
            f"{folder / CONFIG_FILE} must name {WEIGHTS_FILE!r} and a dtype out of {', '.join(_DTYPES)}. "
            f"Got {str(weights)[:200]}. Save the SAE again."
        )
        raise FormatError(message)
    path = folder / WEIGHTS_FILE
    kept = folder / _KEPT_FILE
    if kept.is_file() and path.is_file() and sha256_of(path) != weights.get("sha256"):
        path = kept  # a process that was killed had written the new weights, but not their config
    with Reader(path, weights.get("sha256")) as file:
        _check("W_enc", file.entries, (config.d_read, config.d_sae), torch.float32, path)
        expected = like(config)
        for name in file.entries:
            if name not in expected:
                message = (
                    f"{path} must hold only {', '.join(expected)}. Got {name!r}. {nearest(name, expected)}"
                    "Save the SAE again."
                )
                raise FormatError(message)
        for name, tensor in expected.items():
            _check(name, file.entries, tuple(tensor.shape), tensor.dtype, path)
        # read into the layout that it is used in: the file has rows of W_enc, the SAE its columns
        tensors = {
            name: file.read(name, torch.empty_strided(t.shape, t.stride(), dtype=t.dtype))
            for name, t in expected.items()
        }
    try:
        check_finite(tensors)
    except NonFiniteError as error:
        message = f"The weights in {folder} must be usable. {error}"
        raise FormatError(message) from error
    for name in ("input_scale", "output_scale"):
        if name in tensors and not float(tensors[name].min()) > 0:
            message = (
                f"Input and output scales must be > 0. Got {name}={float(tensors[name].min())} in {folder}. "
                "Save the SAE again."
            )
            raise FormatError(message)
    return Stored(config, tensors, weights["dtype"])


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Every weight must be a number.

    Raises:
        NonFiniteError: Where one is NaN or infinite.
        ConfigError: Where it is on the meta device.
    """
    for name, tensor in tensors.items():
        holding(tensor.device, "An SAE")
        if not is_finite(tensor.detach()):
            message = (
                f"Every weight of an SAE must be finite. Got NaN or infinity in {name}. "
                "Train again with a lower lr, or load another checkpoint."
            )
            raise NonFiniteError(message)


def fingerprint(config: SAEConfig, tensors: Mapping[str, Tensor]) -> str:
    """See SAE.fingerprint. Only what differs from the defaults counts of the config, so that an SAE
    keeps its fingerprint when recipes get new options."""
    known = config.entry.options
    chosen = {name: v for name, v in config.options.items() if v != known[name].default}
    data = to_dict(config)
    data = {name: data[name] for name in ("d_in", "d_sae", "recipe", "hook", "d_out", "hook_out", "hooks")}
    said = {name: value for name, value in data.items() if value not in (None, [])} | {"options": chosen}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        holding(tensor.device, "An SAE")
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        digest.update(f"{name} {dtype} {tuple(tensor.shape)}".encode())
        for piece in _numbers(tensor):
            digest.update(memory(piece))
    return digest.hexdigest()


def _numbers(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor in pieces on the CPU, contiguous, floats as float32."""
    for piece in blocks(tensor.detach()):
        piece = piece.cpu()
        yield (piece.float() if piece.is_floating_point() else piece).contiguous()


def _stored_as(tensor: Tensor, dtype: str) -> torch.dtype:
    """Matrices and vectors as asked for, scalars and integers whole."""
    if not tensor.is_floating_point():
        return tensor.dtype
    return _DTYPES[dtype] if tensor.ndim else torch.float32


def _pieces(tensor: Tensor, dtype: torch.dtype) -> Pieces:
    return Pieces(tuple(tensor.shape), dtype, (piece.to(dtype) for piece in _numbers(tensor)))


def _check(
    name: str, entries: Mapping[str, Entry], shape: tuple[int, ...], dtype: torch.dtype, path: Path
) -> None:
    if name not in entries:
        message = f"{path} must hold {name!r}. Got only {sorted(entries)}. Save the SAE again."
        raise FormatError(message)
    got = DTYPES[entries[name].dtype]
    if entries[name].shape != shape or got.is_floating_point != dtype.is_floating_point:
        kind = "floating point" if dtype.is_floating_point else str(dtype)
        message = (
            f"{name} in {path} must be of shape {shape} and {kind}, as the config says. "
            f"Got {entries[name].shape}, {got}. The files do not belong together: copy both again."
        )
        raise FormatError(message)
