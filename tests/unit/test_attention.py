"""Who wrote a latent: attribution to heads and sources, one step and many, against the model itself."""

from __future__ import annotations

import numpy as np
import pytest
import subjects_zoo as zoo
import torch

import saelab
from saelab.analysis import dfa, edge_changes, edge_effects, head_attribution, head_losses, recursive_dfa
from saelab.analysis.attention.effects import pre_without
from saelab.embedded import SAE_HOOKS
from saelab.types import ConfigError, CorpusError, HookError, RangeError, ShapeError, SubjectError

KINDS = ("gpt2", "llama", "gemma2", "qwen3", "neox", "olmo2", "opt")
"""LayerNorm, grouped queries, sandwich norms, normed queries, parallel blocks, norms behind, flat MLPs."""
TEXT = "Once upon a time, there was a dog. Tim ran to the dog."
HOOKS = (
    "attn.hook_z", "hook_attn_out", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_in",
    "mlp.hook_in", "ln2.hook_normalized", "attn.hook_in",
)  # fmt: skip
_MODELS: dict[str, object] = {}


def model(kind):
    if kind not in _MODELS:
        _MODELS[kind] = zoo.language_model(kind)
    return _MODELS[kind]


def random_sae(subject, hook, seed=0, d_sae=24, hook_out=None, recipe="relu", **options):
    """Weights, biases and scales that are none of 0 and 1."""
    width, more = subject.width(hook), {}
    if hook_out is not None:
        more = {"d_out": subject.width(hook_out), "hook_out": hook_out, "k": 6}
        recipe = recipe if "transcoder" in recipe else "transcoder"
    config = saelab.recipe(recipe, d_in=width, d_sae=d_sae, hook=hook, **more, **options)
    sae = saelab.SAE.create(config, seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sae.named_parameters():
            if name.startswith(("b_", "W_skip")):
                p.copy_(torch.randn(p.shape, generator=draw) * 0.1)
        for name in ("input_scale", "output_scale"):
            if hasattr(sae, name):
                getattr(sae, name).fill_(1.7)
    return sae


def captured(subject, text, hook):
    """What a module reads or gives, by a hook of torch's own on the model: [positions width]."""
    site, kept = subject._arch.points[hook], []
    keep = lambda value: kept.append(value[0] if isinstance(value, tuple) else value)  # noqa: E731
    if site.io == "in":
        own = lambda m, args, named: keep((*args, *named.values())[0])  # noqa: E731
        handle = site.module.register_forward_pre_hook(own, with_kwargs=True)
    else:
        handle = site.module.register_forward_hook(lambda m, args, out: keep(out))
    with torch.no_grad(), handle_removed(handle):
        subject.model(input_ids=torch.tensor([subject.to_tokens(text)]), use_cache=False)
    return kept[0].reshape(len(subject.to_tokens(text)), -1)


class handle_removed:
    def __init__(self, handle):
        self.handle = handle

    def __enter__(self):
        return self.handle

    def __exit__(self, *_):
        self.handle.remove()


def pre_of(sae, x, latent):
    """By hand."""
    x = x.double()
    normed = {
        "layernorm": lambda x: (x - x.mean()) / (x - x.mean()).norm(),
        "sphere": lambda x: x * len(x) ** 0.5 / x.norm(),
    }.get(sae.config.options["normalise"], lambda x: x / sae.input_scale.double())
    b = sae.b_dec.double() if sae.config.options.get("apply_b_dec_to_input") else 0
    with torch.no_grad():
        return float((normed(x) - b) @ sae.W_enc[:, latent].double() + sae.b_enc[latent])


@pytest.mark.parametrize("kind", KINDS)
def test_parts_sum_to_what_a_hook_of_torchs_own_sees(kind):
    """At every place, of every layer, on random text: no figure of the sum comes from the sum's own pass."""
    subject, seen = model(kind), 0
    for layer in range(subject.n_layers):
        for seed, name in enumerate(HOOKS):
            hook = f"blocks.{layer}.{name}"
            if hook not in subject.hooks() or subject._arch.points[hook].inner is not None:
                continue
            sae = random_sae(subject, hook, seed)
            x = captured(subject, TEXT, hook)
            for dest in (1, len(x) - 1):
                found = dfa(subject, sae, TEXT, seed, dest)
                expected = pre_of(sae, x[dest], seed)
                assert found.pre == pytest.approx(expected, abs=1e-4)
                assert found.total == pytest.approx(expected, abs=1e-4), (hook, dest)
                assert not found.parts[:, :, dest + 1 :].any()
            seen += 1
    assert seen >= 5 * subject.n_layers


@pytest.mark.parametrize("normalise", ["layernorm", "zscore", "sphere"])
@pytest.mark.parametrize("hook", ["blocks.1.attn.hook_z", "blocks.1.hook_resid_post"])
def test_rows_that_the_sae_normalises_itself(normalise, hook):
    subject = model("gpt2")
    sae = random_sae(subject, hook, normalise=normalise)
    found = dfa(subject, sae, TEXT, 3, 9)
    assert found.total == pytest.approx(found.pre, abs=1e-4)
    if normalise != "zscore":
        assert found.pre == pytest.approx(pre_of(sae, captured(subject, TEXT, hook)[9], 3), abs=1e-4)


@pytest.mark.parametrize(("kind", "name"), [
    ("gpt2", "hook_resid_mid"), ("llama", "hook_resid_mid"), ("gemma2", "hook_attn_out"),
    ("qwen3", "attn.hook_z"), ("neox", "hook_resid_post"),
])  # fmt: skip
def test_a_part_is_what_changes_without_its_edge(kind, name):
    """Exactly, where nothing but frozen norms lies between the edge and the latent; of a norm behind the
    attention, whose scale answers, first order."""
    subject, dest = model(kind), 8
    sae = random_sae(subject, f"blocks.2.{name}")
    found = dfa(subject, sae, TEXT, 5, dest)
    edges = [(2, head, source) for head in range(4) for source in range(dest + 1)]
    changes = found.pre - pre_without(subject, sae, subject.prepare([TEXT]), 5, dest, edges)
    parts = found.parts[found.layers.index(2)][:, : dest + 1].ravel()
    if kind == "gemma2":
        assert np.corrcoef(parts, changes)[0, 1] > 0.9
    else:
        np.testing.assert_allclose(changes, parts, atol=2e-5)
        assert np.abs(parts).max() > 100 * 2e-5


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_patterns_and_edges_are_those_that_another_library_sees(kind):
    """TransformerBridge gives the same patterns, and an edge that is taken out there changes as much."""
    subject, hook, dest = model(kind), "blocks.1.attn.hook_z", 7
    inputs, name = subject.prepare([TEXT]), "blocks.1.attn.hook_pattern"
    theirs = subject.run(inputs, [name]).acts[name]
    ours = subject.attend(inputs).patterns[1]
    torch.testing.assert_close(ours, theirs.to(ours), atol=1e-5, rtol=0)
    sae = random_sae(subject, hook)
    found = dfa(subject, sae, TEXT, 2, dest)
    for head, source in ((0, 0), (3, 4)):

        def without(pattern, head=head, source=source):
            pattern[0, head, dest, source] = 0
            return pattern

        x = subject.run(inputs, [hook, name], [(name, without)]).acts[hook][0, dest]
        assert found.pre - pre_of(sae, x, 2) == pytest.approx(found.parts[0, head, source], abs=2e-5)


def saes_of(subject, kind, skip=False):
    """An SAE for the attention of each layer but the first, and transcoders of the MLPs of two."""
    into = "ln2.hook_normalized" if kind == "gemma2" else "mlp.hook_in"
    recipe = "skip_transcoder" if skip else "transcoder"
    return [
        random_sae(subject, "blocks.1.attn.hook_z", 1),
        random_sae(subject, "blocks.2.hook_attn_out", 2),
        random_sae(subject, f"blocks.0.{into}", 3, hook_out="blocks.0.hook_mlp_out", recipe=recipe),
        random_sae(subject, "blocks.1.mlp.hook_in", 4, hook_out="blocks.1.mlp.hook_out"),
    ]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "qwen3", "neox", "olmo2"])
