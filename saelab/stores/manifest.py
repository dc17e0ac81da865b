"""What every store has: a manifest written last, a folder that appears whole or not at all, hashes.

A store is a folder with `manifest.json`:
`{"format": "saelab", "kind": ..., "version": 1, "files": {name: {"bytes": n, "sha256": hex}}, ...fields}`.

Small stores are written by `building`, which leaves nothing behind where it fails; long jobs by `resumable`,
which goes on with what a killed one left. One job at a time writes a folder.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from saelab.config import is_integer
from saelab.files import (
    Stamp,
    new_folder,
    path_of,
    read_json_or_none,
    replace_folder,
    restore_folder,
    set_aside,
    sha256,
    unwritable,
    write_json,
)
from saelab.types import StoreError

VERSIONS = {"features": 2}
"""Kind of store -> the version that is written; 1 of kinds that are not here."""
NAME = "manifest.json"
JOB = "job.json"
PARTS = "parts"
MAX_MANIFEST_BYTES = 2**28
RETRIES = 100
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
"""What a file system says that knows no locks."""


@contextlib.contextmanager
def building(out: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out`, renamed to it on success and removed on any exception, interrupts
    included.

    Raises StoreError where `out` exists and is not empty (unless overwrite=True and it is a store, or
    empty), where another process is writing it, and where the disk refuses to be written.
    """
    with _claimed(out, overwrite) as place:
        # one name for all, so that what a process that was killed left is removed
        with new_folder(place, place.with_name(f".{place.name}-building")) as folder:
            yield folder
            _check_whole(folder)


@contextlib.contextmanager
def resumable(out: str | Path, spec: Mapping[str, Any], overwrite: bool = False) -> Iterator[Path]:
    """A folder `.NAME-partial` beside `out` that outlives the process, renamed to `out` on success.

    spec: JSON data of all that determines the result, kept in `job.json` there. The same spec later goes on
    with the files that are found in the folder; write each by `files.new_file`, so that what is there is
    whole. Files in its subfolder `parts` are no part of the store: they may stay until the end, and are
    removed then.
    On an exception the folder is kept if it holds anything but `job.json`, else removed.

    Raises StoreError as `building` does, and where the folder holds a job of another spec: overwrite=True
    begins anew then.
    """
    with _claimed(out, overwrite) as place:
        folder = place.with_name(f".{place.name}-partial")
        _begin(folder, through_json(spec), overwrite)
        try:
            yield folder
            _check_whole(folder)
            replace_folder(folder, place)
            tidy(place)
        finally:
            if folder.is_dir() and not any(p.is_file() and p.name != JOB for p in folder.rglob("*")):
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Be the one that reads a store and then replaces it by another, made of it.

    Raises StoreError where another process does, and where nothing can be written there.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with lock(out.with_name(f".{out.name}-append.lock"), out):
            with lock(_lock_of(out), out):
                restore_folder(out)
                shutil.rmtree(out.with_name(f".{out.name}-building"), ignore_errors=True)
            yield
    except OSError as error:
        what = f"The store at {out}"
        raise unwritable(what, error) from error


def finished(out: str | Path, spec: Mapping[str, Any]) -> bool:
    """Whether `out` holds the store of this very job (its manifest has the spec as field `job`). Removes what
    the job left, if it was killed after that."""
    place = path_of(out, "A store's place").resolve()
    found = is_job(place / NAME, spec)
    if found and (place / JOB).exists():
        with contextlib.suppress(StoreError, OSError), lock(_lock_of(place), out):
            shutil.rmtree(set_aside(place), ignore_errors=True)
            shutil.rmtree(place.with_name(f".{place.name}-partial"), ignore_errors=True)
            tidy(place)
    return found


def is_job(manifest: Path | bytes | None, spec: Mapping[str, Any]) -> bool:
    """Whether this file, or its content, is the manifest of this very job."""
    found = read_json_or_none(manifest)
    return found is not None and found.get("job") == through_json(spec)


