"""The view of heads answers what the analysis says, and says what it cannot."""

from __future__ import annotations

import headvis
import numpy as np
import pytest
import subjects_zoo as zoo
import torch
from letters import Letters

import saelab
from saelab.analysis import (
    dfa,
    edge_effects,
    head_attribution,
    head_effects,
    head_examples,
    head_readings,
    read_headvis,
    recursive_dfa,
)
from saelab.analysis.attention.looking import MOST_TOKENS, HeadSession
from saelab.analysis.results_attention import KINDS
from saelab.types import ConfigError, CorpusError, HookError, RangeError, ShapeError, StoreError, SubjectError

TEXT = "When Rosa and Tobin went to the market, Rosa gave the basket to"
Z, STREAM = "blocks.2.attn.hook_z", "blocks.2.hook_resid_post"
LATENT = 109


@pytest.fixture(scope="module")
def lab():
    return saelab.Lab.embedded()


@pytest.fixture
def view(lab):
    return lab.heads(TEXT, LATENT, sae=Z)


def fields(view, question, **args):
    return view.answer(question, args).fields


def without_head(subject, text, hook, layer, head):
    """What a hook point gives where a hook of torch's own has put 0 into a head's z."""
    own = f"blocks.{layer}.attn.hook_z"
    width = subject.width(own) // subject.n_heads

    def zeroed(module, args):
        x = args[0].clone()
        x[..., head * width : (head + 1) * width] = 0
        return (x, *args[1:])

    handle = subject._arch.points[own].module.register_forward_pre_hook(zeroed)
    try:
        x = subject.run(subject.prepare([text]), [hook], output=False).acts[hook][0]
    finally:
        handle.remove()
    # z itself is read before that hook
    return zeroed(None, (x,))[0] if hook == own else x


@pytest.mark.parametrize("name", [Z, STREAM])
def test_what_it_is_answered_is_what_the_analysis_says(lab, name):
    view, subject, sae = lab.heads(TEXT, LATENT, sae=name), lab.subject, lab.saes[name]
    where = view.answer("where", {"latent": LATENT})
    x = subject.run(subject.prepare([TEXT]), name, output=False).acts[name][0]
    with torch.no_grad():
        out = sae(x)
    pre, codes = out.pre[:, LATENT].numpy(), out.codes[:, LATENT].numpy()
    np.testing.assert_allclose(where.fields["pre"], pre, atol=1e-5)
    np.testing.assert_allclose(where.fields["codes"], codes, atol=1e-5)
    dest = int(np.abs(codes).argmax()) if codes.any() else int(pre.argmax())
    assert (where.header["dest"], where.header["fires"]) == (dest, bool(codes.any()))
    found = dfa(subject, sae, TEXT, LATENT, dest)
    told = view.answer("dfa", {"latent": LATENT, "dest": dest})
    np.testing.assert_allclose(told.fields["parts"], found.parts, atol=1e-6)
    assert told.header["layers"] == list(found.layers)
    assert told.header["pre"] == pytest.approx(float(pre[dest]), rel=1e-4)
    patterns = subject.attend(subject.prepare([TEXT])).patterns
    for layer in range(subject.n_layers):
        own = patterns[layer][0].detach().numpy()
        np.testing.assert_allclose(told.fields["weights"][layer] / 65535, own[:, dest], atol=1e-5)
        shown = fields(view, "pattern", layer=layer, head=3)["weights"] / 65535
        np.testing.assert_allclose(shown, own[3], atol=1e-5)
    for layer, head in ((0, 1), (2, 3)):
        lost = fields(view, "without", latent=LATENT, dest=dest, layer=layer)["effects"][head]
        with torch.no_grad():
            after = sae(without_head(subject, TEXT, name, layer, head)[dest : dest + 1]).pre[0, LATENT]
        assert lost == pytest.approx(float(pre[dest]) - float(after), abs=1e-4)
    worth = view.answer("gradient", {"latent": LATENT, "dest": dest})
    slopes = edge_effects(subject, sae, TEXT, LATENT, dest)
    assert worth.header["layers"] == list(slopes.layers)
    np.testing.assert_allclose(worth.fields["parts"], slopes.parts, atol=1e-6)
    effects = view.answer("effects", {"latent": LATENT, "dest": dest})
    alone = head_effects(subject, sae, TEXT, LATENT, dest)
    np.testing.assert_allclose(effects.fields["effects"], alone.effects, atol=1e-5)
    assert effects.header["agreement"]["value"] == pytest.approx(alone.agreement.value, rel=1e-4)
    assert effects.header["average"] == pytest.approx(alone.average, rel=1e-4)


