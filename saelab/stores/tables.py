"""The tables of a feature store: their columns, and how they are written. Described in docs/stores.md."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saelab.errors import StoreError

SCHEMAS: dict[str, pa.Schema] = {
    "latents": pa.schema(
        [
            ("latent", pa.int32()),
            ("count", pa.int64()),
            ("density", pa.float64()),
            ("mean", pa.float64()),
            ("min", pa.float32()),
            ("max", pa.float32()),
            ("negative", pa.int64()),
            ("mean_abs", pa.float64()),
            ("min_abs", pa.float32()),
            ("sum", pa.float64()),
            ("sum_abs", pa.float64()),
            ("histogram", pa.list_(pa.int64())),
            ("edges", pa.list_(pa.float64())),
            ("top_names", pa.list_(pa.string())),
            ("bottom_names", pa.list_(pa.string())),
        ]
    ),
    "firings": pa.schema(
        [
            ("latent", pa.int32()),
            ("shown", pa.int32()),
            ("count", pa.int64()),
            ("negative", pa.int64()),
            ("lift", pa.float32()),
        ]
    ),
    "vocabulary": pa.schema(
        [("shown", pa.int32()), ("facet", pa.string()), ("name", pa.string()), ("count", pa.int64())]
    ),
    "examples": pa.schema(
        [
            ("latent", pa.int32()),
            ("kind", pa.string()),
            ("rank", pa.int32()),
            ("stratum", pa.int32()),
            ("row", pa.int64()),
            ("document", pa.int64()),
            ("position", pa.int32()),
            ("call", pa.int16()),
            ("value", pa.float32()),
            ("start", pa.int32()),
            ("names", pa.list_(pa.string())),
            ("values", pa.list_(pa.float32())),
        ]
    ),
    "coactivation": pa.schema(
        [
            ("latent", pa.int32()),
            ("rank", pa.int32()),
            ("partner", pa.int32()),
            ("count", pa.int64()),
            ("jaccard", pa.float32()),
            ("lift", pa.float32()),
        ]
    ),
    "codes_by_latent": pa.schema([("latent", pa.int32()), ("row", pa.int64()), ("value", pa.float32())]),
    "codes_by_row": pa.schema([("row", pa.int64()), ("latent", pa.int32()), ("value", pa.float32())]),
    "sample": pa.schema(
        [
            ("row", pa.int64()),
            ("draw", pa.float64()),
            ("latents", pa.list_(pa.int32())),
            ("values", pa.list_(pa.float32())),
        ]
    ),
    "rows": pa.schema(
        [
            ("row", pa.int64()),
            ("document", pa.int64()),
            ("position", pa.int32()),
            ("call", pa.int16()),
            ("shown", pa.int32()),
            ("id", pa.int32()),
        ]
    ),
    "documents": pa.schema(
        [
            ("document", pa.int64()),
            ("id", pa.string()),
            ("kind", pa.string()),
            ("text", pa.string()),
            ("layout", pa.string()),
            ("labels", pa.list_(pa.string())),
            ("media", pa.binary()),
            ("first_row", pa.int64()),
            ("n_rows", pa.int64()),
        ]
    ),
}


def writer(folder: Path, name: str) -> pq.ParquetWriter:
    """A writer of a table's file."""
    schema = SCHEMAS[name]
    floats = [f.name for f in schema if f.type == pa.float32()]
    strings = [f.name for f in schema if f.type == pa.string()]
    lists = [f"{f.name}.list.element" for f in schema if f.type == pa.list_(pa.string())]
    return pq.ParquetWriter(
        path(folder, name),
        schema,
        compression="zstd",
        use_dictionary=strings + lists,  # pyright: ignore[reportArgumentType] names are as good as a bool
        use_byte_stream_split=floats,  # pyright: ignore[reportArgumentType]
        write_statistics=True,
    )


def path(folder: Path, name: str) -> Path:
    """Where a table's file lies."""
    return folder / f"{name}.parquet"