def tidy(out: Path) -> None:
    """Remove what a job kept for itself."""
    shutil.rmtree(out / PARTS, ignore_errors=True)
    (out / JOB).unlink(missing_ok=True)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Where two jobs differ, for people: `packing: 'document' -> 'blocks'`."""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return "; ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys)


def check_job(old: Any, spec: Mapping[str, Any], where: object) -> None:
    """Raises StoreError where an unfinished job is not that of `spec`."""
    if old == spec:
        return
    got = differences(old, spec) if isinstance(old, dict) else "a job that cannot be read"
    message = (
        f"The unfinished job in {where} goes on with the same arguments alone. Got {got}. Pass those, "
        f"another folder, or overwrite=True to begin anew."
    )
    raise StoreError(message)


def through_json(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON gives back."""
    return json.loads(json.dumps(spec))


def write_manifest(
    folder: Path,
    kind: str,
    fields: Mapping[str, Any],
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Hash every file of the folder and write the manifest: the last thing that is written into a store.

    Args:
        folder: The store's.
        kind: What it is a store of.
        fields: What else the manifest says.
        known: Entries ("bytes", "sha256") of files that were hashed before, or lie elsewhere.

    Raises:
        StoreError: Where it cannot be written.
    """
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    entries = dict(known or {})
    for name, path in found.items():
        own = name in (NAME, JOB) or name.startswith(f"{PARTS}/") or path.name.startswith(".")
        if name not in entries and not own:
            entries[name] = entry_of(path)
    files = dict(sorted(entries.items()))
    write_json(folder / NAME, {**_stamp(kind).fields(), "files": files, **fields})


def entry_of(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def read_manifest(folder: str | Path, kind: str) -> dict[str, Any]:
    """The manifest of a store, its files checked by size. Hashes are checked by `verify`.

    Args:
        folder: The store's.
        kind: What it must be a store of.

    Raises:
        StoreError: Where the folder holds no store, one of another kind or of a newer version, or where a
            file is missing, of another size than written, or lies outside of the folder.
    """
    folder = Path(folder)
    try:
        text = (folder / NAME).read_bytes() if size_of(folder, NAME, MAX_MANIFEST_BYTES) else None
    except OSError as error:
        message = f"{folder / NAME} must be readable. Got: {error}. Write the store again."
        raise StoreError(message) from error
    return parsed(text, kind, folder, lambda name: size_of(folder, name))


def settled(folder: str | Path, kind: str) -> dict[str, Any]:
    """`read_manifest`, once more where labels were attached while it compared the files with what it had
    read. Raises StoreError.
    """
    path = Path(folder) / NAME
    for _ in range(RETRIES):
        before = path.read_bytes() if path.is_file() else None
        try:
            return read_manifest(folder, kind)
        except StoreError:
            if before is None or not path.is_file() or path.read_bytes() == before:
                break
    return read_manifest(folder, kind)


def parsed(
    text: bytes | None, kind: str, where: object, sizes: Callable[[str], int | None]
) -> dict[str, Any]:
    """The manifest that `text` (None: there is no such file) must be, files checked by `sizes` (None where
    there is none). Raises StoreError as `read_manifest` does."""
    if text is None:
        message = f"A store must hold {NAME}. Got {where}, which has none. Pass the folder given as out=."
        raise StoreError(message)
    path = f"{where}/{NAME}"
    manifest = _stamp(kind).parse(text, path, "store's manifest")
    files = manifest.get("files")
    if not isinstance(files, dict):
        message = f"{path} must list its files. Got {type(files).__name__}. Write the store again."
        raise StoreError(message)
    for name, entry in files.items():
        if not _inside(name):
            message = (
                f"Files of a store must lie in its folder. Got {name!r} in {path}. Do not trust this store."
            )
            raise StoreError(message)
        if not _is_entry(entry):
            message = (
                f"{path} must give bytes and sha256 of each file. Got {str(entry)[:100]} for {name!r}. "
                f"Write the store again."
            )
            raise StoreError(message)
        found = sizes(name)
        if found != entry["bytes"]:
            got = "no such file" if found is None else f"{found} bytes"
            message = (
                f"{where}/{name} must hold {entry['bytes']} bytes. Got {got}. It was truncated or "
                f"removed: write the store again."
            )
            raise StoreError(message)
    return manifest


def verify(folder: str | Path, manifest: Mapping[str, Any]) -> None:
    """Read every file and compare its hash. Raises StoreError naming the first that differs."""
    for name, entry in manifest["files"].items():
        path = Path(folder) / name
        try:
            found = sha256(path) if size_of(Path(folder), name) is not None else None
        except OSError:
            found = None
        if found != entry["sha256"]:
            got = "no such file" if found is None else "another"
            message = f"{path} must have the hash that was written. Got {got}. Write the store again."
            raise StoreError(message)


def unreadable(where: object, error: Exception) -> StoreError:
    """The error of a store that vanished or changed while it is read."""
    message = f"{where} must stay as it was written while it is read. Got: {error}. Write the store again."
    return StoreError(message)


@contextlib.contextmanager
def lock(path: Path, what: object) -> Iterator[None]:
    """Hold a lock file, which the system frees when the process ends, however it does. Where the system has
    no such locks (Windows, some network disks), nothing is held.

    Raises StoreError naming the process that holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                break
            if not isinstance(error, BlockingIOError):
                raise
            file.seek(0)
            holder = file.read(200) or "another process"
            file.close()
            message = (
                f"A folder is written by one job at a time. Got {what}, which {holder} is writing. "
                f"Wait for it to end, or pass another folder."
            )
            raise StoreError(message) from None
        # whoever held it removed it before it was freed: a lock on that file would keep nobody out
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                break
        file.close()
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _claimed(out: str | Path, overwrite: bool) -> Iterator[Path]:
    """The place of a store that may be written, and that no other job writes meanwhile."""
    if "://" in str(out):
        message = (
            f"Here a store is written to a folder. Got the address {out}. saelab.harvest takes addresses."
        )
        raise StoreError(message)
    place = path_of(out, "A store's place").resolve()
    try:
        _check_target(place, overwrite)
        place.parent.mkdir(parents=True, exist_ok=True)
        with lock(_lock_of(place), out):
            restore_folder(place)
            _check_target(place, overwrite)
            yield place
    except OSError as error:
        what = f"The store at {out}"
        raise unwritable(what, error) from error


def _check_whole(folder: Path) -> None:
    """Raises StoreError where a store that is about to take its place lacks a file: somebody removed it."""
    manifest = read_json_or_none(folder / NAME) or {}
    for name, entry in manifest.get("files", {NAME: {"bytes": None}}).items():
        if size_of(folder, name) != entry["bytes"]:
            message = (
                f"{folder / name} must stay in its place while it is written. Got none of its size, it was "
                "removed or changed. Call again, and see that nothing removes it."
            )
            raise StoreError(message)


def _check_target(out: Path, overwrite: bool) -> None:
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


def _begin(folder: Path, spec: dict[str, Any], overwrite: bool) -> None:
    """The folder of this job: one that holds its complete parts and nothing unfinished."""
    if (folder / NAME).exists() and not (folder / JOB).exists():  # the store that was just replaced
        shutil.rmtree(folder)
    for path in [*folder.rglob(".*.tmp"), folder / NAME]:
        path.unlink(missing_ok=True)
    if folder.exists():
        # where there is nothing, the process was killed before it could write it
        old = read_json_or_none(folder / JOB) if any(folder.iterdir()) else spec
        if overwrite and old != spec:
            shutil.rmtree(folder)
        else:
            check_job(old, spec, folder)
    folder.mkdir(exist_ok=True)
    if not (folder / JOB).exists():
        write_json(folder / JOB, spec)


def _lock_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.lock")


def size_of(folder: Path, name: str, most: int | None = None) -> int | None:
    """Bytes of a file that lies in the folder itself, not beyond a link; None where there is none."""
    path = folder / name
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise unreadable(path, error) from error
    if size is None:
        return None
    if not path.resolve().is_relative_to(folder.resolve()):
        message = (
            f"Files of a store must lie in its folder. Got {path}, a link to {path.resolve()}. "
            f"Do not trust this store."
        )
        raise StoreError(message)
    if most is not None and size > most:
        message = f"{path} must have at most {most} bytes. Got {size}. Do not trust this store."
        raise StoreError(message)
    return size


def _inside(name: str) -> bool:
    """Whether this is the name of a file below a folder, on any system."""
    kinds = (PurePosixPath(name), PureWindowsPath(name))
    return (
        bool(name)
        and not any(p.is_absolute() or p.drive or ".." in p.parts for p in kinds)
        and (len(name) <= 200 and name.isprintable() and "\\" not in name)
    )


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    size, digest = entry.get("bytes"), entry.get("sha256")
    return is_integer(size) and size >= 0 and isinstance(digest, str) and len(digest) == 64


def _stamp(kind: str) -> Stamp:
    return Stamp("saelab", VERSIONS.get(kind, 1), kind, "Pass the folder of such a store.", StoreError)
