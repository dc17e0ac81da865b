"""Which latents of two SAEs are alike: by decoder direction, and by firing on the same rows of one corpus,
each beside what chance finds. Memory does not grow with the corpus, nor with the square of the latents.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from saelab.config import integer
from saelab.errors import headline
from saelab.stores.directions import unit_blocks
from saelab.stores.nearest import nearest
from saelab.stores.summaries import at_least, first_of_each
from saelab.types import ConfigError, RangeError, StoreError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from saelab.stores.protocol import Latents

BLOCK_PAIRS = 1 << 23
CHUNK_CODES = 1 << 25
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
    best, alive = _Best(len(ours), n), 0
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
    mine, their = _Side(store, min_rows), _Side(other, min_rows)
    shift = int(np.random.default_rng(seed).integers(total // 4, 3 * total // 4 + 1))
    with tempfile.TemporaryDirectory(prefix="saelab-") as folder:
        chunks = _Chunks(folder, mine, their)
        partner, score = _cofiring(chunks, n, 0)
        _, control = _cofiring(chunks, 1, shift)
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
        indptr = np.searchsorted(row, np.arange(stop - first + 1))
        ones = np.ones(len(row), np.int32)
        return csr_array((ones, number, indptr), shape=(stop - first, len(self.latents)))


class _Chunks:
    """Firings of both stores over stretches of rows, on disk: each block of latents asks for them again."""

    def __init__(self, folder: str, mine: _Side, their: _Side) -> None:
        self.folder, self.mine, self.their = folder, mine, their
        self._ones = np.ones(0, np.int32)
        total = mine.store.n_rows
        codes = max(mine.count.sum() + their.count.sum(), 1)
        rows = max(1, int(total * min(1.0, CHUNK_CODES / codes)))
        self.bounds = [(first, min(first + rows, total)) for first in range(0, total, rows)]
        for i, (first, stop) in enumerate(self.bounds):
            self._write(f"mine-{i}", mine.fires(first, stop).T.tocsr())

    def shift(self, shift: int) -> None:
        """From now on the rows of `their` store are shifted by so many."""
        # pairs that fire together at most, of each of my latents
        self.pairs = np.zeros(len(self.mine.latents))
        for i, (first, stop) in enumerate(self.bounds):
            their = self.their.fires(first + shift, stop + shift)
            self._write(f"their-{i}", their)
            self.pairs += self._read(f"mine-{i}", stop - first) @ np.diff(their.indptr)

    def together(self, low: int, high: int) -> csr_array:
        """int32 [high - low, their latents]: on how many rows both fire; columns in any order."""
        found = None
        for i, (first, stop) in enumerate(self.bounds):
            mine = self._read(f"mine-{i}", stop - first)[low:high]
            product = mine @ self._read(f"their-{i}", len(self.their.latents))
            found = product if found is None else found + product
        assert found is not None
        return found

    def _write(self, name: str, fires: csr_array) -> None:
        if len(fires.indices) > len(self._ones):
            self._ones = np.ones(len(fires.indices), np.int32)
        try:
            for part in ("indptr", "indices"):
                np.save(f"{self.folder}/{name}-{part}.npy", getattr(fires, part))
        except OSError as error:
            message = (
                f"Firings are laid on disk to be compared. Got: {error}. Free some space in {self.folder}."
            )
            raise StoreError(message) from error

    def _read(self, name: str, width: int) -> csr_array:
        from scipy.sparse import csr_array

        indptr, indices = (
            np.load(f"{self.folder}/{name}-{part}.npy", mmap_mode="r") for part in ("indptr", "indices")
        )
        return csr_array((self._ones[: len(indices)], indices, indptr), shape=(len(indptr) - 1, width))


def _cofiring(chunks: _Chunks, n: int, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """(partner, phi) [n_latents n], the rows of `their` store shifted by so many.

    phi = (N n_ij - n_i n_j) / sqrt(n_i (N - n_i) n_j (N - n_j)) is worked out where n_ij > 0. Of latents that
    never fire with i, phi is the larger the smaller n_j: those follow in the order of their counts.
    """
    mine, their = chunks.mine, chunks.their
    total, most = mine.store.n_rows, len(their.latents)
    best = _Best(mine.store.n_latents, n)
    if not most:
        return best.found()
    chunks.shift(shift)
    rare = np.argsort(their.count, kind="stable")
    met = np.zeros(most, bool)

    def phi(together: np.ndarray | int, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        variance = ours * (total - ours) * theirs * (total - theirs)
        return np.clip((total * np.float64(together) - ours * theirs) / np.sqrt(variance), -1, 1)

    spread = np.sqrt(their.count * (total - their.count))  # of phi's parts, those of partners
    per_row, per_count = (x.astype(np.float32) for x in (total / spread, their.count / spread))
    for low, high in _blocks(np.minimum(chunks.pairs, most)):
        together = chunks.together(low, high)
        partner, ours, sizes = together.indices, mine.count[low:high], np.diff(together.indptr)
        # phi but for a factor that all partners of a latent share, in float32, to 2^-22 of its two terms
        rough = together.data.astype(np.float32)
        rough *= per_row[partner]
        chance = np.repeat(ours.astype(np.float32), sizes)
        chance *= per_count[partner]
        rough -= chance
        limit = at_least(rough, together.indptr, n, -np.inf)
        limit -= 2.0**-20 * (np.abs(limit) + 2 * ours * per_count.max())
        left = np.flatnonzero(rough >= np.repeat(limit, sizes))
        fires = np.searchsorted(together.indptr, left, side="right") - 1
        partner = partner[left]
        score = phi(together.data[left], ours[fires], their.count[partner])
        at, rank = first_of_each(np.lexsort((partner, -score, fires)), fires, n)
        number, value = np.zeros((high - low, n), np.int64), np.full((high - low, n), -np.inf)
        number[fires[at], rank], value[fires[at], rank] = partner[at], score[at]
        best.add(mine.latents[low:high], their.latents[number], value)
        # where too few fire together, or less than by chance, those that never do come in between
        for i in np.flatnonzero(value[:, -1] <= phi(0, ours, their.count[rare[0]])):
            own = together.indices[together.indptr[i] : together.indptr[i + 1]]
            met[own] = True
            some = rare[: n + len(own)]
            some = some[~met[some]][:n]
            met[own] = False
            scores = phi(0, ours[i], their.count[some])
            best.add(mine.latents[[low + i]], their.latents[some][None], scores[None])
    return best.found()


def _blocks(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """(low, high) of neighbours whose sizes are together at most BLOCK_PAIRS, or of one."""
    total, low = np.r_[0, np.cumsum(sizes)], 0
    while low < len(sizes):
        high = max(int(np.searchsorted(total, total[low] + BLOCK_PAIRS, side="right")) - 1, low + 1)
        yield low, high
        low = high


class _Best:
    """The n largest scores of each latent out of blocks of scores, of equals the lower partner."""

    def __init__(self, n_latents: int, n: int) -> None:
        self.partner = np.full((n_latents, n), -1, np.int64)
        self.score = np.full((n_latents, n), -np.inf)

    def add(self, at: np.ndarray, partner: np.ndarray, score: np.ndarray) -> None:
        """More partners [a m] of the latents `at` [a] and their scores [a m], -inf of none."""
        score = np.concatenate([self.score[at], score], 1)
        partner = np.concatenate([self.partner[at], partner], 1)
        order = np.lexsort((partner, -score), axis=1)[:, : self.partner.shape[1]]
        self.score[at] = np.take_along_axis(score, order, 1)
        self.partner[at] = np.take_along_axis(partner, order, 1)

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """(partner, score), -1 and NaN where there was none."""
        none = ~np.isfinite(self.score)
        return np.where(none, -1, self.partner), np.where(none, np.nan, self.score)
