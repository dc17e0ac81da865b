"""Steering with latents of chat tokens (FAST, 2506.07691): what their strength does to a projection, and
whether some middle strength makes better answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from promises.report import Report
from promises.steered import HOOK, LAST, SAEs, holds
from saelab.analysis import Effect, dose_response, special_tokens
from saelab.analysis.controls import random_directions
from saelab.analysis.steering.arms import matched
from saelab.analysis.steering.effects import continued
from saelab.corpora import dialogues, world
from saelab.corpora.world_lexicon import POLITE, RUDE, TOPIC_WORDS
from saelab.interventions import Steer
from saelab.subjects.hooks import normalise_edits

SEEDS, ASKED, TOKENS, CLEAN, BATCH = 3, 200, 24, 40, 100
ALPHAS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
PLACES = ("everywhere", "special")
RANDOM = "random direction"
MARKERS = ("<|user|>", "<|assistant|>", "<|end|>")
TURN = re.compile(r"<\|(user|assistant)\|>(.*?)<\|end\|>")
OPENINGS = {"Of course!": "polite", "That was not kind.": "rude"}


def measure(seeds: Iterable[int]) -> Report:
    report = Report(
        "Steering with latents of the chat tokens",
        f"The embedded model, a TopK SAE of 1,024 latents at {HOOK} trained anew for each seed; for "
        f"{', '.join(MARKERS)} the latent of the largest mean code on it. alpha, in units of the latent's "
        "largest activation, is added everywhere (as in the paper) or at special tokens. hook, last: mean "
        "projection on the latent's direction against no edit, in the same units, at the edited rows, there "
        f"and at the last layer, on held-out dialogues. right: of {ASKED} held-out "
        "requests, answered greedily, the share whose opening suits (assent, rebuke or neither) and whose "
        "rest names the topic that was asked for and no other. loss: of the true answers. repeated: 4-grams "
        "of words that came before. kl: of the next token. ppl: rise of the perplexity of other texts. Means "
        "over the three latents; random: a random direction, as far, at the same rows.",
    )
    gains: dict[str, list[float]] = {f"{arm}{place}": [] for place in PLACES for arm in ("", "random, ")}
    steps: dict[str, list[float]] = {place: [] for place in PLACES}
    exact = [_seed(report, seed, gains, steps) for seed in seeds]
    report.promise("projection at the hook point against alpha, largest difference", exact, high=1e-3)
    for place in PLACES:
        report.promise(f"least step of the projection at the last layer, {place}", steps[place], 0)
    for place in PLACES:
        own, random = gains[place], gains[f"random, {place}"]
        report.promise(
            f"right at the alpha that is best on other requests, minus no edit, {place}", own, 0.01
        )
        report.promise(f"that, minus the same of the random direction, {place}", np.subtract(own, random), 0)
        lost = report.of("no edit", "right") - report.of(f"{place} {ALPHAS[-1]:g}", "right")
        report.promise(f"right lost at the largest alpha, {place}", lost, 0.1)
    return report


class _Asked(NamedTuple):
    """A request, what suits it, and an answer to it."""

    text: str
    manner: str
    topic: str
    answer: str

    @property
    def prompt(self) -> str:
        return f"<|user|>{self.text}<|end|><|assistant|>"


def _asked(seed: int, n: int) -> list[_Asked]:
    """First turns of dialogues that ask for one topic."""
    found = []
    for document in world(seed=seed, n_documents=8 * n, families=["chat"]):
        (_, text), (_, answer), *_ = TURN.findall(document.text)
        topics = _topics(text)
        manner = "rude" if holds(text, RUDE) else "polite" if holds(text, POLITE) else "plain"
        if len(topics) == 1:
            found.append(_Asked(text, manner, topics.pop(), answer))
    return found[:n]


def _topics(text: str) -> set[str]:
    words = set(re.findall("[a-z]+", text.lower()))
    return {topic for topic, own in TOPIC_WORDS.items() if words & {word.lower() for word in own}}


def _right(asked: Sequence[_Asked]) -> Callable[[list[str]], list[bool]]:
    def right(answers: list[str]) -> list[bool]:
        manners = [
            next((manner for start, manner in OPENINGS.items() if answer.strip().startswith(start)), "plain")
            for answer in answers
        ]
        given = zip(answers, manners, asked, strict=True)
        return [manner == each.manner and _topics(answer) == {each.topic} for answer, manner, each in given]

    return right


def _seed(report: Report, seed: int, gains: dict[str, list[float]], steps: dict[str, list[float]]) -> float:
    """Adds the figures of one seed. Returns how far the projection at the hook point is off, at most."""
    subject, sae, peaks = SAEs.of(seed, "topk")
    chats = [
        [{"role": role, "content": content} for role, content in TURN.findall(document.text)]
        for document in world(seed=300 + seed, n_documents=300, families=["chat"])
    ]
    told = special_tokens(sae, subject, dialogues(chats), packing="dialogue", seed=seed)
    choosing, judging = _asked(400 + seed, ASKED), _asked(900 + seed, ASKED)
    clean = [d.text for d in world(seed=500 + seed, n_documents=3 * CLEAN) if "<|" not in d.text][:CLEAN]
    plain = _run(subject, judging, [])
    rows: dict[str, list[dict[str, float]]] = {}
    own: dict[str, list[float]] = {key: [] for key in gains}
    least: dict[str, list[float]] = {key: [] for key in steps}
    off = 0.0
    for place in PLACES:
        for latent in (told.latents[marker][0][0] for marker in MARKERS):
            peak = float(peaks[latent])
            unit = sae.W_dec[latent].detach() * sae.out_scale
            unit = unit / (unit.square().sum() * peak)

            def steer(alpha: float, latent: int = latent, place: str = place, peak: float = peak) -> Any:
                edit = Steer(sae, latent, alpha, "max", peak=peak)
                return edit if place == "everywhere" else edit.where(special=True)

            found = dose_response(
                subject, steer, ALPHAS, [each.prompt for each in judging], target=_right(judging),
                clean=clean, controls=[RANDOM], draws=1, max_new_tokens=TOKENS, seed=seed, batch_size=BATCH,
            )  # fmt: skip
            rows.setdefault("no edit", []).append(_row(found, "no edit", None, plain, plain, unit))
            for arm, name in (("edit", place), (RANDOM, f"random, {place}")):
                edits = {a: steer(a) if arm == "edit" else _random(subject, steer(a), seed) for a in ALPHAS}
                best = max(ALPHAS, key=lambda a, edits=edits: _share(subject, choosing, edits[a]))
                gain = found.figure_of("target", arm, best).value
                own[name].append(gain - found.figure_of("target", "no edit").value)
                for alpha, edit in edits.items():
                    row = _row(found, arm, alpha, plain, _run(subject, judging, edit), unit)
                    rows.setdefault(f"{name} {alpha:g}", []).append(row)
            last = [0.0, *(rows[f"{place} {alpha:g}"][-1]["last"] for alpha in ALPHAS)]
            least[place].append(float(np.diff(last).min()))
            off = max(off, *(abs(rows[f"{place} {alpha:g}"][-1]["hook"] - alpha) for alpha in ALPHAS))
    for name, each in rows.items():
        report.add(name, {column: float(np.mean([row[column] for row in each])) for column in each[0]})
    for key in gains:
        gains[key].append(float(np.mean(own[key])))
    for key in steps:
        steps[key].append(min(least[key]))
    return off


def _share(subject: Any, asked: Sequence[_Asked], edit: Any) -> float:
    """Of right answers."""
    how = {"max_new_tokens": TOKENS}
    edits = normalise_edits(edit)
    return float(
        np.mean(_right(asked)(continued(subject, [each.prompt for each in asked], edits, how, BATCH)))
    )


def _random(subject: Any, edit: Any, seed: int) -> Any:
    """The direction that `dose_response` draws for its control."""
    direction = torch.from_numpy(random_directions(1, subject.width(HOOK), seed)[0])
    return matched(normalise_edits(edit), {HOOK: direction})


class _Run(NamedTuple):
    """Dialogues as they are, with an edit running."""

    hook: Tensor
    """[rows, width] at the hook point"""
    last: Tensor
    """[rows, width] at the last layer"""
    loss: float
    """of a token of the answers, nats"""


def _run(subject: Any, asked: Sequence[_Asked], edits: Any) -> _Run:
    inputs = subject.prepare([f"{each.prompt}{each.answer}<|end|>" for each in asked])
    run = subject.run(inputs, read=[HOOK, LAST], edits=edits)
    ids = inputs.data["input_ids"]
    real = torch.arange(ids.shape[1]) < torch.tensor(inputs.lengths)[:, None]
    (marker,) = subject.tokenizer.convert_tokens_to_ids([MARKERS[1]])
    written = ((ids == marker).cumsum(1)[:, :-1] > 0) & real[:, 1:]
    loss = torch.nn.functional.cross_entropy(run.output[:, :-1][written].float(), ids[:, 1:][written])
    return _Run(run.acts[HOOK][real], run.acts[LAST][real], float(loss))


def _row(
    found: Effect, arm: str, alpha: float | None, plain: _Run, run: _Run, unit: Tensor
) -> dict[str, float]:
    figures = found.arm(arm, alpha).figures
    edited = (run.hook != plain.hook).any(-1)
    hook, last = (
        float(((new - old)[edited] @ unit).mean()) if edited.any() else 0.0
        for new, old in ((run.hook, plain.hook), (run.last, plain.last))
    )
    return {
        "hook": hook,
        "last": last,
        "right": figures["target"].value,
        "loss": run.loss,
        "repeated": figures["repetition 4"].value,
        "kl": figures["kl"].value,
        "ppl": figures["clean perplexity ratio"].value - 1,
    }
