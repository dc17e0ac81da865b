"""How the positions of a document lie: a line of tokens, a grid of patches, a list of items, or several of
them.

A layout is written as its segments, in the order of the positions:

    line                                 as many tokens as there are
    grid 14x14                           patches, row by row
    extra 1, grid 14x14                  a class token, then patches
    line 5, grid 24x24, line 12          text with an image in it
    list 20                              items
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from saelab.errors import ConfigError, RangeError, ShapeError

KINDS = ("line", "grid", "list", "extra")
_SEGMENT = re.compile(r"(line|list|extra|grid)(?: (\d{1,9})(?:x(\d{1,9}))?)?")


class Segment(NamedTuple):
    """Neighbouring positions of one kind."""

    kind: str
    """"line" (of tokens), "grid" (of patches), "list" (of items), or "extra": positions that stand for the
    whole sample, such as class and register tokens or a pooled vector"""
    n: int | None
    """positions; None of a line or list that is as long as the document"""
    width: int = 0
    """of a grid: patches in a row"""

    def __str__(self) -> str:
        if self.n is None:
            return self.kind
        return f"grid {self.n // self.width}x{self.width}" if self.kind == "grid" else f"{self.kind} {self.n}"


class Place(NamedTuple):
    """Where a position lies in its document."""

    segment: int
    kind: str
    at: int
    """from the start of its segment"""
    row: int
    """of a grid, else 0"""
    column: int
    """of a grid, else `at`"""

    @property
    def name(self) -> str:
        """For people: "3,5" (row, column) in a grid, else the number in the segment."""
        return f"{self.row},{self.column}" if self.kind == "grid" else str(self.at)


class Part(NamedTuple):
    """Neighbouring positions of one segment, as they are shown."""

    kind: str
    n: int
    """positions"""
    width: int
    """of a grid: patches in a row, else 0"""
    at: int
    """where they begin in their segment"""
    of: int
    """positions of the whole segment"""


@dataclass(frozen=True)
class Layout:
    """The segments of a document, in the order of its positions."""

    segments: tuple[Segment, ...]

    @classmethod
    def parse(cls, text: Layout | str) -> Layout:
        """The layout that is written so.

        Args:
            text: segments as in "extra 1, grid 14x14", or a Layout, which is returned.

        Raises:
            ConfigError: It is written in another way, or a segment of open length has another after it.
        """
        if isinstance(text, Layout):
            return text
        written = text.split(", ") if isinstance(text, str) else [""]
        segments = []
        for i, each in enumerate(written):
            found = _SEGMENT.fullmatch(each)
            kind, n, width = found.groups() if found else ("", None, None)
            sized = n is not None and int(n) > 0 and (width is None or int(width) > 0)
            is_open = n is None and kind in ("line", "list") and i == len(written) - 1
            if not (is_open or (sized and (kind == "grid") == (width is not None))):
                message = (
                    "A layout must be segments such as 'line', 'grid 14x14' or 'extra 1, grid 14x14', of "
                    f"which only the last may lack its number. Got {text!r:.80}. Write positions in order."
                )
                raise ConfigError(message)
            size, columns = int(n or 0), int(width or 0)
            if kind == "grid":
                segments.append(Segment(kind, size * columns, columns))
            else:
                segments.append(Segment(str(kind), size or None))
        return cls(tuple(segments))

    @property
    def size(self) -> int | None:
        """Positions, or None where the last segment is as long as the document."""
        sizes = [segment.n for segment in self.segments]
        return None if None in sizes else sum(n for n in sizes if n is not None)

    @property
    def fixed(self) -> int:
        """Positions of the segments whose length is known: the least that a document has."""
        return sum(segment.n or 0 for segment in self.segments)

    def check(self, n: int, what: str) -> None:
        """Refuse another number of positions than it holds.

        Args:
            n: positions that were found.
            what: whose they are, for the message.

        Raises:
            ShapeError: They do not fill it, or are more.
        """
        if n != self.size and (self.size is not None or n < self.fixed):
            held = self.size or f"at least {self.fixed}"
            message = (
                f"The layout '{self}' holds {held} positions. Got {n} of {what}. "
                "Name every position in order: class and register tokens as 'extra n', patches as 'grid HxW'."
            )
            raise ShapeError(message)

    def place(self, position: int) -> Place:
        """Where a position lies.

        Raises:
            RangeError: Outside of the layout.
        """
        start = 0
        for i, segment in enumerate(self.segments):
            if position >= 0 and (segment.n is None or position < start + segment.n):
                at = position - start
                row, column = divmod(at, segment.width) if segment.kind == "grid" else (0, at)
                return Place(i, segment.kind, at, row, column)
            start += segment.n or 0
        message = (
            f"A position must be in 0..{start - 1} of the layout '{self}'. Got {position}. Pass another."
        )
        raise RangeError(message)

    def parts(self, start: int, n: int) -> list[Part]:
        """What some positions of a document are made of, in order; those beyond the layout are a line.

        Args:
            start: the first.
            n: how many.
        """
        found, end, begin = [], start + n, 0
        for segment in (*self.segments, Segment("line", None)):
            stop = end if segment.n is None else begin + segment.n
            first, last = max(start, begin), min(end, stop)
            if first < last:
                found.append(Part(segment.kind, last - first, segment.width, first - begin, stop - begin))
            begin = max(stop, begin)
        return found

    def window(self, position: int, before: int, after: int, n: int, most: int = 1024) -> tuple[int, int]:
        """The positions that are shown around one: [first, last].

        On a line or list: `before` positions before it and `after` after it. In a document with a grid: all
        positions where there are at most `most`, else at most so many in the grid rows around it.

        Args:
            position: in the document, 0..n-1.
            before: positions before it on a line.
            after: positions after it on a line.
            n: positions of the document.
            most: shown at most where there is a grid.
        """
        if all(segment.kind != "grid" for segment in self.segments):
            return max(position - before, 0), min(position + after, n - 1)
        if n <= most:
            return 0, n - 1
        place = self.place(position)
        start = position - place.at
        segment = self.segments[place.segment]
        end = n if segment.n is None else min(start + segment.n, n)
        if segment.kind != "grid":
            return max(position - before, start), min(position + after, end - 1)
        rows = max(1, most // segment.width)
        height = (end - start) // segment.width or 1
        first = min(max(place.row - rows // 2, 0), max(height - rows, 0))
        return start + first * segment.width, min(start + (first + rows) * segment.width, end) - 1

    def __str__(self) -> str:
        return ", ".join(map(str, self.segments))


LINE = Layout((Segment("line", None),))

__all__ = ["KINDS", "LINE", "Layout", "Part", "Place", "Segment"]
