"""Writes a feature store: rows and codes as they come, then one sort and one pass over the latents."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from saelab.files import claim
from saelab.layout import Layout
from saelab.stores import manifest as manifests
from saelab.stores import sampling, summaries, tables
from saelab.stores.feature_fields import KIND, kept_share
from saelab.stores.records import DocumentRecord
from saelab.stores.summary_writer import GROUPS, SummaryWriter, Vocabulary
from saelab.types import Codes, CorpusError, NonFiniteError, ShapeError, Shown, StoreError

SORT_MEMORY = "768MB"
HELD_CODES = 1 << 23
"""So many are kept in memory until they are sorted: 100 MB. More are sorted from disk."""
GROUP_CODES = 122_880
"""Rows of a row group of sorted codes."""
BLOCK_CODES = 400_000
SCRATCH = ("shown", "stretch", "position", "id")


class StoredRows(NamedTuple):
    """Rows of whole documents, in order."""

    origin: np.ndarray
    """int64 [n 3]: (document, position, call); of a document call by call"""
    shown: np.ndarray
    """int [n]: what each shows, a number in `vocabulary`"""
    vocabulary: Sequence[Shown]
    ids: np.ndarray
    """int [n]: the subject's own number of what each shows, -1 where it has none"""


class FeatureWriter:
    """Fills a folder of a store: `add` for each batch, then `finish`, at last `close`.

    d_sae: latents. window: tokens shown before and after a firing. n_examples: strongest windows of each
    pole of a latent; n_quantile: windows spread over the range of its |value|s, chosen by `seed`. codes:
    which are kept, see `kept_share`.
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
        codes: str = "full",
    ) -> None:
        self.folder, self.d_sae, self.seed, self.codes = folder, d_sae, seed, codes
        self.window, self.n_examples, self.n_quantile = window, n_examples, n_quantile
        self.n_rows = self.n_documents = self.n_codes = 0
        self.signed = False  # until a code is negative
        # what the windows need of each row, as raw numbers that are mapped rather than loaded
        self._scratch = folder / "scratch"
        self._scratch.mkdir()
        self._raw = {name: (self._scratch / name).open("wb") for name in SCRATCH}
        self._stretches = _Stretches()
        self._vocabulary: dict[Shown, int] = {}
        self._held: list[Codes] | None = []
        self._files = {name: tables.writer(folder, name) for name in ("codes_by_row", "documents")}

    def add(self, codes: Codes, rows: StoredRows, documents: Sequence[DocumentRecord]) -> None:
        """Append the rows of whole documents.

        Args:
            codes: of the rows.
            rows: in the order of the documents.
            documents: all of them, in order.

        Raises:
            ShapeError: The codes are of other rows or latents.
            NonFiniteError: Codes that are NaN or infinite.
        """
        self._check(codes, rows, documents)
        of_document, position, _ = rows.origin.T
        n, row = len(of_document), codes.row_ids() + self.n_rows
        wanted = np.array([d.document for d in documents], dtype=np.int64)
        starts = np.searchsorted(of_document, wanted, side="left")
        stops = np.searchsorted(of_document, wanted, side="right")
        # numbers in the order in which things are first shown; sorted at the end
        used, at = np.unique(rows.shown, return_inverse=True)
        named = (Shown(*rows.vocabulary[i]) for i in used.tolist())
        own = [self._vocabulary.setdefault(each, len(self._vocabulary)) for each in named]
        shown = np.array(own, dtype=np.int32)[at] if n else np.zeros(0, np.int32)
        columns = {
            "codes_by_row": (row, codes.indices, codes.values),
            "documents": (*zip(*documents, strict=True), starts + self.n_rows, stops - starts),
        }
        for name, file in self._files.items():
            file.write_table(tables.table(name, *columns[name]))
        stretch = self._stretches.add(rows.origin, documents, self.n_rows)
        for name, values in zip(SCRATCH, (shown, stretch, position, rows.ids), strict=True):
            self._raw[name].write(np.asarray(values, dtype=np.int32).tobytes())
        self.n_rows += n
        self.n_documents += len(documents)
        self.n_codes += len(row)
        if self._held is not None:
            self._held.append(codes)
            if self.n_codes > HELD_CODES:
                self._held = None
        self.signed = self.signed or bool((codes.values < 0).any())

    def finish(self, fields: Mapping[str, Any], *, partners: bool = True) -> None:
        """Sort the codes by latent, summarise them, write the manifest.

        fields: more of the manifest. partners: whether to count which latents fire together, which is of no
        use in a part that is merged. Raises CorpusError where no row was added, unless it is one of several
        shards, of which there may be more than the corpus has stretches; StoreError where the sort cannot be
        written.
        """
        if not self.n_rows and not fields.get("shard"):
            message = "A corpus must hold rows besides BOS. Got none. Pass longer texts."
            raise CorpusError(message)
        self.close()
        self._sort()
        rows = _Rows(self._scratch, self._stretches)
        vocabulary = self._sorted_vocabulary(rows)
        draw, share = rows.draws(self.seed), kept_share(self.codes)
        with ThreadPoolExecutor(1) as beside:  # most of both is done without Python's lock
            sampled = beside.submit(self._sample, draw, share < 1, partners)
            self._write_rows(rows)
            self._summarise(rows, vocabulary)
            n_sampled = sampled.result()
        if share < 1:
            for name in ("codes_by_latent", "codes_by_row"):
                self._keep(name, draw < share)
        del rows
        shutil.rmtree(self._scratch)
        own = {
            "n_rows": self.n_rows,
            "n_latents": self.d_sae,
            "n_documents": self.n_documents,
            "n_codes": self.n_codes,
            "codes": self.codes,
            "sample_rows": n_sampled,
            "window": list(self.window),
            "n_examples": self.n_examples,
            "n_quantile": self.n_quantile,
            "seed": self.seed,
            "signed": self.signed,
            "facets": sorted(set(vocabulary.facets)),
        }
        if not partners:
            own["partners"] = False
        manifests.write_manifest(self.folder, KIND, {**own, **fields})

    def close(self) -> None:
        """Let go of all files; without `finish` the store stays incomplete."""
        for open_file in (*self._raw.values(), *self._files.values()):
            open_file.close()

    def _check(self, codes: Codes, rows: StoredRows, documents: Sequence[DocumentRecord]) -> None:
        n = len(rows.origin)
        if codes.d_sae != self.d_sae or len(codes) != n:
            message = (
                f"Codes must be those of {n} rows by d_sae={self.d_sae} latents. "
                f"Got {len(codes)} by {codes.d_sae}. Encode the rows of the batch with the SAE of the store."
            )
            raise ShapeError(message)
        bad = ~np.isfinite(codes.values)
        if bad.any():
            row = rows.origin[codes.row_ids()[bad][0]]
            name = next(d.id for d in documents if d.document == row[0])
            message = (
                f"Codes must be finite. Got {bad.sum()} NaN or infinite values, the first in document "
                f"{name!r} at position {row[1]}. Check the SAE's weights, or encode in float32."
            )
            raise NonFiniteError(message)

    def _sort(self) -> None:
        """Writes codes_by_latent."""
        if self._held is None:
            self._sort_on_disk()
            return
        from scipy import sparse

        held, self._held = self._held, None
        values = np.concatenate([np.zeros(0, np.float32), *(codes.values for codes in held)])
        latents = np.concatenate([np.zeros(0, np.int32), *(codes.indices for codes in held)])
        indptr = np.cumsum(np.concatenate([np.zeros(1, np.int32), *(codes.l0 for codes in held)]))
        del held
        by_row = (values, latents, indptr.astype(np.int32))
        # from rows to columns is a sort that only counts
        sorted_codes = sparse.csr_array(by_row, shape=(self.n_rows, self.d_sae)).tocsc()
        latent = np.repeat(np.arange(self.d_sae, dtype=np.int32), np.diff(sorted_codes.indptr))
        with tables.writer(self.folder, "codes_by_latent") as file:
            for first in range(0, self.n_codes, GROUP_CODES):
                span = slice(first, first + GROUP_CODES)
                columns = latent[span], sorted_codes.indices[span], sorted_codes.data[span]
                file.write_table(tables.table("codes_by_latent", *columns), GROUP_CODES)

    def _sort_on_disk(self) -> None:
        """The same out of codes_by_row, which DuckDB spills to disk where memory does not suffice."""
        source = tables.source(self.folder, "codes_by_row")
        target = tables.quoted(tables.path(self.folder, "codes_by_latent"))
        select = f"select latent, row, value from {source} order by latent, row"
        try:
            with duckdb.connect() as connection:
                connection.execute(f"set memory_limit = '{SORT_MEMORY}'")
                connection.execute("set enable_progress_bar = false")
                connection.execute(f"set temp_directory = {tables.quoted(self._scratch / 'spill')}")
                connection.execute(
                    f"copy ({select}) to {target} (format parquet, compression zstd, parquet_version v2)"
                )
        except duckdb.Error as error:
            message = (
                f"{self.n_codes:,} codes must be sorted on disk. Got: {error}. Free some space or memory, "
                "or pass a smaller max_rows."
            )
            raise StoreError(message) from error

    def _sample(self, draw: np.ndarray, with_codes: bool, partners: bool) -> int:
        """Writes the sample and coactivation; gives how many rows it has. draw: float64 [n_rows]."""
        chosen = sampling.smallest(draw)
        sample = sampling.gather(self.folder, chosen, draw[chosen], self.n_rows)
        sampling.write(self.folder, sample, self.d_sae, with_codes=with_codes, partners=partners)
        return len(chosen)

    def _sorted_vocabulary(self, rows: _Rows) -> Vocabulary:
        """What rows show, in its final order, to which the rows are renumbered."""
        known = list(self._vocabulary)
        place = np.empty(len(known), np.int32)
        place[sorted(range(len(known)), key=known.__getitem__)] = np.arange(len(known), dtype=np.int32)
        counts = np.bincount(rows.shown, minlength=len(known))
        rows.renumber(place)
        return Vocabulary.of(dict(zip(known, counts.tolist(), strict=True)))

    def _write_rows(self, rows: _Rows) -> None:
        with tables.writer(self.folder, "rows") as file:
            for first in range(0, self.n_rows, BLOCK_CODES):
                number = np.arange(first, min(first + BLOCK_CODES, self.n_rows))
                of = rows.stretch[number]
                columns = (rows.number[of], rows.position[number], rows.call[of], rows.shown[number])
                file.write_table(tables.table("rows", number, *columns, rows.id[number]))

    def _summarise(self, rows: _Rows, vocabulary: Vocabulary) -> None:
        """codes_by_latent -> what is said of each latent: a bounded number of codes at a time."""
        n_shown, names = len(vocabulary.names), pa.array(vocabulary.names, pa.string())
        with SummaryWriter(self.folder, self.n_rows, vocabulary) as out:
            for low, high, latent, row, value in self._blocks():
                fired, n = latent - low, high - low
                counts = summaries.shown_counts(fired, rows.shown[row], None, value < 0, n_shown)
                stats = summaries.statistics(fired, value, n)
                examples = self._examples(low, stats, latent, row, value, rows, names)
                out.add(low, stats, counts, examples)

    def _blocks(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]]:
        """(low, high, latent, row, value): all codes of latents low..high-1, about BLOCK_CODES at a time."""
        low, size = 0, 0
        waiting: list[list[np.ndarray]] = [[np.zeros(0, t) for t in (np.int32, np.int64, np.float32)]]
        for batch in tables.batches(self.folder, "codes_by_latent", BLOCK_CODES):
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

    def _examples(
        self,
        low: int,
        stats: summaries.Statistics,
        latent: np.ndarray,
        row: np.ndarray,
        value: np.ndarray,
        rows: _Rows,
        names: pa.Array,
    ) -> Iterator[pa.Table]:
        """The table `examples` of one block's codes."""
        keys = summaries.latent_keys(self.seed, np.arange(low, low + len(stats.count)))
        draw = summaries.draws(keys[latent - low], rows.keys(row))
        among = {"bottom": value < 0, "quantile": value != 0, "top": value > 0}
        keep = {"bottom": self.n_examples, "quantile": self.n_quantile, "top": self.n_examples}
        at, *columns = choose(latent - low, row, value, draw, stats, among, keep)
        for some in range(0, len(at), GROUPS["examples"]):
            span = slice(some, some + GROUPS["examples"])
            chosen = at[span]
            stretch = rows.stretch[row[chosen]]
            begin, end = rows.windows(row[chosen], self.window)
            offsets, shown = summaries.stretches(begin, end)
            of = np.repeat(latent[chosen], np.diff(offsets))
            own = slice(*np.searchsorted(latent, (of[0], of[-1] + 1)))
            values = summaries.values_at(latent[own], row[own], value[own], of, shown)
            window_names = names.take(pa.array(rows.shown[shown]))
            yield tables.table(
                "examples",
                latent[chosen],
                *(c[span] for c in columns),
                row[chosen],
                rows.number[stretch],
                rows.position[row[chosen]],
                rows.call[stretch],
                value[chosen],
                rows.position[begin],
                pa.ListArray.from_arrays(offsets, window_names),
                pa.ListArray.from_arrays(offsets, pa.array(values, pa.float32())),
            )

    def _keep(self, name: str, kept: np.ndarray) -> None:
        """Leave only the codes of some rows in a table. kept: bool [n_rows]."""
        with tables.writer(self._scratch, name) as file:
            for batch in tables.batches(self.folder, name) if kept.any() else ():
                file.write_batch(batch.filter(pa.array(kept[batch.column("row").to_numpy()])))
        tables.path(self._scratch, name).replace(tables.path(self.folder, name))


