"""Notes, tags and lists of latents: written beside what a store says, by several, without a loss."""

from __future__ import annotations

import threading

import pandas as pd
import pytest
from forks import Forked

import saelab
from saelab.stores import FeatureStore, attached
from saelab.types import ConfigError, RangeError, StoreError

HOSTILE = [
    "<img src=x onerror='window.hacked=1'>",
    "'; drop table tags; --",
    "\u202eabc\u200b",
    "a\x00b\nc",
    "日本 🜚 'in' \"quotes\" ; select",
]


def test_what_a_reader_writes_is_found_again(store):
    assert (len(store.notes), len(store.tags), len(store.lists)) == (0, 0, 0)
    assert store.query("select * from annotations").empty
    store.notes[5] = "  fires on vowels "
    store.notes.write(5, "of the model", source="model")
    store.notes[2] = "spaces"
    store.tags.add("to check", [5, 3, 5])
    store.tags.add("vowel", 5)
    store.lists["odd"] = [9, 3, 7]
    store.lists.add("odd", [3, 1])
    other = FeatureStore.open(store.folder)
    for found in (store, other):
        assert dict(found.notes) == {5: "of the model", 2: "spaces"}
        assert dict(found.tags) == {"to check": (5, 3), "vowel": (5,)}
        assert found.tags.of(5) == ("to check", "vowel")
        assert dict(found.lists) == {"odd": (9, 3, 7, 1)}
        assert found.query("select latent, note from notes order by latent").values.tolist() == [
            [2, "spaces"], [5, "fires on vowels"], [5, "of the model"],
        ]  # fmt: skip
        joined = "select l.latent from latents l join tags t using (latent) where tag = 'vowel'"
        assert found.query(joined)["latent"].tolist() == [5]
        assert found.query("select list, latent from lists")["latent"].tolist() == [9, 3, 7, 1]
    assert {line.source for line in store.query("from notes").itertuples()} == {"user", "model"}
    assert (pd.Timestamp.now("UTC").tz_localize(None) - store.query("from notes")["time"].max()).seconds < 60
    store.notes[5] = ""
    del store.notes[2]
    store.tags.remove("to check", [5, 8])
    del store.tags["vowel"]
    store.lists["odd"] = (1, 9)
    assert (dict(store.notes), dict(store.tags), dict(store.lists)) == (
        {5: "of the model"}, {"to check": (3,)}, {"odd": (1, 9)},
    )  # fmt: skip
    store.notes.write(5, "", source="model")
    assert 5 not in store.notes
    store.verify()
    FeatureStore.open(store.folder).verify()


def test_what_one_says_another_does_not_take_away(store):
    store.tags.add("good", [1, 2], source="world")
    store.tags.add("good", [2, 3])
    store.tags.remove("good", [1, 2, 3])
    assert store.tags["good"] == (1, 2)
    store.lists.add("both", 4, source="world")
    store.lists["both"] = [6]
    assert store.lists["both"] == (4, 6)
    del store.lists["both"]
    assert store.lists["both"] == (4,)


def test_texts_stay_as_they_are(store):
    for latent, text in enumerate(HOSTILE):
        store.notes[latent] = text
        store.tags.add(text, latent)
        store.lists[text] = [latent]
    store.lists.add(HOSTILE[0], [3])
    fresh = FeatureStore.open(store.folder)
    assert dict(fresh.notes) == dict(enumerate(HOSTILE))
    assert dict(fresh.tags) == {text: (latent,) for latent, text in enumerate(HOSTILE)}
    assert fresh.lists[HOSTILE[0]] == (0, 3)
    for latent, text in enumerate(HOSTILE):
        found = fresh.query("select latent from tags where tag = ?", [text])
        assert found["latent"].tolist() == [latent]


