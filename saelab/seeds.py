"""Seeds mixed with what they are for. No two draws share their numbers, nor with what a caller draws from the
same small seed; what was trained, indexed or stopped earlier depends on these values, bit for bit."""

from __future__ import annotations

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
"""2^64 / the golden ratio, made odd: the step of SplitMix64."""
OWN = 0x5AE1AB
"""What tells draws of this library from a caller's."""


def mixed(seed: int, number: int | None = None) -> int:
    """A seed for a generator, in 0..2^63-1.

    Args:
        seed: The caller's.
        number: Number of the draw, where one seed serves several: a pass over the rows, a refill of a buffer.
    """
    if number is None:
        return (int(seed) * GOLDEN + OWN) % 2**63
    return (int(seed) * 0x9E3779B1 + int(number) * 0x85EBCA6B + OWN) % 2**63


def splitmix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014).

    Args:
        x: uint64, any shape; its arithmetic wraps.

    Returns:
        uint64 of the same shape.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
