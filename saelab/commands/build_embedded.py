"""Make the embedded assets anew: language model, vision transformer, SAEs, feature stores.

    python -m saelab.commands.build_embedded [--work DIR] [--tokens N] [--device D]
    [--stage tokenizer|model|saes|store|labels|vision|pack|all]

Everything follows from seeds. An interrupted build goes on from its checkpoints in the work folder when it is
started again. About two hours on two CPU cores, nearly all of it the language model; the vision part takes
twenty minutes of one.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from saelab.analysis import evaluate
from saelab.analysis.controls import shuffled
from saelab.commands.build_vision import build_vision
from saelab.commands.packing import pack
from saelab.commands.records import versions
from saelab.commands.truth import agreement, labels_of_rows, names
from saelab.corpora import Corpus, Document, natural, world
from saelab.corpora.world import BASIC
from saelab.embedded import ASSETS, SAE_HOOKS, STORE_HOOK
from saelab.embedded.tokenizer import train_tokenizer
from saelab.files import read_json, sha256, write_json
from saelab.harvesting import harvest, index
from saelab.harvesting.lenses import lenses_of
from saelab.sae import SAE, recipe
from saelab.stores import ActivationStore, FeatureStore, lenses
from saelab.stores import manifest as manifests
from saelab.stores.labels import write_labels
from saelab.subjects import load_subject
from saelab.training import train

STAGES = ("tokenizer", "model", "saes", "store", "labels", "vision", "pack")
TOKENS = 34_000_000
SAE_ROWS, SAE_STEPS, SAE_BATCH = 600_000, 3_000, 2_048
D_SAE, K = 1_024, 16
# one store in full; the others are small, so that the package is
STORES: dict[str, dict[str, Any]] = {
    hook: {"max_rows": 2_500, "n_examples": 5, "n_quantile": 5} for hook in SAE_HOOKS
}
STORES[STORE_HOOK] = {"max_rows": 42_000}
SCORE_SEEDS = (0, 1, 2, 3, 4)
# largest relative change of the held-out loss at which the weights are shipped in half precision
HALF_TOLERANCE = 0.005


def build_tokenizer(work: Path) -> None:
    """Learn the tokenizer from training texts; ends in work/tokenizer."""
    from saelab.embedded.data import natural_split

    folder = work / "tokenizer"
    if not folder.exists():
        texts = [d.text for d in world(seed=0, n_documents=60_000, families=BASIC)]
        train_tokenizer(texts + natural_split(held_out=False)).save_pretrained(folder)


def build_model(work: Path, tokens: int, seed: int, device: str) -> None:
    """Train the language model and measure it; ends in assets/model and the first part of the provenance."""
    from transformers import AutoTokenizer

    from saelab.embedded.data import natural_split
    from saelab.embedded.scores import TARGETS, all_scores, held_out_loss, reached
    from saelab.embedded.training import new_model, phases, train_model

    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    paragraphs = natural_split(held_out=False)
    model, plans = new_model(seed=seed), phases(tokens, seed)
    curve, seen = [], 0
    for number, plan in enumerate(plans, 1):
        folder = work / f"phase-{number}"
        model, history = train_model(
            tokenizer, paragraphs, folder, plan, model=model, device=device, report=_say
        )
        curve += [[seen + int(h["tokens"]), round(h["loss"], 4)] for h in history]
        seen += plan.steps * plan.tokens_per_step
    model = model.cpu()
    fresh = [d.text for d in world(seed=10**6, n_documents=400, split="heldout")]
    texts = {"world": fresh, "natural": natural_split(held_out=True)}
    exact = {name: held_out_loss(model, tokenizer, t) for name, t in texts.items()}
    model.half().float()  # what half precision keeps; everything below is measured of that
    loss = {name: held_out_loss(model, tokenizer, t) for name, t in texts.items()}
    if any(abs(loss[name] / exact[name] - 1) > HALF_TOLERANCE for name in texts):
        _say(f"half precision changes the held-out loss too much: {exact} to {loss}")
        sys.exit(1)
    scores = all_scores(model, tokenizer, SCORE_SEEDS)
    control = all_scores(new_model(seed=seed), tokenizer)
    _say(f"scores {scores}, untrained {control}")
    if not reached(scores):
        _say(f"short of the targets {TARGETS}: train on more tokens")
        sys.exit(1)

    folder = ASSETS / "model"
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _record(
        "model",
        {
            "seed": seed,
            "tokens": seen,
            "phases": [plan._asdict() for plan in plans],
            "loss_curve": curve,
            "scores": scores,
            "score_seeds": SCORE_SEEDS,
            "scores_untrained": control,
            "targets": TARGETS,
            "held_out_loss": loss,
            "held_out_loss_float32": exact,
            "natural_text": natural().fingerprint(),
        },
    )


def build_saes(work: Path, device: str) -> None:
    """Train the SAEs by saelab's own harvest and train; ends in assets/saes."""
    subject = load_subject(str(ASSETS / "model"))
    folder = work / "acts"
    if folder.exists():
        acts = ActivationStore.open(folder)
    else:
        acts = harvest(subject, mixture(seed=1), SAE_HOOKS, folder, max_rows=SAE_ROWS)
    fresh = mixture(seed=2).take(600)
    for hook in SAE_HOOKS:
        point = subject.hook_point(hook)
        config = recipe("topk", d_in=subject.width(hook), d_sae=D_SAE, k=K, hook=point)
        run = train(
            config,
            acts,
            steps=SAE_STEPS,
            batch_size=SAE_BATCH,
            seed=0,
            out=work / "saes" / hook,
            device=device,
        )
        report = evaluate(run.sae.cpu(), subject, fresh, max_rows=30_000)
        run.sae.save(ASSETS / "saes" / hook, dtype="float16")
        stored = evaluate(SAE.load(ASSETS / "saes" / hook), subject, fresh, max_rows=30_000)
        _say(f"{hook}\n{report}\nfloat16: {stored.sae}")
        settings = {"rows": SAE_ROWS, "steps": SAE_STEPS, "batch_size": SAE_BATCH, "d_sae": D_SAE, "k": K}
        scores = {
            "float32": vars(report.sae),
            "float16": vars(stored.sae),
            "untrained": vars(report.untrained),
        }
        losses = {"loss_clean": report.loss_clean, "loss_ablated": report.loss_ablated}
        _record(f"sae {hook}", {**settings, **losses, "scores": scores})


