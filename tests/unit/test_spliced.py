"""`spliced`: SAEs in the place of what they stand for, against hooks written by hand, finite differences and
edits that are known."""

from __future__ import annotations

import contextlib

import pytest
import subjects_zoo as zoo
import torch
from test_sae_edits import sae_of

import saelab
from saelab.interventions import Reconstruct, Scale, applied
from saelab.types import ConfigError, HookError, HookPoint

EARLY, MID, LATE = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"
READ, WRITTEN = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
FAULT = "of the user's own"


@pytest.fixture(scope="module")
def gpt2():
    return zoo.language_model("gpt2")


@pytest.fixture
def inputs(gpt2):
    return gpt2.prepare(zoo.TEXTS)


def transcoder(width: int = 32):
    return sae_of("skip_transcoder", READ, width, d_out=width, hook_out=WRITTEN)


def by_hand(sae, x):
    """relu SAE of normalise="scalar", as its docstring has it."""
    codes = torch.relu((x / sae.input_scale - sae.b_in()) @ sae.W_enc + sae.b_enc)
    return codes, (codes @ sae.W_dec + sae.b_dec) * sae.input_scale


@contextlib.contextmanager
def hook(module, change):
    """The main tensor of what a module gives, changed."""

    def after(module, args, output):
        return change(output) if isinstance(output, torch.Tensor) else (change(output[0]), *output[1:])

    handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


# --- what the model makes of it


@pytest.mark.parametrize("bare", [True, False])
def test_the_bare_model_and_the_subject_give_what_a_hook_by_hand_does(gpt2, inputs, bare):
    sae, counted = sae_of("relu"), torch.from_numpy(inputs.counted)
    seen = {}

    def change(x):
        seen["codes"], x_hat = by_hand(sae, x)
        return torch.where(counted[..., None], x_hat, x)

    with torch.no_grad(), hook(gpt2.model.transformer.h[1], change):
        expected = gpt2.model(**inputs.data).logits
    with torch.no_grad(), saelab.spliced(gpt2.model if bare else gpt2, {MID: sae}, error=False) as splices:
        found = gpt2.model(**inputs.data).logits
        assert torch.equal(gpt2.run(inputs).output, found)
        later = gpt2.run(inputs, read=[MID, LATE]).acts
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    codes = splices.codes[MID]
    torch.testing.assert_close(codes[counted], seen["codes"][counted], atol=1e-5, rtol=1e-5)
    assert not codes[~counted].any()
    assert not counted.all()
    assert splices.codes[HookPoint(MID)] is codes
    plain = gpt2.run(inputs, read=[MID, LATE])
    assert torch.equal(later[MID], plain.acts[MID]), "read before it is spliced"
    assert not torch.allclose(later[LATE], plain.acts[LATE])
    assert not torch.allclose(plain.output, found)
    assert not zoo.hooks_of(gpt2.model)


def test_two_saes_and_a_transcoder_at_once_are_three_reconstructions(gpt2, inputs):
    saes = [sae_of("topk", EARLY), transcoder(), sae_of("jumprelu", LATE)]
    run = gpt2.run(inputs, read=[EARLY, READ, WRITTEN, LATE], edits=[Reconstruct(sae) for sae in saes])
    mapping = {EARLY: saes[0], READ: saes[1], LATE: saes[2]}
    for given in (saes, mapping, list(reversed(saes))):
        with torch.no_grad(), saelab.spliced(gpt2.model, given, error=False) as splices:
            found = gpt2.model(**inputs.data).logits
        torch.testing.assert_close(found, run.output)
    assert set(splices.codes) == {EARLY, READ, LATE}
    before = gpt2.run(inputs, read=READ, edits=Reconstruct(saes[0])).acts[READ]
    counted = torch.from_numpy(inputs.counted)
    torch.testing.assert_close(splices.codes[READ][counted], saes[1].encode(before)[counted].detach())
    assert not splices.errors


def test_with_errors_the_output_keeps_every_bit_and_they_are_what_is_left_out(gpt2, inputs):
    saes, counted = [sae_of("topk", EARLY), transcoder(), sae_of("abs_topk", LATE)], inputs.counted
    plain = gpt2.run(inputs, read=[EARLY, READ, WRITTEN, LATE])
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded), saelab.spliced(gpt2, saes) as splices:
            assert torch.equal(gpt2.model(**inputs.data).logits, plain.output)
        for sae, (x, y) in zip(saes, [(EARLY, EARLY), (READ, WRITTEN), (LATE, LATE)], strict=True):
            left = (plain.acts[y] - sae(plain.acts[x]).x_hat).detach()[counted]
            torch.testing.assert_close(splices.errors[x][counted].detach(), left, atol=1e-5, rtol=1e-5)
            assert not splices.errors[x][~counted].any()
            assert left.norm(dim=-1).min() > 0.1, "errors of nothing prove nothing"


