"""Options of train beyond the plain loop: precision, micro-batches."""

from __future__ import annotations

import copy
import json
import threading

import pytest
import torch

from saelab.sae import SAE, fvu, kernels, recipe, recipes
from saelab.sae.config import RECIPES
from saelab.training import Run, train
from saelab.training.arguments import complete
from saelab.training.rows import StoreRows, TensorRows
from saelab.training.session import Session
from saelab.types import ConfigError, StoreError

TINY = {"steps": 30, "batch_size": 64, "seed": 1, "progress": False, "log_every": 1}


def _rows(n: int = 2_000, d_in: int = 8, n_features: int = 16) -> torch.Tensor:
    """Two active directions a row, a bias, a little noise."""
    generator = torch.Generator().manual_seed(5)
    directions = torch.nn.functional.normalize(torch.randn(n_features, d_in, generator=generator), dim=1)
    codes = torch.rand(n, n_features, generator=generator)
    codes = torch.where(codes >= codes.topk(2, dim=1).values[:, 1:], codes + 0.5, 0.0)
    return codes @ directions + 0.3 + 0.01 * torch.randn(n, d_in, generator=generator)


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return _rows()


def _topk(**options):
    return recipe("topk", d_in=8, d_sae=24, k=2, **{"dead_after": 200, **options})


def _largest_difference(a: Run, b: Run) -> float:
    weights = zip(a.sae.state_dict().values(), b.sae.state_dict().values(), strict=True)
    return max(float((x - y).abs().max()) for x, y in weights)


# precision


def test_bfloat16_rounds_the_product_and_nothing_else(rows):
    sae = SAE.create(_topk(), 0, rows)
    sae.W_enc.data.mul_(torch.linspace(0.9, 1.7, 24))
    exact = sae(rows)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = sae(rows, sparse=True)
    # one rounding of each factor and one of the result, at most 2^-8 each
    bound = (
        1.01 * 3 * 2**-8 * ((rows / sae.input_scale - sae.b_dec).abs() @ sae.W_enc.abs() + sae.b_enc.abs())
    )
    off = (rounded.pre - exact.pre).abs()
    assert (off <= bound).all()
    assert (off > bound / 100).any()
    assert {rounded.pre.dtype, rounded.codes.values.dtype, rounded.x_hat.dtype} == {torch.float32}
    pattern = rounded.codes.rows(), rounded.codes.indices
    torch.testing.assert_close(rounded.codes.values, rounded.pre[pattern].relu(), rtol=0, atol=0)
    torch.testing.assert_close(rounded.x_hat, sae.decode(rounded.codes.dense()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in recipes() if not RECIPES[name].fitted])
def test_every_recipe_trains_in_bfloat16_as_in_float32(name):
    x = _rows(d_in=16)
    own = {"crosscoder": {"widths": (8, 8)}, "clt": {"layers": 2, "d_out": 16}}
    sizes = {"d_out": 16} if "transcoder" in name else own.get(name, {})
    config = recipe(name, d_in=16, d_sae=32, **sizes)
    x = (x, x.flip(1)) if config.d_out else x
    arguments = TINY | {"steps": 60, "batch_size": 256, "log_every": 20, "lr": 3e-3}
    exact, rounded = (train(config, x, precision=p, **arguments) for p in ("float32", "bfloat16"))
    assert exact.history != rounded.history
    assert rounded.history[-1].fvu == pytest.approx(exact.history[-1].fvu, rel=0.1, abs=0.01)
    assert rounded.history[-1].l0 == pytest.approx(exact.history[-1].l0, rel=0.1, abs=0.2)
    weights = rounded.sae.state_dict().values()
    assert {t.dtype for t in weights if t.is_floating_point()} == {torch.float32}
    W_dec = rounded.sae.W_dec.detach()
    assert not torch.equal(W_dec, W_dec.bfloat16().float())  # the master weights are not rounded


