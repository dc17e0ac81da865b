"""Thousands of wrong arguments and damaged files: each is answered or refused by a SaelabError.

    python benchmarks/fuzz.py [--seeds 5000] [--first 0]

Prints each new kind of fault with the seed that finds it again, and how many were tried; ends with 1 where
there was one.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import fuzzing


def main() -> int:
    """Try them; the number of faults, at most 1."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=5000)
    options.add_argument("--first", type=int, default=0)
    given = options.parse_args()
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # names that are drawn lie here
        world = fuzzing.World(Path(folder) / "world")
        for attempt in (fuzzing.argument, fuzzing.file):
            start, before = time.perf_counter(), len(seen)
            for seed in range(given.first, given.first + given.seeds):
                fault = attempt(world, Path(folder) / "out", seed)
                place = fault.rsplit(" @ ", 1)[-1] if fault else ""
                if fault and place not in seen:
                    seen.add(place)
                    print(fault, flush=True)
            seconds = time.perf_counter() - start
            print(
                f"{attempt.__name__}: {given.seeds:,} in {seconds:.0f} s, {len(seen) - before} kinds of fault"
            )
    return int(bool(seen))


if __name__ == "__main__":
    sys.exit(main())
