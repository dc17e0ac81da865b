"""Feature stores that were asked, made or kept wrongly: an error that tells, and nothing half-written."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from letters import ALWAYS, N_LATENTS, TEXTS, Letters, Planted

import saelab
from saelab.stores import FeatureStore, feature_writer
from saelab.stores.queries import TABLES
from saelab.types import (
    ConfigError,
    CorpusError,
    HookError,
    HookPoint,
    NonFiniteError,
    RangeError,
    ShapeError,
    StoreError,
)


@pytest.fixture(scope="module")
def parts():
    return Letters(), Planted()


@pytest.fixture(scope="module")
def store(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "s"
    return saelab.index(*parts, TEXTS, folder, n_quantile=12, progress=False)


# ---- wrong questions -------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", [-1, 12, 1.0, True, None, "3", np.float32(1), np.bool_(True), 2**70])
def test_latents_out_of_range(store, latent):
    for ask in (store.latent, store.examples, store.codes):
        with pytest.raises(RangeError, match=r"latent must be an integer in 0\.\.11\. Got"):
            ask(latent)
    with pytest.raises(IndexError):
        store.latent(latent)


def test_numpy_integers_are_latents(store):
    assert store.latent(np.int32(3)).latent == 3
    assert [e.row for e in store.examples(np.uint8(3))] == [e.row for e in store.examples(3)]
    assert store.rows(np.int64(2)).row == 2


@pytest.mark.parametrize("row", [-1, 10_000, 0.0, True, None])
def test_rows_out_of_range(store, row):
    with pytest.raises(RangeError, match="row must be an integer"):
        store.rows(row)


@pytest.mark.parametrize("kind", ["tops", "", None, 3])
def test_unknown_kind(store, kind):
    with pytest.raises(StoreError, match="kind must be one of 'top', 'bottom', 'quantile'"):
        store.examples(0, kind=kind)


@pytest.mark.parametrize("n", [-1, 1.5, None, True])
def test_a_wrong_number_of_examples(store, n):
    with pytest.raises(RangeError, match="n must be an integer"):
        store.examples(0, n=n)


def test_some_of_the_quantile_examples_reach_over_the_range(store):
    whole = [e.row for e in store.examples(ALWAYS, n=12, kind="quantile")]
    some = [e.row for e in store.examples(ALWAYS, n=4, kind="quantile")]
    assert (some[0], some[-1], len(some)) == (whole[0], whole[-1], 4)
    assert some == [r for r in whole if r in some]
    assert store.examples(ALWAYS, n=0, kind="quantile") == store.examples(ALWAYS, n=0) == []


@pytest.mark.parametrize(
    "sql",
    ["selec", "select * from nowhere", "select nothing from rows", "", "drop view rows", "select 1; select 2",
     "copy rows to 'x.parquet'", "attach 'x.db'", "create table x as from rows", "set threads = 9", 3, None],
)  # fmt: skip
def test_queries_that_are_wrong_or_write(store, sql, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="one SELECT over latents, firings, vocabulary, examples"):
        store.query(sql)
    assert list(tmp_path.iterdir()) == []
    assert len(store.query("with a as (from latents) select * from a")) == N_LATENTS


def test_a_query_reads_and_changes_nothing_else(parts, tmp_path, monkeypatch):
    """Whatever else DuckDB can do, of its statements and its functions, in words or in ANALYZE or WITH."""
    inside = tmp_path / "s"
    saelab.index(*parts, TEXTS, inside, progress=False)
    (tmp_path / "secret.txt").write_text("secret")
    shutil.copy(inside / "latents.parquet", tmp_path / "other.parquet")
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    store = FeatureStore.open(inside)
    hidden = 5  # a name that a query could take
    writes = [f"copy (select 1 as latent) to '{inside}/{name}'" for name in ("latents.parquet", "new.csv")]
    for sql in (
        *writes,
        *(f"explain analyze {sql}" for sql in writes),
        *(f"explain (analyze) {sql}" for sql in writes),
        *(f"/**/ explain analyze /* select */ {sql}" for sql in writes),
        *(f"with x as ({sql}) select 1" for sql in writes),
        *(f"explain analyze with x as ({sql}) select 1" for sql in writes),
        *(f"select * from (with x as ({sql}) select 1)" for sql in writes),
        "explain analyze drop view rows", "explain analyze create table x as from rows",
        "explain select 1; select 2",
        "with x as (delete from labels returning *) select * from x",
        "with x as (insert into labels values (1, 'a', 'b') returning *) select * from x",
        "with x as (update labels set label = 'x' returning *) select * from x",
        f"select * from read_text('{tmp_path}/secret.txt')", "select * from read_text('secret.txt')",
        f"select * from read_text('{inside}/../secret.txt')",
        f"from read_parquet('{tmp_path}/other.parquet')",
        f"from '{tmp_path}/other.parquet'", "from 'other.parquet'", f"from '{inside}/../other.parquet'",
        f"select * from glob('{tmp_path}/*')", f"select * from read_blob('{tmp_path}/*')",
        "select * from read_csv('secret.txt')", "select * from sniff_csv('secret.txt')",
        "attach 'x.db'", "explain analyze attach 'x.db'", "install httpfs", "load httpfs", "set threads = 3",
        "reset threads", "pragma threads = 3", "pragma database_list", "call pragma_version()", "checkpoint",
        "use memory", "begin", "commit", "prepare x as select 1", "execute x", "export database 'x'",
        "vacuum", "create macro f() as 1", "pivot rows on call", "select * from hidden",
        "select * from query('select 1')", "select * from enable_logging()",
        "select * from checkpoint('memory')",
        "select * from json_execute_serialized_sql(json_serialize_sql('select 1'))",
        "select * from parquet_metadata('other.parquet')", "\ud800", "select '\0'; select 1",
    ):  # fmt: skip
        with pytest.raises(StoreError, match="one SELECT over latents"):
            store.query(sql)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert hidden == 5
    assert store.query("select count(*) n from labels")["n"][0] == 0
    assert store.query("select current_setting('threads') n")["n"][0] == 2
    assert len(FeatureStore.open(inside).query("from rows")) == len(store.query("from rows"))


def test_a_query_may_be_any_select(store):
    n = store.n_rows
    for sql in (
        "from rows", "table rows", "select * from rows r join documents d using (document)",
        "-- all\nfrom rows",
        "with recursive x as (select 0 i union all select i + 1 from x where i < 3)"
        " from rows, (from x limit 1) y",
        "from rows union all (from rows limit 0)", "(from rows)", "from rows;",
    ):  # fmt: skip
        assert len(store.query(sql)) == n, sql
    assert len(store.query("describe rows")) == 6
    assert len(store.query("from range(5)")) == 5
    assert store.query("values (1), (2)").shape == (2, 1)
    assert store.query("select unnest(?::int[]) as i", [[1, 2]])["i"].tolist() == [1, 2]
    for sql in ("explain from rows", "EXPLAIN ANALYZE select count(*) from rows"):
        assert len(store.query(sql)) > 0


def test_what_memory_does_not_hold_is_spilled_elsewhere(store, tmp_path, monkeypatch):
    """And goes when the store does. Not to where the process happens to be."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spill"))
    (tmp_path / "spill").mkdir()
    other = FeatureStore.open(store.folder)
    assert other.query("select current_setting('temp_directory') t")["t"][0].startswith(
        str(tmp_path / "spill")
    )


