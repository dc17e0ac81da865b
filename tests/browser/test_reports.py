"""What an analysis found, as a page: figures beside their controls, a table to sort, nothing that is run."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from axe import violations
from conftest import ARTIFACTS, fits_in_both_themes, own_errors
from playwright.sync_api import expect
from real_lab import open_notebook, run_all, write_notebook

import saelab
from saelab.analysis import Report, Reports, Scores
from saelab.analysis.controls import Alone, Beside, Control
from saelab.widgets.report import ReportView

HOSTILE = "<img src=x onerror='window.hacked=1'>"


def report(fvu: float, wide: float) -> Report:
    claims = {
        "fvu": Beside(
            fvu, 0.7, (fvu - wide, fvu + wide), (0.6, 0.8), 9, also=(Control(HOSTILE, 0.9, (0.85, 0.95)),)
        ),
        HOSTILE: Alone(0.25, "published without one"),
    }
    sae = Scores(fvu, 8, 0.0)
    return Report(
        "blocks.2.hook_resid_post", 1_000, 1.5, 5.0, sae, sae, claims, {"loss": f"a {HOSTILE} lacks loss"}
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    view = ReportView(Reports({"mine": report(0.2, 0.05), HOSTILE: report(0.58, 0.05)}))
    return view.export(tmp_path_factory.mktemp("report") / "page.html")


def test_figures_stand_beside_their_controls_and_say_where_they_fail(page, exported):
    page.goto(exported.as_uri())
    rows = page.locator(".sl-report tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.nth(0)).to_contain_text("0.150 to 0.250")
    expect(rows.nth(0)).to_contain_text("untrained SAE 0.700")
    expect(rows.nth(0)).not_to_contain_text("not apart")
    expect(rows.nth(1)).to_contain_text("not apart")
    expect(rows.nth(2)).to_contain_text("no control: published without one")
    page.get_by_label("figures that are called").fill("mine")
    expect(rows).to_have_count(2)
    expect(page.get_by_text("2 of 4 figures")).to_be_visible()
    page.get_by_label("figures that are called").fill("")
    page.get_by_text("2 not measured").click()
    expect(page.get_by_text("lacks loss").first).to_be_visible()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0


def test_it_fits_in_both_themes(page, exported):
    page.goto(exported.as_uri())
    expect(page.locator(".sl-report tbody tr")).to_have_count(4)
    fits_in_both_themes(page, "report")


def test_another_result_is_a_table_that_sorts_by_its_heads(page, tmp_path):
    class Found:
        def to_frame(self):
            table = pd.DataFrame({"n": [2, 10, 1], "label": ["b", HOSTILE, "a"]})
            return table.set_index(pd.Index([0.5, float("nan"), 0.1], name="score"))

    page.goto(ReportView(Found()).export(tmp_path / "page.html").as_uri())
    first = page.locator(".sl-report tbody tr").first
    expect(first).to_contain_text("b")
    head = page.get_by_role("button", name="n", exact=True)
    head.focus()
    page.keyboard.press("Enter")
    expect(first).to_contain_text("a")
    page.keyboard.press("Enter")
    expect(first).to_contain_text("onerror")
    expect(page.get_by_role("columnheader", name="n", exact=True)).to_have_attribute(
        "aria-sort", "descending"
    )
    assert page.evaluate("window.hacked") is None


def test_what_suites_draw_is_drawn_on_the_page(page, tmp_path):
    sae = saelab.SAE.create(saelab.recipe("topk", d_in=8, d_sae=16, k=2), seed=0)
    other = saelab.SAE.create(saelab.recipe("topk", d_in=8, d_sae=16, k=4), seed=0)
    reports = saelab.evaluate({"a": sae, HOSTILE: other}, torch.randn(300, 8), suites=("norms",))
    page.goto(ReportView(reports).export(tmp_path / "page.html").as_uri())
    drawings = page.locator(".sl-drawing")
    expect(drawings).to_have_count(3)  # the frontier, and a ZF plot each
    expect(drawings.nth(0)).to_contain_text("FVU (lower is better) over L0")
    points = drawings.nth(1).locator('path[data-curve="activations"]')
    assert points.get_attribute("d").count("M") == 300
    expect(drawings.nth(1)).to_contain_text("norm of the code")
    # points below the line of equal lengths on the screen are below it in the data
    below = (reports["a"].suites["norms"].tables["zf"].eval("code / input") < 1).mean()
    told = page.evaluate(SHARE_BELOW, drawings.nth(1).element_handle())
    assert told == pytest.approx(below, abs=0.02)
    assert page.evaluate("window.hacked") is None
    fits_in_both_themes(page, "report_drawings")


SHARE_BELOW = """(figure) => {
    const numbers = (curve) => [...figure.querySelector(`path[data-curve="${curve}"]`)
        .getAttribute("d").matchAll(/[ML]([-\\d.]+) ([-\\d.]+)/g)].map(([, x, y]) => [+x, +y]);
    const [[x0, y0], [x1, y1]] = numbers("equal");
    const points = numbers("activations");
    return points.filter(([x, y]) => y > y0 + ((x - x0) / (x1 - x0)) * (y1 - y0)).length / points.length;
}"""
"""Of a ZF plot, the share of points under the line; y grows downwards on a screen."""

CELLS = """
import saelab
lab = saelab.Lab.embedded()
found = saelab.evaluate(lab.sae, lab.subject, saelab.corpora.world(seed=3, n_documents=8), suites=("norms",))
lab.report(found)
---
lab.report(lab.card(7))
---
"the last"
"""


@pytest.mark.slow
def test_reports_live_in_a_lab_in_both_themes_and_narrow(page, jupyter):
    write_notebook(jupyter.folder / "reports.ipynb", CELLS.split("---"))
    page.set_viewport_size({"width": 1400, "height": 2400})
    open_notebook(page, jupyter, "reports.ipynb")
    run_all(page, 240_000)
    roots = page.locator(".sl-root")
    expect(roots).to_have_count(2)
    expect(roots.nth(0).locator(".sl-drawing path[data-curve=activations]")).to_be_visible()
    expect(roots.nth(1).locator("tbody tr").first).to_be_visible()
    ARTIFACTS.mkdir(exist_ok=True)
    roots.nth(0).screenshot(path=ARTIFACTS / "live-report-light.png")
    assert own_errors(page) == []
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.get_by_text("Theme", exact=True).hover()
    page.get_by_text("JupyterLab Dark", exact=True).click()
    page.wait_for_selector('body[data-jp-theme-light="false"]', state="attached")
    page.set_viewport_size({"width": 600, "height": 2400})
    page.wait_for_function("getComputedStyle(document.querySelector('.sl-root')).color !== 'rgb(17, 24, 39)'")
    roots.nth(0).screenshot(path=ARTIFACTS / "live-report-dark.png")
    roots.nth(1).screenshot(path=ARTIFACTS / "live-card-dark.png")
    assert violations(page, ".sl-root") == []
    jupyter.kill_kernel("reports.ipynb")
