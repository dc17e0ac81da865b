"""The edits by an SAE against plain references: where they work, on which rows, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import subjects_zoo as zoo
import torch

import saelab
from saelab.interventions import MeanAblate, Reconstruct, Replace, Scale
from saelab.sae import SAE
from saelab.types import ConfigError, Context, HookError, HookPoint, RangeError, ShapeError

MID, MLP_IN, MLP_OUT = "blocks.1.hook_resid_post", "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"


def sae_of(recipe: str = "topk", hook: str = MID, width: int = 32, **options) -> SAE:
    """Of random weights, its scales and biases moved away from 1 and 0, so that leaving one out shows."""
    if recipe not in ("relu", "jumprelu", "matching_pursuit"):
        options["k"] = 6
    sae = SAE.create(saelab.recipe(recipe, d_in=width, d_sae=48, hook=hook, **options), seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        sae.b_dec += torch.randn(sae.b_dec.shape, generator=generator) * 0.3
        for scale in (sae.input_scale, sae.out_scale):
            if sae.config.options["normalise"] == "scalar" or scale is not sae.input_scale:
                scale *= 2.5
    return sae.eval()


def rows(n: int = 40, width: int = 32) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(n)) * 3 + 0.5


# --- scaling


@pytest.mark.parametrize("normalise", ["none", "scalar", "layernorm", "zscore", "sphere"])
@pytest.mark.parametrize("recipe", ["topk", "relu", "abs_topk", "jumprelu", "matching_pursuit"])
def test_scaling_adds_the_difference_of_two_decodings(recipe, normalise):
    sae, x, latents = sae_of(recipe, normalise=normalise), rows(), list(range(0, 48, 2))
    with torch.no_grad():
        z = sae.encode(x)
        changed = z.clone()
        changed[:, latents] *= -1.5
        expected = x + sae.decode(changed, sae.scale(x)) - sae.decode(z, sae.scale(x))
        found = Scale(sae, latents, -1.5)(x[None].clone(), Context(HookPoint(MID)))[0]
    assert (z[:, latents] != 0).any()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, x)


def gated(sae: SAE, x: torch.Tensor, latents: list[int], factor: float, gate: str, threshold: float):
    """Scale, sample by sample, row by row and latent by latent."""
    out = x.clone()
    for s in range(len(x)):
        z = sae.encode(x[s])
        for j in latents:
            strongest = max(abs(float(code)) for code in z[:, j])
            for p in range(x.shape[1]):
                size = {"input": strongest, "token": abs(float(z[p, j])), "constant": np.inf}[gate]
                if size > threshold:
                    out[s, p] += (factor - 1) * z[p, j] * sae.W_dec[j] * sae.out_scale
    return out


@pytest.mark.parametrize("gate", ["constant", "input", "token"])
@pytest.mark.parametrize("recipe", ["topk", "abs_topk"])
@torch.no_grad()
def test_gates_open_by_latent_and_by_sample_or_row(recipe, gate):
    sae, x = sae_of(recipe), rows(60).reshape(6, 10, 32)
    latents, threshold = list(range(12)), 0.0 if gate == "constant" else 0.55
    peaks = sae.encode(x)[:, :, latents].abs().amax(1)
    assert (peaks > threshold).any()
    found = Scale(sae, latents, 4, gate, threshold)(x.clone(), Context(HookPoint(MID)))
    torch.testing.assert_close(found, gated(sae, x, latents, 4, gate, threshold), atol=1e-5, rtol=1e-5)
    if gate != "constant":
        assert (peaks < threshold).any(), "some gates stay shut"
        far = sae.encode(x)[:, :, latents].abs()
        open_ = far > threshold if gate == "token" else (peaks > threshold)[:, None] & (far > 0)
        assert torch.equal((found != x).any(-1), open_.any(-1)), "and leave every bit of their rows"


def test_a_row_that_does_not_count_opens_no_gate():
    sae, x = sae_of(), rows(20).reshape(2, 10, 32)
    counted = torch.ones(2, 10, dtype=torch.bool)
    strongest = sae.encode(x)[0, :, 0].argmax()
    threshold = float(sae.encode(x)[0, :, 0].detach().sort().values[-2:].mean())
    assert threshold > 0
    counted[0, strongest] = False
    edit = Scale(sae, [0], 0, "input", threshold)
    found = edit(x.clone(), Context(HookPoint(MID), counted=counted))
    assert torch.equal(found[0], x[0])
    assert not torch.equal(edit(x.clone(), Context(HookPoint(MID)))[0], x[0])


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"latents": [48]}, RangeError, r"0\.\.47\. Got 48"),
        ({"latents": [-1]}, RangeError, r"0\.\.47\. Got -1"),
        ({"latents": []}, ConfigError, "at least one"),
        ({"latents": [1, 1]}, ConfigError, "each once"),
        ({"latents": [1.5]}, RangeError, "an integer"),
        ({"latents": [True]}, RangeError, "an integer"),
        ({"latents": 3}, ConfigError, "a list"),
        ({"factor": float("nan")}, ConfigError, "finite"),
        ({"factor": "two"}, ConfigError, "a finite number"),
        ({"gate": "tokens", "threshold": 1}, ConfigError, "Did you mean 'token'"),
        ({"threshold": 0.5}, ConfigError, "gate='constant'"),
        ({"gate": "input"}, ConfigError, "needs a threshold"),
        ({"gate": "token", "threshold": -1}, ConfigError, ">= 0"),
        ({"sae": "folder"}, ConfigError, "must be an SAE"),
    ],
)
def test_scaling_refuses_nonsense(change, error, said):
    with pytest.raises(error, match=said):
        Scale(**({"sae": sae_of(), "latents": [1], "factor": 2} | change))
    assert Scale(sae_of(), np.array([3, 1]), np.float32(2)).latents == (3, 1)


# --- where an edit by an SAE works


def test_an_sae_works_where_it_says_or_where_it_is_told(gpt2):
    inputs = gpt2.prepare(zoo.TEXTS)
    there, sae = "blocks.0.hook_resid_post", sae_of()
    for edit, hook in ((Reconstruct(sae), MID), (Reconstruct(sae, hook=there), there)):
        assert edit.hooks == (HookPoint(hook),)
        plain = gpt2.run(inputs, read=hook).acts[hook]
        run = gpt2.run(inputs, read=hook, edits=edit)
        x = plain[torch.from_numpy(inputs.counted)]
        assert torch.equal(run.acts[hook][torch.from_numpy(inputs.counted)], sae(x).x_hat.detach())
    with pytest.raises(HookError, match="hook=None"):
        Reconstruct(SAE.create(saelab.recipe("topk", d_in=32, d_sae=48, k=6)))


def test_at_all_calls_it_works_at_each():
    subject = zoo.denoiser_subject()
    inputs = subject.prepare(zoo.images(2))
    sae = sae_of(hook="mid@all", width=8)
    every = subject.run(inputs, edits=Reconstruct(sae)).output
    each = [Reconstruct(sae, hook=f"mid@{i}") for i in range(4)]
    assert torch.equal(every, subject.run(inputs, edits=each).output)
    assert not torch.equal(every, subject.run(inputs, edits=each[:3]).output)


@pytest.mark.parametrize("recipe", ["transcoder", "skip_transcoder"])
def test_a_transcoder_reads_at_one_hook_point_and_writes_at_another(gpt2, recipe):
    sae = sae_of(recipe, MLP_IN, d_out=32, hook_out=MLP_OUT)
    inputs = gpt2.prepare(zoo.TEXTS)
    counted = torch.from_numpy(inputs.counted)
    plain = gpt2.run(inputs, read=[MLP_IN, MLP_OUT]).acts
    edit = Reconstruct(sae)
    assert [str(hook) for hook in edit.hooks] == [MLP_IN, MLP_OUT]
    run = gpt2.run(inputs, read=[MLP_IN, MLP_OUT], edits=edit)
    assert torch.equal(run.acts[MLP_IN], plain[MLP_IN])
    assert torch.equal(run.acts[MLP_OUT][~counted], plain[MLP_OUT][~counted])
    x_hat = sae(plain[MLP_IN][counted]).x_hat.detach()
    assert torch.equal(run.acts[MLP_OUT][counted], x_hat)

    removed = gpt2.run(inputs, read=MLP_OUT, edits=Scale(sae, range(48), 0)).acts[MLP_OUT]
    none = sae.decode(torch.zeros(len(x_hat), 48), x=plain[MLP_IN][counted]).detach()
    torch.testing.assert_close(removed[counted], plain[MLP_OUT][counted] - x_hat + none, atol=1e-5, rtol=1e-5)


def test_what_a_transcoder_reads_is_as_it_was_there():
    """The module after the hook point works in place on what it was given."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(inplace=True), torch.nn.Linear(32, 32))
    subject = saelab.TorchModule(net, example=zoo.samples(1))
    sae = sae_of("transcoder", "0", d_out=32, hook_out="2")
    inputs = subject.prepare(zoo.samples())
    x = subject.run(inputs, read="0").acts["0"]
    assert (x < 0).any()
    assert torch.equal(subject.run(inputs, edits=Reconstruct(sae)).output, sae(x).x_hat.detach())


