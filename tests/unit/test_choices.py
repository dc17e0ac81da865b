"""Mutual and feature choice, group maxima, schedules, revival: exact budgets, formulas, planted truth."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab.sae import SAE, Sparse, fvu, recipe
from saelab.sae.batchwise import FeatureChoice, column_budget, zipf
from saelab.sae.kernels import batch_top_k, column_order, column_top_k, column_top_k_reference, top_k
from saelab.sae.sparsifiers import GroupMax, TopK
from saelab.training import LOSSES, RULES, train
from saelab.training.losses import Firing, Progress
from saelab.training.moving import Optimizer
from saelab.training.optimizers import Optimizers
from saelab.types import ConfigError


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# budgets


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_column_budgets_are_exact(data):
    n, d_sae = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 60))
    total = data.draw(st.integers(0, n * d_sae))
    share = zipf(d_sae, data.draw(st.floats(0, 3)), data.draw(st.floats(0, 20)))
    m = column_budget(total, n, share)
    assert int(m.sum()) == total
    assert 0 <= int(m.min())
    assert int(m.max()) <= n
    assert (m.diff() <= 0).all()
    if total >= d_sae:
        assert int(m.min()) >= 1


def test_column_budgets_follow_their_law():
    m = column_budget(2_000, 1_000, zipf(50, 1.0, 3.0))
    expected = 1 + (2_000 - 50) * zipf(50, 1.0, 3.0)
    assert float((m - expected).abs().max()) < 1
    assert column_budget(500, 1_000, zipf(50, 0.0, 3.0)).tolist() == [10] * 50
    # what one column cannot hold goes to the others
    assert column_budget(30, 10, torch.tensor([0.9, 0.05, 0.05]).double()).tolist() == [10, 10, 10]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_columns_keep_what_the_definition_keeps(data):
    n, d_sae = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 60))
    pre = _normal(n, d_sae, seed=data.draw(st.integers(0, 1000)))
    kind = data.draw(st.sampled_from(["free", "ties", "zeros", "negative", "equal"]))
    if kind == "ties":
        pre = (2 * pre).round()
    elif kind == "zeros":
        pre = pre.relu()
    elif kind == "negative":
        pre = -pre.abs()
    elif kind == "equal":
        pre = torch.ones_like(pre)
    m = torch.tensor(data.draw(st.lists(st.integers(0, n), min_size=d_sae, max_size=d_sae)))
    kept = column_top_k(pre, m)
    assert torch.equal(kept, column_top_k_reference(pre, m))
    sums = torch.bincount(kept % d_sae, minlength=d_sae)
    assert torch.equal(sums, m.minimum((pre > 0).sum(0)))


def test_what_is_just_kept_and_just_not():
    pre = torch.tensor([[3.0, 1, -1, 5], [2, 4, -2, 5], [1, 2, 6, 5]])
    last, after = column_order(pre, torch.tensor([1, 2, 2, 0]))
    assert last.tolist() == [3, 2, 0, float("inf")]
    assert after.tolist() == [2, 1, 0, 5]


def test_mutual_choice_has_the_largest_affinity_of_all_choices_with_its_budget():
    """By brute force over all masks of a small batch, and beside the other choices on larger ones."""
    pre = _normal(3, 4, seed=5).abs()
    flat = batch_top_k(pre, 5)
    best = max(sum(pre.reshape(-1)[list(mask)]) for mask in itertools.combinations(range(12), 5))
    assert float(pre.reshape(-1)[flat].sum()) == pytest.approx(float(best))
    for seed in range(20):
        pre = _normal(64, 40, seed=seed)
        mutual = pre.reshape(-1)[batch_top_k(pre, 64 * 4)].sum()
        rows = pre.gather(1, top_k(pre, 4)).relu().sum()
        columns = column_top_k(pre, column_budget(64 * 4, 64, zipf(40, 1.0, 3.0)))
        assert mutual >= rows
        assert mutual >= pre.reshape(-1)[columns].sum()


def test_feature_choice_fills_its_columns_whatever_the_order_of_the_rows():
    part = FeatureChoice(30, 3, 1.0, 3.0, 0.99)
    pre = _normal(200, 30).abs() + 0.01
    codes = part(pre, pre, None)
    m = column_budget(600, 200, zipf(30, 1.0, 3.0))
    assert torch.equal((codes != 0).sum(0), m)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    assert torch.equal(part(pre[order], pre[order], None), codes[order])


@pytest.mark.parametrize("tail", ["exponential", "normal", "uniform", "heavy"])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_thresholds_of_feature_choice_keep_as_many_on_single_rows(tail, alpha):
    """Whatever the shape of the tail: within 2 %, over fresh rows."""
    generator = torch.Generator().manual_seed(0)

    def rows(n):
        u = torch.rand(n, 40, generator=generator)
        return {
            "exponential": -u.log(),
            "normal": torch.randn(n, 40, generator=generator),
            "uniform": u,
            "heavy": u.clamp_min(1e-6) ** -0.3,
        }[tail]

    part = FeatureChoice(40, 1, alpha, 3.0, 0.99)
    for _ in range(500):
        pre = rows(128)
        part.observe(pre, pre, None)
    part.eval()
    fresh = rows(60_000)
    l0 = float((part(fresh, fresh, None) != 0).float().sum(1).mean())
    assert l0 == pytest.approx(1, rel=0.02)


# choices that are trained


def _uneven(seed: int):
    """Rows of unequal difficulty: (x [n 32], how many directions each holds)."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(64, 32, generator=generator), dim=1)
    difficulty = 0.3 + 1.4 * torch.rand(20_000, 1, generator=generator)
    frequency = 1 / (torch.arange(64) + 3.0)
    on = torch.rand(20_000, 64, generator=generator) < 3 * difficulty * frequency / frequency.sum()
    codes = on * (0.5 + torch.rand(20_000, 64, generator=generator))
    return codes @ directions, on.sum(1)


