"""Layouts: how the positions of documents lie."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelab.errors import ConfigError, RangeError, ShapeError
from saelab.layout import LINE, Layout, Segment

KNOWN = [
    "line",
    "list",
    "line 3",
    "grid 2x5",
    "extra 1, grid 3x4",
    "line 5, grid 2x2, line",
    "extra 2, list 4",
]


def segments():
    grid = st.tuples(st.integers(1, 9), st.integers(1, 9)).map(lambda s: Segment("grid", s[0] * s[1], s[1]))
    plain = st.tuples(st.sampled_from(["line", "list", "extra"]), st.integers(1, 30)).map(
        lambda s: Segment(s[0], s[1])
    )
    return st.lists(grid | plain, min_size=1, max_size=5)


@pytest.mark.parametrize("text", KNOWN)
def test_written_and_read_again(text):
    assert str(Layout.parse(text)) == text


@given(segments(), st.data())
def test_parts_are_the_segments_that_positions_lie_in(parts, data):
    layout = Layout(tuple(parts))
    # beyond the layout, as where a text goes on, positions are a line
    start = data.draw(st.integers(0, layout.size + 3))
    n = data.draw(st.integers(0, layout.size + 5 - start))
    found = layout.parts(start, n)
    assert sum(part.n for part in found) == n
    told = [(part.kind, part.width, part.at + i) for part in found for i in range(part.n)]
    places = [layout.place(i) if i < layout.size else None for i in range(start, start + n)]
    widths = [0 if place is None else parts[place.segment].width for place in places]
    expected = [
        ("line", 0, at - layout.size) if place is None else (place.kind, width, place.at)
        for at, (place, width) in enumerate(zip(places, widths, strict=True), start)
    ]
    assert told == expected
    segments_met = [place.segment if place else len(parts) for place in places]
    sizes = [parts[number].n for number in dict.fromkeys(segments_met) if number < len(parts)]
    assert [part.of for part in found][: len(sizes)] == sizes


@given(segments())
def test_every_position_has_its_own_place(parts):
    layout = Layout(tuple(parts))
    assert Layout.parse(str(layout)) == layout
    places = [layout.place(i) for i in range(layout.size)]
    # brute force: the segments one after the other, grids row by row
    expected = [
        (number, s.kind, at) + (divmod(at, s.width) if s.kind == "grid" else (0, at))
        for number, s in enumerate(parts)
        for at in range(s.n)
    ]
    assert [tuple(p) for p in places] == expected
    for outside in (-1, layout.size):
        with pytest.raises(RangeError, match=rf"0\.\.{layout.size - 1}"):
            layout.place(outside)


@pytest.mark.parametrize(
    "text",
    ["", "grid", "grid 3", "grid 0x4", "line 0", "line, grid 2x2", "extra", "line 3x4", "Grid 2x2",
     "grid 2x-2",
     "line 3,grid 2x2", "grid 2x2, ", None, 7, "grid 99999999999x2"],
)  # fmt: skip
def test_what_is_no_layout_is_refused(text):
    with pytest.raises(ConfigError, match="A layout must be segments"):
        Layout.parse(text)


def test_a_grid_must_be_filled():
    layout = Layout.parse("extra 1, grid 14x14")
    layout.check(197, "an image")
    for n in (196, 198, 0):
        with pytest.raises(ShapeError, match=rf"holds 197 positions. Got {n} of an image"):
            layout.check(n, "an image")
    open_ended = Layout.parse("line 5, grid 2x2, line")
    open_ended.check(9, "a text")
    open_ended.check(90, "a text")
    with pytest.raises(ShapeError, match=r"at least 9 positions\. Got 8"):
        open_ended.check(8, "a text")


def test_windows_hold_their_position_and_stay_inside():
    for layout, n in [
        (LINE, 40),
        (Layout.parse("grid 8x8"), 64),
        (Layout.parse("extra 1, grid 40x40"), 1601),
    ]:
        for position, (before, after) in itertools.product(range(0, n, 7), [(0, 0), (3, 9), (100, 100)]):
            first, last = layout.window(position, before, after, n, most=400)
            assert 0 <= first <= position <= last < n
            assert last - first < max(400, before + after + 1)
    assert LINE.window(20, 3, 4, 40) == (17, 24)
    assert Layout.parse("grid 8x8").window(20, 3, 4, 64) == (0, 63)
    # ten rows of forty around row 20, whole
    assert Layout.parse("grid 40x40").window(20 * 40 + 3, 1, 1, 1600, most=400) == (15 * 40, 25 * 40 - 1)
