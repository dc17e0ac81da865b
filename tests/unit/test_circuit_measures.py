"""Scores of circuits: ROC, average precision and F1 against counting, and names that must be earned."""

from __future__ import annotations

import numpy as np
import pytest

from saelab.analysis import Effects, HeadCodes, Node, head_edges
from saelab.analysis.circuits.measures import auc, average_precision, best_threshold, f1
from saelab.types import ConfigError

HEADS = 20
GRADIENTS = "attribution patching"


def nodes(layers=1):
    each = HEADS // layers
    return tuple(Node("head", f"blocks.{i}.attn.hook_z", h) for i in range(layers) for h in range(each))


def planted_codes(told, seeds=2, pairs=60, layers=1, name="planted"):
    """Heads of equally many codes; those of the circuit, the first five, have others on clean prompts."""
    rng = np.random.default_rng(0)
    codes, blank = rng.integers(0, 24, (2, seeds, 2, pairs, HEADS))
    if told:
        codes[:, :, :, :5] //= 2
        codes[:, 0, :, :5] += 12
    return HeadCodes(name, nodes(layers), codes, blank), np.arange(HEADS) < 5


def estimate(truth, items, noise=0.0, pairs=60):
    rng = np.random.default_rng(1)
    values = np.where(truth, -2.0, 0.1)[:, None] + noise * rng.normal(size=(len(truth), pairs))
    return Effects("planted", tuple(items), values, np.full(pairs, 4.0), GRADIENTS)


def precision_by_hand(scores, truth):
    """Each level of the scores calls all that reach it."""
    total, before = 0.0, 0.0
    for level in sorted(set(scores), reverse=True):
        called = [t for s, t in zip(scores, truth, strict=True) if s >= level]
        recall = sum(called) / truth.sum()
        total += (recall - before) * sum(called) / len(called)
        before = recall
    return total


@pytest.mark.parametrize("levels", [2, 4, 50])
def test_measures_are_those_of_counting_ties_included(levels):
    rng = np.random.default_rng(levels)
    for _ in range(20):
        truth = rng.permutation(np.arange(30) < rng.integers(1, 29))
        scores = rng.integers(0, levels, 30).astype(float)
        pairs = [(s > o) + 0.5 * (s == o) for s in scores[truth] for o in scores[~truth]]
        assert auc(scores, truth) == pytest.approx(np.mean(pairs))
        assert average_precision(scores, truth) == pytest.approx(precision_by_hand(scores, truth))
        best = best_threshold(scores, truth)
        tried = {}
        for level in set(scores):
            hit = sum(1 for s, t in zip(scores, truth, strict=True) if s >= level and t)
            called = sum(1 for s in scores if s >= level)
            precision, recall = hit / called, hit / truth.sum()
            tried[level] = 2 * precision * recall / (precision + recall) if hit else 0.0
            assert f1(scores, truth, level) == pytest.approx(tried[level])
        assert tried[best] == pytest.approx(max(tried.values()))
        assert all(level <= best for level, value in tried.items() if value == max(tried.values()))
    assert f1(scores, truth, scores.max() + 1) == 0


def test_a_curve_has_the_area_and_steps_over_ties():
    codes, truth = planted_codes(False)
    test = codes.against(truth, {GRADIENTS: estimate(truth, nodes())})
    for arm, areas in test.auc.items():
        for curve, area, scores in zip(test.roc(arm), areas, test.scores[arm], strict=True):
            assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(area)
            assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)
            assert len(curve.thresholds) == len(set(scores)) + 1
            for fpr, tpr, level in zip(*curve, strict=True):
                assert tpr == pytest.approx((scores[truth] >= level).mean())
                assert fpr == pytest.approx((scores[~truth] >= level).mean())
    with pytest.raises(ConfigError, match="arm must be one of"):
        test.roc("gradients")