def test_measures_of_patterns(view, lab):
    told = view.answer("told", {})
    pattern = lab.subject.attend(lab.subject.prepare([TEXT])).patterns[1][0, 5].detach().double().numpy()
    rows = range(1, len(pattern))
    by_hand = {
        "self": np.mean([pattern[q, q] for q in rows]),
        "previous": np.mean([pattern[q, q - 1] for q in rows]),
        "first": np.mean([pattern[q, 0] for q in rows]),
        "distance": np.mean([sum(pattern[q, k] * (q - k) for k in range(q + 1)) for q in rows]),
        "spread": np.mean([-sum(p * np.log(p) for p in pattern[q] if p > 0) for q in rows]),
    }
    even = {name: value for name, _, value in told.header["measures"]}
    for name, value in by_hand.items():
        assert told.fields[name][1, 5] == pytest.approx(value, rel=1e-4), name
    assert even["distance"] == pytest.approx(np.mean([q / 2 for q in rows]), rel=1e-5)
    assert even["self"] == even["previous"] == pytest.approx(np.mean([1 / (q + 1) for q in rows]), rel=1e-5)
    assert even["spread"] == pytest.approx(np.mean([np.log(q + 1) for q in rows]), rel=1e-5)


def test_a_tree_sums_at_every_branch(view, lab):
    dest = view.answer("where", {"latent": LATENT}).header["dest"]
    told = view.answer("tree", {"latent": LATENT, "dest": dest, "depth": 3, "width": 2})
    saes = [lab.saes["blocks.1.attn.hook_z"]]
    tree = recursive_dfa(lab.subject, lab.saes[Z], TEXT, LATENT, dest, saes, depth=3, width=2)
    branches = list(tree.root.walk())
    f, kinds = told.fields, [name for name, _ in told.header["kinds"]]
    assert kinds == list(KINDS)
    assert [kinds[k] for k in f["kind"]] == [b.kind for _, b in branches]
    np.testing.assert_allclose(f["value"], [b.value for _, b in branches], atol=1e-6)
    sums = np.zeros(len(branches))
    np.add.at(sums, f["parent"][1:], f["value"][1:])
    inner = np.flatnonzero(np.bincount(f["parent"][1:], minlength=len(branches)))
    assert len(inner) > 5
    np.testing.assert_allclose(sums[inner], f["value"][inner], atol=1e-5)
    # latents of the SAE on the way are called as the Lab calls its latents
    at = [i for i, (_, b) in enumerate(branches) if b.sae == "blocks.1.attn.hook_z" and b.kind == "latent"]
    names = lab.source("blocks.1.attn.hook_z").table().names
    assert at
    assert all(f["called"][i] == names[f["latent"][i]] for i in at)
    assert {told.header["saes"][f["sae"][i]] for i in at} == {"blocks.1.attn.hook_z"}
    assert any(b.kind == "error" for _, b in branches)


def test_latents_of_a_head(view, lab):
    told = head_attribution(lab.saes[Z], 8)
    lists = view.answer("top", {"layer": 2, "head": 3}).header["lists"]
    assert [(each["sae"], each["kind"]) for each in lists] == [("", "decoder"), ("", "encoder")]
    for each in lists:
        expected = told.top(3, 10, each["kind"])
        assert [j for j, _, _ in each["latents"]] == [j for j, _ in expected]
    (other,) = view.answer("top", {"layer": 1, "head": 0}).header["lists"]
    assert other["sae"] == "blocks.1.attn.hook_z"
    assert other["latents"][0][0] == head_attribution(lab.saes["blocks.1.attn.hook_z"], 8).top(0, 1)[0][0]
    shares = fields(view, "shares", latent=LATENT)
    np.testing.assert_allclose(shares["decoder"][2], told.decoder[LATENT], atol=1e-6)
    assert np.isnan(shares["decoder"][[0, 1, 3]]).all()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_what_an_encoder_reads_that_a_head_can_write(kind):
    """By the model's own weights."""
    subject = zoo.language_model(kind)
    hook = "blocks.1.hook_resid_mid"
    config = saelab.recipe("relu", d_in=subject.width(hook), d_sae=6, hook=hook)
    sae = saelab.SAE.create(config, 0)
    found = head_readings(subject, sae)
    w = sae.W_enc.detach().double().numpy()
    sizes = np.zeros((6, 2, subject.n_heads))
    for layer, block in enumerate(subject._arch.layers[:2]):
        out = block.attn.c_proj.weight if kind == "gpt2" else block.self_attn.o_proj.weight.t()
        each = out.detach().double().numpy().reshape(subject.n_heads, -1, len(w))
        sizes[:, layer] = np.linalg.norm(each @ w, axis=1).T
    np.testing.assert_allclose(found, sizes / sizes.sum((1, 2), keepdims=True), rtol=1e-4)
    config = saelab.recipe("relu", d_in=subject.width(hook), d_sae=6, hook="blocks.0.hook_resid_pre")
    with pytest.raises(HookError, match="a head before it"):
        head_readings(subject, saelab.SAE.create(config, 0))