@pytest.mark.parametrize("skip", [False, True])
def test_every_depth_of_the_way_back_sums_to_what_a_hook_sees(kind, skip):
    subject, kinds = model(kind), set()
    for name in ("hook_resid_post", "attn.hook_z"):
        hook = f"blocks.2.{name}"
        sae = random_sae(subject, hook, 7)
        expected = pre_of(sae, captured(subject, TEXT, hook)[9], 4)
        found = recursive_dfa(subject, sae, TEXT, 4, 9, saes_of(subject, kind, skip), depth=5, width=3)
        assert 4 <= len(found.sums) <= 6  # in parallel blocks the largest parts end sooner
        np.testing.assert_allclose(found.sums, expected, atol=1e-3)
        kinds |= {branch.kind for _, branch in found.root.walk()}
        assert found.errors()[-1] != 0
        for _, branch in found.root.walk():  # and each step by itself
            if branch.children:
                assert sum(c.value for c in branch.children) == pytest.approx(branch.value, abs=1e-3)
    assert {"latent", "edge", "error", "embedding", "constants", "rest"} <= kinds
    assert ("skip" in kinds) == skip


def test_the_embeddings_share_is_that_of_the_model_with_all_else_frozen():
    """The whole tree of a GPT-2 without SAEs, beside embeddings that are carried through frozen patterns and
    norms by the weights of its modules."""
    subject, text, dest, latent = model("gpt2"), "Tim ran on", 3, 5
    sae = random_sae(subject, "blocks.2.hook_resid_pre")
    found = recursive_dfa(subject, sae, text, latent, dest, depth=9, width=10**6)
    total = sum(b.value for _, b in found.root.walk() if b.kind == "embedding")
    assert not any(b.kind == "rest" for _, b in found.root.walk())
    patterns = subject.attend(subject.prepare([text])).patterns
    ids = torch.tensor(subject.to_tokens(text))
    row = subject.model.transformer.wte.weight[ids].double()
    for i, block in enumerate(subject.model.transformer.h[:2]):
        pre = captured(subject, text, f"blocks.{i}.hook_resid_pre").double()
        scale = (pre.var(-1, correction=0, keepdim=True) + block.ln_1.eps).sqrt()
        normed = (row - row.mean(-1, keepdim=True)) / scale * block.ln_1.weight
        value = (normed @ block.attn.c_attn.weight.double()[:, 64:]).unflatten(1, (4, 8))
        z = torch.einsum("hqk,khd->qhd", patterns[i][0].double(), value).flatten(1)
        row = row + z @ block.attn.c_proj.weight.double()
    expected = (row[dest] @ sae.W_enc[:, latent].double() / sae.input_scale).item()
    assert total == pytest.approx(expected, abs=1e-5)
    assert abs(expected) > 1e-3


