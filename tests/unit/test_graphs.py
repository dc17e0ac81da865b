"""Attribution graphs as such: influence over all ways by hand, pruning, and files of other programs."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from saelab.analysis import AttributionGraph, GraphNode, read_graph
from saelab.analysis.circuits.graphs import ids_of
from saelab.analysis.controls import Alone, Beside
from saelab.types import ConfigError, FormatError, StoreError

SCORE = Beside(0.5, 0.1, (0.4, 0.6), (0.0, 0.2), 3)


def graph_of(adjacency, kinds, values=None, **more):
    """A graph of nodes of these kinds, one a position where it matters."""
    n = len(kinds)
    label = lambda i, kind: "abc"[i % 3] if kind == "embedding" else f"n{i}"  # noqa: E731
    nodes = tuple(
        GraphNode(
            kind, "" if kind == "logit" else f"blocks.{i}.hook", -1 if kind == "embedding" else i,
            -1 if kind == "error" else i, i % 3,
            float("nan") if kind in ("error", "embedding") else (values or {}).get(i, 1.0),
            label(i, kind),
        )
        for i, kind in enumerate(kinds)
    )  # fmt: skip
    zeros = np.zeros(n, np.float32)
    given = {"bias": zeros, "rest": zeros, "pre": zeros, "cumulative": np.linspace(0, 1, n)} | more
    return AttributionGraph(
        "a b c", ("a", "b", "c"), nodes, ids_of(nodes), np.asarray(adjacency, np.float32),
        replacement=SCORE, completeness=SCORE, **given,
    )  # fmt: skip


def random_graph(seed, n=14, logits=2):
    """Latents and errors over embeddings, logits last: each made of what comes before it."""
    rng = np.random.default_rng(seed)
    kinds = ["embedding"] * 3 + [("latent", "error")[i % 3 == 2] for i in range(n - 3 - logits)]
    kinds += ["logit"] * logits
    adjacency = np.tril(rng.standard_normal((n, n)), -1) * (rng.random((n, n)) < 0.7)
    for i, kind in enumerate(kinds):
        if kind in ("embedding", "error"):
            adjacency[i] = 0
        if kind == "logit":
            adjacency[:, i] = 0
    return graph_of(adjacency, kinds, {n - 2: 0.6, n - 1: 0.2})


def ways(graph, start, end):
    """All ways from one node to another, as lists of nodes."""
    if start == end:
        return [[end]]
    found = []
    for i in np.flatnonzero(graph.adjacency[:, start]):
        found += [[start, *way] for way in ways(graph, i, end)]
    return found


@pytest.mark.parametrize("seed", range(3))
def test_influence_is_the_sum_over_all_ways_of_the_product_of_their_shares(seed):
    graph = random_graph(seed)
    shares = np.abs(graph.adjacency.astype(float))
    shares /= np.maximum(shares.sum(1, keepdims=True), 1e-30)
    for node in range(len(graph.nodes) - 2):
        expected = 0.0
        for logit, weight in ((12, 0.75), (13, 0.25)):
            for way in ways(graph, node, logit):
                expected += weight * np.prod([shares[t, s] for s, t in itertools.pairwise(way)])
        assert graph.influence()[node] == pytest.approx(expected, abs=1e-12)
    assert not graph.influence()[-2:].any()
    # what is not made of anything is where all of it comes from
    assert graph.influence()[~graph.of_kind("latent", "logit")].sum() == pytest.approx(1)
    inverse = np.linalg.inv(np.eye(14) - shares) - np.eye(14)
    np.testing.assert_allclose(graph.influence(), graph.weights() @ inverse, atol=1e-12)


def test_effects_are_signed_sums_over_all_ways():
    """A latent that fires with 2 and loses a pre-activation of -1 loses half of what it brings, reversed."""
    graph = random_graph(3)
    value = [node.value if node.kind == "latent" else 1 for node in graph.nodes]
    for node in range(len(graph.nodes) - 2):
        expected = 0.0
        for logit, weight in ((12, 0.75), (13, 0.25)):
            for way in ways(graph, node, logit):
                steps = [
                    graph.adjacency[t, s] / (value[t] if t < 12 else 1) for s, t in itertools.pairwise(way)
                ]
                expected += weight * np.prod(steps)
        assert graph.effects()[node] == pytest.approx(expected, abs=1e-6)
    doubled = replace(graph, nodes=tuple(node._replace(value=2 * node.value) for node in graph.nodes))
    assert not np.allclose(doubled.effects(), graph.effects())


def test_pruning_keeps_the_fewest_that_make_up_the_share():
    """A graph whose figures are plain: the latent 2 brings the logit 8 of 10, the latent 3 the rest."""
    adjacency = np.zeros((6, 6))
    adjacency[5, [2, 3, 4]] = 8, -1, 1
    adjacency[2, [0, 1]] = 3, 1
    adjacency[3, [0, 1]] = 1, 1
    kinds = ["embedding", "embedding", "latent", "latent", "error", "logit"]
    graph = graph_of(adjacency, kinds)
    np.testing.assert_allclose(graph.influence(), [0.65, 0.25, 0.8, 0.1, 0.1, 0])
    small = graph.prune(0.8, 1)  # 0.8 + 0.65 of 1.9 is 76 %, with 0.25 it is 89 %
    assert small.ids == tuple(graph.ids[i] for i in (0, 1, 2, 5))
    np.testing.assert_array_equal(small.adjacency, adjacency[np.ix_([0, 1, 2, 5], [0, 1, 2, 5])])
    np.testing.assert_array_equal(small.rest, [0, 0, 0, 0])  # -1 and 1
    assert small.pruned == (0.8, 1)
    # of edges (1, 0.75 and 0.25 of the influence of what they lead to) the fewest that make up half
    fewer = graph.prune(0.8, 0.5)
    assert not fewer.adjacency.any()  # a latent that nothing leads to goes, and its edge with it
    fewer = graph.prune(0.8, 0.8)
    assert [tuple(at) for at in np.argwhere(fewer.adjacency)] == [(2, 0), (3, 2)]
    assert fewer.rest[2] == 1  # from the second embedding
    assert graph.prune(1, 1).ids == graph.ids
    everything = graph.prune(0, 0)
    assert set(graph.ids[i] for i in (0, 1, 5)) <= set(everything.ids)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_pruned_sums_as_before_and_leads_somewhere(seed):
    graph = random_graph(seed, 24)
    small = graph.prune(0.6, 0.8)
    assert 5 < len(small.nodes) < 24
    whole = dict(zip(graph.ids, graph.adjacency.sum(1), strict=True))
    latent, error = small.of_kind("latent"), small.of_kind("error")
    assert (small.adjacency[latent] != 0).any(1).all()
    assert (small.adjacency[:, latent | error] != 0).any(0).all()
    for i, each in enumerate(small.ids):
        assert small.adjacency[i].sum() + small.rest[i] == pytest.approx(whole[each], abs=1e-5)
    assert small.replacement == graph.replacement
    assert "after pruning, node=0.6, edge=0.8" in str(small)


def test_a_file_holds_all_of_it(tmp_path):
    graph = random_graph(0)
    n = len(graph.nodes)
    graph = replace(
        graph, bias=np.linspace(-1, 1, n, dtype=np.float32), fired=77, left_out=0.125,
        pre=np.array([np.nan] * 3 + [0.3] * (n - 3), np.float32), completeness=Alone(0.3, "one text"),
        cumulative=np.array([0.5] * (n - 2) + [np.nan] * 2),
        qparams={"pinnedIds": [graph.ids[3]], "supernodes": [["two", *graph.ids[3:5]]]},
    )  # fmt: skip
    for each in (graph, graph.prune(0.7, 0.9)):
        each.to_json(tmp_path / "graph.json")
        back = read_graph(tmp_path / "graph.json")
        for name in ("adjacency", "bias", "rest", "pre", "cumulative"):
            np.testing.assert_array_equal(getattr(back, name), getattr(each, name))
        # NaN is none of its like
        assert [str(node) for node in back.nodes] == [str(node) for node in each.nodes]
        for name in ("text", "tokens", "ids", "replacement", "completeness", "fired", "left_out", "pruned"):
            assert getattr(back, name) == getattr(each, name), name
        assert each.qparams.items() <= back.qparams.items()
        assert str(back) == str(each)
        back.to_json(tmp_path / "again.json")
        texts = [(tmp_path / name).read_text() for name in ("graph.json", "again.json")]
        assert texts[0] == texts[1]


def foreign():
    """As circuit-tracer writes it: nodes of pruned graphs, errors without an activation, a null influence."""
    node = {"token_prob": 0.0, "is_target_logit": False, "run_idx": 0, "reverse_ctx_idx": 0, "clerp": ""}
    return {
        "metadata": {
            "slug": "one-two", "scan": "gemma-2-2b", "transcoder_list": [], "prompt": "<bos>12",
            "prompt_tokens": ["<bos>", "1", "2"], "node_threshold": 0.5, "schema_version": 1,
            "info": {"generator": {"name": "circuit-tracer", "version": "3f0965b6"}},
            "pruning_settings": {"node_threshold": 0.5, "edge_threshold": 0.8},
        },
        "qParams": {"pinnedIds": ["3_6200_2"], "supernodes": [["ones", "3_6200_2"]], "linkType": "both",
                    "clickedId": "", "sg_pos": ""},
        "nodes": [
            node | {"node_id": "3_6200_2", "feature": 19247906, "layer": "3", "ctx_idx": 2, "run_idx": 4,
                    "feature_type": "cross layer transcoder", "jsNodeId": "3_6200-0", "influence": 0.3,
                    "activation": 21.875, "clerp": "counting", "ppClerp": "x"},
            node | {"node_id": "5_-1_1", "feature": -1, "layer": "5", "ctx_idx": 1, "jsNodeId": "5_-1-1",
                    "feature_type": "mlp reconstruction error", "influence": 0.45, "activation": None},
            node | {"node_id": "E_235274_1", "feature": 1, "layer": "E", "ctx_idx": 1, "influence": 0.2,
                    "feature_type": "embedding", "jsNodeId": "E_235274-1", "activation": None},
            node | {"node_id": "27_235310_2", "feature": 235310, "layer": "27", "ctx_idx": 2,
                    "feature_type": "logit", "token_prob": 0.25, "is_target_logit": True,
                    "jsNodeId": "L_235310-2", "clerp": 'Output "3" (p=0.250)', "influence": None,
                    "activation": None},
        ],
        "links": [
            {"source": "E_235274_1", "target": "3_6200_2", "weight": 24.5},
            {"source": "3_6200_2", "target": "27_235310_2", "weight": -6.0},
            {"source": "5_-1_1", "target": "27_235310_2", "weight": 2.0},
        ],
        "feature_json_base_url": "https://example.org",
    }  # fmt: skip


def test_a_file_of_circuit_tracer_is_read_and_written_as_it_was(tmp_path):
    path, data = tmp_path / "one-two.json", foreign()
    path.write_text(json.dumps(data))
    graph = read_graph(path)
    latent, error, embedding, logit = graph.nodes
    assert latent == GraphNode("latent", "", 3, 6200, 2, 21.875, "counting")
    assert (error.kind, error.layer, error.index, error.position) == ("error", 5, -1, 1)
    assert (embedding.layer, embedding.index, embedding.label) == (-1, 235274, "1")
    assert (logit.layer, logit.index, logit.value, logit.label) == (26, 235310, 0.25, "3")
    assert graph.n_layers == 26
    np.testing.assert_allclose(graph.influence(), [0.75, 0.25, 0.75, 0])
    assert graph.replacement.value == pytest.approx(0.75)
    # by hand: of 1 (the logit) + .75 + .25 + .75 through nodes, an error brings a quarter of the logit
    assert graph.completeness.value == pytest.approx((0.75 * 1 + 0.75 + 0.25 + 0.75) / 2.75)
    assert "no control: of a file" in str(graph)
    assert (graph.pruned, graph.fired) == ((0.5, 0.8), 0)
    assert np.isnan(graph.bias).all()
    assert graph.qparams["supernodes"] == [["ones", "3_6200_2"]]
    graph.to_json(tmp_path / "out.json")
    back = json.loads((tmp_path / "out.json").read_text())
    del back["metadata"]["saelab"]
    for node in back["nodes"]:
        del node["saelab"]
    for part in (data, back):
        part["links"].sort(key=str)
    assert back == data
    assert read_graph(tmp_path / "out.json").pruned == (0.5, 0.8)


BROKEN = {
    "valid JSON": lambda d: None,
    "must have metadata, nodes and links": lambda d: d.pop("links"),
    "must have metadata, nodes and links. Got the keys": lambda d: d.update(nodes={}),
    "prompt_tokens, a list of strings": lambda d: d["metadata"].update(prompt_tokens=[1, 2]),
    "nodes with a node_id": lambda d: d["nodes"].append("x"),
    "each node_id once. Got '5_-1_1' twice": lambda d: d["nodes"].append(d["nodes"][1]),
    "ctx_idx among its 3 tokens. Got 3 of node '3_6200_2'": lambda d: d["nodes"][0].update(ctx_idx=3),
    "layers that are numbers": lambda d: d["nodes"][0].update(layer="top"),
    "feature_type of each node": lambda d: d["nodes"][0].update(feature_type=None),
    "finite numbers as activation": lambda d: d["nodes"][0].update(activation="much"),
    "a node of a logit": lambda d: (d["nodes"].pop(), d["links"].clear()),
    "finite weight": lambda d: d["links"][0].update(weight=None),
    "finite weight. Got": lambda d: d["links"][0].update(weight=1e999),
    "between its nodes. Got one of 'none'": lambda d: d["links"][0].update(source="none"),
    "each link once": lambda d: d["links"].append(d["links"][0]),
    "leads back to itself": lambda d: d["links"].append(
        {"source": "3_6200_2", "target": "E_235274_1", "weight": 1}
    ),
    "no node that leads back to itself. Got a circle among": lambda d: d["links"].append(
        {"source": "3_6200_2", "target": "3_6200_2", "weight": 1}
    ),
}


@pytest.mark.parametrize("says", BROKEN)
def test_files_that_are_no_graphs(says, tmp_path):
    path, data = tmp_path / "broken.json", foreign()
    BROKEN[says](data)
    path.write_text(json.dumps(data) if says != "valid JSON" else json.dumps(data)[:-9])
    with pytest.raises(FormatError) as error:
        read_graph(path)
    assert says.split(". ")[0] in str(error.value) or "valid JSON" in str(error.value)
    assert str(path) in str(error.value)


def test_further_bad_input(tmp_path):
    with pytest.raises(StoreError, match="must be readable"):
        read_graph(tmp_path / "none.json")
    graph = random_graph(0)
    for share in (1.1, -0.1, "all", float("nan")):
        with pytest.raises(ConfigError, match=r"node must be a share from 0 to 1\. Got"):
            graph.prune(share)
    with pytest.raises(ConfigError, match="without circles"):
        replace(graph, adjacency=np.ones_like(graph.adjacency)).influence()


def test_text_forms():
    graph = random_graph(0)
    assert len(repr(graph)) < 250
    assert "replacement 0.5 [0.4, 0.6] (n=3); untrained SAE 0.1" in str(graph)
    weak = replace(graph, replacement=replace(SCORE, control=0.5, control_interval=(0.3, 0.7)))
    assert "not above its control" in str(weak)
    assert "12.5% of the influence" in str(replace(graph, left_out=0.125, fired=9))
    nodes, edges = graph.to_frame(), graph.to_frame("edges")
    assert list(nodes.columns) == [
        "id", "kind", "hook", "layer", "index", "position", "token", "value", "label", "influence", "bias",
        "rest", "pre",
    ]  # fmt: skip
    assert nodes["influence"].is_monotonic_decreasing
    assert len(edges) == np.count_nonzero(graph.adjacency)
    row = edges.iloc[0]
    assert row.weight == graph.adjacency[graph.ids.index(row.target), graph.ids.index(row.source)]
    assert abs(row.weight) == np.abs(graph.adjacency).max()