@pytest.mark.parametrize("name", ["mutual_choice", "feature_choice"])
def test_inference_by_threshold_is_as_good_as_the_batch(name):
    x, _ = _uneven(0)
    config = recipe(name, d_in=32, d_sae=96, k=3)
    sae = train(config, x[:16_000], steps=900, batch_size=512, progress=False).sae
    held_out = x[16_000:]
    codes, x_hat = sae.encode(held_out), sae(held_out).x_hat
    sae.train()
    batch = [sae(part) for part in held_out.split(512)[:-1]]
    rows = 512 * len(batch)
    in_batches = fvu(held_out[:rows], torch.cat([b.x_hat for b in batch]))
    l0 = sum(int((b.codes != 0).sum()) for b in batch) / rows
    # feature choice is better by thresholds: it need not fill a column from a batch that has too little
    assert fvu(held_out, x_hat) <= 1.02 * in_batches
    if name == "mutual_choice":
        assert fvu(held_out, x_hat) == pytest.approx(in_batches, rel=0.02)
    assert float((codes != 0).float().sum(1).mean()) == pytest.approx(l0, rel=0.02)


def test_mutual_choice_spends_more_on_harder_rows():
    x, true = _uneven(0)
    l0, error = {}, {}
    for name in ("topk", "mutual_choice"):
        config = recipe(name, d_in=32, d_sae=96, k=3)
        sae = train(config, x[:16_000], steps=250, batch_size=512, progress=False).sae
        l0[name] = (sae.encode(x[16_000:]) != 0).float().sum(1)
        error[name] = fvu(x[16_000:], sae(x[16_000:]).x_hat)
    assert error["mutual_choice"] <= 0.8 * error["topk"]
    together = torch.stack([l0["mutual_choice"], true[16_000:].float()])
    assert float(torch.corrcoef(together)[0, 1]) >= 0.7


# aux_zipf


@pytest.mark.parametrize("sparse", [False, True])
def test_aux_zipf_without_a_floor_is_auxk(sparse):
    x = _normal(300, 8) + 1
    config = recipe("mutual_choice", d_in=8, d_sae=24, k=3, zipf_floor=0.0)
    sae = SAE.create(config, 0, x).train()
    firing = Firing(24, 10)
    firing.since[[2, 5, 7]] = 10
    firing.rows, firing.density = 1000, torch.rand(24)
    progress = Progress(10, 1.0, firing)
    values = []
    for name in ("auxk", "aux_zipf"):
        sae.zero_grad()
        loss = LOSSES[name](config, progress)(sae, sae(x, sparse=sparse))
        loss.backward()
        values.append((loss.detach(), sae.W_enc.grad.clone()))
    assert float(values[0][0]) > 0
    torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=1e-6)


