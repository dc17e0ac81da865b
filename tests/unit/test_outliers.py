"""Rows of outlier norm: left out of harvests, streams and runs, and told apart in an evaluation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import subjects_zoo as zoo
import torch

import saelab
from saelab.analysis.ordinary import OUTLIER
from saelab.harvesting.outliers import lengths
from saelab.stores import ActivationStore
from saelab.types import ConfigError

HOOK, OTHER = "blocks.1.hook_resid_post", "blocks.0.hook_resid_post"
TEXTS = [f"The dog number {i} ran to the {'red ' * (i % 5)}house and saw a cat." for i in range(60)]
D = 12


@pytest.fixture(scope="module")
def subject():
    return zoo.language_model("llama")


def planted(n: int = 900, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of norm about 1, of which some are 40 times as long: (rows, which)."""
    generator = torch.Generator().manual_seed(seed)
    acts = torch.randn(n, D, generator=generator)
    acts /= acts.norm(dim=1, keepdim=True)
    acts *= 0.8 + 0.4 * torch.rand(n, 1, generator=generator)
    which = torch.randperm(n, generator=generator)[: n // 30]
    acts[which] = 40 * torch.nn.functional.one_hot(torch.tensor(3), D).float() + acts[which]
    return acts, which


def long_beyond(x: torch.Tensor, multiple: float) -> torch.Tensor:
    norms = x.double().square().sum(1).sqrt()
    return norms > multiple * norms.median()


@pytest.mark.parametrize("batch_size", [1, 7, 16])
def test_a_harvest_leaves_them_out_at_any_hook_point(subject, tmp_path, batch_size):
    every = saelab.harvest(subject, TEXTS, [OTHER, HOOK], tmp_path / "all", progress=False)
    at = np.arange(len(every))
    multiple = 1.2  # of random weights there are no sinks
    first = at[: saelab.harvesting.outliers.FIRST_ROWS]
    limits = {h: multiple * float(lengths(every.acts(first, h)).median()) for h in (OTHER, HOOK)}
    kept = torch.stack([lengths(every.acts(at, h)) <= limits[h] * (1 + 1e-6) for h in limits]).all(0)
    some = saelab.harvest(
        subject,
        TEXTS,
        [OTHER, HOOK],
        tmp_path / "some",
        batch_size=batch_size,
        max_norm=multiple,
        progress=False,
    )
    assert 0 < (~kept).sum() < len(kept) / 2
    assert len(some) == int(kept.sum())
    wanted = at[kept.numpy()]
    for hook in limits:
        assert torch.allclose(some.acts(np.arange(len(some)), hook), every.acts(wanted, hook), atol=1e-6)
    assert torch.equal(some.rows(np.arange(len(some)), HOOK).rows, every.rows(wanted, HOOK).rows)
    told = some.manifest["outliers"]
    assert told["left_out"] == int((~kept).sum())
    assert told["norms"] == pytest.approx(limits, rel=1e-5)


def test_max_rows_counts_those_that_are_kept(subject, tmp_path):
    whole = saelab.harvest(subject, TEXTS, [HOOK], tmp_path / "whole", max_norm=1.1, progress=False)
    n = len(whole) // 2 + 3
    part = saelab.harvest(subject, TEXTS, [HOOK], tmp_path / "part", max_norm=1.1, max_rows=n, progress=False)
    assert len(part) == n
    assert torch.equal(part.rows(np.arange(n)).rows, whole.rows(np.arange(n)).rows)
    last = tuple(part.rows([n - 1]).rows[0].tolist())
    every = saelab.harvest(subject, TEXTS, [HOOK], tmp_path / "every", progress=False)
    before = [tuple(row) <= last for row in every.rows(np.arange(len(every))).rows.tolist()]
    assert part.manifest["outliers"]["left_out"] == sum(before) - n


def test_a_killed_harvest_goes_on_to_the_same_store(subject, tmp_path, monkeypatch):
    options = {"max_norm": 1.1, "shard_rows": 100, "progress": False, "batch_size": 3}
    whole = saelab.harvest(subject, TEXTS, [HOOK], tmp_path / "whole", **options)
    run, calls = subject.run, itertools.count()

    def failing(*args, **kwargs):
        if next(calls) == 38:
            raise KeyboardInterrupt
        return run(*args, **kwargs)

    monkeypatch.setattr(subject, "run", failing)
    with pytest.raises(KeyboardInterrupt):
        saelab.harvest(subject, TEXTS, [HOOK], tmp_path / "cut", **options)
    monkeypatch.setattr(subject, "run", run)
    gone_on = saelab.harvest(subject, TEXTS, [HOOK], tmp_path / "cut", **options)
    assert gone_on.fingerprint() == whole.fingerprint()
    assert gone_on.manifest["outliers"] == whole.manifest["outliers"]


def test_a_stream_gives_the_rows_of_such_a_store(subject, tmp_path):
    store = saelab.harvest(subject, TEXTS, [HOOK], tmp_path / "acts", max_norm=1.1, progress=False)
    kept = store.acts(np.arange(len(store)))
    size = len(store) // 8
    stream = saelab.stream(subject, TEXTS, HOOK, buffer_rows=2 * size, max_norm=1.1, batch_size=1)
    config = saelab.recipe("topk", d_in=32, d_sae=48, k=3, hook=HOOK)
    rows, _ = saelab.training.rows.as_rows(stream, config)
    found = torch.cat(list(itertools.islice(rows.batches(size, 0), 20)))
    nearest = torch.cdist(found.double(), kept.double()).min(1).values
    assert float(nearest.max()) < 1e-5
    later = torch.cat(list(itertools.islice(rows.batches(size, 0, start=14), 6)))
    assert torch.allclose(later, found[14 * size :], atol=1e-5)
    run = saelab.train(config, stream, steps=5, batch_size=size, progress=False)
    told = run.provenance["outliers"]
    share = store.manifest["outliers"]["left_out"] / (len(store) + store.manifest["outliers"]["left_out"])
    assert told["left_out"] / told["of"] == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize("kind", ["tensor", "store", "transcoder"])
def test_training_never_sees_them(tmp_path, kind):
    acts, which = planted()
    target, elsewhere = planted(seed=1)
    config = saelab.recipe("topk", d_in=D, d_sae=24, k=3)
    bad = set(which.tolist())
    given = acts
    if kind == "store":
        given = ActivationStore.create(tmp_path / "acts", {"a": acts})
    if kind == "transcoder":
        config = saelab.recipe("transcoder", d_in=D, d_out=D, d_sae=24, k=3)
        given, bad = (acts, target), bad | set(elsewhere.tolist())
    good = torch.tensor([i for i in range(len(acts)) if i not in bad])
    rows, config = saelab.training.rows.as_rows(given, config)
    ordinary = saelab.training.rows.ordinary(rows, config, 10, {})
    seen = torch.cat(list(itertools.islice(ordinary.batches(50, 0), len(good) // 50)))
    assert float(seen.split(D, 1)[0].norm(dim=1).max()) < 2
    assert sorted(ordinary.at.tolist()) == good.tolist()
    asked = {"steps": 40, "batch_size": 50, "progress": False, "seed": 3}
    run = saelab.train(config, given, max_norm=10, **asked)
    alone = (acts[good], target[good]) if kind == "transcoder" else acts[good]
    other = saelab.train(config, alone, **asked)
    assert run.sae.fingerprint() == other.sae.fingerprint()
    told = run.provenance["outliers"]
    assert (told["left_out"], told["of"], told["multiple"]) == (len(bad), len(acts), 10)
    assert run.settings.max_norm == 10
    for i, side in enumerate(seen.split(D, 1)):
        assert told["norms"][i] == pytest.approx(10 * float(side.norm(dim=1).median()), rel=0.05)


def test_held_out_rows_are_of_the_same_kind():
    acts, _ = planted()
    others, _ = planted(seed=5)
    config = saelab.recipe("topk", d_in=D, d_sae=24, k=3)
    asked = {"steps": 30, "batch_size": 50, "progress": False}
    taken = saelab.train(config, acts, held_out=100, max_norm=10, **asked)
    good = acts[~long_beyond(acts, 10)]
    by_hand = saelab.train(config, good, held_out=100, **asked)
    assert taken.history == by_hand.history
    given = saelab.train(config, acts, held_out=others, max_norm=10, **asked)
    own = saelab.train(config, good, held_out=others[~long_beyond(others, 10)], **asked)
    assert given.history == own.history


def test_several_saes_share_a_reading_and_a_run_goes_on(tmp_path):
    acts, _ = planted()
    configs = [saelab.recipe(name, d_in=D, d_sae=24, k=3) for name in ("topk", "batchtopk")]
    asked = {"steps": 30, "batch_size": 50, "progress": False, "held_out": 60, "max_norm": 10.0}
    runs = saelab.train(configs, acts, **asked)
    for config, run in zip(configs, runs, strict=True):
        assert run.sae.fingerprint() == saelab.train(config, acts, **asked).sae.fingerprint()

    def stop(event):
        if event.step == 10:
            event.live.stop()

    cut = saelab.train(configs[0], acts, out=tmp_path / "run", log_every=5, callbacks=[stop], **asked)
    assert not cut.finished
    whole = saelab.train(configs[0], acts, out=tmp_path / "run", log_every=5, **asked)
    assert whole.sae.fingerprint() == runs[0].sae.fingerprint()
    assert saelab.training.Run.load(tmp_path / "run").provenance["outliers"]["left_out"] == 30
    with pytest.raises(ConfigError, match="max_norm"):
        saelab.train(configs[0], acts, out=tmp_path / "run", log_every=5, **{**asked, "max_norm": 5.0})


@pytest.mark.parametrize("bad", [1, 0, -3, float("nan"), float("inf"), "10", True, [10]])
def test_what_is_no_multiple_is_refused(subject, tmp_path, bad):
    acts, _ = planted()
    config = saelab.recipe("topk", d_in=D, d_sae=24, k=3)
    for call in (
        lambda: saelab.train(config, acts, steps=2, batch_size=50, max_norm=bad, progress=False),
        lambda: saelab.harvest(subject, TEXTS, [HOOK], tmp_path / "a", max_norm=bad),
        lambda: saelab.stream(subject, TEXTS, HOOK, max_norm=bad),
    ):
        with pytest.raises(ConfigError, match=r"max_norm is a multiple of the median norm.*max_norm=10"):
            call()
    assert not (tmp_path / "a").exists()


def test_rows_of_zeros_and_streams_are_refused(subject):
    acts = torch.zeros(100, D)
    acts[:40] = 1
    config = saelab.recipe("topk", d_in=D, d_sae=24, k=3)
    with pytest.raises(ConfigError, match="median norm is above 0"):
        saelab.train(config, acts, steps=2, batch_size=50, max_norm=10, progress=False)
    config = saelab.recipe("topk", d_in=32, d_sae=48, k=3, hook=HOOK)
    stream = saelab.stream(subject, TEXTS, HOOK)
    with pytest.raises(ConfigError, match=r"Pass it to saelab.stream"):
        saelab.train(config, stream, steps=2, batch_size=50, max_norm=10, progress=False)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e25])
def test_lengths_neither_overflow_nor_vanish(scale):
    x = torch.randn(5, 7, dtype=torch.float64)
    assert torch.allclose(lengths((scale * x).float()).double(), scale * x.norm(dim=1), rtol=1e-5, atol=0)
    assert lengths(torch.zeros(2, 3)).tolist() == [0, 0]


def test_an_evaluation_tells_them_apart():
    acts, which = planted(6_000)
    sae = saelab.SAE.create(saelab.recipe("topk", d_in=D, d_sae=24, k=3), 0, acts[:500])
    report = saelab.evaluate(sae, acts)
    usual = torch.ones(len(acts), dtype=torch.bool)
    usual[which] = False
    error = (acts - sae(acts).x_hat).double().square().sum(1).detach()
    good = acts[usual].double()
    wanted = float(error[usual].sum() / (good - good.mean(0)).square().sum())
    assert report.scores["fvu_ordinary"].value == pytest.approx(wanted, rel=1e-6)
    assert report.scores["fvu"].value != pytest.approx(wanted, rel=0.2)
    table = report.core.tables["outliers"].set_index("sae").loc["this SAE"]
    deviation = (acts.double() - acts.double().mean(0)).square().sum(1)
    assert table["outlier rows"] == len(which)
    assert table["of rows"] == pytest.approx(len(which) / len(acts))
    assert table["of error"] == pytest.approx(float(error[which].sum() / error.sum()), rel=1e-6)
    assert table["of variance"] == pytest.approx(float(deviation[which].sum() / deviation.sum()), rel=1e-6)
    plain = saelab.evaluate(sae, acts[usual])
    assert plain.scores["fvu_ordinary"].value == pytest.approx(plain.scores["fvu"].value, rel=1e-9)
    assert OUTLIER == 10