def build_store() -> None:
    """Index every SAE over fresh texts; ends in assets/features."""
    subject = load_subject(str(ASSETS / "model"))
    rows = {}
    for hook, options in STORES.items():
        sae = SAE.load(ASSETS / "saes" / hook)
        out = ASSETS / "features" / hook
        store = index(subject, sae, mixture(seed=3), out, **options, overwrite=True)
        if hook == STORE_HOOK:  # the first card that most people see
            lenses.keep(store, lenses_of(sae, subject, list(range(sae.d_sae))), shipped=True)
        rows[hook] = store.n_rows
    _record("features", {"rows": rows})


def build_labels(work: Path) -> None:
    """Name latents by the world's own labels, on texts that no SAE and no store saw; ends in labels of the
    stores in assets/features."""
    subject = load_subject(str(ASSETS / "model"))
    facts = {}
    for hook in SAE_HOOKS:
        sae = SAE.load(ASSETS / "saes" / hook)
        fresh = index(subject, sae, mixture(seed=4), work / "labels" / hook, max_rows=42_000, n_examples=1)
        truth = labels_of_rows(fresh, subject)
        named = names(fresh, truth)
        by_chance = shuffled(np.array(truth, dtype=object)).tolist()
        folder = ASSETS / "features" / hook
        write_labels(folder, fresh.n_latents, [(j, name, "world", {}) for j, name in sorted(named.items())])
        store = FeatureStore.open(folder)
        known = labels_of_rows(store, subject)
        control = shuffled(np.array(known, dtype=object)).tolist()
        facts[hook] = {
            "named": len(named),
            "named_shuffled": len(names(fresh, by_chance)),
            "precision": round(agreement(store, known, named), 4),
            "precision_shuffled": round(agreement(store, control, named), 4),
        }
        _say(f"{hook} {facts[hook]}")
    _record("labels", {"rows": 42_000, "hooks": facts})


def pack_stores() -> None:
    """Write the tables of every store again as small as they get, with the same rows; ends in assets."""
    saved = 0
    for manifest in sorted(ASSETS.rglob(manifests.NAME)):
        known = read_json(manifest)
        for name in known["files"]:
            if name.endswith(".parquet"):
                saved += pack(manifest.parent / name)
                known["files"][name] = manifests.entry_of(manifest.parent / name)
        write_json(manifest, known)
    _say(f"{saved:,} bytes saved")
    _record("packed", {"bytes_saved": saved})


def mixture(seed: int) -> Corpus:
    """World documents without end, every tenth a paragraph of the standard library's documentation."""

    def make() -> Iterator[Document]:
        english = iter(())
        for i, document in enumerate(world(seed=seed, n_documents=10**9)):
            if i % 10 == 9:
                paragraph = next(english, None)
                if paragraph is None:
                    english = iter(natural().shard(seed % 5, 5))
                    paragraph = next(english)
                yield paragraph
            yield document

    return Corpus(make, f"mixture(seed={seed})", f"mixture-1:{seed}:{natural().fingerprint()}")


def _record(what: str, facts: dict[str, Any]) -> None:
    """Add what was made to the provenance, with the versions that made it and the hashes of all weights."""
    path = ASSETS / "provenance.json"
    known = read_json(path) if path.exists() else {}
    known[what] = {"command": "python -m saelab.commands.build_embedded", "versions": versions(), **facts}
    weights = [p for p in sorted(ASSETS.rglob("*")) if p.suffix in (".safetensors", ".parquet")]
    known["sha256"] = {p.relative_to(ASSETS).as_posix(): sha256(p) for p in weights}
    write_json(path, known)


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("embedded-build"), help="checkpoints live here")
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of the first phase of the language model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for stage in STAGES if options.stage == "all" else [options.stage]:
        if stage == "tokenizer":
            build_tokenizer(options.work)
        elif stage == "model":
            build_model(options.work, options.tokens, options.seed, options.device)
        elif stage == "saes":
            build_saes(options.work, options.device)
        elif stage == "store":
            build_store()
        elif stage == "labels":
            build_labels(options.work)
        elif stage == "vision":
            build_vision(options.work, options.seed, options.device, _record, _say)
        else:
            pack_stores()


if __name__ == "__main__":
    main()
