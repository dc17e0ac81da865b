"""Explanations that Neuronpedia exports, attached to a store: what its own code writes, and what is broken.

The lines below have the keys that export-data.py, batch-autointerp.py and the API of hijohnnylin/neuronpedia
write; an `index` is a string there.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tracemalloc
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from letters import N_LATENTS

import saelab
from saelab.analysis import relatives
from saelab.stores import FeatureStore, neuronpedia
from saelab.stores.labels import scores_of
from saelab.types import ConfigError, FormatError, RangeError, SaelabError, StoreError

MODEL, LAYER = "gpt2-small", "6-res-jb"
GPT, CLAUDE = "neuronpedia:gpt-4o-mini:oai_token-act-pair", "neuronpedia:claude-3-5-haiku:np_max-act-logits"


def line(index, description, model="gpt-4o-mini", kind: str | None = "oai_token-act-pair", **other):
    """As export-data.py writes it, in its order."""
    return {
        "id": f"clx{index}",
        "modelId": MODEL,
        "layer": LAYER,
        "index": str(index),
        "authorId": "clkht01d40000jv08hvalcvly",
        "description": description,
        "embedding": "[-0.012345,0.5]",
        "typeName": kind,
        "explanationModelName": model,
        "umap_x": 0.0,
        "umap_y": 0.0,
        "umap_cluster": 0,
        "umap_log_feature_sparsity": 0.0,
    } | other


def batch(folder, number, rows, suffix=".jsonl.gz"):
    folder.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = folder / f"batch-{number}{suffix}"
    path.write_bytes(gzip.compress(data, 5, mtime=0) if suffix.endswith(".gz") else data)
    return path


def labels(store):
    return list(store.labels().itertuples(index=False, name=None))


def read(store, path):
    """Without their scores."""
    return [each[:3] for each in neuronpedia.read_export(store, path)]


def refused(store, path, error, told, **options):
    """Attaching raises, and leaves the labels and files of the store as they were."""
    store.attach_labels({0: "kept"}, source="me")
    before = {f.name: f.read_bytes() for f in store.folder.iterdir()}
    with pytest.raises(error, match=told) as caught:
        store.attach_labels(path, **options)
    assert {f.name: f.read_bytes() for f in store.folder.iterdir()} == before
    return str(caught.value)


# ---- what Neuronpedia writes


def test_a_bulk_export_attaches_and_is_searched(store, tmp_path):
    """Batches are ordered by the index as a string, so that 10 comes before 2."""
    folder = tmp_path / "gpt2-small" / LAYER / "explanations"
    batch(folder, 0, [line(0, " time-related phrases"), line(1, "names of people"), line(10, "verbs")])
    batch(folder, 1, [line(11, "dates"), line(2, "names")])
    wanted = {0: "time-related phrases", 1: "names of people", 2: "names", 10: "verbs", 11: "dates"}
    store.attach_labels(str(folder))
    assert labels(store) == [(latent, text, GPT) for latent, text in wanted.items()]
    found = store.search(label="names")
    assert found[["latent", "label", "source"]].to_numpy().tolist() == [
        [2, "names", GPT],
        [1, "names of people", GPT],
    ]
    assert store.query("select count(*) n from labels")["n"].tolist() == [5]
    FeatureStore.open(store.folder).verify()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_one_batch_and_a_folder_of_plain_ones(store, tmp_path, suffix):
    one = batch(tmp_path / "e", 3, [line(4, "a")], suffix)
    store.attach_labels(one)
    assert labels(store) == [(4, "a", GPT)]
    batch(tmp_path / "e", 10, [line(4, "b")], suffix)
    (tmp_path / "e" / "config.json").write_text("{}")  # batch-autointerp.py leaves it there
    (tmp_path / "e" / "explanations-2.zip").write_bytes(b"PK")
    (tmp_path / "e" / "failed_explanation_indexes.txt").write_text("7\n")
    store.attach_labels(tmp_path / "e")
    assert labels(store) == [(4, "a", GPT), (4, "b", GPT)]


def test_the_folder_of_a_source_gives_all_its_folders_of_explanations(store, tmp_path):
    source = tmp_path / LAYER
    batch(source / "explanations", 0, [line(1, "old"), line(2, "two")])
    batch(source / "explanations-claude", 0, [line(1, "new", "claude-3-5-haiku", "np_max-act-logits")])
    batch(source / "features", 0, [{"modelId": MODEL, "layer": LAYER, "index": "1", "pos_str": []}])
    (source / "source.jsonl").write_text('{"id": "6-res-jb"}\n')
    store.attach_labels(source)
    assert labels(store) == [(1, "old", GPT), (1, "new", CLAUDE), (2, "two", GPT)]


def test_the_older_export_is_one_list(store, tmp_path):
    keys = ("modelId", "layer", "index", "description", "explanationModelName", "typeName")
    rows = [{key: line(i, f" label {i}")[key] for key in keys} for i in (7, 3)]
    rows.append(rows[0] | {"index": 5})  # copies by others have numbers
    for indent, name in ((None, "a.json"), (2, "b.json")):
        path = tmp_path / name
        path.write_text(json.dumps(rows, indent=indent), encoding="utf-8-sig" if indent else "utf-8")
        store.attach_labels({3: "", 5: "", 7: ""}, source=GPT)
        store.attach_labels(path)
        assert labels(store) == [(3, "label 3", GPT), (5, "label 7", GPT), (7, "label 7", GPT)]


def test_a_feature_of_the_api_with_the_best_explanation_last(store, tmp_path):
    feature = {
        "modelId": MODEL,
        "layer": LAYER,
        "index": "9",
        "hasVector": False,
        "explanations": [
            {"id": "a", "description": "best", "explanationModelName": "gpt-4o-mini", "typeName": None},
            {"id": "b", "description": "by hand", "explanationModelName": None, "typeName": None},
        ],
        "activations": [{"tokens": ["a"], "values": [1.0]}],
    }
    path = tmp_path / "9.json"
    path.write_text(json.dumps(feature, indent=2))
    store.attach_labels(path)
    assert labels(store) == [(9, "by hand", "neuronpedia"), (9, "best", "neuronpedia:gpt-4o-mini")]
    lines = [feature, feature | {"index": "8"}, feature | {"index": "7", "explanations": []}]
    store.attach_labels(batch(tmp_path / "f", 0, lines))
    assert store.labels()["latent"].tolist() == [8, 8, 9, 9]


def test_the_results_of_a_search_of_the_api(store, tmp_path):
    found = {"request": {"query": "x"}, "results": [line(1, "x"), line(2, "xy")], "resultsCount": 2}
    (tmp_path / "found.json").write_text(json.dumps(found))
    store.attach_labels(tmp_path / "found.json")
    assert labels(store) == [(1, "x", GPT), (2, "xy", GPT)]


# ---- several explanations of a latent


def test_explainers_are_kept_apart_and_what_is_attached_again_replaces(store, tmp_path):
    """Also several by one explainer are kept; one explainer is the last of every latent it explained."""
    rows = [line(1, "a"), line(1, "c", "claude-3-5-haiku", "np_max-act-logits"), line(1, "b"), line(1, "a")]
    rows += [line(2, "f", "claude-3-5-haiku", "np_max-act-logits"), line(2, "e")]
    store.attach_labels({1: "mine"}, source="me")
    for _ in range(2):
        store.attach_labels(batch(tmp_path / "e", 0, rows))
        assert labels(store) == [
            (1, "mine", "me"),
            (1, "a", GPT),
            (1, "b", GPT),
            (1, "c", CLAUDE),
            (2, "e", GPT),
            (2, "f", CLAUDE),
        ]
    store.attach_labels(batch(tmp_path / "e", 0, [line(1, "d")]))
    assert [row for row in labels(store) if row[2] == GPT] == [(1, "d", GPT), (2, "e", GPT)]
    store.attach_labels({1: ""}, source=GPT)
    assert [row[:2] for row in labels(store)] == [(1, "mine"), (1, "c"), (2, "e"), (2, "f")]


def test_source_names_another_release(store, tmp_path):
    store.attach_labels(batch(tmp_path, 0, [line(1, "a", kind=None)]), source="2024")
    assert labels(store) == [(1, "a", "2024:gpt-4o-mini")]


def test_an_empty_description_is_no_label_and_takes_none_out(store, tmp_path):
    store.attach_labels(batch(tmp_path, 0, [line(1, "a"), line(2, "b")]))
    store.attach_labels(batch(tmp_path, 1, [line(1, "  \n"), line(2, ""), line(3, None), line(4, "c")]))
    assert labels(store) == [(1, "a", GPT), (2, "b", GPT), (4, "c", GPT)]


def test_of_several_saes_one_is_chosen(store, tmp_path):
    rows = [line(1, "six"), line(1, "seven", layer="7-res-jb"), line(99, "other", modelId="gpt2-xl")]
    path = batch(tmp_path, 0, rows)
    told = refused(store, path, ConfigError, "Labels must be of one SAE")
    assert "gpt2-small/6-res-jb and gpt2-small/7-res-jb" in told
    told = refused(store, path, ConfigError, "of= must name", of="gpt2-small/8-res-jb")
    assert "gpt2-small/6-res-jb and gpt2-small/7-res-jb and gpt2-xl/6-res-jb" in told
    store.attach_labels(path, of="gpt2-small/7-res-jb")
    assert labels(store) == [(0, "kept", "me"), (1, "seven", GPT)]


def test_of_more_saes_than_are_told_the_last_is_found(store, tmp_path):
    rows = [line(1, f"at {i}", layer=f"{i}-res-jb") for i in range(40)]
    store.attach_labels(batch(tmp_path, 0, rows), of="gpt2-small/39-res-jb")
    assert labels(store) == [(1, "at 39", GPT)]


# ---- what is refused


def test_the_export_of_a_wider_sae_is_refused_with_both_named(store, tmp_path):
    path = batch(tmp_path, 0, [line(1, "fits"), line(24575, "does not"), line(40, "nor this")])
    told = refused(store, path, RangeError, r"0\.\.11. Got latent 24575 of gpt2-small/6-res-jb")
    assert store.manifest["sae"] in told
    assert str(store.hook) in told
    refused(store, batch(tmp_path, 1, [line(N_LATENTS, "x")]), RangeError, "Got latent 12")
    store.attach_labels(batch(tmp_path, 1, [line(N_LATENTS - 1, "x")]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"index": "-1"}, "the index '-1'"),
        ({"index": -1}, "the index -1"),
        ({"index": "1.0"}, r"the index '1\.0'"),
        ({"index": 1.0}, r"the index 1\.0"),
        ({"index": True}, "the index True"),
        ({"index": None}, "the index None"),
        ({"index": "٣"}, "the index '٣'"),
        ({"index": "9" * 19}, "the index '999"),
        ({"index": ""}, "the index ''"),
        ({"description": 3}, "the description 3"),
        ({"description": ["a"]}, "the description"),
        ({"description": "x" * (2**14 + 1)}, "no string of at most 16,384 characters"),
        ({"description": "a\ud800"}, "surrogates not allowed"),
        ({"explanationModelName": 4}, "the explanationModelName 4"),
        ({"typeName": {"name": "x"}}, "the typeName"),
        ({"layer": 6}, "the layer 6"),
    ],
)
def test_a_line_that_is_no_explanation(store, tmp_path, change, told):
    path = batch(tmp_path, 0, [line(1, "fine"), line(2, "wrong") | change])
    assert f"at line 2 of {path}" in refused(store, path, FormatError, told)


@pytest.mark.parametrize("key", neuronpedia.NEEDED)
def test_a_missing_key(store, tmp_path, key):
    row = line(2, "x")
    del row[key]
    refused(
        store, batch(tmp_path, 0, [line(1, "fine"), row]), FormatError, f"an object without {key}, of keys"
    )


ROW = json.dumps(line(1, "fine")).encode()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "must hold explanations. Got none"),
        (b" \n\n", "must hold explanations. Got none"),
        (b"[]", "must hold explanations. Got none"),
        (json.dumps(line(1, " ")).encode(), "must hold explanations. Got none"),
        (
            b'{"newUrl": "https://...", "message": "This endpoint has been removed."}',
            "an object without modelId",
        ),
        (b'{"1": "a label"}', "an object without modelId"),
        (b"<html>", "'<' where '{' must be at line 1"),
        (b'"text"', "'\"' where '{' must be"),
        (b"7", "'7' where '{' must be"),
        (ROW + b"\n" + ROW[:-9], "JSONDecodeError.* at line 2"),
        (ROW + b"\n\n\nnull\n", "'n' where '{' must be at line 4"),
        (ROW + b"\n[" + ROW + b"]", r"'\[' where '{' must be at line 2"),
        (b"[" + ROW, r"the end where '\]' must be"),
        (b"[" + ROW + b",", "the end where '{' must be"),
        (b"[" + ROW + b",]", r"'\]' where '{' must be"),
        (b"[" + ROW + b"\n" + ROW + b"]", r"'{' where '\]' must be at line 2"),
        (b"[" + ROW + b"]\nx", "'x' where the end must be at line 2"),
        (b"[[" + ROW + b"]]", r"'\[' where '{' must be"),
        (ROW.replace(b"fine", b"\xff\xfe"), "UnicodeDecodeError"),
        (ROW + b"\n\xe2\x82", "UnicodeDecodeError: .*unexpected end of data"),
        (ROW.replace(b"fine", b"a\nb"), "JSONDecodeError: Invalid control character"),
        ('[{"modelId": "x"}]'.encode("utf-16"), "UnicodeDecodeError"),
        (b'{"explanations": ' + b"[" * 30_000, "RecursionError"),
        (b'{"a":' * 30_000, "RecursionError"),
        (b'{"index": ' + b"1" * 5000 + b"}", "Exceeds the limit"),
        (b'{"explanations": [1]}', "1 in a list of explanations"),
        (b'{"explanations": {}, "results": 3}', "an object without"),
        (gzip.compress(ROW, mtime=0)[:-12], "EOFError"),
        (gzip.compress(ROW, mtime=0) + b"more", "BadGzipFile"),
        (gzip.compress(ROW, mtime=0)[:-8] + bytes(8), "CRC check failed"),
        (gzip.compress(ROW, mtime=0)[:10] + b"\xff" * 40, "error: Error -3"),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_broken_file(store, tmp_path, data, told, name):
    (tmp_path / name).write_bytes(data)
    assert str(tmp_path / name) in refused(store, tmp_path / name, FormatError, told)


def test_nothing_of_an_export_is_attached_where_its_last_batch_is_cut_short(store, tmp_path):
    batch(tmp_path / "e", 0, [line(1, "one")])
    last = batch(tmp_path / "e", 1, [line(i % 12, f"text {i}") for i in range(1000)])
    last.write_bytes(last.read_bytes()[:-100])
    refused(store, tmp_path / "e", FormatError, r"EOFError.*batch-1\.jsonl\.gz")


def test_paths_that_are_no_export(store, tmp_path):
    refused(store, tmp_path / "none", FormatError, "No such file")
    refused(store, "gemma-2-2b/20-gemmascope-res-16k", FormatError, "neuronpedia-datasets")
    refused(store, "a\0b", FormatError, "must be a file or folder")
    refused(store, "x" * 5000, FormatError, "too long")
    (tmp_path / "features").mkdir()
    (tmp_path / "batch-0.jsonl").mkdir()
    refused(store, tmp_path, FormatError, r"must hold batch-N.jsonl.gz or .jsonl. Got \['batch-0")
    (tmp_path / "explanations").mkdir()
    refused(store, tmp_path, FormatError, "must hold batch-N")
    path = batch(tmp_path / "e", 0, [line(1, "a")])
    refused(store, path, ConfigError, "source must say", source=" ")
    refused(store, path, ConfigError, "source must say", source=3)


# ---- size


@pytest.mark.parametrize(
    ("begin", "filler", "told"),
    [
        (b"", b" ", "bytes unpacked"),
        (b"", b"[", r"'\[' where '{' must be"),
        (b'{"a": "', b"a", "an object that is broken"),
        (b'{"a": [', b"[],", "an object that is broken"),
    ],
)
def test_a_gzip_bomb_is_refused_soon_and_in_little_memory(
    letters_folder, tmp_path, monkeypatch, begin, filler, told
):
    """256 MiB out of less than one: the limit is 2^24 bytes and 100 times its size. Objects of at most 2^18
    characters, of which an empty list takes three, and 64 bytes in memory."""
    monkeypatch.setattr(neuronpedia, "MAX_VALUE", 2**18)
    monkeypatch.setattr(neuronpedia, "CHUNK", 2**16)
    packer = zlib.compressobj(9, wbits=31)
    begun, some = packer.compress(begin), filler * (2**20 // len(filler))
    data = begun + b"".join(packer.compress(some) for _ in range(256)) + packer.flush()
    assert len(data) < 2**20
    (tmp_path / "bomb.json").write_bytes(data)
    store = FeatureStore.open(letters_folder)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=told):
            neuronpedia.read_export(store, tmp_path / "bomb.json")
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_limits(store, tmp_path, monkeypatch):
    path = batch(tmp_path, 0, [line(i % 12, f"text {i}") for i in range(100)])
    plain = batch(tmp_path, 1, [line(i % 12, f"text {i}") for i in range(100)], ".jsonl")
    monkeypatch.setattr(neuronpedia, "MAX_KEPT", 100 * neuronpedia.ROW)
    refused(store, path, FormatError, "explanations of more than 25,600 bytes")
    store.attach_labels(batch(tmp_path, 2, [line(1, "the same")] * 101))
    assert labels(store) == [(0, "kept", "me"), (1, "the same", GPT)]
    monkeypatch.undo()
    monkeypatch.setattr(neuronpedia, "MAX_BYTES", 2000)
    refused(store, path, FormatError, "more than 2,000 bytes unpacked")
    refused(store, plain, FormatError, "more than 2,000 bytes at line 1")
    monkeypatch.undo()
    (tmp_path / "long.json").write_text('{"a": "' + "x" * (2**23 - 99) + '"}')
    refused(store, tmp_path / "long.json", FormatError, "an object without modelId")
    (tmp_path / "longer.json").write_text('{"a": "' + "x" * 2**24 + '"}')
    refused(store, tmp_path / "longer.json", FormatError, "an object that .* of more than 8,388,608 char")


def test_thirty_thousand_lines(letters_folder, tmp_path):
    """Read in batches, plain and as one list alike, in a store of as many latents."""
    shutil.copytree(letters_folder, tmp_path / "s")
    store = FeatureStore.open(tmp_path / "s")
    store.n_latents = 30_000
    names = sorted(map(str, range(30_000)))
    for b in range(0, 30_000, 1024):
        batch(tmp_path / "e", b // 1024, [line(i, f"label {i}") for i in names[b : b + 1024]])
    wanted = sorted((i, f"label {i}", GPT) for i in range(30_000))
    assert sorted(read(store, tmp_path / "e")) == wanted
    (tmp_path / "one.json").write_text(json.dumps([line(i, f"label {i}") for i in names], indent=1))
    assert sorted(read(store, tmp_path / "one.json")) == wanted
    store.attach_labels(tmp_path / "e")
    assert labels(store) == wanted


# ---- what judges gave them


def judged(value, kind: str | None = "eleuther_recall", by: str | None = "claude-4-5-haiku", **other):
    """As the API and the exports of scores write it, in their order."""
    score = {"id": "cly", "value": value, "explanationId": "clx", "explanationScoreTypeName": kind}
    return score | {"explanationScoreModelName": by, "jsonDetails": "[]"} | other


RECALL, FUZZ = "eleuther_recall:claude-4-5-haiku", "eleuther_fuzz:claude-4-5-haiku"


def test_scores_stand_beside_their_explanation(store, tmp_path):
    rows = [
        line(3, "old", "claude-3-5-haiku", "np_max-act-logits", scores=[judged(0.5)]),
        line(3, "new", scores=[judged(0.25), judged(1, "eleuther_fuzz"), judged(0.75)]),
        line(4, "nobody judged it", scores=[]),
        line(5, "neither this", scores=None),
        line(6, "by whom?", scores=[judged(0.1, None, None)]),
    ]
    store.attach_labels(batch(tmp_path, 0, rows))
    found = [tuple(row) for row in scores_of(store).sort_values(["latent", "label", "score"]).to_numpy()]
    assert found == [
        (3, "new", GPT, FUZZ, 1.0),
        (3, "new", GPT, RECALL, 0.75),  # by the same judge: the last
        (3, "old", CLAUDE, RECALL, 0.5),
        (6, "by whom?", GPT, "score", 0.1),
    ]
    asked = store.query(
        "select latent from label_scores join labels using (latent, label, source) where value > 0.7"
    )
    assert asked["latent"].tolist() == [3, 3]
    near = relatives(store, 3)
    assert sorted(near.labels) == sorted(
        [("old", CLAUDE, {RECALL: 0.5}), ("new", GPT, {RECALL: 0.75, FUZZ: 1.0})]
    )
    assert f"«old» ({CLAUDE}, {RECALL} 0.50)" in str(near)


def test_a_label_that_is_replaced_takes_its_scores_with_it(store, tmp_path):
    store.attach_labels({3: "names", 4: "places"}, source="me", scores={3: {"fuzz": 0.8}, 4: {"fuzz": 0.7}})
    store.attach_labels({3: "people"}, source="other", scores={3: {"fuzz": 0.6}})
    merged = saelab.stores.merge([store.folder], tmp_path / "merged")
    assert scores_of(merged).equals(scores_of(store))
    store.attach_labels({3: "persons"}, source="me")
    left = [tuple(row) for row in scores_of(store)[["latent", "label", "value"]].to_numpy()]
    assert left == [(3, "people", 0.6), (4, "places", 0.7)]
    store.attach_labels({3: "names"}, source="me")  # the same words, said anew, were judged by nobody
    assert len(scores_of(store)) == 2
    store.attach_labels({3: ""}, source="other")
    assert scores_of(store)["latent"].tolist() == [4]
    FeatureStore.open(store.folder).verify()
    (store.folder / "label_scores.parquet").unlink()
    with pytest.raises(StoreError, match="label_scores"):
        store.verify()


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ([0.5], "the score 0.5, without a value"),
        ("none", "which are no list"),
        ([judged(None)], "without a value"),
        ([judged(float("nan"))], "without a value"),
        ([judged(True)], "without a value"),
        ([judged(0.5, 7)], "the explanationScoreTypeName 7"),
    ],
)
def test_scores_that_are_none_are_refused(store, tmp_path, scores, told):
    refused(store, batch(tmp_path, 0, [line(3, "x", scores=scores)]), FormatError, told)


@pytest.mark.parametrize(
    "scores",
    [{4: {"fuzz": 0.5}}, {3: 0.5}, {3: {"fuzz": None}}, {3: {5: 0.5}}, {3: {"fuzz": float("inf")}}, [0.5]],
)
def test_scores_of_no_label_or_without_a_value_are_refused(store, scores):
    with pytest.raises(ConfigError, match=r"Pass \{7"):
        store.attach_labels({3: "x"}, scores=scores)
    assert store.labels().empty
    with pytest.raises(ConfigError, match="beside one of labels"):
        store.attach_labels("export.jsonl", scores={3: {"fuzz": 0.5}})


# ---- any file


EXPLANATIONS = st.lists(
    st.tuples(
        st.integers(0, N_LATENTS - 1),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.sampled_from([None, "gpt-4o-mini", "claude-3-5-haiku"]),
        st.sampled_from([None, "oai_token-act-pair", "np_max-act-logits"]),
    ),
    min_size=1,
    max_size=30,
)
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@MANY
@given(rows=EXPLANATIONS, chunk=st.integers(1, 200), shape=st.sampled_from(["lines", "list", "gzip"]))
def test_what_is_written_is_what_is_read(letters_folder, tmp_path, monkeypatch, rows, chunk, shape):
    """Whatever the texts, the order, and where the pieces that are read are cut."""
    monkeypatch.setattr(neuronpedia, "CHUNK", chunk)
    store = FeatureStore.open(letters_folder)
    written = [line(j, text, model, kind) for j, text, model, kind in rows]
    spelt = [json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(written)]
    text = "[" + " ,\n".join(spelt) + "]" if shape == "list" else "\n".join(spelt)
    (tmp_path / "x").write_bytes(gzip.compress(text.encode(), mtime=0) if shape == "gzip" else text.encode())
    name = {row: ":".join(filter(None, ("neuronpedia", *row[2:]))) for row in rows}
    wanted = {(row[0], row[1].strip(), name[row]) for row in rows if row[1].strip()}
    if not wanted:
        with pytest.raises(FormatError):
            neuronpedia.read_export(store, tmp_path / "x")
        return
    found = read(store, tmp_path / "x")
    assert len(found) == len(wanted)
    assert set(found) == wanted


GOOD = "\n".join(json.dumps(line(i, f"label {i}")) for i in range(5)).encode()


@MANY
@given(
    at=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, len(GOOD)),
    packed=st.booleans(),
)
def test_mutated_files_are_read_or_refused(letters_folder, tmp_path, at, cut, packed):
    data = bytearray(gzip.compress(GOOD, mtime=0) if packed else GOOD)
    for place, value in at:
        data[place % len(data)] = value
    (tmp_path / "x").write_bytes(data[: max(cut, 1)])
    try:
        found = neuronpedia.read_export(FeatureStore.open(letters_folder), tmp_path / "x")
    except SaelabError:
        return
    assert found
    assert all(0 <= latent < N_LATENTS and text for latent, text, _, _ in found)
