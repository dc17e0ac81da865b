"""Activations whose features are known: rows are sparse sums of given directions, any number of them.

    x = sum_j c_j v_j + e,    v_j unit directions, c sparse, e isotropic noise

Rows are written in blocks, each from its own random source keyed by seed and number, so row i can be had
without the others and is the same however it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saelab.arguments import an_integer, checked, maybe, sequence
from saelab.config import integer, is_number
from saelab.types import Codes, ConfigError, DeviceMemoryError, RangeError, nearest

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 256
HELD_OUT = 2**40
"""Rows from this number on are for scores; training on rows from 0 does not get there."""


class SyntheticRows(NamedTuple):
    """Rows with the truth about them."""

    acts: Tensor
    """float32 [n d_in] on the CPU."""
    codes: Codes
    """[n n_features]: the true coefficients; `codes.l0` is the true number of active features."""
    difficulty: np.ndarray
    """float64 [n]: the number of active features that was expected of each row, in features."""


@dataclass(frozen=True, eq=False)
class Synthetic:
    """Known features and the law by which rows are drawn from them. Made by `synthetic`; arrays are
    read-only."""

    directions: np.ndarray
    """float32 [n_features d_in], of unit norm"""
    frequencies: np.ndarray
    """float64 [n_features]: share of the rows in which each is active; they sum to `active`"""
    parents: np.ndarray
    """int64 [n_features]: the feature without which each is never active, -1 for roots. Roots come first,
    then their children in order, then theirs."""
    active: float
    difficulty_spread: float
    exact: bool
    branching: tuple[int, ...]
    child_rate: float
    coefficients: tuple[float, float]
    signed: bool
    noise: float
    seed: int

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.directions.shape[1]

    @property
    def n_features(self) -> int:
        """Number of directions."""
        return len(self.directions)

    @checked(start=an_integer())
    def rows(self, n: int, start: int = 0) -> SyntheticRows:
        """Rows start..start+n-1; row i is the same bit for bit whatever n and start are.

        Args:
            n: How many.
            start: Number of the first.

        Raises:
            ConfigError: n is below 1 or start below 0.
        """
        import torch

        n, start = integer("n", n, 1), integer("start", start, 0)
        blocks = range(start // BLOCK, (start + n - 1) // BLOCK + 1)
        try:
            acts, difficulty = torch.empty(n, self.d_in), np.empty(n)
        except (RuntimeError, MemoryError, TypeError, ValueError) as error:
            message = (
                f"n rows must fit into memory. Got n={n:,}, {4 * n * self.d_in:,} bytes. Ask for less, or "
                "use batches(size)."
            )
            raise DeviceMemoryError(message) from error
        counts, features, values = np.zeros(n, np.int64), [], []
        for block in blocks:
            first = block * BLOCK - start
            low, high = max(0, -first), min(BLOCK, n - first)
            at = slice(first + low, first + high)
            dense, noisy, expected = self._block(block)
            acts[at] = torch.from_numpy(noisy[low:high])
            difficulty[at] = expected[low:high]
            row, feature = np.nonzero(dense[low:high])
            counts[at] = np.bincount(row, minlength=high - low)
            features.append(feature.astype(np.int32))
            values.append(dense[low:high][row, feature])
        indptr = np.concatenate([[0], counts.cumsum()])
        codes = Codes(indptr, np.concatenate(features), np.concatenate(values), self.n_features)
        return SyntheticRows(acts, codes, difficulty)

    @checked(n_batches=maybe(an_integer()), start=an_integer())
    def batches(self, size: int, n_batches: int | None = None, start: int = 0) -> Iterator[SyntheticRows]:
        """Rows from `start` on, `size` at a time and no more in memory.

        Args:
            size: Rows of a batch.
            n_batches: How many; None for endless.
            start: Number of the first row.

        Raises:
            ConfigError: A size below 1, a start below 0.
        """
        size = integer("size", size, 1)
        for i in count() if n_batches is None else range(n_batches):
            yield self.rows(size, start + i * size)

    def children(self, feature: int) -> np.ndarray:
        """int64: the features that are active only where this one is.

        Raises:
            RangeError: There is no such feature.
        """
        remedy = "Pass a row of `directions`."
        feature = integer("A feature", feature, 0, self.n_features - 1, error=RangeError, remedy=remedy)
        return np.flatnonzero(self.parents == feature)

    def __repr__(self) -> str:
        kind = "signed" if self.signed else "unsigned"
        tree = f", branching={self.branching}" if self.branching else ""
        return (
            f"Synthetic(d_in={self.d_in}, n_features={self.n_features}, {self.active:g} active a row, "
            f"{kind}{tree}, noise={self.noise:g}, seed={self.seed})"
        )

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows of one block: coefficients float32 [BLOCK n_features], activations float32
        [BLOCK d_in], expected number of active features float64 [BLOCK]."""
        rng = _source(self.seed, 1, number)
        share = 1 + self.difficulty_spread * (2 * rng.random(BLOCK) - 1)
        roots = int((self.parents < 0).sum())
        chances = share[:, None] * self.frequencies[:roots]
        level = _exactly(chances, rng) if self.exact else rng.random(chances.shape) < chances
        levels = [level]
        for width in self.branching:
            # a parent has at most one child active: siblings exclude each other
            chosen = rng.integers(width, size=level.shape)
            chosen[~level | (rng.random(level.shape) >= self.child_rate)] = -1
            level = (chosen[..., None] == np.arange(width)).reshape(BLOCK, -1)
            levels.append(level)
        row, feature = np.nonzero(np.concatenate(levels, axis=1))
        low, high = self.coefficients
        values = low + (high - low) * rng.random(len(row))
        if self.signed:
            values *= 2 * rng.integers(2, size=len(row)) - 1
        dense = np.zeros((BLOCK, self.n_features), np.float32)
        dense[row, feature] = values
        acts = dense @ self.directions
        if self.noise:
            scale = np.float32(self.noise / math.sqrt(self.d_in))
            acts += scale * rng.standard_normal((BLOCK, self.d_in), dtype=np.float32)
        return dense, acts, share * self.active


