"""What is particular to one architecture: its equations against closed forms and brute force, its training.

What all have in common is in tests/contracts/test_sparsifiers.py.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.sae import SAE, Sparse, fvu, recipe
from saelab.sae.batchwise import BatchAbsTopK, BatchTopK
from saelab.sae.kernels import batch_top_k, batch_top_k_reference, to_csr
from saelab.sae.sparsifiers import AbsTopK, Gated, JumpReLU, TopK
from saelab.training import LOSSES, train
from saelab.training.losses import Firing, Progress, prefix_lengths
from saelab.types import ConfigError


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _planted(seed: int, d_in: int = 16, n: int = 8_000, k: float = 2.0, signed: bool = False):
    """(rows [n d_in], directions [2 d_in, d_in]): k of the directions a row on average, not in each."""
    generator = torch.Generator().manual_seed(100 + seed)
    directions = torch.nn.functional.normalize(torch.randn(2 * d_in, d_in, generator=generator), dim=1)
    active = torch.rand(n, 2 * d_in, generator=generator) < k / (2 * d_in)
    codes = active * (0.5 + torch.rand(n, 2 * d_in, generator=generator))
    if signed:
        codes *= 2 * (torch.rand(n, 2 * d_in, generator=generator) < 0.5) - 1
    return codes @ directions + 0.01 * torch.randn(n, d_in, generator=generator), directions


def _recovered(sae: SAE, directions: torch.Tensor) -> float:
    """Share of directions that have a latent of their own at cosine >= 0.9."""
    cosine = directions @ torch.nn.functional.normalize(sae.W_dec.detach(), dim=1).t()
    best, latent = cosine.max(1)
    return len({int(j) for j, c in zip(latent, best, strict=True) if c >= 0.9}) / len(directions)


def _l0(sae: SAE, x: torch.Tensor) -> float:
    return float((sae.encode(x) != 0).sum(1).float().mean())


# all


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("batchtopk", {"k": 2}),
        ("jumprelu", {}),
        ("gated", {}),
        ("abs_topk", {"k": 2}),
        ("matryoshka", {"k": 2, "random_prefixes": True}),
        ("top_afa", {}),
        ("gba", {"every": 4, "rate": 0.1}),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(name, options, tmp_path):
    x, _ = _planted(0, n=2_000)
    config = recipe(name, d_in=16, d_sae=40, **options)
    arguments = {"steps": 30, "batch_size": 64, "progress": False, "log_every": 1}

    def interrupt(event):
        if event.name == "log" and event.step == 13:
            raise KeyboardInterrupt

    whole = train(config, x, **arguments)
    assert not train(config, x, out=tmp_path, callbacks=[interrupt], **arguments).finished
    again = train(config, x, out=tmp_path, **arguments)
    assert again.sae.fingerprint() == whole.sae.fingerprint()
    assert again.history == whole.history


# batchtopk


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_batch_top_k_is_its_definition(data):
    n, d_sae = data.draw(st.integers(0, 12)), data.draw(st.sampled_from([1, 7, 61, 122, 1000]))
    kind = data.draw(st.sampled_from(["normal", "ties", "equal", "negative", "one row", "column"]))
    score = _normal(n, d_sae, seed=data.draw(st.integers(0, 99)))
    if kind == "ties":
        score = score.round()
    elif kind == "equal":
        score = torch.ones(n, d_sae)
    elif kind == "negative":
        score = -score.abs()
    elif kind == "one row":
        score[1:] = 0
    elif kind == "column":
        score[:, ::61] += 100  # all that the sample sees, where d_sae is a multiple of its stride
    total = data.draw(st.integers(0, n * d_sae))
    assert torch.equal(batch_top_k(score, total), batch_top_k_reference(score, total))


def test_flat_indices_become_csr():
    indptr, indices = to_csr(torch.tensor([1, 4, 9, 10]), 4, 4)
    assert indptr.tolist() == [0, 1, 2, 4, 4]
    assert indices.tolist() == [1, 0, 1, 2]


def test_batchtopk_shares_the_budget_in_training_and_thresholds_afterwards():
    part = BatchTopK(2, 0.9)
    pre = torch.tensor([[5.0, 4, 3, 2], [1, 0.5, -7, 0], [0.2, -1, -1, -1]])
    codes = part(pre, pre, None)
    assert codes.tolist() == [[5, 4, 3, 2], [1, 0.5, 0, 0], [0, 0, 0, 0]]
    part.observe(codes, codes, None)
    part.eval()
    assert part(pre, pre, None).tolist() == [[5, 4, 3, 2], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_the_threshold_averages_the_last_tenth_at_first_and_exponentially_later():
    part, smallest = BatchTopK(2, 0.75), [float(2 + i % 7) for i in range(40)]
    seen, expected = [], []
    for i, value in enumerate(smallest):
        newest = max(10 / (i + 10), 0.25)  # 10 / 40 from the 31st on
        expected.append(newest * value + (1 - newest) * (expected[-1] if expected else 0.0))
    for i, value in enumerate(smallest):
        codes = torch.tensor([[value, 0.0, 20.0]])
        sparse = Sparse(torch.tensor([0, 2]), torch.tensor([0, 2]), codes[0, [0, 2]], 3)
        part.observe(sparse if i % 2 else codes, codes, None)
        seen.append(float(part.threshold))
    assert seen == pytest.approx(expected, rel=1e-5)
    part.observe(torch.zeros(3, 3), torch.zeros(3, 3), None)  # nothing fired: nothing learned
    assert float(part.threshold) == pytest.approx(expected[-1], rel=1e-5)


def test_batchtopk_trains_its_threshold_is_saved_and_inference_keeps_as_many(tmp_path):
    x, directions = _planted(0)
    config = recipe("batchtopk", d_in=16, d_sae=48, k=2)
    control = SAE.create(config, 0, x)
    run = train(config, x[:-1000], steps=350, batch_size=256, progress=False, out=tmp_path)
    assert not run.sae.training
    assert run.history[-1].l0 == pytest.approx(2, rel=0.01)
    for sae in (run.sae, SAE.load(tmp_path), control):
        assert _l0(sae, x[-1000:]) == pytest.approx(2, rel=0.1)
    loaded = SAE.load(tmp_path)
    assert loaded.sparsifier.threshold == run.sae.sparsifier.threshold > 0
    counts = (loaded.encode(x) != 0).sum(1)
    assert counts.min() == 0 < 5 <= counts.max()  # rows get what they need
    assert _recovered(run.sae, directions) >= 0.9 > 0.1 > _recovered(control, directions)
    assert fvu(x[-1000:], run.sae(x[-1000:]).x_hat) < 0.1


# jumprelu


def test_jumprelu_is_its_equation_with_the_straight_through_gradients_of_its_paper():
    part = JumpReLU(4, threshold=0.5, bandwidth=0.2)
    pre = torch.tensor([[0.45, 0.55, 3.0, 0.3], [0.5, 0.61, -1.0, 0.59]], requires_grad=True)
    codes = part(pre, pre, None)
    torch.testing.assert_close(codes, torch.tensor([[0, 0.55, 3, 0], [0, 0.61, 0, 0.59]]))
    weight = torch.tensor([[2.0, 3, 5, 7], [11, 13, 17, 19]])
    (codes * weight).sum().backward()
    torch.testing.assert_close(pre.grad, torch.tensor([[0.0, 3, 5, 0], [0, 13, 0, 19]]))
    # the box reaches from .4 to .6: -(theta / eps) a unit of gradient there, times theta for its logarithm
    inside = torch.tensor([2.0 + 11, 3, 0, 19])
    torch.testing.assert_close(part.log_threshold.grad, -0.5 * 0.5 / 0.2 * inside)


@pytest.mark.parametrize("sparse", [True, False])
def test_the_l0_penalty_counts_codes_and_moves_only_thresholds(sparse):
    config = recipe("jumprelu", d_in=8, d_sae=24, l0=0.5, l0_warmup=0.0, threshold=0.1, bandwidth=0.08)
    x = _normal(60, 8)
    sae = SAE.create(config, 0, x)
    forward = sae(x, sparse=sparse)
    loss = LOSSES["l0"](config, Progress(10, 1.0, Firing(24, 10)))(sae, forward)
    assert float(loss.detach()) == pytest.approx(0.5 * _l0(sae, x))
    loss.backward()
    assert all(p.grad is None for name, p in sae.named_parameters() if name != "sparsifier.log_threshold")
    box = ((forward.pre - 0.1).abs() < 0.04).sum(0)
    assert box.sum() > 10
    torch.testing.assert_close(sae.sparsifier.log_threshold.grad, -0.5 / 60 / 0.08 * 0.1 * box)


@pytest.mark.parametrize("sparse", [True, False])
def test_the_tanh_penalty_is_its_formula(sparse):
    config = recipe("jumprelu", d_in=8, d_sae=24, penalty="tanh", l0=0.5, l0_warmup=0.5, bandwidth=0.1)
    x = _normal(60, 8)
    sae = SAE.create(config, 0, x)
    with torch.no_grad():
        sae.W_dec.mul_(3)
    progress = Progress(10, 1.0, Firing(24, 10))
    penalty = LOSSES["tanh"](config, progress)
    loss = penalty(sae, sae(x, sparse=sparse))
    expected = (4 * 8**0.5 * sae.encode(x) * 3).tanh().sum() / 60 * 0.5 / 5
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert (sae.sparsifier.log_threshold.grad < 0).any()  # to raise the threshold lowers the penalty
    assert (sae.sparsifier.log_threshold.grad <= 0).all()
    progress.step = 4
    torch.testing.assert_close(penalty(sae, sae(x)), expected * 5)


@pytest.mark.parametrize(("penalty", "l0"), [("l0", 0.03), ("tanh", 0.02)])
def test_jumprelu_recovers_planted_directions_and_learns_its_thresholds(penalty, l0):
    x, directions = _planted(0)
    config = recipe("jumprelu", d_in=16, d_sae=48, penalty=penalty, l0=l0, bandwidth=0.1)
    run = train(config, x[:-1000], steps=450, batch_size=256, progress=False)
    threshold = run.sae.sparsifier.threshold.detach()
    assert threshold.std() > 0.01
    assert _recovered(run.sae, directions) >= 0.9
    assert 1.5 < _l0(run.sae, x[-1000:]) < 2.5
    norms = run.sae.W_dec.norm(dim=1)
    assert bool(((norms - 1).abs() < 1e-5).all()) == (penalty == "l0")


def test_jumprelu_trains_by_the_dense_path_while_many_codes_are_left():
    x, _ = _planted(0, n=500)
    sae = SAE.create(recipe("jumprelu", d_in=16, d_sae=48, threshold=1e-3), 0, x)
    assert isinstance(sae(x, sparse=True).codes, Sparse)
    assert isinstance(sae.train()(x, sparse=True).codes, torch.Tensor)
    with torch.no_grad():
        sae.sparsifier.log_threshold.fill_(0.0)
    assert isinstance(sae(x, sparse=True).codes, Sparse)


# abs_topk


@pytest.mark.parametrize("seed", range(20))
def test_abs_topk_is_the_best_of_all_supports(seed):
    """Hard thresholding is the projection onto {||z||_0 <= k}: brute force over supports."""
    pre = _normal(1, 7, seed=seed)
    codes = AbsTopK(3)(pre, pre, None)
    supports = itertools.combinations(range(7), 3)
    best = min(supports, key=lambda s: float((pre[0] ** 2).sum() - (pre[0, list(s)] ** 2).sum()))
    assert tuple(codes[0].nonzero()[:, 0].tolist()) == best
    assert torch.equal(codes[0, list(best)], pre[0, list(best)])


@pytest.mark.parametrize("ties", [False, True])
def test_abs_topk_is_topk_of_both_signs_folded_back(ties):
    pre = _normal(200, 40)
    if ties:
        pre = pre.round() + 0.25  # never 0, never equal in magnitude with opposite signs
    both = TopK(6)(torch.cat([pre, -pre], 1), pre, None)
    codes = AbsTopK(6)(pre, pre, None)
    assert (codes < 0).any()
    if not ties:
        assert torch.equal(codes, both[:, :40] - both[:, 40:])
    else:  # among equals both keep the lower index of their own order: as many, of the same magnitudes
        folded = (both[:, :40] - both[:, 40:]).abs()
        assert torch.equal(codes.abs().sort(1).values, folded.sort(1).values)


def test_abs_topk_holds_both_poles_and_beats_topk_on_signed_data():
    """The data of the method sheet: 64 axes in 48 dimensions, four active a row, of either sign."""
    generator = torch.Generator().manual_seed(11)
    directions = torch.nn.functional.normalize(torch.randn(64, 48, generator=generator), dim=1)
    active = torch.rand(12_000, 64, generator=generator).argsort(1)[:, :4]
    size = (0.5 + torch.rand(12_000, 4, generator=generator)) * (
        2 * (torch.rand(12_000, 4, generator=generator) < 0.5) - 1
    )
    x = torch.zeros(12_000, 64).scatter(1, active, size) @ directions
    score = {}
    for name in ("abs_topk", "topk"):
        config = recipe(name, d_in=48, d_sae=64, k=4)
        sae = train(config, x[:-1000], steps=350, batch_size=256, progress=False).sae
        score[name] = fvu(x[-1000:], sae(x[-1000:]).x_hat)
        if name == "abs_topk":
            codes = sae.encode(x)
            both = ((codes > 0).sum(0) > 20) & ((codes < 0).sum(0) > 20)
            assert both.float().mean() >= 0.9
            cosine = torch.nn.functional.normalize(sae.W_dec, dim=1) @ directions.t()
            assert (cosine.abs().max(0).values > 0.9).float().mean() >= 0.9
            assert int((codes != 0).sum()) == 4 * len(x)
    assert score["abs_topk"] <= 0.25 * score["topk"]


@pytest.mark.parametrize(
    ("name", "steps"),
    [("batchtopk", 60), ("batchtopk", 200), ("matryoshka", 100), ("batch_abs_topk", 60)],
)
def test_the_threshold_of_short_runs_keeps_k_a_row(name, steps):
    """A plain mean over the run keeps 12 % more than k after 60 steps, since the codes grow in training."""
    generator = torch.Generator().manual_seed(steps)
    directions = torch.nn.functional.normalize(torch.randn(512, 64, generator=generator), dim=1)
    active = torch.rand(10_000, 512, generator=generator).topk(40, 1).indices
    size = torch.rand(10_000, 40, generator=generator) + 0.2
    x = torch.zeros(10_000, 512).scatter(1, active, size) @ directions
    config = recipe(name, d_in=64, d_sae=256, k=32)
    sae = train(config, x[:-2000], steps=steps, batch_size=512, progress=False).sae
    assert _l0(sae, x[-2000:]) == pytest.approx(32, rel=0.04)


def test_batch_abs_topk_is_batchtopk_of_both_signs_folded_back():
    """In training and, by the threshold learned from the batches, afterwards."""
    signed, both = BatchAbsTopK(3, 0.9), BatchTopK(3, 0.9)
    for seed in range(8):
        pre = _normal(50, 20, seed=seed)
        mine, theirs = signed(pre, pre, None), both(torch.cat([pre, -pre], 1), pre, None)
        assert torch.equal(mine, theirs[:, :20] - theirs[:, 20:])
        assert (mine < 0).any()
        signed.observe(mine, pre, None)
        both.observe(theirs, pre, None)
    assert signed.threshold > 0
    assert torch.equal(signed.threshold, both.threshold)
    signed.eval()
    both.eval()
    theirs = both(torch.cat([pre, -pre], 1), pre, None)
    assert torch.equal(signed(pre, pre, None), theirs[:, :20] - theirs[:, 20:])


def test_batch_abs_topk_spends_more_on_harder_rows():
    """Rows of 1 to 7 axes of either sign, 4 on average: a fixed k is too many or too few for most."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.nn.functional.normalize(torch.randn(64, 48, generator=generator), dim=1)
    active = torch.rand(12_000, 64, generator=generator).argsort(1)[:, :7]
    size = 1 + torch.rand(12_000, 7, generator=generator)
    size *= 2 * (torch.rand(12_000, 7, generator=generator) < 0.5) - 1
    size *= torch.arange(7) < torch.randint(1, 8, (12_000, 1), generator=generator)
    x = torch.zeros(12_000, 64).scatter(1, active, size) @ directions
    score, l0 = {}, {}
    for name in ("batch_abs_topk", "abs_topk", "batchtopk"):
        config = recipe(name, d_in=48, d_sae=64, k=4)
        sae = train(config, x[:-1000], steps=350, batch_size=256, progress=False).sae
        score[name] = fvu(x[-1000:], sae(x[-1000:]).x_hat)
        l0[name] = float((sae.encode(x[-1000:]) != 0).float().sum(1).mean())
    assert l0["batch_abs_topk"] == pytest.approx(4, rel=0.1)
    assert score["batch_abs_topk"] <= 0.85 * min(score["abs_topk"], score["batchtopk"])


