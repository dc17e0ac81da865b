"""FAST on a real instruct model: does it matter how dialogues are packed before an SAE is trained on them?

python benchmarks/packing_real.py [--seeds 3] [--rows 60000] [--steps 1000] [--d-sae 2048] [--record]

The arms of `packing.py` on SmolLM2-135M-Instruct at `blocks.12.hook_resid_post`: real dialogues in the
model's own template, each alone (FAST, arXiv 2506.07691); the same in blocks of 1,024 tokens that see each
other (BT); paragraphs and tweets in such blocks (BT on plain text); and dialogues in blocks that see only
themselves. Equal rows, steps and L0; seeds are of weights and order. Scored on held-out dialogues, each
alone, beside an untrained SAE. The model gives first tokens some hundred times the norm of all others
(sinks): they would be nearly all of any sum, so rows of more than ten times the median norm stand apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packing import ARMS
from promises import real_texts
from promises.real_texts import real_models
from results import record

import saelab
from saelab.analysis.controls import untrained
from saelab.harvesting.batches import batches
from saelab.types import HookPoint

HOOK = "blocks.12.hook_resid_post"
N_CTX, K, BATCH = 1024, 32, 512
SINK = 10
"""Times the median norm from which on a row is one."""
KINDS = ("all", "special", "other", "sinks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--d-sae", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results")
    options = parser.parse_args()
    if reason := real_texts.missing():
        print(f"Left out: {reason}")
        return
    torch.set_num_threads(options.threads)
    subject = saelab.load_subject(real_models.smollm2_file(), n_ctx=N_CTX, progress=False)
    clock = time.process_time()
    data: dict[str, Any] = {
        "chat": saelab.corpora.dialogues(real_texts.dialogues(held_out=False)),
        "plain": list(real_texts.mixture()),
    }
    held_out = _held_out(subject)
    rows_of = {
        name: _rows(subject, data[kind], packing, options.rows) for name, (packing, kind) in ARMS.items()
    }
    found: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for name, rows in rows_of.items():
            config = saelab.recipe(
                "topk", d_in=subject.width(HOOK), d_sae=options.d_sae, k=K, hook=HOOK, normalise="sphere"
            )
            run = saelab.train(config, rows, steps=options.steps, batch_size=BATCH, seed=seed, progress=False)
            found.append({"trained on": name, "seed": seed, **scored(run.sae.eval(), held_out)})
            if name == next(iter(ARMS)):
                control = untrained(run.sae, rows[:4096], seed=seed)
                found.append({"trained on": "untrained", "seed": seed, **scored(control, held_out)})
            print(
                {key: value for key, value in found[-1].items() if "FVU" in key or key == "trained on"},
                flush=True,
            )
    print("\n".join(table(found)))
    print("\n".join(differences(found)))
    print(f"{time.process_time() - clock:.0f} s of processor time")
    if options.record:
        facts = {"rows of an arm": options.rows, "steps": options.steps, "d_sae": options.d_sae, "k": K}
        record("packing-smollm2", found, hook=HOOK, n_ctx=N_CTX, **facts)


def _rows(subject: Any, corpus: Any, packing: str, n: int) -> torch.Tensor:
    """[n width]: the first rows of a corpus, read so."""
    with tempfile.TemporaryDirectory() as place:
        acts = saelab.harvest(
            subject, corpus, [HOOK], Path(place) / "acts", max_rows=n, packing=packing, include_bos=True,
            progress=False,
        )  # fmt: skip
        assert len(acts) == n, f"{packing}: {len(acts):,} rows of {n:,}: pass fewer --rows"
        return acts.acts(range(n), HOOK).clone()


def _held_out(subject: Any) -> dict[str, Any]:
    """Rows of held-out dialogues, each alone, and which are of which kind."""
    corpus = saelab.corpora.dialogues(real_texts.dialogues(held_out=True))
    parts = list(batches(subject, corpus, [HookPoint(HOOK)], packing="dialogue", include_bos=True))
    x = torch.cat([part.acts[HOOK] for part in parts])
    special = np.concatenate([part.rows.special for part in parts])
    norms = x.norm(dim=1)
    sinks = (norms > SINK * norms.median()).numpy()
    masks = {"all": ~sinks, "special": special & ~sinks, "other": ~special & ~sinks, "sinks": sinks}
    return {"x": x, **{kind: torch.from_numpy(mask) for kind, mask in masks.items()}}


def scored(sae: Any, rows: dict[str, Any]) -> dict[str, float]:
    """MSE of an element in raw units, FVU about the mean of the kind's rows, and L0, of each kind."""
    with torch.no_grad():
        passes = [sae(part) for part in rows["x"].split(2048)]
    x_hat, on = (
        torch.cat([f(each) for each in passes]) for f in (lambda p: p.x_hat, lambda p: (p.codes != 0).sum(1))
    )
    found = {}
    for kind in KINDS:
        x, y = rows["x"][rows[kind]].double(), x_hat[rows[kind]].double()
        found[f"MSE {kind}"] = float((x - y).square().mean())
        if kind != "sinks":  # the first token is the same in all dialogues
            found[f"FVU {kind}"] = float((x - y).square().sum() / (x - x.mean(0)).square().sum())
        found[f"L0 {kind}"] = float(on[rows[kind]].double().mean())
        found[f"rows {kind}"] = int(rows[kind].sum())
    return found


def table(found: list[dict[str, Any]]) -> list[str]:
    """Markdown: means over seeds with their standard deviation."""
    columns = ["MSE all", "FVU all", "L0 all", "MSE special", "FVU special", "MSE other", "MSE sinks"]
    lines = [f"| trained on | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name in dict.fromkeys(row["trained on"] for row in found):
        cells = []
        for column in columns:
            values = [row[column] for row in found if row["trained on"] == name]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            cells.append(f"{statistics.mean(values):.4g} ± {spread:.2g}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def differences(found: list[dict[str, Any]]) -> list[str]:
    """By how much each arm's MSE is above FAST's, of the same seed."""
    fast = {row["seed"]: row for row in found if row["trained on"] == next(iter(ARMS))}
    lines = []
    for name in list(ARMS)[1:]:
        for column in ("MSE all", "MSE special"):
            more = [row[column] / fast[row["seed"]][column] - 1 for row in found if row["trained on"] == name]
            lines.append(
                f"{name}: {column} {', '.join(f'{each:+.1%}' for each in more)} beside FAST, by seed"
            )
    return lines


if __name__ == "__main__":
    main()