@pytest.mark.parametrize("normalise", ["none", "scalar", "layernorm", "zscore", "sphere"])
def test_scales_of_the_rows_are_undone(gpt2, inputs, normalise):
    sae = sae_of("topk", normalise=normalise)
    x = gpt2.run(inputs, read=MID).acts[MID]
    with torch.no_grad(), saelab.spliced(gpt2, sae, error=False) as splices:
        found = gpt2.model(**inputs.data).logits
    counted = torch.from_numpy(inputs.counted)
    torch.testing.assert_close(splices.codes[MID][counted], sae.encode(x).detach()[counted])
    with torch.no_grad():
        x_hat = torch.where(counted[..., None], sae.decode(sae.encode(x), sae.scale(x)), x)
    torch.testing.assert_close(found, gpt2.run(inputs, edits=(MID, lambda acts: x_hat)).output)


def test_bos_is_spliced_where_asked_and_padding_never(gpt2, inputs):
    sae, lengths = sae_of("relu"), inputs.lengths
    with torch.no_grad(), saelab.spliced(gpt2.model, sae, everywhere=True) as splices:
        gpt2.model(**inputs.data)
        codes = splices.codes[MID]
        for sample, n in enumerate(lengths):
            assert codes[sample, :n].any(-1).all()
            assert not codes[sample, n:].any()
        gpt2.model(torch.tensor([[gpt2.bos_id]]))
        assert splices.codes[MID].any()
    with torch.no_grad(), saelab.spliced(gpt2.model, sae) as splices:
        gpt2.model(**inputs.data)
        before = splices.codes
        plain = gpt2.model(torch.tensor([[gpt2.bos_id]])).logits
    assert before[MID].any(), "each pass has its own"
    assert splices.codes[MID].shape == (1, 1, 48)
    assert not splices.codes[MID].any()
    assert splices.errors[MID].shape == (1, 1, 32)
    assert torch.equal(plain, gpt2.run(gpt2.prepare_tokens([[gpt2.bos_id]])).output)


def test_models_of_half_precision_keep_theirs():
    subject = zoo.language_model("llama")
    subject.module.to(torch.bfloat16)
    inputs = subject.prepare(zoo.TEXTS)
    saes = [sae_of("topk", EARLY), transcoder()]
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded), saelab.spliced(subject, saes) as splices:
            assert torch.equal(subject.model(**inputs.data).logits, subject.run(inputs).output)
    with saelab.spliced(subject, saes, error=False) as splices:
        found = subject.model(**inputs.data).logits
        found.float().square().mean().backward()
    assert found.dtype == torch.bfloat16
    assert splices.codes[READ].dtype == splices.codes[READ].grad.dtype == torch.float32
    assert splices.codes[EARLY].grad.any()
    edits = [Reconstruct(sae) for sae in saes]
    assert torch.equal(found, subject.run(inputs, edits=edits).output)


def test_a_network_of_ones_own_is_spliced_at_its_modules():
    cnn, images = zoo.cnn().eval(), torch.stack(zoo.images(2))
    sae = sae_of("relu", "1.0", 8)
    with torch.no_grad():
        with hook(cnn[1][0], lambda own: by_hand(sae, own.permute(0, 2, 3, 1))[1].permute(0, 3, 1, 2)):
            expected = cnn(images)
        with saelab.spliced(cnn, {"1.0": sae}, error=False) as splices:
            torch.testing.assert_close(cnn(images), expected, atol=1e-5, rtol=1e-5)
        with saelab.spliced(cnn, {"1.0": sae}):
            kept = cnn(images)
        assert torch.equal(kept, cnn(images))
    assert splices.codes["1.0"].shape == (2, images[0, 0].numel(), 48)


# --- gradients


