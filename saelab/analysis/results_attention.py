"""Results on attention: which heads and source tokens wrote a latent; without the model they came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saelab.analysis.controls import Beside
from saelab.arguments import an_integer, checked, one_of
from saelab.errors import headline
from saelab.types import RangeError

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 12
"""Edges of a text form."""
KINDS = {
    "latent": "a latent of an SAE",
    "edge": "what a head moves from a source",
    "embedding": "the token itself",
    "position": "the position's embedding",
    "mlp": "an MLP without a transcoder",
    "error": "what an SAE leaves out",
    "skip": "the linear part of a transcoder",
    "constants": "biases on the way",
    "rest": "smaller parts together",
}
"""Kinds of a step -> what they are."""


@dataclass(frozen=True)
class HeadAttribution:
    """How much of each latent's weights belongs to each head of a layer. All float64 [d_sae heads], rows sum
    to 1; of a latent without weights they are NaN."""

    decoder: np.ndarray
    """||W_dec[i, head]||: share of what the latent writes (Kissane et al. 2024)"""
    encoder: np.ndarray
    """||W_enc[head, i]||: share of what it reads"""
    corrected: np.ndarray
    """||W_enc[head, i]|| times the size of what that head gives, so that a head of small z counts less"""
    sizes: np.ndarray
    """float64 [heads]: the size of each head's z"""
    measured: bool
    """whether the sizes were given; else they are the root mean square of the decoder's rows in that head"""

    @property
    def n_heads(self) -> int:
        """How many heads."""
        return self.decoder.shape[1]

    @checked(head=an_integer(), n=an_integer(), kind=one_of("decoder", "encoder", "corrected"))
    def top(self, head: int, n: int = 10, kind: str = "decoder") -> list[tuple[int, float]]:
        """The latents that belong to a head most.

        Args:
            head: Of the layer.
            n: At most so many.
            kind: "decoder", "encoder" or "corrected".

        Returns:
            (latent, share), the largest first.

        Raises:
            RangeError: There is no such head.
        """
        if head >= self.n_heads:
            message = f"head must be below {self.n_heads}. Got {head}. Pass one of the layer's."
            raise RangeError(message)
        share = np.nan_to_num(getattr(self, kind)[:, head], nan=-1.0)
        order = np.argsort(-share, kind="stable")[:n]
        return [(int(j), float(share[j])) for j in order if share[j] >= 0]

    def to_frame(self) -> pd.DataFrame:
        """One line for each latent and head: latent, head, decoder, encoder, corrected."""
        import pandas as pd

        latent, head = np.indices(self.decoder.shape)
        shares = {name: getattr(self, name).ravel() for name in ("decoder", "encoder", "corrected")}
        return pd.DataFrame({"latent": latent.ravel(), "head": head.ravel()} | shares)

    __repr__ = headline

    def __str__(self) -> str:
        most = np.nanmax(self.decoder, axis=1) if len(self.decoder) else np.zeros(0)
        share = f"{np.mean(most >= 0.5):.0%} have half of their decoder in one"
        lines = [f"{len(self.decoder):,} latents over {self.n_heads} heads; {share}"]
        for head in range(self.n_heads):
            told = "  ".join(f"{j}:{share:.2f}" for j, share in self.top(head, 6))
            lines.append(f"head {head}  {told}")
        return "\n".join(lines)


class Edge(NamedTuple):
    """What one head moves from one source."""

    layer: int
    head: int
    source: int
    """position"""
    part: float
    """of the pre-activation"""


