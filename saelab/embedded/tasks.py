"""Prompts in pairs of four tasks that the embedded model does, for work on circuits: of names, templates,
years and pairs of nouns that its training never saw."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

from saelab.arguments import an_integer, checked, one_of
from saelab.corpora import world_families as families
from saelab.corpora import world_lexicon as lexicon
from saelab.types import ConfigError

Kind = Literal["indirect object", "greater than", "docstring", "agreement"]
TRIES = 200
"""Prompts that are written for each that is wanted, at most: most do not fit."""


class Prompts(NamedTuple):
    """Prompts in pairs, as `saelab.analysis.prompt_task` takes them."""

    clean: list[str]
    corrupt: list[str]
    right: list[list[str]]
    wrong: list[list[str]]
    score: Literal["logits", "probabilities"]


class _Pair(NamedTuple):
    clean: str
    corrupt: str
    right: list[str]
    wrong: list[str]


@checked(kind=one_of(*get_args(Kind)), n=an_integer(1), seed=an_integer())
def task_prompts(kind: Kind, to_tokens: Callable[..., Sequence[int]], n: int = 64, seed: int = 0) -> Prompts:
    """Pairs of prompts of a task; a corrupt one has as many tokens as its clean twin.

    "indirect object": the corrupt prompt has a third person give, so that neither name follows (the ABC
    prompts of Wang et al. 2022). "greater than": the corrupt span starts in the year 01 (Hanna et al. 2023).
    "docstring": the corrupt signature has other arguments (Heimersheim & Janiak 2023). "agreement": two nouns
    joined by "and" were, one beside another was (the world has no plural nouns); the corrupt prompt is the
    other of the two, and every second pair begins with either.

    Args:
        kind: Which task.
        to_tokens: The subject's.
        n: How many pairs.
        seed: Of the draws.

    Raises:
        ConfigError: There is no such task, or the tokenizer leaves too few pairs.
    """
    rng = random.Random(f"{kind}-{seed}")
    write = {
        "indirect object": _names, "greater than": _years, "docstring": _arguments, "agreement": _numbers,
    }[kind]  # fmt: skip
    found: list[_Pair] = []
    for _ in range(TRIES * n):
        if len(found) == n:
            break
        pair = write(rng)
        if pair is not None and _fits(pair, to_tokens):
            found.append(pair)
    if len(found) < n:
        message = (
            f"The tokenizer must leave enough pairs of one length. Got {len(found)} of {n} {kind} prompts. "
            "Ask for fewer, or take the embedded model's tokenizer."
        )
        raise ConfigError(message)
    clean, corrupt, right, wrong = (list(side) for side in zip(*found, strict=True))
    return Prompts(clean, corrupt, right, wrong, "probabilities" if kind == "greater than" else "logits")


def _fits(pair: _Pair, to_tokens: Callable[..., Sequence[int]]) -> bool:
    first = [{to_tokens(a, bos=False)[0] for a in side} for side in (pair.right, pair.wrong)]
    return len(to_tokens(pair.clean)) == len(to_tokens(pair.corrupt)) and not first[0] & first[1]


def _names(rng: random.Random) -> _Pair | None:
    writer = families.Writer("heldout", rng)
    a, b, c = rng.sample(lexicon.names("heldout"), 3)
    giver, receiver = rng.choice([(a, b), (b, a)])
    template = writer.template(families.IOI_OPENINGS) + writer.template(families.IOI_ACTIONS)
    slots = writer.common() | {"a": (a, ""), "b": (b, ""), "s": ("\0", ""), "io": ("\1", "")}
    slots["object"] = (rng.choice(lexicon.OBJECTS), "")
    writer.fill(template, slots)
    text = "".join(writer.pieces).split(" \1")[0]
    return _Pair(text.replace("\0", giver), text.replace("\0", c), [f" {receiver}"], [f" {giver}"])


def _years(rng: random.Random) -> _Pair | None:
    writer = families.Writer("heldout", rng)
    century, start, _ = families.year_span(rng, "heldout")
    slots = writer.common() | {"c": (f"{century}", ""), "y": ("\0", ""), "z": ("\1", "")}
    slots["name"] = (writer.name(), "")
    writer.fill(writer.template(families.YEAR_SUBJECTS) + writer.template(families.YEAR_RANGES), slots)
    text = "".join(writer.pieces).split("\1")[0]
    if "\0" not in text:
        return None
    later = [f"{y:02}" for y in range(start + 1, 100)]
    earlier = [f"{y:02}" for y in range(start + 1)]
    return _Pair(text.replace("\0", f"{start:02}"), text.replace("\0", "01"), later, earlier)


def _arguments(rng: random.Random) -> _Pair | None:
    writer = families.Writer("heldout", rng)
    families.docstring(writer)
    text = "".join(writer.pieces)
    named = [s for s in writer.spans if s.label == "documented argument"]
    at = rng.randrange(1, len(named))
    words = [text[s.start : s.end] for s in named]
    begin, end = text[: named[at].start], text.index("):\n")
    other = rng.sample([a for a in lexicon.argument_names("heldout") if a not in words], len(words))
    head = text[:end]
    opened = head.index("(") + 1
    prefix = "self, " if head[opened:].startswith("self, ") else ""
    corrupt = head[:opened] + prefix + ", ".join(other) + begin[end:]
    # a space belongs to the word that follows it
    space = " " * begin.endswith(" ")
    wrong = [f"{space}{w}" for i, w in enumerate(words) if i != at]
    return _Pair(begin.rstrip(" "), corrupt.rstrip(" "), [f"{space}{words[at]}"], wrong)


def _numbers(rng: random.Random) -> _Pair:
    """Of nouns that no text of training joins: its pairs are of one topic, or of names."""
    topics = [lexicon.TOPIC_WORDS[topic] for topic in rng.sample(list(lexicon.TOPIC_WORDS), 2)]
    one, other = rng.choice([
        rng.sample(families.REVIEW_THINGS, 2), rng.sample(lexicon.PLACES, 2), [rng.choice(t) for t in topics],
        [rng.choice(lexicon.PLACES), rng.choice(topics[0])],
    ])  # fmt: skip
    several, alone = f"The {one} and the {other}", f"The {one} {rng.choice(['near', 'of', 'in'])} the {other}"
    if rng.random() < 0.5:
        return _Pair(several, alone, [" were"], [" was"])
    return _Pair(alone, several, [" was"], [" were"])


__all__ = ["Kind", "Prompts", "task_prompts"]
