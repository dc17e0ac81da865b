"""Every public result of an analysis is shown: by its table, the figures in it, and what is drawn of it."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from shown import card, codes, table

import saelab
from saelab import analysis
from saelab.analysis.circuits.results import Agreement, Circuit, Effects
from saelab.analysis.circuits.truth import Known, Truth
from saelab.analysis.controls import Alone, Beside
from saelab.analysis.panels import Tabled, claims_of, frame_of, panels_of
from saelab.stores.records import Example
from saelab.types import Codes, ConfigError
from saelab.widgets.report import ReportView

NO_RESULTS = {
    "None": "writes a file",
    "Path": "has written a file",
    "np.ndarray": "an array, which says nothing of what it is",
    "float": "a number",
    "int": "a number",
    "list[str]": "names",
    "dict[str, Any]": "what `freeze` writes into a file",
    "MapJob": "a job, whose result is a LatentMap",
}
"""What public functions give that is no result, and why."""


def given() -> dict[str, str]:
    """Public function of saelab.analysis -> what it gives, as its signature says."""
    folder = Path(analysis.__file__).parent
    found = {}
    for line in ast.parse((folder / "__init__.pyi").read_text()).body:
        if not isinstance(line, ast.ImportFrom) or line.module is None:
            continue
        source = ast.parse((folder / f"{line.module.replace('.', '/')}.py").read_text())
        names = {each.name for each in line.names}
        for each in source.body:
            if isinstance(each, ast.FunctionDef) and each.name in names:
                assert each.returns is not None, each.name
                found[each.name] = ast.unparse(each.returns)
    return found


def test_every_public_function_gives_what_can_be_shown():
    known = {"Codes": Codes, "Example": Example}
    seen = set()
    for name, hint in given().items():
        if hint in NO_RESULTS:
            continue
        for each in hint.removeprefix("list[").removeprefix("dict[str, ").rstrip("]").split(" | "):
            if each == "pd.DataFrame":
                continue
            cls = known.get(each) or getattr(analysis, each)
            assert issubclass(cls, Tabled) or (hint.startswith("list[") and hasattr(cls, "_fields")), name
            seen.add(each)
    assert len(seen) > 45


NODES = tuple(analysis.Node("head", f"blocks.{i}.attn.hook_z", i) for i in range(3))
EFFECTS = Effects("ioi", NODES, np.arange(12.0).reshape(3, 4), np.full(4, 20.0), "patching")
BESIDE = Beside(0.9, 0.1, (0.8, 1.0), (0.0, 0.2), 9)
KNOWN = Known(
    NODES, np.array([0.5, 0.0, -0.4]), np.array([0.4, -0.1, -0.5]), np.array([0.6, 0.1, -0.3]), 0.05
)
SMALL = np.arange(6, dtype=np.float32).reshape(2, 3)

RESULTS = {
    "Circuit": (
        Circuit("ioi", NODES[:2], 3, BESIDE, Alone(0.1, "no random sets"), ((1, 0.5),), 0.9, "patching",
                effects=EFFECTS),
        ["node", "effect", "share", "low", "high"], 2,
    ),
    "Agreement": (
        [Agreement("head", BESIDE, Alone(float("nan"), "fewer than four nodes"), 3)],
        ["kind", "figure", "value", "from", "to", "untrained SAE"], 2,
    ),
    "Truth": (
        {"ioi": Truth("ioi", "m", "p", 4, {}, 1.0, 0.0, KNOWN, {"direct": KNOWN})},
        ["name", "way", "node", "share", "low", "high"], 4,
    ),
    "HeadEdge": (analysis.head_edges(NODES), ["sender", "receiver"], 3),
    "FeatureCard": (card(windows=4), ["kind", "value", "document", "position", "call", "text"], None),
    "LatentTable": (table(), ["latent", "name", "count", "density", "mean", "min", "max"], None),
    "SampleCodes": (codes(), ["position", "facet", "name", "latent", "value"], None),
    "Example": (card(windows=4).top.windows[0], ["position", "name", "value"], None),
    "Codes": (Codes.from_dense(SMALL), ["row", "latent", "value"], 5),
    "Match": (analysis.match(np.eye(3), np.eye(3)), ["direction", "latent", "cosine"], 3),
    "AttributeF1": (
        analysis.attribute_f1(SMALL, ["a", "b"]), ["value", "latent", "F1"], 2,
    ),
    "SupervisedDictionary": (
        analysis.supervised_dictionary(torch.randn(6, 2), {"k": list("aabbcc")}),
        ["attribute", "value", "norm"], 3,
    ),
    "LatentColumn": (
        analysis.LatentColumn("label", np.array([1, 2, 0], np.float32), ("x", "y")), ["latent", "value"], 3,
    ),
    "DataFrame": (pd.DataFrame({"a": [1, 2]}), ["a"], 2),
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_shown_as_words_as_a_page_and_as_a_view(name):
    result, columns, n = RESULTS[name]
    frame = frame_of(result)
    assert list(frame.columns) == columns
    assert n is None or len(frame) == n
    view = ReportView(result)
    header, fields = view._packed()[:2]
    tables = [each for each in header["panels"] if each["kind"] == "table"]
    assert [each["columns"] for each in tables] == [columns]
    assert len(view.text().splitlines()) >= 1
    assert " object at 0x" not in view.text()
    assert columns[0] in view.html()
    assert len(fields) == len(header["panels"])


def test_what_tables_say():
    assert frame_of(RESULTS["Truth"][0])["node"].tolist() == ["0.0", "2.2"] * 2
    assert frame_of(RESULTS["LatentColumn"][0])["value"].tolist() == ["y", "", "x"]
    assert frame_of(RESULTS["Circuit"][0])["share"].tolist() == [0.075, 0.275]
    rows = frame_of(RESULTS["Codes"][0]).to_dict("list")
    assert (rows["row"], rows["latent"], rows["value"]) == ([0, 0, 1, 1, 1], [1, 2, 0, 1, 2], [1, 2, 3, 4, 5])


def test_figures_are_found_wherever_they_are_in_a_result():
    circuit = RESULTS["Circuit"][0]
    assert list(claims_of(circuit)) == ["faithfulness", "completeness"]
    assert [panel.kind for panel in panels_of(circuit)] == ["figures", "table"]
    sae = saelab.SAE.create(saelab.recipe("topk", d_in=8, d_sae=16, k=2), seed=0)
    found = analysis.recovery(sae, saelab.corpora.synthetic(8, 8), n_rows=512)
    assert [panel.kind for panel in panels_of(found)] == ["figures"]  # its table says the same


def test_several_results_by_name_are_one_table():
    sae = saelab.SAE.create(saelab.recipe("topk", d_in=8, d_sae=16, k=2), seed=0)
    report = saelab.evaluate(sae, torch.randn(64, 8))
    frame = frame_of({"a": report, "b": report})
    assert frame["name"].tolist() == ["a"] * len(report.scores) + ["b"] * len(report.scores)
    assert set(frame["score"]) == set(report.scores)


def test_what_is_drawn_is_what_was_measured():
    sae = saelab.SAE.create(saelab.recipe("topk", d_in=8, d_sae=16, k=2), seed=0)
    found = analysis.norms(sae, torch.randn(200, 8))
    (figures, drawing) = (panel for panel in panels_of(found))
    assert figures.kind == "table"
    points, equal, *bands = drawing.curves
    np.testing.assert_array_equal(points.x, found.input)
    np.testing.assert_array_equal(points.y, found.code)
    assert equal.y[1] == equal.x[1] == found.input.max()
    assert len(bands) == 5


@pytest.mark.parametrize("wrong", [3, "report", None, {}, [], [3], {"a": 3}, np.zeros(3)])
def test_what_has_no_table_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"with a table\. Got"):
        ReportView(wrong)
