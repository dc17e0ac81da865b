"""Several SAEs of one call: seeds, hook points and configs, each the same as alone, out of one pass."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import subjects_zoo as zoo
import torch

import saelab
from saelab.training.streaming import opened
from saelab.types import ConfigError, HookError

HOOKS = [f"blocks.{i}.hook_resid_post" for i in range(3)]
TEXTS = [f"The dog number {i} ran to the {'red ' * (i % 5)}house and saw a cat." for i in range(60)]
ASKED = {"steps": 12, "batch_size": 64, "progress": False}


@pytest.fixture(scope="module")
def subject():
    return zoo.language_model("llama")


@pytest.fixture(scope="module")
def store(subject, tmp_path_factory):
    out = tmp_path_factory.mktemp("acts") / "acts"
    return saelab.harvest(subject, TEXTS, HOOKS, out, progress=False)


def recipe(name: str = "topk", **options):
    return saelab.recipe(name, d_in=32, d_sae=48, k=3, **options)


@pytest.fixture
def passes(subject, monkeypatch):
    """What comes to hold the hook points of each pass."""
    seen, run = [], subject.run

    def counting(inputs, *args, **options):
        seen.append(tuple(map(str, options["read"])))
        return run(inputs, *args, **options)

    monkeypatch.setattr(subject, "run", counting)
    return seen


@pytest.mark.parametrize("kind", ["tensor", "store", "stream"])
def test_seeds_are_the_runs_of_each(subject, store, kind):
    config = recipe("batchtopk", hook=None if kind == "tensor" else HOOKS[1])
    acts = {
        "tensor": lambda: store.acts(np.arange(len(store)), HOOKS[1]),
        "store": lambda: store,
        "stream": lambda: saelab.stream(subject, TEXTS, HOOKS, buffer_rows=400),
    }[kind]()
    runs = saelab.train(config, acts, seeds=[5, 0, 2], **ASKED)
    assert [run.settings.seed for run in runs] == [5, 0, 2]
    for run in runs:
        alone = saelab.train(config, acts, seed=run.settings.seed, **ASKED)
        assert alone.sae.fingerprint() == run.sae.fingerprint()
        assert alone.history == run.history
    assert len({run.sae.fingerprint() for run in runs}) == 3


def test_a_stream_runs_the_model_once_for_all(subject, passes):
    stream = saelab.stream(subject, TEXTS, HOOKS, buffer_rows=400)
    every = [stream.reading([hook]) for hook in HOOKS] + [stream.reading(HOOKS[::-1])]
    asked = {(i, seed): (rows, seed) for i, rows in enumerate(every) for seed in (0, 7)}
    for start in (0, 17):
        passes.clear()
        given = opened(asked, 50, start)
        found = {name: [] for name in given}
        for _ in range(20):
            for name, batches in given.items():
                found[name].append(next(batches))
        for batches in given.values():
            batches.close()
        together = len(passes)
        assert {frozenset(hooks) for hooks in passes} == {frozenset(HOOKS)}
        passes.clear()
        for name, (rows, seed) in asked.items():
            alone = list(itertools.islice(rows.batches(50, seed, start), 20))
            assert all(map(torch.equal, alone, found[name]))
        assert together < len(passes) / 4


def test_streams_that_leave_rows_out_share_only_with_their_like(subject):
    stream = saelab.stream(subject, TEXTS, HOOKS, buffer_rows=200, max_norm=1.1)
    every = [stream.reading([hook]) for hook in HOOKS]
    given = opened({(i, s): (rows, s) for i, rows in enumerate(every) for s in (0, 1)}, 20, 0)
    for (i, seed), batches in given.items():
        alone = list(itertools.islice(every[i].batches(20, seed), 5))
        assert all(map(torch.equal, alone, itertools.islice(batches, 5)))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("hooks", ["blocks.*.hook_resid_post", HOOKS, [HOOKS[0], "blocks.?.hook_resid_post"]])
def test_each_hook_point_has_its_sae(subject, store, hooks, streamed):
    acts = saelab.stream(subject, TEXTS, "blocks.*.hook_resid_post", buffer_rows=400) if streamed else store
    runs = saelab.train(recipe(), acts, hooks=hooks, **ASKED)
    assert [run.config.hook.name for run in runs] == HOOKS
    for run, hook in zip(runs, HOOKS, strict=True):
        assert run.sae.fingerprint() == saelab.train(recipe(hook=hook), acts, **ASKED).sae.fingerprint()


def test_configs_hooks_and_seeds_multiply_and_go_on(store, tmp_path):
    configs = [recipe(), recipe("batchtopk")]
    asked = {**ASKED, "hooks": "*resid_post", "seeds": [0, 3], "out": tmp_path / "runs", "log_every": 4}

    def stop(event):
        if event.step == 4:
            event.live.stop()

    cut = saelab.train(configs, store, callbacks=[stop], **asked)
    assert not any(run.finished for run in cut)
    runs = saelab.train(configs, store, **asked)
    told = [(run.config.recipe, run.config.hook.name, run.settings.seed) for run in runs]
    assert told == list(itertools.product(["topk", "batchtopk"], HOOKS, [0, 3]))
    names = sorted(path.name for path in (tmp_path / "runs").iterdir() if path.is_dir())
    assert names[0] == f"0-topk-{HOOKS[0]}-seed0"
    assert len(names) == 12
    for run in runs:
        config = recipe(run.config.recipe, hook=run.config.hook.name)
        alone = saelab.train(config, store, seed=run.settings.seed, **ASKED, log_every=4)
        assert alone.sae.fingerprint() == run.sae.fingerprint()


def test_patterns_name_hook_points_of_harvests(subject, tmp_path):
    store = saelab.harvest(subject, TEXTS[:3], "blocks.*.hook_resid_post", tmp_path / "a", progress=False)
    assert store.hooks == HOOKS
    both = ["blocks.1.hook_resid_*", HOOKS[1]]
    store = saelab.harvest(subject, TEXTS[:3], both, tmp_path / "b", progress=False)
    assert store.hooks == [h for h in subject.hooks() if h.startswith("blocks.1.hook_resid_")]
    with pytest.raises(HookError, match=r"Got 'blocks.\*.hook_nothing'"):
        saelab.harvest(subject, TEXTS[:3], "blocks.*.hook_nothing", tmp_path / "c", progress=False)


def test_a_module_of_brackets_is_found_by_a_pattern(tmp_path):
    names = saelab.harvesting.batches.matching("a[0].*", ["a[0].x", "a0.x", "a[0].y"])
    assert names == ["a[0].x", "a[0].y"]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"seeds": []}, ConfigError, "seeds are different numbers"),
        ({"seeds": [1, 1]}, ConfigError, "seeds are different numbers"),
        ({"seeds": [1, 2], "seed": 4}, ConfigError, "without seed beside them"),
        ({"seeds": [-1]}, ConfigError, "seeds must be"),
        ({"seeds": 3}, ConfigError, "seeds"),
        ({"hooks": "blocks.9.*"}, HookError, r"Got 'blocks.9.\*'"),
        ({"hooks": 3}, ConfigError, "hooks"),
    ],
)
def test_what_is_no_sweep_is_refused(store, options, error, said):
    with pytest.raises(error, match=said):
        saelab.train(recipe(), store, **{**ASKED, **options})


def test_hooks_of_configs_that_have_theirs_are_refused(store):
    pair = saelab.recipe("transcoder", d_in=32, d_out=32, d_sae=48, k=3)
    for config in (recipe(hook=HOOKS[0]), pair):
        with pytest.raises(ConfigError, match="of configs that have none"):
            saelab.train(config, store, hooks=HOOKS, **ASKED)
    with pytest.raises(ConfigError, match="rows that name none"):
        saelab.train(recipe(), torch.randn(100, 32), hooks=HOOKS, **ASKED)


def test_a_start_is_of_each_config(store):
    configs = [recipe(hook=HOOKS[1]), recipe(hook=HOOKS[0])]
    parents = [saelab.train(config, store, **ASKED).sae for config in configs]
    runs = saelab.train(configs, store, seeds=[3, 4], start=parents, **ASKED)
    for i, run in enumerate(runs):
        asked = {**ASKED, "seed": 3 + i % 2, "start": parents[i // 2]}
        assert run.sae.fingerprint() == saelab.train(configs[i // 2], store, **asked).sae.fingerprint()
    assert runs[0].sae.fingerprint() != parents[0].fingerprint()
