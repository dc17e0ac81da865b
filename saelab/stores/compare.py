"""Which latents of two SAEs are alike: by decoder direction, and by firing on the same rows of one corpus,
each beside what chance finds. Memory does not grow with the corpus, nor with the square of the latents.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saelab.config import integer
from saelab.errors import headline
from saelab.stores.cofiring import Best, Firings, Side, best_cofiring
from saelab.stores.directions import unit_blocks
from saelab.stores.nearest import nearest
from saelab.types import ConfigError, RangeError, StoreError

if TYPE_CHECKING:
    from saelab.stores.protocol import Latents

PERCENTILE = 99


@dataclass(frozen=True)
class Matches:
    """The most similar latents of the other SAE, by one measure."""

    partner: np.ndarray
    """int64 [n_latents, n], most similar first; -1 where there is none"""
    score: np.ndarray
    """float64 [n_latents, n]: similarity to each, NaN where there is none"""
    control: np.ndarray
    """float64 [n_latents]: similarity to the best of as many latents that are alike by chance alone"""

    def __repr__(self) -> str:
        return f"Matches({len(self.partner):,} latents, {self.share:.1%} above {self.threshold:.2f})"

    @property
    def threshold(self) -> float:
        """99th percentile of the control; NaN where no latent took part."""
        taken = self.control[np.isfinite(self.control)]
        return float(np.percentile(taken, PERCENTILE)) if len(taken) else float("nan")

    @property
    def share(self) -> float:
        """Share of the latents that took part whose best partner is above the threshold; chance gives 1 %."""
        best = self.score[:, 0]
        taken = np.isfinite(best)
        return float((best[taken] > self.threshold).mean()) if taken.any() else float("nan")


@dataclass(frozen=True)
class Comparison:
    """Latents of one SAE beside those of another."""

    direction: Matches | None
    """by cosine of decoder directions; the control is the best of as many random directions of this width"""
    cofiring: Matches | None
    """by phi, the correlation of "fires" over the rows; the control shifts the rows of one store against the
    other's"""
    reasons: tuple[str, ...] = ()
    """why a measure is missing"""

    def to_frame(self) -> pd.DataFrame:
        """One row a latent and rank: partner, score and control of each measure."""
        made = {"direction": self.direction, "cofiring": self.cofiring}
        first = next(m for m in made.values() if m is not None)
        n_latents, n = first.partner.shape
        columns: dict[str, Any] = {"latent": np.repeat(np.arange(n_latents), n)}
        columns["rank"] = np.tile(np.arange(n), n_latents)
        for name, matches in made.items():
            if matches is not None:
                columns[f"{name}_partner"] = matches.partner.reshape(-1)
                columns[f"{name}_score"] = matches.score.reshape(-1)
                columns[f"{name}_control"] = np.repeat(matches.control, n)
        return pd.DataFrame(columns)

    __repr__ = headline

    def __str__(self) -> str:
        lines = []
        for name, matches in (("decoder cosine", self.direction), ("co-firing, phi", self.cofiring)):
            if matches is not None:
                taken = int(np.isfinite(matches.score[:, 0]).sum())
                lines.append(
                    f"{name}: {matches.share:.1%} of {taken:,} latents have a partner above "
                    f"{matches.threshold:.3f}, which 1% reach by chance; median of the best "
                    f"{np.nanmedian(matches.score[:, 0]) if taken else float('nan'):.3f}, by chance "
                    f"{np.nanmedian(matches.control) if taken else float('nan'):.3f}"
                )
        return "\n".join([*lines, *self.reasons])


def compare(store: Latents, other: Latents, n: int = 1, *, min_rows: int = 10, seed: int = 0) -> Comparison:
    """The n most similar latents of another store for each latent of a store.

    Similar by direction, where both write activations of one width: cosine c_ij = d_i . d_j. By co-firing,
    where both were indexed over the same rows:
    phi_ij = (N n_ij - n_i n_j) / sqrt(n_i (N - n_i) n_j (N - n_j)),
    the correlation of the two events "!= 0" over N rows.

    Args:
        store: Whose latents are asked about.
        other: Where their partners are.
        n: Partners of each.
        min_rows: Latents that fire on fewer rows, or on all, take no part in co-firing, since a handful of
            rows meets by chance.
        seed: Seed of the controls.

    Raises:
        StoreError: Neither can be done.
        RangeError: n or min_rows is out of range.
        ConfigError: `other` is no store, or seed no integer >= 0.
    """
    if not hasattr(other, "n_latents"):
        message = (
            f"A store is compared with another. Got {type(other).__name__}. Pass FeatureStore.open(...)."
        )
        raise ConfigError(message)
    for name, value, high in (("n", n, other.n_latents), ("min_rows", min_rows, store.n_rows)):
        integer(name, value, 1, high, error=RangeError)
    seed = integer("seed", seed, 0)
    with ThreadPoolExecutor(1) as beside:  # nearly all of both is done without Python's lock
        direction = beside.submit(_or_reason, _by_direction, store, other, int(n), seed)
        cofiring = _or_reason(_by_cofiring, store, other, int(n), int(min_rows), seed)
        found = [direction.result(), cofiring]
    reasons = tuple(reason for _, reason in found if reason)
    if len(reasons) == len(found):
        raise StoreError(" ".join(reasons))
    return Comparison(found[0][0], found[1][0], reasons)


