"""What a cache saves in generation, and what edits cost in it.

python benchmarks/generation.py [--rounds 2] [--tokens 64] [--record generation]

"cached": seconds of one generation with the cache and of one that runs the whole text anew at each step, of
one prompt. "edited batch": a batch of 5 copies of the prompt in which each sample has another vector added at
one hook point, by `subject.generate`, beside the library's own `model.generate` of the same batch without an
edit, and beside the same with the edit by `applied`. Within a round one generation of each follows another;
figures are medians over rounds, ratios are medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from results import record

import saelab
from saelab.interventions import applied

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import real_models

PROMPT = "Rosa walked to the market in the morning and"
COPIES = 5
SCALE = 0.05
"""Of the stream's norm: each sample gets so much more of a random direction than the one before it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=2, help="of the real model; the embedded one has 5 each"
    )
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["embedded", "SmolLM2-135M"], help="one of the models")
    parser.add_argument("--record", help="keep the figures as benchmarks/results/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name, load in models().items():
        if options.only not in (None, name):
            continue
        subject = load()
        for what, seconds in measure(
            subject, options.rounds * (5 if name == "embedded" else 1), options.tokens
        ).items():
            rows.append({"model": name, "generation": what} | seconds)
            print(rows[-1])
    if options.record:
        facts = {"rounds": options.rounds, "tokens": options.tokens, "threads": options.threads}
        record(options.record, rows, **facts)


def models() -> dict[str, Callable[[], Any]]:
    """Those that are at hand."""
    found = {"embedded": lambda: saelab.load_subject(saelab.embedded.model_folder())}
    if not real_models.missing(real_models.SMOLLM2):
        found["SmolLM2-135M"] = lambda: saelab.load_subject(real_models.smollm2_file(), progress=False)
    return found


def measure(subject: Any, rounds: int, tokens: int) -> dict[str, dict[str, float]]:
    """What was generated -> seconds, and how many times those of what it is compared with."""
    hook = f"blocks.{subject.n_layers // 2}.hook_resid_post"
    without_end(subject)
    ids = subject.prepare([PROMPT] * COPIES).data["input_ids"].to(subject.device)
    draw = torch.Generator().manual_seed(0)
    delta = torch.randn(COPIES, 1, subject.d_model, generator=draw).to(subject.device)
    delta *= SCALE * torch.arange(COPIES, device=subject.device)[:, None, None]
    edit = (hook, lambda acts: acts + delta * acts.norm(dim=-1, keepdim=True) / subject.d_model**0.5)
    limits = {"max_new_tokens": tokens}

    def library() -> None:
        with torch.no_grad():
            out = subject.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **limits
            )
        assert out.shape[1] == ids.shape[1] + limits["max_new_tokens"]

    def live() -> None:
        with applied(subject, edit):
            library()

    batch = [PROMPT] * COPIES
    runs: dict[str, Callable[[], Any]] = {
        "one prompt, whole text anew": lambda: subject.generate(PROMPT, use_cache=False, **limits),
        "one prompt, cached": lambda: subject.generate(PROMPT, **limits),
        f"batch of {COPIES}, model.generate": library,
        f"batch of {COPIES}, cached": lambda: subject.generate(batch, **limits),
        f"batch of {COPIES}, cached, an edit each": lambda: subject.generate(batch, edit, **limits),
        f"batch of {COPIES}, model.generate, applied": live,
    }
    anew, _, plain = list(runs)[:3]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        # the first, of few tokens, warms up and measures whether the cache can be used
        limits["max_new_tokens"] = tokens if number else 4
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    found = {}
    for name, own in seconds.items():
        base = seconds[anew if name.startswith("one") else plain]
        ratio = statistics.median(x / y for x, y in zip(own, base, strict=True))
        found[name] = {
            "seconds": round(statistics.median(own), 4),
            "x the first of its kind": round(ratio, 3),
        }
    return found


def without_end(subject: Any) -> None:
    """Texts as long as is asked for."""
    subject.model.generation_config.eos_token_id = None
    subject.tokenizer.eos_token = None


if __name__ == "__main__":
    main()