@pytest.mark.parametrize("name", ["run[1]", "run?", "run*", "[*]", "a[b", "run]", "codes=none", "it's"])
def test_the_name_of_a_folder_is_no_pattern(parts, name, tmp_path):
    """Another store that the name would match as a pattern lies beside it."""
    for other in ("run1", "runs", "*", "ab"):
        saelab.index(*parts, TEXTS[:1], tmp_path / other / "s", progress=False)
    made = saelab.index(*parts, TEXTS, tmp_path / name / "s", codes="full", progress=False)
    plain = saelab.index(*parts, TEXTS, tmp_path / "plain", progress=False)
    for store in (made, FeatureStore.open(tmp_path / name / "s")):
        for table in TABLES:
            ours, theirs = (s.query(f"select * from {table}") for s in (store, plain))
            assert ours.equals(theirs), table
        assert store.search(example="a").equals(plain.search(example="a"))
        assert [a.tolist() for a in store.codes(ALWAYS)] == [a.tolist() for a in plain.codes(ALWAYS)]
    merged = saelab.stores.merge([made], tmp_path / f"{name}-merged")
    assert merged.query("from codes_by_latent").equals(plain.query("from codes_by_latent"))


def test_a_store_may_be_moved_from_where_it_was_named(parts, tmp_path, monkeypatch):
    saelab.index(*parts, TEXTS, tmp_path / "s", progress=False)
    monkeypatch.chdir(tmp_path)
    store = FeatureStore.open("s")
    n = len(store.query("from rows"))
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    assert len(store.query("from rows")) == n


