"""Bare encoders and decoders: recognised in any wrapping, naming and orientation, asked about once, never
guessed at; codes against the formulas."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saelab
from saelab import load_sae
from saelab.cli import main
from saelab.formats import sniff
from saelab.types import ConfigError, FormatError

OPEN = {"activation": "relu", "apply_b_dec_to_input": False, "normalise": "none", "normalise_decoder": False}


def tensors(
    d_in: int = 6, d_sae: int = 16, unit: bool = False, d_out: int | None = None
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(d_in * 100 + d_sae)
    d_out = d_in if d_out is None else d_out
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
    w = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if unit:
        w["W_dec"] /= w["W_dec"].norm(dim=1, keepdim=True)
    return w


def rows(d_in: int = 6) -> Tensor:
    return torch.randn(40, d_in, generator=torch.Generator().manual_seed(5)) + 0.3


def codes(
    w: dict[str, Tensor], x: Tensor, activation: str, k: int = 3, threshold: float = 0.2, b=True
) -> Tensor:
    pre = (x - w["b_dec"] * b) @ w["W_enc"] + w["b_enc"]
    if activation == "relu":
        return pre.relu()
    if activation == "identity":
        return pre
    if activation in ("jumprelu", "batchtopk"):
        return pre.relu() * (pre > threshold)
    best = (pre.abs() if activation == "abs_topk" else pre).topk(k).indices
    kept = torch.zeros_like(pre).scatter(1, best, pre.gather(1, best))
    return kept if activation == "abs_topk" else kept.relu()


def same(sae, want: Tensor, w: dict[str, Tensor], x: Tensor) -> None:
    torch.testing.assert_close(sae.encode(x), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(x).x_hat, want @ w["W_dec"] + w["b_dec"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.from_numpy(sae.encode_sparse(x).dense()), want, rtol=1e-5, atol=1e-5)


def copied_call(error) -> str:
    """The call that the message gives to copy."""
    return re.search(r"saelab\.(load_sae\(.*\))$", str(error.value), re.MULTILINE)[1]


def save(path: Path, data: dict[str, Tensor]) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({name: t.contiguous() for name, t in data.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: t.numpy() for name, t in data.items()})
    else:
        torch.save(data, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".npz"])
@pytest.mark.parametrize(
    ("activation", "more"),
    [
        ("relu", {}), ("identity", {}), ("topk", {"k": 3}), ("abs_topk", {"k": 3}),
        ("jumprelu", {"threshold": 0.2}), ("batchtopk", {"k": 3, "threshold": 0.2}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("subtract", [False, True])
def test_every_activation_is_its_formula(tmp_path, suffix, activation, more, subtract):
    w, x = tensors(), rows()
    path = save(tmp_path / f"sae{suffix}", w)
    given_ = OPEN | {"activation": activation, "apply_b_dec_to_input": subtract} | more
    same(load_sae(path, **given_), codes(w, x, activation, b=subtract), w, x)
    assert sniff(path).format == "plain"
    again = {"rule": activation, "subtract": subtract, "normalise": "none", "normalise_decoder": False}
    assert load_sae(path, **again, **more).fingerprint() == load_sae(path, **given_).fingerprint()


NAMES = {
    "W": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "linear": ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"),
    "sequential": ("encoder.0.weight", "encoder.0.bias", "decoder.0.weight", "decoder.0.bias"),
    "openai": ("encoder.weight", "latent_bias", "decoder.weight", "pre_bias"),
    "dl": ("encoder.weight", "encoder.bias", "decoder.weight", "bias"),
    "short": ("enc.weight", "enc.bias", "dec.weight", "dec.bias"),
    "flat": ("encoder", "encoder_bias", "decoder", "decoder_bias"),
    "mixed": ("encoder.linear.weight", "encoder.linear.bias", "W_dec", "b_dec"),
}
WRAPPED = ("", "state_dict.", "model_state_dict.", "model.", "sae.", "module.", "state_dict.module.sae.")


@settings(max_examples=60, deadline=None)
@given(
    naming=st.sampled_from(sorted(NAMES)),
    wrapped=st.sampled_from(WRAPPED),
    sizes=st.sampled_from([(6, 16), (16, 6), (8, 8), (5, 1)]),
    turned=st.tuples(st.booleans(), st.booleans()),
    biases=st.sampled_from([(True, True), (False, True), (True, False)]),
)
def test_names_and_orientations(tmp_path_factory, naming, wrapped, sizes, turned, biases):
    """Codes are right, or, where nothing tells how a matrix lies, it is asked."""
    w, x = tensors(*sizes), rows(sizes[0])
    for bias, there in zip(("b_enc", "b_dec"), biases, strict=True):
        w[bias] = w[bias] * there
    linear = {name for name, own in zip(("W_enc", "W_dec"), NAMES[naming][::2], strict=True)
              if own.endswith(".weight")}  # fmt: skip
    # torch.nn.Linear stores [out in]: other .weight matrices are told by sizes alone
    lies = {
        n: t or (n in linear and sizes[0] == sizes[1])
        for n, t in zip(("W_enc", "W_dec"), turned, strict=True)
    }
    lies |= dict.fromkeys(linear, True) if not all(biases) else {}
    held: dict = {}
    at = held
    for part in wrapped.split(".")[:-1]:
        at = at.setdefault(part, {})
    for ours, theirs in zip(("W_enc", "b_enc", "W_dec", "b_dec"), NAMES[naming], strict=True):
        if ours.startswith("W") or biases[ours == "b_dec"]:
            at[theirs] = w[ours].t() if lies.get(ours) else w[ours]
    path = tmp_path_factory.mktemp("plain") / "x.pt"
    torch.save(held, path)
    # bare encoder.weight and pre_bias are asked for as such; a missing bias is not asked for
    answers = OPEN if biases[1] else {k: v for k, v in OPEN.items() if k != "apply_b_dec_to_input"}
    try:
        sae = load_sae(path, **answers)
    except FormatError:
        assert sizes[0] == sizes[1] or biases != (True, True) or 1 in sizes
        with pytest.raises(FormatError, match="transposed"):
            load_sae(path, **answers)
        sae = load_sae(path, **answers, transposed=[name for name, way in lies.items() if way])
    same(sae, codes(w, x, "relu", b=False), w, x)


def test_everything_is_asked_at_once_and_the_call_can_be_copied(tmp_path):
    path = save(tmp_path / "mine.safetensors", tensors())
    with pytest.raises(FormatError) as error:
        load_sae(path)
    said = str(error.value)
    for word in ("mine.safetensors", "W_enc", "[6 16]", "float32", "d_in=6", "d_sae=16", "'relu'", "'topk'",
                 "'jumprelu'", "'identity'", "apply_b_dec_to_input", "normalise_decoder", "'zscore'", "k  ",
                 "threshold"):  # fmt: skip
        assert word in said
    assert eval(copied_call(error)).d_sae == 16
    # what is said already is not asked again; what is still open is
    with pytest.raises(FormatError) as error:
        load_sae(path, activation="topk", normalise="none")
    assert "how codes come" not in str(error.value)
    assert "codes of a row" in str(error.value)
    assert "'jumprelu'" not in str(error.value)
    sae = eval(copied_call(error))
    assert sae.config.recipe == "topk"
    assert sae.config.options["k"] == 16


def test_the_calls_of_other_questions_can_be_copied(tmp_path):
    square, w = tensors(8, 8), tensors()
    tied = {"W_enc": w["W_enc"], "b_enc": w["b_enc"]}
    for i, data in enumerate((square, tied, w | {"mean": torch.ones(1, 6), "std": torch.ones(6)},
                              w | {"odd": torch.ones(3)}, w | {"threshold": torch.ones(16)},
                              w | {"pre_bias": torch.ones(6)}, {"W_enc": w["W_enc"], "W_dec": w["W_dec"]},
                              {name: torch.stack([t, t]) for name, t in w.items()})):  # fmt: skip
        path = save(tmp_path / f"{i}.pt", data)
        with pytest.raises(FormatError) as error:
            load_sae(path)
        x = torch.ones(2, 8 if i == 0 else 6)
        sae = eval(copied_call(error))
        assert sae.encode(x if sae.d_in == x.shape[1] else torch.ones(2, 16)).ndim == 2
        call = copied_call(error)
        said = [
            "transposed",
            "tied",
            "input_mean",
            "ignore=['odd']",
            "jumprelu",
            "pre_bias",
            "transposed",
            "layer",
        ][i]
        assert said in call


def test_a_configuration_is_evidence(tmp_path):
    w, x = tensors(unit=True), rows()
    config = {"activation": "TopK", "top_k": 3, "d_model": 6, "dict_size": 16, "lr": 1e-3,
              "apply_b_dec_to_input": True, "normalize_activations": False}  # fmt: skip
    want = codes(w, x, "topk")
    torch.save({"state_dict": w, "cfg": config}, tmp_path / "within.pt")
    same(load_sae(tmp_path / "within.pt"), want, w, x)
    folder = tmp_path / "beside"
    folder.mkdir()
    torch.save(w, folder / "x.pt")
    (folder / "config.json").write_text(json.dumps(config))
    same(load_sae(folder), want, w, x)
    torch.save(w, folder / "y.pt")  # now it may be of either
    with pytest.raises(FormatError, match=r"not used: config\.json"):
        load_sae(folder / "x.pt")
    (folder / "config.json").rename(folder / "x_config.json")
    same(load_sae(folder / "x.pt"), want, w, x)
    for changes, said in [
        ({"foo": 1}, "foo"), ({"activation": "swish"}, "swish"), ({"k": 4}, "top_k and k|k and top_k"),
        ({"dict_size": 17}, "dict_size"), ({"normalize_activations": "mean"}, "normalize_activations"),
        ({"activation": "relu"}, "must have no k"),
    ]:  # fmt: skip
        torch.save({"state_dict": w, "cfg": config | changes}, tmp_path / "within.pt")
        with pytest.raises(FormatError, match=said):
            load_sae(tmp_path / "within.pt")
    torch.save({"state_dict": w, "cfg": config | {"foo": 1}}, tmp_path / "within.pt")
    same(load_sae(tmp_path / "within.pt", ignore="foo"), want, w, x)
    with pytest.raises(FormatError, match="activation must be what the file says"):
        load_sae(tmp_path / "within.pt", ignore="foo", activation="abs_topk")
    same(load_sae(tmp_path / "within.pt", ignore=["foo", "activation"], activation="abs_topk"),
         codes(w, x, "abs_topk"), w, x)  # fmt: skip


@pytest.mark.parametrize("subtract", [False, True])
@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ("subtract", None),
        ("undo", None),
        ("ignore", None),
        ("undo", "undo"),
        ("subtract", "divide"),
        ("undo", "ignore"),
    ],
)
def test_means_and_deviations_are_what_the_user_says(tmp_path, subtract, mean, std):
    w, x = tensors(), rows()
    m, s = torch.linspace(-1, 1, 6)[None], torch.linspace(0.5, 2, 6)
    data = {"state_dict": w, "mean": m} | ({} if std is None else {"std": s})
    torch.save(data, tmp_path / "x.pt")
    sae = load_sae(tmp_path, **OPEN | {"apply_b_dec_to_input": subtract}, input_mean=mean,
                   **({} if std is None else {"input_std": std}))  # fmt: skip
    inner = x - m if mean != "ignore" else x
    inner = inner / s if std in ("divide", "undo") else inner
    want = codes(w, inner, "relu", b=subtract)
    torch.testing.assert_close(sae.encode(x), want, rtol=1e-4, atol=1e-4)
    x_hat = want @ w["W_dec"] + w["b_dec"]
    x_hat = x_hat * s if std == "undo" else x_hat
    x_hat = x_hat + m if mean == "undo" else x_hat
    torch.testing.assert_close(sae(x).x_hat, x_hat, rtol=1e-4, atol=1e-4)


def test_what_is_done_to_decoder_rows_and_to_inputs(tmp_path):
    w, x = tensors(), rows()
    path = save(tmp_path / "x.pt", w)
    norms = w["W_dec"].norm(dim=1)
    unit = w | {"W_dec": w["W_dec"] / norms[:, None]}
    same(load_sae(path, **OPEN | {"normalise_decoder": "divide"}), codes(w, x, "relu", b=False), unit, x)
    fold = unit | {"W_enc": w["W_enc"] * norms, "b_enc": w["b_enc"] * norms}
    topk = OPEN | {"normalise_decoder": "fold", "activation": "topk", "k": 3}
    same(load_sae(path, **topk), codes(fold, x, "topk", b=False), unit, x)
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
    zscore = load_sae(path, **OPEN | {"normalise": "zscore"})
    torch.testing.assert_close(
        zscore.encode(x), codes(w, (x - mean) / std, "relu", b=False), rtol=1e-4, atol=1e-4
    )
    # rows of norm 1 are not asked about
    rest = {key: value for key, value in OPEN.items() if key != "normalise_decoder"}
    same(load_sae(save(tmp_path / "unit.pt", unit), **rest), codes(unit, x, "relu", b=False), unit, x)


def test_gated_thresholds_and_ties(tmp_path):
    w, x = tensors(), rows()
    gated = {"encoder.weight": w["W_enc"].t(), "gate_bias": w["b_enc"], "decoder.weight": w["W_dec"].t(),
             "decoder_bias": w["b_dec"], "r_mag": w["b_enc"] / 5, "mag_bias": w["b_enc"] / 7}  # fmt: skip
    sae = load_sae(
        save(tmp_path / "gated.pt", gated), **OPEN | {"activation": "gated", "apply_b_dec_to_input": True}
    )
    p = (x - w["b_dec"]) @ w["W_enc"]
    want = (p + w["b_enc"] > 0) * (p * gated["r_mag"].exp() + gated["mag_bias"]).relu()
    same(sae, want, w, x)
    with pytest.raises(FormatError, match="activation"):
        load_sae(tmp_path / "gated.pt", **OPEN)
    theta = torch.rand(16, generator=torch.Generator().manual_seed(1))
    pre = x @ w["W_enc"] + w["b_enc"]
    for name, stored in (
        ("threshold", theta),
        ("log_threshold", theta.log()),
        ("jumprelu.theta", theta[None]),
    ):
        path = save(tmp_path / "jump.pt", w | {name: stored})
        same(load_sae(path, **OPEN | {"activation": "jumprelu"}), pre.relu() * (pre > theta), w, x)
        with pytest.raises(FormatError, match="jumprelu"):
            load_sae(path, **OPEN | {"activation": "topk", "k": 3})
    one = save(tmp_path / "one.pt", w | {"threshold": torch.tensor(0.2), "k": torch.tensor(3)})
    same(load_sae(one, **OPEN | {"activation": "batchtopk"}), codes(w, x, "batchtopk", b=False), w, x)
    same(load_sae(one, **OPEN | {"activation": "topk"}), codes(w, x, "topk", b=False), w, x)
    with pytest.raises(FormatError, match="what the file says"):
        load_sae(one, **OPEN | {"activation": "topk"}, k=4)
    tied = save(tmp_path / "tied.pt", {"encoder.weight": w["W_enc"].t(), "encoder.bias": w["b_enc"]})
    sae = load_sae(tied, activation="relu", normalise="none", tied=True)
    torch.testing.assert_close(sae(x).x_hat, pre.relu() @ w["W_enc"].t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("square", [False, True])
def test_a_layer_of_a_stack(tmp_path, square):
    """crosslayer-transcoder's names: encoder.W [L d D], decoder.W [L D d], theta [1 L D], standardizers."""
    size = (8, 8) if square else (6, 16)
    w, x = [tensors(*size), tensors(*size)], rows(size[0])
    w[1] = {name: t.flip(0) * 0.7 for name, t in w[1].items()}
    theta = torch.rand(1, 2, size[1], generator=torch.Generator().manual_seed(1)) / 3
    theirs = {"W_enc": "encoder.W", "b_enc": "encoder.b", "W_dec": "decoder.W", "b_dec": "decoder.b"}
    stack = {name: torch.stack([v[ours] for v in w]) for ours, name in theirs.items()}
    stack |= {"nonlinearity.theta": theta, "nonlinearity.bandwidth": torch.tensor(1.0)}  # fmt: skip
    path = save(tmp_path / "plt.safetensors", stack)
    asked = OPEN | {"activation": "jumprelu"} | ({"transposed": []} if square else {})
    for i in range(2):
        pre = x @ w[i]["W_enc"] + w[i]["b_enc"]
        same(load_sae(path, layer=i, **asked), pre.relu() * (pre > theta[0, i]), w[i], x)
    for layer in (2, -1, "0"):
        with pytest.raises(FormatError, match="layer"):
            load_sae(path, layer=layer, **asked)
    means = torch.linspace(-1, 1, 2 * size[0]).reshape(2, -1)
    stats = {"input_standardizer.mean": means, "input_standardizer.std": means.abs() + 0.5,
             "output_standardizer.mean": -means, "output_standardizer.std": means.abs() + 0.7}  # fmt: skip
    path = save(tmp_path / "stats.safetensors", stack | stats)
    sae = load_sae(path, layer=1, **asked, input_mean="subtract", input_std="divide", output_mean="add",
                   output_std="multiply", hook_out="blocks.1.hook_mlp_out")  # fmt: skip
    pre = (x - means[1]) / (means[1].abs() + 0.5) @ w[1]["W_enc"] + w[1]["b_enc"]
    want = pre.relu() * (pre > theta[0, 1])
    torch.testing.assert_close(sae.encode(x), want, rtol=1e-4, atol=1e-4)
    x_hat = (want @ w[1]["W_dec"] + w[1]["b_dec"]) * (means[1].abs() + 0.7) - means[1]
    torch.testing.assert_close(sae(x).x_hat, x_hat, rtol=1e-4, atol=1e-4)
    assert sae.writes[0].name == "blocks.1.hook_mlp_out"


