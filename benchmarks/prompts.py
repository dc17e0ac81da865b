"""Prompts in pairs for circuits: the embedded model's, public ones, and agreement written here.

A task is a function from a number of pairs to what `prompt_task` takes. Of other models than the embedded one
indirect objects and years are public prompts (shared/data/prompts/circuits), those that the tokenizer leaves
in pairs of one length; SmolLM2's has digits for years, so that there the answer is a later decade, and the
same decade counts for neither side. Agreement is of a noun before an attractor of the other number ("The keys
near the cabinet": are, were, have), whose twin has the noun's other number.
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from saelab.corpora.world_prompts import ORDER, AttributedPrompts
from saelab.embedded.tasks import Kind, task_prompts

PUBLIC = Path(__file__).resolve().parents[2] / "shared" / "data" / "prompts" / "circuits"
Task = Callable[[int], dict[str, Any]]
PAIR = r"\b[A-Z][a-z]+ and [A-Z][a-z]+\b"
VALUES = 12
"""Names of prompts with attributes: each has to come often enough for a mean."""

PEOPLE = "teacher doctor farmer singer lawyer painter driver student writer pilot".split()
THINGS = "key book table window picture letter garden house car boat road tree".split()
PLACES = "near behind beside above by".split()
PLURAL, SINGULAR = [" are", " were", " have"], [" is", " was", " has"]


def tasks_of(name: str, subject: Any) -> dict[str, Task]:
    """The tasks of a model, by name.

    Args:
        name: Of the model: "embedded", or another.
        subject: It.
    """
    return of_the_world(subject) if name == "embedded" else of_the_public(subject)


def of_the_world(subject: Any) -> dict[str, Task]:
    """Tasks of the embedded model."""

    def of(kind: Any) -> Task:
        return lambda n: task_prompts(kind, subject.to_tokens, n, seed=1)._asdict()

    return {kind: of(kind) for kind in get_args(Kind)}


def of_the_public(subject: Any) -> dict[str, Task]:
    """Tasks of other models."""

    def fits(clean: str, corrupt: str) -> bool:
        return len(subject.to_tokens(clean)) == len(subject.to_tokens(corrupt))

    def names(n: int) -> dict[str, Any]:
        pairs = []
        for row in _rows("ioi_llama.csv"):
            first, second = re.findall(PAIR, row["clean"])[0].split(" and ")
            giver = first if row["clean"].count(first) > 1 else second
            receiver = second if giver == first else first
            tokens = [subject.to_tokens(f" {each}", bos=False)[0] for each in (giver, receiver)]
            if fits(row["clean"], row["corrupted"]) and tokens[0] != tokens[1]:
                pairs.append((row["clean"], row["corrupted"], f" {receiver}", f" {giver}"))
        return _columns(pairs, n) | {"score": "logits"}

    def years(n: int) -> dict[str, Any]:
        pairs = []
        for row in _rows("greater_than_data.csv"):
            decade = int(row["label"]) // 10
            if 1 <= decade <= 8 and fits(row["clean"], row["corrupted"]):
                sides = [str(d) for d in range(decade + 1, 10)], [str(d) for d in range(decade)]
                pairs.append((row["clean"], row["corrupted"], *sides))
        return _columns(pairs, n) | {"score": "probabilities"}

    def agreement(n: int) -> dict[str, Any]:
        return _columns([pair for pair in agreeing(8 * n) if fits(*pair[:2])][:n], n) | {"score": "logits"}

    public = {"indirect object": names, "greater than": years} if PUBLIC.exists() else {}
    return public | {"agreement": agreement}


def agreeing(n: int, seed: int = 1) -> list[tuple[str, str, list[str], list[str]]]:
    """(clean, corrupt, right, wrong) of n pairs, every second one plural.

    Args:
        n: How many.
        seed: Of the draws.
    """
    rng = random.Random(f"agreement-{seed}")
    found = []
    for i in range(n):
        nouns = rng.choice([PEOPLE, THINGS])
        noun, attractor = rng.choice(nouns), rng.choice(THINGS)
        if noun == attractor:
            attractor = rng.choice([each for each in THINGS if each != noun])
        place = rng.choice(PLACES)
        several = f"The {noun}s {place} the {attractor}"
        one = f"The {noun} {place} the {attractor}"
        if i % 2:
            found.append((several, one, PLURAL, SINGULAR))
        else:
            found.append((f"{one}s", f"{several}s", SINGULAR, PLURAL))
    return found


def named(subject: Any, n: int, seed: int) -> AttributedPrompts:
    """Public prompts of indirect objects by what they are made of, as `saelab.corpora.attributed_prompts`
    writes them of the world: "IO", "S" and "Pos".

    Args:
        subject: Of the tokens; names that are more than one take no part.
        n: How many.
        seed: Of the draws; even and odd ones share names and no template.
    """
    rng = random.Random(f"named-{seed}")
    texts, names = [], set()
    for row in _rows("ioi_llama.csv"):
        first, second = re.findall(PAIR, row["clean"])[0].split(" and ")
        names |= {first, second}
        giver = first if row["clean"].count(first) > 1 else second
        before, after = row["clean"].split(f"{first} and {second}")
        texts.append((before, after.replace(giver, "\0")))
    names = [name for name in sorted(names) if len(subject.to_tokens(f" {name}", bos=False)) == 1][:VALUES]
    texts = sorted(set(texts))[seed % 2 :: 2]
    found = AttributedPrompts([], [], [], *({key: [] for key in ("IO", "S", "Pos")} for _ in range(3)))

    def written(text: tuple[str, str], receiver: str, giver: str, order: int) -> str:
        both = (receiver, giver) if order == 0 else (giver, receiver)
        return text[0] + " and ".join(both) + text[1].replace("\0", giver)

    for _ in range(n):
        text, order = rng.choice(texts), rng.randrange(2)
        receiver, giver, other, another = rng.sample(names, 4)
        found.prompts.append(written(text, receiver, giver, order))
        found.right.append(f" {receiver}")
        found.wrong.append(f" {giver}")
        for attribute, own, twin, changed in (
            ("IO", receiver, written(text, other, giver, order), other),
            ("S", giver, written(text, receiver, another, order), another),
            ("Pos", ORDER[order], written(text, receiver, giver, 1 - order), ORDER[1 - order]),
        ):
            for column, value in zip(found[3:], (own, twin, changed), strict=True):
                column[attribute].append(value)
    return found


def _rows(name: str) -> list[dict[str, str]]:
    with (PUBLIC / name).open(newline="") as file:
        return list(csv.DictReader(file))


def _columns(pairs: list[tuple[Any, ...]], n: int) -> dict[str, Any]:
    spread = pairs[:: max(1, len(pairs) // n)][:n]
    return dict(
        zip(("clean", "corrupt", "right", "wrong"), map(list, zip(*spread, strict=True)), strict=True)
    )
