"""What starting costs: the command line, `import saelab`, the embedded Lab, its first heatmap and cards.

python benchmarks/start.py [--rounds 5] [--record start]

Every round is a new interpreter; figures are medians over rounds, in seconds. Of commands, all of the process
counts; `import` is measured inside the interpreter, so that Python's own start does not. "read for 6 s" opens
a Lab as a notebook does, and waits before it asks for a heatmap.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from results import record

CLOCK = """
import json, sys, time
clock = time.perf_counter
def lap(name, since):
    found[name] = clock() - since
found = {}
"""
CARD = f"""{CLOCK}
t = clock(); import saelab; lap("import", t)
heavy = [m for m in ("torch", "transformers", "matplotlib") if m in sys.modules]
assert not heavy, heavy
lab = saelab.Lab.embedded(); lab.feature(3); lap("import, Lab.embedded(), lab.feature(3)", t)
print(json.dumps(found))
"""
LAB = f"""{CLOCK}
import saelab
t = clock(); lab = saelab.Lab.embedded(); lap("Lab.embedded()", t)
t = clock(); lab.features(); lap("lab.features()", t)
t = clock(); lab.card(3); lap("first card", t)
later = []
for j in range(100, 200):
    t = clock(); lab.card(j); later.append(clock() - t)
found["card"] = sorted(later)[50]
t = clock(); lab.tokens("Rosa gave the basket to Tobin."); lap("first heatmap (loads the model)", t)
t = clock(); lab.tokens("Tobin gave the lamp to Rosa."); lap("heatmap", t)
print(json.dumps(found))
"""
READ = f"""{CLOCK}
import saelab
t = clock(); lab = saelab.Lab.embedded(preload=True); lap("Lab.embedded(preload=True)", t)
t = clock(); lab.feature(3); lap("first card meanwhile", t)
time.sleep(6)
t = clock(); lab.tokens("Rosa gave the basket to Tobin."); lap("first heatmap, read for 6 s", t)
print(json.dumps(found))
"""


def commands() -> list[list[str]]:
    """Of the command line: help of every command, and what the shipped folders are."""
    from saelab import cli, embedded

    folders = (embedded.sae_folder(), embedded.store_folder(), embedded.model_folder())
    helps = [["--help"], *([name, "--help"] for name in cli.COMMANDS)]
    return [*helps, *(["info", str(folder)] for folder in folders)]


def measured() -> dict[str, float]:
    """One round."""
    found = {}
    for arguments in commands():
        started = time.perf_counter()
        program = "import sys; from saelab.cli import main; sys.exit(main())"
        subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, check=True)
        found["saelab " + " ".join("/".join(Path(each).parts[-2:]) for each in arguments)] = (
            time.perf_counter() - started
        )
    for program in (CARD, LAB, READ):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What starting costs")
    parser.add_argument("--record", metavar="NAME", help="keep the figures as benchmarks/results/NAME.json")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rounds = [measured() for _ in range(options.rounds)]
    results = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    for name, value in results.items():
        print(f"{name:44} {value:8.4f} s")
    if options.record:
        rows = [{"what": name, "seconds": round(value, 4)} for name, value in results.items()]
        record(options.record, rows, rounds=options.rounds)


if __name__ == "__main__":
    main()