def test_a_transcoder_is_known_by_its_widths(tmp_path):
    w, x = tensors(6, 16, d_out=4), rows()
    sae = load_sae(save(tmp_path / "x.pt", w), **OPEN)
    assert (sae.d_in, sae.d_out, sae.config.recipe) == (6, 4, "transcoder")
    pre = x @ w["W_enc"] + w["b_enc"]
    torch.testing.assert_close(sae(x).x_hat, pre.relu() @ w["W_dec"] + w["b_dec"], rtol=1e-4, atol=1e-4)


class Own(torch.nn.Module):
    """As people write it."""

    def __init__(self, d_in: int, d_sae: int, k: int) -> None:
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(d_in, d_sae), torch.nn.Linear(d_sae, d_in)
        self.k, self.d_in, self.activation = k, d_in, torch.nn.ReLU()


def test_a_module_saved_whole_and_a_checkpoint_of_training(tmp_path):
    """Its own attributes are settings; what an optimizer leaves beside it is not."""
    module = Own(6, 16, 3)
    x = rows()
    optimizer = torch.optim.Adam(module.parameters())
    module.encoder(x).sum().backward()
    optimizer.step()
    pre = module.encoder(x).detach()
    want = torch.zeros_like(pre).scatter(1, pre.topk(3).indices, pre.topk(3).values).relu()
    answers = OPEN | {"activation": "topk"}
    torch.save(module, tmp_path / "whole.pt")
    torch.save({"model_state_dict": module.state_dict(), "optimizer_state_dict": optimizer.state_dict(),
                "epoch": 3, "train_losses": [1.0, 0.5], "args": {"k": 3, "lr": 1e-3}},
               tmp_path / "checkpoint.pt")  # fmt: skip
    for name in ("whole.pt", "checkpoint.pt"):
        sae = load_sae(tmp_path / name, **answers)
        torch.testing.assert_close(sae.encode(x), want, rtol=1e-5, atol=1e-5)
        assert sae.config.options["k"] == 3