def test_dense_codes_train_the_encoder_in_bfloat16(rows):
    """The first encoder product of a pass has no gradient; the second must not reuse its cast."""
    weights = {}
    for precision in ("float32", "bfloat16"):
        run = train(recipe("relu", d_in=8, d_sae=24), rows, **TINY, lr=1e-2, precision=precision)
        weights[precision] = run.sae.W_enc.detach()
    start = SAE.create(recipe("relu", d_in=8, d_sae=24), 1, rows[:1984]).W_enc.detach()
    moved = (weights["float32"] - start).norm()
    assert (weights["bfloat16"] - start).norm() == pytest.approx(float(moved), rel=0.1)
    assert (weights["bfloat16"] - weights["float32"]).norm() < 0.1 * moved


@pytest.mark.parametrize("k", [1, 5, 32])
def test_top_k_of_rounded_rows_is_its_definition(k):
    """In bfloat16 a third of the rows are tied at the boundary."""
    pre = torch.randn(300, 1024, generator=torch.Generator().manual_seed(k)).bfloat16().float()
    pre[:20] = pre[:20].round()  # ties longer than any list of candidates
    expected = kernels.top_k_reference(pre, k)
    assert torch.equal(kernels.top_k(pre, k).sort(1).values, expected)
    values = pre.topk(k + 1, dim=1).values
    assert int((values[20:, -1] == values[20:, -2]).sum()) > 3


# micro-batches


@pytest.mark.parametrize("accumulate", [2, 3, 64])
@pytest.mark.parametrize(
    "config",
    [
        _topk(aux_coefficient=0.0),
        recipe("abs_topk", d_in=8, d_sae=24, k=2, aux_coefficient=0.0),
        recipe("relu", d_in=8, d_sae=24, l1=0.1),
        recipe("gated", d_in=8, d_sae=24),
        recipe("jumprelu", d_in=8, d_sae=24),
    ],
    ids=lambda config: config.recipe,
)
def test_micro_batches_make_the_update_of_their_batch(rows, config, accumulate):
    arguments = TINY | {"steps": 5, "lr": 1e-3}
    whole = train(config, rows, **arguments)
    parts = train(config, rows, accumulate=accumulate, **arguments)
    assert _largest_difference(whole, parts) < 1e-5
    assert _largest_difference(whole, train(config, rows, **arguments | {"seed": 2})) > 1e-3
    for a, b in zip(whole.history, parts.history, strict=True):
        assert b[:7] == pytest.approx(a[:7], rel=1e-4)


def test_micro_batches_count_every_row_once(rows):
    whole = train(_topk(aux_coefficient=0.0), rows, **TINY)
    parts = train(_topk(aux_coefficient=0.0), rows, accumulate=5, **TINY)
    assert max(r.dead for r in whole.history) > 0
    assert [r.dead for r in parts.history] == [r.dead for r in whole.history]
    assert [r.rows for r in parts.history] == [r.rows for r in whole.history]


def test_batchtopk_chooses_per_micro_batch(rows):
    config = recipe("batchtopk", d_in=8, d_sae=24, k=2)
    run = train(config, rows, accumulate=4, **TINY)
    assert all(r.l0 == 2 for r in run.history)
    assert float(run.sae.sparsifier.seen) == 4 * TINY["steps"] + 1  # one when it was made


# held-out rows


def test_held_out_rows_are_measured_in_eval_mode(rows):
    config = recipe("batchtopk", d_in=8, d_sae=24, k=2)
    measured = {}

    def measure(event):
        if event.name == "log":
            sae = copy.deepcopy(event.sae).eval()
            out = sae(rows[-300:])
            measured[event.step] = fvu(rows[-300:], out.x_hat), float((out.codes != 0).sum()) / 300

    arguments = TINY | {"log_every": 10, "evaluate_every": 12}
    run = train(config, rows, held_out=300, callbacks=[measure], **arguments)
    assert [r.step for r in run.history] == [1, 10, 12, 20, 24, 30]
    assert [r.step for r in run.history if r.held_out_fvu is not None] == [12, 24, 30]
    for record in run.history:
        if record.held_out_fvu is None:
            assert record.held_out_l0 is None
        else:
            assert (record.held_out_fvu, record.held_out_l0) == pytest.approx(measured[record.step], rel=1e-5)
    assert run.to_frame().held_out_fvu.notna().sum() == 3
    curve = run.figure().data[-1]
    assert (curve.name, list(curve.x)) == ("held-out FVU", [12 * 64, 24 * 64, 30 * 64])


