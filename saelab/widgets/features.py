"""A browser over all latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from saelab.analysis.results import LatentTable
from saelab.types import CorpusError
from saelab.widgets import still
from saelab.widgets.base import View, checked_questions
from saelab.widgets.cards import asks_card, card_answers
from saelab.widgets.questions import Ask
from saelab.widgets.source import HasSources
from saelab.widgets.wire import Packed, clean


class FeaturesView(View):
    """All latents as a list to sort and search, beside the card of the chosen one; where several are chosen,
    these alone.

    Args:
        table: One line a latent.
        questions: {"card": latent -> FeatureCard, "search": text -> [(latent, value)]}; without "search",
            text is looked up in the names alone.
        options: See `View`.

    Raises:
        ConfigError: A question is missing, or an option unknown.
    """

    kind = "features"
    follows = ("latent", "row", "document", "latents")

    def __init__(
        self, table: LatentTable, questions: Mapping[str, Callable[..., Any]], **options: Any
    ) -> None:
        self.table = table
        self.questions = checked_questions(questions, "card")
        super().__init__(**options)

    @staticmethod
    def of(lab: HasSources, *, sae: str | None = None) -> FeaturesView:
        """A browser over all latents: sort, search by a text that fires them, read their cards.

        Args:
            lab: whose latents they are.
            sae: name of the SAE; None: the chosen one.

        Raises:
            StoreError: The SAE has no store.
        """
        source = lab.source(sae)
        return FeaturesView(
            source.table(), questions=source.questions, selection=source.selection, edits=source.edits
        )

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        return {
            "table": lambda: pack_table(self.table),
            "names": lambda: Packed({}, {"names": list(map(clean, self.table.names))}),
            **card_answers(self.questions),
            "search": self._search,
        }

    def first(self) -> Iterable[Ask]:
        return [Ask("table"), Ask("names"), *asks_card(self.latent)]

    def exported(self) -> Iterable[Ask]:
        known = (j for j in range(len(self.table)) if j not in self.table.absent)
        cards = (Ask("card", {"latent": j}) for j in known)
        return [Ask("table"), Ask("names"), *cards]

    def text(self) -> str:
        table = self.table
        lines = [f"{len(table):,} latents, {table.dead:,} never fire; the most frequent:"]
        for j in (-table.density).argsort(kind="stable")[:10]:
            least = f"min {table.min[j]:7.3f}  " if table.signed else ""
            lines.append(f"{j:>7}  {table.density[j]:8.3%}  {least}max {table.max[j]:7.3f}  {table.names[j]}")
        return "\n".join(lines)

    def html(self) -> str:
        shown = [] if self.latent is None else [still.card(self.questions["card"](self.latent))]
        return still.frame(still.table(self.table, self.latents), *shown)

    def _relabelled(self, change: Any) -> None:
        names = list(self.table.names)
        for latent, edited in change.new.items():
            names[int(latent)] = edited["name"]
        self.table = replace(self.table, names=tuple(names))
        super()._relabelled(change)

    def _search(self, text: str) -> Packed:
        if "search" not in self.questions:
            message = "Searching by a text needs the model. Got none. Make the view by a Lab: lab.features()."
            raise CorpusError(message)
        found = self.questions["search"](text)
        return Packed({"found": [[int(j), float(v)] for j, v in found]})


def pack_table(result: LatentTable) -> Packed:
    """Columns of all latents: 16 bytes a latent, or 20 where any is ever negative."""
    names = ("density", "mean", "max", "min") if result.signed else ("density", "mean", "max")
    columns = {name: np.asarray(getattr(result, name), np.float32) for name in names}
    return Packed({}, {"count": np.asarray(result.count, np.int32), **columns})
