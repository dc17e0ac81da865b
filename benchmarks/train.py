"""What a TopK training step costs, as a multiple of the one dense product x @ W_enc that it cannot avoid.

benchmarks/peers/install.sh                      # once, for the peers; without them only saelab is measured
python benchmarks/train.py [--scaling | --parts] [--rounds 7] [--threads 1] [--shape d_in,d_sae,k,batch]
    [--only NAME ...] [--out train.json]

Each library runs in a process of its own (peers/worker.py), on the same rows, of which no latent is dead, and
all take turns: a turn of a few steps, between two turns of the bare product. Ours is `saelab.train` as it
stands (batches gathered, encoding, top-k, sparse decoding, gradients, unit-norm rules, clipping, Adam,
counts). The plain one is the same mathematics as one would write it down: torch.topk, a dense code matrix,
autograd, fused Adam. SAELens and dictionary_learning are stepped by their trainers, sparsify by the lines of
its trainer around its coder, all with Adam. Times are medians over rounds, on one thread of CPU time; ranges
are those of all rounds. Memory is what a turn adds to weights, Adam's moments and rows, in processes whose
allocator gives freed memory back at once.

--scaling: how the time of a step grows with d_sae and with the batch, and a step with 131,072 latents.
--parts: ways of decoding and of selecting, instead.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.sae import kernels

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-peers" / "bin" / "python"
OURS = ["encode", "saelab:topk", "saelab:batchtopk", "saelab:matryoshka", "saelab:abs_topk", "plain"]
THEIRS = ["sparsify", "saelens_sparse", "saelens", "dictionary_learning"]
SHAPE = "512,8192,32,2048"
TURN = 2
"""Steps of a turn: so few that neighbouring turns see the same machine."""


class Worker:
    """One library in its process; see peers/worker.py. The first turn, which warms it up, is done.

    What it says on stderr is shown only where it fails: then ChildProcessError is raised.
    """

    def __init__(
        self,
        name: str,
        shape: str,
        threads: int,
        device: str = "cpu",
        turn: int = TURN,
        exact_memory: bool = False,
    ) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        if exact_memory:
            environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
        program = str(PEERS) if name in THEIRS else sys.executable
        script = str(ROOT / "benchmarks" / "peers" / "worker.py")
        self.name, self.said = name, tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [program, script, name, shape, str(turn), str(threads), device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            env=environment,
            text=True,
        )
        self._answer()

    def turn(self) -> dict[str, float]:
        """{"seconds": a step, "bytes": that it adds, "held": bytes without it}"""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.said.seek(0)
            print(self.said.read(), file=sys.stderr)
            message = f"The worker of {self.name} ended; what it said is above."
            raise ChildProcessError(message)
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", action="store_true", help="compare decoders and top-k selections")
    parser.add_argument("--scaling", action="store_true", help="vary d_sae and batch, and 131,072 latents")
    parser.add_argument("--shape", default=SHAPE, metavar="d_in,d_sae,k,batch")
    parser.add_argument("--only", nargs="+", choices=OURS + THEIRS, metavar="NAME", help="of these, only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.parts:
        figures: dict[str, Any] = measure_parts(options.shape, options.rounds)
    elif options.scaling:
        figures = measure_scaling(options.shape, options.rounds, options.threads)
    else:
        names = options.only or available()
        figures = measure_steps(names, options.shape, options.rounds, options.threads)
    if options.out:
        found = {"torch": torch.__version__, "threads": options.threads, "shape": options.shape, **figures}
        options.out.write_text(json.dumps(found, indent=2))


def available() -> list[str]:
    """Names of all that can be measured here."""
    if PEERS.exists():
        return OURS + THEIRS
    print("No peers: benchmarks/peers/install.sh makes .venv-peers with them.")
    return OURS


def measure_steps(names: list[str], shape: str, rounds: int, threads: int) -> dict[str, Any]:
    """Times in turns, then memory; printed as a table."""
    figures = in_turns({name: (name, shape) for name in names}, rounds, threads)
    for name, found in figures.items():
        worker = Worker(name, shape, threads, exact_memory=True)
        found["bytes"] = [worker.turn()["bytes"] for _ in range(2)]
        worker.close()
    print(f"d_in, d_sae, k, batch = {shape}; {threads} thread(s)\n")
    print("| | ms | x product | range | x our topk | memory, MB | of sparsify's |")
    print("|---|---:|---:|---|---:|---:|---:|")
    topk = figures.get("saelab:topk", {}).get("multiples")
    most = max(figures["sparsify"]["bytes"]) if "sparsify" in figures else None
    for name, found in figures.items():
        multiples, peak = found["multiples"], max(found["bytes"])
        ours = f"{statistics.median(multiples) / statistics.median(topk):.2f}" if topk else ""
        share = f"{peak / most:.0%}" if most else ""
        milliseconds = statistics.median(found["seconds"]) * 1e3
        print(
            f"| {name} | {milliseconds:.0f} | {statistics.median(multiples):.2f} "
            f"| {min(multiples):.2f} .. {max(multiples):.2f} | {ours} | {peak / 1e6:.0f} | {share} |"
        )
    return {"steps": figures}


def in_turns(
    jobs: dict[str, tuple[str, str]], rounds: int, threads: int
) -> dict[str, dict[str, list[float]]]:
    """{job: seconds a step, and their multiples of the product just before and after, round by round}. A job
    is a worker's name and shape; all processes live at once, and each is idle but in its turn."""
    products = {shape: Worker("product", shape, threads) for shape in {shape for _, shape in jobs.values()}}
    workers = {job: Worker(*how, threads) for job, how in jobs.items()}
    found: dict[str, dict[str, list[float]]] = {job: {"seconds": [], "multiples": []} for job in jobs}
    for i in range(rounds + 1):
        for job, worker in workers.items():
            product = products[jobs[job][1]]
            before, own, after = (w.turn()["seconds"] for w in (product, worker, product))
            if i:  # the first round warms up
                found[job]["seconds"].append(own)
                found[job]["multiples"].append(2 * own / (before + after))
    for worker in (*products.values(), *workers.values()):
        worker.close()
    return found


