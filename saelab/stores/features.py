"""The feature store: where every latent fires, as Parquet files that DuckDB, pandas and polars open
unaided.
"""

from __future__ import annotations

import functools
import numbers
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from saelab.stores import manifest as manifests
from saelab.stores.feature_writer import KIND
from saelab.types import HookPoint, RangeError, StoreError, nearest

TABLES = ("latents", "examples", "codes_by_latent", "codes_by_row", "rows", "documents")
KINDS = ("top", "quantile")


@dataclass(frozen=True)
class LatentRecord:
    """Statistics of one latent over all rows of the store."""

    latent: int
    count: int
    """rows where it is != 0"""
    density: float
    """count / n_rows"""
    mean: float
    """mean value where it fires; 0 if it never does"""
    min: float
    max: float
    histogram: np.ndarray
    """int64 [bins]: firings in each bin, sums to count"""
    edges: np.ndarray
    """float64 [bins + 1]: from min(0, min) to max(0, max)"""
    top_tokens: list[str]
    """tokens that it fires on most often, at most three"""


@dataclass(frozen=True)
class Example:
    """A window of a document around one firing of a latent."""

    latent: int
    kind: str
    """"top": the largest |value|s, ties to the lower row; "quantile": spread over the range of values"""
    rank: int
    stratum: int
    """for "quantile" the fifth of the range [min, max] that the value lies in, 0 the lowest; -1 for "top" """
    row: int
    document: int
    position: int
    """of the firing in its document"""
    value: float
    start: int
    """position of the window's first token"""
    tokens: list[str]
    values: np.ndarray
    """float32 [len(tokens)]: the latent's code on each token, 0 where it does not fire"""


@dataclass(frozen=True)
class RowRecord:
    """One token of the corpus and what fires on it."""

    row: int
    document: int
    position: int
    token: str
    latents: np.ndarray
    """int32 [l0], largest |value| first"""
    values: np.ndarray
    """float32 [l0]"""


