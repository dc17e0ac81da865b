"""A text as a heatmap of its latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import traitlets

from saelab.analysis.results import SampleCodes
from saelab.widgets import assets, encode
from saelab.widgets.base import View
from saelab.widgets.card import checked_questions


class TokensView(View):
    """Tokens shaded by the chosen latent, or without one by the strongest latent of each.

    codes: of the text. questions: {"card": latent -> FeatureCard}. with_card: show the chosen latent's card
    below.
    """

    _esm = assets.module("tokens", "renderTokens")
    own = ("codes",)
    with_card = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self, codes: SampleCodes, questions: Mapping[str, Callable[..., Any]], **options: Any
    ) -> None:
        self.codes = codes
        self.questions = checked_questions(questions, "card")
        super().__init__(**options)

    def answers(self) -> Mapping[str, Callable[..., encode.Packed]]:
        return {
            "codes": lambda: encode.codes(self.codes),
            "card": lambda latent: encode.card(self.questions["card"](latent)),
        }

    def text(self) -> str:
        return str(self.codes)
