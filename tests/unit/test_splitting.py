"""What becomes of a narrow SAE's latents in a wider one: planted pieces, and the rule by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

import saelab
from saelab.analysis import suites
from saelab.analysis.splitting import pieces
from saelab.types import ShapeError


def test_the_rule_equals_a_loop():
    rng = np.random.default_rng(0)
    for trial in range(20):
        parent = rng.random((60, 4)) < [0.3, 0.2, 1.0, 0.05]
        inside = parent[:, rng.integers(0, 4, 7)] & (rng.random((60, 7)) < 0.5)
        wide = np.where(rng.random(7) < 0.3, rng.random((60, 7)) < 0.2, inside)
        codes = [each * rng.choice([-1.0, 2.0], each.shape) for each in (parent, wide)]
        found = pieces(*(csr_matrix(each) for each in codes), within=0.6, least=3)
        expected = []
        for i in range(7):
            best = (-1, -np.inf)
            for j in range(4):
                a, b = parent[:, j], wide[:, i]
                if a.sum() >= 3 and b.sum() >= 3 and (a & b).sum() >= 0.6 * b.sum():
                    phi = 0.0 if a.all() or b.all() else np.corrcoef(a, b)[0, 1]
                    best = max(best, (j, phi), key=lambda pair: pair[1])
            expected.append(best[0])
        assert found.of.tolist() == expected, trial
        at = found.latents.tolist()
        assert at == [j for j in range(4) if parent[:, j].sum() >= 3]
        for j, n, covered in zip(at, found.pieces, found.covered, strict=True):
            own = [i for i in range(7) if expected[i] == j]
            assert n == len(own)
            assert covered == pytest.approx((wide[:, own].any(1) & parent[:, j]).sum() / parent[:, j].sum())


def test_codes_of_other_rows_are_refused():
    with pytest.raises(ShapeError, match="the same rows"):
        pieces(csr_matrix(np.ones((3, 2))), csr_matrix(np.ones((4, 2))))


def by_hand(directions):
    """A ReLU SAE that reads each of these orthonormal directions off."""
    w = torch.tensor(directions, dtype=torch.float32)
    sae = saelab.SAE.create(saelab.recipe("relu", d_in=w.shape[1], d_sae=len(w), l1=0.1))
    with torch.no_grad():
        sae.W_enc.copy_(w.T)
        sae.W_dec.copy_(w)
        sae.b_enc.fill_(-0.5)
        sae.b_dec.zero_()
    return sae.eval()


@pytest.fixture(scope="module")
def planted():
    """Four kinds of rows; the first comes in three sorts, the second in two, each with a direction of its own
    beside that of the kind. The narrow SAE knows the kinds, the wide one sorts and the other kinds."""
    rng = np.random.default_rng(1)
    kind, sort = rng.integers(0, 4, 4000), rng.integers(0, 3, 4000)
    sort = np.where(kind == 1, sort % 2, sort)
    eye = np.eye(9, dtype=np.float32)
    rows = eye[kind] + np.where((kind < 2)[:, None], eye[4 + (3 * kind.clip(0, 1) + sort) % 5], 0)
    sorts = [(eye[k] + eye[4 + 3 * k + s]) / 2**0.5 for k, n in ((0, 3), (1, 2)) for s in range(n)]
    narrow, wide = by_hand(eye[:4]), by_hand(np.stack([*sorts, eye[2], eye[3]]))
    with torch.no_grad():
        wide.b_enc[:5] = -1.2  # a sort alone, not its kind
    return torch.from_numpy(rows), narrow, wide


def test_planted_pieces_are_found(planted):
    rows, narrow, wide = planted
    splitting = suites.registered()["splitting"]
    report = saelab.evaluate(wide, rows, suites=(splitting(narrower=narrow),))
    found = report.suites["splitting"]
    table = found.tables["narrower latents"]
    assert table.pieces.tolist() == [3, 2, 1, 1]
    assert table.covered.tolist() == pytest.approx([1, 1, 1, 1])
    claims = found.claims
    assert claims["pieces a latent"].value == pytest.approx(7 / 4)
    assert claims["split"].value == pytest.approx(0.5)
    assert claims["pieces among latents"].value == 1
    assert claims["pieces among latents"].apart
    assert claims["covered"].also[0].value == 0  # codes of other rows
    assert claims["new directions"].value == 0  # 1 / sqrt 2 is above .7
    stricter = saelab.evaluate(wide, rows, suites=(splitting(narrower=narrow, cosine=0.71),))
    assert stricter.suites["splitting"].claims["new directions"].value == pytest.approx(5 / 7)


def test_a_narrower_sae_that_is_none_is_refused(planted):
    rows, _, wide = planted
    splitting = suites.registered()["splitting"]
    for other in (wide, saelab.SAE.create(saelab.recipe("relu", d_in=5, d_sae=2, l1=0.1))):
        left_out = saelab.evaluate(wide, rows, suites=(splitting(narrower=other),)).left_out
        assert "narrower must read" in left_out["splitting"]


@pytest.mark.parametrize("name", ["matryoshka", "jumprelu", "gated", "group_max"])
def test_a_narrower_sae_is_trained_of_other_recipes(name, planted):
    rows, _, _ = planted
    options = {"k": 2} if name in ("matryoshka", "group_max") else {}
    sae = saelab.SAE.create(saelab.recipe(name, d_in=9, d_sae=32, **options), rows=rows).eval()
    report = saelab.evaluate(sae, rows, suites=(suites.registered()["splitting"](steps=20),))
    assert "splitting" in report.suites, report.left_out
