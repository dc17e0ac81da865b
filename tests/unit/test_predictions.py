"""How a model predicts the tokens of a text: equal to a softmax of its own logits, computed here plainly."""

from __future__ import annotations

import numpy as np
import pytest
import subjects_zoo as zoo
import torch
from torch.distributions import Categorical, kl_divergence

import saelab
from saelab import analysis
from saelab.types import ConfigError, SubjectError

TEXT = "Rosa went to the market. <|user|>hello, Hugo"
LAYER = 2


def parts(subject, text):
    """Ids of what the model reads at once, and where its own positions begin in it."""
    ids = subject.to_tokens(text)
    room = subject.n_ctx - 1
    yield ids[: subject.n_ctx], 0
    for first in range(subject.n_ctx, len(ids), room):
        yield [ids[0], *ids[first : first + room]], 1


def logits(subject, ids, hook=None):
    block = subject.model.get_submodule(f"transformer.h.{LAYER}")
    handle = block.register_forward_hook(hook) if hook else None
    with torch.no_grad():
        out = subject.model(torch.tensor([ids])).logits[0].double()
    if handle:
        handle.remove()
    return out


def replacing(make):
    """A hook that changes all but BOS."""

    def hook(module, args, output):
        x = output[0] if isinstance(output, tuple) else output
        new = x.clone()
        new[0, 1:] = make(x[0, 1:])
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return hook


def told(subject, text, hook=None):
    """loss, entropy, and log p of everything, position by position."""
    loss, entropy, every = [], [], []
    for ids, first in parts(subject, text):
        log_p = logits(subject, ids, hook).log_softmax(-1)
        loss += [np.nan] * (1 - first) + [-float(log_p[i - 1, ids[i]]) for i in range(1, len(ids))]
        entropy += [np.nan] * (1 - first) + Categorical(logits=log_p[:-1]).entropy().tolist()
        every += [log_p[:-1]]
    return np.array(loss), np.array(entropy), torch.cat(every)


@pytest.mark.parametrize("text", [TEXT, "Rosa went to the market. " * 80], ids=["short", "in parts"])
def test_predictions_are_a_softmax_of_the_logits(subject, small_sae, text):
    found = analysis.predictions(subject, text, small_sae)
    codes = analysis.sample_codes(subject, small_sae, text)
    loss, entropy, clean = told(subject, text)
    assert len(found.loss) == len(codes.shown) == len(loss)
    assert np.isnan(found.loss[0])
    np.testing.assert_allclose(found.loss, loss, atol=1e-4)
    np.testing.assert_allclose(found.entropy, entropy, atol=1e-4)
    # the loss of saelab's own evaluation, summed
    if not codes.starts:
        summed, n = subject.loss(subject.prepare([text]))
        assert found.layer("loss").mean == pytest.approx(float(summed[0] / n[0]), abs=1e-5)

    # by way of the SAE, and with the mean in its place
    rows = np.concatenate([subject.run(subject.prepare_tokens([ids]), read=[small_sae.hook]).acts[
        str(small_sae.hook)][0, 1:].numpy() for ids, _ in parts(subject, text)])  # fmt: skip
    mean = torch.from_numpy(rows.mean(0))
    for hook, own_loss, own_kl in (
        (lambda x: small_sae.decode(small_sae.encode(x)).detach(), found.sae.loss, found.sae.kl),
        (lambda x: mean.expand(len(x), -1), found.sae.control_loss, found.sae.control_kl),
    ):
        loss, _, changed = told(subject, text, replacing(hook))
        np.testing.assert_allclose(own_loss, loss, atol=2e-3)
        kl = kl_divergence(Categorical(logits=clean), Categorical(logits=changed)).numpy()
        np.testing.assert_allclose(own_kl[~np.isnan(own_kl)], kl, atol=2e-3)
    assert np.nanmean(found.sae.kl) < np.nanmean(found.sae.control_kl)


def test_edits_stand_beside_a_random_direction(subject, small_sae):
    hook = small_sae.hook
    direction = torch.nn.functional.normalize(
        torch.randn(128, generator=torch.Generator().manual_seed(1)), dim=0
    )

    def push(acts, context):
        acts[context.counted] += 3 * direction
        return acts

    found = analysis.predictions(subject, TEXT, edits=[(hook, push)], seed=4)
    assert found.sae is None
    _, _, clean = told(subject, TEXT)
    loss, _, changed = told(subject, TEXT, replacing(lambda x: x + 3 * direction))
    np.testing.assert_allclose(found.edits.loss, loss, atol=1e-3)
    kl = kl_divergence(Categorical(logits=clean), Categorical(logits=changed)).numpy()
    np.testing.assert_allclose(found.edits.kl[1:], kl, atol=1e-3)
    random = torch.from_numpy(saelab.analysis.controls.random_directions(1, 128, 4)[0])
    loss, _, _ = told(subject, TEXT, replacing(lambda x: x + 3 * random))
    np.testing.assert_allclose(found.edits.control_loss, loss, atol=1e-3)
    nothing = analysis.predictions(subject, TEXT, edits=[(hook, lambda acts, context: acts)])
    np.testing.assert_array_equal(nothing.edits.loss, nothing.loss)
    assert not nothing.edits.kl[1:].any()
    # the control goes as far as edits of one place do together, which is nowhere where they cancel
    back = (hook, lambda acts, context: acts - 3 * direction)
    there = (hook, lambda acts, context: acts + 3 * direction)
    still = analysis.predictions(subject, TEXT, edits=[there, back], seed=4)
    np.testing.assert_allclose(still.edits.control_loss, still.loss, atol=1e-3)


def test_layers_have_units_and_controls(subject, small_sae):
    found = analysis.predictions(subject, TEXT, small_sae)
    assert found.names == ["loss", "log_probability", "entropy", "sae_kl", "sae_loss"]
    nats, bits = found.layer("loss"), found.layer("loss", "bits")
    np.testing.assert_allclose(bits.values[1:], nats.values[1:] / np.log(2), rtol=1e-6)
    assert bits.mean == pytest.approx(nats.mean / np.log(2))
    assert nats.control == pytest.approx(float(np.nanmean(found.entropy)))
    np.testing.assert_array_equal(found.layer("log_probability").values, -nats.values)
    added = found.layer("sae_loss")
    np.testing.assert_allclose(added.values[1:], (found.sae.loss - found.loss)[1:], atol=1e-6)
    assert added.control == pytest.approx(float(np.nanmean(found.sae.control_loss - found.loss)), abs=1e-5)
    frame = found.to_frame()
    assert list(frame) == found.names
    for wrong in (("edits_kl", "nats"), ("loss", "hartleys"), (3, "nats")):
        with pytest.raises(ConfigError):
            found.layer(*wrong)


def test_what_has_no_tokens_or_logits_is_refused():
    with pytest.raises(SubjectError, match="loss of a token needs"):
        analysis.predictions(zoo.cnn_subject(), [[0.0]])
