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
from saelab.stores.features import TABLES
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