def test_settings_and_tensors_that_nobody_knows_are_asked_about_with_the_rest(tmp_path):
    torch.save({"state_dict": tensors() | {"odd": torch.ones(2)}, "config": {"foo": 1, "act": "swish"}},
               tmp_path / "x.pt")  # fmt: skip
    with pytest.raises(FormatError) as error:
        load_sae(tmp_path)
    for word in ("odd", "'foo': 1", "'act': 'swish'", "apply_b_dec_to_input", "how codes come"):
        assert word in str(error.value)
    assert "ignore=['act', 'foo', 'state_dict.odd']" in copied_call(error)
    assert eval(copied_call(error)).d_sae == 16


def test_what_is_not_an_answer_is_refused(tmp_path):
    path = save(tmp_path / "x.pt", tensors())
    for changes, said in [
        ({"activation": "gelu"}, "'relu'"), ({"activation": "topk", "k": 0}, "d_sae=16"),
        ({"activation": "topk", "k": 17}, "d_sae=16"), ({"activation": "topk", "k": True}, "k"),
        ({"activation": "jumprelu", "threshold": -1}, "threshold"),
        ({"apply_b_dec_to_input": 1}, "True or False"),
        ({"normalise": "mean"}, "'zscore'"), ({"normalise_decoder": True}, "'divide'"), ({"k": 3}, "k is of"),
        ({"layer": 0}, "layer"), ({"tied": True}, "tied"), ({"input_mean": "undo"}, "input_mean"),
    ]:  # fmt: skip
        with pytest.raises(FormatError, match=said):
            load_sae(path, **OPEN | changes)
    with pytest.raises(ConfigError, match="wobble"):
        load_sae(path, **OPEN, wobble=1)