def test_a_transcoder_in_a_loop_pairs_its_calls_in_order():
    subject = zoo.denoiser_subject()
    inputs = subject.prepare(zoo.images(2))
    sae = sae_of("transcoder", "enter@all", 8, d_out=8, hook_out="mid@all")
    run = subject.run(inputs, read=["enter@all", "mid@all"], edits=Reconstruct(sae))
    torch.testing.assert_close(run.acts["mid@all"], sae(run.acts["enter@all"]).x_hat.detach())
    one = sae_of("transcoder", "enter@1", 8, d_out=8, hook_out="mid@3")
    run = subject.run(inputs, read=["enter@1", "mid@3"], edits=Reconstruct(one))
    torch.testing.assert_close(run.acts["mid@3"], one(run.acts["enter@1"]).x_hat.detach())


def test_calls_that_are_all_read_before_any_is_written_are_paired_in_order():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)

        def forward(self, x):
            first, second = self.a(x), self.a(-x)
            return self.b(first) + 2 * self.b(second)

    torch.manual_seed(0)
    subject = saelab.TorchModule(Net(), example=zoo.samples(1))
    sae = sae_of("transcoder", "a@all", 8, d_out=8, hook_out="b@all")
    inputs = subject.prepare(zoo.samples())
    first, second = subject.run(inputs, read=["a@0", "a@1"]).acts.values()
    expected = (sae(first).x_hat + 2 * sae(second).x_hat).detach()
    torch.testing.assert_close(subject.run(inputs, edits=Reconstruct(sae)).output, expected)


