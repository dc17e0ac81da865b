"""What an attribution graph is: nodes, direct effects between them, influence and pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelab.analysis.circuits.graph_writing import write_graph
from saelab.analysis.circuits.influence import influence_of, shares_of, threshold_of
from saelab.analysis.controls import Alone, Beside
from saelab.arguments import checked, one_of, place
from saelab.config import is_number
from saelab.errors import headline
from saelab.types import ConfigError, short

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

KINDS = ("latent", "error", "embedding", "logit")
SHOWN = 10


class GraphNode(NamedTuple):
    """A node of an attribution graph."""

    kind: str
    """latent, error (what an SAE leaves out, or an MLP that nothing stands for), embedding, or logit"""
    hook: str
    """where it writes; "" where a file does not say"""
    layer: int
    """-1 of an embedding, the number of layers of a logit"""
    index: int
    """which latent, or the id of the token; -1 of an error, and of a difference of logits"""
    position: int
    value: float
    """of a latent its code, of a logit its probability (of a difference 1); of others NaN"""
    label: str = ""
    """in words: the token of an embedding or a logit, what an error is of, what a file calls a latent"""


@dataclass(frozen=True, eq=False)
class AttributionGraph:
    """What brought a model to its next token: latents, errors and embeddings, and the direct effect of each
    on each, with attention patterns, the scales of norms and which latents fire frozen (Ameisen et al. 2025,
    "Circuit Tracing"; the sizes follow circuit-tracer, Hanna & Piotrowski 2025).

    Made by `attribution_graph` or `read_graph`. Of every latent and logit::

        sum_source adjacency[node, source] + bias[node] + rest[node] = pre[node]
    """

    text: str
    tokens: tuple[str, ...]
    """of the prompt, BOS among them"""
    nodes: tuple[GraphNode, ...]
    ids: tuple[str, ...]
    """one of each node, as in its file: layer_index_position"""
    adjacency: np.ndarray
    """float32 [nodes nodes], [target, source]: what the source brings to the target's pre-activation, or to a
    logit less the mean logit"""
    bias: np.ndarray
    """float32 [nodes]: what constants bring; NaN where a file does not say"""
    rest: np.ndarray
    """float32 [nodes]: what latents bring that were left out, and edges that were pruned; NaN likewise"""
    pre: np.ndarray
    """float32 [nodes]: the pre-activation that the SAE computes, the logit less the mean logit that the model
    computes; NaN of nodes that nothing leads to, and where a file does not say"""
    cumulative: np.ndarray
    """float64 [nodes]: in the whole graph, the share of all influence that a node has together with all that
    have more, as files of circuit-tracer have it; NaN of logits, and where a file does not say"""
    replacement: Beside | Alone
    """of the whole graph: the share of the influence on the logits that ends in embeddings rather than in
    errors, beside that of untrained SAEs; 1: all goes through latents"""
    completeness: Beside | Alone
    """of the whole graph: the share of what goes into a node that comes from latents and embeddings rather
    than from errors, on average over nodes by their influence"""
    fired: int = 0
    """latents that fire on the text, each position counted; 0 where a file does not say"""
    left_out: float = 0.0
    """share of the influence that ends in latents that fire and were left out"""
    pruned: tuple[float, float] | None = None
    """the thresholds of nodes and edges at which it was pruned; None: it is whole"""
    qparams: Mapping[str, Any] = field(default_factory=dict)
    """how a viewer shows it, as files say it: pinnedIds, supernodes, clickedId, linkType"""
    others: Mapping[str, Any] = field(default_factory=dict)
    """what else a file says: of the whole under "" and of nodes under their ids; written as it was read"""

    @property
    def logits(self) -> tuple[GraphNode, ...]:
        """What is explained, the likeliest first."""
        return tuple(node for node in self.nodes if node.kind == "logit")

    @property
    def n_layers(self) -> int:
        """Of the model."""
        return max((node.layer + (node.kind != "logit") for node in self.nodes), default=0)

    def of_kind(self, *kinds: str) -> np.ndarray:
        """bool [nodes]: whether a node is of one of some kinds.

        Args:
            kinds: "latent", "error", "embedding" or "logit".
        """
        return np.array([node.kind in kinds for node in self.nodes], dtype=bool)

    def weights(self) -> np.ndarray:
        """float64 [nodes]: of the logits their probabilities, as shares of their sum; 0 of others."""
        found = np.array([node.value if node.kind == "logit" else 0.0 for node in self.nodes])
        if not found.sum() > 0:  # far below what a float holds: all alike
            found = self.of_kind("logit").astype(float)
        return found / found.sum() if found.any() else found

    def influence(self) -> np.ndarray:
        """float64 [nodes]: the share of all that goes into the logits that comes through each node, over all
        ways::

            influence = weights ((I - A)^-1 - I),   A[t, s] = |adjacency[t, s]| / sum_s |adjacency[t, s]|
        """
        return influence_of(shares_of(self.adjacency), self.weights())

    def effects(self) -> np.ndarray:
        """float64 [nodes]: how much of the logits, by their weights, would be lost with each node, along all
        ways, if what comes after it answered linearly: latents that fire in proportion, errors not at all::

            effects = weights adjacency (I - B)^-1,   B[t, s] = adjacency[t, s] / value[t] of latents t
        """
        latent = self.of_kind("latent")
        value = np.array([node.value if node.kind == "latent" else 1.0 for node in self.nodes])
        step = np.where(latent[:, None], self.adjacency.astype(np.float64) / value[:, None], 0)
        direct = self.weights() @ self.adjacency.astype(np.float64)
        return direct + influence_of(step, direct)

    def off(self) -> np.ndarray:
        """float64 [nodes]: what sums of edges, bias and rest are above `pre`; NaN where that is not known."""
        return self.adjacency.sum(1, dtype=np.float64) + self.bias + self.rest - self.pre

    def prune(self, node: float = 0.8, edge: float = 0.98) -> AttributionGraph:
        """The graph of the nodes and edges of the most influence, as circuit-tracer prunes.

        The fewest nodes are kept whose influence makes up a share of the sum over nodes (and all embeddings
        and logits), then the fewest edges between them whose influence does; then, again and again, latents
        and errors that lead nowhere and latents that nothing leads to are dropped. What an edge that is
        dropped brings is counted in `rest`.

        Args:
            node: The share that nodes keep.
            edge: The share that edges keep.

        Returns:
            It, with the scores of the whole graph.

        Raises:
            ConfigError: A share is none of 0 to 1.
        """
        for name, value in (("node", node), ("edge", edge)):
            if not (is_number(value) and 0 <= value <= 1):
                message = f"{name} must be a share from 0 to 1. Got {short(value)}. Pass e.g. {name}=0.8."
                raise ConfigError(message)
        weights = self.weights()
        influence = influence_of(shares_of(self.adjacency), weights)
        fixed, latent = self.of_kind("embedding", "logit"), self.of_kind("latent")
        kept = fixed | (influence >= threshold_of(influence, node))
        between = np.where(kept[:, None] & kept[None, :], self.adjacency, 0)
        shares = shares_of(between)
        scores = shares * (influence_of(shares, weights) + weights)[:, None]
        edges = (scores >= threshold_of(scores.ravel(), edge)) & (between != 0)
        while True:
            now = kept & (fixed | edges.any(0)) & (~latent | edges.any(1))
            edges &= now[:, None] & now[None, :]
            if (now == kept).all():
                break
            kept = now
        return self._with(np.flatnonzero(kept), edges, (float(node), float(edge)))

    def _with(self, at: np.ndarray, edges: np.ndarray, pruned: tuple[float, float]) -> AttributionGraph:
        """Some nodes and edges of it."""
        adjacency = np.where(edges, self.adjacency, 0)
        gone = (self.adjacency.astype(float) - adjacency).sum(1)
        return replace(
            self,
            nodes=tuple(self.nodes[i] for i in at),
            ids=tuple(self.ids[i] for i in at),
            adjacency=adjacency[np.ix_(at, at)],
            bias=self.bias[at],
            rest=(self.rest + gone).astype(np.float32)[at],
            pre=self.pre[at],
            cumulative=self.cumulative[at],
            pruned=pruned,
        )

    @checked(of=one_of("nodes", "edges"))
    def to_frame(self, of: str = "nodes") -> pd.DataFrame:
        """One line for each node or edge, those of the most influence first.

        Args:
            of: "nodes": id, kind, hook, layer, index, position, token, value, label, influence, bias, rest,
                pre; "edges": source, target, weight, by the size of the weight.
        """
        import pandas as pd

        if of == "edges":
            target, source = np.nonzero(self.adjacency)
            weight = self.adjacency[target, source]
            found = pd.DataFrame({
                "source": [self.ids[i] for i in source], "target": [self.ids[i] for i in target],
                "weight": weight,
            })  # fmt: skip
            return found.iloc[np.argsort(-np.abs(weight), kind="stable")].reset_index(drop=True)
        influence = self.influence()
        found = pd.DataFrame(self.nodes, columns=list(GraphNode._fields))
        found.insert(0, "id", list(self.ids))
        found.insert(6, "token", [self.tokens[node.position] for node in self.nodes])
        found = found.assign(influence=influence, bias=self.bias, rest=self.rest, pre=self.pre)
        return found.iloc[np.argsort(-influence, kind="stable")].reset_index(drop=True)

    @checked(path=place)
    def to_json(self, path: str | Path) -> None:
        """Write it as circuit-tracer and neuronpedia.org read it; `read_graph` gives it back whole.

        What these have no place for (hook points, constants, pre-activations, scores with their controls)
        stands under "saelab".

        Args:
            path: A file's; what is there is replaced.

        Raises:
            StoreError: It cannot be written.
        """
        write_graph(self, path)

    def told(self, node: int) -> str:
        """A node in words.

        Args:
            node: Its place among the nodes.
        """
        kind, hook, layer, index, position, value, label = self.nodes[node]
        at = f"at {position} {self.tokens[position]!r}"
        if kind == "latent":
            named = f" ({label})" if label else ""
            return f"latent {index} of {hook or f'layer {layer}'} {at}, code {value:.3g}{named}"
        if kind == "logit":
            return f"logit {label!r}, p={value:.3g}" if index >= 0 else f"logit {label}"
        return f"{label or f'error of layer {layer}'} {at}" if kind == "error" else f"embedding {at}"

    __repr__ = headline

    def __str__(self) -> str:
        counts = {kind: int(self.of_kind(kind).sum()) for kind in KINDS}
        targets = ", ".join(
            f"{node.label!r} {node.value:.2g}" if node.index >= 0 else node.label for node in self.logits
        )
        said = ", ".join(f"{n:,} {kind}{'s' * (n != 1)}" for kind, n in counts.items())
        lines = [
            f"Graph of {short(self.text, 60)} -> {targets}: {said}; {np.count_nonzero(self.adjacency):,} "
            "edges"
            + ("" if self.pruned is None else " after pruning, node={:g}, edge={:g}".format(*self.pruned)),
            f"  replacement {self.replacement}{_against(self.replacement)}",
            f"  completeness {self.completeness}{_against(self.completeness)}",
        ]
        if self.left_out:
            lines.append(
                f"  of {self.fired:,} latents that fire some were left out, in which {self.left_out:.1%} of "
                "the influence ends"
            )
        influence = self.influence()
        for i in np.argsort(-influence, kind="stable")[:SHOWN].tolist():
            if influence[i] > 0:
                lines.append(f"{influence[i]:8.4f}  {self.told(i)}")
        return "\n".join(lines)


def ids_of(nodes: Sequence[GraphNode]) -> tuple[str, ...]:
    """An id of each node, as circuit-tracer has them: layer_index_position, "E" for the layer of embeddings;
    of a layer's second SAE with the hook point behind it.

    Args:
        nodes: Whose.
    """
    first: dict[tuple[str, int], str] = {}
    found = []
    for node in nodes:
        own = first.setdefault((node.kind, node.layer), node.hook)
        behind = "" if own == node.hook else f"_{node.hook.split('.', 2)[-1]}"
        layer = {"embedding": "E", "logit": str(node.layer + 1)}.get(node.kind, str(node.layer))
        found.append(f"{layer}_{node.index}_{node.position}{behind}")
    return tuple(found)


def _against(score: Beside | Alone) -> str:
    return "; not above its control" if isinstance(score, Beside) and not score.apart else ""


__all__ = ["AttributionGraph", "GraphNode", "ids_of"]
