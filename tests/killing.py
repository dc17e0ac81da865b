"""A training run in a process of its own that is killed (SIGKILL) at random times and started again."""

from __future__ import annotations

import random
import time
from pathlib import Path

from forks import Forked, run

PROGRAM = """
import sys, zlib, torch, saelab
rows = torch.randn(4_000, 64, generator=torch.Generator().manual_seed(1))
config = saelab.recipe("topk", d_in=64, d_sae=512, k=8)
length = {"steps": 600, "batch_size": 256, "checkpoint_every": 20}
run = saelab.train(config, rows, seed=3, out=sys.argv[1], progress=False, **length)
print(run.sae.fingerprint(), zlib.crc32(repr(run.history).encode()), flush=True)
"""


def finish(out: Path) -> str:
    """What an undisturbed run prints."""
    return run(PROGRAM, out)


def killed_runs(out: Path, times: int, seed: int) -> tuple[str, list[str]]:
    """(what the last, undisturbed run prints, the newest checkpoint after each kill)."""
    rng = random.Random(seed)
    left = []
    for _ in range(times):
        process = Forked(PROGRAM, out)
        before = checkpoints(out)
        deadline = time.monotonic() + 120
        # training must have gone on, or every kill would meet its start
        while checkpoints(out) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.wait()
        left.append(max(checkpoints(out), default="none"))
        if (out / "run.json").exists():
            break
    return finish(out), left


def checkpoints(out: Path) -> set[str]:
    return {p.name for p in (out / "checkpoints").glob("step-*")}
