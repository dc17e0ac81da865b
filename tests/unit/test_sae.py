from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import saelab
from saelab.config import from_dict, to_dict
from saelab.sae import (
    FVU,
    SAE,
    Option,
    Recipe,
    SAEConfig,
    Sparse,
    fvu,
    kernels,
    memory,
    network,
    recipe,
    recipe_options,
    recipes,
    register,
)
from saelab.sae.config import RECIPES
from saelab.sae.dictionaries import Free
from saelab.sae.option_groups import COMMON
from saelab.sae.options import real
from saelab.sae.sparsifiers import ReLU
from saelab.types import (
    Codes,
    ConfigError,
    FormatError,
    HookPoint,
    NonFiniteError,
    RangeError,
    Scale,
    ShapeError,
    StoreError,
)


@pytest.fixture
def sae() -> SAE:
    config = recipe("topk", d_in=6, d_sae=20, k=3, hook="blocks.0.hook_resid_post")
    return SAE.create(config, seed=0, rows=_rows(100, 6) + 2)


def _rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


# recipes


def test_recipes_list_themselves_and_complete_their_options():
    assert {"topk", "relu"} <= set(recipes())
    assert all("\n" not in line and len(line) > 10 for line in recipes().values())
    assert "'scalar'" in recipe_options("topk")["normalise"]
    config = recipe("topk", d_in=512, d_sae=8192, k=32)
    assert config.options["k"] == 32
    assert config == SAEConfig(512, 8192, "topk", None, {"k": 32})


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"k": 4096}, "k must be between 1 and d_sae=512. Got 4096. Pass k<=512 or widen the SAE."),
        ({"k": 0}, "Got 0. Pass k>=1"),
        ({"k": -1}, "between 1 and d_sae=512"),
        ({"k": 2.0}, "whole number"),
        ({"k": True}, "Got True"),
        ({"k": "3"}, "Got '3'"),
        ({"auxk": 1}, "has no option 'auxk'. Did you mean '.*aux'"),
        ({"normalize": "none"}, "Did you mean 'normalise'"),
        ({"normalise": "layer"}, "must be one of 'none', 'scalar'"),
        ({"aux_coefficient": -1}, "aux_coefficient must be a number of at least 0"),
        ({"aux_coefficient": float("nan")}, "aux_coefficient must be a number"),
        ({"aux_coefficient": float("inf")}, "aux_coefficient must be a number"),
        ({"k_aux": 513}, "k_aux must be between 1 and d_sae=512"),
        ({"dead_after": 0}, "dead_after must be an integer >= 1"),
        ({"tied_init": 1}, "tied_init must be True or False"),
        ({"d_in": 0}, "d_in must be an integer in"),
        ({"d_in": 8.0}, "d_in must be an integer in"),
        ({"d_sae": 2**40}, "d_sae must be an integer in"),
        ({"name": "tpok"}, "Did you mean 'topk'"),
    ],
)
def test_options_out_of_range_are_refused_with_rule_value_and_remedy(call, says):
    arguments = {"name": "topk", "d_in": 64, "d_sae": 512, **call}
    with pytest.raises(ConfigError, match=says):
        recipe(**arguments)


class Shifted(ReLU):
    """Codes only of what is above a level, which a saved one keeps as an option."""

    def __init__(self, level):
        super().__init__()
        self.level = level

    def forward(self, pre, x, dictionary):
        return (pre - self.level).relu()

    def select(self, pre, x, dictionary):
        return None


