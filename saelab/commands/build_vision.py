"""The vision part of the embedded assets: a small transformer that sees drawn figures, an SAE on its patches
and an index of the SAE's latents. `python -m saelab.commands.build_embedded --stage vision` makes it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saelab.analysis import evaluate
from saelab.corpora import shapes
from saelab.embedded import ASSETS, VISION_HOOK
from saelab.harvesting import harvest, index
from saelab.sae import SAE, recipe
from saelab.subjects import VisionModel
from saelab.training import train

HELD_OUT, N_HELD_OUT = 10**6, 4_000
"""Seed and number of the pictures that scores are of; none was trained on."""
PICTURES, STEPS, BATCH = 6_000, 2_500, 2_048
D_SAE, K = 256, 8
INDEXED = 112
HALF_TOLERANCE = 0.002
"""Largest loss of accuracy at which the weights are shipped in half precision."""

Record = Callable[[str, dict[str, Any]], None]


def build_vision(work: Path, seed: int, device: str, record: Record, say: Callable[[str], None]) -> None:
    """Train, measure and write: ends in assets/vision and its part of the provenance.

    Args:
        work: Checkpoints live there.
        seed: Of weights and pictures.
        device: A torch device.
        record: Adds to the provenance.
        say: Tells what is done.
    """
    from saelab.embedded.vision import (
        TARGETS,
        VisionPlan,
        accuracies,
        new_vit,
        reached,
        train_vit,
        vit_processor,
    )

    plan = VisionPlan(seed=seed)
    model, history = train_vit(work / "vit", plan, device=device, report=say)
    model = model.cpu()
    fresh = list(shapes(HELD_OUT, N_HELD_OUT, split="heldout"))
    exact = accuracies(model, fresh)
    model.half().float()  # what half precision keeps; everything below is measured of that
    scores, control = accuracies(model, fresh), accuracies(new_vit(seed), fresh)
    say(f"accuracies {scores}, untrained {control}")
    if not reached(scores) or any(exact[name] - scores[name] > HALF_TOLERANCE for name in scores):
        message = f"Short of {TARGETS}, or worse than float32 {exact}: train longer."
        raise SystemExit(message)
    folder = ASSETS / "vision" / "model"
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder)
    vit_processor().save_pretrained(folder)
    facts: dict[str, Any] = {
        "plan": plan._asdict(),
        "loss_curve": [[int(h["step"]), round(h["loss"], 4)] for h in history],
        "accuracies": scores,
        "accuracies_untrained": control,
        "targets": TARGETS,
    }

    subject = VisionModel.load(folder, rows="patches")
    acts = harvest(subject, shapes(seed + 1, PICTURES), [VISION_HOOK], work / "vision-acts", batch_size=64)
    config = recipe("topk", d_in=subject.width(VISION_HOOK), d_sae=D_SAE, k=K, hook=VISION_HOOK)
    run = train(config, acts, steps=STEPS, batch_size=BATCH, seed=0, out=work / "vision-sae", device=device)
    held_out = shapes(HELD_OUT, 600, split="heldout")
    report = evaluate(run.sae.cpu(), subject, held_out, max_rows=30_000)
    run.sae.save(ASSETS / "vision" / "sae", dtype="float16")
    sae = SAE.load(ASSETS / "vision" / "sae")
    stored = evaluate(sae, subject, held_out, max_rows=30_000)
    say(f"{VISION_HOOK}\n{report}\nfloat16: {stored.sae}")
    facts["sae"] = {
        "pictures": PICTURES, "steps": STEPS, "batch_size": BATCH, "d_sae": D_SAE, "k": K,
        "scores": {
            "float32": vars(report.sae), "float16": vars(stored.sae), "untrained": vars(report.untrained),
        },
    }  # fmt: skip
    out = ASSETS / "vision" / "features"
    store = index(
        subject, sae, shapes(seed + 2, INDEXED), out, batch_size=48, n_examples=12, n_quantile=6,
        overwrite=True,
    )  # fmt: skip
    facts["features"] = {"pictures": INDEXED, "rows": store.n_rows}
    record("vision", facts)
