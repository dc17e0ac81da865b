"""Tokens a second and peak memory of a TopK training step on a GPU, ours beside sparsify's and SAELens'.

benchmarks/peers/install.sh
python benchmarks/train_gpu.py [--rounds 5] [--batch 8192] [--k 32] [--record train_gpu]

The loops and their rows are those of benchmarks/train.py, one library after another. sparsify and SAELens
compute in bfloat16 under autocast, by default or by their option; ours in float32 and in bfloat16. Memory is
the peak of what torch allocates, weights and Adam's moments included. Without a GPU it says so and ends. Its
figures are still missing: it has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from results import record
from train import PEERS, Worker, peers

SHAPES = [(d_in, d_sae) for d_in in (768, 2304) for d_sae in (24_576, 131_072)]
TURN = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", metavar="NAME", help="keep the figures as benchmarks/results/NAME.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--k", type=int, default=32)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("No GPU here: nothing was measured.")
        return
    names = [
        "product",
        "saelab:topk",
        "saelab:topk:bfloat16",
        *(["sparsify:topk", "saelens:topk"] if PEERS.exists() else []),
    ]
    rows: list[dict[str, Any]] = []
    for d_in, d_sae in SHAPES:
        for name in names:
            turns = measure(name, f"{d_in},{d_sae},{options.k},{options.batch}", options.rounds)
            row: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "name": name}
            if turns:
                rates = [options.batch / turn["seconds"] for turn in turns]
                row["tokens/s"] = round(statistics.median(rates))
                row["range"] = f"{min(rates):,.0f} .. {max(rates):,.0f}"
                row["GB"] = round(max(turn["held"] + turn["bytes"] for turn in turns) / 1e9, 2)
            else:
                row["range"] = "failed, see stderr"
            rows.append(row)
            print(" | ".join(str(value) for value in row.values()), flush=True)
    if options.record:
        record(options.record, rows, k=options.k, batch=options.batch, versions=peers())


def measure(name: str, shape: str, rounds: int) -> list[dict[str, float]]:
    """What each turn took; none where the library failed, out of memory for one."""
    try:
        worker = Worker(name, shape, threads=torch.get_num_threads(), device="cuda", turn=TURN)
        turns = [worker.turn() for _ in range(rounds)]
    except ChildProcessError:
        return []
    worker.close()
    return turns


if __name__ == "__main__":
    main()
