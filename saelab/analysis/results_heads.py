"""Results on where heads look over a corpus; without the model they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saelab.arguments import an_integer, checked
from saelab.errors import RangeError, headline

if TYPE_CHECKING:
    import pandas as pd

BINS = 50
"""Of a histogram of strongest weights, of equal width from 0 to 1."""
AWAY = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Edges of the distances between two positions: a bin holds its first edge."""
DRAWN = 0
"""The interval of a sequence that was drawn from all."""
SHOWN = 5
"""Sequences of a text form."""
AROUND = 6
"""Tokens on each side of an edge in a text form."""


class HeadSequence(NamedTuple):
    """What one head does on one sequence of tokens."""

    document: int
    """its number in the corpus, or what a file calls the sequence"""
    interval: int
    """by strongest weight: 1 the lowest to `HeadExamples.intervals` the highest; 0 where it was drawn from
    all"""
    strongest: float
    """the largest weight from a token to one before it, where the first position counts on neither side; of a
    folder as that says"""
    tokens: tuple[str, ...]
    edges: np.ndarray
    """int32 [edges 2]: (the position that looks, the one that it looks at), those of the largest weights of
    each position that looks"""
    weights: np.ndarray
    """float32 [edges]"""

    @property
    def best(self) -> tuple[int, int] | None:
        """The strongest edge, as `strongest` counts them; None where no such one is kept."""
        query, key = self.edges.T
        weights = np.where((key > 0) & (key < query), self.weights, 0.0)
        if not weights.any():
            return None
        at = int(weights.argmax())
        return int(query[at]), int(key[at])

    def __str__(self) -> str:
        if self.best is None:
            return f"{self.strongest:.3f}  {''.join(self.tokens[: 2 * AROUND])!r}"
        query, key = self.best
        line, last = "", -1
        for at, token in enumerate(self.tokens):
            if min(abs(at - key), abs(at - query)) > AROUND:
                continue
            line += " … " if at > last + 1 and line else ""
            line += f"«{token}»" if at == key else f"[{token}]" if at == query else token
            last = at
        return f"{self.strongest:.3f}  {line!r}"


class TokenShare(NamedTuple):
    """How much of a head's weight is at a token, of all its weight between two different positions, the first
    left out."""

    token: str
    share: float
    low: float
    """2.5 % of `share`; NaN where it is not known"""
    high: float
    """97.5 %"""
    even: float
    """the same share of a head that attends to all positions before alike"""

    @property
    def apart(self) -> bool:
        """Whether the interval lies above even attention."""
        return self.low > self.even

    def __str__(self) -> str:
        said = "" if np.isnan(self.low) else f" [{self.low:.1%}, {self.high:.1%}]"
        return f"{self.token!r} {self.share:.1%}{said}, even {self.even:.1%}"


class HeadMeasure(NamedTuple):
    """What patterns are like over a corpus. Arrays are float64 [layers heads], NaN of heads that are not
    known."""

    what: str
    values: np.ndarray
    low: np.ndarray
    """2.5 % of `values`, NaN where it is not known"""
    high: np.ndarray
    """97.5 %"""
    even: float
    """of a head that attends to all positions before, and to its own, alike; NaN where it is not known"""


@dataclass(frozen=True)
class OneHead:
    """What one head does over a corpus."""

    layer: int
    head: int
    sequences: tuple[HeadSequence, ...]
    """of the highest interval first, then of lower ones, then those drawn from all; the strongest first"""
    keys: tuple[TokenShare, ...]
    """tokens that are looked at"""
    queries: tuple[TokenShare, ...]
    """tokens that look"""
    strongest: np.ndarray
    """int64 [bins]: sequences by their strongest weight, of all that were read; none where it is not known"""
    bins: np.ndarray
    """float64 [bins + 1]: the edges of these bins; of `head_examples` 50 equal ones from 0 to 1"""
    away: np.ndarray
    """float64 [13]: share of the weight by how far it goes back, in bins between `AWAY`"""
    even_away: np.ndarray
    """float64 [13]: the same of a head that attends to all positions before alike"""

    __repr__ = headline

    def __str__(self) -> str:
        told = [each for each in (*self.keys, *self.queries) if not np.isnan(each.low)]
        failing = sum(not each.apart for each in told)
        lines = [f"head {self.layer}.{self.head}, {len(self.sequences)} sequences"]
        for name, tokens in (("looks at", self.keys), ("from", self.queries)):
            lines.append(f"{name}: {'; '.join(map(str, tokens[:SHOWN])) or 'no token above even attention'}")
        if failing:
            lines.append(f"{failing} of {len(told)} tokens are not above even attention on other documents")
        return "\n".join(lines + [f"  {each}" for each in self.sequences[:SHOWN]])


@dataclass(frozen=True)
class HeadExamples:
    """Where heads look over a corpus: what `head_examples` or `read_headvis` gives."""

    model: str
    corpus: str
    layers: int
    heads: int
    """of a layer"""
    n: int
    """sequences that were read"""
    intervals: int
    """into which sequences are sorted by their strongest weight; 1 where the strongest alone are kept"""
    measures: Mapping[str, HeadMeasure]
    """name -> the measure"""
    known: Mapping[tuple[int, int], OneHead]
    """(layer, head) -> what is known of it; of a folder each is read when it is asked for"""

    @checked(layer=an_integer(0), head=an_integer(0))
    def head(self, layer: int, head: int) -> OneHead:
        """What one head does.

        Args:
            layer: From 0.
            head: Of the layer, from 0.

        Raises:
            RangeError: Nothing is known of such a head.
            StoreError, FormatError: Of a folder, its file cannot be read, or is none.
        """
        if (layer, head) not in self.known:
            message = (
                f"A head must be one of the {len(self.known)} that are known, of {self.layers} layers of "
                f"{self.heads}. Got layer={layer}, head={head}. Pass one of .known."
            )
            raise RangeError(message)
        return self.known[layer, head]

    def to_frame(self) -> pd.DataFrame:
        """One line for each head: layer, head, and the value of each measure."""
        import pandas as pd

        layer, head = (at.ravel() for at in np.indices((self.layers, self.heads)))
        values = {name: each.values.ravel() for name, each in self.measures.items()}
        return pd.DataFrame({"layer": layer, "head": head} | values)

    __repr__ = headline

    def __str__(self) -> str:
        lines = [f"{len(self.known)} heads of {self.model} over {self.n:,} sequences of {self.corpus}"]
        for name, each in self.measures.items():
            if np.isnan(each.values).all():
                continue
            i, h = np.unravel_index(int(np.nanargmax(each.values)), each.values.shape)
            low, high = each.low[i, h], each.high[i, h]
            said = "" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]"
            even = "" if np.isnan(each.even) else f"; of even attention {each.even:.3f}"
            lines.append(f"{name}: {each.what}: most in {i}.{h}, {each.values[i, h]:.3f}{said}{even}")
        return "\n".join(lines)


__all__ = ["HeadExamples", "HeadMeasure", "HeadSequence", "OneHead", "TokenShare"]
