"""Attribution graphs of models: edges against gradients of a frozen copy, sums against hooks of torch."""

from __future__ import annotations

import numpy as np
import pytest
import subjects_zoo as zoo
import torch
from test_attention import KINDS, TEXT, NoHeads, captured, model, pre_of, random_sae, saes_of

import saelab
from saelab.analysis import attribution_graph
from saelab.embedded import SAE_HOOKS
from saelab.types import ConfigError, CorpusError, HookError, RangeError, ShapeError, SubjectError

SHORT = "Tim ran to"


def off(graph):
    """How far the sums of a graph are from what was computed."""
    return np.abs(graph.off())[graph.of_kind("latent", "logit")]


def all_kinds(subject, kind, skip=False):
    """An SAE in each kind of place: attention, MLPs (transcoders, one on what an MLP gives), the stream."""
    found = saes_of(subject, kind, skip)
    found = [sae for sae in found if sae.hook.name in subject.hooks()]
    found.append(random_sae(subject, "blocks.2.hook_mlp_out", 8))
    stream = random_sae(subject, "blocks.1.hook_resid_pre", 5)  # behind block 0, under its other name
    with torch.no_grad():
        stream.b_enc -= 0.3
    if "blocks.2.hook_resid_mid" in subject.hooks() and kind != "neox":
        found.append(random_sae(subject, "blocks.2.hook_resid_mid", 6))
    return [*found, stream]


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "opt"])
@pytest.mark.parametrize("skip", [False, True])
def test_edges_and_constants_sum_to_what_hooks_of_torchs_own_see(kind, skip):
    subject = model(kind)
    saes = all_kinds(subject, kind, skip)
    graph = attribution_graph(subject, saes, TEXT, control=False)
    by_hook = {str(sae.writes[-1]): sae for sae in saes}
    assert {node.hook for node in graph.nodes if node.kind == "latent"} == by_hook.keys()
    seen = {}
    rng = np.random.default_rng(0)
    latents = np.flatnonzero(graph.of_kind("latent"))
    for i in rng.choice(latents, 60, replace=False):
        node = graph.nodes[i]
        sae = by_hook[node.hook]
        if subject._arch.points[str(sae.hook)].inner is not None:
            continue  # no module of torch gives what stands there
        if str(sae.hook) not in seen:
            seen[str(sae.hook)] = captured(subject, TEXT, str(sae.hook))
        x = seen[str(sae.hook)][node.position]
        assert graph.pre[i] == pytest.approx(pre_of(sae, x, node.index), abs=1e-4)
        assert node.value == pytest.approx(sae.encode(x[None])[0, node.index].item(), abs=1e-5)
    np.testing.assert_array_less(
        off(graph), 1e-4 * np.maximum(1, np.abs(graph.pre[graph.of_kind("latent", "logit")]))
    )
    with torch.no_grad():
        logits = subject.model(torch.tensor([subject.to_tokens(TEXT)])).logits[0, -1].double()
    cap = getattr(subject.model.config, "final_logit_softcapping", None)
    raw = logits if cap is None else cap * torch.atanh(logits / cap)
    for i in np.flatnonzero(graph.of_kind("logit")):
        expected = float(raw[graph.nodes[i].index] - raw.mean())
        assert graph.pre[i] == pytest.approx(expected, abs=1e-4)
        assert graph.nodes[i].value == pytest.approx(
            float(logits.softmax(-1)[graph.nodes[i].index]), abs=1e-6
        )
    # everything is made of what comes before it
    assert graph.influence()[graph.of_kind("error", "embedding")].sum() == pytest.approx(1)


@pytest.mark.parametrize("normalise", ["layernorm", "zscore", "sphere"])
def test_rows_that_the_saes_normalise_themselves(normalise):
    subject = model("gpt2")
    hooks = ("blocks.1.attn.hook_z", "blocks.1.hook_resid_post")
    saes = [random_sae(subject, hook, i, normalise=normalise) for i, hook in enumerate(hooks)]
    assert off(attribution_graph(subject, saes, TEXT, control=False)).max() < 1e-4


