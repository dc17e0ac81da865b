"""Names of latents out of labels, and maps over patches: brute force, planted latents, boxes by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import matthews_corrcoef

import saelab
from saelab.analysis import attributes, document_codes, patch_boxes, patch_map
from saelab.analysis.vision.attributes import best_label
from saelab.types import ConfigError, CorpusError, ShapeError

# names


def test_the_best_label_is_that_of_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(20):
        codes = (rng.random(40) * (rng.random(40) < 0.6)).round(1)
        has = (rng.random((40, 4)) < [0.1, 0.3, 0.5, 0.9]).astype(float)
        label, threshold, mcc = best_label(codes, has)
        every = {
            (j, t): matthews_corrcoef(has[:, j], codes >= t)
            for j in range(4)
            for t in np.unique(codes[codes > 0])
        }
        assert mcc == pytest.approx(max(every.values()))
        assert every[label, threshold] == pytest.approx(mcc)


def planted(n=600, seed=0):
    """Labels of three attributes; latents of round, of red, of big with errors, of nothing."""
    rng = np.random.default_rng(seed)
    labels = np.stack(
        [rng.choice(each, n) for each in (["round", "square"], ["red", "blue", "green"], ["big", "small"])], 1
    )
    codes = rng.random((n, 12)) * (rng.random((n, 12)) < 0.5)
    codes[:, 0] = (labels[:, 0] == "round") * (1 + rng.random(n))
    codes[:, 1] = (labels[:, 1] == "red") * (1 + rng.random(n)) + 0.3 * rng.random(n)
    wrong = rng.random(n) < 0.2
    codes[:, 2] = ((labels[:, 2] == "big") ^ wrong) * (1 + rng.random(n))
    return codes, [tuple(each) for each in labels]


def test_planted_latents_are_named_and_what_does_nothing_is_not_called_sure():
    codes, labels = planted()
    found = attributes(codes, labels, seed=3)
    frame = found.to_frame().set_index("latent")
    assert frame.loc[[0, 1, 2], "label"].tolist() == ["round", "red", "big"]
    assert frame.loc[[0, 1], "precision"].tolist() == [1, 1]
    assert frame.loc[[0, 1], "recall"].tolist() == [1, 1]
    assert frame.loc[2, "precision"] == pytest.approx(0.8, abs=0.07)
    # what has nothing to do with labels is right as often as chance is, on documents that did not name it
    rest = frame.loc[list(range(3, 12))]
    assert np.mean(rest["precision"] - rest["base"]) == pytest.approx(0, abs=0.06)
    sure = found.figures["share above base"]
    assert sure.what == "shuffled labels"
    assert sure.value >= 3 / 12
    assert sure.control <= 1 / 12
    assert found.figures["precision less base"].control == pytest.approx(0, abs=0.06)
    assert found.n == (300, 300)


def test_precision_and_recall_are_of_the_half_that_did_not_name():
    codes, labels = planted(200, 1)
    codes = codes.round(1)  # so that some are equal to a threshold
    found = attributes(codes, labels, held_out=0.4, seed=5)
    order = np.random.default_rng(5).permutation(200)
    judge = np.sort(order[120:])
    for at, j in enumerate(found.latents):
        called = codes[judge, j] >= found.threshold[at]
        has = np.array([found.labels[at] in labels[i] for i in judge])
        assert found.precision[at] == pytest.approx((called & has).sum() / called.sum())
        assert found.recall[at] == pytest.approx((called & has).sum() / has.sum())
        assert found.base[at] == pytest.approx(has.mean())


def test_of_codes_of_documents_the_controls_come_with_them():
    corpus = saelab.corpora.shapes(1, 60, size=16)
    rows = torch.stack([torch.as_tensor(document.sample).float().flatten() / 255 for document in corpus])
    sae = saelab.SAE.create(saelab.recipe("topk", d_in=rows.shape[1], d_sae=40, k=8), 0, rows).eval()
    codes = document_codes(sae, rows, labels=[document.labels for document in corpus])
    found = attributes(codes, least=4)
    beside = [control.what for control in found.figures["precision"].also]
    assert beside == ["untrained SAE", "raw neurons"]
    assert set(found.labels) <= {label for document in corpus for label in document.labels}
    assert "shuffled labels" in saelab.widgets.ReportView(found).text()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda c, y: attributes(c, y[:5]), ShapeError, "labels for each of 200 documents. Got 5"),
        (lambda c, y: attributes("codes", y), ShapeError, "Got 'codes'"),
        (lambda c, y: attributes(c, y, held_out=1), ConfigError, "held_out must be between 0 and 1"),
        (lambda c, y: attributes(c, y, least=99), CorpusError, "Got none of 7"),
        (lambda c, y: attributes(c[:3], y[:3]), CorpusError, "two documents or more. Got 1 and 2"),
        (lambda c, y: attributes(0 * c, y), CorpusError, "Some latent must fire in least=10"),
    ],
)
def test_refusals_of_names(call, error, words):
    with pytest.raises(error, match=words):
        call(*planted(200))


# maps


def test_boxes_cover_every_pixel_once():
    for layout, size in (("grid 2x3", (4, 9)), ("extra 2, grid 5x7", (13, 29)), ("grid 1x1", (3, 2))):
        boxes = patch_boxes(layout, size)
        seen = np.zeros(size, int)
        for top, left, bottom, right in boxes[2 if layout.startswith("extra") else 0 :]:
            seen[top:bottom, left:right] += 1
        assert (seen == 1).all(), layout
    assert patch_boxes("grid 2x3", (4, 9)).tolist()[4] == [2, 3, 4, 6]
    assert patch_boxes("extra 1, grid 2x2", (8, 8))[0].tolist() == [0, 0, 8, 8]


def test_a_map_has_the_code_of_its_patch_in_each_pixel():
    codes = torch.arange(1.0, 13)
    assert patch_map(codes[:7], "extra 1, grid 2x3").tolist() == [[2, 3, 4], [5, 6, 7]]
    for layout, size in (("grid 3x4", (3, 4)), ("grid 3x4", (10, 13)), ("extra 2, grid 2x5", (7, 5))):
        found = patch_map(codes, layout, size)
        assert found.shape == size
        for i, (top, left, bottom, right) in enumerate(patch_boxes(layout, size)):
            if (bottom - top, right - left) != size:
                assert (found[top:bottom, left:right] == codes[i].item()).all()
    several = patch_map(torch.stack([codes, -codes], 1), "grid 3x4", (6, 8))
    assert several.shape == (6, 8, 2)
    assert (several[..., 1] == -several[..., 0]).all()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: patch_map(np.ones(5), "grid 2x2"), ShapeError, "holds 4 positions. Got 5"),
        (lambda: patch_map(np.ones((2, 2, 2)), "grid 2x2"), ShapeError, r"Got \[2, 2, 2\]"),
        (lambda: patch_map(np.ones(4), "line"), ConfigError, "must have one grid"),
        (lambda: patch_boxes("grid 2x2, grid 2x2", (4, 4)), ConfigError, "must have one grid"),
        (lambda: patch_boxes("grid 2x2", (1, 4)), ConfigError, "a pixel for each patch of 2x2. Got 1x4"),
        (lambda: patch_boxes("grid 2x2", 4), ConfigError, r"size must be \(height, width\). Got 4"),
        (lambda: patch_boxes("grids", (4, 4)), ConfigError, "A layout must be segments"),
    ],
)
def test_refusals_of_maps(call, error, words):
    with pytest.raises(error, match=words):
        call()
