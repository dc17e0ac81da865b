"""Erasing a topic (Interpret then Deactivate, 2503.09446): its latents are turned down in the inputs that a
gate flags; what is left of the topic, and what becomes of others."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from promises.report import Report
from promises.steered import HOOK, SAEs, beside_random, rows
from saelab.analysis import calibrate_gate, select_latents
from saelab.analysis.steering.natural import Natural
from saelab.analysis.steering.pooled import rates
from saelab.analysis.steering.separation import auroc
from saelab.corpora import Document, world
from saelab.corpora.world_families import TOPIC_TEMPLATES
from saelab.corpora.world_lexicon import TOPIC_WORDS
from saelab.interventions import Each, Erase, Substitute

SEEDS, TOPICS = 3, 1
LATENTS, TAU, STRONGER, MAX_CLEAN = 20, -1.0, -2.0, 0.01
HELD_WORDS, HELD_TEMPLATES = 4, 3
PROMPTS, OTHERS, TOKENS = 50, 10, 30
RELATIVE = ("words", "synonyms", "held words", "others")
"""Columns in units of what they are without an edit."""
GATED = ("erase", f"erase, tau {STRONGER:g}", "ablate", "detect and replace")
ALIKE = 20
"""Latents of the most similar firing rate, of which a random one is drawn."""
TRIED = ("cooking", "space")
"""Topics on which the number of latents, tau and the gate were settled, with SAEs of other seeds."""


def measure(seeds: Iterable[int]) -> Report:
    report = Report(
        "Erasing a topic with a gate",
        f"The embedded model, a TopK SAE of 1,024 latents at {HOOK} trained anew for each seed, "
        f"{TOPICS} topic each, no topic twice. The {LATENTS} latents that tell pairs of sentences on the "
        f"topic from others best, and the gate, are fitted without {HELD_WORDS} of the topic's 12 words and "
        f"{HELD_TEMPLATES} of the 8 templates. Prompts are pairs of sentences of held-out templates; "
        "synonyms: of any template, with held-out words alone. words: how many words of the topic "
        f"{TOKENS} sampled tokens hold, of what they hold without an edit; any: share of continuations with "
        "one; held words: words, of held-out ones alone; others: words of their own that continuations of "
        "the 11 other topics hold, of before; kept: share of these with one; sentences: share of what is "
        "written that is a sentence of the model's world; same bits: share of inputs that the gate does not "
        "flag, of other topics and kinds, whose logits keep every bit; norm, mahalanobis, nearest: of edited "
        "activations of the prompts, in units of what is usual for natural ones. random latents: as many "
        "others of like firing rates, turned down as far in the very inputs that the gate flags; random "
        "direction: moved as far at the same positions.",
        each="runs of a seed and a topic",
    )
    for seed in seeds:
        for topic in topics_of(seed):
            _run(report, seed, topic)
    _promise(report)
    return report


def _promise(report: Report) -> None:
    erased, stronger = "erase", f"erase, tau {STRONGER:g}"
    for arm, name in ((erased, ""), (stronger, f", tau {STRONGER:g}")):
        report.promise(f"words of the topic, held-out templates{name}", report.of(arm, "words"), high=0.1)
        report.promise(
            f"words of the topic, prompts of held-out words{name}", report.of(arm, "synonyms"), high=0.25
        )
        report.promise(f"held-out words of the topic{name}", report.of(arm, "held words"), high=0.25)
        report.promise(f"words of other topics{name}", report.of(arm, "others"), 0.99)
        kept = report.of(arm, "kept") - report.of("no edit", "kept")
        report.promise(f"other topics kept, less before{name}", kept, -0.01)
        report.promise(f"same bits where nothing is flagged{name}", report.of(arm, "same bits"), 1, 1)
    report.promise("AUROC of the gate, held-out templates and words", report.of("no edit", "AUROC"), 0.97)
    broken = report.of(erased, "sentences") - report.of("random latents", "sentences") >= 0.05
    report.promise(
        "random latents fail: 80 % of the words left, or 5 points more of the sentences broken",
        (report.of("random latents", "words") >= 0.8) | broken,
        1,
    )


def topics_of(seed: int) -> list[str]:
    """The topics of a seed; up to two of them, those of the first five seeds are all different."""
    names = [name for name in TOPIC_WORDS if name not in TRIED]
    random.Random(0).shuffle(names)
    return [names[(2 * seed + i) % len(names)] for i in range(TOPICS)]


class _Data(NamedTuple):
    """Texts of one seed and topic."""

    words: tuple[str, ...]
    held: tuple[str, ...]
    """words that had no part in any choice"""
    chosen_on: tuple[list[str], list[str]]
    """sentences on the topic, and others"""
    calibrated_on: tuple[list[str], list[str]]
    """the same kinds, for the gate"""
    prompts: list[str]
    synonyms: list[str]
    others: dict[str, list[str]]
    """topic -> prompts"""
    clean: list[str]
    """texts of all kinds without the topic"""
    natural: list[str]
    """others of these"""


def _data(seed: int, topic: str) -> _Data:
    words, templates = list(TOPIC_WORDS[topic]), list(TOPIC_TEMPLATES)
    rng = random.Random(f"{seed} {topic}")
    rng.shuffle(words)
    rng.shuffle(templates)
    held, shown = tuple(words[:HELD_WORDS]), words[HELD_WORDS:]
    old = [_pattern(t) for t in templates[HELD_TEMPLATES:]]
    new = [_pattern(t) for t in templates[:HELD_TEMPLATES]]

    def some(texts: Iterable[str], n: int, patterns: Sequence[re.Pattern[str]] = ()) -> list[str]:
        kept = sorted({t for t in texts if not patterns or all(_of(patterns, s) for s in _sentences(t))})
        rng.shuffle(kept)
        return kept[:n]

    fitted, judged = _openings(10_000 + seed), _openings(20_000 + seed)
    ours = some((t for t in fitted[topic] if not count(t, held)), 600, old)
    theirs = some((t for name, texts in fitted.items() if name != topic for t in texts), 2000, old)
    without = [
        [d.text for d in world(seed=number + seed, n_documents=700) if not count(d.text, words)]
        for number in (30_000, 40_000, 50_000)
    ]
    half = len(ours) // 2
    calibrating = [*theirs[1000:], *without[0][:400]]
    return _Data(
        words=tuple(words),
        held=held,
        chosen_on=(ours[:half], theirs[:1000]),
        calibrated_on=(ours[half:], calibrating),
        prompts=some((t for t in judged[topic] if count(t, shown)), PROMPTS, new),
        synonyms=some((t for t in judged[topic] if not count(t, shown)), PROMPTS),
        others={name: some(judged[name], OTHERS, new) for name in TOPIC_WORDS if name != topic},
        clean=without[1][:300],
        natural=without[2][:300],
    )


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(template)))


@functools.cache
def _openings(seed: int) -> dict[str, list[str]]:
    """Topic -> pairs of sentences of documents that hold no other topic's words."""
    found: dict[str, list[str]] = {name: [] for name in TOPIC_WORDS}
    for document in world(seed=seed, n_documents=40_000, families=["topic"]):
        of = [name for name, words in TOPIC_WORDS.items() if count(document.text, words)]
        if len(of) == 1:
            sentences = _sentences(document.text)
            found[of[0]] += [" ".join(sentences[i : i + 2]) for i in range(0, len(sentences) - 1, 2)]
    return found


