"""Formats of releases: what is refused by name, what is asked of the user, hostile files of each."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
import zipfile
from pathlib import Path

import mutations
import numpy as np
import pytest
import safetensors.torch
import torch

from saelab import load_sae, save_sae
from saelab.formats import sniff
from saelab.sae import SAE, recipe
from saelab.types import ConfigError, FormatError

ROOT = Path(__file__).parents[1] / "golden" / "releases"


VSAE = "dictionary_learning/vsae-"


@pytest.fixture
def copied(tmp_path):
    """A release's folder that may be changed: name -> the folder with the weights."""

    def copy(name: str) -> Path:
        target = tmp_path / "sae"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(ROOT / name, target)
        parent = weights(target).parent
        return parent.parent if parent.name == "checkpoints" else parent

    return copy


def weights(folder: Path) -> Path:
    """Its file of tensors, SAE's before others."""
    found = [p for p in sorted(folder.rglob("*")) if p.suffix in (".pt", ".pth", ".npz", ".safetensors")]
    return next((p for p in found if p.stem not in ("mean", "std")), found[0])


def edit(folder: Path, **changes) -> Path:
    """Change the config; ... drops a key."""
    path = next(p for p in [*folder.glob("*.json"), *folder.parent.glob("*.json")])
    document = json.loads(path.read_text())
    at = document["trainer"] if "trainer" in document else document
    at.update(changes)
    for key in [key for key, value in changes.items() if value is ...]:
        del at[key]
    path.write_text(json.dumps(document))
    return folder


