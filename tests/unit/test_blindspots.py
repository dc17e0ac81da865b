"""What a generator has lost: energies by brute force, p-values by enumeration, planted losses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import subjects_zoo as zoo
import torch
from scipy.sparse import csr_matrix
from scipy.stats import false_discovery_control

import saelab
from saelab.analysis import blindspots, document_codes, generator_agreement
from saelab.analysis.panels import Figures, Table, panels_of
from saelab.analysis.steering.separation import auroc
from saelab.analysis.vision.chance import false_discovery, permutation_p
from saelab.types import ConfigError, CorpusError, ShapeError

WIDTH = 16
ARMS = ("this SAE", "untrained SAE", "raw neurons")


def as_it_is(width=WIDTH):
    """An SAE whose latents are the coordinates, where they are positive."""
    sae = saelab.SAE.create(saelab.recipe("relu", d_in=width, d_sae=width, normalise="none"), 0).eval()
    with torch.no_grad():
        for name, value in (("W_enc", torch.eye(width)), ("b_enc", 0.0), ("b_dec", 0.0)):
            getattr(sae, name).copy_(torch.as_tensor(value))
        sae.dictionary.set(torch.eye(width))
    return sae


def pictures(n, seed, odds=None, width=WIDTH, classes=8):
    """[n, 5 positions, width]: two coordinates belong to each class, and fire in others now and then."""
    rng = np.random.default_rng(seed)
    of = rng.choice(classes, n, p=odds)
    own = np.arange(width) % classes == of[:, None]
    fires = rng.random((n, 5, width)) < np.where(own, 0.6, 0.04)[:, None]
    return torch.from_numpy(np.where(fires, rng.gamma(3.0, 0.3, (n, 5, width)), -0.1)).float(), of


# energies of documents


def test_energies_and_errors_equal_brute_force():
    acts, _ = pictures(7, 0)
    sae = saelab.SAE.create(
        saelab.recipe("abs_topk", d_in=WIDTH, d_sae=24, k=3), 1, acts.flatten(0, 1)
    ).eval()
    found = document_codes(sae, acts, labels=list("abcdefg"))
    mean = acts.flatten(0, 1).double().mean(0)
    for name, each in (("this SAE", sae), ("untrained SAE", found.basis.untrained)):
        codes = torch.stack([each.encode(rows).abs().sum(0) for rows in acts])
        np.testing.assert_allclose(found.arms[name].toarray(), codes.detach().numpy(), rtol=1e-5)
        left = torch.stack([(rows - each(rows).x_hat).double().square().sum() for rows in acts])
        spread = torch.stack([(rows - mean).square().sum() for rows in acts])
        np.testing.assert_allclose(found.errors[name], (left / spread).detach().numpy(), rtol=1e-5)
    parts = torch.cat([(acts - mean).clamp_min(0), (mean - acts).clamp_min(0)], 2).sum(1)
    np.testing.assert_allclose(found.arms["raw neurons"].toarray(), parts.numpy(), rtol=1e-5)
    assert found.n_rows.tolist() == [5] * 7
    told = found.to_frame()
    assert told.latents.tolist() == (found.arms["this SAE"].toarray() != 0).sum(1).tolist()
    np.testing.assert_allclose(told.energy, found.arms["this SAE"].toarray().sum(1), rtol=1e-6)
    assert found.labels[2] == ("c",)
    assert not np.allclose(found.arms["this SAE"].toarray(), found.arms["untrained SAE"].toarray())


def test_images_texts_and_stores_are_read_alike(tmp_path, subject, small_sae):
    cnn = zoo.cnn_subject()
    hook = "1.0"
    corpus = saelab.corpora.images(
        [np.uint8(np.random.default_rng(i).integers(0, 255, (8, 8, 3))) for i in range(5)]
    )
    cnn._prepare = lambda raw: torch.stack(
        [torch.as_tensor(np.asarray(x)).permute(2, 0, 1) / 255.0 for x in raw]
    )
    acts = saelab.harvest(cnn, corpus, [hook], tmp_path / "acts", progress=False)
    sae = saelab.SAE.create(saelab.recipe("topk", d_in=8, d_sae=12, k=2, hook=hook), 0).eval()
    images = document_codes(sae, cnn, corpus, batch_size=2, outputs=True)
    store = document_codes(sae, acts, like=images)
    for name in ARMS:
        np.testing.assert_allclose(images.arms[name].toarray(), store.arms[name].toarray(), atol=1e-4)
    assert images.n_rows.tolist() == [64] * 5
    inputs = cnn.prepare([document.raw for document in corpus])
    sure = cnn.run(inputs).output.softmax(1).amax(1)
    np.testing.assert_allclose(images.confidence, sure.numpy(), rtol=1e-5)
    assert store.confidence is None
    texts = document_codes(small_sae, subject, ["Rosa went home.", "Tobin ran."], outputs=True)
    assert len(texts) == 2
    assert "language model" in texts.left_out["max softmax"]


# chance


def test_p_values_equal_those_of_all_arrangements():
    rng = np.random.default_rng(0)
    first, second = rng.random((4, 6)).round(1), rng.random((4, 6)).round(1) + 0.3
    first[:, 5] = second[:, 5] = 0
    every = np.concatenate([first, second])
    seen = np.abs(second.mean(0) - first.mean(0))
    drawn = []
    for own in itertools.combinations(range(8), 4):
        rest = [i for i in range(8) if i not in own]
        drawn.append(np.abs(every[list(own)].mean(0) - every[rest].mean(0)))
    exact = (np.array(drawn) >= seen - 1e-9).mean(0)
    found = permutation_p(csr_matrix(first), csr_matrix(second), draws=4000)
    # until ten were as extreme: the standard error is p / sqrt(10)
    assert (np.abs(found - exact) < 3 * exact / np.sqrt(10) + 0.01).all(), (found, exact)
    swaps = np.array(list(itertools.product([1, -1], repeat=4)))
    gap = second - first
    exact = (np.abs(swaps @ gap / 4) >= seen - 1e-9).mean(0)
    found = permutation_p(csr_matrix(first), csr_matrix(second), paired=True, draws=4000)
    assert (np.abs(found - exact) < 3 * exact / np.sqrt(10) + 0.01).all(), (found, exact)


def test_p_values_are_uniform_where_nothing_differs_and_q_is_that_of_benjamini_and_hochberg():
    rng = np.random.default_rng(1)
    both = csr_matrix(rng.gamma(1.0, 1.0, (60, 2000)) * (rng.random((60, 2000)) < 0.5))
    p = permutation_p(both[:25], both[25:], draws=2000)
    for level in (0.01, 0.05, 0.2, 0.5):
        assert (p <= level).mean() == pytest.approx(level, abs=3.5 * np.sqrt(level / 2000) + 0.003)
    np.testing.assert_allclose(false_discovery(p), false_discovery_control(p))
    assert false_discovery(np.zeros(0)).shape == (0,)


# planted losses


@pytest.mark.parametrize("seed", range(3))
def test_a_class_that_is_cut_and_one_that_is_boosted_are_found_and_nothing_else(seed):
    lost, more = np.random.default_rng(seed).permutation(8)[:2]
    odds = np.ones(8)
    odds[lost], odds[more] = 0.05, 4
    width = 64
    real, _ = pictures(400, [seed, 0], width=width)
    generated, _ = pictures(400, [seed, 1], odds / odds.sum(), width)
    found = blindspots(real, generated, as_it_is(width), seed=seed)
    frame = found.to_frame()
    of = frame["latent"].to_numpy() % 8
    r = frame["relative"].to_numpy()
    assert auroc(-r[of == lost], -r[of != lost]) == 1
    assert auroc(r[of == more], r[of != more]) == 1
    assert set(found.suppressed[:8] % 8) == {lost}
    assert (found.exaggerated % 8 == more).mean() >= 0.85  # of false ones there may be one in twenty
    assert len(found.exaggerated) >= 7
    flagged = found.figures["flagged share"]
    assert flagged.what == "real against held-out real"
    assert flagged.control <= 0.01 < flagged.value
    assert {control.what for control in flagged.also} == {"untrained SAE", "raw neurons"}
    at = frame.set_index("latent")
    for latent in found.suppressed[:2]:
        line = at.loc[latent]
        assert line["relative_from"] < line["relative"] < line["relative_to"] < 0
        d = line["generated"] - line["real"]
        assert line["relative"] == pytest.approx(d / (line["generated"] + line["real"]))
        assert line["the paper: sigmoid(d)"] == pytest.approx(1 / (1 + np.exp(-d)))
        assert line["its code: sigmoid(d / 0.8)"] == pytest.approx(1 / (1 + np.exp(-d / 0.8)))
        assert line["its code: sigmoid(r / 0.4)"] == pytest.approx(1 / (1 + np.exp(-line["relative"] / 0.4)))


def test_intervals_are_those_of_a_mean():
    real, _ = pictures(500, 3)
    generated, _ = pictures(400, 4)
    found = blindspots(real, generated, as_it_is(), draws=200, splits=1)
    sums = [each.clamp_min(0).sum(1).double().numpy() for each in (real, generated)]
    error = np.sqrt(sum(each.var(0) / len(each) for each in sums))
    np.testing.assert_allclose(found.spots.difference, sums[1].mean(0) - sums[0].mean(0), rtol=1e-4)
    wide = found.spots.difference_interval
    np.testing.assert_allclose(wide[:, 1] - wide[:, 0], 2 * 1.96 * error, rtol=0.12)
    # pairs of nearly equal images differ by far less than images drawn apart
    near = real + 0.01 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    paired = blindspots(real, near, as_it_is(), paired=True, draws=200, splits=1).spots.difference_interval
    assert ((paired[:, 1] - paired[:, 0]) < 0.1 * (wide[:, 1] - wide[:, 0])).all()


def test_a_memorised_image_is_the_nearest():
    real, _ = pictures(200, 5)
    generated, _ = pictures(150, 6)
    generated[77] = real[13]
    found = blindspots(real, generated, as_it_is(), draws=100, splits=1)
    first = found.images().iloc[0]
    assert (first["generated"], first["real"], first["distance"]) == ("77", "13", 0)
    assert first["real_as_near"] == 0
    near = found.neighbours
    energies = [each.clamp_min(0).sum(1).double() for each in (real, generated)]
    apart = torch.cdist(energies[1], energies[0])
    np.testing.assert_allclose(near.distance, apart.amin(1).numpy(), atol=1e-4)
    among = torch.cdist(energies[0], energies[0]).fill_diagonal_(torch.inf)
    np.testing.assert_allclose(near.among_real, among.amin(1).numpy(), atol=1e-4)
    other = torch.roll(real, 1, 0)
    other[5] = real[5]
    paired = blindspots(real, other, as_it_is(), paired=True, draws=100, splits=1)
    assert paired.images().iloc[0]["generated"] == "5"
    gap = energies[0] - other.clamp_min(0).sum(1).double()
    np.testing.assert_allclose(paired.neighbours.distance, gap.norm(dim=1).numpy(), atol=1e-4)


def test_it_is_shown_beside_its_controls():
    real, _ = pictures(60, 7)
    found = blindspots(real, real.flip(0), as_it_is(), draws=100, splits=2)
    panels = panels_of(found)
    assert isinstance(panels[0], Figures)
    assert sum(isinstance(panel, Table) for panel in panels) == 4
    rules = found.rules()
    assert set(rules["by"]) == {*ARMS, "real against held-out real"}
    assert set(rules.loc[rules["by"] == "this SAE", "exaggerated"]) == {0}
    assert "0 suppressed, 0 exaggerated" in str(found)
    assert "real against held-out real" in saelab.widgets.ReportView(found).text()


# several generators


def test_generators_that_lose_the_same_agree_and_real_images_agree_by_what_they_are_held_against():
    odds = np.ones(8)
    odds[2] = 0.05
    sets = {"one": pictures(300, 8, odds / odds.sum())[0], "two": pictures(300, 9, odds / odds.sum())[0]}
    real, _ = pictures(900, 10)
    sae = as_it_is()
    found = generator_agreement(real, {**sets, "real": pictures(300, 11)[0]}, sae)
    assert set(found.figures) == {"one, two", "one, real", "two, real"}
    same, other = found.apart["one, two"], found.apart["one, real"]
    assert same.interval[0] > 0.6 > other.interval[1] - 0.35
    # cor(a - c, b - c) = 1/2 of samples of one size, cor(a - c, b - d) = 0
    assert np.mean([same.control]) == pytest.approx(0, abs=0.2)
    assert found.figures["one, two"].control == pytest.approx(0.5, abs=0.15)
    assert list(found.to_frame()["pair"]) == list(found.figures)
    r = [blindspots(real, each, sae, draws=100, splits=1).spots.relative for each in sets.values()]
    assert found.figures["one, two"].value == pytest.approx(np.corrcoef(*r)[0, 1])


# refusals


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x, s: blindspots(x, x), ConfigError, "real must be codes of documents"),
        (lambda x, s: blindspots(x[:3], x, s), CorpusError, "at least 4 documents. Got 3"),
        (lambda x, s: blindspots(x, x[:5], s, paired=True), ShapeError, "Got 8 and 5"),
        (lambda x, s: blindspots(x, x, s, fdr=1), ConfigError, "fdr must be between 0 and 1. Got 1"),
        (lambda x, s: generator_agreement(x, {"a": x}, s), ConfigError, "two or more. Got 1"),
        (lambda x, s: document_codes(s, x, labels=["a"]), ShapeError, "Got 1 for document number 7"),
        (
            lambda x, s: blindspots(document_codes(s, x), document_codes(s, x + 1)),
            ConfigError,
            "one set of controls. Got two. Pass like=",
        ),
        (
            lambda x, s: document_codes(saelab.SAE.create(s.config, 5), x, like=document_codes(s, x)),
            ConfigError,
            "like must be of the same SAE",
        ),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words):
        call(pictures(8, 0)[0], as_it_is())
