"""The workbench in Notebook 7 and in marimo: browser, map and card, linked, and read in Python."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from axe import violations
from conftest import ARTIFACTS, watched
from playwright.sync_api import expect
from real_lab import run_all, write_notebook

CELLS = """
import saelab
from IPython.display import Markdown
display(Markdown("## Latents"))  # the host's own heading is of the first level
lab = saelab.Lab.embedded()
browser = lab.features()
browser
---
lab.map()
---
lab.feature()
"""
MARIMO = """
import marimo

app = marimo.App()


@app.cell
def _():
    import marimo as mo
    import saelab

    lab = saelab.Lab.embedded()
    browser = mo.ui.anywidget(lab.features())
    browser
    return browser, lab, mo


@app.cell
def _(lab):
    lab.map()
    return


@app.cell
def _(lab):
    lab.feature()
    return


@app.cell
def _(browser, lab, mo):
    mo.md(f"Python: {browser.value['latent']} {lab.selection.latent}")
    return


if __name__ == "__main__":
    app.run()
"""


def chosen_here(page) -> str:
    """The views are there; a latent is chosen in the browser, and the others follow."""
    expect(page.locator(".sl-cloud-dots")).to_be_visible(timeout=90_000)
    row = page.locator(".sl-browser .sl-row").nth(4)
    row.click(timeout=90_000)
    latent = row.get_attribute("data-latent")
    expect(page.locator(f'.sl-card[data-latent="{latent}"]')).to_have_count(2)
    expect(page.locator(".sl-map-about h3")).to_contain_text(f"#{latent} ")
    return latent


@pytest.mark.slow
def test_notebook_7(page, jupyter):
    write_notebook(jupyter.folder / "seven.ipynb", [*CELLS.split("---"), "print('Python:', browser.latent)"])
    page.set_viewport_size({"width": 1400, "height": 3200})
    page.goto(f"{jupyter.url}/notebooks/seven.ipynb")
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=90_000)
    run_all(page, 120_000)
    page.errors.clear()  # of the server itself, which is offline
    latent = chosen_here(page)
    page.locator(".jp-CodeCell").nth(3).click()
    page.keyboard.press("Control+Enter")
    expect(page.locator(".jp-OutputArea-output").last).to_have_text(f"Python: {latent}\n")
    assert violations(page, ".sl-root") == []
    assert page.errors == []
    page.screenshot(path=ARTIFACTS / "notebook-7.png")
    jupyter.kill_kernel("seven.ipynb")


@contextmanager
def running_marimo(folder, home):
    """marimo over an app, dark, on a free port; its address."""
    (folder / "app.py").write_text(MARIMO)
    settings = home / "marimo"
    settings.mkdir(parents=True)
    (settings / "marimo.toml").write_text('[display]\ntheme = "dark"\n')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "marimo",
        "-y",
        "run",
        "app.py",
        "--headless",
        "--no-token",
        f"--port={port}",
    ]
    environment = os.environ | {"XDG_CONFIG_HOME": str(home), "MARIMO_SKIP_UPDATE_CHECK": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise RuntimeError((folder / "log").read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_marimo(browser, tmp_path):
    page = watched(browser, height=2600)
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    (tmp_path / "app").mkdir()
    with running_marimo(tmp_path / "app", tmp_path / "home") as url:
        page.goto(url)
        latent = chosen_here(page)
        # reactive: what was chosen ran the cell that reads it
        expect(page.get_by_text(f"Python: {latent} {latent}")).to_be_visible()
        # keys and focus work within a shadow root
        page.locator(".sl-browser .sl-list").focus()
        page.keyboard.press("ArrowDown")
        below = page.locator(".sl-browser .sl-row.sl-chosen").get_attribute("data-latent")
        expect(page.locator(f'.sl-card[data-latent="{below}"]')).to_have_count(2)
        dark = "e => getComputedStyle(e).backgroundColor"
        assert set(page.locator(".sl-root").evaluate_all(f"all => all.map({dark})")) == {"rgb(17, 17, 17)"}
        page.screenshot(path=ARTIFACTS / "marimo.png")
        assert violations(page, "marimo-anywidget") == []
        assert page.errors == []
        assert [each for each in requests if not each.startswith((url, "data:", "blob:"))] == []
    page.context.close()
