from __future__ import annotations

import gc
import math
import shutil

import numpy as np
import pytest
import torch

from saelab.sae import SAE, fvu, recipe
from saelab.training import LOSSES, RULES, Run, checkpoints, learning_rate, train
from saelab.training.losses import Firing, Progress
from saelab.training.moving import Schedule
from saelab.training.rows import TensorRows
from saelab.types import (
    ConfigError,
    FormatError,
    HookError,
    NonFiniteError,
    ShapeError,
    StoreError,
)


def _planted(seed: int, d_in: int = 32, n_features: int = 64, n: int = 20_000, k: int = 3):
    """(rows [n d_in], directions [n_features d_in]): k active features of unequal strength, a bias, a
    little noise."""
    rng = np.random.default_rng(1000 + seed)
    directions = rng.standard_normal((n_features, d_in))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    active = rng.random((n, n_features)).argsort(1)[:, :k]
    codes = np.zeros((n, n_features))
    np.put_along_axis(codes, active, rng.uniform(0.5, 1.5, (n, k)), 1)
    rows = codes @ directions + 0.01 * rng.standard_normal((n, d_in)) + 0.3 * rng.standard_normal(d_in)
    return torch.tensor(rows, dtype=torch.float32), torch.tensor(directions, dtype=torch.float32)


def _recovered(sae: SAE, directions: torch.Tensor) -> float:
    """Share of directions that have a latent of their own at cosine >= 0.9."""
    cosine = directions @ torch.nn.functional.normalize(sae.W_dec.detach(), dim=1).t()
    best, latent = cosine.max(1)
    return len({int(j) for j, c in zip(latent, best, strict=True) if c >= 0.9}) / len(directions)


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return _planted(0, d_in=8, n_features=16, n=2_000, k=2)[0]


TINY = {"steps": 30, "batch_size": 64, "seed": 1, "progress": False, "log_every": 1}


def _tiny(**options):
    return recipe("topk", d_in=8, d_sae=24, k=2, dead_after=200, **options)


def _equal(a: Run, b: Run) -> bool:
    same = [
        torch.equal(x, y)
        for x, y in zip(a.sae.state_dict().values(), b.sae.state_dict().values(), strict=True)
    ]
    return all(same) and a.history == b.history


# what training does


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_topk_recovers_planted_directions_and_the_untrained_sae_does_not(seed):
    x, directions = _planted(seed)
    config = recipe("topk", d_in=32, d_sae=96, k=3)
    run = train(config, x[:-2000], steps=450, batch_size=512, seed=seed, progress=False)
    control = SAE.create(config, seed, x)
    held_out = x[-2000:]
    assert _recovered(run.sae, directions) >= 0.9
    assert _recovered(control, directions) <= 0.05
    assert fvu(held_out, run.sae(held_out).x_hat) < 0.1 < 0.4 < fvu(held_out, control(held_out).x_hat)


def test_relu_trains_to_sparse_codes_and_more_l1_makes_them_sparser(rows):
    runs = [
        train(
            recipe("relu", d_in=8, d_sae=24, l1=l1, **o),
            rows,
            steps=400,
            batch_size=256,
            lr=3e-3,
            progress=False,
        )
        for l1, o in [(0.02, {}), (0.2, {}), (0.2, {"decoder_norm_weighted": False})]
    ]
    l0 = [run.history[-1].l0 for run in runs]
    assert l0[0] > l0[1] > 0.5
    assert all(run.history[-1].fvu < 0.5 for run in runs)
    torch.testing.assert_close(runs[2].sae.W_dec.norm(dim=1), torch.ones(24))
    assert (runs[1].sae.W_dec.norm(dim=1) - 1).abs().max() > 0.01


