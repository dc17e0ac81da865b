"""LanguageModel: its hook points against the library and TransformerBridge, its tokens, its errors."""

from __future__ import annotations

import json
import socket

import pytest
import subjects_zoo as zoo
import torch
import transformers
from torch import nn

from saelab.subjects import LanguageModel, load_subject
from saelab.subjects.bridge import Bridge
from saelab.types import HookError, HookPoint, SubjectError

PARALLEL = ("neox", "gptj", "phi")


# --- hook points


def test_the_published_greedy_text(stories, shared_data):
    published = (shared_data / "language" / "stories260k" / "stories260K.md").read_text()
    text = stories.generate("", max_new_tokens=200)
    assert len(text) > 440
    assert text in published


def test_resid_post_is_the_librarys_hidden_state(stories):
    inputs = stories.prepare(["Once upon a time there was a little dog.", "Lily"])
    with torch.no_grad():
        states = stories.model(**inputs.data, output_hidden_states=True).hidden_states
    names = [f"blocks.{i}.hook_resid_post" for i in range(4)]
    acts = stories.run(inputs, read=names, output=False).acts
    for i, name in enumerate(names):
        torch.testing.assert_close(acts[name], states[i + 1], atol=1e-5, rtol=0)
    assert stories.hook_point("blocks.0.attn.hook_z").n_heads == 8
    assert stories.run(inputs, read="blocks.4.hook_resid_post").acts.keys() == {"blocks.4.hook_resid_post"}


@pytest.mark.parametrize("kind", zoo.ARCHITECTURES)
def test_both_routes_give_the_same_values(kind):
    """Plain hooks against TransformerBridge, every module point, real positions."""
    subject = zoo.language_model(kind)
    inputs = subject.prepare(zoo.TEXTS)
    real = inputs.data["attention_mask"].bool()
    # TransformerBridge never comes by this point of BLOOM
    names = [name for name in subject.hooks() if kind != "bloom" or not name.endswith("hook_mlp_in")]
    plain = subject.run(inputs, read=names)
    bridge = Bridge(subject.model, subject.tokenizer, "cpu")
    passed = bridge.forward(inputs, inputs.data, [HookPoint(n) for n in names], [], output=True, grad=False)
    acts, logits = passed.acts, passed.output
    for name in names:
        assert acts[name].shape == plain.acts[name].shape, name
        torch.testing.assert_close(acts[name][real], plain.acts[name][real], atol=1e-5, rtol=1e-5, msg=name)
    torch.testing.assert_close(logits[real], plain.output[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", zoo.ARCHITECTURES)
def test_the_stream_adds_up(kind):
    """Closed form: what the branches write is what the stream gains."""
    subject = zoo.language_model(kind)
    acts = subject.run(subject.prepare(zoo.TEXTS), read=subject.hooks()).acts
    for i in range(subject.n_layers):
        at = {
            k: acts.get(f"blocks.{i}.hook_{k}")
            for k in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
        }
        torch.testing.assert_close(at["resid_pre"] + at["attn_out"] + at["mlp_out"], at["resid_post"])
        if kind not in PARALLEL:
            torch.testing.assert_close(at["resid_pre"] + at["attn_out"], at["resid_mid"])


@pytest.mark.parametrize("kind", [k for k in zoo.ARCHITECTURES if k not in PARALLEL])
def test_an_edit_of_resid_mid_reaches_the_skip_connection(kind):
    subject = zoo.language_model(kind)
    inputs = subject.prepare(zoo.TEXTS)
    names = ["blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"]
    plain = subject.run(inputs, read=names).acts
    mid, mlp, post = subject.run(inputs, read=names, edits=(names[0], lambda a: a * 3 + 1)).acts.values()
    torch.testing.assert_close(mid, plain[names[0]] * 3 + 1)
    torch.testing.assert_close(mid + mlp, post)
    assert not torch.equal(mlp, plain[names[1]])


@pytest.mark.parametrize("kind", PARALLEL)
def test_parallel_blocks_have_no_middle_and_say_so(kind):
    subject = zoo.language_model(kind)
    assert not any("resid_mid" in name for name in subject.hooks())
    with pytest.raises(HookError, match="parallel"):
        subject.width("blocks.0.hook_resid_mid")


def test_branches_that_are_scaled_before_they_are_added_say_so():
    torch.manual_seed(0)
    config = zoo.config("granite")
    config.residual_multiplier = 0.5
    subject = LanguageModel(transformers.GraniteForCausalLM(config), zoo.byte_tokenizer())
    assert "blocks.0.hook_resid_post" in subject.hooks()
    with pytest.raises(HookError, match=r"multiplied by 0\.5 "):
        subject.width("blocks.0.hook_attn_out")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "gemma2"])