def test_tensors_that_are_no_sae_or_several(tmp_path):
    w = tensors()
    deep = {"encoder.0.weight": w["W_enc"].t(), "encoder.0.bias": w["b_enc"],
            "encoder.2.weight": torch.ones(4, 16), "encoder.2.bias": torch.ones(4),
            "decoder.weight": torch.ones(6, 4), "decoder.bias": w["b_dec"]}  # fmt: skip
    two = {f"{part}.{name}": t for part in ("a", "b") for name, t in w.items()}
    odd = w | {"W_dec": torch.ones(5, 6)}
    cross = {"W_enc": torch.ones(2, 6, 16), "W_dec": torch.ones(16, 2, 6), "b_enc": torch.ones(16)}
    for data, said in ((deep, "encoder.2.weight"), (two, "'a.', 'b.'"), (odd, "W_dec"), (cross, "two axes")):
        with pytest.raises(FormatError, match=said) as error:
            load_sae(save(tmp_path / "x.pt", data), **OPEN)
        assert "x.pt" in str(error.value)
    with pytest.raises(FormatError, match=r"x\.pt") as error:
        load_sae(save(tmp_path / "x.pt", {"conv1.weight": torch.ones(3, 4), "fc.bias": torch.ones(4)}))
    assert "conv1.weight [3 4] float32" in str(error.value)


