"""The points about an MLP: its own input and output, what its norm reads and what that gives without gain."""

from __future__ import annotations

import families
import pytest
import subjects_zoo as zoo
import torch

from saelab import load_sae, save_sae
from saelab.formats import gemma_scope
from saelab.sae import SAE, recipe
from saelab.subjects import LanguageModel
from saelab.types import HookError

# the norm before the MLP, by family; OLMo 2 has one after it alone
NORMS = {
    "gpt2": ("transformer.h.1.ln_2", "transformer.h.1.mlp"),
    "llama": ("model.layers.1.post_attention_layernorm", "model.layers.1.mlp"),
    "gemma2": ("model.layers.1.pre_feedforward_layernorm", "model.layers.1.mlp"),
    "gemma3_text": ("model.layers.1.pre_feedforward_layernorm", "model.layers.1.mlp"),
    "glm4": ("model.layers.1.post_attention_layernorm", "model.layers.1.mlp"),
    "gpt_neox": ("gpt_neox.layers.1.post_attention_layernorm", "gpt_neox.layers.1.mlp"),
    "olmo2": (None, "model.layers.1.mlp"),
    "mixtral": ("model.layers.1.post_attention_layernorm", "model.layers.1.mlp"),
}
AFTER = ("gemma2", "gemma3_text", "glm4", "olmo2")
"""whose hook_mlp_out is a norm's output"""


def subject_of(family: str, **changes) -> LanguageModel:
    torch.manual_seed(0)
    model = families.build(family, **changes)
    for name, parameter in model.named_parameters():  # gains that are not all alike
        if "norm" in name or "ln_" in name:
            generator = torch.Generator().manual_seed(len(name))
            parameter.data += 0.3 * torch.rand(parameter.shape, generator=generator)
    tokenizer = zoo.byte_tokenizer()
    tokenizer.model_max_length = 64
    return LanguageModel(model, tokenizer)


