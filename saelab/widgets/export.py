"""Static pages: views, tables and curves in one HTML file that opens from disk, with no network and no
kernel.
"""

from __future__ import annotations

import contextlib
import gc
import html
import itertools
import json
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from saelab.arguments import checked, place, sequence, text
from saelab.files import write_bytes
from saelab.types import ConfigError
from saelab.widgets import assets
from saelab.widgets.questions import Ask, Shared
from saelab.widgets.selection import Selection, chosen
from saelab.widgets.wire import Packed

CHUNK = 64
DEFLATE = 4
BUDGET = 32_000_000
"""Bytes of answers of a page: of each question those that were asked for last are left out, and so many are
said to be. The first CHUNK answers to each question are there in any case."""
SAID = {
    "card": "cards", "other_card": "cards of the other SAE", "about": "latents' neighbours",
    "picture": "pictures", "along": "latents along the text", "chunk": "stretches of the text's latents",
    "layer": "layers", "dfa": "tokens' sources", "pattern": "heads' patterns", "top": "heads' latents",
}  # fmt: skip
"""What answers to a question are called where some are left out."""


class Exportable(Protocol):
    """What a page asks of a view."""

    folder: ClassVar[Path | None]
    selection: Selection

    @property
    def kind(self) -> str:
        """The name of its JavaScript, `{kind}.js`."""
        ...

    @property
    def follows(self) -> tuple[str, ...]:
        """What of the selection it follows."""
        ...

    def options(self) -> dict[str, Any]:
        """What else of the view's state its JavaScript reads."""
        ...

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        """Question -> function of its arguments."""
        ...

    def exported(self) -> Iterable[Ask]:
        """The questions that a page answers for the view."""
        ...

    def left_out(self) -> str:
        """What a page does not hold of it, in words; "" where it holds all."""
        ...


@dataclass(frozen=True)
class Text:
    """Paragraphs."""

    heading: str
    paragraphs: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows under column names; everything is shown as str() gives it.

    Raises:
        ConfigError: A row has another number of columns than there are names.
    """

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                message = (
                    f"Each row of a table must have its {len(self.columns)} columns, "
                    f"{', '.join(map(repr, self.columns))}. Got {len(row)}: {list(row)!r}. Name every column."
                )
                raise ConfigError(message)


@dataclass(frozen=True)
class Lines:
    """Curves over a common x, drawn as SVG. series: name -> y of the same length as x."""

    heading: str
    x: Sequence[float]
    series: Mapping[str, Sequence[float]]
    x_label: str = ""
    y_label: str = ""


@dataclass(frozen=True)
class Views:
    """Widgets; those that share a selection do so on the page too. columns: how many of them stand in each
    column, if they stand beside each other."""

    heading: str
    views: Sequence[Exportable]
    captions: Sequence[str] = ()
    columns: Sequence[int] = ()


@checked(path=place, title=text, sections=sequence)
def page(path: str | Path, title: str, sections: Sequence[Text | Table | Lines | Views]) -> Path:
    """Write sections as one self-contained HTML file.

    Args:
        path: The file; it is replaced if it is there.
        title: Title of the page.
        sections: In the order of the page. What a view exports is asked of it and kept; answers that views
            have in common are kept once.

    Returns:
        The path.

    Raises:
        StoreError: The file cannot be written.
        ConfigError: There is another kind of section, or a view that cannot be exported.
    """
    views = [view for s in sections if isinstance(s, Views) for view in s.views]
    kinds = _kinds(views)
    made, left = _data(views)
    body = "\n".join([*(_section(s) for s in sections), _left_out(views, left)])
    data = json.dumps(made).replace("<", "\\u003c")
    wide = " sl-wide" if any(isinstance(s, Views) and s.columns for s in sections) else ""
    script = assets.page_script(kinds).replace("</", "<\\/")
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>
{assets.css(kinds, "page")}</style>
</head>
<body class="sl-page{wide}">
<main>
<h1>{html.escape(title)}</h1>
{body}
</main>
<script type="application/json" id="saelab-data">{data}</script>
<script type="module">
{script}
renderPage(
  JSON.parse(document.getElementById("saelab-data").textContent),
  [...document.querySelectorAll(".sl-view")],
);
</script>
</body>
</html>
"""
    write_bytes(path, text.encode())
    return Path(path)


def _kinds(views: Sequence[Exportable]) -> dict[str, Path | None]:
    """The folder of each kind's module. Raises ConfigError where a kind has two."""
    kinds: dict[str, Path | None] = {}
    for view in views:
        if kinds.setdefault(view.kind, view.folder) != view.folder:
            message = (
                f"The views of a page must have one module for each kind. Got {view.kind!r} in "
                f"{kinds[view.kind]} and {view.folder}. Give one of them another kind."
            )
            raise ConfigError(message)
    return kinds


