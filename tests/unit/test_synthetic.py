from __future__ import annotations

import dataclasses
import doctest
import math
import sys

import numpy as np
import pytest
import torch

import saelab
from saelab.corpora import Synthetic, synthetic
from saelab.types import ConfigError, RangeError

# the name `saelab.corpora.synthetic` is the function, which hides its module
MODULE = sys.modules["saelab.corpora.synthetic"]
BLOCK, HELD_OUT = MODULE.BLOCK, MODULE.HELD_OUT


def _within(share: np.ndarray, expected: np.ndarray, n: int, sigmas: float = 5) -> np.ndarray:
    """Whether observed shares of n independent rows are within so many standard errors."""
    return np.abs(share - expected) <= sigmas * np.sqrt(expected * (1 - expected) / n) + 1e-12


# directions


def test_orthonormal_directions_are_orthonormal():
    v = synthetic(24, 24, coherence="orthonormal").directions
    np.testing.assert_allclose(v @ v.T, np.eye(24), atol=1e-6)


def test_random_directions_have_the_cosines_of_the_uniform_sphere():
    v = synthetic(50, 400, coherence="random").directions
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1, atol=1e-6)
    cosines = (v @ v.T)[np.triu_indices(400, 1)]
    # mean 0, variance 1 / d_in
    assert abs(cosines.mean()) < 0.01
    assert cosines.var() == pytest.approx(1 / 50, rel=0.05)


@pytest.mark.parametrize("coherence", [0.0, 0.3, 0.8])
def test_correlated_directions_have_the_cosine_asked_for_within_groups_only(coherence):
    v = synthetic(200, 90, coherence=coherence, groups=3, active=1).directions.astype(float)
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1, atol=1e-6)
    same = np.arange(90)[:, None] % 3 == np.arange(90) % 3
    above = np.triu(np.ones((90, 90), bool), 1)
    cosines = v @ v.T
    assert cosines[same & above].mean() == pytest.approx(coherence, abs=0.01)
    assert abs(cosines[~same & above].mean()) < 0.06 + coherence * 0.15
    # the common part is exactly as long as the cosine says: what remains of each is orthogonal to it
    only = synthetic(200, 2000, coherence=coherence, active=1).directions.astype(float)
    common = only.mean(0)
    if coherence:
        np.testing.assert_allclose(only @ common / np.linalg.norm(common), math.sqrt(coherence), atol=0.02)


# the law of the rows


def test_activations_are_the_coefficients_times_the_directions():
    truth = synthetic(20, 30, signed=True)
    rows = truth.rows(500)
    dense = rows.codes.dense()
    by_hand = np.zeros((500, 20))
    for i in range(500):
        for feature, value in zip(*rows.codes.row(i), strict=True):
            by_hand[i] += value * truth.directions[feature]
    np.testing.assert_allclose(rows.acts.numpy(), by_hand, atol=1e-5)
    assert rows.acts.dtype == torch.float32
    assert (np.diff(rows.codes.row_ids()) >= 0).all()
    assert ((dense != 0).sum(1) == rows.codes.l0).all()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("zipf", [0.0, 1.0])
def test_features_are_active_as_often_as_they_say(exact, zipf):
    n = 60_000
    truth = synthetic(4, 40, zipf=zipf, active=3, difficulty_spread=0.5, exact=exact)
    assert truth.frequencies.sum() == pytest.approx(3)
    expected = (np.arange(1, 41) + 3.0) ** -zipf
    np.testing.assert_allclose(truth.frequencies, 3 * expected / expected.sum())
    share = (truth.rows(n).codes.dense() != 0).mean(0)
    assert _within(share, truth.frequencies, n).all()


def test_an_exact_count_is_exact_and_every_subset_equally_likely():
    n = 50_000
    rows = synthetic(4, 5, active=2, exact=True).rows(n)
    assert set(rows.codes.l0.tolist()) == {2}
    pairs, counts = np.unique(rows.codes.indices.reshape(n, 2), axis=0, return_counts=True)
    assert len(pairs) == math.comb(5, 2)
    assert _within(counts / n, np.full(10, 0.1), n).all()