def test_the_auxiliary_loss_revives_dead_latents():
    """A third of the latents start dead: their pre-activations are too small ever to be among the largest."""
    x = _planted(1, d_in=16, n_features=48, n=6_000, k=2)[0]
    dead = {}

    def kill(event):
        if event.name == "start":
            with torch.no_grad():
                event.sae.W_enc[:, :16] *= 0.02

    for coefficient in (0.0, 1 / 32):
        config = recipe("topk", d_in=16, d_sae=48, k=2, dead_after=1_000, aux_coefficient=coefficient)
        run = train(config, x, steps=300, batch_size=256, progress=False, callbacks=[kill])
        dead[coefficient] = int(((run.sae.encode(x) != 0).sum(0)[:16] == 0).sum())
    assert dead[0.0] >= 14
    assert dead[1 / 32] <= 3


def test_same_seed_same_bits_and_the_global_random_state_is_left_alone(rows):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    a = train(_tiny(), rows, **TINY)
    torch.manual_seed(99)
    b = train(_tiny(), rows, **TINY)
    assert _equal(a, b)
    assert a.sae.fingerprint() != train(_tiny(), rows, **{**TINY, "seed": 2}).sae.fingerprint()
    torch.set_rng_state(before)
    train(_tiny(), rows, **TINY)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_the_sparse_step_takes_the_path_of_the_dense_one(rows, monkeypatch):
    fast = train(_tiny(), rows, **TINY)
    dense = SAE.forward
    monkeypatch.setattr(SAE, "forward", lambda self, x, y=None, *, sparse=False: dense(self, x, y))
    plain = train(_tiny(), rows, **TINY)
    for a, b in zip(fast.history, plain.history, strict=True):
        assert a[:7] == pytest.approx(b[:7], rel=1e-3, abs=1e-6)
    torch.testing.assert_close(fast.sae.W_dec, plain.sae.W_dec, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka", "abs_topk"])
def test_no_matrix_of_codes_or_pre_activations_lives_through_the_backward_pass(name, rows):
    n, d_sae = 67, 1016  # numbers that tensors of other tests do not have
    saved, alive = [], []

    def look(_):
        tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
        dense = [each for each in tensors if each.is_floating_point() and each.layout == torch.strided]
        alive.append([each.shape for each in dense if n in each.shape and each.numel() >= n * d_sae])

    def start(event):
        if event.name == "start":
            event.sae.W_dec.register_hook(look)

    def keep(tensor):
        saved.append(tensor.numel())
        return tensor

    config = recipe(name, d_in=8, d_sae=d_sae, k=2, dead_after=10**6)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        train(config, rows[:500], steps=2, batch_size=n, progress=False, callbacks=[start])
    assert alive == [[], []]
    assert max(saved) < n * d_sae


def test_decoder_rows_have_unit_norm_after_every_step(rows):
    norms = []
    train(_tiny(), rows, callbacks=[lambda e: norms.append(e.sae.W_dec.detach().norm(dim=1))], **TINY)
    assert len(norms) > 30
    for norm in norms:
        torch.testing.assert_close(norm, torch.ones(24), rtol=1e-5, atol=1e-5)


def test_the_unit_norm_rule_leaves_only_the_gradient_across_the_rows():
    sae = SAE.create(_tiny(), 0)
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.5, 2, 24)[:, None])
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(24, 8, generator=generator)
    sae.W_dec.grad = given.clone()
    rule = RULES["unit_norm"](sae.config, None)
    rule.gradient(sae, None)
    torch.testing.assert_close((sae.W_dec.grad * sae.W_dec).sum(1), torch.zeros(24), rtol=0, atol=1e-5)
    removed = given - sae.W_dec.grad
    cosine = torch.nn.functional.cosine_similarity(removed, sae.W_dec.detach(), dim=1).abs()
    torch.testing.assert_close(cosine, torch.ones(24))
    rule.after(sae, None, None)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(24))


# the losses against their formulas


def _progress(rows, dead=None):
    unit = rows / rows.norm(dim=1).mean()
    progress = Progress(100, float((unit - unit.mean(0)).square().sum(1).mean()), Firing(24, 10))
    if dead is not None:
        progress.firing.since[dead] = 10
    return progress


