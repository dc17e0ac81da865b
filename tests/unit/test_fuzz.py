"""Wrong arguments and damaged files, some seconds of them; benchmarks/fuzz.py tries thousands."""

from __future__ import annotations

import fuzzing
import pytest


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return fuzzing.World(tmp_path_factory.mktemp("world") / "w")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Names that are drawn as paths lie in the working folder."""
    monkeypatch.chdir(tmp_path)


def test_every_function_refuses_by_name_what_it_cannot_take(world, tmp_path):
    found = [fuzzing.argument(world, tmp_path / "o", seed) for seed in range(500)]
    assert [fault for fault in found if fault] == []


def test_damaged_files_of_every_kind_are_read_or_refused(world, tmp_path):
    found = [fuzzing.file(world, tmp_path / "o", seed) for seed in range(250)]
    assert [fault for fault in found if fault] == []


def test_the_fuzzer_finds_what_is_wrong(world, tmp_path, monkeypatch):
    """A function that raises something else."""
    monkeypatch.setattr("saelab.load_sae", lambda path: int(path))
    found = [fuzzing.argument(world, tmp_path / "o", seed) for seed in range(300)]
    assert any(fault and "load_sae(path=" in fault for fault in found)