def choose(
    fired: np.ndarray,
    row: np.ndarray,
    value: np.ndarray,
    draw: np.ndarray,
    stats: summaries.Statistics,
    among: Mapping[str, np.ndarray],
    keep: Mapping[str, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(code number, kind, rank, stratum) of every example of a block, sorted by latent, kind, rank.

    draw: float64 [c]. stats: of the block. among: bool [c] of each kind in order, which codes it is chosen
    from; keep: how many of a latent.
    """
    found = []
    for kind, some in among.items():
        which = np.flatnonzero(some)
        mine = fired[which], row[which], value[which]
        if kind == "quantile":
            at, rank, stratum = summaries.spread(*mine, draw[which], stats.min_abs, stats.max_abs, keep[kind])
        else:
            at, rank = summaries.strongest(mine[0], mine[2], len(stats.count), keep[kind])
            stratum = np.full(len(at), -1)
        found.append((which[at], np.full(len(at), kind, dtype=object), rank, stratum))
    at, kinds, rank, stratum = (np.concatenate(c) for c in zip(*found, strict=True))
    order = np.argsort(fired[at], kind="stable")
    return at[order], kinds[order], rank[order].astype(np.int32), stratum[order].astype(np.int32)


class _Stretches:
    """Neighbouring rows of one document and call, which windows do not leave."""

    def __init__(self) -> None:
        self.n = 0
        self._found: list[list[np.ndarray]] = []
        self.layouts: dict[str, int] = {}

    def add(self, origin: np.ndarray, documents: Sequence[DocumentRecord], offset: int) -> np.ndarray:
        """The number of the stretch of each row [n]; rows are counted from `offset` on."""
        document, _, call = origin.T
        change = (np.diff(document) != 0) | (np.diff(call) != 0)
        first = np.flatnonzero(np.r_[True, change])[: len(origin)]
        last = np.r_[first[1:] - 1, len(origin) - 1][: len(first)]
        by_number = {d.document: i for i, d in enumerate(documents)}
        of = np.array([by_number[number] for number in document[first].tolist()], dtype=np.int64)
        keys = np.array([document_key(d.id) for d in documents], dtype=np.uint64)
        kinds = [self.layouts.setdefault(d.layout, len(self.layouts)) for d in documents]
        layout = np.array(kinds, dtype=np.int64)[of]
        columns = [document[first], call[first], keys[of], first + offset, last + offset, layout]
        self._found.append(columns)
        numbers = self.n + np.cumsum(np.r_[0, change])[: len(origin)]
        self.n += len(first)
        return numbers

    def columns(self) -> list[np.ndarray]:
        """number of the document, call, key of the document, first row, last row, number of the layout."""
        nothing = [
            np.zeros(0, kind) for kind in (np.int64, np.int64, np.uint64, np.int64, np.int64, np.int64)
        ]
        return [np.concatenate(c) for c in zip(*(self._found or [nothing]), strict=True)]


class _Rows:
    """What is known of each row and document that was added; rows are mapped from disk."""

    def __init__(self, scratch: Path, stretches: _Stretches) -> None:
        self._scratch = scratch
        self.shown, self.stretch, self.position, self.id = (_mapped(scratch / name, "r") for name in SCRATCH)
        self.number, self.call, self._keys, self.first, self.last, self._layout = stretches.columns()
        self._layouts = [Layout.parse(text) for text in stretches.layouts]
        self._grids = np.array([any(s.kind == "grid" for s in layout.segments) for layout in self._layouts])

    def renumber(self, place: np.ndarray) -> None:
        """What is shown has other numbers from now on: place[old]."""
        claim(self._scratch / "shown", self.shown.nbytes)
        numbers = _mapped(self._scratch / "shown", "r+")
        for first in range(0, len(numbers), BLOCK_CODES):
            span = slice(first, first + BLOCK_CODES)
            numbers[span] = place[numbers[span]]
        self.shown = numbers

    def windows(self, row: np.ndarray, window: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """(first row, row after the last) of what is shown around each of these rows."""
        of = self.stretch[row]
        first, last = self.first[of], self.last[of]
        start, stop = np.maximum(row - window[0], first), np.minimum(row + window[1], last) + 1
        for i in np.flatnonzero(self._grids[self._layout[of]]):
            # a picture is shown whole, or the rows of it around the firing
            at = self.position[first[i] : last[i] + 1]
            low, high = self._layouts[self._layout[of[i]]].window(
                int(self.position[row[i]]), *window, int(at[-1]) + 1
            )
            start[i] = first[i] + np.searchsorted(at, low)
            stop[i] = first[i] + np.searchsorted(at, high, side="right")
        return start, stop

    def keys(self, row: np.ndarray) -> np.ndarray:
        """uint64: see `summaries.row_keys`."""
        of = self.stretch[row]
        return summaries.row_keys(self._keys[of], self.position[row], self.call[of])

    def draws(self, seed: int) -> np.ndarray:
        """float64 [n_rows]: the draws by which whole rows are sampled."""
        key, n = summaries.row_draw_key(seed), len(self.shown)
        return np.concatenate(
            [
                summaries.draws(key, self.keys(np.arange(first, min(first + BLOCK_CODES, n))))
                for first in range(0, max(n, 1), BLOCK_CODES)
            ]
        )


def _mapped(path: Path, mode: Literal["r", "r+"]) -> np.ndarray:
    """int32 numbers of a file; there is no mapping of nothing."""
    return np.memmap(path, np.int32, mode) if path.stat().st_size else np.zeros(0, np.int32)


def document_key(id: str) -> int:
    """A document's own number, from its id alone: so draws do not depend on where a part of it lies."""
    return int.from_bytes(hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest())
