"""Latents by SQL: which ones an expression is true of, and what it is for each of them.

An expression is read over the table `described`: the columns of `latents` with the newest label and note, the
tags and the lists. It may ask the other tables in brackets, as in
`latent in (select latent from tokens where token = ' cat' and lift > 10)`, and like any query of a store it
reads and changes nothing (see `queries`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from saelab.stores.protocol import Latents
from saelab.stores.queries import BRIEF
from saelab.types import ConfigError, StoreError, short

FILTER, COLUMN = "A filter", "A column"
OWN = """(
    select d.* replace (case when o.latent is null then d.label else nullif(o.label, '') end as label)
    from {} d left join (select unnest(?::int[]) as latent, unnest(?::varchar[]) as label) o using (latent)
)"""
"""A table of latents whose labels are others."""
MOST_LETTERS = 2_000
"""Of an expression, at most."""


def columns(store: Latents) -> dict[str, str]:
    """Name -> SQL type of what an expression may speak of.

    Args:
        store: Whose latents. What most expressions speak of is in memory then.
    """
    store.query(f"select 1 from {BRIEF} limit 0")
    found = store.query("describe described")
    return dict(zip(found["column_name"], found["column_type"], strict=True))


def where(store: Latents, condition: str, labels: Mapping[int, str] | None = None) -> np.ndarray:
    """The latents of which a condition is true.

    Args:
        store: Whose.
        condition: An expression, such as `density < 0.01 and 'to check' in tags`.
        labels: Latent -> label, on top of those of the store; "" for none.

    Returns:
        int64, ascending.

    Raises:
        ConfigError: It is no such expression; the message has what DuckDB says of it.
    """
    inside = _within(condition, FILTER)
    sql = f"where ({inside}) order by latent"
    found = _asked(store, "select latent", sql, FILTER, inside, labels)
    latents = found.column(0).to_numpy() if found.num_columns == 1 else np.zeros(1)
    if not np.issubdtype(latents.dtype, np.integer) or not _are_latents(latents, store.n_latents):
        raise _refused(FILTER, inside, "which is more than one expression")
    return latents.astype(np.int64)


def column(store: Latents, expression: str, labels: Mapping[int, str] | None = None) -> np.ndarray:
    """What an expression is, latent by latent.

    Args:
        store: Whose latents.
        expression: Such as `max / mean`, `label` or `len(tags)`.
        labels: Latent -> label, on top of those of the store; "" for none.

    Returns:
        [n_latents]: float64 of numbers, times apart (NaN where there is none); of everything else str, ""
        where there is none; the members of a list are joined by commas.

    Raises:
        ConfigError: It is no such expression; the message has what DuckDB says of it.
    """
    values = typed(store, expression, labels)
    kind = values.type
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return np.array(values.cast(pa.float64()).to_pandas(), np.float64)
    if pa.types.is_decimal(kind):
        return np.array([np.nan if v is None else float(v) for v in values.to_pylist()])
    return np.array(["" if v is None else _told(v) for v in values.to_pylist()], dtype=object)


def typed(store: Latents, expression: str, labels: Mapping[int, str] | None = None) -> pa.ChunkedArray:
    """What an expression is, latent by latent, with the type that it has.

    Args:
        store: Whose latents.
        expression: As for `column`.
        labels: As for `column`.

    Returns:
        [n_latents], null where there is none.

    Raises:
        ConfigError: It is no such expression; the message has what DuckDB says of it.
    """
    inside = _within(expression, COLUMN)
    found = _asked(store, f"select latent, ({inside}) as value", "order by latent", COLUMN, inside, labels)
    if found.num_columns != 2 or not _is_all(found.column(0), store.n_latents):
        raise _refused(COLUMN, inside, "which is not one value for each latent")
    return found.column(1)


def _within(expression: Any, what: str) -> str:
    """An expression that can stand in brackets. Raises ConfigError."""
    if not isinstance(expression, str) or not expression.strip():
        raise _refused(what, expression, "which is empty or no text")
    if len(expression) > MOST_LETTERS:
        raise _refused(what, expression[:60] + "…", f"of more than {MOST_LETTERS:,} letters")
    return f"{expression.strip()}\n"  # a comment at its end must not take the bracket along


def _asked(
    store: Latents, select: str, rest: str, what: str, inside: str, labels: Mapping[int, str] | None
) -> pa.Table:
    table, values = "{}", []
    if labels:
        table, values = OWN, [list(labels), list(labels.values())]

    def asked(described: str) -> pa.Table:
        sql = f"{select} from {table.format(described)} as described {rest}"
        return store.query(sql, values, format="arrow")

    with contextlib.suppress(StoreError):  # most expressions speak of no histogram
        return asked(BRIEF)
    try:
        return asked("described")
    except StoreError as error:
        said = str(error.__cause__ or "it asks for what a query of a store may not read")
        raise _refused(what, inside, said.partition("\n\nLINE")[0]) from error


def _refused(what: str, got: Any, why: str) -> ConfigError:
    got = got.strip() if isinstance(got, str) else got
    message = (
        f"{what} must be one SQL expression over the columns of latents. Got {short(got, 80)}: "
        f"{' '.join(why.split()).rstrip('.!?')}. "
        'Pass e.g. "density < 0.01".'
    )
    return ConfigError(message)


def _are_latents(found: np.ndarray, n: int) -> bool:
    return bool((np.diff(found) > 0).all()) and (not len(found) or (found[0] >= 0 and found[-1] < n))


def _is_all(found: pa.ChunkedArray, n: int) -> bool:
    return pa.types.is_integer(found.type) and np.array_equal(found.to_numpy(), np.arange(n))


def _told(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


__all__ = ["column", "columns", "where"]
