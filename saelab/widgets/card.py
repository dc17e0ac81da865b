"""The card of one latent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from saelab.types import ConfigError
from saelab.widgets import assets, encode
from saelab.widgets.base import View


class CardView(View):
    """One latent in full; it follows the selection.

    latent: shown first. questions: {"card": latent -> FeatureCard}.
    """

    _esm = assets.module("card", "renderCard")

    def __init__(self, latent: int, questions: Mapping[str, Callable[..., Any]], **options: Any) -> None:
        self.questions = checked_questions(questions, "card")
        super().__init__(latent=latent, **options)

    def answers(self) -> Mapping[str, Callable[..., encode.Packed]]:
        return {"card": lambda latent: encode.card(self.questions["card"](latent))}

    def text(self) -> str:
        return "no latent chosen" if self.latent is None else str(self.questions["card"](self.latent))


def checked_questions(
    questions: Mapping[str, Callable[..., Any]], *needed: str
) -> Mapping[str, Callable[..., Any]]:
    """The questions, if those that a view cannot do without are there. Raises ConfigError."""
    for name in needed:
        if not callable(questions.get(name)):
            message = (
                f"questions must hold a function {name!r}. Got {sorted(questions)}. Pass "
                f"{{{name!r}: function}}."
            )
            raise ConfigError(message)
    return dict(questions)
