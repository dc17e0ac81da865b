"""What many cards leave behind in a browser's memory."""

from __future__ import annotations

import numpy as np
import pytest
from shown import card

from saelab.analysis.results import LatentTable
from saelab.widgets import FeaturesView

BARS = {"bytes": 50e3, "nodes": 10, "listeners": 2.5}
"""What a card may leave behind."""
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


def held(page, session, looks: int, enough=lambda least: False) -> dict[str, float]:
    """Bytes of scripts' objects, of elements and of arrays; elements, and listeners: the least that is left
    while the page rests, for much is let go only after what was asked ahead has come and was drawn. It is
    looked at so often, or until it is enough."""
    sizes = ("usedSize", "embedderHeapUsedSize", "backingStorageSize")
    seen = []
    for _ in range(looks):
        page.wait_for_timeout(250)
        session.send("HeapProfiler.collectGarbage")
        heap = session.send("Runtime.getHeapUsage")
        counts = session.send("Memory.getDOMCounters")
        bytes_held = sum(heap.get(name, 0) for name in sizes)
        seen.append((bytes_held, counts["nodes"], counts["jsEventListeners"]))
        least = dict(zip(BARS, map(min, zip(*seen, strict=True)), strict=True))
        if enough(least):
            break
    return least


def leaves_nothing(page, changes: int) -> None:
    """A page holds hardly more after so many cards, once as many were shown as warm a view up."""
    session = page.context.new_cdp_session(page)
    page.locator(".sl-list").first.focus()
    page.evaluate(WALK, 20)
    before = held(page, session, 6)
    page.evaluate(WALK, changes)
    bars = {name: before[name] + changes * bar for name, bar in BARS.items()}
    after = held(page, session, 12, lambda least: all(least[name] < bar for name, bar in bars.items()))
    assert after["bytes"] < bars["bytes"]
    assert after["nodes"] < bars["nodes"]
    assert after["listeners"] < bars["listeners"]
    session.detach()


def test_cards_of_a_page_leave_nothing_behind(exported, page):
    page.goto(exported.as_uri())
    page.wait_for_selector(".sl-row")
    page.locator(".sl-row").first.click()
    leaves_nothing(page, 200)
    assert page.errors == []


def test_cards_of_a_notebook_leave_nothing_behind(views):
    views.locator(".sl-row").first.click()
    leaves_nothing(views, 100)
    assert views.errors == []
