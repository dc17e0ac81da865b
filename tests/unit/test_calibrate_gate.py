"""Gates calibrated where the signal is known; the limits hold, or the result says that they do not."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import planted
import pytest
import torch
from planted import CONCEPT, LEVER

from saelab.analysis import calibrate_gate
from saelab.analysis.steering.gate import POINTS, drawn
from saelab.interventions import AddDirection, Erase, Scale
from saelab.types import ConfigError, CorpusError


@pytest.fixture(scope="module")
def net():
    return planted.subject()


def gated(latent=CONCEPT, gate="input"):
    return Scale(planted.sae(), (latent,), 0.0, gate=gate, threshold=0.0)


def peaks(samples, latent=CONCEPT):
    return np.array([np.where(x[:, latent] > 0.5, x[:, latent], 0).max() for x in samples])


def test_a_gate_that_can_be_calibrated_is(net):
    clean, target = planted.texts(40, False), planted.texts(40, True)
    found = calibrate_gate(gated(), clean, target, subject=net)
    assert found.met
    assert 0 < found.threshold < 2
    assert found.edit.threshold == found.threshold
    assert (found.held_out_clean.share, found.held_out_target.share, found.auroc) == (0, 1, 1)
    assert found.clean.n == found.held_out_clean.n == 20
    # 0 of 20 is no proof of 0: Wilson's interval
    assert found.held_out_clean.interval[1] == pytest.approx(0.1611, abs=1e-3)
    assert "keeps both limits" in str(found)
    # what the edit does is what was said: nothing on clean inputs, something on all others
    inputs = net.prepare(clean + target)
    before, after = net.run(inputs).output, net.run(inputs, edits=found.edit).output
    assert ((before != after).any(1) == (np.arange(80) >= 40)).all()


def test_a_gate_that_cannot_be_calibrated_says_so_and_gives_the_best(net):
    """The latent fires alike on both sides: nothing keeps both limits."""
    clean, target = planted.texts(60, False), planted.texts(60, True)
    found = calibrate_gate(gated(LEVER), clean, target, subject=net, max_clean=0.1)
    assert not found.met
    assert "no threshold keeps both limits" in str(found)
    keys = {id(d.sample) for side in found.held_out for d in side}
    quiet, loud = (peaks([x for x in side if id(x) not in keys], LEVER) for side in (clean, target))
    assert (quiet > found.threshold).mean() == found.clean.share <= 0.1
    # no threshold that keeps the first limit opens on more
    best = max((loud > t).mean() for t in [*quiet, *loud, 0] if (quiet > t).mean() <= 0.1)
    assert found.target.share == pytest.approx(best)
    assert 0.3 < found.auroc < 0.7


def test_tokens_are_counted_one_by_one(net):
    clean, target = planted.texts(20, False), planted.texts(20, True)
    found = calibrate_gate(gated(LEVER, "token"), clean, target, subject=net, per="token", max_clean=0.3)
    assert found.clean.n == 60
    assert found.clean.share <= 0.3
    many = calibrate_gate(gated(LEVER, "token"), clean, target, subject=net, max_clean=0.3)
    assert many.clean.n == 10
    assert many.threshold > found.threshold  # the highest of six is higher than one of them


def test_a_probe_finds_a_concept_that_latents_which_fire_everywhere_drown(net):
    clean, target = planted.texts(80, False), planted.texts(80, True)
    edit = Erase(planted.sae(), (0, CONCEPT, LEVER), 0.0, threshold=0.0)
    plain = calibrate_gate(edit, clean, target, subject=net, probe=False)
    found = calibrate_gate(edit, clean, target, subject=net)
    assert plain.edit.probe is None
    assert plain.auroc < 0.97
    assert (found.auroc, found.held_out_clean.share, found.held_out_target.share) == (1, 0, 1)
    probe = found.edit.probe
    others = probe[:-1].abs().numpy()
    assert probe[CONCEPT] > 5 * np.delete(others, CONCEPT).max()
    # the signal is that product, of an input its mean, and what is edited are the concept's latents
    x = torch.stack([*clean, *target])
    signal = x @ probe[:-1] + probe[-1]
    torch.testing.assert_close(found.edit.signal(x.reshape(-1, planted.WIDTH)).reshape(160, 6), signal)
    flagged = signal.mean(1) > found.threshold
    assert flagged.sum() == 80
    after = net.run(net.prepare(list(x)), read="body", edits=found.edit).acts["body"]
    assert torch.equal(after[~flagged], x[~flagged])
    erased = torch.where(flagged[:, None] & (x[..., LEVER] > 0.5), 0, x[..., LEVER])
    torch.testing.assert_close(after[..., LEVER], erased)
    assert torch.equal(after[..., 1], x[..., 1])
    # a probe that the edit has is its own
    own = dataclasses.replace(edit, probe=torch.eye(planted.WIDTH + 1)[CONCEPT])
    assert torch.equal(calibrate_gate(own, clean, target, subject=net).edit.probe, own.probe)


def test_a_limit_of_none_is_kept(net):
    clean, target = planted.texts(8, True), planted.texts(8, True, seed=5)
    found = calibrate_gate(gated(), clean, target, subject=net, max_clean=0.0)
    assert (found.clean.share, found.target.share, found.met) == (0, 0, False)
    assert found.figure().data
    assert len(found.to_frame()) == len(found.curve.threshold)


def test_what_has_no_gate_is_refused(net):
    clean, target = planted.texts(8, False), planted.texts(8, True)
    constant = dataclasses.replace(gated(), gate="constant", threshold=None)
    for edit in (constant, AddDirection("body", planted.texts(1, True)[0][0]), "gate"):
        with pytest.raises(ConfigError, match="A gate is calibrated of an edit that has one"):
            calibrate_gate(edit, clean, target, subject=net)
    with pytest.raises(CorpusError, match="Got 1 that are in both"):
        calibrate_gate(gated(), clean, [*target, clean[0]], subject=net)
    with pytest.raises(ConfigError, match="max_clean must be a share"):
        calibrate_gate(gated(), clean, target, subject=net, max_clean=5)
    found = calibrate_gate(gated(), clean, target, subject=net)
    with pytest.raises(CorpusError, match=r"the gate was fitted on. Got 4 of 8"):
        found.check(clean)


def test_a_curve_is_drawn_of_few_points(net):
    """What JSON can hold, thinned, with the threshold that was chosen, without those no edit can have."""
    found = calibrate_gate(gated(LEVER), planted.texts(300, False), planted.texts(300, True), subject=net)
    told = json.loads(json.dumps(drawn(found), allow_nan=False))
    assert len(told["threshold"]) in (POINTS, POINTS + 1)
    assert len(found.curve.threshold) > POINTS + 1
    at = told["threshold"].index(told["chosen"])
    assert told["chosen"] == found.threshold
    assert (told["clean"][at], told["target"][at]) == (found.clean.share, found.target.share)
    assert (told["clean"][0], told["target"][0]) == (0, 0)
    assert told["threshold"] == sorted(told["threshold"], reverse=True)
    assert told["threshold"][-1] >= 0
    assert told["auroc"] == [found.auroc, *found.auroc_interval]
    assert told["held_out"]["clean"][3] == found.held_out_clean.n
