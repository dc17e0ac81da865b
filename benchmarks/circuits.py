"""Which heads carry a task, how few suffice, and how far gradients can be trusted.

python benchmarks/circuits.py [--pairs 96] [--only embedded] [--tasks "greater than" ...] [--without-exact]
    [--record NAME]

Of each model and task: whether the model does it, the fewest heads with which alone it does (chosen on half
of the pairs, judged on the other), beside random sets of as many; attribution patching and integrated
gradients against exact patching, beside shuffled nodes; and what they cost, in plain passes of the same
prompts. SmolLM2's prompts are public ones (shared/data/prompts/circuits); its tokenizer has digits for
years, so that there the answer is a later decade, and the same decade counts for neither side.
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from generation import models
from results import record

from saelab.analysis import activation_patching, agreement, attribution_patching, circuit, prompt_task
from saelab.embedded.tasks import task_prompts
from saelab.types import CorpusError

PUBLIC = Path(__file__).resolve().parents[2] / "shared" / "data" / "prompts" / "circuits"


def main() -> None:
    parser = argparse.ArgumentParser(description="Which heads carry a task")
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--only", choices=["embedded", "SmolLM2-135M"])
    parser.add_argument("--tasks", nargs="*", help="by default all")
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument(
        "--without-exact", action="store_true", help="no exact patching, a pass for each node"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", help="keep the figures as benchmarks/results/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name, load in models().items():
        if options.only not in (None, name):
            continue
        subject = load()
        kinds = of_the_world(subject) if name == "embedded" else of_the_public(subject)
        for kind, prompts in kinds.items():
            if not options.tasks or kind in options.tasks:
                rows.append({"model": name, "task": kind} | measure(subject, kind, prompts, options))
                print(rows[-1], flush=True)
    if options.record:
        record(options.record, rows, pairs=options.pairs, threads=options.threads)


def measure(subject: Any, kind: str, prompts: Callable[[int], Any], options: Any) -> dict[str, Any]:
    """The figures of one task."""
    task = prompt_task(subject, **prompts(options.pairs), name=kind)
    print(task, flush=True)
    begin = time.thread_time()
    for batch in task.batches(subject):
        subject.run(batch.clean)
    plain = time.thread_time() - begin
    seconds, found = {}, {}
    for name, steps in (("attribution", 1), ("integrated", 5)):
        times = []
        for _ in range(3):
            begin = time.thread_time()
            found[name] = attribution_patching(subject, task, steps=steps)
            times.append(time.thread_time() - begin)
        seconds[name] = statistics.median(times)
    exact = None if options.without_exact else activation_patching(subject, task)
    print(exact or found["integrated"], flush=True)
    row: dict[str, Any] = {
        "pairs": len(task.pairs), "right": task.accuracy, "clean": float(task.clean.mean()),
        "corrupt": float(task.corrupt.mean()),
    }  # fmt: skip
    try:
        made = circuit(subject, task, random_sets=options.random)
    except CorpusError as error:
        return row | {"circuit": str(error)}
    row |= {
        "heads": len(made.nodes), "of": made.of, "faithful": str(made.faithfulness),
        "complete": str(made.completeness), "which": " ".join(map(str, made.nodes)),
    }  # fmt: skip
    for name, estimate in found.items():
        for each in [] if exact is None else agreement(exact, estimate):
            row |= {
                f"{name}, {each.kind}": f"{each.pearson}",
                f"{name}, {each.kind}, ranks": f"{each.spearman}",
            }
        row[f"{name}, passes"] = round(seconds[name] / plain, 2)
    return row


def of_the_world(subject: Any) -> dict[str, Callable[[int], dict[str, Any]]]:
    """Tasks of the embedded model, by name."""

    def of(kind: Any) -> Callable[[int], dict[str, Any]]:
        return lambda n: task_prompts(kind, subject.to_tokens, n, seed=1)._asdict()

    return {kind: of(kind) for kind in ("indirect object", "greater than", "docstring")}


def of_the_public(subject: Any) -> dict[str, Callable[[int], dict[str, Any]]]:
    """Tasks of other models, by name: those of the public prompts that the tokenizer leaves in pairs."""
    if not PUBLIC.exists():
        return {}

    def rows(name: str) -> list[dict[str, str]]:
        with (PUBLIC / name).open(newline="") as file:
            return list(csv.DictReader(file))

    def fits(clean: str, corrupt: str) -> bool:
        return len(subject.to_tokens(clean)) == len(subject.to_tokens(corrupt))

    def names(n: int) -> dict[str, Any]:
        pairs = []
        for row in rows("ioi_llama.csv"):
            first, second = re.findall(r"\b[A-Z][a-z]+ and [A-Z][a-z]+\b", row["clean"])[0].split(" and ")
            giver = first if row["clean"].count(first) > 1 else second
            receiver = second if giver == first else first
            tokens = [subject.to_tokens(f" {each}", bos=False)[0] for each in (giver, receiver)]
            if fits(row["clean"], row["corrupted"]) and tokens[0] != tokens[1]:
                pairs.append((row["clean"], row["corrupted"], f" {receiver}", f" {giver}"))
        return _columns(pairs, n) | {"score": "logits"}

    def years(n: int) -> dict[str, Any]:
        pairs = []
        for row in rows("greater_than_data.csv"):
            decade = int(row["label"]) // 10
            if 1 <= decade <= 8 and fits(row["clean"], row["corrupted"]):
                sides = [str(d) for d in range(decade + 1, 10)], [str(d) for d in range(decade)]
                pairs.append((row["clean"], row["corrupted"], *sides))
        return _columns(pairs, n) | {"score": "probabilities"}

    return {"indirect object": names, "greater than": years}


def _columns(pairs: list[tuple[Any, ...]], n: int) -> dict[str, Any]:
    spread = pairs[:: max(1, len(pairs) // n)][:n]
    return dict(
        zip(("clean", "corrupt", "right", "wrong"), map(list, zip(*spread, strict=True)), strict=True)
    )


if __name__ == "__main__":
    main()
