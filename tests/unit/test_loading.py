"""Folders that are no whole language model: what is missing is named, and what to do instead works."""

from __future__ import annotations

import re

import pytest
import subjects_zoo as zoo
import torch
import transformers as t

import saelab
from saelab.types import SubjectError

REST = {"intermediate_size": 48, "max_position_embeddings": 64, **zoo.SIZES, **zoo.NO_SPECIAL}


def saved(model, folder, tokenizer=True):
    model.save_pretrained(folder)
    if tokenizer:
        zoo.byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", [t.LlamaModel, t.LlamaForSequenceClassification])
def test_weights_that_would_be_filled_at_random_are_refused(kind, tmp_path):
    config = t.LlamaConfig(tie_word_embeddings=False, num_key_value_heads=2, **REST)
    with pytest.raises(SubjectError, match=r"without lm_head\.weight, which .* at random"):
        saelab.load_subject(saved(kind(config), tmp_path))


def test_a_head_that_is_tied_is_not_missing(tmp_path):
    config = t.LlamaConfig(tie_word_embeddings=True, num_key_value_heads=2, **REST)
    assert saelab.load_subject(saved(t.LlamaForCausalLM(config), tmp_path)).n_layers == 3


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    saved(zoo.causal_lm("gpt2"), tmp_path, tokenizer=False)
    with pytest.raises(SubjectError, match=r"must hold its tokenizer.*saelab\.TorchModule"):
        saelab.load_subject(tmp_path)


def works(said: str, model, tokenizer, hook: str) -> None:
    """The remedy of a message, run as it is written."""
    (line,) = re.findall(r"saelab\.TorchModule\(model, lambda.*\)\)", said)
    subject = eval(line, {"saelab": saelab, "model": model, "tokenizer": tokenizer})
    run = subject.run(subject.prepare(zoo.TEXTS), read=hook)
    assert run.acts[hook].shape[::2] == (len(zoo.TEXTS), 32)


def padding_tokenizer():
    tokenizer = zoo.byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def test_encoders_are_pointed_to_what_reads_them(tmp_path):
    bert = t.BertConfig(**REST)
    with pytest.raises(SubjectError) as told:
        saelab.load_subject(saved(t.BertForMaskedLM(bert), tmp_path / "bert"))
    works(str(told.value), t.BertModel(bert), padding_tokenizer(), "encoder.layer.1")
    t5 = t.T5Config(vocab_size=300, d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4)
    folder = saved(t.T5ForConditionalGeneration(t5), tmp_path / "t5")
    with pytest.raises(SubjectError, match="T5EncoderModel") as told:
        saelab.load_subject(folder)
    works(str(told.value), t.T5EncoderModel.from_pretrained(folder), padding_tokenizer(), "encoder.block.1")


def test_a_model_without_texts_is_pointed_to_what_reads_it():
    model = zoo.causal_lm("gpt2")
    with pytest.raises(SubjectError, match=r"saelab\.TorchModule\(model\)"):
        saelab.LanguageModel(model, None)
    subject = saelab.TorchModule(model)
    run = subject.run(subject.prepare([torch.tensor([1, 2, 3])]), read="transformer.h.1")
    assert run.acts["transformer.h.1"].shape == (1, 3, 32)
