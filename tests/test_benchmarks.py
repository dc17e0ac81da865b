"""The benchmark that reaches behind the public functions still runs; the others call what the tests call."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_a_store_at_scale_is_drawn_merged_and_asked(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("store_scale", BENCHMARKS / "store_scale.py")
    store_scale = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(store_scale)
    monkeypatch.setattr(importlib.import_module("saelab.harvesting.index"), "PART_ROWS", 500)
    monkeypatch.setattr(store_scale, "BATCH", 500)
    monkeypatch.setattr(store_scale, "ASKED", 10)
    figures = store_scale.measure(argparse.Namespace(rows=1_000, d_sae=256, l0=8, part_rows=None), tmp_path)
    assert figures["rows"] == 1_000
    assert figures["parts"] == 2
    assert 5_000 < figures["codes"] <= 8_000
    assert all(value > 0 for value in figures.values())
