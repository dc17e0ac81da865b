"""What a user waits for in a real JupyterLab: a text of 512 tokens, heads on a text, and 50 answers at once.

python benchmarks/views.py [--rounds 5] [--record]

On the embedded lab. `heatmap`: from the moment JupyterLab adds the cell's output to 512 tokens drawn in
the page, of a cell that is run anew each round. `heads`: the same of `lab.heads`, to the grid, the text and
a latent's largest parts; `head`: from a click on a head to its pattern and latents; `token`: from one
on a token to its sources. `50 cards`: a view that asks for 50 cards at once, none
of them asked for before, from the first question to the last answer; `one card`: one alone. The browser
over many latents is timed by benchmarks/browser.py, maps by benchmarks/maps.py, pages beside
SAEDashboard's by benchmarks/dashboard.py.
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
from real_lab import CHROMIUM, FLAGS, open_notebook, run_all, running_lab, write_notebook

TOKENS, AT_ONCE = 512, 50
CELLS = """
import pathlib
import saelab
from saelab.widgets import View
from saelab.widgets.cards import card_answers

lab = saelab.Lab.embedded()
text = "".join(d.text + " " for d in saelab.corpora.world(seed=3, n_documents=60))
ids = lab.subject.tokenizer(text)["input_ids"][: {tokens}]
text = lab.subject.tokenizer.decode(ids, skip_special_tokens=True)
lab.codes(text)


class AskingView(View):
    kind = "asking"
    folder = pathlib.Path(".").resolve()

    def answers(self):
        return card_answers(lab.source().questions)
---
lab.tokens(text)
---
AskingView()
---
lab.heads("When Rosa and Tobin went to the market, Rosa gave the basket to", 109, sae="blocks.2.attn.hook_z")
"""
ASKING = """
import { rendering } from "../shared/view.js";
export const render = rendering((view) => {
  let next = 0;
  window.asked = async (n) => {
    const start = performance.now();
    const latents = Array.from({ length: n }, () => next++);
    const answers = await Promise.all(latents.map((latent) => view.request("card", { latent })));
    return [performance.now() - start, answers.length];
  };
  view.body.append("asking");
});
"""
WATCH = """
([i, selector, n]) => {
  window.clocks = {};
  const cell = document.querySelectorAll('.jp-CodeCell')[i];
  new MutationObserver(() => {
    const now = performance.now();
    if (cell.querySelector('.jp-OutputArea-child')) window.clocks.output ??= now;
    if (cell.querySelectorAll(selector).length >= n) window.clocks.drawn ??= now;
  }).observe(cell, {childList: true, subtree: true});
}
"""
CHOOSE = """
([selector, i, done]) => new Promise((resolve) => {
  const start = performance.now();
  const before = document.querySelector(done)?.innerText;
  const clock = setInterval(() => {
    const now = document.querySelector(done)?.innerText;
    if (now && now !== before) { clearInterval(clock); resolve(performance.now() - start); }
  }, 2);
  document.querySelectorAll(selector)[i].click();
})
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="What a user waits for in JupyterLab")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="keep the figures")
    options = parser.parse_args()
    if CHROMIUM is None:
        sys.exit("needs chromium: tools/system_packages.sh installs it")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as home:
        (Path(folder) / "asking.js").write_text(ASKING)
        write_notebook(Path(folder) / "views.ipynb", CELLS.replace("{tokens}", str(TOKENS)).split("---"))
        with (
            running_lab(Path(folder), Path(home)) as jupyter,
            sync_playwright() as playwright,
            playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser,
        ):
            page = browser.new_page(viewport={"width": 1400, "height": 3000})
            open_notebook(page, jupyter, "views.ipynb")
            run_all(page, 120_000)
            page.wait_for_function("window.asked")
            times = measured(page, options.rounds)
    rows = [
        {"what": what, "median ms": statistics.median(each), "least ms": min(each), "worst ms": max(each)}
        for what, each in times.items()
    ]
    for row in rows:
        print("  ".join(f"{v:,.0f} {k[-2:]}" if isinstance(v, float) else f"{v:12}" for k, v in row.items()))
    if options.record:
        record("views", rows, tokens=TOKENS, rounds=options.rounds)


def measured(page: Any, rounds: int) -> dict[str, list[float]]:
    """Milliseconds, round by round, of each kind."""
    names = ("heatmap", "heads", "head", "token", f"{AT_ONCE} cards", "one card")
    times: dict[str, list[float]] = {name: [] for name in names}
    # signs of an end of text are parts of others
    shown = {"heatmap": (1, ".sl-token", TOKENS - 12), "heads": (3, ".sl-edge", 1)}
    for number in range(rounds):
        for name, (i, selector, n) in shown.items():
            page.locator(".jp-CodeCell").nth(i).locator(".cm-content").click()
            page.evaluate(WATCH, [i, selector, n])
            page.keyboard.press("Control+Enter")
            page.wait_for_function("window.clocks.drawn")
            clocks = page.evaluate("window.clocks")
            times[name].append(clocks["drawn"] - clocks["output"])
            page.wait_for_timeout(500)
        # others in each round, so that none was asked for before
        times["head"].append(page.evaluate(CHOOSE, [".sl-head-cell", 8 + number, ".sl-tops"]))
        at = [".sl-heads .sl-text [data-at]", 3 + number, ".sl-heads-title"]
        times["token"].append(page.evaluate(CHOOSE, at))
        page.wait_for_timeout(300)
        for n, name in ((AT_ONCE, f"{AT_ONCE} cards"), (1, "one card")):
            took, answers = page.evaluate("(n) => window.asked(n)", n)
            assert answers == n
            times[name].append(took)
            page.wait_for_timeout(300)
    return times


if __name__ == "__main__":
    main()
