from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

import saelab
from saelab.analysis import match, recovery
from saelab.corpora import Synthetic, synthetic
from saelab.corpora.synthetic import HELD_OUT
from saelab.sae import SAE, fvu, recipe
from saelab.sae.sparsifiers import Sparsifier
from saelab.types import ConfigError, ShapeError


class Signed(Sparsifier):
    """Codes of either sign: pre-activations of at least .1 in size."""

    signed = True

    def forward(self, pre, x_centred, dec_norm):
        return pre * (pre.abs() >= 0.1)


def _perfect(truth: Synthetic, k: int = 2, extra: int = 0, sign: float = 1.0) -> SAE:
    """The SAE that knows orthonormal directions, with `extra` latents that never fire."""
    width = truth.n_features + extra
    sae = SAE(recipe("topk", d_in=truth.d_in, d_sae=width, k=k, normalise="none"))
    W = torch.zeros(width, truth.d_in)
    W[: truth.n_features] = sign * torch.tensor(truth.directions)
    with torch.no_grad():
        sae.dictionary.set(W)
        sae.W_enc.copy_(W.t())
    return sae


# matching


@pytest.mark.parametrize(("n_features", "d_sae"), [(4, 4), (4, 7), (5, 3), (1, 6), (6, 1)])
@pytest.mark.parametrize("either_sign", [False, True])
def test_matching_equals_brute_force_over_all_assignments(n_features, d_sae, either_sign):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        V, W = rng.standard_normal((n_features, 3)), rng.standard_normal((d_sae, 3))
        cosines = np.array([[v @ w / np.linalg.norm(v) / np.linalg.norm(w) for w in W] for v in V])
        if either_sign:
            cosines = np.abs(cosines)
        wide = cosines if n_features <= d_sae else cosines.T
        best = max(
            wide[np.arange(len(wide)), list(columns)].sum()
            for columns in itertools.permutations(range(wide.shape[1]), len(wide))
        )
        found = match(W, V, either_sign=either_sign)
        assert found.cosines.sum() == pytest.approx(best)
        used = found.latents[found.latents >= 0]
        assert len(used) == len(set(used.tolist())) == min(n_features, d_sae)
        at = found.latents >= 0
        np.testing.assert_allclose(found.cosines[at], cosines[at, used])
        assert (found.cosines[~at] == 0).all()


def test_a_latent_between_two_features_serves_one():
    W = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = match(W, np.eye(3)[:2])
    assert sorted(found.latents.tolist()) == [0, 1]
    np.testing.assert_allclose(sorted(found.cosines), [0, np.sqrt(0.5)])


def test_matching_ignores_order_and_length_and_survives_zero_rows():
    V = synthetic(12, 12, coherence="orthonormal").directions
    order = np.random.default_rng(0).permutation(12)
    W = np.concatenate([np.zeros((3, 12)), V[order] * np.arange(1, 13)[:, None]])
    found = match(W, V)
    np.testing.assert_allclose(found.cosines, 1, atol=1e-6)
    np.testing.assert_array_equal(found.latents[order], np.arange(12) + 3)
    np.testing.assert_array_equal(match(np.zeros((2, 12)), V).cosines, 0)


def test_an_opposite_latent_counts_only_where_signs_do_not():
    V = synthetic(6, 6, coherence="orthonormal", active=1).directions
    assert match(-V, V).cosines.max() < 1e-6  # orthogonal ones are better than opposite ones
    np.testing.assert_allclose(match(-V, V, either_sign=True).cosines, 1, atol=1e-6)


