"""Attribution graphs as files of circuit-tracer have them; `graph_files` reads such files."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from saelab.files import write_json

TYPES = {
    "latent": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "embedding": "embedding",
    "logit": "logit",
}
"""Kinds of a node -> what viewers know them by."""


def write_graph(graph: Any, path: str | Path) -> None:
    """See `AttributionGraph.to_json`.

    Args:
        graph: An `AttributionGraph`.
        path: A file's.
    """
    others = dict(graph.others.get("", {}))
    metadata = {
        "slug": Path(path).stem,
        "scan": "saelab",
        "transcoder_list": [],
        "prompt_tokens": list(graph.tokens),
        "prompt": graph.text,
        "schema_version": 1,
        "info": {"generator": {"name": "saelab"}},
    }
    own: dict[str, Any] = {
        name: {"kind": type(score).__name__, **asdict(score)}
        for name, score in (("replacement", graph.replacement), ("completeness", graph.completeness))
    }
    own |= {"fired": graph.fired, "left_out": graph.left_out}
    metadata |= others.pop("metadata", {})
    if graph.pruned is not None:
        node, edge = graph.pruned
        metadata["node_threshold"] = node
        metadata["pruning_settings"] = {"node_threshold": node, "edge_threshold": edge}
    nodes = [
        written(graph, i, node) | dict(graph.others.get(graph.ids[i], {}))
        for i, node in enumerate(graph.nodes)
    ]
    shown = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    target, source = np.nonzero(graph.adjacency)
    links = [
        {"source": graph.ids[s], "target": graph.ids[t], "weight": float(graph.adjacency[t, s])}
        for t, s in zip(target, source, strict=True)
    ]
    found = {
        "metadata": metadata | {"saelab": own},
        "qParams": shown | dict(graph.qparams),
        "nodes": nodes,
        "links": links,
    }
    write_json(path, without_nan(found | others))


def written(graph: Any, i: int, node: Any) -> dict[str, Any]:
    """A node as a file has it.

    Args:
        graph: Whose.
        i: Its place among the nodes.
        node: Itself, a `GraphNode`.
    """
    kind, layer, index = node.kind, node.layer, node.index
    behind = "".join(f"_{each}" for each in graph.ids[i].split("_", 3)[3:])
    ends = {"embedding": f"E_{index}-{node.position}", "logit": f"L_{index}-{node.position}"}
    ends["error"] = f"{layer}_-1-{node.position}{behind}"
    named = {"logit": f'Output "{node.label}" (p={node.value:.3f})', "embedding": ""}
    return {
        "node_id": graph.ids[i],
        # layer and latent in one number (Cantor's pairing), as the features of circuit-tracer are numbered
        "feature": {"latent": _paired(layer, index), "embedding": node.position}.get(kind, index),
        "layer": {"embedding": "E", "logit": str(layer + 1)}.get(kind, str(layer)),
        "ctx_idx": node.position,
        "feature_type": TYPES[kind],
        "token_prob": node.value if kind == "logit" else 0.0,
        "is_target_logit": kind == "logit" and (i == 0 or graph.nodes[i - 1].kind != "logit"),
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": ends.get(kind, f"{layer}_{index}-0{behind}"),
        "clerp": named.get(kind, node.label),
        "influence": float(graph.cumulative[i]),
        "activation": node.value if kind == "latent" else None,
        "saelab": {
            "hook": node.hook,
            "bias": float(graph.bias[i]),
            "rest": float(graph.rest[i]),
            "pre": float(graph.pre[i]),
        },
    }


def _paired(a: int, b: int) -> int:
    return (a + b) * (a + b + 1) // 2 + b


def without_nan(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


__all__ = ["TYPES", "without_nan", "write_graph", "written"]
