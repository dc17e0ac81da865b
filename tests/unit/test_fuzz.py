"""Wrong arguments and damaged files, some seconds of them; benchmarks/fuzz.py tries thousands."""

from __future__ import annotations

import shutil

import fuzzed
import fuzzing
import pytest


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return fuzzing.World(tmp_path_factory.mktemp("world") / "w")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Names that are drawn as paths lie in the working folder."""
    monkeypatch.chdir(tmp_path)


def test_every_public_name_is_tried_or_has_a_reason(world, tmp_path):
    tried = {name.split(".", 1)[-1] if name[0].islower() else name for name in world.cases(tmp_path / "o")}
    names = fuzzed.public()
    assert len(names) > 200
    assert [name for name in sorted(names - tried) if fuzzed.untried(name) is None] == []


def test_right_arguments_are_taken(world, tmp_path):
    """So that what is refused is the wrong one."""
    refused = []
    for name in world.cases(tmp_path):
        shutil.rmtree(tmp_path / "o", ignore_errors=True)
        case = world.cases(tmp_path / "o")[name]
        try:
            case.call(**case.given)
        except Exception:
            refused.append(name)
    assert set(refused) == fuzzed.REFUSED


def test_every_function_refuses_by_name_what_it_cannot_take(world, tmp_path):
    found = [fuzzing.argument(world, tmp_path / "o", seed) for seed in range(300)]
    assert [fault for fault in found if fault] == []


def test_damaged_files_of_every_kind_are_read_or_refused(world, tmp_path):
    found = [fuzzing.file(world, tmp_path / "o", seed) for seed in range(150)]
    assert [fault for fault in found if fault] == []


def test_the_fuzzer_finds_what_is_wrong(world, tmp_path, monkeypatch):
    """A function that raises something else."""
    monkeypatch.setattr("saelab.load_sae", lambda path: int(path))
    found = [fuzzing.argument(world, tmp_path / "o", seed, "load_sae") for seed in range(3)]
    assert any(fault and "load_sae(path=" in fault for fault in found)