def test_an_architecture_of_ones_own_is_a_part_and_a_call(tmp_path):
    level = Option(0.5, real(0), "Where codes begin.")
    entry = Recipe(
        line="Shifted.",
        options={"level": level, **COMMON},
        sparsifier=lambda c: Shifted(c.options["level"]),
        losses=lambda c: ("mse",),
        rules=lambda c: (),
        dictionary=lambda c: Free(c.d_sae, c.d_in),
    )
    try:
        register("shifted", entry)
        assert recipes()["shifted"] == "Shifted."
        config = recipe("shifted", d_in=6, d_sae=20, level=0.25)
        x = _rows(50, 6)
        made = SAE.create(config, rows=x)
        loaded = SAE.load(made.save(tmp_path / "sae"))
        assert loaded.config == config
        assert torch.equal(
            loaded.encode(x), (x / made.input_scale - made.b_dec).matmul(made.W_enc).add(-0.25).relu()
        )
        with pytest.raises(ConfigError, match="taken"):
            register("shifted", entry)
    finally:
        RECIPES.pop("shifted")
    for name in ("topk", "no name", "", 3):
        with pytest.raises(ConfigError, match="A recipe's name must be"):
            register(name, entry)


def test_numpy_integers_are_integers():
    config = recipe("topk", d_in=np.int64(6), d_sae=np.int32(20), k=np.int64(3))
    assert config == recipe("topk", d_in=6, d_sae=20, k=3)
    assert json.loads(json.dumps(to_dict(config)))["options"]["k"] == 3
    groups = recipe("matryoshka", d_in=6, d_sae=20, k=3, groups=list(np.array([5, 15])))
    assert json.dumps(to_dict(groups)) == json.dumps(
        to_dict(recipe("matryoshka", d_in=6, d_sae=20, k=3, groups=(5, 15)))
    )
    for bad in (True, np.bool_(True), 6.0, np.float64(6), "6", None, 0, 2**31):
        with pytest.raises(ConfigError, match="d_in must be an integer"):
            recipe("topk", d_in=bad, d_sae=20)


def test_a_config_is_plain_frozen_data():
    config = recipe("relu", d_in=4, d_sae=8, hook=HookPoint("blocks.1.attn.hook_z", n_heads=2), l1=0.3)
    assert from_dict(SAEConfig, json.loads(json.dumps(to_dict(config)))) == config
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config
        assert hash(twin) == hash(config)
    with pytest.raises(ConfigError, match="must not change"):
        config.options["l1"] = 2
    with pytest.raises(AttributeError):
        config.d_in = 3
    assert recipe("relu", d_in=4, d_sae=8, hook="h").hook == HookPoint("h")


# selection and sparse arithmetic against their definitions


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_top_k_is_its_definition(data):
    n, d = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([1, 7, 16, 64, 256, 264, 1024]))
    k = data.draw(st.integers(1, d))
    levels = data.draw(st.sampled_from([1, 2, 3, 20, 10**6]))  # few levels: many ties
    pre = torch.randint(
        -levels, levels, (n, d), generator=torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    )
    pre = pre.float() / levels
    assert torch.equal(kernels.top_k(pre, k).sort(1).values, kernels.top_k_reference(pre, k))
    largest = kernels.top_k(pre, k, signed=True).sort(1).values
    assert torch.equal(largest, kernels.top_k_reference(pre.abs(), k))


def test_top_k_prefers_the_lower_index_among_equals():
    assert kernels.top_k(torch.tensor([[1.0, 2, 2, 2, 0]]), 2).sort(1).values.tolist() == [[1, 2]]
    assert kernels.top_k(torch.zeros(2, 512), 3).sort(1).values.tolist() == [[0, 1, 2]] * 2


