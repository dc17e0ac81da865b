"""How long two stores are compared, by decoder direction and by co-firing.

python benchmarks/compare.py [--d-sae 65536] [--rows 100000] [--l0 32] [--width 64] [--rounds 3] [--record]

Codes and directions are drawn, see benchmarks/store_scale.py, both stores over the same rows; nothing is
planted. CPU time of the whole process and wall time, medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from results import record
from store_scale import draw

from saelab.stores import FeatureStore


def main() -> None:
    parser = argparse.ArgumentParser(description="How long two stores are compared")
    parser.add_argument("--d-sae", type=int, default=65_536)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--l0", type=int, default=32)
    parser.add_argument("--width", type=int, default=64, help="of directions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep the two stores there, or take them from there")
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        stores = []
        for seed in (1, 2):
            folder = (options.folder or Path(scratch)) / str(seed)
            if not folder.exists():
                draw(folder, options.rows, options.d_sae, options.l0, options.width, seed)
            stores.append(FeatureStore.open(folder))
        wall, cpu = [], []
        for _ in range(options.rounds):
            start = time.perf_counter(), time.process_time()
            stores[0].compare(stores[1])
            wall.append(time.perf_counter() - start[0])
            cpu.append(time.process_time() - start[1])
    row = {
        "latents": options.d_sae,
        "rows": options.rows,
        "L0": options.l0,
        "width": options.width,
        "threads": options.threads,
        "seconds": statistics.median(wall),
        "seconds of CPU": statistics.median(cpu),
    }
    print(row)
    if options.record:
        record("compare", [row], rounds=options.rounds)


if __name__ == "__main__":
    main()