def test_before_the_end_some_of_the_held_out_rows_are_measured(rows):
    seen, drawn = [], []

    class Watched(TensorRows):
        def gather(self, at):
            seen.append(at)
            return super().gather(at)

    settings = complete(_topk(), steps=30, batch_size=64, held_out=300, evaluate_every=10, evaluate_rows=90)
    session = Session(_topk(), settings, torch.device("cpu"), {}, None, rows[:500], Watched(rows[-300:]))
    for step in range(30):
        seen.clear()
        record = session.step(rows[step * 10 :][:64])
        at = torch.cat(seen) if seen else None
        if step in (9, 19):
            drawn.append(at.tolist())
            assert len(at.unique()) == 90
            assert drawn[0] == drawn[-1]
            assert 90 * 100 < at.sum() < 90 * 200, "neither the first nor the last ones"
            sae = copy.deepcopy(session.sae).eval()
            assert record.held_out_fvu == pytest.approx(fvu(rows[-300:][at], sae(rows[-300:][at]).x_hat))
        elif step == 29:
            assert at.equal(torch.arange(300))
        else:
            assert record is None or record.held_out_fvu is None
    for name in ("evaluate_rows", "evaluate_every"):
        with pytest.raises(ConfigError, match=f"{name} needs held-out rows"):
            train(_topk(), rows, **{name: 5}, **TINY)


def test_rows_of_a_disk_are_read_while_a_step_runs(rows, tmp_path):
    from saelab.stores import ActivationStore

    read, waited = threading.Semaphore(0), []

    class Watched(StoreRows):
        def gather(self, at):
            waited.append(threading.current_thread() is threading.main_thread())
            if len(waited) == 4:
                message = "a bad sector"
                raise StoreError(message)
            read.release()
            return super().gather(at)

    store = ActivationStore.create(tmp_path / "acts", {"a": rows})
    source, plain = Watched(store, "a"), TensorRows(rows)
    batches, expected = source.batches(700, 3), plain.batches(700, 3)
    for _ in range(2):  # a pass
        assert next(batches).equal(next(expected))
        read.acquire()
    assert read.acquire(timeout=10), "the next one is read before it is asked for"
    assert next(batches).equal(next(expected))
    with pytest.raises(StoreError, match="sector"):
        next(batches)
    assert waited == [False] * 4


def test_held_out_rows_are_not_trained_on(rows):
    config = recipe("batchtopk", d_in=8, d_sae=24, k=2)  # which trains otherwise than it evaluates
    plain = train(config, rows[:-300], **TINY)
    for held_out in (300, rows[-300:]):
        acts = rows if isinstance(held_out, int) else rows[:-300]
        run = train(config, acts, held_out=held_out, **TINY)
        assert _largest_difference(run, plain) == 0
        assert [r[:7] for r in run.history] == [r[:7] for r in plain.history]
        assert [r.step for r in run.history if r.held_out_fvu] == list(range(3, 31, 3))
    whole = train(config, rows, **TINY)
    assert _largest_difference(whole, plain) > 1e-3


def test_held_out_rows_of_stores_and_of_several_saes(rows, tmp_path):
    from saelab.stores import ActivationStore

    store = ActivationStore.create(tmp_path / "acts", {"a": rows, "b": rows[:, :4]})
    configs = [
        recipe("topk", d_in=8, d_sae=24, k=2, hook="a"),
        recipe("topk", d_in=4, d_sae=12, k=2, hook="b"),
        recipe("relu", d_in=8, d_sae=24, hook="a"),
    ]
    runs = train(configs, store, held_out=200, **TINY)
    other = train(configs, store, held_out=store, **TINY)
    for run, config, of_all in zip(runs, configs, other, strict=True):
        alone = train(config, rows[:, : config.d_in], held_out=200, **TINY)
        assert run.history == alone.history
        assert run.history[-1].held_out_fvu is not None
        assert of_all.history[-1].held_out_fvu != run.history[-1].held_out_fvu


