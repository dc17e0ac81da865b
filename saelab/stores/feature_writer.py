"""Writes a feature store: rows and codes as they come, then one sort and one pass over the latents. No
torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saelab.stores import manifest as manifests
from saelab.types import Codes, CorpusError

KIND = "features"
BINS = 40
STRATA = 5
TOP_TOKENS = 3
BLOCK_CODES = 4_000_000
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
    """Fills a folder that `manifest.building` made.

    d_sae: latents. window: tokens shown before and after a firing. n_examples: top windows a latent;
    n_quantile: windows spread over the strata of its range of values. seed: of the choice within a stratum.
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
        # scratch: what the windows need of each row, as raw numbers that are mapped rather than loaded
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
        text).
        """
        n = len(rows)
        numbers = np.arange(self.n_rows, self.n_rows + n)
        row, latent, value = codes.row_ids() + self.n_rows, codes.indices, codes.values
        self._codes.write_table(_table(CODES, row, latent, value))
        token_column = pa.array(tokens, pa.string())
        self._rows.write_table(
            _table(ROWS, numbers, rows[:, 0], rows[:, 1].astype(np.int32), token_column, token_ids)
        )
        of_document = rows[:, 0]
        wanted = np.array([d[0] for d in documents])
        starts = np.searchsorted(of_document, wanted, side="left")
        stops = np.searchsorted(of_document, wanted, side="right")
        columns = list(zip(*documents, strict=True))
        self._documents.write_table(_table(DOCUMENTS, *columns, starts + self.n_rows, stops - starts))
        ids = [self._vocabulary.setdefault(t, len(self._vocabulary)) for t in tokens]
        self._raw["token"].write(np.array(ids, dtype=np.int32).tobytes())
        at = np.searchsorted(wanted, of_document)
        self._raw["first"].write((starts[at] + self.n_rows).astype(np.int64).tobytes())
        self._raw["last"].write((stops[at] - 1 + self.n_rows).astype(np.int64).tobytes())
        self._raw["origin"].write(np.ascontiguousarray(rows, dtype=np.int64).tobytes())
        self.n_rows += n
        self.n_documents += len(documents)
        self.n_codes += len(latent)

    def finish(self, fields: Mapping[str, Any]) -> None:
        """Sort the codes by latent, summarise, write the manifest. Raises CorpusError where no row "
        "was added."""
        if not self.n_rows:
            message = "A corpus must hold rows besides BOS. Got none. Pass longer texts."
            raise CorpusError(message)
        for open_file in (*self._raw.values(), self._codes, self._rows, self._documents):
            open_file.close()
        self._sort()
        self._summarise()
        for path in self._scratch.iterdir():
            path.unlink()
        self._scratch.rmdir()
        own = {
            "n_rows": self.n_rows,
            "n_latents": self.d_sae,
            "n_documents": self.n_documents,
            "n_codes": self.n_codes,
            "window": list(self.window),
            "seed": self.seed,
        }
        manifests.write_manifest(self.folder, KIND, {**own, **fields})

    def close(self) -> None:
        """Let go of all files; what was written stays incomplete."""
        for open_file in (*self._raw.values(), self._codes, self._rows, self._documents):
            open_file.close()

    def _sort(self) -> None:
        """codes_by_row -> codes_by_latent; DuckDB spills to disk where memory does not suffice."""
        with duckdb.connect() as connection:
            connection.execute("set preserve_insertion_order = false")
            connection.execute("set memory_limit = '2GB'")
            connection.execute("set enable_progress_bar = false")
            connection.execute(f"set temp_directory = {_quoted(self._scratch / 'spill')}")
            source = _quoted(self.folder / "codes_by_row.parquet")
            target = _quoted(self.folder / "codes_by_latent.parquet")
            select = f"select latent, row, value from read_parquet({source}) order by latent, row"
            options = "format parquet, compression zstd, parquet_version v2"
            connection.execute(f"copy ({select}) to {target} ({options})")
        spill = self._scratch / "spill"
        if spill.exists():
            for path in spill.iterdir():
                path.unlink()
            spill.rmdir()

    def _summarise(self) -> None:
        token = np.memmap(self._scratch / "token", np.int32, "r")
        first = np.memmap(self._scratch / "first", np.int64, "r")
        last = np.memmap(self._scratch / "last", np.int64, "r")
        origin = np.memmap(self._scratch / "origin", np.int64, "r").reshape(-1, 2)
        vocabulary = np.array(list(self._vocabulary), dtype=object)
        with (
            _writer(self.folder / "latents.parquet", LATENTS) as latents,
            _writer(self.folder / "examples.parquet", EXAMPLES) as examples,
        ):
            for low, high, latent, row, value in self._blocks():
                fired = latent - low
                stats = _statistics(fired, value, high - low)
                top_tokens = _top_tokens(fired, token[row], vocabulary, high - low)
                latents.write_table(
                    _table(
                        LATENTS,
                        np.arange(low, high, dtype=np.int32),
                        stats["count"],
                        stats["count"] / self.n_rows,
                        stats["mean"],
                        stats["min"],
                        stats["max"],
                        pa.array(list(stats["histogram"]), LATENTS.field("histogram").type),
                        pa.array(list(stats["edges"]), LATENTS.field("edges").type),
                        pa.array(top_tokens, LATENTS.field("top_tokens").type),
                    )
                )
                at, kind, rank, stratum = self._choose(latent, fired, row, value, stats)
                for some in range(0, len(at), EXAMPLES_A_GROUP):
                    part = slice(some, some + EXAMPLES_A_GROUP)
                    chosen = at[part]
                    starts, offsets, window = _windows(first, last, row[chosen], self.window)
                    strings = vocabulary[token[window]]
                    values = _values_at(
                        latent, row, value, np.repeat(latent[chosen], np.diff(offsets)), window
                    )
                    examples.write_table(
                        _table(
                            EXAMPLES,
                            latent[chosen],
                            kind[part],
                            rank[part],
                            stratum[part],
                            row[chosen],
                            origin[row[chosen], 0],
                            origin[row[chosen], 1].astype(np.int32),
                            value[chosen],
                            origin[starts, 1].astype(np.int32),
                            pa.ListArray.from_arrays(offsets, pa.array(strings, pa.string())),
                            pa.ListArray.from_arrays(offsets, pa.array(values, pa.float32())),
                        )
                    )

    def _blocks(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]]:
        """(low, high, latent, row, value): all codes of latents low..high-1, a bounded number of "
        "codes at a time."""
        file = pq.ParquetFile(self.folder / "codes_by_latent.parquet")
        low = 0
        waiting: list[tuple[np.ndarray, ...]] = []
        for batch in file.iter_batches(1_000_000, columns=["latent", "row", "value"]):
            waiting.append(tuple(batch.column(i).to_numpy() for i in range(3)))
            if sum(len(w[0]) for w in waiting) < BLOCK_CODES:
                continue
            columns = [np.concatenate(c) for c in zip(*waiting, strict=True)]
            high = int(columns[0][-1])  # the last latent may go on in the next batch
            if high > low:
                cut = int(np.searchsorted(columns[0], high))
                yield low, high, *(c[:cut] for c in columns)
                low, waiting = high, [tuple(c[cut:] for c in columns)]
        columns = [np.concatenate(c) for c in zip(*waiting, strict=True)] if waiting else []
        empty = [np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.float32)]
        yield low, self.d_sae, *(columns or empty)

    def _choose(
        self,
        latent: np.ndarray,
        fired: np.ndarray,
        row: np.ndarray,
        value: np.ndarray,
        stats: dict[str, np.ndarray],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(code number, kind, rank, stratum) of every example, sorted by latent, top before "
        "quantile, rank."""
        strength = np.abs(value)
        order = np.lexsort((row, -strength, fired))
        top, top_rank = _first_of_each(order, fired[order], self.n_examples)

        # equal parts of the range of values; a hash of the row decides who is shown, whatever the order of
        # work
        spread = (stats["max"] - stats["min"]).astype(np.float64)
        share = (value - stats["min"][fired]) / np.maximum(spread[fired], np.finfo(np.float64).tiny)
        stratum = np.minimum((share * STRATA).astype(np.int64), STRATA - 1)
        stratum[spread[fired] == 0] = STRATA - 1
        each = -(-self.n_quantile // STRATA)
        order = np.lexsort((_hash(self.seed, latent, row), stratum, fired))
        quantile, _ = _first_of_each(order, (fired * STRATA + stratum)[order], each)
        order = np.lexsort((row[quantile], value[quantile], stratum[quantile], fired[quantile]))
        quantile = quantile[order]
        _, quantile_rank = _first_of_each(np.arange(len(quantile)), fired[quantile], len(quantile) + 1)

        at = np.concatenate([top, quantile])
        kind = np.repeat(np.array(["top", "quantile"], dtype=object), [len(top), len(quantile)])
        rank = np.concatenate([top_rank, quantile_rank]).astype(np.int32)
        strata = np.concatenate([np.full(len(top), -1), stratum[quantile]]).astype(np.int32)
        order = np.lexsort((rank, kind == "quantile", fired[at]))
        return at[order], kind[order], rank[order], strata[order]


def _statistics(fired: np.ndarray, value: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Count, mean, min, max, histogram and its edges of each of n latents; zeros where one never fires."""
    count = np.bincount(fired, minlength=n)
    total = np.bincount(fired, weights=value.astype(np.float64), minlength=n)
    alive = count > 0
    low, high = np.zeros(n, np.float32), np.zeros(n, np.float32)
    starts = np.searchsorted(fired, np.flatnonzero(alive))
    if len(starts):
        low[alive] = np.minimum.reduceat(value, starts)
        high[alive] = np.maximum.reduceat(value, starts)
    left = np.minimum(low, 0).astype(np.float64)
    right = np.where(alive, np.maximum(high, 0).astype(np.float64), 1.0)
    edges = left[:, None] + (right - left)[:, None] * np.linspace(0, 1, BINS + 1)
    edges[:, -1] = right
    place = (value - left[fired]) / (right - left)[fired] * BINS
    bins = np.clip(place.astype(np.int64), 0, BINS - 1)
    histogram = np.bincount(fired * BINS + bins, minlength=n * BINS).reshape(n, BINS)
    mean = total / np.maximum(count, 1)
    return {"count": count, "mean": mean, "min": low, "max": high, "histogram": histogram, "edges": edges}


def _top_tokens(fired: np.ndarray, token: np.ndarray, vocabulary: np.ndarray, n: int) -> list[list[str]]:
    """The tokens that each latent fires on most often; of equals, the first in the order of strings."""
    rank = np.argsort(np.argsort(vocabulary.astype(str), kind="stable"), kind="stable")
    by_rank = np.argsort(rank, kind="stable")
    pair, count = np.unique(fired.astype(np.int64) * len(vocabulary) + rank[token], return_counts=True)
    latent, name = np.divmod(pair, max(len(vocabulary), 1))
    order = np.lexsort((name, -count, latent))
    best, _ = _first_of_each(order, latent[order], TOP_TOKENS)
    out: list[list[str]] = [[] for _ in range(n)]
    for at in best:
        out[latent[at]].append(str(vocabulary[by_rank[name[at]]]))
    return out


def _first_of_each(order: np.ndarray, group: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Of `order`, whose groups are contiguous, the first n of each group, with their rank in it."""
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]]) if len(group) else np.zeros(0, np.int64)
    lengths = np.diff(np.r_[starts, len(group)])
    rank = np.arange(len(group)) - np.repeat(starts, lengths)
    kept = rank < n
    return order[kept], rank[kept]