@pytest.mark.parametrize(
    ("write", "error", "told"),
    [
        (lambda s: s.notes.write(12, "x"), RangeError, r"A note's latent must .*0\.\.11. Got 12"),
        (lambda s: s.notes.write(True, "x"), RangeError, "Got True"),
        (lambda s: s.notes.write(3, None), ConfigError, "A note must be a str. Got NoneType"),
        (lambda s: s.notes.write(3, "x" * 20_001), ConfigError, "at most 20,000 characters. Got 20,001"),
        (lambda s: s.notes.write(3, "x", source=" "), ConfigError, "source must"),
        (lambda s: s.tags.add("a\ud800", 3), ConfigError, "half a surrogate pair"),
        (lambda s: s.tags.add(" ", 3), ConfigError, "A tag must have a name. Got ''"),
        (lambda s: s.tags.add("x" * 201, 3), ConfigError, "A tag must have at most 200"),
        (lambda s: s.tags.add("x", "3"), RangeError, "A tag's latent .* Got '3'"),
        (lambda s: s.tags.of(-1), RangeError, "Got -1"),
        (lambda s: s.lists.add("x", [3, 99]), RangeError, "A list's latent .* Got 99"),
        (lambda s: s.lists.update({"x": [3.5]}), RangeError, "Got 3.5"),
    ],
)
def test_wrong_ones_are_refused_whole(store, write, error, told):
    with pytest.raises(error, match=told):
        write(store)
    assert not (store.folder / "annotations.parquet").exists()


def test_what_was_spoilt_is_seen(store):
    store.notes[3] = "x"
    path = store.folder / "annotations.parquet"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StoreError, match=r"annotations\.parquet must hold"):
        FeatureStore.open(store.folder)
    for read in (lambda: dict(store.notes), lambda: store.query("from tags")):
        with pytest.raises(StoreError, match=r"annotations\.parquet must be as it was written"):
            read()


def test_two_processes_at_once_lose_nothing(store):
    """They write notes, tags, lists and labels, while another reads."""
    code = (
        "import sys\nfrom saelab.stores import FeatureStore\nstore = FeatureStore.open(sys.argv[1])\n"
        "for i in range(12):\n"
        "    store.tags.add('all', i, source=sys.argv[2])\n"
        "    store.lists.add(sys.argv[2], i)\n"
        "    store.attach_labels({i: sys.argv[2]}, source=sys.argv[2])\n"
    )
    writers = [Forked(code, store.folder, name) for name in "ab"]
    errors, done = [], threading.Event()

    def read():
        try:
            while not done.is_set():
                FeatureStore.open(store.folder).query("from annotations")
                assert set(store.lists) <= {"a", "b"}
        except BaseException as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    assert [w.wait() for w in writers] == [0, 0]
    done.set()
    reader.join()
    assert not errors
    assert len(store.query("from tags where tag = 'all'")) == 24
    assert dict(store.lists) == {name: tuple(range(12)) for name in store.lists}
    assert sorted(store.lists) == ["a", "b"]
    assert len(store.labels()) == 24
    FeatureStore.open(store.folder).verify()


def test_those_of_a_store_that_may_not_be_written_are_the_users(store, monkeypatch, tmp_path):
    monkeypatch.setenv("SAELAB_DATA", str(tmp_path / "data"))
    store.tags.add("good", 1, source="world")
    before = {f.name: f.read_bytes() for f in store.folder.iterdir()}
    monkeypatch.setattr(attached, "is_installed", lambda path: True)
    store.tags.add("good", 2)
    store.notes[4] = "mine"
    store.attach_labels({4: "four"})
    assert {f.name: f.read_bytes() for f in store.folder.iterdir()} == before
    fresh = FeatureStore.open(store.folder)
    assert (fresh.tags["good"], fresh.notes[4]) == ((1, 2), "mine")
    assert fresh.query("from notes")["note"].tolist() == ["mine"]
    fresh.verify()


def test_merged_stores_have_those_of_both(store, tmp_path):
    store.notes[1] = "one"
    store.lists["few"] = [4, 2]
    merged = saelab.stores.merge([store.folder, store.folder], tmp_path / "merged")
    assert (dict(merged.notes), dict(merged.lists)) == ({1: "one"}, {"few": (4, 2)})
    merged.verify()
