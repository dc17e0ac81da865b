"""The scores of two SAEs on the same samples, each beside its untrained control."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saelab.analysis.evals import Report, evaluate
from saelab.analysis.frontier import Frontier, frontier
from saelab.arguments import an_integer, checked, mapping
from saelab.errors import headline
from saelab.types import ConfigError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from saelab.sae import SAE
    from saelab.types import Subject


@dataclass(frozen=True)
class SideBySide:
    """Reports of `saelab.evaluate` on the same samples, by name."""

    reports: Mapping[str, Report]

    @property
    def frontier(self) -> Frontier | None:
        """FVU and loss recovered over L0, where the SAEs read one hook point; None where they do not."""
        try:
            return frontier({name: [report] for name, report in self.reports.items()})
        except ConfigError:
            return None

    def to_frame(self) -> pd.DataFrame:
        """One row a score and SAE: value, its 95 % interval, and that of an untrained SAE."""
        import pandas as pd

        rows = [
            [score, name, found.value, *found.interval, found.control]
            for score in self._scores()
            for name, report in self.reports.items()
            if (found := report.scores.get(score)) is not None
        ]
        return pd.DataFrame(rows, columns=["score", "sae", "value", "from", "to", "untrained"])

    def figure(self) -> go.Figure:
        """FVU and loss recovered over L0.

        Raises:
            ConfigError: The SAEs read different hook points, whose scores have no common scale.
        """
        return frontier({name: [report] for name, report in self.reports.items()}).figure()

    def _scores(self) -> list[str]:
        return list(dict.fromkeys(score for report in self.reports.values() for score in report.scores))

    __repr__ = headline

    def __str__(self) -> str:
        heads = [f"{name}: {report.hook}, {report.n_rows:,} rows" for name, report in self.reports.items()]
        table = self.to_frame().to_string(index=False, float_format=lambda v: f"{v:.4g}")
        return "\n".join([*heads, table])


@checked(saes=mapping, max_rows=an_integer(1), seed=an_integer())
def side_by_side(
    saes: Mapping[str, SAE],
    subject: Subject,
    corpus: Iterable[Any],
    *,
    max_rows: int = 4096,
    seed: int = 0,
) -> SideBySide:
    """Scores of several SAEs of one subject on the same samples, each beside its untrained control.

    Args:
        saes: By name.
        subject: The model.
        corpus: What it reads.
        max_rows: Stop after this many rows.
        seed: See `saelab.evaluate`.

    Raises:
        CorpusError: There are no rows.
        HookError: An SAE names no hook point of the subject.
    """
    samples = list(corpus)
    return SideBySide(
        {
            str(name): evaluate(sae, subject, samples, max_rows=max_rows, seed=seed)
            for name, sae in saes.items()
        }
    )


__all__ = ["SideBySide", "side_by_side"]
