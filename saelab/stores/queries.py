"""SQL over the tables of a feature store: any one SELECT, which reads these and nothing else.

Three things keep a query from anything else: what it says (`_check`: which statements, and which functions
that make tables), the transaction that it runs in, which is read-only, and the database, which opens no file
outside of the store and takes no settings once its tables are set up.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
import threading
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from saelab.stores import attached, tables
from saelab.stores.annotations import ANNOTATIONS, VIEWS, described
from saelab.stores.labels import LABEL_SCORES, LABELS, labels_of, scores_of
from saelab.stores.lacking import lacks
from saelab.stores.protocol import Latents
from saelab.types import ConfigError, StoreError

TABLES = tuple(tables.SCHEMAS)
BRIEF = "described_briefly"
"""`described` without the columns LONG, held in memory once a query names it."""
LONG = ("histogram", "edges")
TOKENS = """
    create view tokens as select latent, name as token, f.count, negative, lift
    from firings f join vocabulary using (shown) where facet = 'token'
"""
FUNCTIONS = {
    "unnest", "range", "generate_series", "repeat", "repeat_row", "json_each", "json_tree",
    "duckdb_columns", "duckdb_functions", "duckdb_tables", "duckdb_views",
}  # fmt: skip
"""Those that make tables and may be called: none reads a file, or runs what it is given."""
_EXPLAIN = re.compile(r"\s*explain\s+(analyze\s+)?", re.IGNORECASE)
_NODES = ("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE")
"""What a query that only reads is made of, as DuckDB calls it; INSERT and COPY have nodes of their own."""


class Connection:
    """A connection to the tables of a store, and to what is attached to it.

    Args:
        store: Whose.
    """

    def __init__(self, store: Latents) -> None:
        self._held = attached.stamp(store), _connect(store)
        self._lock = threading.Lock()

    def current(self, store: Latents) -> duckdb.DuckDBPyConnection:
        """To what is attached now, by whomever.

        Args:
            store: The same.

        Raises:
            StoreError: A file is broken.
        """
        now = attached.stamp(store)
        if self._held[0] != now:
            self._held, self._in_memory = (now, _connect(store)), False
        return self._held[1]

    def hold(self, store: Latents) -> None:
        """Have BRIEF, of which a question takes a tenth of the time that it takes of `described`.

        Args:
            store: The same.

        Raises:
            StoreError: A file is broken.
        """
        connection = self.current(store)
        with self._lock:
            if not self._in_memory:
                _hold(connection, store)
                self._in_memory = True

    _in_memory = False


def _connect(store: Latents) -> duckdb.DuckDBPyConnection:
    """Raises StoreError where a file is broken."""
    # copies, since the files may be replaced at any time
    copied = {
        "labels": pa.Table.from_pandas(labels_of(store), LABELS.schema, preserve_index=False),
        "label_scores": pa.Table.from_pandas(scores_of(store), LABEL_SCORES.schema, preserve_index=False),
        "annotations": ANNOTATIONS.all(store),
    }
    with _complaining():
        connection = duckdb.connect(config={"threads": 2})
        connection.execute("set enable_progress_bar = false")
        for name in TABLES:
            if not lacks(store.manifest, name):
                connection.execute(f"create view {name} as select * from {tables.source(store.folder, name)}")
        if not lacks(store.manifest, "firings", "vocabulary"):
            connection.execute(TOKENS)
        for name, table in copied.items():
            connection.register("attached", table)
            connection.execute(f"create table {name} as select * from attached")
            connection.unregister("attached")
        for name, sql in VIEWS.items():
            connection.execute(f"create view {name} as {sql}")
        _confine(connection, store.folder)
    return connection


def _hold(connection: duckdb.DuckDBPyConnection, store: Latents) -> None:
    """Raises StoreError where a file is broken."""
    there = [name for name in tables.SCHEMAS["latents"].names if name not in LONG]
    with _complaining(), tables.opened(store.folder, "latents") as file:
        connection.register("read", file.read(there))  # by DuckDB it takes twice as long
        connection.execute("create or replace table latents_briefly as select * from read")
        connection.unregister("read")
        connection.execute(f"create or replace view {BRIEF} as {described('latents_briefly')}")


def select(
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    values: list[Any] | dict[str, Any] | None,
    format: str,
) -> Any:
    """See `FeatureStore.query`."""
    if not isinstance(format, str) or format not in ("pandas", "arrow"):
        message = f"format must be 'pandas' or 'arrow'. Got {format!r}. Pass format='pandas'."
        raise ConfigError(message)
    if not isinstance(sql, str):
        raise StoreError(_complaint(f"a {type(sql).__name__}"))
    with _complaining(), connection.cursor() as cursor:
        _check(cursor, sql)
        cursor.execute("begin transaction read only")
        return _result(cursor, sql, values, format)


def ask(
    connection: duckdb.DuckDBPyConnection, sql: str, values: list[Any] | None = None, format: str = "pandas"
) -> Any:
    """What `select` gives, for statements of the store's own: to look into what they say takes longer than
    to answer them."""
    with _complaining(), connection.cursor() as cursor:
        return _result(cursor, sql, values, format)


def _result(cursor: duckdb.DuckDBPyConnection, sql: str, values: Any, format: str) -> Any:
    # each query has a cursor of its own, so that threads do not meet
    if format == "arrow":
        return cursor.sql(sql, params=values).to_arrow_table()
    return cursor.execute(sql, values).df()


def _confine(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """Leave the database nothing but the store's files, and a folder for what memory does not hold."""
    spill = Path(tempfile.gettempdir()) / f"saelab-query-{uuid.uuid4().hex}"
    weakref.finalize(connection, shutil.rmtree, spill, ignore_errors=True)
    # a pattern that stands for one file is judged by its own letters before that file is
    patterns = [tables.exact(tables.path(folder, name)) for name in TABLES]
    for setting in (
        f"temp_directory = {tables.quoted(spill)}",
        f"allowed_directories = [{tables.quoted(Path(folder).absolute())}]",
        f"allowed_paths = [{', '.join(map(tables.quoted, patterns))}]",
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "python_enable_replacements = false",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"set {setting}")


