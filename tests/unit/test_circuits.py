"""Circuits: patching against hooks of torch's own, gradients against differences, and what carries a task."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import subjects_zoo as zoo
import torch

import saelab
from saelab.analysis import (
    Effects,
    activation_patching,
    agreement,
    attribution_patching,
    circuit,
    head_codes,
    important,
    prompt_task,
)  # fmt: skip
from saelab.analysis.circuits.codes import edge_scores, head_writes, node_scores
from saelab.analysis.circuits.nodes import Latents, Node, edits_of, nodes_of, sites_of
from saelab.analysis.circuits.patching import read
from saelab.embedded.tasks import task_prompts
from saelab.types import ConfigError, CorpusError, HookError, SubjectError

TASKS = ("indirect object", "greater than", "docstring", "agreement")


def task_of(subject, kind, n=48, seed=3):
    prompts = task_prompts(kind, subject.to_tokens, n, seed)
    return prompt_task(subject, *prompts[:4], name=kind, score=prompts.score)


@pytest.fixture(scope="module")
def names(subject):
    return task_of(subject, "indirect object", 24)


def random_sae(subject, hook, recipe="relu", **options):
    config = saelab.recipe(recipe, d_in=subject.width(hook), d_sae=24, hook=hook, **options)
    sae = saelab.SAE.create(config, 0).eval()
    with torch.no_grad():
        for name, p in sae.named_parameters():
            if name.startswith("b_"):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
        sae.input_scale.fill_(1.7)
    return sae


def test_a_patched_head_is_what_a_hook_of_torch_makes_of_the_model(subject, names):
    found = activation_patching(subject, names, nodes="heads")
    model, heads = subject.model, subject.n_heads
    for node in (Node("head", "blocks.1.attn.hook_z", 6), Node("head", "blocks.3.attn.hook_z", 2)):
        layer = model.transformer.h[int(node.hook.split(".")[1])].attn.c_proj
        for number, pair in enumerate(names.pairs[:6]):
            own = slice(node.index * layer.nx // heads, (node.index + 1) * layer.nx // heads)
            kept = []

            def hook(module, given, own=own, kept=kept):
                if not kept:
                    kept.append(given[0].clone())
                    return None
                new = given[0].clone()
                new[..., own] = kept[0][..., own]
                return (new,)

            handle = layer.register_forward_pre_hook(hook)
            with torch.no_grad():
                model(torch.tensor([pair.corrupt]))
                last = model(torch.tensor([pair.clean])).logits[0, -1]
            handle.remove()
            score = float(last[list(pair.right)].mean() - last[list(pair.wrong)].mean())
            lost = names.clean[number] - score
            assert found.values[found.nodes.index(node), number] == pytest.approx(lost, abs=1e-3)


def test_the_gradient_is_the_limit_of_a_difference(subject, names):
    """At a hundredth of the way to the corrupt value, to both sides."""
    sites = sites_of(subject, ("heads", "mlps"), random_sae(subject, "blocks.2.hook_resid_post"))
    every = nodes_of(sites)
    estimate = attribution_patching(subject, names, saes=random_sae(subject, "blocks.2.hook_resid_post"))
    assert list(estimate.nodes) == every
    eps, batch = 1e-2, next(iter(names.batches(subject)))
    asked = [i for i, node in enumerate(every) if str(node) in ("1.6", "3.2", "mlp 0", "mlp 2")]
    reads = [hook for site in sites for hook in site.reads]
    own = {h: subject.run(batch.clean, read=reads, output=False).acts[h] for h in reads}
    other = read(subject, sites, batch)
    for i in asked:
        kept = np.ones(len(every), dtype=bool)
        kept[i] = False
        scores = []
        for share in (eps, -eps):
            between = {h: own[h] + share * (other[h] - own[h]) for h in own}
            logits = subject.run(batch.clean, edits=edits_of(sites, between, kept)).output
            scores.append(names.measure(logits, batch.at).numpy())
        slope = (scores[1] - scores[0]) / (2 * eps)
        np.testing.assert_allclose(estimate.values[i, batch.at], slope, rtol=0.05, atol=0.02)


def test_integrated_gradients_add_up_where_plain_ones_do_not(subject):
    """Along the way between the two prompts the gradients at the embeddings add up to the whole change."""
    task = task_of(subject, "greater than", 16)
    start = random_sae(subject, "blocks.0.hook_resid_pre")
    off = []
    for steps in (1, 64):
        found = attribution_patching(subject, task, (), saes=start, steps=steps)
        off.append(np.abs(found.values.sum(0) - found.gap).mean())
    assert off[1] < 0.02 < 0.1 < off[0]


@pytest.mark.parametrize(
    ("recipe", "options"),
    [("relu", {}), ("topk", {"k": 5}), ("relu", {"normalise": "layernorm"}), ("abs_topk", {"k": 4})],
)
def test_latents_and_error_are_all_there_is(recipe, options):
    """Nodes that are kept and those that are not: together they are both passes, whatever is kept."""
    subject = zoo.language_model("llama")
    site = Latents(random_sae(subject, "blocks.1.hook_resid_post", recipe, **options))
    draw = torch.Generator().manual_seed(0)
    now, other = ({site.writes: torch.randn(2, 5, site.sae.d_in, generator=draw) * 3} for _ in range(2))
    y, theirs = now[site.writes], other[site.writes]
    for _ in range(5):
        kept = torch.rand(len(site.nodes), generator=draw) < 0.5
        both = site.patched(now, other, kept) + site.patched(now, other, ~kept)
        torch.testing.assert_close(both, y + theirs, rtol=1e-4, atol=1e-4)
    everything = torch.ones(len(site.nodes), dtype=torch.bool)
    torch.testing.assert_close(site.patched(now, other, ~everything), theirs, rtol=1e-4, atol=1e-4)
    assert site.edits(other, everything) == []
    # one latent moves by its change along its direction, and the gradient says by how much
    grad = torch.randn(y.shape, generator=draw)
    one = everything.clone()
    one[int(site.sae.encode(y).abs().sum((0, 1)).argmax())] = False
    moved = site.patched(now, other, one) - y
    wanted = site.first_order(now, other, grad)
    torch.testing.assert_close((moved * grad).sum((1, 2)), wanted[:, ~one][:, 0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(wanted.sum(1), ((theirs - y) * grad).sum((1, 2)), rtol=1e-3, atol=1e-3)


def test_a_transcoder_is_patched_where_it_writes():
    subject = zoo.language_model("llama")
    config = saelab.recipe(
        "transcoder", d_in=subject.width("blocks.1.ln2.hook_normalized"), d_sae=24, k=6,
        d_out=subject.width("blocks.1.hook_mlp_out"), hook="blocks.1.ln2.hook_normalized",
        hook_out="blocks.1.hook_mlp_out",
    )  # fmt: skip
    sites = sites_of(subject, (), saelab.SAE.create(config, 0).eval())
    task = prompt_task(subject, ["a b c d"] * 2, ["a e c d"] * 2, ["x"] * 2, ["y"] * 2)
    (batch,) = task.batches(subject)
    other, nothing = read(subject, sites, batch), np.zeros(len(sites[0].nodes), dtype=bool)
    run = subject.run(batch.clean, read=[sites[0].writes], edits=edits_of(sites, other, nothing))
    torch.testing.assert_close(run.acts[sites[0].writes], other[sites[0].writes], rtol=1e-4, atol=1e-4)
    alone = nothing.copy()
    alone[:-1] = True
    # with the error alone corrupt, the latents are the clean pass's
    run = subject.run(batch.clean, read=list(sites[0].reads), edits=edits_of(sites, other, alone))
    y, z = run.acts[sites[0].writes], sites[0]._values(run.acts) @ sites[0]._decoder()
    rest = other[sites[0].writes] - sites[0]._values(other) @ sites[0]._decoder()
    torch.testing.assert_close(y - z, rest, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", TASKS)
def test_a_few_heads_carry_what_random_ones_do_not(subject, kind):
    task = task_of(subject, kind, 64)
    assert task.accuracy > 0.8
    found = circuit(subject, task, random_sets=6)
    assert len(found.nodes) <= found.of / 2
    assert found.faithfulness.value >= 0.7
    assert found.faithfulness.control < 0.4
    assert found.faithfulness.apart
    assert found.completeness.value < 0.1 < 0.5 < found.completeness.control
    assert str(found.nodes[0]) in repr(found)


def test_nouns_of_agreement_are_never_joined_in_the_world(subject):
    prompts = task_prompts("agreement", subject.to_tokens, 200, 5)
    joined = [max(pair, key=lambda text: " and the " in text) for pair in zip(*prompts[:2], strict=True)]
    assert all(" and the " in text for text in joined)
    assert 60 < sum(clean == text for clean, text in zip(prompts.clean, joined, strict=True)) < 140
    answers = [[" were" if " and " in clean else " was"] for clean in prompts.clean]
    assert answers == prompts.right
    texts = "\n".join(d.text.lower() for d in saelab.corpora.world(seed=0, n_documents=4_000))
    assert " and the " in texts
    found = [text for text in joined if f"{text.lower().removeprefix('the ')} " in texts]
    assert found == []


def test_estimates_agree_with_what_they_estimate(subject, names):
    exact = activation_patching(subject, names, nodes="heads")
    (heads,) = agreement(exact, attribution_patching(subject, names, nodes="heads"))
    assert heads.pearson.value > 0.9 > 0.6 > abs(heads.pearson.control)
    shuffled = Effects(exact.task, exact.nodes, exact.values[::-1], exact.gap, "backwards")
    assert agreement(exact, shuffled)[0].pearson.value < 0.5
    top = exact.to_frame().iloc[0]
    assert top.low <= top.share <= top.high
    assert top.node == "1.6"


def test_latents_carry_it_too(subject, names):
    sae = saelab.load_sae(str(saelab.embedded.sae_folder("blocks.2.hook_resid_post")))
    found = attribution_patching(subject, names, (), saes=sae)
    asked = [found.nodes[i] for i in found.order()[:5]]
    exact = activation_patching(subject, names, (), saes=sae, only=asked)
    guess = found.mean[found.order()[:5]]
    assert np.corrcoef(exact.mean, guess)[0, 1] > 0.7
    made = circuit(subject, names, nodes=(), saes=sae, random_sets=4)
    assert made.faithfulness.apart
    assert {node.kind for node in made.nodes} <= {"latent", "error"}


def test_a_circuit_is_judged_on_pairs_that_had_no_part_in_its_choice(subject, names):
    """Effects of the judged half are not looked at: whatever they are, the circuit is the same."""
    effects = attribution_patching(subject, names, nodes="heads")
    judged = np.sort(np.random.default_rng(0).permutation(len(names.pairs))[len(names.pairs) // 2 :])
    wrong = effects.values.copy()
    wrong[:, judged] = np.random.default_rng(1).normal(size=wrong[:, judged].shape) * 100
    spoiled = Effects(effects.task, effects.nodes, wrong, effects.gap, effects.method)
    made = [circuit(subject, names, each, random_sets=2) for each in (effects, spoiled)]
    assert made[0].nodes == made[1].nodes
    # as many of the largest effects, on the judged pairs alone
    every, sites = list(effects.nodes), sites_of(subject, "heads")
    chosen = np.setdiff1d(np.arange(len(names.pairs)), judged)
    order = effects.of_pairs(chosen).order()
    assert made[0].effects.order().tolist() == order.tolist()
    size, grown = made[0].growth[3]
    kept, won = np.isin(np.arange(len(every)), order[:size]), 0.0
    for batch in names.batches(subject, judged):
        logits = subject.run(batch.clean, edits=edits_of(sites, read(subject, sites, batch), kept)).output
        won += float((names.measure(logits, batch.at).double().numpy() - names.corrupt[batch.at]).sum())
    assert grown.value == pytest.approx(won / (names.clean - names.corrupt)[judged].sum(), abs=1e-4)
    assert grown.interval[0] < grown.value < grown.interval[1]
    assert grown.control < grown.value


def test_what_is_refused(subject, names):
    cut = {"clean": ["When Anna met Tom, Tom gave it to"], "corrupt": ["When Anna met Tom, Mary gave it to"]}
    with pytest.raises(CorpusError, match="as many tokens"):
        prompt_task(subject, ["Anna and Tom"], ["Anna"], [" a"], [" b"])
    with pytest.raises(CorpusError, match="differ in their first token"):
        prompt_task(subject, **cut, right=[" Anna"], wrong=[[" Tom", " Anna"]])
    with pytest.raises(CorpusError, match="lists of one length"):
        prompt_task(subject, **cut, right=[], wrong=[" Tom"])
    with pytest.raises(CorpusError, match="must not be empty"):
        prompt_task(subject, **cut, right=[""], wrong=[" Tom"])
    with pytest.raises(ConfigError, match="score must be one of"):
        prompt_task(subject, **cut, right=[" Anna"], wrong=[" Tom"], score="logit")
    with pytest.raises(SubjectError):
        prompt_task(zoo.denoiser_subject(), **cut, right=[" Anna"], wrong=[" Tom"])
    with pytest.raises(ConfigError, match="kind must be one of"):
        task_prompts("induction", subject.to_tokens)
    for nodes in ("neurons", ["heads", 3]):
        with pytest.raises(ConfigError, match="nodes must be among"):
            attribution_patching(subject, names, nodes)
    with pytest.raises(ConfigError, match="Got none"):
        attribution_patching(subject, names, ())
    sae = random_sae(subject, "blocks.2.hook_resid_post")
    with pytest.raises(HookError, match="one way only"):
        attribution_patching(subject, names, (), saes=[sae, sae])
    with pytest.raises(ConfigError, match="one of those that are patched"):
        activation_patching(subject, names, "heads", only=[Node("mlp", "blocks.0.hook_mlp_out", 0)])
    few = prompt_task(subject, **cut, right=[" Anna"], wrong=[" Tom"])
    with pytest.raises(CorpusError, match="at least 8 pairs"):
        circuit(subject, few)
    same = {"clean": cut["clean"] * 9, "corrupt": cut["clean"] * 9}
    undone = prompt_task(subject, **same, right=[" Anna"] * 9, wrong=[" Tom"] * 9)
    with pytest.raises(CorpusError, match="a task that the model does"):
        circuit(subject, undone)
    with pytest.raises(ConfigError, match="all nodes that may be in the circuit"):
        circuit(subject, names, attribution_patching(subject, names, nodes="mlps"))
    with pytest.raises(ConfigError, match="target must be"):
        circuit(subject, names, target=0)
    with pytest.raises(ConfigError, match="of one task"):
        agreement(attribution_patching(subject, names), attribution_patching(subject, few))


def test_codes_are_counted_as_defined():
    codes = np.array([[[1, 7], [2, 7], [2, 8]], [[2, 7], [3, 7], [3, 7]]])  # [side, prompt, head]
    assert node_scores(codes).tolist() == [1, 1]
    assert node_scores(codes, normalised=True).tolist() == [1 / 3, 1 / 2]
    # (1, 7), (2, 7), (2, 8) on clean prompts; (2, 7), (3, 7) on corrupt ones
    assert edge_scores(codes).tolist() == [[0, 2], [2, 0]]
    for pairs, most in ((1, 2), (40, 4), (128, 200)):
        codes = np.random.default_rng(pairs).integers(0, most, (2, pairs, 6))
        scores = edge_scores(codes)
        for i, j in itertools.permutations(range(6), 2):
            clean, corrupt = (set(map(tuple, side[:, [i, j]].tolist())) for side in codes)
            assert scores[i, j] == len(clean - corrupt)
        assert not scores.diagonal().any()


def test_codes_of_heads_are_those_of_what_heads_write(subject, names):
    writes = head_writes(subject, names)
    made = head_codes(subject, names, seeds=1, steps=20, n_train=4)
    assert made.codes.shape == (1, 2, len(names.pairs), 32)
    # all heads of a layer together write what the layer's attention does, but for its bias
    (batch, *_) = names.batches(subject)
    acts = subject.run(batch.clean, read=["blocks.1.hook_attn_out"], output=False).acts
    here = torch.from_numpy(batch.clean.counted)
    total = [x[c].mean(0) for x, c in zip(acts["blocks.1.hook_attn_out"], here, strict=True)]
    bias = subject.model.transformer.h[1].attn.c_proj.bias.detach()
    own = writes[0, batch.at, 8:16].sum(1) + bias
    torch.testing.assert_close(own, torch.stack(total), rtol=1e-4, atol=1e-4)
    truth = important(activation_patching(subject, names, "heads"))
    assert str(names.name) in str(made.against(truth))
    assert next(str(n) for n, t in zip(made.nodes, truth, strict=True) if t) == "1.6"