def test_mse_over_the_rows_of_its_variance_is_the_fvu(rows):
    sae = SAE.create(_tiny(), 0, rows)
    forward = sae(rows)
    loss = LOSSES["mse"](sae.config, _progress(rows))(sae, forward).detach()
    assert float(loss) == pytest.approx(fvu(rows, forward.x_hat), rel=1e-4)


def test_auxk_is_its_formula_and_moves_only_dead_latents(rows):
    sae = SAE.create(_tiny(k_aux=3), 0, rows)
    dead = torch.tensor([1, 4, 5, 9, 20])
    x = rows[:50]
    loss = LOSSES["auxk"](sae.config, _progress(rows, dead))(sae, sae(x, sparse=True))
    with torch.no_grad():
        error = (x - sae(x).x_hat) / sae.input_scale
        pre = sae(x).pre[:, dead]
        kept = pre.topk(3, dim=1)
        e_hat = torch.zeros_like(pre).scatter(1, kept.indices, kept.values.relu()) @ sae.W_dec[dead]
        expected = (error - e_hat).square().sum() / error.square().sum() / 32
    torch.testing.assert_close(loss, expected)
    loss.backward()
    alive = torch.tensor([j for j in range(24) if j not in dead.tolist()])
    assert (sae.W_dec.grad[alive] == 0).all()
    assert (sae.W_enc.grad[:, alive] == 0).all()
    assert (sae.W_dec.grad[dead] != 0).any()


def test_auxk_adds_nothing_while_nothing_is_dead_or_left_over(rows):
    sae = SAE.create(_tiny(), 0, rows)
    forward = sae(rows[:9], sparse=True)
    assert float(LOSSES["auxk"](sae.config, _progress(rows))(sae, forward)) == 0
    perfect = forward._replace(x_hat=forward.x)
    assert float(LOSSES["auxk"](sae.config, _progress(rows, torch.arange(24)))(sae, perfect)) == 0
    everything = LOSSES["auxk"](sae.config, _progress(rows, torch.arange(24)))(sae, forward)
    assert 0 < float(everything.detach()) < math.inf


def test_l1_is_its_formula_and_warms_up(rows):
    config = recipe("relu", d_in=8, d_sae=24, l1=0.5, l1_warmup=0.1)
    sae = SAE.create(config, 0, rows)
    with torch.no_grad():
        sae.W_dec.mul_(2)
    progress = _progress(rows)
    forward = sae(rows)
    size = forward.codes.detach().sum() * 2 / len(rows) / progress.variance**0.5
    loss = LOSSES["l1"](config, progress)
    assert float(loss(sae, forward).detach()) == pytest.approx(float(size) * 0.5 / 10, rel=1e-5)
    progress.step = 50
    assert float(loss(sae, forward).detach()) == pytest.approx(float(size) * 0.5, rel=1e-5)


def test_latents_die_after_the_stated_number_of_rows(rows):
    firing = Firing(4, dead_after=6)
    codes = torch.tensor([[1.0, 0, -1, 0]] * 3)
    firing.update(codes)
    assert not firing.dead.any()
    firing.update(codes)
    assert firing.dead.tolist() == [False, True, False, True]  # negative codes count as firing
    firing.update(torch.tensor([[0.0, 2, 0, 0]]))
    assert firing.since.tolist() == [1, 0, 1, 7]


