"""What a TopK training step costs, as a multiple of the one dense product x @ W_enc that it cannot avoid.

python benchmarks/train.py [--parts] [--rounds 5] [--threads 1] [--out train.json]
    [--shape d_in,d_sae,k,batch ...]

Ours is `saelab.train` as it stands (batch gathering, encoding, top-k, sparse decoding, gradients, unit-norm
rules, clipping, Adam), on rows where no latent is dead. The plain one is the same mathematics as one would
write it down: torch.topk, a dense code matrix, autograd, fused Adam. All are timed in turns; figures are
medians over rounds. --parts compares ways of decoding and of selecting instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import saelab
from saelab.sae import SAE, kernels

SHAPES = ["128,1024,16,2048", "256,4096,32,2048", "512,8192,32,2048", "768,16384,64,1024"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", action="store_true", help="compare decoders and top-k selections")
    parser.add_argument("--shape", nargs="+", default=SHAPES, metavar="d_in,d_sae,k,batch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    for shape in options.shape:
        d_in, d_sae, k, batch = map(int, shape.split(","))
        measure = measure_parts if options.parts else measure_steps
        figures = measure(d_in, d_sae, k, batch, options.rounds)
        base = figures["x @ W_enc"]
        print(f"d_in {d_in}, d_sae {d_sae}, k {k}, batch {batch}")
        for name, times in figures.items():
            ratios = [t / b for t, b in zip(times, base, strict=True)]
            print(
                f"  {name:28} {statistics.median(times) * 1e3:9.2f} ms   {statistics.median(ratios):7.3f} x"
                f"   [{min(ratios):.3f} .. {max(ratios):.3f}]"
            )
        results[shape] = figures
    if options.out:
        options.out.write_text(json.dumps({"threads": options.threads, "seconds": results}, indent=2))


def measure_steps(d_in: int, d_sae: int, k: int, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a step."""
    rows = torch.randn(4 * batch, d_in) + 1
    plain = PlainTopK(d_in, d_sae, k)
    sae = SAE.create(saelab.recipe("topk", d_in=d_in, d_sae=d_sae, k=k), 0, rows)
    x, W_enc = rows[:batch], sae.W_enc.detach()
    steps = max(3, 2**27 // (batch * d_sae))
    return timed(
        {
            "x @ W_enc": lambda: [x @ W_enc for _ in range(steps)] and steps,
            "encode_sparse": lambda: [sae.encode_sparse(x) for _ in range(steps)] and steps,
            "saelab.train": lambda: train_ours(rows, d_sae, k, batch, steps),
            "plain dense step": lambda: [plain.step(x) for _ in range(steps)] and steps,
        },
        rounds,
    )


def measure_parts(d_in: int, d_sae: int, k: int, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a call, on the pre-activations of one batch."""
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
    return timed({name: lambda call=call: [call()] and 1 for name, call in calls.items()}, rounds)


def timed(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds a unit of work, each call in turn in each round, after one round that is thrown away."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            done = call()
            seconds = (time.perf_counter() - start) / done
            if i:
                found[name].append(seconds)
    return found


def train_ours(rows: Tensor, d_sae: int, k: int, batch: int, steps: int) -> float:
    """Runs `steps` steps; what it returns scales the whole call's time to that of the steps alone."""
    at: dict[str, float] = {}
    config = saelab.recipe("topk", d_in=rows.shape[1], d_sae=d_sae, k=k, dead_after=10**9)
    begin = time.perf_counter()
    saelab.train(
        config,
        rows,
        steps=steps,
        batch_size=batch,
        log_every=steps,
        progress=False,
        callbacks=[lambda event: at.setdefault(event.name, time.perf_counter())],
    )
    end = time.perf_counter()
    return steps * (end - begin) / (at["end"] - at["start"])


class PlainTopK:
    """TopK training as one would write it down."""

    def __init__(self, d_in: int, d_sae: int, k: int) -> None:
        self.k = k
        self.W_dec = nn.Parameter(F.normalize(torch.randn(d_sae, d_in), dim=1))
        self.W_enc = nn.Parameter(self.W_dec.detach().t().contiguous())
        self.b_enc, self.b_dec = nn.Parameter(torch.zeros(d_sae)), nn.Parameter(torch.zeros(d_in))
        self.parameters = [self.W_enc, self.b_enc, self.W_dec, self.b_dec]
        self.optimizer = torch.optim.Adam(self.parameters, lr=1e-3, fused=True)

    def step(self, x: Tensor) -> None:
        values, indices = ((x - self.b_dec) @ self.W_enc + self.b_enc).topk(self.k, dim=1)
        codes = x.new_zeros(len(x), len(self.W_dec)).scatter(1, indices, values.relu())
        loss = (codes @ self.W_dec + self.b_dec - x).square().sum() / len(x)
        self.optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            grad, rows = self.W_dec.grad, self.W_dec
            assert grad is not None
            grad -= (grad * rows).sum(1, keepdim=True) * rows
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            rows /= rows.norm(dim=1, keepdim=True)


if __name__ == "__main__":
    main()
