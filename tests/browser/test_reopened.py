"""A notebook whose kernel is gone: each view shows its form in HTML, wherever the notebook is opened."""

from __future__ import annotations

import nbformat
import pytest
from nbconvert import HTMLExporter
from real_lab import open_notebook, run_all, write_notebook

CELLS = """
import saelab
lab = saelab.Lab.embedded()
lab.show("Tina gave the basket to Hugo.\\n<img src=x onerror='window.hacked=1'>")
---
lab.features()
---
lab.feature(3)
---
lab.densities()
"""
FORMS = ".jp-OutputArea-output mark, .jp-OutputArea-output td"


@pytest.fixture(scope="module")
def ran(jupyter, browser):
    """A notebook of the four views that was run, saved, and lost its kernel; gives its name."""
    write_notebook(jupyter.folder / "ran.ipynb", CELLS.split("---"))
    page = browser.new_page(viewport={"width": 1400, "height": 4000})
    open_notebook(page, jupyter, "ran.ipynb")
    run_all(page, 120_000)
    page.wait_for_selector(".sl-row")
    # while the kernel lives the views are live, and nothing is shown twice
    assert page.locator(".sl-root").count() == 4
    assert page.locator(FORMS).count() == 0
    page.keyboard.press("Control+s")
    page.wait_for_timeout(2_000)
    page.close()
    jupyter.kill_kernels()
    return "ran.ipynb"


def seen(page) -> None:
    """The four forms, and nothing else in their places."""
    page.wait_for_selector("mark")
    page.wait_for_selector("text=1,024 latents, 0 never fire; the most frequent")
    page.wait_for_selector("text=fires on 196 of 42,000 rows")
    page.wait_for_selector("text=log10 of the share of rows")
    text = page.locator("body").inner_text()
    assert "Tina gave the basket" in text
    assert "model not found" not in text
    assert "<img src=x" in text.replace("\n", "")
    colours = page.locator("mark").evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
    assert len(set(colours)) >= 4
    assert "rgba(0, 0, 0, 0)" not in colours
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize("trusted", [True, False])
def test_a_reopened_notebook_shows_its_views(page, jupyter, ran, trusted):
    name = ran
    if not trusted:  # of somebody else: no signature of this machine fits it
        notebook = nbformat.read(jupyter.folder / ran, as_version=4)
        notebook.cells[0].source += "  # of somebody else"
        name = "theirs.ipynb"
        nbformat.write(notebook, jupyter.folder / name)
    page.set_viewport_size({"width": 1400, "height": 3000})
    open_notebook(page, jupyter, name)
    seen(page)
    jupyter.kill_kernels()


def test_a_converted_notebook_shows_its_views_without_scripts(browser, jupyter, ran, tmp_path):
    text, _ = HTMLExporter().from_filename(str(jupyter.folder / ran))
    (tmp_path / "ran.html").write_text(text)
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto((tmp_path / "ran.html").as_uri())
    seen(page)
    context.close()
