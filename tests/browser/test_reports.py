"""What an analysis found, as a page: figures beside their controls, a table to sort, nothing that is run."""

from __future__ import annotations

import pandas as pd
import pytest
from conftest import fits_in_both_themes
from playwright.sync_api import expect

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