def retensor(folder: Path, **changes) -> Path:
    """Change the tensors; None drops one; two underscores stand for a dot."""
    path = weights(folder)
    if path.suffix == ".npz":
        tensors = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    elif path.suffix == ".safetensors":
        tensors = safetensors.torch.load_file(path)
    else:
        tensors = torch.load(path)
    for name, tensor in changes.items():
        tensors[name.replace("__", ".")] = tensor
        if tensor is None:
            del tensors[name.replace("__", ".")]
    if path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    elif path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return folder


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("saelens/topk", {"activation_fn_kwargs": {}}, "k must be"),
        ("saelens/topk", {"activation_fn_kwargs": {"k": 3, "postact_fn": "tanh"}}, "activation"),
        ("saelens/topk", {"activation_fn_str": "tanh-relu"}, "tanh-relu"),
        ("saelens/topk", {"architecture": "gated"}, "gated"),
        ("saelens/standard", {"wobble": 1}, "wobble"),
        ("saelens/standard", {"normalize_activations": True}, "norm_scaling_factor"),
        ("saelens/finetuned", {"finetuning_scaling_factor": False}, "Factors"),
        ("sparsify/topk", {"activation": "relu"}, "activation"),
        ("sparsify/topk", {"num_latents": 17}, "latents"),
        ("sparsify/topk", {"d_in": 7}, "d_in"),
        ("sparsify/topk", {"k": 0}, "k in"),
        ("sparsify/topk", {"k": "3"}, "k in"),
        ("sparsify/topk", {"signed": 1}, "signed"),
        ("sparsify/topk", {"wobble": 1}, "wobble"),
        ("sparsify/topk", {"skip_connection": True}, "W_skip"),
        ("sparsify/skip", {"transcode": False}, "skip"),
        ("sparsify/groupmax", {"k": 3}, "divide"),
        ("sparsify/transcode", {"activation": "groupmax", "k": 4}, "group_max"),
        ("gemma_scope/second", {"architecture": "topk"}, "jump_relu"),
        ("gemma_scope/second", {"affine_connection": True}, "affine_skip"),
        ("gemma_scope/second-affine", {"affine_connection": False}, "affine_skip"),
        ("openmoss/scope", {"norm_activation": "token-wise"}, "token-wise"),
        ("openmoss/scope", {"norm_activation": ...}, "token-wise"),
        ("openmoss/scope", {"dataset_average_activation_norm": {"in": 0, "out": 1}}, "set and > 0"),
        ("openmoss/scope", {"use_glu_encoder": True}, "glu"),
        ("openmoss/scope", {"d_model": 7}, "d_model"),
        ("openmoss/scope", {"wobble": 1}, "wobble"),
        ("openmoss/relu", {"act_fn": "batchtopk"}, "batchtopk"),
        ("openmoss/relu", {"act_fn": "jumprelu"}, "threshold"),
        ("openmoss/relu", {"act_fn": "topk"}, "one norm"),
        ("openmoss/relu", {"sae_type": "lorsa"}, "lorsa"),
        ("openmoss/relu", {"use_decoder_bias": False}, "bias"),
        ("batchtopk/topk-True", {"sae_type": "gated"}, "gated"),
        ("batchtopk/topk-True", {"dict_size": 9}, "dict_size"),
        ("batchtopk/topk-True", {"input_unit_norm": "maybe"}, "input_unit_norm"),
        ("batchtopk/topk-True", {"sae_type": "batchtopk"}, "threshold"),
        ("attention_output/attention", {"act_size": 7}, "act_size"),
        ("unbox/unbox", {"k": None}, "k in"),
        ("unbox/unbox", {"d_model": 9}, "d_model"),
        ("dictionary_learning/crosscoder-normalised", {}, "keep_relative_variance"),
        (VSAE + "topk-third", {}, "selection="),
        (VSAE + "topk-fourth", {"architecture_version": "v9"}, "selection="),
        (VSAE + "topk-first-raw", {}, "rescale="),
        (VSAE + "topk-fourth", {"var_flag": 1}, "var_flag"),
        (VSAE + "topk-fourth", {"use_april_update_mode": False}, "use_april_update_mode"),
        (VSAE + "topk-fourth", {"decoder_init_scale": 1.0}, "decoder_init_scale"),
        (VSAE + "topk-fourth", {"k": 4}, "k in"),
        (VSAE + "topk-fourth", {"dict_size": 17}, "dict_size"),
        (VSAE + "topk-masked", {"wobble": 1}, "wobble"),
        (VSAE + "iso", {"log_var_init": -2.0}, "either sign"),
        (VSAE + "iso", {"dict_class": "VSAEGated"}, "VSAEGated: its magnitudes"),
        (VSAE + "iso", {"dict_class": "VSAEBatchTopK"}, "rows of a batch"),
        (VSAE + "iso", {"dict_class": "VSAEJumpReLU"}, "earlier"),
    ],
)
def test_settings_that_are_refused(copied, name, changes, said):
    with pytest.raises(FormatError, match=said):
        load_sae(edit(copied(name), **changes))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("saelens/finetuned", {"scaling_factor": torch.ones(6)}, "scaling_factor"),
        ("saelens/matching_pursuit", {"W_dec": torch.ones(16, 6)}, "norm 1"),
        ("sparsify/topk", {"W_dec": torch.ones(6, 16)}, "W_dec"),
        ("sparsify/topk", {"W_dec": None}, "W_dec"),
        ("sparsify/topk", {"encoder__bias": torch.full((16,), torch.nan)}, "finite"),
        ("gemma_scope/residual", {"threshold": torch.zeros(3)}, "threshold"),
        ("gemma_scope/residual", {"scaling_factor": torch.full((16,), 2.0)}, "scaling_factor"),
        ("gemma_scope/second", {"w_dec": torch.zeros(16, 4, 6)}, "cross-layer"),
        ("goodfire/goodfire", {"encoder_linear__weight": torch.zeros(6, 16)}, "encoder_linear"),
        ("qwen_scope/qwen_scope", {"W_enc": torch.zeros(6, 16)}, "W_enc"),
        ("qwen_scope/qwen_scope", {"more": torch.zeros(6)}, "more"),
        ("crosscoder/two", {"b_dec": torch.zeros(3, 2)}, "shapes"),
        ("circuit_tracer/relu", {"log_thresholds": torch.zeros(16)}, "log_thresholds"),
        ("openmoss/scope", {"encoder_glu__weight": torch.zeros(16, 6)}, "encoder_glu"),
        ("batchtopk/topk-True", {"b_enc": torch.zeros(16, dtype=torch.int32)}, "b_enc"),
        ("dictionary_learning/batchcrosscoder", {"threshold": torch.tensor(-1.0)}, "threshold"),
        (VSAE + "topk-second", {"threshold": None}, "selection="),
        (VSAE + "topk-second", {"k": torch.tensor(3.0)}, "one integer"),
        (VSAE + "topk-second", {"k": None}, "must hold k"),
        (VSAE + "topk-fourth-var", {"var_encoder__bias": None}, "var_encoder.bias"),
        (VSAE + "jumprelu", {"threshold": torch.zeros(3)}, "threshold"),
        ("dictionary_learning/batchcrosscoder", {"code_normalization_id": torch.tensor(4)}, "NONE"),
        ("overcomplete/topk-state", {"dictionary___weights": torch.ones(16, 6)}, "normalization="),
        ("overcomplete/jump-state", {"thresholds": torch.zeros(3)}, "thresholds"),
        ("overcomplete/jump-state", {"encoder__mlp_blocks__0": torch.zeros(3)}, "linear"),
    ],
)
def test_tensors_that_are_refused(copied, name, changes, said):
    folder = copied(name)
    options = {"rule": "topk", "k": 3} if name == "overcomplete/topk-state" else {}
    with pytest.raises(FormatError, match=said):
        load_sae(retensor(folder, **changes), **options)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("batchtopk/batchtopk", "threshold", 0.3),
        ("linear/linear", "rule", "topk"),
        ("overcomplete/topk-state", "rule", "topk"),
        ("overcomplete/archetypal-state", "delta", 0.1),
        ("qwen_scope/qwen_scope", "k", 2),
        (VSAE + "topk-third", "selection", "abs"),
        (VSAE + "topk-first-raw", "rescale", True),
    ],
)
def test_what_a_file_leaves_open_is_asked_for(copied, name, option, value):
    """By the option's name, and it makes a difference."""
    folder = copied(name)
    if name in ("linear/linear", "qwen_scope/qwen_scope"):  # told by names of files and folders
        target = folder.parent.parent / "bare"
        target.mkdir()
        named = "sae.pt" if name == "linear/linear" else "layer4.sae.pt"
        folder = Path(shutil.copy(weights(folder), target / named)).parent
    rest = {"rule": "topk", "k": 3, "delta": 0.4, "subtract": True} if "archetypal" in name else {}
    rest = {"k": 3, "subtract": True, "rule": "relu"} if name == "linear/linear" else rest
    rest = {"k": 3} if name == "overcomplete/topk-state" else rest
    rest.pop(option, None)
    if name == "overcomplete/archetypal-state":
        rest.pop("subtract")
    if name == "linear/linear" and option == "rule":
        with pytest.raises(FormatError, match="activation="):
            load_sae(folder, subtract=True)
    else:
        with pytest.raises(FormatError, match=f"{option}="):
            load_sae(folder, **rest)
    sae = load_sae(folder, **rest, **{option: value})
    assert sae.encode(torch.ones(2, sae.d_in)).shape == (2, sae.d_sae)
    with pytest.raises(ConfigError, match="wobble"):
        load_sae(folder, **rest, **{option: value}, wobble=1)


