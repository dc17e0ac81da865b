"""Attribution graphs through cross-layer transcoders: edges against gradients of a frozen copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_attention import TEXT, captured, model, random_sae

import saelab
from saelab.analysis import attribution_graph, recursive_dfa
from saelab.types import ConfigError, HookError, ShapeError

SHORT = "Tim ran to"
PER = 12


def random_clt(subject, layers, sparsity="batchtopk", **options):
    """Weights, biases and scales that are none of 0 and 1, and differ by layer."""
    n, d = len(layers), subject.d_model
    config = saelab.recipe(
        "clt", d_in=n * d, d_out=n * d, d_sae=n * PER, layers=n, sparsity=sparsity, k=6,
        hooks=[f"blocks.{i}.mlp.hook_in" for i in layers],
        hooks_out=[f"blocks.{i}.hook_mlp_out" for i in layers], **options,
    )  # fmt: skip
    sae = saelab.SAE.create(config, 3)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in (sae.b_enc, sae.b_dec):
            p.copy_(torch.randn(p.shape, generator=draw) * 0.1)
        sae.input_scale.copy_(torch.linspace(0.7, 2, n).repeat_interleave(d))
        sae.output_scale.copy_(torch.linspace(1.5, 0.6, n).repeat_interleave(d))
        if sparsity == "batchtopk":
            sae.sparsifier.threshold.fill_(0.2)
    return sae


def frozen_gradients(subject, text, sae, layers):
    """Pre-activations and logits of a GPT-2 by the weights of its modules alone, patterns and scales of norms
    held, each code a number of its own: (pre, codes, errors by layer, logits, first rows)."""
    patterns = subject.attend(subject.prepare([text])).patterns
    ids, body, d = torch.tensor(subject.to_tokens(text)), subject.model.transformer, subject.d_model
    taken = {i: captured(subject, text, f"blocks.{i}.mlp.hook_in") for i in layers}
    codes = sae.encode(torch.cat([taken[i] for i in layers], 1)).double().detach().requires_grad_()
    decoder, b_dec, scale = sae.W_dec.double(), sae.b_dec.double(), sae.output_scale.double()
    pre, errors = [], {}

    def normed(ln, x, hook):
        at = captured(subject, text, hook).double()
        size = (at.var(-1, correction=0, keepdim=True) + ln.eps).sqrt()
        return (x - x.mean(-1, keepdim=True)) / size * ln.weight + ln.bias

    first = (body.wte.weight[ids] + body.wpe.weight[: len(ids)]).double().detach().requires_grad_()
    x = first
    for i, block in enumerate(body.h):
        a = normed(block.ln_1, x, f"blocks.{i}.hook_resid_pre")
        value = a @ block.attn.c_attn.weight.double()[:, 2 * d :] + block.attn.c_attn.bias.double()[2 * d :]
        z = torch.einsum("hqk,khd->qhd", patterns[i][0].double(), value.unflatten(1, (4, d // 4))).flatten(1)
        x = x + z @ block.attn.c_proj.weight.double() + block.attn.c_proj.bias.double()
        m = normed(block.ln_2, x, f"blocks.{i}.hook_resid_mid")
        added = captured(subject, text, f"blocks.{i}.hook_mlp_out").double().detach()
        if i not in layers:
            errors[i] = added.requires_grad_()
            x = x + added
            continue
        at = layers.index(i)
        own, side = slice(at * PER, (at + 1) * PER), slice(at * d, (at + 1) * d)
        pre.append(m / sae.input_scale[side].double() @ sae.W_enc[:, own].double() + sae.b_enc[own].double())
        # what latents of this layer and those before give here, one block after another
        given = b_dec[side] * scale[side]
        for j in range(at + 1):
            block_of = slice(j * PER, (j + 1) * PER)
            given = given + codes[:, block_of] @ decoder[block_of, side] * scale[side]
        errors[i] = (added - given).detach().requires_grad_()
        x = x + given + errors[i]
    last = normed(body.ln_f, x, "blocks.2.hook_resid_post")[-1]
    return torch.cat(pre, 1), codes, errors, subject.model.lm_head.weight.double() @ last, first


@pytest.mark.parametrize(
    ("layers", "sparsity"), [((0, 1, 2), "batchtopk"), ((0, 2), "jumprelu"), ((1, 2), "topk")]
)
def test_edges_to_all_later_layers_are_gradients_of_the_frozen_model(layers, sparsity):
    subject = model("gpt2")
    sae = random_clt(subject, layers, sparsity)
    graph = attribution_graph(subject, sae, SHORT, max_logits=3, probability=1, control=False)
    pre, codes, errors, logits, first = frozen_gradients(subject, SHORT, sae, list(layers))
    leaves = [codes, *errors.values(), first]
    firing = {(n.position, n.index): n for n in graph.nodes if n.kind == "latent"}
    assert firing.keys() == {tuple(each) for each in codes.nonzero().tolist()}
    seen = skipping = 0
    for i, node in enumerate(graph.nodes):
        if node.kind == "latent":
            assert node.layer == layers[node.index // PER]
            assert node.value == pytest.approx(codes[node.position, node.index].item(), abs=1e-5)
            wanted = pre[node.position, node.index]
        elif node.kind == "logit":
            wanted = logits[node.index] - logits.mean()
        else:
            assert not graph.adjacency[i].any()
            continue
        assert graph.pre[i] == pytest.approx(wanted.item(), abs=1e-4)
        grads = torch.autograd.grad(wanted, leaves, retain_graph=True, allow_unused=True)
        parts = [
            None if grad is None else (grad * leaf).detach() for grad, leaf in zip(grads, leaves, strict=True)
        ]
        by_error = dict(zip(errors, parts[1:-1], strict=True))
        for j, source in enumerate(graph.nodes):
            if source.kind == "logit":
                assert graph.adjacency[i, j] == 0
                continue
            part = {"latent": parts[0], "error": by_error.get(source.layer), "embedding": parts[-1]}[
                source.kind
            ]
            own = 0.0 if part is None else part[source.position]
            if part is not None:
                own = float(own[source.index] if source.kind == "latent" else own.sum())
            assert graph.adjacency[i, j] == pytest.approx(own, abs=1e-5), (node, source)
            seen += abs(own) > 1e-3
            skipping += source.kind == "latent" and node.layer > source.layer + 1 and abs(own) > 1e-3
    assert seen > 200
    assert skipping > 20
    latent = graph.of_kind("latent", "logit")
    assert np.abs(graph.off()[latent]).max() < 1e-4


def test_it_stands_beside_other_saes_and_few_latents_are_followed():
    subject = model("gpt2")
    sae = random_clt(subject, (0, 2))
    others = [
        random_sae(subject, "blocks.1.attn.hook_z", 1),
        random_sae(subject, "blocks.1.hook_resid_post", 2),
    ]
    whole = attribution_graph(subject, [*others, sae], TEXT, control=False)
    few = attribution_graph(subject, [*others, sae], TEXT, max_nodes=30, control=False)
    for graph in (whole, few):
        assert np.abs(graph.off()[graph.of_kind("latent", "logit")]).max() < 1e-4
    named = [(node.kind, node.hook, node.index, node.position) for node in whole.nodes]
    at = [named.index((node.kind, node.hook, node.index, node.position)) for node in few.nodes]
    np.testing.assert_allclose(few.adjacency, whole.adjacency[np.ix_(at, at)], atol=1e-5)
    # the stream behind block 1 is another's: nothing of layer 0 goes on beyond it
    layer = np.array([node.layer for node in whole.nodes])
    hook = np.array([node.hook for node in whole.nodes])
    late = whole.adjacency[np.ix_(layer == 3, (hook == "blocks.0.hook_mlp_out"))]
    # but what it writes at layer 2 itself
    assert np.abs(late).max() > 1e-3


def test_scores_stand_beside_those_of_an_untrained_one(subject, tmp_path):
    """On the embedded model, in which MLPs of all layers are read and written by one code."""
    reads = [f"blocks.{i}.mlp.hook_in" for i in range(4)]
    writes = [f"blocks.{i}.hook_mlp_out" for i in range(4)]
    corpus = saelab.corpora.world(seed=5, n_documents=200)
    store = saelab.harvest(subject, corpus, [*reads, *writes], tmp_path / "acts", progress=False)
    config = saelab.recipe(
        "clt", d_in=512, d_out=512, d_sae=1024, layers=4, k=48, hooks=reads, hooks_out=writes
    )
    sae = saelab.train(config, store, steps=300, batch_size=512, progress=False).sae
    graph = attribution_graph(subject, sae, "Rosa gave the basket to")
    assert np.abs(graph.off()[graph.of_kind("latent", "logit")]).max() < 1e-3
    for score in (graph.replacement, graph.completeness):
        assert score.what == "untrained SAEs"
        assert score.value > score.control
    graph.to_json(tmp_path / "graph.json")
    again = saelab.analysis.read_graph(tmp_path / "graph.json")
    assert again.ids == graph.ids
    np.testing.assert_array_equal(again.adjacency, graph.adjacency)


def test_what_cannot_stand_is_refused_by_name():
    subject = model("gpt2")
    sae = random_clt(subject, (0, 2))
    second = random_sae(subject, "blocks.2.mlp.hook_in", 3, hook_out="blocks.2.hook_mlp_out")
    for both in ([sae, second], [second, sae]):
        with pytest.raises(ConfigError, match="One SAE must stand for the mlp of a layer"):
            attribution_graph(subject, both, SHORT)
    with pytest.raises(HookError, match="must stand for the MLPs of layers in their order"):
        attribution_graph(subject, random_clt(subject, (2, 0)), SHORT)
    config = saelab.recipe(
        "clt", d_in=32, d_out=32, d_sae=8, layers=2, k=2,
        hooks=list(map(str, sae.reads)), hooks_out=list(map(str, sae.writes)),
    )  # fmt: skip
    with pytest.raises(ShapeError, match=r"must be of the width of blocks\.0\.mlp"):
        attribution_graph(subject, saelab.SAE.create(config), SHORT)
    with pytest.raises(HookError, match=r"Got one for 'blocks\.0\.hook_mlp_out \+ blocks\.2"):
        recursive_dfa(subject, second, SHORT, 0, saes=[sae])
