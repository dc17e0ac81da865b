"""Orthogonal matching pursuit and non-negative least squares: scikit-learn, SciPy, a plain loop, planted
codes, rows and directions that make trouble."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp

from saelab.analysis import nonnegative_least_squares, orthogonal_matching_pursuit
from saelab.sae import pursuit
from saelab.types import ConfigError, NonFiniteError, ShapeError

SHAPES = [(40, 8, 64, 6), (30, 32, 16, 12), (9, 1, 3, 1), (5, 6, 1, 1), (20, 24, 200, 20), (200, 30, 30, 25)]


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _codes(*args, **options) -> np.ndarray:
    return orthogonal_matching_pursuit(*args, **options).dense()


def plain(x: np.ndarray, directions: np.ndarray, k: int) -> np.ndarray:
    """Codes >= 0 [m] of one row, as one would write it down: what the fit puts to 0 leaves the set."""
    norms = np.linalg.norm(directions, axis=1)
    unit, taken, f = directions / norms[:, None], [], np.zeros(len(directions))
    for _ in range(k):
        products = unit @ (x - f @ unit)
        if products.max() <= 1e-12 * np.linalg.norm(x) or len(taken) == min(unit.shape):
            break
        taken.append(int(products.argmax()))
        while True:
            wanted = np.zeros_like(f)
            wanted[taken] = np.linalg.lstsq(unit[taken].T, x, rcond=None)[0]
            low = [j for j in taken if wanted[j] <= 0]
            if not low:
                f = wanted
                break
            share = min(f[j] / (f[j] - wanted[j]) for j in low)
            gone = [j for j in low if f[j] / (f[j] - wanted[j]) <= share]
            f = f + share * (wanted - f)
            f[gone] = 0
            taken = [j for j in taken if j not in gone]
    return f / norms


@pytest.mark.parametrize(("n", "d", "m", "k"), SHAPES)
def test_signed_is_scikit_learns(n, d, m, k):
    """Its atoms must have norm 1: ours have any, and codes are in their units. Each row with its own k."""
    norms = torch.linspace(0.1, 3, m, dtype=torch.float64)
    unit = torch.nn.functional.normalize(_normal(m, d), dim=1)
    x, most = _normal(n, d, seed=1), np.array([1 + i % k for i in range(n)])
    found = _codes(x, norms[:, None] * unit, most, signed=True)
    for row, each, codes in zip(x.numpy(), most, found, strict=True):
        theirs = orthogonal_mp(unit.t().numpy(), row, n_nonzero_coefs=int(each))
        np.testing.assert_allclose(codes * norms.numpy(), theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(("n", "d", "m", "k"), SHAPES)
def test_not_signed_is_the_plain_loop(n, d, m, k, shift):
    """shift: directions that all lie on one side, so that a new one puts several to 0."""
    directions = (_normal(m, d) + shift) * torch.linspace(0.1, 3, m, dtype=torch.float64)[:, None]
    x, most = _normal(n, d, seed=1), [1 + i % k for i in range(n)]
    found = _codes(x, directions, most)
    expected = [plain(row, directions.numpy(), each) for row, each in zip(x.numpy(), most, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-5)
    assert (found >= 0).all()
    assert ((found != 0).sum(1) <= most).all()


@pytest.mark.parametrize(("n", "d", "m"), [(60, 8, 64), (60, 32, 16), (40, 30, 30), (5, 1, 2), (30, 48, 300)])
def test_nonnegative_least_squares_is_scipys(n, d, m):
    directions, x = _normal(m, d), _normal(n, d, seed=1)
    if m == 16:
        directions = directions.abs()  # a cone that most rows are outside of
    found = nonnegative_least_squares(x, directions).dense()
    error = np.linalg.norm(x.numpy() - found @ directions.numpy(), axis=1)
    theirs = [nnls(directions.t().numpy(), row) for row in x.numpy()]
    np.testing.assert_allclose(error, [e for _, e in theirs], atol=1e-6, rtol=1e-6)
    if m <= d:  # else the codes are no one's alone
        np.testing.assert_allclose(found, [f for f, _ in theirs], atol=1e-6, rtol=1e-5)


def test_planted_codes_are_found():
    """Four of 64 directions of width 32 that overlap little: every row's are found, and to the digit."""
    directions = torch.nn.functional.normalize(_normal(64, 32), dim=1)
    rng = np.random.default_rng(0)
    planted = np.zeros((200, 64))
    for row in planted:
        row[rng.choice(64, 2, replace=False)] = rng.uniform(1, 2, 2)
    x = torch.from_numpy(planted) @ directions
    whole = np.isclose(_codes(x, directions, 4), planted, atol=1e-6).all(1)
    assert whole.mean() > 0.9