def _or_reason(measure: Callable[..., Matches], *arguments: Any) -> tuple[Matches | None, str]:
    """What a measure gives, or why it can't be taken."""
    try:
        return measure(*arguments), ""
    except StoreError as error:
        return None, str(error)


def _by_direction(store: Latents, other: Latents, n: int, seed: int) -> Matches:
    ours, theirs = store.directions, other.directions
    width = ours.shape[1]
    if width != theirs.shape[1]:
        message = (
            f"Directions are compared where they have one width. Got {width} and {theirs.shape[1]}. "
            "Index both SAEs at hook points of one model."
        )
        raise StoreError(message)
    best, alive = Best(len(ours), n), 0
    for first, block in unit_blocks(theirs):
        their = np.flatnonzero(block.any(1))  # rows of zeros are no partners and have none
        alive += len(their)
        for low, rows in unit_blocks(ours):
            mine = np.flatnonzero(rows.any(1))
            number, cosine = nearest(rows[mine], block[their], n)
            best.add(low + mine, first + their[number], cosine)
    partner, score = best.found()
    control = chance_cosine(len(ours), alive, width, np.random.default_rng(seed))
    return Matches(partner, score, np.where(np.isfinite(score[:, 0]), control, np.nan))


def chance_cosine(n: int, n_others: int, width: int, random: np.random.Generator) -> np.ndarray:
    """The largest cosine of each of n unit vectors with `n_others` random directions of its own.

    Drawn from the distribution that it has: of one direction (1 + cosine) / 2 is Beta with both parameters
    (width - 1) / 2, so P(largest <= c) = F(c)^n_others. `chance_cosine_reference` draws the directions.

    Args:
        n: How many vectors.
        n_others: How many directions each meets.
        width: Of vectors and directions.
        random: What it is drawn by.

    Returns:
        float64 [n], NaN without others.
    """
    if not n_others or not width:
        return np.full(n, np.nan)
    return largest_cosine(np.exp(-random.standard_exponential(n)), n_others, width)


def largest_cosine(share: np.ndarray | float, n_others: int, width: int) -> np.ndarray:
    """What the largest cosine of a direction with so many random ones stays below with this probability.

    Args:
        share: Probabilities, in (0, 1).
        n_others: How many directions it meets.
        width: Of the directions.

    Returns:
        float64, in the shape of `share`.
    """
    from scipy.special import betaincinv

    above = -np.expm1(np.log(share) / n_others)
    if width == 1:
        return np.where(above < 0.5, 1.0, -1.0)
    half = (width - 1) / 2
    return 1 - 2 * betaincinv(half, half, above)


def chance_cosine_reference(n: int, n_others: int, width: int, random: np.random.Generator) -> np.ndarray:
    """The definition of `chance_cosine`, slow: a first unit vector beside directions that are drawn.

    Args:
        n: As there.
        n_others: As there.
        width: As there.
        random: As there.
    """
    drawn = random.standard_normal((n, n_others, width))
    return (drawn[..., 0] / np.linalg.norm(drawn, axis=2)).max(1)


def _by_cofiring(store: Latents, other: Latents, n: int, min_rows: int, seed: int) -> Matches:
    same = ("n_rows", "corpus", "packing", "codes")
    different = [f"another {name}" for name in same if store.manifest.get(name) != other.manifest.get(name)]
    if store.manifest.get("corpus") is None:
        different.append("a corpus without fingerprint")
    if store.kept != "full":
        different.append("codes of some rows alone")
    if different:
        message = (
            f"Co-firing needs two indices of the same rows. Got {' and '.join(different)}. "
            "Index both SAEs over one corpus with the same options."
        )
        raise StoreError(message)
    total = store.n_rows
    mine, their = Side(store, min_rows), Side(other, min_rows)
    shift = int(np.random.default_rng(seed).integers(total // 4, 3 * total // 4 + 1))
    with tempfile.TemporaryDirectory(prefix="saelab-") as folder:
        firings = Firings(folder, mine, their)
        partner, score = best_cofiring(firings, n, 0)
        _, control = best_cofiring(firings, 1, shift)
    return Matches(partner, score, control[:, 0])