def test_an_exact_count_of_uneven_rows_is_next_to_the_difficulty():
    rows = synthetic(4, 40, active=5, difficulty_spread=0.8, exact=True, zipf=0.5).rows(5000)
    assert (np.abs(rows.codes.l0 - rows.difficulty) < 1).all()
    assert rows.difficulty.min() >= 5 * 0.2
    assert rows.difficulty.max() <= 5 * 1.8
    assert rows.difficulty.max() - rows.difficulty.min() > 5 * 1.5
    assert np.corrcoef(rows.codes.l0, rows.difficulty)[0, 1] > 0.97


def test_independent_counts_have_the_moments_of_their_law():
    n, p, s = 60_000, 4 / 50, 0.6
    rows = synthetic(4, 50, active=4, difficulty_spread=s).rows(n)
    l0, t = rows.codes.l0, rows.difficulty
    # L0 given t is binomial: var = E[m p t (1 - p t)] + var(m p t), var(t) = s^2 / 3, t of mean 1
    assert t.mean() == pytest.approx(4, rel=0.01)
    assert t.var() == pytest.approx(16 * s**2 / 3, rel=0.02)
    variance = 4 - 50 * p**2 * (1 + s**2 / 3) + 16 * s**2 / 3
    assert l0.mean() == pytest.approx(4, rel=0.01)
    assert l0.var() == pytest.approx(variance, rel=0.03)
    assert np.cov(l0, t)[0, 1] == pytest.approx(16 * s**2 / 3, rel=0.05)
    even = synthetic(4, 50, active=4).rows(1000)
    assert (even.difficulty == 4).all()


def test_coefficients_are_uniform_and_signed_where_asked_for():
    unsigned = synthetic(4, 20, coefficients=(1.0, 3.0)).rows(20_000).codes.values
    assert unsigned.min() >= 1
    assert unsigned.max() <= 3
    assert unsigned.mean() == pytest.approx(2, rel=0.01)
    assert unsigned.var() == pytest.approx(4 / 12, rel=0.02)
    signed = synthetic(4, 20, coefficients=(1.0, 3.0), signed=True).rows(20_000).codes.values
    assert (signed > 0).mean() == pytest.approx(0.5, abs=0.01)
    assert np.abs(signed).min() >= 1
    one = synthetic(4, 20, coefficients=(2.0, 2.0)).rows(100).codes.values
    assert set(one.tolist()) == {2.0}


def test_noise_has_the_norm_asked_for_and_hits_every_axis():
    quiet, noisy = synthetic(30, 20), synthetic(30, 20, noise=0.5)
    np.testing.assert_array_equal(quiet.directions, noisy.directions)
    rows = noisy.rows(20_000)
    e = rows.acts.numpy() - rows.codes.dense() @ noisy.directions
    assert (e**2).sum(1).mean() == pytest.approx(0.25, rel=0.02)
    np.testing.assert_allclose((e**2).mean(0), 0.25 / 30, rtol=0.06)


def test_children_are_active_only_with_their_parent_and_exclude_each_other():
    n = 40_000
    truth = synthetic(40, 5 * (1 + 4 + 4 * 2), branching=(4, 2), active=1.5, child_rate=0.6)
    on = truth.rows(n).codes.dense() != 0
    roots = truth.parents < 0
    assert roots.sum() == 5
    assert roots[:5].all()
    for feature in range(truth.n_features):
        children = truth.children(feature)
        assert len(children) in (4, 2, 0)
        assert (truth.parents[children] == feature).all()
        if len(children):
            below = on[:, children]
            assert not below[~on[:, feature]].any()
            assert (below.sum(1) <= 1).all()
            rate = below[on[:, feature]].any(1).mean()
            assert _within(rate, np.float64(0.6), on[:, feature].sum())
    assert truth.frequencies.sum() == pytest.approx(1.5)
    assert _within(on.mean(0), truth.frequencies, n).all()
    assert truth.frequencies[0] == pytest.approx(1.5 / (1 + 0.6 + 0.36) / 5)


# streams


def test_a_row_is_the_same_however_it_is_asked_for():
    truth = synthetic(12, 20, noise=0.3, signed=True, difficulty_spread=0.5, zipf=0.5)
    whole = truth.rows(3 * BLOCK + 7)
    for start, n in ((0, 1), (BLOCK - 1, 2), (5, 2 * BLOCK), (BLOCK, BLOCK), (3 * BLOCK, 7)):
        part = truth.rows(n, start)
        at = slice(start, start + n)
        assert torch.equal(part.acts, whole.acts[at])
        np.testing.assert_array_equal(part.codes.dense(), whole.codes.dense()[at])
        np.testing.assert_array_equal(part.difficulty, whole.difficulty[at])
    batches = list(truth.batches(100, n_batches=4, start=50))
    assert torch.equal(torch.cat([b.acts for b in batches]), whole.acts[50:450])