def test_aux_zipf_takes_the_latents_below_their_share():
    config = recipe("mutual_choice", d_in=8, d_sae=6, k=1, zipf_floor=0.5, alpha=1.0, bump=0.0, k_aux=6)
    x = _normal(50, 8)
    sae = SAE.create(config, 0, x).train()
    firing = Firing(6, 100)
    expected = zipf(6, 1.0, 0.0).float()
    # by rank, the first, fourth and last have less than half of their share
    firing.density = (expected * torch.tensor([0.9, 0.8, 0.9, 0.49, 0.6, 0.2]))[[3, 0, 5, 1, 4, 2]]
    firing.rows = 100
    LOSSES["aux_zipf"](config, Progress(10, 1.0, firing))(sae, sae(x)).backward()
    touched = sae.W_dec.grad.abs().sum(1) > 0
    assert touched.tolist() == [True, False, True, False, False, False]
    firing.rows = 99  # too early to tell
    loss = LOSSES["aux_zipf"](config, Progress(10, 1.0, firing))(sae, sae(x))
    assert float(loss) == 0


def test_densities_are_means_at_first_and_forget_later():
    firing = Firing(2, dead_after=4)
    for codes in ([[1.0, 0], [1, 0]], [[0, 0], [1, -1]], [[0, 1], [0, 1]]):
        firing.update(torch.tensor(codes))
    assert firing.density.tolist() == pytest.approx([0.375, 0.625])


# group maxima, schedules, resampling


