"""BatchTopK with a floor for each row or directions that are pushed apart, JumpReLU under a cap."""

from __future__ import annotations

import pytest
import torch

import saelab
from saelab.sae import SAE, Sparse
from saelab.sae.batchwise import FlooredBatchTopK
from saelab.sae.dictionaries import Free
from saelab.sae.recent import CappedJumpReLU
from saelab.sae.sparsifiers import JumpReLU
from saelab.training.losses import LOSSES, Firing, Progress
from saelab.types import ConfigError

NONE = Free(1, 1)


def floored(pre: torch.Tensor, k: float, floor: int) -> torch.Tensor:
    """The definition: bool [n d_sae] of what is kept, row by row, then over the batch."""
    kept = torch.zeros_like(pre, dtype=torch.bool)
    for row, on in zip(pre, kept, strict=True):
        on[torch.sort(row, descending=True, stable=True).indices[:floor]] = True
    kept &= pre > 0
    rest = torch.where(kept, 0, pre).flatten()
    order = torch.sort(rest, descending=True, stable=True).indices[: int(k * len(pre)) - int(kept.sum())]
    kept.flatten()[order] |= rest[order] > 0
    return kept


@pytest.mark.parametrize(("k", "floor"), [(2, 1), (2.5, 2), (3, 3), (1, 1)])
def test_each_row_keeps_its_floor_and_the_batch_its_budget(k, floor):
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(40, 11, generator=generator) * torch.linspace(0.05, 2, 40)[:, None]
    pre[3] = -1  # nothing to keep
    part = FlooredBatchTopK(k, 0.9, floor).train()
    codes = part(pre, pre, NONE)
    assert torch.equal(codes != 0, floored(pre, k, floor))
    assert int((codes != 0).sum()) == int(k * 40)
    rows = (codes != 0).sum(1)
    assert rows[3] == 0
    assert (rows[torch.arange(40) != 3] >= floor).all()
    # its threshold is the smallest code beyond the floors, of dense and of sparse codes
    beyond = torch.stack([row.scatter(0, row.topk(floor).indices, 0) for row in codes])
    smallest = beyond[beyond > 0].min() if (beyond > 0).any() else codes.max()
    for given in (codes, Sparse(*part.select(pre, pre, NONE), codes[codes != 0], 11)):
        seen = FlooredBatchTopK(k, 0.9, floor)
        seen.observe(given, pre, NONE)
        assert seen.threshold == smallest
    after = part.eval()
    after.threshold.fill_(0.7)
    alone = torch.cat([after(row[None], row[None], NONE) for row in pre])
    assert torch.equal(after(pre, pre, NONE), alone)
    assert torch.equal(alone != 0, (pre > 0.7) | floored(pre, floor, floor))


def rows(n: int = 3000) -> torch.Tensor:
    """Sparse sums of directions; a third of the rows are weak, and BatchTopK leaves many of them out."""
    generator = torch.Generator().manual_seed(3)
    directions = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=1)
    on = torch.rand(n, 24, generator=generator) < 0.1
    on[torch.arange(n), torch.randint(24, (n,), generator=generator)] = True
    size = torch.where(torch.rand(n, 1, generator=generator) < 0.3, 0.05, 1.0)
    return (on * (1 + torch.rand(n, 24, generator=generator))) @ directions * size


def train(name: str, **options):
    config = saelab.recipe(name, d_in=16, d_sae=32, k=3, **options)
    return saelab.train(config, rows(), steps=500, batch_size=200, progress=False)


def explained(sae: SAE, x: torch.Tensor) -> float:
    with torch.no_grad():
        return 1 - float((sae(x).x_hat - x).square().sum() / (x - x.mean(0)).square().sum())


def test_the_floor_rebuilds_rows_that_the_batch_forgets():
    """At equal L0; beside an untrained SAE, and at no loss over all rows."""
    x = rows()
    weak = x[x.norm(dim=1) < 0.5]
    plain, floor = train("batchtopk").sae, train("batchtopk_floor", floor=2).sae
    control = SAE.create(floor.config, rows=x)
    with torch.no_grad():
        codes = floor.encode(x)
        assert ((codes != 0).sum(1) == 0).sum() == 0
        assert ((plain.encode(weak) != 0).sum(1) == 0).float().mean() > 0.5
        assert (codes != 0).sum(1).float().mean() == pytest.approx(3, rel=0.2)
    centre = floor.b_dec.detach() * floor.input_scale
    error = {
        name: (sae(weak).x_hat.detach() - weak).norm() for name, sae in (("plain", plain), ("floor", floor))
    }
    assert error["floor"] < 0.8 * error["plain"], (error, centre.norm())
    assert explained(floor, x) > explained(plain, x) - 0.02
    assert explained(floor, x) > explained(control, x) + 0.2


