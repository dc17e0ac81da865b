"""The card of one latent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import traitlets

from saelab.analysis.results_near import Relatives
from saelab.arguments import flag
from saelab.widgets import still, still_card
from saelab.widgets.base import View, checked_questions
from saelab.widgets.card_more import asks_more
from saelab.widgets.cards import asks_card, card_answers
from saelab.widgets.marks import asks_marks
from saelab.widgets.questions import Ask
from saelab.widgets.source import HasSources
from saelab.widgets.wire import Packed


class CardView(View):
    """One latent in full; it follows the selection. Choosing a window selects its row and document.

    Args:
        latent: Shown first; None for the chosen one.
        questions: {"card": latent -> FeatureCard}, and what else of `more_answers` it can be asked.
        compact: Show fewer lines of each part.
        options: See `View`.

    Raises:
        ConfigError: A question is missing, or an option unknown.
    """

    kind = "card"
    follows = ("latent", "row", "document")

    compact = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self,
        latent: int | None,
        questions: Mapping[str, Callable[..., Any]],
        *,
        compact: bool = False,
        **options: Any,
    ) -> None:
        self.questions = checked_questions(questions, "card")
        super().__init__(latent=latent, compact=flag("compact", compact), **options)

    @staticmethod
    def of(
        lab: HasSources,
        latent: int | None = None,
        *,
        sae: str | None = None,
        follow: bool = False,
        compact: bool = False,
    ) -> CardView:
        """The card of one latent: of that which the call names, or else of the chosen one, whichever that is.

        Args:
            lab: whose latent it is.
            latent: its number; the card is pinned to it.
            sae: name of the SAE; None: the chosen one.
            follow: choose the latent in every linked view of its SAE, and be one of them.
            compact: show fewer lines of each part; a switch on the card shows the rest.

        Raises:
            RangeError: The latent is out of range.
            StoreError: The SAE has no store.
        """
        source = lab.source(sae)
        selection = source.selection_for(latent, follow)
        made = {"questions": source.questions, "selection": selection, "edits": source.edits}
        return CardView(selection.latent, compact=compact, **made)

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        return card_answers(self.questions)

    def first(self) -> Iterable[Ask]:
        return [*asks_card(self.latent), *asks_marks(self.questions)]

    def exported(self) -> Iterable[Ask]:
        return [*self.first(), *asks_more(self.questions, self.latent)]

    def text(self) -> str:
        if self.latent is None:
            return "no latent chosen"
        near = self._near()
        return str(self.questions["card"](self.latent)) + (f"\n{near}" if near is not None else "")

    def html(self) -> str:
        if self.latent is None:
            return still.frame(still.note(self.text()))
        card, near = self.questions["card"](self.latent), self._near()
        return still.frame(
            still.card(card), still_card.apart(card), still_card.near(near) if near is not None else ""
        )

    def _near(self) -> Relatives | None:
        return self.questions["beside"](self.latent) if "beside" in self.questions else None
