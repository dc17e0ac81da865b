"""Runs of training as they stand, for pages that run nothing, and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from saelab.widgets.still import BARS, SOFT, TABLE, escaped, frame, note

MEASURES = {"loss": "loss", "fvu": "FVU", "l0": "L0", "dead": "dead"}
WIDE = 24
"""Letters of a curve."""


def words(runs: Sequence[tuple[str, Any]]) -> str:
    """A line a run: how far, how fast, its last figures.

    Args:
        runs: Label and `saelab.training.watched.Told` of each.
    """
    lines = []
    for label, told in runs:
        last = [f"{called} {_number(name, _last(told, name))}" for name, called in MEASURES.items()]
        known = "; " + ", ".join(last) if told.curves else ""
        lines.append(f"{label}: {_state(told)}{known}")
    return "\n".join(lines) or "no run yet: pass this view to saelab.train, callbacks=[view]"


def runs(told: Sequence[tuple[str, Any]]) -> str:
    """A table of the same, with each curve as bars of letters.

    Args:
        told: As in `words`.
    """
    if not told:
        return frame(f"<p>{escaped(words(told))}</p>")
    cell = 'style="text-align:left;padding:2px 8px;vertical-align:top"'
    head = "".join(f"<th {cell}>{name}</th>" for name in ("run", "state", *MEASURES.values()))
    rows = []
    for label, each in told:
        cells = [f"<td {cell}>{escaped(label)}</td>", f"<td {cell}>{escaped(_state(each))}</td>"]
        for name in MEASURES:
            bars = f'<br><code style="color:{SOFT};background-color:#ffffff">{_bars(each, name)}</code>'
            cells.append(f"<td {cell}>{_number(name, _last(each, name))}{bars}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    table = f'<table style="{TABLE}"><tr>{head}</tr>{"".join(rows)}</table>'
    said = "last values on a batch; bars: over the rows seen, each from 0 to its largest (loss and FVU: log)"
    return frame(table, note(said))


def _state(told: Any) -> str:
    if told.state == "waiting":
        return "nothing there yet"
    text = f"{told.state}, step {told.step:,} of {told.steps:,}, {told.rows:,} rows"
    if told.speed:
        text += f", {told.speed:,.0f} rows/s"
    return text if told.left is None else f"{text}, {told.left:,.0f} s left"


def _last(told: Any, name: str) -> float | None:
    return float(told.curves[name][1][-1]) if name in told.curves else None


def _number(name: str, value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    return f"{100 * value:.1f} %" if name == "dead" else f"{value:.3g}"


def _bars(told: Any, name: str) -> str:
    if name not in told.curves:
        return ""
    values = told.curves[name][1]
    values = values[np.linspace(0, len(values) - 1, min(WIDE, len(values))).astype(int)]
    finite = values[np.isfinite(values)]
    if name in ("loss", "fvu") and len(finite) and finite.min() > 0 and finite.min() < finite.max():
        low, high = np.log(finite.min()), np.log(finite.max())
        heights = (np.log(np.where(np.isfinite(values), values, finite.max())) - low) / (high - low)
    else:
        heights = np.nan_to_num(values, posinf=0) / (finite.max(initial=0) or 1)
    return "".join(BARS[min(int(x * len(BARS)), len(BARS) - 1)] for x in np.clip(heights, 0, 1))


__all__ = ["runs", "words"]
