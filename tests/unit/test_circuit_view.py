"""The circuit view's Python side: what goes over the wire is the result, pins and groups go into files, and
latents are told of only where they are a Lab's own.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from drawn_graphs import HOSTILE, planted_graph
from shown import decoded

import saelab
from saelab.analysis import Circuit, CodeTest, Effects
from saelab.analysis.circuits.graph_files import read_graph
from saelab.analysis.circuits.nodes import Node
from saelab.analysis.controls import Beside
from saelab.types import ConfigError, StoreError
from saelab.widgets import CircuitView, circuit_graph
from saelab.widgets.circuit_parts import KINDS

TEXT = "When Rosa and Tobin went to the market, Rosa gave the basket to"
HOOK = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def lab():
    return saelab.Lab.embedded()


@pytest.fixture(scope="module")
def own(lab):
    """A graph whose latents at one hook point are those that fire in the Lab."""
    return planted_graph(lab.codes(TEXT), HOOK, each=4)


def asked(view, question="circuit", **args):
    header, buffers = view.answer(question, args).encoded()
    return header, decoded(header, buffers)


def beside(value):
    return Beside(value, 0.1, (value - 0.1, value + 0.1), (0.0, 0.3), 32, "20 random sets")


def a_circuit():
    nodes = [Node("head", f"blocks.{i // 4}.attn.hook_z", i % 4) for i in range(8)]
    nodes += [Node("latent", HOOK, j) for j in range(60)]
    values = np.random.default_rng(0).standard_normal((68, 10))
    values[60] += 9  # latent 52
    effects = Effects("a task", tuple(nodes), values, np.full(10, 10.0), "attribution patching")
    growth = ((1, beside(0.4)), (3, beside(0.9)))
    return Circuit(
        f"a task{HOSTILE}", (nodes[1], nodes[60]), 68, beside(0.7), beside(0.05), ((1, 0.5), (2, 0.9)), 0.8,
        "attribution patching", growth, effects,
    )  # fmt: skip


def a_code_test():
    truth = np.arange(10) < 3
    scores = {
        "codes": np.arange(10.0)[None], "shuffled labels": np.arange(10.0)[None, ::-1],
        "untrained SAE": np.ones((1, 10)),
    }  # fmt: skip
    return CodeTest(
        f"task{HOSTILE}", "node", truth, scores, {arm: each.repeat(5, 0) for arm, each in scores.items()}
    )


def test_the_graph_comes_as_it_is():
    graph = planted_graph()
    header, fields = asked(CircuitView(graph))
    assert (header["nodes"], header["edges"]) == (len(graph.nodes), np.count_nonzero(graph.adjacency))
    assert header["holds"] == ""
    assert header["layers"] == 4
    assert fields["ids"] == list(graph.ids)
    assert fields["tokens"] == list(graph.tokens)
    for i, node in enumerate(graph.nodes):
        assert KINDS[fields["kind"][i]] == node.kind
        assert header["hooks"][fields["hook"][i]] == node.hook
        assert tuple(int(fields[of][i]) for of in ("layer", "index", "position")) == node[2:5]
    back = np.zeros_like(graph.adjacency)
    back[fields["target"], fields["source"]] = fields["weight"]
    np.testing.assert_array_equal(back, graph.adjacency)
    np.testing.assert_array_equal(fields["influence"], graph.influence())
    np.testing.assert_array_equal(fields["weights"], graph.weights())
    assert header["total"] == graph.influence().sum()
    name, replacement = header["scores"][0]
    assert (name, replacement["value"], replacement["what"]) == ("replacement", 0.61, "untrained SAEs")
    assert header["scores"][1][1]["why"] == "one text"
    assert json.loads(json.dumps(header, allow_nan=False)) == header


def test_of_a_large_graph_comes_what_has_the_most_influence(monkeypatch):
    monkeypatch.setattr(circuit_graph, "MOST_NODES", 60)
    monkeypatch.setattr(circuit_graph, "MOST_EDGES", 300)
    graph = planted_graph()
    view = CircuitView(graph)
    header, fields = asked(view)
    place = {name: i for i, name in enumerate(graph.ids)}
    held = np.array([place[each] for each in fields["ids"]])
    fixed = graph.of_kind("embedding", "logit")
    assert len(held) == 60
    assert set(np.flatnonzero(fixed)) < set(held)
    influence = graph.influence()
    rest = np.setdiff1d(np.arange(len(graph.nodes)), held)
    assert influence[rest].max() <= influence[held[~fixed[held]]].min()
    assert len(fields["weight"]) == 300
    assert (graph.adjacency[held[fields["target"]], held[fields["source"]]] == fields["weight"]).all()
    said = re.match(
        r"60 of 262 nodes, with ([\d.]+)% of the influence and 300 of 6,\d+ edges", header["holds"]
    )
    assert float(said[1]) == pytest.approx(100 * influence[held].sum() / influence.sum(), abs=0.06)
    assert header["total"] == influence.sum()


def test_what_is_pinned_is_summed_and_written(tmp_path):
    graph = planted_graph()
    order = np.argsort(-np.abs(graph.adjacency).sum(1))[:6]
    a, b, *pins = (graph.ids[i] for i in order)
    at = int(np.abs(graph.adjacency[order[0]]).argmax())
    source = graph.ids[at]
    view = CircuitView(graph, pinned=[a, b, source, *pins], groups=[["both", [a, b]]], told=a)
    weights = graph.adjacency[order[:2], at]
    (edge,) = [e for e in view.parts.between(view.pinned, view.groups) if e[:2] == (graph.told(at), "both")]
    assert edge[2:] == (pytest.approx(float(weights.sum())), np.count_nonzero(weights))
    assert f"pinned: {edge[2]:+.3g}  {edge[0]} -> both" in view.text()
    path = view.export(tmp_path / "graph.json")
    made = read_graph(path)
    assert list(made.qparams["pinnedIds"]) == view.pinned
    assert made.qparams["supernodes"] == [["both", a, b]]
    np.testing.assert_array_equal(made.adjacency, graph.adjacency)
    opened = CircuitView(made)
    assert (opened.pinned, opened.groups, opened.told) == (view.pinned, view.groups, a)
    _, fields = asked(view, "file")
    assert json.loads(fields["data"].tobytes()) == json.loads(path.read_text())
    page = view.export(tmp_path / "graph.html").read_text()
    entry = json.loads(re.search(r'id="saelab-data">(.*?)</script>', page, re.S)[1])["views"][0]
    assert entry["options"]["pinned"] == view.pinned
    assert set(entry["shelves"]) == {"circuit", "file"}


def test_latents_are_told_of_where_they_are_the_labs(lab, own):
    view = lab.circuit(own)
    assert view.selection is lab.source(HOOK).selection
    header, fields = asked(view)
    assert [number for number, hook in zip(header["saes"], header["hooks"], strict=True) if hook == HOOK] == [
        0
    ]
    latent = next(node.index for node in own.nodes if node.hook == HOOK and node.kind == "latent")
    assert asked(view, "card", latent=latent)[0]["latent"] == latent
    names = lab.table.names
    for i, node in enumerate(own.nodes):
        if node.kind == "latent":
            assert fields["labels"][i] == (names[node.index] if node.hook == HOOK else "")
    # planted elsewhere: other values than the Lab's SAEs give
    assert any("blocks.1.hook_resid_post" in note and "another model or SAE" in note for note in view.notes)
    assert any("no SAE of blocks.0.hook_resid_post" in note for note in view.notes)
    assert all(note in view.text() for note in view.notes)
    assert "card" in {ask.question for ask in view.exported()}


def test_a_graph_of_another_model_is_said_to_be(lab, own):
    """By one code that is another, a latent that there is none of, or a text of other tokens."""
    at = next(i for i, node in enumerate(own.nodes) if node.hook == HOOK and node.kind == "latent")
    for change, said in (
        ({"value": own.nodes[at].value * 1.1}, "to this Lab's SAE"),
        ({"index": 9999}, "#9999"),
    ):
        nodes = list(own.nodes)
        nodes[at] = nodes[at]._replace(**change)
        view = lab.circuit(replace(own, nodes=tuple(nodes)))
        assert HOOK not in view.places
        (note,) = [note for note in view.notes if said in note and HOOK in note]
        assert note.startswith("Of another model or SAE")
        assert asked(view)[0]["notes"] == view.notes
    other = lab.circuit(replace(own, text="Something else."))
    assert any("tokens" in note for note in other.notes)
    # a store alone knows no codes: hook point and number are all there is to go by
    alone = saelab.Lab(stores=lab.store).circuit(replace(own, text="Something else."))
    assert alone.places == {HOOK: 0}


def test_latents_of_several_saes(lab):
    """The one that is followed comes first; a latent of another is chosen in that one's views."""
    hook = "blocks.1.hook_resid_post"
    view = lab.circuit(planted_graph(lab.codes(TEXT, sae=hook), hook, each=4), sae=HOOK)
    other = view.places[hook]
    assert other > 0
    latent = next(n.index for n in view.result.nodes if n.hook == hook and n.kind == "latent")
    assert asked(view, f"{other}_card", latent=latent)[0]["latent"] == latent
    before = view.latent
    view.answer("choose", {"sae": other, "latent": latent})
    assert (lab.selection.sae, lab.selection.latent) == (hook, latent)
    assert view.latent == before
    lab.selection.sae = HOOK


