"""Classical dictionaries: closed forms, scikit-learn's own transforms, planted dictionaries, brute force,
what they refuse, and that they are SAEs like every other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.decomposition import NMF, PCA, FastICA, MiniBatchSparsePCA, TruncatedSVD

import saelab
from saelab.analysis import nonnegative_least_squares
from saelab.sae import SAE, fvu, recipe
from saelab.training import classical, train, with_codes
from saelab.training.classical import FITTED
from saelab.training.semi_nmf import fitted, semi_nmf
from saelab.types import ConfigError, HookError, NonFiniteError, ShapeError

LINEAR = ("pca", "svd", "ica", "sparse_pca")


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    """Rows whose directions differ in variance, off zero, and are not normal."""
    return (_normal(600, 12).sign() * _normal(600, 12).abs() ** 1.5) @ _normal(12, 12, seed=1) + 3


def _given(sae: SAE, x: torch.Tensor) -> np.ndarray:
    """Rows as the method sees them, float64."""
    return (x.double() / float(sae.input_scale) - sae.b_dec.detach().double()).numpy()


def _x_hat(sae: SAE, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return sae(x).x_hat


def test_pca_leaves_the_variance_of_the_other_directions(x):
    """FVU = 1 - share of variance, and the x_hat of scikit-learn; all directions leave nothing."""
    for d_sae in (1, 5, 12):
        sae = classical(x, "pca", d_sae=d_sae)
        theirs = PCA(d_sae).fit(x.double().numpy())
        assert fvu(x, _x_hat(sae, x)) == pytest.approx(1 - theirs.explained_variance_ratio_.sum(), abs=1e-6)
        expected = theirs.inverse_transform(theirs.transform(x.double().numpy()))
        np.testing.assert_allclose(_x_hat(sae, x), expected, atol=2e-5)
    codes = sae.encode(x).detach().double()
    torch.testing.assert_close(codes.t().cov(), torch.diag(codes.var(0)), atol=1e-5, rtol=0)


def test_svd_is_the_truncated_svd_of_what_is_not_centred(x):
    sae = classical(x, "svd", d_sae=4)
    theirs = TruncatedSVD(4, algorithm="arpack").fit(x.double().numpy())
    expected = theirs.inverse_transform(theirs.transform(x.double().numpy()))
    np.testing.assert_allclose(_x_hat(sae, x), expected, atol=2e-5)
    assert not sae.b_dec.any()


def test_ica_is_fastica_up_to_the_norms_of_directions(x):
    sae = classical(x, "ica", d_sae=6, seed=3)
    given = _given(sae, _sample(x, 3))
    theirs = FastICA(6, whiten="unit-variance", max_iter=200, random_state=3).fit(given)
    norms = np.linalg.norm(theirs.mixing_, axis=0)
    codes = sae.encode(x).detach().double().numpy()
    np.testing.assert_allclose(codes, theirs.transform(_given(sae, x)) * norms, atol=2e-4)
    expected = theirs.inverse_transform(theirs.transform(_given(sae, x)))
    x_hat = (_x_hat(sae, x).double() / float(sae.input_scale) - sae.b_dec.detach().double()).numpy()
    np.testing.assert_allclose(x_hat, expected, atol=1e-4)


def _sample(x: torch.Tensor, seed: int) -> torch.Tensor:
    """The rows in the order in which they are drawn."""
    from saelab.training.rows import TensorRows

    return TensorRows(x).first(len(x), len(x), seed)


def test_ica_finds_what_was_mixed():
    """Independent Laplace sources and a mixing that is not orthogonal: each direction is one of its."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    x = torch.from_numpy(rng.laplace(size=(8_000, 6)) @ mixing)
    sae = classical(x, "ica", d_sae=6)
    planted = torch.nn.functional.normalize(torch.from_numpy(mixing), dim=1).float()
    cosine = (sae.W_dec.detach() @ planted.t()).abs()
    assert (cosine.max(1).values > 0.99).all()
    pca = (classical(x, "pca", d_sae=6).W_dec.detach() @ planted.t()).abs()
    assert float(pca.max(1).values.mean()) < 0.95  # the control: variance alone does not find them