def test_a_stream_has_no_end_and_no_beginning_to_pay_for():
    truth = synthetic(4, 6, active=2)
    stream = truth.batches(10, start=HELD_OUT)
    first, second = next(stream), next(stream)
    assert not torch.equal(first.acts, second.acts)
    assert not torch.equal(first.acts, truth.rows(10).acts)


def test_the_seed_and_nothing_else_decides():
    state = torch.get_rng_state()
    a, b, c = synthetic(6, 9, seed=1), synthetic(6, 9, seed=1), synthetic(6, 9, seed=2)
    np.testing.assert_array_equal(a.directions, b.directions)
    assert torch.equal(a.rows(50).acts, b.rows(50).acts)
    assert not np.array_equal(a.directions, c.directions)
    assert not np.array_equal(a.rows(50).codes.values, c.rows(50).codes.values)
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_without_any_feature_are_whole():
    rows = synthetic(3, 2, active=0.001).rows(300)
    assert len(rows.codes) == 300
    assert rows.codes.l0.sum() < 10
    assert rows.acts.shape == (300, 3)


def test_the_truth_is_frozen_and_shows_itself():
    truth = synthetic(6, 10, branching=(4,), active=1, noise=0.25, seed=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        truth.seed = 1  # type: ignore[misc]
    for array in (truth.directions, truth.frequencies, truth.parents):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    says = repr(truth)
    for part in ("d_in=6", "n_features=10", "1 active", "unsigned", "(4,)", "noise=0.25", "seed=3"):
        assert part in says
    assert isinstance(truth, Synthetic)
    assert saelab.corpora.synthetic is synthetic


def test_the_docstrings_examples_run():
    assert doctest.testmod(MODULE).failed == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"d_in": 0}, "d_in must be an integer >= 1. Got 0"),
        ({"n_features": 2.0}, "n_features must be an integer"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"active": 0}, r"active must be a finite number in \(0, 10\]. Got 0"),
        ({"active": 11}, "active must be a finite number"),
        ({"active": float("nan")}, "active must be a finite number"),
        ({"coherence": "orthogonal"}, "Did you mean 'orthonormal'"),
        ({"coherence": 1.0}, r"coherence must be a finite number in \[0, 1\)"),
        ({"coherence": "orthonormal"}, "at most d_in=8. Got n_features=10. Pass fewer"),
        ({"coherence": 0.5, "d_in": 1}, "d_in >= 2"),
        ({"groups": 0}, "groups must be an integer"),
        ({"zipf": -1}, "zipf must be a finite number"),
        ({"zipf": 2.0, "shift": 0}, "probability of at most 1 .* Got 2.58. Lower active=4"),
        ({"active": 8, "difficulty_spread": 0.5}, "Got 1.2"),
        ({"difficulty_spread": 1.1}, r"difficulty_spread must be a finite number in \[0, 1\]"),
        ({"exact": 1}, "exact must be True or False. Got 1"),
        ({"signed": None}, "signed must be True or False"),
        ({"branching": (3,)}, "multiple of 4, .* Got 10. Pass n_features=8"),
        ({"branching": (0,)}, "branching must be an integer >= 1"),
        ({"child_rate": 2}, "child_rate must be"),
        ({"coefficients": (0.0, 1.0)}, "The lower coefficient must be"),
        ({"coefficients": (2.0, 1.0)}, "The upper coefficient must be"),
        ({"coefficients": 1.0}, "coefficients must be two numbers"),
        ({"noise": float("inf")}, "noise must be a finite number"),
    ],
)
def test_options_out_of_range_are_refused_with_rule_value_and_remedy(options, says):
    arguments = {"d_in": 8, "n_features": 10, **options}
    with pytest.raises(ConfigError, match=says):
        synthetic(**arguments)


def test_rows_and_features_out_of_range_are_refused():
    truth = synthetic(4, 6)
    with pytest.raises(ConfigError, match="n must be an integer >= 1"):
        truth.rows(0)
    with pytest.raises(ConfigError, match="start must be"):
        truth.rows(1, -1)
    with pytest.raises(RangeError, match=r"0\.\.5. Got 6"):
        truth.children(6)