def test_an_error_node_is_what_the_sae_leaves_out():
    subject = model("gpt2")
    sae, own = random_sae(subject, "blocks.1.hook_resid_mid"), random_sae(subject, "blocks.1.attn.hook_z", 1)
    found = recursive_dfa(subject, sae, TEXT, 0, 6, [own], depth=1)
    z = captured(subject, TEXT, "blocks.1.attn.hook_z")[6]
    w = sae.W_enc[:, 0] / sae.input_scale
    left_out = subject.to_residual("blocks.1.attn.hook_z", (z - own(z[None]).x_hat)) @ w
    (error,) = [b for b in found.root.children if b.kind == "error"]
    assert (error.value, error.sae) == (pytest.approx(left_out.item(), abs=1e-5), "blocks.1.attn.hook_z")
    assert found.errors() == (0, error.value)


def weighed(edge, dest, scale):
    def patterns(layer, pattern):
        if layer == edge.layer:
            pattern[0, edge.head, dest, edge.source] *= scale
        return pattern

    return patterns


@pytest.mark.parametrize("kind", KINDS)
def test_effects_of_edges_are_slopes(kind):
    """Of the pre-activation along an edge's weight, by differences of whole passes."""
    subject = model(kind)
    for name in ("hook_resid_post", "attn.hook_z", "hook_mlp_in"):
        hook = f"blocks.{subject.n_layers - 1}.{name}"
        sae, dest = random_sae(subject, hook), 6
        found = edge_effects(subject, sae, TEXT, 3, dest)
        # blocks whose MLP runs beside attention do not read it
        assert found.layers in [tuple(range(n)) for n in (subject.n_layers - 1, subject.n_layers)]
        inputs, tried = subject.prepare([TEXT]), found.top(4)
        tried += [edge for edge in found.top(found.parts.size) if edge.layer == 0 and edge.source < dest][:2]
        for edge in tried:
            ends = []
            for scale in (0.98, 1.02):
                seen = subject.attend(inputs, [hook], patterns=weighed(edge, dest, scale), output=False)
                ends.append(pre_of(sae, seen.run.acts[hook][0, dest], 3))
            slope = (ends[1] - ends[0]) / 0.04
            assert edge.part == pytest.approx(slope, rel=0.02, abs=2e-4), (name, edge)
        assert not found.parts[:, :, dest + 1 :].any()