@dataclass(frozen=True)
class _Edges:
    """A number for each head and source position, of a latent at one position."""

    latent: int
    hook: str
    """that the SAE reads"""
    tokens: tuple[str, ...]
    dest: int
    """the position"""
    layers: tuple[int, ...]
    """whose heads these are"""
    parts: np.ndarray
    """float64 [layers heads positions]"""
    pre: float
    """the pre-activation that the SAE computes there"""
    code: float
    """and the code; 0 where it does not fire"""

    @property
    def by_source(self) -> np.ndarray:
        """float64 [positions]: over all heads."""
        return self.parts.sum((0, 1))

    @property
    def by_head(self) -> np.ndarray:
        """float64 [layers heads]: over all sources."""
        return self.parts.sum(2)

    @checked(n=an_integer())
    def top(self, n: int = SHOWN) -> list[Edge]:
        """The edges of the largest |part|, largest first.

        Args:
            n: At most so many.
        """
        order = np.argsort(-np.abs(self.parts), axis=None, kind="stable")[:n]
        found = np.stack(np.unravel_index(order, self.parts.shape), 1).tolist()
        return [Edge(self.layers[i], h, s, float(self.parts[i, h, s])) for i, h, s in found]

    def to_frame(self) -> pd.DataFrame:
        """One line for each edge: layer, head, source, token, part."""
        import pandas as pd

        layer, head, source = (at.ravel() for at in np.indices(self.parts.shape))
        return pd.DataFrame({
            "layer": np.array(self.layers, dtype=int)[layer], "head": head, "source": source,
            "token": [self.tokens[i] for i in source], "part": self.parts.ravel(),
        })  # fmt: skip

    def _words(self, summed: str) -> str:
        lines = [
            f"latent {self.latent} at {self.dest} {self.tokens[self.dest]!r}: pre-activation {self.pre:.4f}, "
            f"code {self.code:.4f}; {summed}"
        ]
        for layer, head, source, part in self.top():
            lines.append(f"{part:+9.4f}  {layer}.{head}  from {source} {self.tokens[source]!r}")
        return "\n".join(lines)


@dataclass(frozen=True)
class DFA(_Edges):
    """A latent's pre-activation at one position, by the heads and source positions that wrote it there
    (direct feature attribution, Kissane et al. 2024): parts + rest = pre."""

    rest: tuple[tuple[str, float], ...]
    """(what, part) of what no head moves: the embedding, each MLP, constants"""

    @property
    def total(self) -> float:
        """Of all parts; `pre` but for rounding."""
        return float(self.parts.sum() + sum(part for _, part in self.rest))

    __repr__ = headline

    def __str__(self) -> str:
        heads = self.parts.sum()
        off = f"rest {self.total - heads:+.4f}, off by {self.total - self.pre:+.1e}"
        rest = (f"{part:+9.4f}  {what}" for what, part in self.rest)
        return "\n".join([self._words(f"heads {heads:+.4f}, {off}"), *rest])


@dataclass(frozen=True)
class EdgeEffects(_Edges):
    """What a latent's pre-activation at one position would lose without each edge, through all that comes
    after it, to first order. An edge is a head's weight of one source at that position. Parts do not sum to
    the pre-activation: MLPs and later heads answer to several edges at once."""

    def of(self, edges: Sequence[Edge]) -> np.ndarray:
        """float64 [edges]: of some.

        Args:
            edges: Of layers that it has.
        """
        at = {layer: i for i, layer in enumerate(self.layers)}
        return np.array([self.parts[at[edge.layer], edge.head, edge.source] for edge in edges])

    __repr__ = headline

    def __str__(self) -> str:
        return self._words("what each edge is worth through all that comes after it, to first order")


@dataclass(frozen=True)
class Branch:
    """One step back: a part of what its parent is, and what it is made of in turn."""

    kind: str
    """one of `KINDS`"""
    value: float
    """its part of the root's pre-activation"""
    layer: int | None = None
    head: int | None = None
    position: int | None = None
    """of a latent, an error, an embedding or an MLP its own, of an edge the source's"""
    latent: int | None = None
    sae: str = ""
    """the hook point of the SAE of a latent or an error"""
    count: int = 1
    """how many parts a "rest" holds"""
    code: float = 0.0
    """of a latent"""
    children: tuple[Branch, ...] = ()

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Branch]]:
        """(depth, branch) of itself and all below it, each before its children.

        Args:
            depth: Its own.
        """
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)

    def cut(self, depth: int) -> float:
        """The sum of its parts where it is cut at a depth: of what lies there, and of what ends before."""
        if depth == 0 or not self.children:
            return self.value
        return sum(child.cut(depth - 1) for child in self.children)

    @property
    def error(self) -> float:
        """The sum of the error nodes below it."""
        return sum(branch.value for _, branch in self.walk() if branch.kind == "error")

    def told(self, tokens: Sequence[str]) -> str:
        """In words.

        Args:
            tokens: Of the text.
        """
        at = "" if self.position is None else f"at {self.position} {tokens[self.position]!r}"
        if self.kind == "latent":
            return f"latent {self.latent} of {self.sae} {at}"
        if self.kind == "edge":
            return f"head {self.layer}.{self.head} from {at[3:]}"
        if self.kind == "error":
            return f"error of {self.sae} {at}"
        if self.kind == "mlp":
            return f"MLP {self.layer} {at}"
        return f"{self.count:,} smaller parts" if self.kind == "rest" else f"{self.kind} {at}".strip()


