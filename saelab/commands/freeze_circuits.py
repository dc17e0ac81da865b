"""Freeze the circuits of the embedded model's tasks: exact patching of heads and of the edges between them.

    python -m saelab.commands.freeze_circuits [--pairs 128] [--seed 1] [--out FILE]

What scores of circuits are judged by; written before any of them is measured, and read by whatever measures
one. Some ten minutes on one CPU core, most of them for the edges.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from saelab.analysis import activation_patching, path_patching, prompt_task
from saelab.analysis.circuits.truth import freeze, frozen, read_truths
from saelab.embedded import ASSETS, model_folder
from saelab.embedded.tasks import Kind, task_prompts
from saelab.subjects import load_subject


def truth_of(subject: Any, kind: Kind, n: int, seed: int) -> dict[str, Any]:
    """The truth of one of the embedded model's tasks, as JSON values.

    Args:
        subject: The embedded model.
        kind: The task.
        n: How many pairs.
        seed: Of the prompts.
    """
    prompts = task_prompts(kind, subject.to_tokens, n, seed)
    task = prompt_task(subject, **prompts._asdict(), name=kind)
    heads = activation_patching(subject, task, "heads")
    edges = {
        "direct": path_patching(subject, task),
        "through MLPs": path_patching(subject, task, through_mlps=True),
    }
    return frozen(subject, task, {"kind": kind, "n": n, "seed": seed}, heads, edges)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--seed", type=int, default=1, help="of the prompts")
    parser.add_argument("--out", type=Path, help="by default the file that ships")
    options = parser.parse_args()
    subject = load_subject(str(model_folder()))
    out = options.out or ASSETS.parent / "circuits.json"
    tasks: dict[str, dict[str, Any]] = {}
    for kind in get_args(Kind):
        tasks[kind] = truth_of(subject, kind, options.pairs, options.seed)
        freeze(out, tasks)
        print(read_truths(out)[kind], flush=True)


if __name__ == "__main__":
    main()
