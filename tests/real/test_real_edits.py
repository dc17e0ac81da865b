"""Edits on trained models that are no language models: the same classes, and they do what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import real_models
import torch
from torch import nn

import saelab
from saelab.analysis import effect
from saelab.interventions import Ablate, Clamp, Each, Erase, Scale, Steer, Swap
from saelab.sae import SAE
from saelab.types import HookError

ANIMALS = 398
"""ImageNet's classes before it are animals."""
WORDS = "dog cat horse wolf rabbit bank loan price tax market".split()
LINES = (
    "A {} runs across the wet grass.", "She worried about the {} all day.", "The old {} rose again.",
    "We spoke of the {} at work.", "Nobody had seen the {} since morning.", "Every {} has its own story.",
)  # fmt: skip


@dataclass
class Case:
    """A subject with an SAE of one layer, and samples that had no part in it."""

    subject: Any
    sae: SAE
    samples: list[Any]
    latents: list[int]
    """those that raise the concept most, descending, by a first-order estimate on the texts of the SAE"""
    peaks: torch.Tensor
    concept: Callable[[torch.Tensor], torch.Tensor]
    """output -> how far each sample is of a concept, [samples]"""

    @property
    def hook(self) -> str:
        return self.sae.config.hook.name


@pytest.fixture(scope="module")
def pictures(cnn) -> Case:
    images, _, _ = real_models.images(32)

    def animal(logits):
        """Log-odds of ImageNet's animals."""
        return logits[:, :ANIMALS].logsumexp(-1) - logits[:, ANIMALS:].logsumexp(-1)

    return _case(cnn, "_blocks.10", images[:24], images[24:], animal)


@pytest.fixture(scope="module")
def sentences(minilm) -> Case:
    texts = [line.format(word) for word in WORDS for line in LINES]
    at = np.random.default_rng(0).permutation(len(texts))
    with torch.no_grad():
        beasts, money = (minilm.run(minilm.prepare(some)).output[:, 1:-1].mean((0, 1)) for some in
                         (WORDS[:5], WORDS[5:]))  # fmt: skip
    axis = torch.nn.functional.normalize(beasts - money, dim=0)
    return _case(minilm, "encoder.layer.3", [texts[i] for i in at[16:]], [texts[i] for i in at[:16]],
                 lambda output: (output @ axis).mean(1))  # fmt: skip


@pytest.fixture(params=["pictures", "sentences"])
def case(request) -> Case:
    return request.getfixturevalue(request.param)


def _case(subject, hook, samples, held_out, concept) -> Case:
    parts = [samples[i : i + 8] for i in range(0, len(samples), 8)]
    rows = torch.cat([_rows(subject, hook, some) for some in parts])
    config = saelab.recipe("topk", d_in=rows.shape[1], d_sae=256, k=16, hook=hook)
    sae = saelab.train(config, rows, steps=150, batch_size=256, seed=0, progress=False).sae.eval()
    slope = torch.zeros(rows.shape[1])
    for some in parts:
        run = subject.run(subject.prepare(some), read=hook, grad=True)
        slope += torch.autograd.grad(concept(run.output).sum(), run.acts[hook])[0].sum((0, 1))
    with torch.no_grad():
        peaks = sae.encode(rows).amax(0)
        raised = slope @ (sae.W_dec * sae.out_scale).T * peaks
    return Case(subject, sae, held_out, raised.argsort(descending=True)[:4].tolist(), peaks, concept)


def _rows(subject, hook, samples) -> torch.Tensor:
    """Those that count."""
    inputs = subject.prepare(samples)
    acts = subject.run(inputs, read=hook, output=False).acts[hook]
    return acts.flatten(0, 1) if inputs.counted is None else acts[torch.from_numpy(inputs.counted)]


def test_an_sae_of_a_layer_explains_samples_that_it_did_not_see(case):
    rows = _rows(case.subject, case.hook, case.samples)
    untrained = SAE.create(case.sae.config, seed=0, rows=rows[:500]).eval()
    spread = (rows - rows.mean(0)).square().sum()
    with torch.no_grad():
        mine, other = (
            float((rows - sae(rows).x_hat).square().sum() / spread) for sae in (case.sae, untrained)
        )
    assert mine < 0.7 * other, (mine, other)


