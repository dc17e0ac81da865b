"""Formats: what is refused and why, hostile files, exact thresholds."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import mutations
import numpy as np
import pytest
import safetensors.torch
import torch

import saelab
from saelab import load_sae, save_sae
from saelab.formats import names, reading, sniff
from saelab.sae import SAE, recipe, recipes
from saelab.types import ConfigError, FormatError, NonFiniteError

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"
LENS, DL = "saelens/", "dictionary_learning/"


@pytest.fixture
def copied(tmp_path):
    """A golden folder that may be changed: name -> path."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(GOLDEN / name, tmp_path / "sae", dirs_exist_ok=True))

    return copy


def edit(folder: Path, part: str | None = None, **changes) -> Path:
    """Change the config; a value of ... drops its key."""
    path = next(folder.glob("*.json"))
    document = json.loads(path.read_text())
    at = document if part is None else document[part]
    at.update(changes)
    for key in [key for key, value in changes.items() if value is ...]:
        del at[key]
    path.write_text(json.dumps(document))
    return folder


def retensor(folder: Path, **changes) -> Path:
    """Change the tensors; None drops one. A dot in a name is written as two underscores."""
    path = next(file for file in folder.iterdir() if file.suffix != ".json")
    tensors = torch.load(path) if path.suffix == ".pt" else safetensors.torch.load_file(path)
    for name, tensor in changes.items():
        tensors[name.replace("__", ".")] = tensor
        if tensor is None:
            del tensors[name.replace("__", ".")]
    torch.save(tensors, path) if path.suffix == ".pt" else safetensors.torch.save_file(tensors, path)
    return folder


def test_the_formats():
    assert set(names()) == {
        "saelab", "saelens", "dictionary_learning", "sparsify", "gemma_scope", "openmoss", "batchtopk",
        "attention_output", "unbox", "circuit_tracer", "temporal", "openai", "goodfire", "qwen_scope",
        "crosscoder", "overcomplete", "vision", "linear", "plain",
    }  # fmt: skip
    assert saelab.formats.names is names


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("topk", {"architecture": "temporal"}, "temporal"),
        ("topk", {"architecture": ["topk"]}, "architecture"),
        ("topk", {"k": 17}, "k must be"),
        ("topk", {"k": True}, "k must be"),
        ("topk", {"k": 2.5}, "k must be"),
        ("topk", {"rescale_acts_by_decoder_norm": "yes"}, "rescale_acts"),
        ("topk", {"d_in": 7}, "W_enc"),
        ("topk", {"d_sae": 2**40}, "d_sae"),
        ("topk", {"d_in": 6.0}, "d_in"),
        ("standard", {"activation": "gelu"}, "activation"),
        ("standard", {"normalize_activations": "expected_average_only_in"}, "factor"),
        ("standard", {"normalize_activations": "covariance_whitening"}, "whiten"),
        ("standard", {"normalize_activations": "max"}, "max"),
        ("standard", {"apply_b_dec_to_input": 1}, "apply_b_dec_to_input"),
        ("standard", {"dtype": "float8"}, "float8"),
        ("standard", {"reshape_activations": "hook_q"}, "hook_q"),
        ("standard", {"reshape_activations": "hook_z"}, "_z"),
        ("standard", {"finetuning_scaling_factor": 1}, "finetuning"),
        ("standard", {"architecture": "jumprelu"}, "threshold"),
        ("jumprelu", {"architecture": "standard"}, "threshold"),
        ("standard", {"architecture": "gated"}, "b_enc"),
        ("standard", {"metadata": {"sae_lens_version": 5}}, "version"),
        ("standard", {"metadata": {"sae_lens_version": "6.1.0", "hook_head_index": 3}}, "hook_head_index"),
        ("standard", {"metadata": {"sae_lens_version": "6.1.0", "hook_name": 3}}, "hook name"),
        ("transcoder", {"apply_b_dec_to_input": True}, "apply_b_dec_to_input"),
        ("transcoder", {"apply_b_dec_to_input": ...}, "apply_b_dec_to_input"),
        ("transcoder", {"normalize_activations": "layer_norm"}, "raw input"),
        ("transcoder", {"d_out": ...}, "W_dec"),
    ],
)  # fmt: skip
def test_saelens_settings_that_are_refused(copied, name, changes, said):
    with pytest.raises(FormatError, match=said):
        load_sae(edit(copied(LENS + name), **changes))


