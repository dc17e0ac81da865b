"""Single tokens that are words, and what a model makes of each: where first letters are looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelab.harvesting.batches import side_by_side
from saelab.types import ConfigError, check_finite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from saelab.types import HookPoint

ASKED = " has the first letter:"
"""What follows a word in the prompts of SAEBench."""


class Words(NamedTuple):
    """Tokens of a vocabulary that are words."""

    ids: np.ndarray
    """int64 [n]"""
    letters: np.ndarray
    """[n] of str: the first letter of each, in lower case"""


def words_of(subject: Any, most: int, seed: int) -> Words:
    """The tokens that are letters of a to z, but for a space before them; at most so many, drawn at random.

    Args:
        subject: With tokens.
        most: How many, at most.
        seed: Of the draw.

    Raises:
        ConfigError: The vocabulary has none.
    """
    strings = subject.token_strings(range(subject.d_vocab))
    special = set(getattr(subject, "special_ids", ()))
    texts = [(i, text.removeprefix(" ")) for i, text in enumerate(strings) if i not in special]
    found = [(i, text[0].lower()) for i, text in texts if text.isascii() and text.isalpha()]
    if not found:
        message = (
            f"A vocabulary must have tokens that are words. Got none among {len(strings)}. Pass a language "
            "model of Latin letters."
        )
        raise ConfigError(message)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(found))[:most])
    ids, letters = zip(*(found[i] for i in chosen), strict=True)
    return Words(np.array(ids, np.int64), np.array(letters))


def read_words(
    subject: Any, hooks: Sequence[HookPoint], words: Words, examples: int, batch_size: int, seed: int
) -> Tensor:
    """What the model makes of each word, at its own position, after some examples of the question.

    Args:
        subject: With tokens.
        hooks: Where it is read.
        words: Which.
        examples: Words that are asked for and answered before it ("cat has the first letter: C"), other ones
            before each.
        batch_size: Prompts of a pass.
        seed: Of the examples.

    Returns:
        float32 [n d_in], on the CPU.
    """
    import torch

    rng = np.random.default_rng(seed)
    start = [] if subject.bos_id is None else [subject.bos_id]
    asked = subject.to_tokens(ASKED, bos=False)
    answers = {letter: subject.to_tokens(f" {letter.upper()}\n", bos=False) for letter in set(words.letters)}
    prompts = []
    for own in words.ids.tolist():
        prompt = list(start)
        for i in rng.permutation(len(words.ids))[: examples + 1]:
            if words.ids[i] != own and len(prompt) < subject.n_ctx // 2:
                prompt += [int(words.ids[i]), *asked, *answers[words.letters[i]]]
        prompts.append([*prompt, own] if examples else [*start, own])
    found = []
    for first in range(0, len(prompts), batch_size):
        some = prompts[first : first + batch_size]
        run = subject.run(subject.prepare_tokens(some), read=hooks, output=False)
        last = torch.tensor([len(prompt) - 1 for prompt in some])
        acts = {name: each[torch.arange(len(some)), last.to(each.device)] for name, each in run.acts.items()}
        found.append(side_by_side(acts, hooks).float().cpu())
    rows = torch.cat(found)
    check_finite(rows, "Activations at words")
    return rows


__all__ = ["Words", "read_words", "words_of"]
