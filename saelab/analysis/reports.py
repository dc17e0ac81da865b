"""What `saelab.evaluate` gives of several SAEs: their reports on the same rows, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saelab.analysis.controls import controls_of, interval_of
from saelab.analysis.frontier import Frontier, frontier
from saelab.analysis.report import Report
from saelab.errors import headline
from saelab.types import ConfigError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Reports:
    """Reports of several SAEs on the same samples, by name."""

    reports: Mapping[str, Report]

    def __getitem__(self, name: str) -> Report:
        return self.reports[name]

    @property
    def frontier(self) -> Frontier | None:
        """FVU and loss recovered over L0, where the SAEs read one hook point; None where they do not."""
        try:
            return self._frontier()
        except ConfigError:
            return None

    def to_frame(self) -> pd.DataFrame:
        """One row a score and SAE: value, its 95 % interval, what the first control is, and its value."""
        import pandas as pd

        names = dict.fromkeys(name for report in self.reports.values() for name in report.claims)
        rows = []
        for score in names:
            for name, report in self.reports.items():
                claim = report.claims.get(score)
                if claim is not None:
                    what, control = next(iter(controls_of(claim).items()), ("", np.nan))
                    rows.append([score, name, claim.value, *interval_of(claim), what, control])
        columns = ["score", "sae", "value", "from", "to", "beside", "control"]
        return pd.DataFrame(rows, columns=columns)

    def figure(self) -> go.Figure:
        """FVU and loss recovered over L0.

        Raises:
            ConfigError: The SAEs read different hook points, whose scores have no common scale.
        """
        return self._frontier().figure()

    def _frontier(self) -> Frontier:
        return frontier({name: [report] for name, report in self.reports.items()})

    __repr__ = headline

    def __str__(self) -> str:
        heads = [f"{name}: {report.hook}, {report.n_rows:,} rows" for name, report in self.reports.items()]
        table = self.to_frame().to_string(index=False, float_format=lambda v: f"{v:.4g}", na_rep="")
        return "\n".join([*heads, table])


__all__ = ["Reports"]
