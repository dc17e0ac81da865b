"""How well a run survives `kill -9`: killed at random times, continued, compared bit for bit.

python benchmarks/kill.py [--times 20] [--seed 0] [--what train|stream|append]

A killed run is started again until it has been killed `times` times over one or more runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from killing import PROGRAMS, finish, killed_runs


def main() -> None:
    parser = argparse.ArgumentParser(description="How well a run survives kill -9")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--what", choices=list(PROGRAMS), default="train")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        expected = finish(Path(folder) / "whole", options.what)
        kills = equal = runs = 0
        while kills < options.times:
            out = Path(folder) / f"run-{runs}"
            left_over = min(5, options.times - kills)
            printed, left = killed_runs(out, left_over, options.seed + runs, options.what)
            kills, runs, equal = kills + len(left), runs + 1, equal + (printed == expected)
            print(f"run {runs}: killed at {', '.join(left)}; equal: {printed == expected}")
    print(f"{kills} kills, {equal} of {runs} runs end bit-equal to the uninterrupted one")
    sys.exit(equal != runs)


if __name__ == "__main__":
    main()
