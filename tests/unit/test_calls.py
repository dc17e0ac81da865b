"""A module that runs several times in a pass is read and edited call by call."""

from __future__ import annotations

from typing import Any

import pytest
import subjects_zoo as zoo
import torch
from subjects_zoo import samples
from torch import nn

from saelab.subjects import TorchModule
from saelab.types import HookError, HookPoint, Inputs, ShapeError


@pytest.fixture
def looped() -> tuple[TorchModule, Inputs, list[torch.Tensor]]:
    """A denoiser, inputs, and what its middle gave in each of its four calls, noted by a plain hook."""
    subject = zoo.denoiser_subject()
    inputs = subject.prepare(zoo.images(2))
    seen = []
    handle = subject.module.mid.register_forward_hook(lambda module, args, out: seen.append(out.clone()))
    with torch.no_grad():
        subject.module(inputs.data["x"])
    handle.remove()
    return subject, inputs, [out.flatten(2).transpose(1, 2) for out in seen]


def test_calls_are_read_one_by_one_and_all_together(looped):
    subject, inputs, seen = looped
    names = [f"mid@{i}" for i in range(4)]
    run = subject.run(inputs, read=[*names, "mid@all", "mid.relu@2"])
    for name, expected in zip(names, seen, strict=True):
        assert torch.equal(run.acts[name], expected)
    assert run.acts["mid@all"].shape == (2, 4 * 64, 8)
    assert torch.equal(run.acts["mid@all"], torch.cat(seen, 1))
    assert run.calls == {"mid@all": 4}
    assert run.spaces == dict.fromkeys([*names, "mid@all", "mid.relu@2"], (8, 8))
    assert subject.width("mid@all") == subject.width("mid@3") == 8
    assert torch.equal(subject.run(inputs, read="mid@all", output=False).acts["mid@all"], torch.cat(seen, 1))


def test_calls_by_suffix_and_by_side(looped):
    subject, inputs, seen = looped
    assert subject.hook_point("conv@2") == HookPoint("mid.conv@2")
    assert list(subject.run(inputs, read="conv@2").acts) == ["conv@2"]
    entering, leaving = HookPoint("leave@1", io="in"), HookPoint("mid@1")
    acts = subject.run(inputs, read=[entering, leaving]).acts
    assert torch.equal(acts["leave@1"], acts["mid@1"])
    assert torch.equal(acts["leave@1"], seen[1])
    with pytest.raises(HookError, match="two passes"):
        subject.run(inputs, read=["mid@1", HookPoint("mid@1", io="in")])
    with pytest.raises(HookError, match="Did you mean 'mid'"):
        subject.run(inputs, read="mit@1")


@torch.no_grad()
def denoised(module: nn.Module, x: torch.Tensor, change: Any) -> torch.Tensor:
    """The denoiser's output, its middle's at each call changed by change(call, own tensor)."""
    for call, time in enumerate(module.times):
        x = x - module.leave(change(call, module.mid(module.enter(x) + time[:, None, None])))
    return x


def test_an_edit_reaches_the_calls_that_it_names(looped):
    subject, inputs, _ = looped
    module, x = subject.module, inputs.data["x"]
    one = subject.run(inputs, edits=("mid@2", lambda acts: acts * 3)).output
    assert torch.equal(one, denoised(module, x, lambda call, own: own * 3 if call == 2 else own))
    met = []

    def by_call(acts, context):
        met.append((context.call, str(context.hook), context.inputs is inputs, context.counted))
        return acts * (1 + context.call)

    every = subject.run(inputs, read=["mid@all", "mid@3"], edits=("mid@all", by_call))
    assert torch.equal(every.output, denoised(module, x, lambda call, own: own * (1 + call)))
    assert met == [(call, "mid@all", True, None) for call in range(4)]
    assert torch.equal(every.acts["mid@all"][:, -64:], every.acts["mid@3"]), "read after the edit"


def test_edits_of_one_call_and_of_all_keep_their_order(looped):
    subject, inputs, _ = looped
    double, add = (lambda acts: acts * 2), (lambda acts: acts + 1)
    plain = subject.run(inputs, read="mid@0").acts["mid@0"]
    for edits, expected in (
        ([("mid@all", double), ("mid@0", add)], plain * 2 + 1),
        ([("mid@0", add), ("mid@all", double)], (plain + 1) * 2),
        ([("mid@0", add), ("mid@1", double)], plain + 1),
    ):
        assert torch.equal(subject.run(inputs, read="mid@0", edits=edits).acts["mid@0"], expected)


