"""What a few rows of outlier norm do to an SAE of SmolLM2-135M-Instruct, and what max_norm=10 does about it.

python benchmarks/outliers.py [--rows 24000] [--steps 300] [--seeds 2] [--record NAME]

A batchtopk SAE at block 12, plain and with max_norm=10, by seed, judged on WikiText that it has not seen.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from promises import real_texts
from promises.real_texts import real_models
from results import record

import saelab

HOOK = "blocks.12.hook_resid_post"
SCORES = ("fvu", "fvu_ordinary", "loss_recovered", "l0", "dead")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=24_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--record", help="keep the figures as benchmarks/results/NAME.json")
    options = parser.parse_args()
    if reason := real_texts.missing():
        print(f"Left out: {reason}")
        return
    torch.set_num_threads(1)
    subject = saelab.load_subject(real_models.smollm2_file(), progress=False)
    held = real_texts.paragraphs(held_out=True)
    config = saelab.recipe("batchtopk", d_in=subject.width(HOOK), d_sae=2048, k=32, hook=HOOK)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        acts = saelab.harvest(
            subject,
            list(real_texts.mixture()),
            [HOOK],
            f"{folder}/acts",
            max_rows=options.rows,
            progress=False,
        )
        for norm in (None, 10.0):
            runs = saelab.train(
                config, acts, steps=options.steps, batch_size=1024, seeds=list(range(options.seeds)),
                max_norm=norm, progress=False,
            )  # fmt: skip
            for run in runs:
                report = saelab.evaluate(run.sae, subject, held, max_rows=4_000)
                told = {"max_norm": norm, "seed": run.settings.seed, "training FVU": run.history[-1].fvu}
                told["left out"] = (run.provenance["outliers"] or {}).get("left_out", 0)
                for name in SCORES:
                    score = report.scores[name]
                    low, high = score.interval
                    value = {"value": score.value, "from": low, "to": high, "control": score.control}
                    rows.append({**told, "score": name, **value})
                print(told, *(f"{r['score']} {r['value']:.4f}" for r in rows[-len(SCORES) :]), flush=True)
                print(report.core.tables["outliers"], flush=True)
    if options.record:
        record(options.record, rows, threads=1, rows_read=options.rows, steps=options.steps)


if __name__ == "__main__":
    main()
