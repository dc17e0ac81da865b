"""Checkpoints: everything that the rest of a run depends on, in a folder that is written whole or not at all.

`<out>/checkpoints/step-00000120/` holds `state.safetensors` (weights, Adam's moments, rows since each latent
fired) and `checkpoint.json` (identity of the run, step, history, hash of the state). It appears by one
rename. The last two are kept, so that a damaged one leaves the one before.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from saelab.files import Stamp, new_folder, write_json, writing
from saelab.training.shards import Pieces
from saelab.types import FormatError, StoreError

STAMP = Stamp("saelab-checkpoint", 1, remedy="Pass resume=False to start anew.")
KEPT = 2
_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.bfloat16: "BF16"}


class Checkpoint(NamedTuple):
    """One moment of a run."""

    step: int
    """Steps done."""
    identity: dict[str, Any]
    """Config, settings and data fingerprint: a run continues only with the same ones."""
    history: list[dict[str, Any]]
    """The records so far, as plain data."""
    variance: float
    """See losses.Progress."""
    tensors: Mapping[str, Tensor | Pieces]
    """Weights, optimizer state and counters, by name. Of one that was read: tensors, on rank 0; elsewhere
    only their shapes and types."""


def write(out: Path, checkpoint: Checkpoint) -> None:
    """Add a checkpoint and drop all but the last two. Raises StoreError; earlier ones then stay as they
    are."""
    folder = out / "checkpoints" / f"step-{checkpoint.step:08d}"
    with writing(folder), new_folder(folder) as temporary:
        sha256 = _write_tensors(temporary / "state.safetensors", checkpoint.tensors)
        write_json(
            temporary / "checkpoint.json",
            {
                **STAMP.fields(),
                "step": checkpoint.step,
                "identity": checkpoint.identity,
                "variance": checkpoint.variance,
                "sha256": sha256,
                "history": checkpoint.history,
            },
        )
    for old in _folders(out)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def outline(found: Checkpoint) -> Checkpoint:
    """The checkpoint without its numbers."""
    tensors = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in found.tensors.items()}
    return found._replace(tensors=tensors)


def latest(outs: Sequence[Path]) -> list[Checkpoint] | None:
    """The newest checkpoints of one step that are whole in every folder, or None where they share no step.

    Raises FormatError where they share some but none is whole.
    """
    shared = set.intersection(*({folder.name for folder in _folders(out)} for out in outs))
    damaged: list[str] = []
    for name in sorted(shared, reverse=True):
        folders = [out / "checkpoints" / name for out in outs]
        try:
            return [_read(folder) for folder in folders]
        except (FormatError, StoreError) as error:
            damaged.append(str(error))
        except (KeyError, TypeError) as error:
            damaged.append(f"{folders[0]} lacks an entry: {error!r}")
    if damaged:
        message = (
            f"A run needs one whole checkpoint to continue. Got none in {outs[0]} ({damaged[0]}). Pass "
            f"resume=False."
        )
        raise FormatError(message)
    return None


def remove(out: Path) -> None:
    """Drop every checkpoint, once the finished run is on disk (or is to start anew)."""
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor | Pieces]) -> str:
    """A safetensors file, written piece by piece; gives its SHA-256."""
    header, at = {}, 0
    for name, tensor in tensors.items():
        end = at + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for data in (len(text).to_bytes(8, "little"), text):
            digest.update(data)
            file.write(data)
        for tensor in tensors.values():
            for piece in tensor.pieces if isinstance(tensor, Pieces) else [tensor]:
                data = piece.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
                digest.update(data)
                file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _folders(out: Path) -> list[Path]:
    return sorted(p for p in (out / "checkpoints").glob("step-*") if p.is_dir())


def _read(folder: Path) -> Checkpoint:
    data = STAMP.read(folder / "checkpoint.json", "checkpoint")
    try:
        raw = (folder / "state.safetensors").read_bytes()
    except OSError as error:
        message = (
            f"{folder} must hold a readable state.safetensors. Got: {error.strerror or error}. Use another."
        )
        raise StoreError(message) from error
    if hashlib.sha256(raw).hexdigest() != data["sha256"]:
        message = (
            f"{folder} must have the hash that it states. Got another: it is damaged. Use the one before."
        )
        raise FormatError(message)
    try:
        tensors = safetensors.torch.load(raw)
    except (safetensors.SafetensorError, ValueError) as error:
        message = f"{folder} must hold a safetensors file. Got: {error}. Use the one before."
        raise FormatError(message) from error
    return Checkpoint(data["step"], data["identity"], data["history"], data["variance"], tensors)
