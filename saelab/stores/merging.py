"""Several feature stores as one: everything that a store says is put together from what its parts say."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saelab.stores import manifest as manifests
from saelab.stores import sampling, summaries, tables
from saelab.stores.annotations import ANNOTATIONS, add_annotations
from saelab.stores.directions import NAME as DIRECTIONS
from saelab.stores.feature_fields import KIND
from saelab.stores.feature_writer import choose, document_key
from saelab.stores.features import FeatureStore
from saelab.stores.labels import judged_labels, write_labels
from saelab.stores.lacking import need
from saelab.stores.summary_writer import SummaryWriter, Vocabulary
from saelab.types import CorpusError, Shown, StoreError, short

SAME = (
    "n_latents", "hook", "sae", "subject", "packing", "window", "n_examples", "n_quantile", "seed", "codes"
)  # fmt: skip
OWN = ("format", "kind", "version", "files", "shard", "job", "jobs", "seen", "partners")
AT_ONCE = 64
BLOCK_CODES = 1 << 20
BLOCK_LATENTS = 1_024
GROUP_ROWS = 1 << 18


def merge(
    stores: Sequence[FeatureStore | str | Path], out: str | Path, *, overwrite: bool = False
) -> FeatureStore:
    """One store of the rows of several, as if they had been indexed together; memory does not grow with them.

    Counts, histograms, tokens, examples and sampled rows are exactly those of one pass; sums of values are
    added in another order, which may change their last bit. Stores that `saelab.index(..., shard=(i, n))`
    made of one corpus take their places in it, in whatever order they come; others follow one another, their
    documents and rows being numbered anew.

    Args:
        stores: Stores or their folders.
        out: A folder; it may be one of the stores, with overwrite=True.
        overwrite: Put the result in place of what is at `out`.

    Raises:
        StoreError: The stores are not of the same SAE, subject and options, or hold some documents twice.
        CorpusError: None of them holds a row.
    """
    if isinstance(stores, str) or not isinstance(stores, Sequence):
        message = f"stores must be a list of stores or folders. Got {short(stores)}. Pass [store, other]."
        raise StoreError(message)
    opened = [s if isinstance(s, FeatureStore) else FeatureStore.open(s) for s in stores]
    if not opened:
        message = "merge needs at least one store. Got none. Pass stores or their folders."
        raise StoreError(message)
    with manifests.building(out, overwrite) as folder:
        merge_into(folder, opened, {})
    return FeatureStore.open(out)


def merge_into(
    folder: Path, stores: Sequence[FeatureStore], fields: Mapping[str, Any], *, partners: bool = True
) -> None:
    """Write the files of the merged store into an empty folder. fields: of its manifest, besides those that
    all the stores have. partners: see `FeatureWriter.finish`."""
    check_alike([(str(store.folder), store.manifest) for store in stores])
    with tempfile.TemporaryDirectory(prefix="groups-", dir=folder) as scratch:
        groups = [store for store in stores if store.n_rows]  # a shard may hold none
        if not groups:
            message = "A store must hold rows besides BOS. Got none in any of the stores. Pass longer texts."
            raise CorpusError(message)
        for level in range(64):
            if len(groups) <= AT_ONCE:
                break
            merged = []
            for first in range(0, len(groups), AT_ONCE):
                part = Path(scratch) / f"{level}-{first}"
                part.mkdir()
                some = groups[first : first + AT_ONCE]
                shard = some[0].manifest.get("shard")
                merge_into(part, some, {"shard": shard} if shard else {}, partners=False)
                merged.append(FeatureStore.open(part))
            groups = merged
        try:
            with contextlib.closing(_Merge(folder, groups)) as work:
                work.run(partners)
        except (pa.ArrowException, KeyError, ValueError, IndexError) as error:
            message = (
                f"Stores must be as they were written to be merged. Got {type(error).__name__}: {error}. "
                "Find the one that changed by store.verify()."
            )
            raise StoreError(message) from error
    first = stores[0].manifest
    corpora = list(dict.fromkeys(str(s.manifest["corpus"]) for s in stores))
    digest = hashlib.sha256("".join(corpora).encode()).hexdigest()
    own = {
        **{k: v for k, v in first.items() if k not in OWN},
        **{k: sum(s.manifest[k] for s in stores) for k in ("n_rows", "n_documents", "n_codes")},
        **{k: sum(s.manifest.get(k, 0) for s in stores) for k in ("documents_cut", "tokens_cut")},
        "sample_rows": work.sample_rows,
        "signed": any(s.signed for s in stores),
        "facets": sorted({facet for s in stores for facet in s.facets}),
        "corpus": first["corpus"] if len(corpora) == 1 else digest,
        **fields,
    }
    if (stores[0].folder / DIRECTIONS).exists():
        shutil.copyfile(stores[0].folder / DIRECTIONS, folder / DIRECTIONS)
    manifests.write_manifest(folder, KIND, own)
    for store in stores:
        write_labels(folder, store.n_latents, judged_labels(store))
        add_annotations(folder, store.n_latents, ANNOTATIONS.all(store))


def check_alike(manifests: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Raises StoreError unless stores, each (name, manifest), are of one SAE and subject and made with the
    same options."""
    where, first = manifests[0]
    for _, manifest in manifests:
        need(manifest, "codes_by_latent")
    for name, other in manifests[1:]:
        got = "; ".join(
            f"{k}: {first.get(k)!r} and {other.get(k)!r}" for k in SAME if first.get(k) != other.get(k)
        )
        if got:
            message = (
                f"Stores that are put together must agree in {', '.join(SAME)}. Got {got} in {where} and "
                f"{name}. Index both with the same SAE, subject and options."
            )
            raise StoreError(message)


