"""Labels of latents: `labels.parquet`, the one file of a store that may be written after the others.

Those of a store that may not be written, or that came with this package, lie in the user's data folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saelab.config import integer, is_unicode
from saelab.files import is_installed, new_file, read_json, user_folder, write_json
from saelab.stores import manifest as manifests
from saelab.types import ConfigError, RangeError, StoreError, short

if TYPE_CHECKING:
    import pandas as pd

NAME = "labels.parquet"
LABELS = pa.schema([("latent", pa.int32()), ("label", pa.string()), ("source", pa.string())])


def labels_of(folder: Path, manifest: Mapping[str, Any], n: int) -> pd.DataFrame:
    """The labels of a store, and after them those that lie in the user's folder; see `read_labels`."""
    import pandas as pd

    both = [read_labels(place, n) for place in (folder, _users(manifest))]
    if not len(both[1]):
        return both[0]
    found = pd.concat(both, ignore_index=True)
    return found.sort_values("latent", kind="stable", ignore_index=True)


def attach(folder: Path, manifest: Mapping[str, Any], n: int, labels: Iterable[tuple[int, str, str]]) -> None:
    """`write_labels` where the store may be written; else in the user's folder."""
    there = folder.resolve()
    if there.is_dir() and (is_installed(there) or not os.access(there, os.W_OK)):
        folder = _users(manifest)
        with contextlib.suppress(OSError):  # writing says why
            folder.mkdir(parents=True, exist_ok=True)
    write_labels(folder, n, labels)


def _users(manifest: Mapping[str, Any]) -> Path:
    """Where the labels of a store lie that are not in it, by what the store is."""
    files = {name: entry for name, entry in manifest["files"].items() if name != NAME}
    known = json.dumps({**manifest, "files": files}, sort_keys=True, default=str)
    return user_folder("data") / "labels" / hashlib.sha256(known.encode()).hexdigest()[:32]


def read_labels(folder: Path, n_latents: int) -> pd.DataFrame:
    """latent, label, source of every label of a store, as it is on disk now: sorted by latent, of one latent
    the newest last. Raises StoreError where the file is not what was written."""
    return _read(folder, n_latents).to_pandas()


def count_labels(folder: Path, n_latents: int) -> dict[str, int]:
    """Source -> how many labels of a store are from there. Raises StoreError as `read_labels` does."""
    return dict(sorted(Counter(_read(folder, n_latents)["source"].to_pylist()).items()))


def _read(folder: Path, n_latents: int) -> pa.Table:
    try:
        # not by read_table, empty_table or to_numpy, which import pandas
        # and not by its name, which need not be UTF-8
        with (folder / NAME).open("rb") as data, pq.ParquetFile(data) as file:
            found = file.read().select(LABELS.names).cast(LABELS)
        if not all(j is not None and 0 <= j < n_latents for j in found["latent"].to_pylist()):
            message = f"labels of latents outside of 0..{n_latents - 1}"
            raise ValueError(message)
        return found
    except FileNotFoundError:
        return pa.Table.from_batches([], LABELS)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        message = f"{folder / NAME} must be as it was written. Got: {error}. Attach the labels again."
        raise StoreError(message) from error


def write_labels(folder: Path, n_latents: int, labels: Iterable[tuple[int, str, str]]) -> None:
    """Add (latent, label, source)s to those of a store; see `FeatureStore.attach_labels`."""
    import pandas as pd

    rows = [(checked_latent(j, n_latents), checked_label(text, j), source) for j, text, source in labels]
    if not rows:
        return
    new = pd.DataFrame(rows, columns=LABELS.names)
    given = {(latent, source) for latent, _, source in rows}
    try:
        with _locked(folder):
            old = read_labels(folder, n_latents)
            stays = [pair not in given for pair in zip(old["latent"], old["source"], strict=True)]
            kept = pd.concat(
                [old.loc[np.array(stays, dtype=bool)], new.loc[new["label"] != ""]], ignore_index=True
            )
            kept = kept.iloc[np.argsort(kept["latent"].to_numpy(np.int64), kind="stable")]
            _replace(folder, pa.Table.from_pandas(kept, LABELS, preserve_index=False))
    except OSError as error:
        message = (
            f"The folder of labels must be writable. Got {folder}: {error}. Set SAELAB_DATA to a folder of "
            "yours, or pass labels= to the Lab."
        )
        raise StoreError(message) from error


def checked_source(source: Any) -> str:
    """Raises ConfigError where it does not say where labels are from."""
    if not isinstance(source, str) or not source.strip() or not is_unicode(source):
        message = f"source must say where labels are from. Got {source!r}. Pass e.g. source='me'."
        raise ConfigError(message)
    return source


def newest(labels: pd.DataFrame) -> dict[int, str]:
    """latent -> the label that was attached last."""
    return dict(zip(labels["latent"].tolist(), labels["label"].tolist(), strict=True))


def with_own(labels: pd.DataFrame, own: Mapping[int, str]) -> pd.DataFrame:
    """Labels of a store, but a Lab's own of the latents that it has any of."""
    import pandas as pd

    kept = labels.loc[~labels["latent"].isin(list(own))]
    given = pd.DataFrame(list(own.items()), columns=["latent", "label"]).assign(source="lab")
    return pd.concat([kept, given], ignore_index=True)


def checked_labels(labels: Any, n: int) -> dict[int, str]:
    """Latent -> label. Raises ConfigError, RangeError."""
    if not isinstance(labels, Mapping):
        message = f"Labels must be a mapping of latents to texts. Got {short(labels)}. Pass {{7: 'names'}}."
        raise ConfigError(message)
    return {checked_latent(j, n): checked_label(text, j) for j, text in labels.items()}


def _replace(folder: Path, table: pa.Table) -> None:
    """Put the file in place and list it. At every moment the manifest agrees with the files that it lists, so
    that neither a process that is killed here nor one that opens the store meanwhile meets a broken one."""
    with new_file(folder / NAME) as temporary:
        pq.write_table(table, temporary, compression="zstd")
        entry = manifests.entry_of(temporary)
        _list(folder, None)
    _list(folder, entry)


def _list(folder: Path, entry: dict[str, Any] | None) -> None:
    """Set the manifest's entry of the labels, or take it out; a user's folder has no manifest."""
    path = folder / manifests.NAME
    if not path.exists():
        return
    manifest = read_json(path, "store's manifest")
    manifest["files"].pop(NAME, None)
    if entry is not None:
        manifest["files"][NAME] = entry
    write_json(path, manifest)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time; the lock goes with the process that holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def checked_latent(latent: Any, n: int) -> int:
    """The latent of a label. Raises RangeError."""
    remedy = "Pass labels of this store's latents."
    return integer("A label's latent", latent, 0, n - 1, error=RangeError, remedy=remedy)


def checked_label(text: Any, latent: Any) -> str:
    """A label. Raises ConfigError."""
    if not isinstance(text, str) or not is_unicode(text):
        got = "half a surrogate pair" if isinstance(text, str) else type(text).__name__
        message = f"A label must be a str. Got {got} of latent {latent}. Pass {{7: 'names'}}."
        raise ConfigError(message)
    return text.strip()
