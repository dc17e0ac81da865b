"""What training an archetypal SAE of 32,000 latents takes: the whole mixing matrix, and a sparse one.

python benchmarks/archetypal_memory.py [--d-sae 32000] [--candidates 32000] [--mixed 32] [--d-in 768]

Trains a few steps in a process of its own and prints the peak of its resident memory less that of a process
that has loaded torch and saelab; of the whole matrix only what the weights, gradients and moments are.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

import saelab
from saelab.training import estimate


def config_of(options: argparse.Namespace, mixed: int | None) -> saelab.SAEConfig:
    return saelab.recipe(
        "archetypal", d_in=options.d_in, d_sae=options.d_sae, k=32, candidates=options.candidates, mixed=mixed
    )


def trained(options: argparse.Namespace) -> None:
    """In the process that is measured."""
    torch.set_num_threads(1)
    rows = torch.randn(options.candidates + 1_000, options.d_in)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.thread_time()
    run = saelab.train(
        config_of(options, options.mixed), rows, steps=options.steps, batch_size=256, progress=False
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    part = run.sae.dictionary
    outside = (part() / part.g.exp() - part.mixtures()).norm(dim=1) - part.delta
    told = {
        "GB": (peak - before) / 2**20, "seconds": time.thread_time() - begin,
        "rows of W sum to 1 within": float((part.W.sum(1) - 1).abs().max()),
        "outside of delta by": float(outside.max()),
    }  # fmt: skip
    print(json.dumps(told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (
        ("d-sae", 32_000),
        ("candidates", 32_000),
        ("mixed", 32),
        ("d-in", 768),
        ("steps", 5),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--inside", action="store_true")
    options = parser.parse_args()
    if options.inside:
        trained(options)
        return
    for mixed in (None, options.mixed):
        needed = estimate(config_of(options, mixed), steps=options.steps, batch_size=256)
        print(f"mixed={mixed}: estimated {needed.memory / 2**30:.2f} GB")
    found = subprocess.run(
        [sys.executable, *sys.argv, "--inside"], check=True, capture_output=True, text=True
    )
    print(f"mixed={options.mixed}: measured {found.stdout.strip()}")


if __name__ == "__main__":
    main()
