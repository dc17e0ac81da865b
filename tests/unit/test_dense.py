"""The dense arithmetic of a training step equals its plain formulas, and kept memory is never lent twice."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch

import saelab
from saelab.sae import SAE, Sparse, dense, memory, recipe
from saelab.sae.memory import Kept, kept
from saelab.sae.sparsifiers import few
from saelab.training import session

N, D_IN, D_SAE = 48, 6, 40


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(memory, "LEAST", 0)


def _drawn(*shape, seed=0, grad=True):
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.requires_grad_(grad)


def _cases():
    """name -> (the function, its plain formula, what it is given)"""
    n, d_in, d_sae = 4, 3, 5  # second derivatives are checked number by number
    pre, row, other = _drawn(n, d_sae), _drawn(d_sae, seed=1), _drawn(d_sae, seed=2)
    x, W = _drawn(n, d_in, seed=3, grad=False), _drawn(d_in, d_sae, seed=4)
    b_in = _drawn(d_in, seed=5)

    def affine(b_in, W, b):
        return dense.affine(((x - b_in) @ W + b).detach(), x, b_in, W, b)

    return {
        "relu": (dense.relu, lambda pre: pre.relu(), [pre]),
        "decode": (dense.decode, lambda codes, W: codes @ W, [pre, _drawn(d_sae, d_in, seed=6)]),
        "column_sums": (dense.column_sums, lambda codes: codes.sum(0), [pre]),
        "affine": (affine, lambda b_in, W, b: (x - b_in) @ W + b, [b_in, W, row]),
        "gated": (
            lambda pre, scale, bias: dense.gated(pre, pre, scale, bias),
            lambda pre, scale, bias: torch.where(pre > 0, (scale * pre + bias).relu(), 0.0),
            [pre, row, other],
        ),
    }


@pytest.mark.parametrize("name", _cases())
def test_it_equals_its_plain_formula(name):
    fast, plain, given = _cases()[name]
    expected = plain(*given)
    weights = _drawn(*expected.shape, seed=9, grad=False)
    wanted = torch.autograd.grad((expected * weights).sum(), given)
    with kept(Kept()):
        found = fast(*given)
        gradients = torch.autograd.grad((found * weights).sum(), given, retain_graph=True)
        again = torch.autograd.grad((found * weights).sum(), given, create_graph=True)
        assert torch.autograd.gradgradcheck(fast, given), "gradients of gradients"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    for gradient, want in zip((*gradients, *again), (*wanted, *wanted), strict=True):
        torch.testing.assert_close(gradient, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("again", [False, True], ids=["", "differentiable"])
def test_jumps_have_their_gradients(again):
    """By the equations of JumpReLU, with values on the threshold and on the edges of the box."""
    width = 0.5
    threshold = _drawn(D_SAE, seed=1).detach().abs().requires_grad_()
    pre = _drawn(N, D_SAE).detach()
    pre[0], pre[1], pre[2] = threshold.detach(), threshold.detach() + width / 2, -torch.inf
    pre.requires_grad_()
    above, box = pre > threshold, ((pre - threshold) / width).abs() < 0.5
    weights = _drawn(N, D_SAE, seed=9, grad=False)
    with kept(Kept()):
        codes, on = dense.jump(pre, threshold, width), dense.step(pre.detach(), threshold, width)
        d_pre, d_threshold = torch.autograd.grad(
            (codes * weights).sum(), (pre, threshold), create_graph=again
        )
        (d_count,) = torch.autograd.grad((on * weights).sum(), threshold, create_graph=again)
    assert torch.equal(codes, torch.where(above, pre, 0.0))
    assert torch.equal(on, above.to(pre.dtype))
    assert torch.equal(d_pre, torch.where(above, weights, 0.0))
    torch.testing.assert_close(d_threshold, (weights * box).sum(0) * (-threshold / width))
    torch.testing.assert_close(d_count, (weights * box).sum(0) / -width)


def test_firing_is_counted_for_both_signs():
    codes = _drawn(N, D_SAE, grad=False).float() * (torch.arange(N * D_SAE).view(N, D_SAE) % 3 == 0)
    assert torch.equal(dense.fired(codes), (codes != 0).sum(0))
    assert dense.fired(codes).dtype == torch.int64


def test_memory_is_lent_to_one_tensor_at_a_time():
    pool, like = Kept(), torch.zeros(3, 5)
    with kept(pool):
        first = memory.empty(like).fill_(1)
        second = memory.empty(like).fill_(2)
        assert (first == 1).all()
        view, where = first[1:], first.data_ptr()
        del first
        third = memory.empty(like).fill_(3)
        assert (view == 1).all(), "a view still needs it"
        assert third.data_ptr() not in (where, second.data_ptr())
        del view
        assert memory.empty(like).data_ptr() == where, "free again"
        assert where % memory.ALIGNED == 0
        held = pool.nbytes
        for _ in range(5):
            memory.empty(like)
        assert pool.nbytes == held
        assert memory.empty(like, 7, 2).shape == (7, 2)
        assert memory.empty(like.half()).dtype == torch.float16
    assert not memory.active()
    assert memory.empty(like).untyped_storage().nbytes() == 60


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("relu", {}),
        ("relu", {"decoder_norm_weighted": False, "p_end": 0.5}),
        ("jumprelu", {"threshold": 1e-4, "bandwidth": 0.2}),
        ("jumprelu", {"threshold": 1e-4, "penalty": "tanh"}),
        ("gated", {}),
        ("gated", {"gate_bias": True}),
        ("gba", {}),
        ("topk", {"k": 3}),
        ("matching_pursuit", {"max_iterations": 3}),
        ("crosscoder", {"sparsity": "l1", "widths": (D_IN, D_IN)}),
    ],
    ids=str,
)
def test_training_in_kept_memory_changes_nothing(name, options, monkeypatch):
    d_in = sum(options.get("widths", (D_IN,)))
    config = recipe(name, d_in=d_in, d_sae=D_SAE, dead_after=100, **options)
    rows = _drawn(400, d_in, grad=False).float() + 1

    def trained(**more):
        return saelab.train(config, rows, steps=6, batch_size=40, lr=1e-3, progress=False, **more)

    fast = {parts: trained(accumulate=parts) for parts in (1, 3)}
    monkeypatch.setattr(session, "kept", lambda memory: nullcontext())
    for parts, run in fast.items():
        plain = trained(accumulate=parts)
        for (weight, found), expected in zip(
            run.sae.state_dict().items(), plain.sae.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5, msg=f"{weight}, {parts} parts")
        assert run.history[-1].l0 == pytest.approx(plain.history[-1].l0, rel=1e-2)


def _sparse_sae(name, **options):
    """One of which few latents are on."""
    sae = SAE.create(recipe(name, d_in=D_IN, d_sae=D_SAE, **options), 0, _drawn(99, D_IN, grad=False).float())
    with torch.no_grad():
        sae.b_enc.sub_(sae(_drawn(99, D_IN, grad=False).float()).pre.quantile(0.97))
    return sae


@pytest.mark.parametrize("training", [True, False])
def test_relu_codes_are_sparse_where_few_are_on(training):
    x = _drawn(300, D_IN, grad=False).float()
    sae = _sparse_sae("relu").train(training)
    plain = copy.deepcopy(sae)
    forward, expected = sae(x, sparse=True), plain(x)
    assert isinstance(forward.codes, Sparse)
    assert torch.equal(forward.codes.dense(), expected.codes)
    for each in (forward, expected):
        (each.x_hat - x).square().sum().backward()
    for (name, found), other in zip(sae.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, other.grad, rtol=1e-4, atol=1e-4, msg=name)
    with torch.no_grad():
        sae.b_enc.add_(10)
    assert isinstance(sae(x, sparse=True).codes, torch.Tensor)


def test_jumprelu_looks_below_its_thresholds_only_where_they_get_gradients():
    x = _drawn(300, D_IN, grad=False).float()
    sae = _sparse_sae("jumprelu", threshold=0.1, bandwidth=0.2).eval()
    with torch.no_grad():
        alone = sae(x, sparse=True).codes
    wide = sae(x, sparse=True).codes
    assert (alone.values > 0).all()
    assert len(wide.values) > len(alone.values)
    assert torch.equal(wide.dense(), alone.dense())
    plain = copy.deepcopy(sae)
    plain(x).codes.square().sum().backward()
    wide.values.square().sum().backward()
    found, expected = sae.sparsifier.log_threshold.grad, plain.sparsifier.log_threshold.grad
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_few_agrees_with_the_definition_at_its_bound():
    n = 512
    for on in (n * D_SAE // 16, n * D_SAE // 16 + 1):
        pre = torch.zeros(n * D_SAE)
        pre[torch.randperm(n * D_SAE, generator=torch.Generator().manual_seed(0))[:on]] = 1.0
        found = few(pre.view(n, D_SAE), 0.5)
        assert (found is None) == (on > n * D_SAE // 16)
    assert found is None
    indptr, indices = few(torch.eye(D_SAE).repeat(8, 1), torch.full((D_SAE,), 0.5))
    assert torch.equal(indices, torch.arange(D_SAE).repeat(8))
    assert torch.equal(indptr, torch.arange(8 * D_SAE + 1))
