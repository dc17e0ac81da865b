"""Where stores lie: in a folder of this machine, or at an address that fsspec knows (see remote.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.files import path_of, write_bytes
from saelab.stores import manifest as manifests
from saelab.stores.shards import Job

if TYPE_CHECKING:
    from saelab.stores.remote import Remote

CACHE_BYTES = 2**36


class Folder:
    """A folder of this machine, asked as `remote.Remote` is.

    Attributes:
        path: The folder's.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path_of(path, "The folder of a store")

    def __str__(self) -> str:
        return str(self.path)

    def read(self, name: str) -> bytes | None:
        """A file; None where there is none."""
        path = self.path / name
        return path.read_bytes() if path.is_file() else None

    def write(self, name: str, data: bytes) -> None:
        """Write a file. Raises StoreError."""
        write_bytes(self.path / name, data)

    def manifest(self, kind: str) -> dict[str, Any]:
        """The manifest of a store of this kind. Raises StoreError."""
        return manifests.read_manifest(self.path, kind)

    def verify(self, manifest: Mapping[str, Any]) -> None:
        """Read every file and compare its hash. Raises StoreError."""
        manifests.verify(self.path, manifest)

    def local(self, name: str, entry: Mapping[str, Any]) -> Path:
        """A file's path. Raises StoreError where its size is not what the manifest says."""
        path, found = self.path / name, manifests.size_of(self.path, name)
        if found != entry["bytes"]:
            got = "no such file" if found is None else f"{found} bytes"
            raise manifests.unreadable(path, ValueError(f"{got} instead of {entry['bytes']}"))
        return path

    def close(self) -> None:
        """Nothing was copied."""


def is_address(where: str | Path) -> bool:
    """Whether it is an address rather than a folder."""
    return "://" in str(where)


def place_of(where: str | Path, cache_bytes: int = CACHE_BYTES) -> Folder | Remote:
    """A folder, or what lies at an address.

    Args:
        where: Its path or address.
        cache_bytes: How much of what lies elsewhere is kept on this disk once it was read.

    Raises:
        MissingDependency: For an address, where what it needs is not installed.
    """
    if not is_address(where):
        return Folder(where)
    from saelab.stores.remote import Remote

    return Remote(str(where), cache_bytes)


@contextlib.contextmanager
def job(out: str | Path, spec: Mapping[str, Any], overwrite: bool) -> Iterator[Job]:
    """`manifest.resumable`, or the same of an address."""
    if is_address(out):
        from saelab.stores.remote import resumable

        with resumable(str(out), spec, overwrite) as opened:
            yield opened
        return
    with manifests.resumable(out, spec, overwrite) as folder:
        (folder / manifests.PARTS).mkdir(exist_ok=True)
        yield Job(folder, lambda name: manifests.size_of(folder, name))


def finished(out: str | Path, spec: Mapping[str, Any]) -> bool:
    """`manifest.finished`, or the same of an address."""
    if not is_address(out):
        return manifests.finished(out, spec)
    return manifests.is_job(place_of(out).read(manifests.NAME), spec)