# ---- wrong inputs of index -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"hook": None}, HookError, "hook=None"),
        ({"hook": HookPoint("g")}, HookError, "g"),
        ({"d_in": 5}, ShapeError, "d_in must be the width of h, 6. Got d_in=5"),
        ({"d_sae": 13}, ShapeError, "d_sae=13"),
    ],
)
def test_an_sae_that_does_not_fit(tmp_path, change, error, match):
    sae = Planted()
    vars(sae.config).update(change)
    with pytest.raises(error, match=match):
        saelab.index(Letters(), sae, TEXTS, tmp_path / "s", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [{"n_examples": -1}, {"n_quantile": 2.5}, {"window": (1, -1)}, {"window": 3}, {"window": (1, 2, 3)},
     {"seed": -1}, {"seed": "a"}, {"max_rows": 0}, {"batch_size": 0}, {"long": "wrap"}],
)  # fmt: skip
def test_wrong_options(parts, tmp_path, options):
    with pytest.raises(ConfigError, match="Got"):
        saelab.index(*parts, TEXTS, tmp_path / "s", progress=False, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("corpus", [[], [""], [3]])
def test_wrong_corpora(parts, tmp_path, corpus):
    with pytest.raises(CorpusError):
        saelab.index(*parts, corpus, tmp_path / "s", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_codes_that_are_not_finite(tmp_path, value):
    with pytest.raises(NonFiniteError, match=r"Codes must be finite.*position 14"):
        saelab.index(Letters(), Planted(value), TEXTS, tmp_path / "s", progress=False)
    assert list(tmp_path.iterdir()) == []


# ---- whole or absent -------------------------------------------------------------------------------


class Breaks(Planted):
    """Fails at the second batch."""

    def __init__(self, error):
        super().__init__()
        self.error, self.calls = error, 0

    def encode_sparse(self, x):
        self.calls += 1
        if self.calls == 2:
            raise self.error
        return super().encode_sparse(x)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("boom")])
