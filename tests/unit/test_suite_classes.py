"""The suite "classes": FVU of kinds of rows, as read by a plain loop, and found where it was planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import saelab
from saelab.analysis.suites.classes import ANY, Classes

HOOK = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def subject():
    return saelab.load_subject(saelab.embedded.model_folder())


@pytest.fixture(scope="module")
def sae():
    return saelab.SAE.load(saelab.embedded.sae_folder(HOOK))


@pytest.fixture(scope="module")
def corpus():
    return saelab.corpora.world(seed=31, n_documents=40)


def _read(subject, corpus):
    """(rows, token ids, positions, kinds) of the documents one by one, BOS left out."""
    found = []
    for document in corpus:
        ids = subject.to_tokens(document.text)[: subject.n_ctx]
        with torch.no_grad():
            x = subject.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[3][0]
        kinds = [document.kind] * (len(ids) - 1)
        found.append((x[1 : len(ids)], ids[1:], list(range(1, len(ids))), kinds))
    x, *rest = zip(*found, strict=True)
    return torch.cat(x).double(), *(np.array([one for each in part for one in each]) for part in rest)


def test_classes_are_those_of_a_plain_loop(subject, sae, corpus):
    x, ids, positions, kinds = _read(subject, corpus)
    with torch.no_grad():
        error = (x - sae(x.float()).x_hat.double()).square().sum(1).numpy()
    deviation = (x - x.mean(0)).square().sum(1).numpy()
    report = saelab.evaluate(sae, subject, corpus, suites=(Classes(least=5),), batch_size=7)
    found = report.suites["classes"]
    assert report.n_rows == len(x)
    counts = np.bincount(ids)
    order = np.argsort(-counts, kind="stable")
    quarter = dict(zip(order, 4 * (np.cumsum(counts[order]) - counts[order]) // len(ids), strict=True))
    ours = {
        "document kind": kinds,
        "token kind": np.isin(ids, list(subject.special_ids)),  # what the world's tokenizer doesn't know
        "token frequency": np.array([int(quarter[i]) for i in ids]),
        "position band": np.floor(np.log2(positions)).astype(int),
    }
    table = found.tables["classes"].set_index(["by", "class"])
    for by, values in ours.items():
        names = table.loc[by].index
        assert len(names) == len(set(values.tolist())) > 1
        for name, value in zip(names, np.unique(values), strict=True):  # both in order
            at = values == value
            assert table.loc[(by, name), "rows"] == at.sum()
            assert table.loc[(by, name), "fvu"] == pytest.approx(
                error[at].sum() / deviation[at].sum(), rel=1e-4
            )
            if at.sum() >= 5:
                claim = found.claims[f"fvu, {by}, {name}"]
                assert claim.value == pytest.approx(error[at].sum() / deviation[at].sum(), rel=1e-4)
            else:
                assert f"fvu, {by}, {name}" in found.left_out
    assert table.loc["document kind", "rows"].sum() == report.n_rows


def test_a_class_that_is_rebuilt_badly_is_told_from_the_others(subject, sae, corpus):
    """An SAE that is told of no errors but on the rows of one kind of document."""
    kinds = sorted({each.kind for each in corpus})
    x, _, _, of = _read(subject, corpus)
    bad = x[of == kinds[0]].float()

    class Told(saelab.SAE):
        def forward(self, rows, sparse=False):
            found = super().forward(rows, sparse=sparse)
            at = (torch.cdist(rows, bad, compute_mode="donot_use_mm_for_euclid_dist") < 1e-3).any(1)
            return found._replace(x_hat=torch.where(at[:, None], rows * 0.5, rows))

    told = Told(sae.config).eval()
    told.load_state_dict(sae.state_dict())
    report = saelab.evaluate(told, subject, corpus, suites=(Classes(least=5),))
    claims = report.suites["classes"].claims
    of_kinds = {name: claim for name, claim in claims.items() if "document kind" in name}
    assert len(of_kinds) > 2
    worst, *rest = of_kinds.values()
    whole = {each.what: each for each in worst.also}[ANY]
    assert worst.value > 0.2
    assert worst.interval[0] > whole.interval[1]
    assert all(claim.value < 1e-9 for claim in rest)
    assert all(claim.value > 0.001 for name, claim in claims.items() if "token frequency" in name)


def test_special_tokens_are_a_class_of_their_own(subject, sae, corpus):
    class Some(type(subject)):
        @property
        def special_ids(self):
            return frozenset(subject.to_tokens(next(iter(corpus)).text)[4:6])

    some = saelab.load_subject(saelab.embedded.model_folder())
    some.__class__ = Some
    claims = saelab.evaluate(sae, some, corpus, suites=(Classes(least=2),)).suites["classes"].claims
    assert {"fvu, token kind, special", "fvu, token kind, ordinary"} <= set(claims)


def test_activations_have_no_classes(sae):
    report = saelab.evaluate(sae, torch.randn(50, sae.d_in), suites=("classes",))
    assert "Pass a subject" in report.left_out["classes"]
