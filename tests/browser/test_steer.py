"""The steering view in a real JupyterLab: a slider writes anew, an older run is dropped, a page keeps it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from axe import violations
from conftest import ARTIFACTS
from playwright.sync_api import expect
from real_lab import open_notebook, run_all, write_notebook

CELLS = """
import saelab
lab = saelab.Lab.embedded()
view = lab.steer("Once upon a time", {7: 2})
view
---
view.export("steer.html").name
"""
# from the slider's event to the first token that is drawn of the new run
CLOCK = """
(value) => new Promise((done, fail) => {
  setTimeout(() => fail(new Error(document.querySelector('.sl-root').innerText)), 15000);
  const slider = document.querySelector('[data-knob="7"] input[type=range]');
  const columns = document.querySelector('.sl-beside');
  const status = document.querySelector('.sl-steer [role=status]');
  const start = performance.now();
  const watcher = new MutationObserver(() => {
    if (!status.textContent.startsWith('writing… 1 of')) return;
    watcher.disconnect();
    done(performance.now() - start);
  });
  watcher.observe(columns.parentElement, {childList: true, subtree: true, characterData: true});
  slider.value = value;
  slider.dispatchEvent(new Event('input'));
})
"""
WRITTEN = "document.querySelector('.sl-steer [role=status]')?.textContent === '30 tokens'"


@pytest.fixture(scope="module")
def steer(jupyter):
    write_notebook(jupyter.folder / "steer.ipynb", CELLS.split("---"))
    return "steer.ipynb"


def test_a_slider_steers(page, jupyter, steer):
    page.set_viewport_size({"width": 1500, "height": 2000})
    open_notebook(page, jupyter, steer)
    run_all(page, 120_000)
    page.wait_for_selector(".sl-column")
    page.wait_for_selector(".sl-dose svg")
    expect(page.locator(".sl-column")).to_have_count(3)
    steered = page.locator('[data-column="steered"] .sl-written')
    times = []
    for value in (0.5, 1, 1.5, 0, -1):
        before = steered.inner_text()
        times.append(page.evaluate(CLOCK, value))
        page.wait_for_function(WRITTEN)
        expect(steered).not_to_have_text(before, use_inner_text=True)
    assert len(times) == 5, "each came: the clock gives up by itself"
    # the others are dropped of a slider that moves on
    page.evaluate(
        """() => { const s = document.querySelector('[data-knob="7"] input[type=range]');
        for (const v of [1, 2, 3, 0.5]) { s.value = v; s.dispatchEvent(new Event('input')); } }"""
    )
    page.wait_for_function(WRITTEN)
    own = page.locator('[data-knob="7"] input[type=number]')
    expect(own).to_have_value("0.5")
    # keyboard: a number adds a latent, the slider goes by arrows
    page.locator(".sl-steer input[type=search]").fill("#12")
    page.keyboard.press("Enter")
    page.wait_for_selector('[data-knob="12"]')
    page.locator('[data-knob="12"] input[type=range]').focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator('[data-knob="12"] input[type=number]')).to_have_value("1.05")
    page.wait_for_function(WRITTEN)
    page.locator(".sl-steer select[data-set=gate]").select_option("token")
    page.wait_for_selector(".sl-gate svg")
    page.wait_for_function(WRITTEN)
    page.wait_for_selector(".sl-panels > *")
    page.locator(".sl-steer summary").click()
    page.get_by_role("button", name="write", exact=True).click()
    page.wait_for_function("document.querySelector('.sl-steer details textarea').value.includes('steer')")
    # the recipe goes out as a file, and one that is loaded fills the fields
    with page.expect_download() as got:
        page.get_by_role("button", name="download", exact=True).click()
    recipe = json.loads(Path(got.value.path()).read_text())
    assert [edit["latent"] for edit in recipe["edits"]] == [7, 12]
    for edit in recipe["edits"]:
        edit["gate"], edit["threshold"], edit["alpha"] = "constant", None, -0.75
    page.locator(".sl-steer details textarea").fill(json.dumps(recipe))
    page.get_by_role("button", name="load", exact=True).click()
    own = page.get_by_label("strength of latent 7 as a number")
    expect(own).to_have_value("-0.75")
    expect(page.locator("[data-set=gate]")).to_have_value("constant")
    page.wait_for_function(WRITTEN)
    assert violations(page, ".sl-root") == []
    ARTIFACTS.mkdir(exist_ok=True)
    page.locator(".sl-root").screenshot(path=ARTIFACTS / "steer_view.png")


def test_a_page_keeps_what_was_computed(page, jupyter, steer):
    """Written by hand: the kernel of the notebook exported it with its first settings alone."""
    import saelab

    lab = saelab.Lab.embedded()
    view = lab.steer("Once upon a time", {7: 2})
    other = view.settings.replace('"alpha":2', '"alpha":1')
    view.session.written(other)
    path = view.export(jupyter.folder / "kept.html")
    page.goto(path.as_uri())
    page.wait_for_selector(".sl-column")
    page.wait_for_selector(".sl-dose svg")
    steered = page.locator('[data-column="steered"] .sl-written')
    before = steered.inner_text()
    slider = page.locator('[data-knob="7"] input[type=range]')
    slider.evaluate("(s) => { s.value = 1.2; s.dispatchEvent(new Event('input')); }")
    page.wait_for_function("document.querySelector('[data-knob=\"7\"] input[type=range]').value === '1'")
    page.wait_for_function(
        "(t) => document.querySelector('[data-column=\"steered\"] .sl-written').innerText !== t", arg=before
    )
    told = view.session.written(other)["columns"][1]["tokens"]
    assert "".join(told)[:20] in steered.inner_text()
    assert page.errors == []
    page.emulate_media(color_scheme="dark")
    page.locator(".sl-root").screenshot(path=ARTIFACTS / "steer_page_dark.png")
