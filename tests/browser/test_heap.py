"""What 200 cards leave behind in a browser's memory."""

from __future__ import annotations

import numpy as np
import pytest
from shown import card

from saelab.analysis.results import LatentTable
from saelab.widgets import FeaturesView

CHANGES = 200
BAR = 10e6
"""Bytes by which the heap may grow."""
WALK = """
async (n) => {
  const list = document.querySelector('.sl-list');
  for (let i = 0; i < n; i++) {
    list.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowDown', bubbles: true, cancelable: true}));
    const latent = document.querySelector('.sl-row.sl-chosen').dataset.latent;
    const give_up = performance.now() + 20000;
    while (document.querySelector('.sl-browser .sl-card')?.dataset.latent !== latent) {
      if (performance.now() > give_up) throw new Error(`no card of ${latent}`);
      await new Promise((done) => setTimeout(done, 4));
    }
  }
}
"""
N = 600


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    density = np.linspace(0.5, 0.01, N).astype(np.float32)
    count = (density * 9_999).astype(np.int64)
    table = LatentTable(count, density, density, density, density * 2, tuple(f"name{j}" for j in range(N)))
    return FeaturesView(table, questions={"card": card}).export(tmp_path_factory.mktemp("page") / "page.html")


def held(page, session) -> dict[str, float]:
    """Bytes of scripts' objects, of elements and of arrays; elements, and listeners: the least that is left
    while the page rests, for much is let go only after what was asked ahead has come and was drawn."""
    sizes = ("usedSize", "embedderHeapUsedSize", "backingStorageSize")
    seen = []
    for _ in range(12):
        page.wait_for_timeout(250)
        session.send("HeapProfiler.collectGarbage")
        heap = session.send("Runtime.getHeapUsage")
        counts = session.send("Memory.getDOMCounters")
        bytes_held = sum(heap.get(name, 0) for name in sizes)
        seen.append((bytes_held, counts["nodes"], counts["jsEventListeners"]))
    return dict(zip(("bytes", "nodes", "listeners"), map(min, zip(*seen, strict=True)), strict=True))


def walked(page) -> dict[str, float]:
    """How much more is held after CHANGES, once as many cards were shown as warm a view up."""
    session = page.context.new_cdp_session(page)
    page.locator(".sl-list").first.focus()
    page.evaluate(WALK, 20)
    before = held(page, session)
    page.evaluate(WALK, CHANGES)
    after = held(page, session)
    session.detach()
    return {name: after[name] - before[name] for name in after}


def leaves_nothing(page) -> None:
    grown = walked(page)
    assert grown["bytes"] < BAR
    assert grown["nodes"] < 2_000
    assert grown["listeners"] < 500


def test_cards_of_a_page_leave_nothing_behind(exported, page):
    page.goto(exported.as_uri())
    page.wait_for_selector(".sl-row")
    page.locator(".sl-row").first.click()
    leaves_nothing(page)
    assert page.errors == []


def test_cards_of_a_notebook_leave_nothing_behind(views):
    views.locator(".sl-row").first.click()
    leaves_nothing(views)
    assert views.errors == []
