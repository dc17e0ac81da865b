"""The Lab and the main job: lazy, linked, checked, the same for the same seed."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from ipywidgets.widgets import widget

import saelab
from saelab.cli import main
from saelab.types import ConfigError, CorpusError, RangeError, StoreError
from saelab.widgets.base import View


def test_the_embedded_lab_opens_its_store_and_nothing_else():
    code = (
        "import sys, saelab\n"
        "lab = saelab.Lab.embedded()\n"
        "lab.features()\n"
        "repr(lab)\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules), 'loaded too early'\n"
        "lab.store.latent(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_choosing_a_latent_moves_every_view(small_lab):
    text, browser, card = (
        small_lab.tokens("Tina gave it to Hugo."),
        small_lab.features(),
        small_lab.feature(5, follow=True),
    )
    assert {text.latent, browser.latent, card.latent, small_lab.selection.latent} == {5}
    text.latent = 9
    assert {browser.latent, card.latent, small_lab.selection.latent} == {9}
    small_lab.tokens("more text", latent=2, follow=True)
    assert card.latent == small_lab.feature().latent == 2
    for follow in (True, False):
        with pytest.raises(RangeError, match=r"0\.\.63"):
            small_lab.feature(64, follow=follow)
    assert card.latent == 2


def test_a_call_moves_nothing_that_is_shown(small_lab):
    small_lab.selection.latent = 4
    text, browser = small_lab.tokens("Tina gave it to Hugo."), small_lab.features()
    first, second = small_lab.feature(3), small_lab.feature(7)
    third = small_lab.tokens("more text", 9, with_card=True)
    assert [v.latent for v in (text, browser, first, second, third)] == [4, 4, 3, 7, 9]
    assert small_lab.selection.latent == 4
    assert ["latent 3" in repr(first), "latent 7" in repr(second)] == [True, True]
    # a click in a pinned view moves it alone; a click in a linked one moves the linked ones
    third.latent = 11
    browser.latent = 12
    assert [v.latent for v in (text, browser, first, second, third)] == [12, 12, 3, 7, 11]
    bare = saelab.Lab(small_lab.subject, small_lab.sae)
    with pytest.raises(RangeError, match=r"0\.\.63|0 and 63|64"):
        bare.show("hello", 64)


def test_two_labs_do_not_share_a_selection(small_lab):
    other = saelab.Lab(small_lab.subject, small_lab.sae, small_lab.store)
    other.feature(7, follow=True)
    assert small_lab.selection.latent != 7


def test_what_the_views_say_is_what_analysis_says(small_lab):
    latent = int(small_lab.store.latents()["count"].argmax())
    card = saelab.analysis.card(small_lab.store, latent, small_lab.sae, small_lab.subject)
    near = saelab.analysis.relatives(small_lab.store, latent)
    assert str(small_lab.card(latent)) == str(card)
    assert repr(small_lab.feature(latent)) == f"{card}\n{near}"
    found = small_lab.search("hello there")
    lines = saelab.analysis.search(small_lab.subject, small_lab.sae, "hello there", store=small_lab.store)
    assert list(found.itertuples(index=False, name=None)) == lines
    listed = small_lab.source().questions["search"]("hello there")
    assert listed == [(line.latent, line.value) for line in lines]


def test_cards_together_are_the_cards_one_by_one(small_lab, signed_lab):
    for lab in (small_lab, signed_lab):
        wanted = [5, 3, 40, 3]
        together = saelab.analysis.cards(lab.store, wanted, lab.sae, lab.subject, labels={3: "three"})
        assert [c.latent for c in together] == wanted
        assert [c.label for c in together] == ["", "three", "", "three"]
        for card, latent in zip(together, wanted, strict=True):
            alone = saelab.analysis.card(lab.store, latent, lab.sae, lab.subject, label=card.label)
            assert str(card) == str(alone)
            for kind in ("top", "quantile"):
                ours, theirs = getattr(card, kind).windows, getattr(alone, kind).windows
                assert [w.names for w in ours] == [w.names for w in theirs] != []
                assert all(np.array_equal(a.values, b.values) for a, b in zip(ours, theirs, strict=True))
        assert lab.card(3).lens.top[0][0] == together[1].lens.top[0][0]


def test_labels_name_latents(small_lab):
    lab = saelab.Lab(small_lab.subject, small_lab.sae, small_lab.store, labels={4: "names of people"})
    assert lab.table.names[4] == "names of people"
    assert lab.card(4).label == "names of people"
    with pytest.raises(RangeError):
        saelab.Lab(small_lab.subject, small_lab.sae, small_lab.store, labels={64: "x"})


def test_a_store_of_another_sae_is_refused(small_lab):
    other = saelab.SAE.create(small_lab.sae.config, seed=9)
    with pytest.raises(StoreError, match="sae"):
        saelab.Lab(small_lab.subject, other, small_lab.store)


def test_folders_are_opened_when_needed(small_lab, tmp_path):
    folder = small_lab.sae.save(tmp_path / "sae")
    lab = saelab.Lab(saelab.embedded.model_folder(), tmp_path / "sae", small_lab.store.folder)
    assert lab.codes("hello").codes.d_sae == 64
    assert folder
    with pytest.raises(StoreError):
        saelab.Lab("model", "sae", tmp_path / "nothing")


@pytest.mark.parametrize("text", ["", None, 3, [{"role": "user"}]])
def test_bad_texts_are_refused(small_lab, text):
    with pytest.raises(CorpusError):
        small_lab.tokens(text)


def test_a_page_of_several_views_holds_each_card_once(small_lab, tmp_path):
    views = [small_lab.features(), small_lab.tokens("The cat", with_card=True), small_lab.feature()]
    text = saelab.widgets.page(tmp_path / "p.html", "t", [saelab.widgets.Views("", views)]).read_text()
    data = json.loads(re.search(r'id="saelab-data">(.*?)</script>', text, re.S)[1])
    assert len({view["shelves"]["card"] for view in data["views"]}) == 1
    assert {view["selection"] for view in data["views"]} == {0}
    for view in views:
        view.close()


# ---- the main job


@pytest.mark.slow
def test_the_main_job_is_the_same_for_the_same_seed(tmp_path):
    from saelab.demo import demo

    small = {"rows": 2_000, "steps": 30, "d_sae": 64, "index_rows": 1_000, "progress": False}
    first, second = demo(tmp_path / "a", **small), demo(tmp_path / "b", **small)
    assert first.lines() == second.lines()
    assert str(first.report) == str(second.report)
    assert str(demo(tmp_path / "c", **small, seed=1).report) != str(first.report)
    text = first.page.read_text()
    assert "untrained SAE" in text
    for line in first.lines():
        assert line.split("(")[0].strip() in text.replace("&#x27;", "'")
    data = json.loads(re.search(r'id="saelab-data">(.*?)</script>', text, re.S)[1])
    assert [v["kind"] for v in data["views"]] == ["features", "sample", "sample", "sample"]
    assert "<polyline" in text
    # twice in a row into the same folder
    assert demo(tmp_path / "a", **small).lines() == first.lines()
    with pytest.raises(ConfigError):
        demo(tmp_path / "d", rows=0)
    own = [first.lab.source(name).selection for name in first.lab.saes]
    kept = [w for w in widget._instances.values() if isinstance(w, View) and w.selection in own]
    assert not kept, "ipywidgets keeps views that are not closed, and the store with them"


def test_the_command_line_tells_errors_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 1
    told = capsys.readouterr().err
    assert told.startswith("saelab demo: ")
    assert "Traceback" not in told
    with pytest.raises(SystemExit):
        main(["no-such-command"])
