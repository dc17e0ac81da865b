"""The benchmark that reaches behind the public functions still runs; the others call what the tests call."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ABSENT = "IPython anywidget datasets einops ipywidgets matplotlib plotly ray tomli_w transformer_lens"
"""What a bare machine with a GPU lacks and tools/gpu_bundle.sh does not bring."""
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


def test_what_waits_for_a_gpu_runs_dry_and_without_what_is_not_there(tmp_path):
    blocker = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT.split()!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
    (tmp_path / "sitecustomize.py").write_text(blocker)
    out = tmp_path / "gpu.json"
    call = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--out", out, "--only"]
    call += ["tests", "kernels", "train-small", "memory", "index"]  # a harvest is a part of an index
    said = subprocess.run(
        call,
        cwd=BENCHMARKS.parent,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    rows = json.loads(out.read_text())["rows"]
    parts = {"card", "tests", "kernels", "train-small", "memory", "index"}
    assert {row["part"] for row in rows} == parts
    # peers, where they are installed, need what is hidden here
    own = [row for row in rows if row.get("step", "saelab").startswith(("saelab", "plain"))]
    assert not [row for row in own if "failed" in row]
    assert {row["before"] for row in rows if "before" in row} == {"train-small", "d_sae 64", "index"}
    assert all(row["rows/s"] > 0 for row in own if "step" in row)


def test_a_step_on_several_devices_is_modelled():
    spec = importlib.util.spec_from_file_location("scale_model", BENCHMARKS / "scale.py")
    scale = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scale)
    card = argparse.Namespace(card_gb=80, tflops=400, card_gb_s=2_000, link_gb_s=50)
    alone = scale.step(2_304, 131_072, 64, 8_192, 1, "data", card)
    assert alone["MB sent"] == 0
    assert alone["GB held"] > 32 * 2_304 * 131_072 / 1e9  # docs/scale.md
    data, latents = (scale.step(2_304, 131_072, 64, 8_192, 8, shard, card) for shard in ("data", "latents"))
    assert data["MB sent"] == pytest.approx(
        2 * 7 / 8 * 8 * 2_304 * 131_072 / 1e6
    )  # both gradients, in a ring
    assert data["first"] == "link"
    assert latents["MB sent"] == pytest.approx((2 * 7 / 8 * 4 * 8_192 * 2_304 + 7 * 4 * 8_192 * 64) / 1e6)
    assert scale.step(2_304, 2_097_152, 64, 8_192, 8, "data", card)["first"] == "memory"
    assert scale.step(2_304, 2_097_152, 64, 8_192, 8, "latents", card)["first"] != "memory"
