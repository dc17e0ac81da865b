"""Directions and searches of a feature store against brute force over what is known to be in it."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from letters import ALWAYS, LONE, N_LATENTS, NEVER, SIGNED, TEXTS, WIDTH, Letters, Planted

import saelab
from saelab.stores import FeatureStore, directions, search
from saelab.types import ConfigError, CorpusError, NonFiniteError, RangeError, ShapeError, StoreError

MORE = ["The FOX, the fox; a Fox.", "ΣΟΦΟΣ και σοφός, Ärger über ÄRGER", "fox_1 don't jump 12 times"]


@pytest.fixture(scope="module")
def sae():
    return Planted()


@pytest.fixture(scope="module")
def store(sae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / 'it\'s "here" 100%'
    options = {"n_examples": 6, "n_quantile": 5, "window": (9, 8), "progress": False}
    return saelab.index(Letters(), sae, TEXTS + MORE, folder, **options)


# ---- directions


def test_directions_are_the_unit_rows_of_the_decoder(store, sae):
    found, wanted = store.directions, sae.W_dec.numpy()
    assert (found.shape, found.dtype) == ((N_LATENTS, WIDTH), np.float16)
    assert not found[NEVER].any()
    lengths = np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(found[1:], wanted[1:] / lengths[1:], rtol=2**-11, atol=2**-24)
    assert isinstance(found, np.memmap)
    assert "directions.npy" in store.manifest["files"]


def test_blocks_change_nothing_and_large_rows_do_not_overflow(tmp_path, monkeypatch):
    W_dec = (
        torch.randn(23, 7, generator=torch.Generator().manual_seed(1)) * torch.logspace(-20, 20, 23)[:, None]
    )
    W_dec[4] = 0
    directions.write_directions(tmp_path, W_dec)
    whole = np.array(np.load(tmp_path / "directions.npy"))
    monkeypatch.setattr(directions, "BLOCK_VALUES", 15)
    directions.write_directions(tmp_path, W_dec)
    np.testing.assert_array_equal(np.load(tmp_path / "directions.npy"), whole)
    norms = np.linalg.norm(whole.astype(np.float64), axis=1)
    np.testing.assert_allclose(np.delete(norms, 4), 1, rtol=2**-10)
    with pytest.raises(ShapeError, match="n_latents d_out"):
        directions.write_directions(tmp_path, W_dec[0])


def test_opening_a_store_reads_no_directions_and_an_older_one_says_so(store, tmp_path):
    code = (
        "import sys\nfrom saelab.stores import FeatureStore\nstore = FeatureStore.open(sys.argv[1])\n"
        "store.latent(1)\nassert 'directions' not in vars(store)\nassert 'scipy' not in sys.modules\n"
        "store.directions\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(store.folder)], check=True)
    copy = tmp_path / "s"
    shutil.copytree(store.folder, copy)
    (copy / "directions.npy").unlink()
    opened = FeatureStore(copy, store.manifest)
    for ask in (lambda: opened.directions, lambda: opened.search(latent=3)):
        with pytest.raises(StoreError, match="Index the corpus again"):
            ask()
    for wrong in (np.zeros((N_LATENTS, 6)), np.zeros((3, 6), np.float16), np.zeros(N_LATENTS, np.float16)):
        np.save(copy / "directions.npy", wrong)
        with pytest.raises(StoreError, match=r"must be float16 \[12 d_out\]"):
            FeatureStore(copy, store.manifest).directions  # noqa: B018
    (copy / "directions.npy").write_bytes(b"no array")
    with pytest.raises(StoreError, match="as it was written"):
        FeatureStore(copy, store.manifest).directions  # noqa: B018


@pytest.mark.parametrize("block", [1 << 22, 13])
def test_nearest_directions_equal_brute_force(store, sae, monkeypatch, block):
    monkeypatch.setattr(directions, "BLOCK_VALUES", block)
    vector = torch.linspace(-1, 2, WIDTH)
    unit = torch.nn.functional.normalize(sae.W_dec[1:], dim=1)
    cosine = (unit @ vector / vector.norm()).numpy()
    order = np.argsort(-cosine)
    for given in (vector, vector.numpy() * 1e-3, vector.tolist()):
        found = store.search(direction=given, n=100)
        assert found["latent"].tolist() == (order + 1).tolist()  # latent NEVER has no direction
        np.testing.assert_allclose(found["score"], cosine[order], atol=1e-3)
    tokens = store.top_names()
    assert [list(t) for t in found["top_names"]] == [tokens.get(j, []) for j in found["latent"]]


def test_neighbours_of_a_latent_are_those_of_its_direction_without_itself(store, sae):
    found = store.search(latent=5, n=4)
    by_vector = store.search(direction=sae.W_dec[5], n=5)
    assert by_vector["latent"][0] == 5
    assert by_vector["score"][0] == pytest.approx(1, abs=1e-3)
    assert found["latent"].tolist() == by_vector["latent"].tolist()[1:]
    with pytest.raises(ConfigError, match="zeros alone"):
        store.search(latent=NEVER)
    with pytest.raises(RangeError):
        store.search(latent=N_LATENTS)


# ---- by token


@pytest.mark.parametrize("token", ["a", " ", "o", "Σ"])
def test_latents_of_a_token_equal_brute_force(store, token):
    rows = store.query("select row, name as token from rows join vocabulary using (shown)")
    here = set(rows["row"][rows["token"] == token])
    expected = []
    for latent in range(N_LATENTS):
        fired = set(store.codes(latent)[0])
        if both := len(here & fired):
            precision, recall = both / len(fired), both / len(here)
            lift = precision / (len(here) / store.n_rows)
            f1 = 2 * precision * recall / (precision + recall)
            expected.append((latent, f1, both, precision, recall, lift))
    expected.sort(key=lambda e: (-round(e[1], 12), e[0]))
    found = store.search(token=token, n=100)
    assert list(found) == ["latent", "score", "count", "precision", "recall", "lift"]
    assert found["latent"].tolist() == [e[0] for e in expected] != []
    np.testing.assert_allclose(found.to_numpy(float), np.array(expected))
    assert store.search(token=token, n=2)["latent"].tolist() == [e[0] for e in expected[:2]]
    assert NEVER not in found["latent"].tolist()
    assert ALWAYS in found["latent"].tolist()


def test_a_token_that_the_store_does_not_have(store):
    with pytest.raises(CorpusError, match=r"Got 'A'\. Did you mean 'a'\?"):
        store.search(token="A")
    with pytest.raises(CorpusError, match="example="):
        store.search(token="no such token")


# ---- by the words of examples


def words_of(text):
    return re.findall(
        r"[^\W]+",
        text.casefold().replace("\N{GREEK SMALL LETTER FINAL SIGMA}", "\N{GREEK SMALL LETTER SIGMA}"),
    )


def brute_bm25(store, query, k1=1.2, b=0.75):
    """latent -> (score, windows that hold a word), by the formula over all distinct windows."""
    windows, members = {}, set()
    for latent in range(N_LATENTS):
        for kind in ("top", "bottom", "quantile"):
            for e in store.examples(latent, 100, kind):
                windows[e.row] = words_of("".join(e.names))
                members.add((latent, e.row))
    mean = sum(map(len, windows.values())) / len(windows)
    score = Counter()
    for word in set(words_of(query)):
        holding = [r for r, words in windows.items() if word in words]
        idf = math.log(1 + (len(windows) - len(holding) + 0.5) / (len(holding) + 0.5))
        for row in holding:
            tf = windows[row].count(word)
            score[row] += idf * tf / (tf + k1 * (1 - b + b * len(windows[row]) / mean))
    out = {}
    for latent, row in members:
        if row in score:
            total, n = out.get(latent, (0, 0))
            out[latent] = (total + score[row], n + 1)
    return out, score


@pytest.mark.parametrize(
    "query", ["fox", "FOX the", "hello, there!", "σοφός ärger", "fox_1 12 nothing", "the the fox jumps over"]
)
def test_bm25_equals_brute_force(store, query):
    expected, of_window = brute_bm25(store, query)
    found = store.search(example=query, n=100)
    assert list(found) == ["latent", "score", "windows", "row", "window"]
    assert set(found["latent"]) == set(expected) != set()
    for line in found.itertuples():
        assert (line.score, line.windows) == (
            pytest.approx(expected[line.latent][0]),
            expected[line.latent][1],
        )
        shown = [e for k in ("top", "bottom", "quantile") for e in store.examples(line.latent, 100, k)]
        assert of_window[line.row] == pytest.approx(max(of_window[e.row] for e in shown))
        assert line.window in {"".join(e.names) for e in shown if e.row == line.row}
        assert set(words_of(query)) & set(words_of(line.window))
    assert found["score"].is_monotonic_decreasing
    assert store.search(example=query, n=1)["latent"].tolist() == found["latent"].tolist()[:1]


def test_words_are_whole_and_of_joined_tokens(store):
    assert not len(store.search(example="fo"))  # "fox" holds it, no window has it as a word
    assert not len(store.search(example="!? ..."))
    assert len(store.search(example="hello"))  # five tokens of one letter
    assert store.search(example="Fox").equals(store.search(example="fOX"))


def test_the_word_index_is_made_once_and_serves_threads(store, monkeypatch):
    made = []
    init = search.ExampleIndex.__init__
    monkeypatch.setattr(search.ExampleIndex, "__init__", lambda *a: made.append(1) or init(*a))
    fresh = FeatureStore.open(store.folder)
    fresh.search(token="a")
    assert not made
    expected = fresh.search(example="the fox")
    with ThreadPoolExecutor(8) as pool:
        assert all(f.equals(expected) for f in pool.map(lambda _: fresh.search(example="the fox"), range(24)))
    assert made == [1]


def test_the_word_index_spills_beyond_its_memory(tmp_path, monkeypatch):
    """The same answer where most of it lies on disk."""
    words = np.array([f" w{i}" for i in range(20_000)], dtype=object)
    tokens = pa.array(words[np.random.default_rng(0).integers(0, len(words), (20_000, 30))].tolist())
    row = np.arange(len(tokens))
    table = pa.table({"latent": (row // 5).astype(np.int32), "row": row, "names": tokens})
    pq.write_table(table, tmp_path / "examples.parquet", row_group_size=2_560)
    plenty = search.ExampleIndex(tmp_path).search("w7 w19 w1999", 50)
    monkeypatch.setattr(search, "INDEX_MEMORY", "30MB")
    little = search.ExampleIndex(tmp_path)
    assert little.search("w7 w19 w1999", 50).equals(plenty)
    assert len(plenty) == 50
    folder = Path(little._spill.name)
    assert sum(f.stat().st_size for f in folder.iterdir()) > 1_000_000
    del little
    assert not folder.exists()


# ---- what is refused


@pytest.mark.parametrize(
    "asked",
    [{}, {"token": "a", "label": "a"}, {"latent": 0, "direction": [1.0] * WIDTH}, {"token": None}],
)
def test_exactly_one_question(store, asked):
    with pytest.raises(ConfigError, match="exactly one of token=, value=, label=, example=, "):
        store.search(**asked)


@pytest.mark.parametrize(
    "asked", [{"token": ""}, {"label": " "}, {"example": ""}, {"example": 3}, {"token": 7}]
)
def test_empty_questions(store, asked):
    with pytest.raises(ConfigError, match="must be a text that is not empty"):
        store.search(**asked)


@pytest.mark.parametrize("n", [0, -1, 2.0, True, None])
def test_a_wrong_number(store, n):
    with pytest.raises(RangeError, match="n must be an integer >= 1"):
        store.search(token="a", n=n)


def test_wrong_vectors(store):
    for wrong in ([1.0] * 5, np.zeros((2, WIDTH)), 3.0):
        with pytest.raises(ShapeError, match=r"direction must be a vector \[6\]"):
            store.search(direction=wrong)
    with pytest.raises(NonFiniteError):
        store.search(direction=[math.nan] * WIDTH)
    with pytest.raises(ConfigError, match="zeros alone"):
        store.search(direction=[0.0] * WIDTH)


# ---- the Lab's one door


def test_the_lab_asks_the_same(small_lab):
    token = small_lab.store.query("select name from vocabulary order by count desc")["name"][0]
    for asked in ({"token": token}, {"example": "the"}, {"latent": 3}, {"direction": small_lab.sae.W_dec[4]}):
        assert small_lab.search(**asked, n=5).equals(small_lab.store.search(**asked, n=5))
    assert small_lab.search(direction=small_lab.sae.W_dec[4])["latent"][0] == 4
    assert len(small_lab.search("hello there", n=3)) == 3
    for wrong in ({}, {"text": "a", "token": "a"}, {"tokn": "a"}):
        with pytest.raises(ConfigError, match="exactly one of"):
            small_lab.search(**wrong)


def test_signed_and_rare_latents_are_found_by_what_fires_them(store):
    for latent in (SIGNED, LONE):
        rows, _ = store.codes(latent)
        token = store.rows(int(rows[0])).name
        assert latent in store.search(token=token, n=100)["latent"].tolist()
