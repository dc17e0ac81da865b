"""Windows that are made when they are asked for: random ones, those where a latent is silent, documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from saelab.analysis.results import Examples
from saelab.arguments import a_store, an_integer, checked, one_of
from saelab.config import integer
from saelab.layout import Layout
from saelab.stores.records import Example
from saelab.types import RangeError

if TYPE_CHECKING:
    from saelab.stores import FeatureStore

AROUND = 10
"""Positions on each side of the one that is shown."""
MOST = 2_000
"""Positions of a document that are shown at once; of a longer one those around the row."""
GRID = 1_024
"""Positions of a document with a grid, which is shown whole up to so many."""


@checked(
    store=a_store, latent=an_integer(), n=an_integer(), kind=one_of("random", "silent"), seed=an_integer()
)
def drawn_examples(
    store: FeatureStore, latent: int, n: int = 10, kind: str = "random", *, seed: int = 0
) -> Examples:
    """Windows that no one chose by their strength, which is what a hypothesis about a latent is tested on.

    Args:
        store: With the codes of every row.
        latent: Its number.
        n: At most so many.
        kind: "random": rows where it fires, each as likely as any other; "silent": rows that show what sets
            it apart (`FeatureStore.apart`) and where it does not fire.
        seed: Of the drawing.

    Raises:
        RangeError: The latent is out of range.
        StoreError: The store does not have the codes of every row.
    """
    latent = store.latent(latent).latent
    store.need_codes()
    random = np.random.default_rng([seed, latent])
    rows = store.codes(latent)[0]
    if kind == "silent":
        sql = (
            "select row from rows join vocabulary using (shown) where name in (select unnest(?::varchar[])) "
            "order by row"
        )
        names = store.apart.top[latent] or store.apart.bottom[latent]
        shown = store.query(sql, [names], "arrow").column(0).to_numpy()
        rows = np.setdiff1d(shown, rows, assume_unique=True)
    drawn = random.choice(rows, min(n, len(rows)), replace=False) if len(rows) else rows
    return Examples(latent, kind, tuple(_windows(store, latent, drawn.tolist(), kind, AROUND)))


@checked(store=a_store, latent=an_integer())
def whole_document(store: FeatureStore, latent: int, row: int) -> Example:
    """The document of a row, as one window; of one of more than `MOST` positions those around the row.

    Args:
        store: With the codes of every row.
        latent: Whose values they are.
        row: Of the store.

    Raises:
        RangeError: There is no such latent or row.
        StoreError: The store does not have the codes of every row.
    """
    latent = store.latent(latent).latent
    row = integer("row", row, 0, store.n_rows - 1, error=RangeError, remedy="Pass a row of the store.")
    store.need_codes()
    return _windows(store, latent, [row], "whole", MOST // 2)[0]


def _windows(store: FeatureStore, latent: int, rows: Sequence[int], kind: str, around: int) -> list[Example]:
    """A window around each row, as far as its document and call go."""
    sql = (
        "with asked as (select row as at, document, call, position as peak, place from rows join "
        "(select unnest(?::bigint[]) as row, unnest(range(?)) as place) using (row)) "
        "select asked.place, r.row, r.document, r.call, r.position, name, layout from asked "
        "join rows r on r.document = asked.document and r.call = asked.call "
        "join vocabulary using (shown) join documents d on d.document = r.document "
        "where r.position between peak - ? and peak + ? "
        "or (layout like '%grid%' and r.position between peak - ? and peak + ?) "
        "order by asked.place, r.position"
    )
    found = store.query(sql, [list(rows), len(rows), around, around, GRID, GRID])
    fired, values = store.codes(latent)
    out = []
    for place, part in found.groupby("place", sort=True):
        at = part["row"].to_numpy()
        peak = int(np.flatnonzero(at == rows[int(place)])[0])
        layout = Layout.parse(part["layout"].iloc[0])
        grid = any(segment.kind == "grid" for segment in layout.segments)
        if grid and len(at) > GRID:
            low = max(0, min(peak - GRID // 2, len(at) - GRID))
            part, peak = part.iloc[low : low + GRID], peak - low
            at = part["row"].to_numpy()
        where = np.minimum(np.searchsorted(fired, at), max(len(fired) - 1, 0))
        own = np.where(fired[where] == at, values[where], 0) if len(fired) else np.zeros(len(at))
        own = own.astype(np.float32)
        document, call = int(part["document"].iloc[0]), int(part["call"].iloc[0])
        position = part["position"].to_numpy()
        names = part["name"].tolist()
        out.append(
            Example(
                latent, kind, int(place), -1, int(at[peak]), document, int(position[peak]), call,
                float(own[peak]), int(position[0]), names, own,
            )
        )  # fmt: skip
    return out


__all__ = ["drawn_examples", "whole_document"]
