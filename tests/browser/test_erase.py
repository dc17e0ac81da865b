"""The erasing view in a real JupyterLab: toggles, a threshold on its curve, figures; a page keeps them."""

from __future__ import annotations

import pytest
from axe import violations
from conftest import ARTIFACTS, fits_in_both_themes
from playwright.sync_api import expect
from real_lab import open_notebook, run_all, write_notebook

CELLS = """
import re
import saelab
from saelab.corpora.world_lexicon import TOPIC_WORDS

lab = saelab.Lab.embedded()
documents = saelab.corpora.world(seed=10, n_documents=800, families=["topic"])
texts = sorted({d.text.split(". ")[0].rstrip(".") + "." for d in documents})
about = {
    topic: [t for t in texts if re.search(rf"\\b({'|'.join(TOPIC_WORDS[topic])})\\b", t)]
    for topic in ("cooking", "law")
}
without = [t for t in texts if not any(t in some for some in about.values())][::5][:10]
view = lab.erase(
    "cooking", about["cooking"][:10], without, target=TOPIC_WORDS["cooking"], tau=-2, max_new_tokens=6
)
view
---
view.add("law <img src=x onerror='window.hacked=1'>", about["law"][:10], without).session.generates
---
view.export("erase.html").name
"""
STATUS = "document.querySelector('.sl-erase [role=status]')?.textContent"
DONE = f"{STATUS} === 'measured' && document.querySelectorAll('[data-kind=erased]').length === 2"
GROUP = '[data-group="cooking"]'


@pytest.fixture(scope="module")
def erase(jupyter):
    write_notebook(jupyter.folder / "erase.ipynb", CELLS.split("---"))
    return "erase.ipynb"


def test_a_concept_is_erased(page, jupyter, erase):
    page.set_viewport_size({"width": 1500, "height": 3200})
    open_notebook(page, jupyter, erase)
    run_all(page, 120_000)
    page.wait_for_function(DONE, timeout=60_000)
    expect(page.locator("[data-concept]")).to_have_count(2)  # the one that was added later came in
    expect(page.locator(".sl-column")).to_have_count(3)
    target = page.locator(f'{GROUP} [data-measure="target"] td')
    before, after = (float(target.nth(i).inner_text().split(" %")[0]) for i in (0, 1))
    assert after < before

    def anew(work):
        """What is set is written and measured anew."""
        page.evaluate(
            "() => { window.seen = false; new MutationObserver(() => { window.seen = true; }).observe("
            "document.querySelector('.sl-groups'), {childList: true}); }"
        )
        work()
        page.wait_for_function(f"window.seen && {STATUS} === 'measured'", timeout=60_000)

    # by keys alone: a toggle, the threshold on its curve, tau, the next sample
    law = page.locator("[data-toggle]").nth(1)
    law.focus()
    anew(lambda: page.keyboard.press("Space"))
    expect(page.locator('[data-kind="kept"]')).to_have_count(1)
    curve = page.locator("[data-roc] input").first
    curve.focus()
    said = page.locator(".sl-roc-said").first
    before = said.inner_text()
    anew(lambda: page.keyboard.press("Home"))  # the highest threshold: it opens on nothing
    expect(said).to_contain_text("opens on 0 % of 2 clean, 0 % of", use_inner_text=True)
    assert said.inner_text() != before
    anew(lambda: page.keyboard.press("End"))
    expect(said).to_contain_text("100.0 % of", use_inner_text=True)
    page.locator("[data-set=mode]").select_option("replace")
    page.get_by_role("button", name="next sample").focus()
    anew(lambda: page.keyboard.press("Enter"))
    # of what moves on only the last counts, and what is stopped stays so
    page.locator("[data-set=mode]").select_option("scale")
    tau = page.locator(".sl-tau input[type=range]")
    tau.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(page.locator(".sl-tau input[type=number]")).to_have_value("-2.75")
    page.get_by_role("button", name="stop").click()
    assert page.evaluate(STATUS) == "stopped"
    page.wait_for_timeout(500)
    assert page.evaluate(STATUS) == "stopped"
    page.locator("button.sl-number").first.click()
    page.wait_for_selector(".sl-erase .sl-card")
    page.locator(".sl-erase summary", has_text="recipe").click()
    page.get_by_role("button", name="write", exact=True).click()
    page.wait_for_function("document.querySelector('.sl-erase details textarea').value.includes('erase')")
    anew(lambda: page.get_by_role("button", name="load", exact=True).click())
    assert violations(page, ".sl-root") == []
    assert page.evaluate("window.hacked") is None
    page.locator(".sl-root").screenshot(path=ARTIFACTS / "erase_view.png")


def test_a_page_keeps_what_was_computed(page, jupyter, erase):
    """Of the settings that the notebook's kernel exported it with."""
    page.goto((jupyter.folder / "erase.html").as_uri())
    page.wait_for_selector(GROUP)
    page.wait_for_selector("[data-roc] svg")
    page.locator("button.sl-number").first.click()
    page.wait_for_selector(".sl-card")
    fits_in_both_themes(page, "erase_page")
    expect(page.locator("[data-set=kept] option").first).to_be_attached()
    assert page.errors == []
