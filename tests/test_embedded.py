"""The shipped assets: every score measured again from the weights, beside an untrained model."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import saelab
from saelab import embedded
from saelab.analysis.controls import shuffled
from saelab.commands.truth import agreement, grouped, labels_of_rows, names
from saelab.corpora import SHAPE_ATTRIBUTES, shapes
from saelab.corpora import world_lexicon as lexicon
from saelab.corpora.world import FAMILIES
from saelab.embedded import scores, vision
from saelab.embedded.data import Chunk, write_chunk
from saelab.embedded.training import CHUNK_STEPS, Plan, new_model, phases
from saelab.files import sha256
from saelab.subjects import VisionModel
from saelab.types import HookError

ROOT = Path(__file__).parents[1]
# seeds that the build never used
SEEDS = (101, 202, 303, 404, 505)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(embedded.model_folder())


@pytest.mark.slow
@pytest.mark.parametrize("name", list(scores.TARGETS))
def test_the_model_reaches_its_target_and_an_untrained_one_does_not(subject, tokenizer, name):
    measure, target = getattr(scores, name), scores.TARGETS[name]
    n = 32 if name == "repeat_loss_ratio" else 150
    found = float(np.mean([measure(subject.model, tokenizer, n=n, seed=seed) for seed in SEEDS]))
    control = measure(new_model(), tokenizer, n=64, seed=SEEDS[0])
    if name == "repeat_loss_ratio":
        assert found <= target < 0.9 < control
    else:
        assert found >= target
        assert control <= 0.65
    written = embedded.provenance()["model"]["scores"][name]
    assert found == pytest.approx(written, abs=0.04)


def test_the_assets_are_small_and_those_of_the_provenance():
    files = [p for p in embedded.ASSETS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 20e6
    hashes = embedded.provenance()["sha256"]
    weights = {
        p.relative_to(embedded.ASSETS).as_posix() for p in files if p.suffix in (".safetensors", ".parquet")
    }
    assert set(hashes) == weights
    for name, digest in hashes.items():
        assert sha256(embedded.ASSETS / name) == digest, name


def test_provenance_says_how_it_was_made():
    known = embedded.provenance()
    parts = {"model", "features", "labels", "vision", "packed", "sha256"}
    assert parts | {f"sae {h}" for h in embedded.SAE_HOOKS} == set(known)
    model = known["model"]
    assert model["command"]
    assert model["versions"]["torch"]
    curve = np.array(model["loss_curve"])
    assert curve[-1, 0] == model["tokens"] >= 20e6
    assert curve[-1, 1] < curve[0, 1]
    assert scores.reached(model["scores"])
    assert not scores.reached(model["scores_untrained"])
    assert "/" not in json.dumps(known["model"]["versions"])


@pytest.mark.parametrize("hook", embedded.SAE_HOOKS)
def test_the_saes_fit_the_model_and_beat_their_untrained_twins(subject, hook):
    sae = saelab.SAE.load(embedded.sae_folder(hook))
    assert sae.config.d_in == subject.width(hook)
    assert str(sae.config.hook) == hook
    assert 1024 <= sae.config.d_sae <= 2048
    report = saelab.evaluate(sae, subject, saelab.corpora.world(seed=900, n_documents=30), max_rows=1_500)
    assert report.sae.fvu < 0.25
    assert report.sae.fvu < 0.4 * report.untrained.fvu
    assert report.sae.dead < 0.5
    assert report.sae.loss_recovered > 0.9
    # half precision costs next to nothing
    exact = embedded.provenance()[f"sae {hook}"]["scores"]
    assert exact["float16"]["loss"] <= 1.005 * exact["float32"]["loss"]


def test_heads_are_known_where_they_are_concatenated(subject):
    sae = saelab.SAE.load(embedded.sae_folder("blocks.1.attn.hook_z"))
    assert sae.config.hook.n_heads == 8


def test_the_store_is_that_of_the_model_and_the_sae(subject):
    store = saelab.FeatureStore.open(embedded.store_folder())
    store.verify()
    store.check(subject)
    store.check(saelab.SAE.load(embedded.sae_folder()))
    assert store.n_rows >= 20_000


def test_unknown_saes_are_refused_with_the_nearest():
    with pytest.raises(HookError, match=r"blocks\.2\.attn\.hook_z"):
        embedded.sae_folder("blocks.2.attn.hook_zz")


def test_tokens_are_pairs_of_digits_and_markers(tokenizer):
    assert len(tokenizer) == 1024
    for text, tokens in {
        "1732": ["17", "32"],
        "<|user|>hi<|end|>": ["<|user|>"],
        "The year 1999.": None,
    }.items():
        ids = tokenizer(text, add_special_tokens=False).input_ids
        if tokens:
            assert tokenizer.convert_ids_to_tokens(ids)[: len(tokens)] == tokens
    for n in range(100):
        assert len(tokenizer(f"{n:02}", add_special_tokens=False).input_ids) == 1
    chat = [{"role": "user", "content": "hello"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>hello<|end|><|assistant|>"


@pytest.mark.parametrize(
    "text", ["plain", "  spaces\t\n\n", "ünïcödé ☃ 漢字 \U0001f600", "\u202ertl\u200b", "1234567", "a\x00b"]
)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


def test_training_rows_are_the_same_anywhere_and_hold_no_held_out_name(tokenizer, tmp_path):
    chunk = Chunk(3, 40, 128, seed=0, families=tuple(FAMILIES))
    paragraphs = ["A paragraph of natural text that is long enough to be one."] * 3
    first = np.load(write_chunk(tokenizer, paragraphs, chunk, tmp_path / "a"))
    again = np.load(write_chunk(tokenizer, paragraphs, chunk, tmp_path / "b"))
    other = np.load(write_chunk(tokenizer, paragraphs, chunk._replace(index=4), tmp_path / "a"))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first[:, 0] == tokenizer.bos_token_id).all()
    # whole documents of the world only; random token sequences may spell anything
    text = tokenizer.decode(first[:8].ravel().tolist())
    names = [n for n in lexicon.names("heldout") if f" {n} and " in text]
    assert names == []


def test_the_learning_rate_rises_stays_and_falls():
    plan = Plan(tokens=8_192 * 1_000)
    rates = [plan.lr(step) for step in range(plan.steps)]
    assert rates[0] < 0.01
    assert max(rates) == 1.0
    assert rates[plan.warmup] == 1.0
    assert rates[-1] < 0.01


def test_every_row_length_has_its_share_of_the_steps():
    for plan in (Plan(tokens=8_192 * 1_000), *phases(34_000_000, 0)):
        lengths = [plan.length(step) for step in range(plan.steps)]
        assert 0.1 < lengths.count(256) / plan.steps < 0.3
        assert set(lengths) == {128, 256}
        assert all(len(set(lengths[i : i + CHUNK_STEPS])) == 1 for i in range(0, plan.steps, CHUNK_STEPS))


def test_ioi_and_docstring_scores_tell_a_copying_model_from_chance(tokenizer):
    """With logits of zero everything is a tie: the scores must not call that a success."""

    class Flat(torch.nn.Module):
        def forward(self, ids):
            return type("Out", (), {"logits": torch.zeros(*ids.shape, 1024)})

    assert scores.greater_than(Flat(), tokenizer, n=50) < 0.2
    assert scores.repeat_loss_ratio(Flat(), tokenizer, n=4) == pytest.approx(1.0)
    assert scores.docstring_accuracy(Flat(), tokenizer, n=50) < 0.6


def test_labels_are_what_the_rows_are_on_which_latents_fire(subject):
    """On texts that they were not taken from, beside labels shuffled among the rows."""
    hook = "blocks.3.hook_resid_post"
    store = saelab.FeatureStore.open(embedded.store_folder(hook))
    own = store.labels().query("source == 'world'")
    named = dict(zip(own["latent"], own["label"], strict=True))
    truth = labels_of_rows(store, subject)
    by_chance = shuffled(np.array(truth, dtype=object)).tolist()
    assert agreement(store, truth, named) > 0.55 > 0.15 > agreement(store, by_chance, named)
    assert names(store, by_chance) == {}
    written = embedded.provenance()["labels"]["hooks"]
    assert list(written) == list(embedded.SAE_HOOKS)
    assert written[hook]["named"] == len(named) > 100
    assert all(each["precision"] > 0.55 and each["named_shuffled"] == 0 for each in written.values())


def test_a_search_finds_what_a_word_is(subject, monkeypatch):
    """Of texts that the page in docs/results does not use, beside the ranking by value and chance."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    searching = importlib.import_module("searching")
    lab = saelab.Lab(subject, embedded.sae_folder(), embedded.store_folder())
    labels = list(map(grouped, labels_of_rows(lab.store, subject)))
    found = searching.measure(lab, labels, seed=55, n_queries=1)
    # of ten seeds the least is 1.6 times the one and 1.9 times the other
    assert found.specific.value > 1.5 * max(found.value.value, found.specific.control)
    assert found.ceiling > found.specific.value