def test_null_edits_change_no_bit(case):
    sae, j = case.sae, case.latents[0]
    inputs = case.subject.prepare(case.samples[:3])
    plain = case.subject.run(inputs).output
    for edit in (
        Steer(sae, j, 0.0),
        Steer(sae, j, 5.0, gate="token", threshold=1e6),
        Scale(sae, case.latents, 1.0),
        Scale(sae, [j], 0.0, "input", 1e6),
        Erase(sae, [j], 1.0, "constant"),
        Erase(sae, [j], 0.0, "input", 1e6),
        Each([[], Steer(sae, j, 0.0), []]),
        Steer(sae, j, 5.0).where(
            mask=torch.zeros(plain.shape[0], _positions(case, inputs), dtype=torch.bool)
        ),
    ):
        assert torch.equal(case.subject.run(inputs, edits=edit).output, plain), edit
    for edit in (Steer(sae, j, 5.0), Ablate(sae, range(64)), Clamp(sae, j, 5.0)):
        assert not torch.equal(case.subject.run(inputs, edits=edit).output, plain), edit
    alone = case.subject.run(inputs, edits=Each([[], Steer(sae, j, 5.0), []])).output
    changed = (alone != plain).flatten(1).any(1)
    assert changed.tolist() == [False, True, False]


def _positions(case: Case, inputs: Any) -> int:
    return case.subject.run(inputs, read=case.hook, output=False).acts[case.hook].shape[1]


def test_deltas_are_exact(case):
    sae, j, inputs = case.sae, case.latents[0], case.subject.prepare(case.samples[:3])
    x = case.subject.run(inputs, read=case.hook).acts[case.hook]
    here = torch.ones(x.shape[:2]) if inputs.counted is None else torch.from_numpy(inputs.counted)
    here = here.bool()
    other = (j + 1) % sae.d_sae

    def delta(edit):
        return case.subject.run(inputs, read=case.hook, edits=edit).acts[case.hook] - x

    with torch.no_grad():
        z = sae.encode(x)
        row, another = sae.W_dec[j] * sae.out_scale, sae.W_dec[other] * sae.out_scale
        wanted = {
            Steer(sae, j, 2.5): (2.5 * row).expand_as(x),
            Scale(sae, [j], -1.0): -2 * z[..., j, None] * row,
            Clamp(sae, j, 3.0): (3 - z[..., j, None]) * row,
            Swap(sae, j, other): z[..., j, None] * (another - row),
            Ablate(sae, [j, other]): -z[..., j, None] * row - z[..., other, None] * another,
        }
    size = float(x.abs().max())
    for edit, added in wanted.items():
        torch.testing.assert_close(delta(edit)[here], added[here], atol=3e-6 * size, rtol=0)
        assert not delta(edit)[~here].any(), edit
    where = delta(Steer(sae, j, 2.5).where(positions=[1]))
    assert where.any(-1).nonzero()[:, 1].unique().tolist() == [1]


class WithAside(nn.Module):
    """A model with a layer whose output nobody uses."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.aside = model, nn.Linear(1, 4)

    def forward(self, **given: torch.Tensor) -> Any:
        first = next(iter(given.values()))
        self.aside(first.flatten(1)[:, :1].float())
        return self.model(**given)


def test_a_dead_hook_point_is_refused(case):
    inner = case.subject
    model = saelab.TorchModule(
        WithAside(inner.module), prepare=lambda raw: dict(inner.prepare(raw).data), example=case.samples[:1]
    )
    inputs, ran = model.prepare(case.samples[:1]), []
    with pytest.raises(HookError, match=r"must influence the output\. Got 'aside'"):
        model.run(inputs, edits=("aside", lambda acts: ran.append(1) or acts))
    assert not ran
    live = f"model.{case.hook}"
    assert not torch.equal(model.run(inputs, edits=(live, torch.zeros_like)).output, model.run(inputs).output)
    assert not any(module._forward_hooks for module in model.module.modules())


def test_latents_move_the_output_to_their_concept_on_new_samples_and_a_random_direction_does_not(case):
    found = effect(
        case.subject,
        [Steer(case.sae, j, 0.05, "max", peak=float(case.peaks[j])) for j in case.latents],
        case.samples[:8], target=case.concept, controls=["random direction"], draws=2, batch_size=8,
    )  # fmt: skip
    base = found.figure_of("target", "no edit").value
    own, random = (found.figure_of("target", arm).value - base for arm in ("edit", "random direction"))
    assert own > max(0, 2 * random), (base, own, random)
    assert found.figure_of("identical", "no edit").value == 1
