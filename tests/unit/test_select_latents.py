"""Latents chosen by contrast, where it is known which one stands for the concept; and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import planted
import pytest
import torch
from planted import CONCEPT, LEVER

import saelab
from saelab.analysis import select_latents
from saelab.analysis.steering import ranking
from saelab.analysis.steering.separation import auroc, auroc_interval, roc
from saelab.corpora.world_lexicon import RUDE
from saelab.types import ConfigError, CorpusError


@pytest.fixture(scope="module")
def net():
    return planted.subject()


@pytest.fixture(scope="module")
def sae():
    return planted.sae()


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    for _ in range(20):
        yes, no = rng.integers(0, 6, 9), rng.integers(0, 5, 13)
        pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(yes, no)]
        assert auroc(yes, no) == pytest.approx(np.mean(pairs))
        curve = roc(yes, no)
        area = np.trapezoid(curve.true, curve.false)
        assert area == pytest.approx(np.mean(pairs))
        for threshold, false, true in zip(*curve, strict=True):
            assert (false, true) == ((no > threshold).mean(), (yes > threshold).mean())


def test_the_interval_of_auroc_is_that_of_drawing_each_kind_anew():
    rng = np.random.default_rng(1)
    yes, no = rng.normal(1, 1, 40), rng.normal(0, 1, 60)
    plain = [auroc(rng.choice(yes, 40), rng.choice(no, 60)) for _ in range(1500)]
    np.testing.assert_allclose(auroc_interval(yes, no), np.percentile(plain, [2.5, 97.5]), atol=0.02)


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_the_probe_is_at_its_minimum(penalty):
    """scikit-learn finds the same."""
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(2)
    x = rng.normal(size=(80, 6))
    y = (x[:, 0] - x[:, 1] + rng.normal(size=80) > 0).astype(float)
    w, b = ranking.logistic(x, y, penalty, 0.05)
    ratio = 1.0 if penalty == "l1" else 0.0
    theirs = linear.LogisticRegression(
        C=1 / (80 * 0.05), l1_ratio=ratio, solver="saga", max_iter=20_000, tol=1e-8
    ).fit(x, y)
    np.testing.assert_allclose(w, theirs.coef_[0], atol=2e-4)
    assert b == pytest.approx(theirs.intercept_[0], abs=2e-4)


@pytest.mark.parametrize("method", ["difference", "set", "probe"])
def test_the_planted_latent_is_found_and_chance_is_not(net, sae, method):
    yes, no = planted.texts(40, True), planted.texts(40, False)
    found = select_latents(sae, yes, no, method, 1, subject=net, top=3)
    assert found.latents == (CONCEPT,)
    (choice,) = found.choices
    assert (choice.share_positive, choice.share_negative, choice.mean_positive) == (1, 0, 2)
    assert choice.held_out == found.auroc == 1
    assert found.scores["random latents"].control < 0.75
    assert found.scores["shuffled labels"].control < 0.75
    assert "AUROC 1 " in str(found)
    assert found.left_out.keys() == {"output score"}
    sizes = [len(side) for part in (found.fit, found.held_out) for side in part]
    assert sizes == [28, 28, 12, 12]
    seen = {id(d.sample) for side in found.fit for d in side}
    assert not seen & {id(d.sample) for side in found.held_out for d in side}


def test_what_fires_and_what_moves_the_output_are_told_apart(net, sae):
    """The concept's latent has a tenth of the effect of another, which fires alike on both sides."""
    yes, no = planted.texts(40, True), planted.texts(40, False)
    first = {"subject": net, "metric": lambda output: output[:, 0]}
    by_input = select_latents(sae, yes, no, "difference", 1, **first)
    by_output = select_latents(sae, yes, no, "score", 2, **first)
    assert by_input.latents == (CONCEPT,)
    assert by_output.latents == (LEVER, CONCEPT)
    lever, concept = by_output.choices
    assert abs(lever.input_score) < 1 < concept.input_score
    # what is added has the same norm for each: the effects are those of the head
    assert concept.output_score == pytest.approx(lever.output_score / 10, rel=1e-4)
    assert by_input.choices[0].output_score == pytest.approx(concept.output_score)


def test_the_first_order_estimate_is_the_effect_where_all_is_linear(net, sae):
    from saelab.analysis.steering.outputs import outputs_of
    from saelab.analysis.steering.selected import documents_of

    documents = documents_of(planted.texts(10, False), net.corpus)
    out = outputs_of(net, sae, documents, 0.7, lambda output: output[:, 0], 4)
    np.testing.assert_allclose(
        out.screened(None), out.measured(range(12), [1] * 12)[:, 0], atol=1e-6, rtol=1e-4
    )