def frozen_gradients(subject, text, saes):
    """Pre-activations and logits of a GPT-2 by the weights of its modules alone, patterns and scales of norms
    held, each code a number of its own: (pre, codes and errors by hook, logits, first rows)."""
    patterns = subject.attend(subject.prepare([text])).patterns
    ids = torch.tensor(subject.to_tokens(text))
    body, by_read = subject.model.transformer, {str(sae.hook): sae for sae in saes}
    codes, errors, pre = {}, {}, {}

    def normed(ln, x, hook):
        at = captured(subject, text, hook).double()
        scale = (at.var(-1, correction=0, keepdim=True) + ln.eps).sqrt()
        return (x - x.mean(-1, keepdim=True)) / scale * ln.weight + ln.bias

    def read(hook, x):
        sae = by_read.get(hook)
        if sae is not None:
            pre[hook] = (x / sae.input_scale - sae.b_in()) @ sae.W_enc.double() + sae.b_enc.double()

    def replaced(read_hook, written):
        """What stands there, made of codes, of the error and of the bias."""
        sae = by_read[read_hook]
        code = sae.encode(captured(subject, text, read_hook)).double().detach().requires_grad_()
        given = (code @ sae.W_dec.double() + sae.b_dec.double()) * sae.out_scale
        error = (captured(subject, text, written).double() - given).detach().requires_grad_()
        codes[read_hook], errors[read_hook] = code, error
        return given + error

    first = (body.wte.weight[ids] + body.wpe.weight[: len(ids)]).double().detach().requires_grad_()
    x = first
    for i, block in enumerate(body.h):
        a = normed(block.ln_1, x, f"blocks.{i}.hook_resid_pre")
        value = a @ block.attn.c_attn.weight.double()[:, 64:] + block.attn.c_attn.bias.double()[64:]
        z = torch.einsum("hqk,khd->qhd", patterns[i][0].double(), value.unflatten(1, (4, 8))).flatten(1)
        read(f"blocks.{i}.attn.hook_z", z)
        if f"blocks.{i}.attn.hook_z" in by_read:
            z = replaced(f"blocks.{i}.attn.hook_z", f"blocks.{i}.attn.hook_z")
        x = x + z @ block.attn.c_proj.weight.double() + block.attn.c_proj.bias.double()
        m = normed(block.ln_2, x, f"blocks.{i}.hook_resid_mid")
        read(f"blocks.{i}.mlp.hook_in", m)
        if f"blocks.{i}.mlp.hook_in" in by_read:
            added = replaced(f"blocks.{i}.mlp.hook_in", f"blocks.{i}.hook_mlp_out")
        else:
            added = captured(subject, text, f"blocks.{i}.hook_mlp_out").double().detach().requires_grad_()
            errors[f"blocks.{i}.hook_mlp_out"] = added
        x = x + added
        read(f"blocks.{i}.hook_resid_post", x)
        if f"blocks.{i}.hook_resid_post" in by_read:
            x = replaced(f"blocks.{i}.hook_resid_post", f"blocks.{i}.hook_resid_post")
    last = normed(body.ln_f, x, "blocks.2.hook_resid_post")[-1]
    return pre, codes, errors, subject.model.lm_head.weight.double() @ last, first


def test_edges_are_gradients_of_the_frozen_model_times_what_the_sources_are():
    """Every edge into a latent of each SAE and into the logits, by autograd on a model written anew."""
    subject = model("gpt2")
    assert subject.n_layers == 3
    saes = [
        random_sae(subject, "blocks.0.mlp.hook_in", 3, hook_out="blocks.0.hook_mlp_out"),
        random_sae(subject, "blocks.1.attn.hook_z", 1), random_sae(subject, "blocks.1.hook_resid_post", 2),
        random_sae(subject, "blocks.2.mlp.hook_in", 4, hook_out="blocks.2.hook_mlp_out"),
    ]  # fmt: skip
    graph = attribution_graph(subject, saes, SHORT, max_logits=3, probability=1, control=False)
    pre, codes, errors, logits, first = frozen_gradients(subject, SHORT, saes)
    reads = {str(sae.writes[-1]): str(sae.hook) for sae in saes}
    leaves = [*codes.values(), *errors.values(), first]
    names = [*(("latent", hook) for hook in codes), *(("error", hook) for hook in errors), ("embedding", "")]
    seen = 0
    for i, node in enumerate(graph.nodes):
        if node.kind == "latent":
            wanted = pre[reads[node.hook]][node.position, node.index]
        elif node.kind == "logit":
            wanted = logits[node.index] - logits.mean()
        else:
            continue
        grads = torch.autograd.grad(wanted, leaves, retain_graph=True, allow_unused=True)
        parts = {
            name: None if grad is None else (grad * leaf).detach()
            for name, leaf, grad in zip(names, leaves, grads, strict=True)
        }
        for j, source in enumerate(graph.nodes):
            if source.kind == "logit":
                assert graph.adjacency[i, j] == 0
                continue
            hook = "" if source.kind == "embedding" else reads.get(source.hook, source.hook)
            part = parts[source.kind, hook]
            own = 0.0 if part is None else part[source.position]
            if part is not None:
                own = float(own[source.index] if source.kind == "latent" else own.sum())
            assert graph.adjacency[i, j] == pytest.approx(own, abs=1e-5), (node, source)
            seen += abs(own) > 1e-3
    assert seen > 500