def test_the_refusal_names_the_file_and_what_is_near(tmp_path):
    path = save(
        tmp_path / "half.pt", {"W_dec": torch.ones(16, 6), "b_dec": torch.ones(6), "b_enc": torch.ones(16)}
    )
    with pytest.raises(FormatError) as error:
        load_sae(path)
    said = str(error.value)
    assert said.startswith(str(path))
    for word in ("W_dec [16 6] float32", "saelens needs", "cfg.json and sae_weights.safetensors"):
        assert word in said
    w = save(tmp_path / "w.pt", tensors())
    with pytest.raises(FormatError, match=r"saelens needs cfg\.json and sae_weights\.safetensors"):
        load_sae(w, format="saelens")
    with pytest.raises(FormatError, match="Pass the one that you mean") as error:
        load_sae(tmp_path)
    assert "half.pt" in str(error.value)


def test_what_a_failed_download_leaves_has_its_own_sentence(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 382287748\n"
    for name in ("sae.safetensors", "sae.pt", "sae.npz", "sae.pkl"):
        for data, said in (
            (pointer, "Git LFS pointer.*382,287,748 bytes.*git lfs pull"),
            (b"\n<!DOCTYPE html><html><head>", "web page.*resolve/main"),
            (b"<html lang='en'>", "web page"),
        ):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(FormatError, match=said):
                load_sae(tmp_path / name)
        (tmp_path / name).unlink()


@pytest.fixture
def shards(tmp_path):
    """An SAE in two files, whose index is not written yet: (folder, tensors, tensor -> file)."""
    all_of = tensors()
    parts = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(all_of)}
    for part in set(parts.values()):
        save(tmp_path / part, {name: all_of[name] for name in all_of if parts[name] == part})
    return tmp_path, all_of, parts


