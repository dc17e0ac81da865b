"""How well an SAE that stands for several hook points explains each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.controls import Sums, beside

if TYPE_CHECKING:
    import pandas as pd

    from saelab.analysis.scores import Seen
    from saelab.sae import SAE


class Places:
    """Squared errors and deviations of each place that an SAE writes, by document.

    Args:
        sae: A crosscoder or cross-layer transcoder; of others there is nothing to tell apart.
    """

    def __init__(self, sae: SAE) -> None:
        self.widths = list(sae.config.widths_out)
        self.names = [str(hook) for hook in (sae.writes if self.widths and sae.config.hooks else ())]
        self.names = self.names or [str(i) for i in range(len(self.widths))]
        self.sums = [Sums() for _ in self.widths]

    def add(self, seen: Seen, unit: np.ndarray) -> None:
        """Count rows.

        Args:
            seen: Them.
            unit: int64 [rows], the document of each.
        """
        if not self.widths:
            return
        parts = [each.double().split(self.widths, -1) for each in (seen.y, seen.x_hat, seen.mean)]
        for sums, y, y_hat, centre in zip(self.sums, *parts, strict=True):
            error, deviation = (y - y_hat).square().sum(1), (y - centre).square().sum(1)
            sums.add(unit, error=error.cpu().numpy(), deviation=deviation.cpu().numpy())


def fvu_of_places(own: Places, control: Places, seed: int) -> pd.DataFrame:
    """The fraction of variance unexplained of each hook point: a line each of `place`, `fvu`, its 95 %
    interval over documents `from`, `to`, and that of an untrained SAE, `untrained`.

    Args:
        own: Of the SAE.
        control: Of an untrained one.
        seed: Of the draws that give the intervals.
    """
    import pandas as pd

    lines = []
    for name, sums, other in zip(own.names, own.sums, control.sums, strict=True):
        found = beside(sums, other, _fvu, seed)
        low, high = found.interval
        lines.append({"place": name, "fvu": found.value, "from": low, "to": high, "untrained": found.control})
    return pd.DataFrame(lines)


def _fvu(sums: Mapping[str, Any]) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums["error"] / sums["deviation"]


__all__ = ["Places", "fvu_of_places"]
