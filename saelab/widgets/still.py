"""Views as they stand, for pages that run nothing: notebooks without a kernel, converted ones, GitHub.

HTML without scripts, classes or style sheets; every text is escaped. Where even the inline styles are taken
away, marks, tables and bars of letters still say the same.
"""

from __future__ import annotations

import html
import itertools
import math
import unicodedata
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from saelab.analysis.results import FeatureCard, LatentTable, SampleCodes
from saelab.layout import Part
from saelab.stores.characters import joined, window_names
from saelab.stores.records import DocumentRecord, Example, media_type
from saelab.widgets.sides import strongest_values

MOST_BYTES = 60_000
"""Of one view, at most."""
SAMPLE_BYTES, CARD_BYTES = 24_000, 14_000
PICTURE_BYTES = 9_000
"""Of pictures in one card or sample, at most, as they are written."""
PATCHES = 400
"""Cells of a grid, at most: finer ones are pooled."""
WINDOWS = {"top": 8, "bottom": 8, "quantile": 5}
LINES = 15
"""Of a table."""
LONGEST = 20
"""Letters of a bar, at most: beside its name it fits on a telephone."""
AROUND = 15
"""Positions of a window on each side of the one that fires, at most."""
LABEL = 200
"""Characters of a label or name, at most."""

INK, SOFT, EDGE, AMBER = "#111827", "#5b6472", "#d7dce3", "#b45309"
POSITIVE, NEGATIVE = (245, 158, 11), (96, 165, 250)
TABLE = f"color:{INK};background-color:#ffffff;font-size:13px;margin:0"
STEPS = 5
MINUS = "\N{MINUS SIGN}"
BARS = "▁▂▃▄▅▆▇█"
SIGNS = {"\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽"}


def frame(*shown: str) -> str:
    """Parts, one under the other, dark on white whatever page they are on."""
    style = (
        f"color:{INK};background-color:#ffffff;padding:8px;font-family:sans-serif;font-size:13px;"
        "line-height:1.6;text-align:left"
    )
    return f'<div style="{style}">{"".join(shown)}</div>'


def bounded(form: str, text: str) -> str:
    """A form of a view if it is short enough, else its words."""
    return form if len(form.encode("utf-8", "replace")) <= MOST_BYTES else frame(words(text))


def words(text: str) -> str:
    """Words as they are, such as a view in words."""
    lines = [f"{escaped(line)}\n" for line in text.splitlines()]
    return f"<pre>{within(lines, SAMPLE_BYTES, 'line')}</pre>"


def written(column: Mapping[str, Any]) -> str:
    """A text that was written, what changed in it marked: name, tokens, changed."""
    told = "".join(
        f"<mark>{escaped(token)}</mark>" if new and token.strip() else escaped(token)
        for token, new in zip(column["tokens"], column["changed"], strict=True)
    )
    return f"<p><b>{escaped(column['name'])}</b> {told}</p>"


def note(text: str) -> str:
    """A line beside the matter."""
    return f'<div style="color:{SOFT};font-size:12px">{escaped(text)}</div>'


def escaped(text: str) -> str:
    """Text that is only ever text; what would not show, or turn the direction around it, as a sign."""
    return html.escape("".join(map(_sign, text.encode("utf-8", "replace").decode("utf-8"))))


def sample(result: SampleCodes, latent: int | None, labels: Mapping[int, str] | None = None) -> str:
    """A sample, shaded by a latent; without one, or where it is silent, by the strongest of each position.
    labels: latent -> its label."""
    values, said = shading(result, latent)
    most = float(np.abs(values).max(initial=0.0))
    facets = {each.facet for each in result.shown}
    facet = facets.pop() if len(facets) == 1 else "row"
    label = "" if latent is None else (labels or {}).get(latent, "")[:LABEL]
    called = f"latent #{latent}" + (f" «{label}»" if label else "")
    by = called if said == "chosen" else f"strongest latent of each {facet}"
    silent = f"{called} does not fire here; " if said == "silent" else ""
    out = [note(f"{silent}{by}, {number(float(values.min(initial=0.0)))} to {number(most)}")]
    if result.parted:
        out.append(note(result.parted))
    if result.document.labels:
        out.append(f"<div>{escaped(', '.join(result.document.labels)[:LABEL])}</div>")
    out.append(_picture(result.document, PICTURE_BYTES, 192))
    if result.calls > 1:
        out.append(note(f"call 0 of 0 to {result.calls - 1}"))
    names, at = joined(result.names), 0
    for part in result.parts():
        here = slice(at, at + part.n)
        if part.kind == "grid":
            out.append(_grid(part, values[here], most))
        else:
            apart = part.kind != "line" or result.shown[at].facet != "token"
            aside = ~result.counted[here]
            out.append(shaded_line(names[here], values[here], most, SAMPLE_BYTES, apart=apart, aside=aside))
        at += part.n
    return "".join(out)


