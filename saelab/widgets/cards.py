"""Cards of latents: the answer that views have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from saelab.analysis.results import FeatureCard
from saelab.stores.naming import Telling
from saelab.stores.records import LISTS, LatentStats
from saelab.widgets.card_more import more_answers
from saelab.widgets.card_windows import PICTURE_BYTES, packed_windows
from saelab.widgets.marks import mark_answers
from saelab.widgets.questions import Ask, Shared
from saelab.widgets.wire import Packed, clean, picture, rounded


def card_answers(questions: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Packed]]:
    """The answers to "card", to "picture" of a document, and to what is noted of latents, for any view.

    Args:
        questions: "card": latent -> FeatureCard. If they are there, "cards": latents -> their cards, which is
            how pages ask for them; "fetch": latents, whose cards will be asked for; "documents": numbers ->
            {number: DocumentRecord}, for pictures that do not come along with a card: without it they are
            left out; and those of `mark_answers`.
    """
    one, many = questions["card"], questions.get("cards")
    documents, more = questions.get("documents"), more_answers(questions)

    def asking(packed: Packed) -> Packed:
        # what it may ask for when it is unfolded
        return packed._replace(header={**packed.header, "asks": sorted(more)})

    def for_page(args: Sequence[Mapping[str, Any]]) -> Iterable[Packed]:
        latents = [a["latent"] for a in args]
        cards = many(latents) if many is not None else map(one, latents)
        if documents is None:
            return (asking(card(c, quantised=True, ask=False)) for c in cards)
        # a page holds a picture once, whatever the cards that show it
        return (asking(card(c, quantised=True, budget=0)) for c in cards)

    def answer(latent: int) -> Packed:
        return asking(card(one(latent), ask=documents is not None))

    def ahead(args: Sequence[Mapping[str, Any]]) -> None:
        questions["fetch"]([a["latent"] for a in args])

    fetch = ahead if "fetch" in questions else None
    answers: dict[str, Callable[..., Packed]] = {
        "card": Shared(answer, one, for_page, in_bulk=many is not None, fetch=fetch)
    }
    if documents is not None:

        def pictures(args: Sequence[Mapping[str, Any]]) -> list[Packed]:
            numbers = [a["document"] for a in args]
            held = documents(numbers)
            return [Packed({}, {"picture": picture(held[n].media if n in held else None)}) for n in numbers]

        answers["picture"] = Shared(
            lambda document: pictures([{"document": document}])[0], documents, pictures, in_bulk=True
        )
    return {**answers, **more, **mark_answers(questions)}


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
    header: dict[str, Any] = {
        "latent": result.stats.latent,
        "label": clean(result.label),
        "stats": _stats(result.stats),
        "lens": None,
        "tokens": [told(each) for each in result.tokens],
        "bottom_tokens": [told(each) for each in result.bottom_tokens],
    }
    if result.lens is not None:
        header["lens"] = {
            "top": [[clean(t), rounded(v)] for t, v in result.lens.top],
            "bottom": [[clean(t), rounded(v)] for t, v in result.lens.bottom],
            "spread": rounded(result.lens.spread),
        }
    windows = packed_windows(groups, result.documents, quantised=quantised, budget=budget, ask=ask)
    return Packed({**header, **windows.header}, windows.fields, windows.needs)


def told(each: Telling) -> list[Any]:
    """What sets a latent apart: name, count, share of its rows, lift."""
    return [clean(each.name), each.count, rounded(each.share), rounded(each.lift)]


def _stats(stats: LatentStats) -> dict[str, Any]:
    scalars = {name: value for name, value in vars(stats).items() if name not in LISTS}
    return {
        **{name: value if isinstance(value, int) else rounded(value) for name, value in scalars.items()},
        "low": rounded(stats.edges[0]),
        "high": rounded(stats.edges[-1]),
        "histogram": [int(c) for c in stats.histogram],
    }