def _random_sparse(n: int, d_sae: int, seed: int) -> Sparse:
    """Rows of unequal length, an empty one among them, one latent that never fires."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, d_sae, generator=generator) < 0.3
    mask[0] = False
    mask[:, 0] = False
    values = torch.randn(int(mask.sum()), generator=generator)
    indptr = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
    return Sparse(indptr, mask.nonzero()[:, 1], values, d_sae)


@pytest.mark.parametrize("mkl", [True, False])
@pytest.mark.parametrize(("n", "d_in", "d_sae"), [(1, 1, 1), (9, 4, 13), (50, 16, 64)])
def test_sparse_products_and_gradients_equal_dense_ones(n, d_in, d_sae, mkl, monkeypatch):
    if not mkl:
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    codes = _random_sparse(n, d_sae, seed=n)
    x, target = _rows(n, d_in, 1), _rows(n, d_in, 2)
    W_dec = _rows(d_sae, d_in, 3).requires_grad_()
    W_enc = _rows(d_sae, d_in, 4).t().requires_grad_()
    b_in, b_enc = _rows(1, d_in, 5)[0].requires_grad_(), _rows(1, d_sae, 6)[0].requires_grad_()
    leaves = [b_in, W_enc, b_enc, W_dec]
    pre = ((x - b_in) @ W_enc + b_enc).detach()
    at = kernels.active_pre(pre, x, b_in, W_enc, b_enc, codes.indptr, codes.indices)
    fast = kernels.sparse_decode(codes._replace(values=at), W_dec)
    fast_grads = torch.autograd.grad((fast * target).sum(), leaves)
    at_plain = kernels.active_pre_reference(x, b_in, W_enc, b_enc, codes.indptr, codes.indices)
    plain = kernels.sparse_decode_reference(codes._replace(values=at_plain), W_dec)
    plain_grads = torch.autograd.grad((plain * target).sum(), leaves)
    torch.testing.assert_close(at, at_plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
    for a, b in zip(fast_grads, plain_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_many_rows_are_encoded_in_pieces_with_the_same_result():
    sae = SAE.create(recipe("topk", d_in=3, d_sae=4096, k=2), seed=0)
    x = _rows(10_000, 3)
    assert sum(1 for _ in sae._chunks(x)) == 3
    assert sum(1 for _ in sae._chunks(x, cached=True)) == 20
    codes, dense = sae.encode_sparse(x), sae.encode(x).detach()
    assert len(codes) == len(x)
    assert np.array_equal(codes.dense(), dense.numpy())


@pytest.mark.parametrize(
    ("name", "bias"), [("gated", 0.0), ("gated", -2.5), ("jumprelu", 0.0), ("relu", -1.0)]
)
def test_codes_of_any_density_come_out_of_memory_that_pieces_share(name, bias, monkeypatch):
    """bias: half of the latents are on, or few, which go by another path."""
    sae = SAE.create(recipe(name, d_in=3, d_sae=4096), seed=0).eval()
    with torch.no_grad():
        sae.b_enc.fill_(bias)
    x, lent = _rows(1_200, 3), []
    lend = memory.Kept.lend
    monkeypatch.setattr(memory.Kept, "lend", lambda pool, *a: lent.append(pool) or lend(pool, *a))
    codes, dense = sae.encode_sparse(x), sae.encode(x).detach()
    assert np.array_equal(codes.dense(), dense.numpy())
    assert len({id(pool) for pool in lent}) == 1
    assert lent[0].nbytes < 4 * 512 * 4096 * 4
    with torch.autocast("cpu", torch.bfloat16):
        rounded = sae.encode_sparse(x).dense(), sae.encode(x).detach().numpy()
    assert np.array_equal(*rounded)
    assert not np.array_equal(rounded[0], dense.numpy())


# the SAE


def test_an_untrained_sae_is_reproducible_and_leaves_the_global_random_state_alone():
    config = recipe("topk", d_in=8, d_sae=30, k=2)
    before = torch.get_rng_state()
    a, b, other = SAE.create(config, 5), SAE.create(config, 5), SAE.create(config, 6)
    assert torch.equal(torch.get_rng_state(), before)
    assert a.fingerprint() == b.fingerprint() != other.fingerprint()
    torch.testing.assert_close(a.W_dec.norm(dim=1), torch.ones(30))
    assert torch.equal(a.W_enc, a.W_dec.t())
    data = torch.randn(30, 8, generator=torch.Generator().manual_seed(5))
    assert ((torch.nn.functional.normalize(data, dim=1) * a.W_dec).sum(1).abs() < 0.99).all()


def test_scale_bias_and_factor_come_from_the_rows():
    rows = _rows(500, 8) * 3 + 2
    config = recipe("topk", d_in=8, d_sae=30, k=4)
    sae = SAE.create(config, 0, rows)
    torch.testing.assert_close(sae.input_scale, rows.norm(dim=1).mean())
    torch.testing.assert_close(sae.b_dec * sae.input_scale, rows.mean(0), rtol=1e-4, atol=1e-5)
    best = fvu(rows, sae(rows).x_hat)
    for factor in (0.8, 1.25):
        other = copy.deepcopy(sae)
        with torch.no_grad():
            other.W_enc.mul_(factor)
        assert fvu(rows, other(rows).x_hat) > best
    raw = SAE.create(recipe("topk", d_in=8, d_sae=30, k=4, normalise="none", b_dec_init="zeros"), 0, rows)
    assert raw.input_scale == 1
    assert (raw.b_dec == 0).all()


def test_the_geometric_median_resists_an_outlier():
    rows = torch.cat([_rows(99, 4), torch.full((1, 4), 1e5)])
    how = {"normalise": "none", "d_in": 4, "d_sae": 8, "k": 2}
    median = SAE.create(recipe("topk", b_dec_init="geometric_median", **how), 0, rows).b_dec.detach()
    assert median.norm() < 1
    assert SAE.create(recipe("topk", b_dec_init="mean", **how), 0, rows).b_dec.norm() > 1000
    distance = (rows - median).norm(dim=1).sum()
    for step in torch.eye(4):
        assert (rows - median - 0.05 * step).norm(dim=1).sum() > distance - 1


def test_constant_and_zero_rows_make_a_usable_start():
    for rows in (torch.zeros(10, 6), torch.full((10, 6), 2.0)):
        sae = SAE.create(recipe("topk", d_in=6, d_sae=12, k=2), 0, rows)
        sae.check_parameters()
        assert torch.isfinite(sae(rows).x_hat).all()


def test_decode_undoes_a_row_scale_and_refuses_codes_of_another_sae(sae):
    codes = sae.encode(_rows(5, 6))
    scale = Scale(_rows(5, 1, 1), _rows(5, 1, 2).abs())
    torch.testing.assert_close(sae.decode(codes, scale), sae.decode(codes) * scale.norm + scale.mean)
    with pytest.raises(ShapeError, match=r"d_sae=20\]. Got shape \(5, 19\)"):
        sae.decode(codes[:, 1:])
    one = lambda j, d, v=1.0: Codes(np.array([0, 1]), np.array([j], np.int32), np.array([v], np.float32), d)  # noqa: E731
    with pytest.raises(ShapeError, match="Got 19"):
        sae.decode(one(0, 19))
    with pytest.raises(RangeError, match=r"0..19. Got 20"):
        sae.decode(one(20, 20))
    with pytest.raises(NonFiniteError):
        sae.decode(one(2, 20, np.nan))
    torch.testing.assert_close(sae.decode(one(2, 20)), ((sae.W_dec[2] + sae.b_dec) * sae.input_scale)[None])


def test_lower_and_higher_precision_inputs_are_taken(sae):
    x = _rows(4, 6)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        codes = sae.encode(x.to(dtype))
        assert codes.dtype == torch.float32
        torch.testing.assert_close(codes, sae.encode(x.to(dtype).float()))


def test_inputs_get_gradients_from_the_dense_path(sae):
    x = _rows(4, 6).requires_grad_()
    sae(x).codes.sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).any()


# on disk


def test_half_precision_halves_the_file_and_is_stable(sae, tmp_path):
    sae.save(tmp_path / "full")
    for dtype in ("float16", "bfloat16"):
        half = SAE.load(sae.save(tmp_path / dtype, dtype=dtype))
        assert half.stored_dtype == dtype
        assert half.dtype == torch.float32
        assert half.input_scale == sae.input_scale
        torch.testing.assert_close(half.W_dec, sae.W_dec, atol=5e-3, rtol=5e-3)
        assert SAE.load(half.save(tmp_path / "again", dtype=dtype)).fingerprint() == half.fingerprint()
    sizes = [(tmp_path / f / "sae.safetensors").stat().st_size for f in ("float16", "full")]
    assert sizes[0] < 0.7 * sizes[1]
    with pytest.raises(ConfigError, match="Did you mean 'float16'"):
        sae.save(tmp_path / "x", dtype="flot16")
    with torch.no_grad():
        sae.b_enc[0] = 1e6
    with pytest.raises(NonFiniteError, match="b_enc must fit float16"):
        sae.save(tmp_path / "x", dtype="float16")
    assert not (tmp_path / "x").exists()


def test_an_sae_that_is_not_finite_is_not_saved(sae, tmp_path):
    with torch.no_grad():
        sae.b_dec[0] = float("nan")
    with pytest.raises(NonFiniteError, match="b_dec"):
        sae.save(tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


def _edit(folder, **changes):
    path = folder / "config.json"
    data = json.loads(path.read_text())
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(data))


def _weights(folder, tensors):
    """Other weights under a hash that fits: only their content is wrong."""
    import hashlib

    raw = tensors if isinstance(tensors, bytes) else safetensors.torch.save(tensors)
    (folder / "sae.safetensors").write_bytes(raw)
    _edit(folder, weights={"sha256": hashlib.sha256(raw).hexdigest()})


HOSTILE = {
    "newer": (lambda f, t: _edit(f, version=2), "newer saelab"),
    "version of a wrong type": (lambda f, t: _edit(f, version="1"), "version"),
    "another format": (lambda f, t: _edit(f, format="other"), "must say format 'saelab'"),
    "no json": (lambda f, t: (f / "config.json").write_text('{"format"'), "valid JSON"),
    "a list": (lambda f, t: (f / "config.json").write_text("[]"), "must hold a JSON object"),
    "unknown option": (lambda f, t: _edit(f, config={"options": {"kk": 3}}), "no option 'kk'"),
    "unknown field": (lambda f, t: _edit(f, config={"d_inn": 3}), "no field 'd_inn'"),
    "k too large": (lambda f, t: _edit(f, config={"options": {"k": 21}}), "between 1 and d_sae=20"),
    "other width": (lambda f, t: _edit(f, config={"d_sae": 21}), "must be of shape"),
    "enormous width": (
        lambda f, t: _edit(f, config={"d_sae": 2**31 - 1, "d_in": 2**31 - 1}),
        "must be of shape",
    ),
    "path outside": (
        lambda f, t: _edit(f, weights={"file": "../../etc/passwd"}),
        "must name 'sae.safetensors'",
    ),
    "unknown dtype": (lambda f, t: _edit(f, weights={"dtype": "int8"}), "dtype"),
    "weights of no dict": (lambda f, t: _edit(f, weights=3), "must name"),
    "truncated weights": (lambda f, t: (f / "sae.safetensors").write_bytes(b"xx"), "truncated or altered"),
    "altered weights": (lambda f, t: _flip(f / "sae.safetensors"), "truncated or altered"),
    "no safetensors": (lambda f, t: _weights(f, b"\xff" * 100), "must be a safetensors file"),
    "missing tensor": (
        lambda f, t: _weights(f, {k: v for k, v in t.items() if k != "b_enc"}),
        "must hold 'b_enc'",
    ),
    "foreign tensor": (lambda f, t: _weights(f, {**t, "b_encc": t["b_enc"].clone()}), "Did you mean 'b_enc'"),
    "wrong shape": (lambda f, t: _weights(f, {**t, "b_enc": t["b_enc"][1:]}), "must be of shape"),
    "ints": (lambda f, t: _weights(f, {**t, "b_enc": t["b_enc"].int()}), "floating point"),
    "nan": (lambda f, t: _weights(f, {**t, "b_enc": t["b_enc"] * float("nan")}), "must be finite"),
    "scale of zero": (
        lambda f, t: _weights(f, {**t, "input_scale": torch.zeros(())}),
        "scales must be > 0",
    ),
}


def _flip(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("what", HOSTILE)
def test_a_damaged_or_hostile_folder_is_refused_by_name(sae, tmp_path, what):
    spoil, says = HOSTILE[what]
    folder = sae.save(tmp_path / "sae")
    spoil(folder, safetensors.torch.load_file(folder / "sae.safetensors"))
    with pytest.raises(FormatError, match=says):
        SAE.load(folder)


def test_a_folder_without_an_sae_is_a_store_error(sae, tmp_path):
    with pytest.raises(StoreError, match=r"has no config.json"):
        SAE.load(tmp_path)
    folder = sae.save(tmp_path / "sae")
    (folder / "sae.safetensors").unlink()
    with pytest.raises(StoreError, match=r"sae.safetensors must be readable"):
        SAE.load(folder)


MEMORY = """
import sys, torch
torch.set_num_threads(1)
from saelab.sae import SAE, recipe
def memory(which):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(which))
def peak(work):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = memory("VmRSS")
    made = work()
    return made, (memory("VmHWM") - before) / 2**20