def test_saelens_tensors_that_are_refused(copied):
    zero = torch.randn(16, 6)
    zero[3] = 0
    for name, changes, said in [
        ("standard", {"W_enc": torch.zeros(16, 6)}, "W_enc"),
        ("standard", {"b_enc": None}, "b_enc"),
        ("standard", {"extra": torch.zeros(1)}, "extra"),
        ("standard", {"b_dec": torch.full((6,), torch.nan)}, "b_dec.*finite"),
        ("standard", {"b_dec": torch.zeros(6, dtype=torch.int32)}, "b_dec"),
        ("standard", {"scaling_factor": torch.full((16,), 1.5)}, "Factors"),
        ("standard", {"scaling_factor": torch.ones(6)}, "scaling_factor"),
        ("topk-norms", {"W_dec": zero}, "norm 0"),
        ("batchtopk-checkpoint", {"topk_threshold": torch.tensor(0.0, dtype=torch.float64)}, "not set"),
    ]:
        folder = copied(LENS + name)
        with pytest.raises(FormatError, match=said):
            load_sae(retensor(folder, **changes))
        shutil.rmtree(folder)
    load_sae(retensor(copied(LENS + "standard"), scaling_factor=torch.ones(16)))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("AutoEncoder", {"dict_class": "IdentityDict"}, "IdentityDict"),
        ("AutoEncoder", {"dict_class": None}, "dict_class"),
        ("AutoEncoder", {"dict_class": "AutoEncoderNew"}, "decoder.bias"),
        ("AutoEncoder", {"normalize_activations": True}, "normalize_activations"),
        ("AutoEncoder", {"dict_size": 17}, "dict_size"),
        ("AutoEncoder", {"activation_dim": 16}, "activation_dim"),
        ("AutoEncoderTopK", {"k": 4}, "k in"),
        ("AutoEncoderTopK", {"k": 3.0}, "k in"),
        ("BatchTopKSAE", {"dict_class": "MatryoshkaBatchTopKSAE"}, "group_sizes"),
    ],
)  # fmt: skip
def test_dictionary_settings_that_are_refused(copied, name, changes, said):
    with pytest.raises(FormatError, match=said):
        load_sae(edit(copied(DL + name), "trainer", **changes))


def test_dictionary_tensors_that_are_refused(copied):
    for name, changes, said in [
        ("BatchTopKSAE", {"threshold": torch.tensor(-1.0)}, "not set"),
        ("MatryoshkaBatchTopKSAE", {"threshold": torch.tensor(-1.0)}, "not set"),
        ("BatchTopKSAE", {"threshold": None}, "threshold"),
        ("BatchTopKSAE", {"threshold": torch.zeros(16)}, "threshold"),
        ("BatchTopKSAE", {"k": torch.tensor(3.0)}, "k in"),
        ("BatchTopKSAE", {"encoder__weight": torch.zeros(6, 16)}, "encoder.weight"),
        ("MatryoshkaBatchTopKSAE", {"group_sizes": torch.tensor([2, 13])}, "groups"),
        ("AutoEncoder", {"decoder__weight": torch.zeros(6, 16)}, "norm 0"),
        ("AutoEncoder", {"bias": torch.full((6,), torch.inf)}, "bias.*finite"),
    ]:
        folder = copied(DL + name)
        with pytest.raises(FormatError, match=said):
            load_sae(retensor(folder, **changes))
        shutil.rmtree(folder)


def test_a_topk_dictionary_needs_neither_threshold_nor_stored_k(copied):
    """Its threshold is not used, and older files have neither."""
    before = load_sae(GOLDEN / DL / "AutoEncoderTopK")
    for changes in ({"threshold": torch.tensor(-1.0)}, {"threshold": None, "k": None}):
        assert (
            load_sae(retensor(copied(DL + "AutoEncoderTopK"), **changes)).fingerprint()
            == before.fingerprint()
        )