def test_a_choice_knows_what_it_was_fitted_on(net, sae):
    yes, no = planted.texts(12, True), planted.texts(12, False)
    found = select_latents(sae, yes, no, k=1, subject=net)
    found.check(found.held_out.positive)
    with pytest.raises(CorpusError, match=r"must not be what the selection was fitted on. Got 3 of 3"):
        found.check(found.fit.positive[:3])
    again = select_latents(sae, [*yes, yes[0].clone()], no, k=1, subject=net)
    assert again.fitted == found.fitted  # a copy counts once


def test_too_few_are_refused(net, sae):
    yes, no = planted.texts(8, True), planted.texts(8, False)
    with pytest.raises(CorpusError, match=r"at least one sample. Got none"):
        select_latents(sae, [], no, subject=net)
    with pytest.raises(CorpusError, match="positive must hold at least 4 different samples"):
        select_latents(sae, [yes[0]] * 5, no, subject=net)
    with pytest.raises(CorpusError, match="negative must hold at least 4"):
        select_latents(sae, yes, no[:3], subject=net)


def test_what_cannot_be_is_refused_by_name(net, sae):
    yes, no = planted.texts(8, True), planted.texts(8, False)
    with pytest.raises(CorpusError, match="Got 1 that are in both"):
        select_latents(sae, yes, [*no, yes[0]], subject=net)
    with pytest.raises(ConfigError, match="An SAE is read on a subject"):
        select_latents(sae, yes, no)
    with pytest.raises(ConfigError, match=r"needs an output to measure. Got none: a TorchModule lacks"):
        select_latents(sae, yes, no, "score", subject=net)
    with pytest.raises(ConfigError, match="must tell the samples apart"):
        select_latents(sae, no, yes, "set", subject=net, top=12)
    with pytest.warns(UserWarning, match=r"Latents \[11\] fire in none"):
        select_latents(sae, yes, no, "score", 12, subject=net, metric=lambda output: output[:, 1])


def test_the_code_of_a_sample_is_the_largest_or_the_mean_of_its_rows(net, sae):
    from saelab.analysis.steering.pooled import pool
    from saelab.analysis.steering.selected import documents_of

    samples = planted.texts(9, False)
    codes = torch.where(torch.stack(samples) > 0.5, torch.stack(samples), 0)
    for pooling, plain in (("max", codes.amax(1)), ("mean", codes.mean(1))):
        found = pool(net, sae, documents_of(samples, net.corpus), pooling, 4)
        for latent in range(12):
            np.testing.assert_allclose(found.column(latent), plain[:, latent], rtol=1e-5)


def test_a_store_gives_the_choice_of_its_documents(net, sae, tmp_path):
    samples = planted.texts(12, True) + planted.texts(12, False)
    store = saelab.index(net, sae, saelab.corpora.samples(samples), tmp_path / "s", progress=False)
    for pooling in ("max", "mean"):
        of_store = select_latents(store, range(12), range(12, 24), k=3, pooling=pooling)
        of_sae = select_latents(sae, samples[:12], samples[12:], k=3, pooling=pooling, subject=net)
        assert of_store.latents == of_sae.latents
        for one, other in zip(of_store.choices, of_sae.choices, strict=True):
            assert one.mean_positive == pytest.approx(other.mean_positive, rel=1e-5)
            assert one.share_negative == other.share_negative
    with pytest.raises(ConfigError, match=r"A document must be an integer in 0..23"):
        select_latents(store, [24, 1, 2, 3], [5, 6, 7, 8])


def test_rude_speech_of_the_embedded_model(subject):
    real = saelab.load_sae(saelab.embedded.sae_folder(saelab.embedded.STORE_HOOK))
    documents = list(saelab.corpora.world(seed=11, n_documents=100, families=["manners"]))
    rude = [d for d in documents if any(w in d.text for w in RUDE)]
    polite = [d for d in documents if d not in rude]
    found = select_latents(real, rude, polite, k=2, subject=subject)
    assert found.auroc > 0.97
    assert found.scores["shuffled labels"].control < 0.8
    # steering by the best raises the words of rude speech, and more than its neighbour in rank
    assert found.choices[0].output_score > 2
