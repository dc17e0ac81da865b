"""Measures of tensors: closed forms, SciPy and NumPy, invariances, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.stats import wasserstein_distance

from saelab.analysis import (
    code_correlation,
    collinearity,
    energy,
    explained_variance,
    frac_variance_explained,
    frechet,
    hoyer,
    wasserstein,
)
from saelab.types import ConfigError, NonFiniteError, ShapeError


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_constant_error_counts_in_one_convention_and_not_in_the_other():
    x = _normal(400, 5) * torch.arange(1, 6)
    variance = float(x.var(0, correction=0).sum())
    assert explained_variance(x, x) == frac_variance_explained(x, x) == 1
    assert frac_variance_explained(x, x + 2) == pytest.approx(1)
    assert explained_variance(x, x + 2) == pytest.approx(1 - 5 * 4 / variance)
    mean = x.mean(0).expand_as(x)
    assert explained_variance(x, mean) == pytest.approx(0)
    assert frac_variance_explained(x, 0.5 * x + 3) == pytest.approx(0.75)
    # dictionary_learning's lines
    x_hat = x + _normal(400, 5, seed=1) + 0.3
    theirs = 1 - torch.var(x - x_hat, dim=0).sum() / torch.var(x, dim=0).sum()
    assert frac_variance_explained(x, x_hat) == pytest.approx(float(theirs))
    assert explained_variance(x, x_hat) < frac_variance_explained(x, x_hat)
    assert frac_variance_explained(torch.ones(3, 2), torch.tensor([[1.0, 1], [1, 1], [1, 2]])) == -np.inf


def test_hoyer_is_1_of_one_code_and_0_of_equal_ones():
    codes = torch.tensor([[0.0, -3, 0, 0], [2, 2, 2, 2], [1, 1, 0, 0], [0, 0, 0, 0]])
    found = hoyer(codes)
    np.testing.assert_allclose(found[:3], [1, 0, 2 - np.sqrt(2)])
    assert np.isnan(found[3])
    np.testing.assert_allclose(hoyer(7 * _normal(9, 6)), hoyer(_normal(9, 6)))


def test_collinearity_is_that_of_the_most_alike_of_the_others():
    """Of more directions than are looked at at once; two that are opposite, one of zeros."""
    directions = _normal(2_100, 7)
    directions[2_050], directions[9] = -3 * directions[4], 0
    unit = torch.nn.functional.normalize(directions, dim=1)
    expected = (unit @ unit.t()).abs().fill_diagonal_(0).max(1).values
    found = collinearity(directions)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found[4] == pytest.approx(1)
    assert found[9] == 0
    assert collinearity(torch.eye(5)).max() == 0


def test_correlations_are_numpys():
    codes = _normal(50, 4) @ _normal(4, 4, seed=1) + 9
    np.testing.assert_allclose(code_correlation(codes), np.corrcoef(codes.T), atol=1e-12)
    codes[:, 2] = 5
    assert np.isnan(code_correlation(codes)[2]).all()


def test_energy_is_the_norm_of_the_mean_contribution():
    codes, directions = _normal(30, 6), _normal(6, 4, seed=1)
    expected = [np.linalg.norm((codes[:, [j]] * directions[j]).mean(0)) for j in range(6)]
    np.testing.assert_allclose(energy(codes, directions), expected)


def test_wasserstein_is_scipys_of_each_latent():
    a, b = _normal(80, 3), 2 * _normal(80, 3, seed=1) + torch.tensor([0.0, 1, -4])
    expected = [wasserstein_distance(a[:, j], b[:, j]) for j in range(3)]
    np.testing.assert_allclose(wasserstein(a, b), expected)
    np.testing.assert_allclose(wasserstein(a, a.flip(0) + 2.5), 2.5)


def test_frechet_is_its_equation():
    a, b = _normal(200, 4) @ _normal(4, 4, seed=2), _normal(150, 4, seed=1) @ _normal(4, 4, seed=3) + 1
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = float((a.mean(0) - b.mean(0)).square().sum())
    expected += np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet(a, a.flip(0)) == pytest.approx(0, abs=1e-9)
    # of one latent: (mean - mean')^2 + (std - std')^2
    one, two = a[:, :1], 3 * a[:, :1] + 5
    std = float(one.std())
    assert frechet(one, two) == pytest.approx(float((two - one).mean()) ** 2 + (2 * std) ** 2)
    # a latent that never fires has no variance
    assert np.isfinite(frechet(a * torch.tensor([1.0, 0, 1, 0]), b * torch.tensor([1.0, 0, 0, 1])))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: explained_variance(torch.ones(3, 2), torch.ones(2, 2)), ShapeError, "one shape"),
        (lambda: frac_variance_explained(torch.ones(0, 2), torch.ones(0, 2)), ShapeError, "and rows"),
        (lambda: hoyer(torch.ones(3, 1)), ShapeError, "two latents"),
        (lambda: hoyer(torch.ones(3)), ShapeError, "matrix"),
        (lambda: hoyer("codes"), ConfigError, "Got str"),
        (lambda: collinearity(torch.ones(1, 4)), ShapeError, "two or more"),
        (lambda: code_correlation(torch.ones(1, 4)), ShapeError, "two rows"),
        (lambda: energy(torch.ones(3, 4), torch.ones(5, 2)), ShapeError, "W_dec of one SAE"),
        (lambda: wasserstein(torch.ones(3, 4), torch.ones(2, 4)), ShapeError, "one shape"),
        (lambda: frechet(torch.ones(3, 4), torch.ones(3, 5)), ShapeError, "one width"),
        (lambda: energy(torch.full((3, 4), torch.nan), torch.ones(4, 2)), NonFiniteError, "codes must be"),
    ],
)
def test_they_refuse(call, error, words):
    with pytest.raises(error, match=words):
        call()
