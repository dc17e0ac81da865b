"""What an evaluation costs: the core beside three forward passes, a whole report, and memory by the corpus.

python benchmarks/evaluate.py [--rounds 5] [--documents 400] [--only core] [--keep]
python benchmarks/evaluate.py --memory DOCUMENTS    # of one process, as JSON

Three forward passes (the model as it is, with the SAE, ablated) are what nobody can do without: each reads
the very batches that the evaluation makes, to its end, without a loss. The core does more: it reads twice
(for the mean), zeroes too, and scores an untrained SAE beside, and sums losses, divergences and intervals.
Both take turns; times are of one thread's processor, figures are medians over rounds of the quotient of two
neighbouring turns. Shapes: the embedded model with its SAE, and a random GPT-2 of 6 blocks of 384 with an
SAE of 4,096 latents in its middle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harvest import status
from index import make_sae, make_subject
from results import record

import saelab
from saelab.analysis import suites
from saelab.subjects.reading import How

HOOK = "blocks.2.hook_resid_post"


def main() -> None:
    parser = argparse.ArgumentParser(description="What an evaluation costs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--only", choices=[part.__name__ for part in PARTS])
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--memory", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(json.dumps({"MB": rise(options.memory)}))
        return
    rows = []
    for part in (part for part in PARTS if options.only in (None, part.__name__)):
        rows += part(options)
        print(json.dumps(rows, indent=1), flush=True)
    if options.keep:
        record(
            "evaluate" + (f"-{options.only}" if options.only else ""),
            rows,
            rounds=options.rounds,
            documents=options.documents,
            threads=1,
        )


def embedded() -> tuple[Any, Any]:
    sae = saelab.SAE.load(saelab.embedded.sae_folder(HOOK))
    return saelab.load_subject(saelab.embedded.model_folder()), sae


def middle() -> tuple[Any, Any]:
    subject = make_subject(6, 384, 6, 256)
    return subject, make_sae(subject, "blocks.2.hook_resid_post", 4096, 32)


def core(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The core of one SAE over three forward passes."""
    return [
        {
            "what": f"core / 3 passes, {name}",
            **over_passes(*shape, options.documents // less, options.rounds),
        }
        for name, shape, less in (("embedded", embedded(), 1), ("6 blocks of 384", middle(), 8))
    ]


def over_passes(subject: Any, sae: Any, documents: int, rounds: int) -> dict[str, Any]:
    corpus = saelab.corpora.world(seed=9, n_documents=documents)
    passes = batches(subject, corpus)
    quotients, told = [], []
    for i in range(rounds + 1):
        forward = seconds(lambda: [subject.run(inputs) for _ in range(3) for inputs in passes])
        whole = seconds(lambda: told.append(saelab.evaluate(sae, subject, corpus)))
        quotients += [whole / forward] if i else []  # the first warms up
    return {"rows": told[0].n_rows, **spread(quotients)}


def several(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Four SAEs of one place at once over the same one by one."""
    subject, sae = embedded()
    corpus = saelab.corpora.world(seed=9, n_documents=options.documents)
    saes = {str(i): saelab.SAE.create(sae.config, seed=i) for i in range(4)}
    quotients = []
    for i in range(options.rounds + 1):
        alone = seconds(lambda: [saelab.evaluate(each, subject, corpus) for each in saes.values()])
        quotients += [seconds(lambda: saelab.evaluate(saes, subject, corpus)) / alone] if i else []
    return [{"what": "4 SAEs at once / one by one, embedded", **spread(quotients)}]


def report(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Processor seconds of the core and every suite there is, with their own options."""
    subject, sae = embedded()
    corpus = saelab.corpora.world(seed=9, n_documents=options.documents)
    names = ("core", *sorted(suites.registered()))
    took = {name: seconds(partial(saelab.evaluate, sae, subject, corpus, suites=(name,))) for name in names}
    alone = {name: each - took["core"] for name, each in took.items() if name != "core"}
    whole = took["core"] + sum(alone.values())
    told = ", ".join(f"{name} {each:.1f}" for name, each in {"core": took["core"], **alone}.items())
    what = "whole report of the embedded SAE, seconds of one thread"
    return [{"what": what, "median": whole, "parts": told}]


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """MB by which a process rises while it evaluates, by documents."""
    found = []
    for documents in (1_000, 4_000, 16_000):
        command = [sys.executable, __file__, "--memory", str(documents)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rose = json.loads(done.stdout.splitlines()[-1])["MB"]
        found.append({"what": f"MB of memory, {documents:,} documents", "median": rose})
    return found


def rise(documents: int) -> float:
    subject, sae = embedded()
    saelab.evaluate(sae, subject, saelab.corpora.world(seed=9, n_documents=32))
    corpus = saelab.corpora.world(seed=9, n_documents=documents)
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
    before = status("VmRSS")
    saelab.evaluate(sae, subject, corpus)
    return status("VmHWM") - before


def batches(subject: Any, corpus: Any) -> list[Any]:
    how, found, some = How(16, long="truncate"), [], []
    size = subject.stretch(how)
    for numbered in enumerate(corpus):
        some.append(numbered)
        if len(some) == size:
            found += [inputs for _, inputs in subject.read(some, how).passes()]
            some = []
    return found + ([inputs for _, inputs in subject.read(some, how).passes()] if some else [])


def spread(quotients: list[float]) -> dict[str, float]:
    return {"median": statistics.median(quotients), "least": min(quotients), "most": max(quotients)}


def seconds(call: Callable[[], Any]) -> float:
    started = time.thread_time()
    call()
    return time.thread_time() - started


PARTS = (core, several, report, memory)


if __name__ == "__main__":
    main()
