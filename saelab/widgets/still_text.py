"""Texts as they stand where nothing runs: by a layer such as the loss, and by several latents at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from saelab.analysis.results import Difference, Layer, SampleCodes
from saelab.stores.characters import joined
from saelab.widgets import still

LETTERS = "ABCDEF"
"""As in the browser: so many latents at once."""
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (213, 94, 0), (0, 114, 178))


def by_layer(result: SampleCodes, layer: Layer) -> str:
    """A text shaded by a layer."""
    values = np.nan_to_num(layer.values)
    low, most = float(values.min(initial=0.0)), float(np.abs(values).max(initial=0.0))
    scale = f"{still.number(low)} to {still.number(float(values.max(initial=0.0)))} {layer.unit}"
    figures = f"mean {still.number(layer.mean)} {layer.unit}; {layer.beside}: "
    figures += f"{still.number(layer.control)} {layer.unit}"
    head = [still.note(f"{layer.title}, {scale}"), still.note(f"{layer.note}. {figures}")]
    if result.parted:
        head.append(still.note(result.parted))
    names = joined(result.names)
    return "".join(head) + still.shaded_line(names, values, most, still.SAMPLE_BYTES, aside=~result.counted)


def by_latents(result: SampleCodes, latents: Sequence[int], labels: Mapping[int, str]) -> str:
    """A text on which several latents are marked, each token by the letter of those that fire."""
    shown = list(latents[: len(LETTERS)])
    values = [result.of(latent) for latent in shown]
    most = [float(np.abs(own).max(initial=0.0)) for own in values]
    key = []
    for letter, latent, top, colour in zip(LETTERS, shown, most, COLOURS, strict=False):
        label = labels.get(latent, "")[: still.LABEL]
        said = f"#{latent}{f' «{label}»' if label else ''} up to {still.number(top)}"
        line = f"border-bottom:3px solid {still.over_white(colour, 1)}"
        key.append(f'<span style="{line}"><b>{letter}</b></span> {still.escaped(said)}')
    out = [f"<div>{' &nbsp; '.join(key)}</div>"]
    if len(latents) > len(shown):
        out.append(still.note(f"{len(latents) - len(shown)} more are not shown"))
    if result.parted:
        out.append(still.note(result.parted))
    pieces = []
    for at, name in enumerate(joined(result.names)):
        fires = [i for i, own in enumerate(values) if own[at]]
        text = still.escaped(name or "").replace("↵", "↵<br>")
        if fires:
            best = max(fires, key=lambda i: abs(float(values[i][at])) / most[i])
            letters = "".join(LETTERS[i] for i in fires)
            told = ", ".join(f"{LETTERS[i]} {still.number(float(values[i][at]))}" for i in fires)
            share = abs(float(values[best][at])) / most[best]
            style = f"background-color:{still.over_white(COLOURS[best], 0.15 + 0.35 * share)}"
            text = f'<mark title="{told}" style="{style}">{text}</mark><sup>{letters}</sup>'
        pieces.append(text)
    style = "white-space:pre-wrap;font-family:monospace"
    told = still.within(pieces, still.SAMPLE_BYTES, "position")
    return f'{"".join(out)}<div dir="auto" style="{style}">{told}</div>'


def differing(result: Difference, labels: Mapping[int, str]) -> str:
    """The latents that differ most, each beside its control."""
    columns = ["latent", "mean |difference| a place", "control", "label"]
    some = zip(result.latents[: still.LINES].tolist(), result.size, result.control, strict=False)
    lines = [
        [f"#{j}", still.number(size), still.number(control), labels.get(j, "")[: still.LABEL]]
        for j, size, control in some
    ]
    return still.note(f"latents that differ most; control: {result.beside}") + still.grid(columns, lines)