class FeatureStore:
    """An index of an SAE's latents over a corpus, read from a folder. Nothing is loaded before it is asked
    for.

    n_latents, n_rows, n_documents. hook: the hook point. manifest: all that is known of it.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.n_latents: int = manifest["n_latents"]
        self.n_rows: int = manifest["n_rows"]
        self.n_documents: int = manifest["n_documents"]
        self.hook = HookPoint(**manifest["hook"])

    @classmethod
    def open(cls, folder: str | Path) -> FeatureStore:
        """Sizes of files are checked here, their hashes by `verify`.

        Raises StoreError where there is no whole feature store of a known version.
        """
        return cls(Path(folder), manifests.read_manifest(folder, KIND))

    def latent(self, latent: int) -> LatentRecord:
        """Statistics of one latent. Raises RangeError."""
        row = self._latents.iloc[self._checked(latent)]
        return LatentRecord(
            latent=int(row["latent"]),
            count=int(row["count"]),
            density=float(row["density"]),
            mean=float(row["mean"]),
            min=float(row["min"]),
            max=float(row["max"]),
            histogram=np.asarray(row["histogram"], dtype=np.int64),
            edges=np.asarray(row["edges"], dtype=np.float64),
            top_tokens=list(row["top_tokens"]),
        )

    def examples(self, latent: int, n: int = 10, kind: str = "top") -> list[Example]:
        """At most n windows around firings of a latent.

        kind: "top", strongest first; "quantile", from weak to strong, n of them evenly out of those that
        are kept.
        Raises RangeError on a latent out of range, StoreError on an unknown kind.
        """
        if kind not in KINDS:
            message = (
                f"kind must be 'top' or 'quantile'. Got {kind!r}. {nearest(str(kind), KINDS)}Pass kind='top'."
            )
            raise StoreError(message)
        found = [e for e in self._examples(self._checked(latent)) if e.kind == kind]
        if kind == "quantile" and 0 < n < len(found):
            found = [found[i] for i in np.linspace(0, len(found) - 1, n).round().astype(int)]
        return found[: max(n, 0)]

    def rows(self, row: int) -> RowRecord:
        """A token of the corpus with the latents that fire on it. Raises RangeError."""
        row = _index(row, self.n_rows, "row")
        where = self._query("select * from rows where row = ?", [row]).iloc[0]
        codes = self._query("select latent, value from codes_by_row where row = ?", [row])
        order = np.lexsort((codes["latent"], -codes["value"].abs()))
        return RowRecord(
            row,
            int(where["document"]),
            int(where["position"]),
            str(where["token"]),
            codes["latent"].to_numpy()[order],
            codes["value"].to_numpy()[order],
        )

    def codes(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows int64 ascending, values float32) of every firing of a latent. Raises RangeError."""
        found = self._query(
            "select row, value from codes_by_latent where latent = ? order by row", [self._checked(latent)]
        )
        return found["row"].to_numpy(), found["value"].to_numpy()

    def latents(self) -> pd.DataFrame:
        """Statistics of all latents, one row each: the table `latents` without its lists."""
        return self._latents.drop(columns=["histogram", "edges", "top_tokens"])

    def top_tokens(self) -> dict[int, list[str]]:
        """The tokens that each latent fires on most often; latents that never fire are left out."""
        frame = self._latents
        return {int(j): list(t) for j, t in zip(frame["latent"], frame["top_tokens"], strict=True) if len(t)}

    def query(self, sql: str) -> pd.DataFrame:
        """Any SQL over the tables latents, examples, codes_by_latent, codes_by_row, rows and documents
        (DuckDB).

        Raises StoreError with DuckDB's complaint.
        """
        return self._query(sql)

    def verify(self) -> None:
        """Compare every file with its hash. Raises StoreError naming the one that differs."""
        manifests.verify(self.folder, self.manifest)

    def check(self, part: Any) -> None:
        """Refuse an SAE or a subject that the store was not indexed with. Raises StoreError."""
        kind = "sae" if hasattr(part, "encode_sparse") else "subject"
        if part.fingerprint() != self.manifest[kind]:
            message = (
                f"A store must be read with the {kind} that it was indexed with, {self.manifest[kind][:12]}. "
                f"Got another, {part.fingerprint()[:12]}. Load the right one, or index anew with "
                f"saelab.index."
            )
            raise StoreError(message)

    def __repr__(self) -> str:
        of = f"{self.n_rows:,} rows of {self.n_documents:,} documents"
        return f"FeatureStore({self.n_latents:,} latents at {self.hook} over {of})"

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    @functools.cached_property
    def _latents(self) -> pd.DataFrame:
        return pq.read_table(self.folder / "latents.parquet").to_pandas()

    @functools.cached_property
    def _example_file(self) -> tuple[pq.ParquetFile, np.ndarray, np.ndarray]:
        """The open file, with the lowest and the highest latent of each of its row groups."""
        file = pq.ParquetFile(self.folder / "examples.parquet")
        groups = [file.metadata.row_group(i).column(0).statistics for i in range(file.num_row_groups)]
        return file, np.array([g.min for g in groups]), np.array([g.max for g in groups])

    def _examples(self, latent: int) -> list[Example]:
        file, low, high = self._example_file
        out = []
        for group in np.flatnonzero((low <= latent) & (latent <= high)):
            table = file.read_row_group(int(group))
            column = table.column("latent").to_numpy()
            start, stop = np.searchsorted(column, [latent, latent + 1])
            for entry in table.slice(start, stop - start).to_pylist():
                values = np.array(entry.pop("values"), dtype=np.float32)
                out.append(Example(**entry, values=values))
        return out

    @functools.cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(config={"threads": 2})
        connection.execute("set enable_progress_bar = false")
        for name in TABLES:
            path = str(self.folder / f"{name}.parquet").replace("'", "''")
            connection.execute(f"create view {name} as select * from read_parquet('{path}')")
        return connection

    def _query(self, sql: str, values: list[Any] | None = None) -> pd.DataFrame:
        try:
            # a cursor of its own for each query, so that threads do not meet
            return self._connection.cursor().execute(sql, values or []).df()
        except duckdb.Error as error:
            message = f"The query must be SQL over {', '.join(TABLES)}. Got: {error}. Correct the query."
            raise StoreError(message) from error

    def _checked(self, latent: Any) -> int:
        return _index(latent, self.n_latents, "latent")


def _index(value: Any, n: int, name: str) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral) or not 0 <= value < n:
        message = f"{name} must be an integer in 0..{n - 1}. Got {value!r}. Pass one of the store's {n:,}."
        raise RangeError(message)
    return int(value)