def test_a_latent_that_is_silent_is_said_to_be(lab):
    codes = lab.codes(TEXT, sae=Z)
    silent = int(np.setdiff1d(np.arange(lab.saes[Z].d_sae), codes.codes.indices)[0])
    view = lab.heads(TEXT, silent, sae=Z)
    assert not view.answer("where", {"latent": silent}).header["fires"]
    assert "does not fire on this text" in repr(view)
    assert f"latent {silent} at" in repr(view)


def test_an_sae_of_another_hook_point_leaves_the_patterns(lab):
    hook = "blocks.1.mlp.hook_post"
    config = saelab.recipe("topk", d_in=lab.subject.width(hook), d_sae=16, k=4, hook=hook)
    other = saelab.Lab(lab.subject, saelab.SAE.create(config, 0))
    view = other.heads(TEXT, 3)
    told = view.answer("told", {}).header
    assert (told["kind"], view.colour, told["before"]) == ("", "attention", [])
    assert told["why"].startswith("Attribution to heads needs an SAE on attn.hook_z")
    assert told["why"] in repr(view)
    assert "most in" in repr(view)
    assert fields(view, "pattern", layer=0, head=0)["weights"].shape == (25, 25)
    with pytest.raises(HookError):
        view.answer("where", {"latent": 3})


def test_what_cannot_be_shown_is_refused(lab, small_lab):
    with pytest.raises(SubjectError, match="A view of heads needs"):
        saelab.Lab(Letters(), small_lab.sae).heads("abc")
    alone = zoo.LanguageModel(zoo.causal_lm("gpt2"), zoo.byte_tokenizer(bos=None))
    hook = "blocks.1.attn.hook_z"
    config = saelab.recipe("relu", d_in=alone.width(hook), d_sae=8, hook=hook)
    with pytest.raises(CorpusError, match="a token to attend to"):
        saelab.Lab(alone, saelab.SAE.create(config, 0)).heads("T")
    with pytest.raises(RangeError, match="dest must be"):
        lab.heads(TEXT, LATENT, dest=99, sae=Z)
    with pytest.raises(ConfigError, match="colour must be"):
        lab.heads(TEXT, LATENT, colour="red", sae=Z)
    with pytest.raises(RangeError):
        lab.heads(TEXT, 1_000_000, sae=Z)
    session = HeadSession(lab.subject, lab.saes[Z])
    session.read(TEXT)
    with pytest.raises(ConfigError, match="come before the latent, \\[0, 1, 2\\]"):
        session.without(LATENT, 5, 3)
    assert MOST_TOKENS > lab.subject.n_ctx


def test_a_latent_of_another_sae_is_chosen(lab):
    view = lab.heads(TEXT, LATENT, sae=Z)
    before = lab.selection.sae, lab.selection.latent
    view.answer("choose", {"sae": "blocks.1.attn.hook_z", "latent": 7})
    assert (lab.selection.sae, lab.selection.latent) == ("blocks.1.attn.hook_z", 7)
    lab.selection.sae, lab.selection.latent = before
    card = view.answer("other_card", {"sae": "blocks.1.attn.hook_z", "latent": 7}).header
    assert card["latent"] == 7


def test_of_a_large_model_parts_are_told_when_they_are_asked_for(lab, monkeypatch):
    monkeypatch.setattr("saelab.analysis.attention.looking.SMALL", 1)
    view = lab.heads(TEXT, LATENT, sae=Z)
    assert {ask.question for ask in view.first()} == {"told", "codes"}
    assert f"latent {LATENT}: who wrote it is told when the view asks" in repr(view)
    assert "+0.60" not in view.html()
    view.answer("dfa", {"latent": LATENT, "dest": 18})
    assert "+0.6043  2.3  from 15 ','" in repr(view)
    assert "+0.60" in view.html()


