"""Tokens a second and peak memory of a TopK training step on a GPU, ours beside sparsify's and SAELens'.

benchmarks/peers/install.sh
python benchmarks/train_gpu.py [--rounds 5] [--batch 8192] [--k 32] [--out train_gpu.json]

The loops and their rows are those of benchmarks/train.py, one library after another. sparsify and SAELens
compute in bfloat16 under autocast, by default or by their option; ours in float32 and in bfloat16. Memory is
the peak of what torch allocates, weights and Adam's moments included. Without a GPU it says so and ends. Its
figures are still missing: it has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from train import PEERS, Worker

SHAPES = [(d_in, d_sae) for d_in in (768, 2304) for d_sae in (24_576, 131_072)]
TURN = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
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
        *(["sparsify", "saelens"] if PEERS.exists() else []),
    ]
    found: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, **vars(options)}
    print("| d_in | d_sae | | tokens/s | range | GB |\n|---:|---:|---|---:|---|---:|")
    for d_in, d_sae in SHAPES:
        for name in names:
            turns = measure(name, f"{d_in},{d_sae},{options.k},{options.batch}", options.rounds)
            rates = [options.batch / turn["seconds"] for turn in turns]
            peak = max((turn["held"] + turn["bytes"] for turn in turns), default=0.0)
            said = (
                f"{statistics.median(rates):,.0f} | {min(rates):,.0f} .. {max(rates):,.0f} | {peak / 1e9:.2f}"
                if turns
                else "failed, see stderr | | "
            )
            print(f"| {d_in} | {d_sae} | {name} | {said} |", flush=True)
            found[f"{d_in},{d_sae},{name}"] = turns
    if options.out:
        options.out.write_text(json.dumps(found, indent=2, default=str))


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
