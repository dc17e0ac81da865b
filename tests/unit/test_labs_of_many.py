"""A Lab of several SAEs: one selection, each SAE with its store or none."""

from __future__ import annotations

import shutil

import pytest

import saelab
from saelab.types import ConfigError, StoreError

FIRST, SECOND = "blocks.2.hook_resid_post", "blocks.1.attn.hook_z"


@pytest.fixture
def lab():
    return saelab.Lab.embedded()


def test_the_embedded_lab_opens_every_sae_with_its_store(lab):
    assert set(lab.saes) == set(lab.stores) == set(saelab.embedded.SAE_HOOKS)
    assert next(iter(lab.saes)) == lab.selection.sae == saelab.embedded.STORE_HOOK == FIRST
    for hook in saelab.embedded.SAE_HOOKS:
        lab.selection.sae = hook
        assert str(lab.sae.hook) == hook
        assert lab.store.hook.name == hook
        lab.store.check(lab.sae)
        assert lab.store.check(lab.subject) is None
        assert len(lab.table) == lab.sae.d_sae
        assert str(lab.card(5)) == str(saelab.analysis.card(lab.store, 5, lab.sae, lab.subject))


def test_one_selection_for_all_of_them(lab):
    text = "Rosa gave the basket to Tobin."
    first, browser = lab.show(text, latent=7, follow=True), lab.features()
    other = lab.show(text, sae=SECOND)
    assert lab.selection.sae == FIRST
    pinned, card = lab.feature(5, sae=SECOND), lab.feature(3, sae=SECOND, follow=True)
    assert (first.latent, browser.latent, other.latent, card.latent) == (7, 7, 3, 3)
    assert (pinned.latent, pinned.selection.latent) == (5, 5)
    assert (lab.selection.sae, lab.selection.latent) == (SECOND, 3)
    # a click in a view of the one moves its views alone, and makes it the chosen one
    browser.latent = 9
    assert (first.latent, browser.latent, other.latent, card.latent) == (9, 9, 3, 3)
    assert (lab.selection.sae, lab.selection.latent) == (FIRST, 9)
    # the selection of the Lab moves those of the chosen one
    lab.selection.latent = 11
    assert (first.latent, browser.latent, other.latent) == (11, 11, 3)
    # choosing an SAE brings back what was chosen of it
    lab.selection.sae = SECOND
    assert lab.selection.latent == 3
    card.latent = 4
    assert (lab.selection.latent, other.latent, first.latent) == (4, 4, 11)


def test_two_labs_stay_apart(small_lab, tmp_path):
    """Of stores of their own, though these hold the same."""
    labs = []
    for name in ("a", "b"):
        shutil.copytree(small_lab.store.folder, tmp_path / name)
        labs.append(saelab.Lab(small_lab.subject, small_lab.sae, tmp_path / name))
    one, other = labs
    views = [(lab.features(), lab.feature(), lab.map()) for lab in labs]
    one.selection.latent = 5
    views[0][0].latents = (3, 9)
    one.label(5, "mine")
    one.store.notes[5] = "a note"
    one.lists["few"] = [5]
    assert [view.latent for view in views[0]] == [5, 5, 5]
    assert [view.latent for view in views[1]] == [None] * 3
    assert (other.selection.latent, other.selection.latents, views[1][2].latents) == (None, None, None)
    assert views[0][1].labels["5"]["label"] == "mine"
    assert all(not view.labels and not view.written for view in views[1])
    assert (dict(other.lists), 5 in other.store.notes) == ({}, False)
    assert other.card(5).label == small_lab.card(5).label
    other.selection.latent = 7
    assert [view.latent for view in views[0]] == [5, 5, 5]


def test_questions_go_to_the_sae_that_is_meant(lab):
    text = "thank you"
    for name in (FIRST, SECOND):
        found = lab.search(text, n=3, sae=name)
        lines = saelab.analysis.search(lab.subject, lab.saes[name], text, 3, store=lab.stores[name])
        assert list(found.itertuples(index=False, name=None)) == lines
        assert lab.codes(text, sae=name).codes.d_sae == lab.saes[name].d_sae
    tokens = lab.search(token=" the", sae=SECOND)
    assert tokens.equals(lab.stores[SECOND].search(token=" the"))


def test_names_come_from_hooks_and_twins_are_numbered(lab, small_lab):
    sae = lab.saes[FIRST]
    twins = saelab.Lab(lab.subject, [sae, sae], [lab.stores[FIRST], None])
    assert list(twins.saes) == [f"{FIRST} (1)", f"{FIRST} (2)"]
    assert list(twins.stores) == [f"{FIRST} (1)"]
    assert twins.codes("hello", sae=f"{FIRST} (2)").codes.d_sae == sae.d_sae
    with pytest.raises(StoreError, match=r"a store of the SAE 'blocks.2.hook_resid_post \(2\)'\. Got none"):
        twins.features(sae=f"{FIRST} (2)")
    view = saelab.Lab(lab.subject, sae).show("hello")
    assert view.codes.text == "hello"
    named = saelab.Lab(lab.subject, {"mine": sae}, {"mine": lab.stores[FIRST]}, labels={"mine": {3: "x"}})
    assert named.labels[3] == "x"
    assert saelab.Lab(lab.subject, {"mine": sae}, lab.stores[FIRST]).store is lab.stores[FIRST]


@pytest.mark.parametrize(
    ("saes", "stores", "match"),
    [
        ([], None, "at least one SAE"),
        ({}, None, "at least one SAE"),
        (["a", "b"], ["one"], "one store for each SAE"),
        ("a", {"a": "s"}, "one store for each SAE"),
        ({"a": "x", "b": "y"}, ["s", "t"], "must be named alike"),
        ({"mine": "x"}, {"mne": "s"}, "Did you mean 'mine'"),
    ],
)
def test_what_does_not_fit(saes, stores, match):
    with pytest.raises(ConfigError, match=match):
        saelab.Lab("model", saes, stores)


def test_unknown_names_are_refused(lab):
    with pytest.raises(ConfigError, match=r"one of the Lab's SAEs.*Did you mean 'blocks.2.hook_resid_post'"):
        lab.show("hello", sae="blocks.2.resid_post")
    with pytest.raises(ConfigError, match="Labels of several SAEs must be named"):
        saelab.Lab(lab.subject, dict(lab.saes), lab.stores, labels={3: "x"})
