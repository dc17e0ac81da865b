from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import saelab
from saelab.config import from_dict, integer, integer_or_none, shard_of, to_dict
from saelab.types import ConfigError, HookPoint, RangeError


@dataclass(frozen=True)
class Inner:
    at: tuple[int, ...] = ()
    ratio: float = 0.5


@dataclass(frozen=True)
class Outer:
    VERSION: ClassVar[int] = 3
    MIGRATIONS: ClassVar[dict[int, Any]] = {
        1: lambda d: {**{k: v for k, v in d.items() if k != "size"}, "width": d["size"]},
        2: lambda d: {**d, "width": d["width"] * 10},
    }

    width: int
    name: str = "x"
    mode: Literal["a", "bold"] = "a"
    hook: HookPoint | None = None
    inner: Inner = Inner()
    options: dict[str, Any] = field(default_factory=dict)


finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
hooks = st.builds(
    HookPoint, st.text(min_size=1), st.sampled_from(["in", "out"]), st.none() | st.integers(1, 99)
)


@given(
    width=st.integers(),
    name=st.text(),
    mode=st.sampled_from(["a", "bold"]),
    hook=st.none() | hooks,
    inner=st.builds(Inner, st.lists(st.integers()).map(tuple), finite),
    options=st.dictionaries(st.text(), plain),
)
def test_what_goes_through_json_comes_back(width, name, mode, hook, inner, options):
    config = Outer(width, name, mode, hook, inner, options)
    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config


def test_older_versions_are_migrated_step_by_step():
    assert from_dict(Outer, {"size": 7}) == Outer(70)
    assert from_dict(Outer, {"version": 2, "width": 7}) == Outer(70)
    assert from_dict(Outer, {"version": 3, "width": 7}) == Outer(7)
    assert to_dict(Outer(7))["version"] == 3


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"version": 3, "widht": 3}, "Did you mean 'width'"),
        ({"version": 3}, "needs the field 'width'"),
        ({"version": 3, "width": "3"}, r"Outer.width must be of type int. Got '3'"),
        ({"version": 3, "width": True}, "must be of type int"),
        ({"version": 3, "width": 1, "mode": "bald"}, "Did you mean 'bold'"),
        ({"version": 3, "width": 1, "inner": {"att": []}}, "Inner has no field 'att'. Did you mean 'at'"),
        ({"version": 3, "width": 1, "inner": {"at": [1, "2"]}}, r"Inner.at\[1\] must be of type int"),
        ({"version": 4, "width": 1}, "newer saelab"),
        ({"version": 0, "width": 1}, "version"),
        ({"version": "3", "width": 1}, "version"),
        ([1], "must be a JSON object"),
        (None, "must be a JSON object"),
    ],
)
def test_anything_else_is_refused_by_name(data, says):
    with pytest.raises(ConfigError, match=says):
        from_dict(Outer, data)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, object(), {"a": [b"x"]}])
def test_values_json_cannot_hold_are_refused(value):
    with pytest.raises(ConfigError, match=r"Outer.options"):
        to_dict(Outer(1, options={"v": value}))


def test_integers_of_numpy_are_integers_and_no_others_are():
    assert type(integer("n", np.uint8(3), 3, 3)) is int
    assert from_dict(Outer, {"version": 3, "width": np.int64(4)}).width == 4
    assert json.dumps(to_dict(Outer(np.int32(4), options={"v": np.float32(0.5)})))
    assert integer_or_none("n", None, 1) is None
    assert shard_of(None) == (0, 1)
    assert shard_of([np.int64(1), 2]) == (1, 2)
    rule = r"^n must be an integer in 3\.\.4\. Got .+\. Pass n=3 or up to 4\.$"
    for value in (True, 3.0, "3", None, np.bool_(True), np.array([3]), 2, 5):
        with pytest.raises(RangeError, match=rule):
            integer("n", value, 3, 4, error=RangeError)
    for value in ((2, 2), (-1, 2), (0, True), (0,), 1, "01", (0.0, 1)):
        with pytest.raises(ConfigError, match=r"^shard must be \(i, n\) with 0 <= i < n\. Got "):
            shard_of(value)


def test_integers_are_checked_in_one_place():
    """By hand, one forgets either that True is an int or that NumPy's are none."""
    signs = (
        r"numbers\.Integral",
        r"isinstance\(\w+, \(int, float\)\)",
        r"not isinstance\(\w+, bool\) [^\n]*[<>]",
    )
    by_hand = re.compile("|".join(signs))
    root = Path(saelab.__file__).parent
    found = [path for path in root.rglob("*.py") if by_hand.search(path.read_text())]
    assert found == [root / "config.py"]