def test_effects_on_z_are_the_parts_of_its_layer():
    subject = model("llama")
    sae = random_sae(subject, "blocks.1.attn.hook_z")
    direct, through = (f(subject, sae, TEXT, 2, 5) for f in (dfa, edge_effects))
    np.testing.assert_allclose(through.parts[through.layers.index(1)], direct.parts[0], atol=1e-5)
    assert through.of(direct.top(3)) == pytest.approx([edge.part for edge in direct.top(3)], abs=1e-5)
    assert (through.pre, through.dest) == (pytest.approx(direct.pre, abs=1e-5), direct.dest)
    first = edge_effects(subject, random_sae(subject, "blocks.0.hook_resid_pre"), TEXT, 2, 5)
    assert (first.layers, first.parts.shape[0]) == ((), 0)
    assert "what each edge is worth" in str(through)
    assert all(p.grad is None for p in subject.model.parameters())


@pytest.mark.parametrize("hook", [hook for hook in SAE_HOOKS if "resid" in hook])
def test_gradients_foretell_what_edges_do_to_the_stream(subject, hook):
    """Where what is written directly does not, on texts that the model was not trained on."""
    sae = saelab.load_sae(saelab.embedded.sae_folder(hook))
    told, direct = [], []
    for document in saelab.corpora.world(seed=903, n_documents=4):
        text = document.text[:200]
        x = captured(subject, text, hook)
        dest = len(x) - 1
        latent = int(sae.encode(x[dest : dest + 1])[0].argmax())
        found = edge_changes(subject, sae, text, latent, dest, n=64)
        told.append(found.foretold.value)
        direct.append(found.agreement.value)
        assert found.foretold.interval[0] > found.foretold.control_interval[1], found
    assert np.mean(told) >= 0.8
    assert np.mean(told) > np.mean(direct) + 0.1


@pytest.mark.parametrize("hook", SAE_HOOKS)
def test_the_embedded_models_latents(subject, hook):
    """On texts that it was not trained on: sums, and of hook_z what happens without the edges."""
    sae = saelab.load_sae(saelab.embedded.sae_folder(hook))
    z = [saelab.load_sae(saelab.embedded.sae_folder(h)) for h in SAE_HOOKS if h.endswith("hook_z")]
    for document in saelab.corpora.world(seed=901, n_documents=3):
        text = document.text[:200]
        x = captured(subject, text, hook)
        dest = len(x) - 1
        latent = int(sae.encode(x[dest : dest + 1])[0].argmax())
        expected = pre_of(sae, x[dest], latent)
        assert dfa(subject, sae, text, latent, dest).total == pytest.approx(expected, abs=1e-4)
        tree = recursive_dfa(subject, sae, text, latent, dest, z)
        np.testing.assert_allclose(tree.sums, expected, atol=1e-3)
        if hook.endswith("hook_z"):
            found = edge_changes(subject, sae, text, latent, dest, n=48)
            assert found.agreement.value >= 0.8
            assert found.agreement.interval[0] > found.agreement.control_interval[1], found