def _check(cursor: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raises StoreError unless this is one statement that reads."""
    statements = duckdb.extract_statements(sql)
    kind = statements[0].type if len(statements) == 1 else None
    said = sql
    if kind == duckdb.StatementType.EXPLAIN:  # of a SELECT; with ANALYZE it runs what it explains
        said = _EXPLAIN.sub("", sql, count=1)
        inner = duckdb.extract_statements(said)
        kind = inner[0].type if len(inner) == 1 else None
    if kind != duckdb.StatementType.SELECT:
        raise StoreError(_complaint(f"{sql!r}, which is not one SELECT"))
    parsed = cursor.execute("select json_serialize_sql(?::varchar)", [said]).fetchone()
    tree = json.loads(parsed[0]) if parsed else {}
    if tree.get("error", True):
        raise StoreError(_complaint(f"{sql!r}: {tree.get('error_message')}"))
    for node in _objects(tree):
        of = node.get("type")
        if isinstance(of, str) and of.endswith("_NODE") and of not in _NODES:
            raise StoreError(_complaint(f"{sql!r}, which would write"))
        name = node["function"].get("function_name") if of == "TABLE_FUNCTION" else None
        if name is not None and name.lower() not in FUNCTIONS:
            raise StoreError(_complaint(f"{sql!r}, which calls {name}"))


def _objects(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object within JSON."""
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            yield node
            left.extend(node.values())
        elif isinstance(node, list):
            left.extend(node)


@contextlib.contextmanager
def _complaining() -> Iterator[None]:
    try:
        yield
    except (duckdb.Error, TypeError, UnicodeError) as error:
        raise StoreError(_complaint(error)) from error


def _complaint(got: object) -> str:
    return (
        f"A query must be one SELECT over {', '.join(TABLES)}, which reads no other file. Got: {got}. "
        "Correct the query."
    )


__all__ = ["BRIEF", "FUNCTIONS", "TABLES", "Connection", "ask", "select"]