@dataclass(frozen=True)
class RecursiveDFA:
    """A latent's pre-activation at one position, followed back through heads, SAEs and MLPs to the
    embeddings, with patterns, scales of norms and which latents fire frozen."""

    tokens: tuple[str, ...]
    dest: int
    root: Branch
    """the latent, with what it is made of"""
    pre: float
    """the pre-activation that the SAE computes there"""
    sums: tuple[float, ...]
    """by depth: the sum over the tree as far as that depth; each is `pre` but for rounding"""

    @property
    def depth(self) -> int:
        """Steps of the longest way."""
        return len(self.sums) - 1

    def errors(self) -> tuple[float, ...]:
        """By depth: the sum of the error nodes of the tree as far as that depth."""

        def upto(branch: Branch, depth: int) -> float:
            own = branch.value if branch.kind == "error" else 0.0
            return own if depth == 0 else own + sum(upto(child, depth - 1) for child in branch.children)

        return tuple(upto(self.root, depth) for depth in range(len(self.sums)))

    def to_frame(self) -> pd.DataFrame:
        """One line for each branch, a parent before its children: depth, kind, value, layer, head, position,
        token, latent, sae, what."""
        import pandas as pd

        lines = [
            (depth, b.kind, b.value, b.layer, b.head, b.position,
             None if b.position is None else self.tokens[b.position], b.latent, b.sae, b.told(self.tokens))
            for depth, b in self.root.walk()
        ]  # fmt: skip
        names = ["depth", "kind", "value", "layer", "head", "position", "token", "latent", "sae", "what"]
        return pd.DataFrame(lines, columns=names)

    __repr__ = headline

    def __str__(self) -> str:
        off = max(abs(each - self.pre) for each in self.sums)
        errors = self.errors()
        lines = [
            f"{self.root.told(self.tokens)}: pre-activation {self.pre:.4f}; {self.depth} steps back, sums "
            f"off by at most {off:.1e}, errors of SAEs {errors[-1]:+.4f}"
        ]
        for depth, branch in self.root.walk():
            if depth:
                lines.append(f"{branch.value:+9.4f}  {'  ' * (depth - 1)}{branch.told(self.tokens)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class EdgeChanges:
    """What becomes of a latent's pre-activation when edges are taken out of the model one by one, beside what
    attribution says of them. Arrays are all [edges]."""

    dfa: DFA
    edges: tuple[Edge, ...]
    changes: np.ndarray
    """float64: pre-activation of the untouched model minus that without the edge"""
    weights: np.ndarray
    """float64: the pattern at the edge"""
    effects: EdgeEffects
    """what gradients say of the same edges"""
    agreement: Beside
    """Spearman's correlation of parts and changes; the control is that of the pattern and changes"""
    sizes: Beside
    """the same of |parts| and |changes|; the control is that of the pattern and |changes|"""
    foretold: Beside
    """the same of effects and changes; the control is that of the pattern and changes"""

    def to_frame(self) -> pd.DataFrame:
        """One line for each edge: layer, head, source, token, part, change, weight, effect."""
        import pandas as pd

        found = pd.DataFrame(self.edges, columns=list(Edge._fields))
        found.insert(3, "token", [self.dfa.tokens[edge.source] for edge in self.edges])
        effects = self.effects.of(self.edges)
        return found.assign(change=self.changes, weight=self.weights, effect=effects)

    __repr__ = headline

    def __str__(self) -> str:
        lines = [
            f"latent {self.dfa.latent} at {self.dfa.dest}: Spearman of parts and changes {self.agreement}",
            f"of their sizes {self.sizes}" + "; not above its control" * (not self.sizes.apart),
            f"of effects by gradient and changes {self.foretold}",
            "part, change, effect",
        ]
        for edge, *told in list(zip(self.edges, self.changes, self.effects.of(self.edges), strict=True))[
            :SHOWN
        ]:
            token = self.dfa.tokens[edge.source]
            numbers = " ".join(f"{value:+9.4f}" for value in (edge.part, *told))
            lines.append(f"{numbers}  {edge.layer}.{edge.head}  from {edge.source} {token!r}")
        return "\n".join(lines)


@dataclass(frozen=True)
class HeadEffects:
    """What becomes of a latent's pre-activation at one position when whole heads are taken out one by one,
    beside what attribution says of them. Arrays are float64 [layers heads]."""

    dfa: DFA
    layers: tuple[int, ...]
    """those that come before the latent"""
    effects: np.ndarray
    """pre-activation of the untouched model minus that without the head, at every position"""
    parts: np.ndarray
    """`DFA.by_head`; 0 of layers that do not write there directly"""
    weights: np.ndarray
    """the head's attention from the position to others than the first token"""
    agreement: Beside
    """Spearman's correlation of parts and effects over heads; the control is that of weights and effects"""
    sizes: Beside
    """the same of |parts| and |effects|; the control is that of weights and |effects|"""

    @property
    def average(self) -> float:
        """|effect| of a head drawn at random."""
        return float(np.abs(self.effects).mean())

    def to_frame(self) -> pd.DataFrame:
        """One line for each head: layer, head, part, effect, weight."""
        import pandas as pd

        layer, head = (at.ravel() for at in np.indices(self.effects.shape))
        return pd.DataFrame({
            "layer": np.array(self.layers)[layer], "head": head, "part": self.parts.ravel(),
            "effect": self.effects.ravel(), "weight": self.weights.ravel(),
        })  # fmt: skip

    __repr__ = headline

    def __str__(self) -> str:
        lines = [
            f"latent {self.dfa.latent} at {self.dfa.dest}: Spearman of parts and effects of "
            f"{self.effects.size} heads {self.agreement}",
            f"of their sizes {self.sizes}" + "; not above its control" * (not self.sizes.apart),
            f"a head drawn at random changes {self.average:.4f}; part, effect",
        ]
        order = np.argsort(-np.abs(self.effects), axis=None, kind="stable")[:SHOWN]
        for i, h in zip(*np.unravel_index(order, self.effects.shape), strict=True):
            lines.append(f"{self.parts[i, h]:+9.4f} {self.effects[i, h]:+9.4f}  {self.layers[i]}.{h}")
        return "\n".join(lines)


@dataclass(frozen=True)
class HeadLosses:
    """What latents of an SAE on hook_z lose when one head is taken out of what it reads."""

    losses: np.ndarray
    """float64 [d_sae heads]: share of the summed code that is lost; NaN of latents that never fired"""
    attribution: HeadAttribution
    ratio: Mapping[str, Beside]
    """"decoder", "encoder" and "corrected" -> mean loss of latents of which at least half belongs to the
    head, over the mean of those of which less than 5 % does; the control has heads shuffled in each latent"""
    pairs: Mapping[str, tuple[int, int]]
    """of each the (latent, head) pairs above and below"""
    rows: int
    """that were read"""
    ablation: str
    """"mean" or "zero": what took the place of the head"""

    def to_frame(self) -> pd.DataFrame:
        """One line for each attribution: ratio, interval, control, pairs above and below."""
        import pandas as pd

        lines = [
            (name, b.value, *b.interval, b.control, *b.control_interval, *self.pairs[name])
            for name, b in self.ratio.items()
        ]
        ends = ["ratio", "low", "high", "control", "control low", "control high", "above", "below"]
        return pd.DataFrame(lines, columns=["attribution", *ends])

    __repr__ = headline

    def __str__(self) -> str:
        lines = [
            f"codes lost without a head ({self.ablation} in its place), over {self.rows:,} rows: of latents "
            "that belong to it by half or more, over those by less than 5 %"
        ]
        for name, ratio in self.ratio.items():
            above, below = self.pairs[name]
            lines.append(f"{name:>9}  {ratio}; {above:,} against {below:,} pairs")
        return "\n".join(lines)


__all__ = [
    "DFA", "KINDS", "Branch", "Edge", "EdgeChanges", "HeadAttribution", "HeadEffects", "HeadLosses",
    "RecursiveDFA",
]  # fmt: skip
