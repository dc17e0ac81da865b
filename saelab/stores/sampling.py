"""All codes of some rows, drawn so that parts go together, and which latents fire together on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saelab.stores import meetings, tables
from saelab.stores.summaries import at_least, first_of_each

SAMPLE_ROWS = 1 << 16
PARTNERS = 20
GROUP = 1 << 16
"""Rows of a row group of partners."""


class Sample(NamedTuple):
    """All codes of the rows whose draws are the smallest, in order of rows."""

    row: np.ndarray
    """int64 [n]"""
    draw: np.ndarray
    """float64 [n]"""
    indptr: np.ndarray
    """int64 [n + 1]: row i has the codes indptr[i]:indptr[i+1]"""
    latent: np.ndarray
    """int32 [c]"""
    value: np.ndarray
    """float32 [c]"""

    def table(self, with_codes: bool) -> pa.Table:
        """As the table `sample`; its lists are null where the store has all codes anyway."""
        if not with_codes:
            return tables.table("sample", self.row, self.draw, *[[None] * len(self.row)] * 2)
        offsets = pa.array(self.indptr.astype(np.int32))
        latents, values = (pa.ListArray.from_arrays(offsets, pa.array(x)) for x in (self.latent, self.value))
        return tables.table("sample", self.row, self.draw, latents, values)


def smallest(draw: np.ndarray) -> np.ndarray:
    """int64, ascending: the rows with the SAMPLE_ROWS smallest draws, of equals the lower."""
    if len(draw) <= SAMPLE_ROWS:
        return np.arange(len(draw))
    limit = np.partition(draw, SAMPLE_ROWS - 1)[SAMPLE_ROWS - 1]
    below, equal = np.flatnonzero(draw < limit), np.flatnonzero(draw == limit)
    return np.sort(np.r_[below, equal[: SAMPLE_ROWS - len(below)]])


def gather(folder: Path, row: np.ndarray, draw: np.ndarray, n_rows: int) -> Sample:
    """The sample of these rows of a store that has all codes. row: int64 [n], ascending; draw: of each."""
    place = np.full(n_rows, -1, np.int32)
    place[row] = np.arange(len(row))
    found: list[list[np.ndarray]] = [[np.zeros(0, t) for t in (np.int32, np.int32, np.float32)]]
    for batch in tables.batches(folder, "codes_by_row"):
        of, latent, value = (batch.column(i).to_numpy() for i in range(3))
        at = place[of]
        kept = at >= 0
        found.append([at[kept], latent[kept], value[kept]])
    at, latent, value = (np.concatenate(c) for c in zip(*found, strict=True))
    indptr = np.r_[0, np.cumsum(np.bincount(at, minlength=len(row)))]
    return Sample(row, draw, indptr, latent, value)


def read(folder: Path, n_rows: int, all_codes: bool) -> Sample:
    """The sample of a finished store. all_codes: whether it has those of every row."""
    batches = [pa.Table.from_batches([b]) for b in tables.batches(folder, "sample")]
    whole = pa.concat_tables(batches).combine_chunks() if batches else tables.SCHEMAS["sample"].empty_table()
    row, draw = (whole.column(i).to_numpy() for i in range(2))
    if all_codes:
        return gather(folder, row, draw, n_rows)
    lists = whole.column(2).combine_chunks() if len(whole) else pa.array([], pa.list_(pa.int32()))
    sizes = np.asarray(lists.value_lengths(), dtype=np.int64)
    values = whole.column(3).combine_chunks() if len(whole) else pa.array([], pa.list_(pa.float32()))
    return Sample(row, draw, np.r_[0, np.cumsum(sizes)], lists.flatten().to_numpy(),
                  values.flatten().to_numpy())  # fmt: skip


def together(a: Sample, b: Sample) -> Sample:
    """The sample of the rows of both."""
    row, draw = np.r_[a.row, b.row], np.r_[a.draw, b.draw]
    sizes = np.r_[np.diff(a.indptr), np.diff(b.indptr)]
    start = np.r_[a.indptr[:-1], b.indptr[:-1] + len(a.latent)]
    order = np.argsort(row, kind="stable")
    chosen = order[smallest(draw[order])]
    sizes = sizes[chosen]
    indptr = np.r_[0, np.cumsum(sizes)]
    at = np.arange(indptr[-1]) + np.repeat(start[chosen] - indptr[:-1], sizes)
    return Sample(row[chosen], draw[chosen], indptr, np.r_[a.latent, b.latent][at],
                  np.r_[a.value, b.value][at])  # fmt: skip


def write(folder: Path, sample: Sample, d_sae: int, *, with_codes: bool, partners: bool) -> None:
    """The tables `sample`, with_codes or without, and `coactivation`, which stays empty without partners."""
    with tables.writer(folder, "sample") as out:
        out.write_table(sample.table(with_codes))
    with tables.writer(folder, "coactivation") as out:
        if partners:
            _write_partners(out, sample, d_sae)


def _write_partners(out: pq.ParquetWriter, sample: Sample, d_sae: int) -> None:
    """The table `coactivation`: with which latents each fires together most, over the rows of a sample.

    Partners are sorted by Jaccard index, rows where both fire by rows where any of the two does; of equals
    first those of more common rows, then by number. lift: common rows by those expected if the two fired
    independently.
    """
    found = list(_partners(sample, d_sae))
    latent, partner, count, jaccard = (np.concatenate(c) for c in zip(*found, strict=True))
    if d_sae > meetings.MOST:  # found among some others, then among some more
        order = np.lexsort((partner, -count, -jaccard, latent))
        at, rank = first_of_each(order, latent, PARTNERS)
        latent, partner, count, jaccard = (x[at] for x in (latent, partner, count, jaccard))
    alone, n = np.bincount(sample.latent, minlength=d_sae), len(sample.row)
    rank = np.arange(len(latent)) - np.searchsorted(latent, latent)
    lift = count * (n / alone[latent]) / alone[partner]
    columns = latent, rank, partner, count, jaccard, lift
    for first in range(0, max(len(latent), 1), GROUP):
        out.write_table(tables.table("coactivation", *(c[first : first + GROUP] for c in columns)))


def _partners(sample: Sample, d_sae: int) -> Iterator[tuple[np.ndarray, ...]]:
    """(latent, partner, count, Jaccard index) of the best partners of some latents, among some of the others.

    Of all that fire with a latent equally often the rarest have the largest index. So what fires with it once
    is taken from the rarest only.
    """
    from scipy import sparse

    n, alone = len(sample.row), np.bincount(sample.latent, minlength=d_sae)
    ones = np.ones(len(sample.latent), np.int8)
    fires = sparse.csr_array((ones, sample.latent, sample.indptr), shape=(n, d_sae)).tocsc()
    row = np.repeat(np.arange(n), np.diff(sample.indptr))
    rare = np.argsort(alone, kind="stable")
    number = np.argsort(rare)[sample.latent]
    for low in range(0, d_sae, meetings.MOST):
        own = (number >= low) & (number < low + meetings.MOST)
        first, table = meetings.lined(row[own], number[own] - low, n)
        lines = meetings.Lines(low, np.r_[first, len(table)], table)

        def rows(low: int, high: int) -> np.ndarray:
            return fires.indices[fires.indptr[low] : fires.indptr[high]]

        # one more than needed, since a latent is none of its partners
        for met in meetings.meetings(lines, alone, rows, PARTNERS + 1):
            at, partner, count = met.at, rare[met.number], met.together
            jaccard = _jaccard(count, alone, at + met.low, partner)
            bounds = np.searchsorted(at, np.arange(met.high - met.low + 1))
            limit = at_least(jaccard, bounds, PARTNERS)
            some = np.flatnonzero(jaccard >= limit[at])
            once = rare[met.once]
            weak = _jaccard(np.ones(len(once), np.int64), alone, met.at_once + met.low, once)
            more = np.flatnonzero(weak >= limit[met.at_once])
            at, jaccard = np.r_[at[some], met.at_once[more]], np.r_[jaccard[some], weak[more]]
            partner = np.r_[partner[some], once[more]]
            count = np.r_[count[some], np.ones(len(more), np.int64)]
            kept = np.flatnonzero(jaccard > 0)
            order = kept[np.lexsort((partner[kept], -count[kept], -jaccard[kept], at[kept]))]
            best, _ = first_of_each(order, at, PARTNERS)
            yield at[best] + met.low, partner[best], count[best], jaccard[best]


def _jaccard(count: np.ndarray, alone: np.ndarray, latent: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """float64: common rows by those on which any of the two fires; 0 of a latent and itself."""
    found = count / (alone[latent] + alone[partner] - count)
    found[partner == latent] = 0
    return found
