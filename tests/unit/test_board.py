"""A board holds views as they are in cells of their own, and is found again as it was left."""

from __future__ import annotations

import json

import numpy as np
import pytest
from shown import card, table

from saelab.types import ConfigError
from saelab.widgets import BoardView, CardView, DensitiesView, FeaturesView, Selection
from saelab.widgets.questions import Ask
from saelab.widgets.steer import SteerView


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SAELAB_DATA", str(tmp_path / "data"))


def made(selection=None):
    selection = Selection() if selection is None else selection
    questions = {"card": lambda latent: card(latent)}
    features = FeaturesView(table(30), questions, selection=selection)
    pinned = CardView(4, questions, selection=Selection(latent=4))
    return [features, DensitiesView(table(30), selection=selection), pinned]


def test_it_answers_as_its_views_do():
    views = made()
    board = BoardView(views)
    for number, view in enumerate(views):
        for ask in view.first():
            expected = view.answers()[ask.question](**ask.args).encoded()
            args = json.dumps(dict(ask.args), separators=(",", ":"))
            assert board.answers()["of"](number, ask.question, args).encoded() == expected
            key = Ask("of", {"view": number, "question": ask.question, "args": args}).key()
            assert board.opening[key] == {"header": expected[0], "buffers": expected[1]}
    with pytest.raises(ConfigError, match="A question must be one of"):
        board.answers()["of"](0, "no such", "{}")
    with pytest.raises(ConfigError, match="view must be"):
        board.answers()["of"](3, "table", "{}")


def test_what_is_chosen_goes_both_ways_and_a_pinned_view_stays():
    selection = Selection()
    board = BoardView(views := made(selection))
    selection.latent, selection.latents = 5, np.arange(3)
    assert board.selections[0]["latent"] == 5
    assert board.selections[0]["latents"] == [0, 1, 2]
    board.selections = [{**board.selections[0], "latent": 9, "latents": [7]}, board.selections[1]]
    assert (selection.latent, selection.latents, views[0].latent, views[2].latent) == (9, (7,), 9, 4)
    board.selections = [board.selections[0], {**board.selections[1], "latent": 2}]
    assert (selection.latent, views[2].latent) == (9, 2)
    board.close()
    selection.latent = 11
    assert board.selections[0]["latent"] == 9
    assert views[0].latent == 11, "closing the board closes none of its views"


def test_a_view_in_it_goes_back_in_its_own_selection():
    selection = Selection()
    board = BoardView(views := made(selection))
    selection.latent = 5
    selection.latent = 6
    views[2].latent = 8
    board.answers()["of"](0, "step", '{"by":-1}')
    assert (selection.latent, views[0].latent, views[2].latent) == (5, 5, 8)
    board.answers()["of"](2, "step", '{"by":-1}')
    assert (selection.latent, views[2].latent) == (5, 4)


def test_options_and_labels_go_both_ways():
    lab_card = CardView(4, {"card": lambda latent: card(latent)})
    board = BoardView([lab_card])
    lab_card.labels = {"4": {"label": "mine", "name": "mine"}}
    assert board.entries[0]["options"]["labels"] == lab_card.labels
    lab_card.written = 3
    assert board.entries[0]["options"]["written"] == 3, "notes that were written elsewhere are asked for anew"
    assert SteerView.settings.metadata["sync"], "an option of a view"


def test_it_is_found_again_as_it_was_left(tmp_path):
    board = BoardView(made(), columns=3)
    assert [len(c["views"]) for c in json.loads(board.places)["columns"]] == [1, 1, 1]
    places = {
        "columns": [
            {"width": 2.5, "views": [{"view": 2, "height": 300, "folded": False}]},
            {"width": 1, "views": [{"view": j, "height": None, "folded": j == 0} for j in (1, 0)]},
        ]
    }
    board.places = json.dumps(places)
    assert json.loads(BoardView(made()).places) == places
    assert json.loads(BoardView(made(), name="").places) != places
    assert json.loads(BoardView(made(), name="other").places) != places
    assert json.loads(BoardView(made()[:2]).places) != places, "of other views"
    # neither a view that is missing, nor odd numbers, nor a torn file is taken
    file = next((tmp_path / "data" / "boards").iterdir())
    for odd in ("", "{", "[]", '{"columns": 3}', json.dumps({"columns": places["columns"][:1]})):
        file.write_text(odd)
        assert len(json.loads(BoardView(made()).places)["columns"]) == 2
    places["columns"][0]["views"][0]["height"] = 10**9
    file.write_text(json.dumps(places))
    assert json.loads(BoardView(made()).places) != places
    # what it may not write it does not keep
    file.unlink()
    (tmp_path / "data" / "boards").rmdir()
    (tmp_path / "data" / "boards").write_text("")
    board.places = json.dumps({"columns": places["columns"][::-1]})


def test_a_page_has_its_columns(tmp_path):
    board = BoardView(made(), columns=2)
    page = board.export(tmp_path / "board.html").read_text()
    assert page.count('<div class="sl-view"></div></div><div>') == 1
    data = json.loads(page.split('id="saelab-data">')[1].split("</script>")[0])
    assert [view["kind"] for view in data["views"]] == ["features", "card", "densities"]
    assert "30 latents" in board.html()
    assert board.text().count("30 latents") == 2


def test_what_it_is_not_made_of():
    closed = made()[0]
    closed.close()
    view = made()[0]
    for views in ([], [closed], [view, view], ["a"], made() * 5, [BoardView(made())]):
        with pytest.raises(ConfigError, match="board"):
            BoardView(views)
    with pytest.raises(ConfigError, match="columns must be"):
        BoardView(made(), columns=0)
    with pytest.raises(ConfigError, match="Pass its views"):
        BoardView(made()).exported()


def test_what_a_view_tells_later_is_told():
    board = BoardView(views := made())
    assert board.told == {}
    views[1].opening = {"runs": {"header": {"at": 1}, "buffers": [b"x"]}}
    assert board.told == {"1": views[1].opening}
    board.close()
    views[1].opening = {}
    assert board.told["1"] != {}
