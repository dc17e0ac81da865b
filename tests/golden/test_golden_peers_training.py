"""Losses and gradients are those of other libraries' own training code (see regenerate_peers_training.py)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import regenerate_peers_training as golden

from saelab.sae import SAE, Sparse, recipe, sparsifiers
from saelab.training.losses import LOSSES, Firing, Progress

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


def test_the_cases_differ():
    """Else an option that does nothing would pass."""
    for one, two in (("step", "step_to_input"), ("step", "tanh_to_input"), ("step", "pre_act")):
        a, b = (KEPT[f"jumprelu.{each}.grad.W_enc"] for each in (one, two))
        assert np.abs(a - b).max() > 1e-2