def test_the_vision_transformer_sees_figures_and_an_untrained_one_does_not():
    subject = VisionModel.load(embedded.vision_folder(), rows="patches")
    fresh = list(shapes(4_321, 500, split="heldout"))
    found, control = (vision.accuracies(m, fresh) for m in (subject.module, vision.new_vit(7)))
    written = embedded.provenance()["vision"]
    for name, target in vision.TARGETS.items():
        assert found[name] >= target > 0.6 > control[name], name
        assert found[name] == pytest.approx(written["accuracies"][name], abs=0.02)
    # what the processor gives is what it was trained on
    pixels = subject.prepare([d.sample for d in fresh[:8]])
    own = subject.run(pixels).output
    with torch.no_grad():
        expected = subject.module(
            vision.normalised(torch.from_numpy(np.stack([d.sample for d in fresh[:8]])))
        )
    torch.testing.assert_close(own, expected.logits, atol=1e-4, rtol=1e-4)
    assert subject.module.config.id2label[0] == "round"


def test_the_lab_of_pictures_opens_with_an_sae_that_explains_patches_it_never_saw():
    lab = saelab.Lab.embedded_vision()
    sae, store = lab.saes[embedded.VISION_HOOK], lab.stores[embedded.VISION_HOOK]
    report = saelab.evaluate(sae, lab.subject, shapes(4_321, 60, split="heldout"), max_rows=3_840)
    assert report.sae.fvu < 0.06 < 0.4 < report.untrained.fvu
    assert store.facets == ("patch",)
    store.verify()
    # what the store says is what the model does, and the card shows it
    latent = int(store.latents()["count"].argmax())
    example = store.examples(latent, 1)[0]
    document = next(d for d in shapes(2, 112) if d.id == store.document(example.document).id)
    assert document.media == store.document(example.document).media
    codes = lab.codes(document.sample).of(latent)
    assert codes[example.position] == pytest.approx(example.value, rel=2e-3)
    assert "patch" in str(lab.card(latent))


