"""What every store has: a manifest written last, a folder that appears whole or not at all, hashes.

A store is a folder with `manifest.json`:
`{"format": "saelab", "kind": ..., "version": 1, "files": {name: {"bytes": n, "sha256": hex}}, ...fields}`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saelab.types import StoreError

VERSION = 1
NAME = "manifest.json"


@contextlib.contextmanager
def building(out: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out`, renamed to it on success and removed on any exception, interrupts
    included.

    Raises StoreError where `out` exists and is not empty (unless overwrite=True and it is a store, or
    empty), and where the disk refuses to be written.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        message = f"A store must be written to a folder. Got the file {out}. Pass another path."
        raise StoreError(message)
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            message = (
                f"A store must be written to a new or empty folder. Got {out}. Pass another, "
                f"or overwrite=True."
            )
            raise StoreError(message)
        if not (out / NAME).is_file():
            message = f"Only a store is overwritten. Got {out}, which holds other files. Pass another folder."
            raise StoreError(message)
    temporary: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        yield temporary
        temporary.chmod(0o755)
        _replace_folder(temporary, out)
    except OSError as error:
        message = (
            f"The store at {out} must be writable. Got: {error}. Free some space or pass another folder."
        )
        raise StoreError(message) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def write_manifest(folder: Path, kind: str, fields: Mapping[str, Any]) -> None:
    """Hash every file of the folder and write the manifest: the last thing that is written into a store."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != NAME
    }
    manifest = {"format": "saelab", "kind": kind, "version": VERSION, "files": files, **fields}
    temporary = folder / f".{NAME}"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / NAME)


def read_manifest(folder: str | Path, kind: str) -> dict[str, Any]:
    """The manifest of a store, its files checked by size. Hashes are checked by `verify`.

    Raises StoreError where the folder holds no store, one of another kind or of a newer version, or where a
    file is missing or of another size than written.
    """
    folder = Path(folder)
    path = folder / NAME
    if not path.is_file():
        message = f"A store must hold {NAME}. Got {folder}, which has none. Pass the folder given as out=."
        raise StoreError(message)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        message = f"{path} must be readable JSON. Got: {error}. Write the store again."
        raise StoreError(message) from error
    if not isinstance(manifest, dict) or manifest.get("format") != "saelab":
        message = (
            f"{path} must be a saelab manifest. Got another JSON file. Pass the folder of a saelab store."
        )
        raise StoreError(message)
    if manifest.get("kind") != kind:
        message = (
            f"A store of kind {kind!r} is needed. Got {manifest.get('kind')!r} in {folder}. "
            f"Pass the other folder."
        )
        raise StoreError(message)
    version = manifest.get("version")
    if not isinstance(version, int) or version > VERSION:
        message = (
            f"Stores up to version {VERSION} can be read. Got version {version} in {folder}. Update saelab."
        )
        raise StoreError(message)
    files = manifest.get("files")
    if not isinstance(files, dict):
        message = f"{path} must list its files. Got {type(files).__name__}. Write the store again."
        raise StoreError(message)
    for name, entry in files.items():
        part = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            message = (
                f"Files of a store must lie in its folder. Got {name!r} in {path}. Do not trust this store."
            )
            raise StoreError(message)
        size = part.stat().st_size if part.is_file() else None
        if size != entry["bytes"]:
            got = "no such file" if size is None else f"{size} bytes"
            message = (
                f"{part} must hold {entry['bytes']} bytes. Got {got}. It was truncated: write "
                f"the store again."
            )
            raise StoreError(message)
    return manifest


def verify(folder: str | Path, manifest: Mapping[str, Any]) -> None:
    """Read every file and compare its hash. Raises StoreError naming the first that differs."""
    for name, entry in manifest["files"].items():
        if sha256(Path(folder) / name) != entry["sha256"]:
            message = (
                f"{Path(folder) / name} must have the hash that was written. Got another. "
                f"Write the store again."
            )
            raise StoreError(message)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace_folder(new: Path, out: Path) -> None:
    """Put `new` at `out`; what was there goes only once the new one is in place."""
    old = None
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
        out.replace(old / "store")
    new.replace(out)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
