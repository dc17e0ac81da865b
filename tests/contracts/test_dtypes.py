"""The whole path in half and in double precision, of models and of SAEs, as on a GPU."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import subjects_zoo as zoo
import torch

import saelab
from saelab.analysis import logit_lens
from saelab.analysis.logits import direct_logits
from saelab.types import SaelabError, SubjectError

HOOK = "blocks.1.hook_resid_post"
CORPUS = [f"{text} {n}" for n in range(8) for text in zoo.TEXTS]
HALF = {torch.bfloat16: 2**-8, torch.float16: 2**-11}
MODELS = [torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(scope="module")
def trained():
    """An SAE of 64 latents, on the model in float32."""
    subject = zoo.language_model("llama")
    rows = saelab.stream(subject, CORPUS, HOOK, buffer_rows=256)
    config = saelab.recipe("topk", d_in=32, d_sae=64, k=4, hook=HOOK)
    return saelab.train(config, rows, steps=30, batch_size=64, seed=0, progress=False).sae.eval()


def subject_in(dtype, kind="llama"):
    return saelab.LanguageModel(zoo.causal_lm(kind).to(dtype), zoo.byte_tokenizer())


@pytest.mark.parametrize("own", [True, False], ids=["SAE in that dtype", "SAE in float32"])
@pytest.mark.parametrize("dtype", MODELS, ids=str)
def test_the_whole_path(trained, dtype, own, tmp_path):
    subject = subject_in(dtype)
    sae = copy.deepcopy(trained).to(dtype=dtype if own else torch.float32)
    exact = zoo.language_model("llama")

    acts = saelab.harvest(subject, CORPUS, HOOK, tmp_path / "acts", max_rows=128, progress=False)
    config = saelab.recipe("topk", d_in=32, d_sae=48, k=4, hook=HOOK)
    run = saelab.train(config, acts, steps=2, batch_size=32, seed=0, progress=False)
    assert np.isfinite(run.history[-1].fvu)

    # rounding moves codes that are about as large as the last one that is kept: some, and by little
    told = [saelab.evaluate(s, m, CORPUS, max_rows=128) for s, m in ((sae, subject), (trained, exact))]
    assert told[0].sae.fvu == pytest.approx(told[1].sae.fvu, abs=0.05)
    assert told[0].sae.l0 == pytest.approx(told[1].sae.l0, abs=0.05)

    store = saelab.index(subject, sae, CORPUS, tmp_path / "features", max_rows=128, progress=False)
    lab = saelab.Lab(subject, sae, store)
    x = acts.acts(np.arange(64)).to(sae.dtype)
    latent = int(sae.encode(x).abs().sum(0).argmax())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of torch, that dtypes were mixed
        lab.feature(latent)
        lab.features()
        lab.tokens(zoo.TEXTS[0])
    lens = logit_lens(sae, subject, latent, n=5)
    assert all(np.isfinite(value) for _, value in (*lens.top, *lens.bottom))

    inputs = subject.prepare(zoo.TEXTS)
    plain = subject.run(inputs).output
    edits = saelab.interventions
    for edit in (edits.Scale(sae, [latent], 3.0), edits.Reconstruct(sae)):
        edited = subject.run(inputs, edits=[edit]).output
        assert edited.dtype == plain.dtype
        assert edited.isfinite().all()
        assert not torch.equal(edited, plain)

    again = saelab.load_sae(sae.save(tmp_path / "sae"), dtype=sae.dtype)
    assert torch.equal(again.encode(x), sae.encode(x))


@pytest.mark.parametrize("hook", [HOOK, "blocks.1.attn.hook_z", "blocks.1.mlp.hook_post"])
@pytest.mark.parametrize("dtype", list(HALF), ids=str)
def test_a_lens_of_half_weights_is_that_of_their_values(dtype, hook):
    """Tokens are ordered by float32 numbers: those of a model that has the rounded weights in float32."""
    model = zoo.causal_lm("llama").to(dtype)
    half = saelab.LanguageModel(model, zoo.byte_tokenizer())
    exact = saelab.LanguageModel(copy.deepcopy(model).float(), zoo.byte_tokenizer())
    config = saelab.recipe("topk", d_in=exact.width(hook), d_sae=16, k=2, hook=hook)
    sae = saelab.SAE.create(config, seed=1)
    for kind in (torch.float32, dtype):
        own = copy.deepcopy(sae).to(kind)
        expected = direct_logits(copy.deepcopy(own).float(), exact, list(range(16)))
        got = direct_logits(own, half, list(range(16)))
        error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        # of the derivative, which the model gives in its own precision; with products in it 0.75 and more
        assert error < 0.6 * HALF[dtype]


def test_an_sae_without_numbers_is_refused_in_a_sentence(trained, tmp_path):
    subject, sae = zoo.language_model("llama"), copy.deepcopy(trained).to("meta")
    store = saelab.index(subject, trained, CORPUS, tmp_path / "f", max_rows=64, progress=False)
    inputs = subject.prepare(zoo.TEXTS)
    calls = [
        lambda: sae.encode(torch.zeros(2, 32)),
        lambda: saelab.evaluate(sae, subject, CORPUS, max_rows=64),
        lambda: saelab.index(subject, sae, CORPUS, tmp_path / "g", max_rows=64, progress=False),
        lambda: saelab.Lab(subject, sae, store).tokens(zoo.TEXTS[0]),
        lambda: saelab.Lab(subject, sae, store).feature(3),
        lambda: logit_lens(sae, subject, 3),
        lambda: subject.run(inputs, edits=[saelab.interventions.Reconstruct(sae)]),
        lambda: sae.save(tmp_path / "h"),
        lambda: sae.fingerprint(),
    ]
    for call in calls:
        with pytest.raises(SaelabError, match=r"^An SAE must be on a device .* Got one on 'meta'"):
            call()


def test_a_model_without_numbers_is_refused_in_a_sentence(trained, tmp_path):
    subject = saelab.LanguageModel(zoo.causal_lm("llama").to("meta"), zoo.byte_tokenizer())
    assert HOOK in subject.hooks()
    calls = [
        lambda: subject.run(subject.prepare(zoo.TEXTS)),
        lambda: saelab.harvest(subject, CORPUS, HOOK, tmp_path / "a", progress=False),
        lambda: saelab.index(subject, trained, CORPUS, tmp_path / "f", progress=False),
        lambda: saelab.evaluate(trained, subject, CORPUS),
        lambda: logit_lens(trained, subject, 3),
    ]
    for call in calls:
        with pytest.raises(SubjectError, match=r"^A model must be on a device .* Got one on 'meta'"):
            call()
