"""Results on what heads do over texts, and on families of latents; without the model they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saelab.errors import headline

if TYPE_CHECKING:
    import pandas as pd

SHORT, LONG = 0.3, 0.7
"""A head goes by long prefixes where it scores below the first at one token, and above the second at five."""
FIVE = 5


@dataclass(frozen=True)
class InductionScores:
    """Weights of heads over random tokens that are written twice. Arrays are float64 [layers heads]."""

    scores: np.ndarray
    """of the token after the same token's first occurrence"""
    low: np.ndarray
    """2.5 % of `scores`, by drawing sequences anew"""
    high: np.ndarray
    """97.5 %"""
    control: np.ndarray
    """of a random position of the first copy"""
    duplicate: np.ndarray
    """of the first occurrence itself"""
    previous: np.ndarray
    """of the position before"""
    n: int
    """sequences"""
    length: int
    """tokens that are repeated"""

    def to_frame(self) -> pd.DataFrame:
        """One line for each head, the largest score first: layer, head, score, low, high, control, duplicate,
        previous."""
        import pandas as pd

        layer, head = (at.ravel() for at in np.indices(self.scores.shape))
        columns = {
            "score": self.scores, "low": self.low, "high": self.high, "control": self.control,
            "duplicate": self.duplicate, "previous": self.previous,
        }  # fmt: skip
        found = pd.DataFrame({"layer": layer, "head": head} | {k: v.ravel() for k, v in columns.items()})
        return found.sort_values("score", ascending=False, ignore_index=True)

    __repr__ = headline

    def __str__(self) -> str:
        above = int((self.low > self.control).sum())
        head = f"induction, {self.n} x {self.length} random tokens twice: {above} of {self.scores.size} heads"
        table = self.to_frame().head(10).to_string(index=False, float_format=lambda v: f"{v:.3f}")
        return f"{head} above a random position\n{table}"


@dataclass(frozen=True)
class PrefixCurves:
    """How heads continue repeated prefixes. Arrays are float64 [layers heads lengths]."""

    lengths: tuple[int, ...]
    """of the prefixes, in tokens"""
    scores: np.ndarray
    """the weight of the token after the first copy, from the last token of the second"""
    low: np.ndarray
    """2.5 % of `scores`, by drawing sequences anew"""
    high: np.ndarray
    """97.5 %"""
    control: np.ndarray
    """the weight of a random position that is not the source"""
    drop: np.ndarray
    """by how much the score falls where the token two before the source is another; 0 at length 1"""
    drop_low: np.ndarray
    """2.5 % of `drop`"""
    drop_high: np.ndarray
    """97.5 %"""
    n: int
    """sequences of each length"""
    length: int
    """tokens of a sequence"""

    def _at(self, prefix: int) -> np.ndarray | None:
        return self.scores[..., self.lengths.index(prefix)] if prefix in self.lengths else None

    @property
    def long(self) -> list[tuple[int, int]]:
        """(layer, head) of those that score below 0.3 at one token and above 0.7 at five."""
        one, five = self._at(1), self._at(FIVE)
        if one is None or five is None:
            return []
        return [(int(i), int(h)) for i, h in np.argwhere((one < SHORT) & (five > LONG))]

    @property
    def short(self) -> list[tuple[int, int]]:
        """(layer, head) of those that score above 0.5 at one token already."""
        one = self._at(1)
        return [] if one is None else [(int(i), int(h)) for i, h in np.argwhere(one > 0.5)]

    def to_frame(self) -> pd.DataFrame:
        """One line for each head and length: layer, head, prefix, score, low, high, control, drop, drop low,
        drop high."""
        import pandas as pd

        layer, head, number = (at.ravel() for at in np.indices(self.scores.shape))
        found = {"layer": layer, "head": head, "prefix": np.array(self.lengths)[number]}
        columns = {
            "score": self.scores, "low": self.low, "high": self.high, "control": self.control,
            "drop": self.drop, "drop low": self.drop_low, "drop high": self.drop_high,
        }  # fmt: skip
        return pd.DataFrame(found | {name: value.ravel() for name, value in columns.items()})

    __repr__ = headline

    def __str__(self) -> str:
        def told(heads: list[tuple[int, int]]) -> str:
            return ", ".join(f"{i}.{h}" for i, h in heads) or "none"

        lines = [
            f"prefixes of {self.lengths[0]} to {self.lengths[-1]} tokens, {self.n} sequences each: by one "
            f"token (score(1) > 0.5) {told(self.short)}; by longer ones (score(1) < {SHORT}, score({FIVE}) > "
            f"{LONG}) {told(self.long)}",
            "head   " + " ".join(f"{each:>5}" for each in self.lengths) + "   largest drop",
        ]
        best = self.scores.max(-1)
        for flat in np.argsort(-best, axis=None, kind="stable")[:8]:
            i, h = np.unravel_index(flat, best.shape)
            j = int(self.drop[i, h].argmax())
            own = f"{self.drop[i, h, j]:.2f} [{self.drop_low[i, h, j]:.2f}, {self.drop_high[i, h, j]:.2f}]"
            lines.append(f"{i}.{h:<4} " + " ".join(f"{v:5.2f}" for v in self.scores[i, h]) + f"   {own}")
        return "\n".join(lines)


