"""Two SAEs side by side where nothing runs: see `saelab.widgets.still`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from saelab.analysis.results import FeatureCard, LatentTable
from saelab.widgets import still

LINES = 20
NAME = 60
"""Characters of a latent's name."""


def compared(
    result: Any,
    tables: tuple[LatentTable, LatentTable],
    card: Callable[[int], FeatureCard],
    other_card: Callable[[int], FeatureCard],
    chosen: tuple[int | None, int | None],
) -> str:
    """Shares, the first pairs, and the cards of the chosen ones.

    Args:
        result: What `saelab.analysis.compare` gives.
        tables: One line a latent, of each SAE.
        card: Of a latent of ours.
        other_card: Of theirs.
        chosen: Latents, or None.
    """
    columns = [*result.names, *result.scores]
    lines = []
    for at, (i, j) in enumerate(result.pairs[:LINES].tolist()):
        names = (tables[0].names[i], tables[1].names[j])
        told = [f"#{number} {name[:NAME]}" for number, name in zip((i, j), names, strict=True)]
        values = [f"{found[at]:.3f}" if found[at] == found[at] else "" for found in result.scores.values()]
        lines.append([*told, *values])
    cards = [
        still.note(name) + still.card(make(latent))
        for name, make, latent in zip(result.names, (card, other_card), chosen, strict=True)
        if latent is not None
    ]
    return still.frame(still.words(str(result)), still.grid(columns, lines), *cards)
