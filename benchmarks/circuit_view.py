"""How long an attribution graph of 300 nodes and 3,000 edges takes to be painted, pruned and lit.

python benchmarks/circuit_view.py [--rounds 9] [--record]

Of an exported page in chromium, without a kernel. `first paint`: from the moment the view begins, its answer
still packed, to a frame that shows all nodes and edges; `prune`: from a slider that moves between a pruned
graph and the whole one to that frame; `light`: from a node that is pointed at to a frame with its edges lit.
A frame counts when the next one begins. `first paint, processor`: what the page's main thread computed until
then, from the opening of the page on, whoever else used the processor.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from results import record

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from drawn_graphs import planted_graph
from real_lab import CHROMIUM, FLAGS

from saelab.widgets import CircuitView

SHAPE = {"tokens": 12, "each": 9, "dense": 0.15}
STARTED = """
new MutationObserver((_, self) => {
  if (!document.querySelector(".sl-body")) return;
  window.began = performance.now();
  self.disconnect();
}).observe(document, {childList: true, subtree: true});
new MutationObserver((_, self) => {
  if (!document.querySelector(".sl-node")) return;
  self.disconnect();
  requestAnimationFrame(() => requestAnimationFrame(() => { window.painted = performance.now(); }));
}).observe(document, {childList: true, subtree: true});
"""
PAINTED = """
([selector, event, value]) => new Promise((done) => {
  const element = document.querySelector(selector);
  const start = performance.now();
  if (value !== null) element.value = value;
  element.dispatchEvent(new PointerEvent(event, {bubbles: true}));
  // what an event asks for is drawn in the next frame, which is over when the one after it begins
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
})
"""
RANGE, NODE = "input[data-set=node]", ".sl-node-latent"


def main() -> None:
    parser = argparse.ArgumentParser(description="What a user waits for in the circuit view")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--record", action="store_true", help="keep the figures")
    options = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("needs chromium: tools/system_packages.sh installs it")
    graph = planted_graph(**SHAPE)
    whole = graph.prune(1.0, 1.0)
    nodes, edges = len(whole.nodes), int((whole.adjacency != 0).sum())
    times: dict[str, list[float]] = {
        "first paint": [], "first paint, processor": [], "prune": [], "light": []
    }  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as folder,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser,
    ):
        path = CircuitView(graph, node=1.0, edge=1.0).export(Path(folder) / "graph.html")
        for _ in range(options.rounds):
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.add_init_script(STARTED)
            # of the page's main thread alone, whoever else uses the processor
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            page.goto(path.as_uri())
            page.wait_for_function("window.painted")
            metrics = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
            times["first paint, processor"].append(1000 * metrics["TaskDuration"])
            assert page.locator(NODE).count() > 100
            said = page.locator(".sl-graph [role=status]").inner_text()
            assert said.startswith(f"{nodes} of") and f"{edges:,} of" in said, said  # noqa: PT018
            times["first paint"].append(page.evaluate("window.painted - window.began"))
            page.evaluate(PAINTED, [RANGE, "input", "0.5"])
            times["prune"].append(page.evaluate(PAINTED, [RANGE, "input", "1"]))
            times["light"].append(page.evaluate(PAINTED, [NODE, "pointerenter", None]))
            page.close()
    rows: list[dict[str, Any]] = [
        {"what": what, "median ms": statistics.median(each), "least ms": min(each), "worst ms": max(each)}
        for what, each in times.items()
    ]
    for row in rows:
        print("  ".join(f"{v:,.0f} {k[-2:]}" if isinstance(v, float) else f"{v:24}" for k, v in row.items()))
    if options.record:
        record("circuit-view", rows, nodes=nodes, edges=edges, rounds=options.rounds)


if __name__ == "__main__":
    main()
