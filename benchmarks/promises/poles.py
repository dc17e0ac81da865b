"""Signed steering (AbsTopK, 2510.00404): one latent, clamped to either sign, writes of opposite poles."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from promises.report import Report
from promises.steered import HOOK, SAEs
from saelab.corpora import world
from saelab.corpora.world_families import REVIEW_THINGS
from saelab.corpora.world_lexicon import NEGATIVE, POSITIVE
from saelab.interventions import Clamp
from saelab.sae import SAE

SEEDS, CANDIDATES, TOKENS = 3, 8, 12
SIZES = (0.25, 0.5, 1.0)
STARTS = ("The {} was", "What a", "I found the {}", "It is simply", "From the first minute it feels")


def measure(seeds: Iterable[int]) -> Report:
    report = Report(
        "One latent for both poles of an opinion",
        f"The embedded model, SAEs of 1,024 latents at {HOOK} trained anew for each seed. A latent is "
        "clamped everywhere to + or - a multiple of its largest |activation| while neutral openings of "
        "reviews are continued. +, -: of the opinion words (of a half of the lexicon that had no part in "
        "the choice) the share that is positive, at either pole, one of each added; gap: their difference. "
        f"Latents: of the {CANDIDATES} whose mean code differs most between good and bad reviews, the one of "
        "the largest gap with the other half of the lexicon, and of multiples likewise. topk, two latents: "
        "one for each pole, each clamped upwards. random latent: another of the same SAE, at the same "
        "multiple.",
    )
    for seed in seeds:
        _seed(report, seed)
    gap, topk = report.of("abs_topk, one latent", "gap"), report.of("topk, one latent", "gap")
    report.promise(
        "positive share at the positive pole, abs_topk", report.of("abs_topk, one latent", "+"), 0.75
    )
    report.promise(
        "positive share at the negative pole, abs_topk", report.of("abs_topk, one latent", "-"), high=0.25
    )
    report.promise("gap of a random latent", np.abs(report.of("abs_topk, random latent", "gap")), high=0.3)
    report.promise("gap of one latent, abs_topk - topk", gap - topk, 0, on_average=True)
    return report


def _seed(report: Report, seed: int) -> None:
    rng = random.Random(seed)
    good, bad = list(POSITIVE), list(NEGATIVE)
    rng.shuffle(good)
    rng.shuffle(bad)
    shown, held = (good[:9], bad[:9]), (good[9:], bad[9:])
    prompts = [start.format(thing) for start in STARTS for thing in REVIEW_THINGS]
    tried, judged = prompts[::2] * 2, prompts[1::2] * 6
    reviews = [d.text for d in world(seed=200 + seed, n_documents=1200, families=["review"])]
    ours = [t for t in reviews if _count(t, shown[0]) and not _count(t, held[0]) and not _count(t, bad)][:150]
    theirs = [t for t in reviews if _count(t, shown[1]) and not _count(t, held[1]) and not _count(t, good)][
        :150
    ]
    for recipe in ("abs_topk", "topk"):
        subject, sae, peaks = SAEs.of(seed, recipe)
        apart = _mean_codes(subject, sae, ours) - _mean_codes(subject, sae, theirs)
        strong = apart.abs().argsort(descending=True)[:CANDIDATES].tolist()

        def share(j: int, value: float, texts: Sequence[str], words: Any, subject=subject, sae=sae) -> float:
            return _share(subject, Clamp(sae, j, value), texts, words, seed)

        trials = {}
        for j in strong:
            sign = 1.0 if apart[j] > 0 else -1.0
            for size in SIZES:
                value = sign * size * float(peaks[j])
                trials[j, value] = share(j, value, tried, shown), share(j, -value, tried, shown)
        j, value = max(trials, key=lambda key: trials[key][0] - trials[key][1])
        _add(report, f"{recipe}, one latent", share(j, value, judged, held), share(j, -value, judged, held))
        if recipe == "topk":
            # the largest share of positive words, and the least, of latents that are clamped upwards
            raised = {(k, v): pair[0] for (k, v), pair in trials.items() if v > 0}
            raised |= {(k, -v): pair[1] for (k, v), pair in trials.items() if v < 0}
            up, down = max(raised, key=raised.__getitem__), min(raised, key=raised.__getitem__)
            _add(report, "topk, two latents", share(*up, judged, held), share(*down, judged, held))
        others = [k for k in range(sae.d_sae) if k not in strong and peaks[k] > 0]
        other = rng.choice(others)
        own = abs(value) / float(peaks[j]) * float(peaks[other])
        _add(
            report,
            f"{recipe}, random latent",
            share(other, own, judged, held),
            share(other, -own, judged, held),
        )
    plain = _share(subject, [], judged, held, seed)
    _add(report, "no edit", plain, plain)


def _add(report: Report, name: str, up: float, down: float) -> None:
    report.add(name, {"+": up, "-": down, "gap": up - down})


def _count(text: str, words: Sequence[str]) -> int:
    return sum(word in words for word in re.findall(r"[a-z]+", text.lower()))


def _mean_codes(subject: Any, sae: SAE, texts: Sequence[str]) -> torch.Tensor:
    inputs = subject.prepare(list(texts), truncate=True)
    acts = subject.run(inputs, read=HOOK).acts[HOOK][torch.from_numpy(inputs.counted)]
    with torch.no_grad():
        return sae.encode(acts).mean(0)


def _share(subject: Any, edits: Any, prompts: Sequence[str], words: Any, seed: int) -> float:
    """Of the opinion words in continuations the share of positive ones, one of each added: few words say
    little."""
    texts = subject.generate(list(prompts), edits, max_new_tokens=TOKENS, temperature=1.0, seed=seed)
    said = [text[len(prompt) :] for prompt, text in zip(prompts, texts, strict=True)]
    good, bad = (sum(_count(text, half) for text in said) for half in words)
    return (good + 1) / (good + bad + 2)
