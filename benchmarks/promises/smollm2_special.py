"""Steering with latents of chat tokens (FAST, 2506.07691) on SmolLM2-135M-Instruct, in its chat template."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from real_sae import HOOK, load
from torch import Tensor

from promises import real_texts
from promises.report import Report
from saelab.analysis import repetition, special_tokens
from saelab.analysis.controls import random_directions
from saelab.analysis.steering.arms import matched
from saelab.corpora import dialogues
from saelab.interventions import Each, Steer
from saelab.subjects.hooks import normalise_edits

SEEDS, ASKED, TOKENS, CLEAN, ANSWERS = 3, 16, 16, 8, 8
ALPHAS = (0.125, 0.25, 0.5, 1.0)
PLACES = ("everywhere", "special")
MARKERS = ("<|im_start|>", "<|im_end|>")
LAST = "blocks.29.hook_resid_pre"
QUESTIONS = {
    "country_capital_city": "What is the capital of {}?",
    "country_currency": "What is the official currency of {}?",
    "country_language": "Which language do most people in {} speak?",
    "city_in_country": "In which country is {}?",
}
missing = real_texts.missing


def measure(seeds: Iterable[int]) -> Report:
    report = Report(
        "Steering a real model with latents of its chat tokens",
        f"SmolLM2-135M-Instruct in bfloat16, the SAE of `python benchmarks/real_sae.py` at {HOOK}; for "
        f"{' and '.join(MARKERS)} the latent of the largest mean code on it. alpha, in units of the latent's "
        "largest activation, is added everywhere (as in the paper; <|im_start|>, BOS too, counts as no row), "
        "or at special tokens but the first of a text, 170 times as long as others. hook, last: mean "
        "projection on the latent's direction against no edit, in units of an edit of alpha 1, at the edited "
        f"rows, there and at the last layer, of dialogues. right: of {ASKED} questions of fact, in the chat "
        "template, the share whose greedy answer holds the known one. loss: of the true answers of "
        "dialogues. repeated: 4-grams of words that came before. ppl: rise of the perplexity of WikiText. By "
        "seed: questions and random directions. Means over both latents; random: one direction, as far, at "
        "the same rows.",
    )
    gains = {name: [] for place in PLACES for name in (place, f"random, {place}")}
    steps = {name: [] for place in PLACES for name in (f"{place}, hook", f"{place}, last")}
    pooled: dict[str, list[np.ndarray]] = {}
    for seed in seeds:
        found = _seed(report, seed)
        for name, each in found.gains.items():
            gains[name].append(each)
        for name, each in found.steps.items():
            steps[name].append(each)
        for name, each in found.right.items():
            pooled.setdefault(name, []).append(each)
    for name, each in steps.items():
        report.promise(f"least step of the projection, {name}", each, 0)
    for place in PLACES:
        own, control = gains[place], gains[f"random, {place}"]
        report.promise(f"right at the alpha that others chose, minus no edit, {place}", own, 0.01)
        report.promise(f"that, minus the same of the random direction, {place}", np.subtract(own, control), 0)
        lost = report.of("no edit", "right") - report.of(f"{place} {ALPHAS[-1]:g}", "right")
        report.promise(f"right lost at the largest alpha, {place}", lost, 0.1)
    told = (
        f"{name} {_interval(pooled['no edit'], each)}" for name, each in pooled.items() if name != "no edit"
    )
    report.notes.append(
        "Share of right answers minus that of no edit, with 95 % intervals over the questions of all seeds: "
        f"{'; '.join(told)}."
    )
    return report


class _Found(NamedTuple):
    """Of one seed."""

    gains: dict[str, float]
    steps: dict[str, float]
    right: dict[str, np.ndarray]
    """arm -> [latents * questions]"""


@cache
def _loaded() -> Any:
    """The subject, the SAE, peaks, and a latent of each marker."""
    subject, sae, peaks = load()
    subject.module.to(torch.bfloat16)
    chats = dialogues(real_texts.dialogues(held_out=False)[:100])
    told = special_tokens(sae, subject, chats, packing="dialogue", max_rows=8000, include_bos=True)
    return subject, sae, peaks, [told.latents[marker][0][0] for marker in MARKERS]


def _asked(seed: int) -> list[tuple[str, str]]:
    """Questions, with what their answer must hold."""
    folder, found = real_texts.TOXICITY.parent / "facts" / "factual", []
    for name, question in QUESTIONS.items():
        samples = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["samples"]
        found += [(question.format(each["subject"]), each["object"]) for each in samples]
    random.Random(seed).shuffle(found)
    return found[: 2 * ASKED]


def _seed(report: Report, seed: int) -> _Found:
    """Adds the figures of one seed."""
    (subject, sae, peaks, latents), asked = _loaded(), _asked(seed)
    chats = real_texts.dialogues(held_out=True, characters=200)[:ANSWERS]
    wiki = [text[:400] for text in real_texts.paragraphs(held_out=True)[:CLEAN]]
    plain, quiet = _run(subject, chats, _none), _loss(subject, wiki, _none)
    direction = torch.from_numpy(random_directions(1, sae.d_out, seed)[0])
    base, answers = _answers(subject, asked, {"no edit": _none})["no edit"]
    right = {"no edit": [base[ASKED:]] * len(latents)}
    rows: dict[str, list[dict[str, float]]] = {"no edit": [_row(plain, plain, None, base, answers, 0.0)]}
    gains: dict[str, list[float]] = {}
    steps: dict[str, float] = {}
    for place in PLACES:
        for latent in latents:
            edits = {a: _steer(sae, latent, a, float(peaks[latent]), place) for a in ALPHAS}
            one = _run(subject, chats, edits[1.0]).hook.float() - plain.hook.float()
            controls = {a: _along(make, direction) for a, make in edits.items()}
            for name, arms in ((place, edits), (f"random, {place}", controls)):
                written = _answers(subject, asked, arms)
                best = max(ALPHAS, key=lambda a, written=written: written[a][0][:ASKED].mean())
                gains.setdefault(name, []).append(float((written[best][0] - base)[ASKED:].mean()))
                for alpha, edit in arms.items():
                    rise = np.exp(_loss(subject, wiki, edit) - quiet) - 1
                    row = _row(_run(subject, chats, edit), plain, one, *written[alpha], float(rise))
                    rows.setdefault(f"{name} {alpha:g}", []).append(row)
                    right.setdefault(f"{name} {alpha:g}", []).append(written[alpha][0][ASKED:])
            for where in ("hook", "last"):
                path = [0.0, *(rows[f"{place} {alpha:g}"][-1][where] for alpha in ALPHAS)]
                key = f"{place}, {where}"
                steps[key] = min(steps.get(key, np.inf), float(np.diff(path).min()))
    for name, each in rows.items():
        report.add(name, {column: float(np.mean([row[column] for row in each])) for column in each[0]})
    means = {name: float(np.mean(each)) for name, each in gains.items()}
    return _Found(means, steps, {name: np.concatenate(each) for name, each in right.items()})


Make = Callable[[int], Any]
"""From the width of a batch to edits: a mask is of its positions. Texts that grow take any."""


def _none(width: int) -> Any:
    return []


def _steer(sae: Any, latent: int, alpha: float, peak: float, place: str) -> Make:
    edit = Steer(sae, latent, alpha, "max", peak=peak)
    if place == "everywhere":
        return lambda width: edit
    return lambda width: edit.where(special=True, mask=torch.arange(width) > 0)


def _along(make: Make, direction: Tensor) -> Make:
    return lambda width: matched(normalise_edits(make(width)), {HOOK: direction})


def _answers(
    subject: Any, asked: Sequence[tuple[str, str]], arms: Mapping[Any, Make]
) -> dict[Any, tuple[np.ndarray, list[str]]]:
    """Arm -> whether each answer is right, and the answers. Edits share a batch, an arm a part of it."""
    found = {}
    template = subject.tokenizer.apply_chat_template
    prompts = [
        template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True)
        for q, _ in asked
    ]
    bare = subject.generate(prompts, max_new_tokens=0)
    made = {arm: make(subject.n_ctx) for arm, make in arms.items()}
    shared = not any(isinstance(edit, list) for edit in made.values())
    for some in [list(arms)] if shared else [[arm] for arm in arms]:
        edits = Each([made[arm] for arm in some for _ in prompts]) if shared else made[some[0]]
        texts = subject.generate(prompts * len(some), edits, max_new_tokens=TOKENS)
        for i, arm in enumerate(some):
            own = texts[i * len(prompts) : (i + 1) * len(prompts)]
            answers = [text[len(before) :] for text, before in zip(own, bare, strict=True)]
            right = [known.lower() in text.lower() for text, (_, known) in zip(answers, asked, strict=True)]
            found[arm] = np.array(right, dtype=float), answers
    return found


class _Run(NamedTuple):
    """Dialogues as they are, with an edit running."""

    hook: Tensor
    """[rows, width] at the hook point"""
    last: Tensor
    """[rows, width] at the last layer"""
    loss: float
    """of a token of the answers, nats"""


def _run(subject: Any, chats: Sequence[Sequence[Mapping[str, str]]], make: Make) -> _Run:
    told = [subject.chat_tokens([(turn["role"], turn["content"]) for turn in chat]) for chat in chats]
    inputs = subject.prepare_tokens([ids for ids, _ in told])
    ids = inputs.data["input_ids"]
    run = subject.run(inputs, read=[HOOK, LAST], edits=make(ids.shape[1]))
    real = torch.arange(ids.shape[1]) < torch.tensor(inputs.lengths)[:, None]
    written = torch.zeros_like(real)
    for i, (_, template) in enumerate(told):
        # the last stretch that the template did not write
        end = len(template) - template[::-1].index(False)
        start = max((j + 1 for j in range(end) if template[j]), default=0)
        written[i, start:end] = True
    here = written[:, 1:]
    loss = torch.nn.functional.cross_entropy(run.output[:, :-1][here].float(), ids[:, 1:][here])
    return _Run(run.acts[HOOK][real], run.acts[LAST][real], float(loss))


def _row(
    run: _Run, plain: _Run, one: Tensor | None, right: np.ndarray, answers: Sequence[str], rise: float
) -> dict[str, float]:
    hook = last = 0.0
    if one is not None:
        at = (one != 0).any(-1)
        unit = one[at] / one[at].square().sum(-1, keepdim=True)
        hook, last = (
            float(((new - old)[at].float() * unit).sum(-1).mean())
            for new, old in ((run.hook, plain.hook), (run.last, plain.last))
        )
    again = [value for text in answers if not np.isnan(value := repetition(text, 4))]
    repeated = float(np.mean(again)) if again else float("nan")
    return {"hook": hook, "last": last, "right": float(right[ASKED:].mean()), "loss": run.loss,
            "repeated": repeated, "ppl": rise}  # fmt: skip


def _loss(subject: Any, texts: Sequence[str], make: Make) -> float:
    """Nats a token, with the edits running."""
    inputs = subject.prepare(list(texts), truncate=True)
    summed, counted = subject.loss(inputs, make(inputs.data["input_ids"].shape[1]))
    return float(summed.sum() / counted.sum())


def _interval(plain: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> str:
    """Questions are drawn anew, the same of both."""
    apart = np.concatenate(right) - np.concatenate(plain)
    drawn = apart[np.random.default_rng(0).integers(len(apart), size=(2000, len(apart)))].mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{apart.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
