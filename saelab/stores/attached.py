"""Tables that are written into a feature store after it: labels, and notes, tags and lists of latents.

Each is one Parquet file, which appears whole, one writer at a time. Those of a store that may not be written,
or that came with this package, lie in the user's data folder, and are read with those in the store.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saelab.config import integer, is_unicode
from saelab.files import is_installed, new_file, read_json, user_folder, write_json
from saelab.stores import manifest as manifests
from saelab.stores.feature_fields import KIND
from saelab.stores.protocol import Latents
from saelab.types import ConfigError, RangeError, StoreError

FILES = ("labels.parquet", "label_scores.parquet", "annotations.parquet")
"""All such files: what a store is does not depend on them."""

Label = tuple[int, str, str, Mapping[str, float]]
"""latent, label, source, and what judges gave it, by the name of the score"""


@dataclass(frozen=True)
class Attached:
    """One such table."""

    file: str
    """one of FILES"""
    what: str
    """what its lines are, for messages"""
    schema: pa.Schema
    """its columns; the latent is one of them"""

    def read(self, folder: Path, n_latents: int) -> pa.Table:
        """What lies in a folder, as it is on disk now. Raises StoreError where it is not what was written."""
        try:
            # not by read_table, empty_table or to_numpy, which import pandas
            # and not by its name, which need not be UTF-8
            with (folder / self.file).open("rb") as data, pq.ParquetFile(data) as file:
                found = file.read().select(self.schema.names).cast(self.schema)
            if not all(j is not None and 0 <= j < n_latents for j in found["latent"].to_pylist()):
                message = f"{self.what} of latents outside of 0..{n_latents - 1}"
                raise ValueError(message)
            return found
        except FileNotFoundError:
            return pa.Table.from_batches([], self.schema)
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            message = (
                f"{folder / self.file} must be as it was written. Got: {error}. "
                f"Remove it, and attach the {self.what} again."
            )
            raise StoreError(message) from error

    def all(self, store: Latents) -> pa.Table:
        """What a store has, and after it what lies in the user's folder. Raises StoreError as `read` does."""
        places = store.folder, users(store.manifest)
        return pa.concat_tables([self.read(place, store.n_latents) for place in places])

    def change(self, store: Latents, change: Callable[[pa.Table], pa.Table]) -> None:
        """Replace what lies where it is written: in the store, else in the user's folder.

        Args:
            store: Whose.
            change: What was there -> what is there then. It is called while nobody else writes.

        Raises:
            StoreError: It cannot be written.
        """
        there, folder = store.folder.resolve(), store.folder
        if there.is_dir() and (is_installed(there) or not os.access(there, os.W_OK)):
            folder = users(store.manifest)
            with contextlib.suppress(OSError):  # writing says why
                folder.mkdir(parents=True, exist_ok=True)
        self.rewrite(folder, store.n_latents, change)
        store.manifest = manifests.settled(store.folder, KIND)

    def rewrite(self, folder: Path, n_latents: int, change: Callable[[pa.Table], pa.Table]) -> None:
        """`change` of what lies in this very folder. Raises StoreError as it does."""
        try:
            with _locked(folder):
                self._replace(folder, change(self.read(folder, n_latents)))
        except OSError as error:
            message = (
                f"The folder of {self.what} must be writable. Got {folder}: {error}. Set SAELAB_DATA to a "
                "folder of yours."
            )
            raise StoreError(message) from error

    def _replace(self, folder: Path, table: pa.Table) -> None:
        """Put the file in place and list it. At every moment the manifest agrees with the files that it
        lists, so that neither a process that is killed here nor one that opens the store meanwhile meets a
        broken one."""
        with new_file(folder / self.file) as temporary:
            pq.write_table(table, temporary, compression="zstd")
            entry = manifests.entry_of(temporary)
            self._list(folder, None)
        self._list(folder, entry)

    def _list(self, folder: Path, entry: dict[str, Any] | None) -> None:
        """Set the manifest's entry of the file, or take it out; a user's folder has no manifest."""
        path = folder / manifests.NAME
        if not path.exists():
            return
        manifest = read_json(path, "store's manifest")
        manifest["files"].pop(self.file, None)
        if entry is not None:
            manifest["files"][self.file] = entry
        write_json(path, manifest)


def users(manifest: Mapping[str, Any]) -> Path:
    """Where those tables of a store lie that are not in it, by what the store is."""
    files = {name: entry for name, entry in manifest["files"].items() if name not in FILES}
    known = json.dumps({**manifest, "files": files}, sort_keys=True, default=str)
    return user_folder("data") / "labels" / hashlib.sha256(known.encode()).hexdigest()[:32]


def stamp(store: Latents) -> tuple[tuple[int, int, int] | None, ...]:
    """What is another one whenever any of the tables was written, by whomever."""
    return tuple(_stamp(place / name) for place in (store.folder, users(store.manifest)) for name in FILES)


def checked_latents(latents: Any, n: int, what: str) -> tuple[int, ...]:
    """One latent or several, each once. Raises RangeError.

    Args:
        latents: An integer, or integers.
        n: How many the store has.
        what: What is said of them, such as "A tag's latent".
    """
    several = isinstance(latents, Iterable) and not isinstance(latents, str | bytes)
    remedy = "Pass latents of this store, as 7 or [7, 9]."
    given = latents if several else [latents]
    return tuple(dict.fromkeys(integer(what, j, 0, n - 1, error=RangeError, remedy=remedy) for j in given))


def checked_text(what: str, text: Any, example: str, of: str = "") -> str:
    """A text that a file can hold, without white space around it. Raises ConfigError.

    Args:
        what: It is, as in "A note".
        text: What was given.
        example: Of what to pass.
        of: Which one it is, as in " of latent 7".
    """
    if not isinstance(text, str) or not is_unicode(text):
        got = "half a surrogate pair" if isinstance(text, str) else type(text).__name__
        message = f"{what} must be a str. Got {got}{of}. Pass {example}."
        raise ConfigError(message)
    return text.strip()


def checked_source(source: Any) -> str:
    """Raises ConfigError where it does not say where something is from."""
    if not isinstance(source, str) or not source.strip() or not is_unicode(source):
        message = f"source must say where labels are from. Got {source!r}. Pass e.g. source='me'."
        raise ConfigError(message)
    return source


def _stamp(path: Path) -> tuple[int, int, int] | None:
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_ino, found.st_size
    return None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time; the lock goes with the process that holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
