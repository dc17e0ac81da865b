"""Which documents of a store hold a text, a token or a latent, in which order."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from saelab.types import ConfigError, nearest

WAYS = ("text", "token", "latent", "sql")
SORTS = ("document", "rows", "strongest", "firings")


class DocumentsFound(NamedTuple):
    """Documents, in order."""

    documents: np.ndarray
    """int64 [n]: their numbers"""
    score: np.ndarray
    """float64 [n]: what they are sorted by, or for their own order how many rows they have"""
    what: str
    """what the score is, with its unit"""


def find_documents(
    store: Any,
    way: str = "text",
    words: str = "",
    *,
    sort: str = "document",
    latent: int | None = None,
    descending: bool = True,
) -> DocumentsFound:
    """The documents that answer to a question, in an order.

    Args:
        store: A FeatureStore.
        way: "text": those that hold `words`, whatever the case of its letters; "token": those with a row that
            shows just that (or that with spaces around it); "latent": those on which the latent of that
            number fires, of the codes that were kept; "sql": those for which this expression over the table
            `documents` is true.
        words: What is asked; "" gives all.
        sort: "document": by number; "rows": the longest first; "strongest" and "firings": by the largest
            |value| of `latent` in each, and by how many of its rows it fires on.
        latent: By which they are sorted, with the last two.
        descending: The largest first, but of "document" the lowest number.

    Raises:
        StoreError: The expression is none of DuckDB's, or codes are needed and were not kept.
        RangeError: The store has no such latent.
        ConfigError: Another way or order, or no latent to sort by.
    """
    for name, value, known in (("way", way, WAYS), ("sort", sort, SORTS)):
        if not isinstance(value, str) or value not in known:
            message = f"{name} must be one of {', '.join(known)}. Got {value!r}. {nearest(str(value), known)}"
            raise ConfigError(message + f"Pass {name}={known[0]!r}.")
    by_latent = sort in ("strongest", "firings")
    if by_latent and latent is None:
        message = f"sort={sort!r} needs a latent. Got None. Choose one, or pass latent=7."
        raise ConfigError(message)
    documents, rows = _asked(store, way, words)
    score, what = rows.astype(np.float64), "rows"
    if by_latent:
        fired = firings(store, store.latent(latent).latent)
        column = fired["strongest" if sort == "strongest" else "firings"]
        table = dict(zip(fired["document"].tolist(), column.tolist(), strict=True))
        score = np.array([table.get(number, 0.0) for number in documents.tolist()], np.float64)
        what = f"largest |value| of #{latent}" if sort == "strongest" else f"rows on which #{latent} fires"
    key = documents if sort == "document" else -score
    order = np.lexsort((documents, key if descending else -key))
    return DocumentsFound(documents[order], score[order], what)


def firings(store: Any, latent: int) -> dict[str, np.ndarray]:
    """Of the documents on which a latent fires: their numbers (document), its largest |value| (strongest) and
    on how many rows (firings), of the codes that were kept. Raises StoreError where none were.

    Args:
        store: A FeatureStore.
        latent: Which.
    """
    if store.kept == "none":
        store.need_codes()
    sql = (
        "select r.document, max(abs(c.value)) as strongest, count(*) as firings from codes_by_latent c "
        "join rows r using (row) where c.latent = ? group by r.document"
    )
    found = store.query(sql, [latent])
    return {name: found[name].to_numpy() for name in ("document", "strongest", "firings")}


def _asked(store: Any, way: str, words: str) -> tuple[np.ndarray, np.ndarray]:
    """(numbers, rows) of the documents that answer, by number."""
    select = "select document, n_rows from documents"
    values: list[Any] = []
    if not words or (way != "token" and not words.strip()):
        where = "true"
    elif way == "text":
        where, values = "contains(lower(text), lower(?))", [words]
    elif way == "token":
        where = (
            "document in (select r.document from rows r join vocabulary v using (shown) "
            "where v.name = ? or (trim(v.name) = ? and trim(v.name) <> ''))"
        )
        values = [words, words.strip(" ")]
    elif way == "latent":
        number = words.strip().removeprefix("#")
        if not number.isdigit():
            message = f"A latent must be a number. Got {words!r}. Pass e.g. '7'."
            raise ConfigError(message)
        fired = firings(store, store.latent(int(number)).latent)
        where, values = "document in (select unnest(?::bigint[]))", [fired["document"].tolist()]
    else:
        where = f"({words}\n)"
    found = store.query(f"{select} where {where} order by document", values or None)
    return found["document"].to_numpy(), found["n_rows"].to_numpy()


__all__ = ["DocumentsFound", "find_documents", "firings"]
