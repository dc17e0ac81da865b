"""What every registered edit must keep, on language models, an encoder, a CNN and a module that runs several
times."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import subjects_zoo as zoo
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saelab
from saelab import interventions
from saelab.interventions import (
    Ablate,
    AddDirection,
    Clamp,
    Each,
    Erase,
    MeanAblate,
    Reconstruct,
    Replace,
    Scale,
    Steer,
    Substitute,
    Swap,
)
from saelab.sae import SAE
from saelab.subjects import LanguageModel, TorchModule
from saelab.types import Inputs, Intervention


@dataclass(frozen=True)
class Case:
    """make: a fresh subject; raw: samples; hook: where it is edited; early: before that; width: at hook."""

    make: Callable[[], Any]
    raw: Callable[[], list[Any]]
    hook: str
    early: str
    width: int


def embedded() -> LanguageModel:
    return saelab.load_subject(str(saelab.embedded.model_folder()))


def llama() -> LanguageModel:
    return zoo.language_model("llama")


RESID = "blocks.1.hook_resid_post", "blocks.0.hook_resid_post"
CASES = {
    "embedded": Case(embedded, lambda: zoo.TEXTS, *RESID, 128),
    "gpt2": Case(lambda: zoo.language_model("gpt2"), lambda: zoo.TEXTS, *RESID, 32),
    "bridge": Case(
        lambda: zoo.language_model("llama"), lambda: zoo.TEXTS, "blocks.1.attn.hook_q", RESID[1], 32
    ),
    "middle": Case(
        lambda: zoo.language_model("llama"), lambda: zoo.TEXTS, "blocks.1.hook_resid_mid", RESID[1], 32
    ),
    "bert": Case(zoo.bert_subject, lambda: zoo.TEXTS, "layer.1", "layer.0", 32),
    "cnn": Case(zoo.cnn_subject, lambda: zoo.images(3), "1.0", "0", 8),
    "loop": Case(zoo.denoiser_subject, lambda: zoo.images(3), "mid@2", "mid@1", 8),
}


@cache
def rough(hook: str, width: int, seed: int = 0) -> SAE:
    """An SAE that reconstructs badly."""
    return SAE.create(saelab.recipe("topk", d_in=width, d_sae=2 * width, k=4, hook=hook), seed)


@cache
def exact(hook: str, width: int) -> SAE:
    """An SAE whose reconstruction is its input: a latent for each half of each axis."""
    sae = SAE(saelab.recipe("relu", d_in=width, d_sae=2 * width, hook=hook)).eval()
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    sae.load_state_dict(sae.state_dict() | {"W_enc": both.T, "dictionary.W_dec": both})
    return sae


@cache
def naturals(width: int) -> Tensor:
    return torch.randn(20, width, generator=torch.Generator().manual_seed(3))


def values_at(case: Case, subject: Any, inputs: Inputs) -> Tensor:
    return subject.run(inputs, read=case.hook).acts[case.hook]


# of each registered edit one that changes something, and one that changes nothing (None: it has none)
Make = Callable[[Case, Any, Inputs], interventions.Edit]
EXAMPLES: dict[str, tuple[Make, Make | None]] = {
    "reconstruct": (
        lambda case, subject, inputs: Reconstruct(rough(case.hook, case.width)),
        lambda case, subject, inputs: Reconstruct(exact(case.hook, case.width)),
    ),
    "replace": (
        lambda case, subject, inputs: Replace(case.hook, values_at(case, subject, inputs) * 2 + 1),
        lambda case, subject, inputs: Replace(case.hook, values_at(case, subject, inputs)),
    ),
    "mean_ablate": (
        lambda case, subject, inputs: MeanAblate(case.hook, torch.linspace(-1, 1, case.width)),
        None,
    ),
    "scale": (
        lambda case, subject, inputs: Scale(
            rough(case.hook, case.width), range(case.width), -2, "input", 0.1
        ),
        lambda case, subject, inputs: Scale(rough(case.hook, case.width), range(case.width), 1),
    ),
    "erase": (
        lambda case, subject, inputs: Erase(
            rough(case.hook, case.width), range(0, case.width, 2), -2, threshold=0.01
        ),
        lambda case, subject, inputs: Erase(
            rough(case.hook, case.width), range(case.width), -2, "input", 1e9
        ),
    ),
    "substitute": (
        lambda case, subject, inputs: Substitute(
            rough(case.hook, case.width),
            range(case.width),
            naturals(case.width),
            threshold=0.01,
            probe=torch.full((case.width + 1,), 0.5),
        ),
        lambda case, subject, inputs: Substitute(
            rough(case.hook, case.width),
            range(case.width),
            naturals(case.width),
            threshold=1e9,
            probe=torch.full((case.width + 1,), 0.5),
        ),
    ),
    "clamp": (lambda case, subject, inputs: Clamp(rough(case.hook, case.width), 3, 1.5), None),
    "ablate": (
        lambda case, subject, inputs: Ablate(
            rough(case.hook, case.width), range(case.width), "mean", [0.25] * case.width
        ),
        None,
    ),
    "swap": (lambda case, subject, inputs: Swap(exact(case.hook, case.width), 0, 1), None),
    "steer": (
        lambda case, subject, inputs: Steer(rough(case.hook, case.width), 5, -0.7, "norm"),
        lambda case, subject, inputs: Steer(rough(case.hook, case.width), 5, 0),
    ),
    "add_direction": (
        lambda case, subject, inputs: AddDirection(case.hook, torch.linspace(-1, 1, case.width), 0.5),
        lambda case, subject, inputs: AddDirection(case.hook, torch.linspace(-1, 1, case.width), 0),
    ),
    "where": (
        lambda case, subject, inputs: AddDirection(case.hook, torch.ones(case.width)).where(positions=[1]),
        lambda case, subject, inputs: AddDirection(case.hook, torch.ones(case.width)).where(positions=[999]),
    ),
    "each": (
        lambda case, subject, inputs: Each(
            [
                [
                    Scale(rough(case.hook, case.width), range(case.width), -2, "input", 0.1),
                    AddDirection(case.hook, torch.linspace(-1, 1, case.width), 0.5),
                ]
            ]
            * len(inputs)
        ),
        lambda case, subject, inputs: Each(
            [Steer(rough(case.hook, case.width), 5, 0), *[[]] * (len(inputs) - 1)]
        ),
    ),
}
far = torch.linspace(-50, 50, 128)
STRONG: dict[str, Make] = {
    "clamp": lambda case, subject, inputs: Clamp(rough(case.hook, case.width), 3, 400),
    "ablate": lambda case, subject, inputs: Ablate(rough(case.hook, case.width), [0, 1], "mean", [400, -400]),
    "steer": lambda case, subject, inputs: Steer(rough(case.hook, case.width), 5, 9, "norm"),
    "add_direction": lambda case, subject, inputs: AddDirection(case.hook, far),
    "where": lambda case, subject, inputs: AddDirection(case.hook, far).where(positions=[2, 4]),
    "each": lambda case, subject, inputs: Each([AddDirection(case.hook, far)]),
}
"""Examples that change the text which the embedded model writes, where those above do not."""
CONSTANT = {"mean_ablate", "clamp", "ablate", "swap"}
"""What puts constants somewhere has no null edit; where nothing counts it is one too."""
KINDS = [kind for kind, cls in interventions.registered().items() if cls.__module__.startswith("saelab.")]


@cache
def made(name: str) -> tuple[Any, Inputs, Any, dict[str, Tensor]]:
    """(subject, inputs, output and activations before, at and after the case's hook point without an edit)"""
    case = CASES[name]
    subject = case.make()
    inputs = subject.prepare(case.raw())
    run = subject.run(inputs, read=[case.early, case.hook, subject.hooks()[-1]])
    return subject, inputs, run.output, dict(run.acts)


@pytest.fixture(params=list(CASES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def case(name: str) -> Case:
    return CASES[name]


@pytest.fixture
def subject(name: str) -> Any:
    return made(name)[0]


@pytest.fixture
def inputs(name: str) -> Inputs:
    return made(name)[1]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def mask_at(inputs: Inputs, acts: Tensor) -> Tensor:
    """The positions that an edit may change."""
    every = torch.ones(acts.shape[:2], dtype=torch.bool)
    return every if inputs.counted is None else torch.tensor(inputs.counted)


def test_every_registered_edit_has_an_example():
    assert sorted(EXAMPLES) == sorted(KINDS)


def test_it_is_an_intervention_that_cannot_be_changed(kind):
    edit = EXAMPLES[kind][0](CASES["cnn"], *made("cnn")[:2])
    assert isinstance(edit, Intervention)
    assert [str(hook) for hook in edit.hooks] == ["1.0"]
    assert type(edit) is interventions.registered()[kind]
    with pytest.raises(dataclasses.FrozenInstanceError):
        edit.hook = None


def test_the_null_edit_is_the_identity_bit_for_bit(name, kind, case, subject, inputs):
    _, _, output, acts = made(name)
    null = EXAMPLES[kind][1]
    if null is None:
        assert kind in CONSTANT
        return
    run = subject.run(inputs, read=list(acts), edits=null(case, subject, inputs))
    if name != "bridge":  # whose kernel differs from the plain pass; it is compared with itself, below
        assert torch.equal(run.output, output)
        assert all(torch.equal(run.acts[hook], acts[hook]) for hook in acts)
    assert torch.equal(run.output, subject.run(inputs, edits=(case.hook, lambda acts: acts)).output)


def test_it_changes_what_counts_and_no_bit_of_what_does_not(name, kind, case, subject, inputs):
    edit = EXAMPLES[kind][0](case, subject, inputs)
    plain = subject.run(inputs, read=[case.early, case.hook])
    run = subject.run(inputs, read=[case.early, case.hook], edits=edit)
    before, after = plain.acts[case.hook], run.acts[case.hook]
    mask = mask_at(inputs, before)
    assert after.shape == before.shape
    assert after.dtype == before.dtype
    assert torch.equal(after[~mask], before[~mask])
    assert not torch.equal(after[mask], before[mask])
    assert torch.equal(run.acts[case.early], plain.acts[case.early])
    assert not torch.equal(run.output, plain.output)


def test_where_nothing_counts_it_is_the_identity(name, kind, case, subject, inputs):
    edit = EXAMPLES[kind][0](case, subject, inputs)
    if kind == "where":
        return  # positions that are named are written though they count as no rows
    samples, positions = values_at(case, subject, inputs).shape[:2]
    none = dataclasses.replace(inputs, counted=np.zeros((samples, positions), dtype=bool))
    assert torch.equal(
        subject.run(none, edits=edit).output, subject.run(inputs, edits=(case.hook, lambda acts: acts)).output
    )


def test_a_batch_of_three_is_three_of_one(name, kind, case, subject, inputs):
    """So padding does not matter, and no sample sees another."""
    together = subject.run(inputs, read=case.hook, edits=EXAMPLES[kind][0](case, subject, inputs))
    for i, sample in enumerate(case.raw()):
        one = subject.prepare([sample])
        alone = subject.run(one, read=case.hook, edits=EXAMPLES[kind][0](case, subject, one))
        n = alone.acts[case.hook].shape[1]
        here, there = together.acts[case.hook][i, :n], alone.acts[case.hook][0]
        torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)
        own = together.output[i] if inputs.lengths is None else together.output[i, :n]
        torch.testing.assert_close(own, alone.output[0], atol=1e-3, rtol=1e-3)


def applied(case: Case, inputs: Inputs, acts: Tensor, edits: list[Any]) -> Tensor:
    """The edits one after another, without a pass."""
    shared: dict[Any, Any] = {}
    counted = None if inputs.counted is None else torch.tensor(inputs.counted)
    for edit in edits:
        hook = edit.hooks[0]
        acts = edit(acts.clone(), saelab.types.Context(hook, inputs, counted, hook.call or 0, shared))
    return acts


@given(
    kinds=st.lists(st.sampled_from(KINDS), max_size=4), name=st.sampled_from(["gpt2", "bert", "cnn", "loop"])
)
@settings(max_examples=30, deadline=None)
def test_edits_of_one_hook_point_are_applied_in_the_order_of_the_list(kinds, name):
    case, (subject, inputs, _, acts) = CASES[name], made(name)
    edits = [EXAMPLES[kind][0](case, subject, inputs) for kind in kinds]
    expected = applied(case, inputs, acts[case.hook], edits)
    assert torch.equal(subject.run(inputs, read=case.hook, edits=edits).acts[case.hook], expected)


def test_edits_of_several_saes_at_several_hook_points_act_in_one_pass():
    _, (subject, inputs, _, _) = CASES["gpt2"], made("gpt2")
    early, late = "blocks.0.hook_resid_post", "blocks.2.hook_mlp_out"
    first, second = Reconstruct(rough(early, 32)), Scale(rough(late, 32, 1), range(16), 0)
    run = subject.run(inputs, read=[early, late], edits=[second, first])
    plain = subject.run(inputs, read=early).acts[early]
    halfway = subject.run(inputs, read=late, edits=first).acts[late]
    assert torch.equal(run.acts[early], applied(CASES["gpt2"], inputs, plain, [first]))
    assert torch.equal(run.acts[late], applied(CASES["gpt2"], inputs, halfway, [second]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("which", ["gpt2", "cnn"])
def test_models_of_half_precision_keep_theirs(which, dtype, kind):
    case = CASES[which]
    subject = case.make()
    subject.module.to(dtype)
    inputs = subject.prepare(case.raw())
    if not isinstance(subject, LanguageModel):
        inputs = Inputs({k: v.to(dtype) for k, v in inputs.data.items()})
        subject = TorchModule(subject.module)
    plain = subject.run(inputs, read=case.hook)
    change, null = EXAMPLES[kind]
    run = subject.run(inputs, read=case.hook, edits=change(case, subject, inputs))
    assert run.acts[case.hook].dtype == dtype
    assert run.output.dtype == dtype
    full = applied(case, inputs, plain.acts[case.hook].float(), [change(case, subject, inputs)])
    torch.testing.assert_close(run.acts[case.hook].float(), full, atol=0.05, rtol=0.02)
    if null is not None:
        assert torch.equal(subject.run(inputs, edits=null(case, subject, inputs)).output, plain.output)


def test_it_goes_through_json_and_edits_bit_for_bit_alike(name, kind, case, subject, inputs):
    edit = EXAMPLES[kind][0](case, subject, inputs)
    data = json.loads(json.dumps(edit.to_dict(), allow_nan=False))
    assert data["kind"] == kind
    (again,) = interventions.load(data, saes=[exact(case.hook, case.width), rough(case.hook, case.width)])
    assert again.to_dict() == edit.to_dict()
    runs = [subject.run(inputs, read=case.hook, edits=e) for e in (edit, again)]
    assert torch.equal(runs[0].output, runs[1].output)
    assert torch.equal(runs[0].acts[case.hook], runs[1].acts[case.hook])


def test_gradients_pass_through_it(name, kind, case, subject, inputs):
    edit = EXAMPLES[kind][0](case, subject, inputs)
    run = subject.run(inputs, read=case.early, edits=edit, grad=True)
    (grad,) = torch.autograd.grad(run.output.float().square().sum(), run.acts[case.early])
    assert grad.isfinite().all()
    assert torch.equal(run.output, subject.run(inputs, edits=edit).output)


def test_no_hook_is_left_behind(name, kind, case, subject, inputs):
    def count() -> int:
        bridge = getattr(subject, "_bridge", None)
        modules = [*subject.module.modules(), *(bridge._bridge.modules() if bridge else ())]
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)

    def boom(acts: Tensor) -> Tensor:
        message = "boom"
        raise RuntimeError(message)

    edit = EXAMPLES[kind][0](case, subject, inputs)
    subject.run(inputs, edits=(case.hook, lambda acts: acts))
    before = count()
    subject.run(inputs, read=case.early, edits=edit)
    subject.run(inputs, read=case.early, edits=edit, output=False)
    with pytest.raises(RuntimeError, match="boom"):
        subject.run(inputs, edits=[edit, (case.hook, boom)])
    assert count() == before


@pytest.mark.parametrize("which", ["gpt2", "cnn"])
def test_threads_that_share_a_subject_get_what_they_would_alone(which):
    case, (subject, inputs, output, _) = CASES[which], made(which)
    edits = [EXAMPLES[kind][0](case, subject, inputs) for kind in KINDS]
    alone = [subject.run(inputs, edits=edit).output for edit in edits]
    wrong = []

    def work(i: int) -> None:
        for _ in range(5):
            run = subject.run(inputs, edits=[] if i == len(edits) else edits[i])
            if not torch.equal(run.output, output if i == len(edits) else alone[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(edits) + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "replace"])
def test_it_works_in_generation_as_in_the_plain_loop(kind):
    """Replace holds the values of one batch, and a text that grows is another at every step."""
    case, (subject, _, _, _) = CASES["embedded"], made("embedded")
    prompt = "Once upon a time"
    inputs = subject.prepare([prompt])
    edit = STRONG.get(kind, EXAMPLES[kind][0])(case, subject, inputs)
    ids = subject.to_tokens(prompt)
    for _ in range(4):
        ids.append(int(subject.run(subject.prepare_tokens([ids]), edits=edit).output[0, -1].argmax()))
    plain = subject.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert subject.generate(prompt, edit, max_new_tokens=4) == plain
    assert plain != subject.generate(prompt, max_new_tokens=4) or kind == "swap", "which has no strength"
    null = EXAMPLES[kind][1]
    if null is not None:
        text = subject.generate(prompt, null(case, subject, inputs), max_new_tokens=4)
        assert text == subject.generate(prompt, max_new_tokens=4)
