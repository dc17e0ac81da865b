"""What was converted once and is kept: folders under one cache folder, named by what they were made of.

    CACHE/gguf/DIGEST/          the converted model; manifest.json with sizes and hashes is written last
    CACHE/gguf/seen/HEX.json    of a file by its path: bytes, time and the digest that it had

CACHE is $SAELAB_CACHE, else the user's cache folder of this system. All of it may be removed at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from saelab.files import read_json_or_none, user_folder
from saelab.progress import new_bar
from saelab.stores.manifest import NAME, building, lock, read_manifest, verify, write_manifest
from saelab.types import StoreError, SubjectError

KIND = "converted model"

_DIGEST = re.compile("[0-9a-f]{64}")
_STEP = 2**24
_TICK = 2_000_000_000
"""Nanoseconds: the coarsest clock of a file system."""


def noted_digest(path: Path) -> str | None:
    """The digest that a file had when it was last read whole; None where it changed since, or never was."""
    note = _note(path)
    known = read_json_or_none(note)
    if known is None or {key: known.get(key) for key in _facts(path)} != _facts(path):
        return None
    digest = known.get("sha256")
    return digest if isinstance(digest, str) and _DIGEST.fullmatch(digest) else None


def digest_of(path: Path, progress: bool) -> str:
    """Hex sha256 of a file, which is read whole and noted.

    Args:
        path: The file.
        progress: Whether to show a bar.
    """
    facts = _facts(path)
    digest = hashlib.sha256()
    bar = new_bar(total=facts["bytes"], desc=f"reading {path.name[:40]}", unit="B", unit_scale=True,
               disable=not progress, leave=False)  # fmt: skip
    with path.open("rb") as file, bar:
        while data := file.read(_STEP):
            digest.update(data)
            bar.update(len(data))
    # a file that is being written may change again within one tick of the clock that gives its time
    if time.time_ns() - facts["mtime_ns"] > _TICK and _facts(path) == facts:
        note = _note(path)
        temporary = note.with_name(f".{note.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # a note saves time, nothing else
            note.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({**facts, "sha256": digest.hexdigest()}), encoding="utf-8")
            temporary.replace(note)
    return digest.hexdigest()


def sound(place: Path) -> bool:
    """Whether a folder of the cache is as it was written: sizes, and hashes where a file changed since."""
    try:
        manifest = read_manifest(place, KIND)
        written = (place / NAME).stat().st_mtime_ns
        if any((place / name).stat().st_mtime_ns > written for name in manifest["files"]):
            verify(place, manifest)
    except (OSError, StoreError):
        return False
    return True


def kept(place: Path, make: Callable[[Path], None], patience: float = 3600.0) -> Path:
    """A folder of the cache, made where it is not there or damaged. One process makes it, others wait.

    Args:
        place: The folder.
        make: Fills an empty folder, which gets the name `place` when it is whole.
        patience: Seconds to wait for another process that makes it.

    Raises:
        SubjectError: The cache cannot be written, or another process is making the same for too long.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _held(place.with_name(f".{place.name}.job"), place, patience):
            if sound(place):  # made by another process meanwhile
                return place
            if place.exists() and not (place / NAME).is_file():
                shutil.rmtree(place)
            with building(place, overwrite=True) as folder:
                make(folder)
                write_manifest(folder, KIND, {})
    except (OSError, StoreError) as error:
        message = (
            f"The cache must be writable. Got {place.parent}: {error} "
            "Free some space, or set SAELAB_CACHE to another folder."
        )
        raise SubjectError(message) from None
    return place


@contextlib.contextmanager
def _held(path: Path, what: Path, patience: float) -> Iterator[None]:
    until = time.monotonic() + patience
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock(path, what))
                break
            except StoreError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)
        yield


def _facts(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}


def _note(path: Path) -> Path:
    name = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    return user_folder("cache") / "gguf" / "seen" / f"{name}.json"


__all__ = ["digest_of", "kept", "noted_digest", "sound", "user_folder"]