@pytest.mark.parametrize("hook", [hook for hook in SAE_HOOKS if hook.endswith("hook_z")])
def test_latents_of_a_head_lose_their_codes_with_it(subject, hook):
    sae = saelab.load_sae(saelab.embedded.sae_folder(hook))
    corpus = saelab.corpora.world(seed=902, n_documents=40)
    found = head_losses(subject, sae, corpus, max_rows=1_500)
    above, below = found.pairs["decoder"]
    assert min(above, below) >= 30
    ratio = found.ratio["decoder"]
    assert ratio.value >= 3
    assert ratio.interval[0] > ratio.control_interval[1], found


def test_shares_of_weights_and_of_sizes():
    subject = model("gpt2")
    sae = random_sae(subject, "blocks.1.attn.hook_z", d_sae=3)
    with torch.no_grad():
        sae.W_dec.zero_()
        sae.W_enc.zero_()
        sae.W_dec[0, 8:16] = 1  # head 1 alone
        sae.W_dec[1, 0:8], sae.W_dec[1, 24:32] = 3, 1
        sae.W_enc[0:8, 1], sae.W_enc[24:32, 1] = 1, 1
    found = head_attribution(sae, 4, sizes=[3, 1, 1, 1])
    np.testing.assert_allclose(found.decoder[:2], [[0, 1, 0, 0], [0.75, 0, 0, 0.25]], atol=1e-6)
    np.testing.assert_allclose(found.encoder[1], [0.5, 0, 0, 0.5], atol=1e-6)
    np.testing.assert_allclose(found.corrected[1], [0.75, 0, 0, 0.25], atol=1e-6)
    assert np.isnan(found.decoder[2]).all()
    assert found.top(1) == [(0, 1.0), (1, 0.0)]
    assert found.measured
    assert not head_attribution(sae, 4).measured
    assert len(found.to_frame()) == 12
    with pytest.raises(RangeError, match="head must be below 4"):
        found.top(4)


def test_text_forms():
    subject = model("gpt2")
    sae = random_sae(subject, "blocks.2.hook_resid_post")
    found = dfa(subject, sae, TEXT, 1, 5)
    assert len(repr(found)) < 250
    assert "MLP 2" in str(found)
    assert found.to_frame()["part"].sum() == pytest.approx(found.parts.sum())
    tree = recursive_dfa(subject, sae, TEXT, 1, 5, depth=2)
    assert len(repr(tree)) < 250
    frame = tree.to_frame()
    assert list(frame["depth"].unique()) == [0, 1, 2]
    assert frame[frame.depth == 1]["value"].sum() == pytest.approx(tree.sums[1])


class NoHeads:
    """A subject that reads texts and has no attention."""

    n_ctx, bos_id = 8, None
    corpus = read = run = fingerprint = width = prepare = to_tokens = token_strings = prepare_tokens = None


