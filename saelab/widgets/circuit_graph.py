"""An attribution graph on the wire: as many nodes and edges as a browser holds, and what is pinned of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.types import ConfigError, SaelabError, short
from saelab.widgets.circuit_parts import KINDS, SHARE_OFF, Parts, told
from saelab.widgets.source import Source
from saelab.widgets.wire import Packed, clean, cleaned, rounded

if TYPE_CHECKING:
    from saelab.analysis.circuits.graphs import AttributionGraph

MOST_NODES, MOST_EDGES = 1_500, 60_000
"""That a browser holds: those of the most influence, and all embeddings and logits."""
LISTED = 10
"""Edges in words."""


class GraphParts(Parts):
    """An attribution graph."""

    known_by = ("adjacency", "influence", "prune")

    def __init__(self, result: AttributionGraph) -> None:
        if not result.of_kind("logit").any():
            message = (
                f"A graph that is shown must lead to a logit. Got {len(result.nodes)} nodes without one. "
                "Pass what attribution_graph or read_graph gives."
            )
            raise ConfigError(message)
        self.result = result
        self.influence = result.influence()
        self.at = {name: i for i, name in enumerate(result.ids)}

    def latents(self) -> list[tuple[str, int]]:
        order = np.argsort(-self.influence, kind="stable")
        nodes = (self.result.nodes[i] for i in order)
        return list(dict.fromkeys((node.hook, node.index) for node in nodes if node.kind == "latent"))

    def options(self) -> dict[str, Any]:
        """What its file pins and groups, of what there is."""
        said = self.result.qparams
        pinned = [each for each in _listed(said.get("pinnedIds")) if each in self.at]
        groups = [
            [str(group[0]), [each for each in group[1:] if each in self.at]]
            for group in _listed(said.get("supernodes"))
            if isinstance(group, list | tuple) and len(group) > 1
        ]
        opened = said.get("clickedId")
        return {
            "pinned": list(dict.fromkeys(pinned)),
            "groups": [group for group in groups if group[1]],
            "told": opened if isinstance(opened, str) and opened in self.at else "",
        }

    def strange(self, source: Source, hook: str) -> str:
        why = super().strange(source, hook)
        if why:
            return why
        try:
            made = source.codes(self.result.text)
        except SaelabError:  # a Lab without a model: hook point and number are all that is known
            return ""
        if len(made.shown) != len(self.result.tokens):
            return f"its text has {len(self.result.tokens)} tokens, and {len(made.shown)} to this Lab's model"
        for node in self.result.nodes:
            if node.kind == "latent" and node.hook == hook:
                own = float(made.of(node.index)[node.position])
                if abs(own - node.value) > SHARE_OFF * max(abs(own), abs(node.value)):
                    return (
                        f"latent {node.index} of {hook} is {node.value:.3g} at position {node.position}, and "
                        f"{own:.3g} to this Lab's SAE"
                    )
        return ""

    def held(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """int64: the nodes that the browser holds, and targets and sources of edges among them."""
        graph = self.result
        first = graph.of_kind("embedding", "logit")
        order = np.lexsort((-self.influence, ~first))[: max(MOST_NODES, int(first.sum()))]
        nodes = np.sort(order)
        target, source = np.nonzero(graph.adjacency[np.ix_(nodes, nodes)])
        target, source = nodes[target], nodes[source]
        if len(target) > MOST_EDGES:
            # the share of what goes into the logits that comes through each edge
            share = np.abs(graph.adjacency[target, source]) / np.abs(graph.adjacency).sum(1)[target]
            scores = share * (self.influence + graph.weights())[target]
            best = np.sort(np.argsort(-scores, kind="stable")[:MOST_EDGES])
            target, source = target[best], source[best]
        return nodes, target, source

    def packed(self, names: Mapping[str, Sequence[str]], places: Mapping[str, int]) -> Packed:
        graph = self.result
        nodes, target, source = self.held()
        some = [graph.nodes[i] for i in nodes]
        hooks = list(dict.fromkeys(node.hook for node in some))
        labels = [
            node.label or _called(names.get(node.hook, ()), node.index)
            if node.kind == "latent"
            else node.label
            for node in some
        ]
        edges = int(np.count_nonzero(graph.adjacency))
        place = np.full(len(graph.nodes), -1, np.int32)
        place[nodes] = np.arange(len(nodes))
        lacks = []
        if len(nodes) < len(graph.nodes):
            share = self.influence[nodes].sum() / max(self.influence.sum(), 1e-300)
            lacks.append(f"{len(nodes):,} of {len(graph.nodes):,} nodes, with {share:.1%} of the influence")
        if len(target) < edges:
            lacks.append(f"{len(target):,} of {edges:,} edges")
        header = {
            "what": "graph", "title": clean(short(graph.text, 200)), "text": clean(graph.text),
            "layers": graph.n_layers, "hooks": cleaned(hooks),
            "saes": [places.get(hook, -1) for hook in hooks],
            "scores": [["replacement", told(graph.replacement)], ["completeness", told(graph.completeness)]],
            "total": float(self.influence.sum()), "nodes": len(graph.nodes), "edges": edges,
            "holds": " and ".join(lacks), "fired": graph.fired, "left_out": rounded(graph.left_out),
            "pruned": None if graph.pruned is None else list(graph.pruned),
        }  # fmt: skip
        return Packed(
            header,
            {
                "ids": cleaned([graph.ids[i] for i in nodes]),
                "tokens": cleaned(list(graph.tokens)),
                "labels": cleaned(labels),
                "kind": np.array([KINDS.index(node.kind) for node in some], np.uint8),
                "hook": np.array([hooks.index(node.hook) for node in some], np.uint16),
                "layer": np.array([node.layer for node in some], np.int16),
                "index": np.array([node.index for node in some], np.int32),
                "position": np.array([node.position for node in some], np.int32),
                "value": np.array([node.value for node in some], np.float32),
                "influence": self.influence[nodes],
                "weights": graph.weights()[nodes],
                "target": place[target].astype(np.uint16),
                "source": place[source].astype(np.uint16),
                "weight": graph.adjacency[target, source],
            },
        )  # fmt: skip

    def marked(self, pinned: Sequence[str], groups: Sequence[Any], opened: str) -> AttributionGraph:
        """The graph with what is pinned, grouped and told of, as its file says it."""
        said = {
            **self.result.qparams, "pinnedIds": list(pinned), "clickedId": opened,
            "supernodes": [[name, *ids] for name, ids in groups],
        }  # fmt: skip
        return replace(self.result, qparams=said)

    def between(self, pinned: Sequence[str], groups: Sequence[Any]) -> list[tuple[str, str, float, int]]:
        """Edges between what is pinned, a group as one: source and target in words, the sum of the weights,
        and of how many edges; the largest first."""
        grouped = {each for _, ids in groups for each in ids}
        units = [(name, [self.at[each] for each in ids]) for name, ids in groups]
        units += [(self.result.told(self.at[e]), [self.at[e]]) for e in pinned if e not in grouped]
        found = []
        for to, own in units:
            for of, others in units:
                block = self.result.adjacency[np.ix_(own, others)]
                if of is not to and block.any():
                    found.append((of, to, float(block.sum()), int(np.count_nonzero(block))))
        return sorted(found, key=lambda edge: -abs(edge[2]))

    def words(self, node: float, edge: float) -> list[str]:
        """What pruning keeps, and the strongest edges of it."""
        pruned = self.result.prune(node, edge)
        target, source = np.nonzero(pruned.adjacency)
        weight = pruned.adjacency[target, source]
        lines = [
            f"pruned to {node:.0%} of the influence of nodes and {edge:.0%} of edges: {len(pruned.nodes):,} "
            f"nodes, {len(weight):,} edges; the strongest:"
        ]
        for i in np.argsort(-np.abs(weight), kind="stable")[:LISTED]:
            lines.append(f"  {weight[i]:+.3g}  {pruned.told(source[i])} -> {pruned.told(target[i])}")
        return lines


def _listed(value: Any) -> list[Any]:
    """What a file lists; some write one string with commas."""
    if isinstance(value, str):
        return [each.strip() for each in value.split(",") if each.strip()]
    return list(value) if isinstance(value, list | tuple) else []


def _called(names: Sequence[str], index: int) -> str:
    return str(names[index]) if index < len(names) else ""
