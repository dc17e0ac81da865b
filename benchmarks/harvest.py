"""What a harvest costs beside the forward pass that it cannot avoid, beside SAELens, and in memory.

benchmarks/peers/install.sh                         # once, for SAELens; without it only saelab is measured
python benchmarks/harvest.py [--shape small|gpt2] [--rows 60000] [--rounds 5] [--index | --memory | --read]
    [--out harvest.json]

The forward pass reads the very batches that the harvest makes, tokenised and padded beforehand, and stops
after the layer that is read; the harvest starts from texts and ends with a store on disk, every shard hashed.
Both take turns on one thread; times are CPU time of the whole process, the writing thread included, since
other processes may share the core: time that the disk takes while the model runs on does not count. Figures
are medians over rounds of the quotient of two neighbouring turns.

SAELens' ActivationsStore reads the same texts with a model of the same shape, in a process of its own. It
fills blocks and keeps its rows in memory; so the harvest beside it packs "blocks" (and writes them to disk).

--index: an index at d_sae 16,384 beside the stopped forward and the encoder's product into a kept buffer.
--memory: by how much the memory of a process rises while it harvests, and reads in shuffled order, 1 and 10
million rows of 64 numbers; reading, of what is its own: pages of the mapped shards belong to the disk cache.
--read: rows a second out of a store, in order and shuffled, beside the memory's own copy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from index import floor, make_sae, make_subject, take

import saelab
from saelab.subjects import LanguageModel
from saelab.types import Inputs

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(os.environ.get("SAELAB_PEERS", ROOT / ".venv-peers")) / "bin" / "python"
SHAPES = {"small": (4, 128, 8, 256), "gpt2": (12, 768, 12, 256)}
HOOKS = {"small": "blocks.2.hook_resid_post", "gpt2": "blocks.6.hook_resid_post"}
D_SAE = 16_384


def main() -> None:
    parser = argparse.ArgumentParser(description="What a harvest costs")
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--index", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--read", action="store_true")
    parser.add_argument("--harvested", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.harvested:  # a process that measures its own memory
        print(json.dumps(memory(options.rows, Path(options.harvested))))
        return
    if options.memory:
        results = {f"{rows:,} rows": alone(rows) for rows in (1_000_000, 10_000_000)}
    elif options.read:
        results = reading(options.rounds)
    else:
        results = passes(options)
    print(json.dumps(results, indent=1))
    if options.out:
        options.out.write_text(json.dumps({**vars(options), "out": None, **results}, indent=1))


def passes(options: argparse.Namespace) -> dict[str, Any]:
    """Quotients of CPU times, medians over rounds, and their ranges."""
    hook = HOOKS[options.shape]
    subject = make_subject(*SHAPES[options.shape])
    texts = take(subject, options.rows)
    padded, blocks = prepared(subject, texts), prepared(subject, texts, "blocks")
    calls: dict[str, Callable[[Path], Any]] = {
        "forward": lambda out: [subject.run(x, read=[hook], output=False) for x in padded],
        "harvest": lambda out: saelab.harvest(subject, texts, [hook], out, progress=False),
        "blocks forward": lambda out: [subject.run(x, read=[hook], output=False) for x in blocks],
        "blocks": lambda out: saelab.harvest(subject, texts, [hook], out, packing="blocks", progress=False),
    }
    if options.index:
        sae = make_sae(subject, hook, D_SAE, 32)
        product = floor(subject, sae, padded)
        calls = {
            "product": lambda out: product(),
            "index": lambda out: saelab.index(subject, sae, texts, out, progress=False),
        }
    with tempfile.TemporaryDirectory() as name, saelens(options, hook, texts, Path(name)) as peer:
        times: dict[str, list[float]] = {key: [] for key in calls}
        theirs = []
        for i in range(options.rounds + 1):  # the first warms up
            for key, call in calls.items():
                times[key].append(seconds(call, Path(name) / f"{key} {i}"))
            if peer and not options.index:
                theirs.append(next(peer))
    if options.index:
        return {"index / (forward + product)": told(times["index"], times["product"])}
    n = sum(sum(x.lengths.tolist()) for x in padded if x.lengths is not None) - len(texts)
    found = {
        "rows": n,
        "rows/s": n / statistics.median(times["harvest"][1:]),
        "harvest throughput / forward": told(times["forward"], times["harvest"]),
        "blocks throughput / forward": told(times["blocks forward"], times["blocks"]),
    }
    if theirs:
        ours = [n / t for t in times["blocks"]]
        found["rows/s, blocks"] = statistics.median(ours[1:])
        found["rows/s, SAELens"] = statistics.median(theirs[1:])
        found["blocks rows/s / SAELens"] = told(ours, theirs)
    return found


def drain(items: Iterable[Any]) -> None:
    for _ in items:
        pass


def told(a: list[float], b: list[float]) -> dict[str, float]:
    quotients = [x / y for x, y in zip(a[1:], b[1:], strict=True)]
    return {"median": statistics.median(quotients), "least": min(quotients), "most": max(quotients)}


def seconds(call: Callable[..., Any], *arguments: Any) -> float:
    started = time.process_time()
    call(*arguments)
    return time.process_time() - started


class saelens:
    """Rows a second of SAELens, turn by turn; None where it is not installed."""

    def __init__(self, options: argparse.Namespace, hook: str, texts: list[str], folder: Path) -> None:
        self.process = None
        if options.index or not PEERS.exists():
            return
        (folder / "texts.json").write_text(json.dumps(texts))
        shape = ",".join(map(str, SHAPES[options.shape]))
        script = str(ROOT / "benchmarks" / "peers" / "store.py")
        self.process = subprocess.Popen(
            [str(PEERS), script, shape, hook, str(folder / "texts.json"), str(options.rows)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
            text=True,
        )

    def __enter__(self) -> Iterator[float] | None:
        return self._turns() if self.process else None

    def __exit__(self, *error: object) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    def _turns(self) -> Iterator[float]:
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        while True:
            answer = json.loads(self.process.stdout.readline())
            yield answer["rows"] / answer["seconds"]
            self.process.stdin.write("\n")
            self.process.stdin.flush()


def prepared(subject: LanguageModel, texts: list[str], packing: str = "document") -> list[Inputs]:
    """The batches that a harvest of these texts runs."""
    found: list[Inputs] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(subject, name)

        def run(self, inputs: Inputs, **options: Any) -> Any:
            found.append(inputs)
            return subject.run(inputs, **options)

    hook = "blocks.0.hook_resid_pre"
    with tempfile.TemporaryDirectory() as name:
        watched: Any = Watched()
        saelab.harvest(watched, texts, [hook], Path(name) / "acts", packing=packing, progress=False)
    return found


class Samples:
    """Samples of 512 positions, made as they are read."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> torch.Tensor:
        if i >= self.n:
            raise IndexError(i)
        return (torch.arange(512) * 31 + i * 17) % 4096


