"""What `saelab.evaluate` gives of several SAEs: their reports on the same rows, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis import report_json
from saelab.analysis.controls import controls_of, interval_of
from saelab.analysis.frontier import Frontier, frontier, ground_of
from saelab.analysis.panels import Panel
from saelab.analysis.report import Report, of_several
from saelab.arguments import checked, place
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

    def by_recipe(self) -> dict[str, list[Report]]:
        """The reports by what their SAEs are, "topk, 4,096 latents", for `saelab.analysis.frontier`: SAEs of
        one recipe and width make one line, from the sparsest to the densest."""
        found: dict[str, list[Report]] = {}
        for name, report in self.reports.items():
            recipe, width = report.about.get("recipe"), report.about.get("d_sae")
            known = recipe is not None and isinstance(width, int)
            found.setdefault(f"{recipe}, {width:,} latents" if known else name, []).append(report)
        return found

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

    def panels(self) -> tuple[Panel, ...]:
        """What is shown of them: their figures side by side, the frontier where there is one, and what the
        suites of each draw."""
        figures, *drawn = of_several(self.reports)
        front = self.frontier if len(self.reports) > 1 else None
        return (figures, *(front.drawings() if front else ()), *drawn)

    def _frontier(self) -> Frontier:
        return frontier({name: [report] for name, report in self.reports.items()})

    def to_json(self) -> str:
        """The reports as text, for `from_json`.

        Raises:
            ConfigError: As `Report.to_json`.
        """
        return report_json.dumped(self._plain())

    @classmethod
    def from_json(cls, text: str) -> Reports:
        """The reports that `to_json` wrote.

        Args:
            text: What it gave.

        Raises:
            FormatError: It is something else, of one SAE, or of a newer saelab.
        """
        return _reports(report_json.parsed(text), "the text")

    def save(self, path: str | Path) -> Path:
        """Write the reports into a file, which `saelab.analysis.read_report` reads.

        Args:
            path: The file, x.json. What is there stays until all of the new one is on the disk.

        Returns:
            The path.

        Raises:
            ConfigError: As `to_json`.
            StoreError: It cannot be written.
        """
        return report_json.save(path, self._plain())

    def _plain(self) -> dict[str, Any]:
        return {"reports": {name: report_json.plain(report) for name, report in self.reports.items()}}

    __repr__ = headline

    def __str__(self) -> str:
        heads = [f"{name}: {ground_of(report)}" for name, report in self.reports.items()]
        rows = {(report.n_rows, report.rows) for report in self.reports.values()}
        if len(rows) > 1:
            heads.append("Not of the same rows: their differences are not those of the SAEs alone.")
        table = self.to_frame().to_string(index=False, float_format=lambda v: f"{v:.4g}", na_rep="")
        return "\n".join([*heads, table])


@checked(path=place)
def read_report(path: str | Path) -> Report | Reports:
    """What `report.save(path)` or `reports.save(path)` wrote.

    Args:
        path: The file.

    Returns:
        The `Report` of one SAE, the `Reports` of several.

    Raises:
        StoreError: It cannot be read.
        FormatError: It is something else, damaged, or of a newer saelab.
    """
    data = report_json.STAMP.read(Path(path), "report")
    if "report" in data:
        return report_json.report_of(Report, report_json.part(data, "report", path), path)
    return _reports(data, path)


def _reports(data: Mapping[str, Any], where: object) -> Reports:
    each = report_json.part(data, "reports", where)
    return Reports({name: report_json.report_of(Report, one, where) for name, one in each.items()})


__all__ = ["Reports", "read_report"]
