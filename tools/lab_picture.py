"""Takes docs/images/lab.png, the picture in the README, out of a real JupyterLab.

.venv/bin/python tools/lab_picture.py
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from real_lab import CHROMIUM, FLAGS, open_notebook, run_all, running_lab, write_notebook  # noqa: E402

OUT = ROOT / "docs" / "images" / "lab.png"
CELLS = (
    "import saelab\n\nlab = saelab.Lab.embedded()\n"
    'lab.show("When Rosa and Tobin went to the market, Rosa gave the basket to")',
    "lab.features()",
)


def main() -> None:
    with tempfile.TemporaryDirectory() as empty, sync_playwright() as playwright:
        folder, home = Path(empty) / "folder", Path(empty) / "home"
        folder.mkdir()
        home.mkdir()
        write_notebook(folder / "lab.ipynb", CELLS)
        with running_lab(folder, home) as server:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": 1300, "height": 1000})
            open_notebook(page, server, "lab.ipynb")
            run_all(page, 120_000)
            page.wait_for_selector(".sl-row")
            # what a person does: a token, one of its latents; its card and its place in the list follow
            page.locator(".sl-text .sl-token").nth(11).click()
            page.locator(".sl-detail .sl-chip").first.click()
            page.wait_for_selector(".sl-browser .sl-card")
            page.wait_for_timeout(1_500)
            if (news := page.get_by_role("button", name="No", exact=True)).count():
                news.click()
                page.wait_for_timeout(1_000)
            _save(page.screenshot())
            browser.close()


def _save(png: bytes) -> None:
    """Few colours are enough for an interface, and keep the file small."""
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    OUT.parent.mkdir(exist_ok=True)
    picture.save(OUT, optimize=True)
    print(f"{OUT.relative_to(ROOT)}: {picture.width} x {picture.height}, {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