def _of(patterns: Sequence[re.Pattern[str]], sentence: str) -> bool:
    return any(pattern.fullmatch(sentence) for pattern in patterns)


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) ", text)


def count(text: str, words: Sequence[str]) -> int:
    """How many words of a text are among these."""
    return sum(word in words for word in re.findall("[a-z]+", text.lower()))


def _run(report: Report, seed: int, topic: str) -> None:
    data, (subject, sae, _) = _data(seed, topic), SAEs.of(seed, "topk")
    options = {"subject": subject, "seed": seed, "batch_size": 64}
    found = select_latents(sae, *data.chosen_on, k=LATENTS, pooling="mean", **options)
    target, clean = data.calibrated_on
    blank = Erase(sae, found.latents, TAU, threshold=0.0)
    gate = calibrate_gate(blank, clean, target, max_clean=MAX_CLEAN, held_out=0.25, **options)
    # unseen words are fainter than those that were fitted on: the lowest threshold that the limit allows
    lowest = gate.curve.threshold[gate.curve.false <= MAX_CLEAN].min()
    erase = replace(gate.edit, threshold=max(float(lowest), 0.0))
    natural = rows(subject, data.natural)
    same = {"gate": "input", "threshold": erase.threshold, "probe": erase.probe}
    ablate = Erase(sae, found.latents, 0.0, **same)
    substitute = Substitute(sae, found.latents, natural[::2], **same)
    others = Erase(sae, _alike(subject, sae, found.latents, data, seed), TAU, "constant")
    arms: dict[str, Any] = {
        "no edit": lambda texts: [],
        "erase": lambda texts: erase,
        f"erase, tau {STRONGER:g}": lambda texts: replace(erase, tau=STRONGER),
        "ablate": lambda texts: ablate,
        "detect and replace": lambda texts: substitute,
        "erase, no gate": lambda texts: Erase(sae, found.latents, TAU, "constant"),
        "random latents": lambda texts: _where_flagged(subject, erase, others, texts),
        "random direction": lambda texts: beside_random(HOOK, [erase], seed),
    }
    texts = [*_flat(data.others), *data.clean]
    yardstick = Natural.fit(natural, rows(subject, data.clean))
    usual = float(natural.norm(dim=1).mean())
    before: dict[str, float] = {}
    for name, edits in arms.items():
        values = _written(subject, data, edits, seed)
        before = before or dict(values)
        values |= {column: values[column] / before[column] for column in RELATIVE}
        if name in GATED:
            values["same bits"] = _same_bits(subject, erase, edits(texts), texts)
        values |= _natural(subject, edits(data.prompts), data.prompts, yardstick, usual)
        if name == "no edit":
            signals = _signal(subject, erase, [*data.prompts, *data.synonyms]), _signal(subject, erase, texts)
            values |= {
                "AUROC": auroc(*signals),
                "flagged": float((signals[0] > erase.threshold).mean()),
                "flagged, clean": float((signals[1] > erase.threshold).mean()),
            }
        report.add(name, values)