def _windows(
    first: np.ndarray, last: np.ndarray, row: np.ndarray, window: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(first row of each window, offsets [n + 1], rows of all windows one after the other)."""
    start = np.maximum(row - window[0], first[row])
    stop = np.minimum(row + window[1], last[row]) + 1
    offsets = np.r_[0, np.cumsum(stop - start)].astype(np.int32)
    rows = np.arange(offsets[-1]) - np.repeat(offsets[:-1], stop - start) + np.repeat(start, stop - start)
    return start, offsets, rows


def _values_at(
    latent: np.ndarray, row: np.ndarray, value: np.ndarray, wanted_latent: np.ndarray, wanted_row: np.ndarray
) -> np.ndarray:
    """Values of codes sorted by (latent, row) at the wanted pairs, 0 where there is none."""
    # one number a pair; both fit, since a store of 2^31 latents and 2^32 rows would not fit a disk
    key = (latent.astype(np.int64) << 32) | row
    wanted = (wanted_latent.astype(np.int64) << 32) | wanted_row
    at = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
    return np.where(key[at] == wanted, value[at], np.float32(0))


def _hash(seed: int, latent: np.ndarray, row: np.ndarray) -> np.ndarray:
    """A well-mixed uint64 of (seed, latent, row): the finaliser of SplitMix64 (Steele et al. 2014), twice."""
    x = row.astype(np.uint64) + (latent.astype(np.uint64) << np.uint64(40)) + np.uint64(seed % 2**32)
    with np.errstate(over="ignore"):
        for _ in range(2):
            x = x + np.uint64(0x9E3779B97F4A7C15)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
    return x


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    floats = [f.name for f in schema if f.type == pa.float32()]
    strings = [f.name for f in schema if f.type == pa.string()]
    lists = [f"{f.name}.list.element" for f in schema if f.type == pa.list_(pa.string())]
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        use_dictionary=strings + lists,
        use_byte_stream_split=floats,
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