class _Shelf:
    """Answers of a page to one question from one source."""

    def __init__(self) -> None:
        self.answer: Callable[..., Packed] | None = None
        self.asks: dict[str, Mapping[str, Any]] = {}
        """arguments by key, each once"""
        self.views: list[_Held] = []
        """which have it"""
        self.whole = False
        """whether all that is asked is in `packed`"""
        self.packed: dict[str, Any] = {}
        self.left: set[str] = set()
        """keys of those for which there is no room"""

    def ask(self, view: _Held, answer: Callable[..., Packed], ask: Ask) -> None:
        """Hold the answer to a question of a view."""
        # of two functions that give the same, the faster is asked
        if self.answer is None or (isinstance(answer, Shared) and answer.in_bulk):
            self.answer = answer
        if view not in self.views:
            self.views.append(view)
        if ask.key() in self.left:
            return
        self.whole = self.whole and ask.key() in self.asks
        self.asks[ask.key()] = ask.args

    def size(self) -> int:
        """Bytes of what is packed."""
        return sum(map(len, self.packed.get("chunks", ())))

    def pack(self, room: int) -> list[Ask]:
        """Which answers there are, and the answers by chunks; a browser opens a chunk when it is needed.

        Args:
            room: Bytes; once they are full the rest is left out.

        Returns:
            What is shown with them.
        """
        args, chunks, needs = list(self.asks.values()), [], {}
        for start in range(0, len(args), CHUNK):
            if start and sum(map(len, chunks)) >= room:
                for key in list(self.asks)[start:]:
                    del self.asks[key]
                    self.left.add(key)
                break
            some = args[start : start + CHUNK]
            if isinstance(self.answer, Shared):
                answers = self.answer.for_page(some)
            else:
                assert self.answer is not None
                answers = map(lambda a, answer=self.answer: answer(**a), some)
            chunks.append(_deflated(_chunk(_noting(answers, needs))))
        self.packed = {"index": _deflated(_json(list(self.asks))), "per": CHUNK, "chunks": chunks}
        self.whole = True
        return list(needs.values())


class _Held:
    """A view of a page, and the number of the shelf for each of its questions."""

    def __init__(self, view: Exportable, number: int) -> None:
        self.view, self.number = view, number
        self.answers, self.shelves = view.answers(), {}

    def ask(self, shelves: dict[tuple[str, Hashable], _Shelf], ask: Ask) -> None:
        answer = self.answers[ask.question]
        source = (ask.question, answer.source if isinstance(answer, Shared) else self.number)
        shelves.setdefault(source, _Shelf()).ask(self, answer, ask)
        if ask.question not in self.shelves:
            self.shelves[ask.question] = list(shelves).index(source)


def _data(views: Sequence[Exportable]) -> tuple[dict[str, Any], list[str]]:
    """What the page's script reads (see docs/widgets.md), and what had no room."""
    shelves: dict[tuple[str, Hashable], _Shelf] = {}
    selections = {id(view.selection): view.selection for view in views}
    held = [_Held(view, number) for number, view in enumerate(views)]
    for each in held:
        for ask in each.view.exported():
            each.ask(shelves, ask)
    with _no_collection():
        while open_shelves := [shelf for shelf in shelves.values() if not shelf.whole]:
            # what is asked of many latents has the room that is left
            for shelf in sorted(open_shelves, key=lambda shelf: len(shelf.asks)):
                others = sum(each.size() for each in shelves.values() if each is not shelf)
                needs = shelf.pack(BUDGET - others)
                for each, ask in itertools.product(shelf.views, needs):
                    each.ask(shelves, ask)
    entries = [
        {
            "kind": each.view.kind,
            "follows": each.view.follows,
            "options": each.view.options(),
            "shelves": each.shelves,
            "selection": list(selections).index(id(each.view.selection)),
        }
        for each in held
    ]
    data = {
        "selections": [chosen(each) for each in selections.values()],
        "views": entries,
        "shelves": [shelf.packed for shelf in shelves.values()],
    }
    left = [
        f"{len(shelf.left):,} of {len(shelf.left) + len(shelf.asks):,} {SAID.get(question, question)}"
        for (question, _), shelf in shelves.items()
        if shelf.left
    ]
    return data, left