@checked(branching=sequence)
def synthetic(
    d_in: int,
    n_features: int,
    *,
    active: float = 4.0,
    coherence: str | float = "random",
    groups: int = 1,
    zipf: float = 0.0,
    shift: float = 3.0,
    difficulty_spread: float = 0.0,
    exact: bool = False,
    branching: Sequence[int] = (),
    child_rate: float = 0.5,
    coefficients: tuple[float, float] = (0.5, 1.5),
    signed: bool = False,
    noise: float = 0.0,
    seed: int = 0,
) -> Synthetic:
    """Activations [n d_in] with known directions: sums of some of them, times coefficients, and noise.

    >>> truth = synthetic(16, 8, coherence="orthonormal", active=2, exact=True)
    >>> rows = truth.rows(1000)
    >>> rows.acts.shape, set(rows.codes.l0.tolist())
    (torch.Size([1000, 16]), {2})

    Args:
        d_in: Width of a row.
        n_features: How many directions.
        active: Features of a row on average, roots and descendants counted.
        coherence: "orthonormal" (needs n_features <= d_in), "random" (independent, uniform on the sphere), or
            a number c in [0, 1): the expected cosine of two directions of one group, v = sqrt(c) u + sqrt(1 -
            c) e with u common to the group and e random and orthogonal to u.
        groups: How many; feature j is in group j % groups.
        zipf: Frequencies of roots are proportional to (rank + shift)^-zipf, rank from 1 (Zipf and
            Mandelbrot); 0 makes them equal.
        shift: The shift of that law.
        difficulty_spread: s in [0, 1]; a row expects active * t features, t uniform on [1 - s, 1 + s]. It
            draws the roots.
        exact: False: features are active independently with probability t * frequency. True: their number is
            active * t (or one of the two whole numbers next to it, by systematic sampling in random order,
            Madow 1949), the frequencies staying the same. It draws the roots.
        branching: (4,) gives each root 4 children, (4, 3) each of those 3 more.
        child_rate: Where a feature is active, one child is too with this probability.
        coefficients: c is uniform between these two (> 0).
        signed: Whether c has either sign.
        noise: Root mean square norm of the noise, in the units of the coefficients.
        seed: Seed of directions and rows.

    Raises:
        ConfigError: Options are out of range, or a feature would have to be active with probability above 1.
    """
    d_in, n_features = integer("d_in", d_in, 1), integer("n_features", n_features, 1)
    groups, seed = integer("groups", groups, 1), integer("seed", seed, 0)
    _check_real("active", active, 0, n_features, open_low=True)
    _check_real("zipf", zipf, 0)
    _check_real("shift", shift, 0)
    _check_real("difficulty_spread", difficulty_spread, 0, 1)
    _check_real("child_rate", child_rate, 0, 1)
    _check_real("noise", noise, 0)
    for name, flag in (("exact", exact), ("signed", signed)):
        if not isinstance(flag, bool):
            message = f"{name} must be True or False. Got {flag!r}. Pass a bool."
            raise ConfigError(message)
    low, high = _pair(coefficients)
    widths = tuple(integer("Each number of branching", width, 1) for width in branching)
    sizes = [math.prod(widths[:depth]) for depth in range(len(widths) + 1)]
    roots, left = divmod(n_features, sum(sizes))
    if left or not roots:
        message = (
            f"n_features must be a multiple of {sum(sizes)}, a root with its descendants by "
            f"branching={widths}. Got {n_features}. Pass n_features={max(1, roots) * sum(sizes)}."
        )
        raise ConfigError(message)

    weights = (np.arange(1, roots + 1) + float(shift)) ** -float(zipf)
    level = active / sum(child_rate**d for d in range(len(sizes))) * weights / weights.sum()
    top = level.max() * (1 + difficulty_spread)
    if top > 1 + 1e-9:
        message = (
            "The most frequent feature must be active with a probability of at most 1 on the hardest rows. "
            f"Got {top:.3g}. Lower active={active:g}, zipf={zipf:g} or difficulty_spread="
            f"{difficulty_spread:g}, or raise shift={shift:g}."
        )
        raise ConfigError(message)
    frequencies, parents = [level], [np.full(roots, -1)]
    for depth, width in enumerate(widths):
        first = sum(len(p) for p in parents[:depth])
        parents.append(np.repeat(first + np.arange(len(level)), width))
        level = np.repeat(level * child_rate / width, width)
        frequencies.append(level)
    return Synthetic(
        directions=_frozen(_directions(d_in, n_features, coherence, groups, _source(seed, 0))),
        frequencies=_frozen(np.concatenate(frequencies)),
        parents=_frozen(np.concatenate(parents).astype(np.int64)),
        active=float(active),
        difficulty_spread=float(difficulty_spread),
        exact=exact,
        branching=widths,
        child_rate=float(child_rate),
        coefficients=(low, high),
        signed=signed,
        noise=float(noise),
        seed=seed,
    )


