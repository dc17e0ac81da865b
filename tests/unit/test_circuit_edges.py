"""Edges between heads: path patching against hooks of torch's own, gradients against differences."""

from __future__ import annotations

import numpy as np
import pytest
import subjects_zoo as zoo
import torch

from saelab.analysis import (
    HeadEdge,
    Node,
    agreement,
    edge_attribution,
    head_edges,
    path_patching,
    prompt_task,
)
from saelab.analysis.circuits.edges import _Stream
from saelab.analysis.circuits.nodes import sites_of
from saelab.types import ConfigError


def head(layer, index):
    return Node("head", f"blocks.{layer}.attn.hook_z", index)


def edge_of(layer, index, later, other):
    return HeadEdge(head(layer, index), head(later, other))


def tiny(kind):
    subject = zoo.language_model(kind)
    with torch.no_grad():
        # weights so large that norms and softmax are far from linear
        for parameter in subject.model.parameters():
            parameter.mul_(3)
    clean, corrupt = ["a b c d e", "b d a c f"] * 2, ["a b f d e", "b f a c f"] * 2
    return subject, prompt_task(subject, clean, corrupt, ["x"] * 4, ["y"] * 4)


class Layer:
    """The attention of a block of GPT-2 or Llama, by its modules."""

    def __init__(self, model, layer, llama):
        if llama:
            self.block = model.model.layers[layer]
            self.norm, self.attn = self.block.input_layernorm, self.block.self_attn
            self.out, self.norm_mlp = self.attn.o_proj, self.block.post_attention_layernorm
        else:
            self.block = model.transformer.h[layer]
            self.norm, self.attn, self.norm_mlp = self.block.ln_1, self.block.attn, self.block.ln_2
            self.out = self.attn.c_proj

    def written(self, z):
        weight = self.out.weight.T if isinstance(self.out, torch.nn.Linear) else self.out.weight
        return z @ weight


def told(model, pair, receiver, theirs, stream):
    """The score after a clean prompt where one head alone has read another stream."""
    caught = []
    handle = receiver.out.register_forward_pre_hook(lambda module, args: caught.append(args[0].clone()))
    with torch.no_grad():
        _, kwargs = seen(model, pair.clean, receiver.attn)
        receiver.attn(**(kwargs | {"hidden_states": receiver.norm(stream)}))
    handle.remove()

    def patch(module, args):
        z = args[0].clone()
        z[..., theirs] = caught[-1][..., theirs]
        return (z,)

    handle = receiver.out.register_forward_pre_hook(patch)
    with torch.no_grad():
        last = model(torch.tensor([pair.clean])).logits[0, -1]
    handle.remove()
    return float(last[list(pair.right)].mean() - last[list(pair.wrong)].mean())


