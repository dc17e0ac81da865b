"""What starting costs: `import saelab`, the embedded Lab, its first heatmap, the first and later cards.

python benchmarks/start.py [--out start.json] [--rounds 5]

Every round is a new interpreter; figures are medians over rounds, in seconds. `import` is measured inside the
interpreter, so that Python's own start does not count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, sys, time
clock = time.perf_counter
def lap(name, since):
    found[name] = clock() - since
found = {}
t = clock(); import saelab; lap("import", t)
heavy = [m for m in ("torch", "transformers", "matplotlib") if m in sys.modules]
assert not heavy, heavy
t = clock(); lab = saelab.Lab.embedded(); lap("Lab.embedded()", t)
t = clock(); lab.features(); lap("lab.features()", t)
t = clock(); saelab.analysis.card(lab.store, 3); lap("first card", t)
later = []
for j in range(100, 200):
    t = clock(); saelab.analysis.card(lab.store, j); later.append(clock() - t)
found["card"] = sorted(later)[50]
t = clock(); lab.tokens("Rosa gave the basket to Tobin."); lap("first heatmap (loads the model)", t)
t = clock(); lab.tokens("Tobin gave the lamp to Rosa."); lap("heatmap", t)
print(json.dumps(found))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="What starting costs")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rounds = []
    for _ in range(options.rounds):
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
        rounds.append(json.loads(done.stdout.splitlines()[-1]))
    results = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    for name, value in results.items():
        print(f"{name:34} {value:8.4f} s")
    if options.out:
        options.out.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
