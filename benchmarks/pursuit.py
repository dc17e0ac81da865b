"""What gradient pursuit costs in batches, beside the same row after row.

python benchmarks/pursuit.py [--rounds 5] [--record NAME]

Both on one thread, in turns, on random rows and directions; the loop (tests/pursued.py) on a few of the rows,
since it takes long. Processor time a row, medians over rounds; ranges of the ratio are those of all rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from results import record

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from pursued import plain

from saelab.analysis import gradient_pursuit

SHAPES = ((128, 1024, 16, 4096), (128, 4096, 16, 2048), (576, 4096, 32, 1024), (768, 16384, 64, 512))
"""width, directions, k, rows"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", help="keep the figures as benchmarks/results/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for width, m, k, n in SHAPES:
        rng = torch.Generator().manual_seed(0)
        directions, x = torch.randn(m, width, generator=rng), torch.randn(n, width, generator=rng)
        few = x[: max(8, n // 64)]
        alike = float((torch.from_numpy(gradient_pursuit(few, directions, k).dense())
                       - plain(few, directions, [k] * len(few))).abs().max())  # fmt: skip
        ours, loop = [], []
        for _ in range(options.rounds):
            ours.append(took(gradient_pursuit, x, directions, k) / n)
            loop.append(took(plain, few, directions, [k] * len(few)) / len(few))
        ratios = [b / a for a, b in zip(ours, loop, strict=True)]
        rows.append({
            "d": width, "directions": m, "k": k, "us a row": 1e6 * statistics.median(ours),
            "loop, us a row": 1e6 * statistics.median(loop), "x": statistics.median(ratios),
            "least": min(ratios), "most": max(ratios), "largest difference": alike,
        })  # fmt: skip
        print(" ".join(f"{key} {value:,.4g}" for key, value in rows[-1].items()), flush=True)
    if options.record:
        record(options.record, rows, threads=1, rounds=options.rounds)


def took(what: Callable[..., object], *given: Any) -> float:
    """Seconds of this thread's processor time."""
    clock = time.thread_time()
    what(*given)
    return time.thread_time() - clock


if __name__ == "__main__":
    main()