def test_an_interruption_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        saelab.index(Letters(), Breaks(error), TEXTS, tmp_path / "s", batch_size=1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_overwrite_leaves_the_old_store(parts, tmp_path):
    options = {"batch_size": 1, "progress": False}
    old = saelab.index(*parts, TEXTS, tmp_path / "s", **options)
    with pytest.raises(StoreError, match="overwrite=True"):
        saelab.index(*parts, TEXTS[:2], tmp_path / "s", **options)
    with pytest.raises(KeyboardInterrupt):
        saelab.index(Letters(), Breaks(KeyboardInterrupt()), TEXTS, tmp_path / "s", overwrite=True, **options)
    assert FeatureStore.open(tmp_path / "s").manifest == old.manifest
    new = saelab.index(*parts, TEXTS[:2], tmp_path / "s", overwrite=True, **options)
    assert new.n_rows == len("".join(TEXTS[:2])) < old.n_rows
    new.verify()
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("where", ["codes_by_row", "rows", "latents", "examples"])
def test_a_full_disk(parts, tmp_path, monkeypatch, where):
    write_table = pq.ParquetWriter.write_table

    def fail(self, table, *args, **kwargs):
        if str(self.where).endswith(f"{where}.parquet"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_table(self, table, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    with pytest.raises(StoreError, match="No space left"):
        saelab.index(*parts, TEXTS, tmp_path / "s", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_sort_without_memory_or_disk(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_writer, "HELD_CODES", 3)
    monkeypatch.setattr(feature_writer, "SORT_MEMORY", "1KB")
    with pytest.raises(StoreError, match="codes must be sorted on disk"):
        saelab.index(*parts, TEXTS, tmp_path / "s", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be(parts, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "s"):
        with pytest.raises(StoreError, match="file"):
            saelab.index(*parts, TEXTS, out, progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="Only a store is overwritten"):
        saelab.index(*parts, TEXTS, tmp_path / "mine", overwrite=True, progress=False)
    assert (tmp_path / "mine" / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"


# ---- stores that went wrong ------------------------------------------------------------------------


@pytest.fixture
def spoiled(store, tmp_path):
    """A copy to be spoiled."""
    return Path(shutil.copytree(store.folder, tmp_path / "s"))


@pytest.mark.parametrize("name", TABLES)
def test_truncated_and_missing_files(spoiled, name):
    path = spoiled / f"{name}.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=f"{name}.parquet"):
        FeatureStore.open(spoiled)
    path.unlink()
    with pytest.raises(StoreError, match=f"{name}.parquet"):
        FeatureStore.open(spoiled)


@pytest.mark.parametrize("where", ["pages", "footer"])
@pytest.mark.parametrize(
    "name", ["latents", "firings", "coactivation", "examples", "codes_by_latent", "codes_by_row", "rows"]
)
def test_a_changed_file_is_named_and_gives_no_foreign_error(spoiled, name, where):
    path = spoiled / f"{name}.parquet"
    data = bytearray(path.read_bytes())
    at = slice(4, 100) if where == "pages" else slice(-100, -8)
    data[at] = b"\xff" * len(data[at])
    path.write_bytes(data)
    store = FeatureStore.open(spoiled)
    with pytest.raises(StoreError, match=f"{name}.parquet"):
        store.verify()
    ask = {
        "latents": lambda s: s.latent(ALWAYS),
        "examples": lambda s: s.examples(ALWAYS),
        "firings": lambda s: s.firings(ALWAYS),
        "coactivation": lambda s: s.partners(ALWAYS),
        "codes_by_latent": lambda s: s.query("select sum(latent + row + value) from codes_by_latent"),
        "codes_by_row": lambda s: s.rows(0),
        "rows": lambda s: s.rows(0),
    }
    with pytest.raises(StoreError):
        ask[name](store)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 3}, "Upgrade saelab"),
        ({"version": 1}, "saelab.stores.migrate"),
        ({"kind": "activations"}, "activations"),
        ({"format": "other"}, "must say format .saelab."),
        ({"n_rows": None}, "n_rows"),
        ({"n_latents": "12"}, "n_latents"),
        ({"hook": "h"}, "hook"),
        ({"files": {}}, "latents.parquet"),
        ({"files": {"../x": {"bytes": 1, "sha256": ""}}}, "trust"),
    ],
)
def test_manifests_of_others(spoiled, change, match):
    path = spoiled / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StoreError, match=match):
        FeatureStore.open(spoiled)


def test_no_store(tmp_path, spoiled):
    with pytest.raises(StoreError, match=r"manifest\.json"):
        FeatureStore.open(tmp_path / "nowhere")
    (spoiled / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="JSON"):
        FeatureStore.open(spoiled)


def test_another_sae_or_subject(store):
    store.check(Planted())
    store.check(Letters())
    for part in (Planted(), Letters()):
        part.fingerprint = lambda: "another"
        with pytest.raises(StoreError, match="Got another"):
            store.check(part)
    with pytest.raises(StoreError, match="Got int"):
        store.check(3)
