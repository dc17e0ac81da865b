"""Latents taken away so that one kind of text is forgotten: on a subject whose loss is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from letters import Letters
from scipy.sparse import csr_matrix

import saelab
from saelab.analysis import Unlearning
from saelab.analysis.sources import Ground
from saelab.analysis.suites.unlearning import clamps, equal_firing
from saelab.corpora import Document
from saelab.types import ConfigError, Run

WIDTH = 3
WORDS = ["abcd", "bcda", "nopz", "zopn"]
"""Of two kinds: letters to m, and beyond, of which every fourth is a z."""


class Known(Letters):
    """A position is [1 0 0] for letters to m, [0 1 0] for others, [0 1 1] for z, and loses 1 less what it
    holds of its own kind: nothing, as it is."""

    def width(self, hook):
        return WIDTH

    def acts(self, ids):
        first = (ids >= ord("a")) & (ids <= ord("m"))
        other = (ids >= ord("n")) & (ids <= ord("z"))
        return torch.stack([first, other, ids == ord("z")], -1).float()

    def run(self, inputs, read=(), edits=(), *, output=True):
        return Run({str(h): self.acts(inputs.data["input_ids"]) for h in read}, None)

    def loss(self, inputs, edits=()):
        ids = inputs.data["input_ids"]
        acts, kind = self.acts(ids), self.acts(ids)
        for edit in edits:
            acts = edit.values
        lost = (kind[..., :2] * (1 - acts[..., :2])).sum((1, 2))
        return lost.double().numpy(), kind[..., :2].sum((1, 2)).long().numpy()


def documents(n: int = 120) -> list[Document]:
    return [Document(str(i), WORDS[i % 4], kind=("first", "other")[i % 4 // 2]) for i in range(n)]


def dictionary(rows: list[list[float]], writes: list[list[float]] | None = None) -> saelab.SAE:
    made = saelab.SAE.create(saelab.recipe("relu", d_in=WIDTH, d_sae=len(rows), hook="h")).eval()
    with torch.no_grad():
        made.W_enc.copy_(torch.tensor(rows).T)
        made.W_dec.copy_(torch.tensor(writes or rows))
        made.b_enc.zero_()
        made.b_dec.zero_()
    return made


OWN = [[1.0, 0, 0], [0, 1.0, 0]]
ALSO_Z = [[1.0, 0, 1.0], [0, 1.0, 0]]
"""The first latent fires on z too, and writes both kinds."""


def run(sae: saelab.SAE, texts: Any = None, **options: Any) -> Any:
    suite = Unlearning(**({"ns": (1,), "forget": "first", "held_out": 0.5} | options))
    subject: Any = Known()
    return suite.run(sae, Ground.of(subject, documents() if texts is None else texts, None, 16, 0))


@pytest.mark.parametrize(("strength", "lost"), [(0.0, 1.0), (1.0, 2.0), (3.0, 4.0)])
def test_a_kind_with_a_latent_of_its_own_is_forgotten_alone(strength, lost):
    claims = run(dictionary(OWN), strength=strength).claims
    assert claims["forget_1"].value == pytest.approx(lost)
    assert claims["retain_1"].value == pytest.approx(0)
    assert claims["unlearned_1"].value == pytest.approx(lost)
    assert (claims["forget_1"].what, claims["forget_1"].also[0].what) == (
        "untrained SAE", "random latents of equal firing"
    )  # fmt: skip
    # the other latent fires as often, and is of the other kind
    assert claims["unlearned_1"].also[0].value == pytest.approx(-lost)
    assert claims["unlearned_1"].apart


def test_what_a_latent_writes_elsewhere_is_its_side_effect():
    sae = dictionary(ALSO_Z, [[1.0, 1.0, 0], [0, 1.0, 0]])
    claims = run(sae, retain=0.5).claims
    assert claims["forget_1"].value == pytest.approx(2)
    assert claims["retain_1"].value == pytest.approx(2 / 4)  # of every fourth letter
    assert claims["unlearned_1"].value == pytest.approx(1.5)
    with pytest.raises(ConfigError, match=r"no latent that fires on it fires on less than 1\.0%"):
        run(sae)


def test_texts_can_be_forgotten_beside_a_corpus():
    texts = documents()
    kept = [d for d in texts if d.kind == "other"]
    gone = [d.text for d in texts if d.kind == "first"]
    found = run(dictionary(OWN), kept, forget=gone)
    assert found.claims["unlearned_1"].value == pytest.approx(2)
    assert found.tables["kinds"]["kind"].tolist() == ["what is forgotten"]


def test_each_kind_is_forgotten_in_turn():
    texts = [
        Document(d.id, d.text, kind=d.kind, labels=("even",) if i % 2 else ())
        for i, d in enumerate(documents())
    ]
    found = run(dictionary(OWN), texts, forget=None, kinds=3)
    assert found.tables["kinds"]["kind"].tolist() == ["first", "other"]
    assert found.left_out.keys() == {"even"}
    assert found.claims["unlearned_1"].value == pytest.approx(2)


def test_latents_are_ranked_by_firing_where_it_counts():
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((400, 12)) < rng.random(12) * 0.3, rng.normal(size=(400, 12)), 0.0)
    fit, forget = rng.random(400) < 0.6, rng.random(400) < 0.4
    found = clamps(csr_matrix(dense), fit, forget, 0.15)
    rates = {}
    for j in range(12):
        on = dense[:, j] != 0
        if on[fit & ~forget].mean() < 0.15 and on[fit & forget].any():
            rates[j] = on[fit & forget].mean()
        assert found.means[j] == pytest.approx(dense[fit & on, j].mean())
    assert 1 < len(rates) < 12
    assert found.latents.tolist() == sorted(rates, key=lambda j: (-rates[j], j))


def test_random_latents_fire_as_often():
    rng = np.random.default_rng(1)
    rates = np.linspace(0.01, 0.9, 100)
    dense = (rng.random((2000, 100)) < rates) * 1.0
    fit = np.ones(2000, dtype=bool)
    latents = np.array([10, 50, 80])
    draws = [equal_firing(csr_matrix(dense), fit, latents, np.random.default_rng(i)) for i in range(20)]
    for found in draws:
        assert not set(found) & set(latents)
        assert len(set(found)) == 3
        assert np.abs(dense.mean(0)[found] - dense.mean(0)[latents]).max() < 0.09
    assert len({tuple(found) for found in draws}) > 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"forget": "third"}, "Got 'third' of first, other"),
        ({"texts": documents(8)}, "needs 4 documents of it"),
        ({"texts": [Document(str(i), "abc") for i in range(20)], "forget": None}, "of none"),
        ({"texts": [d for d in documents() if d.kind == "first"], "forget": None}, "of none"),
        ({"strength": -1}, "strength must be 0 or more"),
        ({"retain": 0}, "above 0"),
        ({"ns": ()}, "list of integers"),
        ({"held_out": 0}, "between 0 and 1"),
    ],
)
def test_what_cannot_be_forgotten_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        run(dictionary(OWN), **options)


def test_transcoders_are_refused_and_activations_left_out():
    coder = saelab.SAE.create(
        saelab.recipe("transcoder", d_in=3, d_sae=8, d_out=3, hook="h", hook_out="g", k=2)
    )
    with pytest.raises(ConfigError, match="Unlearning is of an autoencoder of one hook point"):
        run(coder)
    report = saelab.evaluate(dictionary(OWN), torch.rand(50, 3), suites="unlearning")
    assert "activations alone" in report.left_out["unlearning"]


def test_the_embedded_model_forgets_docstrings():
    subject: Any = saelab.load_subject(saelab.embedded.model_folder())
    sae = saelab.SAE.load(saelab.embedded.sae_folder())
    texts = saelab.corpora.world(seed=5, n_documents=90, families=["docstring", "story", "topic"])
    asked = Unlearning(forget="docstring", ns=(10,))
    found: Any = saelab.evaluate(sae, subject, texts, suites=(asked,)).suites["unlearning"].claims
    assert found["unlearned_10"].apart
    assert found["forget_10"].value > 0.2 > 10 * found["retain_10"].value
    # a whole pass with the same edit, one latent at a time
    one: Any = Unlearning(forget="docstring", ns=(1,), strength=0).run(
        sae, Ground.of(subject, texts, None, 16, 0)
    )
    (latent,) = [int(each) for each in one.tables["kinds"]["latents"][0].split()[:1]]
    edit = saelab.interventions.Ablate(sae, [latent])
    from saelab.analysis.probing.claims import halves

    docs = list(texts)
    held = [docs[i].text for i in np.flatnonzero(halves(90, 0.3, 0)) if docs[i].kind == "docstring"]
    inputs = subject.prepare(held, truncate=True)
    (clean, n), (gone, _) = subject.loss(inputs), subject.loss(inputs, [edit])
    assert one.claims["forget_1"].value == pytest.approx((gone - clean).sum() / n.sum(), abs=1e-5)
