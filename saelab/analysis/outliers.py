"""What rows of outlier norm make of an SAE's error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from saelab.analysis.scores import Seen


class Tally:
    """How much of an SAE's error, and of what it should rebuild, is that of outliers."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}
        """quantity -> (of outliers, of all rows)"""

    def add(self, seen: Seen) -> None:
        """Count rows."""
        beyond = ~seen.usual
        for name, each in (("rows", seen.rows), ("error", seen.error), ("deviation", seen.deviation)):
            rare, all_ = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = rare + float(each[beyond].sum()), all_ + float(each.sum())


def outliers(tallies: Mapping[str, Tally]) -> pd.DataFrame:
    """One line for each SAE: outlier rows, their share of all rows, of the squared error, and of the squared
    distance from the mean.

    Args:
        tallies: By the SAE's name.
    """
    import pandas as pd

    lines = []
    for name, tally in tallies.items():
        share = {key: rare / all_ if all_ else 0.0 for key, (rare, all_) in tally.sums.items()}
        told = {"outlier rows": int(tally.sums["rows"][0]), "of rows": share["rows"]}
        lines.append({"sae": name, **told, "of error": share["error"], "of variance": share["deviation"]})
    return pd.DataFrame(lines)


__all__ = ["Tally", "outliers"]
