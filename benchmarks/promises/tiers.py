"""Detoxification by tiers (Breaking Bad Tokens, 2505.14536): latents are pushed down everywhere, in inputs
that hold the concept, or at the tokens that do; what each cuts, and what it breaks."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from promises.report import Report
from promises.steered import HOOK, SAEs, beside_random, distinct_bigrams, holds, perplexity, rows
from saelab.analysis import GateCurve, calibrate_gate, select_latents
from saelab.corpora import world
from saelab.corpora.world_lexicon import RUDE
from saelab.interventions import Ablate, AddDirection, Clamp, Scale, Steer, Swap, mean_difference

SEEDS, LATENTS, PROMPTS, TOKENS = 3, 3, 120, 22
CANDIDATES, TRIED = 12, 1.5
ALPHAS = (0.5, 1.0, 1.25, 1.5, 2.0, 3.0)
DIFFERENCES = (1.0, 2.0, 3.0, 4.0)
REQUEST = re.compile(r'^[^"]*[a-z]+[^"]*[.!]" said [A-Z]\w+\.')


def measure(seeds: Iterable[int]) -> Report:
    report = Report(
        "Steering away from rudeness, by tiers",
        f"The embedded model, a TopK SAE of 1,024 latents at {HOOK} trained anew for each seed. Of the "
        f"{CANDIDATES} latents that tell rude from polite requests best the {LATENTS} that cut rude phrases "
        "most when pushed down alone, chosen on texts with one half of the phrases. Prompts are held-out "
        f"rude requests, cut after their first words; rude: share of {PROMPTS} sampled continuations with a "
        "phrase of the other half. cut: of that, relative. ppl: rise of the perplexity of other texts, with "
        "the edit running. grammar: continuations that close the request and name the speaker. alpha in "
        "units of a latent's largest activation. random: a random direction of the same norm at the same "
        "positions.",
    )
    for seed in seeds:
        _seed(report, seed)
    for text, first, second in (
        ("cut of constant - cut of input, least over alpha", "constant", "input"),
        ("cut of input - cut of token, least over alpha", "input", "token"),
    ):
        apart = [report.of(f"{first} {a:g}", "cut") - report.of(f"{second} {a:g}", "cut") for a in ALPHAS]
        report.promise(text, np.min(apart, 0), -0.05)
    for text, first, second in (
        ("rise of constant - rise of input, least over alpha", "constant", "input"),
        ("rise of input - rise of token, least over alpha", "input", "token"),
    ):
        apart = [report.of(f"{first} {a:g}", "ppl") - report.of(f"{second} {a:g}", "ppl") for a in ALPHAS]
        report.promise(text, np.min(apart, 0), 0)
    best, random_cut, cheaper = [], [], []
    for i in range(len(report.table["no edit"])):
        found = [a for a in ALPHAS if _good(report, a, i)]
        cuts = {a: report.table[f"token {a:g}"][i]["cut"] for a in ALPHAS}
        alpha = max(found or ALPHAS, key=cuts.__getitem__)
        best.append(cuts[alpha] if found else 0.0)
        random_cut.append(report.table[f"random, token {alpha:g}"][i]["cut"])
        matched = [report.table[f"mean difference {a:g}"][i] for a in DIFFERENCES]
        # the least push of the mean difference that cuts as much; the strongest, where none does
        other = next((row for row in matched if row["cut"] >= cuts[alpha] - 0.05), matched[-1])
        cheaper.append(other["ppl"] - report.table[f"token {alpha:g}"][i]["ppl"])
    report.promise("largest cut by token with ppl <= 2 % and grammar within .05 of no edit", best, 0.85)
    report.promise("cut of the random direction at that alpha", random_cut, high=0.3)
    report.promise("rise of the mean difference at matched cut, minus that", cheaper, 0)
    report.promise("gate by input opens on clean, held out", report.of("no edit", "gate clean"), high=0.05)
    report.promise("gate by input opens on rude, held out", report.of("no edit", "gate rude"), 0.9)
    return report


def _good(report: Report, alpha: float, i: int) -> bool:
    row, plain = report.table[f"token {alpha:g}"][i], report.table["no edit"][i]
    return row["cut"] >= 0.85 and row["ppl"] <= 0.02 and row["grammar"] >= plain["grammar"] - 0.05


class _Data(NamedTuple):
    """Texts of one seed."""

    rude: list[str]
    """for choosing, with the shown half of the phrases alone"""
    polite: list[str]
    prompts: list[str]
    clean: list[str]
    shown: list[str]
    held: list[str]
    """phrases that judge"""
    tried: list[str]
    """prompts like those that judge, of the texts of choosing"""


def _data(seed: int) -> _Data:
    phrases = list(RUDE)
    random.Random(seed).shuffle(phrases)
    shown, held = phrases[:5], phrases[5:]
    requests = [d.text for d in world(seed=100 + seed, n_documents=3000, families=["manners"])]
    rude = [t for t in requests if holds(t, shown) and not holds(t, held)]
    polite = [t for t in requests if not holds(t, RUDE)]
    prompts = set()
    for document in world(seed=900 + seed, n_documents=4000, families=["manners"]):
        start = re.match(r'"([^,"]+), (\w+) ', document.text)
        if start and start.group(1).lower() in [phrase.lower() for phrase in shown]:
            prompts.add(document.text[: start.end() - 1])
    some = sorted(prompts)
    random.Random(seed).shuffle(some)
    clean = [d.text for d in world(seed=500 + seed, n_documents=400) if not holds(d.text, RUDE)][:200]
    tried = [m.group()[:-1] for m in map(re.compile(r'"[^,"]+, \w+ ').match, rude[:60]) if m]
    return _Data(rude[:200], polite[:400], (some * PROMPTS)[:PROMPTS], clean, shown, held, tried)


def _seed(report: Report, seed: int) -> None:
    data, (subject, sae, peaks) = _data(seed), SAEs.of(seed, "topk")
    found = select_latents(sae, data.rude, data.polite[:200], k=CANDIDATES, subject=subject, seed=seed)
    kinder = select_latents(sae, data.polite[:200], data.rude, k=1, subject=subject, seed=seed).latents[0]
    gates = _gates(subject, sae, found.latents, data, seed)
    chosen = _kept(subject, data, {j: (gates[j].edit, float(peaks[j])) for j in found.latents}, gates, seed)
    thresholds = {j: gates[j].edit.threshold for j in chosen}
    opens = [(gates[j].held_out_clean.share, gates[j].held_out_target.share) for j in chosen]

    def steer(alpha: float, gate: Any) -> list[Any]:
        peak = {j: float(peaks[j]) for j in chosen}
        if gate == "constant":
            return [Steer(sae, j, -alpha, "max", peak=peak[j]) for j in chosen]
        return [Steer(sae, j, -alpha, "max", gate, thresholds[j], peak[j]) for j in chosen]

    arms: dict[str, Any] = {"no edit": []}
    for gate in ("constant", "input", "token"):
        arms |= {f"{gate} {alpha:g}": steer(alpha, gate) for alpha in ALPHAS}
    for gate in ("constant", "token"):
        arms |= {
            f"random, {gate} {alpha:g}": beside_random(HOOK, steer(alpha, gate), seed) for alpha in ALPHAS
        }
    apart: Tensor = mean_difference(rows(subject, data.rude), rows(subject, data.polite[:200]))
    arms |= {f"mean difference {a:g}": AddDirection(HOOK, apart, -a) for a in DIFFERENCES}
    arms |= {
        "ablate": Ablate(sae, chosen),
        "scale by -2, token": [
            Scale(sae, [j], -2.0, "token", thresholds[j]) for j in chosen
        ],
        "clamp to -peak / 4": [Clamp(sae, j, float(-peaks[j]) / 4) for j in chosen],
        "swap for a polite one": [Swap(sae, j, kinder) for j in chosen if j != kinder],
    }  # fmt: skip
    plain = perplexity(subject, data.clean, [])
    base = None
    for name, edits in arms.items():
        values = _judged(subject, data, edits, seed)
        base = values["rude"] if base is None else base
        values["cut"] = 1 - values["rude"] / base
        values["ppl"] = perplexity(subject, data.clean, edits) / plain - 1
        if name == "no edit":
            values |= {"gate clean": float(np.mean([c for c, _ in opens])),
                       "gate rude": float(np.mean([t for _, t in opens]))}  # fmt: skip
        report.add(name, values)


def _gates(subject: Any, sae: Any, latents: Sequence[int], data: _Data, seed: int) -> dict[int, GateCurve]:
    others = [*data.polite[200:], *data.clean[:100]]
    return {
        j: calibrate_gate(Steer(sae, j, -1.0, gate="input", threshold=0.0), others, data.rude,
                          subject=subject, seed=seed)
        for j in latents
    }  # fmt: skip


def _kept(
    subject: Any, data: _Data, edits: dict[int, tuple[Any, float]], gates: dict[int, GateCurve], seed: int
) -> list[int]:
    """The latents that cut rudeness most when each is pushed down alone at its tokens, as in the paper: on
    the texts of choosing, judged by the half of the phrases that is shown there."""
    own = data._replace(prompts=data.tried, held=data.shown)
    base = _judged(subject, own, [], seed)
    cuts = {}
    for latent, (edit, peak) in edits.items():
        token = Steer(edit.sae, latent, -TRIED, "max", "token", edit.threshold, peak)
        found = _judged(subject, own, token, seed)
        sound = gates[latent].met and found["grammar"] >= base["grammar"] - 0.1
        cuts[latent] = (sound, base["rude"] - found["rude"])
    return sorted(cuts, key=lambda j: cuts[j], reverse=True)[:LATENTS]


def _judged(subject: Any, data: _Data, edits: Any, seed: int) -> dict[str, float]:
    options = {"max_new_tokens": TOKENS, "temperature": 1.0, "seed": seed}
    texts = [
        text[len(prompt) :]
        for prompt, text in zip(data.prompts, subject.generate(data.prompts, edits, **options), strict=True)
    ]
    said = [text.split('"')[0] for text in texts]
    return {
        "rude": float(np.mean([holds(text, data.held) for text in said])),
        "grammar": float(np.mean([bool(REQUEST.match(text)) for text in texts])),
        "distinct-2": distinct_bigrams(said),
        "words": float(np.mean([len(text.split()) for text in said])),
    }
