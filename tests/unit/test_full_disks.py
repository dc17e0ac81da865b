"""Disks without room: a StoreError that says how much is needed, nothing half-written, and what the same
call gives once there is room."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from letters import TEXTS, Letters, Planted

import saelab
from saelab import files
from saelab.sae import SAE
from saelab.stores import ActivationStore, FeatureStore
from saelab.stores.directions import open_directions, write_directions
from saelab.types import DeviceMemoryError, StoreError

ROOM = r"must have room for [\d,]+ bytes\. Got [\d,]+ bytes free"


@pytest.fixture(scope="module")
def parts():
    return Letters(), Planted()


def wide() -> SAE:
    torch.manual_seed(0)
    return SAE(saelab.recipe("topk", d_in=6, d_sae=2**15, k=2, hook="h"))


def ways(parts):
    """What writes much, as a call with the place."""
    config = saelab.recipe("topk", d_in=6, d_sae=2**13, k=2)
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    how = {"steps": 2, "batch_size": 16, "checkpoint_every": 1, "progress": False}
    return {
        "harvest": lambda out: saelab.harvest(
            parts[0], ["abcdefghijklm" * 9] * 200, ["h"], out, progress=False
        ),
        "index": lambda out: saelab.index(parts[0], wide(), TEXTS, out, progress=False),
        "save": lambda out: wide().save(out),
        "train": lambda out: saelab.train(config, x, out=out, **how),
    }


WAYS = ("harvest", "index", "save", "train")


@pytest.mark.parametrize("way", WAYS)
def test_a_disk_that_says_it_is_full(way, parts, tmp_path, monkeypatch):
    call, out = ways(parts)[way], tmp_path / "out"

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(StoreError, match=ROOM):
            call(out)
    call(out)
    if way == "harvest":
        ActivationStore.open(out).verify()
    elif way == "index":
        FeatureStore.open(out).verify()


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_disk_that_cannot_set_aside(parts, error, tmp_path, monkeypatch):
    wanted = tmp_path / "wanted"
    saelab.harvest(parts[0], TEXTS, ["h"], wanted, progress=False)

    def unknown(*args: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    saelab.harvest(parts[0], TEXTS, ["h"], tmp_path / "s", progress=False)
    for path in wanted.glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "s" / path.name).read_bytes()


def test_directions_are_what_numpy_writes(tmp_path):
    W = np.random.default_rng(0).normal(size=(7, 5))
    W[2] = 0
    write_directions(tmp_path, torch.tensor(W))
    norms = np.linalg.norm(W, axis=1, keepdims=True)
    unit = np.divide(W, norms, out=np.zeros_like(W), where=norms > 0)
    np.save(tmp_path / "plain.npy", unit.astype(np.float32).astype(np.float16))
    found = open_directions(tmp_path, 7, {})
    np.testing.assert_allclose(found, unit, atol=2**-11)
    assert (tmp_path / "directions.npy").read_bytes()[:128] == (tmp_path / "plain.npy").read_bytes()[:128]


CODE = """
import sys
from pathlib import Path
import pytest, torch
sys.path[:0] = {path!r}
from test_full_disks import ways
from letters import Letters, Planted
from saelab.types import StoreError
try:
    ways((Letters(), Planted()))[{way!r}](Path({out!r}))
except StoreError as error:
    print("StoreError", error)
"""


@pytest.mark.parametrize(("way", "size"), [*((way, "100k") for way in WAYS), ("index", "300k")])
def test_a_small_disk(way, size, parts, tmp_path):
    """A disk of memory, which has no room for what is mapped from it: the process would end by a signal."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("disks cannot be mounted here")
    try:
        out = disk / "out"
        here = Path(__file__).parent
        code = CODE.format(path=[str(here), str(here.parent)], way=way, out=str(out))
        assert forks.run(code).startswith("StoreError")
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        ways(parts)[way](out)
        assert [p.name for p in disk.iterdir()] == ["out"]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_what_is_claimed_is_there(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    files.claim(path, 10)
    assert path.read_bytes()[:3] == b"old"
    files.claim(path, 0)
    assert path.stat().st_size == 10


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
def test_a_batch_that_does_not_fit_into_memory(error, parts, tmp_path, monkeypatch):
    def full(*args: object, **options: object) -> None:
        raise error

    calls = {name: way for name, way in ways(parts).items() if name in ("harvest", "index")}
    with monkeypatch.context() as patch:
        patch.setattr(Letters, "run", full)
        for name, call in calls.items():
            with pytest.raises(DeviceMemoryError, match=r"A batch must fit.*lower batch_size"):
                call(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
