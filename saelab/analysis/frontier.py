"""Sparsity against fidelity: several SAEs of one hook point, measured on the same rows, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

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


@dataclass(frozen=True)
class Point:
    """One SAE of a frontier."""

    name: str
    sae: Scores
    untrained: Scores


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

    def figure(self) -> go.Figure:
        """FVU and loss recovered over L0: a line a name, told apart by marker, dash and colour. The untrained
        controls, crosses, show on a click in the legend: they lie so far off that they would squeeze the
        lines. An SAE that never fires has no place on the logarithmic axis of L0."""
        from plotly.subplots import make_subplots

        figure = make_subplots(cols=2, horizontal_spacing=0.1)
        panels = [("fvu", "FVU (lower is better)"), ("loss_recovered", "loss recovered (higher is better)")]
        for column, (score, title) in enumerate(panels, start=1):
            for i, (name, points) in enumerate(self._groups().items()):
                colour, shape, dash = LOOKS[i % len(LOOKS)]
                figure.add_scatter(
                    x=[p.sae.l0 for p in points], y=[getattr(p.sae, score) for p in points],
                    name=name, legendgroup=name, showlegend=column == 1, mode="lines+markers",
                    line={"color": colour, "dash": dash, "width": 1.5},
                    marker={"symbol": shape, "size": 10, "line": {"width": 1, "color": "white"}},
                    hovertemplate=f"{name}<br>L0 %{{x:.1f}}<br>%{{y:.4f}}<extra></extra>",
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
        if _ground(report) != _ground(first):
            message = (
                f"The reports of a frontier must be of the same texts and hook point. Got {_ground(first)} "
                f"and {_ground(report)}. Evaluate them on the same corpus with the same max_rows."
            )
            raise ConfigError(message)
    points = [
        Point(name, report.sae, report.untrained)
        for name, group in groups.items()
        for report in sorted(group, key=lambda r: r.sae.l0)
    ]
    return Frontier(first.hook, first.n_rows, tuple(points))


def _known(score: float | None) -> float:
    return float("nan") if score is None else score


def _ground(report: Report) -> str:
    """What two reports share if they are of the same rows: rows and clean loss tell texts apart."""
    loss = "" if report.loss_clean is None else f" (loss {report.loss_clean:.4f})"
    return f"{report.n_rows:,} rows of {report.hook}{loss}"