def test_the_schedule_rises_holds_and_falls():
    factors = [Schedule().factor(step, 100) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert factors[5:81] == [1] * 76
    assert factors[81:] == pytest.approx([1 - 0.05 * i for i in range(1, 20)])
    assert learning_rate(2**14) == pytest.approx(7.5e-4)
    assert learning_rate(2**12) == pytest.approx(1.5e-3)


# what a run gives


def test_history_frame_figure_and_events(rows):
    seen = []
    run = train(
        _tiny(),
        rows,
        steps=30,
        batch_size=64,
        log_every=10,
        progress=False,
        callbacks=[lambda e: seen.append(e)],
    )
    assert [r.step for r in run.history] == [1, 10, 20, 30]
    assert [r.rows for r in run.history] == [64, 640, 1280, 1920]
    assert [(e.name, e.step) for e in seen] == [
        ("start", 0),
        ("log", 1),
        ("log", 10),
        ("log", 20),
        ("log", 30),
        ("end", 30),
    ]
    assert seen[-1].record == run.history[-1]
    frame = run.to_frame()
    assert list(frame.columns)[:7] == ["step", "rows", "loss", "fvu", "l0", "dead", "lr"]
    assert list(frame.columns)[7:] == ["held_out_fvu", "held_out_l0"]
    assert frame.held_out_fvu.isna().all()
    assert frame.fvu.iloc[-1] < frame.fvu.iloc[0]
    assert (frame.l0 <= 2).all()
    figure = run.figure()
    assert list(figure.data[0].y) == [r.fvu for r in run.history]
    assert list(figure.data[2].x) == [64, 640, 1280, 1920]
    assert "FVU" in repr(run)
    assert run.finished


def test_nothing_is_printed_and_the_bar_tells_rows(rows, capsys):
    train(_tiny(), rows, steps=5, batch_size=64, progress=False)
    assert capsys.readouterr() == ("", "")
    train(_tiny(), rows, steps=5, batch_size=64, log_every=1)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "rows/s" in shown.err
    assert "FVU" in shown.err


def test_a_finished_folder_reads_back_and_is_a_loadable_sae(rows, tmp_path):
    run = train(_tiny(), rows, out=tmp_path / "run", **TINY)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "config.json", "history.json", "run.json", "sae.safetensors",
    ]  # fmt: skip
    again = Run.load(tmp_path / "run")
    assert _equal(run, again)
    assert again.settings == run.settings
    assert SAE.load(tmp_path / "run").fingerprint() == run.provenance["weights"]
    assert _equal(run, train(_tiny(), rows, out=tmp_path / "run", **TINY))
    (tmp_path / "run" / "run.json").write_text('{"format": "saelab-run", "version": 2}')
    with pytest.raises(FormatError, match="Upgrade"):
        Run.load(tmp_path / "run")
    with pytest.raises(StoreError, match=r"run\.json"):
        Run.load(tmp_path)


# bad input


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"steps": 0}, ConfigError, r"steps must be an integer >= 1. Got 0"),
        ({"steps": 2.5}, ConfigError, "steps must be an integer"),
        ({"batch_size": 0}, ConfigError, "batch_size must be an integer >= 1"),
        ({"batch_size": 2001}, ConfigError, r"at most the number of activations, 2000. Got 2001"),
        ({"seed": -1}, ConfigError, "seed must be an integer >= 0"),
        ({"lr": 0.0}, ConfigError, "lr must be a positive finite number"),
        ({"lr": float("nan")}, ConfigError, "lr must be a positive finite number"),
        ({"log_every": 0}, ConfigError, "log_every"),
        ({"checkpoint_every": -1}, ConfigError, "checkpoint_every"),
    ],
)
def test_arguments_out_of_range_are_refused_before_any_work(rows, tmp_path, change, error, says):
    with pytest.raises(error, match=says):
        train(_tiny(), rows, out=tmp_path / "run", **{**TINY, **change})
    assert not (tmp_path / "run").exists()


def test_activations_that_do_not_fit_are_refused_before_any_work(rows, tmp_path):
    bad = rows.clone()
    bad[7, 3] = float("nan")
    cases = [
        (bad, NonFiniteError, "Got 1 NaN"),
        (rows[:, :5], ShapeError, r"d_in=8\]. Got torch.float32 of shape \(2000, 5\)"),
        (rows.long(), ShapeError, r"Got torch.int64"),
        (rows[0], ShapeError, r"shape \(8,\)"),
        (rows.numpy()[:, :5], ShapeError, r"d_in=8\]. Got torch.float32 of shape \(2000, 5\)"),
        (rows.long().numpy(), ShapeError, "Got ndarray"),
        (None, ShapeError, "Got NoneType"),
        (rows[:0], ConfigError, "number of activations, 0"),
    ]
    for acts, error, says in cases:
        with pytest.raises(error, match=says):
            train(_tiny(), acts, out=tmp_path / "run", **TINY)
    with pytest.raises(ConfigError, match=r"needs an SAEConfig. Got dict"):
        train({"d_in": 8}, rows, **TINY)
    with pytest.raises(ConfigError, match="between 1 and d_sae=24"):
        recipe("topk", d_in=8, d_sae=24, k=25)
    assert not (tmp_path / "run").exists()


