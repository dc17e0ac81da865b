"""Losses, gradients and updates are those of other libraries' own training code; see
regenerate_peers_training.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import regenerate_peers_training as golden
import torch

from saelab.sae import SAE, Sparse, recipe, sparsifiers
from saelab.training import RULES, Optimizer
from saelab.training.losses import LOSSES, Firing, Progress
from saelab.training.optimizers import Optimizers

KEPT = dict(np.load(golden.FILE)) if golden.FILE.is_file() else {}
COMMON = {"normalise": "none", "decoder_norm": "free", "aux_coefficient": 0.0}
JUMP = {**COMMON, "log_threshold": False, "bandwidth": 0.2, "l0": 0.3, "l0_warmup": 0.0}
CASES = {
    "jumprelu.step": ("jumprelu", JUMP),
    "jumprelu.step_to_input": ("jumprelu", {**JUMP, "ste_to_input": True}),
    "jumprelu.tanh_to_input": (
        "jumprelu",
        # inputs have another norm there: the recipe's c is for sqrt(d_in)
        {**JUMP, "ste_to_input": True, "penalty": "tanh", "tanh_scale": 4 / math.sqrt(golden.D_IN)},
    ),
    "jumprelu.pre_act": ("jumprelu", {**JUMP, "pre_act_loss": 0.05}),
    "topk.by_norm": ("topk", {**COMMON, "k": 3, "by_norm": True}),
    "batchtopk.by_norm": ("batchtopk", {**COMMON, "k": 2.5, "by_norm": True}),
    "batchtopk.fraction": ("batchtopk", {**COMMON, "k": 0.6}),
}


def filled(name: str, options: dict) -> SAE:
    """One of the golden weights."""
    given = golden.weights()
    sae = SAE(recipe(name, d_in=golden.D_IN, d_sae=golden.D_SAE, **options))
    state = {key: given[key] for key in ("W_enc", "b_enc", "b_dec")} | {"dictionary.W_dec": given["W_dec"]}
    if name == "jumprelu":
        state["sparsifier.raw_threshold"] = given["threshold"]
    sae.load_state_dict({**sae.state_dict(), **state})
    return sae.train()


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_saelens(case, few, monkeypatch):
    """Along the sparse path too, which 24 latents would not take."""
    name, options = CASES[case]
    monkeypatch.setattr(sparsifiers, "DENSE", 1 if few else 10**6)
    sae, given = filled(name, options), golden.weights()
    firing = Firing(golden.D_SAE, 10)
    firing.since[given["dead"]] = 10
    progress = Progress(100, 1.0, firing)
    forward = sae(given["x"], sparse=True)
    assert isinstance(forward.codes, Sparse) == (few or name != "jumprelu")
    loss = sum(
        LOSSES[each](sae.config, progress)(sae, forward) for each in sae.config.entry.losses(sae.config)
    )
    loss.backward()
    theirs = {key.removeprefix(f"{case}."): v for key, v in KEPT.items() if key.startswith(f"{case}.")}
    found = {"loss": loss, "x_hat": forward.x_hat}
    found |= {f"grad.{key.rsplit('.', 1)[-1]}": w.grad for key, w in sae.named_parameters()}
    if "grad.raw_threshold" in found:
        found["grad.threshold"] = found.pop("grad.raw_threshold")
    assert found.keys() == {key for key in theirs if not key.startswith("loss.")}
    for key, ours in found.items():
        np.testing.assert_allclose(ours.detach().numpy(), theirs[key], rtol=2e-5, atol=2e-5, err_msg=key)


def _filled(name: str, **options) -> tuple[SAE, Progress, Firing]:
    firing = Firing(golden.D_SAE, 10)
    firing.since[golden.weights()["dead"]] = 10
    return filled(name, {**COMMON, **options}), Progress(100, 1.0, firing), firing


def test_p_annealing_is_dictionary_learnings_with_a_queue_of_one():
    """There p falls in steps, here at each step; in both the penalty keeps the size that it had with p = 1 on
    the batch, so that on one batch it stands still."""
    steps = KEPT["p_anneal.steps"]
    assert steps[0, 0] == 1
    assert steps[-1, 0] < 0.7
    np.testing.assert_allclose(steps[:, 1], steps[0, 1], rtol=1e-5)
    sae, progress, _ = _filled("relu", l1=0.2, l1_warmup=0.0, p_end=0.5, decoder_norm_weighted=False)
    x = golden.weights()["x"]
    for progress.step in (0, 50, 100):
        loss = LOSSES["l1"](sae.config, progress)(sae, sae(x, sparse=True))
        assert float(loss) == pytest.approx(steps[0, 1], rel=1e-5)
    loss.backward()
    codes = sae.encode(x).detach()
    factor = 0.2 * codes.sum() / codes.clamp_min(0).sqrt().sum()
    for name, grad in (("W_enc", sae.W_enc.grad), ("b_enc", sae.b_enc.grad)):
        theirs = factor.numpy() * KEPT[f"p_anneal.grad.{name}"]
        np.testing.assert_allclose(grad.numpy(), theirs, rtol=1e-4, atol=1e-6)


def test_the_loss_of_dead_latents_is_dictionary_learnings_but_for_its_divisor():
    """||e||^2 here, as in Gao et al.; the variance of e there."""
    sae, progress, _ = _filled("batchtopk", k=2, aux_coefficient=1.0)
    loss = LOSSES["auxk"](sae.config, progress)(sae, sae(golden.weights()["x"], sparse=True))
    loss.backward()
    error = KEPT["auxk.error"].astype(float)
    factor = np.square(error).sum() / np.square(error - error.mean(0)).sum()
    assert factor > 1.05
    assert factor * float(loss) == pytest.approx(float(KEPT["auxk.loss"]), rel=1e-5)
    for name, grad in (("W_enc", sae.W_enc.grad), ("b_enc", sae.b_enc.grad), ("W_dec", sae.W_dec.grad)):
        theirs = KEPT[f"auxk.grad.{name}"]
        np.testing.assert_allclose(factor * grad.numpy(), theirs, rtol=1e-4, atol=1e-6)


def test_the_loss_of_a_target_l0_is_dictionary_learnings():
    """The value. Its gradient for thresholds there knows half of the box, since the step is taken of codes,
    which are 0 below the threshold, not of pre-activations."""
    options = {**JUMP, "target_l0": 3.0, "target_weight": 0.7, "apply_b_dec_to_input": False}
    sae = filled("jumprelu", options)
    progress = Progress(100, 1.0, Firing(golden.D_SAE, 10))
    forward = sae(golden.weights()["x"], sparse=True)
    loss = sum(LOSSES[each](sae.config, progress)(sae, forward) for each in ("mse", "l0"))
    assert loss.item() == pytest.approx(float(KEPT["target_l0.loss"]), rel=1e-5)


def test_resampled_latents_are_dictionary_learnings(monkeypatch):
    """There rows are not brought to norm 1 for the encoder, nor centred for the decoder, and drawn by their
    error, not its fourth power: on rows of norm 1, without a bias, by the same draws, both are the same."""
    given = golden.to_resample()
    options = {**COMMON, "resample_every": 1, "resample_scale": 0.2, "decoder_norm_weighted": False}
    sae = filled("relu", options)
    state = {key: given[key] for key in ("W_enc", "b_enc", "b_dec")} | {"dictionary.W_dec": given["W_dec"]}
    optimizer = Optimizers(Optimizer(), dict(sae.named_parameters()), 0.1)
    sae(given["x"]).x_hat.square().sum().backward()
    optimizer.step(0.1)
    sae.load_state_dict({**sae.state_dict(), **state})
    firing = Firing(golden.D_SAE, 10)
    firing.since[given["dead"]] = 10
    monkeypatch.setattr(torch, "multinomial", lambda *args, **options: given["rows"])
    RULES["resample"](sae.config, Progress(100, 1.0, firing)).after(sae, sae(given["x"]), optimizer)
    for key in ("W_enc", "b_enc", "W_dec", "b_dec"):
        ours = getattr(sae, key).detach().numpy()
        np.testing.assert_allclose(ours, KEPT[f"resample.{key}"], rtol=1e-5, atol=1e-6, err_msg=key)
    moved = optimizer.state(sae.W_dec)["exp_avg"].abs().sum(1) > 0
    assert not moved[given["dead"]].any()
    assert moved[~given["dead"]].any()
    assert not firing.dead.any()


@pytest.mark.parametrize(
    ("kind", "options", "theirs"),
    [
        ("muon", {"betas": (0.95, 0.999), "weight_decay": 0.1, "parts": ("W_enc", "W_dec")}, "muon"),
        ("signum", {"betas": (0.0, 0.999)}, "sign"),  # their signum is this, averaged schedule-free
    ],
)
def test_updates_are_sparsifys(kind, options, theirs):
    weights, grads = golden.updates()
    optimizer = Optimizers(Optimizer(kind, **options), weights, 0.01)
    for each in grads:
        for name, weight in weights.items():
            weight.grad = each[name].clone()
        optimizer.step(0.01)
    start, _ = golden.updates()
    for name, weight in weights.items():
        wanted = KEPT[f"{theirs}.{name}"]
        moved = np.linalg.norm(wanted - start[name].numpy())
        assert moved > 0.05
        # Newton and Schulz's steps are made in bfloat16: both are within .021 of these in float64
        off = np.linalg.norm(weight.numpy() - wanted) / moved
        assert off < (0.03 if kind == "muon" else 1e-6)


def test_the_cases_differ():
    """Else an option that does nothing would pass."""
    for one, two in (("step", "step_to_input"), ("step", "tanh_to_input"), ("step", "pre_act")):
        a, b = (KEPT[f"jumprelu.{each}.grad.W_enc"] for each in (one, two))
        assert np.abs(a - b).max() > 1e-2
