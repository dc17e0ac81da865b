"""What a run takes, told before it starts, against what it took."""

from __future__ import annotations

import json
import logging
import os
import sys

import pytest
import torch
from forks import run

from saelab.sae import recipe
from saelab.training import LOSSES, estimate, estimates, train
from saelab.types import DeviceMemoryError

# prints the peak of resident memory over that before the run, in bytes
PROGRAM = """
import json, re, resource, sys, tempfile, torch, saelab, saelab.training.checkpoints
torch.set_num_threads(1)
name, options, length, out = json.loads(sys.argv[1])
d_in = options["d_in"]
rows = torch.randn(4096, d_in)
small = saelab.recipe(name, **options | {"d_in": 8, "d_sae": 64})
saelab.train(small, rows[:, :8].clone(), steps=3, batch_size=32, progress=False)
with open("/proc/self/statm") as file:
    before = int(file.read().split()[1]) * resource.getpagesize()
with tempfile.TemporaryDirectory() as folder:
    where = {"out": folder, "checkpoint_every": 1} if out else {}
    if out == "pieces":  # as where no memory is free for a copy of what is written
        saelab.training.checkpoints.free_memory = lambda device: 0
    saelab.train(saelab.recipe(name, **options), rows, progress=False, **length, **where)
# ru_maxrss would begin at the peak of the process that started this one
with open("/proc/self/status") as file:
    peak = 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", file.read())[1])
print(peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
@pytest.mark.parametrize(
    ("name", "options", "length", "out"),
    [
        ("topk", {"d_in": 64, "d_sae": 8192, "k": 16}, {"steps": 3, "batch_size": 2048}, None),
        ("relu", {"d_in": 64, "d_sae": 8192}, {"steps": 3, "batch_size": 2048}, None),
        ("relu", {"d_in": 64, "d_sae": 8192}, {"steps": 3, "batch_size": 4096, "accumulate": 4}, None),
        ("topk", {"d_in": 1024, "d_sae": 8192, "k": 16}, {"steps": 3, "batch_size": 64}, "pieces"),
        ("topk", {"d_in": 1024, "d_sae": 8192, "k": 16}, {"steps": 3, "batch_size": 64}, "copy"),
    ],
)
def test_the_estimate_is_near_what_was_measured(name, options, length, out):
    given = json.dumps([name, options, length, out])
    peak = json.loads(run(PROGRAM, given))
    told = estimate(recipe(name, **options), **length)
    expected = told.memory + (told.weights + told.optimizer if out == "copy" else 0)
    assert peak / 1.4 < expected < peak * 1.4


def test_sizes_are_those_of_the_tensors():
    config = recipe("topk", d_in=10, d_sae=40, k=4)
    told = estimate(config, steps=7, batch_size=64)
    assert told.weights == 4 * (2 * 10 * 40 + 40 + 10)
    assert told.optimizer == 2 * told.weights
    assert told.activations == pytest.approx(4 * 64 * 40, rel=0.5)
    halved = estimate(config, steps=7, batch_size=64, accumulate=2)
    assert halved.activations == told.activations // 2
    several = estimate([config, config], steps=7, batch_size=64)
    assert several.weights == 2 * told.weights
    assert several.activations == told.activations
    assert estimate(config, tokens=7 * 64, batch_size=64).steps == 7


def test_time_is_that_of_the_products(monkeypatch):
    def told(**length):
        return estimate(recipe("topk", d_in=64, d_sae=1024, k=4), **length).seconds

    assert 0 < told(steps=5, batch_size=128) < 60
    monkeypatch.setattr(estimates, "_speed", lambda *given: 1e9)
    product = 2 * 128 * 64 * 1024 / 1e9
    assert told(steps=5, batch_size=128) == pytest.approx(5 * estimates.SPARSE_TIME * product)
    assert told(steps=10, batch_size=256) == pytest.approx(4 * told(steps=5, batch_size=128))
    relu = estimate(recipe("relu", d_in=64, d_sae=1024), steps=5, batch_size=128)
    assert relu.seconds == pytest.approx(5 * estimates.DENSE_TIME * product)


def test_it_is_logged_and_not_printed(caplog, capsys):
    arguments = {"steps": 3, "batch_size": 50, "progress": False}
    with caplog.at_level(logging.INFO, logger="saelab"):
        train(recipe("topk", d_in=8, d_sae=24, k=2), torch.randn(100, 8), **arguments)
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith("training topk on ")
    assert "of memory at the peak (weights " in line
    assert line.endswith("for 3 steps")
    assert capsys.readouterr() == ("", "")


def test_a_run_that_cannot_fit_is_refused_with_what_to_lower(monkeypatch):
    x = torch.randn(8192, 8)
    config = recipe("relu", d_in=8, d_sae=4096)
    needs = {n: estimate(config, steps=2, batch_size=8192, accumulate=n).memory for n in (1, 2, 4, 8)}
    arguments = {"steps": 2, "batch_size": 8192, "progress": False, "device": "cpu"}
    monkeypatch.setattr(estimates, "free_memory", lambda device: needs[4])
    with pytest.raises(DeviceMemoryError, match=r"cpu with .* free.* Pass accumulate=4, or a batch_size"):
        train(config, x, **arguments)
    with pytest.raises(MemoryError):
        train(config, x, **arguments)
    monkeypatch.setattr(estimates, "free_memory", lambda device: needs[4] // 10)
    with pytest.raises(DeviceMemoryError, match=r"Lower d_sae, by a factor of \d.*, or train fewer"):
        train([config, config], x, **arguments)
    monkeypatch.setattr(estimates, "free_memory", lambda device: None)
    assert train(config, x[:100], steps=1, batch_size=10, progress=False).finished


def test_free_memory_is_some_of_the_machine():
    free = estimates.free_memory(torch.device("cpu"))
    if sys.platform.startswith("linux"):
        assert 0 < free < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        assert free is None


def test_limits_of_containers_count(tmp_path):
    def group(folder, names, limit, usage, cache):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{usage}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cache}\nslab 9\n")

    two = ("memory.max", "memory.current", "inactive_file")
    group(tmp_path / "job", two, 1000, 700, 200)
    group(tmp_path / "job" / "step", two, "max", 600, 0)
    assert estimates.cgroup_free(tmp_path, "0::/job/step\n") == [500]
    group(tmp_path, two, 400, 500, 50)
    assert estimates.cgroup_free(tmp_path, "0::/on/the/host\n") == [0]
    one = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    group(tmp_path / "memory" / "a", one, 90, 60, 7)
    assert estimates.cgroup_free(tmp_path, "4:memory:/a\n3:cpu:/job\n") == [37]


@pytest.mark.parametrize("out", [True, False])
def test_running_out_of_memory_says_what_to_lower_and_what_is_left(monkeypatch, tmp_path, out):
    """By the error of torch's own allocator."""

    def greedy(config, progress):
        def loss(sae, forward):
            if progress.step == 5:
                torch.empty(2**60, dtype=torch.uint8)
            return (forward.x - forward.x_hat).square().mean()

        return loss

    monkeypatch.setitem(LOSSES, "mse", greedy)
    left = f"the checkpoint of step 4 in {tmp_path} is whole" if out else "no checkpoint yet"
    says = rf"at step 6 of 9 on cpu \(topk; {left}\): .*allocate.* Pass accumulate=4 or more.*d_sae \(24\)"
    arguments = {"steps": 9, "batch_size": 50, "accumulate": 2, "checkpoint_every": 2, "progress": False}
    with pytest.raises(DeviceMemoryError, match=says):
        train(
            recipe("topk", d_in=8, d_sae=24, k=2),
            torch.randn(100, 8),
            out=tmp_path if out else None,
            **arguments,
        )


def test_other_errors_of_a_step_pass(monkeypatch):
    def broken(config, progress):
        def loss(sae, forward):
            message = "planted"
            raise RuntimeError(message)

        return loss

    monkeypatch.setitem(LOSSES, "mse", broken)
    with pytest.raises(RuntimeError, match=r"^planted$"):
        train(
            recipe("topk", d_in=8, d_sae=24, k=2), torch.randn(100, 8), steps=2, batch_size=50, progress=False
        )