def test_a_circuit_comes_with_what_it_is_held_against():
    made = a_circuit()
    header, fields = asked(CircuitView(made))
    assert header["what"] == "circuit"
    assert not header["met"]
    assert [fields["called"][i] for i in np.flatnonzero(fields["inside"])] == ["0.1", f"{HOOK} #52"]
    assert len(fields["called"]) == 8 + 40  # all heads, and latents of the largest effects
    at = fields["called"].index(f"{HOOK} #52")
    effects = made.effects
    assert fields["share"][at] == pytest.approx(effects.share[60], rel=1e-6)
    assert (fields["low"][at], fields["high"][at]) == pytest.approx(effects.interval(60), rel=1e-6)
    assert [size for size, _ in header["growth"]] == [1, 3]
    assert header["growth"][1][1]["control_interval"] == [0.0, 0.3]
    bare = asked(CircuitView(replace(made, effects=None, growth=())))
    assert np.isnan(bare[1]["share"]).all()
    assert len(bare[1]["called"]) == 2


def test_a_failed_test_of_codes_is_titled_so():
    made = a_code_test()
    header, fields = asked(CircuitView(made))
    assert header["title"] == "diversity score"
    assert [arm["name"] for arm in header["arms"]] == list(made.scores)
    assert header["arms"][1]["bar"] == 0.10
    assert [arm["auc"] for arm in header["arms"]] == [0, 1, 0.5]
    for i, arm in enumerate(made.auc):
        assert np.trapezoid(fields[f"y{i}"], fields[f"x{i}"]) == pytest.approx(made.auc[arm].mean())
    assert CircuitView(made).text().startswith("Diversity score")


