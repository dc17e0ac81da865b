"""No configuration that a reader can see is ignored: in every format an unknown setting refuses by name, and
a file that is asked for by name does not take the configuration of another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from saelab import load_sae, save_sae
from saelab.formats import names
from saelab.sae import SAE, recipe
from saelab.types import FormatError, SaelabError

GOLDEN = Path(__file__).parents[1] / "golden"
RELEASES = GOLDEN / "releases"
# format -> (folder, parts of its configuration by path; () is the whole of it)
FILES = {
    "saelens": ("formats/saelens/standard", [(), ("metadata",)]),
    "saelens-5": ("releases/saelens/standard", [()]),
    "dictionary_learning": ("formats/dictionary_learning/AutoEncoder", [(), ("trainer",), ("buffer",)]),
    "dictionary_learning-crosscoder": ("releases/dictionary_learning/crosscoder", [(), ("trainer",)]),
    "dictionary_learning-vsae": ("releases/dictionary_learning/vsae-iso", [(), ("trainer",)]),
    "sparsify": ("releases/sparsify/transcode/layers.1", [()]),
    "gemma_scope": ("releases/gemma_scope/second", [()]),
    "openmoss": ("releases/openmoss/relu", [()]),
    "batchtopk": ("releases/batchtopk/vanilla-True", [()]),
    "attention_output": ("releases/attention_output/attention", [()]),
    "unbox": ("releases/unbox/unbox", [()]),
    "circuit_tracer": ("releases/circuit_tracer/relu", [()]),
    "crosscoder": ("releases/crosscoder/two", [()]),
}
# these have their settings within the file, or none: (folder, path within the pickle, options)
WITHIN = {
    "openai": ("releases/openai/ReLU", ()),
    "goodfire": ("releases/goodfire/goodfire", ()),
    "qwen_scope": ("releases/qwen_scope/qwen_scope", ()),
    "linear": ("releases/linear/linear", ()),
    "vision": ("releases/vision/hugofry", ("cfg",)),
}
OWN = {("unbox", "k"), ("sparsify", "k"), ("sparsify", "activation")}
UNKNOWN = {"activation": "topk", "foo": 1, "input_mean": 0.5, "k": 4}


@pytest.fixture
def copied(tmp_path):
    def copy(name: str) -> Path:
        target = tmp_path / "sae"
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(GOLDEN / name, target))

    return copy


def tensors(folder: Path) -> Path:
    found = [p for p in sorted(folder.rglob("*")) if p.suffix in (".pt", ".pth", ".npz", ".safetensors")]
    return next(p for p in found if p.stem not in ("mean", "std"))


def place(folder: Path, path: Path) -> Path:
    """The folder that is loaded: that of the weights."""
    at = tensors(folder).parent
    return at.parent if at.name == "checkpoints" else at


def put(path: Path, part: tuple[str, ...], key: str, value) -> None:
    document = yaml.safe_load(path.read_text()) if path.suffix == ".yaml" else json.loads(path.read_text())
    at = document
    for name in part:
        at = at.setdefault(name, {})
    at[key] = value
    path.write_text(yaml.safe_dump(document) if path.suffix == ".yaml" else json.dumps(document))


def codes(folder: Path) -> torch.Tensor:
    sae = load_sae(folder)
    generator = torch.Generator().manual_seed(0)
    return sae.encode(torch.randn(50, sae.d_in, generator=generator) + 0.5)


@pytest.mark.parametrize("key", UNKNOWN)
@pytest.mark.parametrize(("name", "part"), [(n, part) for n, (_, parts) in FILES.items() for part in parts])
def test_a_setting_in_a_configuration_is_not_ignored(copied, name, part, key):
    folder = copied(FILES[name][0])
    before = codes(place(folder, folder))
    files = [*folder.rglob("*cfg.json"), *folder.rglob("config.*"), *folder.rglob("hyperparams.json")]
    assert files
    put(files[0], part, key, UNKNOWN[key])
    if part in (("metadata",), ("buffer",)) and key in ("foo", "input_mean"):  # passed over as a whole
        assert torch.equal(codes(place(folder, folder)), before)
        return
    if (name, key) in OWN:  # a setting of its own, which is read
        if key == "k":
            assert not torch.equal(codes(place(folder, folder)), before)
        return
    with pytest.raises(FormatError, match=key):
        load_sae(place(folder, folder))
    if key == "foo":
        assert torch.equal(load_sae(place(folder, folder), ignore="foo").W_enc, _plain(copied, name).W_enc)


def _plain(copied, name: str) -> SAE:
    folder = copied(FILES[name][0])
    return load_sae(place(folder, folder))


@pytest.mark.parametrize("key", UNKNOWN)
@pytest.mark.parametrize("name", WITHIN)
def test_a_setting_within_a_file_is_not_ignored(copied, name, key):
    folder, part = copied(WITHIN[name][0]), WITHIN[name][1]
    path = tensors(folder)
    before = codes(path.parent)
    data = torch.load(path, weights_only=False) if name != "vision" else _as_dict(path)
    at = data
    for step in part:
        at = at[step]
    at[key] = UNKNOWN[key]
    torch.save(data, path)
    if (name, key) == ("qwen_scope", "activation"):  # it is one
        assert torch.equal(codes(path.parent), before)
        return
    with pytest.raises(FormatError, match=key):
        codes(path.parent)
    assert before.any()


def _as_dict(path: Path) -> dict:
    """A configuration that is a dict, as the same library writes it."""
    return {
        "cfg": {"d_in": 6, "d_sae": 16, "hook_point_layer": 9, "normalize_activations": "none"},
        "state_dict": {
            "W_enc": torch.randn(6, 16), "W_dec": torch.randn(16, 6),
            "b_enc": torch.randn(16), "b_dec": torch.randn(6),
        },
    }  # fmt: skip


@pytest.mark.parametrize("key", UNKNOWN)
@pytest.mark.parametrize("name", ["goodfire", "qwen_scope", "linear"])
@pytest.mark.parametrize("file", ["config.json", "cfg.json", "{stem}.json", "{stem}_cfg.json"])
def test_a_setting_beside_a_bare_file_is_not_ignored(copied, name, file, key):
    folder = copied(WITHIN[name][0])
    path = tensors(folder)
    (path.parent / file.format(stem=path.stem)).write_text(json.dumps({key: UNKNOWN[key]}))
    if name == "qwen_scope" and key == "activation":
        load_sae(path)  # which it is
        return
    for where in (path, path.parent):
        with pytest.raises(FormatError, match=key):
            load_sae(where)


def test_settings_that_say_what_is_so_are_taken(copied):
    path = tensors(copied("releases/goodfire/goodfire"))
    told = {"activation": "ReLU", "d_in": 6, "dict_size": 16, "lr": 1e-3, "apply_b_dec_to_input": False}
    (path.parent / "config.json").write_text(json.dumps(told))
    assert load_sae(path).d_sae == 16
    (path.parent / "config.json").write_text(json.dumps(told | {"dict_size": 17}))
    with pytest.raises(FormatError, match="dict_size"):
        load_sae(path)


def test_our_own_format_ignores_nothing(tmp_path):
    save_sae(SAE.create(recipe("topk", d_in=6, d_sae=16, k=3)), tmp_path)
    text = (tmp_path / "config.json").read_text()
    for part in ((), ("config",), ("config", "options")):
        for key in UNKNOWN:
            if (part, key) == (("config", "options"), "k"):
                continue  # of its own
            put(tmp_path / "config.json", part, key, UNKNOWN[key])
            with pytest.raises(SaelabError, match=key):
                load_sae(tmp_path)
            (tmp_path / "config.json").write_text(text)


def test_a_file_asked_for_by_name_does_not_take_another_ones_configuration(copied):
    """ae.pt is config.json's; of a file beside it nothing says so, unless it is alone or the user does."""
    folder = copied("formats/dictionary_learning/AutoEncoderTopK")
    other = torch.load(folder / "ae.pt")
    other["threshold"] = torch.tensor(0.7)
    torch.save(other, folder / "batchtopk.pt")
    with pytest.raises(FormatError, match=r"batchtopk\.pt") as error:
        load_sae(folder / "batchtopk.pt")
    assert "activation" in str(error.value)
    assert "not used: config.json" in str(error.value)
    assert load_sae(folder / "ae.pt").config.recipe == "topk"
    assert load_sae(folder / "batchtopk.pt", format="dictionary_learning").config.recipe == "topk"
    (folder / "ae.pt").unlink()
    assert load_sae(folder / "batchtopk.pt").config.recipe == "topk"