def test_a_planted_graph_is_found():
    """Attention that copies one token's direction from the position before, a transcoder that makes of it
    another direction, and a logit that reads that one: three nodes, two edges, no error."""
    subject = zoo.language_model("gpt2")
    with torch.no_grad():
        for p in subject.model.parameters():
            p.zero_()
        body = subject.model.transformer
        d, a, c = subject.d_model, *(subject.to_tokens(each, bos=False)[0] for each in "ac")
        draw = torch.Generator().manual_seed(0)
        other = torch.randn(len(body.wte.weight), d - 12, generator=draw)
        body.wte.weight[:, 12:] = other - other.mean(1, keepdim=True)  # of no mean, which norms take
        body.wte.weight[[a, c]] = 0
        body.wte.weight[a, 0], body.wte.weight[a, 1] = 1, -1
        body.wte.weight[c, 4], body.wte.weight[c, 5] = 1, -1
        for block in body.h:
            block.ln_1.weight.fill_(1)
            block.ln_2.weight.fill_(1)
        body.ln_f.weight.fill_(1)
        idle = [body.h[1].mlp.c_fc, body.h[1].mlp.c_proj, *(block.attn.c_proj for block in body.h[1:])]
        for module in idle:  # that write a little, or nothing, since what they read is nothing
            module.weight.copy_(torch.randn(module.weight.shape, generator=draw) * 0.1)
        for block in body.h[1:]:
            block.attn.c_attn.weight[10, 2 * d :] = 1
        attn = body.h[0].attn
        attn.c_attn.weight[0, 2 * d] = 1  # value of head 0 <- direction 0
        attn.c_proj.weight[0, 2], attn.c_proj.weight[0, 3] = 1, -1  # -> directions 2 and 3
    text = "ba"
    n = len(subject.to_tokens(text))
    config = saelab.recipe(
        "transcoder",
        d_in=d,
        d_sae=2,
        k=2,
        hook="blocks.1.mlp.hook_in",
        hook_out="blocks.1.hook_mlp_out",
        d_out=d,
    )
    coder = saelab.SAE.create(config, 0).eval()
    with torch.no_grad():
        for p in coder.parameters():
            p.zero_()
        coder.W_enc[2, 0] = 1
        coder.W_dec[0, 4], coder.W_dec[0, 5] = 3, -3
    graph = attribution_graph(subject, coder, text, "c", control=False)
    place = {(e.kind, e.position): i for i, e in enumerate(graph.nodes) if e.layer in (-1, 1, 3)}
    latent, logit = place["latent", n - 1], place["logit", n - 1]
    source = place["embedding", n - 1]  # "a" itself: attention is uniform over what came before
    assert graph.nodes[latent].value > 0
    assert np.flatnonzero(np.abs(graph.adjacency[latent]) > 1e-7).tolist() == [source]
    assert graph.adjacency[latent, source] == pytest.approx(graph.nodes[latent].value, abs=1e-6)
    # what the coder gives and the MLP does not, its error takes back; what else there is comes from the mean
    # logit, in which "a" has a part, and from the MLP's little
    row = graph.adjacency[logit]
    error = place["error", n - 1]
    assert set(np.argsort(-np.abs(row))[:2]) == {latent, error}
    assert row[latent] > 1
    assert -1.1 < row[error] / row[latent] < -0.6
    assert np.abs(np.delete(row, [latent, error])).max() < 0.05 * row[latent]
    assert graph.influence()[source] == pytest.approx(graph.influence()[latent], rel=0.05)