def _left_out(views: Sequence[Exportable], left: Sequence[str]) -> str:
    """What a page does not hold, for whoever reads it."""
    said = list(dict.fromkeys([*filter(None, (view.left_out() for view in views)), *left]))
    if not said:
        return ""
    note = f"Left out of this page: {'; '.join(said)}. A notebook with its kernel has all."
    return f'<p class="sl-hint">{html.escape(note)}</p>'


def _noting(answers: Iterable[Packed], needs: dict[str, Ask]) -> Iterator[Packed]:
    """The answers, while what is shown with them is noted by key."""
    for answer in answers:
        needs.update((ask.key(), ask) for ask in answer.needs)
        yield answer


def _chunk(answers: Iterable[Packed]) -> bytes:
    """The length of the headers as uint32, the headers as a JSON list, and all buffers in their order."""
    headers, buffers = [], []
    for answer in answers:
        header, data = answer.encoded()
        headers.append(header)
        buffers += data
    text = _json(headers)
    return b"".join([struct.pack("<I", len(text)), text, *buffers])


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _deflated(data: bytes) -> str:
    return b64encode(zlib.compress(data, DEFLATE)).decode()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Without the cyclic garbage collector: cards are many small objects in no cycle, and it would go
    through all that is alive again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _section(section: Text | Table | Lines | Views) -> str:
    heading = f"<h2>{html.escape(section.heading)}</h2>" if getattr(section, "heading", "") else ""
    if isinstance(section, Text):
        inner = "".join(f"<p>{html.escape(p)}</p>" for p in section.paragraphs)
    elif isinstance(section, Table):
        head = "".join(f"<th>{html.escape(str(c))}</th>" if c else "<td></td>" for c in section.columns)
        rows = ("".join(f"<td>{html.escape(str(v))}</td>" for v in row) for row in section.rows)
        inner = f"<table><tr>{head}</tr>{''.join(f'<tr>{r}</tr>' for r in rows)}</table>"
    elif isinstance(section, Lines):
        inner = _chart(section)
    elif isinstance(section, Views):
        captions = [*section.captions, *[""] * len(section.views)]
        shown = [
            (f"<p>{html.escape(c)}</p>" if c else "") + '<div class="sl-view"></div>'
            for c, _ in zip(captions, section.views, strict=False)
        ]
        columns, rest = [], iter(shown)
        for count in section.columns:
            columns.append("".join(itertools.islice(rest, count)))
        beside = "".join(f"<div>{column}</div>" for column in columns)
        inner = (f'<div class="sl-beside-views">{beside}</div>' if columns else "") + "".join(rest)
    else:
        message = (
            f"A section must be Text, Table, Lines or Views. Got {type(section).__name__}. Wrap it in one."
        )
        raise ConfigError(message)
    return f"<section>{heading}{inner}</section>"


def _chart(section: Lines) -> str:
    """A small line chart; y starts at 0."""
    width, height, left, right, bottom = 680, 260, 52, 570, 36
    middle, x_label = (left + right) / 2, html.escape(section.x_label)
    x, colours = [float(v) for v in section.x], ("#d97706", "#2563eb", "#059669", "#7c3aed")
    values = [float(v) for ys in section.series.values() for v in ys]
    if not x or not values:
        return "<p>no points</p>"
    x_low, x_high, y_high = min(x), max(x), max(*values, 1e-12)

    def px(v: float) -> float:
        return left + (v - x_low) / ((x_high - x_low) or 1) * (right - left)

    def py(v: float) -> float:
        return 12 + (1 - v / y_high) * (height - bottom - 12)

    marks = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = py(share * y_high)
        marks.append(
            f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity=".15"/>'
        )
        marks.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{share * y_high:.3g}</text>')
    for share in (0, 0.5, 1):
        v = x_low + share * (x_high - x_low)
        marks.append(f'<text x="{px(v):.1f}" y="{height - 18}" text-anchor="middle">{v:,.0f}</text>')
    for i, (name, ys) in enumerate(section.series.items()):
        colour = colours[i % len(colours)]
        points = " ".join(f"{px(a):.1f},{py(float(b)):.1f}" for a, b in zip(x, ys, strict=True))
        dash = ' stroke-dasharray="5 4"' if i % 2 else ""
        marks.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>')
        marks.append(f'<text x="{right + 8}" y="{py(float(ys[-1])) + 4:.1f}">{html.escape(name)}</text>')
    marks.append(f'<text x="{middle}" y="{height - 3}" text-anchor="middle">{x_label}</text>')
    label = html.escape(f"{section.y_label or ', '.join(section.series)} over {section.x_label}")
    box = f'viewBox="0 0 {width} {height}"'
    return f'<svg class="sl-lines" {box} role="img" aria-label="{label}">{"".join(marks)}</svg>'
