"""Stores at addresses that fsspec knows (`s3://bucket/acts`): whole files go there, the manifest last.

An object store has neither renames nor locks. A store is there when its manifest is; until then `job.json`
and `parts` lie beside its files, by which a job goes on, on any machine. A second job is refused only on the
same machine. What is overwritten is gone as soon as the new job begins.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.errors import needing
from saelab.files import new_file, read_json_or_none, sha256, write_json
from saelab.stores import manifest as manifests
from saelab.stores.shards import MAX_HEADER_BYTES, Job, check_tensors
from saelab.tensors import DTYPES, Entry, entries
from saelab.types import FormatError, MissingDependency, StoreError


class Remote:
    """A folder at an address. cache_bytes: how much of it is kept on this disk once it was read."""

    def __init__(self, url: str, cache_bytes: int = 0) -> None:
        self.url, self.cache_bytes = url.rstrip("/"), cache_bytes
        with needing("An address", "fsspec", "'saelab[scale]', or pass a folder"):
            import fsspec
        try:
            self._fs, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            message = (
                f"fsspec must know the address. Got {url}: {error} Install what it names, or pass a folder."
            )
            raise MissingDependency(message) from error
        self._root = root.rstrip("/")
        self._cache: tempfile.TemporaryDirectory[str] | None = None
        self._cached = 0
        self._sizes: dict[str, int] | None = None

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[Any, ...]:
        return Remote, (self.url, self.cache_bytes)

    def sizes(self) -> dict[str, int]:
        """Bytes of every file, by name."""
        with self._reached():
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
        cut = len(self._root) + 1
        return {path[cut:]: info["size"] for path, info in found.items() if path[cut:]}

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes | None:
        """A file or its bytes start to end; None where there is none."""
        with self._reached():
            try:
                return self._fs.cat_file(f"{self._root}/{name}", start=start, end=end)
            except FileNotFoundError:
                return None

    def put(self, path: Path, name: str) -> None:
        """Copy a file there."""
        with self._reached():
            self._fs.makedirs(str(Path(f"{self._root}/{name}").parent), exist_ok=True)
            self._fs.put_file(str(path), f"{self._root}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Write a file there."""
        with self._reached():
            self._fs.makedirs(str(Path(f"{self._root}/{name}").parent), exist_ok=True)
            self._fs.pipe_file(f"{self._root}/{name}", data)

    def remove(self, names: list[str]) -> None:
        """Remove files."""
        with self._reached():
            for name in names:
                self._fs.rm_file(f"{self._root}/{name}")
            self._fs.invalidate_cache()

    def manifest(self, kind: str) -> dict[str, Any]:
        """As `manifest.read_manifest`."""
        sizes = self.sizes()
        if sizes.get(manifests.NAME, 0) > manifests.MAX_MANIFEST_BYTES:
            message = f"{self}/{manifests.NAME} is too large to be one. Got {sizes[manifests.NAME]} bytes."
            raise StoreError(message)
        return manifests.parsed(self.read(manifests.NAME), kind, self, sizes.get)

    def verify(self, manifest: Mapping[str, Any]) -> None:
        """As `manifest.verify`: reads all of it."""
        with tempfile.TemporaryDirectory() as folder:
            for name, entry in manifest["files"].items():
                self._copy(name, entry, Path(folder) / "file")

    def local(self, name: str, entry: Mapping[str, Any]) -> Path | None:
        """A copy of a file on this disk; None where the cache cannot take it."""
        if self._cached + entry["bytes"] > self.cache_bytes:
            return None
        self._cache = self._cache or tempfile.TemporaryDirectory(prefix="saelab-")
        path = Path(self._cache.name) / name
        if not path.exists():
            self._copy(name, entry, path)
            self._cached += entry["bytes"]
        return path

    def shard(self, name: str, expected: Mapping[str, tuple[str, list[int]]]) -> dict[str, FarTensor]:
        """Tensors of a safetensors file that is not copied."""
        where = f"{self}/{name}"
        n = int.from_bytes(self.read(name, 0, 8) or b"", "little")
        try:
            found = entries((self.read(name, 8, 8 + n) if 0 < n <= MAX_HEADER_BYTES else None) or b"", where)
        except FormatError as error:
            raise manifests.unreadable(where, error) from error
        check_tensors({key: (x.dtype, list(x.shape)) for key, x in found.items()}, expected, where)
        return {key: FarTensor(self, name, entry) for key, entry in found.items()}

    def ranges(self, name: str, starts: list[int], ends: list[int]) -> list[bytes]:
        """Parts of a file, asked for at once."""
        with self._reached():
            paths = [f"{self._root}/{name}"] * len(starts)
            found = self._fs.cat_ranges(paths, starts, ends, on_error="raise")
        short = [i for i, file in enumerate(found) if len(file) != ends[i] - starts[i]]
        if short:
            where, error = f"{self}/{name}", ValueError("fewer bytes than were asked for")
            raise manifests.unreadable(where, error)
        return found

    def close(self) -> None:
        """Remove the copies."""
        if self._cache is not None:
            self._cache.cleanup()

    def _copy(self, name: str, entry: Mapping[str, Any], path: Path) -> None:
        with self._reached(), new_file(path) as temporary:
            self._fs.get_file(f"{self._root}/{name}", str(temporary))
            if sha256(temporary) != entry["sha256"]:
                message = (
                    f"{self}/{name} must have the hash that was written. Got another. Write the store again."
                )
                raise StoreError(message)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except (StoreError, FileNotFoundError) as error:
            if isinstance(error, StoreError):
                raise
            raise manifests.unreadable(self, error) from error
        except Exception as error:  # each kind of address has its own errors
            message = (
                f"{self} must be reachable. Got {type(error).__name__}: {error}. Check address and keys."
            )
            raise StoreError(message) from error