def test_a_crosscoder_of_another_kind_is_not_read_as_relu(copied):
    folder = copied("releases/crosscoder/two")
    for told in ({"activation": "topk", "normalise": "zscore", "k": 4}, {"k": 4}, {"sae_type": "batchtopk"}):
        (folder / "cfg.json").write_text(json.dumps(told))
        with pytest.raises(FormatError, match="normalise" if "normalise" in told else next(iter(told))):
            load_sae(folder)
    (folder / "cfg.json").unlink()
    assert load_sae(folder).config.recipe == "crosscoder"
    (folder / "cc_weights.pt").rename(folder / "0.pt")
    with pytest.raises(FormatError, match="activation"):
        load_sae(folder)
    (folder / "0_cfg.json").write_text(json.dumps({"l1_coeff": 2, "dict_size": 16}))
    assert load_sae(folder / "0.pt").d_sae == 16


@pytest.mark.parametrize("bare", [False, True])
def test_a_topk_crosscoder_keeps_the_largest_of_a_row(copied, bare):
    folder = copied("releases/crosscoder/two")
    w = torch.load(folder / "cc_weights.pt", weights_only=True)
    (folder / "cfg.json").write_text(json.dumps({"activation": "topk", "k": 4, "seed": 1}))
    if bare:
        (folder / "cfg.json").unlink()
        (folder / "cc_weights.pt").rename(folder / "0.pt")
        with pytest.raises(FormatError, match=r"no k.*Pass load_sae\(\.\.\., k="):
            load_sae(folder, activation="topk")
    else:
        with pytest.raises(FormatError, match=r"^activation must be what .* says, 'topk'"):
            load_sae(folder, activation="relu")
    sae = load_sae(folder, **({"activation": "topk", "k": 4} if bare else {}))
    x = torch.randn(50, sae.d_in, generator=torch.Generator().manual_seed(0))
    pre = torch.einsum("bmd,mdh->bh", x.reshape(50, 2, -1), w["W_enc"]) + w["b_enc"]
    top = pre.topk(4)
    codes = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    torch.testing.assert_close(sae.encode(x), codes)
    x_hat = (torch.einsum("bh,hmd->bmd", codes, w["W_dec"]) + w["b_dec"]).reshape(50, -1)
    torch.testing.assert_close(sae(x).x_hat, x_hat)
    assert (sae.encode(x) != 0).sum(1).max() == 4


def test_every_format_is_tried():
    tried = {name.partition("-")[0] for name in (*FILES, *WITHIN)} | {"saelab"}
    # a module saved whole has no configuration; temporal SAEs are refused; plain is asked for everything
    assert tried == set(names()) - {"overcomplete", "temporal", "plain"}