def test_sparse_pca_is_scikit_learns_with_its_ridge(x):
    sae = classical(x, "sparse_pca", d_sae=5, alpha=0.5, iterations=20, seed=2)
    given = _given(sae, _sample(x, 2))
    size = np.sqrt(np.mean(given**2))
    theirs = MiniBatchSparsePCA(
        5, alpha=0.5, batch_size=256, max_iter=20, max_no_improvement=None, random_state=2
    ).fit(given / size)
    expected = theirs.inverse_transform(theirs.transform(_given(sae, x) / size)) * size
    x_hat = (_x_hat(sae, x).double() / float(sae.input_scale) - sae.b_dec.detach().double()).numpy()
    # the mean that is theirs is 0 but for the rounding of ours
    np.testing.assert_allclose(x_hat, expected, atol=1e-4)
    dense = classical(x, "sparse_pca", d_sae=5, alpha=0.0, iterations=20)
    strict = classical(x, "sparse_pca", d_sae=5, alpha=2.0, iterations=20)
    zeros = [int((each.W_dec == 0).sum()) for each in (dense, sae, strict)]
    assert zeros[0] == 0 < zeros[1] < zeros[2]


@pytest.mark.filterwarnings("ignore:Maximum number of iterations")
def test_nmf_is_scikit_learns_and_its_codes_are_the_best():
    x = _normal(300, 10).abs() @ _normal(10, 14, seed=1).abs()
    sae = classical(x, "nmf", d_sae=6, seed=1, iterations=1000)
    given = _given(sae, _sample(x, 1))
    theirs = NMF(6, init="nndsvda", max_iter=1000, random_state=1).fit(given)
    unit = torch.nn.functional.normalize(torch.from_numpy(theirs.components_), dim=1).float()
    torch.testing.assert_close(sae.W_dec.detach(), unit)
    assert min(sae.W_dec.min(), sae.encode(x).min()) >= 0
    again = NMF(6, init="nndsvda", max_iter=2000, tol=1e-6, random_state=1).fit(given)
    again.components_ = theirs.components_
    expected = again.transform(_given(sae, x)) @ theirs.components_
    x_hat = _x_hat(sae, x) / sae.input_scale
    np.testing.assert_allclose(x_hat, expected, atol=2e-3)
    error = np.linalg.norm(_given(sae, x) - x_hat.numpy())
    assert error <= np.linalg.norm(_given(sae, x) - expected) + 1e-6  # theirs stop earlier


def test_k_means_gives_the_nearest_centre(x):
    sae = classical(x, "kmeans", d_sae=20)
    rows = _normal(200, 12, seed=5) * 4 + 3
    centres = (sae.W_dec + sae.b_dec).detach() * sae.input_scale
    nearest = torch.cdist(rows.double(), centres.double()).argmin(1)
    codes = sae.encode_sparse(rows)
    assert (codes.l0 == 1).all()
    assert np.array_equal(codes.indices, nearest.numpy())
    torch.testing.assert_close(_x_hat(sae, rows), centres[nearest])
    # of the rows that it was fitted on, each centre is the mean of its own
    own = sae.encode(x).argmax(1)
    for j in range(20):
        torch.testing.assert_close(centres[j], x[own == j].mean(0), atol=1e-4, rtol=1e-4)


