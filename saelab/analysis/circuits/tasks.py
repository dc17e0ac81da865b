"""Tasks for circuits: prompts in pairs, and what a model must say after the clean one of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from saelab.analysis.controls import wilson
from saelab.arguments import a_subject, checked, one_of, sequence
from saelab.capabilities import HasLogits, HasTokens, need
from saelab.types import CorpusError, Inputs, short

if TYPE_CHECKING:
    import pandas as pd

Score = Literal["logits", "probabilities"]
TOGETHER = 64
"""Pairs of one pass."""


class Pair(NamedTuple):
    """A prompt and its corrupt twin, as token ids."""

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    """as many"""
    right: tuple[int, ...]
    """tokens of which the clean prompt asks for one"""
    wrong: tuple[int, ...]
    """tokens that it must not be followed by"""


class Batch(NamedTuple):
    """Pairs of one length."""

    at: np.ndarray
    """int64 [n]: their numbers in the task"""
    clean: Inputs
    corrupt: Inputs


@dataclass(frozen=True, eq=False)
class Task:
    """Prompts in pairs, and what is measured of them.

    Made by `prompt_task`. The score of a prompt is, at its last position,

        "logits":         mean logit of the right tokens - mean logit of the wrong ones
        "probabilities":  p(any right token) - p(any wrong one)

    as the papers on indirect objects (Wang et al. 2022) and on years (Hanna et al. 2023) have it.
    """

    name: str
    pairs: tuple[Pair, ...]
    score: Score
    clean: np.ndarray
    """float64 [pairs]: the score after each clean prompt"""
    corrupt: np.ndarray
    """float64 [pairs]: the score, of the clean prompt's answers, after each corrupt one"""

    def to_frame(self) -> pd.DataFrame:
        """One line for each pair: tokens, and the score after the clean and after the corrupt prompt."""
        import pandas as pd

        tokens = [len(pair.clean) for pair in self.pairs]
        return pd.DataFrame({"tokens": tokens, "clean": self.clean, "corrupt": self.corrupt})

    @property
    def accuracy(self) -> float:
        """Share of clean prompts that the right tokens follow rather than the wrong ones."""
        return float((self.clean > 0).mean())

    @property
    def gap(self) -> float:
        """How much of the score the corruption takes, on average."""
        return float((self.clean - self.corrupt).mean())

    def measure(self, logits: Tensor, at: np.ndarray) -> Tensor:
        """The score of each of a batch's prompts, differentiable.

        Args:
            logits: [n, positions, d_vocab].
            at: Their numbers in the task.

        Returns:
            [n], float32.
        """
        last = logits[:, -1].float()
        if self.score == "probabilities":
            last = last.softmax(-1)
        found = []
        for row, number in zip(last, at, strict=True):
            pair = self.pairs[number]
            sides = row[list(pair.right)], row[list(pair.wrong)]
            right, wrong = (s.sum() if self.score == "probabilities" else s.mean() for s in sides)
            found.append(right - wrong)
        return torch.stack(found)

    def batches(self, subject: Any, chosen: np.ndarray | None = None) -> Iterator[Batch]:
        """The pairs, those of one length together.

        Args:
            subject: The model.
            chosen: Numbers of the pairs that are wanted; None: all.
        """
        numbers = np.arange(len(self.pairs)) if chosen is None else np.asarray(chosen)
        lengths = np.array([len(self.pairs[i].clean) for i in numbers])
        for length in np.unique(lengths):
            of = numbers[lengths == length]
            for start in range(0, len(of), TOGETHER):
                at = of[start : start + TOGETHER]
                rows = [[list(self.pairs[i][side]) for i in at] for side in (0, 1)]
                yield Batch(at, subject.prepare_tokens(rows[0]), subject.prepare_tokens(rows[1]))

    def __repr__(self) -> str:
        low, high = wilson(int((self.clean > 0).sum()), len(self.pairs))
        return (
            f"Task({self.name!r}: {len(self.pairs)} pairs, right in {self.accuracy:.1%} "
            f"[{low:.1%}, {high:.1%}] of the clean prompts; score {self.clean.mean():.3g} clean, "
            f"{self.corrupt.mean():.3g} corrupt)"
        )


