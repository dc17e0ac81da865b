"""Runs that are watched: what a folder tells of one that trains, stopping it, and the view of several."""

from __future__ import annotations

import json
import signal
import threading
import time

import numpy as np
import pytest
import torch
from test_training import TINY, _equal, _planted, _tiny

import saelab
from saelab.sae import SAE
from saelab.training import Run, live, train, watched
from saelab.training.live import CLOCK, Live, binned
from saelab.training.watched import Folder, Kept, runs_in
from saelab.types import ConfigError, RangeError, StoreError
from saelab.widgets import still, still_runs

HOSTILE = "<img src=x onerror=alert(1)>\u202e"


@pytest.fixture(scope="module")
def rows():
    return _planted(0, d_in=8, n_features=16, n=2_000, k=2)[0]


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(live, "EVERY", 0.0)


def test_a_folder_tells_of_the_run_in_it(rows, tmp_path, at_once):
    folder, heard = Folder(tmp_path / "a"), []
    assert folder.told().state == "waiting"
    train(
        _tiny(),
        rows,
        out=tmp_path / "a",
        callbacks=[lambda event: heard.append((event, folder.told()))],
        **TINY,
    )
    during = [(event, told) for event, told in heard if event.name == "log"]
    assert len(during) == 30
    for event, told in during:
        assert (told.state, told.step, told.steps, told.stoppable) == ("training", event.step, 30, True)
        assert told.rows == event.record.rows == told.curves["fvu"][0][-1]
        assert told.curves["l0"][1][-1] == event.record.l0
        assert sum(told.density["counts"]) + told.density["below"] == _tiny().d_sae
    assert during[-2][1].left > 0
    ended, run = folder.told(), Run.load(tmp_path / "a")
    assert (ended.state, ended.stoppable, ended.left) == ("finished", False, None)
    for name in ("loss", "fvu", "l0", "dead"):
        np.testing.assert_array_equal(ended.curves[name][1], [getattr(r, name) for r in run.history])
    step, seconds = run.live["clock"][-1]
    assert ended.speed == pytest.approx(step * TINY["batch_size"] / seconds)
    assert len(folder.told(points=5).curves["loss"][0]) == 6
    kept = Kept.of(run, "a").told()
    assert kept._replace(curves={}) == ended._replace(curves={})
    np.testing.assert_array_equal(kept.curves["speed"], ended.curves["speed"])
    assert not (tmp_path / "a" / "live.json").exists()


@pytest.mark.parametrize("way", ["file", "event"])
def test_a_run_that_is_stopped_leaves_a_usable_sae_and_goes_on(rows, tmp_path, at_once, way):
    whole, folder = train(_tiny(), rows, **TINY), Folder(tmp_path)

    def stop(event):
        if event.name == "log" and event.step == 7:
            (folder if way == "file" else event.live).stop()

    part = train(_tiny(), rows, out=tmp_path, callbacks=[stop], **TINY)
    assert (part.finished, part.history[-1].step, part.provenance["ended"]) == (False, 8, "stopped")
    assert "stopped at step 8 of 30" in repr(part)
    assert (folder.told().state, folder.told().step) == ("stopped", 8)
    assert SAE.load(tmp_path).fingerprint() == part.sae.fingerprint()
    assert not (tmp_path / "stop").exists()
    rest = train(_tiny(), rows, out=tmp_path, **TINY)
    assert rest.provenance["ended"] == "finished"
    assert _equal(whole, rest)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        Folder(tmp_path / "file" / "inner").stop()


def test_a_run_that_fails_or_is_lost_says_so(rows, tmp_path):
    def fail(event):
        if event.step == 3:
            message = "planted"
            raise ValueError(message)

    with pytest.raises(ValueError, match="planted"):
        train(_tiny(), rows, out=tmp_path, callbacks=[fail], **TINY)
    assert Folder(tmp_path).told().state == "failed"
    told = json.loads((tmp_path / "live.json").read_text())
    for process, state in ((2**22 + 7, "lost"), ("x", "training"), (told["process"], "training")):
        (tmp_path / "live.json").write_text(json.dumps({**told, "state": "training", "process": process}))
        assert Folder(tmp_path).told().state == state
    for odd in ("{", "[]", "null", json.dumps({**told, "step": "many"}), json.dumps({**told, "version": 9})):
        (tmp_path / "live.json").write_text(odd)
        assert Folder(tmp_path).told().state == "waiting"


