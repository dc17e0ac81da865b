"""Which latents of two SAEs are alike: by decoder direction, and by firing on the same rows of one corpus,
each beside what chance finds. Memory does not grow with the corpus, nor with the square of the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saelab.config import integer
from saelab.errors import headline
from saelab.stores.directions import BLOCK_VALUES, unit_blocks
from saelab.types import ConfigError, RangeError, StoreError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from saelab.stores.protocol import Latents

BLOCK_SCORES = 1 << 25
CHUNK_CODES = 1 << 22
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
    """by cosine of decoder directions; the control are random directions of the same number and width"""
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
    found: list[Matches | None] = []
    reasons = []
    for measure in (_by_direction, _by_cofiring):
        try:
            found.append(measure(store, other, int(n), int(min_rows), seed))
        except StoreError as error:
            found.append(None)
            reasons.append(str(error))
    if found == [None, None]:
        raise StoreError(" ".join(reasons))
    return Comparison(found[0], found[1], tuple(reasons))


def _by_direction(store: Latents, other: Latents, n: int, min_rows: int, seed: int) -> Matches:
    ours, theirs = store.directions, other.directions
    width = ours.shape[1]
    if width != theirs.shape[1]:
        message = (
            f"Directions are compared where they have one width. Got {width} and {theirs.shape[1]}. "
            "Index both SAEs at hook points of one model."
        )
        raise StoreError(message)

    def chance() -> Iterator[tuple[int, np.ndarray]]:
        for first in range(0, len(theirs), rows):
            random = np.random.default_rng([seed, first])
            block = random.standard_normal((min(rows, len(theirs) - first), width), dtype=np.float32)
            yield first, block / np.linalg.norm(block, axis=1, keepdims=True)

    rows = max(1, BLOCK_VALUES // max(width, 1))
    partner, score = _nearest(ours, lambda: unit_blocks(theirs, rows), n)
    _, control = _nearest(ours, chance, 1)
    return Matches(partner, score, control[:, 0])


def _nearest(
    ours: np.ndarray, theirs: Callable[[], Iterator[tuple[int, np.ndarray]]], n: int
) -> tuple[np.ndarray, np.ndarray]:
    """(partner, cosine) [len(ours) n]; rows of zeros are no partners and have none."""
    best = _Best(len(ours), n)
    for low, mine in unit_blocks(ours):
        step = max(1, BLOCK_SCORES // len(mine))
        for first, block in theirs():
            for at in range(0, len(block), step):
                some = block[at : at + step]
                cosine = np.clip(mine @ some.T, -1, 1)
                cosine[:, ~some.any(1)] = -np.inf
                cosine[~mine.any(1)] = -np.inf
                best.add(low, first + at, cosine)
    return best.found()


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
    mine, their = _Side(store, min_rows), _Side(other, min_rows)
    shift = int(np.random.default_rng(seed).integers(total // 4, 3 * total // 4 + 1))
    partner, score = _cofiring(mine, their, n, 0)
    _, control = _cofiring(mine, their, 1, shift)
    return Matches(partner, score, control[:, 0])


class _Side:
    """The latents of a store that take part, renumbered, and their firings."""

    def __init__(self, store: Latents, min_rows: int) -> None:
        self.store = store
        count = store.latents()["count"].to_numpy()
        self.latents = np.flatnonzero((count >= min_rows) & (count < store.n_rows))
        self.count = count[self.latents].astype(np.float64)
        self._number = np.full(store.n_latents, -1, np.int32)
        self._number[self.latents] = np.arange(len(self.latents), dtype=np.int32)

    def fires(self, first: int, stop: int) -> csr_array:
        """int32 [stop - first, len(latents)]: 1 where a latent fires; rows are counted round the end."""
        from scipy.sparse import csr_array

        n, pieces = self.store.n_rows, []
        at = first
        while at < stop:
            low = at % n
            high = min(n, low + stop - at)
            codes = self.store.query(
                "select row, latent from codes_by_row where row >= ? and row < ? and value != 0", [low, high]
            )
            number = self._number[codes["latent"].to_numpy()]
            row = codes["row"].to_numpy()[number >= 0] - low + (at - first)
            pieces.append((row, number[number >= 0]))
            at += high - low
        row, number = (np.concatenate(c) for c in zip(*pieces, strict=True))
        ones = np.ones(len(row), np.int32)
        return csr_array((ones, (row, number)), shape=(stop - first, len(self.latents)))


def _cofiring(mine: _Side, their: _Side, n: int, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """(partner, phi) [n_latents n], the rows of `their` store shifted by so many."""
    total = mine.store.n_rows
    best = _Best(mine.store.n_latents, n)
    block = max(1, BLOCK_SCORES // max(len(their.latents), 1))
    codes = max(mine.count.sum() + their.count.sum(), 1)
    rows = max(1, int(total * min(1.0, CHUNK_CODES / codes)))
    for low in range(0, len(mine.latents) if len(their.latents) else 0, block):
        ours = mine.count[low : low + block, None]
        together = np.zeros((len(ours), len(their.latents)), np.int32)
        for first in range(0, total, rows):
            stop = min(first + rows, total)
            fires = mine.fires(first, stop)[:, low : low + block]
            product = (fires.T @ their.fires(first + shift, stop + shift)).tocoo()
            together[product.row, product.col] += product.data
        variance = ours * (total - ours) * their.count * (total - their.count)
        phi = (total * together.astype(np.float64) - ours * their.count) / np.sqrt(variance)
        best.add(mine.latents[low : low + block], their.latents, np.clip(phi, -1, 1))
    return best.found()


class _Best:
    """The n largest scores of each latent out of blocks of scores, of equals the lower partner."""

    def __init__(self, n_latents: int, n: int) -> None:
        self.partner = np.full((n_latents, n), -1, np.int64)
        self.score = np.full((n_latents, n), -np.inf)

    def add(self, mine: int | np.ndarray, their: int | np.ndarray, scores: np.ndarray) -> None:
        """scores [a b] of latents `mine` (numbers, or the first of a stretch) with partners `their`."""
        at = np.arange(mine, mine + len(scores)) if isinstance(mine, int) else mine
        numbers = np.arange(their, their + scores.shape[1]) if isinstance(their, int) else their
        n = min(self.partner.shape[1], scores.shape[1])
        top = scores.argmax(1)[:, None] if n == 1 else np.argpartition(-scores, n - 1, axis=1)[:, :n]
        score = np.concatenate([self.score[at], np.take_along_axis(scores, top, 1)], 1)
        partner = np.concatenate([self.partner[at], numbers[top]], 1)
        order = np.lexsort((partner, -score), axis=1)[:, : self.partner.shape[1]]
        self.score[at] = np.take_along_axis(score, order, 1)
        self.partner[at] = np.take_along_axis(partner, order, 1)

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """(partner, score), -1 and NaN where there was none."""
        none = ~np.isfinite(self.score)
        return np.where(none, -1, self.partner), np.where(none, np.nan, self.score)