def measure_scaling(shape: str, rounds: int, threads: int) -> dict[str, Any]:
    """Slopes of log(seconds of a step) over log(d_sae) and log(batch): 1 is linear."""
    d_in, d_sae, k, batch = map(int, shape.split(","))
    figures: dict[str, Any] = {}
    for axis, sizes in {
        "d_sae": {d_sae * f // 2: f"{d_in},{d_sae * f // 2},{k},{batch}" for f in (1, 2, 4, 8)},
        "batch": {batch * f // 4: f"{d_in},{d_sae},{k},{batch * f // 4}" for f in (1, 2, 4, 8)},
    }.items():
        times = in_turns({str(size): ("saelab:topk", s) for size, s in sizes.items()}, rounds, threads)
        middle = {size: statistics.median(times[str(size)]["seconds"]) for size in sizes}
        slope = statistics.linear_regression(
            [math.log(size) for size in middle], [math.log(seconds) for seconds in middle.values()]
        ).slope
        line = ", ".join(f"{size:,}: {seconds * 1e3:.0f} ms" for size, seconds in middle.items())
        print(f"{axis}: slope {slope:.2f} ({line})")
        figures[axis] = {"slope": slope, "times": times}
    wide = f"{d_in},131072,{k},{batch}"
    times = in_turns({"131072": ("saelab:topk", wide)}, min(rounds, 3), threads)["131072"]
    worker = Worker("saelab:topk", wide, threads, exact_memory=True)
    memory = worker.turn()
    worker.close()
    print(
        f"131,072 latents: {statistics.median(times['seconds']):.2f} s a step, "
        f"{statistics.median(times['multiples']):.2f} x product; {memory['held'] / 1e9:.2f} GB held between "
        f"steps, {memory['bytes'] / 1e9:.2f} GB more in one"
    )
    return {**figures, "wide": {**times, **memory}}


def measure_parts(shape: str, rounds: int) -> dict[str, Any]:
    """Seconds a call, on the pre-activations of one batch."""
    d_in, d_sae, k, batch = map(int, shape.split(","))
    x, W_enc, W_dec = torch.randn(batch, d_in), torch.randn(d_sae, d_in).t(), torch.randn(d_sae, d_in)
    pre = x @ W_enc
    indices = kernels.top_k(pre, k)
    values = pre.gather(1, indices)
    indptr = torch.arange(0, batch * k + 1, k)
    codes = kernels.Sparse(indptr, indices.reshape(-1), values.reshape(-1), d_sae)
    rows = torch.arange(batch).repeat_interleave(k)

    def index_add() -> Tensor:
        return torch.zeros(batch, d_in).index_add_(0, rows, W_dec[codes.indices] * codes.values[:, None])

    def csr() -> Tensor:
        return torch.sparse_csr_tensor(indptr, codes.indices, codes.values, (batch, d_sae)) @ W_dec

    calls: dict[str, Callable[[], object]] = {
        "x @ W_enc": lambda: x @ W_enc,
        "decode: embedding_bag (ours)": lambda: kernels.sparse_decode(codes, W_dec),
        "decode: CSR product": csr,
        "decode: index_add": index_add,
        "decode: dense product": lambda: torch.zeros_like(pre).scatter_(1, indices, values) @ W_dec,
        "top-k: ours": lambda: kernels.top_k(pre, k),
        "top-k: torch.topk(k + 1)": lambda: pre.topk(k + 1, dim=1),
        "top-k: stable sort": lambda: kernels.top_k_reference(pre, k),
    }
    found: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i:
                found[name].append(time.perf_counter() - start)
    print(f"d_in, d_sae, k, batch = {shape}")
    for name, times in found.items():
        ratios = [t / base for t, base in zip(times, found["x @ W_enc"], strict=True)]
        print(
            f"  {name:28} {statistics.median(times) * 1e3:9.2f} ms   {statistics.median(ratios):7.3f} x"
            f"   [{min(ratios):.3f} .. {max(ratios):.3f}]"
        )
    return {"parts": found}


if __name__ == "__main__":
    main()