@pytest.mark.parametrize(
    ("cosine", "expected"), [(0.79, (0, 0, 0)), (0.85, (1, 0, 0)), (0.92, (1, 1, 0)), (0.97, (1, 1, 1))]
)
def test_shares_recovered_are_those_of_known_angles(cosine, expected):
    truth = synthetic(32, 16, coherence="orthonormal", active=1)
    # each direction is turned by the same angle into a dimension that no feature has
    free = np.linalg.svd(truth.directions)[2][16:]
    W = cosine * truth.directions + np.sqrt(1 - cosine**2) * free
    sae = _perfect(truth)
    with torch.no_grad():
        sae.dictionary.set(torch.tensor(W, dtype=torch.float32))
    result = recovery(sae, truth, n_rows=64)
    assert (result.sae.recovered_80, result.sae.recovered_90, result.sae.recovered_95) == expected
    assert result.sae.mean_cosine == pytest.approx(cosine, abs=1e-5)
    np.testing.assert_array_equal(result.latents, np.arange(16))


# scores


def test_the_sae_that_knows_the_truth_is_perfect_and_its_spare_latents_dead():
    truth = synthetic(20, 12, coherence="orthonormal", active=2, exact=True)
    result = recovery(_perfect(truth, k=2, extra=4), truth, n_rows=3000)
    assert result.sae.recovered_95 == 1
    assert result.sae.l0 == result.l0_true == 2
    assert result.sae.fvu < 1e-10
    assert result.sae.dead == pytest.approx(4 / 16)
    assert np.isnan(result.sae.l0_correlation)
    assert result.fvu_true < 1e-10
    assert result.untrained.recovered_80 < 0.5
    assert result.untrained.fvu > 0.2


def test_the_fvu_of_the_truth_is_the_share_of_the_noise():
    truth = synthetic(20, 12, coherence="orthonormal", active=3, coefficients=(1, 3), noise=0.8)
    p = 3 / 12
    signal = 12 * (p * (4 + 4 / 12) - (p * 2) ** 2)  # variance of a product of Bernoulli and uniform
    result = recovery(_perfect(truth, k=12), truth, n_rows=30_000)
    assert result.fvu_true == pytest.approx(0.64 / (signal + 0.64), rel=0.02)


@pytest.mark.parametrize("n_rows", [2, 1024, 2500])
def test_scores_equal_brute_force_on_all_rows_at_once(n_rows):
    truth = synthetic(8, 10, active=3, noise=0.1)
    sae = SAE.create(recipe("relu", d_in=8, d_sae=40), seed=3, rows=truth.rows(100).acts)
    with torch.no_grad():
        sae.b_enc.sub_(0.25)
    scores = recovery(sae, truth, n_rows=n_rows).sae
    rows = truth.rows(n_rows, HELD_OUT)
    with torch.no_grad():
        codes = sae.encode(rows.acts)
        x_hat = sae.decode(codes)
    l0 = np.array([sum(float(c) != 0 for c in row) for row in codes])
    assert scores.l0 == pytest.approx(l0.mean())
    assert scores.dead == pytest.approx(sum(not bool(c.any()) for c in codes.t()) / 40)
    assert scores.fvu == pytest.approx(fvu(rows.acts, x_hat))
    if n_rows > 2:
        assert scores.l0_correlation == pytest.approx(np.corrcoef(l0, rows.codes.l0)[0, 1])
        assert 0 < scores.dead < 1
    elsewhere = recovery(sae, truth, n_rows=n_rows, start=0).sae
    assert elsewhere.fvu != scores.fvu


def test_signed_codes_are_counted_and_axes_recovered_from_either_end():
    truth = synthetic(16, 12, coherence="orthonormal", active=3, exact=True, signed=True)
    sae = _perfect(truth, sign=-1.0)
    sae.sparsifier = Signed()
    result = recovery(sae, truth, n_rows=2000)
    assert result.either_sign
    assert result.sae.recovered_95 == 1
    assert result.sae.l0 == pytest.approx(3)  # half of these codes are below 0
    assert result.sae.dead == 0
    assert result.sae.fvu < 1e-10
    unsigned = synthetic(16, 12, coherence="orthonormal", active=3, exact=True)
    # where codes are signed, a latent that points the opposite way holds an unsigned feature as well
    result = recovery(sae, unsigned, n_rows=100)
    assert result.either_sign
    assert (result.sae.recovered_95, result.untrained.recovered_95) == (1, 0)
    assert result.sae.fvu < 1e-10
    result = recovery(_perfect(unsigned, sign=-1.0), unsigned, n_rows=100)
    assert not result.either_sign
    assert result.sae.recovered_80 == 0