def test_the_auxiliary_loss_revives_signed_latents_by_magnitude():
    config = recipe("abs_topk", d_in=8, d_sae=24, k=2, k_aux=3)
    x = _normal(50, 8)
    sae = SAE.create(config, 0, x)
    progress = Progress(10, 1.0, Firing(24, 10))
    dead = torch.tensor([1, 4, 5, 9, 20])
    progress.firing.since[dead] = 10
    loss = LOSSES["auxk"](config, progress)(sae, sae(x, sparse=True))
    with torch.no_grad():
        error = (x - sae(x).x_hat) / sae.input_scale
        e_hat = AbsTopK(3)(sae(x).pre[:, dead], x, None) @ sae.W_dec[dead]
        expected = (error - e_hat).square().sum() / error.square().sum() / 32
    torch.testing.assert_close(loss.detach(), expected)


# gated


def test_gated_is_its_equation_and_its_gate_gets_no_gradient_from_the_codes():
    part = Gated(3)
    with torch.no_grad():
        part.r_mag.copy_(torch.tensor([0.5, -1.0, 0.0]))
        part.b_mag.copy_(torch.tensor([0.1, -0.2, -0.3]))
    pre = torch.tensor([[1.0, 2, 0.2], [-0.01, 0.3, 4]], requires_grad=True)
    codes = part(pre, pre, None)
    rise = [math.exp(0.5), math.exp(-1), 1]
    # the gate shuts out -.01, whose magnitude would be positive; the magnitude path two that the gate lets in
    expected = [[rise[0] + 0.1, 2 * rise[1] - 0.2, 0], [0, 0, 3.7]]
    torch.testing.assert_close(codes, torch.tensor(expected))
    codes.sum().backward()
    torch.testing.assert_close(pre.grad, torch.tensor([[rise[0], rise[1], 0], [0, 0, 1]]))
    assert part.b_mag.grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize("sparse", [True, False])
