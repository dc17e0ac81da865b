"""Which heads carry a task, how few suffice, and how far gradients can be trusted.

python benchmarks/circuits.py [--pairs 96] [--only embedded] [--tasks "greater than" ...] [--without-exact]
    [--exact N] [--work FOLDER] [--repeats 3] [--record NAME]

Of each model and task (`prompts`): whether the model does it, the fewest heads with which alone it does
(chosen on half of the pairs, judged on the other), beside random sets of as many; attribution patching and
integrated gradients against exact patching, beside shuffled nodes; and what they cost, in plain passes of the
same prompts. Exact patching takes a pass for each node: of large models N of them are patched that integrated
gradients call the strongest, and N others that are drawn. With a work folder an interrupted run goes on where
it was; all else is measured, and kept, before exact patching.
"""

from __future__ import annotations

import argparse
import hashlib
import json
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

AT_ONCE = 30
"""Nodes that are patched between two writings of the work folder."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Which heads carry a task")
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--only", choices=["embedded", "SmolLM2-135M"])
    parser.add_argument("--tasks", nargs="*", help="by default all")
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument(
        "--without-exact", action="store_true", help="no exact patching, a pass for each node"
    )
    parser.add_argument("--exact", type=int, help="strongest and drawn nodes; by default all")
    parser.add_argument("--work", type=Path, help="where what was measured is kept as it comes")
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
                row, found = kept_of(subject, task, options)
                rows.append({"model": name, "task": kind} | row)
                made.append((subject, task, rows[-1], found))
                print(rows[-1], flush=True)
                keep()
    for subject, task, row, found in [] if options.without_exact else made:
        order = found["integrated"].order()
        row |= against_exact(exact(subject, task, options.work, chosen(order, options.exact)), found)
        print(row, flush=True)
        keep()


def kept_of(subject: Any, task: Task, options: Any) -> tuple[dict[str, Any], dict[str, Effects]]:
    """`measure`, or what the work folder has of it."""
    if options.work is None:
        return measure(subject, task, options)
    path = options.work / f"{key_of(task)}-{options.random}-{options.repeats}.json"
    if path.exists():
        kept = json.loads(path.read_text())
        found = {}
        for name, values in kept["effects"].items():
            gap = task.clean - task.corrupt
            found[name] = Effects(task.name, tuple(nodes_of(subject)), np.array(values), gap, name)
        return kept["row"], found
    row, found = measure(subject, task, options)
    effects = {name: each.values.round(6).tolist() for name, each in found.items()}
    options.work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"row": row, "effects": effects}))
    return row, found


def chosen(order: np.ndarray, n: int | None) -> list[int]:
    """Places of the nodes that are patched: the n strongest and n others that are drawn; None: all."""
    if n is None:
        return order.tolist()
    return [*order[:n].tolist(), *np.random.default_rng(0).permutation(order[n:])[:n].tolist()]


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
        if options.repeats > 1:  # the first checks hook points, which costs passes
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
    row = {"patched": f"{len(true.nodes)} of {len(found['integrated'].nodes)}"}
    for name, estimate in found.items():
        for each in agreement(true, estimate):
            row |= {
                f"{name}, {each.kind}": f"{each.pearson}",
                f"{name}, {each.kind}, ranks": f"{each.spearman}",
            }
    return row


def exact(subject: Any, task: Task, work: Path | None, at: list[int] | None = None) -> Effects:
    """Of exact patching, heads and MLPs (at: their places; None: all); what the work folder has is read of
    it."""
    every = nodes_of(subject)
    at = list(range(len(every))) if at is None else at
    values = np.full((len(every), len(task.pairs)), np.nan)
    path = None if work is None else work / f"{key_of(task)}.npy"
    if path is not None and path.exists():
        values = np.load(path)
    left = [i for i in at if np.isnan(values[i, 0])]
    for start in range(0, len(left), AT_ONCE):
        some = left[start : start + AT_ONCE]
        values[some] = activation_patching(subject, task, only=[every[i] for i in some]).values
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, values)
        print(f"{task.name}: {start + len(some)} of {len(left)} nodes", flush=True)
    nodes = tuple(every[i] for i in at)
    return Effects(task.name, nodes, values[at], task.clean - task.corrupt, "activation patching")


def key_of(task: Task) -> str:
    """The task's name, and a hash of its pairs and of the model's scores on them."""
    key = repr((task.pairs, task.score, task.clean.round(3).tolist())).encode()
    return f"{task.name}-{hashlib.sha256(key).hexdigest()[:12]}"


def nodes_of(subject: Any) -> list[Node]:
    """Heads, then MLPs, in the order of `activation_patching`."""
    heads = [
        Node("head", f"blocks.{i}.attn.hook_z", j)
        for i in range(subject.n_layers)
        for j in range(subject.n_heads)
    ]
    return [*heads, *(Node("mlp", f"blocks.{i}.hook_mlp_out", 0) for i in range(subject.n_layers))]


if __name__ == "__main__":
    main()
