"""Two texts, or one with and without edits: differences as loops over dense codes give them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saelab import analysis, interventions
from saelab.analysis.differences import BEHIND, differences, paired
from saelab.types import ConfigError

A, B = "Tina gave the basket to Hugo.", "Rosa gave the red basket to Hugo!"


def plainly(first, second, pairs):
    """By loops."""
    a, b = first.codes.dense(), second.codes.dense()
    total, places = np.zeros(a.shape[1]), 0
    left = [set(np.flatnonzero(first.counted)), set(np.flatnonzero(second.counted))]
    for i, k in pairs:
        if first.counted[i] and second.counted[k]:
            total += np.abs(a[i] - b[k])
            places += 1
            left[0].discard(i)
            left[1].discard(k)
    for dense, alone in zip((a, b), left, strict=True):
        for i in alone:
            total += np.abs(dense[i])
            places += 1
    return total / places


@pytest.mark.parametrize("which", ["small_lab", "signed_lab"])
def test_differences_equal_loops(which, request):
    lab = request.getfixturevalue(which)
    found = analysis.sample_difference(lab.subject, lab.sae, A, B)
    for i, k in found.pairs:
        assert found.first.names[i] == found.second.names[k]
    assert (np.diff(found.pairs, axis=0) > 0).all()
    assert 5 < len(found.pairs) < len(found.first.names)
    expected = plainly(found.first, found.second, found.pairs)
    assert set(found.latents) == set(np.flatnonzero(expected))
    np.testing.assert_allclose(found.size, expected[found.latents], rtol=1e-5)
    assert (np.diff(found.size) <= 0).all()
    # the control: the first text behind a line's end
    third = analysis.sample_codes(lab.subject, lab.sae, f"\n{A}")
    control = plainly(found.first, third, paired(found.first, third))
    np.testing.assert_allclose(found.control, control[found.latents], rtol=1e-5, atol=1e-9)
    assert found.beside == BEHIND
    given = analysis.sample_difference(lab.subject, lab.sae, A, B, control=B)
    np.testing.assert_array_equal(given.control, given.size)
    frame = found.to_frame()
    assert list(frame) == ["latent", "difference", "control"]


def test_the_same_text_does_not_differ(small_lab):
    found = analysis.sample_difference(small_lab.subject, small_lab.sae, A, A)
    assert not len(found.latents)
    latents, _ = differences(found.first, found.first, np.zeros((0, 2), np.int64))
    assert len(latents), "unpaired positions count"


def test_edits_are_seen_beside_a_random_direction(small_lab):
    sae, subject = small_lab.sae, small_lab.subject
    plain = analysis.sample_codes(subject, sae, A)
    latent = int(np.abs(plain.codes.dense()[1:]).sum(0).argmax())
    edit = interventions.Ablate(sae, (latent,))
    found = analysis.sample_difference(subject, sae, A, edits=[edit], seed=2)
    with torch.no_grad():
        run = subject.run(subject.prepare([A]), read=[sae.hook], edits=[edit])
        dense = sae.encode(run.acts[str(sae.hook)][0]).numpy()
    np.testing.assert_allclose(found.second.codes.dense(), dense, atol=1e-5)
    assert found.latents[0] == latent
    assert found.size[0] == pytest.approx(np.abs(plain.of(latent)[1:] - found.second.of(latent)[1:]).mean())
    assert found.control[0] < found.size[0]
    np.testing.assert_array_equal(found.first.codes.dense(), plain.codes.dense())


def test_what_has_no_meaning_is_refused(small_lab):
    edit = interventions.Ablate(small_lab.sae, (3,))
    for how in ({}, {"against": B, "edits": edit}, {"edits": edit, "control": B}):
        with pytest.raises(ConfigError, match="against another sample"):
            analysis.sample_difference(small_lab.subject, small_lab.sae, A, **how)
    chat = [{"role": "user", "content": "hello"}]
    with pytest.raises(ConfigError, match="control="):
        analysis.sample_difference(small_lab.subject, small_lab.sae, chat, B)
