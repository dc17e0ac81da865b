"""Folders of HeadVis are read as what `head_examples` gives, and others are refused."""

from __future__ import annotations

import json
import random

import headvis
import numpy as np
import pytest

from saelab.analysis import HeadExamples, read_headvis
from saelab.analysis.attention import headvis as module
from saelab.types import FormatError, RangeError, SaelabError, StoreError

HEAD = "heads/L1H0.json"


def test_a_folder_says_what_it_holds(tmp_path):
    found = read_headvis(headvis.written(tmp_path))
    assert isinstance(found, HeadExamples)
    assert (found.model, found.corpus, found.n, found.intervals) == ("a/model", "a/text", 1998, 3)
    assert (found.layers, found.heads, sorted(found.known)) == (2, 2, [(0, 0), (1, 0), (1, 1)])
    assert list(found.measures) == ["self", "previous", "spread", "qk_distance_variance"]
    previous = found.measures["previous"]
    assert previous.what == "Mean attention to the token before."
    np.testing.assert_allclose(previous.values, [[0.1, np.nan], [1.1, 1.6]])
    assert np.isnan(found.measures["spread"].values[1, 0])
    assert np.isnan(previous.low).all()
    assert "most in 1.1, 1.600" in str(found)


def test_a_head_is_what_its_file_says(tmp_path):
    found = read_headvis(headvis.written(tmp_path)).head(1, 0)
    raw = headvis.contents()[HEAD]["sequences"]
    order = sorted(raw, key=lambda each: (-each["interval"], -each["max_activation"]))
    assert [each.document for each in found.sequences] == [each["sequence_id"] for each in order]
    assert [each.interval for each in found.sequences] == [3, 3, 2, 2, 1, 1, 1]
    for own, each in zip(found.sequences, order, strict=True):
        assert own.tokens == tuple(headvis.TOKENS)
        assert own.strongest == each["max_activation"]
        dense = np.zeros((8, 8))
        dense[tuple(own.edges.T)] = own.weights
        whole = headvis.pattern(100 + each["sequence_id"] // 10, 1 + each["sequence_id"] // 10 % 3)
        np.testing.assert_allclose(dense, np.where(whole >= 0.05, whole, 0), atol=1e-4)
        assert own.best is not None
        assert dense[own.best] == pytest.approx(own.strongest, abs=1e-4)
    assert found.strongest.tolist() == list(range(50))
    # the share of a token, of all the weight that is kept between two positions behind the first
    above = total = 0
    for each in raw[1::2]:
        for at, value in zip(each["attention_indices"], each["attention_values"], strict=True):
            query, key = divmod(at, 8)
            if 0 < key < query:
                total += value
                above += value * (headvis.TOKENS[key] == found.keys[0].token)
    assert found.keys[0].share == pytest.approx(above / total, rel=1e-4)
    assert found.keys[0].low < found.keys[0].share < found.keys[0].high
    assert found.away.sum() == pytest.approx(1)


def changed(files, name, **others):
    files[name].update(others)


def own(files):
    return files[HEAD]["sequences"][2]


BROKEN = {
    "must have heads, a list of \\[layer, head\\]": lambda f: changed(f, "config.json", heads=[[0, -1]]),
    "must have heads": lambda f: changed(f, "config.json", heads=[[0, 10**9]]),
    "each head once. Got \\(1, 1\\) twice": lambda f: f["config.json"]["heads"].append([1, 1]),
    "within heads/. Got '../../{layer}{head}'": lambda f: changed(
        f, "config.json", head_data_pattern="../../{layer}{head}"
    ),
    "n_intervals from 1": lambda f: changed(f, "config.json", n_intervals=0),
    "n_layers from 2": lambda f: changed(f, "config.json", n_layers=1),
    "n_heads from 2 to 256": lambda f: changed(f, "config.json", n_heads=10**12),
    "rows with layer and head": lambda f: f["scatter_data.json"].append({"layer": 5, "head": 0}),
    "one row for each head": lambda f: f["scatter_data.json"].append({"layer": 0, "head": 0}),
    "finite numbers as metrics": lambda f: f["scatter_data.json"][0].update(qk="much"),
    "finite numbers as metrics. Got 1000": lambda f: f["scatter_data.json"][0].update(qk=10**400),
    "is no number of JSON": lambda f: f["scatter_data.json"][0].update(qk=1e999),
    "at most 100 metrics": lambda f: f["scatter_data.json"][0].update({f"m{i}": 1 for i in range(101)}),
    "JSON array": lambda f: f.update({"scatter_data.json": {}}),
}
BROKEN_HEADS = {
    "sequences, a list": lambda f: changed(f, HEAD, sequences="x"),
    "sequences that are objects": lambda f: f[HEAD]["sequences"].append(3),
    "tokens, a list of strings": lambda f: own(f).update(tokens=[1, 2]),
    "seq_len equal to its 8 tokens. Got 9": lambda f: own(f).update(seq_len=9),
    "at most 4,096 tokens": lambda f: own(f).update(tokens=["a"] * 4097),
    "as many attention_values": lambda f: own(f)["attention_values"].pop(),
    "attention_indices below 64": lambda f: own(f)["attention_indices"].__setitem__(0, 64),
    "attention_indices below 64, each once. Got -1": lambda f: own(f)["attention_indices"].__setitem__(0, -1),
    "each once. Got 'one twice'": lambda f: own(f)["attention_indices"].__setitem__(0, 9),
    "attention_values from 0 to 1. Got 2": lambda f: own(f)["attention_values"].__setitem__(0, 2),
    "attention_values from 0 to 1. Got None": lambda f: own(f)["attention_values"].__setitem__(0, None),
    "interval from 1 to 3. Got 4": lambda f: own(f).update(interval=4),
    "finite number as max_activation": lambda f: own(f).update(max_activation=None),
    "bin_edges, one more": lambda f: changed(f, HEAD, histogram={"bin_edges": [0], "bin_values": [1]}),
    "whose bin_edges rise": lambda f: changed(f, HEAD, histogram={"bin_edges": [1, 0], "bin_values": [1]}),
    "histogram of counts": lambda f: changed(f, HEAD, histogram={"bin_edges": [0, 1], "bin_values": [-1]}),
}


@pytest.mark.parametrize("says", [*BROKEN, *BROKEN_HEADS])
def test_what_is_no_folder_of_headvis(says, tmp_path):
    files = headvis.contents()
    (BROKEN | BROKEN_HEADS)[says](files)
    folder = headvis.written(tmp_path, files)
    if says in BROKEN_HEADS:
        found = read_headvis(folder)
        found.head(1, 1)  # others are not touched by it
    with pytest.raises(FormatError, match=says) as error:
        read_headvis(folder).head(1, 0)
    assert str(tmp_path) in str(error.value)


def test_further_bad_input(tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="must be readable"):
        read_headvis(tmp_path / "nowhere")
    folder = headvis.written(tmp_path)
    with pytest.raises(RangeError, match=r"one of the 3 that are known.* Got layer=0, head=1"):
        read_headvis(folder).head(0, 1)
    (folder / "heads" / "L1H1.json").unlink()
    with pytest.raises(StoreError, match="must be readable"):
        read_headvis(folder).head(1, 1)
    monkeypatch.setattr(module, "MOST_PAIRS", 400)
    with pytest.raises(FormatError, match=r"at most 400 pairs of tokens\. Got 448"):
        read_headvis(folder).head(1, 0)
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    with pytest.raises(FormatError, match="at most 100 bytes"):
        read_headvis(folder)


def test_a_folder_without_what_may_be_missing(tmp_path):
    files = {
        "config.json": {"heads": [[0, 0]]},
        "scatter_data.json": [],
        "heads/L0H0.json": {"sequences": []},
    }
    found = read_headvis(headvis.written(tmp_path, files))
    head = found.head(0, 0)
    assert (head.sequences, head.keys, len(head.strongest)) == ((), (), 0)
    assert "head 0.0, 0 sequences" in str(head)
    assert "1 heads of a model" in str(found)


@pytest.mark.parametrize("seed", range(60))
def test_mutated_folders_are_read_or_refused(tmp_path, seed):
    """Nothing else is raised, whatever was changed in the files."""
    draw = random.Random(seed)
    files = {name: json.dumps(data) for name, data in headvis.contents().items()}
    name = draw.choice(["config.json", "scatter_data.json", HEAD])
    data = list(files[name])
    for _ in range(draw.choice([1, 2, 5])):
        at = draw.randrange(len(data))
        if draw.random() < 0.5:
            data[at] = draw.choice('0123456789-e.,:[]{}"nullfalse\\ud')
        else:
            del data[at : at + draw.choice([1, 1, 20])]
    for path, text in files.items():
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(data) if path == name else text)
    try:
        found = read_headvis(tmp_path)
        for at in found.known:
            str(found.head(*at))
        str(found)
        found.to_frame()
    except SaelabError:
        pass
