"""All that waits for a GPU in one command of at most eight minutes: its tests, and how fast it is there.

make gpu                                                    # or: python -m benchmarks.gpu
python -m benchmarks.gpu [--only NAME ...] [--minutes 8] [--out gpu.json] [--record gpu]
python -m benchmarks.gpu --device cpu --tiny                # a dry run of the same code; figures mean nothing

Each part is a process with a time limit: one that fails or hangs leaves the others alone, and what it had
said is kept. "card" measures the rates of the card (a bfloat16 product, a copy). By these each part says,
before it runs, what it cannot go below: "compute ms" (its operations at the rate of the product) and
"memory ms" (the bytes that it must move at the rate of the copy). Then:

tests           all that are marked gpu
kernels         each Triton twin beside its plain reference (saelab/sae/dispatch.py)
train-small     rows a second of a TopK step, ours, of the plain PyTorch step that libraries run, and of
                sparsify and SAELens where they can be imported; d_in 768, d_sae 24,576, k 32
train-large     the same at d_in 2,304, d_sae 131,072, k 64
memory          peak of a step at d_sae 131,072 and 1,048,576
harvest         GPT-2's shape with random weights: rows a second beside the forward pass that stops there
index           a million tokens, 24,576 latents, beside that pass and the encoder's product

The JSON is written anew after each part. It holds the card's name, versions and all rows.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {
    "card": 40, "tests": 100, "kernels": 80, "train-small": 80, "train-large": 110, "memory": 50,
    "harvest": 60, "index": 80,
}  # fmt: skip
"""Seconds of each part, at most."""
TRAIN = {"train-small": (768, 24_576, 32, 8_192), "train-large": (2_304, 131_072, 64, 8_192)}
"""d_in, d_sae, k, rows of a batch."""
TINY = (8, 64, 2, 16)
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="small shapes: that it runs, not how fast")
    parser.add_argument("--only", nargs="+", choices=LIMITS, metavar="NAME", help="of these parts")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--record", metavar="NAME", help="keep the figures as benchmarks/results/NAME.json")
    parser.add_argument("--part", choices=LIMITS, help=argparse.SUPPRESS)
    parser.add_argument("--rates", type=json.loads, default={}, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        sys.path.insert(0, str(Path(__file__).parent))
        for row in PARTS[options.part](options):
            print(json.dumps(row), flush=True)
        return
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("No GPU here: nothing was measured.")
        return
    sys.exit(conduct(options))


def conduct(options: argparse.Namespace) -> int:
    """Run the parts one after the other; how many failed."""
    until, found, failed = time.monotonic() + 60 * options.minutes, [], 0
    left_out = {"train-large"} if options.tiny else set()  # there the same as train-small
    asked = set(options.only or LIMITS) - left_out | {"card"}
    for name in [part for part in LIMITS if part in asked]:
        rates = next(({k: r[k] for k in ("flop/s", "byte/s")} for r in found if "flop/s" in r), {})
        limit = min(LIMITS[name], until - time.monotonic())
        rows, error, took = apart(name, options, rates, limit) if limit > 5 else ([], "no time was left", 0.0)
        failed += error is not None
        found += [{"part": name, **row} for row in rows]
        if error is not None:
            found.append({"part": name, "failed": error})
        for row in found[-len(rows) - (error is not None) :]:
            print(" | ".join(f"{key} {_short(value)}" for key, value in row.items()), flush=True)
        print(f"-- {name}: {took:.0f} s", flush=True)
        options.out.write_text(json.dumps({"machine": machine(options), "rows": found}, indent=1) + "\n")
    if options.record:
        sys.path.insert(0, str(Path(__file__).parent))
        from results import record

        record(options.record, found, **machine(options))
    return failed


def apart(
    name: str, options: argparse.Namespace, rates: Row, limit: float
) -> tuple[list[Row], str | None, float]:
    """(rows of a part, why it failed, seconds), in a process group of its own that ends with its time."""
    call = [
        sys.executable,
        __file__,
        "--part",
        name,
        "--device",
        options.device,
        "--rates",
        json.dumps(rates),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment["TRITON_INTERPRET"] = str(int(options.device == "cpu"))
    started, error = time.monotonic(), None
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
        process = subprocess.Popen(
            call + ["--tiny"] * options.tiny, stdout=said, stderr=complained, env=environment, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        try:
            if process.wait(limit):
                complained.seek(0)
                error = (complained.read().strip().splitlines() or ["it ended"])[-1]
        except subprocess.TimeoutExpired:
            error = f"not done after {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        rows = [json.loads(line) for line in said if line.startswith("{") and line.endswith("}\n")]
    return rows, error, time.monotonic() - started


def machine(options: argparse.Namespace) -> Row:
    """The card and the versions."""
    import torch

    card = torch.cuda.get_device_name() if options.device == "cuda" and torch.cuda.is_available() else "none"
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    if importlib.util.find_spec("triton"):
        import triton

        versions["triton"] = triton.__version__
    return {"card": card, "device": options.device, "tiny": options.tiny, "versions": versions}


def floors(options: argparse.Namespace, operations: float, size: float) -> Row:
    """What a part cannot go below by the rates of the card."""
    compute, memory = (options.rates.get(key, float("nan")) for key in ("flop/s", "byte/s"))
    return {
        "GFLOP": round(operations / 1e9, 3),
        "MB": round(size / 1e6, 3),
        "compute ms": round(1e3 * operations / compute, 4),
        "memory ms": round(1e3 * size / memory, 4),
    }


def card(options: argparse.Namespace) -> Iterator[Row]:
    """The rate of a bfloat16 product, and of a copy counting bytes read and written."""
    import torch

    n, size = (64, 2**16) if options.tiny else (8_192, 2**32)
    a, b = (torch.randn(n, n, device=options.device, dtype=torch.bfloat16) for _ in range(2))
    product = milliseconds(lambda: a @ b, options.device)
    x = torch.empty(size, dtype=torch.uint8, device=options.device)
    y = torch.empty_like(x)
    copied = milliseconds(lambda: y.copy_(x), options.device)
    yield {"flop/s": 2e3 * n**3 / product, "byte/s": 2e3 * size / copied}


def tests(options: argparse.Namespace) -> Iterator[Row]:
    """All that are marked gpu. The files are found by the mark, since others need more than is here."""
    files = [p for p in sorted(ROOT.glob("tests/**/test_*.py")) if "pytest.mark.gpu" in p.read_text()]
    if not files:
        return
    call = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--noconftest", "-o", "addopts=", "-p"]
    done = subprocess.run([*call, "no:cacheprovider", *files], capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.strip().splitlines()
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            yield {"test": line}
    yield {"tests": lines[-1] if lines else done.stderr[-300:]}
    if done.returncode:
        sys.exit(1)


def kernels(options: argparse.Namespace) -> Iterator[Row]:
    """Each twin beside its reference, in turns, on the codes of one batch."""
    import torch

    from saelab.sae import dense, dispatch
    from saelab.sae import kernels as own

    if not dispatch.installed():
        yield {"kernel": "none: Triton is not installed"}
        return
    d_in, d_sae, k, n = TINY if options.tiny else TRAIN["train-small"]
    if options.tiny:  # a sort takes the interpreter seconds
        from saelab.sae.twins import select

        select.MATRIX, select.PRODUCT = (16, 32), (16, 32)
    torch.manual_seed(0)
    x, W = torch.randn(n, d_in, device=options.device), torch.randn(d_sae, d_in, device=options.device)
    b, theta = torch.zeros(d_sae, device=options.device), torch.full((d_sae,), 2.0, device=options.device)
    pre = x @ W.t()
    at = own.top_k(pre, k)
    indptr, indices = torch.arange(0, n * k + 1, k, device=options.device), at.reshape(-1)
    values, whole, codes = pre.gather(1, at).reshape(-1), 4 * n * d_sae, 4 * n * k * (d_in + 3)
    product = 2.0 * n * d_in * d_sae
    jobs: dict[str, tuple[Callable[..., Any], tuple[Any, ...], float, float]] = {
        "rows.bag": (own._bag_of_torch, (W, indptr, indices, values), 2.0 * n * k * d_in, codes),
        "rows.sampled_product": (
            own._sampled_product_of_torch, (x, W, indptr, indices), 2.0 * n * k * d_in, codes,
        ),
        "select.top_k": (own._top_k, (pre, k, False), n * d_sae, whole),
        "select.encoded": (
            own.encode_top_k_reference, (x, W.t(), b, k, False), product, 4 * d_in * d_sae,
        ),
        "batch.guess": (own._guess, (pre.reshape(-1), float(n * k)), n * d_sae, whole),
        "batch.above": (own._above, (pre, theta), n * d_sae, whole),
        "steps.exceeding": (dense._exceeding_of_torch, (pre, pre, theta), n * d_sae, 2 * whole),
        "steps.jump_gradients": (
            dense._gradients, (pre, pre, theta, 0.5, False, True), 4.0 * n * d_sae, 3 * whole,
        ),
    }  # fmt: skip
    for name, (plain, arguments, operations, size) in jobs.items():
        row: Row = {"kernel": name, **floors(options, operations, size)}
        try:
            twin = dispatch._twin(name)
            once = options.tiny
            row["plain ms"] = round(milliseconds(lambda p=plain, a=arguments: p(*a), options.device, once), 4)
            row["twin ms"] = round(milliseconds(lambda t=twin, a=arguments: t(*a), options.device, once), 4)
            row["x faster"] = round(row["plain ms"] / row["twin ms"], 2)
        except Exception as error:  # one that cannot be compiled leaves the others alone
            row["failed"] = f"{type(error).__name__}: {str(error)[:200]}"
        yield row


def train(options: argparse.Namespace) -> Iterator[Row]:
    """Steps of TopK in turns, each library in a process of its own (peers/worker.py)."""
    from train import PEERS, Worker

    d_in, d_sae, k, n = TINY if options.tiny else TRAIN[options.part]
    shape = ",".join(map(str, (d_in, d_sae, k, n)))
    names = ["product:bfloat16", "saelab:topk:bfloat16", "plain:bfloat16"]
    names += [] if options.tiny else ["saelab:topk", "plain"]
    for peer, package in (("sparsify:topk:fused", "sparsify"), ("saelens:topk", "sae_lens")):
        names += [peer] * (PEERS.exists() or importlib.util.find_spec(package) is not None)
    weights, product = d_in * d_sae, 2.0 * n * d_in * d_sae
    # Adam reads four and writes three numbers of each weight of both matrices, gradients are written once
    bounds = floors(options, product + 8.0 * n * k * d_in, 4.0 * 2 * weights * 8 + 4.0 * n * d_sae * 2)
    yield {"before": options.part, **bounds}
    workers = {name: Worker(name, shape, 1, options.device, 2 if options.tiny else 10) for name in names}
    turns: dict[str, list[Row]] = {name: [] for name in names}
    for _ in range(1 if options.tiny else 5):
        for name, worker in list(workers.items()):
            try:
                turns[name].append(worker.turn())
            except ChildProcessError:
                yield {"step": name, "failed": "its process ended"}
                del workers[name]
    for worker in workers.values():
        worker.close()
    medians = {name: statistics.median(t["seconds"] for t in told) for name, told in turns.items() if told}
    theirs = [rate for name, rate in medians.items() if not name.startswith(("saelab", "product"))]
    for name, seconds in medians.items():
        row: Row = {"step": name, "ms": round(1e3 * seconds, 3), "rows/s": round(n / seconds)}
        if "product:bfloat16" in medians:
            row["share of product"] = round(medians["product:bfloat16"] / seconds, 3)
        if name.startswith("saelab") and theirs:
            row["x best other"] = round(min(theirs) / seconds, 2)
        row["peak MB"] = round(max(t["held"] + t["bytes"] for t in turns[name]) / 1e6)
        yield row


def memory(options: argparse.Namespace) -> Iterator[Row]:
    """What a step takes at most, where a matrix of pre-activations would be the largest part of it."""
    import torch

    import saelab

    for d_in, d_sae, k, n in (
        [TINY] if options.tiny else [(2_304, 131_072, 64, 8_192), (768, 1_048_576, 32, 8_192)]
    ):
        bounds = floors(options, 2.0 * n * d_in * d_sae, 8.0 * 8 * d_in * d_sae)
        yield {"before": f"d_sae {d_sae}", **bounds}
        rows = torch.randn(2 * n, d_in, device=options.device)
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        config = saelab.recipe("topk", d_in=d_in, d_sae=d_sae, k=k, dead_after=10**12)
        saelab.train(
            config, rows, steps=3, batch_size=n, precision="bfloat16", device=options.device, progress=False
        )
        peak = torch.cuda.max_memory_allocated() if options.device == "cuda" else float("nan")
        yield {
            "d_sae": d_sae, "weights, gradients, moments MB": round(32 * d_in * d_sae / 1e6),
            "codes as a matrix MB": round(4 * n * d_sae / 1e6), "peak MB": peak / 1e6,
        }  # fmt: skip


def passes(options: argparse.Namespace) -> Iterator[Row]:
    """A harvest, or an index, beside the pass that stops at the layer that is read."""
    import torch
    from harvest import prepared
    from index import make_sae, make_subject, take

    import saelab

    index = options.part == "index"
    if options.tiny:
        shape, layer, n, d_sae, k = (2, 16, 2, 64), 0, 200, 64, 2
    else:
        shape, layer, n, d_sae, k = (12, 768, 12, 256), 6, 1_000_000 if index else 300_000, 24_576, 32
    hook = f"blocks.{layer}.hook_resid_post"
    subject = make_subject(*shape)
    subject.model.to(options.device)
    texts = take(subject, n)
    inputs = prepared(subject, texts)
    sae = make_sae(subject, hook, d_sae, k).to(options.device)
    W_enc = sae.W_enc.detach()

    def floor() -> None:
        for batch in inputs:
            rows = subject.run(batch, read=[hook], output=False).acts[hook].flatten(0, 1)
            if index:
                torch.mm(rows, W_enc)

    weights = 12 * shape[1] ** 2 * (layer + 1)
    operations = 2.0 * n * (weights + index * shape[1] * d_sae)
    bounds = floors(options, operations, 4.0 * n * (shape[1] + index * d_sae))
    yield {"before": options.part, **bounds}
    ratios, rates = [], []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for i in range(1 if index or options.tiny else 3):
            base = elapsed(floor, options.device)
            out = Path(folder) / str(i)
            if index:
                took = elapsed(
                    partial(saelab.index, subject, sae, texts, out, progress=False), options.device
                )
            else:
                took = elapsed(
                    partial(saelab.harvest, subject, texts, [hook], out, progress=False), options.device
                )
            ratios.append(took / base)
            rates.append(n / took)
    name = "index / (pass + product)" if index else "pass / harvest"
    ratio = statistics.median(ratios)
    yield {"rows/s": round(statistics.median(rates)), name: round(ratio if index else 1 / ratio, 3)}


def elapsed(call: Callable[[], object], device: str) -> float:
    """Seconds of a call and of all that it left to the device."""
    import torch

    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def milliseconds(call: Callable[[], object], device: str, once: bool = False) -> float:
    """Of a call: the median of some, after one that warms up; once: of that one."""
    first = elapsed(call, device)
    return 1e3 * (first if once else statistics.median(elapsed(call, device) for _ in range(20)))


def _short(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "card": card, "tests": tests, "kernels": kernels, "train-small": train, "train-large": train,
    "memory": memory, "harvest": passes, "index": passes,
}  # fmt: skip


if __name__ == "__main__":
    main()
