"""What a card answers when it is unfolded, and its forms that run nothing."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from saelab import Lab
from saelab.analysis import drawn_examples, relatives, whole_document
from saelab.stores import FeatureStore
from saelab.types import CorpusError, RangeError
from saelab.widgets import CardView

HOSTILE = "<img src=x onerror=alert(1)>\u202e &amp; \x00\n`${1}`"


@pytest.fixture
def lab(small_lab, tmp_path):
    """The small Lab on a store that may be written into."""
    shutil.copytree(small_lab.store.folder, tmp_path / "store")
    return Lab(small_lab.subject, small_lab.sae, FeatureStore.open(tmp_path / "store"))


def test_a_card_answers_from_its_store(lab):
    view = lab.feature(7)
    answers = view.answers()
    packed = answers["card"](latent=7)
    assert packed.header["asks"] == ["drawn", "relabel", "relatives", "tried", "whole"]
    told = lab.card(7).tokens
    assert [tuple(t)[:2] for t in packed.header["tokens"]] == [(t.name, t.count) for t in told]

    near = relatives(lab.store, 7)
    header = answers["relatives"](latent=7).header
    assert [j for j, _ in header["similar"]] == [s.latent for s in near.similar]
    assert header["together"][0][:2] == [near.together[0].latent, near.together[0].count]
    assert header["aligned"] == pytest.approx(near.aligned, rel=1e-5)

    for kind in ("random", "silent"):
        drawn = answers["drawn"](latent=7, kind=kind)
        assert [w["row"] for w in drawn.header["windows"]] == [
            w.row for w in drawn_examples(lab.store, 7, kind=kind).windows
        ]
    row = lab.card(7).top.windows[0].row
    whole = answers["whole"](latent=7, row=row)
    assert whole.header["windows"][0]["n"] == len(whole_document(lab.store, 7, row).names)
    with pytest.raises(RangeError):
        answers["relatives"](latent=10**6)

    tried = answers["tried"](latent=7, text="The cat sat.")
    np.testing.assert_array_equal(tried.fields["values"], lab.codes("The cat sat.").of(7))
    for text in ("", "x" * 4001, 7):
        with pytest.raises(CorpusError, match="text to try"):
            answers["tried"](latent=7, text=text)


def test_a_label_that_a_card_gives_is_kept_and_seen_everywhere(lab):
    view, other = lab.feature(7), lab.feature(7)
    table = lab.features()
    view.answers()["relabel"](latent=7, text=HOSTILE)
    kept = FeatureStore.open(lab.store.folder).labels()
    assert kept.loc[kept["latent"] == 7, "label"].tolist() == [HOSTILE.strip()]
    assert set(kept["source"]) == {"user"}
    assert other.labels["7"]["label"] == HOSTILE.strip() == table.table.names[7]
    form = view.html()
    assert "<img" not in form
    assert "onerror" in form
    view.answers()["relabel"](latent=7, text="")
    assert lab.label(7) == ""
    assert other.labels["7"]["label"] == ""
    with pytest.raises(RangeError):
        view.answers()["relabel"](latent=10**6, text="x")


def test_forms_that_run_nothing_hold_what_is_near(lab):
    view = lab.feature(7)
    near = relatives(lab.store, 7)
    for form in (view.text(), view.html()):
        assert str(near.similar[0].latent) in form
        assert f"{near.aligned[0]:.1%}" in form
        assert "set apart by" in form.lower()
    assert len(view.html().encode()) < 60_000
    bare = CardView(7, {"card": lab.card})
    assert "Similar directions" not in bare.html()
    assert "relatives" not in bare.answers()


def test_a_page_of_a_card_holds_what_is_near(lab, tmp_path):
    page = lab.feature(7, compact=True).export(tmp_path / "card.html").read_text()
    data = json.loads(page.partition('id="saelab-data">')[2].partition("</script>")[0])
    assert set(data["views"][0]["shelves"]) >= {"card", "relatives", "drawn"}
    assert data["views"][0]["options"]["compact"] is True
    browser = lab.features().export(tmp_path / "all.html").read_text()
    data = json.loads(browser.partition('id="saelab-data">')[2].partition("</script>")[0])
    assert "relatives" not in data["views"][0]["shelves"]
