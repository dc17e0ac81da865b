"""The mutations that show that these tests can fail still break the code that is there."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_mutation_breaks_one_line_and_names_tests_that_exist(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    sys.modules.pop("mutants", None)
    import mutants

    for mutation in mutants.MUTATIONS:
        assert (ROOT / mutation.file).read_text().count(mutation.old) == 1, mutation.name
        assert mutation.new != mutation.old
        for test in mutation.tests.split():
            assert (ROOT / "tests" / f"{test}.py").is_file(), test
