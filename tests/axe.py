"""The rules of axe-core, by which anybody can use a page."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AXE = ROOT / "widgets" / "node_modules" / "axe-core" / "axe.min.js"


def violations(page, within: str = ":root") -> list[str]:
    """What axe-core finds wrong with a part of a page: rule, element and why."""
    if not AXE.exists():
        pytest.skip("needs the packages of widgets/: npm ci")
    page.evaluate(AXE.read_text())
    options = {"rules": {"region": {"enabled": within == ":root"}}}  # a notebook's regions are its own
    found = page.evaluate("(o) => axe.run(...o).then((r) => r.violations)", [within, options])
    return [f"{v['id']}: {n['target']} {n['failureSummary']}" for v in found for n in v["nodes"]]
