"""Attribution graphs in files, as circuit-tracer writes them and neuronpedia.org exports them.

One JSON object: "metadata" (slug, scan, prompt, prompt_tokens), "qParams" (how it is shown), "nodes"
(node_id, layer, ctx_idx, feature_type, activation, ...) and "links" (source, target, weight). What it has no
place for stands under "saelab", in the metadata and in each node, which other readers pass over.
"""

from __future__ import annotations

import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from saelab.analysis.circuits.graph_writing import without_nan, written
from saelab.analysis.circuits.graphs import AttributionGraph, GraphNode
from saelab.analysis.circuits.influence import completeness, replacement, sums_of
from saelab.analysis.controls import Alone, Beside
from saelab.arguments import checked, place
from saelab.config import holds_float32, is_integer, is_number
from saelab.files import read_json
from saelab.types import FormatError, short

MOST_NODES = 2**14
"""Of a file: edges between them take a gigabyte."""
REMEDY = "Pass a graph that circuit-tracer, neuronpedia.org or saelab wrote."


@checked(path=place)
def read_graph(path: str | Path) -> AttributionGraph:
    """An attribution graph out of a file of saelab, circuit-tracer or neuronpedia.org.

    What a file does not say of a graph (constants, pre-activations, controls) is missing in it, and said so;
    keys that are not known are kept and written again.

    Args:
        path: The file's.

    Raises:
        StoreError: It cannot be read.
        FormatError: It is no such graph: not JSON, without nodes, links or tokens, with a link from or to no
            node, a node or a link twice, weights that are no numbers, or a node that leads back to itself.
    """
    data = read_json(path, "graph", remedy=REMEDY)
    kinds = {"metadata": dict, "qParams": dict, "nodes": list, "links": list}
    parts: list[Any] = [data.get(name, {} if name == "qParams" else None) for name in kinds]
    metadata, qparams, nodes, links = parts
    if not all(isinstance(part, kind) for part, kind in zip(parts, kinds.values(), strict=True)):
        _refuse(path, "must have metadata, nodes and links", f"the keys {short(sorted(data))}")
    tokens = metadata.get("prompt_tokens")
    if not (isinstance(tokens, list) and tokens and all(isinstance(each, str) for each in tokens)):
        _refuse(path, "must have metadata.prompt_tokens, a list of strings", short(tokens))
    if len(nodes) > MOST_NODES:
        _refuse(path, f"must have at most {MOST_NODES:,} nodes", f"{len(nodes):,}")
    found = [_node(path, raw, tokens) for raw in nodes]
    ids = tuple(raw["node_id"] for raw in nodes)
    at = {each: i for i, each in enumerate(ids)}
    if len(at) < len(ids):
        _refuse(path, "must have each node_id once", f"{next(e for e in ids if ids.count(e) > 1)!r} twice")
    if not any(node.kind == "logit" for node in found):
        _refuse(path, "must have a node of a logit", f"none among {len(found):,} nodes")
    adjacency = _adjacency(path, links, at)
    own = metadata.get("saelab")
    own = own if isinstance(own, dict) else {}
    ours = [raw.get("saelab") if isinstance(raw.get("saelab"), dict) else {} for raw in nodes]
    said = {
        name: np.array([_number(path, raw, name) for raw in ours], dtype=np.float32)
        for name in ("bias", "rest", "pre")
    }
    settings = metadata.get("pruning_settings")
    settings = settings if isinstance(settings, dict) else {}
    pruned = tuple(_number(path, settings, f"{each}_threshold") for each in ("node", "edge"))
    graph = AttributionGraph(
        text=str(metadata.get("prompt", "")),
        tokens=tuple(tokens),
        nodes=tuple(found),
        ids=ids,
        adjacency=adjacency,
        bias=said["bias"],
        rest=said["rest"],
        pre=said["pre"],
        cumulative=np.array([_number(path, raw, "influence") for raw in nodes]),
        replacement=_score(own.get("replacement")),
        completeness=_score(own.get("completeness")),
        fired=own["fired"] if is_integer(own.get("fired")) else 0,
        left_out=float(np.nan_to_num(_number(path, own, "left_out"))),
        pruned=None if any(map(math.isnan, pruned)) else (pruned[0], pruned[1]),
        qparams=qparams,
    )
    if not own:
        graph = replace(graph, **_alone(graph))
    kept = {key: value for key, value in data.items() if key not in kinds}
    kept["metadata"] = {
        key: value for key, value in metadata.items() if key not in ("saelab", "prompt", "prompt_tokens")
    }
    others: dict[str, Any] = {"": kept}
    for i, raw in enumerate(nodes):
        known = without_nan(written(graph, i, found[i])) | {"saelab": raw.get("saelab")}
        others[ids[i]] = {key: value for key, value in raw.items() if known.get(key, raw) != value}
    return replace(graph, others=others)


