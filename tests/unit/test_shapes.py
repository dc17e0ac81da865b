"""Drawn pictures: labels say what is there, seeds and shares do what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from saelab.corpora import SHAPE_ATTRIBUTES, SHAPE_PARENTS, Document, images, shape_mask, shapes
from saelab.corpora.figures import COLOURS, INSIDE, POSITIONS
from saelab.types import ConfigError, CorpusError

NAMES = list(SHAPE_ATTRIBUTES)


def attributes(document):
    return dict(zip(NAMES, document.labels, strict=True))


@pytest.fixture(scope="module")
def documents():
    return list(shapes(seed=3, n_documents=700, size=96))


def test_every_picture_has_one_value_of_each_attribute_and_its_place_in_the_tree(documents):
    every = [value for values in SHAPE_ATTRIBUTES.values() for value in values]
    assert len(every) == len(set(every))
    assert len(SHAPE_ATTRIBUTES["variant"]) == 24
    for document in documents:
        own = attributes(document)
        assert all(own[name] in values for name, values in SHAPE_ATTRIBUTES.items())
        assert SHAPE_PARENTS[own["variant"]] == own["shape"]
        assert SHAPE_PARENTS[own["shape"]] == own["family"]
        assert SHAPE_PARENTS[own["family"]] == "figure"
    seen = {value for document in documents for value in document.labels}
    assert seen == set(every)


def test_pictures_show_what_their_labels_say(documents):
    """Count, place and colour are found again in the pixels."""
    for document in documents:
        own, mask = attributes(document), shape_mask(document)
        # the points of a four-pointed star are thinner than a pixel, so a part may lie apart by a corner
        found, n = ndimage.label(mask, np.ones((3, 3)))
        assert n == ("one", "two", "three", "four").index(own["count"]) + 1, document
        assert mask[1:-1, 1:-1].sum() == mask.sum(), document
        boxes = ndimage.find_objects(found)
        largest = max(boxes, key=lambda box: max(s.stop - s.start for s in box))
        centre = [(s.start + s.stop) / 2 / 96 for s in largest][::-1]
        near = min(POSITIONS, key=lambda name: np.hypot(*np.subtract(POSITIONS[name], centre)))
        assert near == own["position"], document
        inner = ndimage.binary_erosion(mask, np.ones((3, 3)))
        pixels = document.sample[inner] / 255.0
        # away from the edges every pixel lies between the colour and its pale tone, its mixture with white
        pale = 0.4 * np.array(COLOURS[own["colour"]]) + 0.6
        along = pale - COLOURS[own["colour"]]
        share = (pixels - COLOURS[own["colour"]]) @ along / (along @ along)
        off = np.abs(pixels - COLOURS[own["colour"]] - share[:, None] * along)
        assert off.max() < 0.01, document
        assert (share.max() < 0.01) == (own["texture"] == "solid"), document


def test_a_document_is_the_same_whatever_is_asked_for(documents):
    few = list(shapes(seed=3, n_documents=5, size=96))
    assert few == documents[:5]
    assert all(np.array_equal(a.sample, b.sample) for a, b in zip(few, documents, strict=False))
    assert few[0].id == "shapes-train-3-0"
    # another size shows the same scene
    for small, large in zip(shapes(seed=3, n_documents=60, size=32), documents, strict=False):
        assert small.labels == large.labels
        assert small.sample.shape == (32, 32, 3)
        shrunk = large.sample.reshape(32, 3, 32, 3, 3).mean((1, 3))
        assert np.abs(shrunk - small.sample).mean() < 6, small
        shared = shape_mask(large).reshape(32, 3, 32, 3).mean((1, 3))
        assert (shape_mask(small) == (shared >= 0.5)).mean() > 0.97, small
    one, other = shapes(1, 300), shapes(1, 300, split="heldout")
    pictures = [{d.sample.tobytes() for d in corpus} for corpus in (one, other, shapes(2, 300))]
    assert all(len(each) == 300 for each in pictures)
    assert not pictures[0] & pictures[1]
    assert not pictures[0] & pictures[2]
    assert len({c.fingerprint() for c in (one, other, shapes(1, 300, size=32), shapes(1, 299))}) == 4


def test_a_value_cut_or_boosted_leaves_the_other_pictures_alone():
    plain = list(shapes(5, 3_000, size=16))
    planted = list(shapes(5, 3_000, size=16, shares={"star": 0.05, "blue": 4}))
    rare = sum("star" in d.labels for d in planted)
    assert rare < 3_000 * 2 * 0.05 / (22 + 2 * 0.05) + 4 * np.sqrt(14)
    blue = np.mean(["blue" in d.labels for d in planted])
    assert abs(blue - 4 / 11) < 4 * np.sqrt(4 / 11 * 7 / 11 / 3_000)
    for a, b in zip(plain, planted, strict=True):
        own = attributes(a)
        if own["shape"] != "star" and (own["colour"] == "blue" or "blue" not in b.labels):
            assert a == b
            assert np.array_equal(a.sample, b.sample)
        elif own["shape"] == "star" and "blue" not in b.labels:
            assert a.labels[3:] == b.labels[3:]
    assert not any("angular" in d.labels for d in shapes(5, 500, size=16, shares={"angular": 0}))
    only = dict.fromkeys(["round", "angular", "pointed"], 0)
    assert {d.labels[0] for d in shapes(5, 50, size=16, shares=only)} == {"stroked"}
    assert shapes(5, 10, shares={"star": 2}).fingerprint() != shapes(5, 10).fingerprint()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": -1}, "seed"),
        ({"n_documents": 0}, "n_documents"),
        ({"split": "test"}, "split must be"),
        ({"size": 8}, "size"),
        ({"shares": {"stars": 2}}, "Did you mean 'star'"),
        ({"shares": {"star": -1}}, "share must be"),
        ({"shares": {"star": float("nan")}}, "share must be"),
        ({"shares": dict.fromkeys(SHAPE_ATTRIBUTES["colour"], 0)}, "a colour to draw"),
        ({"shares": dict.fromkeys(SHAPE_ATTRIBUTES["family"], 0)}, "a variant to draw"),
        ({"shares": ["star"]}, "shares must be"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        shapes(**options)


def test_figures_keep_within_their_circle():
    across = np.linspace(-1.6, 1.6, 321)
    x, y = across[None, :], across[:, None]
    for variant, inside in INSIDE.items():
        covered = inside(x, y)
        assert np.hypot(x, y)[covered].max() < 1.1, variant
        assert 0.6 < covered.sum() * 0.01**2 < 2.6, variant


def test_masks_are_of_drawn_pictures_only():
    other = next(iter(images([np.zeros((8, 8), np.uint8)])))
    for document in (other, Document("shapes-train-0-0", "a", labels=("round",), sample=other.sample)):
        with pytest.raises(CorpusError, match=r"of saelab\.corpora\.shapes"):
            shape_mask(document)
