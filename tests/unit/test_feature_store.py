"""The feature store against brute force on dense codes; what must not matter; files open to everyone."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import subjects_zoo as zoo
import torch
from letters import ALWAYS, LONE, N_LATENTS, NEGATIVE, NEVER, SIGNED, TEXTS, TIED, Bare, Letters, Planted

import saelab
from saelab.corpora import Document
from saelab.stores import feature_writer, summary_writer
from saelab.stores.queries import TABLES
from saelab.types import (
    ConfigError,
    CorpusError,
    HookPoint,
    StoreError,
)


@pytest.fixture(scope="module")
def parts():
    return Letters(), Planted()


@pytest.fixture(scope="module")
def truth(parts):
    """Dense codes and origin of every row, one document at a time."""
    subject, sae = parts
    codes, origin, tokens = [], [], []
    for number, text in enumerate(TEXTS):
        acts = subject.run(subject.prepare([text]), read=["h"]).acts["h"][0, : subject.n_ctx][1:]
        codes.append(sae.dense(acts).numpy())
        origin += [(number, i + 1) for i in range(len(acts))]
        tokens += list(text)[: len(acts)]
    return SimpleNamespace(codes=np.concatenate(codes), origin=np.array(origin), tokens=tokens)


@pytest.fixture(scope="module")
def store(parts, tmp_path_factory):
    # a folder whose name would break careless SQL
    folder = tmp_path_factory.mktemp("store") / 'it\'s "here" 100%'
    how = {"n_examples": 7, "n_quantile": 12, "window": (3, 2), "long": "truncate"}
    return saelab.index(*parts, TEXTS, folder, **how, progress=False)


# ---- against brute force ---------------------------------------------------------------------------


def test_planted_latents_are_what_the_tests_need(truth):
    fired = (truth.codes != 0).sum(0)
    assert fired[NEVER] == 0
    assert fired[ALWAYS] == len(truth.codes) == len(truth.tokens)
    assert len(np.unique(truth.codes[:, TIED])) == 3
    assert 0 < fired[LONE] < 20
    assert truth.codes[:, SIGNED].min() < -0.5 < 0.5 < truth.codes[:, SIGNED].max()
    assert truth.codes[:, NEGATIVE].min() < truth.codes[:, NEGATIVE].max() == 0
    assert (truth.codes < 0).any(0).nonzero()[0].tolist() == [SIGNED, NEGATIVE]


@pytest.mark.parametrize("latent", range(N_LATENTS))
def test_statistics_equal_brute_force(store, truth, latent):
    column = truth.codes[:, latent]
    values = column[column != 0]
    record = store.latent(latent)
    assert (record.latent, record.count) == (latent, len(values))
    assert record.density == len(values) / len(column)
    low, high = (min(values.min(), 0), max(values.max(), 0)) if len(values) else (0, 0)
    step, bins = grid(low, high, 40) if len(values) else (1 / 32, [0])
    assert record.edges.tolist() == [b * step for b in [*bins, bins[-1] + 1]]
    assert 20 < len(record.histogram) <= 40 or not len(values)
    np.testing.assert_array_equal(record.histogram, np.histogram(values, bins=record.edges)[0])
    assert (record.histogram.dtype, record.edges.dtype) == (np.int64, np.float64)
    if len(values):
        assert record.mean == pytest.approx(values.mean(), rel=1e-5)
        assert record.mean_abs == pytest.approx(np.abs(values).mean(), rel=1e-5)
        assert (record.min, record.max) == (values.min(), values.max())
        assert record.min_abs == np.abs(values).min()
    else:
        assert (record.mean, record.mean_abs, record.min, record.max, record.min_abs) == (0, 0, 0, 0, 0)
    assert record.negative == (column < 0).sum()

    for sign, of_record, of_store in (
        (1, record.top_names, store.top_names()),
        (-1, record.bottom_names, store.bottom_names()),
    ):
        names = [t for t, v in zip(truth.tokens, column, strict=True) if v * sign > 0]
        expected = sorted(set(names), key=lambda t: (-names.count(t), t))[:3]
        assert of_record == of_store.get(latent, []) == expected


def grid(low, high, most):
    """(step, numbers of the bins) of the finest steps of a power of two that put low..high in so many."""
    steps = [2.0**e for e in range(-60, 60) if 2.0**e >= 2.0 ** (math.floor(math.log2(max(high, -low))) - 23)]
    step = next(s for s in steps if math.floor(high / s) - math.floor(low / s) < most)
    return step, list(range(math.floor(low / step), math.floor(high / step) + 1))


@pytest.mark.parametrize("latent", range(N_LATENTS))
def test_tokens_of_a_latent_equal_brute_force(store, truth, latent):
    column, tokens = truth.codes[:, latent], np.array(truth.tokens)
    expected = []
    for token in sorted(set(truth.tokens)):
        here = column[tokens == token]
        if (here != 0).any():
            lift = (here != 0).mean() / (column != 0).mean()
            expected.append((token, int((here != 0).sum()), int((here < 0).sum()), pytest.approx(lift)))
    expected.sort(key=lambda e: -e[1])
    found = store.tokens(latent, n=100)
    assert [tuple(line) for line in found.itertuples(index=False)] == expected
    assert len(store.tokens(latent, n=2)) == min(2, len(expected))


@pytest.mark.parametrize("latent", range(N_LATENTS))
def test_partners_equal_brute_force(store, truth, latent):
    fires = truth.codes != 0
    mine = fires[:, latent]
    expected = []
    for other in range(N_LATENTS):
        both = int((mine & fires[:, other]).sum())
        if other != latent and both:
            jaccard = both / (mine | fires[:, other]).sum()
            lift = both * len(mine) / mine.sum() / fires[:, other].sum()
            expected.append((other, both, pytest.approx(jaccard), pytest.approx(lift)))
    expected.sort(key=lambda e: (-e[2].expected, -e[1], e[0]))
    found = store.partners(latent, n=100)
    assert [tuple(line) for line in found.itertuples(index=False)] == expected


@pytest.mark.parametrize("latent", range(N_LATENTS))
def test_codes_and_top_examples_equal_brute_force(store, truth, latent):
    column = truth.codes[:, latent]
    rows = np.flatnonzero(column)
    found_rows, found_values = store.codes(latent)
    np.testing.assert_array_equal(found_rows, rows)
    np.testing.assert_array_equal(found_values, column[rows])

    for kind, sign in (("top", 1), ("bottom", -1)):
        pole = rows[column[rows] * sign > 0]
        best = sorted(pole, key=lambda r: (-abs(column[r]), r))[:7]
        found = store.examples(latent, n=100, kind=kind)
        assert [e.row for e in found] == best
        assert [e.rank for e in found] == list(range(len(best)))
        for example in found:
            check_window(example, truth, column)
            assert (example.kind, example.stratum) == (kind, -1)


@pytest.mark.parametrize("latent", range(N_LATENTS))
def test_quantile_examples_cover_each_part_of_the_range(store, truth, latent):
    column = truth.codes[:, latent].astype(np.float64)
    values = np.abs(column[column != 0])
    found = store.examples(latent, n=100, kind="quantile")
    assert len({e.row for e in found}) == len(found)
    assert [abs(e.value) for e in found] == sorted(abs(e.value) for e in found)
    assert [e.rank for e in found] == list(range(len(found)))
    if not len(values):
        assert found == []
        return
    step, bins = grid(values.min(), values.max(), 8)
    assert 5 <= len(bins) <= 8 or len(set(values)) == 1
    stratum = np.floor(values / step).astype(int) - bins[0]
    expected = [min(3, (stratum == s).sum()) for s in range(8)]  # a fifth of 12, rounded up
    assert [sum(e.stratum == s for e in found) for s in range(8)] == expected
    for example in found:
        check_window(example, truth, truth.codes[:, latent])
        assert example.stratum == math.floor(abs(example.value) / step) - bins[0]


def check_window(example, truth, column):
    """Tokens and values of a window are those around the firing, within its document."""
    number, position = truth.origin[example.row]
    assert (example.document, example.position) == (number, position)
    assert example.value == column[example.row] != 0
    of_document = np.flatnonzero(truth.origin[:, 0] == number)
    shown = [r for r in of_document if example.row - 3 <= r <= example.row + 2]
    assert example.start == truth.origin[shown[0], 1]
    assert example.names == [truth.tokens[r] for r in shown]
    assert example.values.dtype == np.float32
    np.testing.assert_array_equal(example.values, column[shown])


def test_rows_equal_brute_force(store, truth):
    assert store.n_rows == len(truth.codes)
    for i in range(store.n_rows):
        record, row = store.rows(i), truth.codes[i]
        assert (record.document, record.position) == tuple(truth.origin[i])
        assert record.name == truth.tokens[i]
        order = sorted(np.flatnonzero(row), key=lambda j: (-abs(row[j]), j))
        np.testing.assert_array_equal(record.latents, order)
        np.testing.assert_array_equal(record.values, row[order])
        assert (record.latents.dtype, record.values.dtype) == (np.int32, np.float32)


def test_tables_hold_rows_and_documents(store, truth):
    documents = store.query("select * from documents order by document")
    assert documents["text"].tolist() == TEXTS
    assert documents["n_rows"].tolist() == np.bincount(truth.origin[:, 0]).tolist()
    assert documents["first_row"].tolist() == [0, *np.cumsum(documents["n_rows"])[:-1]]
    rows = store.query("select * from rows")
    assert rows["row"].tolist() == list(range(store.n_rows))
    assert [chr(i) for i in rows["id"]] == truth.tokens
    frame = store.latents()
    assert frame["count"].tolist() == (truth.codes != 0).sum(0).tolist()
    numbers = ["latent", "count", "density", "mean", "min", "max", "negative", "mean_abs", "min_abs"]
    assert list(frame) == numbers
    assert frame["negative"].tolist() == (truth.codes < 0).sum(0).tolist()
    frame.loc[0, "count"] = 99
    assert store.latent(0).count == 0


def test_files_are_sorted_for_their_readers(store):
    order = {
        "codes_by_latent": ["latent", "row"],
        "codes_by_row": ["row", "latent"],
        "examples": ["latent", "kind", "rank"],
        "latents": ["latent"],
        "documents": ["document"],
    }
    for name, keys in order.items():
        frame = pd.read_parquet(store.folder / f"{name}.parquet")
        assert frame[keys].equals(frame[keys].sort_values(keys, ignore_index=True)), name


# ---- what does not matter --------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_size", "block"), [(1, 5), (2, 64), (100, 4_000_000)])
def test_batch_and_block_sizes_change_nothing(store, parts, tmp_path, monkeypatch, batch_size, block):
    monkeypatch.setattr(feature_writer, "BLOCK_CODES", block)
    # 5 and 64 codes are not kept in memory until they are sorted; row groups are of so many
    monkeypatch.setattr(feature_writer, "HELD_CODES", block)
    monkeypatch.setattr(feature_writer, "GROUP_CODES", block)
    monkeypatch.setitem(feature_writer.GROUPS, "examples", block)
    monkeypatch.setattr(summary_writer, "GROUPS", dict.fromkeys(summary_writer.GROUPS, block))
    options = {"n_examples": 7, "n_quantile": 12, "window": (3, 2), "long": "truncate", "progress": False}
    other = saelab.index(*parts, TEXTS, tmp_path / "s", batch_size=batch_size, **options)
    for name in TABLES:
        query = f"select * from {name}"
        pd.testing.assert_frame_equal(other.query(query), store.query(query))
    for kind in ("top", "bottom"):
        first, second = store.examples(SIGNED, 3, kind), other.examples(SIGNED, 3, kind)
        assert [e.row for e in first] == [e.row for e in second] != []


def test_same_seed_same_files_other_seed_other_quantile_examples(parts, tmp_path):
    make = {"n_quantile": 5, "progress": False}
    stores = [saelab.index(*parts, TEXTS, tmp_path / str(i), seed=s, **make) for i, s in enumerate((3, 3, 4))]
    assert stores[0].manifest == stores[1].manifest
    chosen = [[e.row for e in s.examples(ALWAYS, kind="quantile")] for s in stores]
    assert chosen[0] == chosen[1] != chosen[2]
    top = [[e.row for e in s.examples(ALWAYS)] for s in stores]
    assert top[0] == top[1] == top[2]


def test_max_rows_is_exact_and_windows_end_there(parts, truth, tmp_path):
    how = {"max_rows": 15, "window": (50, 50), "long": "truncate"}
    store = saelab.index(*parts, TEXTS, tmp_path / "s", **how, progress=False)
    assert store.n_rows == 15
    assert store.n_documents == truth.origin[14, 0] + 1
    np.testing.assert_array_equal(store.codes(ALWAYS)[1], truth.codes[:15, ALWAYS])
    last = next(e for e in store.examples(ALWAYS, n=20) if e.row == 14)
    assert last.names == [truth.tokens[r] for r in range(12, 15)]


def test_documents_keep_id_and_kind_and_long_ones_are_cut_or_split(parts, tmp_path):
    documents = [Document("first", "a" * 60, kind="prose"), Document("second", "b", kind="code")]
    with pytest.warns(UserWarning, match="37 tokens of 1 documents"):
        cut = saelab.index(*parts, documents, tmp_path / "cut", long="truncate", progress=False)
    whole = saelab.index(*parts, documents, tmp_path / "whole", long="split", progress=False)
    assert cut.query("select n_rows from documents")["n_rows"].tolist() == [23, 1]
    assert whole.query("select n_rows from documents")["n_rows"].tolist() == [60, 1]
    assert whole.query("select id, kind from documents").values.tolist() == [
        ["first", "prose"],
        ["second", "code"],
    ]
    assert [whole.rows(i).position for i in (0, 30, 59)] == [1, 31, 60]
    with pytest.raises(CorpusError, match="first"):
        saelab.index(*parts, documents, tmp_path / "no", long="error", progress=False)
    assert not (tmp_path / "no").exists()


def test_a_store_without_negative_codes(parts, tmp_path, monkeypatch, store):
    monkeypatch.setattr(Planted, "dense", lambda self, x, dense=Planted.dense: dense(self, x).abs())
    other = saelab.index(*parts, TEXTS, tmp_path / "s", progress=False)
    assert (other.signed, store.signed) == (False, True)
    assert set(pd.read_parquet(other.folder / "examples.parquet")["kind"]) == {"top", "quantile"}
    frame = other.latents()
    assert (frame["negative"] == 0).all()
    assert frame["mean_abs"].equals(frame["mean"].rename("mean_abs"))
    pd.testing.assert_frame_equal(other.query(f"select {', '.join(frame)} from latents"), frame)
    assert other.latent(SIGNED).bottom_names == other.examples(SIGNED, kind="bottom") == []


def test_query_gives_arrow_too(store):
    sql = "select latent, count(*) as n, avg(value) as mean from codes_by_latent group by all order by all"
    found = store.query(sql, format="arrow")
    assert isinstance(found, pa.Table)
    pd.testing.assert_frame_equal(found.to_pandas(), store.query(sql))
    with pytest.raises(ConfigError, match="polars"):
        store.query(sql, format="polars")


def test_no_examples_no_window(parts, tmp_path):
    none = saelab.index(*parts, TEXTS, tmp_path / "a", n_examples=0, n_quantile=0, progress=False)
    assert none.examples(ALWAYS) == none.examples(ALWAYS, kind="quantile") == []
    alone = saelab.index(*parts, TEXTS, tmp_path / "b", window=(0, 0), progress=False)
    assert {len(e.names) for e in alone.examples(ALWAYS)} == {1}


def test_a_subject_without_tokens(truth, tmp_path):
    store = saelab.index(Bare(), Planted(), TEXTS[:4], tmp_path / "s", progress=False)
    assert store.n_rows == sum(map(len, TEXTS[:4]))
    assert (store.rows(11).facet, store.rows(11).name) == ("position", "x")
    assert (store.rows(11).document, store.rows(11).position) == (1, 0)
    assert store.query("select distinct id from rows")["id"].tolist() == [-1]


def test_a_real_model_and_sae_equal_their_dense_codes(tmp_path):
    config = zoo.config("gpt2")
    torch.manual_seed(0)
    subject = zoo.LanguageModel(zoo.transformers.GPT2LMHeadModel(config), zoo.byte_tokenizer())
    hook = "blocks.1.hook_resid_post"
    sae = saelab.SAE.create(saelab.recipe("topk", d_in=32, d_sae=48, k=5, hook=hook))
    texts = ["Once upon a time", "Tim", "a dog ran to the park. The sky is blue"]
    store = saelab.index(subject, sae, texts, tmp_path / "s", batch_size=2, progress=False)
    runs = (subject.run(subject.prepare([t]), read=[hook], output=False).acts[hook][0, 1:] for t in texts)
    with torch.no_grad():
        dense = sae.encode(torch.cat(list(runs))).numpy()
    found = np.zeros_like(dense)
    for latent in range(48):
        rows, values = store.codes(latent)
        found[rows, latent] = values
    np.testing.assert_allclose(found, dense, atol=1e-4)
    assert [c for i in range(store.n_rows) for c in store.rows(i).name] == list("".join(texts))
    assert store.hook == HookPoint(hook)
    store.check(sae)
    store.check(subject)
    with pytest.raises(StoreError, match="sae"):
        store.check(saelab.SAE.create(sae.config, seed=1))


# ---- files for others ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_duckdb_pandas_and_polars_read_the_files_unaided(store, name):
    path = store.folder / f"{name}.parquet"
    quoted = str(path).replace("'", "''")
    tables = [
        duckdb.connect().sql(f"select * from '{quoted}'").to_arrow_table(),
        pd.read_parquet(path, dtype_backend="pyarrow").pipe(pa.Table.from_pandas, preserve_index=False),
        pl.read_parquet(path, glob=False).to_arrow(),
    ]
    rows = [t.to_pylist() for t in tables]
    assert len(rows[0]) > 0
    assert rows[0] == rows[1] == rows[2]


def test_codes_are_packed(store):
    for name in ("codes_by_latent", "codes_by_row"):
        group = pq.ParquetFile(store.folder / f"{name}.parquet").metadata.row_group(0)
        columns = {group.column(i).path_in_schema: group.column(i) for i in range(3)}
        assert {c.compression for c in columns.values()} == {"ZSTD"}
    assert "BYTE_STREAM_SPLIT" in columns["value"].encodings


def test_manifest(store):
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert (manifest["kind"], manifest["version"], manifest["seed"]) == ("features", 2, 0)
    assert manifest["facets"] == ["token"]
    assert manifest["hook"] == {"name": "h", "io": "out", "n_heads": None}
    assert (manifest["sae"], manifest["subject"], manifest["window"]) == ("planted", "letters", [3, 2])
    assert manifest["corpus"] == saelab.corpora.as_corpus(TEXTS).fingerprint()
    own = sorted(p.name for p in store.folder.iterdir() if not p.name.startswith("."))
    assert own == sorted(["manifest.json", *manifest["files"]])
    for name, entry in manifest["files"].items():
        data = (store.folder / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert "12 latents at h over" in repr(store)


def test_opens_without_torch(store):
    code = (
        "import sys; from saelab.stores import FeatureStore\n"
        "store = FeatureStore.open(sys.argv[1]); store.examples(1); store.rows(0); store.query('from rows')\n"
        "store.verify(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(store.folder)], check=True)


def test_threads_and_copies_see_the_same(store):
    copy = pickle.loads(pickle.dumps(store))

    def look(latent):
        return (
            [e.row for e in copy.examples(latent, 7)],
            copy.codes(latent)[0].tolist(),
            copy.rows(latent).name,
        )

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(look, list(range(N_LATENTS)) * 4))
    for latent in range(N_LATENTS):
        rows = [e.row for e in store.examples(latent, 7)]
        assert found[latent] == (rows, store.codes(latent)[0].tolist(), store.rows(latent).name)
    assert found == found[:N_LATENTS] * 4
