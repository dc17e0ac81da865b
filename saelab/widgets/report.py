"""What an analysis found, as it stands: figures beside their controls with intervals, tables, drawings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from saelab.analysis.panels import Drawing, Figures, Table, in_words, panels_of
from saelab.widgets import still
from saelab.widgets.base import View
from saelab.widgets.questions import Ask
from saelab.widgets.source import HasSources
from saelab.widgets.wire import Packed, clean, rounded, told_claim

MOST_LINES = 2_000
"""Lines of a table, and points of a curve, that are shown, at most."""
STILL_LINES = 60
"""Lines where nothing runs."""


class ReportView(View):
    """Figures of one SAE or several, each beside its controls, with bars of the 95 % intervals; one whose
    interval meets that of a control says so. The tables of any result, and its drawings.

    Args:
        result: Of `saelab.evaluate` or `saelab.analysis`: what has a `to_frame()`, a list of such or several
            by name, or a data frame.
        options: See `View`.

    Raises:
        ConfigError: The result has no table, or an option is unknown.
    """

    kind = "report"
    follows = ()

    def __init__(self, result: Any, **options: Any) -> None:
        self.panels = panels_of(result)
        self.result = result
        super().__init__(**options)

    @staticmethod
    def of(lab: HasSources, result: Any) -> ReportView:
        """What an analysis found: figures beside their controls with their intervals, of one SAE or several;
        its tables and drawings. `export("report.html")` makes a page of it.

        Args:
            lab: whose view it is.
            result: Of `saelab.evaluate` or any function of `saelab.analysis`: what has a `to_frame()`, a list
                of such or several by name, or a data frame.

        Raises:
            ConfigError: The result has no table.
        """
        return ReportView(result)

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        return {"result": self._packed}

    def first(self) -> Iterable[Ask]:
        return [Ask("result")]

    def left_out(self) -> str:
        n = max((LENGTHS[panel.kind](panel) for panel in self.panels), default=0)
        return f"all lines but the first {MOST_LINES:,} of {n:,}" if n > MOST_LINES else ""

    def text(self) -> str:
        return in_words(self.result)

    def html(self) -> str:
        header, fields = self._packed()[:2]
        told = zip(header["panels"], fields.values(), strict=True)
        return still.frame(*(part for panel, lines in told for part in STILL[panel["kind"]](panel, lines)))

    def _packed(self) -> Packed:
        packed = [PACKED[panel.kind](panel) for panel in self.panels]
        return Packed(
            {"panels": [header for header, _ in packed]},
            {f"panel{i}": lines for i, (_, lines) in enumerate(packed)},
        )


def _figures(panel: Figures) -> tuple[dict[str, Any], list[Any]]:
    """Lines of score, SAE, value, from, to, controls (what, value, from, to), whether apart (None: unknown),
    why it has none. The SAEs of one score follow each other."""
    scores = dict.fromkeys(score for claims in panel.claims.values() for score in claims)
    lines = [
        [clean(score), clean(name), *told_claim(claims[score])]
        for score in scores
        for name, claims in panel.claims.items()
        if score in claims
    ]
    header = {
        "kind": panel.kind,
        "heads": list(map(clean, panel.heads)),
        "left_out": [list(map(clean, each)) for each in panel.left_out],
        "several": len(panel.claims) > 1,
        "same_rows": panel.same_rows,
    }
    return header, lines[:MOST_LINES]


def _table(panel: Table) -> tuple[dict[str, Any], list[Any]]:
    columns = [clean(str(name)) for name in panel.frame.columns]
    cells = panel.frame.head(MOST_LINES).itertuples(index=False, name=None)
    lines = [[_plain(cell) for cell in line] for line in cells]
    return {"kind": panel.kind, "title": clean(panel.title), "columns": columns}, lines


def _drawing(panel: Drawing) -> tuple[dict[str, Any], list[Any]]:
    """Of each curve name, kind, x, y, and the ends of the intervals, where it has any."""
    curves = []
    for curve in panel.curves:
        some = slice(None, None, -(-len(curve.x) // MOST_LINES) or 1)
        numbers = [() if each is None else each[some] for each in (curve.x, curve.y, curve.low, curve.high)]
        curves.append([clean(curve.name), curve.kind, *(list(map(rounded, each)) for each in numbers)])
    told = {name: clean(getattr(panel, name)) for name in ("title", "x", "y")}
    return {"kind": panel.kind, **told, "log": panel.log}, curves


PACKED: Mapping[str, Callable[[Any], tuple[dict[str, Any], list[Any]]]] = {
    "figures": _figures,
    "table": _table,
    "drawing": _drawing,
}
"""Kind of a panel -> its header and its lines as they go over the wire."""
LENGTHS: Mapping[str, Callable[[Any], int]] = {
    "figures": lambda panel: sum(map(len, panel.claims.values())),
    "table": lambda panel: len(panel.frame),
    "drawing": lambda panel: 0,
}
"""Kind of a panel -> its lines, before some are left out."""


def _still_figures(header: dict[str, Any], lines: list[Any]) -> list[str]:
    columns = ["score", "SAE", "value", "95 % interval", "beside", ""]
    shown = [
        [score, sae, _said(value), f"{_said(low)} to {_said(high)}" if low is not None else "",
         "; ".join(f"{what} {_said(control)}" for what, control, *_ in controls) or why,
         "" if apart is None or apart else "not apart from a control"]
        for score, sae, value, low, high, controls, apart, why in lines[:STILL_LINES]
    ]  # fmt: skip
    return [*map(still.note, header["heads"]), still.grid(columns, shown, last=still.AMBER)]


def _still_table(header: dict[str, Any], lines: list[Any]) -> list[str]:
    return [still.grid(header["columns"], [[_said(cell) for cell in line] for line in lines[:STILL_LINES]])]


def _still_drawing(header: dict[str, Any], curves: list[Any]) -> list[str]:
    """What it is of; what is drawn needs a page that runs."""
    names = ", ".join(name for name, kind, *_ in curves if kind != "guide")
    return [still.note(f"{header['title']}, {header['y']} over {header['x']}: {names}")]


STILL: Mapping[str, Callable[[dict[str, Any], list[Any]], list[str]]] = {
    "figures": _still_figures,
    "table": _still_table,
    "drawing": _still_drawing,
}
"""Kind of a panel -> it where nothing runs."""


def _plain(cell: Any) -> Any:
    """A cell as JSON: numbers, and the rest as words."""
    if isinstance(cell, str) or cell is None:
        return "" if cell is None else clean(cell)
    number = cell.item() if isinstance(cell, np.generic) else cell
    if isinstance(number, bool):
        return "yes" if number else "no"
    return rounded(number) if isinstance(number, int | float) else clean(str(number))


def _said(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else still.number(value)


__all__ = ["ReportView"]