def test_a_difference_of_logits_is_that_of_their_rows():
    subject = model("llama")
    saes = [random_sae(subject, "blocks.1.hook_resid_post")]
    both = attribution_graph(subject, saes, SHORT, ["a", subject.to_tokens("b", bos=False)[0]], control=False)
    one = attribution_graph(subject, saes, SHORT, "a", minus="b", control=False)
    assert [node.label for node in both.logits] == ["a", "b"]
    n = len(one.nodes) - 1
    np.testing.assert_allclose(
        one.adjacency[n, :n], both.adjacency[n, :n] - both.adjacency[n + 1, :n], atol=1e-5
    )
    assert one.pre[n] == pytest.approx(both.pre[n] - both.pre[n + 1], abs=1e-5)
    assert one.logits[0][3:] == (-1, both.logits[0].position, 1.0, "'a' - 'b'")
    assert "-> 'a' - 'b':" in str(one)


def test_another_position_than_the_last_is_explained(subject):
    """As if the text ended there: by the model's own output over all of it."""
    text, at = "When Rosa and Tobin went to the market, Rosa gave", 8
    saes = [saelab.load_sae(saelab.embedded.sae_folder(SAE_HOOKS[1]))]
    graph = attribution_graph(subject, saes, text, position=at, max_logits=1, control=False)
    ids = subject.to_tokens(text)
    assert graph.tokens == tuple(subject.token_strings(ids[: at + 1]))
    output = subject.run(subject.prepare([text])).output[0, at].softmax(-1)
    (logit,) = graph.logits
    assert logit.index == int(output.argmax())
    assert logit.value == pytest.approx(float(output.max()), abs=1e-5)
    alone = attribution_graph(subject, saes, graph.text, max_logits=1, control=False)
    assert (alone.ids, alone.tokens) == (graph.ids, graph.tokens)
    np.testing.assert_allclose(alone.adjacency, graph.adjacency, atol=1e-6)
    last = attribution_graph(subject, saes, graph.text, position=at, max_logits=1, control=False)
    np.testing.assert_array_equal(last.adjacency, alone.adjacency)
    for wrong in (0, len(ids), -1):
        with pytest.raises(RangeError, match="position must be"):
            attribution_graph(subject, saes, text, position=wrong)


def test_of_many_latents_those_of_the_most_influence_are_followed(subject):
    hooks = SAE_HOOKS[:3]
    saes = [saelab.load_sae(saelab.embedded.sae_folder(hook)) for hook in hooks]
    text = "When Rosa and Tobin went to the market, Rosa gave the basket to"
    whole = attribution_graph(subject, saes, text, control=False)
    few = attribution_graph(subject, saes, text, max_nodes=400, control=False)
    assert (whole.left_out, few.fired) == (0, whole.fired)
    assert int(few.of_kind("latent").sum()) == 400
    assert 0 < few.left_out < 0.2
    assert "of 1,200 latents that fire some were left out" in str(few)
    # the same edges, and the same sums
    at = [whole.ids.index(each) for each in few.ids]
    np.testing.assert_allclose(few.adjacency, whole.adjacency[np.ix_(at, at)], atol=1e-5)
    assert off(few).max() < 1e-4
    assert np.abs(few.rest).max() > 0.01
    assert off(few.prune()).max() < 1e-4
    # they have what the same number of the whole graph's best have
    influence = whole.influence() * whole.of_kind("latent")
    assert influence[at].sum() > 0.97 * np.sort(influence)[-400:].sum()
    # what was left out is no explanation
    assert few.replacement.value < whole.replacement.value + 1e-9


def test_scores_stand_beside_those_of_untrained_saes(subject):
    saes = [saelab.load_sae(saelab.embedded.sae_folder(hook)) for hook in SAE_HOOKS[:3]]
    graph = attribution_graph(subject, saes, "Rosa gave the basket to", seed=1)
    alone = attribution_graph(subject, saes, "Rosa gave the basket to", control=False)
    for name in ("replacement", "completeness"):
        score = getattr(graph, name)
        assert score.value == getattr(alone, name).value
        assert score.what == "untrained SAEs"
        assert score.value > score.control
        assert score.n == len(graph.tokens)
    # by hand, from the graph itself
    influence = graph.influence()
    ends = [influence[graph.of_kind(kind)].sum() for kind in ("embedding", "error")]
    assert graph.replacement.value == pytest.approx(ends[0] / sum(ends), abs=1e-6)
    shares = np.abs(graph.adjacency) / np.maximum(np.abs(graph.adjacency).sum(1, keepdims=True), 1e-30)
    known = 1 - shares[:, graph.of_kind("error")].sum(1)
    through = influence + graph.weights()
    assert graph.completeness.value == pytest.approx((known * through).sum() / through.sum(), abs=1e-6)


