"""What a card asks for when it is unfolded: relatives of its latent, other windows, documents, typed texts;
and how its label is edited."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from saelab.analysis.results import Examples, SampleCodes
from saelab.analysis.results_near import Relatives
from saelab.stores.characters import joined
from saelab.stores.records import Example
from saelab.types import CorpusError, StoreError, short
from saelab.widgets.card_windows import packed_windows
from saelab.widgets.questions import Ask
from saelab.widgets.wire import Packed, clean, cleaned, rounded

KINDS = ("random", "silent")
TYPED = 4_000
"""Characters of a text that is typed into a card, at most."""


def more_answers(questions: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Packed]]:
    """The answers to those questions of these that are there. What a store cannot answer is said in words
    (`reason`), so that the rest of the card, and a page of it, stands.

    Args:
        questions: "relatives": latent -> Relatives. "drawn": latent, kind -> Examples. "whole": latent, row
            -> Example. "codes": text -> SampleCodes. "relabel": latent, text -> what it is called now.
    """
    answers: dict[str, Callable[..., Packed]] = {}
    if "relatives" in questions:
        answers["relatives"] = lambda latent: relatives(questions["relatives"](latent))
    if "drawn" in questions:
        answers["drawn"] = lambda latent, kind: _windows(lambda: questions["drawn"](latent, kind), questions)
    if "whole" in questions:
        answers["whole"] = lambda latent, row: _windows(
            lambda: _alone(questions["whole"](latent, row)), questions
        )
    if "codes" in questions:
        answers["tried"] = lambda latent, text: _tried(questions["codes"], latent, text)
    if "relabel" in questions:
        answers["relabel"] = lambda latent, text: Packed({"label": clean(questions["relabel"](latent, text))})
    return answers


def asks_more(questions: Mapping[str, Callable[..., Any]], latent: int | None) -> list[Ask]:
    """What a page of one card holds of these.

    Args:
        questions: Of the view.
        latent: Of the card.
    """
    if latent is None:
        return []
    asked = [Ask("relatives", {"latent": latent})] if "relatives" in questions else []
    drawn = KINDS if "drawn" in questions else ()
    return asked + [Ask("drawn", {"latent": latent, "kind": kind}) for kind in drawn]


def relatives(result: Relatives) -> Packed:
    """What is near a latent, each with what chance gives."""
    header = {
        "latent": result.latent,
        "similar": [[s.latent, rounded(s.cosine)] for s in result.similar],
        "similar_chance": rounded(result.similar_chance),
        "similar_usual": rounded(result.similar_usual),
        "together": [
            [t.latent, t.count, rounded(t.expected), rounded(t.jaccard)] for t in result.together
        ],
        "neurons": [[n.neuron, rounded(n.weight)] for n in result.neurons],
        "aligned": list(map(rounded, result.aligned)),
        "aligned_chance": list(map(rounded, result.aligned_chance)),
        "hints": [
            [h.latent, h.kind, *map(rounded, (h.cosine, h.overlap, h.count, h.expected, h.spread))]
            for h in result.hints
        ],
        "overlap_chance": rounded(result.overlap_chance),
        "labels": [
            [clean(label), clean(source), [[clean(name), rounded(value)] for name, value in scores.items()]]
            for label, source, scores in result.labels
        ],
        "reasons": list(map(clean, result.reasons)),
    }  # fmt: skip
    return Packed(header)


def _alone(window: Example) -> Examples:
    return Examples(window.latent, window.kind, (window,))


def _windows(asked: Callable[[], Examples], questions: Mapping[str, Callable[..., Any]]) -> Packed:
    try:
        found = asked()
    except StoreError as error:
        nothing = packed_windows([], {})
        return nothing._replace(header={**nothing.header, "reason": clean(str(error))})
    documents = (
        questions["documents"]({w.document for w in found.windows}) if "documents" in questions else {}
    )
    seen = {number: document for number, document in documents.items() if document.grids or document.media}
    return packed_windows([found], seen, ask="documents" in questions)


def _tried(codes: Callable[[Any], SampleCodes], latent: int, text: str) -> Packed:
    """One latent along a text."""
    if not isinstance(text, str) or not 0 < len(text) <= TYPED:
        message = f"A text to try must have 1 to {TYPED:,} characters. Got {short(text)}. Type a shorter one."
        raise CorpusError(message)
    result = codes(text)
    values = result.of(latent).astype(np.float32)
    names = cleaned(joined(result.names))
    return Packed({}, {"names": names, "values": values, "counted": result.counted.astype(np.uint8)})


__all__ = ["asks_more", "more_answers", "relatives"]