def test_an_evaluated_run_resumes_bit_for_bit(rows, tmp_path):
    def stop(event):
        if event.name == "checkpoint" and event.step >= 15:
            raise RuntimeError

    given = {"held_out": rows[:100], "evaluate_every": 4}
    whole = train(_topk(), rows, **given, **TINY)
    with pytest.raises(RuntimeError):
        train(_topk(), rows, out=tmp_path, callbacks=[stop], **given, **TINY)
    rest = train(_topk(), rows, out=tmp_path, **given, **TINY)
    assert rest.history == whole.history
    assert _largest_difference(rest, whole) == 0
    assert Run.load(tmp_path).history == whole.history
    for change, says in [
        ({"held_out": rows[1:101]}, "held_out: '"),
        ({"evaluate_every": 5}, "settings.evaluate_every: 4 -> 5"),
        ({"held_out": 100}, r"settings.held_out: 0 -> 100"),
    ]:
        with pytest.raises(ConfigError, match=says):
            train(_topk(), rows, out=tmp_path, **given | change, **TINY)


def test_the_bar_tells_the_held_out_fvu(rows, capsys):
    train(_topk(), rows, held_out=100, **TINY | {"progress": True})
    assert "held-out FVU 0." in capsys.readouterr().err


# all are part of a run's identity


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"precision": "bfloat16"}, "settings.precision: 'float32' -> 'bfloat16'"),
        ({"accumulate": 2}, "settings.accumulate: 1 -> 2"),
    ],
)
def test_a_changed_option_is_refused_on_resume(rows, tmp_path, change, says):
    train(_topk(), rows, out=tmp_path, **TINY)
    with pytest.raises(ConfigError, match=says):
        train(_topk(), rows, out=tmp_path, **TINY, **change)


def test_runs_of_an_older_version_load_and_continue(rows, tmp_path):
    def stop(event):
        if event.name == "checkpoint" and event.step >= 20:
            raise RuntimeError

    def age(path, *at):
        data = json.loads(path.read_text())
        settings = data
        for key in at:
            settings = settings[key]
        settings["version"] = 1
        for key in ("precision", "accumulate", "held_out", "evaluate_every"):
            del settings[key]
        schedule, moved = settings.pop("schedule"), settings.pop("optimizer")
        settings |= {"warmup_steps": schedule["warmup"], "decay_steps": schedule["decay"]}
        settings |= {"beta1": moved["betas"][0], "beta2": moved["betas"][1]}
        path.write_text(json.dumps(data))

    whole = train(_topk(), rows, out=tmp_path / "whole", **TINY)
    with pytest.raises(RuntimeError):
        train(_topk(), rows, out=tmp_path / "cut", callbacks=[stop], **TINY)
    for path in (tmp_path / "cut").rglob("checkpoint.json"):
        age(path, "identity", "settings")
    steps = []
    rest = train(_topk(), rows, out=tmp_path / "cut", callbacks=[lambda e: steps.append(e.step)], **TINY)
    assert steps[0] >= 20
    assert _largest_difference(whole, rest) == 0
    age(tmp_path / "whole" / "run.json", "settings")
    assert Run.load(tmp_path / "whole").settings == whole.settings
    assert train(_topk(), rows, out=tmp_path / "whole", **TINY).history == whole.history


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"precision": "bfloat"}, "precision must be one of float32, bfloat16. Got 'bfloat'.*bfloat16"),
        ({"precision": torch.float16}, "precision must be one of"),
        ({"accumulate": 0}, "accumulate must be an integer >= 1"),
        ({"held_out": 1}, "held_out must be an integer >= 2"),
        ({"held_out": 2000}, "held_out must be less than the number of activations, 2000. Got 2000"),
        ({"held_out": 1950}, "batch_size must be at most the number of activations, 50"),
        ({"held_out": torch.ones(50, 8)}, "Held-out rows must differ.*Got 50 equal"),
        ({"evaluate_every": 5}, "evaluate_every needs held-out rows"),
        ({"held_out": 10, "evaluate_every": 0}, "evaluate_every must be an integer >= 1"),
        ({"accumulate": 65}, "accumulate must be at most batch_size=64.*Got 65"),
    ],
)
def test_options_out_of_range_are_refused(rows, change, says):
    with pytest.raises(ConfigError, match=says):
        train(_topk(), rows, **TINY, **change)
