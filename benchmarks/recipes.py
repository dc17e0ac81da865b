"""Which recipes find features that are known, beside the untrained SAE.

python benchmarks/recipes.py [topk relu:l1=0.3 ...] [--data even uneven signed tree correlated] [--seeds 3]
    [--steps 1200] [--out recipes.json] [--log docs/results/recovery.md]

A recipe is a name of `saelab.recipes()` and options (d_sae among them), `name:option=value,option=value`;
where it has an option k that is not given, k is the true number of active features, rounded up. Each seed
draws its own features, rows and weights. Figures are means over seeds with their standard deviation, on
held-out rows; features are matched to latents one to one. The table is Markdown; --log appends it to a file.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from promises.report import spread

import saelab
from saelab.analysis import Recovery, RecoveryScores, recovery
from saelab.corpora import Synthetic, synthetic
from saelab.sae import recipe_options

D_IN, D_SAE, ROWS, BATCH = 48, 256, 100_000, 512
DATA: dict[str, dict[str, Any]] = {
    "even": {"n_features": 128, "active": 4, "exact": True},
    "uneven": {"n_features": 128, "active": 3.5, "zipf": 1.0, "difficulty_spread": 0.7},
    "signed": {"n_features": 64, "active": 4, "exact": True, "signed": True},
    "tree": {"n_features": 25, "active": 2, "coherence": "orthonormal", "branching": (4,)},
    "correlated": {"n_features": 128, "active": 4, "exact": True, "coherence": 0.5, "groups": 16},
}
COLUMNS = {
    "recovered_80": "cos >= .8", "recovered_90": ">= .9", "recovered_95": ">= .95", "fvu": "FVU", "l0": "L0",
    "l0_correlation": "corr(L0, true)", "dead": "dead",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=["topk", "relu:l1=0.3"], metavar="name:option=value")
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=["even", "uneven"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write every figure of every seed as JSON")
    parser.add_argument("--log", type=Path, help="append the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    begin = time.perf_counter()
    results = {
        data: {
            spec: [measure(data, spec, seed, options.steps) for seed in range(options.seeds)]
            for spec in options.recipes
        }
        for data in options.data
    }
    lines = table(results)
    print("\n".join(lines))
    print(f"\n{time.perf_counter() - begin:.0f} s")
    if options.out:
        plain = {
            data: {spec: [as_plain(r) for r in runs] for spec, runs in by.items()}
            for data, by in results.items()
        }
        options.out.write_text(json.dumps({"steps": options.steps, "results": plain}, indent=2))
    if options.log:
        with options.log.open("a", encoding="utf-8") as file:
            file.write("\n" + "\n".join(lines) + "\n")


def measure(data: str, spec: str, seed: int, steps: int) -> Recovery:
    """Train one SAE on data of its own and score it."""
    truth = synthetic(D_IN, seed=seed, **DATA[data])
    config = config_of(spec, truth)
    run = saelab.train(
        config, truth.rows(ROWS).acts, steps=steps, batch_size=BATCH, seed=seed, progress=False
    )
    return recovery(run.sae, truth, seed=seed)


def config_of(spec: str, truth: Synthetic) -> saelab.SAEConfig:
    """The config of `name:option=value,option=value`."""
    name, _, rest = spec.partition(":")
    chosen = dict(pair.split("=", 1) for pair in rest.split(",") if pair)
    values = {key: literal(value) for key, value in chosen.items()}
    if "k" in recipe_options(name):
        values.setdefault("k", math.ceil(truth.active))
    return saelab.recipe(name, **{"d_in": D_IN, "d_sae": D_SAE, **values})


def literal(text: str) -> Any:
    """A Python value, or the text itself where it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def table(results: dict[str, dict[str, list[Recovery]]]) -> list[str]:
    """Markdown, a block of rows for each data set: each recipe, its untrained SAE, and the truth."""
    lines = [
        f"| data | SAE | {' | '.join(COLUMNS.values())} |",
        f"|---|---|{'---:|' * len(COLUMNS)}",
    ]
    for data, by in results.items():
        for spec, runs in by.items():
            lines.append(row(data, spec, [r.sae for r in runs]))
            lines.append(row(data, f"{spec}, untrained", [r.untrained for r in runs]))
        runs = next(iter(by.values()))
        cells = {"fvu": spread([r.fvu_true for r in runs]), "l0": spread([r.l0_true for r in runs])}
        lines.append(f"| {data} | the truth | {' | '.join(cells.get(name, '') for name in COLUMNS)} |")
    return lines


def row(data: str, name: str, scores: list[RecoveryScores]) -> str:
    cells = [spread([getattr(s, column) for s in scores]) for column in COLUMNS]
    return f"| {data} | {name} | {' | '.join(cells)} |"


def as_plain(result: Recovery) -> dict[str, Any]:
    """Every figure of one seed; NaN becomes None."""

    def plain(scores: RecoveryScores) -> dict[str, float | None]:
        return {k: None if math.isnan(v) else v for k, v in asdict(scores).items()}

    return {
        "l0_true": result.l0_true,
        "fvu_true": result.fvu_true,
        "sae": plain(result.sae),
        "untrained": plain(result.untrained),
    }


if __name__ == "__main__":
    main()