def test_a_target_that_comes_before_what_is_read_is_refused(gpt2):
    inputs = gpt2.prepare(["Tim ran"])
    with pytest.raises(HookError, match="must be read before"):
        gpt2.run(inputs, edits=Reconstruct(sae_of("transcoder", MLP_OUT, d_out=32, hook_out=MLP_IN)))
    cnn = zoo.cnn_subject()
    batch, pooled = cnn.prepare(zoo.images(2)), sae_of("transcoder", "1", 8, d_out=5, hook_out="4")
    with pytest.raises(HookError, match=r"same positions\. Got activations of shape \[2, 64, 8\]"):
        cnn.run(batch, edits=Reconstruct(pooled))


def test_crosscoders_and_displaced_transcoders_are_refused():
    config = saelab.recipe("crosscoder", d_in=64, d_sae=48, widths=(32, 32), hooks=(MLP_IN, MLP_OUT))
    for options in ({}, {"hook": MID}):
        with pytest.raises(ConfigError, match=r"crosscoder of blocks\.1.*Replace|Leave hook out"):
            Reconstruct(SAE.create(config), **options)
    with pytest.raises(ConfigError, match="Leave hook out"):
        Scale(sae_of("transcoder", MLP_IN, d_out=32, hook_out=MLP_OUT), [0], 0, hook=MID)


def test_values_of_another_shape_are_refused(gpt2):
    inputs = gpt2.prepare(zoo.TEXTS)
    with pytest.raises(ShapeError, match="Read and replace the same batch"):
        gpt2.run(inputs, edits=Replace(MID, torch.zeros(2, 5, 32)))
    with pytest.raises(ShapeError, match="width of the activations"):
        gpt2.run(inputs, edits=MeanAblate(MID, torch.zeros(31)))
    with pytest.raises(ShapeError, match="d_in=32"):
        gpt2.run(gpt2.prepare(["x y"]), edits=Reconstruct(sae_of(hook="blocks.0.mlp.hook_post")))


def test_padding_may_hold_anything(gpt2):
    """An SAE refuses NaN; what a model leaves in padding is none of its business."""
    inputs = gpt2.prepare(zoo.TEXTS)
    counted = torch.from_numpy(inputs.counted)

    def spoil(acts):
        acts[~counted] = float("nan")
        return acts

    edited = gpt2.run(inputs, read=MID, edits=[(MID, spoil), Reconstruct(sae_of())]).acts[MID]
    plain = gpt2.run(inputs, read=MID, edits=Reconstruct(sae_of())).acts[MID]
    assert torch.equal(edited[counted], plain[counted])
    assert edited[~counted].isnan().all()
