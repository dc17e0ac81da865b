"""What an edit costs in one forward pass.

python benchmarks/interventions.py [--rounds 15] [--d-sae 16384] [--record interventions]

The same batch is run by the bare model, with a hook of one's own that adds a vector, and by `subject.run`
with each edit, an SAE of --d-sae latents with random weights. Within a round each follows another; "x model"
and "x hook" are medians of the ratios within a round. A topk SAE has to look at all its latents to know one
of them; of a jumprelu SAE the columns of the edit suffice.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from generation import PROMPT, models
from results import record

import saelab
from saelab.interventions import AddDirection, Erase, Scale, Steer
from saelab.sae import SAE

SAMPLES, WORDS = 4, 6
"""Copies of the prompt in a batch, and how often it is repeated in each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--d-sae", type=int, default=16_384)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["embedded", "SmolLM2-135M"], help="one of the models")
    parser.add_argument("--record", help="keep the figures as benchmarks/results/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name, load in models().items():
        if options.only in (None, name):
            for what, figures in measure(load(), options.rounds, options.d_sae).items():
                rows.append({"model": name, "pass": what} | figures)
                print(rows[-1], flush=True)
    if options.record:
        facts = {"rounds": options.rounds, "d_sae": options.d_sae, "threads": options.threads}
        record(options.record, rows, **facts)


def measure(subject: Any, rounds: int, d_sae: int) -> dict[str, dict[str, float]]:
    """What was run -> milliseconds, and how many times those of the plain pass and of the bare hook."""
    number = subject.n_layers // 2
    hook = f"blocks.{number}.hook_resid_post"
    inputs = subject.prepare([" ".join([PROMPT] * WORDS)] * SAMPLES)
    vector = torch.randn(subject.d_model, generator=torch.Generator().manual_seed(0))
    block = subject._arch.layers[number]

    def sae(recipe: str, **options: Any) -> SAE:
        return SAE.create(saelab.recipe(recipe, d_in=subject.d_model, d_sae=d_sae, hook=hook, **options))

    def bare() -> None:
        def add(module: Any, given: Any, output: Any) -> Any:
            return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

        handle = block.register_forward_hook(add)
        try:
            plain()
        finally:
            handle.remove()

    def plain() -> None:
        with torch.no_grad():
            subject.model(**inputs.data, use_cache=False)

    topk, jump = sae("topk", k=32), sae("jumprelu")
    edits = {
        "AddDirection": AddDirection(hook, vector),
        "Steer, constant": Steer(topk, 3, 1.0),
        "Steer by token, jumprelu": Steer(jump, 3, 1.0, gate="token", threshold=0.1),
        "Erase of 5 latents by input, jumprelu": Erase(jump, range(5), threshold=0.1),
        "Scale of 5 latents, topk": Scale(topk, range(5), 2.0),
    }
    runs: dict[str, Callable[[], Any]] = {"bare model": plain, "bare hook": bare}
    runs["subject.run"] = lambda: subject.run(inputs)
    runs |= {name: lambda edit=edit: subject.run(inputs, edits=edit) for name, edit in edits.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if turn > 1:
                seconds[name].append(time.perf_counter() - begin)
    return {
        name: {"ms": round(1000 * statistics.median(own), 2)}
        | {
            f"x {base.removeprefix('bare ')}": round(
                statistics.median(a / b for a, b in zip(own, seconds[base], strict=True)), 3
            )
            for base in ("bare model", "bare hook")
        }
        for name, own in seconds.items()
    }


if __name__ == "__main__":
    main()
