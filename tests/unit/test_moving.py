"""Schedules and optimizers: as torch's and other libraries' compose them, by formula, and over a run."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

import saelab
from saelab.config import from_dict, to_dict
from saelab.training import Optimizer, Schedule, Settings, train
from saelab.training.optimizers import Optimizers
from saelab.types import ConfigError, NonFiniteError


def of_saelens(name, steps, warmup, decay, end, cycles):
    """Shares of the highest rate as SAELens' get_lr_scheduler composes them (optim.py, 6.x), restated."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=1.0)
    parts, at = [], []
    main = steps - warmup - decay
    if warmup:
        parts.append(lr_scheduler.LinearLR(optimizer, 1 / warmup, 1.0, total_iters=warmup - 1))
        at.append(warmup)
    if name == "constant":
        parts.append(lr_scheduler.LambdaLR(optimizer, lambda s: 1.0))
    elif name == "cosine":
        parts.append(lr_scheduler.CosineAnnealingLR(optimizer, T_max=main, eta_min=end))
    else:
        parts.append(lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=main // cycles, eta_min=end))
    if decay:
        fall = 1.0 if name == "constant" else end  # the fall begins at what the main part ends with
        parts.append(lr_scheduler.LambdaLR(optimizer, lambda s: fall * (1 - s / decay)))
        at.append(steps - decay)
    schedule = lr_scheduler.SequentialLR(optimizer, parts, at)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    return found


@pytest.mark.parametrize("name", ["constant", "cosine", "restarts"])
@pytest.mark.parametrize(("steps", "warmup", "decay"), [(100, 10, 20), (60, 0, 0), (97, 7, 0), (50, 1, 13)])
def test_schedules_are_those_of_saelens_step_for_step(name, steps, warmup, decay):
    end = 0.0 if name == "constant" else 0.1
    cycles = 3 if name == "restarts" else 1
    ours = Schedule(name, warmup=warmup, decay=decay, end=end, cycles=cycles)
    theirs = of_saelens(name, steps, warmup, decay, end, cycles)
    np.testing.assert_allclose([ours.factor(s, steps) for s in range(steps)], theirs, atol=1e-9)


def test_lengths_are_steps_or_shares_of_the_run():
    assert Schedule("cosine", warmup=0.1, decay=0.25).over(200) == Schedule("cosine", warmup=20, decay=50)
    assert Schedule().over(100) == Schedule(warmup=5, decay=20)
    assert Schedule().over(100_000) == Schedule(warmup=1000, decay=20_000)
    assert Schedule("constant").over(100) == Schedule("constant", warmup=5, decay=0)
    assert Schedule(warmup=0, decay=1.0).factor(0, 50) == 1
    assert Schedule(warmup=0, decay=1.0).factor(49, 50) == pytest.approx(1 / 50)


def _weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = {"W_enc": (6, 10), "b_enc": (10,), "dictionary.W_dec": (10, 6), "b_dec": (6,)}
    return {name: torch.nn.Parameter(torch.randn(size, generator=generator)) for name, size in sizes.items()}


def _reference(kind, weight, decay, lr, betas, grads):
    """The textbook's update, in float64."""
    w, m, v = weight.double(), 0.0, 0.0
    for t, grad in enumerate(grads, 1):
        g = grad.double()
        if kind == "adam":
            g = g + decay * w
        else:
            w = w * (1 - lr * decay)
        m = betas[0] * m + (1 - betas[0]) * g
        if kind == "signum":
            w = w - lr * m.sign()
            continue
        v = betas[1] * v + (1 - betas[1]) * g * g
        w = w - lr * (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + 1e-8)
    return w


@pytest.mark.parametrize("kind", ["adam", "adamw", "signum"])
def test_updates_are_the_textbooks(kind):
    betas, lr, decay = (0.8, 0.95), 0.01, 0.3
    ours = _weights()
    start = {name: weight.detach().clone() for name, weight in ours.items()}
    grads = [{n: torch.randn_like(w) for n, w in ours.items()} for _ in range(6)]
    optimizers = Optimizers(Optimizer(kind, betas, decay, ("W_dec", "b_enc")), ours, lr=1.0)
    for each in grads:
        optimizers.zero_grad()
        for name, weight in ours.items():
            weight.grad = each[name]
        optimizers.step(lr)
    for name, weight in ours.items():
        own = decay if name in ("dictionary.W_dec", "b_enc") else 0.0
        expected = _reference(kind, start[name], own, lr, betas, [each[name] for each in grads])
        torch.testing.assert_close(weight.detach().double(), expected, atol=2e-6, rtol=1e-5)


def test_muon_moves_matrices_along_orthogonal_directions_and_vectors_as_adamw():
    """Of a first step: all singular values of the update alike, its root mean square about .2 lr."""
    ours, other = _weights(), _weights()
    grads = {name: torch.randn_like(weight) for name, weight in ours.items()}
    start = {name: weight.detach().clone() for name, weight in ours.items()}
    muon = Optimizers(Optimizer("muon"), ours, lr=0.5)
    adam = Optimizers(Optimizer("adamw"), other, lr=0.5)
    for weights, optimizers in ((ours, muon), (other, adam)):
        for name, weight in weights.items():
            weight.grad = grads[name].clone()
        optimizers.step(0.5)
    for name in ("W_enc", "dictionary.W_dec"):
        moved = (start[name] - ours[name]).detach()
        values = torch.linalg.svdvals(moved)
        assert values.max() / values.min() < 2  # Newton-Schulz in bfloat16 brings them near 1
        assert moved.square().mean().sqrt() == pytest.approx(0.2 * 0.5, rel=0.2)
        assert (moved * grads[name]).sum() > 0
        assert not torch.equal(ours[name], other[name])
    for name in ("b_enc", "b_dec"):
        torch.testing.assert_close(ours[name], other[name])


def _rows(n=4000):
    generator = torch.Generator().manual_seed(5)
    true = torch.nn.functional.normalize(torch.randn(40, 16, generator=generator), dim=1)
    on = torch.rand(n, 40, generator=generator) < 0.06
    return (on * torch.rand(n, 40, generator=generator)) @ true


def _config(name="topk", **options):
    return saelab.recipe(name, d_in=16, d_sae=48, **({"k": 3} if name == "topk" else {}), **options)


@pytest.mark.parametrize("kind", ["adam", "adamw", "signum", "muon"])
def test_a_run_goes_on_with_its_optimizer_to_the_last_bit(kind, tmp_path):
    asked = {
        "steps": 60, "batch_size": 64, "progress": False, "checkpoint_every": 10, "lr": 3e-3,
        "optimizer": Optimizer(kind, (0.9, 0.99), weight_decay=0.01), "schedule": "cosine", "clip": None,
    }  # fmt: skip
    config = _config(resample_every=20, dead_after=300)
    whole = train(config, _rows(), **asked)

    def stop(event):
        if event.step == 30:
            event.live.stop()

    first = train(config, _rows(), **asked, out=tmp_path / "run", log_every=5, callbacks=[stop])
    assert not first.finished
    again = train(config, _rows(), **asked, out=tmp_path / "run", log_every=5)
    assert again.finished
    for name, value in whole.sae.state_dict().items():
        assert torch.equal(value, again.sae.state_dict()[name]), name
    assert saelab.training.Run.load(tmp_path / "run").settings == again.settings
    assert from_dict(Settings, to_dict(again.settings)) == again.settings


@pytest.mark.parametrize(("kind", "lr"), [("adam", 0.01), ("adamw", 0.01), ("signum", 0.003), ("muon", 0.03)])
def test_every_optimizer_learns(kind, lr):
    rows, config = _rows(), _config()
    found = train(config, rows, steps=300, batch_size=128, progress=False, lr=lr, optimizer=kind).sae
    before = saelab.SAE.create(config, 0, rows)
    with torch.no_grad():
        assert saelab.sae.fvu(rows, found(rows).x_hat) < 0.6 * saelab.sae.fvu(rows, before(rows).x_hat)


def test_another_optimizer_or_schedule_is_another_run(tmp_path):
    asked = {"steps": 20, "batch_size": 64, "progress": False, "out": tmp_path / "run"}
    train(_config(), _rows(), **asked, schedule="cosine")
    for other in ({"schedule": "constant"}, {"schedule": "cosine", "optimizer": "signum"}, {}):
        with pytest.raises(ConfigError, match=r"settings\.(schedule|optimizer)"):
            train(_config(), _rows(), **asked, **other)


def test_weight_decay_shortens_the_chosen_parts_alone():
    asked = {"steps": 40, "batch_size": 64, "progress": False, "lr": 1e-3}
    config = _config("relu", l1=0.0)
    decayed = Optimizer("adamw", weight_decay=2.0, parts=("W_enc",))
    plain, less = (train(config, _rows(), **asked, optimizer=each).sae for each in ("adamw", decayed))
    assert less.W_enc.norm() < 0.97 * plain.W_enc.norm()
    assert less.W_dec.norm() > 0.97 * plain.W_dec.norm()


def test_gradients_are_as_they_are_without_clip():
    """A row of a thousand times the length: clipped steps ignore its size, else Adam's moments keep it."""
    rows = _rows()
    rows[7] *= 1000
    asked = {"steps": 62, "batch_size": 64, "progress": False}
    clipped, free = (train(_config(), rows, **asked, clip=c).sae for c in (1.0, None))
    assert not torch.equal(clipped.W_enc, free.W_enc)
    same, huge = (train(_config(), _rows(), **asked, clip=c).sae for c in (None, 1e12))
    assert torch.equal(same.W_enc, huge.W_enc)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"schedule": "cosin"}, "cosine"),
        ({"schedule": 3}, "saelab.training.Schedule"),
        ({"optimizer": "adamW"}, "adamw"),
        ({"optimizer": torch.optim.SGD}, "saelab.training.Optimizer"),
        ({"clip": 0}, "clip"),
        ({"clip": float("nan")}, "clip"),
        ({"optimizer": "adam", "clip": True}, "clip"),
    ],
)
def test_what_has_no_meaning_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        train(_config(), _rows(), steps=5, batch_size=64, progress=False, **given)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Schedule("linear", end=0.1),
        lambda: Schedule("cosine", cycles=2),
        lambda: Schedule(warmup=-1),
        lambda: Schedule(decay=1.5),
        lambda: Schedule(warmup=True),
        lambda: Schedule("cosine", end=2),
        lambda: Schedule("restarts", cycles=0),
        lambda: Optimizer(betas=(0.9,)),
        lambda: Optimizer(betas=(0.9, 1.0)),
        lambda: Optimizer(weight_decay=-1),
        lambda: Optimizer(parts="W_enc"),
        lambda: Optimizers(Optimizer(weight_decay=0.1, parts=("W_encc",)), _weights(), 1.0),
    ],
)
def test_values_out_of_range_are_refused(make):
    with pytest.raises(ConfigError, match=r"Pass|pass"):
        make()


def test_a_diverging_run_says_where_with_any_optimizer():
    with pytest.raises(NonFiniteError, match="step"):
        train(
            _config("relu"), _rows(), steps=50, batch_size=64, progress=False, lr=1e30,
            optimizer="signum", schedule=Schedule("constant", warmup=0), clip=None,
        )  # fmt: skip
