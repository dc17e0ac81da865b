"""An SAE on a middle layer of SmolLM2-135M-Instruct, of real texts, in twenty minutes of one core.

python benchmarks/real_sae.py [--out FOLDER] [--rows 320000] [--d-sae 4096] [--steps 1000]

Tweets, paragraphs of WikiText and dialogues in the model's own template, of the parts that
`promises.real_texts` gives to it, are read at `blocks.12.hook_resid_post`; batchtopk, rows brought to one
norm (the model gives a few first words ninety times the norm of all others). It is written beside the fetched
models, outside of any repository, and ships nowhere; the experiments of steering on SmolLM2 take it from
there. Scores are on texts that it was not trained on, beside an untrained SAE.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from promises import real_texts
from promises.real_texts import real_models

import saelab
from saelab.sae import SAE

HOOK = "blocks.12.hook_resid_post"
K = 32
DIALOGUES = 0.3
"""Share of the rows that are of dialogues."""
SCORED = 6_000
"""Rows of each kind of text."""


def folder() -> Path:
    """Where the SAE is kept."""
    return real_models.folder() / "saes" / f"smollm2-{HOOK}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=folder())
    parser.add_argument("--rows", type=int, default=320_000)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="in place of what is there")
    options = parser.parse_args()
    if reason := real_texts.missing():
        print(f"Left out: {reason}")
        return
    if (options.out / "scores.json").exists() and not options.again:
        print(f"It is at {options.out}: pass --again to make it anew.\n\n{table(options.out)}")
        return
    torch.set_num_threads(options.threads)
    subject = saelab.load_subject(real_models.smollm2_file(), progress=False)
    clock = time.process_time()
    rows = harvested(subject, options.rows)
    took = {"harvest, s of CPU": time.process_time() - clock}
    config = saelab.recipe(
        "batchtopk", d_in=subject.width(HOOK), d_sae=options.d_sae, k=K, hook=HOOK, normalise="sphere"
    )
    clock = time.process_time()
    run = saelab.train(config, rows, steps=options.steps, batch_size=options.batch, seed=0, progress=False)
    took["training, s of CPU"] = time.process_time() - clock
    sae = run.sae.eval()
    with torch.no_grad():
        peaks = torch.stack([sae.encode(part).amax(0) for part in rows[:100_000].split(2000)]).amax(0)
        live = torch.stack([(sae.encode(part) != 0).sum(0) for part in rows[:100_000].split(2000)]).sum(0)
    options.out.mkdir(parents=True, exist_ok=True)
    sae.save(options.out)
    torch.save(peaks, options.out / "peaks.pt")
    scores: dict[str, Any] = {"rows": len(rows), "steps": options.steps, **took}
    scores["dead on 100,000 rows"] = float((live == 0).float().mean())
    scores |= judged(sae, subject)
    (options.out / "scores.json").write_text(json.dumps(scores, indent=2))
    print(f"\n{table(options.out)}")


def table(path: Path) -> str:
    """The scores of an SAE that was made, as Markdown."""
    found = json.loads((path / "scores.json").read_text(encoding="utf-8"))
    told = [f"{name} {value:,.4g}" for name, value in found.items() if not isinstance(value, list)]
    lines = ["| score | this SAE | 95 % | untrained |", "|---|---:|---:|---:|"]
    for name, value in found.items():
        if isinstance(value, list):
            own, low, high, control = value
            lines.append(f"| {name} | {own:.4g} | {low:.4g} to {high:.4g} | {control:.4g} |")
    return "\n".join([*lines, "", f"{'; '.join(told)}."])


def load() -> tuple[Any, SAE, torch.Tensor]:
    """The subject, the SAE and the largest activation of each latent; `real_texts.missing()` says whether
    they can be had."""
    path = folder()
    if not (path / "scores.json").exists():
        message = f"needs the SAE at {path}: run `python benchmarks/real_sae.py` once"
        raise SystemExit(message)
    subject = saelab.load_subject(real_models.smollm2_file(), progress=False)
    return subject, SAE.load(path).eval(), torch.load(path / "peaks.pt", weights_only=True)


def harvested(subject: Any, n: int) -> torch.Tensor:
    """Activations [n, width] of texts, and of dialogues with their role markers, mixed."""
    of_dialogues = int(DIALOGUES * n)
    chats = saelab.corpora.dialogues(real_texts.dialogues(held_out=False))
    # the token that begins a turn is BOS too, and counts where it begins turns
    kinds: list[tuple[Any, int, dict[str, Any]]] = [
        (list(real_texts.mixture()), n - of_dialogues, {}),
        (chats, of_dialogues, {"packing": "dialogue", "include_bos": True}),
    ]
    parts = []
    for corpus, limit, how in kinds:
        with tempfile.TemporaryDirectory() as place:
            acts = saelab.harvest(
                subject, corpus, [HOOK], Path(place) / "acts", max_rows=limit, progress=False, **how
            )
            parts.append(acts.acts(range(len(acts)), HOOK).clone())
        print(f"{len(parts[-1]):,} rows of {'texts' if not how else 'dialogues'}", flush=True)
    rows = torch.cat(parts)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def judged(sae: SAE, subject: Any) -> dict[str, Any]:
    """Scores on each kind of held-out text, beside an untrained SAE, with their intervals."""
    texts = {
        "WikiText": real_texts.paragraphs(held_out=True),
        "tweets": [tweet.text for tweet in real_texts.tweets("prompting")],
    }
    found: dict[str, Any] = {}
    for name, some in texts.items():
        report = saelab.evaluate(sae, subject, some, max_rows=SCORED, seed=0)
        print(f"\n{name}: {report}", flush=True)
        for score, each in report.scores.items():
            found[f"{name}: {score}"] = [each.value, *each.interval, each.control]
    told = saelab.analysis.special_tokens(
        sae, subject, saelab.corpora.dialogues(real_texts.dialogues(held_out=True)), packing="dialogue",
        max_rows=SCORED, include_bos=True,
    )  # fmt: skip
    print(f"\n{told}", flush=True)
    for score, each in told.scores.items():
        found[f"dialogues: {score}"] = [each.value, *each.interval, each.control]
    return found


if __name__ == "__main__":
    main()