def test_an_out_that_cannot_be_written_is_refused_before_any_work(rows, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="must be writable"):
        train(_tiny(), rows, out=tmp_path / "file" / "run", **TINY)


def test_divergence_stops_with_the_step_and_a_remedy(rows):
    with pytest.raises(NonFiniteError, match=r"step \d+ of 30 \(relu; no checkpoint yet\). Pass a lower lr"):
        train(recipe("relu", d_in=8, d_sae=24), rows, **TINY, lr=1e25)


def test_divergence_names_the_longest_row_and_the_checkpoint_that_is_left(tmp_path):
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    x[37] *= 1e21  # its square is infinite in float32
    size, seed = 8, 0
    batches = TensorRows(x).batches(size, seed)
    step = next(i for i, batch in enumerate(batches) if (batch.double().norm(dim=1) > 1e10).any())
    assert step > 0
    options = {"steps": 40, "batch_size": size, "seed": seed, "progress": False, "checkpoint_every": 1}
    config = recipe("topk", d_in=8, d_sae=16, k=2, normalise="none", b_dec_init="zeros")
    says = rf"step {step + 1} of 40 \(topk; the checkpoint of step {step} .*row 37, of norm \d"
    with pytest.raises(NonFiniteError, match=says):
        train(config, x, out=tmp_path, **options)
    assert [c.step for c in checkpoints.latest([tmp_path])] == [step]


@pytest.mark.parametrize("level", [0.0, 5.0])
def test_activations_that_never_vary_train_without_nan(level, tmp_path):
    run = train(_tiny(), torch.full((100, 8), level), out=tmp_path, **TINY)
    assert Run.load(tmp_path).history == run.history
    run.sae.check_parameters()
    assert all(math.isfinite(r.loss) for r in run.history)


# stores


@pytest.fixture
def store(rows, tmp_path):
    from saelab.stores import ActivationStore

    return ActivationStore.create(tmp_path / "acts", {"a": rows, "b": rows[:, :4]})


def test_a_store_trains_as_its_tensor_does(rows, store, tmp_path):
    config = recipe("topk", d_in=8, d_sae=24, k=2, hook="a")
    run = train(config, store, out=tmp_path / "run", **TINY)
    plain = train(config, rows, **TINY)
    assert _equal(run, plain)
    assert run.provenance["data"] == store.fingerprint()
    assert _equal(run, train(config, store, out=tmp_path / "run", **TINY))


def test_the_hook_comes_from_config_or_store(store):
    with pytest.raises(HookError, match=r"several hooks needs the config's hook. Got hook=None and a, b"):
        train(recipe("topk", d_in=8, d_sae=24, k=2), store, **TINY)
    with pytest.raises(HookError, match=r"must be one of the store's: a, b. Got 'c'"):
        train(recipe("topk", d_in=8, d_sae=24, k=2, hook="c"), store, **TINY)
    with pytest.raises(ShapeError, match=r"width of the activations at b, 4. Got d_in=8"):
        train(recipe("topk", d_in=8, d_sae=24, k=2, hook="b"), store, **TINY)


# ---- several at once


def _several():
    return [
        recipe("topk", d_in=32, d_sae=64, k=3),
        recipe("relu", d_in=32, d_sae=48),
        recipe("topk", d_in=32, d_sae=16, k=1),
    ]