def test_features_without_a_latent_count_as_not_recovered():
    truth = synthetic(8, 8, coherence="orthonormal", active=2)
    sae = SAE(recipe("topk", d_in=8, d_sae=2, k=1, normalise="none"))
    with torch.no_grad():
        sae.dictionary.set(torch.tensor(truth.directions[[5, 3]]))
    result = recovery(sae, truth, n_rows=10)
    assert result.sae.recovered_95 == 2 / 8
    assert result.sae.mean_cosine == pytest.approx(2 / 8)
    assert result.latents.tolist() == [-1, -1, -1, 1, -1, 0, -1, -1]


def test_training_finds_the_truth_where_the_untrained_sae_does_not():
    truth = synthetic(16, 24, active=2, exact=True, seed=1)
    config = recipe("topk", d_in=16, d_sae=48, k=2)
    run = saelab.train(config, truth.rows(20_000).acts, steps=500, batch_size=256, lr=5e-3, progress=False)
    result = recovery(run.sae, truth, n_rows=4000)
    assert result.sae.recovered_90 >= 0.9
    assert result.untrained.recovered_90 <= 0.1
    assert result.sae.fvu < 0.5 * result.untrained.fvu


def test_the_sae_is_scored_in_eval_mode_and_left_in_its_own():
    truth = synthetic(6, 6, coherence="orthonormal", active=1)
    sae, seen = _perfect(truth), []
    sae.register_forward_hook(lambda module, *_: seen.append(module.training))
    for mode in (True, False):
        sae.train(mode)
        state = {name: t.clone() for name, t in sae.state_dict().items()}
        recovery(sae, truth, n_rows=10)
        assert sae.training is mode
        assert all(torch.equal(t, state[name]) for name, t in sae.state_dict().items())
    assert seen
    assert not any(seen)


def test_same_arguments_give_the_same_scores_and_the_seed_is_the_untrained_ones():
    truth = synthetic(6, 9, active=1)
    sae = SAE.create(recipe("topk", d_in=6, d_sae=12, k=2), seed=5)
    first, again, other = (recovery(sae, truth, n_rows=100, seed=s) for s in (0, 0, 1))
    assert first.to_frame().equals(again.to_frame())
    assert first.to_frame()["this SAE"].equals(other.to_frame()["this SAE"])
    assert first.untrained.mean_cosine != other.untrained.mean_cosine


def test_the_result_is_frozen_and_shows_both_arms():
    truth = synthetic(6, 6, coherence="orthonormal", active=1)
    result = recovery(_perfect(truth), truth, n_rows=1000)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.n_rows = 1  # type: ignore[misc]
    frame = result.to_frame()
    assert list(frame.columns) == ["this SAE", "untrained SAE"]
    assert frame.loc["recovered_90", "this SAE"] == 1
    assert frame.loc["fvu", "untrained SAE"] == result.untrained.fvu
    for part in ("6 features", "1,000 rows", "recovered_80", "dead", "untrained SAE"):
        assert part in str(result)


# refusals


def test_wrong_arguments_are_refused():
    truth = synthetic(6, 6, active=1)
    sae = SAE(recipe("topk", d_in=7, d_sae=6, k=2))
    with pytest.raises(ShapeError, match=r"d_in=6\. Got 7"):
        recovery(sae, truth)
    with pytest.raises(ConfigError, match=r"Got ndarray. Make one by saelab.corpora.synthetic"):
        recovery(sae, truth.directions)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"an integer >= 2\. Got 1"):
        recovery(SAE(recipe("topk", d_in=6, d_sae=6, k=2)), truth, n_rows=1)
    with pytest.raises(ShapeError, match=r"Got \(4, 5\) and \(6, 6\)"):
        match(np.ones((4, 5)), truth.directions)
