"""Gradient pursuit: orthonormal directions, a plain loop, the encoder at equal L0, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pursued import plain

import saelab
from saelab.analysis import gradient_pursuit
from saelab.analysis.dark.pursuit import pursued
from saelab.types import ConfigError, NonFiniteError, ShapeError


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _codes(*args, **options) -> torch.Tensor:
    return torch.from_numpy(gradient_pursuit(*args, **options).dense())


@pytest.mark.parametrize("signed", [False, True])
def test_orthonormal_directions_give_the_projection_on_the_largest(signed):
    """Of norms 0.5 to 2, so that codes are in the directions' units; rows of every k, of 0 and of more than
    have a positive product."""
    q = torch.linalg.qr(_normal(24, 24))[0][:16]
    size = torch.linspace(0.5, 2, 16)
    x, k = _normal(200, 24, seed=1), np.arange(200) % 17
    found = _codes(x, size[:, None] * q, k, signed=signed)
    products = x @ q.t()
    keys = products.abs() if signed else products.clamp(min=0)
    for row, most in enumerate(k):
        expected = torch.zeros(16)
        best = keys[row].topk(int(most)).indices
        expected[best] = (products if signed else keys)[row, best]
        torch.testing.assert_close(found[row], expected / size, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("n", "d", "m", "k"), [(40, 8, 64, 6), (30, 32, 16, 12), (9, 1, 3, 2), (5, 6, 1, 1)])
def test_it_is_the_plain_loop(n, d, m, k, signed):
    """More directions than dimensions, less, one; rows of several k in several pieces."""
    directions = _normal(m, d) * torch.linspace(0.1, 3, m)[:, None]
    x, most = _normal(n, d, seed=1).double(), [1 + i % k for i in range(n)]
    expected = plain(x, directions.double(), most, signed)
    found = gradient_pursuit(x, directions.double(), most, signed=signed)
    np.testing.assert_allclose(found.dense(), expected.float().numpy(), atol=1e-5, rtol=1e-4)
    assert (found.l0 <= most).all()
    assert signed or (found.values > 0).all()


def test_pieces_change_nothing(monkeypatch):
    from saelab.sae import pursuit

    x, directions, k = _normal(50, 8), _normal(40, 8, seed=1), np.arange(50) % 7
    whole = _codes(x, directions, k)
    monkeypatch.setattr(pursuit, "CACHED", 1)
    monkeypatch.setattr(pursuit, "FAST", 3)
    torch.testing.assert_close(_codes(x, directions, k), whole)


def test_a_longer_pursuit_leaves_less():
    """Without the clamp a step never makes the residual longer; with it, it does not in the mean."""
    x, directions = _normal(300, 16), _normal(64, 16, seed=1)
    for signed in (True, False):
        left = torch.stack(
            [(x - _codes(x, directions, k, signed=signed) @ directions).norm(dim=1) for k in range(1, 9)]
        )
        shorter = left.diff(dim=0) <= 1e-5
        assert shorter.all() if signed else shorter.float().mean() > 0.99
        assert (left.mean(1).diff() < 0).all()


def test_it_beats_the_encoder_at_equal_l0():
    """On the embedded SAEs, each row with the L0 that the encoder has there."""
    corpus = list(saelab.corpora.world(seed=5, n_documents=40))
    for hook in ("blocks.2.hook_resid_post", "blocks.1.attn.hook_z"):
        sae = saelab.load_sae(saelab.embedded.sae_folder(hook))
        subject = saelab.Lab.embedded().subject
        inputs = subject.prepare([d.text for d in corpus])
        x = subject.run(inputs, read=hook, output=False).acts[hook][torch.from_numpy(inputs.counted)]
        encoded = sae.encode_sparse(x)
        found = pursued(sae, x, encoded.l0)
        assert (found.l0 <= encoded.l0).all()
        with torch.no_grad():
            error = [(x - sae.decode(codes)).square().sum() for codes in (encoded, found)]
        assert error[1] < 0.95 * error[0], hook


def test_codes_are_of_the_rows_scale():
    """Rows that are normalised by themselves: their codes decode by their own scale."""
    config = saelab.recipe("topk", d_in=8, d_sae=32, k=4, normalise="layernorm")
    x = _normal(50, 8) * 5 + 3
    sae = saelab.SAE.create(config, rows=x)
    found = pursued(sae, x, np.full(50, 4))
    with torch.no_grad():
        error = (x - sae.decode(found, scale=sae.scale(x))).square().sum()
        assert error < (x - sae(x).x_hat).square().sum()


def test_directions_that_are_nothing_and_rows_that_are_nothing():
    directions = torch.tensor([[0.0, 0], [1, 0], [1, 0]])
    found = _codes(torch.tensor([[2.0, 0], [0, 0], [-1, 0]]), directions, 2)
    assert found.tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, 0]]
    assert len(gradient_pursuit(torch.zeros(0, 2), directions, 2)) == 0


@pytest.mark.parametrize(
    ("x", "directions", "k", "error", "words"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), 1, ShapeError, r"one width|\[n d\] and \[m d\]"),
        (torch.ones(3), torch.ones(2, 3), 1, ShapeError, r"\[n d\]"),
        (torch.ones(2, 3), torch.ones(0, 3), 1, ShapeError, "m >= 1"),
        (torch.ones(2, 3), torch.ones(2, 3), -1, ConfigError, "k must be"),
        (torch.ones(2, 3), torch.ones(2, 3), 1.5, ConfigError, "k must be"),
        (torch.ones(2, 3), torch.ones(2, 3), 3, ConfigError, "the 2 directions"),
        (torch.ones(2, 3), torch.ones(2, 3), [1, 2, 3], ShapeError, "each of 2 rows"),
        (torch.full((2, 3), torch.nan), torch.ones(2, 3), 1, NonFiniteError, "Activations"),
        (torch.ones(2, 3), torch.full((2, 3), torch.inf), 1, NonFiniteError, "Directions"),
    ],
)  # fmt: skip
def test_it_refuses(x, directions, k, error, words):
    with pytest.raises(error, match=words):
        gradient_pursuit(x, directions, k)
