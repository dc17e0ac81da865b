"""A real JupyterLab and a real browser. Screenshots go to test-artifacts/, outside of git."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_lab import CHROMIUM, FLAGS, running_lab

ROOT = Path(__file__).parents[2]
ARTIFACTS = ROOT / "test-artifacts"


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs chromium; `make test` says how to install it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield instance
        instance.close()


@pytest.fixture
def page(browser, request):
    """A page that remembers its console errors in `page.errors`; a screenshot is kept when the test ends."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.errors = []
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: page.errors.append(str(e)))
    yield page
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{request.node.name}.png")
    context.close()


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory):
    """JupyterLab over an empty folder."""
    if CHROMIUM is None:
        pytest.skip("needs chromium; `make test` says how to install it")
    with running_lab(tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("home")) as server:
        yield server
