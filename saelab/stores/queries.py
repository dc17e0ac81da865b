"""SQL over the tables of a feature store: any one SELECT."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from saelab.stores import tables
from saelab.stores.labels import LABELS
from saelab.types import ConfigError, StoreError

if TYPE_CHECKING:
    import pandas as pd

TABLES = tuple(tables.SCHEMAS)
TOKENS = """
    create view tokens as select latent, name as token, f.count, negative, lift
    from firings f join vocabulary using (shown) where facet = 'token'
"""
_READS = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)


def connect(folder: Path, labels: pd.DataFrame) -> duckdb.DuckDBPyConnection:
    """A connection to the tables of a store and its labels. Raises StoreError where a file is broken.

    Args:
        folder: of the store.
        labels: as `FeatureStore.labels` gives them.
    """
    with _complaining():
        connection = duckdb.connect(config={"threads": 2})
        connection.execute("set enable_progress_bar = false")
        for name in TABLES:
            connection.execute(f"create view {name} as select * from {tables.source(folder, name)}")
        connection.execute(TOKENS)
        # a copy, since the file may be replaced at any time
        attached = pa.Table.from_pandas(labels, LABELS, preserve_index=False)
        connection.register("attached", attached)
        connection.execute("create table labels as select * from attached")
    return connection


def select(
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    values: list[Any] | dict[str, Any] | None,
    format: str,
) -> Any:
    """See `FeatureStore.query`."""
    if format not in ("pandas", "arrow"):
        message = f"format must be 'pandas' or 'arrow'. Got {format!r}. Pass format='pandas'."
        raise ConfigError(message)
    with _complaining():
        statements = duckdb.extract_statements(sql)
    if len(statements) != 1 or statements[0].type not in _READS:
        raise StoreError(_complaint(f"{sql!r}, which is not one SELECT"))
    with _complaining():
        # a cursor of its own for each query, so that threads do not meet
        cursor = connection.cursor()
        if format == "arrow":
            return cursor.sql(sql, params=values).to_arrow_table()
        return cursor.execute(sql, values).df()


@contextlib.contextmanager
def _complaining() -> Iterator[None]:
    try:
        yield
    except (duckdb.Error, TypeError) as error:
        raise StoreError(_complaint(error)) from error


def _complaint(got: object) -> str:
    return f"A query must be one SELECT over {', '.join(TABLES)}. Got: {got}. Correct the query."


__all__ = ["TABLES", "connect", "select"]