def test_the_gate_loss_is_its_formula_and_holds_the_decoder_fixed(sparse):
    config = recipe("gated", d_in=8, d_sae=24, l1=0.3, l1_warmup=0.0)
    x = _normal(60, 8) + 1
    sae = SAE.create(config, 0, x)
    with torch.no_grad():
        sae.sparsifier.r_mag.fill_(0.7)
        sae.b_enc.sub_(0.1)
    progress = Progress(10, 3.0 / float(sae.input_scale) ** 2, Firing(24, 10))
    loss = LOSSES["gate"](config, progress)(sae, sae(x, sparse=sparse))
    with torch.no_grad():
        on = sae(x).pre.relu()
        error = (x - (on @ sae.W_dec + sae.b_dec) * sae.input_scale).square().sum(1).mean() / 3
        expected = error + 0.3 * on.sum(1).mean() * sae.input_scale / 3**0.5
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    gradients = {name: p.grad for name, p in sae.named_parameters()}
    assert all(gradients[n] is None for n in ("dictionary.W_dec", "sparsifier.r_mag", "sparsifier.b_mag"))
    assert (gradients["W_enc"] != 0).any()
    plain = torch.autograd.grad(
        LOSSES["gate"](config, progress)(sae, sae(x)), [sae.W_enc, sae.b_enc, sae.b_dec]
    )
    for name, grad in zip(("W_enc", "b_enc", "b_dec"), plain, strict=True):
        torch.testing.assert_close(gradients[name], grad, rtol=1e-4, atol=1e-5)


