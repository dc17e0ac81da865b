"""What benchmarks keep of their figures says how they were made."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "results", raising=False)
    import results

    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    return results


def test_a_record_tells_machine_versions_date_and_command(results, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "benchmarks" / "train.py"), "--rounds", "7", "a b"])
    rows = [{"": "topk", "ms": 310.25, "x product": 1.5}, {"": "relu", "ms": 900.0}]
    path = results.record("train", rows, shape="512,8192", versions={"sae-lens": "6.54.12"})
    kept = json.loads(path.read_text())
    assert path == tmp_path / "results" / "train.json"
    assert kept["rows"] == rows
    assert kept["shape"] == "512,8192"
    assert kept["command"] == "python benchmarks/train.py --rounds 7 'a b'"
    assert {"processor", "cores"} <= set(kept["machine"])
    assert kept["versions"]["sae-lens"] == "6.54.12"
    assert {"saelab", "torch", "numpy", "python"} <= set(kept["versions"])
    assert len(kept["date"]) == len("2026-01-01T00:00:00+00:00")
    lines = results.table(kept).splitlines()
    assert lines[-4:] == [
        "|  | ms | x product |",
        "|---|---:|---:|",
        "| topk | 310.2 | 1.5 |",
        "| relu | 900 |  |",
    ]


def test_kept_figures_are_whole(results):
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        kept = json.loads(path.read_text())
        assert kept["name"] == path.stem
        assert {"date", "command", "commit", "machine", "versions", "rows"} <= set(kept), path
        assert results.table(kept)
