"""Checkpoints: everything that the rest of a run depends on, in a folder that is written whole or not at all.

`<out>/checkpoints/step-00000120/` holds `state.safetensors` (weights, Adam's moments, rows since each latent
fired) and `checkpoint.json` (identity of the run, step, history, hash of the state). It appears by one
rename. The last two are kept, so that a damaged one leaves the one before.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saelab.config import from_dict, is_integer, is_number, to_dict
from saelab.files import Stamp, new_folder, write_json, writing
from saelab.sae.config import SAEConfig
from saelab.tensors import Pieces, Reader
from saelab.tensors import write as write_tensors
from saelab.training.estimates import free_memory
from saelab.training.run import Record, Run, Settings, differences
from saelab.types import ConfigError, FormatError, StoreError

STAMP = Stamp("saelab-checkpoint", 1, remedy="Pass resume=False to start anew.")
KEPT = 2
MAX = sys.float_info.max


class Checkpoint(NamedTuple):
    """One moment of a run."""

    step: int
    """Steps done."""
    identity: dict[str, Any]
    """Config, settings and data fingerprint: a run continues only with the same ones."""
    history: list[Record]
    """The records so far."""
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
        sha256 = write_tensors(temporary / "state.safetensors", checkpoint.tensors)
        write_json(
            temporary / "checkpoint.json",
            {
                **STAMP.fields(),
                "step": checkpoint.step,
                "identity": checkpoint.identity,
                "variance": checkpoint.variance,
                "sha256": sha256,
                "history": [record.to_dict() for record in checkpoint.history],
            },
        )
    for old in _folders(out)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


class Writer:
    """Writes checkpoints of one run, one after the other, in a thread while training goes on.

    The thread reads a copy of the tensors. Where the main memory that is free holds no two of them, a
    checkpoint is written at once instead, in pieces and without a copy.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "saelab-checkpoint")
        self._pending: Future[None] | None = None

    def write(self, out: Path, made: Checkpoint) -> None:
        """Begin to write one, once the one before is on disk. Raises StoreError where that one failed."""
        self.wait()
        size = sum(math.prod(t.shape) * t.dtype.itemsize for t in made.tensors.values())
        free = free_memory(torch.device("cpu"))
        if free is None or free < 2 * size:
            write(out, made)
            return
        copies = {
            n: t.detach().to("cpu", copy=True) for n, t in made.tensors.items() if not isinstance(t, Pieces)
        }
        self._pending = self._thread.submit(write, out, made._replace(tensors=copies))

    def wait(self) -> None:
        """Return when all is on disk. Raises StoreError where it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Return when nothing is being written any more, whatever came of it."""
        self._thread.shutdown()


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


def check_same(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Raises ConfigError where a run of one identity is to be gone on with by another."""
    # an older saelab may have written fewer settings and options
    told = {"settings": to_dict(from_dict(Settings, old.get("settings")))}
    told["config"] = to_dict(from_dict(SAEConfig, old.get("config")))
    found = differences(old | told, new)
    if found:
        message = (
            f"A run continues only with the same config, settings and data. Got in {folder}: "
            f"{'; '.join(found)}. "
            "Pass the old values, another out, or resume=False to start anew."
        )
        raise ConfigError(message)


def finished(folder: Path, identity: dict[str, Any], resume: bool) -> Run | None:
    """The run of a folder, if it is finished. Without `resume` what is there is dropped. Raises ConfigError
    where it has another identity."""
    if not resume:
        (folder / "run.json").unlink(missing_ok=True)
        remove(folder)
    if not (folder / "run.json").is_file():
        return None
    run = Run.load(folder)
    told = {"config": to_dict(run.config), "settings": to_dict(run.settings)}
    told |= {name: run.provenance.get(name) for name in ("data", "held_out", "end_to_end")}
    check_same(told, identity, folder)
    return run


def _folders(out: Path) -> list[Path]:
    return sorted(p for p in (out / "checkpoints").glob("step-*") if p.is_dir())


def _read(folder: Path) -> Checkpoint:
    data = STAMP.read(folder / "checkpoint.json", "checkpoint")
    step, variance, history = data["step"], data["variance"], data["history"]
    bounded = is_integer(step) and 0 <= step < 2**63 and is_number(variance) and 0 <= variance <= MAX
    if not bounded or not isinstance(data["identity"], dict):
        raise TypeError(step, variance)
    if not isinstance(history, list) or not all(isinstance(record, dict) for record in history):
        raise TypeError(history)
    with Reader(folder / "state.safetensors", data["sha256"]) as file:
        tensors = {name: file.read(name) for name in file.entries}
    records = [Record.from_dict(record) for record in history]  # which raises what is caught here too
    return Checkpoint(int(step), data["identity"], records, float(variance), tensors)
