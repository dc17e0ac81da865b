"""Sparse and dense probes against labels that are planted, annotated and written down by hand."""

from __future__ import annotations

import zipfile

import numpy as np
import pandas as pd
import planted
import pytest
import torch

import saelab
from saelab.analysis.probing import claims, labelled, sparse
from saelab.analysis.probing.gathered import averages, codes_of, gather
from saelab.analysis.sources import Ground
from saelab.analysis.suites.probing import Probing
from saelab.corpora import Document, samples, token_labels
from saelab.types import ConfigError, ShapeError

LABEL = planted.CONCEPT


@pytest.fixture(scope="module")
def lab():
    return saelab.Lab.embedded()


def rows(n: int, seed: int = 0) -> tuple[torch.Tensor, list[bool]]:
    """Rows of which one coordinate is the label, and the others are larger."""
    rng = torch.Generator().manual_seed(seed)
    yes = torch.rand(n, generator=rng) < 0.4
    x = 0.6 + 5 * torch.rand(n, planted.WIDTH, generator=rng)
    x[:, LABEL] = torch.where(yes, 1.0, 0.1)
    return x, yes.tolist()


@pytest.mark.parametrize("by", ["means", "effect"])
def test_a_latent_that_is_the_label_is_found_and_controls_know_nothing(by):
    x, yes = rows(600)
    asked = Probing(labels=yes, ks=(1, 2), by=by)
    found = asked.run(planted.sae(), Ground(None, x))
    (line,) = found.tables["labels"].to_dict("records")
    assert line["latents"].split()[0] == str(LABEL)
    top, dense = found.claims["top_1"], found.claims["dense"]
    assert top.value == dense.value == 1.0
    beside = {each.what: each for each in top.also}
    assert abs(beside["shuffled labels"].value - 0.5) < 0.1
    # one of twelve latents is it
    assert beside["random latents"].value < 0.75
    assert abs(dense.control - 0.5) < 0.1
    assert top.interval == (1.0, 1.0)


def test_labels_that_nothing_shows_give_the_base_rate():
    x, _ = rows(800)
    nothing = np.random.default_rng(5).permutation([True, False] * 400)
    found = Probing(labels={"coin": nothing}, ks=(1, 5)).run(planted.sae(), Ground(None, x))
    for claim in found.claims.values():
        assert abs(claim.value - 0.5) < 0.12
        assert not claim.apart


def test_labels_of_documents_are_asked_of_the_means_over_their_rows():
    documents = [
        Document(f"{kind} {i}", "a sample", sample=text, labels=("with",) if kind else ("without",))
        for kind in (True, False)
        for i, text in enumerate(planted.texts(60, kind))
    ]
    ground = Ground(planted.subject(), planted.subject().corpus(samples(documents)))
    found = Probing(ks=(1,)).run(planted.sae(), ground)
    (line,) = found.tables["labels"].to_dict("records")
    assert (line["label"], line["of"], line["latents"]) == ("without", "document", str(LABEL))
    assert found.claims["top_1"].value == 1.0
    # the same out of a table
    told = [d.labels[0] for d in documents]
    again = Probing(labels=told, ks=(1,)).run(planted.sae(), ground)
    assert again.claims["top_1"].value == 1.0
    assert list(again.tables["labels"]["of"]) == ["document"]


def test_annotated_rows_carry_the_labels_of_their_tokens(lab):
    corpus = saelab.corpora.world(seed=4, n_documents=30)
    ground = Ground(lab.subject, lab.subject.corpus(corpus))
    gathered = gather(lab.sae, ground, 100_000)
    tasks = {(t.label, t.of): t.positive for t in labelled.annotated(gathered, lab.subject)}
    at = 0
    for document in corpus:
        labels = token_labels(document, lab.subject.offsets(document.text))[1:]
        for label in ("person", "place", "end year"):
            own = tasks[label, "row"][at : at + len(labels)]
            assert own.tolist() == [each == label for each in labels]
        at += len(labels)
    assert at == len(gathered)
    assert tasks["docstring", "document"].tolist() == [d.kind == "docstring" for d in corpus]


def test_choice_is_that_of_a_plain_computation():
    rng = np.random.default_rng(0)
    dense = rng.random((60, 9)) * (rng.random((60, 9)) < 0.3) * rng.uniform(0.1, 9, 9)
    dense[:, 4] = 0
    yes = rng.random(60) < 0.5
    from scipy.sparse import csr_matrix

    for by in ("means", "effect"):
        size = []
        for column in dense.T:
            one, other = column[yes], column[~yes]
            apart = abs(one.mean() - other.mean())
            within = max(np.sqrt((one.var() + other.var()) / 2), 0.01 * abs(column).max()) or 1.0
            size.append(apart if by == "means" else apart / within)
        expected = np.argsort(-np.array(size), kind="stable")
        for given in (dense, csr_matrix(dense)):
            assert sparse.differing(given, yes, by).tolist() == expected.tolist()