def shading(result: SampleCodes, latent: int | None) -> tuple[np.ndarray, str]:
    """The value of each position, and what it is of: the "chosen" latent; the "strongest" of each position
    that counts; or that since the chosen one is "silent" here."""
    if latent is not None:
        own = result.of(latent)
        if own.any():
            return own, "chosen"
    return strongest_values(result), "strongest" if latent is None else "silent"


def card(result: FeatureCard) -> str:
    """The card of one latent."""
    stats = result.stats
    label = f" {escaped(result.label[:LABEL])}" if result.label else ""
    out = [f'<div style="font-size:15px"><b>#{stats.latent}{label}</b></div>']
    out.append(f"<div>{escaped(str(stats).partition(': ')[2])}</div>")
    if not stats.count:
        return "".join(out)
    if len(stats.histogram):  # an export may say none
        heights = np.sqrt(stats.histogram / max(stats.histogram.max(), 1))
        bars = "".join(BARS[math.ceil(h * (len(BARS) - 1))] if h else " " for h in heights)
        ends = (number(float(stats.edges[0])), number(float(stats.edges[-1])))
        bars = bars.replace(" ", "&nbsp;")
        out.append(
            f'<div>{ends[0]} <code style="color:{AMBER};background-color:#ffffff">{bars}'
            f"</code> {ends[1]} <small>values where it fires (height: √ of rows)</small></div>"
        )
    if result.lens is not None:
        out += [_logits("raises", result.lens.top), _logits("lowers", result.lens.bottom)]
    most = max(abs(stats.max), abs(stats.min))
    pictures, room = PICTURE_BYTES, CARD_BYTES
    titles = {
        "top": "Strongest" if result.bottom is None else "Strongest of the positive pole",
        "bottom": "Strongest of the negative pole",
        "quantile": "From weak to strong",
    }
    for group in (result.top, result.bottom, result.quantile):
        if group is None or not group.windows:
            continue
        rows = ""
        some = zip(group.windows, group.lines(result.documents), strict=True)
        for each, line in itertools.islice(some, WINDOWS[group.kind]):
            row, size = _window(each, line, result.documents, most, pictures)
            if len(row.encode()) - size > room:
                break
            pictures -= size
            room -= len(row.encode()) - size
            rows += row
        out.append(f'<div><b>{titles[group.kind]}</b></div><table style="{TABLE}">{rows}</table>')
    return "".join(out)


def table(result: LatentTable, listed: Sequence[int] | None = None) -> str:
    """The latents that fire most often, of those that are listed or of all."""
    some = np.arange(len(result)) if listed is None else np.array([j for j in listed if j < len(result)], int)
    dead = int((result.count[some] == 0).sum())
    which = "" if listed is None else f" ({len(some):,} of them chosen)"
    head = f"{len(result):,} latents{which}, {dead:,} never fire; the most frequent:"
    columns = ["latent", "fires on", *(["min"] if result.signed else []), "max", "set apart by"]
    lines = []
    for j in some[np.argsort(-result.density[some], kind="stable")][:LINES]:
        least = [number(float(result.min[j]))] if result.signed else []
        cells = [f"#{j}", f"{result.density[j]:.3%}", *least, number(float(result.max[j]))]
        lines.append([*cells, result.names[j][:LABEL]])
    return note(head) + grid(columns, lines)


