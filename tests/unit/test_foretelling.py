"""What language models foretell, and passes that go on from the middle of a known one."""

from __future__ import annotations

import numpy as np
import pytest
import subjects_zoo as zoo
import torch

from saelab.types import RangeError, ShapeError


@pytest.mark.parametrize("kind", zoo.ARCHITECTURES)
def test_a_pass_goes_on_from_the_middle_without_the_blocks_before(kind):
    subject = zoo.language_model(kind)
    inputs = subject.prepare(zoo.TEXTS)
    n = subject.n_layers
    called: list[int] = []
    handles = [
        module.register_forward_hook(lambda *_, i=i: called.append(i))
        for i, layer in enumerate(subject._arch.layers)
        for module in list(layer.children())[:1]
    ]
    for block in range(n + 1):
        name = f"blocks.{block}.hook_resid_pre" if block < n else f"blocks.{n - 1}.hook_resid_post"
        stream = subject.run(inputs, read=name, output=False).acts[name] * 1.5 + 0.1
        edits = [(f"blocks.{n - 1}.hook_mlp_out", lambda acts: acts * 0.5)] if block < n else []
        whole = subject.run(inputs, edits=[(name, lambda acts, new=stream: new), *edits]).output
        subject.resume(inputs, block, stream)  # measures what can be left out
        called.clear()
        assert torch.equal(subject.resume(inputs, block, stream, edits).output, whole)
        assert min(called, default=n) == block, f"{kind} computes block {min(called)} for {block}"
    called.clear()
    assert subject.run(inputs).output is not None
    assert min(called) == 0
    for handle in handles:
        handle.remove()


def test_a_model_that_needs_the_blocks_before_runs_them(monkeypatch):
    subject = zoo.language_model("gpt2")
    kept: dict[str, torch.Tensor] = {}
    first, last = subject._arch.layers[0], subject._arch.layers[2]
    first.mlp.register_forward_hook(lambda module, args, out: kept.update(first=out))
    last.mlp.register_forward_hook(lambda module, args, out: out + kept["first"])
    inputs = subject.prepare(zoo.TEXTS)
    name = "blocks.1.hook_resid_pre"
    stream = subject.run(inputs, read=name, output=False).acts[name]
    other = subject.prepare(["the sun and the dog"])  # another pass in between leaves something else there
    subject.run(other)
    assert torch.equal(subject.resume(inputs, 1, stream).output, subject.run(inputs).output)


def test_targets_are_the_next_tokens_and_nothing_for_padding():
    subject = zoo.language_model("llama")
    inputs = subject.prepare(zoo.TEXTS)
    targets, ids = subject.targets(inputs), inputs.data["input_ids"]
    for i, length in enumerate(inputs.lengths):
        assert targets[i, : length - 1].tolist() == ids[i, 1:length].tolist()
        assert (targets[i, length - 1 :] == -1).all()
    logits = subject.run(inputs).output
    summed, n = subject.loss(inputs)
    each = -logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0].detach()
    brute = [each[i, : k - 1].double().sum().item() for i, k in enumerate(inputs.lengths)]
    np.testing.assert_allclose(summed, brute, rtol=1e-6)
    assert n.tolist() == [k - 1 for k in inputs.lengths]


def test_what_cannot_be_gone_on_from():
    subject = zoo.language_model("gpt2")
    inputs = subject.prepare(zoo.TEXTS)
    stream = torch.zeros(*inputs.data["input_ids"].shape, 32)
    with pytest.raises(RangeError, match="block must be"):
        subject.resume(inputs, 4, stream)
    with pytest.raises(ShapeError, match="as the inputs are"):
        subject.resume(inputs, 1, stream[:1])
