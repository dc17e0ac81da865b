"""Heads as they stand where nothing runs: in words, as a grid, and the tokens that a latent came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.stores.characters import joined
from saelab.widgets import still

if TYPE_CHECKING:
    from saelab.analysis.results_attention import DFA

HEADS = 32
"""Columns of a grid, at most."""


def lines(session: Any, found: DFA | None, name: str) -> list[str]:
    """In words: what is looked at, what it is worth, and the largest edges.

    Args:
        session: Of the view.
        found: Parts of the chosen latent; None where there are none.
        name: Of the latent.
    """
    layers, heads = session.patterns.shape[:2]
    out = [f"{layers} layers of {heads} heads over {len(session.tokens)} tokens", session.said]
    if found is not None:
        where = session.where(found.latent)
        if not where.fires:
            out.append(
                f"latent {found.latent} does not fire on this text; where its pre-activation is largest:"
            )
        return [*filter(None, out), f"{name}: {found}" if name else str(found)]
    for which, each in session.measures.items():
        i, h = np.unravel_index(int(each.values.argmax()), each.values.shape)
        most = f"most in {i}.{h}, {each.values[i, h]:.3f}"
        out.append(f"{which}: {each.what}: {most}; of even attention {each.even:.3f}")
    return [line for line in out if line]


def form(session: Any, found: DFA, name: str) -> str:
    """The grid and the text.

    Args:
        session: As for `lines`.
        found: As for `lines`.
        name: As for `lines`.
    """
    called = f"#{found.latent}" + (f" «{name[: still.LABEL]}»" if name else "")
    token = joined(found.tokens)[found.dest] or ""
    head = (
        f"{called} at {found.dest} «{token}»: pre-activation {still.number(found.pre)}, code "
        f"{still.number(found.code)}; by source, over all heads"
    )
    by_source = found.by_source
    most = float(np.abs(by_source).max(initial=0.0))
    out = [still.note(head), still.note(session.said)]
    out.append(still.shaded_line(joined(found.tokens), by_source, most, still.SAMPLE_BYTES, peak=found.dest))
    by_head = found.by_head[:, :HEADS]
    columns = ["layer", *map(str, range(by_head.shape[1]))]
    rows = [[str(layer), *map(_short, own)] for layer, own in zip(found.layers, by_head, strict=True)]
    out.append(still.note("by head, over all sources"))
    out.append(still.grid(columns, rows))
    rest = "; ".join(f"{what} {still.number(part)}" for what, part in found.rest)
    out.append(still.note(f"what no head moves: {rest}"))
    return "".join(out)


def _short(value: float) -> str:
    return "·" if abs(value) < 5e-3 else f"{value:+.2f}".replace("-", still.MINUS)
