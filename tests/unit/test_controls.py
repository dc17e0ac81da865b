"""Scores beside their controls, with intervals that hold what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import saelab
from saelab.analysis.controls import (
    DRAWS,
    Sums,
    beside,
    correlation,
    interval,
    random_directions,
    shuffled,
    untrained,
)


def _mean(sums):
    return sums["x"] / sums["n"]


def _units(rng, n=60, shift=0.0):
    sums = Sums()
    sizes = rng.integers(1, 9, n)
    unit = np.repeat(np.arange(n), sizes)
    # rows of a unit are alike: an interval over rows would be far too narrow
    x = np.repeat(rng.normal(shift, 1, n), sizes) + 0.1 * rng.normal(size=len(unit))
    for part in np.array_split(np.arange(len(unit)), 7):
        sums.add(unit[part], x=x[part], n=np.ones(len(part)))
    return sums, x, unit


def test_sums_are_those_of_each_unit():
    sums, x, unit = _units(np.random.default_rng(0))
    for u in range(60):
        assert sums.of("x")[u] == pytest.approx(x[unit == u].sum())
    assert sums.total("x") == pytest.approx(x.sum())
    assert sums.n_units == 60
    assert sums.of("never").tolist() == [0.0] * 60


@pytest.mark.parametrize("n", [8192, 8193, 20_000, 70_001])
def test_sums_of_many_units_are_of_groups_of_neighbours_and_lose_nothing(n):
    rng = np.random.default_rng(n)
    rows = np.concatenate([np.arange(n), rng.integers(0, n, 3 * n)])
    x, y = rng.normal(size=(2, len(rows)))
    order = np.argsort(rows + rng.integers(0, 300, len(rows)))  # nearly as a corpus is read
    sums, apart = Sums(), Sums(apart=True)
    for part in np.array_split(order, 50):
        sums.add(rows[part], x=x[part])
        apart.add(rows[part], x=x[part])
        sums.add(rows[part][:3], y=y[part][:3])  # not of every row
    assert sums.n_units == apart.n_units == n
    np.testing.assert_allclose(apart.of("x"), np.bincount(rows, x), atol=1e-9)
    plain = np.bincount(rows // sums.group, x)
    np.testing.assert_allclose(sums.of("x"), plain, atol=1e-9)
    assert len(sums.of("y")) == len(plain) <= 8192
    assert sums.group == (1 if n <= 8192 else 2 ** int(np.ceil(np.log2(n / 8192))))
    assert sums.total("x") == pytest.approx(x.sum())


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """95 % of 300 data sets, within what chance allows of 300; rows of a unit taken for independent would be
    covered far less often."""
    covered = by_rows = 0
    for seed in range(300):
        sums, x, _ = _units(np.random.default_rng(seed))
        low, high = interval(sums, _mean, seed=seed, draws=400)
        covered += low <= 0 <= high
        alone = Sums()
        alone.add(np.arange(len(x)), x=x, n=np.ones(len(x)))
        low, high = interval(alone, _mean, seed=seed, draws=400)
        by_rows += low <= 0 <= high
    assert 0.90 <= covered / 300 <= 0.98
    assert by_rows / 300 < 0.85


def test_the_interval_is_that_of_drawing_units_one_by_one():
    sums, _, _ = _units(np.random.default_rng(4))
    rng = np.random.default_rng(9)
    x, n = sums.of("x"), sums.of("n")
    draws = [rng.integers(0, 60, 60) for _ in range(4000)]
    plain = np.percentile([x[d].sum() / n[d].sum() for d in draws], [2.5, 97.5])
    np.testing.assert_allclose(interval(sums, _mean, draws=4000), plain, atol=0.03)


def test_many_units_are_drawn_in_groups():
    rng = np.random.default_rng(0)
    sums = Sums()
    x = rng.normal(size=50_000)
    sums.add(np.arange(len(x)), x=x, n=np.ones(len(x)))
    low, high = interval(sums, _mean)
    assert (high - low) == pytest.approx(2 * 1.96 / np.sqrt(len(x)), rel=0.15)


def test_beside_says_whether_they_are_apart():
    rng = np.random.default_rng(1)
    same, far = _units(rng)[0], _units(rng, shift=2.0)[0]
    found = beside(far, same, _mean)
    assert found.apart
    assert found.interval[0] < found.value < found.interval[1]
    assert "n=60" in str(found)
    assert not beside(same, same, _mean).apart
    one = Sums()
    one.add([0], x=[1.0], n=[1])
    assert np.isnan(beside(one, one, _mean).interval).all()


def test_controls_know_nothing_but_scale():
    config = saelab.recipe("topk", d_in=16, d_sae=40, k=4)
    rows = torch.randn(500, 16, generator=torch.Generator().manual_seed(0)) * 3 + 1
    sae = saelab.SAE.create(config, seed=5, rows=rows)
    control = untrained(sae, rows, seed=1)
    assert control.config == sae.config
    assert not torch.equal(control.W_dec, sae.W_dec)
    torch.testing.assert_close(control.input_scale, sae.input_scale)
    labels = np.array(list("aaab") * 50)
    mixed = shuffled(labels, seed=3)
    assert sorted(mixed) == sorted(labels)
    assert (mixed != labels).any()
    directions = random_directions(2000, 8, seed=2)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-5)
    assert abs(directions.mean(0)).max() < 0.05


@pytest.mark.parametrize("ranks", [False, True])
def test_correlations_are_those_of_scipy_in_each_draw(ranks):
    from scipy.stats import pearsonr, spearmanr

    rng = np.random.default_rng(0)
    true = rng.normal(size=25)
    guess, control = np.round(np.exp(true + rng.normal(size=25))), rng.integers(0, 4, 25)
    found = correlation(guess, true, control, "small numbers", ranks=ranks, seed=3)
    measure = spearmanr if ranks else pearsonr
    assert found.value == pytest.approx(measure(guess, true)[0])
    assert found.control == pytest.approx(measure(control, true)[0])
    draws = np.random.default_rng(3).integers(0, 25, (DRAWS, 25))
    for own, ends in ((guess, found.interval), (control, found.control_interval)):
        drawn = [measure(own[d], true[d])[0] for d in draws]
        assert ends == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    same = correlation(np.ones(25), true, control, "")
    assert np.isnan([same.value, *same.interval]).all()


def test_intervals_of_ranks_cover_the_truth_as_often_as_they_say():
    """Of Spearman's correlation of normal pairs, 6 / pi arcsin(r / 2); within what chance allows of 300 and
    what a bootstrap of 60 falls short."""
    rng, r = np.random.default_rng(0), 0.8
    truth, covered = 6 / np.pi * np.arcsin(r / 2), 0
    for number in range(300):
        x, noise = rng.normal(size=(2, 60))
        y = r * x + np.sqrt(1 - r * r) * noise
        low, high = correlation(x, y, noise, "noise", ranks=True, seed=number).interval
        covered += low <= truth <= high
    assert 0.90 <= covered / 300 <= 0.98
