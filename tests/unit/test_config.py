from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelab.config import from_dict, to_dict
from saelab.types import ConfigError, HookPoint


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
