"""Sums over the sequences of a corpus, of which nothing else is kept: ratios with their intervals, each
token's share of a head's weight, and how far back it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.attention.measures import even_pattern
from saelab.analysis.controls import Z
from saelab.analysis.results_heads import AWAY, TokenShare

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

TOKENS = 10
"""That are told of a head, of each side."""


class Ratios:
    """Sums of one thing over sums of another, with what their intervals need; nothing is kept of a unit.

    Args:
        shape: Of the ratios.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.n = 0
        self.above, self.below = np.zeros(shape), np.zeros(shape)
        self._squares, self._products, self._below = np.zeros(shape), np.zeros(shape), np.zeros(shape)

    def add(self, above: ArrayLike, below: ArrayLike) -> None:
        """One unit's."""
        above, below = np.asarray(above, float), np.asarray(below, float)
        self.n += 1
        self.above += above
        self.below += below
        self._squares += above**2
        self._products += above * below
        self._below += below**2

    def told(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ratios, 2.5 %, 97.5 %)."""
        return _told(self.n, self.above, self.below, self._squares, self._products, self._below)


def _told(
    n: int, above: Any, below: Any, squares: Any, products: Any, below2: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """r = sum a / sum b and 95 % of it, of sums over n units of a, b, a a, a b and b b: its error is that of
    sum (a - r b) / sum b (the linearisation of a ratio)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        r = above / below
        spread = squares - 2 * r * products + r**2 * below2
        error = np.sqrt(np.maximum(spread, 0) * n / (n - 1)) / below if n > 1 else np.full_like(r, np.nan)
    return r, r - Z * error, r + Z * error


class Weighed:
    """The weight of heads between two different positions, the first left out: by the tokens that it is at,
    and by how far back it goes. Even sequences choose the tokens that are told, odd ones judge them; the last
    head is one that attends to all positions before alike.

    Args:
        heads: Without that one.
    """

    def __init__(self, heads: int) -> None:
        self.n = self._judged = 0
        self.away = np.zeros((heads + 1, len(AWAY) - 1))
        """the sum of the weights by distance"""
        self._place: dict[int, int] = {}
        self._sums = np.zeros((4, 2, heads + 1, 64))
        """of the choice; of the others a, a a and a b, where a is a token's weight and b all of it: [4, that
        are looked at and that look, heads, tokens]"""
        self._chosen, self._total, self._squares = (np.zeros(heads + 1) for _ in range(3))

    def add(self, ids: np.ndarray, pattern: np.ndarray) -> np.ndarray:
        """A sequence.

        Args:
            ids: [n], of its tokens.
            pattern: [heads n n].

        Returns:
            float64 [heads]: the largest weight that counts.
        """
        n = len(ids)
        every = np.concatenate([pattern, even_pattern(n)[None].astype(pattern.dtype)])
        every = every * np.tri(n, k=-1, dtype=pattern.dtype)
        every[:, :, 0] = 0
        once, at = np.unique(ids, return_inverse=True)
        one_hot = np.zeros((n, len(once)))
        one_hot[np.arange(n), at] = 1
        own = np.stack([every.sum(1, dtype=float), every.sum(2, dtype=float)]) @ one_hot
        self._add(once, own, own[0].sum(-1))
        away = np.subtract.outer(np.arange(n), np.arange(n))
        bins = np.searchsorted(AWAY, away, side="right") - 1
        for each in np.unique(bins[away > 0]):
            self.away[:, each] += every[:, (bins == each) & (away > 0)].sum(-1, dtype=float)
        self.n += 1
        return every[:-1].reshape(len(pattern), -1).max(-1).astype(float)

    def _add(self, ids: np.ndarray, own: np.ndarray, total: np.ndarray) -> None:
        """own: [2 heads ids], total: [heads]."""
        places = np.array([self._place.setdefault(each, len(self._place)) for each in ids.tolist()])
        while self._sums.shape[-1] < len(self._place):
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)], -1)
        if self.n % 2 == 0:
            self._sums[0][:, :, places] += own
            self._chosen += total
            return
        for i, each in enumerate((own, own**2, own * total[:, None]), 1):
            self._sums[i][:, :, places] += each
        self._total += total
        self._squares += total**2
        self._judged += 1

    def tokens(self, side: int, head: int) -> list[tuple[int, float, float, float, float]]:
        """The tokens that are furthest above even attention in the sequences that choose.

        Args:
            side: 0: that are looked at; 1: that look.
            head: Its number.

        Returns:
            (token id, share, 2.5 %, 97.5 %, share of even attention) in the sequences that judge.
        """
        ids = np.fromiter(self._place, int, len(self._place))
        sums = self._sums[:, side, :, : len(ids)]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = sums[0, [head, -1]] / self._chosen[[head, -1], None]
            lift = np.nan_to_num(share[0] - share[1])
            order = np.lexsort((ids, -lift))[:TOKENS]
            order = order[lift[order] > 0]
            even = sums[1, -1, order] / self._total[-1]
        _, above, squares, products = sums[:, head, order]
        share, low, high = _told(
            self._judged, above, self._total[head], squares, products, self._squares[head]
        )
        columns = (ids[order], share, np.maximum(low, 0), np.minimum(high, 1), even)
        return list(zip(*(each.tolist() for each in columns), strict=True))

    def shares_away(self, head: int) -> np.ndarray:
        """float64 [13]: of the weight of a head by how far it goes back (head: -1 the even one)."""
        with np.errstate(invalid="ignore"):
            return self.away[head] / self.away[head].sum()


def shares(
    weighed: Weighed, side: int, head: int, strings: Callable[[list[int]], Sequence[str]]
) -> tuple[TokenShare, ...]:
    """`Weighed.tokens` with what the tokens are called.

    Args:
        weighed: The sums.
        side: As there.
        head: As there.
        strings: Ids -> the text of each.
    """
    told = weighed.tokens(side, head)
    names = strings([each[0] for each in told]) if told else []
    return tuple(TokenShare(name, *each[1:]) for name, each in zip(names, told, strict=True))


__all__ = ["Ratios", "Weighed", "shares"]
