"""Writes a feature store: rows and codes as they come, then one sort and one pass over the latents."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saelab.stores import manifest as manifests
from saelab.stores import summaries
from saelab.types import Codes, CorpusError, NonFiniteError, ShapeError, StoreError

KIND = "features"
SORT_MEMORY = "2GB"
BLOCK_CODES = 400_000
LATENTS_A_GROUP = 8_192
EXAMPLES_A_GROUP = 2_560

CODES = pa.schema([("row", pa.int64()), ("latent", pa.int32()), ("value", pa.float32())])
ROWS = pa.schema(
    [
        ("row", pa.int64()),
        ("document", pa.int64()),
        ("position", pa.int32()),
        ("token", pa.string()),
        ("token_id", pa.int32()),
    ]
)
DOCUMENTS = pa.schema(
    [
        ("document", pa.int64()),
        ("id", pa.string()),
        ("kind", pa.string()),
        ("text", pa.string()),
        ("first_row", pa.int64()),
        ("n_rows", pa.int64()),
    ]
)
LATENTS = pa.schema(
    [
        ("latent", pa.int32()),
        ("count", pa.int64()),
        ("density", pa.float64()),
        ("mean", pa.float64()),
        ("min", pa.float32()),
        ("max", pa.float32()),
        ("histogram", pa.list_(pa.int64())),
        ("edges", pa.list_(pa.float64())),
        ("top_tokens", pa.list_(pa.string())),
    ]
)
# of a store in which some code is negative
SIGNED = [("negative", pa.int64()), ("mean_abs", pa.float64()), ("bottom_tokens", pa.list_(pa.string()))]
EXAMPLES = pa.schema(
    [
        ("latent", pa.int32()),
        ("kind", pa.string()),
        ("rank", pa.int32()),
        ("stratum", pa.int32()),
        ("row", pa.int64()),
        ("document", pa.int64()),
        ("position", pa.int32()),
        ("value", pa.float32()),
        ("start", pa.int32()),
        ("tokens", pa.list_(pa.string())),
        ("values", pa.list_(pa.float32())),
    ]
)


class FeatureWriter:
    """Fills a folder that `manifest.building` made: `add` for each batch, then `finish`, at last `close`.

    d_sae: latents. window: tokens shown before and after a firing. n_examples: strongest windows of each
    pole of a latent; n_quantile: windows spread over the range of its |value|s, chosen by `seed`.
    """

    def __init__(
        self,
        folder: Path,
        d_sae: int,
        *,
        window: tuple[int, int] = (10, 10),
        n_examples: int = 20,
        n_quantile: int = 20,
        seed: int = 0,
    ) -> None:
        self.folder, self.d_sae, self.seed = folder, d_sae, seed
        self.window, self.n_examples, self.n_quantile = window, n_examples, n_quantile
        self.n_rows = self.n_documents = self.n_codes = 0
        self.signed = False  # until a code is negative
        # what the windows need of each row, as raw numbers that are mapped rather than loaded
        self._scratch = folder / "scratch"
        self._scratch.mkdir()
        self._raw = {name: (self._scratch / name).open("wb") for name in ("token", "first", "last", "origin")}
        self._vocabulary: dict[str, int] = {}
        self._codes = _writer(folder / "codes_by_row.parquet", CODES)
        self._rows = _writer(folder / "rows.parquet", ROWS)
        self._documents = _writer(folder / "documents.parquet", DOCUMENTS)

    def add(
        self,
        codes: Codes,
        rows: np.ndarray,
        tokens: Sequence[str],
        token_ids: np.ndarray,
        documents: Sequence[tuple[int, str, str, str]],
    ) -> None:
        """Append the rows of whole documents.

        codes: of the rows. rows: int64 [n 2], (document, position), in order. documents: (number, id, kind,
        text), in order. Raises ShapeError, NonFiniteError on codes that are NaN or infinite.
        """
        self._check(codes, rows, documents)
        n = len(rows)
        numbers = np.arange(self.n_rows, self.n_rows + n)
        row = codes.row_ids() + self.n_rows
        self._codes.write_table(_table(CODES, row, codes.indices, codes.values))
        self._rows.write_table(
            _table(ROWS, numbers, rows[:, 0], rows[:, 1].astype(np.int32), list(tokens), token_ids)
        )
        of_document = rows[:, 0]
        wanted = np.array([d[0] for d in documents])
        starts = np.searchsorted(of_document, wanted, side="left")
        stops = np.searchsorted(of_document, wanted, side="right")
        columns = zip(*documents, strict=True)
        self._documents.write_table(_table(DOCUMENTS, *columns, starts + self.n_rows, stops - starts))
        ids = [self._vocabulary.setdefault(t, len(self._vocabulary)) for t in tokens]
        at = np.searchsorted(wanted, of_document)
        for name, numbers in (
            ("token", np.array(ids, dtype=np.int32)),
            ("first", starts[at] + self.n_rows),
            ("last", stops[at] - 1 + self.n_rows),
            ("origin", rows),
        ):
            numbers = numbers.astype(np.int32 if name == "token" else np.int64)
            self._raw[name].write(np.ascontiguousarray(numbers).tobytes())
        self.n_rows += n
        self.n_documents += len(documents)
        self.n_codes += len(row)
        self.signed = self.signed or bool((codes.values < 0).any())

    def finish(self, fields: Mapping[str, Any]) -> None:
        """Sort the codes by latent, summarise them, write the manifest.

        fields: more of the manifest. Raises CorpusError where no row was added, StoreError where the sort
        cannot be written.
        """
        if not self.n_rows:
            message = "A corpus must hold rows besides BOS. Got none. Pass longer texts."
            raise CorpusError(message)
        self.close()
        self._sort()
        self._summarise()
        shutil.rmtree(self._scratch)
        own = {
            "n_rows": self.n_rows,
            "n_latents": self.d_sae,
            "n_documents": self.n_documents,
            "n_codes": self.n_codes,
            "window": list(self.window),
            "seed": self.seed,
        }
        if self.signed:
            own["signed"] = True
        manifests.write_manifest(self.folder, KIND, {**own, **fields})

    def close(self) -> None:
        """Let go of all files; without `finish` the store stays incomplete."""
        for open_file in (*self._raw.values(), self._codes, self._rows, self._documents):
            open_file.close()

    def _check(self, codes: Codes, rows: np.ndarray, documents: Sequence[tuple[int, str, str, str]]) -> None:
        if codes.d_sae != self.d_sae or len(codes) != len(rows):
            message = (
                f"Codes must be those of {len(rows)} rows by d_sae={self.d_sae} latents. "
                f"Got {len(codes)} by {codes.d_sae}. Encode the rows of the batch with the SAE of the store."
            )
            raise ShapeError(message)
        bad = ~np.isfinite(codes.values)
        if bad.any():
            row = rows[codes.row_ids()[bad][0]]
            name = next(d[1] for d in documents if d[0] == row[0])
            message = (
                f"Codes must be finite. Got {bad.sum()} NaN or infinite values, the first in document "
                f"{name!r} at position {row[1]}. Check the SAE's weights, or encode in float32."
            )
            raise NonFiniteError(message)

    def _sort(self) -> None:
        """codes_by_row -> codes_by_latent; DuckDB spills to disk where memory does not suffice."""
        source = _quoted(self.folder / "codes_by_row.parquet")
        target = _quoted(self.folder / "codes_by_latent.parquet")
        select = f"select latent, row, value from read_parquet({source}) order by latent, row"
        try:
            with duckdb.connect() as connection:
                connection.execute(f"set memory_limit = '{SORT_MEMORY}'")
                connection.execute("set enable_progress_bar = false")
                connection.execute(f"set temp_directory = {_quoted(self._scratch / 'spill')}")
                connection.execute(
                    f"copy ({select}) to {target} (format parquet, compression zstd, parquet_version v2)"
                )
        except duckdb.Error as error:
            message = (
                f"{self.n_codes:,} codes must be sorted on disk. Got: {error}. Free some space or memory, "
                "or pass a smaller max_rows."
            )
            raise StoreError(message) from error

    def _summarise(self) -> None:
        """codes_by_latent -> latents, examples: a bounded number of codes at a time."""
        first = np.memmap(self._scratch / "first", np.int64, "r")
        last = np.memmap(self._scratch / "last", np.int64, "r")
        origin = np.memmap(self._scratch / "origin", np.int64, "r").reshape(-1, 2)
        token = np.memmap(self._scratch / "token", np.int32, "r")
        names = sorted(self._vocabulary)
        place = np.empty(len(names), np.int32)  # of a token of `_vocabulary` in `names`
        place[[self._vocabulary[name] for name in names]] = np.arange(len(names))
        strings = np.array(names, dtype=object)
        tables: list[pa.Table] = []
        schema = pa.schema([*LATENTS, *SIGNED]) if self.signed else LATENTS
        with (
            _writer(self.folder / "latents.parquet", schema) as latents,
            _writer(self.folder / "examples.parquet", EXAMPLES) as examples,
        ):
            for low, high, latent, row, value in self._blocks():
                fired = latent - low
                stats = summaries.statistics(fired, value, high - low)
                numbers = np.arange(low, high, dtype=np.int32)
                tokens = [
                    summaries.top_tokens(fired[pole], place[token[row[pole]]], names, high - low)
                    for pole in ([value > 0, value < 0] if self.signed else [slice(None)])
                ]
                tables.append(_latent_table(schema, numbers, stats, tokens, self.n_rows))
                if high == self.d_sae or sum(map(len, tables)) >= LATENTS_A_GROUP:
                    latents.write_table(pa.concat_tables(tables))
                    tables = []
                at, *columns = self._choose(fired, row, value, numbers)
                for some in range(0, len(at), EXAMPLES_A_GROUP):
                    part = slice(some, some + EXAMPLES_A_GROUP)
                    chosen = at[part]
                    begin, offsets, shown = summaries.windows(first, last, row[chosen], self.window)
                    of = np.repeat(latent[chosen], np.diff(offsets))
                    values = summaries.values_at(latent, row, value, of, shown)
                    window_tokens = pa.array(strings[place[token[shown]]], pa.string())
                    examples.write_table(
                        _table(
                            EXAMPLES,
                            latent[chosen],
                            *(c[part] for c in columns),
                            row[chosen],
                            origin[row[chosen], 0],
                            origin[row[chosen], 1].astype(np.int32),
                            value[chosen],
                            origin[begin, 1].astype(np.int32),
                            pa.ListArray.from_arrays(offsets, window_tokens),
                            pa.ListArray.from_arrays(offsets, pa.array(values, pa.float32())),
                        )
                    )

    def _blocks(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]]:
        """(low, high, latent, row, value): all codes of latents low..high-1, about BLOCK_CODES at a time."""
        file = pq.ParquetFile(self.folder / "codes_by_latent.parquet")
        low, size = 0, 0
        waiting: list[list[np.ndarray]] = [[np.zeros(0, t) for t in (np.int32, np.int64, np.float32)]]
        for batch in file.iter_batches(BLOCK_CODES, columns=["latent", "row", "value"]):
            waiting.append([batch.column(i).to_numpy() for i in range(3)])
            size += len(batch)
            high = int(waiting[-1][0][-1])  # this latent may go on in the next batch
            if size < BLOCK_CODES or high == low:
                continue
            columns = [np.concatenate(c) for c in zip(*waiting, strict=True)]
            cut = int(np.searchsorted(columns[0], high))
            latent, row, value = (c[:cut] for c in columns)
            yield low, high, latent, row, value
            low, size, waiting = high, size - cut, [[c[cut:] for c in columns]]
        latent, row, value = (np.concatenate(c) for c in zip(*waiting, strict=True))
        yield low, self.d_sae, latent, row, value

    def _choose(
        self,
        fired: np.ndarray,
        row: np.ndarray,
        value: np.ndarray,
        latents: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(code number, kind, rank, stratum) of every example, sorted by latent, kind ("bottom" before
        "quantile" before "top"), rank.
        """

        def strongest(pole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            at, rank = summaries.strongest(fired[pole], value[pole], len(latents), self.n_examples)
            return pole[at], rank

        bottom, bottom_rank = strongest(np.flatnonzero(value < 0))
        top, top_rank = strongest(np.flatnonzero(value > 0))
        keys = summaries.latent_keys(self.seed, latents)
        quantile, rank, stratum = summaries.spread(fired, row, value, keys, self.n_quantile)
        at = np.r_[bottom, quantile, top]
        sizes = [len(bottom), len(quantile), len(top)]
        kind = np.repeat(np.array(["bottom", "quantile", "top"], dtype=object), sizes)
        rank = np.r_[bottom_rank, rank, top_rank].astype(np.int32)
        stratum = np.r_[np.full(len(bottom), -1), stratum, np.full(len(top), -1)].astype(np.int32)
        order = np.argsort(fired[at], kind="stable")
        return at[order], kind[order], rank[order], stratum[order]


def _latent_table(
    schema: pa.Schema,
    latents: np.ndarray,
    stats: summaries.Statistics,
    tokens: list[list[list[str]]],
    n_rows: int,
) -> pa.Table:
    """tokens: of each pole that the schema has, of each latent."""
    signed = [stats.negative, stats.mean_abs, tokens[1]] if len(tokens) > 1 else []
    return _table(
        schema,
        latents,
        stats.count,
        stats.count / n_rows,
        stats.mean,
        stats.min,
        stats.max,
        _lists(stats.histogram),
        _lists(stats.edges),
        tokens[0],
        *signed,
    )


def _lists(matrix: np.ndarray) -> pa.ListArray:
    """Each row of a matrix as a list."""
    offsets = np.arange(len(matrix) + 1, dtype=np.int32) * np.int32(matrix.shape[1])
    return pa.ListArray.from_arrays(offsets, pa.array(matrix.reshape(-1)))


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    floats = [f.name for f in schema if f.type == pa.float32()]
    strings = [f.name for f in schema if f.type == pa.string()]
    lists = [f"{f.name}.list.element" for f in schema if f.type == pa.list_(pa.string())]
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=strings + lists,  # pyright: ignore[reportArgumentType] names are as good as a bool
        use_byte_stream_split=floats,  # pyright: ignore[reportArgumentType]
        write_statistics=True,
    )


def _table(schema: pa.Schema, *columns: Any) -> pa.Table:
    arrays = [
        c if isinstance(c, pa.Array) else pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _quoted(path: Path) -> str:
    """A path as a SQL string."""
    return "'" + str(path).replace("'", "''") + "'"