def test_what_equals_its_threshold_is_off(copied):
    """pre > threshold is strict, for thresholds whose logarithm no float32 holds too."""
    thresholds = torch.tensor([0.1, 0.3, 0.7, 1.7, 3.1, 9.3, -0.5, 0.0])
    folder = retensor(copied(LENS + "jumprelu-square"), threshold=thresholds, W_enc=torch.eye(8),
                      b_enc=torch.zeros(8), b_dec=torch.zeros(8))  # fmt: skip
    sae = load_sae(folder)
    x = torch.stack(
        [thresholds, torch.nextafter(thresholds, torch.tensor(torch.inf)), torch.tensor([1e-30] * 8)]
    )
    assert sae.encode(x).tolist() == (x * (x > thresholds)).relu().tolist()
    assert sae.encode_sparse(x).dense().tolist() == (x * (x > thresholds)).relu().tolist()
    assert (sae.encode(x)[0] != 0).sum() == 0
    assert (sae.encode(x)[1] != 0).sum() == 7


def test_weights_of_other_dtypes(copied):
    sae = load_sae(GOLDEN / LENS / "standard-bfloat16")
    assert sae.dtype == torch.float32
    assert sae.stored_dtype == "bfloat16"
    for dtype in ("float64", torch.float64):
        assert load_sae(GOLDEN / LENS / "standard", dtype=dtype).dtype == torch.float64
    for dtype in ("float", "nonsense", "int8", "load"):
        if dtype == "float":
            assert load_sae(GOLDEN / LENS / "standard", dtype=dtype).dtype == torch.float32
            continue
        with pytest.raises(ConfigError, match="dtype"):
            load_sae(GOLDEN / LENS / "standard", dtype=dtype)


def test_hooks_come_along():
    hook = "blocks.1.hook_resid_post"
    for name in (LENS + "topk", DL + "AutoEncoderTopK"):
        assert load_sae(GOLDEN / name).hook.name == hook
    skip = load_sae(GOLDEN / LENS / "skip_transcoder")
    assert [skip.hook.name, skip.writes[0].name] == [hook, "blocks.1.hook_mlp_out"]


def test_the_path(tmp_path):
    name = LENS + "topk"
    assert load_sae(GOLDEN, name).fingerprint() == load_sae(str(GOLDEN / name)).fingerprint()
    for path, subfolder, said in [
        (GOLDEN / "nothing", None, "not there"),
        (GOLDEN / name / "cfg.json", None, "a file"),
        (tmp_path, None, "one of the formats"),
        (GOLDEN / name, "../standard", "subfolder"),
        (GOLDEN / name, str(GOLDEN / name), "subfolder"),
        (GOLDEN / name, "C:\\x", "subfolder"),
        (GOLDEN, 3, "subfolder"),
    ]:
        with pytest.raises(FormatError, match=said):
            load_sae(path, subfolder)
    with pytest.raises(ConfigError, match="saelens"):
        load_sae(GOLDEN / name, format="saelense")
    with pytest.raises(ConfigError, match="format"):
        save_sae(load_sae(GOLDEN / name), tmp_path, format="npz")
    with pytest.raises(FormatError, match="dictionary_learning"):
        load_sae(GOLDEN / name, format="dictionary_learning")