@pytest.mark.parametrize("made", [planted_graph, a_circuit, a_code_test], ids=lambda made: made.__name__)
def test_where_nothing_runs_it_stands_in_words(made):
    view = CircuitView(made())
    form = view.html()
    assert len(form.encode()) < 60_000
    assert "<img" not in form
    assert "<script" not in form
    assert "\u202e" not in form
    assert view.text() == repr(view)


def test_what_is_no_circuit_is_refused(tmp_path):
    graph = planted_graph()
    for bad in ("a text", None, a_circuit().effects, {"nodes": []}):
        with pytest.raises(ConfigError, match="shows an AttributionGraph, a Circuit or a CodeTest"):
            CircuitView(bad)
    nothing = graph.adjacency[:0, :0]
    none = {name: getattr(graph, name)[:0] for name in ("nodes", "ids", "bias", "rest", "pre", "cumulative")}
    with pytest.raises(ConfigError, match=r"must have nodes\. Got an empty"):
        CircuitView(replace(graph, adjacency=nothing, **none))
    first = {name: getattr(graph, name)[:1] for name in none}
    with pytest.raises(ConfigError, match="must lead to a logit"):
        CircuitView(replace(graph, adjacency=graph.adjacency[:1, :1], **first))
    for bad in (1.5, -0.1, "all", float("nan")):
        with pytest.raises(ConfigError, match="node must be a"):
            CircuitView(graph, node=bad)
    with pytest.raises(ConfigError, match="pinned must be a list"):
        CircuitView(graph, pinned=graph.ids[0])
    with pytest.raises(ConfigError, match=r"must be ids of nodes\. Got 'nobody'"):
        CircuitView(graph, pinned=["nobody"])
    with pytest.raises(ConfigError, match="must be ids of nodes"):
        CircuitView(graph, groups=[["a", ["nobody"]]])
    with pytest.raises(ConfigError, match=r"holds an attribution graph\. Got Circuit"):
        CircuitView(a_circuit()).export(tmp_path / "x.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        CircuitView(graph).export(tmp_path / "file" / "x.json")