def test_a_page_has_what_was_asked_for(view):
    asked = {ask.key() for ask in view.exported()}
    n = len(view.session.tokens)
    assert sum(key.startswith("dfa?") for key in asked) == n
    assert sum(key.startswith("pattern?") for key in asked) == 4 * 8
    assert not any(key.startswith(("check", "effects", "prefix", "induction")) for key in asked)
    view.answer("check", {"latent": LATENT, "dest": 18})
    view.answer("prefix", {"length": 2})
    more = {ask.key() for ask in view.exported()} - asked
    assert more == {f"check?dest=18&latent={LATENT}", "prefix?length=2"}
    assert f"#{LATENT}" in view.left_out()
    form = view.html()
    assert "<script" not in form
    assert "+0.60" in form


def test_what_a_head_does_over_a_corpus_is_what_the_analysis_says(lab):
    texts = saelab.corpora.world(seed=44, n_documents=12)
    found = head_examples(lab.subject, texts, n=3, drawn=1)
    view = lab.heads(TEXT, LATENT, sae=Z, examples=found, colour="corpus")
    own, told = found.head(2, 3), view.answer("examples", {"layer": 2, "head": 3})
    header, f = told.header, told.fields
    assert header["n"] == 12
    at = edge = 0
    for each, sent in zip(own.sequences, header["sequences"], strict=True):
        assert (sent["document"], sent["best"]) == (each.document, each.best)
        names = f["names"][at : at + sent["tokens"]]
        assert "".join(name or "" for name in names) == "".join(each.tokens)
        last = edge + sent["edges"]
        np.testing.assert_array_equal(f["pairs"][edge:last], each.edges)
        np.testing.assert_allclose(f["weights"][edge:last] / 65535, each.weights, atol=1e-5)
        at, edge = at + sent["tokens"], last
    assert len(f["names"]) == at
    for sent, each in zip(header["keys"], own.keys, strict=True):
        assert (sent[0], sent[5]) == (each.token, each.apart)
        np.testing.assert_allclose(sent[1:5], each[1:], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(header["away"], own.away, rtol=1e-5)
    assert sum(header["strongest"]) == 12
    matrices = view.answer("corpus", {})
    for (name, what, even), (key, each) in zip(
        matrices.header["measures"], found.measures.items(), strict=True
    ):
        assert (name, what) == (key, each.what)
        assert even == pytest.approx(each.even, rel=1e-5)
        np.testing.assert_allclose(matrices.fields[name], each.values, rtol=1e-5)
    # a page has those that were asked for
    asked = {ask.key() for ask in view.exported() if ask.question in ("corpus", "examples")}
    assert asked == {"corpus", "examples?head=3&layer=2"}


def test_without_examples_the_documents_of_the_store_are_read(lab):
    view = lab.heads(TEXT, LATENT, sae=Z)
    store = lab.source(Z).questions["store"]()
    found = view.answer("examples", {"layer": 0, "head": 0}).header
    assert found["n"] == store.n_documents
    with pytest.raises(RangeError, match="one of the 32 that are known"):
        view.answer("examples", {"layer": 9, "head": 0})
    bare = saelab.Lab(lab.subject, lab.saes[Z]).heads(TEXT, LATENT)
    with pytest.raises(StoreError, match="Got none with texts"):
        bare.answer("examples", {"layer": 0, "head": 0})


def test_a_folder_of_headvis_is_shown(lab, tmp_path):
    """Of a model of as many layers and heads; another is refused."""
    files = headvis.contents()
    files["config.json"] |= {"n_layers": 4, "n_heads": 8}
    view = lab.heads(TEXT, LATENT, sae=Z, examples=read_headvis(headvis.written(tmp_path, files)))
    told = view.answer("examples", {"layer": 1, "head": 0}).header
    assert [each["interval"] for each in told["sequences"]] == [3, 3, 2, 2, 1, 1, 1]
    assert told["measures"][0][1:] == [1.0, None, None, None]
    assert np.isnan(view.answer("corpus", {}).fields["previous"][3, 7])
    small = read_headvis(headvis.written(tmp_path / "other"))
    with pytest.raises(ShapeError, match=r"4 layers of 8 heads\. Got 2 of 2, of a/model"):
        lab.heads(TEXT, LATENT, sae=Z, examples=small)
    with pytest.raises(ConfigError, match=r"examples must be HeadExamples\. Got str"):
        lab.heads(TEXT, LATENT, sae=Z, examples="folder")