def test_a_split_is_even_and_of_different_documents():
    rng = np.random.default_rng(1)
    document = np.repeat(np.arange(100), 7)
    task = labelled.Task("a", "row", rng.random(700) < 0.2)
    judge = claims.halves(100, 0.3, 0)
    assert judge.sum() == 30
    parts = sparse.split(task, document, judge, 50, rng)
    for part, side, size in ((parts.fit, False, 50), (parts.test, True, 25)):
        assert (judge[document[part]] == side).all()
        assert task.positive[part].sum() == size == len(part) - size
        assert len(set(part)) == len(part)
    few = labelled.Task("b", "row", np.arange(700) < 5)
    assert "needs 10 fitted rows" in str(sparse.split(few, document, judge, 50, rng)) or (
        "needs 10 held-out rows" in str(sparse.split(few, document, judge, 50, rng))
    )


def test_means_over_labels_weigh_labels_alike():
    shares = claims.Shares()
    shares.add("a", np.array([0, 0, 1]), np.array([1, 1, 0]))
    shares.add("b", np.array([1]), np.array([0]))
    other = claims.Shares()
    other.add("a", np.array([0, 0, 1]), np.zeros(3))
    other.add("b", np.array([1]), np.ones(1))
    told = claims.claim(shares, {"one": other, "two": other}, 0, 2)
    assert told.value == pytest.approx((2 / 3 + 0) / 2)
    assert (told.control, told.also[0].value) == (0.5, 0.5)
    # units (0, 0) are of "a" alone: 1; (0, 1): 2/3 and 0; (1, 1): 0 and 0
    assert told.interval == (0, 1)


def test_what_is_gathered_is_what_the_sae_reads(lab):
    corpus = saelab.corpora.world(seed=4, n_documents=12)
    gathered = gather(lab.sae, Ground(lab.subject, lab.subject.corpus(corpus)), 200)
    assert len(gathered) == 200 == len(gathered.document)
    dense = lab.sae.encode(gathered.x).detach().numpy()
    assert np.abs(codes_of(lab.sae, gathered.x).toarray() - dense).max() < 1e-5
    mean = averages(gathered.document, gathered.n_documents) @ dense
    assert np.allclose(mean[1], dense[gathered.document == 1].mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"labels": ["a"] * 40}, ConfigError, "must tell documents or rows apart"),
        ({"labels": ["a", "b"]}, ShapeError, "each of the 40 documents or 40 rows .* Got 2"),
        ({"labels": pd.DataFrame({"x": ["a"] * 40})}, ConfigError, "Got 'a' for all 40 in 'x'"),
        ({"labels": "positive"}, ConfigError, "must be a list"),
        ({}, ConfigError, "needs labels"),
        ({"labels": ["a"] + [""] * 39}, ConfigError, "needs 10 fitted documents with the label"),
        ({"ks": (1, 40)}, ConfigError, "must not exceed the number of latents, d_sae=12. Got 40"),
        ({"ks": ()}, ConfigError, "ks must be a list"),
        ({"ks": (0,)}, ConfigError, "must be an integer >= 1"),
        ({"held_out": 1}, ConfigError, "between 0 and 1"),
        ({"by": "size"}, ConfigError, "must be one of 'means', 'effect'"),
    ],
)
def test_what_cannot_be_probed_is_refused(options, error, said):
    with pytest.raises(error, match=said):
        Probing(**options).run(planted.sae(), Ground(None, rows(40)[0]))


def test_sentences_that_people_judged(shared_data, lab):
    """A model that has read no such sentence knows little of them, and the claim says so."""
    path = shared_data / "language" / "text" / "sentence_polarity.zip"
    documents = []
    with zipfile.ZipFile(path) as file:
        for kind, label in (("neg", "negative"), ("pos", "positive")):
            lines = file.read(f"sentence_polarity/rt-polarity.{kind}").decode("latin-1").splitlines()
            documents += [Document(f"{kind} {i}", t, labels=(label,)) for i, t in enumerate(lines[:120])]
    found = Probing(ks=(10,)).run(lab.sae, Ground(lab.subject, lab.subject.corpus(documents)))
    (line,) = found.tables["labels"].to_dict("records")
    assert (line["label"], line["of"]) == ("positive", "document")
    assert 0.3 < found.claims["top_10"].value < 0.8
    assert not found.claims["top_10"].apart
