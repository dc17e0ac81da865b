"""Writing activations: rows are laid into shards in memory, which a thread puts on disk meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.config import integer
from saelab.devices import dtype_name
from saelab.files import new_file, read_json_or_none, write_json
from saelab.stores import manifest as manifests
from saelab.stores.shards import DTYPES, KIND, SHARD_ROWS, Job, shard_name
from saelab.types import ConfigError, NonFiniteError, ShapeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BUFFERS = 2
"""Shards in memory at most: one that is filled, one that is written."""


@dataclass
class _Shard:
    """Rows of a shard that is being filled, and what the job needs to go on after it."""

    tensors: dict[str, Tensor]
    """hook name or "rows" -> [capacity width]"""
    number: int = 0
    n: int = 0
    errors: dict[str, list[Tensor]] = field(default_factory=dict)
    """hook name -> relative rounding error of each row, in parts"""
    state: dict[str, Any] = field(default_factory=dict)
    devices: set[torch.device] = field(default_factory=set)
    """GPUs that rows came from"""
    events: list[Any] = field(default_factory=list)
    """of their copies, which must have ended before it is written"""


class ActivationWriter:
    """Collects rows and writes them as shards.

    A thread writes; `add` waits only where it is a whole shard ahead. What the thread raises is raised by the
    next call. Use it as a context, or call `finish`.

    Args:
        where: A folder that `manifest.building` made, or a Job, whose whole shards are found again: `n_rows`
            then counts theirs, and `state` is what `add` was given with the last of their rows (None at the
            beginning).
        widths: Hook name -> d_in.
        dtype: float32, float16 or bfloat16 on disk.
        shard_rows: Rows of a shard.
        max_rows: If it is known that no more will come.

    Raises:
        ConfigError: dtype or shard_rows is none that can be.
    """

    def __init__(
        self,
        where: Path | Job,
        widths: Mapping[str, int],
        dtype: str = "float32",
        shard_rows: int = SHARD_ROWS,
        max_rows: int | None = None,
    ) -> None:
        shard_rows = integer("shard_rows", shard_rows, 1)
        self.widths, self.dtype, self.shard_rows = dict(widths), dtype_name(dtype, DTYPES), shard_rows
        self._capacity = shard_rows if max_rows is None else min(shard_rows, max_rows)
        self._job = where if isinstance(where, Job) else None
        self.folder = where.folder if isinstance(where, Job) else where
        self._entries: dict[str, dict[str, Any]] = {}
        self._written: list[int] = []
        self._rounding: list[dict[str, Any]] = []
        self.state: dict[str, Any] | None = None
        if self._job is not None:
            self._find(self._job)
        self.n_rows = sum(self._written)
        self._handed = len(self._written)
        self._shard: _Shard | None = None
        self._made = 0
        self._free: queue.SimpleQueue[_Shard] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[_Shard | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"ActivationWriter({self.folder.name}, {self.n_rows:,} rows, {self.dtype})"

    def add(self, acts: Mapping[str, Tensor], rows: Tensor, state: Mapping[str, Any] | None = None) -> None:
        """Append rows.

        Args:
            acts: Hook name -> [n d_in].
            rows: int64 [n 2], their origin: document and position.
            state: JSON data from which a job that goes on can make these rows again.

        Raises:
            ShapeError: Hook points have other widths or numbers of rows.
            NonFiniteError: Values are NaN or infinite, or more than float16 can hold.
            StoreError: What the thread met.
        """
        self._raise()
        for name, width in self.widths.items():
            self._check(name, acts[name], width, len(rows))
        devices = {acts[name].device for name in self.widths if acts[name].is_cuda}
        at = 0
        while at < len(rows):
            shard = self._shard = self._shard or self._next(bool(devices))
            shard.devices |= devices
            end = min(len(rows), at + self._capacity - shard.n)
            for name in self.widths:
                self._lay(shard, name, acts[name][at:end])
            shard.tensors["rows"][shard.n : shard.n + end - at] = rows[at:end]
            shard.n, shard.state = shard.n + end - at, dict(state or {})
            self.n_rows += end - at
            at = end
            if shard.n == self._capacity:
                self._hand_over()

    def finish(self, fields: Mapping[str, Any]) -> None:
        """Write what is left, then the manifest.

        Args:
            fields: Of the manifest.

        Raises:
            ShapeError: No row was added.
        """
        if not self.n_rows:
            message = "A store must hold at least one row. Got none. Pass a corpus with tokens besides BOS."
            raise ShapeError(message)
        self._hand_over()
        self.close()
        self._raise()
        own = {"n_rows": self.n_rows, "dtype": self.dtype, "hooks": self.widths, "shard_rows": self._written}
        if self.dtype != "float32":
            own["rounding"] = {name: self._rounded(name) for name in self.widths}
        manifests.write_manifest(self.folder, KIND, {**own, **fields}, self._entries)

    def close(self) -> None:
        """Wait for the shards that are whole; the rows of the last are dropped."""
        if self._thread is not None:
            self._full.put(None)
            self._thread.join()
            self._thread = None
        self._shard = None

    def __enter__(self) -> ActivationWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check(self, name: str, x: Tensor, width: int, n: int) -> None:
        from saelab.types import check_finite

        if x.shape != (n, width):
            message = f"{name} must be [{n} {width}]. Got {list(x.shape)}. Pass one row an origin."
            raise ShapeError(message)
        check_finite(x, f"Activations at {name}")
        if self.dtype == "float32" or not n:
            return
        import torch

        low, high = x.aminmax()
        largest, most = max(-float(low), float(high)), torch.finfo(_torch_dtype(self.dtype)).max
        if largest > most:
            other = "'bfloat16', or 'float32'" if self.dtype == "float16" else "'float32'"
            message = (
                f"{self.dtype} holds values up to {most:.6g}. Got {largest:.6g} at {name}. "
                f"Pass dtype={other}."
            )
            raise NonFiniteError(message)

    def _lay(self, shard: _Shard, name: str, x: Tensor) -> None:
        """Put rows into their place in the shard."""
        x = x.detach()
        target = shard.tensors[name]
        place = target[shard.n : shard.n + len(x)]
        if self.dtype == "float32":
            place.copy_(x, non_blocking=x.is_cuda)
            return
        import torch
        from torch.linalg import vector_norm

        stored, exact = x.to(target.dtype), x.float()
        # squares of large and of small values leave the range of float32
        lost = vector_norm(stored.float() - exact, dim=1, dtype=torch.float64)
        lost /= vector_norm(exact, dim=1, dtype=torch.float64).clamp_min(1e-300)
        shard.errors.setdefault(name, []).append(lost)
        place.copy_(stored, non_blocking=x.is_cuda)

    def _next(self, cuda: bool) -> _Shard:
        """A shard to fill; waits where all are being written."""
        if self._made < BUFFERS and self._free.empty():
            self._made += 1
            shard = _Shard(self._buffers(cuda))
        else:
            shard = self._free.get()
            self._raise()
        shard.number, shard.n, shard.errors, shard.devices, shard.events = self._handed, 0, {}, set(), []
        return shard

    def _buffers(self, cuda: bool) -> dict[str, Tensor]:
        """Memory of a shard; pinned where it is filled from a GPU, so that copies need not be waited for."""
        import torch

        try:
            tensors = {
                name: torch.empty(self._capacity, width, dtype=_torch_dtype(self.dtype), pin_memory=cuda)
                for name, width in self.widths.items()
            }
            tensors["rows"] = torch.empty(self._capacity, 2, dtype=torch.long)
        except RuntimeError as error:
            message = (
                f"Two shards must fit into memory. Got shard_rows={self.shard_rows}: {error}. Pass fewer."
            )
            raise ConfigError(message) from error
        return tensors

    def _hand_over(self) -> None:
        """Give the shard to the thread."""
        if self._shard is None:
            return
        import torch

        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="saelab-writer", daemon=True)
            self._thread.start()
        for device in self._shard.devices:
            self._shard.events.append(torch.cuda.current_stream(device).record_event())
        self._full.put(self._shard)
        self._handed, self._shard = self._handed + 1, None

    def _work(self) -> None:
        while (shard := self._full.get()) is not None:
            try:
                if self._error is None:
                    self._write(shard)
            except BaseException as error:
                self._error = error
            finally:
                self._free.put(shard)

    def _write(self, shard: _Shard) -> None:
        from saelab.tensors import write

        for event in shard.events:
            event.synchronize()
        name = shard_name(shard.number)
        with new_file(self.folder / name) as temporary:
            # the widest numbers first, so that all lie at multiples of their size
            order = sorted(shard.tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
            digest = write(temporary, {name: x[: shard.n] for name, x in order})
            done = {
                "entry": {"bytes": temporary.stat().st_size, "sha256": digest},
                "n": shard.n,
                "rounding": {k: _sums(errors) for k, errors in shard.errors.items()},
                "state": shard.state,
            }
            if self._job is not None:
                # before the shard, so that no shard is ever there without it
                write_json(self.folder / _part_name(shard.number), done)
        if self._job is not None:
            self._job.publish(name)
            self._job.publish(_part_name(shard.number))
        self._take(name, done)

    def _find(self, job: Job) -> None:
        """Shards that are whole."""
        while True:
            name = shard_name(len(self._written))
            done = read_json_or_none(self.folder / _part_name(len(self._written)))
            try:
                if done is None or job.size(name) != done["entry"]["bytes"]:
                    return
                self._take(name, done)
            except (KeyError, TypeError):  # of another saelab
                return

    def _take(self, name: str, done: dict[str, Any]) -> None:
        self._entries[name] = done["entry"]
        self._written.append(done["n"])
        self._rounding.append(done["rounding"])
        self.state = done["state"]

    def _rounded(self, name: str) -> dict[str, float]:
        """Relative error of the stored rows: largest, and root of the mean square."""
        each = [sums[name] for sums in self._rounding]
        return {
            "max": max(sums["max"] for sums in each),
            "rms": (sum(sums["squares"] for sums in each) / self.n_rows) ** 0.5,
        }

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def _part_name(number: int) -> str:
    return f"{manifests.PARTS}/shard-{number:05}.json"


def _sums(errors: list[Tensor]) -> dict[str, float]:
    import torch

    lost = torch.cat(errors).cpu()
    return {"max": float(lost.max()), "squares": float((lost**2).sum())}


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    return getattr(torch, name)