class _Part:
    """One of the stores: its documents, where they go, and its tables, read from front to back."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        with tables.opened(store.folder, "documents") as file:
            known = file.read(["document", "id", "first_row", "n_rows"])
        self.number, self.first, self.n_rows = (
            known.column(name).to_numpy() for name in ("document", "first_row", "n_rows")
        )
        self.keys = np.array([document_key(id) for id in known.column("id").to_pylist()], dtype=np.uint64)
        # set by `_order`: what is added to the number of each document, and to its rows
        self.offset = 0
        self.shift = np.zeros(len(self.number), np.int64)
        # set by `_vocabulary`: the number in the merged store of what is shown
        self.shown = np.zeros(0, np.int32)
        self._cursors: dict[str, tables.Cursor] = {}

    def cursor(self, name: str) -> tables.Cursor:
        """What reads a table, from where it has come to."""
        if name not in self._cursors:
            self._cursors[name] = tables.Cursor(self.store.folder, name)
        return self._cursors[name]

    def until(self, name: str, limit: int) -> pa.Table:
        """The next rows of a table, those whose first column is below the limit."""
        return self.cursor(name).until(limit)

    def document(self, row: np.ndarray) -> np.ndarray:
        """Which of its documents each row is of."""
        return np.searchsorted(self.first, row, side="right") - 1

    def placed(self, row: np.ndarray) -> np.ndarray:
        """Numbers of rows in the merged store."""
        return row + self.shift[self.document(row)]

    def close(self) -> None:
        for cursor in self._cursors.values():
            cursor.close()


class _Merge:
    def __init__(self, folder: Path, stores: Sequence[FeatureStore]) -> None:
        self.folder = folder
        self.parts = [_Part(store) for store in stores]
        self.manifest = stores[0].manifest
        self.d_sae = stores[0].n_latents
        self.runs = _order(self.parts)
        self.vocabulary = _vocabulary(self.parts)
        self.n_rows = sum(store.n_rows for store in stores)
        self.sample_rows = 0

    def run(self, partners: bool) -> None:
        for name, columns in (("documents", ("document", "first_row")), ("rows", ("document", "row")),
                              ("codes_by_row", ("", "row"))):  # fmt: skip
            self._in_order(name, *columns)
        self._latents()
        self._sample(partners)

    def close(self) -> None:
        for part in self.parts:
            part.close()

    def _in_order(self, name: str, numbered: str, placed: str) -> None:
        """A table that is sorted by document or row. Its columns `numbered` hold numbers of documents,
        `placed` of rows."""
        with tables.writer(self.folder, name) as out:
            waiting: list[pa.Table] = []
            for part, low, high in self.runs:
                # up to the first document of the next run, by its number or its first row
                ends = part.number if name == "documents" else part.first
                limit = int(ends[high]) if high < len(ends) else np.iinfo(np.int64).max
                more = {numbered: part.offset, placed: int(part.shift[low])}
                more = {column: by for column, by in more.items() if column and by}
                for found in part.cursor(name).pieces(limit):  # a run may be all of a part
                    moved = {column: found.column(column).to_numpy() + by for column, by in more.items()}
                    if name == "rows":
                        moved["shown"] = part.shown[found.column("shown").to_numpy()]
                    waiting.append(_with(found, moved))
                    if sum(map(len, waiting)) >= GROUP_ROWS:
                        out.write_table(pa.concat_tables(waiting))
                        waiting = []
            if waiting:
                out.write_table(pa.concat_tables(waiting))

    def _latents(self) -> None:
        """The tables that are sorted by latent."""
        stats = _statistics(self.parts[0].store)
        for part in self.parts[1:]:
            stats = summaries.combined([stats, _statistics(part.store)])
        with (
            SummaryWriter(self.folder, self.n_rows, self.vocabulary) as out,
            tables.writer(self.folder, "codes_by_latent") as codes,
        ):
            for low, high in _blocks(stats.count, BLOCK_LATENTS // len(self.parts)):
                here = summaries.Statistics(*(x[low:high] for x in stats))
                out.add(low, here, self._firings(low, high), self._examples(low, high, here))
                self._codes(high, codes)

    def _codes(self, high: int, out: pq.ParquetWriter) -> None:
        found = []
        for part in self.parts:
            table = part.until("codes_by_latent", high)
            latent, row, value = (table.column(i).to_numpy() for i in range(3))
            found.append([latent, part.placed(row), value])
        latent, row, value = (np.concatenate(c) for c in zip(*found, strict=True))
        order = _by_latent(latent, row)
        if len(order):
            out.write_table(tables.table("codes_by_latent", latent[order], row[order], value[order]))

    def _firings(self, low: int, high: int) -> summaries.ShownCounts:
        found = []
        for part in self.parts:
            table = part.until("firings", high)
            latent, shown, count, negative = (
                table.column(name).to_numpy() for name in ("latent", "shown", "count", "negative")
            )
            found.append([latent - low, part.shown[shown], count, negative])
        latent, shown, count, negative = (np.concatenate(c) for c in zip(*found, strict=True))
        return summaries.shown_counts(latent, shown, count, negative, len(self.vocabulary.names))

    def _examples(self, low: int, high: int, stats: summaries.Statistics) -> Iterator[pa.Table]:
        found, keys = [], []
        for part in self.parts:
            table = part.until("examples", high)
            row = table.column("row").to_numpy()
            document = part.document(row)
            at = (table.column(name).to_numpy() for name in ("position", "call"))
            keys.append(summaries.row_keys(part.keys[document], *at))
            moved = {"row": row + part.shift[document], "document": part.number[document] + part.offset}
            found.append(_with(table, moved))
        table, key = pa.concat_tables(found), np.concatenate(keys)
        latent, row = table.column("latent").to_numpy(), table.column("row").to_numpy()
        order = _by_latent(latent, row)
        key, latent, row = key[order], latent[order], row[order]
        seed, n = self.manifest["seed"], self.manifest["n_examples"]
        draw = summaries.draws(summaries.latent_keys(seed, np.arange(low, high))[latent - low], key)
        kind = table.column("kind").to_numpy(zero_copy_only=False)[order]
        among = {name: kind == name for name in ("bottom", "quantile", "top")}
        keep = {"bottom": n, "quantile": self.manifest["n_quantile"], "top": n}
        value = table.column("value").to_numpy()[order]
        at, _, rank, stratum = choose(latent - low, row, value, draw, stats, among, keep)
        # windows are most of the table: those that are left out are not copied
        yield _with(table.take(pa.array(order[at])), {"rank": rank, "stratum": stratum})

    def _sample(self, partners: bool) -> None:
        sample: sampling.Sample | None = None
        for part in self.parts:
            store = part.store
            mine = sampling.read(store.folder, store.n_rows, store.kept == "full")
            mine = mine._replace(row=part.placed(mine.row))
            sample = mine if sample is None else sampling.together(sample, mine)
        assert sample is not None
        self.sample_rows = len(sample.row)
        with_codes = self.manifest["codes"] != "full"
        sampling.write(self.folder, sample, self.d_sae, with_codes=with_codes, partners=partners)


def _by_latent(latent: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The order by latent, then row, of what each part has in that order: a stable sort merges the runs."""
    bits = int(row.max(initial=0)).bit_length()
    return np.argsort((latent.astype(np.int64) << bits) | row, kind="stable")


