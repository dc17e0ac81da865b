"""Signed steering (AbsTopK, 2510.00404): one latent, clamped to either sign, writes of opposite poles."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from promises.report import Report
from promises.steered import HOOK, LAST, SAEs, rows
from saelab.analysis import select_latents
from saelab.corpora import world
from saelab.corpora.world_families import REVIEW_THINGS
from saelab.corpora.world_lexicon import NEGATIVE, POSITIVE
from saelab.interventions import AddDirection, Clamp, mean_difference

SEEDS, CANDIDATES, TOKENS = 3, 8, 12
SIZES, MULTIPLES = (0.25, 0.5, 1.0), (1.0, 2.0, 4.0)
STARTS = ("The {} was", "What a", "I found the {}", "It is simply", "From the first minute it feels")


def measure(seeds: Iterable[int]) -> Report:
    report = Report(
        "One latent for both poles of an opinion",
        f"The embedded model, SAEs of 1,024 latents at {LAST} trained anew for each seed. A latent is "
        "clamped everywhere to + or - a multiple of its largest |activation| while neutral openings of "
        "reviews are continued. +, -: of the opinion words (of a half of the lexicon that had no part in "
        "the choice) the share that is positive, at either pole, one of each added; gap: their difference; "
        "words: opinion words a continuation, of all halves, at the poorer pole. Latents: of the "
        f"{CANDIDATES} that tell good from bad reviews best, the one of the largest gap with the other half "
        "of the lexicon, and of multiples likewise. topk, two latents: one for each pole, each clamped "
        "upwards. random latent: another of the same SAE, at the same multiple. mean difference: of the "
        "activations of good and bad reviews, added everywhere, at the multiple that is best likewise.",
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
    tried, judged = prompts[::2] * 4, prompts[1::2] * 6
    reviews = [d.text for d in world(seed=200 + seed, n_documents=1200, families=["review"])]
    ours = [t for t in reviews if _count(t, shown[0]) and not _count(t, held[0]) and not _count(t, bad)][:150]
    theirs = [t for t in reviews if _count(t, shown[1]) and not _count(t, held[1]) and not _count(t, good)][
        :150
    ]
    subject = SAEs.of(seed, "topk", LAST).subject

    def trial(edit: Any) -> float:
        return _shares(subject, edit, tried, shown, seed)[0]

    def judge(name: str, up: Any, down: Any) -> None:
        high, low = (_shares(subject, edit, judged, held, seed) for edit in (up, down))
        report.add(name, {"+": high[0], "-": low[0], "gap": high[0] - low[0], "words": min(high[1], low[1])})

    for recipe in ("abs_topk", "topk"):
        _, sae, peaks = SAEs.of(seed, recipe, LAST)
        found = select_latents(
            sae,
            sorted(set(ours)),
            sorted(set(theirs)),
            k=CANDIDATES,
            pooling="mean",
            subject=subject,
            seed=seed,
        )
        trials = {}
        for choice in found.choices:
            for size in SIZES:
                value = choice.pole * size * float(peaks[choice.latent])
                trials[choice.latent, value] = tuple(
                    trial(Clamp(sae, choice.latent, v)) for v in (value, -value)
                )
        j, value = max(trials, key=lambda key: trials[key][0] - trials[key][1])
        judge(f"{recipe}, one latent", Clamp(sae, j, value), Clamp(sae, j, -value))
        if recipe == "topk":
            # the largest share of positive words, and the least, of latents that are clamped upwards
            raised = {(k, v): pair[0] for (k, v), pair in trials.items() if v > 0}
            raised |= {(k, -v): pair[1] for (k, v), pair in trials.items() if v < 0}
            up, down = max(raised, key=raised.__getitem__), min(raised, key=raised.__getitem__)
            judge("topk, two latents", Clamp(sae, *up), Clamp(sae, *down))
        others = [k for k in range(sae.config.d_sae) if k not in found.latents and peaks[k] > 0]
        other = rng.choice(others)
        own = abs(value) / float(peaks[j]) * float(peaks[other])
        judge(f"{recipe}, random latent", Clamp(sae, other, own), Clamp(sae, other, -own))
    for hook in (LAST, HOOK):
        apart = mean_difference(rows(subject, ours, hook), rows(subject, theirs, hook))
        pushes = {m: (AddDirection(hook, apart, m), AddDirection(hook, apart, -m)) for m in MULTIPLES}
        best = max(pushes, key=lambda m: trial(pushes[m][0]) - trial(pushes[m][1]))
        judge(f"mean difference, {hook}", *pushes[best])
    judge("no edit", [], [])


def _count(text: str, words: Sequence[str]) -> int:
    return sum(word in words for word in re.findall(r"[a-z]+", text.lower()))


def _shares(subject: Any, edits: Any, prompts: Sequence[str], words: Any, seed: int) -> tuple[float, float]:
    """Of the opinion words in continuations the share of positive ones, one of each added: few words say
    little; and how many a continuation holds of all there are."""
    texts = subject.generate(list(prompts), edits, max_new_tokens=TOKENS, temperature=1.0, seed=seed)
    said = [text[len(prompt) :] for prompt, text in zip(prompts, texts, strict=True)]
    good, bad = (sum(_count(text, half) for text in said) for half in words)
    every = sum(_count(text, [*POSITIVE, *NEGATIVE]) for text in said)
    return (good + 1) / (good + bad + 2), every / len(said)
