"""Exported pages: each answer once, whatever the views; nothing from outside; text is text."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from shown import card, chunks, codes, decoded, decoded_windows, table

from saelab.types import ConfigError, StoreError
from saelab.widgets import CardView, FeaturesView, SampleView, Selection, Table, Views, assets, page
from saelab.widgets.base import View
from saelab.widgets.wire import Packed


def data_of(path) -> dict:
    return json.loads(re.search(r'id="saelab-data">(.*?)</script>', path.read_text(), re.S)[1])


def latents_of(shelf: dict) -> list[int]:
    return [int(key.removeprefix("card?latent=")) for key in chunks(shelf)]


def test_no_html_is_ever_made_of_text():
    paths = [p for folder in ("shared", "views") for p in (assets.root() / folder).glob("*.js")]
    assert len(paths) > 8
    for path in paths:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", path.read_text()
        ), path


def test_a_page_holds_every_card_once(tmp_path):
    n = 130
    path = FeaturesView(table(n), questions={"card": card}).export(tmp_path / "page.html")
    data = data_of(path)
    (view,) = data["views"]
    assert view["kind"] == "features"
    held = {question: chunks(data["shelves"][number]) for question, number in view["shelves"].items()}
    assert list(held["card"]) == [f"card?latent={j}" for j in range(n)]
    assert decoded(*held["names"]["names"])["names"] == list(table(n).names)
    np.testing.assert_array_equal(decoded(*held["table"]["table"])["count"], table(n).count)
    # coarser than in a notebook
    assert decoded(*held["card"]["card?latent=7"])["values"].dtype == np.uint8
    for j in (0, 7, 64, n - 1):
        windows = decoded_windows(*held["card"][f"card?latent={j}"])
        for (names, values), made_of in zip(windows, card(j).top.windows, strict=False):
            assert names == made_of.names
            np.testing.assert_allclose(values, made_of.values, atol=0.01)
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", path.read_text())
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_a_page_of_cards_that_are_made_together_is_the_same(tmp_path):
    asked = []

    def cards(latents):
        asked.append(list(latents))
        return [card(j) for j in latents]

    one = FeaturesView(table(130), questions={"card": card}).export(tmp_path / "one.html")
    many = FeaturesView(table(130), questions={"card": card, "cards": cards}).export(tmp_path / "many.html")
    assert one.read_bytes() == many.read_bytes()
    assert asked == [list(range(64)), list(range(64, 128)), [128, 129]]


def left_out(path) -> str:
    found = re.search(r'<p class="sl-hint">Left out of this page: (.*?)</p>', path.read_text(), re.S)
    return "" if found is None else found[1]


def test_a_page_has_a_budget_and_says_what_it_leaves_out(tmp_path, monkeypatch):
    view = FeaturesView(table(300), questions={"card": card})
    whole = view.export(tmp_path / "whole.html")
    assert left_out(whole) == ""
    monkeypatch.setattr("saelab.widgets.export.BUDGET", 20_000)
    data = data_of(view.export(tmp_path / "some.html"))
    (entry,) = data["views"]
    held = {question: chunks(data["shelves"][number]) for question, number in entry["shelves"].items()}
    n = len(held["card"])
    assert n % 64 == 0
    assert 64 <= n < 300
    assert list(held["card"]) == [f"card?latent={j}" for j in range(n)]
    assert len(held["names"]) == len(held["table"]) == 1
    sizes = [sum(map(len, shelf["chunks"])) for shelf in data["shelves"]]
    assert sum(sizes) < 20_000 + max(map(len, data["shelves"][entry["shelves"]["card"]]["chunks"]))
    assert left_out(tmp_path / "some.html") == f"{300 - n} of 300 cards. A notebook with its kernel has all."
    # of another view nothing is lost for it
    both = page(tmp_path / "both.html", "Both", [Views("", [view, SampleView(codes(), {"card": card})])])
    shelves = data_of(both)["views"][1]["shelves"]
    assert len(chunks(data_of(both)["shelves"][shelves["codes"]])) == 1


def test_of_many_latents_a_page_holds_the_cards_of_those_that_fire_most(tmp_path, monkeypatch):
    monkeypatch.setattr("saelab.widgets.features.PAGE_CARDS", 20)
    made = table(130)
    view = FeaturesView(made, questions={"card": card}, latent=3)
    data = data_of(view.export(tmp_path / "page.html"))
    held = latents_of(data["shelves"][data["views"][0]["shelves"]["card"]])
    most = sorted(range(130), key=lambda j: (-made.count[j], j))[:20]
    assert held == sorted({*most, 3, made.telling()})
    assert left_out(tmp_path / "page.html").startswith(f"the cards of {130 - len(held)} latents, those that")


def test_views_of_the_same_source_share_their_cards(tmp_path):
    """A browser holds all, a heatmap with a card those that it can show, a card view its own."""
    asked = []

    def cards(latents):
        asked.append(latents)
        return map(card, latents)

    chosen = Selection(latent=3)
    alone = SampleView(codes(), questions={"card": card}, selection=chosen)
    with_card = SampleView(codes(), questions={"card": card}, selection=chosen, with_card=True)
    one = CardView(5, questions={"card": card}, selection=chosen)
    browser = FeaturesView(table(40), questions={"card": card, "cards": cards}, selection=chosen)
    fired = sorted(set(codes().codes.indices.tolist()))

    def shelves(*views):
        data = data_of(page(tmp_path / "p.html", "t", [Views("", views)]))
        return data, [v["shelves"] for v in data["views"]]

    data, (held,) = shelves(alone)
    assert set(held) == {"codes"}
    data, (held,) = shelves(with_card)
    assert sorted(latents_of(data["shelves"][held["card"]])) == fired
    data, (held,) = shelves(one)
    assert latents_of(data["shelves"][held["card"]]) == [5]
    assert asked == []
    data, held = shelves(one, with_card, alone, browser)
    assert len({h["card"] for h in held if "card" in h}) == 1
    assert sorted(latents_of(data["shelves"][held[0]["card"]])) == list(range(40))
    # the one that makes cards together is asked, though it came last
    assert sum(map(len, asked)) == 40
    # the texts are two, though they are called the same
    assert held[1]["codes"] != held[2]["codes"]
    assert [v["selection"] for v in data["views"]] == [0] * 4
    chosen = dict.fromkeys(("sae", "row", "document", "latents", "list"))
    assert data["selections"] == [{**chosen, "latent": 5}]


def test_views_of_other_sources_share_nothing(tmp_path):
    """Of two SAEs, say: the same number is another latent in each."""
    views = [
        CardView(3, questions={"card": lambda latent, shift=shift: card(latent + shift)}) for shift in (0, 1)
    ]
    data = data_of(page(tmp_path / "p.html", "t", [Views("", views)]))
    labels = [chunks(data["shelves"][v["shelves"]["card"]]) for v in data["views"]]
    assert [held["card?latent=3"][0]["latent"] for held in labels] == [3, 4]
    assert [v["selection"] for v in data["views"]] == [0, 1]


def test_a_page_runs_its_own_kinds_alone(tmp_path):
    text = CardView(3, questions={"card": card}).export(tmp_path / "p.html").read_text()
    assert "views/card.js" in text
    assert "views/sample.js" not in text
    assert ".sl-list" not in text


class Tiny(View):
    kind = "tiny"
    follows = ("row",)

    def answers(self):
        return {"ten": lambda: Packed({"n": 10})}


def test_a_kind_has_one_module_on_a_page(tmp_path):
    views = []
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "tiny.js").write_text("export const render = () => {};\n")
        views.append(type("Tiny", (Tiny,), {"folder": tmp_path / name})())
    assert views[0].export(tmp_path / "one.html").is_file()
    with pytest.raises(ConfigError, match="one module for each kind"):
        page(tmp_path / "two.html", "t", [Views("", views)])
    assert not (tmp_path / "two.html").exists()


def test_page_text_is_escaped(tmp_path):
    path = page(
        tmp_path / "p.html", "<b>title", [Table("<i>", ["<u>"], [["</table><script>alert(1)</script>"]])]
    )
    text = path.read_text()
    assert "<script>alert" not in text
    assert "&lt;b&gt;title" in text
    with pytest.raises(ConfigError):
        page(tmp_path / "q.html", "t", ["text"])


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        page(tmp_path / "file" / "p.html", "t", [])
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_table_has_a_name_for_each_column():
    with pytest.raises(ConfigError, match=r"2 columns, 'a', 'b'\. Got 3"):
        Table("", ["a", "b"], [["1", "2"], ["1", "2", "3"]])
