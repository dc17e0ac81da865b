"""A concept that may be erased: its latents, its gate, and samples of which each has one part to play."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from saelab.analysis.steering.known import apart, key_of
from saelab.analysis.steering.select import select_latents
from saelab.analysis.steering.selected import Selected, documents_of
from saelab.analysis.steering.texts import checked_lexicon
from saelab.arguments import is_listed
from saelab.types import ConfigError, CorpusError, short

if TYPE_CHECKING:
    from saelab.corpora import Document
    from saelab.sae import SAE
    from saelab.types import Subject

Part = Literal["choose", "calibrate", "measure"]
LEAST: Mapping[Part, int] = {"choose": 4, "calibrate": 4, "measure": 2}
"""Samples of a side, at least: latents and gates are judged on a share of theirs."""
SHARE = 0.25
"""Of the samples that a gate is calibrated on, and of those that are measured on."""


class Samples(NamedTuple):
    """Samples of one side of a concept, each with one part to play."""

    choose: tuple[Document, ...]
    """latents are chosen on them"""
    calibrate: tuple[Document, ...]
    """the gate is calibrated on them"""
    measure: tuple[Document, ...]
    """edits are measured on them"""


@dataclass(frozen=True)
class Concept:
    """A concept, and the latents that stand for it."""

    name: str
    positive: Samples
    negative: Samples
    selected: Selected
    target: tuple[str, ...] | Callable[[Any], Any] | None
    """words, or a function, by which what the subject writes is judged; None: by the gate"""
    notes: tuple[str, ...]
    """what was remarked while they were chosen"""

    @property
    def keys(self) -> frozenset[str]:
        """Hashes of all samples that hold it."""
        return frozenset(key_of(document) for some in self.positive for document in some)


class Parts:
    """Which part each sample plays. It plays the same one for every concept: what one was chosen on is
    never what another is measured on."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._of: dict[str, Part] = {}

    def of(
        self, name: str, documents: Sequence[Document], measured: Sequence[Document] | None
    ) -> tuple[Samples, dict[str, Part]]:
        """Samples by their parts: those that have one keep it, the others are drawn.

        Args:
            name: Of the argument, for messages.
            documents: Each once.
            measured: Others that are measured on; None: a share of the documents is.

        Returns:
            The samples, and what `keep` is to be given once all is well.

        Raises:
            CorpusError: There are too few, or one that is measured on plays another part.
        """
        own = measured is None
        used: tuple[Part, ...] = ("choose", "calibrate", "measure") if own else ("choose", "calibrate")
        new: dict[str, Part] = {key_of(document): "measure" for document in measured or ()}
        seen = [key for key in new if self._of.get(key, "measure") != "measure"]
        if seen:
            message = (
                "What is measured on must be apart from what latents are chosen or gates calibrated on. Got "
                f"{len(seen)} samples that are so used for a concept before. Pass others."
            )
            raise CorpusError(message)
        found: dict[Part, list[Document]] = {"choose": [], "calibrate": [], "measure": list(measured or ())}
        free = [document for document in documents if key_of(document) not in self._of]
        for document in documents:
            part = self._of.get(key_of(document))
            if part is not None and part in used:
                found[part].append(document)
        n = len(free) + sum(len(found[part]) for part in used)
        order = [free[i] for i in self._rng.permutation(len(free))]
        for part in reversed(used):
            wanted = max(LEAST[part], round(n * SHARE)) - len(found[part])
            taken, order = (
                (order, []) if part == "choose" else (order[: max(wanted, 0)], order[max(wanted, 0) :])
            )
            found[part] += taken
            new |= {key_of(document): part for document in taken}
        if any(len(found[part]) < LEAST[part] for part in used):
            message = (
                f"{name} must hold at least {sum(LEAST[part] for part in used)} different samples: some to "
                f"choose latents on, some to calibrate the gate on{', and some to measure on' * own}. Got "
                f"{len(documents)}. Pass more."
            )
            raise CorpusError(message)
        return Samples(tuple(found["choose"]), tuple(found["calibrate"]), tuple(found["measure"])), new

    def keep(self, parts: Mapping[str, Part]) -> None:
        """Hold samples to the parts that they play.

        Args:
            parts: Hash -> part.
        """
        self._of |= parts


def concept_of(
    subject: Subject,
    sae: SAE,
    parts: Parts,
    name: Any,
    positive: Iterable[Any],
    negative: Iterable[Any],
    *,
    held_out: Iterable[Any] | None,
    clean: Iterable[Any] | None,
    target: Any,
    method: str,
    k: int,
    seed: int,
) -> Concept:
    """Choose the latents of a concept.

    Args:
        subject: The model.
        sae: That reads it.
        parts: Of samples that came before.
        name: What it is called.
        positive: Samples that hold it.
        negative: Samples that do not.
        held_out: Samples of it that are measured on; None: a quarter of the positive ones.
        clean: Samples without it that are measured on; None: a quarter of the negative ones.
        target: Words, a function, or None.
        method: As in `select_latents`.
        k: How many latents, at most.
        seed: Of the parts and the choice.

    Raises:
        ConfigError: The name or the target is none.
        CorpusError: Too few samples, or one on both sides or in two parts.
    """
    if not isinstance(name, str) or not name.strip():
        message = f"A concept must have a name. Got {short(name)}. Pass e.g. 'cooking'."
        raise ConfigError(message)
    if target is not None and not callable(target):
        if not is_listed(target):
            message = f"target must be words or a function. Got {short(target)}. Pass e.g. ['please']."
            raise ConfigError(message)
        target = checked_lexicon(target)
    sides = {"positive": positive, "negative": negative, "held_out": held_out, "clean": clean}
    found, keys = {}, {}
    for side, given in sides.items():
        if given is not None:
            if not is_listed(given):
                message = f"{side} must be a list of samples. Got {short(given)}. Pass {side}=[...]."
                raise ConfigError(message)
            some = list(given)
            documents = documents_of(some, subject.corpus) if some else []
            by_key = {key_of(document): document for document in documents}
            found[side], keys[side] = list(by_key.values()), list(by_key)
            if side in ("held_out", "clean") and not by_key:
                message = f"{side} must hold samples. Got none. Leave it out for a share of the others."
                raise CorpusError(message)
    names = list(keys)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            apart(one, keys[one], other, keys[other])
    ours, our_parts = parts.of("positive", found["positive"], found.get("held_out"))
    theirs, their_parts = parts.of("negative", found["negative"], found.get("clean"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        selected = select_latents(sae, ours.choose, theirs.choose, method, k, subject=subject, seed=seed)
    parts.keep({**our_parts, **their_parts})
    notes = tuple(str(each.message) for each in caught if issubclass(each.category, UserWarning))
    return Concept(name, ours, theirs, selected, target, notes)


__all__ = ["Concept", "Parts", "Samples", "concept_of"]
