"""Files that are derived from a store: beside it, else in the user's cache. They are no part of the store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from saelab.files import is_installed, new_file, user_folder


def places(folder: Path, name: str, cached: str) -> Iterator[Path]:
    """Where such a file may lie, the first place first.

    Args:
        folder: Of the store.
        name: Of the file there; it begins with a dot.
        cached: Its path within the user's cache.
    """
    yield folder / name
    with contextlib.suppress(RuntimeError):  # there is no home folder
        yield user_folder("cache") / cached


def writable(folder: Path, name: str, cached: str) -> Iterator[Path]:
    """Those of `places` where it may be written, as far as can be known before; their folders are made.
    Nothing is written into an installation.

    Args:
        folder: Of the store.
        name: As in `places`.
        cached: As well.
    """
    for path in places(folder, name, cached):
        if path.parent == folder and is_installed(folder):
            continue
        with contextlib.suppress(OSError):
            if path.parent != folder:
                path.parent.mkdir(parents=True, exist_ok=True)
            yield path


def write(folder: Path, name: str, cached: str, save: Callable[[Path], object]) -> None:
    """Write the file where that is possible first, or nowhere.

    Args:
        folder: Of the store.
        name: As in `places`.
        cached: As well.
        save: Writes it to a path.
    """
    for path in writable(folder, name, cached):
        with contextlib.suppress(OSError):
            with new_file(path) as temporary:
                save(temporary)
            return