@pytest.mark.parametrize("error", [True, False])
def test_gradients_of_codes_are_finite_differences(error):
    subject = zoo.language_model("gpt2")
    subject.module.double()
    inputs = subject.prepare(zoo.TEXTS)
    sae = sae_of("relu", normalise="zscore").double()
    x = subject.run(inputs, read=MID).acts[MID]
    with torch.no_grad():
        codes, scale = sae.encode(x), sae.scale(x)
        left = x - sae.decode(codes, scale)
    wanted = torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss_of(logits):
        return (logits * wanted)[inputs.counted].square().mean()

    def moved(at, by):
        z = codes.clone()
        z[at] += by
        x_hat = sae.decode(z, scale) + (left if error else 0)
        new = torch.where(torch.from_numpy(inputs.counted)[..., None], x_hat, x)
        with torch.no_grad():
            return loss_of(subject.run(inputs, edits=(MID, lambda acts: new)).output)

    with saelab.spliced(subject.model, {MID: sae}, error) as splices:
        loss = loss_of(subject.model(**inputs.data).logits)
    (found,) = torch.autograd.grad(loss, splices.codes[MID], retain_graph=True)
    firing = (codes != 0).nonzero()
    at = [tuple(row) for row in firing[inputs.counted[firing[:, 0], firing[:, 1]]][::97].tolist()]
    assert len(at) >= 5
    for place in at:
        expected = (moved(place, 1e-5) - moved(place, -1e-5)) / 2e-5
        torch.testing.assert_close(found[place], expected, rtol=1e-5, atol=1e-9)
    splices.codes[MID].grad = None
    loss.backward()
    assert torch.equal(splices.codes[MID].grad, found)
    assert sae.b_enc.grad.any()


def test_errors_are_constants_that_have_a_gradient(gpt2, inputs):
    """Of a first SAE the error takes no gradient on to what comes before; its own is that of the output."""
    sae = sae_of("relu", EARLY)
    x = gpt2.run(inputs, read=EARLY, grad=True)
    (expected,) = torch.autograd.grad(x.output.square().mean(), x.acts[EARLY])
    with saelab.spliced(gpt2, sae) as splices:
        gpt2.model(**inputs.data).logits.square().mean().backward()
    gradient, counted = splices.errors[EARLY].grad, inputs.counted
    torch.testing.assert_close(gradient[counted], expected[counted], atol=1e-6, rtol=1e-4)
    through = gradient @ (sae.W_dec * sae.input_scale).T
    torch.testing.assert_close(splices.codes[EARLY].grad[counted], through[counted], atol=1e-6, rtol=1e-4)
    gpt2.model.zero_grad()


def test_frozen_models_and_saes_have_gradients_of_codes_too(inputs):
    subject, sae = zoo.language_model("gpt2"), sae_of("topk")
    for parameter in [*subject.module.parameters(), *sae.parameters()]:
        parameter.requires_grad_(False)
    with saelab.spliced(subject, sae, error=False) as splices:
        loss = subject.model(**inputs.data).logits.square().mean()
        assert torch.autograd.grad(loss, splices.codes[MID])[0].any()
        assert subject.run(inputs, grad=True).output.requires_grad
        assert not subject.run(inputs).output.requires_grad
    with torch.no_grad(), saelab.spliced(subject, sae) as splices:
        subject.model(**inputs.data)
    assert not splices.codes[MID].requires_grad


# --- contexts


def test_contexts_nest_and_leave_nothing(gpt2, inputs):
    first, second = sae_of("topk", EARLY), sae_of("topk", LATE)
    with torch.no_grad():
        plain = gpt2.model(**inputs.data).logits
        with saelab.spliced(gpt2, first, error=False) as outer:
            alone = gpt2.model(**inputs.data).logits
            kept = outer.codes[EARLY]
            with saelab.spliced(gpt2.model, second, error=False) as inner:
                both = gpt2.model(**inputs.data).logits
                assert set(inner.codes) == {LATE}
                assert torch.equal(outer.codes[EARLY], kept)
                assert outer.codes[EARLY] is not kept
            assert torch.equal(gpt2.model(**inputs.data).logits, alone)
        assert torch.equal(gpt2.model(**inputs.data).logits, plain)
    edits = [Reconstruct(first), Reconstruct(second)]
    torch.testing.assert_close(both, gpt2.run(inputs, edits=edits).output)
    assert not zoo.hooks_of(gpt2.model)
    assert "generate" not in vars(gpt2.model)


def test_edits_of_latents_come_before_or_after(gpt2, inputs):
    sae = sae_of("relu")
    off = Scale(sae, latents=range(24), factor=0.0)
    with torch.no_grad(), saelab.spliced(gpt2, sae) as splices, applied(gpt2, off):
        after = gpt2.model(**inputs.data).logits
        plain = splices.codes[MID]
    assert torch.equal(after, gpt2.run(inputs, edits=off).output)
    with torch.no_grad(), applied(gpt2, off), saelab.spliced(gpt2, sae) as splices:
        assert torch.equal(gpt2.model(**inputs.data).logits, after)
    assert plain[..., :24].any()
    assert not torch.allclose(splices.codes[MID], plain)