def test_files_that_an_index_lists_are_joined(shards, tmp_path_factory):
    folder, all_of, parts = shards
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": parts}))
    one = load_sae(save(tmp_path_factory.mktemp("one") / "x.safetensors", all_of), **OPEN)
    for where in (folder, index):
        assert load_sae(where, **OPEN).fingerprint() == one.fingerprint()
    with pytest.raises(FormatError, match=r"one of the files that model\.safetensors\.index\.json"):
        load_sae(folder / "model-00001-of-00002.safetensors", **OPEN)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda parts: {}, "must list tensors in its weight_map"),
        (lambda parts: {**parts, "W_dec": "../x.safetensors"}, "files of tensors that lie beside it"),
        (lambda parts: {**parts, "W_dec": "model-00003-of-00002.safetensors"}, "Get all of its files"),
        (lambda parts: {**parts, "more": next(iter(parts.values()))}, "tensors of its files, each once"),
        (lambda parts: {n: p for n, p in parts.items() if n != "b_dec"}, "others: .'b_dec'"),
    ],
)  # fmt: skip
def test_an_index_must_list_what_is_there(shards, change, said):
    folder, _, parts = shards
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": change(parts)}))
    with pytest.raises(FormatError, match=said):
        load_sae(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "last.ckpt"])
def test_tensors_of_torch_have_other_names_too(tmp_path, name):
    (tmp_path / "training_args.bin").write_bytes(b"x")
    path = save(tmp_path / "x.pt", {"state_dict": tensors(), "epoch": 3, "global_step": 10})
    path.rename(tmp_path / name)
    assert load_sae(tmp_path, **OPEN).fingerprint() == load_sae(tmp_path / name, **OPEN).fingerprint()


def test_info_asks_the_same(tmp_path, capsys):
    path = save(tmp_path / "x.pt", tensors())
    assert main(["info", str(path)]) == 0
    said = capsys.readouterr().out
    assert "SAE that is not loaded" in said
    assert "apply_b_dec_to_input  whether b_dec is subtracted" in said
    flags = ["--activation", "topk", "--k", "3", "--apply-b-dec-to-input", "false", "--normalise", "none"]
    assert main(["info", str(path), *flags, "--normalise-decoder", "divide"]) == 0
    assert "topk" in capsys.readouterr().out
    with pytest.raises(FormatError):
        load_sae(path, format="plain")
    assert saelab.formats.options()["k"].startswith("Codes of a row")
