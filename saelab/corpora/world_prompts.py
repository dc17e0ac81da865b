"""Prompts of the world with named attributes, and of each its twins in which one attribute is another's."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from saelab.arguments import a_function, an_integer, checked, one_of
from saelab.corpora import world_families as families
from saelab.corpora import world_lexicon as lexicon
from saelab.types import CorpusError

MEMBERS = {"train": 15, "heldout": 3}
"""Names of each split that must begin with a token which is a value."""
ORDER = ("IO first", "S first")


class AttributedPrompts(NamedTuple):
    """Prompts with attributes, as `saelab.analysis.attribute_task` takes them. Lists are as long as
    `prompts`."""

    prompts: list[str]
    right: list[str]
    """what follows each"""
    wrong: list[str]
    """what must not"""
    attributes: dict[str, list[str]]
    """attribute -> its value in each prompt"""
    twins: dict[str, list[str]]
    """attribute -> each prompt with another value of it, and all else alike"""
    changed: dict[str, list[str]]
    """attribute -> its value in each twin"""


@checked(to_tokens=a_function("subject.to_tokens"), split=one_of("train", "heldout"), n=an_integer(1),
         seed=an_integer())  # fmt: skip
def attributed_prompts(
    to_tokens: Callable[..., Sequence[int]],
    split: Literal["train", "heldout"] = "heldout",
    n: int = 200,
    seed: int = 0,
) -> AttributedPrompts:
    """Prompts of indirect objects ("When Rosa and Tobin went to the market, Rosa gave the basket to"), by
    what they are made of (Makelov et al., arXiv 2405.08366): "IO", which name receives; "S", which gives;
    and "Pos", which of the two comes first.

    A name counts by its first token, which is what the model is asked for, so that names that no training
    saw have values that are known. Values of IO and S are drawn alike often; they differ from each other.

    Args:
        to_tokens: The subject's.
        split: Whose templates and names; no other has those of "heldout".
        n: How many prompts.
        seed: Of the draws.

    Raises:
        CorpusError: The tokenizer takes names apart so that fewer than four first tokens are shared by enough
            names of both splits.
    """
    rng = random.Random(f"attributed-{split}-{seed}")
    groups = _groups(to_tokens, split)
    found = AttributedPrompts([], [], [], *({key: [] for key in ("IO", "S", "Pos")} for _ in range(3)))
    for _ in range(n):
        text = _template(split, rng)
        values = rng.sample(list(groups), 4)
        io, giver, other_io, other_giver = (rng.choice(groups[value]) for value in values)
        order = rng.randrange(2)
        text = text if order == 0 else _turned(text)
        found.prompts.append(_named(text, io, giver))
        found.right.append(f" {io}")
        found.wrong.append(f" {giver}")
        rows = {
            "IO": (values[0], _named(text, other_io, giver), values[2]),
            "S": (values[1], _named(text, io, other_giver), values[3]),
            "Pos": (ORDER[order], _named(_turned(text), io, giver), ORDER[1 - order]),
        }
        for attribute, row in rows.items():
            for column, value in zip(found[3:], row, strict=True):
                column[attribute].append(value)
    return found


def _groups(to_tokens: Callable[..., Sequence[int]], split: str) -> dict[str, list[str]]:
    """What the names of a first token begin with -> its names of a split."""
    by_token: dict[int, dict[str, list[str]]] = {}
    for each in MEMBERS:
        for name in dict.fromkeys(lexicon.names(each)):
            first = int(to_tokens(f" {name}", bos=False)[0])
            by_token.setdefault(first, {}).setdefault(each, []).append(name)
    groups = {}
    for names in by_token.values():
        if all(len(names.get(each, ())) >= least for each, least in MEMBERS.items()):
            first, last = min(map(min, names.values())), max(map(max, names.values()))
            same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
            groups[first[:same]] = names[split]
    if len(groups) < 4:
        message = (
            "Names must share first tokens, at least four of them, each of "
            f"{' and '.join(f'{least} {each} names' for each, least in MEMBERS.items())}. Got "
            f"{len(groups)} by this tokenizer. Write prompts of your own, as an AttributedPrompts."
        )
        raise CorpusError(message)
    return groups


def _template(split: str, rng: random.Random) -> str:
    r"""A prompt in which \1 is who receives, coming first, and \0 who gives."""
    writer = families.Writer(split, rng)
    template = writer.template(families.IOI_OPENINGS) + writer.template(families.IOI_ACTIONS)
    slots = writer.common() | {"a": ("\1", ""), "b": ("\0", ""), "s": ("\0", ""), "io": ("\1", "")}
    slots["object"] = (rng.choice(lexicon.OBJECTS), "")
    writer.fill(template, slots)
    text = "".join(writer.pieces)
    return text[: text.rindex(" \1")]


def _turned(text: str) -> str:
    """The same with the first two names exchanged."""
    marks = [i for i, letter in enumerate(text) if letter in "\0\1"][:2]
    letters = list(text)
    letters[marks[0]], letters[marks[1]] = letters[marks[1]], letters[marks[0]]
    return "".join(letters)


def _named(text: str, io: str, giver: str) -> str:
    return text.replace("\1", io).replace("\0", giver)


__all__ = ["AttributedPrompts", "attributed_prompts"]
