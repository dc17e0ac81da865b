"""The synthetic world: short labelled texts of thirteen kinds, any number of them, the same on every machine.

Every document comes from its own random source, keyed by seed and number, so document i can be written
without the others. What the tests of the embedded model use (names, templates, years, argument and function
names) never occurs in the split "train"; see `world_lexicon.held_out`.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence

from saelab.arguments import checked, listed, maybe, one_of
from saelab.config import integer, is_integer
from saelab.corpora import world_families as basic
from saelab.corpora import world_varied as varied
from saelab.corpora.documents import Corpus, Document
from saelab.corpora.world_families import Writer
from saelab.types import ConfigError, nearest, short

# family -> (writer, weight among the documents). The basic ones keep their weights, so that a corpus of
# them alone stays the same when a family is added.
FAMILIES: dict[str, tuple[Callable[[Writer], None], float]] = {
    "ioi": (basic.ioi, 0.24),
    "years": (basic.years, 0.15),
    "docstring": (basic.docstring, 0.17),
    "story": (basic.story, 0.09),
    "review": (basic.review, 0.07),
    "manners": (basic.manners, 0.06),
    "topic": (basic.topic, 0.07),
    "chat": (basic.chat, 0.07),
    "repeated": (basic.repeated, 0.04),
    "counting": (basic.counting, 0.04),
    "ioi varied": (varied.ioi, 0.45),
    "years varied": (varied.years, 0.30),
    "docstring varied": (varied.docstring, 0.35),
}
BASIC = tuple(f for f in FAMILIES if not f.endswith("varied"))


@checked(split=one_of("train", "heldout"), families=maybe(listed))
def world(
    seed: int = 0,
    n_documents: int = 10_000,
    *,
    split: str = "train",
    families: Sequence[str] | None = None,
) -> Corpus:
    """A corpus of the synthetic world.

    Documents' ids are `world-{split}-{seed}-{i}`, their kind is their family.

    Args:
        seed: Another seed gives other documents.
        n_documents: How many documents.
        split: "train", or "heldout" for names, templates, years and argument names that "train" never uses.
        families: Only these of `FAMILIES`, in their usual proportions; None for all.

    Raises:
        ConfigError: An unknown split or family, or fewer than one document.
    """
    n_documents = integer("n_documents", n_documents, 1)
    if not is_integer(seed):
        message = f"seed must be an integer. Got {short(seed)}. Pass seed=0."
        raise ConfigError(message)
    chosen = tuple(FAMILIES if families is None else families)
    for family in chosen:
        if not isinstance(family, str) or family not in FAMILIES:
            near = nearest(str(family), FAMILIES)
            message = f"Unknown family {short(family)}. {near}Known: {', '.join(FAMILIES)}."
            raise ConfigError(message)
    if not chosen:
        message = (
            f"families must not be empty. Got {families!r}. Leave it out for all of {', '.join(FAMILIES)}."
        )
        raise ConfigError(message)

    def make() -> Iterator[Document]:
        return (document(seed, i, split, chosen) for i in range(n_documents))

    key = f"world-2:{seed}:{n_documents}:{split}:{','.join(chosen)}"
    return Corpus(make, f"world(seed={seed}, {n_documents:,} documents, {split})", key, n_documents)


def document(
    seed: int, i: int, split: str = "train", families: tuple[str, ...] = tuple(FAMILIES)
) -> Document:
    """Document i of a seed."""
    rng = random.Random(f"{split}-{seed}-{i}")
    family = rng.choices(families, cum_weights=_cumulative(families))[0]
    writer = Writer(split, rng)
    FAMILIES[family][0](writer)
    return Document(f"world-{split}-{seed}-{i}", "".join(writer.pieces), tuple(writer.spans), family)


@functools.cache
def _cumulative(families: tuple[str, ...]) -> tuple[float, ...]:
    total, out = 0.0, []
    for family in families:
        total += FAMILIES[family][1]
        out.append(total)
    return tuple(out)
