"""Facts of entities as prompts: of scenes in the synthetic world, and of files of relations."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saelab.arguments import a_function, an_integer, checked, is_listed
from saelab.corpora import world_lexicon as lexicon
from saelab.files import read_json
from saelab.types import CorpusError, FormatError, short

SCENES = (
    "One day {person} found a {adjective} {object} in the {place}.",
    "{person} put the {object} on the table in the {place}.",
)
"""Sentences as those of the stories of `saelab.corpora.world`."""
QUESTIONS = {
    "person": "In the evening",
    "place": '"It is in the',
    "object": '"Where is my',
}
"""What a story goes on with, where one answer follows."""


class Fact(NamedTuple):
    """What should follow a prompt, as it is told of an entity."""

    entity: str
    """as it stands in the prompt"""
    attribute: str
    """of the entity: "capital\""""
    prompt: str
    """with the entity in it"""
    answer: str
    """what follows, with the space before it where there is one; its first token counts"""


@checked(to_tokens=a_function("subject.to_tokens"), n=an_integer(2), seed=an_integer())
def scene_facts(to_tokens: Callable[..., Sequence[int]], n: int = 120, seed: int = 0) -> list[Fact]:
    """Scenes of the synthetic world, each a person at a place with an object, and what is asked of each: who
    it was ("In the evening"), where ("It is in the") and what ("Where is my").

    A scene is the entity: what is known of it stands in it, in words that have one number of tokens for each
    kind, so that scenes of one pattern have theirs at the same positions.

    Args:
        to_tokens: The subject's.
        n: How many scenes.
        seed: Of the draws.

    Returns:
        Facts of the attributes "person", "place" and "object".

    Raises:
        CorpusError: The tokenizer leaves fewer than four words of a kind with one number of tokens.
    """
    rng = random.Random(f"scenes-{seed}")
    kinds = {"person": lexicon.SHORT_NAMES, "place": lexicon.PLACES, "object": lexicon.OBJECTS}
    words = {kind: _alike(to_tokens, kind, each) for kind, each in kinds.items()}
    found = []
    for number in range(n):
        told = {kind: rng.choice(each) for kind, each in words.items()}
        scene = SCENES[number % len(SCENES)].format(adjective=rng.choice(lexicon.ADJECTIVES), **told)
        found += [Fact(scene, key, f"{scene} {ask}", f" {told[key]}") for key, ask in QUESTIONS.items()]
    return found


def _alike(to_tokens: Callable[..., Sequence[int]], kind: str, words: Iterable[str]) -> list[str]:
    """Those that have as many tokens as most of them."""
    sizes = {word: len(to_tokens(f" {word}", bos=False)) for word in words}
    most = Counter(sizes.values()).most_common(1)[0][0]
    found = [word for word, size in sizes.items() if size == most]
    if len(found) < 4:
        message = (
            f"Scenes need four words of each kind with one number of tokens. Got {len(found)} for {kind} by "
            "this tokenizer. Write facts of your own."
        )
        raise CorpusError(message)
    return found


def relation_facts(
    files: str | Path | Sequence[str | Path], *, templates: str = "prompt_templates"
) -> list[Fact]:
    """Facts of files of relations, as Hernandez et al. (2023, arXiv 2308.09124) published theirs: one JSON
    file a relation, with "name", templates such as "The capital of {} is", and samples of "subject" and
    "object". Subjects of which one relation alone is told are left out.

    Args:
        files: Paths.
        templates: Which of the files' lists of templates.

    Raises:
        StoreError: A file cannot be read.
        FormatError: One is no file of a relation.
    """
    found: list[Fact] = []
    for path in [files] if isinstance(files, str | Path) else files:
        path = Path(path)
        data = read_json(path)
        try:
            name = str(data["name"])
            pairs = itertools.product(data[templates], data["samples"])
            found += [
                Fact(each["subject"], name, form.replace("{}", each["subject"]), f" {each['object']}")
                for form, each in pairs
            ]
        except (KeyError, TypeError, AttributeError) as error:
            message = (
                f'A relation must have "name", "{templates}" and "samples" of "subject" and "object". Got '
                f"{short(data)} in {path.name} ({error!r}). Pass files of relations."
            )
            raise FormatError(message) from error
    told: dict[str, set[str]] = {}
    for fact in found:
        told.setdefault(fact.entity, set()).add(fact.attribute)
    return [fact for fact in found if len(told[fact.entity]) > 1]


def as_facts(facts: Any) -> list[Fact]:
    """Facts as they are meant: a list of four texts each, or a table with the columns "entity", "attribute",
    "prompt" and "answer".

    Raises:
        CorpusError: They are none, or a prompt does not hold its entity.
    """
    if hasattr(facts, "columns") and set(Fact._fields) <= set(facts.columns):
        facts = facts[list(Fact._fields)].itertuples(index=False)
    elif not is_listed(facts):
        facts = [facts]
    found = []
    for each in facts:
        if not is_listed(each) or len(each) != 4 or not all(isinstance(part, str) and part for part in each):
            message = (
                "Facts must be texts: entity, attribute, prompt and answer. Got "
                f"{short(each)}. Pass e.g. ('France', 'capital', 'The capital of France is', ' Paris')."
            )
            raise CorpusError(message)
        fact = Fact(*each)
        if fact.entity not in fact.prompt:
            message = (
                f"A prompt must hold its entity. Got {short(fact.prompt)} for {fact.entity!r}. Write the "
                "entity as it stands in the prompt."
            )
            raise CorpusError(message)
        found.append(fact)
    if not found:
        message = "There must be facts. Got none. Pass some, or leave them out for scenes of the world."
        raise CorpusError(message)
    return found


__all__ = ["Fact", "as_facts", "relation_facts", "scene_facts"]
