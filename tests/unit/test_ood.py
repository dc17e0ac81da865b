"""Telling documents of other kinds: scores by brute force, AUROC by sklearn, planted kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.metrics import roc_auc_score

import saelab
from saelab.analysis import document_codes, ood
from saelab.analysis.panels import Figures, panels_of
from saelab.analysis.vision.ood import profile_distance, tail_energy
from saelab.types import ConfigError, CorpusError

WIDTH = 24


def kind(n, seed, directions, share=0.0):
    """[n, 6 positions, WIDTH]: each document writes two directions of its own class; share: noise."""
    rng = np.random.default_rng(seed)
    of = rng.integers(0, len(directions) // 2, n)
    rows = np.zeros((n, 6, WIDTH))
    for member in (0, 1):
        size = rng.gamma(4.0, 0.25, (n, 6, 1)) * (rng.random((n, 6, 1)) < 0.7)
        rows += size * directions[2 * of + member][:, None]
    noise = rng.standard_normal(rows.shape)
    return torch.from_numpy(rows + (0.02 + share) * noise).float(), [f"class {i}" for i in of]


@pytest.fixture(scope="module")
def world():
    """Orthogonal directions, an SAE of the documents whose classes are known, and documents of all kinds."""
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((WIDTH, WIDTH)))[0]
    known = basis[:16]
    rows, _ = kind(400, 1, known)
    config = saelab.recipe("topk", d_in=WIDTH, d_sae=32, k=3)
    sae = saelab.train(
        config, rows.flatten(0, 1), steps=500, batch_size=256, seed=0, progress=False
    ).sae.eval()
    mixed = np.random.default_rng(2).permutation(16)
    sets = {
        "new directions": kind(150, 3, basis[16:])[0],  # what the SAE has no latents for
        "new pairs": kind(150, 4, known[mixed])[0],  # known latents, in company that no class has
        "none": kind(150, 5, known)[0],
    }
    return sae, kind(300, 6, known), kind(200, 7, known)[0], sets


@pytest.fixture(scope="module")
def found(world):
    sae, (reference, labels), inside, outside = world
    return ood(reference, inside, outside, sae, labels=labels)


def test_planted_kinds_are_told_by_what_is_odd_of_them(found):
    figures = found.figures
    assert figures["new directions: reconstruction error"].value > 0.95
    assert figures["new pairs: profile distance"].interval[0] > 0.9
    assert figures["new pairs: tail energy"].interval[0] > 0.9
    for score in ("profile distance", "tail energy", "reconstruction error"):
        low, high = figures[f"none: {score}"].interval
        assert low < 0.5 < high, score
    value, low, high = found.margins["new pairs: profile distance less reconstruction error"]
    assert 0.05 < low < value < high
    value, low, high = found.margins["none: profile distance less reconstruction error"]
    assert low < 0 < high


def test_scores_equal_brute_force(world, found):
    sae, (reference, labels), inside, _ = world
    energies = [
        torch.stack([sae.encode(x).sum(0) for x in rows]).detach().double().numpy()
        for rows in (reference, inside)
    ]
    names = np.array(labels)
    means = [energies[0][names == name].mean(0) for name in np.unique(names)]
    distance, tail = [], []
    for each in energies[1]:
        distance.append(1 - max(each @ m / np.linalg.norm(each) / np.linalg.norm(m) for m in means))
        shares = []
        for m in means:
            order, held = np.argsort(-m, kind="stable"), 0.0
            of = []
            while held < 0.9 * m.sum():
                of.append(order[len(of)])
                held += m[of[-1]]
            shares.append(each[of].sum() / each.sum())
        tail.append(1 - max(shares))
    np.testing.assert_allclose(found.scores["this SAE", "profile distance"]["inside"], distance, atol=1e-5)
    np.testing.assert_allclose(found.scores["this SAE", "tail energy"]["inside"], tail, atol=1e-5)
    frame = found.to_frame()
    for line in frame.rename(columns={"from": "low"}).itertuples():
        sets = found.scores[line.by, line.score]
        truth = np.repeat([1, 0], [len(sets[line.outside]), len(sets["inside"])])
        assert line.auroc == pytest.approx(
            roc_auc_score(truth, np.concatenate([sets[line.outside], sets["inside"]]))
        )
        assert line.low <= line.auroc <= line.to
    assert len(found.documents()) == sum(found.sizes.values())


def test_a_document_without_energy_is_like_no_class():
    empty, profiles = csr_matrix(np.zeros((1, 3))), np.eye(3)
    assert profile_distance(empty, profiles).tolist() == [1]
    assert tail_energy(empty, profiles, 0.9).tolist() == [1]


def test_max_softmax_is_that_of_the_subject(world):
    _, (reference, labels), inside, outside = world
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, 5)

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.head = torch.nn.Identity(), head

        def forward(self, x):
            return self.head(self.rows(x).mean(1))

    subject = saelab.TorchModule(Small(), example=[inside[0]])
    own = saelab.SAE.create(saelab.recipe("topk", d_in=WIDTH, d_sae=32, k=3, hook="rows"), 0).eval()
    sets = {"new pairs": list(outside["new pairs"])}
    found = ood(list(reference), list(inside), sets, own, subject, labels=labels)
    with torch.no_grad():
        sure = head(inside.mean(1)).softmax(1).amax(1).double()
    np.testing.assert_allclose(found.scores["max softmax", "max softmax"]["inside"], 1 - sure, rtol=1e-4)
    assert found.figures["new pairs: profile distance"].also[0].what == "max softmax"
    assert "new pairs: profile distance less max softmax" in found.margins
    # sets are frozen by their hash: it is another where one image is another
    assert found.key == ood(list(reference), list(inside), sets, own, subject, labels=labels).key
    sets["new pairs"][0] = inside[0]
    assert found.key != ood(list(reference), list(inside), sets, own, subject, labels=labels).key


def test_it_is_shown_beside_its_controls(found):
    panels = panels_of(found)
    assert isinstance(panels[0], Figures)
    assert panels[0].left_out[0][1] == "max softmax"
    text = saelab.widgets.ReportView(found).text()
    assert "untrained SAE" in text
    assert "left out: max softmax: " in text


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"labels": None}, CorpusError, "A class profile needs a label for each document. Got 300 of 300"),
        ({"mass": 1}, ConfigError, "mass must be between 0 and 1. Got 1"),
        ({"outside": {}}, ConfigError, "Got none"),
        ({"outside": {"inside": torch.rand(3, 6, WIDTH)}}, ConfigError, "Got one called 'inside'"),
        ({"outside": {"one": torch.rand(1, 6, WIDTH)}}, CorpusError, "one must hold two documents or more"),
        ({"sae": None}, ConfigError, "reference must be codes of documents where there is no SAE"),
    ],
)
def test_refusals(world, options, error, words):
    sae, (reference, labels), inside, outside = world
    given = {"reference": reference, "inside": inside, "outside": outside, "sae": sae, "labels": labels}
    with pytest.raises(error, match=words):
        ood(**{**given, **options})


def test_codes_of_documents_are_taken_as_they_are(world, found):
    sae, (reference, labels), inside, outside = world
    known = document_codes(sae, reference, labels=labels)
    sets = {name: document_codes(sae, each, like=known) for name, each in outside.items()}
    again = ood(known, document_codes(sae, inside, like=known), sets)
    assert again.key == found.key
    assert again.figures == found.figures
