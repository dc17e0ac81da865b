"""What is found of a task's circuit, in a form that prints and that pandas takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saelab.analysis.circuits.nodes import HeadEdge, Node
from saelab.analysis.controls import Alone, Beside, Sums, controls_of, correlation, interval, interval_of
from saelab.types import ConfigError

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 10


@dataclass(frozen=True, eq=False)
class Effects:
    """What each node, or each edge between heads, does for a task: how much of the score is lost with it."""

    task: str
    nodes: tuple[Node | HeadEdge, ...]
    values: np.ndarray
    """float64 [nodes, pairs]"""
    gap: np.ndarray
    """float64 [pairs]: what is lost when everything is corrupt"""
    method: str

    @property
    def mean(self) -> np.ndarray:
        """float64 [nodes]: over pairs."""
        return self.values.mean(1)

    @property
    def share(self) -> np.ndarray:
        """float64 [nodes]: the mean effect, of the mean gap."""
        return self.mean / self.gap.mean()

    def interval(self, node: int, seed: int = 0) -> tuple[float, float]:
        """95 % of a node's share, by drawing the pairs again.

        Args:
            node: Its place among the nodes.
            seed: Of the draws.
        """
        sums = Sums()
        sums.add(np.arange(len(self.gap)), effect=self.values[node], gap=self.gap)
        return interval(sums, lambda of: of["effect"] / of["gap"], seed)

    def of_pairs(self, at: np.ndarray) -> Effects:
        """The same of some of the pairs.

        Args:
            at: int64, their numbers.
        """
        return Effects(self.task, self.nodes, self.values[:, at], self.gap[at], self.method)

    def order(self) -> np.ndarray:
        """int64 [nodes]: places of the nodes, those of the largest mean effect, of either sign, first."""
        return np.argsort(-np.abs(self.mean), kind="stable")

    def to_frame(self) -> pd.DataFrame:
        """A row a node, the largest effects first: node, kind, hook, index, effect, share, low, high."""
        import pandas as pd

        rows = []
        for i in self.order():
            low, high = self.interval(int(i))
            node = self.nodes[i]
            rows.append(
                {"node": str(node), **node._asdict(), "effect": self.mean[i], "share": self.share[i]}
                | {"low": low, "high": high}
            )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        top = ", ".join(f"{self.nodes[i]} {self.share[i]:+.0%}" for i in self.order()[:SHOWN])
        more = f" and {len(self.nodes) - SHOWN} more" if len(self.nodes) > SHOWN else ""
        return f"Effects({self.task!r}, {self.method}, {len(self.gap)} pairs: {top}{more})"


def carries(share: np.ndarray, low: np.ndarray, high: np.ndarray, least: float) -> np.ndarray:
    """bool [nodes]: the rule by which a node, or an edge, is of a circuit: it carries at least a share of the
    score, of either sign, with an interval that leaves out 0.

    Args:
        share: Of the score, what is lost with each.
        low: The interval's lower end.
        high: Its upper end.
        least: The least share.
    """
    return (np.abs(share) >= least) & ((low > 0) | (high < 0))


@dataclass(frozen=True, eq=False)
class Circuit:
    """Nodes that carry a task while all others have the values of the corrupt prompt."""

    task: str
    nodes: tuple[Node, ...]
    of: int
    """how many nodes there are"""
    faithfulness: Beside
    """of pairs that had no part in the choice: (score with the circuit alone - corrupt) / (clean - corrupt);
    1: the circuit does all of the task. Beside sets of as many nodes that are drawn at random"""
    completeness: Beside
    """the same score where the circuit alone is corrupt; 0: nothing does the task without it"""
    curve: tuple[tuple[int, float], ...]
    """(number of nodes, faithfulness), of the pairs that the nodes were chosen on"""
    target: float
    """the faithfulness that was asked for"""
    method: str
    """by which the nodes are ordered"""
    growth: tuple[tuple[int, Beside], ...] = ()
    """(number of nodes, faithfulness) of as many nodes of the largest effects, of the pairs that had no part
    in the choice, beside random sets"""
    effects: Effects | None = None
    """of all nodes, on the pairs that the choice was made on"""

    @property
    def met(self) -> bool:
        """Whether the circuit is as faithful as was asked for, on pairs that had no part in the choice."""
        return self.faithfulness.value >= self.target

    def to_frame(self) -> pd.DataFrame:
        """One line for each of its nodes: node, and where its effects are known, effect, share, low, high."""
        import pandas as pd

        own = [str(node) for node in self.nodes]
        if self.effects is None:
            return pd.DataFrame({"node": own})
        columns = ["node", "effect", "share", "low", "high"]
        told = self.effects.to_frame().set_index("node").reindex(own)
        return pd.DataFrame(told.reset_index(), columns=columns)

    def __str__(self) -> str:
        nodes = ", ".join(map(str, self.nodes[:SHOWN]))
        more = f" and {len(self.nodes) - SHOWN} more" if len(self.nodes) > SHOWN else ""
        said = "" if self.met else f" (short of the {self.target:g} that was asked for)"
        return (
            f"Circuit of {self.task!r}: {len(self.nodes)} of {self.of} nodes, by {self.method}: "
            f"{nodes}{more}\n"
            f"  faithfulness {self.faithfulness}{said}\n"
            f"  completeness {self.completeness}; 0 is complete"
        )

    __repr__ = __str__


@dataclass(frozen=True)
class Agreement:
    """How well estimated effects agree with exact ones, over the nodes of one kind."""

    kind: str
    pearson: Beside | Alone
    """beside effects of nodes that were shuffled"""
    spearman: Beside | Alone
    n: int
    """nodes"""

    def to_frame(self) -> pd.DataFrame:
        """One line for each correlation: kind, figure, value, its 95 % interval, and that of shuffled nodes
        (NaN where there is none)."""
        import pandas as pd

        lines = []
        for name, each in (("Pearson", self.pearson), ("Spearman", self.spearman)):
            ends = dict(zip(("from", "to"), interval_of(each), strict=True))
            lines.append(
                {"kind": self.kind, "figure": name, "value": each.value, **ends, **controls_of(each)}
            )
        return pd.DataFrame(lines)

    def __str__(self) -> str:
        return f"{self.kind} (n={self.n}): Pearson {self.pearson}; Spearman {self.spearman}"


def agreement(exact: Effects, estimate: Effects, seed: int = 0) -> list[Agreement]:
    """How well estimated effects agree with exact ones, for each kind of node.

    Args:
        exact: Of `activation_patching`.
        estimate: Of `attribution_patching`, on the same task; nodes that are in both count.
        seed: Of the draws of nodes that give intervals, and of the control.

    Returns:
        One for each kind: correlations over nodes with 95 % intervals, beside those of shuffled nodes.

    Raises:
        ConfigError: The two are of different tasks.
    """
    if exact.task != estimate.task or len(exact.gap) != len(estimate.gap):
        message = (
            f"Effects must be of one task. Got {exact.task!r} with {len(exact.gap)} pairs and "
            f"{estimate.task!r} with {len(estimate.gap)}. Measure both on the same task."
        )
        raise ConfigError(message)
    place = {node: i for i, node in enumerate(estimate.nodes)}
    found = []
    for kind in dict.fromkeys(node.kind for node in exact.nodes):
        at = [i for i, node in enumerate(exact.nodes) if node.kind == kind and node in place]
        true = exact.mean[at]
        guess = estimate.mean[[place[exact.nodes[i]] for i in at]]
        pearson, spearman = (_correlated(true, guess, ranks, seed) for ranks in (False, True))
        found.append(Agreement(kind, pearson, spearman, len(at)))
    return found


def _correlated(true: np.ndarray, guess: np.ndarray, ranks: bool, seed: int) -> Beside | Alone:
    if len(true) < 4 or true.std() == 0 or guess.std() == 0:
        return Alone(float("nan"), "fewer than four nodes, or all alike", len(true))
    shuffled = np.random.default_rng(seed).permutation(guess)
    return correlation(guess, true, shuffled, "shuffled nodes", ranks=ranks, seed=seed)


__all__ = ["Agreement", "Circuit", "Effects", "agreement", "carries"]