def _source(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _directions(
    d_in: int, n_features: int, coherence: str | float, groups: int, rng: np.random.Generator
) -> np.ndarray:
    if not isinstance(coherence, str):
        _check_real("coherence", coherence, 0, 1, open_high=True)
    elif coherence == "orthonormal":
        if n_features > d_in:
            message = (
                f"Orthonormal directions must number at most d_in={d_in}. Got n_features={n_features}. "
                "Pass fewer, or coherence='random'."
            )
            raise ConfigError(message)
        q, r = np.linalg.qr(rng.standard_normal((d_in, n_features)))
        # the sign that makes the law uniform (Haar) is the one of R's diagonal (Mezzadri 2007)
        return (q * np.sign(np.diag(r))).T.astype(np.float32)
    free = rng.standard_normal((n_features, d_in))
    if isinstance(coherence, str) and coherence == "random":
        return _unit(free).astype(np.float32)
    if isinstance(coherence, str):
        hint = nearest(coherence, ("orthonormal", "random"))
        message = (
            "coherence must be 'orthonormal', 'random' or a number in [0, 1). "
            f"Got {coherence!r}. {hint}Pass one of these."
        )
        raise ConfigError(message)
    if d_in < 2:
        message = f"Correlated directions must have d_in >= 2. Got {d_in}. Pass coherence='random'."
        raise ConfigError(message)
    common = _unit(rng.standard_normal((groups, d_in)))[np.arange(n_features) % groups]
    own = _unit(free - (free * common).sum(1, keepdims=True) * common)
    return (math.sqrt(coherence) * common + math.sqrt(1 - coherence) * own).astype(np.float32)


def _exactly(chances: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Systematic sampling: bool [n m] with P(true) = chances and row sums next to those of `chances`.

    The chances are laid end to end in random order; those that contain one of the points u, u + 1, .. are
    drawn.
    """
    order = np.argsort(rng.random(chances.shape), axis=1)
    ends = np.take_along_axis(chances, order, axis=1).cumsum(1)
    ends[:, -1] = ends[:, -1].round(9)  # or 3.9999.. would give 3 of 4
    points = np.floor(ends + rng.random((len(chances), 1)))
    drawn = np.diff(points, axis=1, prepend=0) > 0
    out = np.empty_like(drawn)
    np.put_along_axis(out, order, drawn, axis=1)
    return out


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def _pair(value: tuple[float, float]) -> tuple[float, float]:
    """(low, high) with 1e-6 <= low <= high; float32 holds such values apart from 0."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        message = f"coefficients must be two numbers (low, high). Got {value!r}. Pass (0.5, 1.5)."
        raise ConfigError(message)
    low, high = value
    _check_real("The lower coefficient", low, 1e-6)
    _check_real("The upper coefficient", high, low)
    return float(low), float(high)


def _check_real(
    name: str,
    value: object,
    low: float,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    if is_number(value) and math.isfinite(value) and low <= value <= high:
        if not (open_low and value == low) and not (open_high and value == high):
            return
    interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high or high == math.inf else ']'}"
    message = f"{name} must be a finite number in {interval}. Got {value!r}. Pass one from there."
    raise ConfigError(message)


__all__ = ["BLOCK", "HELD_OUT", "Synthetic", "SyntheticRows", "synthetic"]