def test_patterns_are_attention_and_mix_values_into_z(kind):
    subject = zoo.language_model(kind)
    inputs = subject.prepare(zoo.TEXTS)
    names = [f"blocks.1.attn.hook_{x}" for x in ("pattern", "v", "z")]
    pattern, v, z = subject.run(inputs, read=names).acts.values()
    n, positions = inputs.data["input_ids"].shape
    assert pattern.shape == (n, 4, positions, positions)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(n, 4, positions))
    assert not pattern.triu(1).any()
    kv_heads = subject.hook_point(names[1]).n_heads
    v = v.unflatten(-1, (kv_heads, -1)).repeat_interleave(4 // kv_heads, dim=2)
    mixed = torch.einsum("bhqk,bkhd->bqhd", pattern, v).flatten(2)
    real = inputs.data["attention_mask"].bool()
    torch.testing.assert_close(mixed[real], z[real], atol=1e-5, rtol=1e-4)


def test_scores_are_the_rotated_queries_on_keys(llama):
    inputs = llama.prepare(["The sun is warm"])
    names = [f"blocks.2.attn.hook_{x}" for x in ("rot_q", "rot_k", "attn_scores", "q")]
    q, k, scores, before = llama.run(inputs, read=names).acts.values()
    q, k = q.unflatten(-1, (4, 8)), k.unflatten(-1, (2, 8)).repeat_interleave(2, dim=2)
    expected = torch.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5
    below = torch.ones_like(expected).tril().bool()
    torch.testing.assert_close(scores[below], expected[below], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(q.flatten(2)[:, 1:], before[:, 1:])
    torch.testing.assert_close(q.flatten(2)[:, 0], before[:, 0])


def test_points_of_the_bridge_can_be_edited_together_with_others(gpt2):
    inputs = gpt2.prepare(zoo.TEXTS)
    z = "blocks.1.attn.hook_z"
    plain = gpt2.run(inputs, read=z)
    uniform = (
        "blocks.1.attn.hook_pattern",
        lambda p: torch.ones_like(p).tril() / torch.arange(1, p.shape[-1] + 1)[:, None],
    )
    run = gpt2.run(inputs, read=[z, "blocks.1.attn.hook_v"], edits=[uniform])
    v = run.acts["blocks.1.attn.hook_v"]
    mean = v.cumsum(1) / torch.arange(1, v.shape[1] + 1)[None, :, None]
    torch.testing.assert_close(run.acts[z], mean, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(run.output, plain.output)
    both = gpt2.run(
        inputs, edits=[uniform, ("blocks.0.hook_resid_mid", lambda a: a + 1)], read="blocks.0.hook_resid_post"
    )
    alone = gpt2.run(
        inputs, edits=[("blocks.0.hook_resid_mid", lambda a: a + 1)], read="blocks.0.hook_resid_post"
    )
    torch.testing.assert_close(*(r.acts["blocks.0.hook_resid_post"] for r in (both, alone)))


def test_the_bridge_leaves_the_model_as_it_was_and_shares_its_weights():
    subject = zoo.language_model("llama")
    inputs = subject.prepare(zoo.TEXTS)
    before, kernel = subject.run(inputs).output, subject.model.config._attn_implementation
    modules = [type(m) for m in subject.model.modules()]
    subject.run(inputs, read="blocks.0.attn.hook_pattern")
    assert torch.equal(subject.run(inputs).output, before)
    assert subject.model.config._attn_implementation == kernel == "sdpa"
    assert [type(m) for m in subject.model.modules()] == modules
    twin = subject._bridge._bridge.original_model
    shared = {p.data_ptr() for p in twin.parameters()}
    assert all(p.data_ptr() in shared for p in subject.model.parameters())


def test_the_bridge_follows_a_change_of_the_weights():
    subject = zoo.language_model("gpt2")
    inputs = subject.prepare(zoo.TEXTS)
    before = subject.run(inputs, read="blocks.0.attn.hook_q").acts["blocks.0.attn.hook_q"]
    with torch.no_grad():
        subject.model.transformer.h[0].attn.c_attn.weight.mul_(2)
        subject.model.transformer.h[0].attn.c_attn.bias.mul_(2)
    after = subject.run(inputs, read="blocks.0.attn.hook_q").acts["blocks.0.attn.hook_q"]
    torch.testing.assert_close(after, before * 2)
    attention = subject.model.transformer.h[0].attn
    attention.c_attn = transformers.pytorch_utils.Conv1D(96, 32)
    torch.nn.init.zeros_(attention.c_attn.weight)
    replaced = subject.run(inputs, read="blocks.0.attn.hook_q").acts["blocks.0.attn.hook_q"]
    assert not replaced.any()


def test_heads_and_widths(llama):
    assert llama.hook_point("blocks.0.attn.hook_z") == HookPoint("blocks.0.attn.hook_z", n_heads=4)
    assert llama.hook_point("blocks.0.attn.hook_k").n_heads == 2
    assert llama.hook_point("blocks.0.hook_resid_post").n_heads is None
    assert llama.width("blocks.0.attn.hook_z") == 32
    assert llama.width("blocks.0.attn.hook_k") == 16
    assert llama.width("blocks.0.mlp.hook_post") == 48
    with pytest.raises(HookError, match="query, key"):
        llama.width("blocks.0.attn.hook_pattern")


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("blocks.0.hook_resid_pst", "blocks.0.hook_resid_post"),
        ("blocks.3.hook_resid_post", "blocks.2.hook_resid_post"),
        ("blocks.0.attn.hook_patern", "blocks.0.attn.hook_pattern"),
        ("hook_embd", "hook_embed"),
    ],
)
def test_unknown_hook_points_suggest_the_nearest(gpt2, wrong, meant):
    with pytest.raises(HookError) as error:
        gpt2.run(gpt2.prepare(["x"]), read=wrong)
    assert f"Did you mean {meant!r}?" in str(error.value)


def test_points_that_only_look_on_are_refused():
    """In OPT the bridge can only hand out patterns after their use: an edit would be dropped in silence."""
    subject = zoo.language_model("opt")
    with pytest.raises(HookError, match="must influence the output"):
        subject.run(subject.prepare(["x"]), read="blocks.0.attn.hook_pattern")


def test_a_dead_block_is_refused():
    """A block whose output nobody uses: its activations would explain nothing."""
    model = zoo.causal_lm("gpt2")
    block = model.transformer.h[1]

    class Ignoring(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_proj = block.mlp.c_proj
            self.c_fc = block.mlp.c_fc

        def forward(self, x):
            self.c_proj(self.c_fc(x))
            return x

    block.mlp = Ignoring()
    subject = LanguageModel(model, zoo.byte_tokenizer())
    inputs = subject.prepare(["x"])
    with pytest.raises(HookError, match=r"must influence the output.*blocks\.1\.mlp\.hook_post"):
        subject.run(inputs, read="blocks.1.mlp.hook_post", output=False)
    with pytest.raises(HookError, match="not what the stream gets"):
        subject.run(inputs, read="blocks.1.hook_mlp_out", output=False)
    with pytest.raises(HookError, match="must influence"):
        subject.run(inputs, edits=[("blocks.1.mlp.hook_post", torch.zeros_like)])
    assert subject.width("blocks.0.hook_mlp_out") == 32


def test_a_zero_activation_is_not_taken_for_dead():
    model = zoo.causal_lm("gpt2")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.weight.zero_()
        model.transformer.h[0].mlp.c_proj.bias.zero_()
    subject = LanguageModel(model, zoo.byte_tokenizer())
    assert subject.width("blocks.0.hook_mlp_out") == 32


def test_unknown_architectures_name_the_paths_tried():
    with pytest.raises(SubjectError) as error:
        LanguageModel(nn.Linear(2, 2), zoo.byte_tokenizer())
    assert "transformer.h" in str(error.value)
    assert "TorchModule" in str(error.value)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma", "gemma3", "opt"])
def test_logits_are_what_the_unembedding_makes_of_the_last_norm(kind):
    subject = zoo.language_model(kind)
    run = subject.run(subject.prepare(zoo.TEXTS), read=["ln_final.hook_out"])
    assert subject.unembed.shape == (subject.d_model, subject.d_vocab) == (32, 300)
    torch.testing.assert_close(
        run.acts["ln_final.hook_out"] @ subject.unembed, run.output, atol=1e-4, rtol=1e-4
    )


def test_dimensions(gpt2, llama):
    assert (gpt2.n_ctx, gpt2.n_layers, gpt2.n_heads, gpt2.d_model, gpt2.d_vocab, gpt2.bos_id) == (
        64,
        3,
        4,
        32,
        300,
        0,
    )
    assert llama.n_heads == 4


# --- loading


def test_a_saved_model_loads_as_the_same_subject(saved):
    subject = load_subject(saved)
    again = load_subject(str(saved), dtype="float32")
    made = zoo.language_model("gpt2")
    assert subject.fingerprint() == again.fingerprint() == made.fingerprint()
    inputs = subject.prepare(zoo.TEXTS)
    assert torch.equal(subject.run(inputs).output, made.run(inputs).output)
    assert not any(p.requires_grad for p in subject.model.parameters())


def test_half_precision_checkpoints_run_in_float32_on_the_cpu_unless_asked(tmp_path):
    zoo.causal_lm("gpt2").to(torch.float16).save_pretrained(tmp_path)
    zoo.byte_tokenizer().save_pretrained(tmp_path)
    assert load_subject(tmp_path).model.dtype == torch.float32
    assert load_subject(tmp_path, dtype="float16").model.dtype == torch.float16
    assert load_subject(tmp_path, dtype=torch.bfloat16).model.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["llama", "neox", "gemma3"])
def test_saving_and_loading_keeps_the_fingerprint(kind, tmp_path):
    subject = zoo.language_model(kind)
    subject.model.save_pretrained(tmp_path)
    subject.tokenizer.save_pretrained(tmp_path)
    assert load_subject(tmp_path).fingerprint() == subject.fingerprint()


def test_a_model_without_a_head_or_a_tokenizer_is_refused():
    with pytest.raises(SubjectError, match="no output embeddings"):
        LanguageModel(zoo.causal_lm("llama").model, zoo.byte_tokenizer())
    with pytest.raises(SubjectError, match="NoneType"):
        LanguageModel(zoo.causal_lm("llama"), None)


def test_fingerprint_knows_the_config():
    one = zoo.language_model("llama")
    other = zoo.language_model("llama")
    other.model.config.rms_norm_eps = 0.5
    assert one.fingerprint() != other.fingerprint()


def test_large_models_are_hashed_again_after_a_change(monkeypatch):
    from saelab.subjects import base

    monkeypatch.setattr(base, "_HASH_EACH_TIME", 0)
    subject = zoo.language_model("gpt2")
    first = subject.fingerprint()
    hashed = []
    monkeypatch.setattr(base, "_sha256", lambda *a: hashed.append(1) or "new")
    assert subject.fingerprint() == first
    assert not hashed
    with torch.no_grad():
        subject.model.transformer.wte.weight[0, 0] += 1
    assert subject.fingerprint() == "new"


def _refused(*args, **kwargs) -> str:
    with pytest.raises(SubjectError) as error:
        load_subject(*args, **kwargs)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return str(error.value)


def test_a_model_id_offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = _refused("gpt2-not-there")
    assert "gpt2-not-there" in text
    assert "local model folder" in text


def test_a_model_id_without_network(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def unreachable(*args, **kwargs):
        msg = "Network is unreachable"
        raise OSError(msg)

    monkeypatch.setattr(socket, "create_connection", unreachable)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    text = _refused("somebody/some-model")
    assert "cannot be reached" in text
    assert "local model folder" in text


def test_missing_and_broken_folders(saved, tmp_path):
    assert "must exist" in _refused(tmp_path / "nothing")
    assert "must exist" in _refused("./nothing")
    assert "must exist" in _refused("/nothing/at/all")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json" in _refused(empty)
    for name, damage in (("model.safetensors", lambda b: b[: len(b) // 2]), ("config.json", lambda b: b"{")):
        broken = tmp_path / name.replace(".", "_")
        broken.mkdir()
        for file in saved.iterdir():
            data = file.read_bytes()
            (broken / file.name).write_bytes(damage(data) if file.name == name else data)
        assert "readable weights" in _refused(broken)
    alone = tmp_path / "no_weights"
    alone.mkdir()
    (alone / "config.json").write_text((saved / "config.json").read_text())
    assert "tokenizer" in _refused(alone)


def test_a_model_of_another_kind(tmp_path):
    model = transformers.ViTModel(
        transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "vit"
    zoo.byte_tokenizer().save_pretrained(tmp_path)
    assert "Got" in _refused(tmp_path)


def test_devices_and_dtypes(saved):
    assert "one of this machine" in _refused(saved, device="gpu please")
    assert "dtype" in _refused(saved, dtype="int64")
    assert "dtype" in _refused(saved, dtype="float17")
    for bad in (None, "", 3):
        assert "hub id" in _refused(bad)
