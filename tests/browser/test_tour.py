"""The tour in a real JupyterLab: run all, touch the views, change the theme, reload, lose the kernel."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from axe import violations
from conftest import own_errors
from playwright.sync_api import expect
from real_lab import ERRORS, open_notebook, run_all, save

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_tour_runs_and_its_views_are_linked(page, jupyter):
    shutil.copy(ROOT / "notebooks" / "00_tour.ipynb", jupyter.folder)
    open_notebook(page, jupyter, "00_tour.ipynb")
    # the lab draws only cells near the screen: a tall window shows them all
    page.set_viewport_size({"width": 1400, "height": 9000})
    run_all(page, 400_000)
    assert page.locator(f"{ERRORS} >> text=Traceback").count() == 0
    page.wait_for_selector(".sl-text .sl-token")
    page.locator(".sl-text .sl-token").nth(4).click()
    page.locator(".sl-detail .sl-chip").first.click()
    chosen = page.locator(".sl-detail .sl-chip.sl-chosen .sl-number").first.inner_text()
    page.wait_for_selector(f'.sl-card[data-latent="{chosen[1:]}"]')
    assert own_errors(page) == []
    jupyter.kill_kernel("00_tour.ipynb")


def test_views_move_each_other(views):
    page = views
    page.wait_for_selector(".sl-row")
    # a click in the browser: its card, the card alone, the text's colours
    row = page.locator(".sl-row").nth(5)
    latent = row.get_attribute("data-latent")
    row.click()
    page.wait_for_function(
        f"() => document.querySelectorAll('.sl-card[data-latent=\"{latent}\"]').length === 3"
    )
    expect(page.locator(".sl-legend").first).to_contain_text(f"#{latent}", use_inner_text=True)
    # the card that a call named stays where it is
    expect(page.locator('.sl-card[data-latent="7"]')).to_have_count(1)
    # a window of one card: its row is chosen in all of them
    page.locator(".sl-windows .sl-value").nth(1).click()
    page.wait_for_function("() => document.querySelectorAll('li[aria-current=\"true\"]').length >= 3")
    # keyboard in the list
    page.locator(".sl-list").focus()
    page.keyboard.press("ArrowDown")
    below = page.locator(".sl-row.sl-chosen")
    expect(below).not_to_have_attribute("data-latent", latent)
    below = below.get_attribute("data-latent")
    page.wait_for_selector(f'.sl-card[data-latent="{below}"]')
    # "/" leads to the box; a number jumps
    page.keyboard.press("/")
    page.keyboard.type("17")
    page.keyboard.press("Enter")
    page.wait_for_selector('.sl-card[data-latent="17"]')
    # a text finds the latents that it fires
    page.locator(".sl-box").fill("thank you")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=latents fire on this text")
    page.keyboard.press("Escape")
    # what was chosen before, by a key, in every view
    page.locator(".sl-browser .sl-list").focus()
    page.keyboard.press("b")
    page.wait_for_selector('.sl-browser .sl-card[data-latent="17"]')
    # SQL filters; what is no SQL is said under it, and names of columns are completed
    page.keyboard.press("s")
    page.keyboard.type("densi")
    page.wait_for_selector(".sl-words [role=option]")
    page.keyboard.press("Tab")
    page.keyboard.type(" < 0.001")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => /^\\d+ of 1,024 latents/.test(document.querySelector('.sl-count').innerText)"
        " && !document.querySelector('.sl-count').innerText.startsWith('1,024')"
    )
    few = page.locator(".sl-count").inner_text()
    page.locator(".sl-where").first.fill("densty < 1")
    page.keyboard.press("Enter")
    page.wait_for_selector('.sl-wrong >> text=Referenced column "densty" not found')
    expect(page.locator(".sl-count")).to_have_text(few, use_inner_text=True)
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.querySelector('.sl-count').innerText.startsWith('1,024')")
    # a tag and a note on a card are on the other cards of the latent too, and text
    row = page.locator(".sl-browser .sl-row").nth(1)
    row.click()
    card = page.locator(f'.sl-browser .sl-card[data-latent="{row.get_attribute("data-latent")}"]')
    card.locator("[aria-label='add a tag']").fill("<b>odd</b>")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('.sl-mark').length === 3")
    expect(page.locator(".sl-mark bdi")).to_have_text(["<b>odd</b>"] * 3, use_inner_text=True)
    card.locator("[aria-label='take the tag <b>odd</b> away']").click()
    page.wait_for_function("() => !document.querySelector('.sl-mark')")
    # keyboard in the text
    tokens = page.locator(".sl-text .sl-token")
    tokens.nth(2).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(tokens.nth(3)).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(tokens.nth(3)).to_have_attribute("aria-pressed", "false")
    the_pinned_card_answers(page)
    # text is text
    assert "<img src=x" in page.locator(".sl-text").inner_text().replace("\n", "")
    assert page.evaluate("window.hacked") is None
    assert violations(page, ".sl-root") == []
    assert own_errors(page) == []


def the_pinned_card_answers(page):
    """What is unfolded, a document, a text that is typed, and a label by the keyboard."""
    card = page.locator('.sl-card[data-latent="7"]')
    windows = card.locator(".sl-windows li")
    windows.first.locator(".sl-more").click()
    page.wait_for_selector('.sl-card[data-latent="7"] .sl-whole .sl-peak')
    card.locator('[data-fold="relatives"] > summary').click()
    page.wait_for_selector("text=cosine of decoder rows")
    card.locator('[data-fold="drawn"] > summary').click()
    page.wait_for_selector("text=Random firings")
    card.locator('[data-fold="tried"] > summary').click()
    card.locator('[aria-label="A text to try"]').fill("Hugo found a box.")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=answered in")
    # windows are aligned at the firing: the peaks stand under each other
    card.locator(".sl-edit").focus()
    page.keyboard.press("a")
    page.wait_for_selector('.sl-card[data-latent="7"].sl-firing')
    peaks = card.locator("section:has(h4:text-is('Strongest')) .sl-peak")
    places = {round(peak.bounding_box()["x"]) for peak in peaks.all()}
    assert max(places) - min(places) <= 1
    # a label: Escape undoes, Enter keeps it; it is text
    for key, text in (("Escape", "no"), ("Enter", "<img src=x onerror='window.hacked=1'>"), ("Enter", "")):
        card.locator(".sl-edit").focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Control+A")
        page.keyboard.press("Backspace")
        page.keyboard.type(text)
        page.keyboard.press(key)
        page.wait_for_selector('.sl-card[data-latent="7"] .sl-edit')
        expect(card.locator(".sl-label")).to_have_text(text if key == "Enter" else "", use_inner_text=True)
        assert page.evaluate("document.activeElement.className") == "sl-edit"


def test_hovering_needs_no_kernel(views):
    page = views
    page.wait_for_selector(".sl-text .sl-token")
    page.evaluate(
        "() => { window.sent = 0; const send = WebSocket.prototype.send;"
        "WebSocket.prototype.send = function (...a) { window.sent++; return send.apply(this, a); }; }"
    )
    page.locator(".sl-text .sl-token").nth(3).hover()
    page.wait_for_selector(".sl-detail .sl-chip")
    expect(page.locator(".sl-detail").first).to_contain_text("token 3", use_inner_text=True)
    assert page.evaluate("window.sent") == 0


def test_the_theme_follows_the_lab(views):
    page = views
    page.wait_for_selector(".sl-card")

    def colours():
        return page.locator(".sl-root").first.evaluate(
            "e => { const s = getComputedStyle(e); return [s.color, s.backgroundColor]; }"
        )

    before = colours()
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.get_by_text("Theme", exact=True).hover()
    page.get_by_text("JupyterLab Dark", exact=True).click()
    page.wait_for_selector('body[data-jp-theme-light="false"]', state="attached")
    page.wait_for_function(
        f"() => getComputedStyle(document.querySelector('.sl-root')).color !== '{before[0]}'"
    )
    assert colours() != before
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.get_by_text("Theme", exact=True).hover()
    page.get_by_text("JupyterLab Light", exact=True).click()
    page.wait_for_selector('body[data-jp-theme-light="true"]', state="attached")


def test_a_reloaded_page_shows_the_views_again(views, jupyter):
    page = views
    save(page, jupyter.folder / "views.ipynb")
    page.reload()
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    # the kernel lives on, and so do the models of the widgets
    page.wait_for_selector(".sl-row", timeout=60_000)
    page.locator(".sl-row").nth(2).click()
    page.wait_for_selector(".sl-browser .sl-card")


def test_a_live_kernel_that_answers_late_is_not_said_dead(views, jupyter):
    """The machine holds the kernel up: it told last that it is idle, and answers nothing for a while."""
    page = views
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
    kernel = int((jupyter.folder / "pid").read_text())
    page.evaluate("window.hurry = true")
    os.kill(kernel, signal.SIGSTOP)
    try:
        row = page.locator(".sl-row").nth(9)
        row.click()
        page.wait_for_selector(".sl-banner:not([hidden]) >> text=Still waiting", timeout=25_000)
        assert page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').count() == 1
    finally:
        os.kill(kernel, signal.SIGCONT)
    page.wait_for_selector(f'.sl-browser .sl-card[data-latent="{row.get_attribute("data-latent")}"]')
    page.wait_for_timeout(3_000)
    assert page.locator(".sl-banner:not([hidden])").count() == 0


def test_a_lost_kernel_is_said_and_what_was_shown_stays(views, views_notebook):
    page = views
    page.wait_for_selector(".sl-row")
    views_notebook.spent = True
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_text("Restart Kernel…", exact=True).click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    page.wait_for_timeout(2_000)
    page.evaluate("window.hurry = true")
    page.locator(".sl-row").nth(7).click()
    page.wait_for_selector(".sl-banner:not([hidden]) >> text=kernel does not answer", timeout=30_000)
    assert page.locator(".sl-card").count() >= 1
    assert page.locator(".sl-text .sl-token").count() > 3
    # hovering needs no kernel, so it still works
    page.locator(".sl-text .sl-token").nth(2).hover()
    page.wait_for_selector(".sl-detail .sl-chip")
