"""Facts as a model reads them: which it knows, where their entities stand, and which entities are compared.

RAVEL (Huang et al. 2024, arXiv 2402.17700): an entity has several attributes, each asked for by a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from saelab.analysis.splicing import middle
from saelab.corpora.facts import Fact
from saelab.types import CorpusError, HookPoint, Inputs, SubjectError, check_finite, short

Where = Literal["last", "entity", "prompt"]
TOGETHER = 64
"""Prompts of one pass."""


@dataclass(frozen=True, eq=False)
class Asked:
    """Facts, with what the model makes of them. Arrays and lists are as long as `facts`."""

    facts: Sequence[Fact]
    ids: Sequence[Sequence[int]]
    """tokens of the prompts"""
    at: Sequence[np.ndarray]
    """int64: positions where their entities are swapped"""
    answer: np.ndarray
    """int64: the first token of each answer"""
    says: np.ndarray
    """int64: the token that the model holds likeliest"""
    x: Sequence[Tensor]
    """float32 [positions width]: activations at `at`"""
    block: int = 0
    """where passes go on"""
    stream: str | None = None
    """hook point of what that block reads; None where passes begin anew"""
    streams: Sequence[Tensor] = ()
    """[tokens d_model]: activations there"""

    @property
    def known(self) -> np.ndarray:
        """bool: whether the model answers right."""
        return self.says == self.answer


@dataclass(frozen=True, eq=False)
class Cases:
    """Pairs of facts that the model knows, asked by one prompt of two entities that answer it otherwise."""

    base: np.ndarray
    """int64 [n], numbers of the facts that are written into"""
    source: np.ndarray
    """int64 [n], numbers of those that are read"""
    attribute: np.ndarray
    """int64 [n], number of the attribute that is asked for"""
    swaps: np.ndarray
    """bool [n attributes]: whether both entities are known to have the attribute"""

    def __len__(self) -> int:
        return len(self.base)

    def of(self, rows: np.ndarray) -> Cases:
        """Some of them, int64 [m]."""
        return Cases(self.base[rows], self.source[rows], self.attribute[rows], self.swaps[rows])


@torch.no_grad()
def ask(subject: Any, facts: Sequence[Fact], hook: str, where: Where) -> Asked:
    """What a model makes of facts.

    Args:
        subject: The model.
        facts: Of entities.
        hook: Where activations are read.
        where: Positions of a prompt: the last token of its entity, all of these, or all tokens but BOS.

    Raises:
        SubjectError: The subject cannot say which characters a token stands for.
        CorpusError: A prompt does not fit into the context.
        NonFiniteError: Activations are NaN or infinite.
    """
    if not callable(getattr(subject, "offsets", None)):
        message = (
            "Entities are found in a prompt by a subject's `offsets`, the characters of each token. Got a "
            f"{type(subject).__name__} without. Pass a saelab.LanguageModel."
        )
        raise SubjectError(message)
    ids = [list(subject.to_tokens(fact.prompt)) for fact in facts]
    for fact, tokens in zip(facts, ids, strict=True):
        if len(tokens) > subject.n_ctx:
            message = (
                f"A prompt must fit into the context of {subject.n_ctx} tokens. Got {len(tokens)} in "
                f"{short(fact.prompt)}. Shorten it."
            )
            raise CorpusError(message)
    at = [_positions(subject, fact, where) for fact in facts]
    answer = np.array([subject.to_tokens(fact.answer, bos=False)[0] for fact in facts], dtype=np.int64)
    says, x = np.zeros(len(facts), dtype=np.int64), [torch.empty(0)] * len(facts)
    block, stream = middle(subject, [HookPoint.of(hook)])
    streams = [] if stream is None else [torch.empty(0)] * len(facts)
    for numbers, inputs, ends in passes(subject, ids, np.arange(len(facts))):
        run = subject.run(inputs, read=list({hook, stream or hook}))
        says[numbers] = run.output[range(len(numbers)), ends].argmax(-1).cpu().numpy()
        for row, number in enumerate(numbers.tolist()):
            x[number] = run.acts[hook][row, at[number]].float().cpu()
            if stream is not None:
                streams[number] = run.acts[stream][row, : len(ids[number])].clone()
    check_finite(torch.cat(x), f"Activations at {hook}")
    return Asked(facts, ids, at, answer, says, x, block, stream, streams)


def passes(
    subject: Any, ids: Sequence[Sequence[int]], of: np.ndarray
) -> Iterator[tuple[np.ndarray, Inputs, list[int]]]:
    """Some prompts as inputs, those of like length together.

    Args:
        subject: The model.
        ids: Tokens of every prompt.
        of: int64 [n], numbers of those that are read.

    Yields:
        (places in `of`, inputs, position of the last token of each).
    """
    order = np.argsort([len(ids[i]) for i in of], kind="stable")
    for start in range(0, len(of), TOGETHER):
        places = order[start : start + TOGETHER]
        rows = [ids[number] for number in of[places].tolist()]
        yield places, subject.prepare_tokens(rows), [len(row) - 1 for row in rows]


def _positions(subject: Any, fact: Fact, where: Where) -> np.ndarray:
    spans = subject.offsets(fact.prompt)
    if where == "prompt":
        return np.flatnonzero([end > start for start, end in spans])
    first = fact.prompt.rindex(fact.entity)
    last = first + len(fact.entity)
    found = np.flatnonzero([start < last and end > first and end > start for start, end in spans])
    return found[-1:] if where == "last" else found


def cases_of(
    asked: Asked, attributes: Sequence[str], entities: Sequence[str], most: int, rng: np.random.Generator
) -> Cases:
    """Pairs of entities that are asked the same by prompts that differ in the entity alone.

    Args:
        asked: The facts.
        attributes: Those that count.
        entities: Those that count.
        most: Pairs of an attribute, at most; each entity is written into about as often as others.
        rng: Of the draws.
    """
    number = {name: i for i, name in enumerate(attributes)}
    chosen, known = set(entities), asked.known
    has: dict[str, np.ndarray] = {}
    groups: dict[tuple[int, str, int], list[int]] = {}
    for i, fact in enumerate(asked.facts):
        if known[i] and fact.entity in chosen and fact.attribute in number:
            has.setdefault(fact.entity, np.zeros(len(number), dtype=bool))[number[fact.attribute]] = True
            form = fact.prompt.replace(fact.entity, "\0")
            groups.setdefault((number[fact.attribute], form, len(asked.at[i])), []).append(i)
    by_attribute: dict[int, list[tuple[int, int]]] = {}
    for (attribute, _, _), members in groups.items():
        at = np.array(members)
        for base in members:
            others = at[asked.answer[at] != asked.answer[base]]
            per = max(1, -(-most // len(members)))
            own = rng.permutation(others)[:per]
            by_attribute.setdefault(attribute, []).extend((base, int(source)) for source in own)
    pairs, of = [], []
    for attribute, own in sorted(by_attribute.items()):
        kept = rng.permutation(len(own))[:most]
        pairs += [own[i] for i in kept]
        of += [attribute] * len(kept)
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    swaps = [has[asked.facts[base].entity] & has[asked.facts[source].entity] for base, source in table]
    return Cases(table[:, 0], table[:, 1], np.array(of, dtype=np.int64),
                 np.array(swaps, dtype=bool).reshape(-1, len(number)))  # fmt: skip


def shares_known(asked: Asked) -> Mapping[str, tuple[int, int]]:
    """Attribute -> (facts that the model knows, all of them)."""
    found: dict[str, list[int]] = {}
    for fact, known in zip(asked.facts, asked.known, strict=True):
        own = found.setdefault(fact.attribute, [0, 0])
        own[0] += bool(known)
        own[1] += 1
    return {name: (right, n) for name, (right, n) in found.items()}


__all__ = ["Asked", "Cases", "Where", "ask", "cases_of", "passes", "shares_known"]
