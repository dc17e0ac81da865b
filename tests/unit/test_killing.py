"""kill -9 at random times, then the same call: it ends bit-equal to the uninterrupted run."""

from __future__ import annotations

import re

import pytest
from killing import finish, killed_runs

from saelab.stores import lenses


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_ends_bit_equal(tmp_path):
    expected = finish(tmp_path / "whole")
    printed, left = killed_runs(tmp_path / "killed", 3, seed=0)
    assert len(left) == 3
    assert left == sorted(left)
    assert left[0] != "none"
    assert printed == expected
    assert not (tmp_path / "killed" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["stream", "append"])
def test_streamed_training_and_appending_survive_it_too(what, tmp_path):
    expected = finish(tmp_path / "whole", what)
    printed, left = killed_runs(tmp_path / "killed", 2, 0, what)
    assert left
    assert printed == expected
    hidden = [p for p in (tmp_path / "killed").rglob(".*") if not p.name.endswith((".lock", lenses.NAME))]
    kept = [p for p in hidden if re.fullmatch(r"\.names-\w{32}\.npy", p.name)]
    assert hidden == kept
    assert len(kept) <= 1, "names of a store that is no more"
