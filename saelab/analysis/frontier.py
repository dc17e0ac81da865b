"""Sparsity against fidelity: several SAEs of one hook point, measured on the same rows, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.controls import interval_of
from saelab.analysis.panels import Curve, Drawing
from saelab.analysis.report import Report, Scores
from saelab.arguments import checked, listed, mapping
from saelab.config import is_number
from saelab.errors import headline
from saelab.types import ConfigError, short

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

# colours that the colour-blind tell apart (Okabe and Ito), each with a shape and a dash of its own
LOOKS = (
    ("#0072b2", "circle", "solid"),
    ("#d55e00", "square", "dash"),
    ("#009e73", "diamond", "dot"),
    ("#cc79a7", "triangle-up", "dashdot"),
    ("#7a5c00", "cross", "longdash"),
    ("#56b4e9", "star", "longdashdot"),
    ("#000000", "triangle-down", "solid"),
    ("#e69f00", "hexagon", "dash"),
)

BETTER = {"fvu": -1, "loss_recovered": 1}
"""Score -> 1 where more is better, -1 where less is."""
PANELS = {"fvu": "FVU (lower is better)", "loss_recovered": "loss recovered (higher is better)"}


@dataclass(frozen=True)
class Point:
    """One SAE of a frontier."""

    name: str
    sae: Scores
    untrained: Scores
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """95 % of the SAE's scores, by name; NaN, or missing, where there is none"""

    def interval(self, score: str) -> tuple[float, float]:
        """95 % of a score; NaN where there is none."""
        return self.intervals.get(score, (float("nan"), float("nan")))


