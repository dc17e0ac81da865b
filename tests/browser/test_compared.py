"""Two SAEs side by side as a page: pairs, cards of both, lists, keys, both themes, nothing that is run."""

from __future__ import annotations

import pytest
from conftest import fits_in_both_themes
from playwright.sync_api import expect

import saelab

HOSTILE = "<img src=x onerror='window.hacked=1'>"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    whole = saelab.Lab.embedded()
    hooks = ("blocks.2.hook_resid_post", "blocks.1.hook_resid_post")
    stores = {"ours": whole.stores[hooks[0]], HOSTILE: whole.stores[hooks[1]]}
    view = saelab.Lab(stores=stores).compare(HOSTILE, sae="ours")
    return view, view.export(tmp_path_factory.mktemp("compare") / "page.html")


def test_pairs_are_read_side_by_side(page, exported):
    view, path = exported
    pairs = view.compared.pairs
    page.goto(path.as_uri())
    page.wait_for_selector(".sl-compare-side .sl-card >> nth=1")

    def cards():
        shown = page.locator(".sl-compare-side .sl-card")
        return [int(shown.nth(i).get_attribute("data-latent")) for i in range(shown.count())]

    assert cards() == pairs[0].tolist()
    page.locator(".sl-pair").first.focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_selector(f'.sl-compare-side [data-latent="{pairs[1, 0]}"]')
    page.wait_for_selector(f'.sl-compare-side [data-latent="{pairs[1, 1]}"]')
    page.wait_for_function("document.querySelectorAll('.sl-compare-side .sl-card').length === 2")
    assert cards() == pairs[1].tolist()
    expect(page.locator("tr.sl-chosen")).to_have_count(1)

    page.get_by_role("button", name="decoder cosine").click()
    page.get_by_role("button", name="decoder cosine").click()
    first = page.locator(".sl-compare-table td.sl-value").first.inner_text()
    assert float(first) == pytest.approx(view.compared.scores["cosine"].min(), abs=6e-4)
    page.get_by_label("filter by number or name").fill(f"#{pairs[3, 0]}")
    sought = f"#{pairs[3, 0]}"
    expect(page.locator(".sl-pair .sl-number").get_by_text(sought, exact=True).first).to_be_visible()
    page.get_by_label("filter by number or name").fill("no latent is called this")
    expect(page.get_by_text("No latent is called so.")).to_be_visible()
    page.get_by_label("filter by number or name").fill("")
    page.locator('[data-list="own_theirs"]').click()
    n = len(view.compared.own["cosine"][1])
    expect(page.locator(".sl-hint[role=status]")).to_have_text(f"{n} shown", use_inner_text=True)
    expect(page.get_by_text("They were not measured for this page.")).to_be_visible()
    fits_in_both_themes(page, "compare_page")
    assert page.evaluate("window.hacked") is None
    assert page.errors == []
