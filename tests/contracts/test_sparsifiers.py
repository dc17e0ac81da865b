"""What every recipe must hold, whatever its options. A new recipe is a line in CASES.

Each recipe meets every shape, each of its own options and each common one, and every two common options meet
in some recipe: `ROWS` covers all pairs, which `test_every_two_choices_meet` counts.
"""

from __future__ import annotations

import copy
import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from covering import covering, pairs

from saelab.sae import SAE, SAEConfig, Sparse, recipe, recipe_options, recipes
from saelab.training.losses import LOSSES, Firing, Progress
from saelab.types import Codes, NonFiniteError, ShapeError

# recipe -> the options that change what its SAE computes
CASES = {
    "topk": [{"k": 1}, {"k": 7}, {"k": "d_sae"}],
    "batchtopk": [{"k": 0.5}, {"k": 7}, {"k": "d_sae"}],
    "jumprelu": [
        {"ste_to_input": True},
        {"penalty": "tanh", "pre_act_loss": 0.1},
        {"threshold": 0.3, "bandwidth": 0.5},
    ],
    "matryoshka": [{"k": 7}, {"k": 1, "groups": "halves", "bias_level": True, "random_prefixes": True}],
    "abs_topk": [{"k": 1}, {"k": 7}, {"k": "d_sae"}],
    "batch_abs_topk": [{"k": 1}, {"k": 7}, {"k": "d_sae"}],
    "gated": [{}],
    "top_afa": [{}],
    "gba": [{}, {"magnitude": "biased", "groups": 3, "high": 0.2}],
    "identity": [{}],
    "relu": [{}, {"decoder_norm_weighted": False}],
    "mutual_choice": [{"k": 7}],
    "feature_choice": [{"k": 1}, {"k": 7, "alpha": 0.0}, {"k": "d_sae"}],
    "group_max": [{"k": 1}, {"k": 7}, {"k": "d_sae"}],
    "variational": [{"k": 7}, {"k": 7, "sampling": False, "sigma": 1.0}, {"k": "d_sae", "sigma": 0.3}],
    "archetypal": [{"k": 7, "delta": 0.2}, {"k": 7, "mixed": 3}],
    "matching_pursuit": [
        {"max_iterations": 5},
        {"max_iterations": 9, "stop_on_duplicate": False},
        {"max_iterations": 4, "whole_product": True},
    ],
    "transcoder": [{"k": 7}, {"k": 1, "sparsity": "batchtopk"}],
    "skip_transcoder": [{"k": 7}],
    "crosscoder": [
        {"k": 7},
        {"k": 1, "sparsity": "l1"},
        {"k": 0.5, "norms": "joint"},
        {"k": 7, "sparsity": "topk"},
    ],
    "batchtopk_floor": [{"k": 7, "floor": 3}, {"k": 1}, {"k": "d_sae"}],
    "jumprelu_topk": [{"k": 7}, {"k": 2, "ste_to_input": True}, {"k": "d_sae", "threshold": 0.3}],
    "ortsae": [{"k": 7, "chunk": 16}],
    "clt": [
        {"k": 7},
        {"k": 1, "sparsity": "topk"},
        {"sparsity": "l1"},
        {"sparsity": "jumprelu", "threshold": 0.3, "bandwidth": 0.5, "pre_act_loss": 0.1},
    ],
    "classical": [
        {"method": "nmf"},
        {"method": "kmeans"},
        {"method": "given", "k": 7},
        {"method": "semi_nmf", "k": 4, "codes": "gradient_pursuit"},
    ],
}
# recipe -> what a code that is not 0 equals, where that is not its pre-activation
CODE = {
    "gated": lambda part, pre: part.r_mag.exp() * pre + part.b_mag,
    "gba": lambda part, pre: pre if part.magnitude == "pre" else pre + part.bias,
    "matching_pursuit": None,  # depends on the other latents of the row: see test_architectures
    "classical": None,  # see test_classical
}
# recipes that keep exactly k in each row
PER_ROW = {"topk", "abs_topk"}
SHAPES = [(16, 64), (5, 1), (1, 9), (13, 37), (8, 160)]
# the choices of which every two occur together, in some recipe: see `covering`
FACTORS = {
    "recipe": list(CASES),
    "shape": SHAPES,
    "own": [0, 1, 2, 3],
    "normalise": [None, "none", "layernorm"],
    "apply_b_dec_to_input": [None, False],
    "tied_init": [None, False],
    "b_dec_init": [None, "zeros", "geometric_median"],
    "dictionary": [None, "archetypal", "frozen"],
}


