"""The map in a real JupyterLab: by hand and by keys, linked through the kernel, without it, and as a page."""

from __future__ import annotations

from axe import violations
from conftest import ARTIFACTS, fits_in_both_themes
from real_lab import open_notebook, run_all, write_notebook

CELLS = """
import saelab
from saelab import embedded
hook = embedded.STORE_HOOK
def made():
    return saelab.Lab(
        embedded.model_folder(), {hook: embedded.sae_folder(hook)}, {hook: embedded.store_folder(hook)},
        labels={3: "<img src=x onerror='window.hacked=1'>"},
    )
lab = made()
lab.map(colour="density")
---
lab.map()
---
made().map()
---
lab.map().export("map.html").name
"""
PAINTED = """
(i) => {
  const canvas = document.querySelectorAll('.sl-cloud-dots')[i];
  if (!canvas?.width) return false;
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  return pixels.reduce((n, v, at) => n + (at % 4 === 3 && v > 0), 0) > 2000;
}
"""
ABOUT = "(document.querySelectorAll('.sl-map-about')[%d].querySelector('h3')?.textContent ?? '')"


def about(page, view: int) -> str:
    return page.evaluate(ABOUT % view)


def test_a_map_by_hand_and_by_keys(page, jupyter):
    write_notebook(jupyter.folder / "map.ipynb", CELLS.split("---"))
    page.set_viewport_size({"width": 1400, "height": 2800})
    open_notebook(page, jupyter, "map.ipynb")
    run_all(page, 120_000)
    for view in range(3):
        page.wait_for_function(PAINTED, arg=view)
    frames = page.locator(".sl-map-frame")
    box = frames.nth(0).bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.wait_for_function(f"{ABOUT % 0} !== ''")
    page.wait_for_selector(".sl-map-near [data-near]")  # from the kernel
    page.mouse.click(*middle)
    page.wait_for_function(f"{ABOUT % 1} === {ABOUT % 0}")  # through the kernel, in the other view of the Lab
    assert about(page, 2) == ""

    # by keys alone
    first = about(page, 0)
    page.mouse.move(5, 5)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    page.wait_for_function(f"{ABOUT % 0} !== {first!r}")
    page.keyboard.press("Enter")
    page.wait_for_function(f"{ABOUT % 1} === {ABOUT % 0} && {ABOUT % 1} !== {first!r}")
    page.keyboard.press("+")

    # a lasso: what it chooses stands out in both
    page.locator("[aria-label='what dragging does']").nth(0).get_by_text("lasso").click()
    page.mouse.move(*middle)
    page.mouse.down()
    for dx, dy in ((90, 0), (90, 90), (0, 90)):
        page.mouse.move(middle[0] + dx, middle[1] + dy, steps=4)
    page.mouse.up()
    chosen = "document.querySelectorAll('.sl-map-tools [role=status]')[%d].textContent"
    page.wait_for_function(f"/chosen/.test({chosen % 1}) && {chosen % 0} === {chosen % 1}")
    assert "chosen" not in page.evaluate(chosen % 2)

    box = page.locator(".sl-map-tools .sl-box").nth(0)
    box.fill("#3")
    page.wait_for_function(f"/found/.test({chosen % 0})")
    box.press("Enter")
    page.wait_for_function(f"/^#3 <img/.test({ABOUT % 1})")
    expression = page.locator("[aria-label='size']").nth(0)
    expression.select_option("an expression…")
    field = page.locator("[aria-label='size: SQL over latents']").nth(0)
    field.fill("no such column")
    field.press("Enter")
    page.wait_for_function("/one SQL expression/.test(document.querySelector('.sl-banner').textContent)")
    field.fill("max / mean")
    field.press("Enter")
    page.wait_for_function("/Size: max \\/ mean/.test(document.querySelector('.sl-map-legend').textContent)")
    assert violations(page, ".sl-root") == []
    page.locator(".sl-root").nth(0).screenshot(path=ARTIFACTS / "map_view.png")

    jupyter.kill_kernel("map.ipynb")  # what is shown stays, and is moved
    frames.nth(1).focus()
    page.keyboard.press("0")
    before = about(page, 1)
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(f"{ABOUT % 1} !== {before!r}")
    assert page.evaluate(PAINTED, 1)
    assert page.evaluate("window.hacked") is None

    page.goto((jupyter.folder / "map.html").as_uri())
    page.errors.clear()
    page.wait_for_function(PAINTED, arg=0)
    page.locator(".sl-map-frame").hover()
    page.wait_for_selector(".sl-map-near [data-near]")
    page.locator(".sl-box").fill("img")
    page.wait_for_function(f"/1 found/.test({chosen % 0})")
    page.locator("select[aria-label=colour]").select_option("max")
    page.locator(".sl-map-tools .sl-help summary").click()
    fits_in_both_themes(page, "map_page")
    assert page.evaluate("window.hacked") is None
    assert page.errors == []
