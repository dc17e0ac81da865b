"""Documents that share a block are read as if alone, or the subject refuses, whatever the family."""

from __future__ import annotations

import families
import numpy as np
import pytest
import subjects_zoo as zoo
import torch

import saelab
from saelab.subjects import LanguageModel
from saelab.subjects.alone import restarting
from saelab.types import SubjectError

# windows of 6 tokens in some layers or all, chunks, sinks, several kinds of masks; every text is longer
RIGHT = (
    "gpt2", "llama", "mistral", "gemma2", "gemma3_text", "qwen2", "phi3", "starcoder2", "cohere2", "gpt_oss",
    "opt", "llama4_text", "modernbert-decoder", "gptj", "olmo3",
)  # fmt: skip
# states, convolutions, biases that count from the start of the block
CARRIES = ("jamba", "falcon_h1", "qwen3_next", "recurrent_gemma", "minimax", "bloom", "mpt")
TEXTS = ["Once upon a time there was a little dog named Tim.", "Lily saw a red ball and ran.", "The sun."]


def subject_of(family: str) -> LanguageModel:
    model = families.build(family)
    assert model is not None
    tokenizer = zoo.byte_tokenizer()
    tokenizer.model_max_length = 64
    return LanguageModel(model, tokenizer)


def rows(subject, hook, out, packing):
    store = saelab.harvest(subject, TEXTS, [hook], out, packing=packing, progress=False)
    return torch.as_tensor(store.acts(np.arange(len(store)), hook)).float()


@pytest.mark.parametrize("family", RIGHT)
def test_masked_blocks_are_each_document_alone(family, tmp_path):
    subject = subject_of(family)
    hook = f"blocks.{subject.n_layers - 1}.hook_resid_post"
    alone, packed = (rows(subject, hook, tmp_path / p, p) for p in ("document", "blocks_masked"))
    assert alone.shape == packed.shape
    assert float(((packed - alone).norm(dim=1) / alone.norm(dim=1)).max()) < 1e-3  # stores round to half


@pytest.mark.parametrize("family", CARRIES)
def test_what_carries_more_than_masks_stop_is_refused_by_name(family, tmp_path):
    subject = subject_of(family)
    with pytest.raises(SubjectError, match=r"packing='document'") as told:
        rows(subject, "blocks.1.hook_resid_post", tmp_path / "acts", "blocks_masked")
    assert type(subject.model).__name__ in str(told.value)
    assert not (tmp_path / "acts").exists()
    rows(subject, "blocks.1.hook_resid_post", tmp_path / "acts", "document")


def test_the_bridge_is_given_the_positions_too(tmp_path):
    subject = zoo.language_model("gpt2")
    hook = "blocks.2.attn.hook_q"
    alone, packed = (rows(subject, hook, tmp_path / p, p) for p in ("document", "blocks_masked"))
    assert float(((packed - alone).norm(dim=1) / alone.norm(dim=1)).max()) < 1e-3


def test_a_model_that_lets_documents_meet_is_found_out(monkeypatch):
    """Masks of which a window is lost: the two documents of the measurement are longer than it."""
    subject = subject_of("mistral")
    run = subject.module.forward

    def without_window(*args, **options):
        position_ids = options["position_ids"]
        number = (position_ids == 0).cumsum(1)
        sees = (number[:, :, None] == number[:, None, :]).tril()
        return run(*args, **{**options, "attention_mask": torch.where(sees, 0.0, -1e9)[:, None]})

    monkeypatch.setattr(subject.module, "forward", lambda *a, position_ids=None, **o: (
        run(*a, **o) if position_ids is None else without_window(*a, position_ids=position_ids, **o)
    ))  # fmt: skip
    with pytest.raises(SubjectError, match="must have the rows that each has alone"):
        subject.prepare_tokens([[0, 5, 6, 7]], [[0, 0, 1, 1]])


def test_positions_start_anew_with_each_segment_and_in_padding():
    assert restarting([[0, 0, 0, 1, 1], [4]], 5).tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
