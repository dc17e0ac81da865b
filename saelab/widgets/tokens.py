"""A text as a heatmap of its latents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import traitlets

from saelab.analysis.results import SampleCodes
from saelab.widgets.base import View, checked_questions
from saelab.widgets.cards import asks_card, card_answers
from saelab.widgets.questions import Ask
from saelab.widgets.wire import Packed, clean


class TokensView(View):
    """Tokens shaded by the chosen latent, or without one by the strongest latent of each.

    Args:
        codes: Of the text.
        questions: {"card": latent -> FeatureCard}.
        options: `with_card`: show the chosen latent's card below. Others: see `View`.

    Raises:
        ConfigError: A question is missing, or an option unknown.
    """

    kind = "tokens"
    follows = ("latent", "row", "document")
    with_card = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self, codes: SampleCodes, questions: Mapping[str, Callable[..., Any]], **options: Any
    ) -> None:
        self.codes = codes
        self.questions = checked_questions(questions, "card")
        super().__init__(**options)

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        return {"codes": lambda: pack_codes(self.codes), "card": card_answers(self.questions)}

    def first(self) -> Iterable[Ask]:
        return [Ask("codes"), *(asks_card(self.latent) if self.with_card else [])]

    def exported(self) -> Iterable[Ask]:
        fired = np.unique(self.codes.codes.indices) if self.with_card else []
        return [Ask("codes"), *(Ask("card", {"latent": int(j)}) for j in fired)]

    def text(self) -> str:
        return str(self.codes)


def pack_codes(result: SampleCodes) -> Packed:
    """What each position shows, of which kind that is, whether it is counted, and the codes in CSR form."""
    codes = result.codes
    kinds = {facet: i for i, facet in enumerate(dict.fromkeys(each.facet for each in result.shown))}
    return Packed(
        {"facets": list(kinds)},
        {
            "names": list(map(clean, result.names)),
            "facets": np.array([kinds[each.facet] for each in result.shown], np.uint8),
            "counted": result.counted,
            "indptr": codes.indptr.astype(np.int32),
            "indices": codes.indices.astype(np.int32),
            "values": codes.values.astype(np.float32),
        },
    )
