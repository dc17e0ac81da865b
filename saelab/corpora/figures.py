"""How figures are drawn: which points each covers, what lies on it and what lies behind it.

A scene is where its figures lie, in shares of the picture's side, so that it is the same at every size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

FAMILIES = {
    "round": {
        "circle": ("disc", "ring"),
        "ellipse": ("wide ellipse", "tall ellipse"),
        "crescent": ("waxing crescent", "waning crescent"),
    },
    "angular": {
        "triangle": ("upright triangle", "inverted triangle"),
        "square": ("level square", "diamond"),
        "parallelogram": ("left parallelogram", "right parallelogram"),
    },
    "pointed": {
        "star": ("four-pointed star", "six-pointed star"),
        "cross": ("plus", "saltire"),
        "arrow": ("up arrow", "down arrow"),
    },
    "stroked": {
        "bar": ("level bar", "upright bar"),
        "tee": ("upright tee", "inverted tee"),
        "ell": ("left ell", "right ell"),
    },
}
COLOURS = {
    "red": (0.84, 0.12, 0.14),
    "orange": (0.95, 0.53, 0.08),
    "yellow": (0.93, 0.86, 0.12),
    "green": (0.13, 0.62, 0.22),
    "cyan": (0.10, 0.75, 0.80),
    "blue": (0.12, 0.28, 0.85),
    "violet": (0.52, 0.18, 0.74),
    "pink": (0.95, 0.45, 0.70),
}
TEXTURES = ("solid", "striped", "dotted", "checked")
POSITIONS = {
    "top left": (0.26, 0.26),
    "top right": (0.74, 0.26),
    "centre": (0.5, 0.5),
    "bottom left": (0.26, 0.74),
    "bottom right": (0.74, 0.74),
}
BACKGROUNDS = ("dark", "light", "graded", "noisy")
COUNTS = ("one", "two", "three", "four")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "family": tuple(FAMILIES),
    "shape": tuple(shape for shapes in FAMILIES.values() for shape in shapes),
    "variant": tuple(v for shapes in FAMILIES.values() for variants in shapes.values() for v in variants),
    "colour": tuple(COLOURS),
    "texture": TEXTURES,
    "position": tuple(POSITIONS),
    "background": BACKGROUNDS,
    "count": COUNTS,
}
"""Attribute -> its values, of which every picture has one. No value is of two attributes."""
PARENTS: dict[str, str] = {
    **dict.fromkeys(FAMILIES, "figure"),
    **{shape: family for family, shapes in FAMILIES.items() for shape in shapes},
    **{v: shape for shapes in FAMILIES.values() for shape, variants in shapes.items() for v in variants},
}
"""The tree of what figures are: variant -> shape -> family -> "figure", the root, at height 3 over a
variant."""
FINE = 3
"""Points a pixel, along each side, that are averaged."""
PERIOD = 0.1
"""Of stripes, dots and checks, in sides of the picture."""


class Scene(NamedTuple):
    """Where the figures of a picture lie, and what else about it is no attribute."""

    centres: np.ndarray
    """float64 [4 2]: x and y, in sides of the picture; the first figure, the largest, is at the position"""
    radii: np.ndarray
    """float64 [4]: of each figure, in sides of the picture"""
    turns: np.ndarray
    """float64 [4]: radians, clockwise"""
    tint: np.ndarray
    """float64 [3]: what the background adds to each colour, in 0..1"""
    level: float
    """of the background, in 0..1"""
    slope: float
    """direction of a graded background, in radians"""
    noise: np.ndarray
    """float64 [9 9]: a noisy background at the crossings of a grid, in -1..1"""


def scene(rng: np.random.Generator, position: str, count: int) -> Scene:
    """Draw one. It takes as many numbers from `rng` whatever is asked for.

    Args:
        rng: Source.
        position: Of `POSITIONS`, of the first figure.
        count: 1..4 figures.
    """
    order = rng.permutation(len(POSITIONS))
    jitter, share = rng.uniform(-1, 1, (4, 2)), rng.random(4)
    turns = rng.uniform(-0.12, 0.12, 4)
    tint, level, slope = rng.uniform(-0.04, 0.04, 3), rng.random(), rng.uniform(0, 2 * math.pi)
    noise = rng.uniform(-1, 1, (9, 9))
    own = list(POSITIONS).index(position)
    places = np.array(list(POSITIONS.values()))[[own, *(i for i in order if i != own)]][:4]
    # none touches another or the edge: 1.1 * 1.72 * 0.15 + jitter < 0.34, 1.1 * 0.2 + jitter < 0.26
    low, high = (0.16, 0.20) if count == 1 else (0.13, 0.15)
    radii = low + (high - low) * share
    radii[1:] *= 0.72
    wander = 0.03 if count == 1 else 0.012
    return Scene(places + wander * jitter, radii, turns, tint, level, slope, noise)


def covered(made: Scene, variant: str, count: int, size: int) -> np.ndarray:
    """Share of each pixel that figures cover, float64 [size size]."""
    fine = np.zeros((size * FINE, size * FINE))
    for at, _, inside in _figures(made, variant, count, size):
        fine[at] = np.maximum(fine[at], inside)
    return _averaged(fine)


def drawn(made: Scene, chosen: dict[str, str], size: int) -> np.ndarray:
    """The picture, uint8 [size size 3].

    Args:
        made: Where its figures lie.
        chosen: Attribute -> value.
        size: Pixels of a side.
    """
    count = COUNTS.index(chosen["count"]) + 1
    fine = _background(made, chosen["background"], size * FINE)
    colour = np.array(COLOURS[chosen["colour"]])
    pale = 0.4 * colour + 0.6
    for at, (x, y), inside in _figures(made, chosen["variant"], count, size):
        second = _texture(chosen["texture"], x, y)
        paint = np.where(second[..., None], pale, colour)
        fine[at] = np.where(inside[..., None], paint, fine[at])
    averaged = np.stack([_averaged(fine[..., i]) for i in range(3)], axis=-1)
    return (averaged.clip(0, 1) * 255).round().astype(np.uint8)


def _figures(made: Scene, variant: str, count: int, size: int):
    """(where on the fine grid, its points in sides of the picture from the figure's centre, bool: inside) of
    each figure."""
    n = size * FINE
    for i in range(count):
        (cx, cy), radius = made.centres[i], made.radii[i]
        reach = 1.2 * radius
        first = [max(0, math.floor((c - reach) * n)) for c in (cx, cy)]
        last = [min(n, math.ceil((c + reach) * n)) for c in (cx, cy)]
        at = slice(first[1], last[1]), slice(first[0], last[0])
        x = ((np.arange(first[0], last[0]) + 0.5) / n - cx)[None, :]
        y = ((np.arange(first[1], last[1]) + 0.5) / n - cy)[:, None]
        cos, sin = math.cos(made.turns[i]), math.sin(made.turns[i])
        x, y = x * cos + y * sin, y * cos - x * sin
        yield at, (x, y), INSIDE[variant](x / radius, y / radius)


def _background(made: Scene, kind: str, n: int) -> np.ndarray:
    across = (np.arange(n) + 0.5) / n
    x, y = across[None, :], across[:, None]
    if kind == "dark":
        grey = np.full((n, n), 0.06 + 0.12 * made.level)
    elif kind == "light":
        grey = np.full((n, n), 0.80 + 0.12 * made.level)
    elif kind == "graded":
        along = (x - 0.5) * math.cos(made.slope) + (y - 0.5) * math.sin(made.slope)
        grey = 0.5 + 0.42 * along
    else:
        at, rest = np.divmod(across * 8, 1)
        low = at.astype(int)
        rows = made.noise[low] * (1 - rest)[:, None] + made.noise[low + 1] * rest[:, None]
        both = rows[:, low] * (1 - rest) + rows[:, low + 1] * rest
        grey = 0.35 + 0.25 * made.level + 0.22 * both
    return grey[..., None] + made.tint


def _texture(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """bool: which points are of the second colour."""
    if kind == "solid":
        return np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
    if kind == "striped":
        return np.mod(y, PERIOD) < PERIOD / 2
    if kind == "dotted":
        dx, dy = (np.mod(c + PERIOD / 2, PERIOD) - PERIOD / 2 for c in (x, y))
        return dx**2 + dy**2 < (0.33 * PERIOD) ** 2
    return (np.floor(2 * x / PERIOD) + np.floor(2 * y / PERIOD)) % 2 == 1


def _averaged(fine: np.ndarray) -> np.ndarray:
    size = len(fine) // FINE
    return fine.reshape(size, FINE, size, FINE).mean((1, 3))


Inside = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _upright(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (y < 0.6) & (np.abs(x) * 1.75 < y + 1)


def _plus(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.minimum(np.abs(x), np.abs(y)) < 0.28) & (np.maximum(np.abs(x), np.abs(y)) < 0.95)


def _arrow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return ((y < 0) & (np.abs(x) < 0.85 * (y + 1))) | ((np.abs(x) < 0.28) & (y >= 0) & (y < 0.95))


def _tee(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = 1.2 * x, 1.2 * y
    return ((np.abs(x) < 0.9) & (y > -0.9) & (y < -0.35)) | ((np.abs(x) < 0.28) & (np.abs(y) < 0.9))


def _ell(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = 1.2 * x, 1.2 * y
    return ((np.abs(x + 0.6) < 0.28) & (np.abs(y) < 0.9)) | ((np.abs(x) < 0.88) & (y > 0.35) & (y < 0.9))


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x**2 + y**2 < 1) & ((x + 0.55) ** 2 + y**2 > 0.8)


INSIDE: dict[str, Inside] = {
    "disc": lambda x, y: x**2 + y**2 < 0.8,
    "ring": lambda x, y: (x**2 + y**2 < 1) & (x**2 + y**2 > 0.3),
    "wide ellipse": lambda x, y: x**2 + (y / 0.5) ** 2 < 1,
    "tall ellipse": lambda x, y: (x / 0.5) ** 2 + y**2 < 1,
    "waxing crescent": _crescent,
    "waning crescent": lambda x, y: _crescent(-x, y),
    "upright triangle": _upright,
    "inverted triangle": lambda x, y: _upright(x, -y),
    "level square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.75,
    "diamond": lambda x, y: np.abs(x) + np.abs(y) < 1,
    "left parallelogram": lambda x, y: (np.abs(y) < 0.55) & (np.abs(x - 0.6 * y) < 0.6),
    "right parallelogram": lambda x, y: (np.abs(y) < 0.55) & (np.abs(x + 0.6 * y) < 0.6),
    "four-pointed star": lambda x, y: np.abs(x) ** 0.6 + np.abs(y) ** 0.6 < 1.05,
    "six-pointed star": lambda x, y: _upright(x, y) | _upright(x, -y),
    "plus": _plus,
    "saltire": lambda x, y: _plus((x + y) / math.sqrt(2), (x - y) / math.sqrt(2)),
    "up arrow": _arrow,
    "down arrow": lambda x, y: _arrow(x, -y),
    "level bar": lambda x, y: (np.abs(x) < 0.95) & (np.abs(y) < 0.3),
    "upright bar": lambda x, y: (np.abs(x) < 0.3) & (np.abs(y) < 0.95),
    "upright tee": _tee,
    "inverted tee": lambda x, y: _tee(x, -y),
    "left ell": _ell,
    "right ell": lambda x, y: _ell(-x, y),
}
"""Variant -> which points it covers, given x to the right and y down, in radii of the figure; none lies
farther than 1.1 from the centre."""
