"""The view of heads in a real JupyterLab: who wrote a latent, by keys alone; other views follow; a page keeps
what was computed."""

from __future__ import annotations

import re

import pytest
from axe import violations
from conftest import ARTIFACTS, fits_in_both_themes, own_errors
from playwright.sync_api import expect
from real_lab import open_notebook, run_all, write_notebook

TEXT = (
    "When Rosa and Tobin went to the market, Rosa gave the basket to\\n<img src=x onerror='window.hacked=1'>"
)
CELLS = f"""
import saelab
lab = saelab.Lab.embedded()
lab.selection.sae = "blocks.2.attn.hook_z"
view = lab.heads("{TEXT}", 109, follow=True)
view
---
lab.feature()
---
lab.feature(3, sae="blocks.1.attn.hook_z", follow=True)
lab.selection.sae = "blocks.2.attn.hook_z"
lab.selection.latent = 109
---
view.export("heads.html").name
"""
HEADS = ".sl-heads"


def press(page, name):
    """A key does nothing on a button that waits for an answer."""
    button = page.get_by_role("button", name=name)
    expect(button).to_be_enabled()
    button.press("Enter")


@pytest.fixture(scope="module")
def heads(jupyter):
    write_notebook(jupyter.folder / "heads.ipynb", CELLS.split("---"))
    return "heads.ipynb"


def test_who_wrote_a_latent(page, jupyter, heads):
    page.set_viewport_size({"width": 1500, "height": 3200})
    open_notebook(page, jupyter, heads)
    run_all(page, 120_000)
    expect(page.locator(".sl-heads-title")).to_contain_text("pre-activation", use_inner_text=True)
    cells = page.locator(".sl-head-cell")
    expect(cells).to_have_count(32)
    expect(page.locator(".sl-head-cell:not(.sl-none)")).to_have_count(8)  # the layer that it reads
    # the largest part is the one that the notebook finds, and choosing it lights its source
    page.locator(".sl-edge").first.click()
    expect(page.locator(f"{HEADS} h2").first).to_have_text("Head 2.3")
    comma = page.locator(f"{HEADS} .sl-text [data-at]", has_text=re.compile("^,$"))
    expect(comma).to_have_attribute("aria-label", re.compile(r"^,, 0\.\d+$"))
    expect(page.locator(".sl-head-cell[aria-selected=true]")).to_have_attribute(
        "aria-label", re.compile(r"^head 2\.3: 0\.")
    )
    # by keys alone: another head, another token
    page.locator(".sl-head-cell[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator(f"{HEADS} h2").first).to_have_text("Head 2.4")
    token = page.locator(f"{HEADS} .sl-text [data-at][tabindex='0']")
    before = page.locator(".sl-heads-title").inner_text()
    token.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(page.locator(".sl-heads-title")).not_to_have_text(before, use_inner_text=True)
    expect(page.locator(".sl-heads-title")).to_contain_text("pre-activation", use_inner_text=True)
    # what the parts are worth stands beside what the pattern alone tells
    press(page, "take edges out")
    expect(page.locator(".sl-beside-line").first).to_contain_text("pattern alone", use_inner_text=True)
    page.locator("[data-set=colour]").select_option("ablation")
    press(page, "take each head out")
    expect(page.locator(".sl-controls")).to_contain_text("A head drawn at random", use_inner_text=True)
    expect(page.locator(".sl-head-cell:not(.sl-none)")).to_have_count(24)
    page.locator("[data-set=colour]").select_option("attention")
    expect(page.locator(".sl-head-cell:not(.sl-none)")).to_have_count(32)
    expect(page.locator(f"{HEADS} .sl-legend").last).to_contain_text("of even attention", use_inner_text=True)
    # the way back unfolds, and says what its parts sum to
    page.locator(".sl-way summary").press("Enter")
    steps = page.locator(f"{HEADS} .sl-tree-line")  # JupyterLab's running kernels are tree items too
    expect(steps.first).to_have_attribute("aria-expanded", "true")
    steps.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator(f"{HEADS} [role=treeitem][aria-expanded=true]")).to_have_count(2)
    expect(page.locator(".sl-tree-sum").nth(1)).to_contain_text("off by", use_inner_text=True)
    page.locator(".sl-prefix summary").press("Enter")
    expect(page.locator(".sl-prefix svg")).to_be_visible()
    expect(page.locator(".sl-prefix p")).to_contain_text("9: ", use_inner_text=True)
    # what the head does over the store's documents: a click in a sequence lights where that token looks
    page.locator(".sl-over summary").press("Enter")
    sequences = page.locator(".sl-example-list > li")
    expect(sequences).to_have_count(10)
    expect(page.locator(".sl-examples")).to_contain_text("of even attention", use_inner_text=True)
    example = sequences.first.locator(".sl-token")
    chosen = example.and_(page.locator("[aria-pressed=true]"))
    expect(chosen).to_have_count(1)
    last = chosen.get_attribute("data-at")
    chosen.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(chosen).to_have_attribute("data-at", str(int(last) + 1))
    page.get_by_role("button", name="5 more").click()
    expect(sequences).to_have_count(15)
    page.locator("[data-set=colour]").select_option("corpus")
    press(page, "read the corpus")
    expect(page.locator(f"{HEADS} .sl-legend").last).to_contain_text("sequences of", use_inner_text=True)
    expect(page.locator(".sl-head-cell:not(.sl-none)")).to_have_count(32)
    # a latent of the head is chosen for the card beside; one on the way back, for the card of its SAE
    chip = page.locator(".sl-tops button[aria-pressed=false]").first
    number = chip.locator(".sl-number").inner_text()
    chip.click()
    expect(page.locator(".jp-CodeCell").nth(1).locator(".sl-card h3")).to_contain_text(
        number, use_inner_text=True
    )
    expect(page.locator(".sl-heads-title b")).to_have_text(number)
    assert violations(page, HEADS) == []
    assert page.evaluate("window.hacked") is None
    assert own_errors(page) == []
    page.locator(HEADS).screenshot(path=ARTIFACTS / "heads_view.png")


def test_a_page_keeps_what_was_computed(page, jupyter, heads):
    """Of the latent that was chosen when the notebook ran."""
    page.goto((jupyter.folder / "heads.html").as_uri())
    page.wait_for_selector(".sl-heads-grid")
    title = page.locator(".sl-heads-title")
    expect(title).to_contain_text("pre-activation", use_inner_text=True)
    before = title.inner_text()
    page.locator(f"{HEADS} .sl-text [data-at]").nth(12).click()
    expect(title).not_to_have_text(before, use_inner_text=True)
    page.locator(".sl-head-cell").nth(19).click()
    expect(page.locator(".sl-head-pattern")).to_be_visible()
    expect(page.get_by_role("button", name="take edges out")).to_be_disabled()
    expect(page.locator("main > p.sl-hint").last).to_contain_text("Left out of this page: heads and sources")
    fits_in_both_themes(page, "heads_page")
    assert page.evaluate("window.hacked") is None
    assert page.errors == []
