"""Latents taken out from under probes: SCR and TPP on documents whose labels are planted in known latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import saelab
from saelab.analysis.probing.claims import halves
from saelab.analysis.probing.gathered import gather
from saelab.analysis.probing.labelled import Task, borne
from saelab.analysis.probing.linear import Probe
from saelab.analysis.probing.removing import Pooled, effects, pooled, strongest
from saelab.analysis.sources import Ground
from saelab.analysis.suites.scr import SCR, UNTRAINED, repaired
from saelab.analysis.suites.tpp import TPP, perturbed
from saelab.types import ConfigError

WIDTH, DOCUMENTS = 8, 480


def documents(labels: np.ndarray, mixing: np.ndarray) -> dict[str, Pooled]:
    """Documents of a direction for each label and some noise, as a dictionary sees them whose latents are
    mixtures of these, and as one that knows nothing does."""
    rng = np.random.default_rng(0)
    x = 0.05 * rng.normal(size=(len(labels), WIDTH))
    x[:, : labels.shape[1]] += labels
    directions = mixing @ np.eye(WIDTH)
    codes = x @ np.linalg.inv(directions)
    other = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    live = np.arange(WIDTH)
    return {"": Pooled(x, codes, directions, live), UNTRAINED: Pooled(x, x @ other.T, other, live)}


CLEAN = np.eye(WIDTH)
SHARED = np.eye(WIDTH)
SHARED[:2, :2] = [[1, 1], [1, -1]]
"""Two labels in each of two latents."""


@pytest.mark.parametrize(("mixing", "others"), [(CLEAN, 0.0), (SHARED, None)])
def test_latents_of_one_class_harm_its_probe_alone(mixing, others):
    which = np.arange(DOCUMENTS) % 3
    labels = np.eye(3)[which]
    classes = [Task(name, "document", which == i) for i, name in enumerate("abc")]
    judge = np.arange(DOCUMENTS) // 3 % 3 == 0
    found = perturbed(documents(labels, mixing), classes, judge, (1,), 100, 0)
    own, tpp = found.claims["own_1"], found.claims["tpp_1"]
    if others is None:
        assert found.claims["others_1"].value > 0.05
    else:
        # each class's latent is its own: without it the probe says no to everything
        assert own.value == pytest.approx(0.5, abs=0.02)
        assert abs(found.claims["others_1"].value) < 0.02
        assert tpp.apart
        assert found.tables["classes"]["latents"].str[0].tolist() == ["0", "1", "2"]
    assert tpp.value == pytest.approx(own.value - found.claims["others_1"].value, abs=0.02)


@pytest.mark.parametrize(("mixing", "least", "most"), [(CLEAN, 0.95, 1.05), (SHARED, -1.0, 0.6)])
def test_a_misled_probe_is_repaired_where_the_spurious_label_has_a_latent(mixing, least, most):
    a, b = np.arange(DOCUMENTS) % 2 == 0, np.arange(DOCUMENTS) // 2 % 2 == 0
    labels = np.stack([a, 1.5 * b], 1)  # which stands out more than what is meant
    judge = np.arange(DOCUMENTS) // 4 % 3 == 0
    found = repaired(documents(labels, mixing), {"a": a, "b": b}, [("a", "b")], judge, (1,), 80, 0)
    (line,) = found.tables["pairs"].to_dict("records")
    assert (line["target"], line["spurious"], line["oracle"]) == ("a", "b", 1.0)
    assert line["before"] < 0.8
    claim = found.claims["centred_1"]
    assert least <= claim.value <= most
    if mixing is CLEAN:
        assert line["latents"][0] == "1"
        assert claim.apart
        # zeros in its place: the bias still waits for what is gone, and the probe says no to all
        assert found.claims["scr_1"].value == pytest.approx(0.0, abs=0.05)


def test_effects_are_those_of_the_definition():
    rng = np.random.default_rng(2)
    of = Pooled(rng.normal(size=(40, 5)), rng.random((40, 7)), rng.normal(size=(7, 5)), np.arange(7))
    yes, fit = rng.random(40) < 0.5, rng.permutation(40)[:30]
    probe = Probe(rng.normal(size=5), 0.1)
    for either in (True, False):
        expected = []
        for j in range(7):
            apart = (
                of.codes[[i for i in fit if yes[i]], j].mean()
                - of.codes[[i for i in fit if not yes[i]], j].mean()
            )
            effect = (apart if either else max(apart, 0)) * float(of.directions[j] @ probe.direction)
            expected.append(abs(effect) if either else effect)
        assert np.allclose(effects(of, probe, yes, fit, either=either), expected)
    assert strongest(np.array([0.1, -1.0, 3.0, 0.0]), 4).tolist() == [2, 0]


@pytest.mark.parametrize("normalise", ["none", "sphere", "layernorm"])
def test_taking_latents_out_of_means_is_taking_them_out_of_rows(normalise):
    lab = saelab.Lab.embedded()
    corpus = saelab.corpora.world(seed=3, n_documents=8)
    gathered = gather(lab.sae, Ground(lab.subject, lab.subject.corpus(corpus)), 5_000)
    config = saelab.recipe("topk", d_in=128, d_sae=64, k=4, hook=lab.sae.hook, normalise=normalise)
    sae = saelab.SAE.create(config, rows=gathered.x)
    of = pooled(sae, gathered, 8)
    at = np.array([0, 3, 5])
    codes = sae.encode(gathered.x)
    scale = sae.scale(gathered.x)
    less = codes.clone()
    less[:, of.latents[at]] = 0
    rows = gathered.x - sae.decode(codes, scale) + sae.decode(less, scale)
    expected = torch.stack([rows[gathered.document == i].mean(0) for i in range(8)])
    assert (less != codes).any()
    assert np.allclose(of.without(at, np.arange(8)), expected.detach().numpy(), atol=1e-4)


def test_suites_on_the_embedded_world():
    lab = saelab.Lab.embedded()
    corpus = saelab.corpora.world(seed=77, n_documents=800)
    ground = Ground(lab.subject, lab.subject.corpus(corpus))
    claim = TPP(ns=(20,)).run(lab.sae, ground).claims["tpp_20"]
    assert claim.value > 0.3
    assert claim.value > 2 * max(claim.control, *(each.value for each in claim.also))
    found = SCR(ns=(5,), pairs=(("place", "event"),)).run(lab.sae, ground)
    assert {"scr_5", "centred_5"} <= set(found.claims)
    gathered = gather(lab.sae, ground, 5_000)
    tasks = {task.label: task.positive for task in borne(gathered, lab.subject)}
    spans = [{span.label for span in d.spans} for d in gathered.documents]
    assert tasks["event"].tolist() == ["event" in each for each in spans]


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        (TPP(labels=["a"] * 30 + ["b"] * 10), "TPP needs two classes"),
        (SCR(labels={"a": [True, False] * 20, "b": [True, False] * 20}, pairs=(("a", "b"),)), "SCR needs"),
        (SCR(labels={"a": [True, False] * 20}, pairs=(("a", "c"),)), "must name two labels of documents"),
        (SCR(), "needs labels"),
    ],
)
def test_what_cannot_be_removed_is_refused(suite, said):
    sae = saelab.SAE.create(saelab.recipe("topk", d_in=WIDTH, d_sae=16, k=2))
    with pytest.raises(ConfigError, match=said):
        suite.run(sae, Ground(None, torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(0))))
    assert halves(40, 0.3, 0).sum() == 12
