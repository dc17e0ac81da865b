"""Keys that are pressed in a view are the view's: the notebook around it keeps its cells and its place."""

from __future__ import annotations

import json

from playwright.sync_api import expect


def state(page) -> list:
    """The cells' sources, and which cell is active."""
    cell = "[e.querySelector('.cm-content').textContent, e.classList.contains('jp-mod-active')]"
    cells = "[...document.querySelectorAll('.jp-Notebook .jp-Cell')]"
    return page.evaluate(f"() => {cells}.map(e => {cell})")


def focus(page) -> str:
    return page.evaluate("() => document.activeElement.className + document.activeElement.tagName")


def test_keys_do_not_reach_the_notebook(views):
    page = views
    page.locator(".sl-row").nth(3).click()
    places = {
        ".sl-list": [*"baddxmy", "Shift+M", *"00zjk", "Enter", "Escape"],
        ".sl-browser select": ["ArrowDown", "ArrowDown", "ArrowUp", "b", "d", "d", "j"],
        ".sl-text .sl-token": ["Enter", "ArrowRight", "b", "d", "d", "Enter", "j", "Escape", "x"],
        ".sl-head": ["b", "d", "d", "Enter", "j"],
        ".sl-box": ["b", "d", "d", "Escape"],
    }
    for place, keys in places.items():
        page.locator(place).first.focus()
        before = state(page)
        assert len(before) == 6
        for key in keys:
            held = focus(page)
            page.keyboard.press(key)
            page.wait_for_timeout(60)
            kind = "sl-" if place != ".sl-browser select" else "SELECT"
            if not (place == ".sl-box" and key == "Escape"):
                assert kind in focus(page) or focus(page) == held, (place, key, focus(page))
        assert state(page) == before, place
    # what the views do with keys still works
    page.locator(".sl-list").focus()
    page.keyboard.press("Home")
    first = page.locator(".sl-row.sl-chosen").get_attribute("data-latent")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".sl-row.sl-chosen")).not_to_have_attribute("data-latent", first)
    page.wait_for_selector(".sl-browser .sl-card")


def test_the_notebooks_own_keys_go_on(views):
    page = views
    page.locator(".sl-list").focus()
    prompts = "() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent)"
    before = json.dumps(page.evaluate(prompts), separators=(",", ":"), ensure_ascii=False)
    page.keyboard.press("Control+s")
    page.locator(".sl-row").nth(2).click()
    page.locator(".sl-list").focus()
    page.keyboard.press("Shift+Enter")
    page.wait_for_function(f"() => JSON.stringify(({prompts})()) !== '{before}'")
    # outside of a view the notebook's keys are the notebook's
    page.locator(".jp-Cell").last.click(position={"x": 20, "y": 5})
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    page.wait_for_function("() => document.querySelectorAll('.jp-Notebook .jp-Cell').length === 7")