def test_records_are_read_as_they_come(rows, tmp_path):
    run = train(_tiny(), rows, **TINY)
    told = Live(tmp_path, "n", 16, 30, 64)
    folder, path = Folder(tmp_path), tmp_path / "history.jsonl"
    lines = "".join(json.dumps(record.to_dict()) + "\n" for record in run.history)
    for end in (0, 10, len(lines) // 2, len(lines) // 2 + 3, len(lines)):
        with path.open("a") as file:
            file.write(lines[file.tell() : end])
        n = lines[:end].count("\n")
        assert len(folder.told().curves.get("loss", ([],))[0]) == n
    path.unlink()
    path.write_text(lines[: lines.index("\n") + 1])  # as of a run that begins anew
    assert len(folder.told().curves["loss"][0]) == 1
    for step in range(1, 3 * CLOCK):
        told.log(step, None)
    clock = told.to_dict()["clock"]
    assert len(clock) <= CLOCK
    assert np.diff([step for step, _ in clock]).max() <= 8
    (tmp_path / "inner" / "1-relu").mkdir(parents=True)
    (tmp_path / "inner" / "0-topk").mkdir()
    for name in ("1-relu", "0-topk"):
        (tmp_path / "inner" / name / "run.json").write_text("{}")
    assert [path.name for path in runs_in(tmp_path / "inner")] == ["0-topk", "1-relu"]
    assert runs_in(tmp_path) == [tmp_path]


def test_densities_fall_into_their_bins():
    counts = binned(torch.tensor([1.0, 0.5, 0.1, 0.099, 1e-7, 1.1e-7, 9e-8, 0.0]))
    assert (counts["below"], sum(counts["counts"])) == (2, 6)
    assert counts["counts"][-1] == 1  # 0.5623 < x <= 1
    assert counts["counts"][-5:] == [1, 1, 0, 1, 1]  # float32's 0.1 is above 0.1
    assert counts["counts"][0] == 2


def test_the_view_is_told_while_a_cell_trains(rows, tmp_path, monkeypatch, at_once):
    monkeypatch.setattr("saelab.widgets.watch.EVERY", 0.02)
    view = saelab.watch()
    assert view.text().startswith("no run yet")
    seen = []
    view.observe(lambda change: seen.append(change.new["runs"]["header"]["runs"][0]), "opening")

    def slow(event):
        if event.name == "log":
            time.sleep(0.02)
        if event.step == 12:
            view.set_state({})  # what a browser sends meanwhile
            view._received(None, {"id": 1, "ask": "stop", "args": {"run": 0}}, [])

    run = train(_tiny(), rows, callbacks=[view, slow], **TINY)
    assert (run.finished, run.history[-1].step) == (False, 13)
    states = [each["state"] for each in seen]
    assert "training" in states
    steps = [each["step"] for each in seen]
    assert steps == sorted(steps)
    end = time.monotonic() + 5
    while seen[-1]["state"] != "stopped":
        assert time.monotonic() < end
        time.sleep(0.01)
    assert "stopped, step 13 of 30" in view.text()
    with pytest.raises(RangeError):
        view.answers()["stop"](run=1)
    view.close()
    view._thread.join(5)
    assert not view._thread.is_alive()
    with pytest.raises(ConfigError, match="Only saelab"):
        type(view)([])(None)


@pytest.mark.parametrize("way", ["file", "memory"])
def test_who_asked_to_stop_is_known_after_an_interrupt(rows, tmp_path, at_once, way):
    """A notebook's kernel hears the view's button when the run that it was interrupted for has ended."""
    out = tmp_path / "run" if way == "file" else None
    view = saelab.watch(out) if out else saelab.watch()

    def interrupt(event):
        if event.name == "log" and event.step == 5:
            signal.raise_signal(signal.SIGINT)

    run = train(_tiny(), rows, out=out, callbacks=[interrupt, *([] if out else [view])], **TINY)
    assert (run.finished, view._runs[0].told().state) == (False, "interrupted")
    view._received(None, {"id": 1, "ask": "stop", "args": {"run": 0}}, [])
    assert view._runs[0].told().state == "stopped"
    if out:
        assert not (out / "stop").exists()  # nor does it stop the run when that goes on
        assert train(_tiny(), rows, out=out, **TINY).finished
    view.close()


def test_a_finished_run_is_read_once_and_each_look_is_one(rows, tmp_path, monkeypatch):
    train(_tiny(), rows, out=tmp_path, **TINY)
    folder, read = Folder(tmp_path), []
    monkeypatch.setattr(watched, "told", lambda path, real=watched.told: read.append(path) or real(path))
    assert [folder.told(points=5).state for _ in range(3)] == ["finished"] * 3
    assert len(read) == 1
    train(_tiny(), rows, out=tmp_path, resume=False, **TINY | {"steps": 20})
    assert folder.told().curves["loss"][1][-1] == Run.load(tmp_path).history[-1].loss
    monkeypatch.setattr("saelab.widgets.watch.EVERY", 0.01)
    looks = []
    view = saelab.watch(tmp_path / "to come")
    real = view._runs[0].told
    view._runs[0].told = lambda points: looks.append(threading.current_thread().name) or real(points)
    view._opening, opened = lambda look=view._opening: (opened.append(1), look())[1], []
    end = time.monotonic() + 5
    while len(opened) < 4:
        assert time.monotonic() < end
        time.sleep(0.01)
    view.close()
    view._thread.join(5)
    assert len(looks) == len(opened)


def test_several_runs_over_each_other(rows, tmp_path):
    one = train(_tiny(), rows, out=tmp_path / HOSTILE.replace("/", ""), **TINY)
    two = train(_tiny(), rows, held_out=200, **TINY)
    view = saelab.watch([one, two, tmp_path / "to come"])
    lines = view.text().splitlines()
    assert [line.partition(": ")[2].partition(",")[0] for line in lines] == [
        "finished",
        "finished",
        "nothing there yet",
    ]
    assert HOSTILE.partition("\u202e")[0] in lines[0]
    form = view.html()
    assert "<img" not in form
    assert len(still.bounded(form, "")) == len(form)
    header, fields, _ = view.answers()["runs"]()
    assert [run["stoppable"] for run in header["runs"]] == [False] * 3
    assert "1.held_out_fvu" in fields
    assert fields["0.loss"].shape == (2, 30)
    page = view.export(tmp_path / "page.html").read_text()
    assert "<img src=x" not in page
    view.close()
    assert not saelab.watch(two)._thread
    for wrong in (3, [one, None]):
        with pytest.raises(ConfigError, match="folder of one"):
            saelab.watch(wrong)
    with pytest.raises(StoreError):
        saelab.watch("\0")
    assert still_runs.words([]).startswith("no run yet")
