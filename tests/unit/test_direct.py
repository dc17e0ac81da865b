"""The direct effect on the logits is the derivative of the model's own last steps, in every family."""

from __future__ import annotations

import families
import pytest
import subjects_zoo as zoo
import torch
from torch import nn

from saelab.subjects import LanguageModel
from saelab.types import SubjectError

# logits that are scaled, norms of other classes, names and places, without weights, soft caps
FAMILIES = (
    "gpt2", "llama", "gemma2", "gemma3_text", "bloom", "opt", "olmo", "cohere", "granite", "falcon_h1",
    "minicpm3", "lfm2", "mpt", "mbart", "ctrl", "recurrent_gemma", "hyperclovax", "nemotron", "mamba",
    "nanochat",
)  # fmt: skip


def derivative(subject: LanguageModel, x: torch.Tensor, v: torch.Tensor, step: float = 1e-3) -> torch.Tensor:
    """Of the logits where the last block gives x, along v, by central differences."""
    hook, one = f"blocks.{subject.n_layers - 1}.hook_resid_post", subject.prepare_tokens([[1]])

    def logits(stream):
        run = subject.run(one, edits=[(hook, lambda acts: stream.to(acts.dtype).expand_as(acts).clone())])
        return run.output[0, 0].double()

    return (logits(x + step * v) - logits(x - step * v)) / (2 * step)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_derivative_of_the_logits(family):
    """At a stream of mean 0 and mean square 1, along a direction that does not change its length."""
    draw = torch.Generator().manual_seed(3)
    model = families.build(family, **({"logit_scale": 0.0625} if family == "cohere" else {}))
    for name in ("final_logit_softcapping", "logits_soft_cap"):  # so wide that no logit is bent
        if getattr(model.config, name, None) is not None:
            setattr(model.config, name, 1e6)
    tokenizer = zoo.byte_tokenizer()
    tokenizer.model_max_length = 64
    subject = LanguageModel(model.double(), tokenizer)
    x = torch.randn(32, generator=draw).double()
    x = x - x.mean()
    x = x / x.square().mean().sqrt()
    v = torch.randn(32, generator=draw).double() + 0.5
    v = v - (v @ x) / (x @ x) * x
    expected, got = derivative(subject, x, v), subject.residual_to_logits(v[None])[0]
    assert float((got - expected).norm() / expected.norm()) < 1e-4
    assert expected.norm() > 0


def test_it_follows_the_weights_and_leaves_them_alone():
    subject = zoo.language_model("gpt2")
    v = torch.randn(3, 32)
    state = {name: tensor.clone() for name, tensor in subject.module.state_dict().items()}
    before = subject.residual_to_logits(v)
    assert torch.equal(before, subject.residual_to_logits(v))
    assert all(torch.equal(t, subject.module.state_dict()[k]) for k, t in state.items())
    assert all(p.grad is None for p in subject.module.parameters())
    with torch.no_grad():
        subject.module.transformer.ln_f.weight.mul_(2)
    torch.testing.assert_close(subject.residual_to_logits(v), 2 * before)


def test_a_vector_is_the_same_in_every_batch_and_the_map_is_linear():
    subject = zoo.language_model("gemma2")
    v = torch.randn(5, 32)
    whole = subject.residual_to_logits(v)
    torch.testing.assert_close(whole[2:3], subject.residual_to_logits(v[2:3]))
    torch.testing.assert_close(
        subject.residual_to_logits(2 * v[:1] - v[1:2]), 2 * whole[:1] - whole[1:2], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("family", ["bart", "openai-gpt"])
def test_without_a_final_norm_it_is_the_head_alone(family):
    tokenizer = zoo.byte_tokenizer()
    tokenizer.model_max_length = 64
    subject = LanguageModel(families.build(family), tokenizer)
    v = torch.randn(3, 32)
    torch.testing.assert_close(subject.residual_to_logits(v), v @ subject.unembed, atol=1e-4, rtol=1e-4)


def test_a_head_that_is_not_linear_is_refused():
    tokenizer = zoo.byte_tokenizer()
    tokenizer.model_max_length = 64
    subject = LanguageModel(families.build("modernbert-decoder"), tokenizer)
    with pytest.raises(SubjectError, match="norms the stream"):
        subject.residual_to_logits(torch.ones(1, 32))


def test_a_model_whose_head_is_never_called_is_refused():
    subject = zoo.language_model("llama")
    head = subject.module.lm_head

    class Around(nn.Module):
        weight = head.weight

        def forward(self, x):
            return x @ self.weight.T

    subject.module.get_output_embeddings = lambda: head
    subject.module.lm_head = Around()
    with pytest.raises(SubjectError, match="calls its output embeddings"):
        subject.residual_to_logits(torch.ones(1, 32))


def test_a_tail_that_reads_earlier_blocks_again_is_refused():
    """The same last stream gives other logits after another token."""
    tokenizer = zoo.byte_tokenizer()
    tokenizer.model_max_length = 64
    subject = LanguageModel(families.build("inkling2_text"), tokenizer)
    with pytest.raises(SubjectError, match="what came before it again"):
        subject.residual_to_logits(torch.ones(1, 32))