def test_what_is_left_is_orthogonal_to_what_was_taken():
    x, directions = _normal(100, 16, seed=1), _normal(64, 16)
    before = x.norm(dim=1)
    for k in range(1, 9):
        codes = torch.from_numpy(_codes(x, directions, k, signed=True)).double()
        residual = x - codes @ directions
        assert float(((residual @ directions.t()) * (codes != 0)).abs().max()) < 1e-4
        assert (residual.norm(dim=1) <= before + 1e-6).all()
        before = residual.norm(dim=1)


def test_pieces_and_finished_rows_change_nothing(monkeypatch):
    x, directions, k = _normal(50, 8), _normal(40, 8, seed=1), np.arange(50) % 7
    whole, free = _codes(x, directions, k), nonnegative_least_squares(x, directions).dense()
    monkeypatch.setattr(pursuit, "CACHED", 1)
    monkeypatch.setattr(pursuit, "FAST", 3)
    np.testing.assert_allclose(_codes(x, directions, k), whole, atol=1e-7)
    np.testing.assert_allclose(nonnegative_least_squares(x, directions).dense(), free, atol=1e-6)


@pytest.mark.parametrize("signed", [False, True])
def test_directions_that_make_trouble(signed):
    """One of norm 0, two that are equal, one that is the sum of others; rows of zeros, huge and tiny ones."""
    directions = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [3, 3, 0], [0, 0, 1]])
    x = torch.tensor([[2.0, 0, 0], [0, 0, 0], [1e15, 2e15, 0], [1e-30, 0, 2e-30], [3, 1, 2]])
    for k in (1, 3, 6):
        found = torch.from_numpy(_codes(x, directions, k, signed=signed))
        assert torch.isfinite(found).all()
        assert (found[:, 0] == 0).all()
        assert found[1].tolist() == [0] * 6
    size = x.norm(dim=1, keepdim=True).clamp_min(1e-38)
    left = (x / size - (found / size) @ directions).norm(dim=1)
    assert float(left.max()) < 1e-5
    assert len(orthogonal_matching_pursuit(torch.zeros(0, 3), directions, 2)) == 0


def test_directions_that_float32_cannot_tell_apart():
    """What is left still points a little along the second, but the system of both has no solution."""
    directions, x = torch.tensor([[1.0, 0], [1, 1e-5]]), torch.tensor([[1.0, 1]])
    found = torch.from_numpy(_codes(x, directions, 2, signed=True))
    torch.testing.assert_close(found @ directions, torch.tensor([[1.0, 0]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("x", "directions", "k", "error", "words"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), 1, ShapeError, r"\[n d\] and \[m d\]"),
        (torch.ones(2, 3), torch.ones(2, 3), 1.5, ConfigError, "k must be"),
        (torch.ones(2, 3), torch.ones(2, 3), 3, ConfigError, "the 2 directions"),
        (torch.ones(2, 3), torch.ones(2, 3), [1, 2, 3], ShapeError, "each of 2 rows"),
        (torch.full((2, 3), torch.nan), torch.ones(2, 3), 1, NonFiniteError, "Activations"),
    ],
)  # fmt: skip
def test_it_refuses(x, directions, k, error, words):
    with pytest.raises(error, match=words):
        orthogonal_matching_pursuit(x, directions, k)
    if k == 1:
        with pytest.raises(error, match=words):
            nonnegative_least_squares(x, directions)
