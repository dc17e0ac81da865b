"""Windows of a card on the wire, and pictures of their documents."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from saelab.analysis.results import Examples
from saelab.layout import Layout, Part
from saelab.stores.characters import window_names
from saelab.stores.records import DocumentRecord, Example
from saelab.widgets.questions import Ask
from saelab.widgets.wire import Packed, clean, cleaned, picture, rounded

PICTURE_BYTES = 60_000
"""Bytes of pictures that come along with a card, at most: what is short comes along with a view."""
QUANTISED = 20_000
"""Positions of a card's windows beyond which values go in 255 steps, so that a card stays below 300 kB."""


def packed_windows(
    groups: Sequence[Examples],
    documents: Mapping[int, DocumentRecord],
    *,
    quantised: bool = False,
    budget: int = PICTURE_BYTES,
    ask: bool = True,
) -> Packed:
    """Windows, with the part of `card` that is of them.

    Args:
        groups: By kind.
        documents: Of the windows, that are more than their rows' names.
        quantised: See `card`.
        budget: See `card`.
        ask: See `card`.
    """
    windows = [w for group in groups for w in group.windows]
    kinds = [group.kind for group in groups for _ in group.windows]
    layouts = {number: Layout.parse(document.layout) for number, document in documents.items()}
    parts = [
        layouts[w.document].parts(w.start, len(w.names)) if w.document in layouts else None for w in windows
    ]
    shown = list(itertools.chain.from_iterable(map(_named, windows, parts)))
    place = {name: i for i, name in enumerate(dict.fromkeys(shown))}
    names = np.array(list(map(place.__getitem__, shown)), np.uint16 if len(place) <= 0xFFFF else np.uint32)
    values = np.concatenate([w.values for w in windows]) if windows else np.zeros(0)
    calls = any(w.call for w in windows)
    header: dict[str, Any] = {
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
        "vocabulary": cleaned(place),
    }
    if quantised or len(values) > QUANTISED:
        header["quantum"], header["zero"], values = _quantised(values)
    else:
        values = values.astype(np.float32, copy=False)
    fields, needs = {"names": names, "values": values}, []
    if documents:
        header["documents"], fields["pictures"], needs = _documents(documents, budget, ask)
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