def seen(subject: LanguageModel, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a module reads and gives in a plain pass."""
    kept: list = []
    module = subject.model.get_submodule(path)
    handle = module.register_forward_hook(lambda m, args, out: kept.append((args[0], out)))
    inputs = subject.prepare(zoo.TEXTS)
    with torch.no_grad():
        subject.model(**{name: value for name, value in inputs.data.items()})
    handle.remove()
    read, given = kept[0]
    return read, given[0] if isinstance(given, tuple) else given


@pytest.mark.parametrize("family", NORMS)
def test_they_are_what_their_names_say(family):
    subject = subject_of(family)
    norm, mlp = NORMS[family]
    about = ("mlp.hook_in", "mlp.hook_out", "hook_mlp_in", "hook_mlp_out", "ln2.hook_normalized")
    names = {name: f"blocks.1.{name}" for name in about}
    assert set(names.values()) - set(subject.hooks()) == (set() if norm else {names["ln2.hook_normalized"]})
    inputs = subject.prepare(zoo.TEXTS)
    acts = {
        n: subject.run(inputs, read=hook).acts[hook] for n, hook in names.items() if hook in subject.hooks()
    }
    read, given = seen(subject, mlp)
    torch.testing.assert_close(acts["mlp.hook_in"], read.reshape(acts["mlp.hook_in"].shape))
    torch.testing.assert_close(acts["mlp.hook_out"], given.reshape(acts["mlp.hook_out"].shape))
    assert torch.allclose(acts["mlp.hook_out"], acts["hook_mlp_out"], atol=1e-5) == (family not in AFTER)
    if norm is None:
        torch.testing.assert_close(acts["hook_mlp_in"], acts["mlp.hook_in"])
        with pytest.raises(HookError, match="no norm gives what the MLP reads"):
            subject.run(inputs, read=names["ln2.hook_normalized"])
        return
    x, _ = seen(subject, norm)
    torch.testing.assert_close(acts["hook_mlp_in"], x)
    module = subject.model.get_submodule(norm)
    eps = getattr(module, "eps", getattr(module, "variance_epsilon", None))
    if isinstance(module, torch.nn.LayerNorm):
        x = x - x.mean(-1, keepdim=True)
    n = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    torch.testing.assert_close(acts["ln2.hook_normalized"], n, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(acts["ln2.hook_normalized"], acts["mlp.hook_in"], atol=1e-2)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox"])
def test_an_edit_of_each_is_seen_by_the_mlp_alone(family):
    subject = subject_of(family)
    inputs = subject.prepare(zoo.TEXTS)
    draw = torch.randn(32, generator=torch.Generator().manual_seed(1))
    module = subject.model.get_submodule(NORMS[family][0])

    def read(name: str, edits=()) -> torch.Tensor:
        return subject.run(inputs, read=f"blocks.1.{name}", edits=edits).acts[f"blocks.1.{name}"]

    before = {name: read(name) for name in ("hook_resid_post", "hook_mlp_out", "mlp.hook_in", "hook_mlp_in")}
    moved = [("blocks.1.hook_mlp_in", lambda acts: acts + draw)]
    torch.testing.assert_close(read("mlp.hook_in", moved), module(before["hook_mlp_in"] + draw))
    # the stream goes around it: what changes is what the MLP adds
    rest = before["hook_resid_post"] - before["hook_mlp_out"]
    torch.testing.assert_close(
        read("hook_resid_post", moved), rest + read("hook_mlp_out", moved), atol=1e-4, rtol=1e-4
    )
    scaled = [("blocks.1.ln2.hook_normalized", lambda acts: acts + draw)]
    n = read("ln2.hook_normalized")
    gain = (before["mlp.hook_in"][0, 0] - before["mlp.hook_in"][0, 1]) / (n[0, 0] - n[0, 1])
    torch.testing.assert_close(
        read("mlp.hook_in", scaled), before["mlp.hook_in"] + draw * gain, atol=1e-3, rtol=1e-3
    )
    same = [("blocks.1.ln2.hook_normalized", lambda acts: acts)]
    torch.testing.assert_close(read("hook_resid_post", same), before["hook_resid_post"], atol=1e-5, rtol=1e-5)


def test_the_middle_of_the_stream_and_what_the_norm_reads_in_one_pass():
    """An edit of the stream is made before the norm's own input is read and edited."""
    subject = subject_of("gemma2")
    inputs, draw = subject.prepare(zoo.TEXTS), torch.ones(32)
    mid, own = "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_in"
    before = subject.run(inputs, read=mid).acts[mid]
    edits = [(own, lambda acts: acts * 2), (mid, lambda acts: acts + draw)]
    acts = subject.run(inputs, read=[own, mid], edits=edits).acts
    torch.testing.assert_close(acts[mid], before + draw)
    torch.testing.assert_close(acts[own], (before + draw) * 2)


def test_a_norm_that_attention_shares_is_none_of_the_mlp():
    subject = subject_of("gptj")
    for name in ("ln2.hook_normalized", "hook_mlp_in"):
        with pytest.raises(HookError, match="attention reads what the MLP reads"):
            subject.run(subject.prepare(["x"]), read=f"blocks.0.{name}")


def test_a_norm_whose_gain_is_0_cannot_be_divided_by_it():
    model = families.build("llama")
    model.model.layers[0].post_attention_layernorm.weight.data[3] = 0
    subject = LanguageModel(model, zoo.byte_tokenizer())
    assert "blocks.1.ln2.hook_normalized" in subject.hooks()
    assert "blocks.0.hook_mlp_in" in subject.hooks()
    with pytest.raises(HookError, match="cannot be divided by a gain"):
        subject.run(subject.prepare(["x"]), read="blocks.0.ln2.hook_normalized")


@pytest.mark.parametrize("family", NORMS)
def test_transcoders_and_saes_of_an_mlp_name_points_that_exist(family, tmp_path):
    subject = subject_of(family)
    width = subject.width("blocks.1.hook_resid_post")
    for name, d_out, reads, writes in [
        ("topk", None, "mlp.hook_out", "mlp.hook_out"), ("transcoder", width, "mlp.hook_in", "mlp.hook_out")
    ]:  # fmt: skip
        config = recipe(name, d_in=width, d_sae=64, k=4, **({} if d_out is None else {"d_out": d_out}))
        sae = load_sae(save_sae(SAE.create(config), tmp_path / name / "layers.1.mlp", "sparsify"))
        assert (sae.hook.name, sae.writes[0].name) == (f"blocks.1.{reads}", f"blocks.1.{writes}")
        acts = subject.run(subject.prepare(zoo.TEXTS), read=[sae.hook, *sae.writes]).acts
        assert sae.encode(acts[sae.hook.name]).shape[-1] == 64
    config = recipe("transcoder", d_in=width, d_sae=64, k=4, d_out=width)
    sae = load_sae(save_sae(SAE.create(config), tmp_path / "layers.1", "sparsify"))
    assert [sae.hook.name, sae.writes[0].name] == ["blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"]


def test_gemma_scopes_transcoders_name_points_that_gemma_has():
    first = gemma_scope.hooks("gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_54")
    second = gemma_scope.hooks("gemma-scope-2-1b-pt/transcoder_all/layer_1_width_16k_l0_small")
    for points, family in ((first, "gemma2"), (second, "gemma3_text")):
        assert {hook.name for hook in points.values()} <= set(subject_of(family).hooks())
    # the second release says of itself: pre_feedforward_layernorm.output
    subject = subject_of("gemma3_text")
    _, given = seen(subject, NORMS["gemma3_text"][0])
    hook = second["hook"].name
    torch.testing.assert_close(subject.run(subject.prepare(zoo.TEXTS), read=hook).acts[hook], given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    model = families.build("llama").to(dtype)
    subject = LanguageModel(model, zoo.byte_tokenizer())
    hook = "blocks.1.ln2.hook_normalized"
    acts = subject.run(subject.prepare(zoo.TEXTS), read=hook).acts[hook]
    assert acts.dtype == dtype
    assert acts.float().square().mean(-1).sqrt() == pytest.approx(1, abs=0.05)
