"""A browser over all latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from saelab.analysis.results import LatentTable
from saelab.types import CorpusError
from saelab.widgets import assets, encode
from saelab.widgets.base import View
from saelab.widgets.card import checked_questions


class FeaturesView(View):
    """All latents as a list to sort and search, beside the card of the chosen one.

    table: one line a latent. questions: {"card": latent -> FeatureCard, "search": text -> [(latent,
    value)]}; without "search", text is looked up in the names alone.
    """

    _esm = assets.module("features", "renderFeatures")
    own = ("table", "names")

    def __init__(
        self, table: LatentTable, questions: Mapping[str, Callable[..., Any]], **options: Any
    ) -> None:
        self.table = table
        self.questions = checked_questions(questions, "card")
        super().__init__(**options)

    def answers(self) -> Mapping[str, Callable[..., encode.Packed]]:
        return {
            "table": lambda: encode.table(self.table),
            "names": lambda: encode.names(self.table),
            "card": lambda latent: encode.card(self.questions["card"](latent)),
            "search": self._search,
        }

    def text(self) -> str:
        table = self.table
        dead = int((table.count == 0).sum())
        lines = [f"{len(table):,} latents, {dead:,} never fire; the most frequent:"]
        for j in (-table.density).argsort(kind="stable")[:10]:
            least = f"min {table.min[j]:7.3f}  " if table.signed else ""
            lines.append(f"{j:>7}  {table.density[j]:8.3%}  {least}max {table.max[j]:7.3f}  {table.names[j]}")
        return "\n".join(lines)

    def _search(self, text: str) -> encode.Packed:
        if "search" not in self.questions:
            message = "Searching by a text needs the model. Got none. Make the view by a Lab: lab.features()."
            raise CorpusError(message)
        found = self.questions["search"](text)
        return encode.Packed({"found": [[int(j), float(v)] for j, v in found]}, [])
