"""GBA and TopAFA: rules and selections against their papers, closed forms and brute force."""

from __future__ import annotations

import copy

import pytest
import torch
from test_architectures import _normal, _planted

from saelab.sae import SAE, Sparse, recipe
from saelab.sae.batchwise import GroupBias
from saelab.sae.dictionaries import Free
from saelab.sae.sparsifiers import DENSE, TopAFA
from saelab.training import LOSSES, RULES, train
from saelab.training.losses import Firing, Progress


@pytest.mark.parametrize("magnitude", ["pre", "biased"])
@pytest.mark.parametrize("sparse", [False, True])
def test_biases_move_by_the_rule_of_the_paper(magnitude, sparse):
    """Latents: too frequent, in its band, never on, and one whose bias would leave [-1, 0]; target .5."""
    part = GroupBias.geometric(4, 1, 0.5, 0.5, magnitude=magnitude, rate=0.1, never=0.01, every=2)
    part.bias.copy_(torch.tensor([-0.1, -0.2, -0.05, -0.98]))
    batches = torch.tensor(
        [[[0.5, 0.7, 0.0, 3.0], [0.9, 0.1, -1, 2.0]], [[0.3, 0.6, 0.01, 4.0], [0.2, 0, 0, 5.0]]]
    )
    for i, pre in enumerate(batches):
        torch.testing.assert_close(part.bias, torch.tensor([-0.1, -0.2, -0.05, -0.98]))
        codes = part(pre, pre, None)
        if sparse:
            indptr, indices = part.eval().select(pre, pre, None)
            rows = torch.repeat_interleave(torch.arange(2), indptr.diff())
            codes = Sparse(indptr, indices, part.activation(pre[rows, indices], indices), 4)
        part.observe(codes, codes, None)
        assert int(part.batches) == 1 - i
    # heights pre + bias: .8, .5, none, 4.02; the first and last fired on all rows, the second on half of them
    rise = (0.8 + 0.5 + 4.02) / 3
    torch.testing.assert_close(part.bias, torch.tensor([-0.1 - 0.08, -0.2, min(-0.05 + 0.1 * rise, 0), -1.0]))
    assert not part.fired.any()
    assert not part.peak.any()