class FarTensor:
    """A tensor [rows width] in a file that is elsewhere, of which rows are asked for."""

    def __init__(self, far: Remote, name: str, entry: Entry) -> None:
        self.far, self.name, self.start, self.width = far, name, entry.start, entry.shape[1]
        self.dtype = DTYPES[entry.dtype]
        self.row = self.width * self.dtype.itemsize

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        if isinstance(which, slice):
            runs, order = [(which.start, which.stop)], None
        else:
            wanted, order = torch.unique(which, return_inverse=True)
            cuts = (wanted.diff() != 1).nonzero().flatten() + 1
            runs = [(int(r[0]), int(r[-1]) + 1) for r in torch.tensor_split(wanted, cuts.tolist())]
        starts, ends = ([self.start + self.row * edge for edge in side] for side in zip(*runs, strict=True))
        joined = bytearray().join(self.far.ranges(self.name, starts, ends))
        rows = torch.frombuffer(joined, dtype=self.dtype).view(-1, self.width)
        return rows if order is None else rows[order]


@contextlib.contextmanager
def resumable(url: str, spec: Mapping[str, Any], overwrite: bool) -> Iterator[Job]:
    """As `manifest.resumable`, written to an address part by part. Raises StoreError as that does."""
    far, spec = Remote(url), manifests.through_json(spec)
    own = hashlib.sha256(f"{Path.home()} {far.url}".encode()).hexdigest()[:16]
    with (
        manifests.lock(Path(tempfile.gettempdir()) / f"saelab-{own}.lock", url),
        tempfile.TemporaryDirectory(prefix="saelab-") as name,
    ):
        folder = Path(name)
        (folder / manifests.PARTS).mkdir()
        _begin(far, spec, overwrite, folder)
        there = far.sizes()
        for file in [n for n in there if n.startswith(f"{manifests.PARTS}/")]:
            (folder / manifests.PARTS / Path(file).name).write_bytes(far.read(file) or b"")

        def publish(file: str) -> None:
            far.put(folder / file, file)
            if not file.startswith(f"{manifests.PARTS}/"):
                (folder / file).unlink()

        try:
            yield Job(folder, there.get, publish)
        except OSError as error:
            message = f"There must be room to write a shard in {name}. Got: {error}. Free some space."
            raise StoreError(message) from error
        else:
            publish(manifests.NAME)
        finally:
            left = far.sizes()
            if manifests.NAME in left or set(left) == {manifests.JOB}:
                far.remove([n for n in left if n == manifests.JOB or n.startswith(f"{manifests.PARTS}/")])


def _begin(far: Remote, spec: dict[str, Any], overwrite: bool, folder: Path) -> None:
    """Leave there what belongs to this job, and nothing else."""
    there = far.sizes()
    store = manifests.NAME in there
    if store and not overwrite:
        message = f"A store must be written to a new place. Got {far}. Pass another, or overwrite=True."
        raise StoreError(message)
    if there and not store and manifests.JOB not in there:
        message = f"Only a store is overwritten. Got {far}, which holds other files. Pass another address."
        raise StoreError(message)
    if there and not store:
        old = read_json_or_none(far.read(manifests.JOB))
        if old == spec:
            return
        if not overwrite:
            manifests.check_job(old, spec, far)
    # the manifest goes first: what is half removed is no store
    far.remove(sorted(there, key=lambda name: name != manifests.NAME))
    write_json(folder / manifests.JOB, spec)
    far.put(folder / manifests.JOB, manifests.JOB)
