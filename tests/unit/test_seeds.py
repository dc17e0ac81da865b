"""Seeds are mixed in one place, always to the same values."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import saelab
from saelab.seeds import mixed


def test_seeds_are_what_they_always_were():
    """A run that was stopped goes on in the order that it began with."""
    assert [mixed(0), mixed(1), mixed(7)] == [5956011, 2177342782474378688, 6018027440430138942]
    assert [mixed(0, 0), mixed(1, 0), mixed(0, 1), mixed(7, 3)] == [
        5956011,
        2660391772,
        2252778518,
        25327473859,
    ]
    assert mixed(np.int64(7)) == mixed(7)
    assert mixed(np.int64(2**62), np.int64(3)) == mixed(2**62, 3)


def test_seeds_are_mixed_in_one_place():
    root = Path(saelab.__file__).parent
    constants = re.compile("0x(9E3779B|85EBCA6B|5AE1AB|BF58476D)", re.IGNORECASE)
    assert [path.name for path in root.rglob("*.py") if constants.search(path.read_text())] == ["seeds.py"]