def test_a_pass_stops_after_the_last_call_that_is_needed(looped):
    subject, inputs, _ = looped
    subject.run(inputs, read=["mid@0", "mid@2", "leave@1", "mid@all"])
    reached = []
    handle = subject.module.leave.register_forward_hook(lambda *_: reached.append(1))
    for read, steps in (("mid@0", 0), ("mid@2", 2), (["mid@2", "leave@1"], 2), (["mid@0", "mid@all"], 4)):
        reached.clear()
        subject.run(inputs, read=read, output=False)
        assert len(reached) == steps, read
    handle.remove()


def test_another_call_than_the_pass_makes_is_refused(looped):
    subject, inputs, _ = looped
    for options in ({"read": "mid@4"}, {"read": "mid@4", "output": False}, {"edits": ("mid@9", torch.neg)}):
        with pytest.raises(HookError, match=r"called 4 times, 'mid@0' to 'mid@3'.*or 'mid@all'"):
            subject.run(inputs, **options)
    with pytest.raises(HookError, match=r"'mid@0' is the first, 'mid@1' the second, 'mid@all' every one"):
        subject.run(inputs, read="mid")
    cnn = zoo.cnn_subject()
    batch = cnn.prepare(zoo.images(2))
    with pytest.raises(HookError, match=r"called once.*or '1\.0@all'"):
        cnn.run(batch, read="1.0@1")
    once = cnn.run(batch, read=["1.0", "1.0@0", "1.0@all"])
    assert torch.equal(once.acts["1.0"], once.acts["1.0@0"])
    assert torch.equal(once.acts["1.0"], once.acts["1.0@all"])
    assert once.calls == {"1.0@all": 1}


class Repeats(nn.Module):
    """Calls its block as often as its inputs say; what the block gives last but one goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        for step in range(int(steps.max())):
            y = self.block(x)
            x = x if step == int(steps.max()) - 2 else x + y
        return x


def test_how_often_a_module_is_called_may_depend_on_the_inputs():
    def prepare(raw):
        return {"x": torch.stack(list(raw)), "steps": torch.full((len(raw),), len(raw))}

    subject = TorchModule(Repeats(), prepare=prepare, example=samples(3))
    three, five = subject.prepare(samples(3)), subject.prepare(samples(5))
    with pytest.raises(HookError, match="called 3 times"):
        subject.run(three, read="block@4")
    assert subject.run(five, read="block@4").acts["block@4"].shape == (5, 5, 4)
    with pytest.raises(HookError, match="called 3 times"):
        subject.run(three, read="block@4")


def test_a_call_that_leads_nowhere_is_refused_and_the_others_are_not():
    subject = TorchModule(Repeats(), example=Inputs({"x": samples(1)[0][None], "steps": torch.tensor([3])}))
    with pytest.raises(HookError, match="must influence the output"):
        subject.width("block@1")
    assert subject.width("block@0") == subject.width("block@2") == subject.width("block@all") == 4


def test_calls_of_other_shapes_are_read_by_name():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow, self.relu = nn.Linear(4, 8), nn.Linear(8, 2), nn.ReLU()

        def forward(self, x):
            return self.relu(self.narrow(self.relu(self.wide(x))))

    subject = TorchModule(Net(), example=samples(1))
    assert subject.hooks() == ["wide", "narrow", "relu@0", "relu@1"]
    assert (subject.width("relu@0"), subject.width("relu@1")) == (8, 2)
    with pytest.raises(ShapeError, match=r"\[1, 5, 8\] at call 0 and \[1, 5, 2\] at call 1.*relu@0"):
        subject.run(subject.prepare(samples(1)), read="relu@all")


def test_gradients_are_taken_at_one_call(looped):
    subject, inputs, _ = looped
    run = subject.run(inputs, read=["mid@0", "mid@3"], grad=True)
    first, last = torch.autograd.grad(run.output.square().sum(), [run.acts["mid@0"], run.acts["mid@3"]])
    assert first.shape == last.shape == (2, 64, 8)
    with torch.no_grad():  # the last call reaches the output by one convolution alone
        out = -2 * run.output
        own = nn.functional.conv2d(out, subject.module.leave.weight.transpose(0, 1))
    torch.testing.assert_close(last, own.flatten(2).transpose(1, 2))
    with pytest.raises(HookError, match=r"one call. Got 'mid@all'"):
        subject.run(inputs, read="mid@all", grad=True)
