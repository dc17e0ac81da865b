"""Results as a view: what goes over the wire, what stands where nothing runs, what is no result."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import saelab
from saelab.analysis import Report, Reports, Scores
from saelab.analysis.controls import Alone, Beside
from saelab.types import ConfigError
from saelab.widgets.report import MOST_LINES, ReportView

NAN = float("nan")


def report(fvu: float = 0.2, **changes) -> Report:
    claims = {
        "fvu": Beside(fvu, 0.7, (fvu - 0.05, fvu + 0.05), (0.6, 0.8), 9),
        "l0": Beside(8.0, 9.0, (NAN, NAN), (NAN, NAN), 1),
        "rows": Alone(4.0, "a count of <b>"),
    }
    sae = Scores(fvu, 8, 0.0)
    return Report(
        "blocks.2.hook_resid_post", 1_000, 1.5, 5.0, sae, sae, claims, {"loss": "no <i>loss"}, **changes
    )


def shown(result, panel: int = 0):
    """Header and lines of a panel, as they go over the wire."""
    header, fields = ReportView(result)._packed()[:2]
    return header["panels"][panel], fields[f"panel{panel}"]


def test_figures_go_with_their_controls_and_whether_they_hold():
    header, fields = shown(Reports({"a": report(), "b": report(0.62, rows="other")}))
    assert header["several"]
    assert not header["same_rows"]
    assert header["left_out"][0] == ["a", "loss", "no <i>loss"]
    lines = {(line[0], line[1]): line[2:] for line in fields}
    assert [line[:2] for line in fields][:2] == [["fvu", "a"], ["fvu", "b"]]
    assert lines["fvu", "a"] == [0.2, 0.15, 0.25, [["untrained SAE", 0.7, 0.6, 0.8]], True, ""]
    assert lines["fvu", "b"][4] is False  # 0.57 to 0.67 meets 0.6 to 0.8: shown failing
    assert lines["l0", "a"] == [8.0, None, None, [["untrained SAE", 9.0, None, None]], None, ""]
    assert lines["rows", "a"] == [4.0, None, None, [], None, "a count of <b>"]


def test_where_nothing_runs_the_same_is_said_and_texts_are_inert():
    view = ReportView(Reports({"a": report(), "<script>b": report(0.62)}))
    html = view.html()
    assert "<script" not in html
    assert "<b>" not in html
    assert "untrained SAE 0.7" in html
    assert html.count("not apart from a control") == 1
    assert "0.15 to 0.25" in html
    assert "untrained SAE" in view.text()


def test_any_result_with_a_table_is_shown_and_nothing_else():
    class Found:
        def __init__(self, n):
            self.n = n

        def to_frame(self):
            index = pd.Index(np.arange(self.n) / 2, name="share")
            return pd.DataFrame({"n": np.arange(self.n), "yes": True, "name": "x"}, index=index)

    header, lines = shown(Found(3))
    assert header == {"kind": "table", "title": "Found", "columns": ["share", "n", "yes", "name"]}
    assert lines[1] == [0.5, 1, "yes", "x"]
    assert ReportView(Found(3)).left_out() == ""
    assert f"first {MOST_LINES:,} of 2,001" in ReportView(Found(2_001)).left_out()
    assert len(shown(Found(2_001))[1]) == MOST_LINES
    for wrong in (3, "report", None):
        with pytest.raises(ConfigError, match=r"with a table\. Got"):
            ReportView(wrong)


def test_a_lab_shows_what_evaluate_gives_and_exports_it(tmp_path):
    lab = saelab.Lab.embedded()
    found = saelab.evaluate(lab.sae, lab.subject, saelab.corpora.world(seed=3, n_documents=8), max_rows=100)
    view = lab.report(found)
    assert "fvu" in view.html()
    page = view.export(tmp_path / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert shown(saelab.analysis.frontier({"a": [found]}))[1][0][0] == "a"
