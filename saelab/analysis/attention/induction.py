"""Which heads continue what has been before: on random tokens that are repeated, by the length of what is
repeated, and with a part of it spoilt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saelab.analysis.controls import CONFIDENCE, DRAWS
from saelab.analysis.results_induction import InductionScores, PrefixCurves
from saelab.arguments import a_subject, an_integer, checked, sequence
from saelab.capabilities import HasHeads, HasTokens, need
from saelab.config import integer
from saelab.types import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

AT_ONCE = 16
"""Sequences of a pass."""
MOST = 10_000
"""Sequences, at most: their tokens are drawn before the first pass."""
LONGEST = 9
"""Of the prefixes that are tried."""


@checked(subject=a_subject, n=an_integer(2, MOST), length=an_integer(2), seed=an_integer())
def induction_scores(subject: Any, *, n: int = 64, length: int = 32, seed: int = 0) -> InductionScores:
    """How much each head attends to what came after the same token before, in random tokens written twice.

    From every position of the second copy but the first: the weight of the token after the first occurrence
    of the same token (induction; Olsson et al. 2022), of that occurrence itself (duplicate), and of the
    position before (previous). The control of the first is the weight of a position of the first copy that is
    drawn at random.

    Args:
        subject: A language model whose heads can be read.
        n: Sequences, up to 10,000.
        length: Tokens that are repeated.
        seed: Of the tokens, and of the draws that give the intervals.

    Raises:
        SubjectError: The subject has no attention that can be read.
        ConfigError: Twice `length` does not fit the context.
    """
    first = _first(subject, 2 * length, f"length={length}")
    draw = np.random.default_rng(seed)
    tokens = _ordinary(subject)
    copies = [draw.choice(tokens, length, replace=len(tokens) < length).tolist() for _ in range(n)]
    at = first + np.arange(length, 2 * length - 1)
    others = first + draw.integers(0, length, (n, len(at)))

    def read(pattern: Tensor, number: Sequence[int]) -> Tensor:
        """[samples heads 4]"""
        rows = pattern[:, :, at]
        random = np.asarray(others)[list(number)]
        places = [at - length + 1, at - length, at - 1]
        kinds = [rows[:, :, np.arange(len(at)), place].mean(-1) for place in places]
        chosen = rows.gather(3, torch.as_tensor(random)[:, None, :, None].expand(*rows.shape[:3], 1))
        return torch.stack([*kinds, chosen[..., 0].mean(-1)], -1)

    found = _over(subject, [[*_bos(subject), *copy, *copy] for copy in copies], read)
    mean, low, high = _intervals(found, seed)
    score, duplicate, previous, control = np.moveaxis(mean, -1, 0)
    return InductionScores(score, low[..., 0], high[..., 0], control, duplicate, previous, n, length)


@checked(subject=a_subject, lengths=sequence, n=an_integer(2, MOST), length=an_integer(24), seed=an_integer())
def prefix_curves(
    subject: Any, lengths: Sequence[int] = tuple(range(1, LONGEST + 1)), *, n: int = 100, length: int = 128,
    seed: int = 0,
) -> PrefixCurves:  # fmt: skip
    """How long a repeated prefix must be for a head to continue it (Kissane et al. 2024).

    In random tokens two copies of a prefix lie at random places. The score is the weight, from the last token
    of the second copy, of the token after the first. Its control is the weight of a random position that is
    neither. In the corruption test the token two before the source is replaced by another: a head that goes
    by the last token alone does not notice.

    Args:
        subject: A language model whose heads can be read.
        lengths: Of prefixes, 1 to 9.
        n: Sequences for each, up to 10,000.
        length: Tokens of a sequence; as many as the context holds where it holds fewer.
        seed: Of the tokens and places, and of the draws that give the intervals.

    Raises:
        SubjectError: The subject has no attention that can be read.
        ConfigError: A length is none of 1 to 9, or the context holds fewer than 24 tokens.
    """
    lengths = [integer("Each of lengths", each, 1, LONGEST) for each in lengths]
    if not lengths:
        message = "lengths must name at least one. Got none. Pass e.g. lengths=[1, 5]."
        raise ConfigError(message)
    need(subject, HasTokens, "A curve over prefixes")
    length = min(length, subject.n_ctx - len(_bos(subject)))
    first, tokens = _first(subject, max(length, 24), f"length={length}"), _ordinary(subject)
    draw = np.random.default_rng(seed)
    plain, spoilt = [], []
    for prefix in lengths:
        rows, places = [], []
        for _ in range(n):
            row = draw.choice(tokens, length, replace=len(tokens) < length)
            gap = length - 2 * (prefix + 1)
            start = int(draw.integers(0, gap // 2 + 1))
            # one token beside the source lies between them, so that there is another position to look at
            again = int(draw.integers(start + prefix + 2, length - prefix + 1))
            row[again : again + prefix] = row[start : start + prefix]
            source, dest = start + prefix, again + prefix - 1
            other = int(draw.choice([i for i in range(dest) if i not in (source, source - 1)]))
            places.append((dest + first, source + first, other + first))
            rows.append(row)
        spoil = [row.copy() for row in rows]
        for row, (_, source, _) in zip(spoil, places, strict=True):
            if prefix > 1:
                row[source - first - 2] = draw.choice(tokens)
        plain.append(_placed(subject, rows, places))
        spoilt.append(_placed(subject, spoil, places) if prefix > 1 else plain[-1])
    every, after = np.stack(plain, 3), np.stack(spoilt, 3)[..., 0]  # [sequences layers heads lengths ..]
    mean, low, high = _intervals(every, seed)
    drop, drop_low, drop_high = _intervals(every[..., 0] - after, seed)
    return PrefixCurves(
        tuple(lengths), mean[..., 0], low[..., 0], high[..., 0], mean[..., 1], drop, drop_low, drop_high, n,
        length,
    )  # fmt: skip


def _placed(subject: Any, rows: list[np.ndarray], places: list[tuple[int, int, int]]) -> np.ndarray:
    """float64 [sequences layers heads 2]: the weight of the source, and of another position."""
    at = torch.tensor(places)

    def read(pattern: Tensor, number: Sequence[int]) -> Tensor:
        dest, source, other = at[list(number)].unbind(1)
        here = torch.arange(len(number))
        return torch.stack([pattern[here, :, dest, source], pattern[here, :, dest, other]], -1)

    return _over(subject, [[*_bos(subject), *row.tolist()] for row in rows], read)


def _over(subject: Any, rows: list[list[int]], read: Callable[[Tensor, Sequence[int]], Tensor]) -> np.ndarray:
    """float64 [sequences layers heads ..]: what is read of the patterns of each sequence."""
    found, last = [], f"blocks.{subject.n_layers - 1}.attn.hook_z"
    for at in range(0, len(rows), AT_ONCE):
        number = range(at, min(at + AT_ONCE, len(rows)))
        inputs = subject.padded([rows[i] for i in number])
        patterns = subject.attend(inputs, [last], output=False).patterns
        layers = [read(patterns[i].float().cpu(), number).double() for i in range(subject.n_layers)]
        found.append(torch.stack(layers, 1).numpy())
    return np.concatenate(found)


def _intervals(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over the first axis, and 95 % of them by drawing sequences anew."""
    n = len(values)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS) / n
    drawn = np.tensordot(weights, values, 1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(drawn, [tail, 100 - tail], axis=0)
    return values.mean(0), low, high


def _bos(subject: Any) -> list[int]:
    return [] if subject.bos_id is None else [subject.bos_id]


def _first(subject: Any, tokens: int, given: str) -> int:
    """The position of the first token after BOS. Raises SubjectError, ConfigError."""
    need(subject, HasHeads, "A score of heads")
    need(subject, HasTokens, "A score of heads")
    first = len(_bos(subject))
    if tokens + first > subject.n_ctx:
        message = (
            f"The sequences must fit the context of {subject.n_ctx} tokens. Got {given}, which takes "
            f"{tokens + first}. Pass fewer."
        )
        raise ConfigError(message)
    return first


def _ordinary(subject: Any) -> np.ndarray:
    """Ids of the tokens that are not special."""
    special = getattr(subject, "special_ids", frozenset())
    return np.setdiff1d(np.arange(subject.d_vocab), list(special))


__all__ = ["induction_scores", "prefix_curves"]