def test_gated_recovers_planted_directions_without_shrinking_what_it_reads():
    """At half the L0 of ReLU with L1 it reconstructs better, and as long as it should."""
    x, directions = _planted(0)
    centre, held_out = x.mean(0), x[-1000:]
    l0, error, shrinkage = {}, {}, {}
    for name, l1 in (("gated", 0.8), ("relu", 0.3)):
        config = recipe(name, d_in=16, d_sae=48, l1=l1)
        sae = train(config, x[:-1000], steps=450, batch_size=256, progress=False).sae
        x_hat = sae(held_out).x_hat.detach()
        l0[name], error[name] = _l0(sae, held_out), fvu(held_out, x_hat)
        # the factor by which reconstructions would have to grow to fit best
        factor = ((x_hat - centre) * (held_out - centre)).sum() / (x_hat - centre).square().sum()
        shrinkage[name] = float(factor)
        assert _recovered(sae, directions) >= 0.9
    assert l0["gated"] < 0.7 * l0["relu"]
    assert error["gated"] < error["relu"]
    assert shrinkage["gated"] == pytest.approx(1, abs=0.03)
    assert shrinkage["relu"] > 1.1


# matryoshka


def _matryoshka(**options):
    return recipe("matryoshka", d_in=8, d_sae=24, k=3, **{"groups": [3, 5, 16], **options})


