"""A small attribution graph, and its functions as calls with right arguments, for `fuzzed` and `fuzzing`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from saelab import analysis
from saelab.analysis.circuits.graphs import AttributionGraph, GraphNode, ids_of
from saelab.analysis.controls import Alone


def small_graph() -> AttributionGraph:
    """An embedding, a latent, an error and a logit."""
    nan = float("nan")
    nodes = (
        GraphNode("embedding", "blocks.0.hook_resid_pre", -1, 7, 0, nan, "a"),
        GraphNode("latent", "blocks.0.hook_resid_post", 0, 3, 0, 1.5),
        GraphNode("error", "blocks.0.hook_resid_post", 0, -1, 1, nan, "error of blocks.0.hook_resid_post"),
        GraphNode("logit", "logits", 1, 9, 1, 0.5, "b"),
    )
    adjacency = np.zeros((4, 4), np.float32)
    adjacency[1, 0], adjacency[3, 1], adjacency[3, 2] = 2, 1, -0.5
    zeros, score = np.zeros(4, np.float32), Alone(0.5, "a graph made by hand")
    return AttributionGraph(
        "a b", ("a", "b"), nodes, ids_of(nodes), adjacency, zeros, zeros, zeros, np.linspace(0.2, 1, 4),
        score, score,
    )  # fmt: skip


def calls(folder: Path, out: Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name -> function and right arguments.

    Args:
        folder: Where the graph is written.
        out: A place to write to.
    """
    graph, path = small_graph(), folder / "graph" / "graph.json"
    if not path.exists():
        graph.to_json(path)
    return {
        "read_graph": (analysis.read_graph, {"path": path}),
        "AttributionGraph.prune": (graph.prune, {"node": 0.8, "edge": 0.98}),
        "AttributionGraph.to_json": (graph.to_json, {"path": out}),
        "AttributionGraph.to_frame": (graph.to_frame, {"of": "edges"}),
    }
