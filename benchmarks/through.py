"""What fine-tuning through the model brings at equal L0, beside as many steps of the local loss.

python benchmarks/through.py [--steps 150] [--seeds 2] [--rank 16] [--real] [--record NAME]

The SAE of block 2 that ships with saelab, fine-tuned on documents like those that it was trained on, and
judged on others. With --real a batchtopk SAE of SmolLM2-135M-Instruct at block 12, trained first for 300
steps with max_norm=10 on 24,000 rows.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from typing import Any

import torch
from promises import real_texts
from promises.real_texts import real_models
from results import record

import saelab
from saelab.commands.build_embedded import mixture
from saelab.training import Objective, adapt, end_to_end

ARMS = {
    "local": Objective(weight=0.0),
    "KL as large as local": Objective(),
    "KL alone": Objective(weight=1.0, local=0.0),
    "its loss alone": Objective("ce", weight=1.0, local=0.0),
}
SCORES = ("kl", "loss_recovered", "loss", "fvu", "fvu_ordinary", "l0")
REAL_HOOK = "blocks.12.hook_resid_post"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--rank", type=int, default=16, help="of adapters of the model; 0 leaves them out")
    parser.add_argument("--real", action="store_true", help="on SmolLM2")
    parser.add_argument("--record", help="keep the figures as benchmarks/results/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.real and (reason := real_texts.missing()):
        print(f"Left out: {reason}")
        return
    subject, sae, texts, held = real() if options.real else embedded()
    rows = judged("as it was", 0, sae, subject, held, 0.0)
    for seed in range(options.seeds):
        for name in options.arms:
            began = time.process_time()
            run = end_to_end(
                sae.config, subject, texts, steps=options.steps, batch_size=options.batch, start=sae,
                seed=seed, objective=ARMS[name], lr=options.lr, documents=8,
                max_norm=10 if options.real else None, progress=False,
            )  # fmt: skip
            rows += judged(name, seed, run.sae, subject, held, time.process_time() - began)
        if options.rank:
            began = time.process_time()
            adapted = adapt(
                sae, subject, texts, steps=options.steps, rank=options.rank, documents=8, seed=seed,
                progress=False,
            )  # fmt: skip
            name, spent = f"adapters of rank {options.rank}", time.process_time() - began
            # its other scores are beside the adapted model without the SAE
            rows += judged(name, seed, sae, adapted.subject, held, spent, ("loss",))
    if options.record:
        record(options.record, rows, threads=1, steps=options.steps, batch=options.batch, lr=options.lr)


def embedded() -> tuple[Any, saelab.SAE, Any, Any]:
    sae = saelab.load_sae(saelab.embedded.sae_folder("blocks.2.hook_resid_post"))
    texts, held = (list(itertools.islice(mixture(seed=seed), n)) for seed, n in ((5, 3_000), (9, 400)))
    return saelab.Lab.embedded().subject, sae, texts, held


def real() -> tuple[Any, saelab.SAE, Any, Any]:
    subject = saelab.load_subject(real_models.smollm2_file(), progress=False)
    texts, held = list(real_texts.mixture()), real_texts.paragraphs(held_out=True)
    config = saelab.recipe("batchtopk", d_in=subject.width(REAL_HOOK), d_sae=2048, k=32, hook=REAL_HOOK)
    with tempfile.TemporaryDirectory() as folder:
        acts = saelab.harvest(
            subject, texts, [REAL_HOOK], f"{folder}/acts", max_rows=24_000, max_norm=10, progress=False
        )
        run = saelab.train(config, acts, steps=300, batch_size=1024, progress=False)
    return subject, run.sae, texts, held


def judged(
    arm: str,
    seed: int,
    sae: saelab.SAE,
    subject: Any,
    held: Any,
    seconds: float,
    scores: tuple[str, ...] = SCORES,
) -> list[dict[str, Any]]:
    report = saelab.evaluate(sae, subject, held, max_rows=4_000)
    rows = []
    for name in scores:
        score = report.scores[name]
        low, high = score.interval
        told = {"value": score.value, "from": low, "to": high, "control": score.control}
        rows.append({"arm": arm, "seed": seed, "score": name, **told, "s of CPU": seconds})
    print(f"{arm}, seed {seed}: " + ", ".join(f"{r['score']} {r['value']:.4f}" for r in rows), flush=True)
    return rows


if __name__ == "__main__":
    main()
