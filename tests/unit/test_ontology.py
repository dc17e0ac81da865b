"""The lowest class that top documents share: trees made by hand, heights by brute force, planted latents."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import saelab
from saelab.analysis import document_codes, ontology
from saelab.analysis.vision.trees import Tree
from saelab.types import ConfigError, CorpusError, ShapeError

NESTED = {"thing": {"animal": {"pet": ["cat", "dog"], "bird": None}, "vehicle": ["car", "ship"]}}
UP = {
    "cat": "pet", "dog": "pet", "pet": "animal", "bird": "animal", "animal": "thing", "vehicle": "thing",
    "car": "vehicle", "ship": "vehicle",
}  # fmt: skip
LEAVES = ("cat", "dog", "bird", "car", "ship")


def above(name):
    """The name and all that it is a kind of, the nearest first."""
    return [name, *(above(UP[name]) if name in UP else [])]


@pytest.mark.parametrize("given", [NESTED, UP, UP | {"thing": None}, Tree.of(UP)])
def test_a_tree_by_hand(given):
    tree = Tree.of(given)
    at = {name: i for i, name in enumerate(tree.names)}
    assert set(at) == {*UP, "thing"}
    heights = {"thing": 3, "animal": 2, "pet": 1, "vehicle": 1} | dict.fromkeys(LEAVES, 0)
    assert {name: int(tree.heights[i]) for name, i in at.items()} == heights
    for one, two in itertools.product(at, repeat=2):
        common = next(name for name in above(one) if name in above(two))
        assert tree.names[tree.common[at[one], at[two]]] == common, (one, two)


def test_several_roots_are_put_below_one():
    tree = Tree.of({"animal": ["cat"], "vehicle": ["car"]})
    assert tree.names == ("", "animal", "vehicle", "cat", "car")
    assert tree.heights.tolist() == [2, 1, 1, 0, 0]
    assert tree.common[3, 4] == 0


def planted(seed=0):
    """Codes of 200 documents of five classes: of cats, of pets, of animals, of vehicles, of anything."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(LEAVES, 40)
    of = [["cat"], ["cat", "dog"], ["cat", "dog", "bird"], ["car", "ship"], list(LEAVES)]
    codes = np.stack([np.isin(labels, each) * (1 + rng.random(200)) for each in of], 1)
    return codes, labels, rng.random((200, 300))


def test_planted_latents_have_the_height_of_what_they_are_of():
    codes, labels, noise = planted()
    found = ontology(codes, NESTED, labels, controls={"noise": noise}, n=12)
    assert found.to_frame()["shared"].tolist() == ["cat", "pet", "animal", "vehicle", "thing"]
    assert found.height.tolist() == [0, 1, 2, 1, 3]
    assert (found.p[:2] < 0.01).all()
    assert found.p[4] == 1
    height, coverage = found.figures["mean height"], found.figures["coverage"]
    assert height.value == pytest.approx(7 / 5)
    assert height.what == "permuted labels"
    assert coverage.value == 1  # thing, animal, pet and vehicle
    assert coverage.control < 0.5
    assert found.percentile < 0.05
    # what knows nothing has the heights of permuted labels
    noisy = height.also[0]
    assert noisy.what == "noise"
    assert noisy.value == pytest.approx(height.control, abs=0.05)
    other = ontology(noise, NESTED, labels, n=12)
    low, high = other.figures["mean height"].control_interval
    assert low - 0.03 <= other.figures["mean height"].value <= high + 0.03
    assert 0.001 < other.percentile


def test_heights_equal_brute_force():
    _, labels, noise = planted(1)
    noise = (
        noise * (np.random.default_rng(2).random(noise.shape) < 0.05) * np.array([-1, 1])[None].repeat(150, 1)
    )
    found = ontology(noise, UP, labels, n=3)
    assert len(found.latents) == ((noise != 0).sum(0) >= 3).sum()
    for j, shared in zip(found.latents, found.shared, strict=True):
        top = labels[np.argsort(-np.abs(noise[:, j]), kind="stable")[:3]]
        common = next(name for name in above(top[0]) if all(name in above(each) for each in top))
        assert found.tree.names[shared] == common


def test_of_codes_of_documents_the_controls_come_with_them():
    labels = np.array(LEAVES)[np.arange(100) % 5]
    rows = torch.eye(5)[torch.arange(100) % 5] * (
        1 + torch.rand(100, 1, generator=torch.Generator().manual_seed(0))
    )
    sae = saelab.SAE.create(saelab.recipe("topk", d_in=5, d_sae=20, k=2), 0, rows).eval()
    codes = document_codes(sae, rows, labels=labels.tolist())
    found = ontology(codes, NESTED, n=5)
    assert [each.what for each in found.figures["mean height"].also] == ["untrained SAE", "raw neurons"]
    alone = ontology(codes.arms["raw neurons"].toarray(), NESTED, labels, n=5)
    assert found.figures["mean height"].also[1].value == alone.figures["mean height"].value
    assert "permuted labels" in saelab.widgets.ReportView(found).text()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda c, y: ontology(c, {}, y), ConfigError, "nested mappings, or child -> parent"),
        (lambda c, y: ontology(c, {"a": "b", "b": "a"}, y), ConfigError, "Got 'a' in a circle"),
        (lambda c, y: ontology(c, {"x": {"a": ["b", "b"]}}, y), ConfigError, "Got .*'b'.* more than once"),
        (lambda c, y: ontology(c, {"x": {1: ["b"]}}, y), ConfigError, "must be strings. Got 1"),
        (lambda c, y: ontology(c, {"thing": ["cat"]}, y), ConfigError, "'bird', 'car', 'dog', 'ship'"),
        (lambda c, y: ontology(c, NESTED, y[:9]), ShapeError, r"\[200, 5\] and 9 labels"),
        (lambda c, y: ontology(c, NESTED), ShapeError, "no labels"),
        (lambda c, y: ontology(c, NESTED, y, n=201), ConfigError, "fire in n=201 documents"),
        (
            lambda c, y: ontology(
                document_codes(
                    saelab.SAE.create(saelab.recipe("topk", d_in=5, d_sae=8, k=2)), torch.rand(9, 5)
                ),
                NESTED,
            ),
            CorpusError,
            "Got 9 of 9 without",
        ),
    ],
)
def test_refusals(call, error, words):
    codes, labels, _ = planted()
    with pytest.raises(error, match=words):
        call(codes, labels)