def test_latents_of_patches_know_backgrounds_and_families_and_shuffled_labels_do_not():
    """By the labels of the twenty pictures that drive a latent most. Colours are hardly told apart here."""
    lab = saelab.Lab.embedded_vision()
    subject, sae = lab.subject, lab.saes[embedded.VISION_HOOK]
    documents = list(shapes(999, 400, split="heldout"))
    read = subject.run(subject.prepare([d.sample for d in documents]), read=embedded.VISION_HOOK)
    with torch.no_grad():
        codes = sae.encode(read.acts[embedded.VISION_HOOK][:, 1:]).amax(1).numpy()
    top = np.argsort(-codes, 0)[:20, (codes > 0).sum(0) >= 20]

    def shares(labels):
        """Of each latent: of its twenty pictures those with the commonest label."""
        return np.array([np.unique(column, return_counts=True)[1].max() / 20 for column in labels[top].T])

    for attribute in ("background", "family"):
        at = list(SHAPE_ATTRIBUTES).index(attribute)
        labels = np.array([d.labels[at] for d in documents])
        found, controls = shares(labels), [shares(shuffled(labels, seed)) for seed in range(5)]
        assert max((control >= 0.8).mean() for control in controls) < 0.02
        assert (found >= 0.8).mean() > 0.03, attribute
        assert found.mean() > max(control.mean() for control in controls) + 0.05, attribute
