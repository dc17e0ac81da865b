"""The views' JavaScript: its form (Biome), its types (tsc) and its own tests (vitest), where node and the
packages can be had.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

WIDGETS = Path(__file__).parents[2] / "widgets"


@pytest.fixture(scope="module")
def npm():
    """Runs an npm command in widgets/, its packages installed."""
    program, node = shutil.which("npm"), shutil.which("node")
    if program is None or node is None:
        pytest.skip("needs node and npm; `make test` says how to install them")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    if int(re.match(r"v(\d+)", version)[1]) < 18:
        pytest.skip(f"needs node 18 or newer, got {version.strip()}")
    # those of an earlier checkout may lack one
    listed = subprocess.run([program, "ls"], cwd=WIDGETS, capture_output=True)
    if listed.returncode:
        done = subprocess.run(
            [program, "ci", "--no-audit", "--no-fund"], cwd=WIDGETS, capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"needs the packages of widgets/; npm could not install them: {done.stderr[-300:]}")

    def run(*words):
        return subprocess.run([program, *words], cwd=WIDGETS, capture_output=True, text=True)

    return run


def test_format_and_lint(npm):
    done = npm("run", "lint", "--", "--colors=off")
    assert done.returncode == 0, done.stdout + done.stderr
    for path in [p for folder in ("shared", "views", "tests") for p in (WIDGETS / folder).iterdir()]:
        # Biome breaks code, but no comments
        assert max(map(len, path.read_text().splitlines())) <= 110, path


def test_types(npm):
    done = npm("run", "check")
    assert done.returncode == 0, done.stdout


def test_vitest(npm, tmp_path):
    # the report is read from a file: what is printed carries colours where CI asks for them
    report = tmp_path / "vitest.json"
    done = npm("test", "--", "--reporter=default", "--reporter=json", f"--outputFile={report}")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(report.read_text())
    assert told["numPassedTests"] == told["numTotalTests"] > 0, done.stdout
