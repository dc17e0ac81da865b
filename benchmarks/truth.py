"""Does each architecture recover what its paper says that it recovers, on data whose features are known?

python benchmarks/truth.py [choice abs_topk top_afa matryoshka gba archetypal variational revival tiers poles
    topics special smollm2_tiers smollm2_special blindspots outside
    hierarchy others]
    [--seeds N] [--out truth.json] [--log docs/results/NAME.md]

Each experiment is a module of `promises`, which names its data, its arms and its bars. It prints a Markdown
table (means over seeds with their standard deviation, the untrained SAE beside), then each promise with its
bar and PASS or FALLS SHORT: a promise is kept where every seed keeps it, or, where it says so, their mean.
--log appends to a file, --out writes the figures of every seed as JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path

import torch

NAMES = (
    "choice",
    "abs_topk",
    "top_afa",
    "matryoshka",
    "gba",
    "archetypal",
    "variational",
    "revival",
    "tiers",
    "poles",
    "topics",
    "special",
    "smollm2_tiers",
    "smollm2_special",
    "blindspots",
    "outside",
    "hierarchy",
    "others",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="experiment", help=f"of {', '.join(NAMES)}; all by default"
    )
    parser.add_argument("--seeds", type=int, help="by default what the promise asks for, 3 or more")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write every figure of every seed as JSON")
    parser.add_argument("--log", type=Path, help="append the tables to this file")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown experiment {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    torch.set_num_threads(options.threads)
    figures = {}
    for name in options.names or NAMES:
        begin = time.perf_counter()
        module = importlib.import_module(f"promises.{name}")
        if reason := getattr(module, "missing", lambda: "")():
            print(f"{name} is left out: {reason}\n", flush=True)
            continue
        report = module.measure(range(options.seeds or module.SEEDS))
        text = "\n".join(report.lines(f"`python benchmarks/truth.py {name}`"))
        print(f"{text}\n\n({time.perf_counter() - begin:.0f} s)\n", flush=True)
        figures[name] = report.plain()
        if options.log:
            with options.log.open("a", encoding="utf-8") as file:
                file.write(f"\n{text}\n")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