def _written(subject: Any, data: _Data, edits: Any, seed: int) -> dict[str, float]:
    """What continuations hold, with edits made for their prompts."""

    def said(prompts: Sequence[str]) -> list[str]:
        options = {"max_new_tokens": TOKENS, "temperature": 1.0, "seed": seed}
        texts = subject.generate(list(prompts), edits(list(prompts)), **options)
        return [text[len(prompt) :] for prompt, text in zip(prompts, texts, strict=True)]

    ours, synonyms = said(data.prompts), said(data.synonyms)
    own = [name for name, prompts in data.others.items() for _ in prompts]
    theirs = [
        count(text, TOPIC_WORDS[name]) for name, text in zip(own, said(_flat(data.others)), strict=True)
    ]
    whole = [s for text in ours for s in _sentences(text.strip())[:-1]]
    patterns = [_pattern(template) for template in TOPIC_TEMPLATES]
    return {
        "words": float(np.mean([count(text, data.words) for text in ours])),
        "any": float(np.mean([count(text, data.words) > 0 for text in ours])),
        "synonyms": float(np.mean([count(text, data.words) for text in synonyms])),
        "held words": float(np.mean([count(text, data.held) for text in ours])),
        "others": float(np.mean(theirs)),
        "kept": float(np.mean([n > 0 for n in theirs])),
        "sentences": float(np.mean([_of(patterns, s) for s in whole] or [0])),
    }


def _alike(subject: Any, sae: Any, latents: Sequence[int], data: _Data, seed: int) -> list[int]:
    """Other latents, each on about as often as one of these in sentences on the topic."""
    documents = [Document(str(i), text) for i, text in enumerate(data.chosen_on[0])]
    rate = rates(subject, sae, documents, 64)
    rng, drawn = np.random.default_rng(seed), list[int]()
    for j in latents:
        free = np.setdiff1d(np.flatnonzero(rate > 0), [*latents, *drawn])
        near = free[np.argsort(np.abs(rate[free] - rate[j]), kind="stable")[:ALIKE]]
        drawn.append(int(rng.choice(near)))
    return drawn


def _signal(subject: Any, edit: Any, texts: Sequence[str]) -> np.ndarray:
    """float64 [texts]: what a gate of inputs compares with its threshold."""
    found: list[float] = []
    for start in range(0, len(texts), 50):
        inputs = subject.prepare(list(texts[start : start + 50]), truncate=True)
        acts, counted = subject.run(inputs, read=HOOK).acts[HOOK], torch.from_numpy(inputs.counted)
        with torch.no_grad():
            found += [float(edit.signal(x[c]).mean()) for x, c in zip(acts, counted, strict=True)]
    return np.array(found)


def _where_flagged(subject: Any, gated: Any, edit: Any, texts: Sequence[str]) -> Any:
    """An edit without a gate, of those texts that another's gate flags."""
    flags = _flagged(subject, gated, texts)
    return Each([edit if flag else [] for flag in flags]) if flags.any() else []


def _flagged(subject: Any, edit: Any, texts: Sequence[str]) -> np.ndarray:
    return _signal(subject, edit, texts) > edit.threshold


def _same_bits(subject: Any, gated: Any, edits: Any, texts: Sequence[str]) -> float:
    """Of texts that a gate does not flag the share whose logits an edit leaves as they are, bit for bit."""
    same: list[bool] = []
    for start in range(0, len(texts), 50):
        some = list(texts[start : start + 50])
        inputs = subject.prepare(some, truncate=True)
        plain, edited = subject.run(inputs).output, subject.run(inputs, edits=edits).output
        flags = _flagged(subject, gated, some)
        same += [torch.equal(plain[i], edited[i]) for i in np.flatnonzero(~flags)]
    return float(np.mean(same))


def _natural(
    subject: Any, edits: Any, texts: Sequence[str], yardstick: Natural, usual: float
) -> dict[str, float]:
    """How far edited activations are from natural ones, in units of what is usual."""
    inputs = subject.prepare(list(texts), truncate=True)
    acts = subject.run(inputs, read=HOOK, edits=edits).acts[HOOK]
    x: Tensor = acts[torch.from_numpy(inputs.counted)]
    ratios = {name: float(each.mean()) for name, each in yardstick.ratios(x).items()}
    return {"norm": float(x.norm(dim=1).mean()) / usual, **ratios}


def _flat(texts: dict[str, list[str]]) -> list[str]:
    return [text for some in texts.values() for text in some]