def test_what_a_variational_file_decides_is_not_overruled():
    """Signs are kept where |mu| selects, and only there; rows are rescaled as on loading, unless told not."""
    for name, given in (("topk-third-abs", {"selection": "abs"}), ("topk-masked", {})):
        codes = load_sae(ROOT / (VSAE + name), **given).encode(torch.randn(50, 6))
        assert (codes != 0).sum(1).tolist() == [3] * 50
        assert (codes < 0).any()
    folder = ROOT / (VSAE + "topk-fourth")
    with pytest.raises(FormatError, match="selection"):
        load_sae(folder, selection="abs")
    with pytest.raises(FormatError, match="rescale"):
        load_sae(folder, rescale="yes")
    sae, raw = load_sae(folder), load_sae(folder, rescale=False)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(16))
    assert torch.equal(raw.W_dec, torch.load(folder / "ae.pt")["decoder.weight"].t())


def test_hooks_and_heads_are_said_by_the_user():
    where = ROOT / "attention_output/attention/attn-saes-gpt2-small-all-layers"
    assert load_sae(where).hook.n_heads == 2
    scope = ROOT / "gemma_scope/attention/gemma-scope-9b-pt-att/layer_3/width_16k/average_l0_71"
    assert load_sae(scope).hook.name == "blocks.3.attn.hook_z"
    assert load_sae(scope, n_heads=3).hook.n_heads == 3
    openai = ROOT / "unbox/unbox"
    assert load_sae(openai).config.hook is None
    assert load_sae(openai, hook="down_blocks.2").hook.name == "down_blocks.2"
    elsewhere = {"n_heads": 2, "hook": "blocks.1.ln"}
    for options in ({"n_heads": 4}, {"n_heads": 0}, {"n_heads": True}, elsewhere):
        with pytest.raises(ConfigError, match="n_heads"):
            load_sae(scope, **options)


