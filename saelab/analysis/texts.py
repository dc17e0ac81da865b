"""Results in words: what a terminal shows of a window and of a sample, pictures included."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from saelab.layout import Layout, Part
from saelab.stores.characters import read, window_names
from saelab.stores.records import DocumentRecord, Example
from saelab.types import Codes, Shown

MOST = 200
"""Positions of a line, rows of a grid, in all calls: more are counted and left out."""
WIDE = 100
"""Columns of a grid that is drawn."""
SHADES = " .:-=+*#%@"
PLACES = {"grid": "patch", "extra": "extra", "list": "item", "line": "position"}
_PLACE = re.compile(r"\d+,\d+")


class Sample(Protocol):
    """What is told of a `SampleCodes`."""

    @property
    def document(self) -> DocumentRecord: ...
    @property
    def shown(self) -> tuple[Shown, ...]: ...
    @property
    def codes(self) -> Codes: ...
    @property
    def calls(self) -> int: ...
    @property
    def parted(self) -> str: ...
    def parts(self) -> list[Part]:
        """What the positions of one call are made of."""
        ...

    def top(self, position: int, n: int) -> list[tuple[int, float]]:
        """(latent, value) of the n strongest at a position."""
        ...


def window_line(window: Example, document: DocumentRecord | None = None) -> str:
    """A window as a line: its value, and its rows with the one that fires in brackets; of a picture, which it
    is and where it fires. document: the window's, where it is known."""
    peak = window.position - window.start
    name, value = window.names[peak], f"{window.value:8.3f}"
    if document is not None and document.grids:
        (part,) = Layout.parse(document.layout).parts(window.position, 1)
        call = f"call {window.call}, " if window.call else ""
        return f"{value}  {document.title} at {call}{PLACES[part.kind]} {name}"
    if _placed(window.names):
        return f"{value}  document {window.document} at {name}"
    shown = window_names(window.names)
    while shown[peak] is None:  # it goes on with a character that begins before it
        peak -= 1
    marked = "".join(f"[{each}]" if i == peak else each or "" for i, each in enumerate(shown))
    return f"{value}  {marked!r}"


def shows(window: Example) -> str:
    """What a window shows: its text, or of a picture the place that fires."""
    return (
        window.names[window.position - window.start]
        if _placed(window.names)
        else read(window.names, window=True)
    )


def sample_text(result: Sample) -> str:
    """A sample: a line for each position with its strongest latents; of a grid a drawing of how strong they
    are, and the strongest of all with the patch where each peaks."""
    parts, calls = result.parts(), result.calls
    lines = [result.document.title] if any(part.kind == "grid" for part in parts) else []
    lines += [result.parted] * bool(result.parted)
    at = left_out = 0
    for call in range(calls):
        if calls > 1:
            lines.append(f"call {call}")
        for part in parts:
            told = _grid(result, at, part) if part.kind == "grid" else _line(result, at, part)
            room = max(MOST - len(lines), 0)
            lines += told[:room]
            left_out += len(told[room:])
            at += part.n
    return "\n".join(lines + [f"... and {left_out:,} lines more"] * (left_out > 0))


def _line(result: Sample, first: int, part: Part) -> list[str]:
    """A line for each position."""

    def best(i: int) -> str:
        return ", ".join(f"{latent}:{value:.2f}" for latent, value in result.top(i, 3))

    mark = "extra " if part.kind == "extra" else ""
    positions = range(first, first + part.n)
    return [f"{mark + repr(result.shown[i].name):>16}  {best(i)}" for i in positions]


def _grid(result: Sample, first: int, part: Part) -> list[str]:
    """The strongest |value| of each patch as shades, and the strongest latents."""
    codes, rows = result.codes, -(-part.n // part.width)
    bounds = codes.indptr[first : first + part.n + 1]
    latents, values = (each[bounds[0] : bounds[-1]] for each in (codes.indices, codes.values))
    patch = np.repeat(np.arange(part.n), np.diff(bounds))
    strength = np.zeros(rows * part.width)
    np.maximum.at(strength, patch, np.abs(values))
    most = strength.max(initial=0.0)
    lines = [f"grid {rows}x{part.width}, the strongest |value| of each patch up to {most:.3g}:"]
    if part.width <= WIDE:
        level = np.ceil(strength / (most or 1) * (len(SHADES) - 1)).astype(int).reshape(rows, part.width)
        lines += [f"  {''.join(SHADES[i] for i in row)}" for row in level]
    order = np.lexsort((latents, -np.abs(values)))
    _, once = np.unique(latents[order], return_index=True)
    best = order[np.sort(once)[:5]]
    where = (divmod(int(patch[i]) + part.at, part.width) for i in best)
    peaks = [f"{latents[i]}:{values[i]:.2f} at {r},{c}" for i, (r, c) in zip(best, where, strict=True)]
    return [*lines, f"strongest: {'; '.join(peaks)}" if peaks else "no latent fires"]


def visible(name: str) -> str:
    """A name in a list of names: without the spaces around it, unless it is nothing else.

    Args:
        name: What a row shows.
    """
    return name.strip() or repr(name)[1:-1].replace(" ", "␣")


def _placed(names: Sequence[str]) -> bool:
    """Whether these are places of a picture, which say little one by one."""
    return len(names) > 1 and all(name.strip().isdigit() or _PLACE.fullmatch(name) for name in names)


__all__ = ["sample_text", "shows", "visible", "window_line"]