def seen(model, tokens, layer):
    """What a forward pass brings to a module: its input."""
    found = []
    handle = layer.register_forward_pre_hook(
        lambda module, args, kwargs: found.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        model(torch.tensor([tokens]), use_cache=False)
    handle.remove()
    args, kwargs = found[0]
    return (args[0] if args else kwargs["hidden_states"]).clone(), kwargs


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_through_mlps_all_is_run_anew_but_heads(kind):
    """Blocks by their modules: what attention adds is the clean pass's, but for what the sender writes."""
    subject, task = tiny(kind)
    model, llama = subject.model, kind == "llama"
    edge, largest = edge_of(0, 3, 2, 0), 0.0
    found = path_patching(subject, task, only=[edge], through_mlps=True)
    direct = path_patching(subject, task, only=[edge])
    assert np.abs(found.values - direct.values).max() > 1e-3
    width = subject.width("blocks.0.attn.hook_z") // subject.n_heads
    layers = [Layer(model, i, llama) for i in range(3)]
    own, theirs = (slice(n.index * width, (n.index + 1) * width) for n in edge)
    for number, pair in enumerate(task.pairs[:2]):
        z = [seen(model, tokens, layers[0].out)[0] for tokens in (pair.clean, pair.corrupt)]
        alone = torch.zeros_like(z[0])
        alone[..., own] = (z[1] - z[0])[..., own]
        with torch.no_grad():
            stream = seen(model, pair.clean, layers[0].block)[0]
            for layer in layers[:2]:
                stream = stream + layer.out(seen(model, pair.clean, layer.out)[0])
                if layer is layers[0]:
                    stream = stream + layer.written(alone)
                stream = stream + layer.block.mlp(layer.norm_mlp(stream))
        lost = task.clean[number] - told(model, pair, layers[2], theirs, stream)
        assert found.values[0, number] == pytest.approx(lost, rel=1e-3, abs=3e-5)
        largest = max(largest, abs(lost))
    assert largest > 1e-2


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_path_is_what_hooks_of_torch_make_of_the_model(kind):
    subject, task = tiny(kind)
    model, llama = subject.model, kind == "llama"
    found = path_patching(subject, task)
    width = subject.width("blocks.0.attn.hook_z") // subject.n_heads
    assert len(found.nodes) == 3 * subject.n_heads**2
    largest = 0.0
    for edge in [
        HeadEdge(head(0, 1), head(1, 2)),
        HeadEdge(head(0, 3), head(2, 0)),
        HeadEdge(head(1, 0), head(2, 3)),
    ]:
        sender, receiver = (Layer(model, int(n.hook.split(".")[1]), llama) for n in edge)
        own, theirs = (slice(n.index * width, (n.index + 1) * width) for n in edge)
        for number, pair in enumerate(task.pairs[:2]):
            z = [seen(model, tokens, sender.out)[0] for tokens in (pair.clean, pair.corrupt)]
            alone = torch.zeros_like(z[0])
            alone[..., own] = (z[1] - z[0])[..., own]
            stream = seen(model, pair.clean, receiver.block)[0] + sender.written(alone)
            lost = task.clean[number] - told(model, pair, receiver, theirs, stream)
            assert found.values[found.nodes.index(edge), number] == pytest.approx(lost, rel=1e-3, abs=3e-5)
            largest = max(largest, abs(lost))
    assert largest > 1e-2


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "neox"])
def test_what_heads_write_adds_up(kind):
    """All heads of a layer, told one by one, are what the stream gets more where all are told at once; of an
    architecture that norms what attention writes they are not, one by one."""
    subject, task = tiny(kind)
    sites = sites_of(subject, "heads")
    batch = next(iter(task.batches(subject)))
    stream = _Stream(subject, sites, batch)
    total = torch.stack([stream.change(node) for node in sites[0].nodes]).sum(0)
    edits = sites[0].edits(stream.corrupt, torch.zeros(subject.n_heads, dtype=torch.bool))
    after = "blocks.0.hook_attn_out" if kind == "neox" else "blocks.0.hook_resid_mid"
    new, old = (
        subject.run(batch.clean, read=[after], edits=each, output=False).acts[after] for each in (edits, [])
    )
    close = torch.allclose(total, new - old, rtol=1e-3, atol=1e-4 * float(total.abs().max()))
    assert close == (kind != "gemma2")


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "neox"])
def test_the_gradient_of_an_edge_is_the_limit_of_a_difference(kind, through):
    """A tenth of the sender's change, to both sides, given to the one receiver."""
    subject = zoo.language_model(kind)
    task = prompt_task(subject, ["a b c d e"] * 2, ["a b f d e", "f b c d e"], ["x"] * 2, ["y"] * 2)
    estimate = edge_attribution(subject, task, through_mlps=through)
    (batch,) = task.batches(subject)
    stream = _Stream(subject, sites_of(subject, "heads"), batch)
    corrupt = stream.corrupt
    for edge in (edge_of(0, 0, 1, 3), edge_of(0, 2, 2, 1), edge_of(1, 1, 2, 2)):
        scores, hook = [], edge.receiver.hook
        for share in (0.1, -0.1):
            stream.corrupt = {h: stream.clean[h] + share * (z - stream.clean[h]) for h, z in corrupt.items()}
            if through:
                new = stream.alone(edge.sender, hook)
            else:
                new = stream.reading(hook, stream.change(edge.sender))
            logits = subject.run(batch.clean, edits=stream.one(edge.receiver, new)).output
            scores.append(task.measure(logits, batch.at).double().numpy())
        slope = (scores[1] - scores[0]) / 0.2
        guess = estimate.values[estimate.nodes.index(edge), batch.at]
        largest = np.abs(estimate.values).max()
        np.testing.assert_allclose(guess, slope, rtol=0.05, atol=1e-3 * largest + 1e-5)


def test_an_edge_into_nothing_is_worth_nothing(subject):
    """Edges of heads whose receiver writes nothing, or whose sender does, carry nothing, and others do."""
    subject, task = tiny("gpt2")
    layer = subject.model.transformer.h[1].attn.c_proj
    with torch.no_grad():
        layer.weight[8:16] = 0  # head 1 of layer 1
    task = prompt_task(subject, ["a b c d e"], ["a b f d e"], ["x"], ["y"])
    found = path_patching(subject, task)
    silent = [head(1, 1) in (edge.sender, edge.receiver) for edge in found.nodes]
    assert np.abs(found.values[silent]).max() < 1e-5
    assert np.abs(found.values[~np.array(silent)]).max() > 1e-3
    few = [found.nodes[i] for i in (3, 20)]
    np.testing.assert_allclose(
        path_patching(subject, task, only=few).values, found.values[[3, 20]], atol=1e-6
    )
    (edges,) = agreement(found, edge_attribution(subject, task))
    assert (edges.kind, edges.n) == ("edge", 48)
    with pytest.raises(ConfigError, match="from a head to one of a later layer"):
        path_patching(subject, task, only=[edge_of(1, 0, 1, 2)])
    assert head_edges([head(0, 0), head(0, 1)]) == []