def _with(table: pa.Table, columns: Mapping[str, np.ndarray]) -> pa.Table:
    """The table with other numbers in some columns."""
    for name, numbers in columns.items():
        at = table.schema.get_field_index(name)
        field = table.schema.field(at)
        table = table.set_column(at, field, pa.array(numbers, field.type))
    return table


def _order(parts: list[_Part]) -> list[tuple[_Part, int, int]]:
    """Sets where the documents and rows of each part go; gives the runs (part, low, high) of documents
    low..high-1 that follow one another in the merged store."""
    of = np.repeat(np.arange(len(parts)), [len(p.number) for p in parts])
    local = np.concatenate([np.arange(len(p.number)) for p in parts])
    number = np.concatenate([p.number for p in parts])
    n_rows = np.concatenate([p.n_rows for p in parts])
    one_corpus = len({p.store.manifest["corpus"] for p in parts}) == 1
    sharded = all("shard" in p.store.manifest for p in parts)
    if one_corpus and sharded:
        order = np.argsort(number, kind="stable")
        if (np.diff(number[order]) == 0).any():
            twice = int(number[order][:-1][np.diff(number[order]) == 0][0])
            message = (
                f"Shards that are merged must hold each document once. Got document {twice} twice. Pass each "
                "shard once."
            )
            raise StoreError(message)
    else:
        order = np.arange(len(number))
        total = 0
        for part in parts:
            part.offset = total - int(part.number[0])
            total += int(part.number[-1] - part.number[0]) + 1
    first = np.empty(len(order), np.int64)
    first[order] = np.cumsum(n_rows[order]) - n_rows[order]
    for i, part in enumerate(parts):
        part.shift = first[of == i] - part.first
    cuts = np.flatnonzero(np.r_[True, np.diff(of[order]) != 0, True])
    return [
        (parts[of[order[low]]], int(local[order[low]]), int(local[order[high - 1]]) + 1)
        for low, high in itertools.pairwise(cuts)
    ]


