"""Two real processes against one."""

from __future__ import annotations

import signal
import time

import pytest
import torch
from ranks import (
    EVERY,
    LIMIT,
    OF_LATENTS,
    OPTIONS,
    SPLIT,
    STEPS,
    data,
    finish,
    from_store,
    of_latents,
    parent,
    read,
    run,
    start,
    state,
    torchrun,
)

from saelab import dist
from saelab.sae import SAE
from saelab.stores import ActivationWriter
from saelab.stores.manifest import building
from saelab.training.shards import divisible
from saelab.types import ConfigError, NonFiniteError, RankError, StoreError

pytestmark = pytest.mark.slow
SPLIT_RECIPES = ["relu", "batchtopk", "topk"]


def _close(one, two):
    """To 1e-5, which the sums' order leaves far behind."""
    for name, tensor in one["state"].items():
        torch.testing.assert_close(two["state"][name], tensor, rtol=1e-5, atol=1e-5)
    for a, b in zip(one["history"], two["history"], strict=True):
        assert [v is None for v in b] == [v is None for v in a]
        numbers = [[v for v in record if v is not None] for record in (a, b)]
        assert numbers[1] == pytest.approx(numbers[0], rel=1e-5, abs=1e-5)


def _same(a, b):
    return (
        all(torch.equal(t, b["state"][name]) for name, t in a["state"].items())
        and a["history"] == b["history"]
        and a["finished"] == b["finished"]
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One launch by torchrun of every task: what one rank refuses, all do, and can then go on."""
    folder = tmp_path_factory.mktemp("ranks")
    with building(folder / "acts") as place, ActivationWriter(place, {"a": 12}, shard_rows=300) as writer:
        writer.add({"a": data()}, torch.stack([torch.arange(len(data()))] * 2, 1))
        writer.finish({})
    tasks = (
        "selections shared_latents drawn pieces uneven other nonfinite small checkpoints unwritable callback "
        "latents:top_afa to_input narrow resampling hull mixed full stopped continued again left "
        "left_latents from_store stopped_latents continued_latents again_latents started threads"
    )
    split = [f"options:{name}" for name in SPLIT_RECIPES]
    divided = [f"latents:{name}" for name in (*divisible("latents"), *OF_LATENTS)]
    torchrun(2, folder, *OPTIONS, *split, *divided, *tasks.split())
    return folder


# what is exact


@pytest.mark.parametrize("name", OPTIONS)
def test_two_ranks_equal_one_process_at_the_same_global_batch(shared, name):
    first, second = read(shared, name)
    assert [r.step for r in first["history"]] == [1, 8, 16, 24]
    assert _same(first, second)
    _close(state(run(name)), first)


@pytest.mark.parametrize("name", SPLIT_RECIPES)
def test_ranks_split_their_parts_and_measure_held_out_rows_as_one_process_does(shared, name):
    first, second = read(shared, f"options:{name}")
    assert _same(first, second)
    assert all(r.held_out_fvu is not None for r in first["history"][1:])
    if name != "batchtopk":  # whose micro-batches are others
        _close(state(run(name, **SPLIT)), first)


def test_latents_divided_among_two_ranks_equal_one_process(shared):
    for name in (*divisible("latents"), *OF_LATENTS):
        first, second = read(shared, f"latents:{name}")
        assert _same(first, second)
        _close(state(of_latents(name)), first)
    first, second = read(shared, "started")
    assert _same(first, second)
    _close(state(run("batchtopk", start=parent())), first)
    stopped, continued, again = (
        read(shared, name) for name in ("stopped_latents", "continued_latents", "again_latents")
    )
    assert not stopped[0]["finished"]
    assert stopped[0]["state"]["W_enc"].shape == (12, 49)
    assert _same(stopped[0], stopped[1])
    whole = read(shared, "latents:batchtopk")[0]
    for each in (*continued, *again):
        assert all(torch.equal(t, each["state"][name]) for name, t in whole["state"].items())
        assert each["history"] == whole["history"]
    saved = SAE.load(shared / "stopped_latents")
    assert all(torch.equal(t, whole["state"][name]) for name, t in saved.state_dict().items())
    assert not (shared / "stopped_latents1").exists()


def test_the_comparison_would_see_what_it_must(monkeypatch):
    """Latents die and are revived, gradients are clipped."""
    norms, clip = [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *a: norms.append(float(clip(*a))))
    for name in ("topk", "batchtopk", "matryoshka"):
        assert any(0 < record.dead < 1 for record in run(name).history), name
        assert name != "topk" or sum(norm > 1 for norm in norms) > 2


def test_selections_over_ranks_are_those_of_the_whole_batch(shared):
    for found in read(shared, "selections"):
        assert len(found) == 24
        assert all(same and kth for same, kth, _ in found), found


def test_selections_over_shared_latents_are_those_of_whole_rows(shared):
    for found in read(shared, "shared_latents"):
        assert len(found) == 24
        assert all(row and batch for row, batch in found), found


def test_directions_are_drawn_as_one_process_would_and_pieces_make_the_whole(shared):
    for found in read(shared, "drawn"):
        assert all(rows and state for rows, state in found), found
    for found in read(shared, "pieces"):
        assert all(whole for whole, _ in found), found
        assert all(n > 1 for _, n in found[:3])


def test_no_thread_of_gloo_outlives_the_connections(shared):
    """One that frees a tensor while the interpreter ends aborts the process."""
    for before, after in read(shared, "threads"):
        assert before
        assert not after


def test_each_rank_reads_its_own_rows_of_a_shared_store(shared):
    alone = from_store(shared)
    first, second = read(shared, "from_store")
    assert _same(first, second)
    _close(alone, first)
    calls = [c for c in zip(alone["asked"], first["asked"], second["asked"], strict=True) if len(c[0]) == 65]
    assert len(calls) > STEPS
    calls = calls[-STEPS - 1 : -1]  # the last batch is read ahead, and not trained on
    for whole, one, other in calls:
        assert one + other == whole
        assert {len(one), len(other)} == {32, 33}
    first_pass = [row for whole, *_ in calls[:15] for row in whole]
    assert len(set(first_pass)) == len(first_pass) == 15 * 65 > len(data()) - 65


# what one rank refuses, all refuse


@pytest.mark.parametrize(
    ("task", "errors", "says"),
    [
        ("uneven", (RankError, RankError), "rank 1: .*rows: 1000 -> 999"),
        ("other", (RankError, RankError), "rank 1: .*data"),
        ("nonfinite", (RankError, NonFiniteError), "NaN"),
        ("small", (ConfigError, ConfigError), "must be at least 2"),
        ("checkpoints", (RankError, RankError), "checkpoint_every: 10 -> 11"),
        ("unwritable", (StoreError, RankError), "writable"),
        ("callback", (ValueError, RankError), "own error"),
        ("latents:top_afa", (ConfigError, ConfigError), "gated, relu. Got 'top_afa'"),
        ("to_input", (ConfigError, ConfigError), "ste_to_input must be left out"),
        ("resampling", (ConfigError, ConfigError), "resample_every=10"),
        ("hull", (ConfigError, ConfigError), "Only free decoder rows"),
        ("narrow", (ConfigError, ConfigError), "at least k=25 latents. Got d_sae=49 on 2 ranks, 24 each"),
        ("mixed", (RankError, RankError), "shard: 'data' -> 'latents'"),
        ("full", (StoreError, RankError), "No space left"),
    ],
)
def test_what_fails_on_one_rank_fails_on_all(shared, task, errors, says):
    for result, kind in zip(read(shared, task), errors, strict=True):
        assert type(result) is kind
        with pytest.raises(kind, match=says):
            raise result


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A launch in which rank 1 cannot read its rows, is then told Ctrl-C, and at last dies."""
    folder = tmp_path_factory.mktemp("ended")
    processes = start(2, folder, "broken", "long", "dying")
    deadline = time.monotonic() + LIMIT
    while not (folder / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGINT)
    finish(processes)  # which fails where the first waits for the other without end
    return folder


def test_a_rank_that_cannot_read_its_rows_stops_all(ended):
    first, second = read(ended, "broken")
    assert type(second) is OSError
    assert type(first) is RankError
    assert "rank 1: OSError: the disk is gone" in str(first)


def test_a_rank_that_dies_stops_the_other(ended):
    lost = torch.load(ended / "dying-0.pt", weights_only=False)
    assert isinstance(lost, RankError)
    assert "Every rank must take part" in str(lost)
    assert not (ended / "dying-1.pt").exists()


# interruption


def test_an_interrupted_run_continues_and_rank_0_alone_writes(shared):
    stopped, continued, again = (read(shared, name) for name in ("stopped", "continued", "again"))
    for part in stopped:
        assert not part["finished"]
        assert [record.step for record in part["history"]] == [1, EVERY]
    for whole in (continued, again):
        assert whole[0]["finished"]
        assert _same(whole[0], whole[1])
    assert _same(continued[0], again[0])
    _close(state(run("topk")), continued[0])
    assert (shared / "stopped" / "run.json").exists()
    assert not (shared / "stopped1").exists()


@pytest.mark.parametrize(("task", "recipe"), [("left", "topk"), ("left_latents", "batchtopk")])
def test_one_process_goes_on_with_what_several_began(shared, task, recipe):
    assert not read(shared, task)[0]["finished"]
    _close(state(run(recipe)), state(run(recipe, out=shared / task)))


def test_ctrl_c_on_one_rank_stops_all_after_the_same_step(ended):
    first, second = read(ended, "long")
    assert not first["finished"]
    assert _same(first, second)
    assert len(list((ended / "long" / "checkpoints").iterdir())) == 1


# one process


def test_alone_everything_is_a_no_op():
    x = torch.tensor([3.0, 1, 2])
    with dist.joined(), dist.together(), dist.alone():
        assert dist.first()
        for axis in (dist.ranks, dist.rows, dist.latents):
            assert (axis.size, axis.rank, axis.count(3), axis.bounds(7)) == (1, 0, 3, (0, 7))
            for name in ("total", "least", "most", "own", "share", "spread", "summed", "used_by_all"):
                assert getattr(axis, name)(x) is x
            assert axis.pooled(x, 9) is x
            assert axis.everyone(x) == [x]
            assert axis.kth_largest(x, 2) == 2
            for matrix, along in ((torch.arange(6.0).view(3, 2), 0), (torch.arange(6.0).view(3, 2), 1)):
                assert torch.equal(torch.cat(list(axis.pieces(matrix, along, matrix.shape[along]))), matrix)
    with pytest.raises(KeyError, match="own"), dist.together():
        {}["its own error"]
