"""A job in a process of its own that is killed (SIGKILL) at random times and started again."""

from __future__ import annotations

import random
import time
from pathlib import Path

from forks import Forked, run

PROGRAMS = {
    "train": """
import sys, zlib, torch, saelab
rows = torch.randn(4_000, 64, generator=torch.Generator().manual_seed(1))
config = saelab.recipe("topk", d_in=64, d_sae=512, k=8)
length = {"steps": 600, "batch_size": 256, "checkpoint_every": 20}
run = saelab.train(config, rows, seed=3, out=sys.argv[1], progress=False, **length)
print(run.sae.fingerprint(), zlib.crc32(repr(run.history).encode()), flush=True)
""",
    "stream": """
import sys, zlib, saelab
from letters import TEXTS, Letters
config = saelab.recipe("topk", d_in=6, d_sae=256, k=2, hook="h")
length = {"steps": 300, "batch_size": 64, "checkpoint_every": 10}
acts = saelab.stream(Letters(), TEXTS * 9, "h", buffer_rows=512, batch_size=4)
run = saelab.train(config, acts, seed=3, out=sys.argv[1], progress=False, **length)
print(run.sae.fingerprint(), zlib.crc32(repr(run.history).encode()), flush=True)
""",
    "append": """
import sys, zlib, importlib, pathlib, saelab
from letters import TEXTS, Letters, Planted
importlib.import_module("saelab.harvesting.index").PART_ROWS = 200
out = pathlib.Path(sys.argv[1]) / "s"
if not out.exists():
    saelab.index(Letters(), Planted(), TEXTS[:5], out, progress=False)
for low, high in ((5, 9), (9, 15)):
    texts = TEXTS[low:high] * 9
    store = saelab.index(Letters(), Planted(), texts, out, append=True, batch_size=4, progress=False)
tables = ("latents", "examples", "codes_by_row", "documents", "coactivation")
print(*(zlib.crc32(store.query(f"from {t}").to_json().encode()) for t in tables), flush=True)
""",
}


def finish(out: Path, what: str = "train") -> str:
    """What an undisturbed job prints."""
    return run(PROGRAMS[what], out)


def killed_runs(out: Path, times: int, seed: int, what: str = "train") -> tuple[str, list[str]]:
    """(what the last, undisturbed job prints, the newest that was there after each kill)."""
    rng = random.Random(seed)
    left = []
    for _ in range(times):
        process = Forked(PROGRAMS[what], out)
        before = seen(out)
        deadline = time.monotonic() + 120
        # it must have gone on, or every kill would meet its start
        while seen(out) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)
        process.kill()
        process.wait()
        left.append(max(seen(out), default="none"))
        if process.returncode == 0:
            break
    return finish(out, what), left


def seen(out: Path) -> set[str]:
    """Checkpoints of a run; the folders of a store."""
    steps = {p.name for p in (out / "checkpoints").glob("step-*")}
    folders = (p for p in out.rglob("*") if p.is_dir() and p.name != "checkpoints")
    return steps or {str(p.relative_to(out)) for p in folders}
