"""A real JupyterLab over an empty folder, for the browser tests and `benchmarks/browser.py`."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import kernels
import nbformat

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
ERRORS = '[data-mime-type="application/vnd.jupyter.stderr"]'
LOADING = "Loading widget..."
PROMPTS = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent)"


EXTENSION = Path(__file__).parents[1] / "widgets" / "labextension"


@dataclass
class Jupyter:
    """A running server and the folder that it shows."""

    url: str
    folder: Path
    process: subprocess.Popen

    def sessions(self) -> list[dict]:
        """The notebooks that have a kernel."""
        with urllib.request.urlopen(f"{self.url}/api/sessions", timeout=20) as answer:
            return json.load(answer)

    def kill_kernel(self, name: str) -> None:
        """That of a notebook; none where it has none."""
        for session in self.sessions():
            if session["path"] == name:
                self._kill(session["id"])

    def _kill(self, session: str) -> None:
        request = urllib.request.Request(f"{self.url}/api/sessions/{session}", method="DELETE")
        for tries_left in (3, 2, 1, 0):
            try:
                urllib.request.urlopen(request, timeout=20).close()
                return
            except urllib.error.HTTPError:  # of a kernel that is just restarting, the server lost track
                if not tries_left:
                    raise
                time.sleep(2)


@contextmanager
def running_lab(folder: Path, home: Path) -> Iterator[Jupyter]:
    """JupyterLab on a free port, without a token, with the extension that comes with saelab. Settings and its
    log go to `home`.

    Raises RuntimeError where it does not start within two minutes.
    """
    # as a wheel installs it
    shutil.copytree(EXTENSION, home / "data" / "labextensions" / "saelab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "IPYTHONDIR": str(home / "ipython"),
    }
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--ServerApp.disable_check_xsrf=True",
        "--IdentityProvider.token=",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        f"--ServerApp.root_dir={folder}",
    ]
    with (home / "log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        server = Jupyter(f"http://127.0.0.1:{port}", folder, process)
        try:
            for _ in range(1_200):
                try:
                    server.sessions()
                    break
                except OSError:
                    time.sleep(0.1)
            else:
                message = f"JupyterLab did not start:\n{(home / 'log').read_text()}"
                raise RuntimeError(message)
            yield server
        finally:
            process.terminate()
            process.wait(20)


def write_notebook(path: Path, sources: Iterable[str]) -> None:
    """A notebook of these cells of code, which the lab opens without asking for a kernel: a forked one where
    such are offered."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each.strip()) for each in sources])
    notebook.metadata["kernelspec"] = {"name": kernels.name(), "display_name": "Python", "language": "python"}
    nbformat.write(notebook, path)


def open_notebook(page, jupyter: Jupyter, name: str) -> None:
    """Show a notebook, and wait for its cells."""
    page.goto(f"{jupyter.url}/doc/tree/{name}")
    _loaded(page)


def _loaded(page) -> None:
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=90_000)


def save(page, path: Path) -> None:
    """Press Control+s, and wait until the file is written."""
    before, deadline = path.stat().st_mtime_ns, time.monotonic() + 60
    page.keyboard.press("Control+s")
    while path.stat().st_mtime_ns == before:
        if time.monotonic() > deadline:
            message = f"{path.name} was not saved"
            raise TimeoutError(message)
        page.wait_for_timeout(50)


def run_all(page, timeout: float) -> None:
    """Run > Run All Cells, and wait until every code cell has its number, or one ends in an error. A page
    whose widgets load for ever is loaded anew, as a person would."""
    failed = f"[...document.querySelectorAll('{ERRORS}')].some(e => e.textContent.includes('Traceback'))"
    whole = f"{PROMPTS}.length > 0 && {PROMPTS}.every(t => /\\[\\d+\\]/.test(t))"
    begin_all(page)
    page.wait_for_function(f"() => {failed} || {whole}", timeout=timeout)
    if _waits_for_ever(page):
        page.reload()
        _loaded(page)
        begin_all(page)
        page.wait_for_function(f"() => {failed} || {whole}", timeout=timeout)


def _waits_for_ever(page) -> bool:
    """Whether widgets still load a quarter of a minute after the last cell: now and then in the first
    notebook that a lab opens, whose cells are then numbered from 2 on."""
    from playwright.sync_api import TimeoutError

    outputs = "[...document.querySelectorAll('.jp-OutputArea-output')]"
    loading = f"{outputs}.some(e => e.textContent.trim() === {LOADING!r})"
    try:
        page.wait_for_function(f"() => !{loading}", timeout=15_000)
    except TimeoutError:
        return True
    return False


def begin_all(page) -> None:
    """Run > Run All Cells, and wait until the first has its number."""
    from playwright.sync_api import TimeoutError

    for tries_left in (2, 1, 0):
        _ask_to_run(page)
        try:
            page.wait_for_function(f"() => {PROMPTS}.some(p => /\\d/.test(p))", timeout=120_000)
            return
        except TimeoutError:  # the lab changed its kernel after it had sent the cells: nobody works on them
            if not tries_left:
                raise


def _ask_to_run(page) -> None:
    from playwright.sync_api import TimeoutError

    dialog = page.locator(".jp-Dialog button.jp-mod-accept")
    for _ in range(20):
        # the lab asks which kernel is meant where its session is not ready yet
        if dialog.count():
            dialog.first.click()
            page.wait_for_timeout(1_000)
        try:
            page.get_by_role("menuitem", name="Run", exact=True).click(timeout=5_000)
            page.get_by_text("Run All Cells", exact=True).click(timeout=5_000)
        except TimeoutError:
            continue  # it asked just then
        begun = f"{PROMPTS}.some(p => /[*\\d]/.test(p))"
        refused = "document.querySelector('.jp-Dialog button.jp-mod-accept')"
        try:
            page.wait_for_function(f"() => {refused} || {begun}", timeout=5_000)
        except TimeoutError:
            continue
        if not dialog.count():
            break