def bars(title: str, counts: Mapping[str, int]) -> str:
    """A bar for each name."""
    most = max([*counts.values(), 1])
    lines = [[name, f"{count:,}", "█" * -(-LONGEST * count // most)] for name, count in counts.items()]
    return note(title) + grid(["", "latents", ""], lines, last=AMBER)


def grid(columns: Sequence[str], lines: Iterable[Sequence[str]], last: str = INK) -> str:
    """A table of words. last: the colour of the last column."""
    style = "text-align:left;padding:1px 10px 1px 0"
    colours = [INK] * (len(columns) - 1) + [last]
    kinds = ("th" if column else "td" for column in columns)
    head = "".join(
        f'<{kind} style="{style};color:{SOFT}">{escaped(c)}</{kind}>'
        for kind, c in zip(kinds, columns, strict=True)
    )
    body = ""
    for line in lines:
        cells = zip(colours, line, strict=True)
        row = (f'<td style="{style};color:{colour}">{escaped(cell)}</td>' for colour, cell in cells)
        body += f"<tr>{''.join(row)}</tr>"
    return f'<table style="{TABLE}"><tr>{head}</tr>{body}</table>'


def _window(
    window: Example, line: str, documents: Mapping[int, DocumentRecord], most: float, left: int
) -> tuple[str, int]:
    """A row of a card, and how many bytes of a picture it took. line: the window in words."""
    document = documents.get(window.document)
    size = 0
    if document is not None and document.grids:
        shown = _picture(document, left, 96)
        size = len(shown)
        shown += escaped(line.strip().partition("  ")[2])
    else:
        peak = window.position - window.start
        cut = slice(max(0, peak - AROUND), peak + AROUND + 1)
        names = window_names(window.names)[cut]
        shown = shaded_line(names, window.values[cut], most, CARD_BYTES, peak=peak - cut.start, breaks=False)
    value = f'<td style="color:{SOFT};padding:1px 8px 1px 0;text-align:right">{number(window.value)}</td>'
    return f'<tr>{value}<td style="text-align:left">{shown}</td></tr>', size


def shaded_line(
    names: Sequence[str | None],
    values: np.ndarray,
    most: float,
    room: int,
    *,
    peak: int = -1,
    apart: bool = False,
    breaks: bool = True,
    aside: Sequence[bool] | np.ndarray = (),
) -> str:
    """Positions as a text, or each apart in a box; those that fire are marked, and their value is a hint.
    aside: which are no part of the text, and do not say which way it runs."""
    pieces = []
    for i, (name, value) in enumerate(zip(names, values.tolist(), strict=True)):
        # a position that goes on with a character keeps its own shade
        text = "·" if name is None and value else escaped(name or "") if name != "" else "∅"
        if breaks and not apart and name:  # what the token holds after its line's end is on the next line
            text = "".join(escaped(c) + {"\n": "<br>", "\t": "\t"}.get(c, "") for c in name)
        text = f"<b>{text}</b>" if i == peak else text
        text = f"<bdi>{text}</bdi>" if len(aside) and aside[i] else text
        pieces.append(_marked(text, value, most, apart) + (" " if apart else ""))
    # each line runs as its own first letter does
    style = "white-space:pre-wrap;font-family:monospace;unicode-bidi:plaintext;text-align:start"
    return f'<div dir="auto" style="{style}">{within(pieces, room, "position")}</div>'


def _marked(text: str, value: float, most: float, apart: bool) -> str:
    box = f"border:1px solid {EDGE};" if apart else ""
    if not value or not most:
        return f'<span style="{box}">{text}</span>' if apart else text
    line = f"border-bottom:2px {'dashed' if value < 0 else 'solid'}"
    style = f"background-color:{_colour(value, most)};{box}{line}"
    return f'<mark title="{number(value)}" style="{style}">{text}</mark>'


def _grid(part: Part, values: np.ndarray, most: float) -> str:
    """Patches as the cells of a table, pooled by their largest |value| where there are many."""
    rows = -(-part.of // part.width)
    whole = np.zeros(rows * part.width, np.float32)
    whole[part.at : part.at + part.n] = values
    by = max(1, math.ceil(math.sqrt(rows * part.width / PATCHES)))
    cells = np.zeros((-(-rows // by), -(-part.width // by)), np.float32)
    for i in np.flatnonzero(whole):
        row, column = i // part.width // by, i % part.width // by
        if abs(whole[i]) > abs(cells[row, column]):
            cells[row, column] = whole[i]
    lines = "".join(f"<tr>{''.join(_cell(float(value), most) for value in line)}</tr>" for line in cells)
    return f'<table style="border:1px solid {EDGE};border-collapse:collapse">{lines}</table>'


def _cell(value: float, most: float) -> str:
    if not value or not most:
        return "<td>&nbsp;</td>"
    mark = MINUS if value < 0 else "+"
    return f'<td style="background-color:{_colour(value, most)}">{mark}</td>'


def _logits(what: str, pairs: Iterable[tuple[str, float]]) -> str:
    shown = (f"<code>{escaped(token[:40])}</code> {value:+.2f}" for token, value in pairs)
    return f"<div><small>{what}</small> {'  '.join(shown)}</div>"


def _picture(document: DocumentRecord, room: int, width: int) -> str:
    kind = media_type(document.media) if document.media else None
    if kind is None or document.media is None or len(document.media) * 4 / 3 + 500 > room:
        return ""
    data = b64encode(document.media).decode()
    title = escaped(document.title[:LABEL])
    return f'<div><img width="{width}" alt="{title}" src="data:{kind};base64,{data}"></div>'


def within(pieces: Sequence[str], room: int, what: str) -> str:
    """Pieces as long as there is room for them, and how many there was none for."""
    size = 0
    for i, piece in enumerate(pieces):
        size += len(piece.encode())
        if size > room:
            return "".join(pieces[:i]) + f" <small>… and {len(pieces) - i:,} more {what}s</small>"
    return "".join(pieces)


def _colour(value: float, most: float) -> str:
    """As in the browser, in few steps, over white."""
    step = max(1, math.ceil(STEPS * min(1.0, abs(value) / most))) / STEPS
    return over_white(NEGATIVE if value < 0 else POSITIVE, 0.85 * (0.12 + 0.88 * step))


def over_white(colour: tuple[int, int, int], alpha: float) -> str:
    """A colour of some opacity as one that has none."""
    return "#" + "".join(f"{round(c * alpha + 255 * (1 - alpha)):02x}" for c in colour)


def number(value: float) -> str:
    return f"{value:.3g}".replace("-", MINUS) if math.isfinite(value) else "?"


def _sign(character: str) -> str:
    if character in SIGNS:
        return SIGNS[character]
    if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs", "Co"):
        return f"[U+{ord(character):04X}]"
    return character
