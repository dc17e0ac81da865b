"""A folder that somebody removes while it is written: one StoreError that says so, and the same call again
gives what one call gives."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest
import torch
from letters import TEXTS, Letters, Planted

import saelab
from saelab.types import StoreError

GONE = "must stay in its place while it is written"


class Removing(Letters):
    """Removes folders before a pass, the first time."""

    def __init__(self, before: int, place: Path, pattern: str) -> None:
        self.left, self.place, self.pattern = before, place, pattern

    def run(self, *args, **options):
        self.left -= 1
        if not self.left:
            for path in sorted(self.place.glob(self.pattern)):
                shutil.rmtree(path, ignore_errors=True)
        return super().run(*args, **options)


def whole(folder):
    """The files of a store, but for its manifest, which has times."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}


def harvest(subject, out):
    saelab.harvest(subject, TEXTS * 3, ["h"], out, batch_size=2, shard_rows=64, progress=False)


def index(subject, out):
    saelab.index(subject, Planted(), TEXTS * 3, out, batch_size=2, progress=False)


def append(subject, out):
    if not out.exists():
        saelab.index(Letters(), Planted(), TEXTS[:3], out, progress=False)
    saelab.index(subject, Planted(), TEXTS[3:] * 3, out, batch_size=2, append=True, progress=False)


@pytest.mark.parametrize("call", [harvest, index, append])
@pytest.mark.parametrize(("before", "pattern"), [(1, "a"), (20, "a/.*-partial")])
def test_a_store_that_is_removed_while_it_is_written(call, pattern, before, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.import_module("saelab.harvesting.index"), "PART_ROWS", 50)
    call(Letters(), tmp_path / "b" / "s")
    out = tmp_path / "a" / "s"
    with pytest.raises(StoreError, match=f"{GONE}|as it was written"):
        call(Removing(before, tmp_path, pattern), out)
    assert not out.exists() or call is append
    call(Letters(), out)
    assert whole(out) == whole(tmp_path / "b" / "s")
    assert [p.name for p in out.parent.iterdir()] == ["s"]


@pytest.mark.parametrize("removed", ["run", "run/checkpoints"])
def test_a_run_whose_folder_is_removed(removed, tmp_path):
    config = saelab.recipe("topk", d_in=4, d_sae=8, k=2)
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    how = {"steps": 6, "batch_size": 16, "checkpoint_every": 2, "log_every": 1, "progress": False}
    expected = saelab.train(config, x, **how).sae.fingerprint()

    def callback(event):
        if event.name == "log" and event.step == 3:
            shutil.rmtree(tmp_path / removed)

    def call(callbacks=()):
        return saelab.train(config, x, out=tmp_path / "run", callbacks=callbacks, **how).sae.fingerprint()

    if removed == "run":
        with pytest.raises(StoreError, match=GONE):
            call([callback])
    else:  # checkpoints are for the next time
        assert call([callback]) == expected
    assert call() == expected