def test_several_on_one_pass_equal_each_alone(tmp_path):
    rows, _ = _planted(0, n=4_000)
    arguments = {"batch_size": 256, "seed": 4, "progress": False}
    runs = train(_several(), rows, tokens=50 * 256 - 3, out=tmp_path, **arguments)
    assert [run.settings.steps for run in runs] == [50, 50, 50]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0-topk", "1-relu", "2-topk"]
    for run, config in zip(runs, _several(), strict=True):
        alone = train(config, rows, steps=50, **arguments)
        assert run.history == alone.history
        assert run.sae.fingerprint() == alone.sae.fingerprint()
    again = train(_several(), rows, steps=50, out=tmp_path, **arguments)
    assert [run.history for run in again] == [run.history for run in runs]


@pytest.mark.parametrize("lost", [None, "1-relu", "all of one"])
def test_several_go_on_from_the_newest_checkpoint_that_all_have(tmp_path, lost):
    rows, _ = _planted(0, n=4_000)
    arguments = {"steps": 50, "batch_size": 256, "seed": 4, "progress": False, "checkpoint_every": 10}
    whole = train(_several(), rows, **arguments)

    def stop(event):
        if event.name == "checkpoint" and event.step == 30:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        train(_several(), rows, out=tmp_path, callbacks=[stop], **arguments)
    first = []
    if lost == "1-relu":  # killed between the checkpoints of two SAEs
        shutil.rmtree(tmp_path / "1-relu" / "checkpoints" / "step-00000030")
    elif lost:
        shutil.rmtree(tmp_path / "1-relu" / "checkpoints")
    events = [lambda event: first.append((event.number, event.step)) if event.name == "start" else None]
    runs = train(_several(), rows, out=tmp_path, callbacks=events, **arguments)
    step = {None: 30, "1-relu": 20, "all of one": 0}[lost]
    assert first == [(0, step), (1, step), (2, step)]
    for run, expected in zip(runs, whole, strict=True):
        assert run.sae.fingerprint() == expected.sae.fingerprint()
        assert run.history == expected.history


def test_several_hooks_of_a_store_are_read_once_each(tmp_path):
    from saelab.stores import ActivationStore, ActivationWriter
    from saelab.stores.manifest import building

    rows, _ = _planted(0, n=2_000)
    with building(tmp_path / "acts", False) as folder:
        writer = ActivationWriter(folder, {"a": 32, "b": 16}, "float32", 500)
        numbers = torch.stack([torch.arange(2_000), torch.zeros(2_000, dtype=torch.long)], 1)
        writer.add({"a": rows, "b": rows[:, :16]}, numbers)
        writer.finish({"subject": "s", "corpus": None})
    store = ActivationStore.open(tmp_path / "acts")
    configs = [
        recipe("topk", d_in=32, d_sae=64, k=3, hook="a"),
        recipe("topk", d_in=16, d_sae=64, k=3, hook="b"),
        recipe("topk", d_in=32, d_sae=32, k=3, hook="a"),
    ]
    runs = train(configs, store, steps=5, batch_size=100, progress=False)
    for run, config in zip(runs, configs, strict=True):
        alone = train(config, store, steps=5, batch_size=100, progress=False)
        assert run.sae.fingerprint() == alone.sae.fingerprint()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"steps": None}, "steps or tokens"),
        ({"tokens": 100}, "steps or tokens"),
        ({"steps": None, "tokens": 0}, "tokens must be"),
        ({"lr": "fast"}, "lr must be"),
        ({"lr": None}, "lr must be"),
    ],
)
def test_lengths_and_rates_that_make_no_sense(change, match):
    arguments = {"steps": 3, "batch_size": 8} | change
    with pytest.raises(ConfigError, match=match):
        train(recipe("topk", d_in=4, d_sae=8, k=2), torch.randn(20, 4), **arguments)
    with pytest.raises(ConfigError, match="SAEConfig"):
        train([], torch.randn(20, 4), steps=3, batch_size=8)
