"""Latents by SQL, and the browser over them: what it lists is what Python says that it lists."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from letters import N_LATENTS
from shown import card, decoded, table

import saelab
from saelab.stores import browsing
from saelab.types import ConfigError, CorpusError, RangeError, StoreError
from saelab.widgets import FeaturesView, Selection

HOSTILE = "'; drop table tags; -- <img src=x>"


@pytest.fixture
def lab(small_lab, tmp_path):
    """A Lab over a copy of its store, to write into."""
    shutil.copytree(small_lab.store.folder, tmp_path / "s")
    return saelab.Lab(small_lab.subject, small_lab.sae, tmp_path / "s")


# ---- SQL over latents


def test_a_filter_finds_what_pandas_finds(store):
    frame = store.latents()
    store.attach_labels({2: "first", 5: "five"}, source="a")
    store.attach_labels({2: HOSTILE}, source="b")
    store.tags.add(HOSTILE, [2, 3])
    store.notes[4] = "a note"
    store.lists["few"] = [9, 1]
    strong = (frame["max"] > frame["mean"] * 2) | (frame["count"] == 0)
    for sql, expected in (
        ("density < 0.2", frame["latent"][frame["density"] < 0.2].tolist()),
        ("max > mean * 2 or count = 0 -- said", frame["latent"][strong].tolist()),
        ("label = 'five'", [5]),
        ("label like '%drop table%' and label <> 'first'", [2]),
        ("len(tags) > 0 or note is not null", [2, 3, 4]),
        ("'few' in lists", [1, 9]),
        ("latent in (select latent from tokens where token = 'a' and lift > 0)",
         sorted(store.query("select latent from tokens where token = 'a'")["latent"])),
        ("list_sum(histogram) > 0", frame["latent"][frame["count"] > 0].tolist()),
        ("described.latent < 2 and len(edges) > 0 and {'a': latent}.a = 1", [1]),
        ("false", []),
    ):  # fmt: skip
        assert browsing.where(store, sql).tolist() == expected, sql
    assert browsing.where(store, f"'{HOSTILE.replace(chr(39), chr(39) * 2)}' in tags").tolist() == [2, 3]
    known = browsing.columns(store)
    assert {"latent", "density", "label", "note", "tags", "lists"} <= set(known)
    assert known["tags"] == "VARCHAR[]"


def test_labels_on_top_of_the_stores_are_asked_too(lab):
    """Those of a Lab, which no store keeps."""
    lab.store.attach_labels({2: "two", 5: "five", 6: "six"})
    lab.store.tags.add("odd", [5])
    lab = saelab.Lab(lab.subject, lab.sae, lab.store, labels={2: HOSTILE, 3: "three", 5: ""})
    ask = lab._one().source.questions
    assert ask["where"]("label is not null").tolist() == [2, 3, 6]
    assert ask["where"]("label like '%drop table%' and len(histogram) > 0").tolist() == [2]
    assert ask["where"]("'odd' in tags and label is null").tolist() == [5]
    assert ask["column"]("coalesce(label, '-')").tolist()[:7] == ["-", "-", HOSTILE, "three", "-", "-", "six"]
    coloured = lab._one()._map_column("label")
    assert sorted(coloured.categories) == sorted([HOSTILE, "three", "six"])
    assert np.isfinite(coloured.values).nonzero()[0].tolist() == [2, 3, 6]
    with pytest.raises(ConfigError, match="one SQL expression"):
        ask["where"]("no_such > 1")


def test_what_is_held_in_memory_is_what_lies_in_the_files(store):
    for label in ("one", "another"):  # held, and then out of date
        store.attach_labels({2: label})
        brief = store.query("select * from described_briefly order by latent", format="arrow")
        whole = store.query("select * from described order by latent", format="arrow")
        assert set(whole.column_names) - set(brief.column_names) == {"histogram", "edges"}
        assert brief.equals(whole.select(brief.column_names))
        assert browsing.where(store, f"label = '{label}'").tolist() == [2]


def test_a_column_is_a_value_for_each_latent(store):
    store.attach_labels({2: "two"})
    store.tags.add("b", 2)
    store.tags.add("a", 2)
    frame = store.latents()
    np.testing.assert_allclose(browsing.column(store, "max - mean"), frame["max"] - frame["mean"], atol=1e-6)
    assert np.isnan(browsing.column(store, "0.0 / 0")).all()
    assert browsing.column(store, "label").tolist() == ["", "", "two"] + [""] * (N_LATENTS - 3)
    assert browsing.column(store, "tags")[2] == "a, b"
    assert browsing.column(store, "count > 3").tolist() == (frame["count"] > 3).astype(float).tolist()
    assert browsing.column(store, "count::decimal(9, 2)").tolist() == frame["count"].tolist()
    assert browsing.column(store, "1::utinyint").dtype == np.float64


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("densty < 1", 'Referenced column "densty" not found'),
        ("true) union all select 7 where (true", "more than one expression"),
        ("true) union all select 99 where (true", "more than one expression"),
        ("true; drop table tags", "syntax error"),
        ("1) order by 1 limit 3 --", "syntax error"),
        ("latent in (select 1 from read_text('/etc/passwd'))", "may not read"),
        ("latent in (select latent from read_parquet('x.parquet'))", "may not read"),
        ("(delete from tags returning latent) is null", ""),
        ("avg(density) > 1", "aggregate"),
        ("", "empty"),
        (None, "Got None"),
        ("1 + " * 600 + "1", "2,000 letters"),
    ],
)
def test_what_is_no_expression_is_refused(store, sql, told):
    store.tags.add("kept", 1)
    for ask, what in ((browsing.where, "A filter"), (browsing.column, "A column")):
        if (what, sql) == ("A column", "1 + " * 600 + "1") or what == "A filter" or sql != "":
            with pytest.raises(ConfigError, match=f"{what} must be one SQL expression") as error:
                ask(store, sql)
            assert what == "A column" or told in str(error.value)
    assert store.tags["kept"] == (1,)


# ---- the view


def test_what_the_browser_lists_is_what_python_says(lab):
    frame = lab.store.latents()
    view = lab.features(columns=["density", "max / mean"], where="density < 0.05", sort="max / mean")
    some = frame[frame["density"] < 0.05]
    ratio = some["max"] / some["mean"]
    expected = some["latent"].to_numpy()[np.lexsort((some["latent"], -ratio.fillna(-np.inf)))].tolist()
    assert list(view.selected) == expected
    found = view.frame()
    assert list(found) == ["latent", "name", "density", "max / mean"]
    assert found["latent"].tolist() == expected
    assert found["name"].tolist() == [lab.table.names[j] for j in expected]
    view.descending = False
    dead = int(ratio.isna().sum())
    assert list(view.selected)[: len(expected) - dead] == expected[: len(expected) - dead][::-1]
    lab.selection.latents = (3, 500, 7)
    view.where = ""
    assert set(view.selected) == {3, 7}
    lab.selection.latents = None
    view.words, view.sort = "6", "latent"
    assert view.selected == tuple(j for j in range(64) if str(j).startswith("6"))
    view.words = lab.table.names[int(view.begins)].upper()
    assert view.begins in view.selected
    assert view.selected == tuple(
        j for j, name in enumerate(lab.table.names) if view.words.lower() in name.lower()
    )


def test_a_search_keeps_the_order_of_what_it_found(lab):
    view = lab.features()
    token = lab.store.tokens(view.begins)["token"][0]
    for way, words, asked in (
        ("token", token, {"token": token}),
        ("latent", "#7", {"latent": 7}),
        ("example", "and the", {"example": "and the"}),
    ):
        view.words, view.way, view.sort = words, way, "score"
        expected = lab.search(n=200, **asked)
        assert list(view.selected) == expected["latent"].tolist()
        assert view._find(words, way)[0] == (expected["latent"][0], pytest.approx(expected["score"][0]))
    view.sort = "latent"
    assert list(view.selected) == sorted(view.selected, reverse=True)
    view.way = "nonsense"
    with pytest.raises(ConfigError, match="goes by text, token"):
        _ = view.selected
    view.way, view.words = "latent", "seven"
    with pytest.raises(ConfigError, match=r"takes its number\. Got 'seven'"):
        _ = view.selected


def test_a_file_holds_what_is_listed(lab):
    lab.store.attach_labels({3: HOSTILE})
    view = lab.features(columns=["label", "density", "count"], where="density > 0")
    view.sort = "count"
    frame = view.frame()
    for format, read in (("csv", pd.read_csv), ("json", pd.read_json), ("parquet", pd.read_parquet)):
        header, buffers = view.answers()["file"](format).encoded()
        data = decoded(header, buffers)["data"].tobytes()
        again = read(io.BytesIO(data))
        assert again["latent"].tolist() == frame["latent"].tolist()
        assert list(again) == list(frame)
        np.testing.assert_allclose(again["density"], frame["density"])
        assert again["label"].fillna("")[again["latent"].tolist().index(3)] == HOSTILE
        assert header["name"] == f"latents.{format}"
    with pytest.raises(ConfigError, match=r"csv, json, parquet\. Got 'xls'"):
        view.answers()["file"]("xls")


def test_what_is_written_is_seen_at_once(lab):
    browser, other = lab.features(), lab.feature(3)
    told = [lab.features().answers()["marks"]().encoded()[0]]
    lab.notes[3] = HOSTILE
    lab.tags.add("good", [3, 4])
    lab.lists["few"] = [9, 3]
    assert (browser.written, other.written) == (3, 3)
    header, buffers = other.answers()["marks"](written=3).encoded()
    fields = decoded(header, buffers)
    assert (header["tags"], header["lists"]) == ([["good", 2]], [["few", 2]])
    assert (fields["tags"].tolist(), fields["lists"].tolist()) == ([3, 4], [9, 3])
    assert fields["notes"] == {"3": HOSTILE}
    assert told[0]["tags"] == []
    mark = browser.answers()["mark"]
    mark(kind="tag", action="remove", name="good", latents=[4])
    mark(kind="list", action="add", name="few", latents=[1])
    mark(kind="note", action="add", name="", latents=[3])
    assert (lab.tags["good"], lab.lists["few"], dict(lab.notes)) == ((3,), (9, 3, 1), {})
    for wrong, error in (
        ({"kind": "tags", "action": "add", "name": "x", "latents": [1]}, ConfigError),
        ({"kind": "tag", "action": "clear", "name": "x", "latents": [1]}, ConfigError),
        ({"kind": "tag", "action": "add", "name": "x", "latents": [64]}, RangeError),
    ):
        with pytest.raises(error):
            mark(**wrong)


def test_a_view_of_a_table_alone_does_without_the_rest():
    view = FeaturesView(table(), questions={"card": card})
    assert view.able == []
    assert "marks" not in view.answers()
    view.where = "density > 0"
    with pytest.raises(StoreError, match=r"asks a store for 'where'\. Got none"):
        _ = view.selected
    view.where, view.words, view.way = "", "a text", "text"
    with pytest.raises(CorpusError, match="needs the model"):
        _ = view.selected


def test_a_browser_begins_with_a_telling_latent_and_moves_nothing(lab):
    heat = lab.show("Tina gave it")
    view = lab.features()
    assert (lab.selection.latent, heat.latent) == (None, None)
    stats = lab.store.latents()
    some = stats[(stats["count"] >= 20) & (stats["density"] <= 0.01)]
    assert view.begins == (some if len(some) else stats).sort_values("density")["latent"].iloc[-1]
    assert f"card?latent={view.begins}" in view.opening
    assert f"#{view.begins}" in view.html()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"columns": "density"}, "columns must be several texts. Got 'density'"),
        ({"columns": [3]}, "columns must be a text. Got int"),
        ({"columns": ["nope"]}, "A column must be"),
        ({"where": "nope"}, "A filter must be"),
        ({"where": 3}, "where must be a text"),
        ({"sort": "nope"}, "A column must be"),
    ],
)
def test_a_browser_refuses_what_is_no_column(lab, options, told):
    with pytest.raises(ConfigError, match=told):
        lab.features(**options)


# ---- what is chosen


def test_a_list_is_chosen_by_its_name(lab):
    lab.lists["few"] = [9, 3]
    view = lab.features()
    lab.selection.list = "few"
    assert (view.list, view.latents, set(view.selected)) == ("few", (9, 3), {3, 9})
    lab.lists.add("few", 4)
    assert view.latents == (9, 3, 4)
    view.latents = (1, 2)
    assert (lab.selection.list, view.list) == (None, None)
    with pytest.raises(ConfigError, match=r"list must name one of the lists.*'few'. Got 'fw'.*'few'"):
        lab.selection.list = "fw"
    assert lab.selection.list is None


def test_back_and_forward(lab):
    card, browser = lab.feature(), lab.features()
    lab.selection.latent = 3
    browser.latent = 5
    browser.row, browser.document = 9, 2
    lab.selection.latents = (1, 2)
    assert lab.selection.back()
    assert (card.latent, browser.latents, browser.row) == (5, None, 9)
    assert lab.selection.back()
    assert (card.latent, lab.selection.row) == (3, None)
    assert lab.selection.forward()
    assert card.latent == 5
    card.latent = 8  # what was to come is gone
    assert not lab.selection.forward()
    assert [card.answers() and card._step(-1).header["moved"] for _ in range(4)] == [True, True, True, False]
    assert (card.latent, browser.latent) == (None, None)
    card._step(1)
    assert browser.latent == 3


def test_back_goes_from_sae_to_sae(lab):
    both = saelab.Lab(lab.subject, {"a": lab.sae, "b": lab.sae}, {"a": lab.store, "b": lab.store})
    first, second = both.feature(sae="a"), both.feature(sae="b")
    both.selection.latent = 3
    both.feature(7, sae="b", follow=True)
    assert (both.selection.sae, first.latent, second.latent) == ("b", 3, 7)
    first.latent = 4
    assert both.selection.sae == "a"
    steps = []
    while both.selection.back():
        steps.append((both.selection.sae, both.selection.latent))
    assert steps == [("b", 7), ("a", 3), ("a", None)]
    while both.selection.forward():
        pass
    assert (both.selection.sae, both.selection.latent, first.latent, second.latent) == ("a", 4, 4, 7)


def test_history_is_bounded_and_of_one_selection():
    selection, apart = Selection(), Selection(latent=4)
    for j in range(300):
        selection.latent = j
    back = 0
    while selection.back():
        back += 1
    assert (back, selection.latent) == (100, 199)
    assert not apart.back()
    assert json.dumps(repr(apart)) == '"Selection(latent=4)"'