def test_a_failing_pass_leaves_no_hook_and_the_model_as_it_was(gpt2, inputs):
    plain = gpt2.run(inputs).output
    with pytest.raises(ValueError, match=FAULT), saelab.spliced(gpt2, sae_of("topk")):
        raise ValueError(FAULT)

    def fails(acts):
        raise ValueError(FAULT)

    for _ in range(20):
        with (
            pytest.raises(ValueError, match=FAULT),
            saelab.spliced(gpt2, sae_of("topk")),
            applied(gpt2, (LATE, fails)),
        ):
            gpt2.model(**inputs.data)
        assert not zoo.hooks_of(gpt2.model)
    assert torch.equal(gpt2.run(inputs).output, plain)


def test_it_writes_what_the_model_does_with_errors_and_what_the_subject_does_without(gpt2):
    given = gpt2.prepare([zoo.TEXTS[1]]).data
    own = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    sae = sae_of("topk", EARLY)
    plain = gpt2.model.generate(**given, **own)
    with saelab.spliced(gpt2.model, sae) as splices:
        assert torch.equal(gpt2.model.generate(**given, **own), plain)
    assert splices.codes[EARLY].shape == (1, 1, 48), "of the last step"
    with saelab.spliced(gpt2.model, sae, error=False):
        written = gpt2.model.generate(**given, **own)[0, given["input_ids"].shape[1] :]
    steps = gpt2.stream(zoo.TEXTS[1], Reconstruct(sae), max_new_tokens=6)
    assert written.tolist() == [int(step.ids[0]) for step in steps]


def test_what_has_no_meaning_is_refused(gpt2, inputs):
    crosscoder = saelab.SAE.create(
        saelab.recipe("crosscoder", d_in=64, d_sae=48, hooks=(EARLY, LATE), widths=(32, 32))
    )
    sae, code = sae_of("topk"), transcoder()
    late = sae_of("topk", WRITTEN)
    cnn = zoo.cnn().eval()
    path = sae_of("relu", "1.0", 8)
    for model, saes, kind, message in (
        (gpt2, [sae, sae_of("relu")], HookError, f"Got two for {MID!r}"),
        (gpt2, [code, late], HookError, f"Got two for {WRITTEN!r}"),
        (cnn, {"1.0.relu": path, "0.relu": path}, HookError, "Got two for"),
        (cnn, {"1.0@all": path}, HookError, "spliced into one call. Got '1.0@all'"),
        (gpt2, {EARLY: crosscoder}, ConfigError, "Got a crosscoder of blocks.0"),
        (gpt2, [crosscoder], ConfigError, "Got a crosscoder of blocks.0"),
        (gpt2, {EARLY: code}, HookError, f"that it reads, {READ!r}. Got {EARLY!r}"),
        (gpt2, {}, ConfigError, "saes must be {hook: sae}"),
        (gpt2, None, ConfigError, "saes must be {hook: sae}"),
        (gpt2, {MID: "topk"}, ConfigError, "sae must be an SAE"),
        (gpt2, {"blocks.9.hook_resid_post": sae}, HookError, "blocks.9"),
        (gpt2, {"blocks.1.attn.hook_pattern": sae}, HookError, "only TransformerBridge has"),
    ):
        with pytest.raises(kind, match=message.replace("{", r"\{").replace("}", r"\}")):
            with saelab.spliced(model, saes):
                pass
    with saelab.spliced(gpt2.model, sae), pytest.raises(HookError, match="in a context around this one"):
        with saelab.spliced(gpt2, {MID: sae_of("relu")}):
            pass
    with saelab.spliced(gpt2.model, sae) as splices:
        with pytest.raises(HookError, match="once a pass was made"):
            splices.codes[MID]
        gpt2.model(**inputs.data)
        with pytest.raises(HookError, match=r"of a spliced SAE.*Got 'blocks.0.hook_resid_post'"):
            splices.codes[EARLY]
        with pytest.raises(HookError, match="Got a pass through TransformerBridge"):
            gpt2.run(inputs, read="blocks.0.attn.hook_pattern")
    assert not zoo.hooks_of(gpt2.model)
    assert not zoo.hooks_of(cnn)
