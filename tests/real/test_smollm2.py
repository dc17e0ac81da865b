"""The whole path on SmolLM2-135M-Instruct out of its GGUF file: harvest, train, evaluate, look, export."""

from __future__ import annotations

import functools
import json
import re

import pytest
import real_models
import torch
from shown import chunks

import saelab
from saelab.interventions import applied

LAYER = 12
HOOK = f"blocks.{LAYER}.hook_resid_post"
MESSAGES = [
    {"role": "user", "content": "Name the capital of France."},
    {"role": "assistant", "content": "It is Paris."},
]


@pytest.fixture(scope="module")
def acts(smollm2, tmp_path_factory):
    texts, _ = real_models.texts(100, characters=500)
    out = tmp_path_factory.mktemp("smollm2") / "acts"
    return saelab.harvest(smollm2, texts, [HOOK], out, max_rows=6_000, progress=False)


@pytest.fixture(scope="module")
def sae(acts):
    config = saelab.recipe("topk", d_in=576, d_sae=1024, k=32, hook=HOOK)
    return saelab.train(config, acts, steps=120, batch_size=512, seed=0, progress=False).sae.eval()


@pytest.fixture(scope="module")
def lab(smollm2, sae, tmp_path_factory):
    texts, _ = real_models.texts(320, characters=300)
    out = tmp_path_factory.mktemp("smollm2") / "features"
    store = saelab.index(smollm2, sae, texts[-30:], out, max_rows=1_200, progress=False)
    return saelab.Lab(smollm2, sae, store)


def test_it_knows_and_answers_in_its_template(smollm2):
    assert smollm2.generate("The capital of France is", max_new_tokens=1) == "The capital of France is Paris"
    asked = smollm2.tokenizer.apply_chat_template(MESSAGES[:1], tokenize=False, add_generation_prompt=True)
    assert "Paris" in smollm2.generate(asked, max_new_tokens=12).partition("assistant")[2]
    ids, own = smollm2.chat_tokens([("user", MESSAGES[0]["content"])])
    assert smollm2.token_strings(ids)[0] == "<|im_start|>"
    content = [i for i, special in zip(ids, own, strict=True) if not special]
    assert "".join(smollm2.token_strings(content)) == MESSAGES[0]["content"]


def test_it_answers_from_its_cache_as_without(smollm2):
    asked = [("user", MESSAGES[0]["content"])]
    edit = (HOOK, lambda acts, context: acts * (1 + 0.002 * torch.tensor(context.inputs.given)[..., None]))
    answer = smollm2.chat(asked, max_new_tokens=12)
    assert "Paris" in answer
    assert smollm2.chat(asked, max_new_tokens=12, use_cache=False) == answer
    assert smollm2.chat(asked, max_new_tokens=100).startswith(answer), "it ends with the turn"
    prompts = ["The capital of France is", "It rained all day, and the"]
    for options in ({}, {"temperature": 1.0, "top_p": 0.9}):
        texts = smollm2.generate(prompts, edit, max_new_tokens=5, **options)
        assert texts == smollm2.generate(prompts, edit, max_new_tokens=5, use_cache=False, **options)
    ids = smollm2.prepare(prompts[:1]).data
    with applied(smollm2, edit):
        found = smollm2.model.generate(**ids, max_new_tokens=5, do_sample=False)
    assert smollm2.tokenizer.decode(found[0], skip_special_tokens=True) == smollm2.generate(
        prompts[0], edit, max_new_tokens=5
    )


def test_hook_values_are_the_librarys_hidden_states_bit_for_bit(smollm2):
    inputs = smollm2.prepare(["The capital of France is Paris.", "It rained."])
    with torch.no_grad():
        states = smollm2.model(**inputs.data, use_cache=False, output_hidden_states=True).hidden_states
    names = {"hook_embed": 0, "blocks.0.hook_resid_post": 1, HOOK: LAYER + 1,
             "blocks.28.hook_resid_post": 29, "blocks.29.hook_resid_pre": 29}  # fmt: skip
    acts = smollm2.run(inputs, read=list(names), output=False).acts
    for name, i in names.items():
        assert torch.equal(acts[name], states[i]), name
        assert not torch.equal(acts[name], states[i - 1 if i else 1]), name


def test_it_is_the_librarys_own_reading(smollm2, monkeypatch):
    """Without the cache: transformers reads the GGUF file itself."""
    import gguf
    import transformers

    # it opens the file twice and makes the same table of names for every module
    for name in ("GGUFReader", "get_tensor_name_map"):
        monkeypatch.setattr(gguf, name, functools.cache(getattr(gguf, name)))
    path = real_models.smollm2_file()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    inputs = smollm2.prepare(["The capital of France is Paris.", "It rained."])
    real = inputs.data["attention_mask"].bool()
    with torch.no_grad():
        expected = theirs(**inputs.data, use_cache=False).logits[real]
    got = smollm2.run(inputs).output[real]
    assert expected.abs().max() > 10
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=0)


def test_harvested_rows_are_those_of_the_model(smollm2, acts):
    assert len(acts) == 6_000
    texts, _ = real_models.texts(1, characters=500)
    alone = smollm2.run(smollm2.prepare(texts), read=HOOK, output=False).acts[HOOK][0, 1:]  # without BOS
    stored = acts.rows(range(len(alone)), HOOK).acts.float()
    assert ((stored - alone).norm(dim=-1) / alone.norm(dim=-1)).max() < 1e-3


def test_a_trained_sae_beside_an_untrained_one(smollm2, sae):
    texts, _ = real_models.texts(420, characters=300)
    report = saelab.evaluate(sae, smollm2, texts[-6:], max_rows=250)
    assert report.sae.fvu < 0.5 * report.untrained.fvu, report
    assert report.sae.loss_recovered > report.untrained.loss_recovered + 0.3, report
    assert report.sae.loss_recovered < 1
    assert report.sae.l0 == pytest.approx(32, abs=4)


def test_cards_and_search(lab):
    assert (lab.store.n_latents, lab.store.n_rows) == (1024, 1_200)
    busy = int(lab.store.latents().sort_values("count", ascending=False)["latent"].iloc[300])
    card = lab.card(busy)
    assert card.top.windows[0].value == card.stats.max > 0
    assert len(card.lens.top) > 0
    assert lab.feature(busy).text().startswith(str(card))
    found = lab.search("The war ended in the summer.", n=5)
    assert len(found) == 5
    assert found["score"].is_monotonic_decreasing
    assert found["score"].iloc[-1] > 0


def test_a_heatmap_in_the_chat_template_and_its_page(smollm2, lab, tmp_path):
    text = smollm2.tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    view = lab.tokens(text)
    codes = lab.codes(text)
    assert codes.shown[0].name == "<|im_start|>"
    assert "".join(each.name for each in codes.shown) == text
    page = tmp_path / "page.html"
    view.export(page)
    html = page.read_text(encoding="utf-8")
    told = json.loads(re.search(r'id="saelab-data">(.*?)</script>', html, re.S)[1])
    shown = [data for shelf in told["shelves"] for _, buffers in chunks(shelf).values() for data in buffers]
    assert b"Paris" in b"".join(shown)
    assert len(html) > 50_000