def _statistics(store: FeatureStore) -> summaries.Statistics:
    with tables.opened(store.folder, "latents") as file:
        names = [n for n in summaries.Statistics._fields if n != "histogram"]
        columns = file.read([*names, "histogram"])
    histogram = columns.column("histogram").combine_chunks().flatten().to_numpy()
    known = {name: columns.column(name).to_numpy() for name in names}
    return summaries.Statistics(**known, histogram=histogram.reshape(store.n_latents, summaries.BINS))


def _vocabulary(parts: Sequence[_Part]) -> Vocabulary:
    """What the rows of all parts show; sets the numbers that each part's own have in it."""
    total: dict[Shown, int] = {}
    known = []
    for part in parts:
        with tables.opened(part.store.folder, "vocabulary") as file:
            found = file.read().to_pydict()
        known.append([Shown(*each) for each in zip(found["facet"], found["name"], strict=True)])
        for shown, count in zip(known[-1], found["count"], strict=True):
            total[shown] = total.get(shown, 0) + count
    number = {shown: i for i, shown in enumerate(sorted(total))}
    for part, own in zip(parts, known, strict=True):
        part.shown = np.array([number[shown] for shown in own], dtype=np.int32)
    return Vocabulary.of(total)


def _blocks(count: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """(low, high) of blocks of latents: at most `most`, and of about BLOCK_CODES codes where one latent has
    no more."""
    codes = np.r_[0, np.cumsum(count)]
    low = 0
    while low < len(count):
        high = int(np.searchsorted(codes, codes[low] + BLOCK_CODES, side="right")) - 1
        high = min(max(high, low + 1), low + max(most, 1), len(count))
        yield low, high
        low = high
