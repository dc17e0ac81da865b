"""The card of one latent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from saelab.widgets import still
from saelab.widgets.base import View, checked_questions
from saelab.widgets.cards import asks_card, card_answers
from saelab.widgets.marks import asks_marks
from saelab.widgets.questions import Ask
from saelab.widgets.source import HasSources
from saelab.widgets.wire import Packed


class CardView(View):
    """One latent in full; it follows the selection. Choosing a window selects its row and document.

    Args:
        latent: Shown first; None for the chosen one.
        questions: {"card": latent -> FeatureCard}.
        options: See `View`.

    Raises:
        ConfigError: A question is missing, or an option unknown.
    """

    kind = "card"
    follows = ("latent", "row", "document")

    def __init__(
        self, latent: int | None, questions: Mapping[str, Callable[..., Any]], **options: Any
    ) -> None:
        self.questions = checked_questions(questions, "card")
        super().__init__(latent=latent, **options)

    @staticmethod
    def of(
        lab: HasSources, latent: int | None = None, *, sae: str | None = None, follow: bool = False
    ) -> CardView:
        """The card of one latent: of that which the call names, or else of the chosen one, whichever that is.

        Args:
            lab: whose latent it is.
            latent: its number; the card is pinned to it.
            sae: name of the SAE; None: the chosen one.
            follow: choose the latent in every linked view of its SAE, and be one of them.

        Raises:
            RangeError: The latent is out of range.
            StoreError: The SAE has no store.
        """
        source = lab.source(sae)
        selection = source.selection_for(latent, follow)
        return CardView(selection.latent, questions=source.questions, selection=selection, edits=source.edits)

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        return card_answers(self.questions)

    def first(self) -> Iterable[Ask]:
        return [*asks_card(self.latent), *asks_marks(self.questions)]

    def text(self) -> str:
        return "no latent chosen" if self.latent is None else str(self.questions["card"](self.latent))

    def html(self) -> str:
        if self.latent is None:
            return still.frame(still.note(self.text()))
        return still.frame(still.card(self.questions["card"](self.latent)))