def test_groups_have_geometric_targets_and_share_only_their_own_heights():
    part = GroupBias.geometric(8, 4, 0.4, 0.4 / 27, magnitude="pre", rate=0.1, never=1e-6, every=1)
    torch.testing.assert_close(part.target, 0.4 / 3.0 ** torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    part.bias.fill_(-0.9)
    codes = torch.zeros(10, 8)
    codes[0, 0], codes[0, 2] = 1.0, 1.2  # the first and second group have heights .1 and .3, the others none
    part.observe(codes, codes, None)
    rise = torch.tensor([0, 0.1, 0, 0.3, 0.2, 0.2, 0.2, 0.2])
    torch.testing.assert_close(part.bias, -0.9 + 0.1 * rise)


def test_gba_is_tied_and_no_gradient_touches_a_bias():
    x, _ = _planted(0)
    config = recipe("gba", d_in=16, d_sae=48, every=5, rate=0.05)
    sae = SAE.create(config, 0, x).train()
    torch.testing.assert_close(sae.W_enc, sae.dictionary.w.t())
    forward = sae(x[:100], sparse=True)
    (forward.x_hat - x[:100]).square().sum().backward()
    assert sae.b_enc.grad is None
    assert sae.b_dec.grad is None
    assert not sae.sparsifier.bias.requires_grad
    # the gradient of the tied weights, by central differences along one direction across w
    rule, w = RULES["tied"](config, None), sae.dictionary.w
    rule.gradient(sae, forward)
    assert not sae.W_enc.grad.any()
    across = _normal(48, 16)
    across -= (across * w).sum(1, keepdim=True) * w
    wide = copy.deepcopy(sae).double()

    def error(step: float) -> float:
        with torch.no_grad():
            wide.dictionary.w.copy_(w.double() + step * across)
            wide.W_enc.copy_(wide.dictionary.w.t())
            return float((wide(x[:100].double()).x_hat - x[:100]).square().sum())

    slope = (error(1e-7) - error(-1e-7)) / 2e-7
    assert float((w.grad * across).sum().detach()) == pytest.approx(slope, rel=1e-3)
    run_start = SAE.create(config, 0, x[:1])
    callbacks = [lambda event: run_start.load_state_dict(event.sae.state_dict()) if event.step == 0 else None]
    run = train(config, x, steps=60, batch_size=128, progress=False, callbacks=callbacks)
    assert torch.equal(run.sae.W_enc, run.sae.dictionary.w.t())
    torch.testing.assert_close(run.sae.dictionary.w.norm(dim=1), torch.ones(48))
    assert not run.sae.b_enc.any()
    assert torch.equal(run.sae.b_dec, run_start.b_dec)
    assert (run.sae.sparsifier.bias < 0).any()


@pytest.mark.slow
def test_gba_resonates_at_the_frequency_of_the_features():
    """The toy of the method sheet: 64 features in 32 dimensions, 3 on in each row. One target frequency for
    all latents recovers features where it is theirs, and none where it is six times that."""
    generator = torch.Generator().manual_seed(51)
    directions = torch.nn.functional.normalize(torch.randn(64, 32, generator=generator), dim=1)
    active = torch.rand(20_000, 64, generator=generator).argsort(1)[:, :3]
    x = torch.zeros(20_000, 64).scatter(1, active, 1.0) @ directions
    recovered = {}
    for times in (1, 6):
        target = times * 3 / 64
        config = recipe(
            "gba",
            d_in=32,
            d_sae=128,
            groups=1,
            high=target,
            low=target,
            every=20,
            rate=0.02,
            b_dec_init="zeros",
        )
        sae = train(config, x, steps=1500, batch_size=256, lr=3e-3, seed=1, progress=False).sae
        share = (sae.encode(x) != 0).float().mean(0)
        assert ((share <= 1.3 * target) & (share > 0)).float().mean() >= 0.95
        cosine = directions @ torch.nn.functional.normalize(sae.W_dec.detach(), dim=1).t()
        recovered[times] = float((cosine.max(1).values > 0.95).float().mean())
    assert recovered[1] >= 0.9
    assert recovered[6] <= 0.1


# top_afa


def _afa_by_brute_force(pre: torch.Tensor, x: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Every prefix of every row, in float64; ties to the lower index and the smaller prefix."""
    kept = torch.zeros_like(pre, dtype=torch.bool)
    for i in range(len(pre)):
        score = pre[i].relu() * norm
        order = sorted(range(len(score)), key=lambda j: (-float(score[j]), j))
        target = float(x[i].norm())
        errors = [abs(float(score[order[:k]].double().norm()) - target) for k in range(1, len(order) + 1)]
        best = min(range(len(order)), key=lambda k: (round(errors[k], 9), k)) + 1
        kept[i, order[:best]] = True
    return torch.where(kept, pre.relu(), 0.0)


@pytest.mark.parametrize("d_sae", [1, 9, 160, 700])
@pytest.mark.parametrize("length", [0.0, 1e-3, 1.0, 4.0, 1e6])
@pytest.mark.parametrize("ties", [False, True])
def test_top_afa_is_the_nearest_of_all_prefixes(d_sae, length, ties):
    pre, norm = _normal(12, d_sae), torch.linspace(0.3, 3, d_sae)
    if ties:
        pre, norm = pre.round(), torch.ones(d_sae)
    x = _normal(12, 5, seed=1) * length
    part, dictionary = TopAFA().eval(), Free(d_sae, 1)
    dictionary.set(norm[:, None])
    expected = _afa_by_brute_force(pre, x, norm)
    assert torch.equal(part(pre, x, dictionary), expected)
    selected = part.select(pre, x, dictionary)
    if selected is None:
        assert (expected != 0).float().mean() > 1 / DENSE, "codes that are few are listed"
        return
    indptr, indices = selected
    rows = torch.repeat_interleave(torch.arange(12), indptr.diff())
    assert torch.equal(torch.zeros(12, d_sae).index_put((rows, indices), pre[rows, indices]), expected)


def test_top_afa_finds_every_support_on_an_orthonormal_dictionary():
    directions = torch.linalg.qr(_normal(32, 32))[0]
    generator = torch.Generator().manual_seed(3)
    codes = torch.rand(4_000, 32, generator=generator) * (torch.rand(4_000, 32, generator=generator) < 0.15)
    codes = torch.where(codes > 0.05, codes, 0.0)
    x = codes @ directions
    dictionary = Free(32, 32)
    dictionary.set(torch.eye(32))
    found = TopAFA()(x @ directions.t(), x, dictionary)
    assert torch.equal(found > 1e-5, codes > 0)
    torch.testing.assert_close(found, codes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sparse", [True, False])
def test_the_afa_loss_is_its_formula(sparse):
    config = recipe("top_afa", d_in=8, d_sae=24, afa=0.25)
    x = _normal(60, 8) + 1
    sae = SAE.create(config, 0, x)
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.5, 2, 24)[:, None])
    loss = LOSSES["afa"](config, Progress(10, 3.0, Firing(24, 10)))(sae, sae(x, sparse=sparse))
    lengths = (sae.encode(x) * torch.linspace(0.5, 2, 24)).norm(dim=1)
    expected = 8 / 4 * (lengths - (x / sae.input_scale - sae.b_dec).norm(dim=1)).square().mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in sae.parameters() if p.grad is not None)


def test_top_afa_makes_codes_as_long_as_inputs():
    """All that its theory promises. It does not find the directions: they have latents, but so has noise."""
    x, _ = _planted(0)
    run = train(recipe("top_afa", d_in=16, d_sae=48), x[:-1000], steps=350, batch_size=256, progress=False)
    held_out = x[-1000:]
    target = (held_out / run.sae.input_scale - run.sae.b_dec).norm(dim=1)
    ratio = (run.sae.encode(held_out) * run.sae.W_dec.norm(dim=1)).norm(dim=1) / target
    assert float(ratio[target > 0.1].median().detach()) == pytest.approx(1, abs=0.02)
