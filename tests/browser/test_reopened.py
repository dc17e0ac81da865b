"""A notebook whose kernel is gone: each view shows its form in HTML, wherever the notebook is opened."""

from __future__ import annotations

import nbformat
import pytest
from nbconvert import HTMLExporter
from real_lab import open_notebook

# of the form alone: cards have tables of their own
FORMS = ".jp-RenderedHTML mark, .jp-RenderedHTML td"


def seen(page) -> None:
    """The forms of the views, and nothing else in their places."""
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


def test_while_the_kernel_lives_nothing_is_shown_twice(views):
    assert views.locator(".sl-root").count() == 5
    assert views.locator(FORMS).count() == 0


@pytest.mark.parametrize("trusted", [True, False])
def test_a_reopened_notebook_shows_its_views(page, jupyter, views_notebook, trusted):
    views_notebook.opened()
    name = "ran.ipynb"
    if not trusted:  # of somebody else: no signature of this machine fits it
        notebook = nbformat.read(jupyter.folder / name, as_version=4)
        notebook.cells[0].source += "  # of somebody else"
        name = "theirs.ipynb"
        nbformat.write(notebook, jupyter.folder / name)
    page.set_viewport_size({"width": 1400, "height": 3000})
    open_notebook(page, jupyter, name)
    seen(page)
    jupyter.kill_kernel(name)


def test_a_converted_notebook_shows_its_views_without_scripts(browser, jupyter, views_notebook, tmp_path):
    views_notebook.opened()
    text, _ = HTMLExporter().from_filename(str(jupyter.folder / "ran.ipynb"))
    (tmp_path / "ran.html").write_text(text)
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto((tmp_path / "ran.html").as_uri())
    seen(page)
    context.close()
