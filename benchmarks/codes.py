"""Do discrete codes of heads tell the heads of a circuit, and the edges between them?

python benchmarks/codes.py [--only embedded] [--seeds 3] [--pairs 32] [--exact FOLDER] [--record NAME]

Codes (O'Neill & Bui 2024), the same with labels shuffled, of SAEs that were not trained, and attribution
patching, against what exact patching found: of the embedded model the frozen truth that ships
(`saelab.analysis.read_truths`), of heads and of edges; of another model its heads, out of the folder of
exact effects that `circuits.py --work` wrote. AUC, average precision, and F1 at the threshold that is best
on another task, the next one in the table, with the least and largest over SAE seeds and 95 % of what the
codes have over each other arm, drawn over prompts. "heads, by edges": the score that the authors' program
calls one of edges, which counts how often a head stands at an end of the first H^2 / 4 edges, against heads.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from circuits import exact
from generation import models
from prompts import tasks_of
from results import record

import saelab
from saelab.analysis import (
    CodeTest,
    HeadCodes,
    Task,
    attribution_patching,
    edge_attribution,
    head_codes,
    important,
    prompt_task,
    read_truths,
)
from saelab.analysis.circuits.codes import edge_scores
from saelab.analysis.circuits.measures import auc
from saelab.embedded.tasks import task_prompts

GRADIENTS = "attribution patching"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["embedded", "SmolLM2-135M"])
    parser.add_argument("--seeds", type=int, default=3, help="SAEs")
    parser.add_argument("--pairs", type=int, default=32, help="of other models than the embedded one")
    parser.add_argument("--exact", type=Path, help="the folder that circuits.py --work wrote")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", help="keep the figures as benchmarks/results/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name, load in models().items():
        if options.only not in (None, name):
            continue
        subject = load()
        found = of_the_embedded(subject, options) if name == "embedded" else of_others(name, subject, options)
        for what, tests in found.items():
            rows += [{"model": name} | row for row in rows_of(what, tests)]
    if options.record:
        record(options.record, rows, seeds=options.seeds, pairs=options.pairs, threads=options.threads)


def of_the_embedded(subject: Any, options: Any) -> dict[str, list[CodeTest]]:
    """What is told -> a test for each task."""
    found: dict[str, list[CodeTest]] = {}
    for kind, truth in read_truths(saelab.embedded.circuits_file()).items():
        prompts = task_prompts(to_tokens=subject.to_tokens, **truth.prompts)
        task = prompt_task(subject, **prompts._asdict(), name=kind)
        truth.check(subject, task)
        codes = head_codes(subject, task, seeds=options.seeds)
        estimate = {GRADIENTS: attribution_patching(subject, task, "heads")}
        told = {"heads": codes.against(truth.heads.known, estimate)}
        said = published(codes, truth.heads.known)
        for way, edges in truth.edges.items():
            through = {GRADIENTS: edge_attribution(subject, task, through_mlps=way == "through MLPs")}
            told[f"edges, {way}"] = codes.against_edges(edges.known, through)
        print(*told.values(), said, sep="\n", flush=True)
        for what, test in told.items():
            found.setdefault(what, []).append(test)
    return found


def of_others(name: str, subject: Any, options: Any) -> dict[str, list[CodeTest]]:
    """The same of the heads of another model."""
    found = []
    for kind, prompts in tasks_of(name, subject).items():
        task: Task = prompt_task(subject, **prompts(options.pairs), name=kind)
        true = exact(subject, task, options.exact)
        at = [i for i, node in enumerate(true.nodes) if node.kind == "head"]
        known = important(true)[at]
        codes = head_codes(subject, task, seeds=options.seeds)
        found.append(codes.against(known, {GRADIENTS: attribution_patching(subject, task, "heads")}))
        print(found[-1], flush=True)
    return {"heads": found}


def published(codes: HeadCodes, truth: np.ndarray) -> dict[str, list[float]]:
    """AUC over heads of the published score of edges, by arm and seed."""
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {"codes": [], "shuffled labels": [], "untrained SAE": []}
    for own, blank in zip(codes.codes, codes.untrained, strict=True):
        mixed = rng.permutation(own.reshape(-1, own.shape[2])).reshape(own.shape)
        for arm, each in zip(found, (own, mixed, blank), strict=True):
            scores = edge_scores(each)
            rows, columns = np.triu_indices(len(scores), 1)
            first = np.argsort(-scores[rows, columns], kind="stable")[: len(scores) ** 2 // 4]
            ends = np.concatenate([rows[first], columns[first]])
            found[arm].append(round(float(auc(np.bincount(ends, minlength=len(scores)), truth)), 4))
    return found


def rows_of(what: str, tests: list[CodeTest]) -> list[dict[str, Any]]:
    """Of each test the arms, F1 at the threshold of the next task that has anything to tell."""
    rows = []
    for number, test in enumerate(tests):
        other = tests[(number + 1) % len(tests)]
        frame = test.to_frame(other if len(tests) > 1 else None).round(4)
        for row in frame.to_dict("records"):
            rows.append(
                {"task": test.task, "what": what, "of the circuit": test.heads, "of": test.of}
                | {"title": test.title, "threshold of": other.task}
                | {str(key): None if value != value else value for key, value in row.items()}
            )
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
