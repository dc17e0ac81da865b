"""Norms of codes against norms of inputs: closed forms, brute force, and bounds that must never fail."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from saelab.analysis import norms
from saelab.sae import SAE, recipe
from saelab.types import ConfigError, ShapeError


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _sae(W_dec: torch.Tensor, name: str = "relu", **options) -> SAE:
    """An SAE whose directions are these and whose encoder reads them off."""
    sae = SAE(recipe(name, d_in=W_dec.shape[1], d_sae=len(W_dec), normalise="none", **options)).eval()
    with torch.no_grad():
        sae.dictionary.set(W_dec)
        sae.W_enc.copy_(torch.linalg.pinv(W_dec))
    return sae


def _planted(n: int, features: int, width: int, signed: bool, seed: int = 0):
    """(directions [features width] of unit norm, sparse codes [n features])"""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(features, width, generator=generator), dim=1)
    on = torch.rand(n, features, generator=generator) < torch.rand(n, 1, generator=generator) * 0.2
    codes = on * (0.02 + torch.rand(n, features, generator=generator))
    sign = 2.0 * (torch.rand(n, features, generator=generator) < 0.5) - 1
    return directions, codes * sign if signed else codes


class Given(torch.nn.Module):
    """Encodes to codes that were given, in order."""

    def __init__(self, sae: SAE, codes: torch.Tensor) -> None:
        super().__init__()
        self.sae, self.codes, self.at = sae, codes, 0
        for name in ("config", "d_sae", "device", "dtype", "b_dec", "W_dec", "target"):
            setattr(self, name, getattr(sae, name))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        self.at += len(x)
        return self.codes[self.at - len(x) : self.at]


def test_two_latents_prove_their_cosine():
    """Two directions at 60 degrees, one of norm 2: every figure by hand."""
    W_dec = torch.tensor([[1.0, 0, 0], [1.0, 3**0.5, 0], [0, 0, 1]])
    x = torch.tensor([[2.0, 3**0.5, 0], [0, 0, 5], [0, 0, 0]])  # d_0 + d_1, 5 d_2, nothing
    found = norms(_sae(W_dec), x)
    np.testing.assert_allclose(found.input, [7**0.5, 5, 0], rtol=1e-6)
    np.testing.assert_allclose(found.code, [5**0.5, 5, 0], rtol=1e-6)
    np.testing.assert_allclose(found.product, [7**0.5, 5, 0], rtol=1e-6)
    assert found.l0.tolist() == [2, 1, 0]
    # 7 - 5 = 2 cos * 1 * 2; (1 + 2)^2 - 5 = 4; (d_sae - 1) ||g||^2 = 10
    np.testing.assert_allclose(found.eps_sharp, [0.5, np.nan, np.nan], rtol=1e-5)
    np.testing.assert_allclose(found.eps_bound, [0.2, 0, np.nan], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.eps_lbo, [0.2, 0, np.nan], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.ratio, [(5 / 7) ** 0.5, 1, np.nan], rtol=1e-6)
    assert found.coherence == pytest.approx(0.5)


def test_the_paper_and_its_script_differ_by_the_decoders_bias():
    """d_0 + d_1 + b_dec and b_dec alone, b_dec of norm 1 and at right angles to both: by hand."""
    sae = _sae(torch.tensor([[1.0, 0, 0], [1.0, 3**0.5, 0], [0, 0, 1]]))
    x = torch.tensor([[2.0, 3**0.5, 0], [0, 0, 0]])
    plain = norms(sae, x)
    np.testing.assert_allclose(plain.eps_lbo_script, plain.eps_lbo)
    with torch.no_grad():
        sae.b_dec.copy_(torch.tensor([0, 0, 1.0]))
    found = norms(sae, x + sae.b_dec.detach())
    np.testing.assert_allclose(found.eps_lbo, [(7 - 5) / (2 * 5), np.nan], rtol=1e-5)
    # ||x||^2 = 7 + 1, and 1 is added to the code's 5
    np.testing.assert_allclose(found.eps_lbo_script, [(8 - 6) / (2 * 6), 0], rtol=1e-5, atol=1e-6)
    assert "eps_lbo_script" in found.to_frame()


@pytest.mark.parametrize("name", ["topk", "abs_topk"])
def test_every_figure_is_its_formula(name):
    """Beside plain loops over the rows of an SAE with biases, unequal norms and an error of its own."""
    x = _normal(40, 8) + 1
    sae = SAE.create(recipe(name, d_in=8, d_sae=30, k=4), 0, x)
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.5, 2, 30)[:, None])
    found = norms(sae, x.reshape(5, 8, 8))
    W_dec, codes = sae.W_dec.detach().double().numpy(), sae.encode(x).detach().double().numpy()
    wanted = (x / sae.input_scale - sae.b_dec).detach().double().numpy()
    for i in range(40):
        g = codes[i] * np.linalg.norm(W_dec, axis=1)
        z = codes[i] @ W_dec
        cross = abs(z @ z - g @ g)
        assert found.input[i] == pytest.approx(np.linalg.norm(wanted[i]))
        assert found.code[i] == pytest.approx(np.linalg.norm(g))
        assert found.eps_lbo[i] == pytest.approx(abs(wanted[i] @ wanted[i] - g @ g) / (29 * g @ g), rel=1e-5)
        assert found.eps_bound[i] == pytest.approx(cross / (29 * g @ g))
        assert found.eps_sharp[i] == pytest.approx(cross / (np.abs(g).sum() ** 2 - g @ g))
        assert found.l0[i] == 4
    fired = np.flatnonzero((codes != 0).any(0))
    unit = W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True)
    assert found.coherence == pytest.approx(
        max(abs(unit[i] @ unit[j]) for i, j in itertools.combinations(fired, 2))
    )


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", [256, 24])
def test_no_bound_is_ever_violated(width, signed):
    """20,000 draws, of nearly orthogonal and of crowded directions."""
    directions, codes = _planted(20_000, 64, width, signed)
    found = norms(Given(_sae(directions), codes), codes @ directions)
    assert np.isfinite(found.eps_sharp).sum() > 15_000
    for bound in (found.eps_lbo, found.eps_bound, found.eps_sharp):  # without an error all three are bounds
        assert np.nanmax(bound) <= found.coherence + 1e-6
    several = found.l0 > 1
    limit = found.coherence * (found.l0 - 1) * found.code**2
    assert (np.abs(found.product**2 - found.code**2)[several] <= limit[several] * (1 + 1e-9)).all()
    assert (found.eps_sharp[several] >= found.eps_bound[several] - 1e-12).all()
    assert np.nanmedian(found.eps_sharp / found.eps_bound) > 3


def test_adversarial_pairs_reach_the_coherence():
    directions, _ = _planted(1, 40, 16, False, seed=3)
    cosine = (directions @ directions.t()).abs().fill_diagonal_(0)
    i, j = divmod(int(cosine.argmax()), 40)
    codes = torch.zeros(4, 40)
    codes[0, [i, j]], codes[1, [i, j]] = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.01])
    codes[2:] = 1  # so that every latent fires
    found = norms(Given(_sae(directions), codes), codes @ directions)
    assert found.eps_sharp[:2] == pytest.approx([float(cosine.max())] * 2, abs=1e-6)
    assert found.coherence == pytest.approx(float(cosine.max()))


def test_the_published_bound_contains_the_error_of_the_reconstruction():
    """On orthonormal directions nothing overlaps, yet eps_LBO is not 0 where latents are left out."""
    sae = _sae(torch.eye(6), "topk", k=1)
    found = norms(sae, torch.ones(1, 6))
    assert found.eps_lbo.tolist() == pytest.approx([(6 - 1) / 5])
    assert found.eps_bound.tolist() == [0]
    both = norms(sae, torch.eye(6)[:2] + 0.1)
    assert both.coherence == 0


def test_rows_and_latents_in_small_numbers(monkeypatch):
    one = norms(_sae(torch.ones(1, 3)), torch.ones(2, 3))
    assert np.isnan(one.eps_lbo).all()
    assert np.isnan(one.coherence)
    none = norms(_sae(torch.eye(3)), torch.ones(0, 3))
    assert none.to_frame().empty
    assert "0 rows" in str(none)
    none.figure()
    wide = SAE.create(recipe("topk", d_in=8, d_sae=2_500, k=2), 0)
    x = _normal(3_000, 8)
    whole = norms(wide, x)  # in pieces
    assert np.array_equal(whole.code[2_000:], norms(wide, x[2_000:]).code)
    unit = torch.nn.functional.normalize(wide.W_dec.detach().double(), dim=1)[(wide.encode(x) != 0).any(0)]
    assert whole.coherence == pytest.approx(float((unit @ unit.t()).abs().fill_diagonal_(0).max()))


def test_the_figure_has_the_line_the_bands_and_the_points():
    directions, codes = _planted(12_000, 20, 64, False)
    found = norms(_sae(directions), codes @ directions)
    points, *lines = found.figure().data
    assert 4_000 <= len(points.x) <= 5_000
    end = found.input.max()
    slopes = sorted(line.y[1] / end for line in lines)
    expected = [(1 + e) ** -0.5 for e in (1, 0.5, 0.25)] + [1, 0.75**-0.5, 0.5**-0.5]
    assert slopes == pytest.approx(expected)
    frame = found.to_frame()
    assert len(frame) == 12_000
    assert np.array_equal(frame["ratio"], found.ratio, equal_nan=True)


def test_the_mode_is_kept_and_wrong_input_is_refused():
    sae = SAE.create(recipe("batchtopk", d_in=8, d_sae=30, k=4), 0, _normal(50, 8)).train()
    norms(sae, _normal(50, 8))
    assert sae.training
    with pytest.raises(ShapeError, match="d_in=8"):
        norms(sae, _normal(50, 9))
    transcoder = SAE.create(recipe("transcoder", d_in=8, d_out=5, d_sae=30, k=4), 0)
    with pytest.raises(ConfigError, match=r"Got a transcoder.*Pass an autoencoder"):
        norms(transcoder, _normal(5, 8))
