"""Cards of latents: the answer that views have in common."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from saelab.analysis.results import FeatureCard
from saelab.stores.records import LISTS, LatentStats
from saelab.widgets.questions import Ask, Shared
from saelab.widgets.wire import Packed, clean, rounded


def card_answers(questions: Mapping[str, Callable[..., Any]]) -> Shared:
    """The answer to "card", for any view.

    Args:
        questions: "card": latent -> FeatureCard; and "cards", if it is there: a list of latents -> their
            cards, which is how pages ask for them.
    """
    one, many = questions["card"], questions.get("cards")

    def for_page(args: Sequence[Mapping[str, Any]]) -> Iterable[Packed]:
        latents = [a["latent"] for a in args]
        cards = many(latents) if many is not None else map(one, latents)
        return (card(c, quantised=True) for c in cards)

    return Shared(lambda latent: card(one(latent)), one, for_page, in_bulk=many is not None)


def asks_card(latent: int | None) -> list[Ask]:
    """The question for a latent's card; none for no latent."""
    return [] if latent is None else [Ask("card", {"latent": latent})]


def card(result: FeatureCard, *, quantised: bool = False) -> Packed:
    """A card.

    Args:
        result: The card.
        quantised: Values in 255 steps (`quantum`) instead of float32; each is off by one step at most, and
            keeps its sign.

    Returns:
        Fields `names` and `values` of all windows, one after the other: uint16 or uint32 numbers of the
        header's `vocabulary`, and float32 or uint8.
    """
    groups = [group for group in (result.top, result.bottom, result.quantile) if group is not None]
    windows = [w for group in groups for w in group.windows]
    kinds = [group.kind for group in groups for _ in group.windows]
    shown = list(itertools.chain.from_iterable([w.names for w in windows]))
    place = {name: i for i, name in enumerate(dict.fromkeys(shown))}
    names = np.array(list(map(place.__getitem__, shown)), np.uint16 if len(place) <= 0xFFFF else np.uint32)
    values = np.concatenate([w.values for w in windows]) if windows else np.zeros(0)
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
            }
            for kind, w in zip(kinds, windows, strict=True)
        ],
        "vocabulary": list(map(clean, place)),
        "lens": None,
    }
    if result.lens is not None:
        header["lens"] = {
            "top": [[clean(t), rounded(v)] for t, v in result.lens.top],
            "bottom": [[clean(t), rounded(v)] for t, v in result.lens.bottom],
            "spread": rounded(result.lens.spread),
        }
    if quantised:
        header["quantum"], header["zero"], values = _quantised(values)
    else:
        values = values.astype(np.float32, copy=False)
    return Packed(header, {"names": names, "values": values})


def _stats(stats: LatentStats) -> dict[str, Any]:
    plain = {name: value for name, value in vars(stats).items() if name not in LISTS}
    return {
        **{name: value if isinstance(value, int) else rounded(value) for name, value in plain.items()},
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