def opened(folder: Path, name: str) -> pq.ParquetFile:
    """A table's file, to be read from. Not pre-buffered, which would keep in memory all that was read."""
    try:
        return pq.ParquetFile(path(folder, name), pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        message = f"{path(folder, name)} must be as it was written. Got: {error}. Write the store again."
        raise StoreError(message) from error


def check_counts(folder: Path, counts: Mapping[str, int]) -> None:
    """Raises StoreError where a table has another number of lines than the manifest says."""
    for name, n in counts.items():
        try:
            with opened(folder, name) as file:
                found = file.metadata.num_rows
        except StoreError:  # whoever reads it says so
            continue
        if found != n:
            message = (
                f"{path(folder, name)} must have the {n:,} lines that the manifest says. Got {found:,}. "
                "Write the store again."
            )
            raise StoreError(message)


def table(name: str, *columns: Any) -> pa.Table:
    """Columns, in the order of the schema, as a table."""
    schema = SCHEMAS[name]
    arrays = [
        c if isinstance(c, pa.Array | pa.ChunkedArray) else pa.array(c, f.type)
        for c, f in zip(columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def named(name: str, columns: Mapping[str, Any]) -> pa.Table:
    """Columns by name, all of the schema, as a table."""
    return table(name, *(columns[field.name] for field in SCHEMAS[name]))


def write(folder: Path, name: str, *columns: Any) -> None:
    """A whole table at once."""
    with writer(folder, name) as file:
        file.write_table(table(name, *columns))


def batches(folder: Path, name: str, size: int = 1 << 19) -> Generator[pa.RecordBatch]:
    """A table's rows in order, about `size` at a time, with bounded memory."""
    with opened(folder, name) as file:
        for batch in file.iter_batches(size):
            # DuckDB writes columns that are never null as such
            yield pa.RecordBatch.from_arrays(batch.columns, schema=SCHEMAS[name])


def lists(matrix: np.ndarray) -> pa.ListArray:
    """Each row of a matrix as a list."""
    offsets = np.arange(len(matrix) + 1, dtype=np.int32) * np.int32(matrix.shape[1])
    return pa.ListArray.from_arrays(offsets, pa.array(matrix.reshape(-1)))


def quoted(path: Path | str) -> str:
    """A path as a SQL string."""
    return "'" + str(path).replace("'", "''") + "'"


def exact(path: Path) -> str:
    """What DuckDB, which takes every path for a pattern, takes for this one alone. It is absolute, so that it
    stays the same file wherever the process goes."""
    return re.sub(r"[*?[]", r"[\g<0>]", str(path.absolute()))


def source(folder: Path, name: str) -> str:
    """A table's file in SQL. A folder may be called `codes=none`: that is its name, not a column."""
    return f"read_parquet({quoted(exact(path(folder, name)))}, hive_partitioning = false)"


class Cursor:
    """Reads a table that is sorted by its first column from front to back, as far as asked."""

    def __init__(self, folder: Path, name: str) -> None:
        # a row of examples is a hundred times as large as one of codes
        self._batches = batches(folder, name, 1 << 12 if name == "examples" else 1 << 17)
        self._held: pa.RecordBatch | None = None
        self._schema = SCHEMAS[name]

    def until(self, limit: int) -> pa.Table:
        """The rows not yet read whose first column is below `limit`."""
        return pa.concat_tables([self._schema.empty_table(), *self.pieces(limit)])

    def pieces(self, limit: int) -> Iterator[pa.Table]:
        """The same one piece after the other: where they are not many rows, but a whole part's."""
        while True:
            if self._held is None:
                self._held = next(self._batches, None)
                if self._held is None:
                    return
            keys = self._held.column(0).to_numpy()
            cut = int(np.searchsorted(keys, limit))
            yield pa.Table.from_batches([self._held.slice(0, cut)], schema=self._schema)
            if cut < len(keys):
                self._held = self._held.slice(cut)
                return
            self._held = None

    def close(self) -> None:
        """Let go of the file."""
        self._batches.close()
