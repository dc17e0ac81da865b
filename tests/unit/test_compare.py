"""Two SAEs compared: a copy whose latents are shuffled and half of them renewed is recovered, chance is
beside it, and the view says what analysis says."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

import saelab
from saelab.analysis import compare
from saelab.analysis.controls import wilson
from saelab.types import ConfigError, StoreError
from saelab.widgets import CompareView

RENEWED = 32


@pytest.fixture(scope="module")
def planted(subject, small_lab, tmp_path_factory):
    """(a Lab of the copy, our latent -> its place in the copy or -1 where it was renewed)."""
    sae = copy.deepcopy(small_lab.sae)
    draw = torch.Generator().manual_seed(3)
    order = torch.randperm(64, generator=draw)
    fresh = torch.randn(RENEWED, 128, generator=draw)
    fresh /= fresh.norm(dim=1, keepdim=True)
    with torch.no_grad():
        sae.W_dec.copy_(sae.W_dec[order])
        sae.W_enc.copy_(sae.W_enc[:, order])
        sae.b_enc.copy_(sae.b_enc[order])
        sae.W_dec[:RENEWED] = fresh
        sae.W_enc[:, :RENEWED] = fresh.T
        sae.b_enc[:RENEWED] = 0
    corpus = saelab.corpora.world(seed=6, n_documents=300)
    folder = tmp_path_factory.mktemp("planted") / "features"
    store = saelab.index(subject, sae, corpus, folder, max_rows=3_000, progress=False)
    place = np.full(64, -1)
    place[order[RENEWED:].numpy()] = np.arange(RENEWED, 64)
    return saelab.Lab(subject, sae, store), place


@pytest.fixture(scope="module")
def compared(small_lab, planted):
    return compare(small_lab.store, planted[0].store, names=("a", "b"))


def test_by_decoder_the_kept_latents_are_matched_and_the_renewed_ones_own(compared, planted):
    place = planted[1]
    kept, gone = np.flatnonzero(place >= 0), np.flatnonzero(place < 0)
    matched = {int(i): int(j) for i, j in compared.pairs[compared.kinds["cosine"] == 2]}
    assert {i: matched.get(i) for i in kept.tolist()} == {int(i): int(place[i]) for i in kept}
    ours, theirs = compared.own["cosine"]
    # of random directions 1 in 100 has a partner above chance
    assert set(ours.tolist()) <= set(gone.tolist())
    assert set(theirs.tolist()) <= set(range(RENEWED))
    assert min(len(ours), len(theirs)) >= RENEWED - 3
    exact = compared.scores["cosine"][np.isin(compared.pairs[:, 0], kept)]
    assert np.sort(exact)[-len(kept) :] == pytest.approx(1, abs=1e-3)


def test_by_cofiring_most_kept_latents_find_themselves(compared, small_lab, planted):
    """They fire more often in the copy: random latents compete with them instead of trained ones."""
    place = planted[1]
    alive = small_lab.store.latents()["count"].to_numpy() >= 10
    kept = np.flatnonzero((place >= 0) & alive)
    partner = compared.sides["phi"][0].partner[kept]
    assert (partner == place[kept]).mean() > 0.8
    share = compared.sides["phi"][0].share
    assert share.chance_interval[1] < share.interval[0]


def test_every_latent_is_in_a_pair_or_alone_or_left_out(compared):
    for measure in compared.sides:
        paired = compared.pairs[compared.kinds[measure] > 0]
        for at in (0, 1):
            own, left = (set(lists[measure][at].tolist()) for lists in (compared.own, compared.left_out))
            assert set(paired[:, at].tolist()) | own | left == set(range(64))
            assert not own & left
            assert not own & set(paired[:, at].tolist())


def test_shares_stand_beside_chance(small_lab, compared):
    for ours, theirs in compared.sides.values():
        for side in (ours, theirs):
            low, high = side.share.interval
            assert low <= side.share.value <= high
            assert side.share.chance_interval[0] <= 0.05
            assert side.share.value > side.share.chance
    both = compare(small_lab.store, small_lab.store)
    assert (both.kinds["cosine"] == 2).sum() == 64
    matched = both.pairs[both.kinds["cosine"] == 2]
    assert (matched[:, 0] == matched[:, 1]).all()
    text = str(compared)
    assert "matched pairs" in text
    assert "by chance" in text
    frame = compared.to_frame()
    assert list(frame) == ["ours", "theirs", "cosine", "cosine_kind", "phi", "phi_kind"]
    assert (frame["cosine_kind"] == "matched").sum() == (compared.kinds["cosine"] == 2).sum()
    assert len(compared.shares()) == 4
    assert compared.figure().layout.title.text.startswith("a and b")


def test_unrelated_saes_share_what_chance_gives(tmp_path):
    """Random directions alone: a share of about 1 %."""
    from random_stores import random_store

    stores = [random_store(tmp_path / str(seed), 2_000, 64, seed) for seed in (1, 2)]
    share = compare(*stores).sides["cosine"][0].share
    # a share of 2,000 latents above a percentile of 1,000 others: its standard deviation is .4 %
    assert abs(share.value - 0.01) < 4 * 0.004
    assert share.chance_interval[0] <= 0.01 <= share.chance_interval[1]


def test_wilsons_interval_is_where_its_definition_holds():
    """(share - p)^2 = z^2 p (1 - p) / n at both ends."""
    for found, of in ((3, 20), (1, 1000), (49, 50)):
        for p in wilson(found, of):
            assert (found / of - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / of, rel=1e-6)
    assert wilson(0, 50)[0] == 0
    assert wilson(50, 50)[1] == pytest.approx(1)
    assert np.isnan(wilson(0, 0)).all()


def test_scores_of_both_are_those_of_evaluate(subject, small_lab, planted):
    texts = ["Tina gave the basket to Hugo.", "The river was long."]
    found = saelab.evaluate({"a": small_lab.sae, "b": planted[0].sae}, subject, texts, max_rows=100)
    alone = saelab.evaluate(small_lab.sae, subject, texts, max_rows=100)
    assert found.reports["a"].sae == alone.sae
    assert [p.name for p in found.frontier.points] == ["a", "b"]
    row = found.to_frame().iloc[0]
    assert (row["score"], row["value"], row["control"]) == ("fvu", alone.sae.fvu, alone.untrained.fvu)


# ---- the view


@pytest.fixture
def view(small_lab, planted):
    view = small_lab.compare(planted[0])
    yield view
    view.close()


def test_the_view_says_what_analysis_says(view, compared, small_lab, planted):
    header, fields = view.answers()["pairs"]()[:2]
    assert np.array_equal(np.column_stack([fields["ours"], fields["theirs"]]), compared.pairs)
    assert np.allclose(fields["cosine"], compared.scores["cosine"], equal_nan=True)
    assert header["names"] == ["blocks.2.hook_resid_post", "blocks.2.hook_resid_post (other)"]
    assert header["shares"][0][2] == str(compared.sides["cosine"][0].share)
    assert (view.latent, view.other) == tuple(compared.pairs[0])
    own, other = (view.answers()[name](latent=3) for name in ("card", "other_card"))
    assert own.header["stats"]["count"] == small_lab.store.latent(3).count
    assert other.header["stats"]["count"] == planted[0].store.latent(3).count
    text = view.answers()["text"](text="Tina gave the basket", latent=5, other=-1)
    codes = small_lab.codes("Tina gave the basket")
    assert np.array_equal(text.fields["ours_values"], codes.of(5))
    assert text.fields["ours_names"] == codes.names
    assert len(view.html()) < 60_000
    assert "matched" in view.text()
    sent = [view.answers()[ask.question](**ask.args).encoded()[1] for ask in view.first()]
    assert sum(len(buffer) for buffers in sent for buffer in buffers) < 50_000


def test_both_selections_are_linked(view, small_lab, planted):
    theirs = planted[0].source().selection
    view.other = 7
    assert theirs.latent == 7
    theirs.latent = 9
    assert view.other == 9
    view.latent = 11
    assert small_lab.source().selection.latent == 11
    view.close()
    theirs.latent = 12
    assert view.other == 9


def test_layers_of_one_lab_and_what_cannot_be_compared(small_lab, planted, tmp_path):
    lab = saelab.Lab(
        small_lab.subject, {"a": small_lab.sae, "b": planted[0].sae, "c": small_lab.sae},
        {"a": small_lab.store, "b": planted[0].store},
    )  # fmt: skip
    view = lab.compare("b", sae="a")
    assert view.compared.names == ("a", "b")
    page = view.export(tmp_path / "compare.html")
    assert "\\u003c" in page.read_text() or page.stat().st_size > 20_000
    with pytest.raises(StoreError, match="needs a store of the SAE 'c'"):
        lab.compare("c")
    with pytest.raises(ConfigError, match="must name one of the Lab's SAEs"):
        lab.compare("d")
    with pytest.raises(ConfigError, match="other must be the name of an SAE"):
        lab.compare(7)
    alone = saelab.Lab(stores={"a": small_lab.store, "b": planted[0].store}).compare("b")
    assert np.array_equal(alone.compared.pairs, view.compared.pairs)
    sent = []
    alone.send = lambda content, buffers=None: sent.append(content)
    alone._received(None, {"id": 1, "ask": "scores"}, [])
    alone._received(None, {"id": 2, "ask": "text", "args": {"text": "a", "latent": 1, "other": 1}}, [])
    assert all("needs the" in message["error"] for message in sent)
    json.dumps(sent)


def test_the_view_measures_scores(view):
    told = view.answers()["scores"]().header
    assert told["columns"] == ["score", "sae", "value", "from", "to", "control"]
    assert {row[0] for row in told["rows"]} >= {"fvu", "l0", "loss_recovered"}
    assert any(ask.question == "scores" for ask in view.exported())


def test_a_comparison_without_pairs(tmp_path):
    from random_stores import random_store

    one, two = (random_store(tmp_path / str(seed), 40, 64, seed) for seed in (5, 6))
    lab = saelab.Lab(stores={"a": one, "b": two})
    view = lab.compare("b")
    assert isinstance(view, CompareView)
    assert len(view.compared.own["cosine"][0]) >= 36
    assert "own" in view.html()