def test_each_round_of_semi_nmf_leaves_less_and_it_finds_what_is_planted():
    """Five directions of any sign, codes >= 0 of which two thirds are 0."""
    rng = np.random.default_rng(0)
    directions = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(5, 20))), dim=1)
    codes = torch.from_numpy(rng.uniform(1, 2, (2_000, 5)) * (rng.random((2_000, 5)) < 1 / 3))
    x = codes @ directions
    start, errors = x[:5], []
    for rounds in (1, 2, 4, 8, 16, 64):
        found = semi_nmf(x, start, rounds)
        best = nonnegative_least_squares(x, found).dense()
        errors.append(float((x - torch.from_numpy(best).double() @ found).square().sum()))
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(errors))
    assert errors[-1] < 1e-3 * float(x.square().sum())
    # no better than the best of that rank, better than codes of one latent
    by = {name: classical(x.float(), name, d_sae=5) for name in ("pca", "semi_nmf", "kmeans")}
    left = [fvu(x.float(), _x_hat(sae, x.float())) for sae in by.values()]
    assert left == sorted(left)
    assert left[1] < 0.2 * left[2]
    # the step of the directions is least squares
    given = torch.from_numpy(rng.uniform(size=(4, 100)))
    expected = torch.linalg.lstsq(given.t(), x[:100]).solution
    torch.testing.assert_close(fitted(x[:100], given), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", FITTED)
def test_they_are_saes_like_every_other(method, x, tmp_path):
    """Saved, loaded, evaluated beside one that knows nothing; the same seed gives the same; k codes a row."""
    rows = x.abs() if method == "nmf" else x
    sizes = {"d_sae": 8, "iterations": 200 if method == "ica" else 15}
    sae = classical(rows, method, **sizes)
    again = SAE.load(sae.save(tmp_path / method))
    assert again.fingerprint() == sae.fingerprint() == classical(rows, method, **sizes).fingerprint()
    assert torch.equal(again.encode(rows), sae.encode(rows))
    report = saelab.evaluate(sae, rows)
    assert report.about["recipe"] == method
    assert report.sae.fvu < report.untrained.fvu
    few = classical(rows, method, k=3, **sizes)
    assert few.config.title == f"{method}, omp"
    torch.testing.assert_close(few.W_dec, sae.W_dec)
    assert int(few.encode_sparse(rows).l0.max()) <= 3
    near = classical(rows, method, k=3, codes="gradient_pursuit", **sizes)
    assert fvu(rows, _x_hat(few, rows)) <= fvu(rows, _x_hat(near, rows)) + 0.02
    signed = method in LINEAR
    assert bool((few.encode(rows) < 0).any()) == signed
    assert few.sparsifier.signed == signed


def test_the_largest_of_orthonormal_directions_are_those_of_the_pursuit(x):
    """For PCA topk, OMP and gradient pursuit are one; for ICA, whose directions overlap, OMP is better."""
    for method in ("pca", "ica"):
        found = {c: classical(x, method, d_sae=8, k=3, codes=c) for c in ("topk", "omp", "gradient_pursuit")}
        x_hat = {name: _x_hat(sae, x) for name, sae in found.items()}
        if method == "pca":
            torch.testing.assert_close(x_hat["topk"], x_hat["omp"], atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(x_hat["gradient_pursuit"], x_hat["omp"], atol=1e-3, rtol=1e-4)
        else:
            assert fvu(x, x_hat["omp"]) < fvu(x, x_hat["topk"])


@pytest.mark.parametrize("normalise", ["scalar", "none", "layernorm"])
def test_codes_of_another_saes_dictionary(normalise, x):
    """Better than its encoder at the same k; the first stays as it is."""
    sae = SAE.create(recipe("topk", d_in=12, d_sae=40, k=4, normalise=normalise), rows=x)
    before = sae.fingerprint()
    for codes in ("omp", "gradient_pursuit"):
        best = with_codes(sae, codes, k=4)
        assert torch.equal(best.W_dec, sae.W_dec)
        assert int(best.encode_sparse(x).l0.max()) <= 4
        assert (best.encode(x) >= 0).all()
        assert fvu(x, _x_hat(best, x)) < 0.9 * fvu(x, _x_hat(sae, x))
    assert sae.fingerprint() == before
    signed = SAE.create(recipe("abs_topk", d_in=12, d_sae=40, k=4), rows=x)
    assert (with_codes(signed, k=4).encode(x) < 0).any()


def test_gradients_of_sought_codes_are_those_of_a_small_step(x):
    """Of OMP and of non-negative least squares, of the input and of the directions, in float64."""
    for method, k in (("given", 3), ("nmf", None)):
        config = recipe("classical", d_in=12, d_sae=20, method=method, k=k, normalise="none")
        sae = SAE.create(config).double()
        row = (x[:1].double() - 3).requires_grad_()
        aim = _normal(1, 20, seed=9).double()
        (sae.encode(row) * aim).sum().backward()
        step = _normal(1, 12, seed=4).double() * 1e-6
        with torch.no_grad():
            slope = ((sae.encode(row + step) - sae.encode(row - step)) * aim).sum() / 2
            assert float((row.grad * step).sum()) == pytest.approx(float(slope), rel=1e-4)
            step = _normal(20, 12, seed=5).double() * 1e-6
            there = [sae.dictionary.set(sae.W_dec + step), sae.encode(row)][1]
            back = [sae.dictionary.set(sae.W_dec - 2 * step), sae.encode(row)][1]
            slope = ((there - back) * aim).sum() / 2
            assert float((sae.W_dec.grad * step).sum()) == pytest.approx(float(slope), rel=1e-4)


def test_a_store_names_the_hook_and_the_sample_is_the_seeds(tmp_path, x):
    lab = saelab.Lab.embedded()
    corpus = saelab.corpora.world(seed=1, n_documents=20)
    hooks = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    store = saelab.harvest(lab.subject, corpus, hooks, tmp_path / "acts", progress=False)
    sae = classical(store, "pca", d_sae=4, hook=hooks[1])
    assert str(sae.hook) == hooks[1]
    with pytest.raises(HookError, match="Got hook=None"):
        classical(store, "pca", d_sae=4)
    few = [classical(x, "pca", d_sae=2, max_rows=50, seed=seed).fingerprint() for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]


@pytest.mark.parametrize(
    ("acts", "options", "error", "words"),
    [
        (_normal(50, 6), {"method": "nmf", "d_sae": 3}, ConfigError, "not negative.*semi_nmf"),
        (_normal(50, 6), {"method": "pca", "d_sae": 7}, ConfigError, "d_in=6.*kmeans"),
        (_normal(50, 6), {"method": "pcs", "d_sae": 3}, ConfigError, "'pca'"),
        (_normal(50, 6), {"method": "given", "d_sae": 3}, ConfigError, "must be one of"),
        (_normal(50, 6), {"method": "kmeans", "d_sae": 51}, ConfigError, "Got d_sae=51 of 50"),
        (_normal(50, 6), {"method": "kmeans", "d_sae": 9, "max_rows": 8}, ConfigError, "larger max_rows"),
        (_normal(50, 6), {"method": "pca", "d_sae": 3, "k": 4}, ConfigError, "between 1 and d_sae=3"),
        (_normal(50, 6), {"method": "kmeans", "d_sae": 9, "k": 2, "codes": "topk"}, ConfigError, "linear"),
        (_normal(50, 6), {"method": "pca", "d_sae": 3, "codes": "omp"}, ConfigError, "Got k=None"),
        (_normal(50, 6), {"method": "pca", "d_sae": 3, "k": 2, "codes": "transform"}, ConfigError, "Leave k"),
        (_normal(50, 2) @ _normal(2, 6), {"method": "ica", "d_sae": 3}, ConfigError, "vary.*d_sae<=2"),
        (torch.ones(50, 6), {"method": "pca", "d_sae": 1}, ConfigError, "Got d_sae=1 of 0"),
        (torch.full((50, 6), torch.nan), {"method": "pca", "d_sae": 3}, NonFiniteError, "finite"),
        (_normal(6), {"method": "pca", "d_sae": 3}, ShapeError, r"Got \[6\]"),
        ("rows", {"method": "pca", "d_sae": 3}, ShapeError, "Got str"),
    ],
)  # fmt: skip
def test_they_refuse(acts, options, error, words):
    with pytest.raises(error, match=words):
        classical(acts, **options)


def test_what_is_fitted_is_not_trained_and_what_is_given_has_no_transform(x):
    sae = classical(x, "pca", d_sae=3)
    with pytest.raises(ConfigError, match=r"Got 'pca', which is fitted. Call saelab.training.classical"):
        train(sae.config, x, steps=2, batch_size=16)
    with pytest.raises(ConfigError, match="no transform"):
        recipe("classical", d_in=12, d_sae=3, method="given")
    with pytest.raises(ConfigError, match="says itself"):
        recipe("classical", d_in=12, d_sae=3, method="nmf", signed=True)
    crosscoder = SAE.create(recipe("crosscoder", d_in=12, d_sae=40, widths=(6, 6)), rows=x)
    with pytest.raises(ConfigError, match="Got a crosscoder"):
        with_codes(crosscoder, k=2)
    with pytest.raises(ConfigError, match="'omp'"):
        with_codes(sae, "transform", k=2)


def test_an_ica_that_did_not_converge_says_so(x):
    with pytest.warns(UserWarning, match="did not converge in iterations=2"):
        classical(x, "ica", d_sae=8, iterations=2)
