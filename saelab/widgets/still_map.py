"""A map of latents as it stands: points as a picture, names of clusters over it, and all of it in words."""

from __future__ import annotations

import html
import itertools
import struct
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from saelab.widgets import still

if TYPE_CHECKING:
    from saelab.analysis.maps.results import LatentMap

NOWHERE = 65535
"""Of coordinates in 16 bits: what lies nowhere."""
COLOURS = ("#b37700", "#2f8fc7", "#009e73", "#8a7d00", "#0072b2", "#d55e00", "#b4578f", "#5f3dc4")
"""Of clusters in turn: Okabe and Ito's, told apart by colour-blind people, the light ones darker."""
GREY, PALE = "#8b93a1", "#c8ccd4"
SHOWN_BYTES = 46_000
"""Of the picture within a form of `still.MOST_BYTES`."""
DRAWN = 150_000
"""Points of the picture, at most: of more every second, third, ... one is drawn."""
LABELS, LISTED = 14, 10
LABEL = 40
"""Characters of a name on the map, at most."""
LINE = 15
LETTER = 6.6
"""Pixels of a line, and of a letter of 12 pixels, as wide as they come."""


def quantised(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint16 [n] x and y: steps of a 65,534th of the wider side, the other side in the middle; `NOWHERE`
    twice for what has no place. x, y: float32 [n], NaN of what has none."""
    there = np.isfinite(x) & np.isfinite(y)
    if not there.any():
        return np.full(len(x), NOWHERE, np.uint16), np.full(len(x), NOWHERE, np.uint16)
    whole = bool(there.all())
    sides = [(float(v.min()), float(v.max())) for v in ((x, y) if whole else (x[there], y[there]))]
    step = max(max(high - low for low, high in sides), 1e-30) / (NOWHERE - 1)
    out = []
    for values, (low, high) in zip((x, y), sides, strict=True):
        steps = np.subtract(values, np.float32((low + high) / 2), dtype=np.float32)
        steps *= np.float32(1 / step)
        steps += np.float32(NOWHERE / 2)  # half a step more: cut off, it is rounded
        np.clip(steps, 0, NOWHERE - 1, out=steps)
        if not whole:
            steps[~there] = NOWHERE
        out.append(steps.astype(np.uint16))
    return out[0], out[1]


def centres(x: np.ndarray, y: np.ndarray, cluster: np.ndarray, n: int) -> np.ndarray:
    """float64 [n 2]: the median place of each cluster's latents, NaN of none."""
    if n < 1 << 15:  # few bits are sorted at once
        cluster = cluster.astype(np.int16)
    order = np.argsort(cluster, kind="stable")
    bounds = np.searchsorted(cluster[order], np.arange(n + 1))
    parts = (order[low:high] for low, high in itertools.pairwise(bounds))
    return np.array([
        [np.median(x[at]), np.median(y[at])] if len(at) else [np.nan, np.nan] for at in parts
    ]).reshape(n, 2)  # fmt: skip


def form(made: LatentMap, latents: Sequence[int] | None, names: Mapping[int, str]) -> str:
    """The map for pages that run nothing.

    Args:
        made: The map.
        latents: Those that are chosen; None for all.
        names: Latent -> name, of the chosen ones that are listed.
    """
    for scale in (1.0, 0.8, 0.6, 0.45):
        source = "data:image/svg+xml," + quote(picture(made, latents, scale=scale), safe="/:=,;'() ")
        if len(source) <= SHOWN_BYTES:
            break
    head = f"{len(made.placed):,} of {len(made.x):,} latents by {made.by}, {made.method}"
    out = [still.note(f"{head}; crosses never fire"), f'<img alt="{html.escape(head)}" src="{source}">']
    out.append(f"<div>{still.escaped(made.verdict)}</div>")
    count = np.bincount(made.cluster[made.cluster >= 0], minlength=len(made.names))
    told = [
        f"<li>{count[i]:,} latents: {still.escaped(name[: still.LABEL])}</li>"
        for i, name in enumerate(made.names[:LISTED])
    ]
    if told:
        more = len(made.names) - len(told)
        out.append(still.note("Clusters, the largest first" + (f", and {more:,} more" if more else "")))
        out.append(f"<ol>{''.join(told)}</ol>")
    if latents is not None:
        some = ", ".join(f"#{j} {names.get(j, '')}".strip()[: still.LABEL] for j in latents[:LISTED])
        more = f" and {len(latents) - LISTED:,} more" if len(latents) > LISTED else ""
        out.append(f"<div>{len(latents):,} chosen: {still.escaped(some)}{more}</div>")
    return "".join(out)


def picture(
    made: LatentMap, latents: Sequence[int] | None = None, *, scale: float = 1.0, labels: int = LABELS
) -> str:
    """The map as SVG: points as one picture, names as text.

    Args:
        made: The map.
        latents: Those that stand out; None for all.
        scale: Pixels of the picture for one of the 640 x 480 units that it is wide and high.
        labels: Names of clusters, at most.
    """
    width, height = 640, 480
    at = made.placed
    if latents is None and len(at) > DRAWN:
        at = at[:: -(-len(at) // DRAWN)]
    x, y = quantised(made.x[at], made.y[at])
    cluster, dead = made.cluster[at], made.dead[at]
    side = 0.94 * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    px, py = left + side * (x / NOWHERE), top + side * (1 - y / NOWHERE)
    tone = np.where(cluster >= 0, 1 + cluster % len(COLOURS), len(COLOURS) + 1)
    tone = np.where(dead, len(COLOURS) + 1, tone)
    order = np.arange(len(at))
    if latents is not None:
        lit = np.isin(at, np.asarray(latents))
        tone = np.where(lit, tone, len(COLOURS) + 2)
        order = np.argsort(lit, kind="stable")
    size = int(np.clip(round(30 * scale / max(len(at), 1) ** 0.3), 1, 4 * scale))
    where = px[order] * scale, py[order] * scale
    pixels = _painted(*where, tone[order], dead[order], size, width * scale, height * scale)
    data = b64encode(_png(pixels)).decode()
    shown = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><rect width="{width}" height="{height}" fill="#fff"/>'
        f'<image width="{width}" height="{height}" href="data:image/png;base64,{data}"/>'
        '<g font-family="sans-serif" font-size="12" font-weight="600" fill="#111827" stroke="#fff" '
        'stroke-width="3" paint-order="stroke" stroke-linejoin="round">'
    ]
    taken: list[tuple[float, float, float]] = []
    for (cx, cy), name in zip(centres(px, py, cluster, len(made.names)), made.names, strict=True):
        name = html.unescape(still.escaped(name))[:LABEL]  # signs of what does not show are wide
        wide = LETTER * len(name) + 4
        if not name or np.isnan(cx) or len(taken) == labels or wide > width:
            continue
        start = min(max(2.0, cx - wide / 2), width - wide - 2)
        line = min(max(LINE, cy + 4), height - 4)
        if all(abs(line - b) >= LINE or start >= a + w or start + wide <= a for a, b, w in taken):
            taken.append((start, line, wide))
            shown.append(f'<text x="{start:.0f}" y="{line:.0f}">{html.escape(name)}</text>')
    return "".join([*shown, "</g></svg>"])


def _painted(
    px: np.ndarray, py: np.ndarray, tone: np.ndarray, dead: np.ndarray, size: int, width: float, height: float
) -> np.ndarray:
    """uint8 [height width], numbers of the palette; the last point of a pixel is seen. Latents that never
    fire are crosses where there is room for one."""
    edge = size + 4
    image = np.zeros((round(height) + 2 * edge, round(width) + 2 * edge), np.uint8)
    low = np.arange(size) - (size - 1) // 2
    middle = (size - 1) / 2 - (size - 1) // 2
    round_ = size / 2 if size > 4 else size  # so small a disc is a square
    disc = [(dx, dy) for dx in low for dy in low if np.hypot(dx - middle, dy - middle) <= round_]
    arm, thick = max(2, size // 2), max(1, size // 4)
    strokes = [(d + t, e) for d in range(-arm, arm + 1) for e in (d, -d) for t in range(thick)]
    cross = strokes if size > 1 else disc
    for offsets, some in ((cross, dead), (disc, ~dead)):
        column, row = px[some].astype(int) + edge, py[some].astype(int) + edge
        for dx, dy in offsets:
            image[row + dy, column + dx] = tone[some]
    return image[edge:-edge, edge:-edge]


def _png(pixels: np.ndarray) -> bytes:
    """A picture with the palette of maps; 0 is transparent."""
    height, width = pixels.shape
    colours = ["#ffffff", *COLOURS, GREY, PALE]
    palette = b"".join(bytes.fromhex(c[1:]) for c in colours)
    if width % 2:
        pixels = np.pad(pixels, ((0, 0), (0, 1)))
    packed = (pixels[:, ::2] << 4) | pixels[:, 1::2]  # four bits a pixel
    lines = np.concatenate([np.zeros((height, 1), np.uint8), packed], 1).tobytes()
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0)), (b"PLTE", palette),
        (b"tRNS", b"\0"), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""),
    ]  # fmt: skip
    framed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)
