"""What a training step costs, recipe by recipe, beside those of peers and the one product x @ W_enc.

benchmarks/peers/install.sh                      # once, for the peers; without them only saelab is measured
python benchmarks/train.py [--group NAME ...] [--scaling | --parts] [--rounds 7] [--threads 1] [--memory]
    [--shape d_in,d_sae,k,batch] [--record NAME]

Each library runs in a process of its own (peers/worker.py), on the same rows, of which no latent is dead. All
that a group compares takes turns: a turn of a few steps, between two turns of the bare product into a buffer
that is kept. Ours is `saelab.train` as it stands (batches gathered, encoding, selection, decoding, gradients,
rules, clipping, Adam, counts). "plain" is the mathematics of TopK as one would write it down: torch.topk, a
dense code matrix, autograd, fused Adam. SAELens and dictionary_learning are stepped by their trainers,
sparsify by the lines of its trainer around its coder, all with Adam; sparsify also with fused Adam. Learned
sparsity (relu, jumprelu, gated) is measured twice: half of all latents on, where the libraries start (our
jumprelu starts sparse, and has a row for that too), and at k a row, as late in a run. Times are medians over
rounds, on one thread of CPU time; ranges are those of all rounds. "whole run" takes the update alone, the
same within `train`, from a store with a folder, and with a checkpoint or an evaluation every 10 steps; its
wall times count where nothing else runs.

--memory: what a turn adds to weights, Adam's moments and rows as well, in processes whose allocator gives
freed memory back at once.
--scaling: how the time of a step grows with d_sae and with the batch, and a step with 131,072 latents.
--parts: ways of decoding and of selecting, instead.
--record NAME: keep the figures as benchmarks/results/NAME.json.
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
from results import record
from torch import Tensor

from saelab.sae import kernels

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-peers" / "bin" / "python"
GROUPS = {
    "topk": "saelab:topk plain sparsify:topk sparsify:topk:fused saelens:topk saelens:topk:sparse "
    "dictionary_learning:topk",
    "batchtopk": "saelab:batchtopk saelens:batchtopk dictionary_learning:batchtopk",
    "matryoshka": "saelab:matryoshka saelens:matryoshka dictionary_learning:matryoshka",
    "abs_topk": "saelab:abs_topk saelens:abs_topk",
    "group_max": "saelab:group_max sparsify:group_max",
    "relu": "saelab:relu saelens:relu dictionary_learning:relu",
    "relu, k a row": "saelab:relu:sparse saelens:relu:sparse dictionary_learning:relu:sparse",
    "jumprelu": "saelab:jumprelu:half saelab:jumprelu saelens:jumprelu dictionary_learning:jumprelu",
    "jumprelu, k a row": "saelab:jumprelu:sparse saelens:jumprelu:sparse dictionary_learning:jumprelu:sparse",
    "gated": "saelab:gated saelens:gated dictionary_learning:gated",
    "gated, k a row": "saelab:gated:sparse saelens:gated:sparse dictionary_learning:gated:sparse",
    "encode topk": "saelab:encode:topk saelens:encode:topk saelab:encode_sparse:topk",
    "encode relu": "saelab:encode:relu saelens:encode:relu",
    "encode jumprelu": "saelab:encode:jumprelu saelens:encode:jumprelu",
    "encode gated": "saelab:encode:gated saelens:encode:gated",
    "without peers": "saelab:gba saelab:top_afa saelab:batch_abs_topk saelab:feature_choice "
    "saelab:mutual_choice saelab:variational saelab:transcoder",
    "floor": "product product:fresh",
    "whole run": "saelab:topk:bare saelab:topk saelab:topk:store saelab:topk:store:checkpoints "
    "saelab:topk:store:evaluations saelens:topk saelens:topk:sparse",
}
"""What is compared with what, ours first; see peers/worker.py for the names."""
PEER = {"sparsify": "eai-sparsify", "saelens": "sae-lens", "dictionary_learning": "dictionary-learning"}
"""Libraries to the names of their packages."""
SHAPE = "512,8192,32,2048"
TURN = 2
"""Steps of a turn: so few that neighbouring turns see the same machine."""
LONG = {"whole run": 10}
"""Steps of a turn where a turn holds what is not done at each step."""


class Worker:
    """One library in its process; see peers/worker.py. It starts with a turn that warms it up.

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
        program = str(PEERS) if name.split(":")[0] in PEER and PEERS.exists() else sys.executable
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
        self.warm = False

    def ready(self) -> None:
        """Wait until it has warmed up."""
        if not self.warm:
            self._answer()
            self.warm = True

    def turn(self) -> dict[str, float]:
        """{"seconds": a step, "bytes": that it adds, "held": bytes without it}"""
        self.ready()
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
    parser.add_argument("--record", metavar="NAME", help="keep the figures as benchmarks/results/NAME.json")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true", help="measure memory too")
    parser.add_argument("--parts", action="store_true", help="compare decoders and top-k selections")
    parser.add_argument("--scaling", action="store_true", help="vary d_sae and batch, and 131,072 latents")
    parser.add_argument("--shape", default=SHAPE, metavar="d_in,d_sae,k,batch")
    parser.add_argument("--group", nargs="+", choices=GROUPS, metavar="NAME", help="of these, only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.parts:
        rows = measure_parts(options.shape, options.rounds)
    elif options.scaling:
        rows = measure_scaling(options.shape, options.rounds, options.threads)
    else:
        rows = []
        for group in options.group or GROUPS:
            rows += measure_group(group, options.shape, options.rounds, options.threads, options.memory)
    if options.record:
        facts = {"threads": options.threads, "d_in, d_sae, k, batch": options.shape}
        record(options.record, rows, **facts, versions=peers())


def peers() -> dict[str, str]:
    """Versions of the peers' packages, as far as they are here."""
    if not PEERS.exists():
        return {}
    code = f"from importlib.metadata import version as v; print(*map(v, {list(PEER.values())}))"
    said = subprocess.run([str(PEERS), "-c", code], capture_output=True, text=True, check=True).stdout
    return dict(zip(PEER.values(), said.split(), strict=True))


def measure_group(
    group: str, shape: str, rounds: int, threads: int, memory: bool = False
) -> list[dict[str, Any]]:
    """A row for each of a group: how long its step takes, in ms and beside the product and ours."""
    names = [name for name in GROUPS[group].split() if PEERS.exists() or name.split(":")[0] not in PEER]
    figures = in_turns({name: (name, shape) for name in names}, rounds, threads, LONG.get(group, TURN))
    ours = figures[names[0]]["multiples"]
    rows = []
    for name, found in figures.items():
        multiples = found["multiples"]
        row = {
            "group": group,
            "name": name,
            "ms": round(statistics.median(found["seconds"]) * 1e3, 1),
            "x product": round(statistics.median(multiples), 2),
            "range": f"{min(multiples):.2f} .. {max(multiples):.2f}",
            "x ours": round(statistics.median(multiples) / statistics.median(ours), 2),
        }
        if group in LONG:
            row["wall ms"] = round(statistics.median(found["wall"]) * 1e3, 1)
        if memory:
            worker = Worker(name, shape, threads, exact_memory=True)
            row["memory, MB"] = round(max(worker.turn()["bytes"] for _ in range(2)) / 1e6)
            worker.close()
        rows.append(row)
        print(" | ".join(str(value) for value in row.values()), flush=True)
    return rows


def in_turns(
    jobs: dict[str, tuple[str, str]], rounds: int, threads: int, turn: int = TURN
) -> dict[str, dict[str, list[float]]]:
    """{job: seconds a step, those by the clock on the wall, and multiples of the product just before and
    after, round by round}. A job is a worker's name and shape; all processes live at once, and each is idle
    but in its turn."""
    products = {
        shape: Worker("product", shape, threads, turn=turn) for shape in {shape for _, shape in jobs.values()}
    }
    workers = {job: Worker(*how, threads, turn=turn) for job, how in jobs.items()}
    for worker in (*products.values(), *workers.values()):
        worker.ready()
    found: dict[str, dict[str, list[float]]] = {
        job: {"seconds": [], "wall": [], "multiples": []} for job in jobs
    }
    for i in range(rounds + 1):
        for job, worker in workers.items():
            product = products[jobs[job][1]]
            before, told, after = product.turn()["seconds"], worker.turn(), product.turn()["seconds"]
            own = told["seconds"]
            if i:  # the first round warms up
                found[job]["seconds"].append(own)
                found[job]["wall"].append(told["wall"])
                found[job]["multiples"].append(2 * own / (before + after))
    for worker in (*products.values(), *workers.values()):
        worker.close()
    return found


def measure_scaling(shape: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Slopes of log(seconds of a step) over log(d_sae) and log(batch): 1 is linear."""
    d_in, d_sae, k, batch = map(int, shape.split(","))
    rows = []
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
        rows.append({"axis": axis, "slope": round(slope, 2), "steps": line})
        print(f"{axis}: slope {slope:.2f} ({line})", flush=True)
    wide = f"{d_in},131072,{k},{batch}"
    times = in_turns({"131072": ("saelab:topk", wide)}, min(rounds, 3), threads)["131072"]
    worker = Worker("saelab:topk", wide, threads, exact_memory=True)
    memory = worker.turn()
    worker.close()
    line = (
        f"{statistics.median(times['seconds']):.2f} s a step, {statistics.median(times['multiples']):.2f} x "
        f"product; {memory['held'] / 1e9:.2f} GB held between steps, {memory['bytes'] / 1e9:.2f} GB more in "
        "one"
    )
    print(f"131,072 latents: {line}")
    return [*rows, {"axis": "131,072 latents", "steps": line}]


def measure_parts(shape: str, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds a call, on the pre-activations of one batch."""
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

    kept = torch.empty_like(pre)
    calls: dict[str, Callable[[], object]] = {
        "x @ W_enc, kept buffer": lambda: torch.mm(x, W_enc, out=kept),
        "x @ W_enc, fresh memory": lambda: x @ W_enc,
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
    rows = []
    for name, times in found.items():
        ratios = [t / base for t, base in zip(times, found["x @ W_enc, kept buffer"], strict=True)]
        row = {
            "part": name,
            "ms": round(statistics.median(times) * 1e3, 2),
            "x product": round(statistics.median(ratios), 3),
            "range": f"{min(ratios):.3f} .. {max(ratios):.3f}",
        }
        rows.append(row)
        print(" | ".join(str(value) for value in row.values()))
    return rows


if __name__ == "__main__":
    main()
