"""Training that is interrupted, killed or out of space goes on to the same bits."""

from __future__ import annotations

import os
import signal
import threading

import pandas
import pytest
import torch
from test_training import TINY, _equal, _planted, _tiny

from saelab.sae import SAE
from saelab.training import RULES, checkpoints, train
from saelab.types import (
    ConfigError,
    FormatError,
    StoreError,
)


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return _planted(0, d_in=8, n_features=16, n=2_000, k=2)[0]


@pytest.mark.parametrize("stop", [1, 13, 29])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(rows, tmp_path, stop):
    def interrupt(event):
        if event.name == "log" and event.step == stop:
            raise KeyboardInterrupt

    whole = train(_tiny(), rows, **TINY)
    part = train(_tiny(), rows, out=tmp_path, callbacks=[interrupt], **TINY)
    assert not part.finished
    assert part.history == whole.history[:stop]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoints", "config.json", "history.jsonl", "live.json", "sae.safetensors",
    ]  # fmt: skip
    assert SAE.load(tmp_path).fingerprint() == part.sae.fingerprint()
    assert pandas.read_json(tmp_path / "history.jsonl", lines=True).step.tolist() == list(range(1, stop + 1))
    rest = train(_tiny(), rows, out=tmp_path, **TINY)
    assert rest.finished
    assert _equal(whole, rest)
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "history.jsonl").exists()


def test_ctrl_c_in_the_middle_of_a_step_finishes_that_step(rows, tmp_path, monkeypatch):
    whole = train(_tiny(), rows, **TINY)
    step, rule = [], RULES["unit_norm"]

    class Interrupting(rule):
        def gradient(self, sae, forward):
            step.append(self.progress.step)
            if step[-1] == 7:
                os.kill(os.getpid(), signal.SIGINT)
            super().gradient(sae, forward)

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setitem(RULES, "unit_norm", Interrupting)
    part = train(_tiny(), rows, out=tmp_path, **TINY)
    assert signal.getsignal(signal.SIGINT) is handler
    assert (part.finished, part.history[-1].step, step[-1]) == (False, 8, 7)
    assert part.history == whole.history[:8]
    monkeypatch.setitem(RULES, "unit_norm", rule)
    assert _equal(whole, train(_tiny(), rows, out=tmp_path, **TINY))


def test_without_out_an_interrupt_still_gives_a_usable_sae(rows):
    def interrupt(event):
        if event.name == "log" and event.step == 5:
            raise KeyboardInterrupt

    run = train(_tiny(), rows, callbacks=[interrupt], **TINY)
    assert not run.finished
    assert "interrupted at step 5 of 30" in repr(run)
    assert torch.isfinite(run.sae(rows).x_hat).all()


class _Killed(BaseException):
    """As kill -9: nothing runs after it."""


def _kill_at(step):
    def kill(event):
        if event.name == "log" and event.step == step:
            raise _Killed

    return kill


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_killed_runs_continue_from_the_newest_whole_checkpoint(rows, tmp_path, damage):
    whole = train(_tiny(), rows, **TINY)
    with pytest.raises(_Killed):
        train(_tiny(), rows, out=tmp_path, checkpoint_every=4, callbacks=[_kill_at(27)], **TINY)
    folders = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert folders == ["step-00000020", "step-00000024"]
    newest = tmp_path / "checkpoints" / folders[-1] / "state.safetensors"
    raw = newest.read_bytes()
    newest.write_bytes(raw[:-5] if damage == "truncated" else raw[:-1] + bytes([raw[-1] ^ 1]))
    assert [c.step for c in checkpoints.latest([tmp_path])] == [20]
    steps = []
    rest = train(_tiny(), rows, out=tmp_path, callbacks=[lambda e: steps.append(e.step)], **TINY)
    assert steps[0] == 20
    assert _equal(whole, rest)


def test_when_every_checkpoint_is_damaged_it_says_so(rows, tmp_path):
    with pytest.raises(_Killed):
        train(_tiny(), rows, out=tmp_path, checkpoint_every=4, callbacks=[_kill_at(10)], **TINY)
    for path in tmp_path.rglob("checkpoint.json"):
        path.write_text("{")
    with pytest.raises(FormatError, match="resume=False"):
        train(_tiny(), rows, out=tmp_path, **TINY)
    assert train(_tiny(), rows, out=tmp_path, resume=False, **TINY).finished


@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_config_seed_or_data_is_refused_with_the_difference(rows, tmp_path, finished):
    if finished:
        train(_tiny(), rows, out=tmp_path, **TINY)
    else:
        with pytest.raises(_Killed):
            train(_tiny(), rows, out=tmp_path, checkpoint_every=4, callbacks=[_kill_at(9)], **TINY)
    for change, says in [
        ((_tiny(k_aux=2), rows, TINY), r"config.options.k_aux: None -> 2"),
        ((_tiny(), rows, {**TINY, "seed": 5}), r"settings.seed: 1 -> 5"),
        ((_tiny(), rows, {**TINY, "steps": 31}), r"settings.steps: 30 -> 31"),
        ((_tiny(), rows + 1, TINY), r"data: '"),
    ]:
        with pytest.raises(ConfigError, match=says):
            train(change[0], change[1], out=tmp_path, **change[2])


def test_a_full_disk_during_a_checkpoint_loses_nothing(rows, tmp_path, monkeypatch):
    whole = train(_tiny(), rows, **TINY)
    real = os.fsync

    def full(event):
        if event.step == 10:
            monkeypatch.setattr(
                "os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device"))
            )

    with pytest.raises(StoreError, match="No space left"):
        train(_tiny(), rows, out=tmp_path, checkpoint_every=4, callbacks=[full], **TINY)
    monkeypatch.setattr("os.fsync", real)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if "tmp" in p.name] == []
    assert _equal(whole, train(_tiny(), rows, out=tmp_path, **TINY))


def test_training_goes_on_while_a_checkpoint_is_written_as_it_was_at_its_step(rows, tmp_path, monkeypatch):
    whole, write, later, seen = train(_tiny(), rows, **TINY), checkpoints.write, threading.Event(), []

    def slow(out, made):
        if made.step == 8:
            assert later.wait(30)  # which the run itself lets go, three steps after this one
        write(out, made)

    def watch(event):
        if event.step == 11 and event.name == "log":
            seen.append(checkpoints.latest([tmp_path]))
            later.set()
        if event.step == 14:
            raise _Killed

    monkeypatch.setattr(checkpoints, "write", slow)
    with pytest.raises(_Killed):
        train(_tiny(), rows, out=tmp_path, checkpoint_every=8, callbacks=[watch], **TINY)
    assert seen == [None]
    assert [c.step for c in checkpoints.latest([tmp_path])] == [8]
    assert _equal(whole, train(_tiny(), rows, out=tmp_path, **TINY))


def test_where_no_memory_is_free_for_a_copy_a_checkpoint_is_written_at_once(rows, tmp_path, monkeypatch):
    threads, write = [], checkpoints.write

    def watched(out, made):
        threads.append(threading.current_thread() is threading.main_thread())
        write(out, made)

    monkeypatch.setattr(checkpoints, "write", watched)
    for free, at_once in ((10**12, False), (10, True), (None, True)):
        monkeypatch.setattr(checkpoints, "free_memory", lambda device, free=free: free)
        train(_tiny(), rows, out=tmp_path / str(free), checkpoint_every=8, **TINY)
        assert threads == [at_once] * 3
        threads.clear()