SAE.load(sys.argv[1])  # what is loaded once
sae, loading = peak(lambda: SAE.load(sys.argv[2]))
_, saving = peak(lambda: sae.save(sys.argv[3]))
print(loading, saving, sae.fingerprint())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_one_copy_of_the_weights_is_in_memory_while_they_are_read(sae, tmp_path):
    """64 MB of weights: before, 2.9 times as much while they were loaded and twice while they were saved."""
    large = SAE.create(recipe("topk", d_in=512, d_sae=16_384, k=4))
    command = [
        sys.executable,
        "-c",
        MEMORY,
        sae.save(tmp_path / "small"),
        large.save(tmp_path / "a"),
        tmp_path / "b",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loading, saving, digest = done.stdout.split()
    assert digest == large.fingerprint()
    assert 60 < float(loading) < 100
    assert float(saving) < 40
    for name in ("config.json", "sae.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("name", ["group_max", "gba", "archetypal", "matching_pursuit", "feature_choice"])
def test_what_is_no_weight_is_there_when_it_is_loaded(name, tmp_path):
    x = _rows(30, 6)
    made = SAE.create(
        recipe(name, d_in=6, d_sae=20, **({"k": 4} if "k" in recipe_options(name) else {})), rows=x
    )
    loaded = SAE.load(made.save(tmp_path / "sae"))
    assert {str(b.device) for b in loaded.buffers()} == {"cpu"}
    assert torch.equal(loaded.encode(x), made.encode(x))
    assert torch.equal(loaded(x).x_hat, made(x).x_hat)


def test_an_sae_is_loaded_whole_while_another_thread_loads_a_model(sae, tmp_path):
    """Which changes torch's default dtype for a while."""
    sae.save(tmp_path)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float16)
        loaded = type(sae).load(tmp_path)
    finally:
        torch.set_default_dtype(before)
    assert loaded.W_enc.dtype == sae.W_enc.dtype
    assert loaded.fingerprint() == sae.fingerprint()


def test_an_sae_is_loaded_in_the_layout_that_it_is_trained_in(sae, tmp_path):
    loaded = SAE.load(sae.save(tmp_path / "sae"))
    for name, tensor in sae.state_dict().items():
        other = loaded.state_dict()[name]
        assert torch.equal(other, tensor)
        assert (other.stride(), other.dtype) == (tensor.stride(), tensor.dtype)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in sae.parameters()]
    (tmp_path / "sae" / "sae.safetensors").write_bytes(b"")  # it does not hang on its file
    assert loaded.fingerprint() == sae.fingerprint()


