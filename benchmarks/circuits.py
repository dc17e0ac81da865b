"""Which heads carry a task, how few suffice, and how far gradients can be trusted.

python benchmarks/circuits.py [--pairs 96] [--only embedded] [--tasks "greater than" ...] [--without-exact]
    [--work FOLDER] [--repeats 3] [--record NAME]

Of each model and task (`prompts`): whether the model does it, the fewest heads with which alone it does
(chosen on half of the pairs, judged on the other), beside random sets of as many; attribution patching and
integrated gradients against exact patching, beside shuffled nodes; and what they cost, in plain passes of the
same prompts. Exact patching takes a pass for each node: with a work folder an interrupted run goes on where
it was, and all else is measured, and kept, before it.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generation import models
from prompts import tasks_of
from results import record

from saelab.analysis import (
    Effects,
    Node,
    Task,
    activation_patching,
    agreement,
    attribution_patching,
    circuit,
    prompt_task,
)
from saelab.types import CorpusError

AT_ONCE = 3
"""Layers that are patched between two writings of the work folder."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Which heads carry a task")
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--only", choices=["embedded", "SmolLM2-135M"])
    parser.add_argument("--tasks", nargs="*", help="by default all")
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument(
        "--without-exact", action="store_true", help="no exact patching, a pass for each node"
    )
    parser.add_argument("--work", type=Path, help="where effects of exact patching are kept as they come")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median is the cost")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", help="keep the figures as benchmarks/results/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []

    def keep() -> None:
        if options.record:
            record(options.record, rows, pairs=options.pairs, threads=options.threads)

    made = []
    for name, load in models().items():
        if options.only not in (None, name):
            continue
        subject = load()
        for kind, prompts in tasks_of(name, subject).items():
            if not options.tasks or kind in options.tasks:
                task = prompt_task(subject, **prompts(options.pairs), name=kind)
                print(task, flush=True)
                row, found = measure(subject, task, options)
                rows.append({"model": name, "task": kind} | row)
                made.append((subject, task, rows[-1], found))
                print(rows[-1], flush=True)
                keep()
    for subject, task, row, found in [] if options.without_exact else made:
        row |= against_exact(exact(subject, task, options.work), found)
        print(row, flush=True)
        keep()


def measure(subject: Any, task: Task, options: Any) -> tuple[dict[str, Any], dict[str, Effects]]:
    """The figures of one task, and the estimated effects."""
    begin = time.thread_time()
    for batch in task.batches(subject):
        subject.run(batch.clean)
    plain = time.thread_time() - begin
    row: dict[str, Any] = {
        "pairs": len(task.pairs), "right": task.accuracy, "clean": float(task.clean.mean()),
        "corrupt": float(task.corrupt.mean()),
    }  # fmt: skip
    found = {}
    for name, steps in (("attribution", 1), ("integrated", 5)):
        times = []
        for _ in range(options.repeats):
            begin = time.thread_time()
            found[name] = attribution_patching(subject, task, steps=steps)
            times.append(time.thread_time() - begin)
        row[f"{name}, passes"] = round(statistics.median(times) / plain, 2)
    print(found["integrated"], flush=True)
    try:
        made = circuit(subject, task, random_sets=options.random)
    except CorpusError as error:
        return row | {"circuit": str(error)}, found
    row |= {
        "heads": len(made.nodes), "of": made.of, "faithful": str(made.faithfulness),
        "complete": str(made.completeness), "which": " ".join(map(str, made.nodes)),
    }  # fmt: skip
    return row, found


def against_exact(true: Effects, found: dict[str, Effects]) -> dict[str, str]:
    """Correlations of estimated effects with exact ones."""
    print(true, flush=True)
    row = {}
    for name, estimate in found.items():
        for each in agreement(true, estimate):
            row |= {
                f"{name}, {each.kind}": f"{each.pearson}",
                f"{name}, {each.kind}, ranks": f"{each.spearman}",
            }
    return row


def exact(subject: Any, task: Task, work: Path | None) -> Effects:
    """Of exact patching, all heads and MLPs; layers that the work folder has are read from it."""
    if work is None:
        return activation_patching(subject, task)
    work.mkdir(parents=True, exist_ok=True)
    every = [node for layer in range(subject.n_layers) for node in _nodes(subject, layer)]
    key = hashlib.sha256(repr((task.pairs, task.score, every, task.clean.round(3).tolist())).encode())
    path = work / f"{task.name}-{key.hexdigest()[:12]}.npy"
    values = np.load(path) if path.exists() else np.full((len(every), len(task.pairs)), np.nan)
    left = [i for i in range(len(every)) if np.isnan(values[i, 0])]
    size = AT_ONCE * len(every) // subject.n_layers
    for start in range(0, len(left), size):
        at = left[start : start + size]
        values[at] = activation_patching(subject, task, only=[every[i] for i in at]).values
        np.save(path, values)
        print(f"{task.name}: {start + len(at)} of {len(left)} nodes", flush=True)
    return Effects(task.name, tuple(every), values, task.clean - task.corrupt, "activation patching")


def _nodes(subject: Any, layer: int) -> list[Node]:
    heads = [Node("head", f"blocks.{layer}.attn.hook_z", i) for i in range(subject.n_heads)]
    return [*heads, Node("mlp", f"blocks.{layer}.hook_mlp_out", 0)]


if __name__ == "__main__":
    main()