@pytest.mark.parametrize("bias_level", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_prefix_loss_is_the_mean_over_prefixes_with_its_gradients(bias_level, sparse):
    config = _matryoshka(bias_level=bias_level)
    x = _normal(60, 8) + 1
    sae = SAE.create(config, 0, x).train()
    forward = sae(x, sparse=sparse)
    assert isinstance(forward.codes, Sparse) == sparse
    progress = Progress(10, 3.0 / float(sae.input_scale) ** 2, Firing(24, 10))
    loss = LOSSES["prefixes"](config, progress)(sae, forward)
    got = torch.autograd.grad(loss, list(sae.parameters()))
    codes = sae(x).codes
    lengths = [0, 3, 8, 24] if bias_level else [3, 8, 24]
    x_hat = [(codes[:, :m] @ sae.W_dec[:m] + sae.b_dec) * sae.input_scale for m in lengths]
    expected = torch.stack([(x - one).square().sum(1).mean() / 3 for one in x_hat]).mean()
    torch.testing.assert_close(loss, expected)
    plain = torch.autograd.grad(expected, list(sae.parameters()))
    for (name, _), a, b in zip(sae.named_parameters(), got, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def test_prefixes_follow_the_groups_or_halve():
    assert prefix_lengths(_matryoshka()) == [3, 8, 24]
    assert prefix_lengths(_matryoshka(groups=None)) == [2, 3, 6, 12, 24]
    assert prefix_lengths(recipe("matryoshka", d_in=2, d_sae=1, k=1)) == [1]
    assert prefix_lengths(recipe("matryoshka", d_in=2, d_sae=4096)) == [256, 512, 1024, 2048, 4096]


@pytest.mark.parametrize("groups", [[3, 5], [0, 24], [25, -1], 24, "24", [12.0, 12.0], [], [True, 23]])
def test_groups_that_are_no_partition_are_refused(groups):
    with pytest.raises(ConfigError, match="add up to d_sae=24"):
        _matryoshka(groups=groups)


def test_random_prefixes_change_from_step_to_step_and_repeat_themselves():
    config = _matryoshka(random_prefixes=True)
    x = _normal(60, 8) + 1
    sae, progress = SAE.create(config, 0, x).train(), Progress(10, 3.0, Firing(24, 10))
    penalty = LOSSES["prefixes"](config, progress)
    seen = []
    for progress.step in (0, 1, 2, 0):
        seen.append(float(penalty(sae, sae(x, sparse=True)).detach()))
    assert len(set(seen)) == 3
    assert seen[0] == seen[3]


def test_matryoshka_prefixes_reconstruct_alone_where_those_of_batchtopk_do_not():
    x, _ = _planted(0)
    error = {}
    for name, options in (("matryoshka", {"groups": [8, 8, 32]}), ("batchtopk", {})):
        config = recipe(name, d_in=16, d_sae=48, k=2, **options)
        sae = train(config, x[:-1000], steps=350, batch_size=256, progress=False).sae
        held_out = x[-1000:]
        assert _l0(sae, held_out) == pytest.approx(2, rel=0.1)
        codes = sae.encode(held_out)
        prefixes = [codes * (torch.arange(48) < m) for m in (8, 16, 48)]
        error[name] = [fvu(held_out, sae.decode(one)) for one in prefixes]
        assert error[name][0] > error[name][1] > error[name][2]
    assert error["matryoshka"][0] < error["batchtopk"][0] - 0.1
    assert error["matryoshka"][2] < 2.5 * error["batchtopk"][2]