def test_what_cannot_be_attributed_is_refused_by_name():
    subject = model("gpt2")
    sae = random_sae(subject, "blocks.1.attn.hook_z")
    with pytest.raises(SubjectError, match=r"heads can be read.*NoHeads, which lacks n_layers, attend"):
        dfa(NoHeads(), sae, TEXT, 0)
    with pytest.raises(SubjectError, match="BloomForCausalLM with layer 0, which does not"):
        dfa(zoo.language_model("bloom"), random_sae(subject, "blocks.1.attn.hook_z"), TEXT, 0)
    with pytest.raises(HookError, match=r"needs an SAE on attn.hook_z.*'blocks.1.mlp.hook_post'"):
        dfa(subject, random_sae(subject, "blocks.1.mlp.hook_post"), TEXT, 0)
    with pytest.raises(ShapeError, match=r"must be the width of blocks.1.attn.hook_z, 32\. Got 16"):
        dfa(subject, saelab.SAE.create(saelab.recipe("relu", d_in=16, d_sae=8, hook=sae.hook)), TEXT, 0)
    elsewhere = saelab.recipe("relu", d_in=32, d_sae=8, hook="blocks.7.attn.hook_z")
    with pytest.raises(HookError, match="must be one of this model's"):
        dfa(subject, saelab.SAE.create(elsewhere), TEXT, 0)
    with pytest.raises(CorpusError, match=r"Got 1 token, 'T'"):
        dfa(zoo.LanguageModel(zoo.causal_lm("gpt2"), zoo.byte_tokenizer(bos=None)), sae, "T", 0)
    with pytest.raises(RangeError, match="dest must be"):
        dfa(subject, sae, TEXT, 0, 400)
    with pytest.raises(RangeError, match="latent must be"):
        dfa(subject, sae, TEXT, 24)
    silent = random_sae(subject, "blocks.1.attn.hook_z")
    with torch.no_grad():
        silent.b_enc.fill_(-1e3)
    with pytest.raises(RangeError, match=r"fire somewhere in the text. Got latent 3.*or dest="):
        dfa(subject, silent, TEXT, 3)
    assert dfa(subject, silent, TEXT, 3, 2).code == 0
    with pytest.raises(HookError, match=r"at attn.hook_z alone. Got an SAE on blocks.1.hook_resid_post"):
        head_attribution(random_sae(subject, "blocks.1.hook_resid_post"), 4)
    with pytest.raises(ConfigError, match="n_heads must be known"):
        head_attribution(sae)
    with pytest.raises(ShapeError, match="Got 32 of 5 heads"):
        head_attribution(sae, 5)
    with pytest.raises(ShapeError, match="sizes must be 4 finite numbers"):
        head_attribution(sae, 4, [1, 2])
    with pytest.raises(HookError, match="SAEs on the way must stand for"):
        recursive_dfa(subject, sae, TEXT, 0, 3, [random_sae(subject, "blocks.0.hook_resid_post")])
    with pytest.raises(ConfigError, match="One SAE must stand for the attention of a layer"):
        recursive_dfa(subject, sae, TEXT, 0, 3, [sae, random_sae(subject, "blocks.1.hook_attn_out")])
    with pytest.raises(CorpusError, match="Some latent must fire"):
        head_losses(subject, silent, [TEXT])


def test_a_pass_leaves_the_model_as_it_was():
    subject = model("llama")
    inputs, before = subject.prepare([TEXT]), subject.model.config._attn_implementation
    expected = subject.run(inputs).output
    with pytest.raises(ZeroDivisionError):
        subject.attend(inputs, edits=[("blocks.0.hook_resid_post", lambda acts: 1 / 0)])
    assert subject.model.config._attn_implementation == before
    assert torch.equal(subject.run(inputs).output, expected)
    torch.testing.assert_close(subject.attend(inputs).run.output, expected, atol=1e-5, rtol=1e-4)


def test_maps_are_measured_anew_when_the_weights_change():
    subject, hook = zoo.language_model("gpt2"), "blocks.2.hook_resid_post"
    sae = random_sae(subject, hook)
    dfa(subject, sae, TEXT, 0, 4)
    with torch.no_grad():
        for p in subject.model.parameters():
            p.mul_(1.3)
    found = dfa(subject, sae, TEXT, 0, 4)
    assert found.total == pytest.approx(pre_of(sae, captured(subject, TEXT, hook)[4], 0), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_half_precision(dtype):
    subject = zoo.LanguageModel(zoo.causal_lm("llama").to(dtype), zoo.byte_tokenizer())
    found = dfa(subject, random_sae(subject, "blocks.2.hook_resid_post"), TEXT, 0, 4)
    assert found.total == pytest.approx(found.pre, abs=0.05)
