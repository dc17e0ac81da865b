"""What an analysis found, as it stands: figures beside their controls with their intervals, or a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from saelab.types import ConfigError, short
from saelab.widgets import still
from saelab.widgets.base import View
from saelab.widgets.questions import Ask
from saelab.widgets.source import HasSources
from saelab.widgets.wire import Packed, clean, rounded

MOST_LINES = 2_000
"""Lines that are shown, at most."""
STILL_LINES = 60
"""Lines where nothing runs."""


class ReportView(View):
    """Figures of one SAE or several, each beside its controls, with bars of the 95 % intervals; one whose
    interval meets that of a control says so. Of any other result its table.

    Args:
        result: A `Report`, `Reports`, or what else has a `to_frame()`.
        options: See `View`.

    Raises:
        ConfigError: The result has no table, or an option is unknown.
    """

    kind = "report"
    follows = ()

    def __init__(self, result: Any, **options: Any) -> None:
        if not hasattr(result, "claims") and not callable(getattr(result, "to_frame", None)):
            message = (
                f"A report is shown of a result with a table. Got {short(result)}. Pass what "
                "saelab.evaluate or saelab.analysis gives."
            )
            raise ConfigError(message)
        self.result = result
        super().__init__(**options)

    @staticmethod
    def of(lab: HasSources, result: Any) -> ReportView:
        """What an analysis found: figures beside their controls with their intervals, of one SAE or several;
        of other results their table. `export("report.html")` makes a page of it.

        Args:
            lab: whose view it is.
            result: Of `saelab.evaluate`, `read_report`, `read_saebench`; or any with a `to_frame()`.

        Raises:
            ConfigError: The result has no table.
        """
        return ReportView(result)

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        return {"result": self._packed}

    def first(self) -> Iterable[Ask]:
        return [Ask("result")]

    def left_out(self) -> str:
        n = len(self._lines() if self._reports() else self._frame())
        return f"all lines but the first {MOST_LINES:,} of {n:,}" if n > MOST_LINES else ""

    def text(self) -> str:
        return str(self.result)

    def html(self) -> str:
        header, fields = self._packed()[:2]
        if not self._reports():
            lines = [[_said(cell) for cell in line] for line in fields["lines"][:STILL_LINES]]
            return still.frame(still.grid(header["columns"], lines))
        columns = ["score", "SAE", "value", "95 % interval", "beside", ""]
        shown = [
            [score, sae, _said(value), f"{_said(low)} to {_said(high)}" if low is not None else "",
             "; ".join(f"{what} {_said(control)}" for what, control, *_ in controls) or why,
             "" if apart is None or apart else "not apart from a control"]
            for score, sae, value, low, high, controls, apart, why in fields["lines"][:STILL_LINES]
        ]  # fmt: skip
        heads = map(still.note, header["heads"])
        return still.frame(*heads, still.grid(columns, shown, last=still.AMBER))

    def _reports(self) -> dict[str, Any]:
        """The reports by the names of their SAEs; none where the result is something else."""
        if hasattr(self.result, "reports"):
            return dict(self.result.reports)
        return {"": self.result} if hasattr(self.result, "claims") else {}

    def _frame(self) -> Any:
        """The table, with its index as columns where that has names."""
        frame = self.result.to_frame()
        return frame.reset_index() if any(name is not None for name in frame.index.names) else frame

    def _packed(self) -> Packed:
        reports = self._reports()
        if not reports:
            frame = self._frame()
            cells = frame.head(MOST_LINES).itertuples(index=False, name=None)
            return Packed(
                {
                    "kind": clean(type(self.result).__name__),
                    "columns": [clean(str(c)) for c in frame.columns],
                },
                {"lines": [[_plain(cell) for cell in line] for line in cells]},
            )
        heads = [
            clean(f"{f'{name}: ' if name else ''}{report.hook}, {report.n_rows:,} rows")
            for name, report in reports.items()
        ]
        left = [
            [clean(name), clean(score), clean(why)]
            for name, report in reports.items()
            for score, why in report.left_out.items()
        ]
        rows = {(report.n_rows, report.rows) for report in reports.values()}
        header = {"heads": heads, "left_out": left, "several": len(reports) > 1, "same_rows": len(rows) < 2}
        return Packed(header, {"lines": self._lines()[:MOST_LINES]})

    def _lines(self) -> list[list[Any]]:
        """score, SAE, value, from, to, controls (what, value, from, to), whether apart (None: unknown), why
        it has none. The SAEs of one score follow each other."""
        reports = self._reports()
        scores = dict.fromkeys(score for report in reports.values() for score in report.claims)
        return [
            [clean(score), clean(name), *_claim(report.claims[score])]
            for score in scores
            for name, report in reports.items()
            if score in report.claims
        ]


def _claim(claim: Any) -> list[Any]:
    """Of a figure beside controls, or of one that says why it has none (`saelab.analysis.controls`)."""
    if hasattr(claim, "why"):
        return [rounded(claim.value), None, None, [], None, clean(claim.why)]
    ends = [rounded(end) for end in claim.interval]
    controls = [(claim.what, claim.control, claim.control_interval), *claim.also]
    told = [[clean(what), rounded(value), *map(rounded, of)] for what, value, of in controls]
    known = all(end == end for _, _, of in controls for end in of) and None not in ends
    return [rounded(claim.value), *ends, told, claim.apart if known else None, ""]


def _plain(cell: Any) -> Any:
    """A cell as JSON: numbers, and the rest as words."""
    if isinstance(cell, str) or cell is None:
        return "" if cell is None else clean(cell)
    number = getattr(cell, "item", lambda: cell)()
    if isinstance(number, bool):
        return "yes" if number else "no"
    return rounded(number) if isinstance(number, int | float) else clean(str(number))


def _said(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else still.number(value)


__all__ = ["ReportView"]
