"""Labels of latents: written into a store that others read, and looked through."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pytest
from forks import Forked
from letters import N_LATENTS

import saelab
from saelab.stores import FeatureStore, attached, labels
from saelab.types import ConfigError, RangeError, StoreError


def lines(frame):
    return list(frame.itertuples(index=False, name=None))


def test_a_store_without_labels(store):
    assert lines(store.labels()) == lines(store.search(label="a")) == []
    frame = store.query("select * from labels")
    assert (list(frame), len(frame)) == (["latent", "label", "source"], 0)
    assert store.query("select label || 'x' as l from labels where latent > 3").empty


def test_no_labels_leave_no_file(store, tmp_path):
    store.attach_labels({})
    assert not (store.folder / "labels.parquet").exists()
    merged = saelab.stores.merge([store.folder], tmp_path / "merged")
    assert not (merged.folder / "labels.parquet").exists()


def test_labels_are_kept_by_latent_and_source(store):
    assert store.query("select * from labels").empty
    store.attach_labels({5: "vowels", np.int64(2): "  spaces "}, source="me")
    store.attach_labels({5: "letters a, e", 3: "doubles"}, source="model")
    store.attach_labels({2: "blanks", 3: ""}, source="me")
    expected = [
        (2, "blanks", "me"),
        (3, "doubles", "model"),
        (5, "vowels", "me"),
        (5, "letters a, e", "model"),
    ]
    assert lines(store.labels()) == lines(store.query("select * from labels")) == expected
    other = FeatureStore.open(store.folder)
    assert lines(other.labels()) == lines(pd.read_parquet(store.folder / "labels.parquet")) == expected
    assert labels.newest(store.labels()) == {2: "blanks", 3: "doubles", 5: "letters a, e"}
    store.attach_labels({3: ""}, source="model")
    assert lines(store.labels()) == [e for e in expected if e[0] != 3]
    store.verify()
    FeatureStore.open(store.folder).verify()
    entry = json.loads((store.folder / "manifest.json").read_text())["files"]["labels.parquet"]
    assert store.manifest["files"]["labels.parquet"] == entry
    own = {f.name for f in store.folder.iterdir() if not f.name.startswith(".")}
    assert own == {*store.manifest["files"], "manifest.json"}


def test_verify_and_open_see_labels_that_were_spoilt(store):
    store.attach_labels({1: "one"})
    path = store.folder / "labels.parquet"
    good = path.read_bytes()
    path.write_bytes(good[:20] + bytes([good[20] ^ 1]) + good[21:])
    with pytest.raises(StoreError, match=r"labels\.parquet must have the hash"):
        store.verify()
    path.write_bytes(good[:-3])
    with pytest.raises(StoreError, match=r"labels\.parquet must hold"):
        FeatureStore.open(store.folder)
    with pytest.raises(StoreError, match=r"labels\.parquet must be as it was written"):
        store.labels()


def test_labels_of_other_latents_are_not_taken_from_a_file(store):
    table = labels.pa.Table.from_pylist([{"latent": 99, "label": "x"}], labels.LABELS.schema)
    labels.LABELS._replace(store.folder, table)
    with pytest.raises(StoreError, match=r"outside of 0\.\.11"):
        store.labels()


@pytest.mark.parametrize(
    ("attach", "source", "error", "told"),
    [
        ({N_LATENTS: "x"}, "me", RangeError, r"0\.\.11. Got 12"),
        ({-1: "x"}, "me", RangeError, r"0\.\.11. Got -1"),
        ({"3": "x"}, "me", RangeError, "Got '3'"),
        ({True: "x"}, "me", RangeError, "Got True"),
        ({3: None}, "me", ConfigError, "Got NoneType"),
        ({3: "x"}, "", ConfigError, "source"),
        ({3: "x"}, 5, ConfigError, "source"),
        ({3: "x"}, "a\ud800", ConfigError, "source"),
        ({3: "a\ud800"}, "me", ConfigError, "surrogate pair of latent 3"),
    ],
)
def test_wrong_labels_are_refused_whole(store, attach, source, error, told):
    store.attach_labels({0: "kept"})
    with pytest.raises(error, match=told):
        store.attach_labels({4: "fine", **attach}, source=source)
    assert lines(store.labels()) == [(0, "kept", "user")]


def test_labels_that_are_no_mapping_are_refused(store):
    with pytest.raises(ConfigError, match="Got a list"):
        store.attach_labels([(3, "x")])
    with pytest.raises(ConfigError, match="Got of='gpt2-small/6-res-jb'"):
        store.attach_labels({3: "x"}, of="gpt2-small/6-res-jb")


def test_search_by_label(store):
    store.attach_labels({1: "Names of people", 4: "people's names and places", 7: "the names"}, source="me")
    store.attach_labels({7: "numbers"}, source="model")
    found = store.search(label="NAMES")
    assert lines(found) == [
        (7, pytest.approx(5 / 8), "the names", "me"),
        (1, pytest.approx(5 / 13), "Names of people", "me"),
        (4, pytest.approx(5 / 22), "people's names and places", "me"),
    ]
    assert store.search(label="peop name")["latent"].tolist() == [1, 4]
    assert store.search(label="names")["latent"].tolist() == [7, 1, 4]
    assert store.search(label="names", n=1)["latent"].tolist() == [7]
    assert store.search(label="numbers")["score"].tolist() == [1]
    assert not len(store.search(label="nothing"))


# ---- whoever reads meanwhile


def test_readers_and_writers_at_once(store):
    """Opening, reading and querying never fails while three processes attach, and nothing is lost."""
    code = (
        "import sys\nfrom saelab.stores import FeatureStore\nstore = FeatureStore.open(sys.argv[1])\n"
        "for i in range(30):\n"
        "    store.attach_labels({i % 12: f'{sys.argv[2]} {i}'}, source=sys.argv[2])\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(store.folder), name]) for name in "abc"]
    errors, opened = [], [0]
    done = threading.Event()

    def read():
        try:
            while not done.is_set():
                fresh = FeatureStore.open(store.folder)
                opened[0] += 1
                assert len(fresh.query("select * from labels")) <= 36
                assert len(store.labels()) <= 36
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for r in readers:
        r.start()
    assert [w.wait() for w in writers] == [0, 0, 0]
    done.set()
    for r in readers:
        r.join()
    assert not errors
    assert opened[0] > 20
    last = {(i, name): f"{name} {i + 24 if i < 6 else i + 12}" for i in range(12) for name in "abc"}
    assert {(j, source): label for j, label, source in lines(store.labels())} == last
    FeatureStore.open(store.folder).verify()


def test_labels_attached_between_a_look_at_the_manifest_and_one_at_the_files(store, monkeypatch):
    store.attach_labels({1: "short"})
    loads = json.loads

    def slow(text, **options):
        monkeypatch.setattr(json, "loads", loads)
        store.attach_labels({1: "a longer label", 2: "and another"})
        return loads(text, **options)

    monkeypatch.setattr(json, "loads", slow)
    assert lines(FeatureStore.open(store.folder).labels())[1] == (2, "and another", "user")
    (store.folder / "labels.parquet").unlink()
    with pytest.raises(StoreError, match="no such file"):
        FeatureStore.open(store.folder)


@pytest.mark.parametrize("step", range(4))
def test_a_process_that_dies_while_it_attaches_leaves_a_whole_store(store, step):
    """Killed before each of the renames and after the last: the store opens, and the next one attaches."""
    store.attach_labels({1: "old"})
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom saelab.stores import FeatureStore\n"
        "left, replace = [int(sys.argv[2])], Path.replace\n"
        "def counted(self, target):\n"
        "    if not left[0]:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    left[0] -= 1\n    return replace(self, target)\n"
        "Path.replace = counted\n"
        "FeatureStore.open(sys.argv[1]).attach_labels({2: 'new'})\n"
    )
    assert Forked(code, store.folder, step).wait() == (0 if step == 3 else -9)
    fresh = FeatureStore.open(store.folder)
    fresh.verify()
    expected = [(1, "old", "user"), (2, "new", "user")]
    assert lines(fresh.labels()) == (expected if step > 1 else expected[:1])
    fresh.attach_labels({3: "next"})
    assert fresh.labels()["latent"].tolist()[-1] == 3
    FeatureStore.open(store.folder).verify()


def test_a_folder_that_cannot_be_written(store, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(attached.pq, "write_table", full)
    with pytest.raises(StoreError, match="No space left"):
        store.attach_labels({1: "x"})
    own = {f.name for f in store.folder.iterdir() if not f.name.startswith(".")}
    assert own == {*store.manifest["files"], "manifest.json"}


def users(monkeypatch, tmp_path):
    monkeypatch.setenv("SAELAB_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "labels"


def test_labels_of_a_store_that_is_shipped_or_locked_are_the_users(store, monkeypatch, tmp_path):
    own = users(monkeypatch, tmp_path)
    store.attach_labels({1: "one", 2: "two"}, source="world")
    before = {f.name: f.read_bytes() for f in store.folder.iterdir()}
    package = store.folder.parent.resolve()
    monkeypatch.setattr(attached, "is_installed", lambda path: path.is_relative_to(package))
    store.attach_labels({1: "first", 3: "third"}, source="me")
    assert {f.name: f.read_bytes() for f in store.folder.iterdir()} == before
    both = [(1, "one", "world"), (1, "first", "me"), (2, "two", "world"), (3, "third", "me")]
    fresh = FeatureStore.open(store.folder)
    assert lines(fresh.labels()) == lines(fresh.query("select * from labels")) == both
    assert labels.newest(fresh.labels())[1] == "first"
    fresh.verify()
    # by what the store is, wherever it lies
    shutil.copytree(store.folder, tmp_path / "copy")
    copy = FeatureStore.open(tmp_path / "copy")
    assert lines(copy.labels()) == both
    assert len(list(own.iterdir())) == 1
    store.attach_labels({1: "", 3: ""}, source="me")
    assert lines(store.labels()) == [(1, "one", "world"), (2, "two", "world")]
    # another store has others
    monkeypatch.setattr(attached, "is_installed", lambda path: False)
    monkeypatch.setattr(attached.os, "access", lambda *_: False)
    copy.attach_labels({5: "five"})
    assert lines(store.labels())[-1] == (5, "five", "user")
    monkeypatch.setenv("SAELAB_DATA", str(tmp_path / "other"))
    assert lines(store.labels()) == [(1, "one", "world"), (2, "two", "world")]


# ---- the Lab


def test_a_label_shows_at_once(small_lab, monkeypatch, tmp_path):
    users(monkeypatch, tmp_path)
    shutil.copytree(small_lab.store.folder, tmp_path / "s")
    lab = saelab.Lab(small_lab.subject, small_lab.sae, tmp_path / "s", labels={9: "given"})
    browser, card, text = lab.features(), lab.feature(4), lab.show("Tina gave it", 4)
    plain = lab.table.names[4]
    assert (lab.label(4), lab.label(9)) == ("", "given")
    assert lab.label(4, " names ") == lab.label(4) == lab.labels[4] == lab.card(4).label == "names"
    assert lab.label(9, "mine") == lab.labels[9] == "mine"
    edited = {"4": {"label": "names", "name": "names"}, "9": {"label": "mine", "name": "mine"}}
    assert browser.labels == card.labels == text.labels == edited
    assert (browser.table.names[4], lab.table.names[9]) == ("names", "mine")
    assert lab.search(label="names")["latent"].tolist() == [4]
    assert "«names»" in repr(card)
    assert [view.html().count("names") > 0 for view in (card, text)] == [True, True]
    header, _ = lab.show("Tina gave it").answers()["codes"]().encoded()
    assert header["named"] == {str(j): lab.labels[j] for j in (4, 9) if lab.codes("Tina gave it").of(j).any()}
    assert saelab.Lab(small_lab.subject, small_lab.sae, tmp_path / "s").label(4) == "names"
    assert (lab.label(4, ""), lab.table.names[4], browser.table.names[4]) == ("", plain, plain)
    assert card.labels["4"] == {"label": "", "name": plain}
    text.close()
    lab.label(4, "again")
    assert text.labels["4"]["label"] == ""
    for wrong, error in (((64, "x"), RangeError), ((4, 5), ConfigError), ((True, "x"), RangeError)):
        with pytest.raises(error):
            lab.label(*wrong)


def test_a_label_without_a_store_lasts_as_long_as_the_lab(small_lab):
    lab = saelab.Lab(small_lab.subject, small_lab.sae)
    assert (lab.label(3), lab.label(3, "x"), lab.label(3), lab.label(3, "")) == ("", "x", "x", "")


def test_the_lab_shows_the_stores_labels_and_its_own_on_top(small_lab, tmp_path):
    shutil.copytree(small_lab.store.folder, tmp_path / "s")
    store = FeatureStore.open(tmp_path / "s")
    store.attach_labels({4: "names", 5: "verbs"}, source="me")
    lab = saelab.Lab(small_lab.subject, small_lab.sae, store)
    assert (lab.table.names[4], lab.card(5).label) == ("names", "verbs")
    own = saelab.Lab(small_lab.subject, small_lab.sae, store, labels={4: "first names"})
    assert (own.table.names[4], own.card(4).label, own.labels[5]) == ("first names", "first names", "verbs")
    assert lines(own.search(label="names")) == [(4, pytest.approx(0.5), "first names", "lab")]
    assert lines(lab.search(label="names")) == [(4, 1.0, "names", "me")]
    assert lines(own.search(label="verbs")) == [(5, 1.0, "verbs", "me")]
