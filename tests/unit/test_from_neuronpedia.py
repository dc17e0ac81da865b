"""Stores out of Neuronpedia's bulk exports: what they say is what the exported store said, what an export
does not say is refused, and whatever is broken is named by file and line."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import tracemalloc

import numpy as np
import pytest
from exported import MODEL, SOURCE, batch, explanation, export, feature, window

import saelab
from saelab.analysis import card, latent_map
from saelab.cli import main
from saelab.stores import FeatureStore, from_neuronpedia, lenses, merge, neuronpedia
from saelab.types import ConfigError, FormatError, RangeError, SaelabError, StoreError, SubjectError

LATENTS = [*range(0, 24), *range(30, 48)]
OF = f"{MODEL}/{SOURCE}"


@pytest.fixture(scope="module")
def original():
    return FeatureStore.open(saelab.embedded.store_folder())


@pytest.fixture(scope="module")
def folder(original, tmp_path_factory):
    labels = {
        "explanations": [explanation(3, "numbers"), explanation(9, "names")],
        "explanations-claude": [explanation(3, "digits", "claude")],
    }
    place = tmp_path_factory.mktemp("export") / MODEL / SOURCE
    return export(original, place, LATENTS, lenses.read(original), vectors=True, labels=labels)


@pytest.fixture(scope="module")
def store(folder, tmp_path_factory):
    return from_neuronpedia(folder, tmp_path_factory.mktemp("made") / "store", progress=False)


def small(place, features, activations=(), explanations=(), **source):
    """An export of a few lines; without `source` it says over how many tokens it is."""
    batch(place / "features", 0, features)
    batch(place / "activations", 0, activations)
    if explanations:
        batch(place / "explanations", 0, explanations)
    said = source or {"num_prompts": 100, "num_tokens_in_prompt": 10}
    (place / "source.jsonl").write_text(json.dumps(said) + "\n")
    return place


FIRES = {"frac_nonzero": 0.004, "maxActApprox": 4.0, "freq_hist_data_bar_heights": [3, 0, 1],
         "freq_hist_data_bar_values": [1.0, 2.0, 3.0]}  # fmt: skip


# ---- round trip


def test_cards_are_those_of_the_exported_store(original, store):
    """Counts and windows to the letter, values to the three places of an export; means to half a bin."""
    shown = lenses.read(original)
    for j in LATENTS:
        ours, theirs = store.latent(j), original.latent(j)
        assert ours.count == theirs.count
        assert ours.n_rows == theirs.n_rows
        assert ours.max == pytest.approx(theirs.max, abs=6e-4)
        assert ours.histogram.sum() == ours.count == theirs.histogram.sum()
        if theirs.count:
            half = (theirs.max - theirs.min) / 100 + 1e-3
            assert abs(ours.mean - theirs.mean) <= half
            assert abs(ours.min - theirs.min) <= 2 * half
        for kind in ("top", "quantile"):
            mine, other = (sorted(_told(e) for e in s.examples(j, 20, kind)) for s in (store, original))
            # the store names all windows of an export, which has equal ones once
            assert mine == sorted({_key(e): e for e in other}.values())
        lens, wanted = lenses.read(store).of(j), shown.of(j)
        assert [t for t, _ in lens.top] == [t for t, _ in wanted.top]
        assert np.allclose([v for _, v in lens.bottom], [v for _, v in wanted.bottom], atol=6e-4)
    assert np.array_equal(store.directions[LATENTS], original.directions[LATENTS])
    assert store.hook == original.hook
    assert store.facets == ("token",)


def _told(e):
    return e.kind, e.position - e.start, tuple(e.names), tuple(np.round(e.values, 3).tolist())


def _key(told):
    return *told[:3], told[3][told[1]]


def test_explanations_are_labels_of_their_explainers(store):
    found = store.labels()
    assert found[["latent", "label"]].to_numpy().tolist() == [[3, "numbers"], [3, "digits"], [9, "names"]]
    assert set(found["source"].str.split(":").str[1]) == {"gpt-4o-mini", "claude"}
    assert store.search(label="digits")["latent"].tolist() == [3]


def test_it_is_searched_and_asked_by_sql(original, store):
    assert store.search(latent=3, n=5)["latent"].isin(LATENTS).all()
    word = original.examples(3, 1)[0].names
    assert 3 in store.search(example="".join(word), n=40)["latent"].tolist()
    frame = store.query("select latent, count from latents where count > 0 order by count desc limit 3")
    assert frame["count"].tolist() == sorted((original.latent(j).count for j in LATENTS), reverse=True)[:3]
    text = store.document(store.examples(3, 1)[0].document).text
    assert text == "".join(store.examples(3, 1)[0].names)
    store.verify()


ASKED = {
    "firings": lambda s: s.firings(3),
    "tokens": lambda s: s.tokens(3),
    "partners": lambda s: s.partners(3),
    "telling": lambda s: s.telling([3]),
    "rows": lambda s: s.rows(0),
    "codes": lambda s: s.codes(3),
    "need_codes": lambda s: s.need_codes(),
    "search token": lambda s: s.search(token=" the"),
    "search value": lambda s: s.search(value=("token", " the")),
    "sql": lambda s: s.query("select count(*) from FIRINGS"),
    "sql of tokens": lambda s: s.query("select * from latents join tokens using (latent)"),
    "sql of codes": lambda s: s.query("from codes_by_row limit 1"),
    "sql of samples": lambda s: s.query("select * from sample"),
    "map by tokens": lambda s: latent_map(s, "tokens", keep=False),
    "map by co-firing": lambda s: latent_map(s, "cofiring", keep=False),
    "merge": lambda s: merge([s, s], s.folder.parent / "merged"),
    "check a model": lambda s: s.check(_Subject()),
}


class _Subject:
    def fingerprint(self):
        return f"neuronpedia:{MODEL}"


@pytest.mark.parametrize("asked", ASKED)
def test_what_an_export_does_not_say_is_refused(store, asked):
    with pytest.raises(StoreError, match=rf"Neuronpedia's export of {OF}.*saelab.index"):
        ASKED[asked](store)


def test_a_query_that_is_wrong_otherwise_says_so(store):
    with pytest.raises(StoreError, match=r"A query must be one SELECT.*nowhere"):
        store.query("select * from nowhere")


def test_absent_latents_are_refused_and_not_called_dead(store):
    assert store.manifest["absent"] == [[24, 29]]
    for latent in (24, 29):
        with pytest.raises(StoreError, match=f"Got {latent}, of which it holds nothing"):
            store.latent(latent)
    assert store.latent(23).latent == 23
    assert store.latent(30).latent == 30
    with pytest.raises(RangeError):
        store.latent(48)


def test_a_map_by_decoder_and_a_comparison_by_directions(original, store):
    made = latent_map(store, "decoder", keep=False)
    assert np.isfinite(made.x[LATENTS]).all()
    assert np.isnan(made.x[24:30]).all()
    found = store.compare(original)
    assert found.cofiring is None
    assert "Co-firing needs" in found.reasons[0]
    assert (found.direction.partner[LATENTS, 0] == LATENTS).all()


# ---- what is said in other ways


def test_batches_in_any_order_packed_or_not_make_one_store(folder, store, tmp_path):
    again = tmp_path / "again"
    for kind in ("features", "activations"):
        lines = [
            line for f in (folder / kind).iterdir() for line in gzip.decompress(f.read_bytes()).splitlines()
        ]
        random.Random(1).shuffle(lines)
        for number, first in enumerate(range(0, len(lines), 97)):
            batch(again / kind, number, map(json.loads, lines[first : first + 97]), packed=number % 2 == 0)
    made = from_neuronpedia(again, n_rows=store.n_rows, progress=False)
    sql = "select * exclude (row, document, rank) from examples order by all"
    assert made.query(sql).equals(store.query(sql))
    assert made.query("from latents order by latent").equals(store.query("from latents order by latent"))


def test_a_histogram_is_kept_as_it_is_and_says_the_statistics(tmp_path):
    store = from_neuronpedia(small(tmp_path, [feature(0, **FIRES), feature(2)]), progress=False)
    told = store.latent(0)
    assert (told.count, told.n_rows, told.density) == (4, 1000, 0.004)
    assert told.histogram.tolist() == [3, 0, 1]
    assert told.edges.tolist() == [0.5, 1.5, 2.5, 3.5]
    assert (told.mean, told.min, told.max) == (1.5, 0.5, 4.0)
    assert store.latent(2).count == 0
    assert store.manifest["absent"] == [[1, 1]]
    assert not (store.folder / ".logit_lens.safetensors").exists()
    with pytest.raises(StoreError, match="has none"):
        _ = store.directions


def test_centres_that_were_rounded_together_are_still_bins(tmp_path):
    tiny = {"frac_nonzero": 0.005, "freq_hist_data_bar_heights": [1, 1, 1, 1, 1],
            "freq_hist_data_bar_values": [0.001, 0.001, 0.002, 0.002, 0.003]}  # fmt: skip
    told = from_neuronpedia(small(tmp_path, [feature(0, **tiny)]), progress=False).latent(0)
    assert (np.diff(told.edges) > 0).all()
    assert told.histogram.sum() == 5
    assert told.mean == pytest.approx(0.002)


def test_without_a_histogram_what_is_not_known_is_no_number(tmp_path):
    tokens = ["a", "b"]
    place = small(
        tmp_path, [feature(0, frac_nonzero=0.01, maxActApprox=2.0)], [window(0, tokens, [0.0, 2.0])]
    )
    store = from_neuronpedia(place, progress=False)
    told = store.latent(0)
    assert (told.count, told.max) == (10, 2.0)
    assert np.isnan([told.mean, told.min]).all()
    assert "mean unknown" in str(told)
    assert len(told.histogram) == 0
    shown = card(store, 0)
    assert "2.00" in str(shown.top)
    assert "nan" not in str(shown)


def test_rows_are_counted_by_histograms_where_the_source_says_none_or_others(tmp_path):
    many = [feature(j, frac_nonzero=0.1, freq_hist_data_bar_heights=[500], freq_hist_data_bar_values=[1.0])
            for j in range(3)]  # fmt: skip
    for source, how in (
        ({"id": SOURCE}, "histograms and shares"),
        ({"num_prompts": 7, "num_tokens_in_prompt": 9}, "histograms and shares"),
        ({"num_prompts": 50, "num_tokens_in_prompt": 100}, "source.jsonl"),
    ):
        store = from_neuronpedia(small(tmp_path, many, **source), overwrite=True, progress=False)
        assert (store.n_rows, store.manifest["export"]["rows"]) == (5000, how)
    bare = small(tmp_path / "bare", [feature(0, frac_nonzero=0.1)], id=SOURCE)
    with pytest.raises(StoreError, match=r"over how many tokens it is.*Pass n_rows="):
        from_neuronpedia(bare, progress=False)
    assert from_neuronpedia(bare, n_rows=1000, progress=False).latent(0).count == 100
    with pytest.raises(RangeError, match="at least 500"):
        from_neuronpedia(tmp_path, tmp_path / "other", n_rows=20, progress=False)


def test_both_signs(tmp_path):
    tokens = ["a", "b", "c"]
    signed = {"frac_nonzero": 0.006, "maxActApprox": 3.0, "freq_hist_data_bar_heights": [2, 0, 4],
              "freq_hist_data_bar_values": [-2.0, 0.0, 2.0]}  # fmt: skip
    rows = [
        window(0, tokens, [3.0, -1.0, 0.0], dataSource="top"),
        window(0, tokens, [0.0, -1.0, -2.5], dataSource="bottom"),
        window(0, tokens[:2], [-0.5, -2.0], binMin=None, binMax=None),
        window(0, tokens, [0.0, 0.0, 0.0]),
    ]
    store = from_neuronpedia(small(tmp_path, [feature(0, **signed)], rows), progress=False)
    told = store.latent(0)
    assert store.signed
    assert (told.negative, told.min, told.max, told.mean_abs) == (2, -3.0, 3.0, 2.0)
    assert [(e.value, e.names[e.position]) for e in store.examples(0, kind="bottom")] == [
        (-2.5, "c"),
        (-2.0, "b"),
    ]
    assert [e.value for e in store.examples(0)] == [3.0]
    assert told.bottom_names == ["c", "b"]
    assert store.manifest["export"]["silent"] == 1


def test_long_and_hostile_strings_are_text(tmp_path):
    tokens = [
        "<script>alert(1)</script>",
        "\u2581the",
        "\u0120a",
        "<0x0A>",
        "\u202e",
        "\x00",
        "x" * 9000,
        "'; drop",
    ]
    values = [0.0, 1.0, *[0.0] * 5, 2.0]
    place = small(
        tmp_path, [feature(0, **FIRES)], [window(0, tokens, values)] * 2, [explanation(0, "<b>\u202e")]
    )
    store = from_neuronpedia(place, progress=False)
    (example,) = store.examples(0)
    assert example.names == [tokens[0], " the", " a", "\n", *tokens[4:]]
    assert example.value == 2.0
    assert store.top_names() == {0: ["'; drop"]}
    assert store.labels()["label"].tolist() == ["<b>\u202e"]
    assert "drop" in str(card(store, 0))


# ---- what is broken


OTHER_BINS = FIRES | {"freq_hist_data_bar_values": [3, 2, 1]}
FEW_BINS = FIRES | {"freq_hist_data_bar_values": [3]}
BELOW = FIRES | {"freq_hist_data_bar_heights": [1, -1, 1]}


def _spoilt(**other):
    return window(1, ["a", "b"], [0.0, 1.0]) | other


BAD = {
    "lengths": ("activations", _spoilt(values=[1.0]), "2 tokens beside 1 values"),
    "a text for a number": ("activations", _spoilt(values=[0.0, "1"]), "values"),
    "not finite": ("activations", _spoilt(values=[0.0, float("nan")]), "values"),
    "beyond float32": ("activations", _spoilt(values=[0.0, 1e39]), "values"),
    "nested": ("activations", _spoilt(values=[[0.0], [1.0]]), "values"),
    "no list": ("activations", _spoilt(tokens="ab"), "tokens"),
    "no text": ("activations", _spoilt(tokens=["a", 3]), "tokens"),
    "half a pair": ("activations", _spoilt(tokens=["a", "\ud800"]), "surrogates"),
    "a token too long": ("activations", _spoilt(tokens=["a", "x" * 20_000]), "tokens"),
    "an index": ("activations", _spoilt(index="-1"), "the index '-1'"),
    "an index too large": ("activations", _spoilt(index=str(10**12)), "the index"),
    "no index": ("activations", {k: v for k, v in _spoilt().items() if k != "index"}, "without index"),
    "no token of it": ("activations", _spoilt(qualifyingTokenIndex=9), "none of 2 tokens"),
    "a share": ("features", feature(1, frac_nonzero=2), "no share"),
    "no share": ("features", feature(1, frac_nonzero=-1), "neither frac_nonzero nor"),
    "bins": ("features", feature(1, **OTHER_BINS), "ascending centres"),
    "bins of other numbers": ("features", feature(1, **FEW_BINS), "3 ascending"),
    "heights below 0": ("features", feature(1, **BELOW), "below 0"),
    "logits": ("features", feature(1, pos_str=["a"]), "1 pos_str beside 0 pos_values"),
    "a list": ("features", [feature(1)], "where '{' must be|'\\[' where"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_line_that_is_not_as_it_must_be_is_named(tmp_path, what):
    kind, row, told = BAD[what]
    good = {"features": [feature(0, **FIRES)], "activations": [window(0, ["a"], [1.0])]}
    place = small(tmp_path, good["features"], good["activations"])
    batch(place / kind, 1, [*good[kind], row])
    with pytest.raises(FormatError, match=f"(?s)({told}).* at line 2 of .*{kind}/batch-1.jsonl.gz"):
        from_neuronpedia(place, progress=False)
    assert not (place / "store").exists()
    if what == "a list":  # broken as JSON lines
        return
    store = from_neuronpedia(place, skip=True, progress=False)
    assert store.manifest["export"]["skipped"] == 1
    assert "batch-1" in store.manifest["export"]["first_skipped"]
    assert len(store.examples(0)) == 1
    assert store.latent(0).count == 4


def test_two_lines_of_one_feature(tmp_path):
    place = small(tmp_path, [feature(0, **FIRES), feature(1), feature(0, **FIRES)])
    assert from_neuronpedia(place, progress=False).latent(0).count == 4
    batch(place / "features", 5, [feature(0, **FIRES | {"frac_nonzero": 0.005})])
    with pytest.raises(FormatError, match=r"two of 0: object 1 of .*batch-0.*, and object 1 of .*batch-5"):
        from_neuronpedia(place, overwrite=True, progress=False)
    assert from_neuronpedia(place, skip=True, overwrite=True, progress=False).latent(0).count == 4


def test_two_saes_in_one_folder(tmp_path):
    place = small(tmp_path, [feature(0, **FIRES)], [window(0, ["a"], [1.0], layer="3-other")])
    with pytest.raises(FormatError, match=f"one SAE. Got {OF} and, at line 1 of .*, {MODEL}/3-other"):
        from_neuronpedia(place, progress=False)


def test_windows_without_a_feature_are_counted(tmp_path):
    place = small(tmp_path, [feature(0, **FIRES)], [window(0, ["a"], [1.0]), window(7, ["b"], [1.0])])
    store = from_neuronpedia(place, progress=False)
    assert store.n_latents == 1
    assert store.manifest["export"]["without_feature"] == 1
    config = {"saelensConfig": json.dumps({"d_sae": 16}), "num_prompts": 100, "num_tokens_in_prompt": 10}
    wide = from_neuronpedia(small(tmp_path, [feature(0)], **config), overwrite=True, progress=False)
    assert wide.n_latents == 16
    assert wide.manifest["absent"] == [[1, 15]]


def test_a_folder_that_is_none(tmp_path, folder):
    for given, told in (
        (tmp_path / "none", "must hold features"),
        (folder.parent, f"where that is in .*{SOURCE}"),
        (folder / "features", "must hold features"),
    ):
        with pytest.raises(FormatError, match=told):
            from_neuronpedia(given, progress=False)
    broken = small(tmp_path / "cut", [feature(0, **FIRES)])
    path = broken / "activations" / "batch-0.jsonl.gz"
    whole = gzip.compress(b"".join(json.dumps(window(0, ["a"], [1.0])).encode() + b"\n" for _ in range(99)))
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match=r"EOFError.*activations/batch-0"):
        from_neuronpedia(broken, progress=False)


# ---- long exports


def test_it_goes_on_after_the_last_whole_file(tmp_path, monkeypatch):
    from saelab.stores import neuronpedia_parts as parts

    place = small(tmp_path, [feature(j, **FIRES) for j in range(4)])
    for number in range(4):
        batch(place / "activations", number, [window(number, ["a", "b"], [0.0, 1.0 + number])])
    read, stop = [], 2

    def counted(row):
        if len(read) == stop:
            raise KeyboardInterrupt
        read.append(row["index"])
        return real(row)

    real = parts.window_of
    monkeypatch.setattr(parts, "window_of", counted)
    with pytest.raises(KeyboardInterrupt):
        from_neuronpedia(place, progress=False)
    assert read == ["0", "1"]
    assert not (place / "store").exists()
    stop = 99
    store = from_neuronpedia(place, progress=False)
    assert read == ["0", "1", "2", "3"]
    assert [store.examples(j)[0].value for j in range(4)] == [1.0, 2.0, 3.0, 4.0]
    assert from_neuronpedia(place, progress=False).manifest == store.manifest
    assert len(read) == 4
    assert not list(tmp_path.glob(".store*"))


def test_memory_does_not_grow_with_the_export(tmp_path, monkeypatch):
    """What is read of a file four times as long takes no more at a time."""
    from saelab.stores import neuronpedia_parts as parts

    monkeypatch.setattr(parts, "FLUSH_VALUES", 1 << 16)
    monkeypatch.setattr(neuronpedia, "CHUNK", 1 << 16)
    peaks = []
    for n in (400, 1_600):
        row = window(0, [f"w{i}" for i in range(128)], [float(i % 2) for i in range(128)])
        file = batch(tmp_path / f"of-{n}", 0, [row | {"index": str(j)} for j in range(n)])
        tracemalloc.start()
        said = parts.written(
            file, 0, tmp_path / f"{n}.parquet", "activations", of=None, skip=False, told=None
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert said["lines"] == n
    assert peaks[1] < 1.3 * peaks[0]


@pytest.mark.parametrize("seed", range(3))
def test_mutated_files_are_read_or_refused(tmp_path, seed):
    random_ = random.Random(seed)
    rows = {
        "features": [feature(j, **FIRES) for j in range(3)],
        "activations": [window(j % 3, ["a", "b", " c"], [0.0, 1.5, -0.5]) for j in range(6)],
    }
    for trial in range(25):
        place = small(tmp_path / str(trial), *rows.values())
        kind = random_.choice(list(rows))
        data = bytearray(b"".join(json.dumps(row).encode() + b"\n" for row in rows[kind]))
        for _ in range(random_.randint(1, 3)):
            at = random_.randrange(len(data))
            data[at : at + random_.randint(0, 9)] = random_.randbytes(random_.randint(0, 3))
        (place / kind / "batch-0.jsonl.gz").unlink()
        (place / kind / "batch-0.jsonl").write_bytes(data)
        with contextlib.suppress(SaelabError):
            store = from_neuronpedia(place, progress=False)
            store.verify()
            absent = {j for low, high in store.manifest["absent"] for j in range(low, high + 1)}
            for j in {0, 1, 2} - absent:
                assert store.latent(j).count or not store.examples(j)


# ---- a Lab of it


def test_a_lab_of_a_store_alone_shows_it(original, store):
    lab = saelab.Lab(stores=store)
    assert repr(lab) == f"Lab({store.hook}, 48 latents over 42,000 rows)"
    whole = saelab.Lab(stores=original)
    ours, theirs = lab.card(3), whole.card(3)
    assert [t for t, _ in ours.lens.top] == [t for t, _ in theirs.lens.top]
    assert ours.label == "digits"
    assert "#3" in lab.feature(3).html()
    listed = lab.features()
    assert "42 latents" not in listed.text()
    assert lab.table.absent == set(range(24, 30))
    assert lab.table.names[24] == "not in the export"
    packed = lab.densities().answers()["densities"]()
    dead = sum(original.latent(j).count == 0 for j in LATENTS)
    assert packed.header["dead"] == dead == lab.table.dead
    assert set(packed.fields["latents"].tolist()) == set(LATENTS)
    assert lab.search(latent=3, n=2)["latent"].isin(LATENTS).all()
    assert lab.label(5, "five") == "five"
    store.attach_labels({5: ""})


def test_a_lab_of_a_store_alone_says_what_needs_more(store, tmp_path):
    lab = saelab.Lab(stores={"res": store})
    for asked in (lab.tokens, lab.show, lab.search, lambda text: lab.subject):
        with pytest.raises(SubjectError, match=r"needs the model.*Pass it: Lab\("):
            asked("a")
    with pytest.raises(ConfigError, match="needs the SAE 'res'"):
        _ = lab.sae
    with pytest.raises(StoreError, match="Got 25, of which it holds nothing"):
        lab.feature(25)
    for given in ({}, {"stores": []}, {"subject": "gpt2"}):
        with pytest.raises(ConfigError, match="needs an SAE or a store"):
            saelab.Lab(**given)
    page = lab.features().export(tmp_path / "all.html")
    assert page.stat().st_size > 10_000


def test_the_command_line(folder, store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(folder), "here", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["n_latents"] == 48
    assert told["export"]["of"] == OF
    assert main(["import", str(folder), "here"]) == 0  # it is there
    assert main(["import", "nowhere", "other"]) == 1
    assert "must hold features" in capsys.readouterr().err
    assert main(["import", str(folder), "other", "--n-rows", "x"]) == 1
    assert "n_rows" in capsys.readouterr().err
