"""Attribution graphs for tests of what is drawn: of planted edges, whose latents may be a Lab's own."""

from __future__ import annotations

import numpy as np

from saelab.analysis.circuits.graphs import AttributionGraph, GraphNode
from saelab.analysis.controls import Alone, Beside

HOSTILE = " <img src=x onerror='window.hacked=1'>\u202e"


def planted_graph(
    codes=None, hook="blocks.2.hook_resid_post", *, layers=4, tokens=8, each=8, seed=0, dense=0.5
):
    """Embeddings, latents and errors of layers, two logits; each is made of some of what comes before it.

    codes: `SampleCodes` of a text: the latents at the hook point of layer 2 are those that fire on it.
    """
    rng = np.random.default_rng(seed)
    names = ["<s>", *(f" t{i}" for i in range(1, tokens))] if codes is None else codes.names
    nodes = [GraphNode("embedding", "", -1, i, i, np.nan, name or "") for i, name in enumerate(names)]
    for layer in range(layers):
        at = f"blocks.{layer}.hook_resid_post"
        for position in range(1, len(names)):
            if codes is not None and at == hook:
                fires = [(j, v) for j, v in codes.top(position, each) if v > 0]
            else:
                some = rng.choice(512, each, replace=False).tolist()
                fires = list(zip(some, rng.random(each) + 0.1, strict=True))
            nodes += [GraphNode("latent", at, layer, int(j), position, float(v)) for j, v in fires]
            nodes.append(GraphNode("error", at, layer, -1, position, np.nan, f"error of layer {layer}"))
    for number, (p, token) in enumerate(((0.6, " Rosa"), (0.3, HOSTILE))):
        nodes.append(GraphNode("logit", "", layers, 100 + number, len(names) - 1, p, token))
    layer, position = (np.array([getattr(n, of) for n in nodes]) for of in ("layer", "position"))
    made = np.array([n.kind in ("latent", "logit") for n in nodes])
    may = (layer[None] < layer[:, None]) & (position[None] <= position[:, None]) & made[:, None]
    edges = rng.standard_normal(may.shape) * rng.random(may.shape) ** 3
    adjacency = np.where(may & (rng.random(may.shape) < dense), edges, 0).astype(np.float32)
    unknown = np.full(len(nodes), np.nan, np.float32)
    letters = {"embedding": "E", "error": "X"}
    return AttributionGraph(
        text="".join(name or "" for name in names[1:]) if codes is None else codes.text,
        tokens=tuple(name or "" for name in names),
        nodes=tuple(nodes),
        ids=tuple(f"{letters.get(n.kind, n.layer)}_{n.layer * 1000 + n.index}_{n.position}" for n in nodes),
        adjacency=adjacency, bias=unknown, rest=unknown, pre=unknown, cumulative=unknown.astype(float),
        replacement=Beside(0.61, 0.3, (0.55, 0.7), (0.2, 0.4), 20, "untrained SAEs"),
        completeness=Alone(0.7, "one text"),
    )  # fmt: skip
