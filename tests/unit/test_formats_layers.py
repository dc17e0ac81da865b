"""Files and folders that hold an SAE for each of several layers, and kinds that are refused by name."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

import saelab
from saelab import load_sae
from saelab.formats import load_layers
from saelab.types import FormatError

OPEN = {"apply_b_dec_to_input": False, "normalise": "none", "normalise_decoder": False}
N, D, WIDE = 3, 6, 16


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed * 100 + len(shape)))


def rows(layer: int) -> torch.Tensor:
    return random(20, D, seed=50 + layer)


@pytest.mark.parametrize(("d_out", "name"), [(D, "W_skip"), (D, "skip.weight"), (9, "W_skip")])
@pytest.mark.parametrize("turned", [False, True])
def test_a_stack_of_skip_transcoders_adds_what_it_skips(tmp_path, d_out, name, turned):
    shapes = {"W_enc": (D, WIDE), "b_enc": (WIDE,), "W_dec": (WIDE, d_out), "b_dec": (d_out,)}
    w = {role: random(N, *shape, seed=i) for i, (role, shape) in enumerate(shapes.items())}
    skip = random(N, D, d_out, seed=7)
    path = tmp_path / "stack.safetensors"
    lies = turned or name == "skip.weight"  # a torch.nn.Linear is known to lie the other way round
    stored = skip.transpose(1, 2).contiguous() if lies else skip
    safetensors.torch.save_file({**w, name: stored}, path)
    options = {"rule": "relu", **OPEN}
    if d_out == D and name == "W_skip":
        with pytest.raises(FormatError, match=r"W_skip \[d_in d_out\] lie the other way round"):
            load_layers(path, **options)
        options["transposed"] = ["W_skip"] if turned else []
    for i, sae in enumerate(load_layers(path, **options)):
        codes = (rows(i) @ w["W_enc"][i] + w["b_enc"][i]).relu()
        torch.testing.assert_close(sae.encode(rows(i)), codes)
        want = codes @ w["W_dec"][i] + w["b_dec"][i] + rows(i) @ skip[i]
        torch.testing.assert_close(sae(rows(i)).x_hat, want, rtol=1e-4, atol=1e-4)


def test_a_skip_that_leads_elsewhere_or_has_no_meaning_is_refused(tmp_path):
    path = tmp_path / "one.safetensors"
    w = {"W_enc": random(D, WIDE), "b_enc": random(WIDE), "W_dec": random(WIDE, D), "b_dec": random(D)}
    safetensors.torch.save_file({**w, "W_skip": random(D, 5)}, path)
    with pytest.raises(FormatError, match="from what is read to what is written"):
        load_sae(path, rule="relu", **OPEN)
    safetensors.torch.save_file({**w, "W_skip": random(D, D), "input_mean": random(D)}, path)
    said = {"rule": "relu", "transposed": [], **OPEN}
    with pytest.raises(FormatError, match=r"be of raw inputs.*W_skip"):
        load_sae(path, input_mean="subtract", **said)
    assert load_sae(path, input_mean="ignore", **said).config.recipe == "skip_transcoder"
    with pytest.raises(FormatError, match="on the raw input"):
        load_sae(path, input_mean="ignore", **(said | {"apply_b_dec_to_input": True}))


@pytest.mark.parametrize("jump", [False, True])
def test_a_cross_layer_transcoder_is_the_sum_of_its_layers(tmp_path, jump):
    """As circuit-tracer computes it: out[l] = sum over i <= l of codes_i W_dec_i[:, l - i] + b_dec_l."""
    w, want = [], [torch.zeros(20, D) for _ in range(N)]
    for i in range(N):
        part = {
            "W_enc": random(WIDE, D, seed=i),
            "b_enc": random(WIDE, seed=i),
            "b_dec": random(D, seed=i + 9),
        }
        part |= {"threshold": random(WIDE, seed=i + 20)} if jump else {}
        decoder = random(WIDE, N - i, D, seed=i)
        safetensors.torch.save_file(
            {f"{name}_{i}": t for name, t in part.items()}, tmp_path / f"W_enc_{i}.safetensors"
        )
        safetensors.torch.save_file({f"W_dec_{i}": decoder}, tmp_path / f"W_dec_{i}.safetensors")
        pre = rows(i) @ part["W_enc"].t() + part["b_enc"]
        codes = pre.relu() * (pre > part["threshold"]) if jump else pre.relu()
        w.append(codes)
        for at in range(i, N):
            want[at] += codes @ decoder[:, at - i]
        want[i] += part["b_dec"]
    (tmp_path / "config.yaml").write_text("model_name: x\nfeature_input_hook: hook_resid_mid\n")
    parts = load_layers(tmp_path)
    got = [torch.zeros(20, D) for _ in range(N)]
    for i, part in enumerate(parts):
        torch.testing.assert_close(part.encode(rows(i)), w[i], rtol=1e-5, atol=1e-5)
        assert part.hook.name == f"blocks.{i}.hook_resid_mid"
        assert part.d_out == (N - i) * D
        for at, out in enumerate(part(rows(i)).x_hat.split(D, dim=-1)):
            got[i + at] += out
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert parts[-1].writes[0].name == f"blocks.{N - 1}.hook_mlp_out"
    assert load_sae(tmp_path, layer=1).fingerprint() == parts[1].fingerprint()
    for layer in (3, "1", True):
        with pytest.raises(FormatError, match=r"layer must be one that .* has latents of"):
            load_sae(tmp_path, layer=layer)
    # and as one SAE, saved and loaded whole
    sae = load_sae(tmp_path)
    assert [hook.name for hook in sae.reads] == [f"blocks.{i}.hook_resid_mid" for i in range(N)]
    assert [hook.name for hook in sae.writes] == [f"blocks.{i}.hook_mlp_out" for i in range(N)]
    x = torch.cat([rows(i) for i in range(N)], 1)
    assert torch.equal(sae.encode(x) != 0, torch.cat(w, 1) != 0)
    torch.testing.assert_close(sae.encode(x), torch.cat(w, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(x).x_hat, torch.cat(want, 1), rtol=1e-4, atol=1e-4)
    assert load_sae(sae.save(tmp_path / "ours")).fingerprint() == sae.fingerprint()


def test_a_folder_of_transcoders_of_single_layers(tmp_path):
    (tmp_path / "config.yaml").write_text("model_name: x\n")
    for i in (0, 2, 10):
        w = {"W_enc": random(WIDE, D, seed=i), "b_enc": random(WIDE, seed=i), "b_dec": random(D, seed=i),
             "W_dec": random(WIDE, D, seed=i + 1)}  # fmt: skip
        safetensors.torch.save_file(w, tmp_path / f"layer_{i}.safetensors")
    parts = load_layers(tmp_path)
    assert [part.hook.name for part in parts] == [f"blocks.{i}.mlp.hook_in" for i in (0, 2, 10)]
    assert load_sae(tmp_path, layer=2).fingerprint() == parts[1].fingerprint()
    assert load_sae(tmp_path / "layer_2.safetensors").fingerprint() == parts[1].fingerprint()
    with pytest.raises(FormatError, match="layer of"):
        load_sae(tmp_path / "layer_2.safetensors", layer=0)
    with pytest.raises(FormatError, match=r"layer_10\.safetensors"):
        load_sae(tmp_path)


def test_a_stack_in_one_file(tmp_path):
    stack = {"encoder.W": random(2, D, WIDE), "encoder.b": random(2, WIDE), "decoder.W": random(2, WIDE, D),
             "decoder.b": random(2, D), "nonlinearity.theta": random(1, 2, WIDE).abs(),
             "nonlinearity.bandwidth": torch.tensor(1.0)}  # fmt: skip
    path = tmp_path / "plt.safetensors"
    safetensors.torch.save_file(stack, path)
    parts = load_layers(path, activation="jumprelu", **OPEN)
    assert len(parts) == 2
    for i, part in enumerate(parts):
        pre = rows(i) @ stack["encoder.W"][i] + stack["encoder.b"][i]
        want = pre.relu() * (pre > stack["nonlinearity.theta"][0, i])
        torch.testing.assert_close(part.encode(rows(i)), want, rtol=1e-5, atol=1e-5)
    with pytest.raises(FormatError, match="activation"):
        load_layers(path)
    one = {name: t[0] for name, t in stack.items() if name.count(".") and t.ndim > 1 and "theta" not in name}
    safetensors.torch.save_file(one, path)
    with pytest.raises(FormatError, match="several layers"):
        load_layers(path, activation="relu", **OPEN)


def test_kinds_of_overcomplete_that_saelab_lacks_are_refused_by_name(tmp_path):
    weights = {"dictionary._weights": random(WIDE, D), "dictionary._fused_dictionary": random(WIDE, D)}
    quantised = {"Q": torch.linspace(0, 1, 4), "encoder.final_block.0.weight": random(WIDE, D)}
    for more, said in (({}, "MpSAE.*OMPSAE"), (quantised, "QSAE.*levels")):
        torch.save(weights | more, tmp_path / "sae.pt")
        with pytest.raises(FormatError, match=said):
            load_sae(tmp_path)
    torch.save(weights, tmp_path / "sae.pt")
    with pytest.raises(FormatError, match="least squares"):
        load_sae(tmp_path, rule="topk", k=3)


def test_a_pursuit_of_whole_products_is_that_of_a_plain_loop(tmp_path):
    """Directions of norms other than 1, and so few of them that all products are negative for some rows."""
    D = torch.tensor([[1.0, 0.2, 0.0], [0.5, 0.8, 0.3]])
    torch.save({"dictionary._weights": D}, tmp_path / "sae.pt")
    sae = load_sae(tmp_path, rule="matching_pursuit", k=3, normalization="identity")
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(60, 2)
    for i, r in enumerate(x.clone()):
        for _ in range(3):
            products = D @ r
            j = int(products.argmax())
            expected[i, j] += products[j]
            r -= products[j] * D[j]
    assert (expected < 0).any()
    torch.testing.assert_close(sae.encode(x), expected)
    torch.testing.assert_close(sae(x).x_hat, expected @ D)
    torch.testing.assert_close(torch.from_numpy(sae.encode_sparse(x).dense()), expected)
    with pytest.raises(FormatError, match=r"whole_product=False|norm 1"):
        saelab.save_sae(sae, tmp_path / "lens", "saelens")


@pytest.mark.parametrize("kind", ["prefixes", "hooks", "numbers", "list"])
def test_saes_side_by_side_are_those_of_layers(tmp_path, kind):
    sizes = {
        "encoder.weight": (WIDE, D),
        "encoder.bias": (WIDE,),
        "decoder.weight": (D, WIDE),
        "decoder.bias": (D,),
    }
    parts = [{name: torch.randn(*size) for name, size in sizes.items()} for _ in range(3)]
    names = {"prefixes": "layers.{}.sae.", "hooks": "blocks.{}.hook_resid_post."}
    first = 0 if kind == "list" else 4
    if kind in names:
        data = {
            names[kind].format(first + i) + name: t
            for i, part in enumerate(parts)
            for name, t in part.items()
        }
    else:
        data = parts if kind == "list" else {first + i: part for i, part in enumerate(parts)}
    torch.save(data, tmp_path / "all.pt")
    with pytest.raises(
        FormatError, match=rf"layer +which SAE of the file: {first}, {first + 1} or {first + 2}"
    ):
        load_sae(tmp_path, activation="relu", **OPEN)
    with pytest.raises(FormatError, match=rf"layer .* must be one of \[{first}, "):
        load_sae(tmp_path, activation="relu", layer=9, **OPEN)
    loaded = load_layers(tmp_path, activation="relu", **OPEN)
    x = torch.randn(20, D)
    for sae, w in zip(loaded, parts, strict=True):
        codes = (x @ w["encoder.weight"].T + w["encoder.bias"]).relu()
        torch.testing.assert_close(sae.encode(x), codes)
        torch.testing.assert_close(sae(x).x_hat, codes @ w["decoder.weight"].T + w["decoder.bias"])
    # names that differ in a word may be of anything
    torch.save({"a": parts[0], "b": parts[1]}, tmp_path / "all.pt")
    with pytest.raises(FormatError, match="encoders under"):
        load_sae(tmp_path, activation="relu", **OPEN)
