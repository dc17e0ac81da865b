"""Feature stores of version 1, in which every row was a token, as stores of today."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from saelab.files import path_of
from saelab.layout import LINE
from saelab.stores import manifest as manifests
from saelab.stores import tables
from saelab.stores.feature_fields import KIND
from saelab.stores.features import FeatureStore
from saelab.types import StoreError

SAME = ("codes_by_latent", "codes_by_row", "sample", "coactivation")
"""Tables that are as they were."""
RENAMED = {"top_tokens": "top_names", "bottom_tokens": "bottom_names", "tokens": "names", "token_id": "id"}
OWN = ("format", "kind", "version", "files")
CHUNK = 1 << 17


def migrate(old: str | Path, out: str | Path | None = None) -> FeatureStore:
    """A store of today of one that saelab 0.1 wrote, with everything that it says, codes and labels.

    Args:
        old: folder of the store; one that is of today already is opened.
        out: where the new one goes; None: in its place. The old one stays until the new one is whole.

    Returns:
        The new store.

    Raises:
        StoreError: There is no whole store of version 1 or 2, or `out` cannot be written.
    """
    folder = path_of(old, "The folder of a store")
    manifest = manifests.read_manifest(folder, KIND)
    if manifest["version"] >= 2:
        if out is not None:
            message = f"Stores of version 1 are migrated. Got version {manifest['version']} in {old}. Use it."
            raise StoreError(message)
        return FeatureStore.open(folder)
    with manifests.building(folder if out is None else out, overwrite=out is None) as new:
        try:
            _Migration(folder, new).run(manifest)
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise manifests.unreadable(folder, error) from error
    return FeatureStore.open(folder if out is None else out)


class _Migration:
    def __init__(self, old: Path, new: Path) -> None:
        self.old, self.new = old, new
        known = pq.read_table(tables.path(old, "vocabulary"))
        self.tokens = known.column("token").combine_chunks()
        self.counts = known.column("count")

    def run(self, manifest: dict[str, Any]) -> None:
        facet = "token" if self._has_tokens() else "position"
        n = len(self.tokens)
        tables.write(self.new, "vocabulary", np.arange(n), [facet] * n, self.tokens, self.counts)
        for name in ("latents", "firings", "examples", "rows", "documents"):
            was = "tokens" if name == "firings" else name
            with tables.writer(self.new, name) as out:
                for piece in self._pieces(was):
                    out.write_table(self._renewed(name, piece))
        for name in [f"{table}.parquet" for table in SAME] + ["directions.npy", "labels.parquet"]:
            if (self.old / name).is_file():
                self._keep(name)
        fields = {key: value for key, value in manifest.items() if key not in OWN}
        manifests.write_manifest(self.new, KIND, {**fields, "facets": [facet]})

    def _has_tokens(self) -> bool:
        """Whether its rows were tokens, and not samples of another kind of subject."""
        return any((p.column("token_id").to_numpy() >= 0).any() for p in self._pieces("rows"))

    def _pieces(self, name: str) -> Iterator[pa.Table]:
        with tables.opened(self.old, name) as file:
            for batch in file.iter_batches(CHUNK if name != "examples" else CHUNK // 64):
                yield pa.Table.from_batches([batch])

    def _renewed(self, name: str, piece: pa.Table) -> pa.Table:
        names = [str(name) for name in piece.column_names]
        columns: dict[str, Any] = {RENAMED.get(name, name): piece.column(name) for name in names}
        n = len(piece)
        if "token" in columns:  # of firings and rows
            columns["shown"] = pc.index_in(columns.pop("token"), value_set=self.tokens)  # pyright: ignore
        if name in ("rows", "examples"):
            columns["call"] = np.zeros(n, np.int16)
        if name == "documents":
            columns |= {"layout": [str(LINE)] * n, "labels": [[]] * n, "media": [None] * n}
        return tables.named(name, columns)

    def _keep(self, name: str) -> None:
        """The same file in the new store; where the disk can, without a copy."""
        try:
            os.link(self.old / name, self.new / name)
        except OSError:
            shutil.copyfile(self.old / name, self.new / name)
