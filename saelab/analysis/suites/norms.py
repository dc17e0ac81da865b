"""The suite "norms"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.controls import Alone, Beside, Sums, beside, untrained
from saelab.analysis.norms import NormDiagnostics, norms, zf_plot
from saelab.analysis.panels import Drawing
from saelab.analysis.probing.gathered import gather
from saelab.analysis.suites.registry import Found, Suite, register

if TYPE_CHECKING:
    from saelab.analysis.sources import Ground
    from saelab.sae import SAE


@register("norms")
@dataclass(frozen=True)
class Norms(Suite):
    """Are codes as long as what they stand for, and how much overlap of the dictionary does their difference
    prove? (arXiv 2503.24277: the ZF plot and eps_LBO; `saelab.analysis.norms` says more.)

    "code / input" and "sum / input" are ratios of the rows' summed lengths, the others means over rows. The
    table "zf" has what the ZF plot shows, row by row; it is drawn where the report is shown.
    """

    rows: int = 5_000
    """at most"""

    def run(self, sae: SAE, ground: Ground) -> Found:
        read = gather(sae, ground, self.rows)
        x, unit = read.x.to(sae.device), read.document
        found = norms(sae, x)  # refuses transcoders
        control = norms(untrained(sae, x, seed=ground.seed), x)
        claims: dict[str, Beside | Alone] = {}
        for name, of in FIGURES.items():
            sums = []
            for each in (found, control):
                above, below = of(each)
                known = np.isfinite(above)
                sums.append(Sums())
                sums[-1].add(unit[known], above=above[known], below=below[known])
            if all(each.n_units and each.total("below") > 0 for each in sums):
                claims[name] = beside(sums[0], sums[1], _ratio, ground.seed)
        for name, value, other in (
            ("largest overlap", found.coherence, control.coherence),
            ("largest proven overlap", _proven(found), _proven(control)),
        ):
            why = f"a largest value has no interval; the untrained SAE's is {other:.4g}"
            if np.isfinite(value):
                claims[name] = Alone(value, why)
        asked = [*FIGURES, "largest overlap", "largest proven overlap"]
        left_out = {name: "no row has two latents on" for name in asked if name not in claims}
        return Found(claims, left_out, {"zf": found.to_frame()})

    @classmethod
    def drawings(cls, found: Found) -> tuple[Drawing, ...]:
        """The ZF plot.

        Args:
            found: Of `run`, or of a report that was read.
        """
        table = found.tables.get("zf")
        if table is None or not {"input", "code"} <= set(table.columns):
            return ()
        return (zf_plot(table["input"].to_numpy(), table["code"].to_numpy()),)


def _ratio(sums: Mapping[str, Any]) -> Any:
    return sums["above"] / sums["below"]


def _proven(found: NormDiagnostics) -> float:
    known = found.eps_sharp[np.isfinite(found.eps_sharp)]
    return float(known.max()) if len(known) else float("nan")


FIGURES = {
    "code / input": lambda found: (found.code, found.input),
    "sum / input": lambda found: (found.product, found.input),
    "eps_LBO": lambda found: (found.eps_lbo, np.ones(len(found.code))),
    "proven overlap": lambda found: (found.eps_bound, np.ones(len(found.code))),
    "proven overlap, sharp": lambda found: (found.eps_sharp, np.ones(len(found.code))),
}
"""Name -> what is summed above and below the line."""
