"""The suite "classical": figures computed anew, an SAE that is PCA itself, planted features, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp

import saelab
from saelab.analysis.dark.linear import fold_of
from saelab.analysis.suites.classical import Classical, _Pool
from saelab.sae import SAE, fvu, recipe
from saelab.training import classical, with_codes
from saelab.types import ConfigError


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def planted() -> tuple[SAE, torch.Tensor]:
    """Rows of three out of 24 directions in 12 dimensions, and a linear encoder that nearly knows them."""
    directions = torch.nn.functional.normalize(_normal(24, 12), dim=1)
    rng = np.random.default_rng(0)
    codes = np.zeros((3_000, 24))
    for row in codes:
        row[rng.choice(24, 3, replace=False)] = rng.uniform(1, 2, 3)
    x = torch.from_numpy(codes).float() @ directions
    sae = SAE.create(recipe("topk", d_in=12, d_sae=24, k=3, normalise="none", b_dec_init="zeros"), rows=x)
    with torch.no_grad():
        sae.dictionary.set(directions)
        sae.W_enc.copy_(0.6 * directions.t())
    return sae, x


def _found(sae, x, seed=0, **options):
    report = saelab.evaluate(sae, x, suites=(Classical(**options),), seed=seed)
    assert "classical" in report.suites, report.left_out
    return report.suites["classical"]


def test_figures_are_those_of_the_half_that_had_no_part_in_the_fit(planted):
    sae, x = planted
    judged = torch.from_numpy(fold_of(np.arange(len(x)), 2, 5) == 1)
    found = _found(sae, x, seed=5, methods=("pca",))
    own = x[judged]
    with torch.no_grad():
        assert found.claims["fvu"].value == pytest.approx(fvu(own, sae(own).x_hat), rel=1e-6)
    pca = classical(x[~judged], "pca", d_sae=12, seed=5)
    l0 = sae.encode_sparse(own).l0
    centred = (own.double() / float(pca.input_scale) - pca.b_dec.detach().double()).numpy()
    W_dec = pca.W_dec.detach().double().numpy()
    rows = [
        orthogonal_mp(W_dec.T, row, n_nonzero_coefs=int(k)) @ W_dec if k else 0 * row
        for row, k in zip(centred, l0, strict=True)
    ]
    x_hat = (torch.from_numpy(np.array(rows)) + pca.b_dec.detach()) * float(pca.input_scale)
    theirs = dict((c.what, c.value) for c in found.claims["fvu"].also)["pca"]
    assert theirs == pytest.approx(fvu(own, x_hat), rel=1e-4)
    margin = found.claims["margin over pca"]
    assert margin.value == pytest.approx(theirs - found.claims["fvu"].value, abs=1e-9)
    assert margin.control == pytest.approx(theirs - found.claims["fvu"].control, abs=1e-9)


def test_what_knows_the_features_beats_the_classical_ones_and_what_knows_nothing_does_not(planted):
    sae, x = planted
    found = _found(sae, x, methods=("pca", "ica", "kmeans"), iterations=2)
    assert "did not converge" in found.left_out["ica at its end"]
    claims = found.claims
    for name in ("pca", "ica", "kmeans"):
        best = claims[f"margin over {name} by omp"]
        assert best.interval[0] > 0
        assert best.control < best.interval[0]
    assert claims["fvu by omp"].value < 0.1 < claims["fvu by omp"].control
    nothing = SAE.create(sae.config, 7, x)
    assert _found(nothing, x, methods=("pca",)).claims["margin over pca"].interval[1] < 0


def test_the_margin_of_pca_over_itself_is_0(planted):
    """The same rows, the same seed, the same codes: no difference, and no interval about it."""
    _, x = planted
    sae = with_codes(classical(x, "pca", d_sae=12, seed=3), k=2)
    found = _found(sae, x, seed=3, acts=x, methods=("pca",))
    for name in ("margin over pca", "margin over pca by omp"):
        claim = found.claims[name]
        assert (claim.value, *claim.interval) == pytest.approx((0, 0, 0), abs=1e-6)
    assert found.tables["arms"].set_index(["arm", "codes"]).loc[("this SAE", "own"), "l0"] == 2


def test_a_method_that_cannot_be_fitted_is_left_out_by_name(planted):
    sae, x = planted
    found = _found(sae, x, methods=("nmf", "svd"))
    assert "Pass method='semi_nmf'" in found.left_out["nmf"]
    assert "margin over svd" in found.claims
    assert "margin over nmf" not in found.claims


def test_arms_on_the_frontier(planted):
    """The same dictionary at several k is a line, beside that of the SAEs."""
    sae, x = planted
    arms = {f"pca {k}": classical(x, "pca", d_sae=12, k=k) for k in (1, 2, 4)}
    reports = saelab.evaluate({"mine": sae, **arms}, x)
    lines = saelab.analysis.frontier(reports.by_recipe()).to_frame()
    pca = lines[lines["name"] == "pca, omp, 12 latents"]
    assert pca["l0"].tolist() == [1, 2, 4]
    assert pca["fvu"].is_monotonic_decreasing
    assert set(lines["name"]) == {"pca, omp, 12 latents", "topk, 24 latents"}


def test_what_is_kept_of_many_rows_is_a_sample_of_all():
    pool = _Pool(500, seed=0)
    for low in range(0, 20_000, 100):
        pool.add(torch.arange(low, low + 100).float()[:, None])
    kept = pool.rows()[:, 0]
    assert len(kept) == len(kept.unique()) == 500
    assert float(kept.mean()) == pytest.approx(10_000, abs=5 * 5774 / 500**0.5)
    assert float(kept.std()) == pytest.approx(5774, rel=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"methods": ("pcs",)}, "Got 'pcs'. Did you mean 'pca'"),
        ({"methods": (3,)}, "Got 3"),
        ({"rows": 1}, "rows must be"),
        ({"iterations": 0}, "iterations must be"),
        ({"d_sae": 0}, "d_sae must be"),
    ],
)
def test_it_refuses(options, words):
    with pytest.raises(ConfigError, match=words):
        Classical(**options)


def test_transcoders_and_single_samples_are_left_out_with_the_reason(planted):
    sae, x = planted
    crosscoder = SAE.create(recipe("crosscoder", d_in=12, d_sae=40, widths=(6, 6)), rows=x)
    why = saelab.evaluate(crosscoder, x, suites=("classical",)).left_out["classical"]
    assert "Got a crosscoder" in why
    why = saelab.evaluate(sae, x[:2], suites=("classical",)).left_out["classical"]
    assert "Pass more samples, or acts=" in why