def fits(row: tuple) -> bool:
    """Whether the recipe knows these options and values."""
    chosen = dict(zip(FACTORS, row, strict=True))
    name, (d_in, d_sae), own = (chosen.pop(key) for key in ("recipe", "shape", "own"))
    if own >= len(CASES[name]) or (name == "crosscoder" and d_in == 1):
        return False
    k = CASES[name][own].get("k", 1)
    known = set(recipe_options(name)) >= {key for key, value in chosen.items() if value is not None}
    # others are not normalised row by row
    whole = name not in ("crosscoder", "clt") and "transcoder" not in name
    return known and (whole or chosen["normalise"] in (None, "none")) and (k == "d_sae" or k <= d_sae)


def config_of(row: tuple) -> SAEConfig:
    chosen = dict(zip(FACTORS, row, strict=True))
    name, (d_in, d_sae), own = (chosen.pop(key) for key in ("recipe", "shape", "own"))
    common = {key: value for key, value in chosen.items() if value is not None}
    if chosen["dictionary"] is not None:
        common["candidates"] = 11
    sizes = {"d_sae": d_sae, "halves": [d_sae // 2, d_sae - d_sae // 2] if d_sae > 1 else [1]}
    options = {k: sizes.get(v, v) if isinstance(v, str) else v for k, v in CASES[name][own].items()}
    if "transcoder" in name:
        options["d_out"] = d_in + 3
    if name == "crosscoder":
        options["widths"] = (d_in - d_in // 2, d_in // 2)
    if name == "clt":
        options["layers"] = math.gcd(d_in, d_sae, 4)
        options["d_out"] = d_in + 3 * options["layers"]
    return recipe(name, d_in=d_in, d_sae=d_sae, **options, **common)


def _name(row: tuple) -> str:
    name, (d_in, d_sae), own, *common = row
    return "-".join(
        [name, f"{d_in}x{d_sae}", str(own), *(str(value) for value in common if value is not None)]
    )


ROWS = covering(list(FACTORS.values()), fits)


@cache
def _trained(row: tuple) -> SAE:
    """As after some training: every weight differs from its start."""
    config = config_of(row)
    generator = torch.Generator().manual_seed(7)
    targets = None if config.d_out is None else _rows(config.d_out, 200, seed=2) * 2 - 1
    sae = SAE.create(config, seed=3, rows=_rows(config.d_in, 200, seed=1) * 3 + 1, targets=targets)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        if hasattr(sae.sparsifier, "bias"):  # learned without gradients
            sae.sparsifier.bias.sub_(0.2 * torch.rand(config.d_sae, generator=generator))
        if hasattr(sae.sparsifier, "seen"):  # what was learned of the weights before
            sae.sparsifier.seen.zero_()
    return sae.eval()


@pytest.fixture(params=ROWS, ids=_name)
def sae(request) -> SAE:
    return copy.deepcopy(_trained(request.param))


def _rows(d_in: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed))


def test_every_recipe_has_cases():
    assert set(CASES) == set(recipes())


def test_every_two_choices_meet():
    met = set().union(*map(pairs, ROWS))
    for at, (name, values) in enumerate(FACTORS.items()):
        for other, (second, others) in itertools.islice(enumerate(FACTORS.items()), at + 1, None):
            for a, b in itertools.product(values, others):
                if (at, a, other, b) not in met:
                    assert never(name, a, second, b), f"{name}={a!r} never meets {second}={b!r}"


def never(name, a, second, b) -> bool:
    """Whether no row with these two choices fits."""
    fixed = FACTORS | {name: [a], second: [b]}
    return not any(fits(row) for row in itertools.product(*fixed.values()))


def test_forward_is_decode_of_encode_for_any_leading_shape(sae):
    for lead in [(), (3,), (2, 3), (2, 1, 4), (0,), (2, 0)]:
        x = torch.randn(*lead, sae.d_in, generator=torch.Generator().manual_seed(1)) * 2 + 1
        codes = sae.encode(x)
        out = sae(x)
        assert codes.shape == (*lead, sae.d_sae)
        assert out.pre.shape == out.codes.shape == codes.shape
        assert out.x_hat.shape == (*lead, sae.d_out)
        torch.testing.assert_close(out.codes, codes, rtol=0, atol=0)
        torch.testing.assert_close(out.x_hat, _decode(sae, codes, x), rtol=1e-6, atol=1e-6)
        flat = x.reshape(-1, sae.d_in)
        from_sparse = _decode(sae, sae.encode_sparse(x), flat).reshape(out.x_hat.shape)
        torch.testing.assert_close(from_sparse, out.x_hat, rtol=1e-5, atol=1e-5)


def _decode(sae, codes, x):
    return sae.decode(codes, sae.scale(x), x if sae.W_skip is not None else None)


def test_it_computes_its_equation(sae):
    x = (_rows(sae.d_in, 20) * 2 + 1).double()
    options, b_dec = sae.config.options, sae.b_dec.double()
    mean, norm = torch.zeros(()), sae.input_scale.double()
    if options["normalise"] == "layernorm":
        mean = x.mean(1, keepdim=True)
        norm = (x - mean).norm(dim=1, keepdim=True).clamp_min(1e-30)
    inputs = (x - mean) / norm
    centred = inputs - (b_dec if options.get("apply_b_dec_to_input", False) else 0)
    columns = sae.W_enc.double().chunk(sae.config.layers, 1)
    pre = centred @ torch.block_diag(*columns) + sae.b_enc.double()
    codes = sae.encode(x)
    torch.testing.assert_close(sae(x).pre.double(), pre, rtol=1e-4, atol=1e-4)
    kept = codes != 0
    code = CODE.get(sae.config.recipe, lambda part, pre: pre)
    if code is not None:
        expected = code(sae.sparsifier, pre)
        torch.testing.assert_close(codes[kept].double(), expected[kept], rtol=1e-4, atol=1e-4)
    skip = 0 if sae.W_skip is None else inputs @ sae.W_skip.double()
    scale = norm if sae.config.d_out is None else sae.output_scale.double()
    x_hat = (codes.double() @ sae.W_dec.double() + b_dec + skip) * scale + mean
    torch.testing.assert_close(_decode(sae, codes, x).double(), x_hat, rtol=1e-4, atol=1e-4)


def test_codes_are_negative_only_where_the_recipe_is_signed(sae):
    x = torch.cat([_rows(sae.d_in, 20), -_rows(sae.d_in, 20)])
    for codes in (sae.encode(x), sae.encode_sparse(x).dense()):
        assert sae.sparsifier.signed or (codes >= 0).all()


def test_each_group_of_group_max_gives_its_largest(sae):
    if sae.config.recipe != "group_max":
        return
    x, k = _rows(sae.d_in, 20), sae.sparsifier.k
    codes, pre = sae.encode(x), sae(x).pre
    for a, b in itertools.pairwise(sae.d_sae * i // k for i in range(k + 1)):
        largest = pre[:, a:b].max(1)
        expected = torch.zeros_like(pre[:, a:b]).scatter(1, largest.indices[:, None], largest.values[:, None])
        torch.testing.assert_close(codes[:, a:b], expected.relu())


def test_rows_do_not_see_each_other_and_encoding_repeats_itself(sae):
    x = _rows(sae.d_in, 12)
    together = sae.encode(x)
    assert torch.equal(together, sae.encode(x))
    alone = torch.cat([sae.encode(row[None]) for row in x])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    other = torch.cat([x[:6], 100 * _rows(sae.d_in, 6, seed=9)])
    torch.testing.assert_close(sae.encode(other)[:6], together[:6], rtol=1e-5, atol=1e-5)


HARD = {
    "zeros": lambda d: torch.zeros(4, d),
    "huge": lambda d: 1e15 * _rows(d, 6),
    "tiny": lambda d: 1e-30 * _rows(d, 6),
    "constant": lambda d: torch.full((5, d), 3.25),
    "equal rows": lambda d: _rows(d, 1).expand(6, d),
    "random": lambda d: _rows(d, 300),
}


def test_sparse_and_dense_agree_on_every_row_and_stay_finite(sae):
    for kind in HARD:
        _agree(sae, kind)


@pytest.mark.parametrize("name", CASES)
def test_they_agree_when_threads_share_the_rows(name, threads):
    threads(2)  # of tensors of 2^15 numbers and more
    sae = copy.deepcopy(_trained(next(row for row in ROWS if row[:2] == (name, (16, 64)))))
    _agree(sae, "random", _rows(16, 2_500))
    for mode in (True, False):
        _equal_gradients(sae.train(mode), n=2_500)


def _agree(sae, kind, x=None):
    x = HARD[kind](sae.d_in) if x is None else x
    dense = sae.encode(x)
    codes = sae.encode_sparse(x)
    fast = sae(x, sparse=True)
    assert torch.isfinite(dense).all(), kind
    assert torch.isfinite(fast.x_hat).all(), kind
    assert isinstance(codes, Codes)
    assert (codes.values != 0).all(), kind
    row = np.repeat(np.arange(len(codes)), np.diff(codes.indptr))
    assert ((np.diff(codes.indices) > 0) | (np.diff(row) > 0)).all(), kind
    size = float(dense.detach().abs().max().clamp_min(1))
    assert np.array_equal(codes.dense() != 0, dense.detach().numpy() != 0), kind
    np.testing.assert_allclose(
        codes.dense(), dense.detach().numpy(), atol=1e-6 * size, rtol=1e-6, err_msg=kind
    )
    if isinstance(fast.codes, Sparse):
        assert torch.equal(fast.codes.dense() != 0, dense != 0), kind
    x_hat = _decode(sae, dense, x)
    size = max(size, float(x_hat.detach().abs().max()))
    told = lambda message: f"{kind}: {message}"  # noqa: E731
    torch.testing.assert_close(fast.x_hat, x_hat, rtol=1e-5, atol=1e-5 * size, msg=told)


def _draw_again(sae):
    """Random codes of the next pass are those of the first."""
    if hasattr(sae.sparsifier, "draws"):
        sae.sparsifier.draws.zero_()


def test_equal_latents_are_chosen_alike_by_both_paths(sae):
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_enc[:, :1].expand_as(sae.W_enc))
        sae.b_enc.fill_(50.0)
    x = _rows(sae.d_in, 9) * 0.01
    dense, codes = sae.encode(x), sae.encode_sparse(x)
    assert np.array_equal(codes.dense() != 0, dense.detach().numpy() != 0)
    pre = sae(x).pre
    if (
        sae.config.recipe in PER_ROW and (pre == pre[:, :1]).all()
    ):  # the product gives equal columns unequal bits on some machines
        k = sae.config.options["k"]
        assert torch.equal((dense != 0).nonzero()[:, 1].reshape(9, k), torch.arange(k).expand(9, k))


def test_sparse_gradients_are_those_of_the_dense_path(sae):
    for mode in (True, False):
        _equal_gradients(sae.train(mode))


def _equal_gradients(sae, n=40):
    x = _rows(sae.d_in, n) * 2 + 1
    target = _rows(sae.d_out, n, seed=4)

    def gradients(sparse: bool):
        _draw_again(sae)
        sae.zero_grad()
        out = sae(x, sparse=sparse)
        (out.x_hat * target).sum().backward()
        codes = out.codes.dense() if isinstance(out.codes, Sparse) else out.codes
        return codes, {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}

    (fast_codes, fast), (codes, plain) = gradients(True), gradients(False)
    assert torch.equal(fast_codes, codes)
    _draw_again(sae)
    assert torch.equal(sae.encode(x), codes)  # the batch is one in training mode, in encode too
    for name in plain:
        torch.testing.assert_close(
            fast[name], plain[name], rtol=1e-4, atol=1e-4 * float(plain[name].abs().max() + 1)
        )


def test_training_mode_is_finite_on_every_row_and_inference_then_keeps_as_many(sae):
    """Thresholds that are learned are learned by `observe`; every other recipe is unmoved by it."""
    sae.train()
    for hard in HARD.values():
        assert torch.isfinite(sae(hard(sae.d_in), sparse=True).x_hat).all()
    batches = [_rows(sae.d_in, 256, seed=10 + i) * 2 + 1 for i in range(60)]
    with torch.no_grad():
        l0 = []
        for x in batches:
            forward = sae(x, sparse=True)
            codes = forward.codes
            sae.sparsifier.observe(codes, forward.pre, sae.dictionary)
            values = codes.values if isinstance(codes, Sparse) else codes
            l0.append(int((values != 0).sum()) / 256)
        sae.eval()
        held_out = (sae.encode(torch.cat(batches[-20:])) != 0).float().sum(1).mean()
    noisy = hasattr(sae.sparsifier, "draws")  # noise keeps more than what it is added to
    same = sae.d_in == 1 and sae.per_row  # every row is equal
    if not noisy and not same:
        assert float(held_out) == pytest.approx(np.mean(l0[-20:]), rel=0.1)
    for name, tensor in sae.state_dict().items():
        assert torch.isfinite(tensor).all(), name


def test_every_loss_has_finite_gradients_on_every_row(sae):
    sae.train()
    frozen = {name for name, p in sae.named_parameters() if not p.requires_grad}
    for (kind, hard), sparse in itertools.product(HARD.items(), (True, False)):
        x = hard(sae.d_in)
        wanted = sae.target(x, None if sae.config.d_out is None else hard(sae.d_out))
        variance = float((wanted - wanted.mean(0)).double().square().sum(1).mean())
        firing = Firing(sae.d_sae, 10)
        firing.since[::2] = 10
        progress = Progress(10, max(variance, 1.0), firing)
        sae.zero_grad()
        y = None if sae.config.d_out is None else hard(sae.d_out)
        forward = sae(x, y, sparse=sparse)
        terms = [LOSSES[name](sae.config, progress) for name in sae.config.entry.losses(sae.config)]
        torch.stack([term(sae, forward) for term in terms]).sum().backward()
        for name, parameter in sae.named_parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), (kind, name)
            assert parameter.grad is None or name not in frozen


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_and_cpu_agree():
    for row in ROWS:
        sae = copy.deepcopy(_trained(row))
        x = _rows(sae.d_in, 50) * 2 + 1
        there = SAE.create(sae.config).to("cuda")
        there.load_state_dict(sae.state_dict())
        for mode in (False, True):
            here, gpu = sae.train(mode)(x), there.train(mode)(x.cuda(), sparse=True)
            size = float(here.x_hat.abs().max())
            told = lambda message, row=row: f"{_name(row)}: {message}"  # noqa: E731
            torch.testing.assert_close(gpu.x_hat.cpu(), here.x_hat, rtol=1e-3, atol=1e-4 * size, msg=told)


def test_saved_and_loaded_bit_for_bit(sae, tmp_path):
    again = SAE.load(sae.save(tmp_path / "sae"))
    assert again.config == sae.config
    assert again.fingerprint() == sae.fingerprint()
    for (name, a), (other, b) in zip(sae.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)
        assert a.stride() == b.stride()
    x = _rows(sae.d_in, 10)
    assert torch.equal(sae(x).x_hat, again(x).x_hat)
    assert sorted(p.name for p in (tmp_path / "sae").iterdir()) == ["config.json", "sae.safetensors"]


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_by_name(name):
    sae = copy.deepcopy(_trained(next(row for row in ROWS if row[0] == name)))
    d = sae.d_in
    for call in (sae.encode, sae.encode_sparse, sae, lambda x: sae(x, sparse=True)):
        for bad in (float("nan"), float("inf"), -float("inf")):
            x = torch.zeros(3, d)
            x[1, 0] = bad
            with pytest.raises(NonFiniteError, match=r"must be finite. Got 1 NaN or infinite"):
                call(x)
        with pytest.raises(ShapeError, match=rf"d_in={d}\]. Got shape \(3, {d + 1}\)"):
            call(torch.zeros(3, d + 1))
        with pytest.raises(ShapeError, match=r"floating point. Got torch.int64"):
            call(torch.zeros(3, d, dtype=torch.long))
        with pytest.raises(ShapeError, match=r"must be on cpu, as the SAE. Got meta"):
            call(torch.zeros(3, d, device="meta"))
        with pytest.raises(ShapeError, match=r"a tensor or an array. Got list"):
            call([[0.0] * d])
        with pytest.raises(ShapeError, match=r"Got shape \(\)"):
            call(torch.tensor(1.0))