def test_orientation_comes_from_the_format_not_from_shapes():
    """Where d_in = d_sae the same names lie both ways, and shapes fit either."""
    way = torch.load(next((ROOT / "qwen_scope/qwen_scope-square").rglob("*.pt")))
    square = ROOT / "qwen_scope/qwen_scope-square/SAE-Res-Qwen3-1.7B-Base-W32K-L0_3"
    assert torch.equal(load_sae(square).W_enc, way["W_enc"].t())
    other = next((ROOT / "attention_output/attention-square").rglob("*.pt"))
    assert torch.equal(load_sae(other).W_enc, torch.load(other)["W_enc"])


def test_what_equals_a_threshold_of_overcomplete_is_on(tmp_path):
    """>= there, > here: ours is the next smaller number."""
    logs = torch.tensor([-1.0, -0.3, 0.2, 1.1])
    state = {"dictionary._weights": torch.eye(4), "encoder.weight": torch.eye(4), "thresholds": logs}
    torch.save(state, tmp_path / "sae.pt")
    sae, x = load_sae(tmp_path), logs.exp()[None]
    assert (sae.encode(x) == x).all()
    assert (sae.encode(torch.nextafter(x, torch.zeros(1))) == 0).all()
    assert torch.from_numpy(sae.encode_sparse(x).dense()).tolist() == x.tolist()


def test_a_folder_of_several_saes_is_not_guessed_at(tmp_path):
    path = next((ROOT / "goodfire/goodfire").rglob("*.pth"))
    for name in ("a-l1.pth", "b-l2.pth"):
        shutil.copy(path, tmp_path / name)
    with pytest.raises(FormatError, match="a-l1"):
        load_sae(tmp_path)
    assert load_sae(tmp_path, "b-l2.pth").hook.name == "blocks.2.hook_resid_post"
    assert load_sae(tmp_path / "a-l1.pth").hook.name == "blocks.1.hook_resid_post"


def test_what_is_written_to_weights_does_not_reach_the_file(copied):
    """They are mapped where they need no conversion."""
    for name in ("saelens/standard", "unbox/unbox", "gemma_scope/residual"):
        folder = copied(name)
        before = weights(folder).read_bytes()
        sae = load_sae(folder)
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.add_(1)
        assert weights(folder).read_bytes() == before
        assert not torch.equal(load_sae(folder).W_dec, sae.W_dec)


def test_topk_is_not_loaded_as_relu(copied):
    """As a peer's loader did where activation_fn_kwargs said k."""
    sae = load_sae(ROOT / "saelens/topk")
    assert sae.config.recipe == "topk"
    assert int((sae.encode(torch.randn(50, 6)) != 0).sum(1).max()) <= 3


def test_cross_layer_and_temporal_are_refused_with_the_reason(tmp_path):
    tensors = {"W_enc_3": torch.zeros(16, 6), "b_enc_3": torch.zeros(16), "b_dec_3": torch.zeros(6)}
    safetensors.torch.save_file(tensors, tmp_path / "W_enc_3.safetensors")
    safetensors.torch.save_file({"W_dec_3": torch.zeros(16, 2, 6)}, tmp_path / "W_dec_3.safetensors")
    (tmp_path / "config.yaml").write_text("model_name: x\n")
    with pytest.raises(FormatError, match=r"every layer from 0 on\. Got \[3\]"):
        load_sae(tmp_path)
    folder = tmp_path / "temporal"
    folder.mkdir()
    safetensors.torch.save_file(
        {"D": torch.zeros(16, 6), "b": torch.zeros(6)}, folder / "latest_ckpt.safetensors"
    )
    (folder / "conf.yaml").write_text("llm:\n  dimin: 6\n")
    assert sniff(folder).format == "temporal"
    with pytest.raises(FormatError, match="rows before"):
        load_sae(folder)
    for text in ("a: &x [1]\nb: *x\n", "[1]", "a: [" + "[" * 50, "\x00", "a: !!python/object:os.system {}"):
        (folder / "conf.yaml").write_text(text)
        with pytest.raises(FormatError, match=r"conf\.yaml"):
            load_sae(folder)