def _node(path: Any, raw: Any, tokens: list[str]) -> GraphNode:
    """A node of a file."""
    if not (isinstance(raw, dict) and isinstance(raw.get("node_id"), str)):
        _refuse(path, "must have nodes with a node_id", short(raw))
    node_id, kind = raw["node_id"], raw.get("feature_type")
    where = f"node {short(node_id, 60)}"
    position: Any = raw.get("ctx_idx")
    layer: Any = raw.get("layer")
    if not (is_integer(position) and 0 <= position < len(tokens)):
        _refuse(path, f"must have ctx_idx among its {len(tokens)} tokens", f"{short(position)} of {where}")
    if not (layer == "E" or re.fullmatch(r"-?\d{1,6}", str(layer))):
        _refuse(path, "must have layers that are numbers, or 'E'", f"{short(layer)} of {where}")
    if not isinstance(kind, str):
        _refuse(path, "must have a feature_type of each node", f"{short(kind)} of {where}")
    kind = next((each for each in ("error", "embedding", "logit") if each in kind), "latent")
    depth = -1 if layer == "E" else int(layer) - (kind == "logit")
    said = re.fullmatch(r"([E\d]+)_(-?\d{1,9})_\d+(_.*)?", node_id)
    index = raw.get("feature")
    if kind == "error":
        index = -1
    elif said is not None and (kind == "embedding" or said[1] == str(layer)):
        index = int(said[2])
    value, label = math.nan, _text(raw, "clerp")
    if kind == "embedding":
        label = tokens[position]
    elif kind == "logit":
        value = _number(path, raw, "token_prob")
        output = re.fullmatch(r'Output "(.*)" \(p=[\d.]*\)', label, re.DOTALL)
        label = label if output is None else output[1]
    elif kind == "latent":
        value = _number(path, raw, "activation")
    hook, index = _text(raw.get("saelab"), "hook"), index if is_integer(index) else -1
    return GraphNode(kind, hook, depth, index, position, value, label)


def _adjacency(path: Any, links: list[Any], at: dict[str, int]) -> np.ndarray:
    """float32 [nodes nodes] of the links of a file."""
    found = np.zeros((len(at), len(at)), dtype=np.float32)
    seen: set[tuple[str, str]] = set()
    for link in links:
        if not (isinstance(link, dict) and holds_float32(link.get("weight"))):
            _refuse(path, "must have links with source, target and a finite weight", short(link))
        ends: Any = link.get("source"), link.get("target")
        for end in ends:
            if not (isinstance(end, str) and end in at):
                _refuse(path, "must have links between its nodes", f"one of {short(end, 60)}")
        if ends in seen:
            _refuse(path, "must have each link once", f"{ends[0]!r} to {ends[1]!r} twice")
        seen.add(ends)
        found[at[ends[1]], at[ends[0]]] = link["weight"]
    left = np.arange(len(found))
    while len(left):
        led = found[np.ix_(left, left)].any(1)
        if led.all():
            _refuse(path, "must have no node that leads back to itself", f"a circle among {len(left)} nodes")
        left = left[led]
    return found


def _alone(graph: AttributionGraph) -> dict[str, Alone]:
    """The scores of a file without any."""
    position = np.array([node.position for node in graph.nodes])
    sums = sums_of(
        graph.adjacency, graph.weights(), graph.of_kind("embedding"), graph.of_kind("error"), position
    )
    total = {name: sums.total(name) for name in sums.names()}
    why = "of a file, which has no SAEs to compare with; of what pruning left"
    return {
        "replacement": Alone(
            float(replacement(total)) if total["tokens"] + total["errors"] else math.nan, why
        ),
        "completeness": Alone(float(completeness(total)) if total["through"] else math.nan, why),
    }


def _score(raw: Any) -> Beside | Alone:
    """A score as it was written; one of which nothing is known where it is none."""
    score = {"Beside": Beside, "Alone": Alone}.get(_text(raw, "kind"))
    if score is not None:
        said = {each.name: raw.get(each.name) for each in fields(score)}
        for name, value in said.items():
            if isinstance(value, list):
                said[name] = tuple(math.nan if each is None else each for each in value)
            elif value is None and name != "n":
                said[name] = math.nan
        numbers = [said["value"], said.get("control", 0.0)]
        for name in ("interval", "control_interval"):
            pair = said.get(name, (0.0, 0.0))
            numbers += pair if isinstance(pair, tuple) and len(pair) == 2 else [None]
        if all(map(is_number, numbers)) and (said["n"] is None or is_integer(said["n"])):
            return score(**said)
    return Alone(math.nan, "the file does not say")


def _text(raw: Any, name: str) -> str:
    """A string of a file; "" where it has none."""
    value = raw.get(name) if isinstance(raw, dict) else ""
    return value if isinstance(value, str) else ""


def _number(path: Any, raw: dict[str, Any], name: str) -> float:
    """A number of a file; NaN where it has none."""
    value = raw.get(name)
    if value is None:
        return math.nan
    if not holds_float32(value):
        _refuse(path, f"must have finite numbers as {name}", short(value))
    return float(value)


def _refuse(path: Any, rule: str, got: str) -> NoReturn:
    message = f"An attribution graph {rule}. Got {got} in {path}. {REMEDY}"
    raise FormatError(message)


__all__ = ["read_graph"]
