"""Circuits in a real JupyterLab and on a page: pruned as in Python, gone through by keys, pinned, grouped."""

from __future__ import annotations

import json

import pytest
from axe import violations
from conftest import ARTIFACTS, ROOT, fits_in_both_themes, own_errors
from playwright.sync_api import expect
from real_lab import open_notebook, run_all, write_notebook

from saelab.analysis.circuits.graph_files import read_graph

CELLS = f"""
import sys
sys.path.append({str(ROOT / "tests")!r})
import saelab
from drawn_graphs import planted_graph

lab = saelab.Lab.embedded()
hook = "blocks.2.hook_resid_post"
text = "When Rosa and Tobin went to the market, Rosa gave the basket to"
graph = planted_graph(lab.codes(text), hook, each=4, dense=0.3)
view = lab.circuit(graph)
view
---
lab.feature()
---
import json
sizes = []
for node, edge in ((0.8, 0.98), (0.5, 0.9), (0.95, 0.5), (1, 1), (0.2, 0.98)):
    pruned = graph.prune(node, edge)
    sizes.append([node, edge, list(pruned.ids), int((pruned.adjacency != 0).sum())])
open("sizes.json", "w").write(json.dumps(sizes))
---
view.export("circuit.html").name
"""
STATUS = ".sl-graph [role=status]"


@pytest.fixture(scope="module")
def circuit(jupyter):
    write_notebook(jupyter.folder / "circuit.ipynb", CELLS.split("---"))
    return "circuit.ipynb"


def prune(page, name, share):
    page.locator(f"input[data-set={name}]").evaluate(
        "(range, share) => { range.value = share; range.dispatchEvent(new Event('input', {bubbles: true}));"
        " range.dispatchEvent(new Event('change', {bubbles: true})); }",
        share,
    )


def drawn(page):
    return page.locator(".sl-node").evaluate_all("(all) => all.map((e) => e.dataset.node)")


def pruned_as_in_python(page, sizes):
    for node, edge, ids, edges in sizes:
        prune(page, "node", node)
        prune(page, "edge", edge)
        expect(page.locator(STATUS)).to_contain_text(f"{len(ids):,} of", use_inner_text=True)
        expect(page.locator(STATUS)).to_contain_text(f" nodes, {edges:,} of", use_inner_text=True)
        assert sorted(drawn(page)) == sorted(ids)


def test_a_graph_is_pruned_pinned_and_grouped(page, jupyter, circuit):
    page.set_viewport_size({"width": 1500, "height": 3600})
    open_notebook(page, jupyter, circuit)
    run_all(page, 120_000)
    page.wait_for_selector(".sl-node")
    sizes = json.loads((jupyter.folder / "sizes.json").read_text())
    pruned_as_in_python(page, sizes)
    prune(page, "node", 0.8)
    prune(page, "edge", 0.98)
    expect(page.locator(STATUS)).to_contain_text(f"{len(sizes[0][2])} of", use_inner_text=True)

    # by keys alone: from the logit down its largest edge, and on to the node beside that, pinning on the way
    logit = page.locator(".sl-node-logit").first
    logit.focus()
    for key in ("p", "[", "p", "ArrowLeft", "p"):
        page.keyboard.press(key)
    expect(page.locator(".sl-node-pinned")).to_have_count(3)
    expect(page.locator(".sl-graph-frame :focus")).to_have_count(1)
    page.keyboard.press("g")
    for box in page.locator(".sl-graph-pinned input[type=checkbox]").all()[1:]:
        box.check()
    name = page.locator("[data-group-name]")
    name.fill("mine <img src=x onerror='window.hacked=1'>")
    name.press("Enter")
    expect(page.locator("[data-group]")).to_have_count(1)
    expect(page.locator("[data-between]").first).to_be_visible()
    page.get_by_label("pinned alone").check()
    expect(page.locator(".sl-node")).to_have_count(2)
    expect(page.locator(".sl-node-group")).to_have_count(1)
    page.locator(".sl-graph").screenshot(path=ARTIFACTS / "circuit_pinned.png")
    page.get_by_label("pinned alone").uncheck()

    # a latent of the Lab: its card here, and in the card view beside it
    latent = page.locator('.sl-node-latent[aria-label*="of 2 resid_post"]').first
    number = latent.get_attribute("aria-label").split()[1]
    latent.click()
    expect(page.locator(f'.sl-card[data-latent="{number}"]')).to_have_count(2)
    expect(page.locator(".sl-graph-about .sl-graph-list li").first).to_be_visible()
    assert violations(page, ".sl-root:has(.sl-graph)") == []
    assert page.evaluate("window.hacked") is None
    with page.expect_download() as download:
        page.get_by_role("button", name="circuit-tracer JSON").click()
    saved = jupyter.folder / "saved.json"
    download.value.save_as(saved)
    made = read_graph(saved)
    assert len(made.qparams["pinnedIds"]) == 3
    assert [len(group) for group in made.qparams["supernodes"]] == [3]
    page.locator(".sl-root").first.screenshot(path=ARTIFACTS / "circuit_view.png")
    assert own_errors(page) == []


def test_a_page_prunes_without_a_kernel(page, jupyter, circuit):
    page.goto((jupyter.folder / "circuit.html").as_uri())
    page.wait_for_selector(".sl-node")
    pruned_as_in_python(page, json.loads((jupyter.folder / "sizes.json").read_text()))
    prune(page, "node", 0.8)
    latent = page.locator('.sl-node-latent[aria-label*="of 2 resid_post"]').first
    latent.click()
    page.wait_for_selector(".sl-card")
    latent.press("p")
    expect(page.locator(".sl-node-pinned")).to_have_count(1)
    with page.expect_download() as download:
        page.get_by_role("button", name="circuit-tracer JSON").click()
    assert len(json.loads(download.value.path().read_text())["qParams"]["pinnedIds"]) == 1
    fits_in_both_themes(page, "circuit_page")
    assert page.errors == []
    assert page.evaluate("window.hacked") is None
