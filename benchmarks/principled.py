"""Do SAEs stand for, and edit, what a task is made of as well as dictionaries that were told?

python benchmarks/principled.py [--only PLACE ...] [--seeds 3] [--toys] [--record NAME]

The embedded model's indirect objects (`saelab.corpora.attributed_prompts`), at the last position of its
prompts: dictionaries and F1 of prompts of the training's templates and names, figures of held-out ones. SAEs
are TopK (k = 3, 256 latents), trained on the activations of the same prompts, with free decoders and with
frozen ones, and the SAE that ships at that place, where there is one. With --toys the two kinds of data on
which SAEs fail in a known way.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from results import record

import saelab
from saelab.analysis import (
    AgainstSupervised,
    AttributeTask,
    Location,
    against_supervised,
    attribute_task,
    occlusion,
    over_splitting,
)
from saelab.analysis.supervised.results import NO_EDIT
from saelab.analysis.supervised.tasks import read_at
from saelab.corpora import attributed_prompts

PLACES = {
    "head 1.6": Location("blocks.1.attn.hook_z", -1, 6),
    "attention 1": Location("blocks.1.attn.hook_z"),
    "stream 2": Location("blocks.2.hook_resid_post"),
    "attention 3": Location("blocks.3.attn.hook_z"),
    "stream 3": Location("blocks.3.hook_resid_post"),
}
HOW, MOST = "agnostic", 6
"""The edit that the bars are of."""


def main() -> None:
    parser = argparse.ArgumentParser(description="SAEs beside supervised dictionaries")
    parser.add_argument("--only", nargs="*", choices=list(PLACES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=4000, help="of which dictionaries are made")
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--toys", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", help="keep the figures as benchmarks/results/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for row in toys(options) if options.toys else places(options):
        rows.append(row)
        print(row, flush=True)
        if options.record:
            record(options.record, rows, prompts=options.prompts, test=options.test, seeds=options.seeds,
                   steps=options.steps, threads=options.threads)  # fmt: skip


def places(options: Any) -> Iterator[dict[str, Any]]:
    """A row a dictionary and place: figures of seeds put together, and whether the bars are met."""
    subject = saelab.load_subject(str(saelab.embedded.model_folder()))
    train, test = (
        attribute_task(subject, attributed_prompts(subject.to_tokens, split, n, seed=seed))
        for split, n, seed in (("train", options.prompts, 0), ("heldout", options.test, 1))
    )
    print(train, test, flush=True)
    for name, place in PLACES.items():
        if not options.only or name in options.only:
            saes = trained(subject, train, place, options)
            found = against_supervised(subject, train, test, place, saes, k=(2, MOST))
            print(found, flush=True)
            yield from told(name, found)


def trained(subject: Any, task: AttributeTask, place: Location, options: Any) -> dict[str, saelab.SAE]:
    """The SAE that ships, and some that are trained here."""
    saes = {}
    if place.head is None and place.hook in saelab.embedded.SAE_HOOKS:
        saes["shipped SAE"] = saelab.SAE.load(saelab.embedded.sae_folder(place.hook))
    acts = read_at(subject, task.prompts, [place])[place]
    for name, dictionary in (("TopK", "free"), ("frozen decoder", "frozen")):
        config = saelab.recipe("topk", d_in=acts.shape[1], d_sae=256, k=3, dictionary=dictionary)
        for seed in range(options.seeds):
            run = saelab.train(
                config, acts, steps=options.steps, batch_size=512, lr=3e-3, seed=seed, progress=False
            )
            saes[f"{name} {seed}"] = run.sae
    return saes


def told(place: str, found: AgainstSupervised) -> Iterator[dict[str, Any]]:
    """Seeds of one kind are put together: means, with the least and the largest of them."""
    frame = found.to_frame()
    frame["dictionary"] = frame["dictionary"].str.replace(r" \d+(?=,|$)", "", regex=True)
    tells = found.f1.copy()
    tells["dictionary"] = tells["dictionary"].str.replace(r" \d+(?=,|$)", "", regex=True)
    without = {key: str(found.accuracy(NO_EDIT, key, HOW, MOST)) for key in found.unedited}
    yield {"place": place, "dictionary": "none", "counted": ", ".join(found.counted) or "none"} | {
        f"no edit, {key}": value for key, value in without.items()
    } | {"clean": found.clean.mean(), "ablated": found.ablated.mean()}  # fmt: skip
    for name, rows in frame.groupby("dictionary", sort=False):
        row: dict[str, Any] = {"place": place, "dictionary": name}
        for measure in ("sufficiency", "necessity", "fvu", "l0"):
            row[measure] = spread(rows.query("measure == @measure"))
        for measure in rows["measure"].unique():
            if "F1" in measure:
                row[measure] = float(rows.query("measure == @measure")["value"].mean())
        for (attribute, how, k), edits in rows.query("measure == 'edit'").groupby(["attribute", "how", "k"]):
            key = f"{attribute} edit, {how}, k={int(k)}" if how != "supervised" else f"{attribute} edit"
            row[key] = spread(edits)
            row[f"{key}: weight, supervised"] = (
                f"{edits['weight'].mean():.3f}, {edits['supervised weight'].mean():.3f}"
            )
        for attribute, of in tells[tells["dictionary"] == name].groupby("attribute"):
            row[f"F1 {attribute}, shuffled"] = f"{of['f1'].mean():.3f}, {of['shuffled f1'].mean():.3f}"
        yield row


def spread(rows: pd.DataFrame) -> str:
    """The mean over seeds, and the least and largest end of their intervals."""
    value = rows["value"].mean()
    if "low" not in rows or rows["low"].isna().all():
        return f"{value:.3f}"
    seeds = "" if len(rows) == 1 else f" ({rows['value'].min():.3f} to {rows['value'].max():.3f})"
    return f"{value:.3f}{seeds} [{rows['low'].min():.3f}, {rows['high'].max():.3f}]"


def toys(options: Any) -> Iterator[dict[str, Any]]:
    """Both toys, means over seeds with the least and largest."""
    for name, found in (
        ("occlusion", occlusion(seeds=options.seeds)),
        ("over-splitting", over_splitting(seeds=options.seeds)),
        ("over-splitting, no noise", over_splitting(spread=0.0, seeds=options.seeds)),
    ):
        by = found.columns[0]
        for value, rows in found.groupby(by):
            yield {"toy": name, by: float(value)} | {
                column: f"{rows[column].mean():.3f} ({rows[column].min():.3f} to {rows[column].max():.3f})"
                for column in found.columns[2:]
            }


if __name__ == "__main__":
    main()