def test_a_score_of_codes_is_named_by_what_it_beats():
    told, truth = planted_codes(True)
    found = told.against(truth)
    assert found.title == "node score"
    assert found.auc["codes"].min() == 1
    assert found.average_precision["codes"].min() == 1
    assert found.precision_gain["shuffled labels"][0] > 0
    assert found.auc["shuffled labels"].mean() < 0.75
    blind, _ = planted_codes(False)
    assert blind.against(truth).title == "diversity score"
    assert "does not beat its controls" in str(blind.against(truth))
    with pytest.raises(ConfigError, match="truth must say of each"):
        told.against(np.ones(HEADS, dtype=bool))
    with pytest.raises(ConfigError, match="of the same nodes, on the same pairs"):
        told.against(truth, {GRADIENTS: estimate(truth, nodes(2))})


def test_edges_are_judged_by_edges():
    """Heads of the circuit have codes of their own on clean prompts, so that pairs of them have, too; truth
    that is of other edges is not told."""
    told, _ = planted_codes(True, layers=4)
    edges = head_edges(told.nodes)
    assert len(edges) == 6 * 5 * 5
    assert len(set(edges)) == len(edges)
    place = {node: i for i, node in enumerate(told.nodes)}
    # an edge's score is that of its pair of heads
    found = told.against_edges(np.array([edge.sender.index == 0 for edge in edges]))
    full = told.edges()
    for score, edge in zip(found.scores["codes"].T, edges, strict=True):
        np.testing.assert_array_equal(score, full[:, place[edge.sender], place[edge.receiver]])
        assert edge.sender.hook < edge.receiver.hook
    assert found.kind == "edge"
    assert found.title == "diversity score"
    with pytest.raises(ConfigError, match="each of the 150 edges"):
        told.against_edges(np.arange(20) < 5)


def test_a_threshold_is_of_another_task():
    told, truth = planted_codes(True)
    other_codes, _ = planted_codes(True, name="other")
    arms = {GRADIENTS: estimate(truth, nodes())}
    test, other = told.against(truth, arms), other_codes.against(truth, arms)
    assert test.f1(other)["codes"].tolist() == [1, 1]
    assert test.f1(other)[GRADIENTS].tolist() == [1]
    # scores on a scale of their own leave a threshold that calls nothing
    scaled = {arm: values * 100 for arm, values in other.scores.items()}
    far = type(other)("far", "node", truth, scaled, other.drawn)
    assert test.f1(far)["codes"].tolist() == [0, 0]
    low, high = test.f1_gain(other)["untrained SAE"]
    assert 0 < low <= high <= 1
    frame = test.to_frame(other).set_index("arm")
    assert frame.loc["codes", "f1"] == 1
    assert frame.loc["codes", "auc_least"] == 1
    with pytest.raises(ConfigError, match="chosen on another task"):
        test.f1(test)
    with pytest.raises(ConfigError, match="chosen on another task"):
        test.f1(other_codes.against(truth))


def test_intervals_are_paired():
    """An arm that is the codes themselves has no gain over it, in any draw."""
    told, truth = planted_codes(False)
    test = told.against(truth)
    same = type(test)("same", "node", truth, test.scores, test.drawn | {"untrained SAE": test.drawn["codes"]})
    assert same.gain["untrained SAE"] == (0, 0)
    low, high = test.gain["untrained SAE"]
    assert low < 0 < high


def test_the_mean_curve_of_several_seeds_is_the_mean_of_theirs():
    codes, truth = planted_codes(False, seeds=3)
    found = codes.against(truth, {GRADIENTS: estimate(truth, codes.nodes)})
    for arm in found.scores:
        others, own = found.mean_roc(arm)
        assert (others[0], own[0], others[-1], own[-1]) == (0, 0, 1, 1)
        assert (np.diff(others) >= 0).all()
        assert (np.diff(own) >= -1e-12).all()
        assert np.trapezoid(own, others) == pytest.approx(found.auc[arm].mean())
        low, high = found.auc_interval[arm]
        assert low <= found.auc[arm].mean() <= high
        # between two numbers of others no curve jumps
        middle = (np.arange(15) + 0.5) / 15
        mean = np.mean([np.interp(middle, curve.fpr, curve.tpr) for curve in found.roc(arm)], 0)
        np.testing.assert_allclose(np.interp(middle, others, own), mean)
    with pytest.raises(ConfigError, match="arm must be one of"):
        found.mean_roc("chance")