@pytest.mark.parametrize(("d_sae", "k"), [(12, 3), (13, 4), (7, 7), (9, 1)])
def test_each_group_gives_its_largest(d_sae, k):
    pre = _normal(50, d_sae)
    codes = GroupMax(d_sae, k)(pre, pre, None)
    bounds = [d_sae * i // k for i in range(k + 1)]
    for a, b in itertools.pairwise(bounds):
        part = pre[:, a:b]
        expected = torch.zeros_like(part).scatter(1, part.argmax(1, keepdim=True), part.amax(1, keepdim=True))
        assert torch.equal(codes[:, a:b], expected.relu())


def test_k_falls_to_its_end(tmp_path):
    x = _normal(3_000, 16)
    config = recipe("topk", d_in=16, d_sae=48, k=2, k_start=12, k_anneal=0.5)
    run = train(config, x, steps=40, batch_size=100, log_every=1, progress=False)
    l0 = [record.l0 for record in run.history]
    assert l0[0] == pytest.approx(12, abs=0.6)
    assert l0[9] == pytest.approx(7, abs=0.6)
    assert l0[20:] == [2] * 20
    assert all(a >= b for a, b in itertools.pairwise(l0))
    assert run.sae.sparsifier.k == 2
    with pytest.raises(ConfigError, match=r"k_start must be at least k=2\. Got 1"):
        recipe("topk", d_in=16, d_sae=48, k=2, k_start=1)


def test_multi_topk_is_the_error_of_four_times_as_many():
    x = _normal(60, 8) + 1
    config = recipe("topk", d_in=8, d_sae=24, k=2, multi_topk=0.125)
    sae = SAE.create(config, 0, x).train()
    loss = LOSSES["multi_topk"](config, Progress(10, 2.0, Firing(24, 10)))(sae, sae(x, sparse=True))
    wide = sae.sparsifier
    sae.sparsifier = TopK(8)
    error = (sae.normalised(x)[0] - sae(x).x_hat / sae.input_scale).square().sum(1).mean()
    sae.sparsifier = wide
    torch.testing.assert_close(loss, error / 16)


@pytest.mark.parametrize("name", ["relu", "topk", "jumprelu", "gated"])
def test_resampling_starts_dead_latents_anew(name):
    options = {"k": 2} if name == "topk" else {}
    config = recipe(name, d_in=8, d_sae=24, resample_every=5, **options)
    x = _normal(400, 8) + 1
    sae = SAE.create(config, 0, x).train()
    firing = Firing(24, 10)
    dead = torch.tensor([3, 11, 20])
    firing.since[dead] = 10
    progress = Progress(100, 1.0, firing, step=4)
    optimizer = Optimizers(Optimizer(), dict(sae.named_parameters()), 1e-3)
    forward = sae(x, sparse=True)
    (forward.x_hat - x).square().sum().backward()
    optimizer.step(1e-3)
    before = {key: value.clone() for key, value in sae.state_dict().items()}
    rule = RULES["resample"](config, progress)
    rule.after(sae, forward, optimizer)
    living = [j for j in range(24) if j not in dead.tolist()]
    assert torch.equal(sae.W_enc[:, living], before["W_enc"][:, living])
    assert torch.equal(sae.W_dec[living], before["dictionary.W_dec"][living])
    assert not sae.b_enc[dead].any()
    size = config.options["resample_scale"] * before["W_enc"][:, living].norm(dim=0).mean()
    torch.testing.assert_close(sae.W_enc[:, dead].norm(dim=0), size.expand(3))
    unit = torch.nn.functional.normalize
    cosine = unit(x / sae.input_scale - sae.b_dec, dim=1) @ unit(sae.W_dec[dead], dim=1).t()
    assert float(cosine.amax(0).min().detach()) > 0.9999
    assert not optimizer.state(sae.W_dec)["exp_avg"][dead].any()
    assert optimizer.state(sae.W_dec)["exp_avg"][living].any()
    assert not firing.dead.any()
    again = sae.state_dict()["W_enc"].clone()
    progress.step = 5  # not a multiple
    firing.since[dead] = 10
    rule.after(sae, forward, optimizer)
    assert torch.equal(sae.W_enc, again)


def test_a_bad_start_is_revived():
    """Three in four encoder columns start so short that their latents are never among the k largest."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, 32, generator=generator), dim=1)
    on = torch.rand(20_000, 64, generator=generator) < 0.06
    x = (on * (0.5 + torch.rand(20_000, 64, generator=generator))) @ directions
    off = {"aux_coefficient": 0.0}
    options = {"auxk": {}, "resampling": {**off, "resample_every": 20}, "none": off}

    def dead(kind):
        config = recipe("topk", d_in=32, d_sae=64, k=4, dead_after=4_000, **options[kind])

        def spoil(event):
            if event.name == "start":
                with torch.no_grad():
                    event.sae.W_enc[:, 16:] *= 0.02

        run = train(config, x[:16_000], steps=400, batch_size=512, progress=False, callbacks=[spoil])
        return float((~(run.sae.encode(x[16_000:]) != 0).any(0)).float().mean())

    left = dead("none")
    assert left > 0.5
    assert dead("auxk") < 0.05
    # resampling draws mixtures of directions, some of which lose again after its last time
    assert dead("resampling") < left / 3


def test_p_annealing_ends_sparser_at_equal_weight():
    x, _ = _uneven(1)
    l0 = {}
    for p_end in (1.0, 0.3):
        config = recipe("relu", d_in=32, d_sae=96, l1=0.3, p_end=p_end)
        sae = train(config, x[:16_000], steps=300, batch_size=512, progress=False).sae
        l0[p_end] = float((sae.encode(x[16_000:]) != 0).float().sum(1).mean())
    assert l0[0.3] < 0.9 * l0[1.0]
    sparse = Sparse(torch.tensor([0, 2]), torch.tensor([0, 3]), torch.tensor([0.5, 2.0]), 96)
    config = recipe("relu", d_in=32, d_sae=96, l1=1.0, l1_warmup=0.0, p_end=0.5)
    sae = SAE.create(config, 0)
    forward = sae(x[:1])._replace(codes=sparse)
    loss = LOSSES["l1"](config, Progress(10, 4.0, Firing(96, 10), step=10))
    # at the end the size is that of the L1 penalty, the slope that of the root
    value = sparse.values.clone().requires_grad_()
    got = loss(sae, forward._replace(codes=sparse._replace(values=value)))
    assert float(got.detach()) == pytest.approx(2.5 / 2)
    got.backward()
    slope = 0.5 * torch.tensor([0.5, 2.0]) ** -0.5 * 2.5 / float(torch.tensor([0.5, 2.0]).sqrt().sum()) / 2
    torch.testing.assert_close(value.grad, slope)


@pytest.mark.parametrize("name", ["relu", "topk", "jumprelu", "transcoder"])
@pytest.mark.parametrize("asked", ["recipe", "unit", "free"])
def test_decoder_norms_follow_the_recipe_or_what_is_asked(name, asked):
    x = _normal(2_000, 8) + 1
    options = {"k": 3} if name in ("topk", "transcoder") else {}
    options |= {"d_out": 8} if name == "transcoder" else {}
    config = recipe(name, d_in=8, d_sae=24, decoder_norm=asked, **options)
    data = (x, x) if name == "transcoder" else x
    norms = train(config, data, steps=20, batch_size=100, progress=False).sae.W_dec.detach().norm(dim=1)
    unit = asked == "unit" or (asked == "recipe" and name != "relu")
    assert bool(((norms - 1).abs() < 1e-5).all()) == unit
