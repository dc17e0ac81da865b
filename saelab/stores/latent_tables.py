"""Reading the tables of a feature store latent by latent, without reading the rest of them."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saelab.stores import tables
from saelab.stores.records import Example
from saelab.types import StoreError

KEPT_GROUPS = ("latents", "examples", "firings")


class LatentTables:
    """The Parquet files of a folder; one reader of each serves every thread.

    Args:
        folder: Of the store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._files: dict[str, tuple[pq.ParquetFile, np.ndarray, np.ndarray]] = {}
        self._groups: dict[str, tuple[int, pa.Table, np.ndarray]] = {}

    @functools.cached_property
    def vocabulary(self) -> pa.Table:
        """Facet, name and count of what rows show, by number; read once."""
        return self.columns("vocabulary", ("facet", "name", "count"))

    def columns(self, name: str, columns: tuple[str, ...]) -> pa.Table:
        """Whole columns of a table.

        Args:
            name: The table's.
            columns: Their names.
        """
        with self._reading(name), tables.opened(self.folder, name) as file:
            return file.read(list(columns))

    def batches(self, name: str, columns: tuple[str, ...], size: int = 1 << 19) -> Iterator[pa.RecordBatch]:
        """Columns of a table, some rows after the other.

        Args:
            name: The table's.
            columns: Their names.
            size: Rows at a time, about.
        """
        with self._reading(name), tables.opened(self.folder, name) as file:
            yield from file.iter_batches(size, columns=list(columns))

    def examples(self, latent: int) -> list[Example]:
        """All example windows of a latent.

        Args:
            latent: Its number.
        """
        found = self.of("examples", latent)
        *scalars, names, values = (found.column(name).combine_chunks() for name in Example._fields)
        # of all windows at once: window by window costs ten times as much
        words, codes = names.flatten().to_pylist(), np.array(values.flatten(), dtype=np.float32)
        stops = np.cumsum(names.value_lengths().to_numpy(zero_copy_only=False)).tolist()
        cuts = list(map(slice, [0, *stops], stops))
        lists = (column.to_pylist() for column in scalars)
        return list(map(Example, *lists, map(words.__getitem__, cuts), map(codes.__getitem__, cuts)))

    def of(self, name: str, latent: int) -> pa.Table:
        """The rows of a latent.

        Args:
            name: Of a table that is sorted by latent, its first column.
            latent: Its number.
        """
        with self._lock, self._reading(name):
            if name not in self._files:
                file = tables.opened(self.folder, name)
                self._files[name] = file, *_bounds(file)
            file, low, high = self._files[name]
            found = []
            for group in np.flatnonzero((low <= latent) & (latent <= high)):
                held = self._groups.get(name)
                if held is None or held[0] != group:
                    table = file.read_row_group(int(group)).combine_chunks()
                    held = int(group), table, table.column(0).to_numpy()
                if name in KEPT_GROUPS:  # whoever asks for a latent asks for its neighbours
                    self._groups[name] = held
                _, table, latents = held
                start, stop = np.searchsorted(latents, [latent, latent + 1])
                found.append(table.slice(start, stop - start))
            whole = pa.concat_tables(found) if found else tables.SCHEMAS[name].empty_table()
            if name == "latents" and len(whole) != 1:
                message = f"{len(whole)} lines of latent {latent}"
                raise ValueError(message)
            return whole

    @contextlib.contextmanager
    def _reading(self, table: str) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
            message = (
                f"{self.folder / table}.parquet must be as it was written. Got: {error}. "
                "Find what changed by store.verify(), and write the store again."
            )
            raise StoreError(message) from error


def _bounds(file: pq.ParquetFile) -> tuple[np.ndarray, np.ndarray]:
    """(first, last) latent of each group of rows; of one without rows a last one before the first."""
    low, high = np.ones(file.num_row_groups, np.int64), np.zeros(file.num_row_groups, np.int64)
    for i in range(file.num_row_groups):
        group = file.metadata.row_group(i)
        said = group.column(0).statistics
        if group.num_rows:
            if said is None or not said.has_min_max:
                message = "a group of rows that does not say of which latents it is"
                raise ValueError(message)
            low[i], high[i] = said.min, said.max
    return low, high


__all__ = ["LatentTables"]
