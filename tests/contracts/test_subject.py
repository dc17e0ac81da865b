"""What every Subject must keep, over every implementation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import subjects_zoo as zoo
import torch
from torch import nn

from saelab.subjects import LanguageModel, TorchModule, VisionModel
from saelab.types import HookError, HookPoint, Inputs, SaelabError, ShapeError, Subject, SubjectError


@dataclass(frozen=True)
class Case:
    """make: seed -> a fresh subject; raw: samples; early, late: hook points in this order."""

    make: Callable[[int], Any]
    raw: Callable[[], list[Any]]
    early: str
    late: str
    width: int


LANGUAGE = {
    kind: Case(
        lambda seed, kind=kind: zoo.language_model(kind, seed),
        lambda: zoo.TEXTS,
        "blocks.0.hook_resid_post",
        "blocks.2.hook_mlp_out",
        32,
    )
    for kind in zoo.ARCHITECTURES
}
CASES = {
    **LANGUAGE,
    "stories260k": Case(
        lambda _: zoo.stories(), lambda: zoo.TEXTS, "blocks.1.attn.hook_z", "blocks.3.hook_resid_post", 64
    ),
    "cnn": Case(zoo.cnn_subject, lambda: zoo.images(3), "0", "1.1", 8),
    "denoiser": Case(zoo.denoiser_subject, lambda: zoo.images(3), "enter@0", "mid@2", 8),
    "vit": Case(zoo.vit_subject, lambda: zoo.images(3), "layers.0", "layers.1", 32),
    **{
        kind: Case(
            lambda seed, kind=kind: zoo.vision_subject(kind, seed),
            lambda: zoo.pictures(3),
            "blocks.0.hook_resid_post",
            "blocks.1.mlp.hook_out",
            16,
        )
        for kind in zoo.VISION
        if kind not in ("resnet", "convnext")
    },
    "resnet": Case(
        lambda seed: zoo.vision_subject("resnet", seed),
        lambda: zoo.pictures(3),
        "stages.0.layers.0",
        "stages.1",
        8,
    ),
    "convnext": Case(
        lambda seed: zoo.vision_subject("convnext", seed),
        lambda: zoo.pictures(3),
        "stages.0.layers.0",
        "stages.1",
        8,
    ),
    "bert": Case(zoo.bert_subject, lambda: zoo.TEXTS, "layer.0", "layer.2.output", 32),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "stories260k" and not zoo.STORIES.is_dir():
        pytest.skip("needs the public test data beside the checkout")
    return CASES[request.param]


@cache
def _made(case: Case) -> tuple[Any, Inputs]:
    subject = case.make(0)
    return subject, subject.prepare(case.raw())


@pytest.fixture
def subject(case: Case) -> Any:
    return _made(case)[0]


@pytest.fixture
def inputs(case: Case) -> Inputs:
    return _made(case)[1]


def test_it_is_a_subject(subject):
    assert isinstance(subject, Subject)


def test_every_listed_hook_is_readable_and_as_wide_as_it_says(subject, inputs):
    names = subject.hooks()
    assert names
    assert len(set(names)) == len(names)
    acts = subject.run(inputs, read=names, output=False).acts
    assert list(acts) == names
    for name in names:
        assert acts[name].ndim == 3, name
        assert acts[name].shape[0] == len(inputs), name
        assert acts[name].shape[-1] == subject.width(name), name
        assert not acts[name].requires_grad


def test_width_is_what_the_architecture_says(case, subject):
    assert subject.width(case.early) == case.width
    assert subject.width(HookPoint(case.late)) == case.width


def test_reading_changes_nothing(subject, inputs):
    plain = subject.run(inputs).output
    assert plain is not None
    assert not plain.requires_grad
    read = subject.run(inputs, read=subject.hooks()).output
    assert torch.equal(plain, read)
    assert torch.equal(plain, subject.run(inputs).output)


def test_early_stop_reads_the_same(case, subject, inputs):
    names = subject.hooks()
    full = subject.run(inputs, read=names).acts
    for name in names:
        stopped = subject.run(inputs, read=[name], output=False)
        assert stopped.output is None
        assert torch.equal(stopped.acts[name], full[name]), name


def test_early_stop_stops(case, subject, inputs):
    subject.width(case.early)  # the check at first use runs whole passes
    reached = []
    last = [m for m in subject.module.modules() if not list(m.children())][-1]
    handle = last.register_forward_hook(lambda *_: reached.append(1))
    try:
        subject.run(inputs, read=case.early, output=False)
        assert not reached
        subject.run(inputs, read=case.early)
        assert reached
    finally:
        handle.remove()


def test_nothing_to_read_and_no_output_needs_no_pass(subject, inputs):
    run = subject.run(inputs, output=False)
    assert run.output is None
    assert run.acts == {}


@pytest.mark.parametrize("null", [lambda acts: acts, lambda acts: acts.clone(), lambda acts: acts + 0.0])
def test_null_edits_are_the_identity_bit_for_bit(subject, inputs, null):
    plain = subject.run(inputs).output
    for name in subject.hooks():
        assert torch.equal(plain, subject.run(inputs, edits=[(name, null)]).output), name


def test_edits_take_effect_and_are_read_back(subject, inputs):
    plain = subject.run(inputs).output
    for name in subject.hooks():
        run = subject.run(inputs, read=name, edits=(name, torch.zeros_like))
        assert not torch.equal(run.output, plain), name
        assert not run.acts[name].any(), name


def test_an_edit_may_write_in_place_and_only_reaches_its_hook(case, subject, inputs):
    def in_place(acts):
        acts[..., 0] = 7.0
        return acts

    written = subject.run(inputs, edits=[(case.late, in_place)]).output
    fresh = subject.run(
        inputs, edits=[(case.late, lambda a: torch.cat([torch.full_like(a[..., :1], 7.0), a[..., 1:]], -1))]
    ).output
    assert torch.equal(written, fresh)


def test_edits_at_one_hook_compose_in_order(case, subject, inputs):
    double = (case.early, lambda a: a * 2)
    shift = (case.early, lambda a: a + 1)
    base = subject.run(inputs, read=case.early).acts[case.early]
    there = subject.run(inputs, read=case.early, edits=[double, shift]).acts[case.early]
    back = subject.run(inputs, read=case.early, edits=[shift, double]).acts[case.early]
    assert torch.equal(there, base * 2 + 1)
    assert torch.equal(back, (base + 1) * 2)


def test_an_edit_reaches_what_comes_after_and_not_what_comes_before(case, subject, inputs):
    both = [case.early, case.late]
    plain = subject.run(inputs, read=both).acts
    late = subject.run(inputs, read=both, edits=[(case.late, torch.zeros_like)]).acts
    early = subject.run(inputs, read=both, edits=[(case.early, torch.zeros_like)]).acts
    assert torch.equal(late[case.early], plain[case.early])
    assert not torch.equal(early[case.late], plain[case.late])


def test_an_intervention_object_works_as_an_edit(case, subject, inputs):
    class Zero:
        hook = HookPoint(case.early)

        def __call__(self, acts, rows=None):
            return torch.zeros_like(acts)

        def to_dict(self):
            return {}

    by_object = subject.run(inputs, edits=[Zero()]).output
    assert torch.equal(by_object, subject.run(inputs, edits=[(case.early, torch.zeros_like)]).output)


def test_a_sample_is_read_the_same_alone_and_in_a_padded_batch(case, subject, inputs):
    names = [case.early, case.late]
    together = subject.run(inputs, read=names)
    for i, sample in enumerate(case.raw()):
        alone = subject.run(subject.prepare([sample]), read=names)
        for name in names:
            n = alone.acts[name].shape[1]
            torch.testing.assert_close(together.acts[name][i, :n], alone.acts[name][0], atol=1e-4, rtol=1e-4)


def test_lengths_count_the_real_positions(case, subject, inputs):
    if inputs.lengths is None:
        assert not isinstance(subject, LanguageModel)
        return
    assert inputs.lengths.dtype == "int64"
    for i, sample in enumerate(case.raw()):
        assert inputs.lengths[i] == subject.prepare([sample]).lengths[0]


def test_labels_are_text(subject, inputs):
    assert isinstance(subject.label(inputs, 0, 0), str)


def test_hooks_are_gone_after_a_run_and_after_an_error(case, subject, inputs):
    def count():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.module.modules())

    subject.run(inputs, read=case.early)
    before = count()
    subject.run(inputs, read=subject.hooks(), edits=[(case.early, torch.zeros_like)])
    subject.run(inputs, read=case.early, output=False)

    def boom(acts):
        msg = "boom"
        raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="boom"):
        subject.run(inputs, read=case.late, edits=[(case.early, boom)])
    assert count() == before


def test_an_edit_of_another_shape_is_refused(case, subject, inputs):
    with pytest.raises(ShapeError, match="must return a tensor of the shape"):
        subject.run(inputs, edits=[(case.early, lambda a: a[..., :1])])
    with pytest.raises(ShapeError, match="Got NoneType"):
        subject.run(inputs, edits=[(case.early, lambda a: None)])


def test_what_is_no_edit_is_refused(case, subject, inputs):
    with pytest.raises(HookError, match=r"with `\.hooks`"):
        subject.run(inputs, edits=[lambda a: a])
    with pytest.raises(HookError, match=r"with `\.hooks`"):
        subject.run(inputs, edits=["blocks.0"])


def test_unknown_hook_points_suggest_the_nearest(case, subject, inputs):
    wrong = subject.hooks()[-1] + "x"
    with pytest.raises(HookError, match="Did you mean"):
        subject.run(inputs, read=[wrong])
    with pytest.raises(HookError, match="Did you mean"):
        subject.width(wrong)
    with pytest.raises(HookError):
        subject.run(inputs, edits=[("nothing like it", torch.zeros_like)])


def test_unprepared_input_is_refused(case, subject):
    with pytest.raises(SubjectError, match=r"subject\.prepare"):
        subject.run(case.raw(), read=case.early)


def test_no_samples_are_refused(subject):
    with pytest.raises(SaelabError, match="Got"):
        subject.prepare([])


def test_gradients_on_request(case, subject, inputs):
    for name in (case.early, case.late):
        run = subject.run(inputs, read=name, grad=True)
        acts = run.acts[name]
        direction = torch.randn(run.output.shape, generator=torch.Generator().manual_seed(0))
        (grad,) = torch.autograd.grad((run.output * direction).sum(), acts)
        step = torch.randn(acts.shape, generator=torch.Generator().manual_seed(1)) * 1e-3
        ahead, behind = (
            subject.run(inputs, edits=[(name, lambda a, s=s, step=step: a + s * step)]).output.double()
            for s in (1, -1)
        )
        expected = ((ahead - behind) * direction / 2).sum()
        torch.testing.assert_close((grad * step).sum().double(), expected, rtol=0.05, atol=2e-3)
    assert not subject.run(inputs).output.requires_grad


def test_fingerprint_follows_the_weights(case):
    one, two = case.make(0), case.make(0)
    assert one.fingerprint() == two.fingerprint() == one.fingerprint()
    weight = list(two.module.parameters())[-1]
    with torch.no_grad():
        weight.view(-1)[0] += 1e-3
    assert two.fingerprint() != one.fingerprint()


def test_fingerprint_differs_between_models(case):
    if case is CASES["stories260k"]:
        pytest.skip("one set of weights")
    assert case.make(0).fingerprint() != case.make(1).fingerprint()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(case, dtype):
    subject = case.make(0)
    subject.module.to(dtype)
    inputs = subject.prepare(case.raw())
    if not isinstance(subject, LanguageModel | VisionModel):
        data = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.data.items()}
        inputs = Inputs(data, inputs.lengths)
        subject = TorchModule(subject.module, example=Inputs({k: v[:1] for k, v in data.items()}))
    run = subject.run(inputs, read=[case.early, case.late])
    assert run.acts[case.early].dtype == dtype
    full = _made(case)[0].run(_made(case)[1], read=[case.early, case.late])
    torch.testing.assert_close(run.acts[case.early].float(), full.acts[case.early], atol=0.1, rtol=0.1)
    edited = subject.run(inputs, read=case.late, edits=[(case.late, lambda a: a.float() * 2)])
    assert edited.acts[case.late].dtype == dtype
    assert torch.equal(edited.acts[case.late], run.acts[case.late] * 2)


def test_it_runs_in_eval_mode_whatever_the_module_was_left_in(case, subject, inputs):
    plain = subject.run(inputs).output
    subject.module.train()
    assert torch.equal(subject.run(inputs).output, plain)
    assert not subject.module.training


def test_a_module_is_needed():
    with pytest.raises(SubjectError, match=r"torch\.nn\.Module"):
        TorchModule("model")
    with pytest.raises(SubjectError, match=r"torch\.nn\.Module"):
        LanguageModel(None, None)
    assert isinstance(nn.Identity(), nn.Module)