@dataclass(frozen=True)
class Frontier:
    """Scores of several SAEs over their L0, grouped by name, the sparsest of each name first."""

    hook: str
    n_rows: int
    points: tuple[Point, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row an SAE: name, l0, fvu, loss_recovered, dead, and fvu and loss_recovered of its control."""
        import pandas as pd

        columns = ["name", "l0", "fvu", "loss_recovered", "dead"]
        rows = [
            [p.name, p.sae.l0, p.sae.fvu, p.sae.loss_recovered, p.sae.dead, p.untrained.fvu,
             p.untrained.loss_recovered]
            for p in self.points
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=[*columns, "untrained fvu", "untrained loss_recovered"])

    def at(self, l0: float) -> pd.DataFrame:
        """One row a name: fvu and loss_recovered at an L0, interpolated linearly over log L0.

        It is between the two SAEs of that name next to it; NaN where the SAEs of a name are all sparser or
        all denser.

        Raises:
            ConfigError: The L0 is not positive.
        """
        import pandas as pd

        if not (is_number(l0) and l0 > 0):
            message = f"l0 must be greater than 0. Got {l0!r}. Pass one between those of the SAEs."
            raise ConfigError(message)
        found = {}
        for name, points in self._groups().items():
            firing = [p.sae for p in points if p.sae.l0 > 0]
            x = np.log([s.l0 for s in firing])
            found[name] = [
                float(np.interp(np.log(l0), x, y, left=np.nan, right=np.nan)) if firing else float("nan")
                for y in ([s.fvu for s in firing], [_known(s.loss_recovered) for s in firing])
            ]
        index = pd.Index(found, name="name")
        return pd.DataFrame(list(found.values()), index=index, columns=["fvu", "loss_recovered"])

    def front(self, score: str = "fvu") -> pd.DataFrame:
        """The Pareto front: SAEs of which none is as sparse and better, or as good and sparser.

        Args:
            score: "fvu" (lower is better) or "loss_recovered" (higher is better).

        Returns:
            The sparsest first: name, l0, the score, its 95 % interval (from, to), and "sure": whether the
            interval meets that of no SAE that is as sparse or sparser, so that the place on the front is no
            accident of the documents.

        Raises:
            ConfigError: The score is neither.
        """
        import pandas as pd

        rows = []
        for point in self._front(score):
            low, high = point.interval(score)
            others = (p for p in self._known(score) if p is not point and p.sae.l0 <= point.sae.l0)
            rivals = [p.interval(score) for p in others]
            sure = all(high < other[0] or low > other[1] for other in rivals)
            value = getattr(point.sae, score)
            rows.append([point.name, point.sae.l0, value, low, high, sure and low == low])
        return pd.DataFrame(rows, columns=["name", "l0", score, "from", "to", "sure"])

    def _known(self, score: str) -> list[Point]:
        """SAEs that fire and have the score."""
        return [p for p in self.points if p.sae.l0 > 0 and not np.isnan(_known(getattr(p.sae, score)))]

    def _front(self, score: str) -> list[Point]:
        if not isinstance(score, str) or score not in BETTER:
            message = f"score must be one of {', '.join(BETTER)}. Got {short(score)}. Pass e.g. score='fvu'."
            raise ConfigError(message)
        found: list[Point] = []
        best = -np.inf
        for point in sorted(
            self._known(score), key=lambda p: (p.sae.l0, -BETTER[score] * getattr(p.sae, score))
        ):
            value = BETTER[score] * getattr(point.sae, score)
            if value > best:
                found.append(point)
                best = value
        return found

    def drawings(self) -> tuple[Drawing, ...]:
        """FVU, and loss recovered where it is known, over L0: a line a name with 95 % intervals, and the
        Pareto front in steps."""
        found = []
        for score, title in PANELS.items():
            known = self._known(score)
            curves = [
                _curve(name, [p for p in points if p in known], score)
                for name, points in self._groups().items()
            ]
            front = self._front(score)
            curves.append(_curve("Pareto front", front, score)._replace(kind="steps", low=None, high=None))
            if known:
                found.append(Drawing(f"{title} over L0", "L0", title, tuple(curves), log=True))
        return tuple(found)

    def figure(self) -> go.Figure:
        """FVU and loss recovered over L0: a line a name, told apart by marker, dash and colour, with bars of
        the 95 % intervals; the Pareto front is grey, in steps. The untrained controls, crosses, show on a
        click in the legend: they lie so far off that they would squeeze the lines. An SAE that never fires
        has no place on the logarithmic axis of L0."""
        from plotly.subplots import make_subplots

        figure = make_subplots(cols=2, horizontal_spacing=0.1)
        for column, (score, title) in enumerate(PANELS.items(), start=1):
            for i, (name, points) in enumerate(self._groups().items()):
                colour, shape, dash = LOOKS[i % len(LOOKS)]
                figure.add_scatter(
                    x=[p.sae.l0 for p in points], y=[getattr(p.sae, score) for p in points],
                    name=name, legendgroup=name, showlegend=column == 1, mode="lines+markers",
                    line={"color": colour, "dash": dash, "width": 1.5},
                    marker={"symbol": shape, "size": 10, "line": {"width": 1, "color": "white"}},
                    error_y=_bars(points, score, colour),
                    hovertemplate=f"{name}<br>L0 %{{x:.1f}}<br>%{{y:.4f}}<extra></extra>",
                    row=1, col=column,
                )  # fmt: skip
            front = self._front(score)
            figure.add_scatter(
                x=[p.sae.l0 for p in front], y=[getattr(p.sae, score) for p in front],
                name="Pareto front", legendgroup="front", showlegend=column == 1, mode="lines",
                line={"color": "#999999", "width": 5, "shape": "hv"}, opacity=0.35, hoverinfo="skip",
                row=1, col=column,
            )  # fmt: skip
            figure.add_scatter(
                x=[p.untrained.l0 for p in self.points],
                y=[getattr(p.untrained, score) for p in self.points],
                text=[p.name for p in self.points],
                name="untrained", legendgroup="untrained", showlegend=column == 1,
                mode="markers", visible="legendonly",
                marker={"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": "#777777"}},
                hovertemplate="%{text}, untrained<br>L0 %{x:.1f}<br>%{y:.4f}<extra></extra>",
                row=1, col=column,
            )  # fmt: skip
            figure.update_yaxes(title_text=title, row=1, col=column)
        ticks = [m * 10.0**e for e in range(-1, 5) for m in (1, 2, 3, 5, 7)]
        figure.update_xaxes(type="log", tickvals=ticks, title_text="L0, latents on per token (log)")
        figure.update_layout(
            title=f"{self.hook}, {self.n_rows:,} rows", template="plotly_white", height=460,
            margin={"l": 60, "r": 20, "t": 50, "b": 50},
        )  # fmt: skip
        return figure

    def _groups(self) -> dict[str, list[Point]]:
        """Points by name, in order."""
        groups: dict[str, list[Point]] = {}
        for point in self.points:
            groups.setdefault(point.name, []).append(point)
        return groups

    __repr__ = headline

    def __str__(self) -> str:
        table = self.to_frame().to_string(index=False, float_format=lambda v: f"{v:.4g}")
        return f"{self.hook}, {self.n_rows:,} rows\n{table}"


@checked(reports=mapping)
def frontier(reports: Mapping[str, Sequence[Report]]) -> Frontier:
    """Put the reports of `saelab.evaluate` side by side.

    Args:
        reports: For each name, say of a recipe, the reports of its SAEs at several sparsities. All must have
            scored the same texts at the same hook point.

    Raises:
        ConfigError: They did not, or there is none.
    """
    groups = {str(name): list(listed("reports[...]", group)) for name, group in reports.items()}
    every = [report for group in groups.values() for report in group]
    if not every:
        message = (
            "A frontier needs at least one report. Got none. Pass e.g. {'topk': [saelab.evaluate(...)]}."
        )
        raise ConfigError(message)
    for report in every:
        if not isinstance(report, Report):
            message = f"A frontier is made of reports. Got {short(report)}. Pass what saelab.evaluate gives."
            raise ConfigError(message)
    first = every[0]
    for report in every:
        if ground_of(report) != ground_of(first):
            message = (
                f"The reports of a frontier must be of the same texts and hook point. Got {ground_of(first)} "
                f"and {ground_of(report)}. Evaluate them on the same corpus with the same max_rows."
            )
            raise ConfigError(message)
    points = [
        Point(name, report.sae, report.untrained, {s: interval_of(c) for s, c in report.scores.items()})
        for name, group in groups.items()
        for report in sorted(group, key=lambda r: r.sae.l0)
    ]
    return Frontier(first.hook, first.n_rows, tuple(points))


def _curve(name: str, points: Sequence[Point], score: str) -> Curve:
    """A line of a drawing."""
    low, high = np.array([p.interval(score) for p in points], float).reshape(-1, 2).T
    x, y = ([p.sae.l0 for p in points], [getattr(p.sae, score) for p in points])
    return Curve(name, np.array(x, float), np.array(y, float), "line", low, high)


def _known(score: float | None) -> float:
    return float("nan") if score is None else score


def _bars(points: Sequence[Point], score: str, colour: str) -> dict[str, Any]:
    """Bars of the 95 % intervals of a line's points; none where there is none."""
    values = [_known(getattr(p.sae, score)) for p in points]
    ends = [p.interval(score) for p in points]
    above = [high - value for value, (_, high) in zip(values, ends, strict=True)]
    below = [value - low for value, (low, _) in zip(values, ends, strict=True)]
    array, arrayminus = ([max(0.0, np.nan_to_num(size)) for size in sizes] for sizes in (above, below))
    look = {"color": colour, "thickness": 1.5, "width": 4}
    return {"type": "data", "symmetric": False, "array": array, "arrayminus": arrayminus, **look}


def ground_of(report: Report) -> str:
    """What two reports share if they are of the same rows of one hook point.

    Args:
        report: One of them.
    """
    loss = "" if report.loss_clean is None else f", loss {report.loss_clean:.4f}"
    rows = f", fingerprint {report.rows[:12]}" if report.rows else ""
    return f"{report.n_rows:,} rows of {report.hook}{rows}{loss}"
