"""A real training cell is watched in JupyterLab while it runs, and stopped; a page keeps what it was."""

from __future__ import annotations

from axe import violations
from conftest import ARTIFACTS, own_errors
from playwright.sync_api import expect
from real_lab import begin_all, open_notebook, write_notebook

CELLS = """
import saelab, time, torch
view = saelab.watch("run")
view
---
acts = torch.randn(5000, 32)
config = saelab.recipe("topk", d_in=32, d_sae=128, k=4)
run = saelab.train(config, acts, steps=10**7, batch_size=64, out="run", held_out=500, log_every=20,
                   evaluate_every=200, progress=False, callbacks=[lambda event: time.sleep(0.05)])
print(run.finished, run.provenance["ended"], saelab.load_sae("run").fingerprint() == run.sae.fingerprint())
---
view.export("watch.html").name
"""
ROW = "tr[data-run]"


def test_a_run_is_watched_and_stopped(page, browser, jupyter):
    page.set_viewport_size({"width": 1300, "height": 1500})
    write_notebook(jupyter.folder / "watch.ipynb", CELLS.split("---"))
    open_notebook(page, jupyter, "watch.ipynb")
    begin_all(page)
    page.wait_for_selector(f'{ROW}[data-state="training"]', timeout=120_000)
    rows = page.locator(f"{ROW} td:nth-child(4)")
    first = rows.inner_text()
    # the cell trains all the while: what is told comes from a thread
    page.wait_for_function(
        f"(old) => document.querySelector('{ROW} td:nth-child(4)').innerText !== old", arg=first
    )
    page.wait_for_function("document.querySelectorAll('.sl-watch path[data-curve]').length >= 6")
    assert violations(page, ".sl-watch") == []
    page.screenshot(path=ARTIFACTS / "watch-live.png")
    page.get_by_role("button", name="stop run").press("Enter")
    # the button interrupts a kernel that hears nothing; what it asked for is known once the kernel hears it
    page.get_by_text("False interrupted True").or_(page.get_by_text("False stopped True")).wait_for()
    page.get_by_text("'watch.html'").wait_for()
    page.wait_for_selector(f'{ROW}[data-state="stopped"]')
    assert own_errors(page) == []
    for scheme, width in (("light", 1200), ("dark", 600)):
        alone = browser.new_context(viewport={"width": width, "height": 1400}, color_scheme=scheme).new_page()
        alone.goto((jupyter.folder / "watch.html").as_uri())
        alone.wait_for_selector(".sl-watch path[data-curve]")
        expect(alone.locator(f"{ROW} button:visible")).to_have_count(0)
        assert violations(alone) == []
        assert alone.evaluate("document.documentElement.scrollWidth <= innerWidth")
        alone.locator("input[type=range]").focus()
        alone.keyboard.press("Home")
        expect(alone.locator("input[type=range]")).to_have_attribute("aria-valuetext", "0 rows")
        alone.screenshot(path=ARTIFACTS / f"watch-{scheme}-{width}.png")
        alone.context.close()
