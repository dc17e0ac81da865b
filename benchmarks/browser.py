"""What a user waits for in a real JupyterLab: the browser over 1,024, 2,048 and 131,072 latents, and a card.

python benchmarks/browser.py [--clicks 15] [--widths 131072] [--record]

For each width an untrained SAE on the embedded model is indexed, and a notebook shows `lab.features()`.
Clocks run in the page: `first paint` from the moment JupyterLab adds the cell's output to the first drawn
row, `card` from a click on a row whose card was not fetched ahead to the drawn card, `next` the same for the
row below the chosen one (its card is fetched ahead), `sort` a click on the head of a column, the first time
among them, `filter` from an expression of SQL to the shorter list. Bytes are those of the answer on the web
socket.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from results import record

import saelab

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from real_lab import CHROMIUM, FLAGS, open_notebook, run_all, write_notebook
from real_lab import running_lab as real_lab

HOOK = "blocks.2.hook_resid_post"
CELL = """
import saelab
subject = saelab.load_subject(str(saelab.embedded.model_folder()))
lab = saelab.Lab(subject, saelab.SAE.load("sae-{d_sae}"), saelab.FeatureStore.open("store-{d_sae}"))
first = lab.card(0)
---
lab.features()
"""
WATCH = """
() => {
  window.clocks = {};
  new MutationObserver(() => {
    const now = performance.now();
    if (document.querySelector('.jp-OutputArea-child')) window.clocks.output ??= now;
    if (document.querySelector('.sl-row')) window.clocks.row ??= now;
    const card = document.querySelector('.sl-browser .sl-card');
    if (card && window.wanted === card.dataset.latent) { window.clocks.card = now; window.wanted = null; }
  }).observe(document.body, {childList: true, subtree: true});
}
"""
CLICK = """
(i) => new Promise((done) => {
  const row = document.querySelectorAll('.sl-row')[i];
  window.wanted = row.dataset.latent;
  const start = performance.now();
  row.click();
  const timer = setInterval(() => {
    if (window.wanted === null) { clearInterval(timer); done(window.clocks.card - start); }
  }, 2);
})
"""
SORT = """
(key) => {
  const start = performance.now();
  document.querySelector(`.sl-head[data-sort="${key}"]`).click();
  void document.querySelector('.sl-list').offsetHeight;
  return performance.now() - start;
}
"""
FILTER = """
(where) => new Promise((done) => {
  const input = document.querySelector('.sl-where');
  const count = document.querySelector('.sl-count');
  const before = count.textContent;
  input.value = where;
  const start = performance.now();
  input.dispatchEvent(new Event('change'));
  const timer = setInterval(() => {
    if (count.textContent !== before) { clearInterval(timer); done(performance.now() - start); }
  }, 2);
})
"""
FILTERS = ["density > 0", "count > 2 and max > mean", "len(top_names) > 1 and density < 0.5"]


def main() -> None:
    parser = argparse.ArgumentParser(description="What a user waits for in JupyterLab")
    parser.add_argument("--record", action="store_true", help="keep the figures")
    parser.add_argument("--clicks", type=int, default=15)
    parser.add_argument("--widths", type=int, nargs="+", default=[1_024, 2_048, 131_072])
    options = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("needs chromium: tools/system_packages.sh installs it")
    results = {}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as home:
        for d_sae in options.widths:
            prepare(Path(folder), d_sae)
        with (
            real_lab(Path(folder), Path(home)) as jupyter,
            sync_playwright() as playwright,
            playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser,
        ):
            for d_sae in options.widths:
                page = browser.new_context(viewport={"width": 1400, "height": 1400}).new_page()
                results[d_sae] = measure(page, jupyter, d_sae, options.clicks)
                print(f"d_sae {d_sae:,}: " + ", ".join(f"{k} {v:,.0f}" for k, v in results[d_sae].items()))
                page.context.close()
                jupyter.kill_kernel(f"{d_sae}.ipynb")
    if options.record:
        rows = [
            {"latents": d_sae, **{k: round(v) for k, v in each.items()}} for d_sae, each in results.items()
        ]
        record("browser", rows, clicks=options.clicks)


def prepare(folder: Path, d_sae: int) -> None:
    """An untrained SAE, its index over 30,000 tokens, and a notebook."""
    subject = saelab.load_subject(str(saelab.embedded.model_folder()))
    config = saelab.recipe("topk", d_in=subject.width(HOOK), d_sae=d_sae, k=16, hook=HOOK)
    sae = saelab.SAE.create(config, seed=0)
    sae.save(folder / f"sae-{d_sae}")
    corpus = saelab.corpora.world(seed=5, n_documents=2_000)
    saelab.index(subject, sae, corpus, folder / f"store-{d_sae}", max_rows=30_000, progress=False)
    write_notebook(folder / f"{d_sae}.ipynb", CELL.format(d_sae=d_sae).split("---"))


def measure(page, jupyter, d_sae: int, clicks: int) -> dict[str, float]:
    """Milliseconds and bytes; of clicks the median and the worst."""
    sizes: list[int] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda data: sizes.append(len(data))))
    open_notebook(page, jupyter, f"{d_sae}.ipynb")
    page.evaluate(WATCH)
    run_all(page, 120_000)
    page.wait_for_selector(".sl-row")
    clocks = page.evaluate("() => window.clocks")
    page.wait_for_timeout(1_000)
    lone, ahead, on_wire = [], [], []
    for i in range(clicks):
        # another order shows other latents, none of them fetched yet
        page.evaluate(SORT, ["name", "density", "latent"][i % 3])
        page.locator(".sl-list").evaluate("(e, y) => { e.scrollTop = y; }", 28 * 10 * (i + 1))
        page.wait_for_timeout(300)
        sizes.clear()
        lone.append(page.evaluate(CLICK, 8))
        page.wait_for_timeout(1_000)
        on_wire.append(max(sizes))
        ahead.append(page.evaluate(CLICK, 9))
        page.wait_for_timeout(300)
    page.wait_for_timeout(500)
    sorts = [page.evaluate(SORT, key) for key in ("name", "density", "latent") * 3]
    filters = [page.evaluate(FILTER, where) for where in FILTERS * 2]
    return {
        "first paint ms": clocks["row"] - clocks["output"],
        "card ms (median)": statistics.median(lone),
        "card ms (worst)": max(lone),
        "next ms (median)": statistics.median(ahead),
        "card bytes (worst)": max(on_wire),
        "sort ms (median)": statistics.median(sorts),
        "sort ms (worst)": max(sorts),
        "filter ms (median)": statistics.median(filters),
        "filter ms (worst)": max(filters),
    }


if __name__ == "__main__":
    main()