def test_an_sae_that_leaves_nothing_out_has_no_errors():
    """A dictionary of both signs of every direction, in place of each MLP's output and of the stream."""
    subject = model("gpt2")
    hook = "blocks.2.hook_resid_post"
    d = subject.d_model
    sae = saelab.SAE.create(saelab.recipe("relu", d_in=d, d_sae=2 * d, hook=hook), 0).eval()
    with torch.no_grad():
        for p in sae.parameters():
            p.zero_()
        sae.W_dec[:d], sae.W_dec[d:] = torch.eye(d), -torch.eye(d)
        sae.W_enc.copy_(sae.W_dec.t())
    graph = attribution_graph(subject, sae, SHORT, control=False)
    last = graph.adjacency[graph.of_kind("logit")]
    at = np.array([node.hook == hook and node.kind == "error" for node in graph.nodes])
    assert np.abs(last[:, at]).max() < 1e-5
    assert np.abs(last).sum(1).min() > 0.5


def test_what_cannot_be_drawn_is_refused_by_name(subject):
    own = model("gpt2")
    sae = random_sae(own, "blocks.1.hook_resid_post")
    with pytest.raises(SubjectError, match="An attribution graph needs a subject that"):
        attribution_graph(NoHeads(), sae, TEXT)
    for none in ([], {}, None, 3):
        with pytest.raises(ConfigError, match=r"SAEs and transcoders of the model, one at least\. Got"):
            attribution_graph(own, none, TEXT)
    with pytest.raises(HookError, match=r"or be on hook_resid_\*. Got one for 'blocks.1.mlp.hook_post'"):
        attribution_graph(own, random_sae(own, "blocks.1.mlp.hook_post"), TEXT)
    twice = random_sae(own, "blocks.2.hook_resid_pre")
    with pytest.raises(ConfigError, match="must stand for the stream of a layer"):
        attribution_graph(own, [sae, twice], TEXT)
    config = saelab.recipe("relu", d_in=16, d_sae=8, hook=sae.hook)
    with pytest.raises(ShapeError, match="must be of the width"):
        attribution_graph(own, saelab.SAE.create(config), TEXT)
    bare = zoo.LanguageModel(zoo.causal_lm("gpt2"), zoo.byte_tokenizer(bos=None))
    with pytest.raises(CorpusError, match="Got 1 token, 'T'"):
        attribution_graph(bare, sae, "T")
    with pytest.raises(CorpusError, match=r"one token of the vocabulary. Got 'abc', which is 3: \['a', 'b'"):
        attribution_graph(own, sae, TEXT, "abc")
    with pytest.raises(CorpusError, match="must not be empty"):
        attribution_graph(own, sae, TEXT, "")
    with pytest.raises(RangeError, match="target must be an id below"):
        attribution_graph(own, sae, TEXT, 10**6)
    with pytest.raises(ConfigError, match=r"target must be a token, by its text or id\. Got 0.5"):
        attribution_graph(own, sae, TEXT, [0.5])
    with pytest.raises(ConfigError, match=r"a token or several\. Got none"):
        attribution_graph(own, sae, TEXT, [])
    for wrong in ({"minus": "a"}, {"target": "a", "minus": "a"}, {"target": ["a", "b"], "minus": "c"}):
        with pytest.raises(ConfigError, match="that of one target and another token, minus"):
            attribution_graph(own, sae, TEXT, **wrong)
    for share in (0, 1.5, "all"):
        with pytest.raises(ConfigError, match="probability must be a share above 0"):
            attribution_graph(own, sae, TEXT, probability=share)


def test_norms_of_the_embedded_model_take_the_mean(subject):
    """Its stream has next to none where they are measured, and more elsewhere."""
    norms = [norm for i in range(subject.n_layers) for norm in subject.layer_maps(i).norms.values() if norm]
    assert len(norms) == 2 * subject.n_layers
    assert all(norm.centred for norm in norms)
    hooks = [(f"blocks.{i}.mlp.hook_in", f"blocks.{i}.hook_mlp_out") for i in range(subject.n_layers)]
    saes = [random_sae(subject, read, i, hook_out=written) for i, (read, written) in enumerate(hooks)]
    graph = attribution_graph(subject, saes, "The station of 1567 was over in 1591.", control=False)
    assert off(graph).max() < 1e-3
