"""A real JupyterLab and a real browser. Screenshots go to test-artifacts/, outside of git."""

from __future__ import annotations

import re
from pathlib import Path

import kernels
import pytest
from axe import violations
from real_lab import CHROMIUM, FLAGS, open_notebook, run_all, running_lab, save, write_notebook

ROOT = Path(__file__).parents[2]
ARTIFACTS = ROOT / "test-artifacts"
# of the server and the lab themselves, offline; none of these is ours
FOREIGN = re.compile(
    r"favicon|404 \(Not Found\)|api/(contents|kernels|sessions)|WebSocket|Failed to load resource"
    # the last is what the lab says of a kernel that is busy with its first cells
    r"|restore the debugger state|create_subshell_request"
)
VIEWS = """
import os, pathlib
import saelab
pathlib.Path("pid").write_text(str(os.getpid()))
lab = saelab.Lab.embedded()
lab.tokens("Tina gave the basket to Hugo.\\n<img src=x onerror='window.hacked=1'>", with_card=True)
---
lab.features()
---
lab.feature(3, follow=True)
---
lab.feature(7)
---
lab.densities()
---
"the last"
"""


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs chromium; `make test` says how to install it")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)  # as long as every other wait
    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield instance
        instance.close()


@pytest.fixture
def page(browser, request):
    """A page that remembers its console errors in `page.errors`; a screenshot is kept when the test ends."""
    page = watched(browser, height=1000)
    yield page
    keep(page, request)
    page.context.close()


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory):
    """JupyterLab over an empty folder."""
    if CHROMIUM is None:
        pytest.skip("needs chromium; `make test` says how to install it")
    kernels.offered()
    with running_lab(tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("home")) as server:
        yield server


class ViewsNotebook:
    """A notebook of linked views, which is opened and run once for the tests that touch them: they find it
    as the one before left it. `ran.ipynb` is what was saved when it had just run."""

    def __init__(self, browser, jupyter) -> None:
        self.browser, self.jupyter, self.page = browser, jupyter, None
        self.spent = False
        """Whether it is of no more use, and the next test opens it anew."""

    def opened(self):
        if self.page is None:
            write_notebook(self.jupyter.folder / "views.ipynb", VIEWS.split("---"))
            self.page = watched(self.browser, height=3000)
            open_notebook(self.page, self.jupyter, "views.ipynb")
            run_all(self.page, 120_000)
            for shown in (".sl-row", ".sl-text .sl-token", '.sl-card[data-latent="3"]'):
                self.page.wait_for_selector(shown)
            self.page.wait_for_function("() => document.querySelectorAll('.sl-root').length === 5")
            save(self.page, self.jupyter.folder / "views.ipynb")
            text = (self.jupyter.folder / "views.ipynb").read_text()
            (self.jupyter.folder / "ran.ipynb").write_text(text)
        return self.page

    def close(self) -> None:
        if self.page is not None:
            self.page.context.close()
            self.jupyter.kill_kernel("views.ipynb")
        self.page, self.spent = None, False


@pytest.fixture(scope="session")
def views_notebook(browser, jupyter):
    notebook = ViewsNotebook(browser, jupyter)
    yield notebook
    notebook.close()


@pytest.fixture
def views(views_notebook, request):
    """The page of that notebook."""
    page = views_notebook.opened()
    page.errors.clear()
    yield page
    keep(page, request)
    if views_notebook.spent:
        views_notebook.close()


def watched(browser, height: int):
    """A page in a context of its own. Views wait ten times as impatiently for a kernel where
    `window.hurry` is set."""
    page = browser.new_context(viewport={"width": 1400, "height": height}).new_page()
    page.add_init_script(
        "const real = window.setInterval; window.setInterval = (call, time, ...rest) =>"
        " real(call, window.hurry && time === 500 ? 50 : time, ...rest);"
    )
    page.errors = []
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: page.errors.append(str(e)))
    return page


def keep(page, request) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{request.node.name}.png")


def own_errors(page) -> list[str]:
    """Those on its console that JupyterLab does not make by itself."""
    return [e for e in page.errors if not FOREIGN.search(e)]


def fits_in_both_themes(page, name: str) -> None:
    """A page is no wider than its window, wide and narrow, and nothing bars anybody from it."""
    ARTIFACTS.mkdir(exist_ok=True)
    for width, scheme in ((1400, "light"), (600, "dark")):
        page.set_viewport_size({"width": width, "height": 1200})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert violations(page) == []
        page.screenshot(path=ARTIFACTS / f"{name}_{scheme}.png", full_page=True)
