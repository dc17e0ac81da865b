"""The history on disk while a run goes on, and in the loggers of others."""

from __future__ import annotations

import json
import struct
import sys

import pandas
import pytest
import torch

from saelab.sae import recipe
from saelab.training import Run, TensorBoard, WandB, train
from saelab.types import MissingDependency, StoreError

ARGUMENTS = {"steps": 20, "batch_size": 32, "log_every": 5, "progress": False, "held_out": 50}


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return torch.randn(400, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def config():
    return recipe("topk", d_in=8, d_sae=24, k=2)


class _Killed(BaseException):
    """As kill -9: nothing runs after it."""


def _kill_at(step, name="log"):
    def kill(event):
        if (event.name, event.step) == (name, step):
            raise _Killed

    return kill


def _frame(path):
    return pandas.read_json(path, lines=True)


def _assert_same(frame, history):
    expected = pandas.DataFrame(history)
    pandas.testing.assert_frame_equal(frame, expected, check_dtype=False, rtol=1e-9)


def test_the_history_is_on_disk_while_the_run_goes_on(rows, config, tmp_path):
    whole = train(config, rows, **ARGUMENTS)
    seen = []

    def look(event):
        if event.name == "log":
            seen.append(len(_frame(tmp_path / "history.jsonl")))

    killing = [look, _kill_at(15)]
    with pytest.raises(_Killed):
        train(config, rows, out=tmp_path, checkpoint_every=8, callbacks=killing, **ARGUMENTS)
    assert seen == list(range(1, len(seen) + 1))
    lines = _frame(tmp_path / "history.jsonl")
    assert lines.step.max() == 15
    _assert_same(lines, [r for r in whole.history if r.step <= 15])
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"step": 16, "ro')  # killed while writing
    with pytest.raises(_Killed):
        train(config, rows, out=tmp_path, callbacks=[_kill_at(20, "log")], **ARGUMENTS)
    _assert_same(_frame(tmp_path / "history.jsonl"), whole.history)
    train(config, rows, out=tmp_path, **ARGUMENTS)
    assert not (tmp_path / "history.jsonl").exists()
    assert Run.load(tmp_path).history == whole.history


def test_a_history_that_cannot_be_written_is_said(rows, config, tmp_path):
    def block(event):
        if event.name == "start":
            (tmp_path / "history.jsonl").unlink()
            (tmp_path / "history.jsonl").mkdir()

    with pytest.raises(StoreError, match=r"history\.jsonl must be writable"):
        train(config, rows, out=tmp_path, callbacks=[block], **ARGUMENTS)


def test_tensorboard_gets_every_record(rows, config, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def logged(name):
        found = EventAccumulator(str(tmp_path / "board" / name)).Reload()
        return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}

    def expected(run):
        return {
            name: [(r.step, getattr(r, name)) for r in run.history if getattr(r, name) is not None]
            for name in run.history[0]._fields[1:]
        }

    configs = [config, recipe("relu", d_in=8, d_sae=24)]
    killing = [TensorBoard(tmp_path / "board"), _kill_at(15)]
    with pytest.raises(_Killed):
        train(configs, rows, out=tmp_path / "run", checkpoint_every=8, callbacks=killing, **ARGUMENTS)
    again = [TensorBoard(tmp_path / "board")]
    runs = train(configs, rows, out=tmp_path / "run", callbacks=again, **ARGUMENTS)
    for name, run in zip(("0-topk", "1-relu"), runs, strict=True):
        values = logged(name)
        assert set(values) == set(expected(run))
        for tag, points in expected(run).items():
            assert [step for step, _ in values[tag]] == [step for step, _ in points]
            assert [v for _, v in values[tag]] == pytest.approx([v for _, v in points], rel=1e-6)


def _wandb_records(file):
    """What a run that is offline keeps: protobuf messages in the blocks of a LevelDB log, here one block."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at = file.read_bytes(), 7
    assert len(content) < 2**15
    while at + 7 <= len(content):
        length, kind = struct.unpack_from("<HB", content, at + 4)
        assert kind == 1
        yield Record.FromString(content[at + 7 : at + 7 + length])
        at += 7 + length


def test_wandb_gets_every_record_offline(rows, config, tmp_path):
    wandb = pytest.importorskip("wandb")
    given = {"mode": "offline", "dir": str(tmp_path), "group": "both", "settings": {"silent": True}}
    configs = [config, recipe("relu", d_in=8, d_sae=24)]
    runs = train(configs, rows, callbacks=[WandB("saelab-test", **given)], **ARGUMENTS)
    wandb.teardown()  # which writes what is still in memory
    found = {}
    for file in tmp_path.glob("wandb/offline-run-*/*.wandb"):
        records = list(_wandb_records(file))
        (head,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
        assert (head.project, head.run_group) == ("saelab-test", "both")
        options = {u.key: json.loads(u.value_json) for u in head.config.update}
        assert options["settings"]["batch_size"] == 32
        assert options["config"]["recipe"] in head.display_name
        found[head.display_name] = [
            {i.key or i.nested_key[0]: json.loads(i.value_json) for i in r.history.item}
            for r in records
            if r.WhichOneof("record_type") == "history"
        ]
    assert set(found) == {"0-topk", "1-relu"}
    for rows_of, run in zip((found["0-topk"], found["1-relu"]), runs, strict=True):
        assert [row["_step"] for row in rows_of] == [record.step for record in run.history]
        for row, record in zip(rows_of, run.history, strict=True):
            for name in record._fields[1:]:
                assert row.get(name) == pytest.approx(getattr(record, name))


@pytest.mark.parametrize(
    ("module", "make"), [("tensorboard", lambda: TensorBoard("x")), ("wandb", lambda: WandB("x"))]
)
def test_a_missing_library_gives_the_pip_command(monkeypatch, module, make):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(MissingDependency, match=f"pip install {module}"):
        make()
