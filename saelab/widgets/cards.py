"""Cards of latents: the answer that views have in common."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from saelab.analysis.results import FeatureCard
from saelab.layout import Layout, Part
from saelab.stores.characters import window_names
from saelab.stores.records import LISTS, DocumentRecord, Example, LatentStats
from saelab.widgets.marks import mark_answers
from saelab.widgets.questions import Ask, Shared
from saelab.widgets.wire import Packed, clean, picture, rounded

PICTURE_BYTES = 60_000
"""Bytes of pictures that come along with a card, at most: what is short comes along with a view."""
QUANTISED = 20_000
"""Positions of a card's windows beyond which values go in 255 steps, so that a card stays below 300 kB."""


def card_answers(questions: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Packed]]:
    """The answers to "card", to "picture" of a document, and to what is noted of latents, for any view.

    Args:
        questions: "card": latent -> FeatureCard. If they are there, "cards": latents -> their cards, which is
            how pages ask for them; "documents": numbers -> {number: DocumentRecord}, for pictures that do not
            come along with a card: without it they are left out; and those of `mark_answers`.
    """
    one, many = questions["card"], questions.get("cards")
    documents = questions.get("documents")

    def for_page(args: Sequence[Mapping[str, Any]]) -> Iterable[Packed]:
        latents = [a["latent"] for a in args]
        cards = many(latents) if many is not None else map(one, latents)
        if documents is None:
            return (card(c, quantised=True, ask=False) for c in cards)
        # a page holds a picture once, whatever the cards that show it
        return (card(c, quantised=True, budget=0) for c in cards)

    def answer(latent: int) -> Packed:
        return card(one(latent), ask=documents is not None)

    answers: dict[str, Callable[..., Packed]] = {
        "card": Shared(answer, one, for_page, in_bulk=many is not None)
    }
    if documents is not None:

        def pictures(args: Sequence[Mapping[str, Any]]) -> list[Packed]:
            numbers = [a["document"] for a in args]
            held = documents(numbers)
            return [Packed({}, {"picture": picture(held[n].media if n in held else None)}) for n in numbers]

        answers["picture"] = Shared(
            lambda document: pictures([{"document": document}])[0], documents, pictures, in_bulk=True
        )
    return answers | mark_answers(questions)


def asks_card(latent: int | None) -> list[Ask]:
    """The question for a latent's card; none for no latent."""
    return [] if latent is None else [Ask("card", {"latent": latent})]


def card(
    result: FeatureCard, *, quantised: bool = False, budget: int = PICTURE_BYTES, ask: bool = True
) -> Packed:
    """A card.

    Args:
        result: The card.
        quantised: Values in 255 steps (`quantum`) instead of float32; each is off by one step at most, and
            keeps its sign. Those of a card of many positions are so in any case.
        budget: Bytes of pictures that come along, those of the first windows.
        ask: Whether the others are asked for; else they are left out.

    Returns:
        Fields `names` and `values` of all windows, one after the other: uint16 or uint32 numbers of the
        header's `vocabulary` (patches of a grid have none: they are called by their place), and float32 or
        uint8. `pictures`: those of the header's `documents`, one after the other.
    """
    groups = [group for group in (result.top, result.bottom, result.quantile) if group is not None]
    windows = [w for group in groups for w in group.windows]
    kinds = [group.kind for group in groups for _ in group.windows]
    layouts = {number: Layout.parse(document.layout) for number, document in result.documents.items()}
    parts = [
        layouts[w.document].parts(w.start, len(w.names)) if w.document in layouts else None for w in windows
    ]
    shown = list(itertools.chain.from_iterable(map(_named, windows, parts)))
    place = {name: i for i, name in enumerate(dict.fromkeys(shown))}
    names = np.array(list(map(place.__getitem__, shown)), np.uint16 if len(place) <= 0xFFFF else np.uint32)
    values = np.concatenate([w.values for w in windows]) if windows else np.zeros(0)
    calls = any(w.call for w in windows)
    header: dict[str, Any] = {
        "latent": result.stats.latent,
        "label": clean(result.label),
        "stats": _stats(result.stats),
        "windows": [
            {
                "kind": kind,
                "peak": w.position - w.start,
                "value": rounded(w.value),
                "row": w.row,
                "document": w.document,
                "n": len(w.names),
                **({} if own is None else {"parts": [list(part) for part in own]}),
                **({"call": w.call} if calls else {}),
            }
            for kind, w, own in zip(kinds, windows, parts, strict=True)
        ],
        "vocabulary": [None if name is None else clean(name) for name in place],
        "lens": None,
    }
    if result.lens is not None:
        header["lens"] = {
            "top": [[clean(t), rounded(v)] for t, v in result.lens.top],
            "bottom": [[clean(t), rounded(v)] for t, v in result.lens.bottom],
            "spread": rounded(result.lens.spread),
        }
    if quantised or len(values) > QUANTISED:
        header["quantum"], header["zero"], values = _quantised(values)
    else:
        values = values.astype(np.float32, copy=False)
    fields, needs = {"names": names, "values": values}, []
    if result.documents:
        header["documents"], fields["pictures"], needs = _documents(result.documents, budget, ask)
    return Packed(header, fields, tuple(needs))


def _named(window: Example, parts: Sequence[Part] | None) -> Iterable[str | None]:
    """What the positions of a window show that are not in a grid; None goes on with the one before."""
    if parts is None:
        return window_names(window.names)
    at = itertools.accumulate((part.n for part in parts), initial=0)
    return itertools.chain.from_iterable(
        window.names[start : start + part.n]
        for start, part in zip(at, parts, strict=False)
        if part.kind != "grid"
    )


def _documents(
    documents: Mapping[int, DocumentRecord], budget: int, ask: bool
) -> tuple[list[dict[str, Any]], np.ndarray, list[Ask]]:
    """What a card's header says of its documents, their pictures within a budget of bytes, and questions for
    the others."""
    told, along, needs, spent = [], [], [], 0
    for number, document in documents.items():
        own = picture(document.media)
        size = len(own) if spent + len(own) <= budget else 0
        asked = ask and size < len(own)
        told.append({
            "document": number, "title": clean(document.title), "label": clean(", ".join(document.labels)),
            "grids": document.grids, "bytes": size, "asked": asked,
        })  # fmt: skip
        spent += size
        if size:
            along.append(own)
        if asked:
            needs.append(Ask("picture", {"document": number}))
    return told, np.concatenate(along) if along else picture(None), needs


def _stats(stats: LatentStats) -> dict[str, Any]:
    scalars = {name: value for name, value in vars(stats).items() if name not in LISTS}
    return {
        **{name: value if isinstance(value, int) else rounded(value) for name, value in scalars.items()},
        "low": rounded(stats.edges[0]),
        "high": rounded(stats.edges[-1]),
        "histogram": [int(c) for c in stats.histogram],
    }


def _quantised(values: np.ndarray) -> tuple[float, int, np.ndarray]:
    """A step, the number of the step at 0, and uint8 numbers: value = (number - zero) * step."""
    low = min(float(values.min(initial=0)), 0.0)
    span = float(values.max(initial=0)) - low
    step = span / 255 if span else 1.0
    # 0 must stay 0, so that a row where the latent does not fire shows as such, with room for either sign
    zero = min(max(round(-low / step), 1), 254) if low < 0 else 0
    numbers = np.rint(values / step) + zero
    numbers = np.where((values != 0) & (numbers == zero), zero + np.sign(values), numbers)
    return step, zero, np.clip(numbers, 0, 255).astype(np.uint8)