@checked(
    subject=a_subject, clean=sequence, corrupt=sequence, right=sequence, wrong=sequence,
    score=one_of(*get_args(Score)),
)  # fmt: skip
def prompt_task(
    subject: Any,
    clean: Sequence[str],
    corrupt: Sequence[str],
    right: Sequence[str | Sequence[str]],
    wrong: Sequence[str | Sequence[str]],
    *,
    name: str = "task",
    score: Score = "logits",
) -> Task:
    """A task of prompts in pairs, measured on the model at once.

    Args:
        subject: A language model.
        clean: Prompts.
        corrupt: Of each the twin, of as many tokens, in which what the answer depends on is another.
        right: Of each clean prompt what follows it, or several such: of each the first token counts. A
            leading space belongs to it where the tokenizer has it so.
        wrong: Of each what must not follow it.
        name: Of the task.
        score: What is measured; see `Task`.

    Returns:
        The task; its `repr` says whether the model does it.

    Raises:
        SubjectError: The subject is no language model.
        CorpusError: There are not as many of one as of the other, a twin has another length, an answer has
            no token, or a right one begins as a wrong one does.
        ConfigError: The score is none of these, or the others are no lists.
    """
    need(subject, HasTokens, "A task of prompts")
    need(subject, HasLogits, "A task of prompts")
    sides = [list(each) for each in (clean, corrupt, right, wrong)]
    if len({len(side) for side in sides}) > 1 or not sides[0]:
        sizes = ", ".join(str(len(side)) for side in sides)
        message = (
            f"clean, corrupt, right and wrong must be lists of one length. Got {sizes}. Pass one of each for "
            "a pair."
        )
        raise CorpusError(message)
    pairs = tuple(_pair(subject, *each) for each in zip(*sides, strict=True))
    empty = np.zeros(len(pairs))
    task = Task(name, pairs, score, empty, empty.copy())
    for batch in task.batches(subject):
        for inputs, out in ((batch.clean, task.clean), (batch.corrupt, task.corrupt)):
            out[batch.at] = task.measure(subject.run(inputs).output, batch.at).double().numpy(force=True)
    return task


def _pair(subject: Any, clean: str, corrupt: str, right: Any, wrong: Any) -> Pair:
    ids = [tuple(subject.to_tokens(text)) for text in (clean, corrupt)]
    if len(ids[0]) != len(ids[1]):
        message = (
            "A clean prompt and its corrupt twin must have as many tokens, so that every position has its "
            f"counterpart. Got {len(ids[0])} and {len(ids[1])}: {short(clean)} and {short(corrupt)}. Choose "
            "words of one length."
        )
        raise CorpusError(message)
    if len(ids[0]) > subject.n_ctx:
        message = (
            f"A prompt must fit into the context of {subject.n_ctx} tokens. Got {len(ids[0])}. Shorten it."
        )
        raise CorpusError(message)
    answers = [_first(subject, each) for each in (right, wrong)]
    both = set(answers[0]) & set(answers[1])
    if both:
        (token,) = subject.token_strings([min(both)])
        message = (
            "Right and wrong answers must differ in their first token. Got "
            f"{token!r} on both sides of {short(clean)}. Leave this pair out, or end the prompt later."
        )
        raise CorpusError(message)
    return Pair(ids[0], ids[1], *answers)


def _first(subject: Any, answers: str | Sequence[str]) -> tuple[int, ...]:
    found = []
    for answer in [answers] if isinstance(answers, str) else answers:
        found.append(int(subject.to_tokens(answer, bos=False)[0]))
    if not found:
        message = "A pair must have a right and a wrong answer. Got none. Pass e.g. ' Anna'."
        raise CorpusError(message)
    return tuple(dict.fromkeys(found))


__all__ = ["Batch", "Pair", "Task", "prompt_task"]
