"""What a hook point of the stream is called, it is: in every family, and where one only looks like it."""

from __future__ import annotations

import re

import families
import pytest
import subjects_zoo as zoo
import torch

from saelab.subjects import LanguageModel
from saelab.types import HookError, SubjectError

NAMES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
# pre-norm, norms after the branches or on both sides, experts, parallel, states beside attention, post-norm
WHOLE = (
    "gpt2", "llama", "gemma2", "gemma3_text", "olmo2", "exaone4", "glm4", "afmoe", "bloom", "opt", "xglm",
    "mixtral", "deepseek_v3", "nanochat",
)  # fmt: skip
"""of which every point is one"""
FAMILIES = (
    *WHOLE, "gemma4_text", "minimax", "jamba", "falcon", "falcon_h1", "bart", "marian", "gpt_neox", "gptj",
    "hyperclovax",
)  # fmt: skip


def subject_of(family: str, **changes) -> LanguageModel:
    model = families.build(family, **changes)
    assert model is not None
    tokenizer = zoo.byte_tokenizer()
    tokenizer.model_max_length = 64
    return LanguageModel(model, tokenizer)


def stream(subject: LanguageModel, i: int, edits=()) -> dict[str, torch.Tensor]:
    """By name, what there is of block i, each from a pass of its own."""
    known, inputs = subject.hooks(), subject.prepare(zoo.TEXTS)
    names = [f"blocks.{i}.hook_{name}" for name in NAMES if f"blocks.{i}.hook_{name}" in known]
    acts = {name: subject.run(inputs, read=name, edits=edits).acts[name] for name in names}
    return {name.split("hook_")[1]: acts[name] for name in names}


def check(at: dict[str, torch.Tensor]) -> None:
    close = {"atol": 1e-4, "rtol": 1e-4}
    if {"resid_mid", "attn_out"} <= set(at):
        torch.testing.assert_close(at["resid_pre"] + at["attn_out"], at["resid_mid"], **close)
    if {"resid_mid", "mlp_out"} <= set(at):
        torch.testing.assert_close(at["resid_mid"] + at["mlp_out"], at["resid_post"], **close)
    elif {"attn_out", "mlp_out"} <= set(at):
        whole = at["resid_pre"] + at["attn_out"] + at["mlp_out"]
        torch.testing.assert_close(whole, at["resid_post"], **close)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_is_made_of_what_is_offered(family):
    subject = subject_of(family)
    for i in range(subject.n_layers):
        at = stream(subject, i)
        check(at)
        assert {"resid_pre", "resid_post"} <= set(at)
        if family in WHOLE:
            assert set(at) == set(NAMES)


@pytest.mark.parametrize("family", WHOLE)
def test_an_edit_of_the_middle_is_in_the_stream(family):
    subject = subject_of(family)
    draw = torch.randn(32, generator=torch.Generator().manual_seed(1))
    at = stream(subject, 1, edits=[("blocks.1.hook_resid_mid", lambda acts: acts + draw)])
    assert not torch.allclose(at["resid_pre"] + at["attn_out"], at["resid_mid"], atol=0.1)
    torch.testing.assert_close(at["resid_mid"] + at["mlp_out"], at["resid_post"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "changes", "name", "why"),
    [
        ("granite", {"residual_multiplier": 0.22}, "attn_out", r"multiplied by 0\.22 "),
        ("granite", {"residual_multiplier": 0.22}, "mlp_out", r"multiplied by 0\.22 "),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "attn_out", "not what the stream gets"),
        ("gptj", {}, "resid_mid", "in parallel"),
        ("bart", {}, "mlp_out", "not what the stream gets"),
        ("gemma3n_text", {}, "resid_post", "something else than one stream"),
    ],
)
def test_what_is_not_what_its_name_says_is_refused_with_what_was_measured(family, changes, name, why):
    subject = subject_of(family, **changes)
    hook = f"blocks.1.hook_{name}"
    assert hook not in subject.hooks()
    with pytest.raises(HookError, match=f"{re.escape(hook)}.*{why}"):
        subject.run(subject.prepare(["x"]), read=hook)


def test_half_precision_and_streams_that_outweigh_what_is_added():
    model = families.build("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(3_000)
    for each in (model, families.build("llama").bfloat16()):
        subject = LanguageModel(each, zoo.byte_tokenizer())
        assert all(f"blocks.{i}.hook_{name}" in subject.hooks() for i in range(2) for name in NAMES)
    model = families.build("granite", residual_multiplier=0.5)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(3_000)
    assert "blocks.0.hook_attn_out" not in LanguageModel(model, zoo.byte_tokenizer()).hooks()


def test_a_model_that_cannot_read_says_so():
    model = families.build("llama")
    model.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(SubjectError, match="must read a few tokens"):
        LanguageModel(model, zoo.byte_tokenizer())
