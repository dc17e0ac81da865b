"""What `saelab.evaluate` gives of one SAE: its scores, each beside its control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.analysis import report_json
from saelab.analysis.controls import Alone, Beside, framed
from saelab.analysis.panels import Drawing, Figures, Panel
from saelab.analysis.suites.registry import Found, registered
from saelab.errors import headline

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Scores:
    """The core scores of one SAE on one corpus; see `saelab.analysis.scores` for what each is. None where the
    subject cannot tell."""

    fvu: float
    l0: float
    dead: float
    loss: float | None = None
    loss_recovered: float | None = None


@dataclass(frozen=True)
class Report:
    """Scores of an SAE beside those of an untrained SAE of the same configuration, on the same rows."""

    hook: str
    n_rows: int
    loss_clean: float | None
    """the subject untouched, in nats for language models; None where it has no loss"""
    loss_ablated: float | None
    """the activations replaced by their mean"""
    sae: Scores
    untrained: Scores
    scores: Mapping[str, Beside | Alone] = field(default_factory=dict)
    """every core score by its name, beside its control, with intervals over documents (of "dead": over
    latents); alone where it was published so"""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """scores, figures ("suite: name") and suites that could not be measured, and why"""
    suites: Mapping[str, Found] = field(default_factory=dict)
    """what each suite beside the core found, by its name"""
    rows: str = ""
    """fingerprint of what the rows are of, hex: reports are comparable where it and n_rows are equal"""
    about: Mapping[str, str | int] = field(default_factory=dict)
    """what the SAE is: its recipe, d_in, d_sae and fingerprint; of one that was published, by whom"""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """what each suite was run with, by its name; what JSON cannot hold is told in words"""
    loss_zeroed: float | None = None
    """the activations replaced by zeros"""
    core: Found = field(default_factory=lambda: Found({}))
    """tables behind the core scores: "densities", latents by the share of rows on which they fire;
    "outliers"; of crosscoders and cross-layer transcoders "places", the FVU of each hook point"""

    @property
    def claims(self) -> dict[str, Beside | Alone]:
        """Every figure: core scores by their names, those of suites as "suite: name"."""
        found: dict[str, Beside | Alone] = dict(self.scores)
        for suite, each in self.suites.items():
            found |= {f"{suite}: {name}": claim for name, claim in each.claims.items()}
        return found

    def to_frame(self) -> pd.DataFrame:
        """One line for each figure: this SAE, each control (NaN where it stands beside none of that kind),
        and the 95 % interval of this SAE's."""
        return framed(self.claims)

    def to_json(self) -> str:
        """The report as text, for `from_json`: numbers, intervals and tables as they are.

        Raises:
            ConfigError: A table of a suite holds what is neither number, boolean, text nor missing.
        """
        return report_json.dumped({"report": report_json.plain(self)})

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote.

        Args:
            text: What it gave.

        Raises:
            FormatError: It is something else, of several SAEs, or of a newer saelab.
        """
        return report_json.report_of(cls, report_json.part(report_json.parsed(text), "report"))

    def save(self, path: str | Path) -> Path:
        """Write the report into a file, which `saelab.analysis.read_report` reads.

        Args:
            path: The file, x.json. What is there stays until all of the new one is on the disk.

        Returns:
            The path.

        Raises:
            ConfigError: As `to_json`.
            StoreError: It cannot be written.
        """
        return report_json.save(path, {"report": report_json.plain(self)})

    def drawings(self) -> tuple[Drawing, ...]:
        """What its suites draw of what they found."""
        known = registered()
        return tuple(
            drawing
            for name, found in self.suites.items()
            if name in known  # a report that was read may have suites that are no longer there
            for drawing in known[name].drawings(found)
        )

    def panels(self) -> tuple[Panel, ...]:
        """What is shown of it: its figures, what was left out, and its drawings."""
        return of_several({"": self})

    __repr__ = headline

    def __str__(self) -> str:
        head = f"{self.hook}, {self.n_rows:,} rows"
        if self.loss_clean is not None:
            head += f"; loss {self.loss_clean:.3f} clean, {self.loss_ablated:.3f} ablated"
            head += "" if self.loss_zeroed is None else f", {self.loss_zeroed:.3f} zeroed"
        lines = [head, self.to_frame().to_string(float_format=lambda v: f"{v:.4g}", na_rep="")]
        return "\n".join([*lines, *(f"{name}: left out, {why}" for name, why in self.left_out.items())])


def of_several(reports: Mapping[str, Report]) -> tuple[Panel, ...]:
    """The figures of reports in one table, and their drawings.

    Args:
        reports: By name; "" of one that stands alone.
    """
    figures = Figures(
        {name: report.claims for name, report in reports.items()},
        tuple(
            f"{f'{name}: ' if name else ''}{report.hook}, {report.n_rows:,} rows"
            for name, report in reports.items()
        ),
        tuple((name, score, why) for name, each in reports.items() for score, why in each.left_out.items()),
        len({(report.n_rows, report.rows) for report in reports.values()}) < 2,
    )
    drawn = (
        replace(drawing, title=f"{name}: {drawing.title}" if name else drawing.title)
        for name, report in reports.items()
        for drawing in report.drawings()
    )
    return (figures, *drawn)


__all__ = ["Report", "Scores", "of_several"]