def test_saving_where_nothing_can_be_written_is_a_store_error(sae, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="must be writable"):
        sae.save(tmp_path / "file" / "sae")


def test_a_full_disk_keeps_the_sae_that_was_there(sae, tmp_path, monkeypatch):
    folder = sae.save(tmp_path / "sae")
    other = SAE.create(sae.config, seed=9)
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StoreError, match="No space left"):
        other.save(folder)
    assert SAE.load(folder).fingerprint() == sae.fingerprint()
    assert len(list(folder.iterdir())) == 2


def test_the_fingerprint_follows_config_and_every_weight(sae):
    seen = {sae.fingerprint()}
    for name in sae.state_dict():
        other = copy.deepcopy(sae)
        with torch.no_grad():
            tensor = other.state_dict()[name]
            tensor[(0,) * tensor.ndim] += 0.5
        seen.add(other.fingerprint())
    other = SAE(recipe("topk", d_in=6, d_sae=20, k=4, hook="blocks.0.hook_resid_post"))
    other.load_state_dict(sae.state_dict())
    seen.add(other.fingerprint())
    assert len(seen) == len(sae.state_dict()) + 2


# FVU


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.lists(st.integers(0, 9), min_size=1, max_size=6), st.sampled_from([0.0, 1e4])
)
def test_streaming_fvu_is_the_closed_form(seed, sizes, shift):
    generator = torch.Generator().manual_seed(seed)
    n = sum(sizes) + 2
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64) + shift
    x_hat = x + 0.3 * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    expected = float(((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())
    stream = FVU()
    for a, b in zip(x.split([*sizes, 2]), x_hat.split([*sizes, 2]), strict=True):
        stream.update(a, b)
    assert stream.value == pytest.approx(expected, rel=1e-8)
    assert fvu(x.reshape(1, n, 3), x_hat.reshape(1, n, 3)) == pytest.approx(expected, rel=1e-8)


def test_fvu_of_mean_perfect_and_constant():
    x = _rows(50, 4)
    assert fvu(x, x) == 0
    assert fvu(x, x.mean(0).expand_as(x)) == pytest.approx(1)
    assert fvu(torch.ones(3, 2), torch.ones(3, 2)) == 0
    assert fvu(torch.ones(3, 2), torch.zeros(3, 2)) == float("inf")
    assert np.isnan(FVU().value)
    with pytest.raises(ShapeError, match="one shape"):
        fvu(x, x[:3])


def test_arrays_are_taken_as_tensors_are():
    x = torch.randn(300, 8)
    config = recipe("topk", d_in=8, d_sae=16, k=2)
    sae = saelab.train(config, x.numpy(), steps=3, batch_size=32, progress=False).sae
    for kind in (np.float32, np.float64, np.float16):
        array = x.numpy().astype(kind)
        assert torch.equal(sae.encode(array), sae.encode(torch.as_tensor(array)))
        assert torch.equal(sae(array).x_hat, sae(torch.as_tensor(array)).x_hat)
        assert isinstance(sae(array).x, torch.Tensor)
    assert np.array_equal(sae.encode_sparse(x.numpy()).values, sae.encode_sparse(x).values)
    report, same = saelab.evaluate(sae, x.numpy()), saelab.evaluate(sae, x)
    assert report.scores == same.scores
    with pytest.raises(ShapeError, match=r"d_in=8"):
        sae.encode(np.zeros((3, 9), np.float32))
    with pytest.raises(ShapeError, match="tensor or an array"):
        sae.encode(np.array(["a"]))


def test_where_a_matrix_would_be_large_none_is_made(monkeypatch):
    torch.manual_seed(0)
    acts, config = torch.randn(48, 6), saelab.recipe("topk", d_in=6, d_sae=40, k=3)

    def trained():
        return saelab.train(config, acts, steps=6, batch_size=24, lr=1e-2, progress=False).sae

    whole, sizes = trained(), []
    codes = whole.encode_sparse(acts)
    monkeypatch.setattr(network, "LARGE", 24 * 40 - 1)
    monkeypatch.setattr(kernels, "PIECE", 5 * 40)
    real = torch.addmm
    monkeypatch.setattr(
        torch, "addmm", lambda b, x, W, **k: sizes.append(len(x) * len(b)) or real(b, x, W, **k)
    )
    pieces = trained()
    assert max(sizes) == 5 * 40
    for (name, a), b in zip(whole.state_dict().items(), pieces.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    again = whole.encode_sparse(acts)
    assert np.array_equal(again.indices, codes.indices)
    assert np.array_equal(again.indptr, codes.indptr)
    assert np.allclose(again.values, codes.values, atol=1e-6)