def test_two_formats_in_a_folder_are_told_apart_by_the_user(copied):
    folder = copied(LENS + "topk")
    copied(DL + "AutoEncoder")
    with pytest.raises(FormatError, match="format="):
        sniff(folder)
    assert load_sae(folder, format="saelens").config.recipe == "topk"
    assert sniff(folder, format="dictionary_learning").format == "dictionary_learning"


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_exported_or_refused_by_name(name, tmp_path):
    """What comes back gives the same codes."""
    torch.manual_seed(0)
    d_out = 5 if "transcoder" in name else 6 if name == "clt" else None
    several = {"crosscoder": {"widths": [2, 4]}, "clt": {"layers": 2}}.get(name, {})
    config = recipe(name, d_in=6, d_sae=64, d_out=d_out, **several)
    x, y = torch.randn(200, 6) + 1, torch.randn(200, d_out or 6)
    sae = SAE.create(config, rows=x, targets=y if d_out else None)
    x = torch.randn(200, 6) + 1  # others: a learned threshold equals a code of the rows it is from
    linear = {"topk", "batchtopk", "jumprelu", "matryoshka", "gated", "gba", "relu", "mutual_choice"}
    linear |= {"feature_choice", "variational", "archetypal", "ortsae"}
    can = {
        "saelens": linear | {"abs_topk"},
        "dictionary_learning": linear,
        "sparsify": {"topk", "group_max", "archetypal", "variational"},
    }
    for format, names_ in can.items():
        if name not in names_:
            with pytest.raises(FormatError, match=config.title):
                save_sae(sae, tmp_path, format)
            continue
        again = load_sae(save_sae(sae, tmp_path / format, format))
        torch.testing.assert_close(again.encode(x), sae.encode(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again(x).x_hat, sae(x).x_hat, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"finish_step": False}, "finish_step=True"),
        ({"apply_b_dec_to_input": False}, "b_dec only where"),
        ({"normalise": "scalar"}, "norm 1"),
    ],
)
def test_why_a_matching_pursuit_is_not_that_of_saelens(own, why, tmp_path):
    torch.manual_seed(0)
    config = recipe(
        "matching_pursuit", d_in=6, d_sae=16, **({"finish_step": True, "normalise": "none"} | own)
    )
    sae = SAE.create(config, rows=torch.randn(50, 6) + 1)
    with pytest.raises(FormatError, match=why):
        save_sae(sae, tmp_path, "saelens")


def test_what_else_cannot_be_exported(tmp_path):
    layernorm = SAE.create(recipe("relu", d_in=6, d_sae=16, normalise="layernorm"))
    zscore = SAE.create(recipe("relu", d_in=6, d_sae=16, normalise="zscore"))
    broken = SAE.create(recipe("relu", d_in=6, d_sae=16))
    broken.b_dec.data[0] = torch.nan
    for sae, format, error, said in [
        (layernorm, "saelens", FormatError, "layernorm"),
        (zscore, "dictionary_learning", FormatError, "zscore"),
        (broken, "saelens", NonFiniteError, "b_dec"),
    ]:
        with pytest.raises(error, match=said):
            save_sae(sae, tmp_path, format)
    assert not list(tmp_path.iterdir())


# ---- hostile files --------------------------------------------------------------------------------------


def written(folder: Path, *tensors, **options) -> Path:
    """ae.pt as torch.save writes it."""
    torch.save(*tensors, folder / "ae.pt", **options)
    return folder


class Executes:
    ran = 0

    def __reduce__(self):
        return Executes.run, ()

    @staticmethod
    def run():
        Executes.ran += 1


