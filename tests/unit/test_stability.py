"""Would another training have found the same? Planted dictionaries, and figures by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import saelab
from saelab.analysis import suites
from saelab.analysis.stability import alike


def test_cosines_equal_brute_force():
    rng = np.random.default_rng(0)
    for either_sign in (False, True):
        a, b = rng.standard_normal((5, 4)), rng.standard_normal((5, 4))
        unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (a, b)]
        cosines = unit[0] @ unit[1].T
        cosines = np.abs(cosines) if either_sign else cosines
        found = alike(a * 3, b, either_sign)
        np.testing.assert_allclose(found.best, cosines.max(1))
        best = max(sum(cosines[i, p[i]] for i in range(5)) for p in itertools.permutations(range(5)))
        assert found.matched.sum() == pytest.approx(best)
    flipped = alike(a, -a[rng.permutation(5)], either_sign=True)
    np.testing.assert_allclose(flipped.matched, 1)
    assert alike(a, b, most=4).matched is None
    assert alike(np.zeros((3, 4)), a).best.tolist() == [0, 0, 0]


@pytest.fixture(scope="module")
def planted():
    """Rows of 12 orthogonal directions, and an SAE that has found them."""
    truth = saelab.corpora.synthetic(n_features=12, d_in=16, seed=1)
    rows = truth.rows(3000).acts
    config = saelab.recipe("topk", d_in=16, d_sae=12, k=3)
    how = {"steps": 400, "batch_size": 256, "progress": False}
    return rows, config, [saelab.train(config, rows, seed=seed, **how).sae for seed in (1, 2)]


def test_what_is_there_is_found_again_and_noise_is_not(planted):
    rows, config, (sae, other) = planted
    stability = suites.registered()["stability"]
    found = saelab.evaluate(sae, rows, suites=(stability(steps=300),)).suites["stability"].claims
    for name in ("this SAE", "seeds", "halves"):
        assert found[f"{name}: stability"].value > 0.8, found
        assert found[f"{name}: stability"].apart
        assert found[f"{name}: MMCS"].value >= found[f"{name}: stability"].value - 1e-9
    noise = torch.randn(3000, 16, generator=torch.Generator().manual_seed(0))
    none = saelab.train(config, noise, seed=1, steps=300, batch_size=256, progress=False).sae
    lost = saelab.evaluate(none, noise, suites=(stability(steps=300),)).suites["stability"].claims
    for name in ("seeds", "halves"):
        assert lost[f"{name}: stability"].value < found[f"{name}: stability"].value - 0.1
    given = saelab.evaluate(sae, rows, suites=(stability(others=(other, sae)),)).suites["stability"]
    both = alike(*(each.W_dec.detach().double().numpy() for each in (sae, other))).matched
    assert given.claims["others: stability"].value == pytest.approx((both.mean() + 1) / 2, abs=1e-6)
    assert set(given.tables) == {"others"}


def test_what_cannot_be_compared_is_left_out_by_name(planted):
    rows, _, (sae, _) = planted
    stability = suites.registered()["stability"]
    wide = saelab.SAE.create(saelab.recipe("topk", d_in=8, d_sae=12, k=3))
    report = saelab.evaluate(sae, rows, suites=(stability(others=(wide,)),))
    assert "activations of one width" in report.left_out["stability"]
    report = saelab.evaluate(sae, rows, suites=(stability(steps=2, most=5),))
    assert "most" in report.left_out["stability: stability"]
    assert set(report.suites["stability"].claims) == {f"{n}: MMCS" for n in ("this SAE", "seeds", "halves")}
    report = saelab.evaluate(sae, rows[:1], suites=(stability(steps=2),))
    assert "two samples" in report.left_out["stability"]


class Square(nn.Module):
    """Its loss on a row is the squared length of what flows through `here`."""

    def __init__(self):
        super().__init__()
        self.here = nn.Identity()

    def forward(self, x):
        return self.here(x)


def test_the_cost_of_errors_is_that_of_a_closed_form():
    rows = torch.randn(400, 6, generator=torch.Generator().manual_seed(3)) + 2
    subject = saelab.TorchModule(Square(), example=rows[:1], loss=lambda out, inputs: out.square().sum(1))
    sae = saelab.SAE.create(saelab.recipe("topk", d_in=6, d_sae=12, k=1, hook="here"), seed=1, rows=rows)
    found = saelab.evaluate(sae, subject, rows, suites="errors").suites["errors"]
    with torch.no_grad():
        x_hat = sae(rows).x_hat
    added = (x_hat.square().sum(1) - rows.square().sum(1)).mean().item()
    squared = (rows - x_hat).square().sum(1)
    claim = found.claims["loss added"]
    assert claim.value == pytest.approx(added, rel=1e-5)
    # |y + l u|^2 - |y|^2 = l^2 + 2 l y.u, whose mean over directions is l^2
    low, high = claim.control_interval
    assert low < squared.mean() < high
    assert claim.control == pytest.approx(squared.mean().item(), rel=0.2)
    ratio = found.claims["loss added / random"]
    assert ratio.value == pytest.approx(claim.value / claim.control, rel=1e-9)
    table = found.tables["samples"]
    np.testing.assert_allclose(table["length"], squared.sqrt(), rtol=1e-5)
    assert "KL" not in found.claims


def test_costs_are_those_of_the_weights():
    sae = saelab.SAE.create(saelab.recipe("topk", d_in=6, d_sae=12, k=1))
    rows = torch.randn(50, 6)
    found = saelab.evaluate(sae, rows, suites="cost").suites["cost"].claims
    assert found["parameters"].value == 6 * 12 * 2 + 12 + 6
    assert found["MB"].value == pytest.approx((6 * 12 * 2 + 12 + 6 + 1) * 4 / 1e6, rel=0.1)
    assert found["encoded rows a second"].value > 1000
    assert "rows a second of the subject up to it" not in found


def test_norms_are_means_of_the_diagnostics():
    subject = saelab.load_subject(saelab.embedded.model_folder())
    sae = saelab.SAE.load(saelab.embedded.sae_folder())
    corpus = saelab.corpora.world(seed=3, n_documents=20)
    found = saelab.evaluate(sae, subject, corpus, suites="norms").suites["norms"]
    table = found.tables["zf"]
    assert found.claims["code / input"].value == pytest.approx(table["code"].sum() / table["input"].sum())
    assert found.claims["eps_LBO"].value == pytest.approx(table["eps_lbo"].mean())
    assert found.claims["largest proven overlap"].value == table["eps_sharp"].max()
    assert found.claims["largest proven overlap"].value <= found.claims["largest overlap"].value
    transcoder = saelab.SAE.create(saelab.recipe("transcoder", d_in=6, d_out=3, d_sae=10, k=2))
    with pytest.raises(saelab.types.ConfigError, match="Pass an autoencoder"):
        saelab.analysis.norms(transcoder, torch.ones(2, 6))
