"""Views whose pages other tests open, live in JupyterLab: comparison, corpus and layers ask the kernel; all
are dark where the lab is, and each says so when the kernel is gone."""

from __future__ import annotations

import pytest
from axe import violations
from conftest import ARTIFACTS
from playwright.sync_api import expect
from real_lab import open_notebook, run_all, write_notebook
from test_map import PAINTED

CELLS = """
import saelab, torch
lab = saelab.Lab.embedded()
lab.selection.sae = "blocks.2.hook_resid_post"
lab.compare("blocks.1.hook_resid_post")
---
lab.corpus()
---
lab.tokens("Tina gave the basket to Hugo. <img src=x onerror='window.hacked=1'>")
---
lab.map()
---
config = saelab.recipe("topk", d_in=16, d_sae=64, k=4)
run = saelab.train(config, torch.randn(2000, 16), steps=200, batch_size=64, log_every=10, progress=False)
saelab.watch(run)
---
"the last"
"""
VIEWS = {"compare": 0, "corpus": 1, "layers": 2, "map": 3, "watch": 4}
GONE = "kernel does not answer"


@pytest.mark.slow
def test_views_live_dark_and_without_their_kernel(page, jupyter):
    write_notebook(jupyter.folder / "living.ipynb", CELLS.split("---"))
    page.set_viewport_size({"width": 1400, "height": 6000})
    open_notebook(page, jupyter, "living.ipynb")
    run_all(page, 240_000)
    roots = page.locator(".sl-root")
    try:
        expect(roots).to_have_count(len(VIEWS), timeout=30_000)
    except (
        AssertionError
    ):  # the lab changed its kernel after it had sent the cells: it shows them when asked anew
        page.reload()
        expect(roots).to_have_count(len(VIEWS), timeout=60_000)
    compare, corpus, layers, cloud, watch = (roots.nth(n) for n in VIEWS.values())
    page.errors.clear()  # of the lab itself, which is offline

    # a pair: its cards, and a text under both
    expect(compare.locator(".sl-compare-side .sl-card")).to_have_count(2)
    pair = compare.locator(".sl-pair").nth(2)
    pair.focus()
    page.keyboard.press("ArrowDown")
    line = compare.locator("tr.sl-chosen")
    expect(line.locator(".sl-pair")).to_be_focused()
    for side, name in enumerate(("ours", "theirs")):
        card = compare.locator(".sl-compare-side").nth(side).locator(".sl-card")
        expect(card).to_have_attribute("data-latent", line.get_attribute(f"data-{name}"))
    compare.get_by_label("a text", exact=True).fill("Rosa gave the basket to Hugo.")
    page.keyboard.press("Enter")
    expect(compare.locator(".sl-compare-heat figure")).to_have_count(2)
    # what is chosen there is chosen in the others
    latent = line.get_attribute("data-ours")
    expect(cloud.locator(".sl-map-about h3")).to_contain_text(f"#{latent} ")

    # documents that hold a word, and the first of them
    corpus.get_by_label("search documents").fill("basket")
    page.keyboard.press("Enter")
    document = corpus.locator("[role=option]").first
    expect(document).to_contain_text("basket")
    document.click()
    expect(corpus.locator(".sl-text .sl-token").nth(3)).to_be_visible()

    # what the model thinks of each token
    colours = layers.get_by_label("colour by")
    colours.select_option("loss")
    expect(layers.get_by_label("unit")).to_be_visible()
    expect(layers.locator(".sl-legend")).to_contain_text("loss")
    expect(watch.locator("tr[data-run]")).to_have_attribute("data-state", "finished")
    assert page.errors == []
    assert page.evaluate("window.hacked") is None

    page.wait_for_function(PAINTED, arg=0)
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.get_by_text("Theme", exact=True).hover()
    page.get_by_text("JupyterLab Dark", exact=True).click()
    page.wait_for_selector('body[data-jp-theme-light="false"]', state="attached")
    page.wait_for_function("getComputedStyle(document.querySelector('.sl-root')).color !== 'rgb(17, 24, 39)'")
    page.wait_for_function(PAINTED, arg=0)
    for name, number in VIEWS.items():
        roots.nth(number).screenshot(path=ARTIFACTS / f"dark-{name}.png")
    assert violations(page, ".sl-root") == []

    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_text("Restart Kernel…", exact=True).click()
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    page.wait_for_timeout(2_000)
    page.evaluate("window.hurry = true")
    compare.get_by_label("a text", exact=True).fill("another text")
    page.keyboard.press("Enter")
    corpus.get_by_label("search documents").fill("Hugo")
    page.keyboard.press("Enter")
    colours.select_option("entropy")
    cloud.locator(".sl-map-tools .sl-box").fill("#3")
    for root in (compare, corpus, layers, cloud):
        expect(root.locator(".sl-banner")).to_contain_text(GONE, timeout=40_000)
    # what was shown stays
    expect(compare.locator(".sl-compare-heat figure")).to_have_count(2)
    expect(compare.locator(".sl-compare-side .sl-card")).to_have_count(2)
    expect(corpus.locator(".sl-text .sl-token").nth(3)).to_be_visible()
    expect(layers.locator(".sl-text .sl-token").nth(3)).to_be_visible()
    expect(cloud.locator(".sl-map-about h3")).to_contain_text(f"#{latent} ")
    expect(watch.locator("path[data-curve]").first).to_be_visible()
    assert page.evaluate("window.hacked") is None
    jupyter.kill_kernel("living.ipynb")
