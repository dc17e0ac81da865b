"""Would another training have found the same dictionary? Cosines of the directions of two SAEs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from saelab.analysis.controls import Beside, Sums, beside_each, random_directions
from saelab.analysis.recovery import match


class Alike(NamedTuple):
    """How alike two dictionaries are, latent by latent of the first."""

    best: np.ndarray
    """float64 [n]: cosine with the nearest direction of the other; its mean is the MMCS (Sharkey et al.
    2022). One direction may be the nearest of many"""
    matched: np.ndarray | None
    """float64 [n]: cosine with its own partner, none of which serves twice (Hungarian method), 0 without one:
    the mean is the stability of archetypal SAEs (arXiv 2502.12892). None where the dictionaries are too
    large to match"""


def alike(ours: np.ndarray, theirs: np.ndarray, either_sign: bool = False, most: int = 4096) -> Alike:
    """Cosines of the directions of one dictionary with those of another.

    Args:
        ours: [n d_out].
        theirs: [m d_out].
        either_sign: Take |cosine|, as where codes are signed.
        most: Latents of a dictionary that is matched, at most: the time grows with their cube.
    """
    a, b = (np.divide(each, _norms(each), out=np.zeros(each.shape), where=_norms(each) > 0)
            for each in (ours, theirs))  # fmt: skip
    best = np.empty(len(a))
    for low in range(0, len(a), 1024):
        cosines = a[low : low + 1024] @ b.T
        best[low : low + 1024] = (np.abs(cosines) if either_sign else cosines).max(1)
    matched = None
    if max(len(a), len(b)) <= most:
        matched = match(theirs, ours, either_sign=either_sign).cosines
    return Alike(best, matched)


def claims(
    name: str, found: Alike, control: Alike, seed: int, either_sign: bool, d: int
) -> dict[str, Beside]:
    """MMCS and stability of two SAEs, beside two untrained ones and beside random directions.

    Args:
        name: What the two are.
        found: Of the two.
        control: Of two untrained ones.
        seed: Of the random directions, and of the draws of latents that give the intervals.
        either_sign: As for `alike`.
        d: Width of the directions.
    """
    n = len(found.best)
    one, other = (random_directions(n, d, seed + i) for i in (0, 1))
    random = alike(one, other, either_sign, n if found.matched is not None else 0)
    out = {}
    for measure, values in (("MMCS", "best"), ("stability", "matched")):
        of, beside_it, chance = (getattr(each, values) for each in (found, control, random))
        if of is None or beside_it is None or chance is None:
            continue
        own, untrained, random_ones = (_sums(each) for each in (of, beside_it, chance))
        controls = {"two untrained SAEs": untrained, "random directions": random_ones}
        out[f"{name}: {measure}"] = beside_each(own, controls, _mean, seed)
    return out


def _mean(sums: Mapping[str, Any]) -> Any:
    return sums["cosine"] / sums["n"]


def _sums(cosines: np.ndarray) -> Sums:
    found = Sums()
    found.add(np.arange(len(cosines)), cosine=cosines, n=np.ones(len(cosines)))
    return found


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows, axis=1, keepdims=True)


__all__ = ["Alike", "alike", "claims"]
