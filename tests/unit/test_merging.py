"""Stores of parts of a corpus, put together, against the store of one pass over all of it."""

from __future__ import annotations

import importlib
import itertools
import random
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from forks import Forked, run
from letters import ALWAYS, N_LATENTS, TEXTS, Letters, Planted

import saelab
from saelab.corpora import Document
from saelab.stores import FeatureStore, merge, merging, sampling, tables
from saelab.stores.queries import TABLES
from saelab.types import ConfigError, CorpusError, RangeError, StoreError

indexing = importlib.import_module("saelab.harvesting.index")  # the package has a function of this name
OPTIONS = {"n_examples": 7, "n_quantile": 12, "window": (3, 2), "batch_size": 1, "progress": False}
MANY = [f"{text} {i}" for i, text in enumerate(TEXTS * 6)]


@pytest.fixture(scope="module")
def parts():
    return Letters(), Planted()


@pytest.fixture(scope="module", params=["full", "sampled=0.3", "none"])
def whole(request, parts, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "s"
    return saelab.index(*parts, MANY, out, codes=request.param, **OPTIONS)


def same(a: FeatureStore, b: FeatureStore, but: tuple[str, ...] = ()) -> None:
    """Every table is equal, sums of values but for their rounding."""
    for name in TABLES:
        first, second = (s.query(f"select * from {name}") for s in (a, b))
        sums = [c for c in ("sum", "sum_abs", "mean", "mean_abs") if c in first]
        drop = [*sums, *(c for c in but if c in first)]
        pd.testing.assert_frame_equal(first.drop(columns=drop), second.drop(columns=drop), obj=name)
        pd.testing.assert_frame_equal(first[sums], second[sums], rtol=1e-12, obj=name)
    keys = ("n_rows", "n_documents", "n_codes", "codes", "sample_rows", "signed", "window", "seed", "hook")
    assert [a.manifest[k] for k in keys] == [b.manifest[k] for k in keys]
    a.verify()


@pytest.mark.parametrize("n", [1, 2, 7])
def test_shards_give_the_store_of_one_pass(parts, whole, tmp_path, n):
    shards = [
        saelab.index(*parts, MANY, tmp_path / str(i), codes=whole.kept, shard=(i, n), **OPTIONS)
        for i in range(n)
    ]
    assert sum(s.n_rows for s in shards) == whole.n_rows
    found = merge([*shards[1::2], *shards[::2]], tmp_path / "all")  # in whatever order
    same(found, whole)
    assert "shard" not in found.manifest
    assert found.manifest["corpus"] == whole.manifest["corpus"]


def test_stores_of_documents_one_after_another(parts, whole, tmp_path):
    cuts = [0, 1, 40, 41, 100, len(MANY)]
    documents = [Document(str(i), text) for i, text in enumerate(MANY)]
    stores = [
        saelab.index(*parts, documents[a:b], tmp_path / str(a), codes=whole.kept, **OPTIONS)
        for a, b in itertools.pairwise(cuts)
    ]
    same(merge(stores, tmp_path / "all"), whole)
    pairs = [merge(stores[:2], tmp_path / "x"), merge([s.folder for s in stores[2:]], tmp_path / "y")]
    same(merge(pairs, tmp_path / "again"), whole)


@pytest.mark.parametrize("n", [1, 3, 12])
def test_shards_of_a_small_corpus(parts, tmp_path, n):
    """It has fewer stretches than there are shards: those that get none are stores all the same."""
    texts = [text for text in MANY if text][:40]
    one = saelab.index(*parts, texts, tmp_path / "one", **OPTIONS)
    for i in reversed(range(n)):
        for _ in range(2):  # the second does nothing
            found = saelab.index(*parts, texts, tmp_path / f"part-{i}", shard=(i, n), **OPTIONS)
    stores = [FeatureStore.open(tmp_path / f"part-{i}") for i in range(n)]
    assert sum(store.n_rows for store in stores) == one.n_rows
    same(merge([tmp_path / f"part-{i}" for i in range(n)], tmp_path / "all"), one)
    for store in stores:
        if not store.n_rows:
            store.verify()
            assert (store.latents()["count"] == 0).all()
            assert store.latent(1).count == len(store.examples(1)) == len(store.partners(1)) == 0
            assert len(store.search(latent=1)) > 0
            with pytest.raises(RangeError):
                store.rows(0)
    assert found.n_rows
    if empty := [store for store in stores if not store.n_rows]:
        with pytest.raises(CorpusError, match="rows besides BOS"):
            merge(empty, tmp_path / "none")
    assert bool(empty) == (n == 12)


def test_append_gives_the_store_of_one_pass(parts, whole, tmp_path):
    documents = [Document(str(i), text) for i, text in enumerate(MANY)]
    out = tmp_path / "s"
    for some in (documents[:30], documents[30:31], documents[31:]):
        found = saelab.index(*parts, some, out, codes=whole.kept, append=True, **OPTIONS)
    same(found, whole)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("size", [1, 2000, None])
def test_parts_of_one_pass_change_nothing(parts, whole, tmp_path, monkeypatch, size):
    # None: the only part is full with the last batch, when nothing says yet that it stays alone
    monkeypatch.setattr(indexing, "PART_CODES", size or whole.manifest["n_codes"])
    counted = []
    monkeypatch.setattr(
        sampling, "_write_partners", lambda *a, plain=sampling._write_partners: (counted.append(a), plain(*a))
    )
    monkeypatch.setattr(merging, "AT_ONCE", 5)
    monkeypatch.setattr(merging, "GROUP_ROWS", 50)
    monkeypatch.setattr(merging, "BLOCK_CODES", 100)
    monkeypatch.setattr(merging, "BLOCK_LATENTS", 15)
    found = saelab.index(*parts, MANY, tmp_path / "s", codes=whole.kept, **OPTIONS)
    same(found, whole)
    assert len(counted) == 1  # not in each part as well
    assert "partners" not in found.manifest


def test_parts_of_shards(parts, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "PART_CODES", 200)
    shards = [
        saelab.index(*parts, MANY, tmp_path / str(i), codes=whole.kept, shard=(i, 3), **OPTIONS)
        for i in range(3)
    ]
    monkeypatch.setattr(merging, "AT_ONCE", 2)
    same(merge(shards, tmp_path / "all"), whole)


@pytest.mark.parametrize("codes", ["full", "sampled=0.01", "none"])
def test_a_sample_of_rows(parts, tmp_path, monkeypatch, codes):
    monkeypatch.setattr(sampling, "SAMPLE_ROWS", 100)
    whole = saelab.index(*parts, MANY, tmp_path / "whole", codes=codes, **OPTIONS)
    full = saelab.index(*parts, MANY, tmp_path / "full", **OPTIONS)
    assert whole.manifest["sample_rows"] == len(whole.query("select row from sample")) == 100
    shards = [
        saelab.index(*parts, MANY, tmp_path / str(i), shard=(i, 7), codes=codes, **OPTIONS) for i in range(7)
    ]
    found = merge(shards, tmp_path / "all")
    same(found, whole)
    sample = found.query("select * from sample order by row")
    # partners are counted on the sample
    fires = np.zeros((100, N_LATENTS), bool)
    for i, line in enumerate(sample.itertuples()):
        of_row = full.query(f"select latent, value from codes_by_row where row = {line.row}")
        fires[i, of_row["latent"]] = True
        if codes == "full":  # they are in codes_by_row
            assert pd.isna(line.latents)
            assert pd.isna(line.values)
        else:
            assert line.latents.tolist() == of_row["latent"].tolist()
            assert line.values.tolist() == of_row["value"].tolist()
    for partner, count in found.partners(ALWAYS)[["partner", "count"]].to_numpy():
        assert count == (fires[:, ALWAYS] & fires[:, partner]).sum()
    draws = sample["draw"].to_numpy()
    assert 0.03 < draws.max() < 0.12  # 100 of about 1,600
    other = saelab.index(*parts, MANY, tmp_path / "seed", codes=codes, **OPTIONS, seed=1)
    assert other.query("select row from sample")["row"].tolist() != sample["row"].tolist()


def test_which_codes_are_kept(parts, tmp_path):
    stores = {
        codes: saelab.index(*parts, MANY, tmp_path / codes, codes=codes, **OPTIONS)
        for codes in ("full", "sampled=0.3", "none")
    }
    full = stores["full"]
    for name in (
        "latents",
        "firings",
        "vocabulary",
        "examples",
        "coactivation",
        "rows",
        "documents",
    ):
        for other in stores.values():
            pd.testing.assert_frame_equal(*(s.query(f"select * from {name}") for s in (full, other)))
    some = stores["sampled=0.3"]
    kept = set(some.query("select distinct row from codes_by_row")["row"])
    assert 0.2 * full.n_rows < len(kept) < 0.4 * full.n_rows
    for key in ("row", "latent"):
        every = full.query(f"select * from codes_by_{key}")
        expected = every[every["row"].isin(kept)].reset_index(drop=True)
        pd.testing.assert_frame_equal(some.query(f"select * from codes_by_{key}"), expected)
    assert set(some.codes(ALWAYS)[0]) == kept
    row = min(kept)
    assert some.rows(row).latents.tolist() == full.rows(row).latents.tolist()
    missing = next(r for r in range(full.n_rows) if r not in kept)
    for ask in (
        lambda: some.rows(missing),
        lambda: stores["none"].rows(row),
        lambda: stores["none"].codes(0),
    ):
        with pytest.raises(StoreError, match="codes="):
            ask()
    with pytest.raises(RangeError):
        stores["none"].codes(N_LATENTS)


@pytest.mark.parametrize(
    "codes", ["some", "sampled=", "sampled=0", "sampled=1", "sampled=nan", "sampled=-1", 0.5]
)
def test_unknown_codes(parts, tmp_path, codes):
    with pytest.raises(ConfigError, match="sampled=p"):
        saelab.index(*parts, MANY, tmp_path / "s", codes=codes, **OPTIONS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [{"seed": 1}, {"window": (1, 1)}, {"codes": "none"}, {"n_examples": 3}])
def test_unlike_stores_are_refused(parts, tmp_path, option):
    first = saelab.index(*parts, MANY[:9], tmp_path / "a", **OPTIONS)
    files = first.manifest["files"]
    other = saelab.index(*parts, MANY[9:], tmp_path / "b", **{**OPTIONS, **option})
    name = next(iter(option))
    with pytest.raises(StoreError, match=name):
        merge([first, other], tmp_path / "c")
    with pytest.raises(StoreError, match=name):
        saelab.index(*parts, MANY[9:], tmp_path / "a", append=True, **{**OPTIONS, **option})
    assert FeatureStore.open(tmp_path / "a").manifest["files"] == files
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_wrong_merges(parts, tmp_path):
    shards = [saelab.index(*parts, MANY, tmp_path / str(i), shard=(i, 3), **OPTIONS) for i in range(3)]
    with pytest.raises(StoreError, match="document 16 twice"):
        merge([shards[0], shards[1], shards[1]], tmp_path / "s")
    with pytest.raises(StoreError, match="at least one"):
        merge([], tmp_path / "s")
    for shard in ((3, 3), (-1, 2), (0, 0)):
        with pytest.raises(ConfigError, match="shard"):
            saelab.index(*parts, MANY, tmp_path / "s", shard=shard, **OPTIONS)
    with pytest.raises(ConfigError, match="append"):
        saelab.index(*parts, MANY, tmp_path / "s", append=True, overwrite=True, **OPTIONS)
    assert not (tmp_path / "s").exists()
    assert merge(shards, shards[0].folder, overwrite=True).n_rows == sum(s.n_rows for s in shards)


# ---- interruptions ---------------------------------------------------------------------------------


def test_an_interrupted_index_goes_on_after_its_last_part(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "PART_CODES", 500)
    subject, sae = parts
    whole = saelab.index(subject, sae, MANY, tmp_path / "whole", **OPTIONS)
    read: list[int] = []
    run = subject.run

    def counted(inputs, **more):
        if stop == 0 and len(read) == 60:
            raise KeyboardInterrupt
        read.append(len(inputs))
        return run(inputs, **more)

    monkeypatch.setattr(subject, "run", counted)
    stop = 0
    with pytest.raises(KeyboardInterrupt):
        saelab.index(subject, sae, MANY, tmp_path / "s", **OPTIONS)
    assert not (tmp_path / "s").exists()
    done = len(read)
    with pytest.raises(StoreError, match="seed: 0 -> 1"):
        saelab.index(subject, sae, MANY, tmp_path / "s", **OPTIONS, seed=1)
    stop = 1
    found = saelab.index(subject, sae, MANY, tmp_path / "s", **OPTIONS)
    assert len(read) < len(MANY) + 40 < len(MANY) + done  # what lay in whole parts was not read again
    same(found, whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "whole"]
    before = len(read)
    same(saelab.index(subject, sae, MANY, tmp_path / "s", **OPTIONS), whole)
    assert len(read) == before  # it is finished: nothing to do


PROGRAM = """
import importlib, sys, time
from letters import Letters, Planted
import saelab
importlib.import_module("saelab.harvesting.index").PART_CODES = 150
texts = [f"some text of number {i}" for i in range(360)]
store = saelab.index(Letters(), Planted(), texts, sys.argv[1], batch_size=1, progress=False)
print(store.n_rows)
"""


@pytest.mark.slow
def test_a_killed_index_is_finished_to_the_same_store(tmp_path):
    run(PROGRAM, tmp_path / "whole")
    rng, partial = random.Random(5), tmp_path / ".s-partial" / "parts"
    for _ in range(4):
        process = Forked(PROGRAM, tmp_path / "s")
        before = len(list(partial.glob("0*"))) if partial.exists() else 0
        while process.poll() is None and len(list(partial.glob("0*"))) <= before:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.15)
        process.kill()
        process.wait()
        assert not (tmp_path / "s").exists() or process.returncode == 0
    run(PROGRAM, tmp_path / "s")
    same(FeatureStore.open(tmp_path / "s"), FeatureStore.open(tmp_path / "whole"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "whole"]


def test_a_table_is_read_in_memory_that_does_not_grow_with_it(tmp_path):
    """Readers of Parquet keep what they read ahead unless they are told not to."""
    rng = np.random.default_rng(0)
    rows = 1 << 16
    with tables.writer(tmp_path, "codes_by_latent") as out:
        for latent in range(64):
            row, value = rng.integers(0, 2**40, rows), rng.random(rows, np.float32)
            out.write_table(tables.table("codes_by_latent", np.full(rows, latent, np.int32), row, value))
    assert tables.path(tmp_path, "codes_by_latent").stat().st_size > 30e6
    before, cursor, taken = pa.total_allocated_bytes(), tables.Cursor(tmp_path, "codes_by_latent"), []
    for latent in range(64):
        assert len(cursor.until(latent + 1)) == rows
        taken.append(pa.total_allocated_bytes() - before)
    cursor.close()
    assert max(taken) < 12e6