def memory(rows: int, folder: Path) -> dict[str, float]:
    """MB by which memory rises: the peak while harvesting; its own pages while reading in shuffled order."""
    subject = saelab.TorchModule(
        torch.nn.Sequential(torch.nn.Embedding(4096, 64), torch.nn.Linear(64, 64)),
        prepare=lambda samples: torch.stack(list(samples)),
    )
    samples: Any = Samples(rows // 512)
    saelab.harvest(subject, [samples[i] for i in range(200)], ["0"], folder / "warm", progress=False)
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
    before, started = status("VmRSS"), time.process_time()
    store = saelab.harvest(subject, samples, ["0"], folder / "acts", progress=False)
    peak, took = status("VmHWM") - before, time.process_time() - started
    before, most = status("RssAnon"), 0.0
    for batch in store.batches(4096, seed=0):
        most = max(most, status("RssAnon") - before)
        assert len(batch.rows)
    return {"harvest": peak, "shuffled reading": most, "rows": store.n_rows, "rows/s": store.n_rows / took}


def status(key: str) -> float:
    """MB, of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(key + ":"))


def alone(rows: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--rows", str(rows), "--harvested", folder]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def reading(rounds: int) -> dict[str, Any]:
    """GB a second of batches of 4,096 rows [768], from the disk cache; a copy in memory beside it."""
    rows, width = 200_000, 768
    with tempfile.TemporaryDirectory() as folder:
        x = torch.randn(rows, width)
        store = saelab.stores.ActivationStore.create(Path(folder) / "acts", {"a": x})
        size = x.numel() * 4 / 1e9
        calls: dict[str, Callable[[], Any]] = {
            "copy in order": lambda: drain(x[i : i + 4096].clone() for i in range(0, rows, 4096)),
            "in order": lambda: drain(store.batches(4096)),
            "copy shuffled": lambda: drain(x[at] for at in torch.randperm(rows).split(4096)),
            "shuffled": lambda: drain(store.batches(4096, seed=0)),
        }
        times: dict[str, list[float]] = {key: [] for key in calls}
        for _ in range(rounds + 1):
            for key, call in calls.items():
                times[key].append(seconds(call))
    return {f"GB/s, {key}": size / statistics.median(t[1:]) for key, t in times.items()}


if __name__ == "__main__":
    main()