class Proxy(NamedTuple):
    """What tells from tokens alone where a latent fires, chosen on one half of the documents and judged on
    the other."""

    latent: int
    family: str
    """"local", "induction", "long-range", or "unclear" where precision or recall is below the bar"""
    token: str
    """that the proxy asks for"""
    offset: int
    """of a local proxy: how far before the position the token stands; else 0"""
    precision: float
    """share of the rows that fire on which the proxy holds, on documents that had no part in the choice"""
    precision_interval: tuple[float, float]
    """95 % (Wilson)"""
    recall: float
    """share of the rows on which the proxy holds that fire"""
    recall_interval: tuple[float, float]
    """95 % (Wilson)"""
    control: float
    """the smaller of both where proxies are chosen and judged with the tokens of rows shuffled"""
    rows: int
    """that fire, among those it is judged on"""


@dataclass(frozen=True)
class Families:
    """Families of latents by automatic proxies."""

    proxies: tuple[Proxy, ...]
    """of the latents that fire often enough to be judged, by number"""
    bar: float
    """that precision and recall must both reach"""
    least: int
    """rows that a latent must fire on in each half"""
    unjudged: int
    """latents that fire less often"""

    @property
    def counts(self) -> Mapping[str, int]:
        """Family -> latents."""
        found: dict[str, int] = dict.fromkeys(("induction", "local", "long-range", "unclear"), 0)
        for proxy in self.proxies:
            found[proxy.family] += 1
        return found

    def to_frame(self) -> pd.DataFrame:
        """One line for each latent that was judged: the fields of `Proxy`."""
        import pandas as pd

        return pd.DataFrame(self.proxies, columns=list(Proxy._fields))

    __repr__ = headline

    def __str__(self) -> str:
        told = ", ".join(f"{n} {family}" for family, n in self.counts.items())
        passing = sum(proxy.control >= self.bar for proxy in self.proxies)
        lines = [
            f"{len(self.proxies):,} latents by held-out precision and recall >= {self.bar}: {told}; with "
            f"tokens shuffled {passing} pass; {self.unjudged:,} fire on fewer than {self.least} rows"
        ]
        best = sorted((p for p in self.proxies if p.family != "unclear"), key=lambda p: -min(p[4], p[6]))
        for p in best[:10]:
            at = f" {p.offset} before" if p.offset else ""
            lines.append(f"{p.latent:>6} {p.family:<10} {p.token!r}{at}: {p.precision:.2f} / {p.recall:.2f}")
        return "\n".join(lines)


@dataclass(frozen=True)
class HeadRoles:
    """What the latents of each head are for, by families."""

    counts: np.ndarray
    """int64 [heads 4]: of the top latents of each head, the induction, local, long-range, unclear ones"""
    several: int
    """heads whose top latents that are clear are of more than one family"""
    judged: int
    """heads with at least two clear latents"""
    interval: tuple[float, float]
    """95 % of several / judged (Wilson)"""
    control: float
    """the same share with latents dealt to heads at random, over 200 deals"""
    n: int
    """top latents of a head"""

    def to_frame(self) -> pd.DataFrame:
        """One line for each head: induction, local, long-range, unclear."""
        import pandas as pd

        return pd.DataFrame(self.counts, columns=["induction", "local", "long-range", "unclear"])

    __repr__ = headline

    def __str__(self) -> str:
        if not self.judged:
            return f"no head has two clear latents among its top {self.n}\n{self.to_frame().to_string()}"
        low, high = self.interval
        share = self.several / self.judged
        return (
            f"{self.several} of {self.judged} heads with two clear latents or more are of several families: "
            f"{share:.0%} [{low:.0%}, {high:.0%}]; latents dealt at random {self.control:.0%}\n"
            f"{self.to_frame().to_string()}"
        )


__all__ = ["Families", "HeadRoles", "InductionScores", "PrefixCurves", "Proxy"]