def test_weights_are_read_in_the_dtype_that_was_asked_for():
    for name in ("saelens/jumprelu", "sparsify/topk", "openmoss/jumprelu", "overcomplete/jump"):
        sae = load_sae(ROOT / name / ("layers.1" if "sparsify" in name else ""), dtype="bfloat16")
        assert {t.dtype for t in sae.state_dict().values() if t.is_floating_point()} == {torch.bfloat16}
        full = load_sae(ROOT / name / ("layers.1" if "sparsify" in name else ""))
        torch.testing.assert_close(sae.W_dec.float(), full.W_dec, rtol=2e-2, atol=1e-2)


def test_numbers_that_overflow_are_refused(tmp_path):
    big = SAE.create(recipe("relu", d_in=4, d_sae=8))
    with torch.no_grad():
        big.b_dec[0] = 1e6
    save_sae(big, tmp_path, "saelens")
    load_sae(tmp_path)
    with pytest.raises(FormatError, match="finite in float16"):
        load_sae(tmp_path, dtype="float16")


class Executes:
    ran = 0

    def __reduce__(self):
        return Executes.run, ()

    @staticmethod
    def run():
        Executes.ran += 1


def test_pickles_of_objects_run_nothing(copied, tmp_path):
    """Neither what a pickle calls, nor what it sets on what it imports."""
    folder = copied("vision/prisma")
    path = weights(folder)
    state = torch.load(next((ROOT / "openai/TopK").rglob("*.pt")))
    for evil in (Executes(), {"cfg": Executes(), "state_dict": {"W_enc": torch.ones(2, 2)}}, [Executes()]):
        torch.save(evil, path)
        with pytest.raises(FormatError):
            load_sae(folder)
    torch.save({**state, "more": Executes()}, path)
    load_sae(folder)
    before = vars(torch._utils._rebuild_tensor_v2).copy(), torch._utils._rebuild_tensor_v2.__defaults__

    # BUILD on what was imported: attributes of torch's function
    data = (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x04\x00\x00\x00evilK\x01s"
            b"}X\x0c\x00\x00\x00__defaults__K\x01s\x86b.")  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sae/data.pkl", data)
        archive.writestr("sae/version", "3")
        archive.writestr("sae/byteorder", "little")
    with pytest.raises(FormatError):
        load_sae(folder)
    after = vars(torch._utils._rebuild_tensor_v2).copy(), torch._utils._rebuild_tensor_v2.__defaults__
    assert before == after
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))
    with pytest.raises(FormatError, match="TorchScript"):
        load_sae(folder)
    path.write_bytes(pickle.dumps({"cfg": 1}))
    with pytest.raises(FormatError, match="named tensors"):
        load_sae(folder)
    assert Executes.ran == 0


MUTATED = ["sparsify/skip/layers.1", "openmoss/jumprelu", "batchtopk/topafa-True", "unbox/unbox",
           "crosscoder/two",
           "overcomplete/topk-norm", "vision/prisma-gated", "openai/TopK/resid_post_mlp_v5_32k/autoencoders",
           "dictionary_learning/backup", "saelens/finetuned", "dictionary_learning/batchcrosscoder",
           "gemma_scope/residual/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_71",
           "circuit_tracer/skip/qwen3-4b-transcoders"]  # fmt: skip


@pytest.mark.parametrize("name", MUTATED)
def test_mutated_files_are_refused_or_load(name, tmp_path):
    """A FormatError, or an SAE that encodes; nothing else."""
    assert len(mutations.loaded(ROOT / name, tmp_path / "mutated", range(40))) < 40
