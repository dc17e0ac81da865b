"""The notebooks as files; nbmake runs them (see pyproject.toml)."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_is_committed_without_outputs_and_can_fail(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in cells), (
        "clear the outputs before committing"
    )
    tree = ast.parse("\n".join(c.source for c in cells))
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree)), "a notebook ends in assertions"
