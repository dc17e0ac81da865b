"""Activations on disk: safetensors shards and a manifest. Format: docs/stores.md."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.arguments import checked, floats, integers, mapping, maybe
from saelab.config import integer, integer_or_none, is_integer, shard_of
from saelab.stores import manifest as manifests
from saelab.stores.activation_writer import ActivationWriter
from saelab.stores.places import CACHE_BYTES, Folder, place_of
from saelab.stores.shards import (
    DTYPES,
    KIND,
    MAX_HEADER_BYTES,
    check_tensors,
    expected_tensors,
    shard_name,
)
from saelab.types import ActivationBatch, HookError, HookPoint, RangeError, ShapeError, StoreError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.stores.remote import Remote

_OPENING = threading.Lock()
"""Held while a shard is opened: several threads may read one store, and one copies it from elsewhere."""


class ActivationStore:
    """Activations of one or more hook points over the same rows, read from a folder: `open` gives one.

    Args:
        place: Where the files are.
        manifest: All that is known of them, checked.

    Attributes:
        n_rows: Rows of each hook point.
        dtype: As stored; batches are float32.
    """

    def __init__(self, place: Folder | Remote, manifest: dict[str, Any]) -> None:
        _check(manifest, place)
        self._place = place
        self.manifest = manifest
        self.n_rows: int = manifest["n_rows"]
        self.dtype: str = manifest["dtype"]
        self._widths: dict[str, int] = manifest["hooks"]
        self._starts = np.cumsum([0, *manifest["shard_rows"]])
        self._shards: dict[int, Any] = {}

    @classmethod
    def open(cls, folder: str | Path, cache_bytes: int = CACHE_BYTES) -> ActivationStore:
        """A store in a folder, or at an address that fsspec knows (`s3://bucket/acts`).

        Args:
            folder: The folder or address.
            cache_bytes: How much of a store elsewhere is copied to this disk, shard by shard as they are
                read, until the store is closed or forgotten; the rows of other shards are asked for again
                each time.

        Raises:
            StoreError: There is no whole store of a known version.
        """
        place = place_of(folder, cache_bytes)
        store = cls(place, place.manifest(KIND))
        weakref.finalize(store, place.close)
        return store

    @classmethod
    @checked(acts=mapping, rows=maybe(integers(2)))
    def create(
        cls,
        out: str | Path,
        acts: Mapping[str, Tensor],
        rows: Tensor | None = None,
        *,
        overwrite: bool = False,
    ) -> ActivationStore:
        """A store of activations that are at hand.

        Args:
            out: A folder.
            acts: Hook name -> floating [n d_in].
            rows: int64 [n 2], origin of each row: document and position; (0, i) by default.
            overwrite: Put it in place of a store at `out`.

        Raises:
            ShapeError: Hook points have different numbers of rows, or there are no rows.
            NonFiniteError: Activations are NaN or infinite.
            StoreError: `out` holds something, or cannot be written.
        """
        import torch

        acts = {name: floats(f"acts[{name!r}]", x) for name, x in acts.items()}
        if not acts or any(x.ndim != 2 for x in acts.values()):
            message = "acts must be [n d_in] of each hook point. Got others, or none. Pass {hook: tensor}."
            raise ShapeError(message)
        n = len(next(iter(acts.values())))
        if rows is None:
            rows = torch.stack([torch.zeros(n, dtype=torch.long), torch.arange(n)], 1)
        widths = {name: x.shape[-1] for name, x in acts.items()}
        with (
            manifests.building(out, overwrite) as folder,
            ActivationWriter(folder, widths, max_rows=n) as writer,
        ):
            writer.add(acts, rows)
            writer.finish({})
        return cls.open(out)

    @property
    def folder(self) -> Path | Remote:
        """Where it lies: a folder's path, or what is at an address."""
        return self._place.path if isinstance(self._place, Folder) else self._place

    @property
    def hooks(self) -> list[str]:
        """Names of the hook points."""
        return list(self._widths)

    def width(self, hook: HookPoint | str) -> int:
        """d_in at a hook point.

        Raises:
            HookError: There is no such hook point.
        """
        return self._widths[self._hook(hook)]

    def batches(
        self,
        size: int,
        seed: int | None = None,
        hook: HookPoint | str | None = None,
        shard: tuple[int, int] | None = None,
        epochs: int = 1,
    ) -> Iterator[ActivationBatch]:
        """Batches of rows; every row once an epoch, the last batch of an epoch may be smaller.

        Args:
            size: Rows of a batch.
            seed: Shuffle all rows anew each epoch; None reads them in order.
            hook: May be left out where there is one.
            shard: (i, n) gives every n-th row from the i-th on, for n readers that together read each row
                once.
            epochs: How often.

        Yields:
            acts float32 [size width] with their rows int64 [size 2].

        Raises:
            HookError: There is no such hook point, or several and none is named.
            RangeError: A size or number of epochs below 1.
            ConfigError: Unless 0 <= i < n.
        """
        name = self._hook(hook)
        size = integer("size", size, 1, error=RangeError)
        epochs = integer("epochs", epochs, 1, error=RangeError)
        i, n = shard_of(shard)
        seed = integer_or_none("seed", seed, 0)
        return self._batches(name, size, seed, i, n, epochs)

    def _batches(
        self, name: str, size: int, seed: int | None, i: int, n: int, epochs: int
    ) -> Iterator[ActivationBatch]:
        for epoch in range(epochs):
            order = range(self.n_rows) if seed is None else _permutation(self.n_rows, [seed, epoch])
            order = order[i::n]
            for first in range(0, len(order), size):
                at = order[first : first + size]
                yield ActivationBatch(self._gather(name, at), self._gather("rows", at))

    @checked(at=integers())
    def rows(self, at: Sequence[int] | np.ndarray, hook: HookPoint | str | None = None) -> ActivationBatch:
        """The given rows, in the given order.

        Args:
            at: Numbers of rows [n].
            hook: May be left out where there is one.

        Returns:
            acts float32 [n width] with their rows int64 [n 2].

        Raises:
            RangeError: There is no such row.
            HookError: There is no such hook point, or several and none is named.
        """
        at = np.asarray(at, dtype=np.int64)
        if len(at) and not (0 <= at.min() and at.max() < self.n_rows):
            message = (
                f"Rows must be in 0..{self.n_rows - 1}. Got {at.min()}..{at.max()}. Pass rows of this store."
            )
            raise RangeError(message)
        return ActivationBatch(self._gather(self._hook(hook), at), self._gather("rows", at))

    def acts(self, at: np.ndarray, hook: HookPoint | str | None = None) -> Tensor:
        """The activations of the given rows alone.

        Args:
            at: int64 [n], numbers of rows; they are not checked.
            hook: May be left out where there is one.

        Returns:
            float32 [n width].
        """
        return self._gather(self._hook(hook), at)

    def fingerprint(self) -> str:
        """Hex digest of all that the store holds; equal for equal activations."""
        hashes = [entry["sha256"] for _, entry in sorted(self.manifest["files"].items())]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def verify(self) -> None:
        """Compare every shard with its hash.

        Raises:
            StoreError: One differs; it names it.
        """
        self._place.verify(self.manifest)

    def _gather(self, name: str, at: np.ndarray | range) -> Tensor:
        """Rows of a tensor, activations as float32."""
        import torch

        width, dtype = (2, torch.long) if name == "rows" else (self._widths[name], torch.float32)
        out = torch.empty(len(at), width, dtype=dtype)
        if isinstance(at, range) and at.step == 1:
            first = max(0, int(np.searchsorted(self._starts, at.start, side="right")) - 1)
            done = 0
            while done < len(at):
                start = at.start + done - int(self._starts[first])
                end = min(start + len(at) - done, int(self._starts[first + 1] - self._starts[first]))
                out[done : done + end - start] = self._read(first, name, slice(start, end))
                done, first = done + end - start, first + 1
            return out
        at = np.asarray(at)
        order = np.argsort(at, kind="stable")  # so that a disk is read forwards
        bounds = np.searchsorted(at[order], self._starts)
        for shard in np.flatnonzero(np.diff(bounds)):
            mine = order[bounds[shard] : bounds[shard + 1]]
            local = torch.from_numpy(at[mine].astype(np.int64) - int(self._starts[shard]))
            out[torch.from_numpy(mine)] = self._read(int(shard), name, local).to(dtype)
        return out

    def _read(self, number: int, name: str, which: slice | Tensor) -> Tensor:
        from safetensors import SafetensorError

        try:
            with _OPENING:
                if number not in self._shards:
                    self._shards[number] = self._open_shard(number)
            return self._shards[number][name][which]
        except (OSError, SafetensorError) as error:
            where = f"{self._place}/{shard_name(number)}"
            raise manifests.unreadable(where, error) from error

    def _open_shard(self, number: int) -> Mapping[str, Any]:
        """Tensors of a shard, memory-mapped: rows are read from disk when they are gathered."""
        from safetensors import safe_open

        name = shard_name(number)
        n = int(self._starts[number + 1] - self._starts[number])
        expected = expected_tensors(n, self.dtype, self._widths)
        path = self._place.local(name, self.manifest["files"][name])
        if path is None:
            return self._place.shard(name, expected)  # type: ignore[union-attr]
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}
            found = {key: (x.get_dtype(), list(x.get_shape())) for key, x in slices.items()}
            check_tensors(found, expected, path)
            return {key: file.get_tensor(key) for key in expected}

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: it maps the shards itself."""
        return {**self.__dict__, "_shards": {}}

    def _hook(self, hook: HookPoint | str | None) -> str:
        if hook is None:
            if len(self._widths) > 1:
                message = (
                    f"Which hook point must be said where there are several. Got None of "
                    f"{self.hooks}. Pass hook=."
                )
                raise HookError(message)
            return self.hooks[0]
        name = str(hook)
        if name not in self._widths:
            message = (
                f"Unknown hook point {name!r}. {nearest(name, self.hooks)}This store holds {self.hooks}."
            )
            raise HookError(message)
        return name

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        points = ", ".join(f"{name} [{width}]" for name, width in self._widths.items())
        return f"ActivationStore({self.n_rows:,} rows, {self.dtype}: {points})"


def _permutation(n: int, seed: list[int]) -> np.ndarray:
    """All rows in random order, in as few bytes as hold their numbers."""
    order = np.arange(n, dtype=np.int32 if n < 2**31 else np.int64)
    np.random.default_rng(seed).shuffle(order)
    return order


def _check(manifest: Mapping[str, Any], where: object) -> None:
    """Raises StoreError where the manifest cannot be that of activations."""
    n_rows, dtype = manifest.get("n_rows"), manifest.get("dtype")
    hooks: Any = manifest.get("hooks")
    shards: Any = manifest.get("shard_rows")

    def refuse(rule: str, got: object) -> None:
        message = f"In {where}/{manifests.NAME}, {rule}. Got {str(got)[:100]}. Write the store again."
        raise StoreError(message)

    if dtype not in DTYPES:
        refuse(f"dtype must be one of {', '.join(DTYPES)}", repr(dtype))
    if not isinstance(hooks, dict) or not hooks or not all(_count(width) for width in hooks.values()):
        refuse("hooks must give the width of each hook point", hooks)
    if "rows" in hooks:
        refuse("no hook point may be called 'rows'", hooks)
    if not isinstance(shards, list) or not shards or not all(_count(n) for n in shards):
        refuse("shard_rows must give the rows of each shard", shards)
    if not _count(n_rows) or n_rows != sum(shards):
        refuse(f"n_rows must be the sum of shard_rows, {sum(shards)}", n_rows)
    names = [shard_name(i) for i in range(len(shards))]
    files = manifest["files"]
    if set(files) != set(names):
        other = sorted(set(files) ^ set(names))
        refuse("files must be its shards", f"{other[0]!r} {'too much' if other[0] in files else 'missing'}")
    row = 16 + sum(hooks.values()) * (4 if dtype == "float32" else 2)
    for name, n in zip(names, shards, strict=True):
        if not 0 <= files[name]["bytes"] - n * row <= MAX_HEADER_BYTES:
            refuse(f"{name} of {n} rows must have {n * row} bytes and a header", files[name]["bytes"])


def _count(value: Any) -> bool:
    return is_integer(value) and value > 0