def repacked(folder: Path, change, method=zipfile.ZIP_STORED) -> Path:
    """ae.pt with data.pkl changed by a function, all stored by `method`."""
    with zipfile.ZipFile(folder / "ae.pt") as archive:
        files = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(folder / "ae.pt", "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return folder


def test_hostile_pickles(copied):
    state = torch.load(GOLDEN / DL / "AutoEncoder" / "ae.pt")
    nested = ()
    for _ in range(200):
        nested = (nested, nested)
    big = {**state, "bias": torch.zeros(1).expand(10**9)}
    shared = torch.randn(1000)
    for make, said in [
        (lambda f: written(f, {**state, "bias": Executes()}), "must hold bias"),
        (lambda f: written(f, [nested]), "tuples"),
        (lambda f: written(f, big), "stored whole"),
        (lambda f: written(f, {1: state["bias"]}), r"must hold bias.*Got \['1'\]"),
        (lambda f: written(f, {"ae": state, "epoch": 3}), "backup"),
        (lambda f: written(f, [state["bias"]]), "named tensors"),
        (lambda f: written(f, {**state, "bias": state["bias"].to_sparse()}), "ae.pt"),
        (lambda f: (f / "ae.pt").write_bytes(pickle.dumps({"bias": 1})) and f, "named tensors"),
        (lambda f: repacked(f, lambda data: data, zipfile.ZIP_DEFLATED), "uncompressed"),
        (lambda f: repacked(f, lambda data: data[:-30]), "readable"),
        # the storages of 96 numbers say that they have 255
        (lambda f: repacked(f, lambda data: data.replace(b"K\x60", b"K\xff")), "sizes|readable"),
    ]:  # fmt: skip
        folder = copied(DL + "AutoEncoder")
        make(folder)
        with pytest.raises(FormatError, match=said):
            load_sae(folder)
    assert Executes.ran == 0
    # as torch.save wrote before torch 1.6
    before = written(copied(DL + "AutoEncoder"), state, _use_new_zipfile_serialization=False)
    assert load_sae(before).fingerprint() == load_sae(GOLDEN / DL / "AutoEncoder").fingerprint()
    # tensors may share a storage and be views, as torch.save keeps them
    views = {**state, "bias": shared[10:16]}
    assert load_sae(written(copied(DL + "AutoEncoder"), views)).b_dec.tolist() == shared[10:16].tolist()


def test_hostile_safetensors(copied):
    path = copied(LENS + "standard") / "sae_weights.safetensors"
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    for bad in [
        (2**63).to_bytes(8, "little") + data[8:],
        (2**24 + 1).to_bytes(8, "little") + data[8:],
        data[:8] + b'{"a":' * (n // 5) + data[8 + n // 5 * 5 :],
        data[:8] + data[8 : 8 + n].replace(b"[6,16]", b"[9,16]") + data[8 + n :],
        data[:5], data[:100], data[:-4], b"", b"{}", data + b"x",
    ]:  # fmt: skip
        path.write_bytes(bad)
        with pytest.raises(FormatError, match="sae_weights"):
            load_sae(path.parent)


def test_hostile_json(copied):
    path = copied(LENS + "standard") / "cfg.json"
    text = path.read_text()
    for bad in [
        "[" * 10**5, '{"a":' * 40 + "1" + "}" * 40, "[1]", "3", "", "{", text[:-1], "\xff",
        text.replace("{", '{"d_in": 6, ', 1), text.replace("6,", "NaN,", 1),
        text.replace("6,", "9" * 10**4 + ",", 1), text + " " * 2**24,
    ]:  # fmt: skip
        path.write_bytes(bad.encode("latin-1"))
        with pytest.raises(FormatError, match=r"cfg\.json"):
            load_sae(path.parent)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(FormatError):
        load_sae(path.parent)


def test_npz(tmp_path):
    path = tmp_path / "params.npz"
    arrays = {"W": np.arange(6, dtype=np.float32).reshape(2, 3), "t": np.float64(0.5)}
    np.savez(path, **arrays)
    file = reading.npz_file(path)
    assert file.info == {"W": ((2, 3), "float32"), "t": ((), "float64")}
    assert file.read("W").tolist() == arrays["W"].tolist()
    assert file.read("t").item() == 0.5

    def bare(header: bytes) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("W.npy", header)

    def lying() -> None:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
        )
        bare(header.getvalue() + bytes(64))

    for make, said in [
        (lambda: np.savez(path, W=np.array([Executes()], dtype=object)), "dtype"),
        (lambda: np.savez_compressed(path, W=np.zeros(10**7, dtype=np.float32)), "unpack"),
        (lambda: np.savez(path, W=np.array(["a"])), "dtype"),
        (lambda: bare(b"\x93NUMPY\x09\x00"), "params.npz"),
        (lambda: bare(b""), "params.npz"),
        (lying, "stored whole"),
        (lambda: path.write_bytes(b"PK"), "params.npz"),
    ]:
        make()
        with pytest.raises(FormatError, match=said):
            reading.npz_file(path)
    np.savez(path, W=np.array([np.nan]))
    with pytest.raises(FormatError, match="finite"):
        reading.npz_file(path).read("W")
    assert Executes.ran == 0


MUTATED = [LENS + "jumprelu", LENS + "topk-norms", LENS + "skip_transcoder", DL + "BatchTopKSAE",
           DL + "AutoEncoder", DL + "MatryoshkaBatchTopKSAE", "saelab"]  # fmt: skip


@pytest.mark.parametrize("name", MUTATED)
def test_mutated_files_are_refused_or_load(name, tmp_path):
    """600 of them: a FormatError, or an SAE that encodes; nothing else."""
    source = GOLDEN / name
    if name == "saelab":
        sae = SAE.create(recipe("archetypal", d_in=6, d_sae=16, k=3))
        source = save_sae(sae, tmp_path / "source")
    found = mutations.loaded(source, tmp_path / "mutated", range(86))
    for sae in found:
        sae.check_parameters()
    assert 0 < len(found) < 60
