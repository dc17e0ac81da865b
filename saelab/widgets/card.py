"""The card of one latent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from saelab.widgets.base import View, checked_questions
from saelab.widgets.cards import asks_card, card_answers
from saelab.widgets.questions import Ask
from saelab.widgets.wire import Packed


class CardView(View):
    """One latent in full; it follows the selection. Choosing a window selects its row and document.

    Args:
        latent: Shown first.
        questions: {"card": latent -> FeatureCard}.
        options: See `View`.

    Raises:
        ConfigError: A question is missing, or an option unknown.
    """

    kind = "card"
    follows = ("latent", "row", "document")

    def __init__(self, latent: int, questions: Mapping[str, Callable[..., Any]], **options: Any) -> None:
        self.questions = checked_questions(questions, "card")
        super().__init__(latent=latent, **options)

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        return {"card": card_answers(self.questions)}

    def first(self) -> Iterable[Ask]:
        return asks_card(self.latent)

    def text(self) -> str:
        return "no latent chosen" if self.latent is None else str(self.questions["card"](self.latent))