def test_a_row_has_what_exceeds_its_thresholds_and_at_most_k():
    """Beside the definition, with gradients; k latents of some rows, fewer of others."""
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(60, 14, generator=generator, requires_grad=True)
    part = CappedJumpReLU(14, 4, 0.5, 0.3)
    grad = torch.randn(60, 14, generator=generator)
    part(pre, pre, NONE).backward(grad)
    ours = part.log_threshold.grad.clone(), pre.grad.clone()
    part.zero_grad()
    pre.grad = None
    chosen = torch.zeros(60, 14).scatter(1, pre.detach().topk(4).indices, 1)
    plain = JumpReLU(14, 0.5, 0.3)
    codes = plain(pre, pre, NONE) * chosen
    codes.backward(grad)
    torch.testing.assert_close(part(pre, pre, NONE), codes)
    torch.testing.assert_close(ours, (plain.log_threshold.grad, pre.grad))
    counts = (codes != 0).sum(1)
    assert counts.max() == 4
    assert counts.min() < 3


def test_thresholds_under_a_cap_train():
    x = rows()
    run = train("jumprelu_topk", target_l0=2.0)
    control = SAE.create(run.config, rows=x)
    with torch.no_grad():
        counts = (run.sae.encode(x) != 0).sum(1).float()
    assert counts.max() <= 3
    assert counts.mean() == pytest.approx(2, rel=0.2)
    assert explained(run.sae, x) > explained(control, x) + 0.2


@pytest.mark.parametrize("chunk", [7, 1000])
def test_the_penalty_is_the_mean_squared_cosine_of_nearest_directions(chunk):
    config = saelab.recipe("ortsae", d_in=6, d_sae=20, k=2, orthogonality=0.5, chunk=chunk)
    sae = SAE.create(config).train()
    W = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    sae.dictionary.set(W)
    progress = Progress(10, 1.0, Firing(20, 10), step=4)
    loss = LOSSES["orthogonality"](config, progress)(sae, sae(torch.randn(5, 6)))
    loss.backward()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(4))
    W.requires_grad_()
    total = 0.0
    for part in order.tensor_split(-(-20 // chunk)):
        unit = torch.nn.functional.normalize(W[part], dim=1)
        cosines = unit @ unit.t() - 2 * torch.eye(len(part))
        total = total + cosines.max(1).values.clamp_min(0).square().sum()
    (0.5 * total / 20).backward()
    assert loss.item() == pytest.approx(0.5 * float(total) / 20, rel=1e-5)
    torch.testing.assert_close(sae.W_dec.grad, W.grad, atol=1e-6, rtol=1e-4)


def test_directions_are_pushed_apart_and_still_explain():
    def nearest(sae: SAE) -> float:
        unit = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1)
        return float((unit @ unit.t()).fill_diagonal_(-1).max(1).values.mean())

    plain, apart = train("batchtopk").sae, train("ortsae", orthogonality=1.0).sae
    assert nearest(apart) < nearest(plain) - 0.05
    assert explained(apart, rows()) > explained(SAE.create(apart.config, rows=rows()), rows()) + 0.2
    assert train("ortsae", orthogonality=0.0).sae.W_dec.equal(plain.W_dec)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("batchtopk_floor", {"k": 2, "floor": 3}, "floor must be at most k=2"),
        ("batchtopk_floor", {"floor": 0}, "floor must be between 1"),
        ("ortsae", {"chunk": 1}, "chunk"),
        ("batchtopk", {"floor": 1}, "no option 'floor'"),
    ],
)
def test_what_has_no_meaning_is_refused(name, options, match):
    with pytest.raises(ConfigError, match=match):
        saelab.recipe(name, d_in=16, d_sae=32, **{"k": 4, **options})
