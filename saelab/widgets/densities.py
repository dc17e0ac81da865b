"""How often latents fire, all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from saelab.analysis.results import LatentTable
from saelab.widgets import still
from saelab.widgets.base import View
from saelab.widgets.questions import Ask
from saelab.widgets.source import HasSources
from saelab.widgets.wire import Packed

PER_DECADE = 4
"""Bins of a factor of ten."""


class DensitiesView(View):
    """A histogram of log10 of the share of rows on which each latent fires, the dead ones apart.

    Choosing a bar chooses its latents; of latents that are chosen elsewhere each bar shows its part.

    Args:
        table: One line for each latent.
        options: See `View`.

    Raises:
        ConfigError: An option is unknown.
    """

    kind = "densities"
    follows = ("latents", "latent")

    def __init__(self, table: LatentTable, **options: Any) -> None:
        self.table = table
        super().__init__(**options)

    @staticmethod
    def of(lab: HasSources, *, sae: str | None = None) -> DensitiesView:
        """How often the latents fire: a histogram of log10 of the share of rows, the dead ones apart.

        Click a bar to choose its latents, which `lab.features()` then lists alone.

        Args:
            lab: whose latents they are.
            sae: name of the SAE; None: the chosen one.

        Raises:
            StoreError: The SAE has no store.
        """
        source = lab.source(sae)
        return DensitiesView(source.table(), selection=source.selection)

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        return {"densities": self._packed}

    def first(self) -> Iterable[Ask]:
        return [Ask("densities")]

    def text(self) -> str:
        title, counts = self._bins()
        most = max([*counts.values(), 1])
        lines = [f"{name}  {n:>7,}  {'#' * -(-40 * n // most)}".rstrip() for name, n in counts.items()]
        return "\n".join([title, *lines])

    def html(self) -> str:
        return still.frame(still.bars(*self._bins()))

    def _packed(self) -> Packed:
        return pack_densities(self.table.density, self.table.absent)

    def _bins(self) -> tuple[str, dict[str, int]]:
        """In words, and how many latents are in each bin."""
        header, fields = self._packed()[:2]
        starts = [header["low"] + i / PER_DECADE for i in range(len(fields["counts"]))]
        counts = {
            f"{start:6.2f} to {start + 1 / PER_DECADE:5.2f}": n
            for start, n in zip(starts, fields["counts"].tolist(), strict=True)
        }
        return (
            f"{len(self.table):,} latents, {header['dead']:,} never fire; log10 of the share of rows:",
            counts,
        )


def pack_densities(density: np.ndarray, absent: Collection[int] = ()) -> Packed:
    """Equal bins of log10(density), the last of which ends at 0, and the latents of each.

    Args:
        density: [d_sae] shares of rows in [0, 1].
        absent: latents of which nothing is known; they are in no bin, nor among the dead.

    Returns:
        Header `dead`, how many never fire, and `low`, where the first bin begins. Fields: `counts` int32
        [bins], none where all are dead; `latents` int32 [n], the dead first, then bin by bin. A bin holds
        its upper edge.
    """
    alive = np.flatnonzero(density > 0)
    # from the top: 0 is the bin that ends at a density of 1
    down = np.floor(-np.log10(density[alive].astype(np.float64)) * PER_DECADE).astype(np.int64)
    bins = int(down.max(initial=-1)) + 1
    order = np.argsort(-down, kind="stable")
    dead = np.setdiff1d(np.flatnonzero(density <= 0), list(absent))
    latents = np.concatenate([dead, alive[order]])
    counts = np.bincount(down, minlength=bins)[::-1]
    return Packed(
        {"dead": len(dead), "low": -bins / PER_DECADE, "per_decade": PER_DECADE},
        {"counts": counts.astype(np.int32), "latents": latents.astype(np.int32)},
    )
