"""A board in a real JupyterLab: linked views, bars that are dragged, an arrangement that is found again."""

from __future__ import annotations

from axe import violations
from playwright.sync_api import expect
from real_lab import open_notebook, run_all, write_notebook

CELLS = """
import os, tempfile
os.environ["SAELAB_DATA"] = tempfile.mkdtemp(dir=".")
import saelab
lab = saelab.Lab.embedded()
lab.board(lab.features(), lab.tokens("Tina gave the basket to Hugo."), lab.densities())
---
lab.selection.latent = 12
---
lab.board(lab.features(), lab.tokens("Tina gave the basket to Hugo."), lab.densities())
"""


def test_a_board_holds_views(page, jupyter):
    write_notebook(jupyter.folder / "board.ipynb", CELLS.split("---"))
    page.set_viewport_size({"width": 1500, "height": 3000})
    open_notebook(page, jupyter, "board.ipynb")
    run_all(page, 120_000)
    board = page.locator(".sl-board").first
    board.locator(".sl-row").first.wait_for()
    board.locator('.sl-card[data-latent="12"]').wait_for()
    # a click in one view moves the others of the board, and those of another cell
    row = board.locator(".sl-row").nth(2)
    latent = row.get_attribute("data-latent")
    row.click()
    page.wait_for_function(f"document.querySelectorAll('.sl-card[data-latent=\"{latent}\"]').length === 2")
    expect(board.locator(".sl-legend")).to_contain_text(f"#{latent}", use_inner_text=True)
    # a bar is dragged: the width is kept, and a board that is made later begins with it
    bar = board.locator(".sl-board-bar.sl-vertical")
    before = board.locator(".sl-board-column").first.bounding_box()["width"]
    at = bar.bounding_box()
    page.mouse.move(at["x"] + 6, at["y"] + 50)
    page.mouse.down()
    page.mouse.move(at["x"] + 206, at["y"] + 50, steps=4)
    page.mouse.up()
    after = board.locator(".sl-board-column").first.bounding_box()["width"]
    assert abs(after - before - 200) < 3
    board.locator('[aria-label="densities"] [data-move="→"]').click()
    board.locator('[aria-label="sample"] .sl-board-fold').click()
    assert violations(page, ".sl-board") == []
    page.locator(".jp-Notebook .jp-CodeCell").nth(2).locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    again = page.locator(".sl-board").nth(1)
    page.wait_for_function(
        "document.querySelectorAll('.sl-board')[1]?.querySelector('.sl-board-fold[aria-expanded=false]')"
    )
    assert abs(again.locator(".sl-board-column").first.bounding_box()["width"] - after) < 3
    expect(again.locator(".sl-board-column").nth(1).locator(".sl-board-cell")).to_have_count(2)
    jupyter.kill_kernel("board.ipynb")
