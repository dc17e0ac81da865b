"""What a map is asked of its latents: who is near in the whole space, and columns to colour them by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from saelab.analysis.maps.profiles import Profile, profile
from saelab.arguments import a_store, checked, text
from saelab.stores.browsing import typed
from saelab.stores.directions import unit_blocks
from saelab.stores.labels import checked_labels
from saelab.types import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from saelab.stores import FeatureStore

CONTROLS = 16
"""Random directions whose nearest latents say what a cosine is worth."""
COLUMNS = {
    "density": "how often it fires, share of rows",
    "count": "rows on which it fires",
    "mean": "mean value where it fires",
    "max": "largest value",
    "min": "smallest value",
    "mean_abs": "mean |value| where it fires",
    "negative": "rows on which it is negative",
}
"""Columns of `latents`, and what they hold."""
WIDE = 50.0
"""A positive column is shown by its logarithm where its high end is so many times its low one."""
CATEGORIES = 8
"""Of words the commonest ones have a colour of their own."""


class Near(NamedTuple):
    """The latents nearest to one in the whole space."""

    latent: int
    neighbours: list[tuple[int, float]]
    """(latent, cosine), the nearest first; of latents without a vector none"""
    control: float
    """mean of the largest cosine that random directions have with any latent"""


class Neighbourhood:
    """The whole space of a map, of which the picture is a shadow: looks up who is near there.

    Args:
        store: Of the latents.
        by: As in `latent_map`: "decoder", "cofiring" or "tokens".
        seed: Of the reduction of sparse profiles, and of the control.

    Raises:
        StoreError: The store has no such profiles.
    """

    def __init__(self, store: FeatureStore, by: str = "decoder", seed: int = 0) -> None:
        self.store, self.by, self.seed = store, by, seed
        # directions are read from their file each time, the others are small
        self._profile: Profile | None = None if by == "decoder" else profile(store, by, seed)

    def near(self, latents: Sequence[int], n: int = 8) -> list[Near]:
        """The n nearest of each latent, by cosine; of equals the lower number first.

        Args:
            latents: Their numbers.
            n: How many, at most.

        Raises:
            RangeError: A latent is out of range.
        """
        asked = [self.store.latent(latent).latent for latent in latents]
        own = self._rows(asked)
        best, cosines = self._best(own, n + 1)
        found = []
        for latent, row, near, cosine in zip(asked, own, best.tolist(), cosines.tolist(), strict=True):
            pairs = [(j, c) for j, c in zip(near, cosine, strict=True) if j != latent and np.isfinite(c)][:n]
            found.append(Near(latent, pairs if row.any() else [], self.control))
        return found

    @cached_property
    def control(self) -> float:
        """Mean of the largest cosine that random directions have with any latent."""
        width = next(self._blocks())[1].shape[1]
        drawn = np.random.default_rng(self.seed).standard_normal((CONTROLS, width)).astype(np.float32)
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        return float(self._best(drawn, 1)[1].mean())

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(latents, unit rows), so many at a time."""
        if self._profile is not None:
            yield self._profile
            return
        for first, rows in unit_blocks(self.store.directions):
            yield np.arange(first, first + len(rows)), rows

    def _rows(self, latents: Sequence[int]) -> np.ndarray:
        """The vectors of latents; zeros of those that have none."""
        if self._profile is None:
            return next(unit_blocks(self.store.directions[list(latents)], rows=max(1, len(latents))))[1]
        at = np.searchsorted(self._profile.latents, latents)
        there = np.append(self._profile.latents, -1)[at] == latents
        rows = np.zeros((len(latents), self._profile.rows.shape[1]), np.float32)
        rows[there] = self._profile.rows[at[there]]
        return rows

    def _best(self, wanted: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(latents, cosines) [a n] that are nearest to rows; -inf where there are no more."""
        best = np.full((len(wanted), n), np.iinfo(np.int64).max)
        cosines = np.full((len(wanted), n), -np.inf, np.float32)
        for latents, rows in self._blocks():
            cosine = np.where(rows.any(1), wanted @ rows.T, -np.inf).astype(np.float32)
            both = np.concatenate([cosines, cosine], 1)
            numbers = np.concatenate([best, np.broadcast_to(latents, cosine.shape)], 1)
            if both.shape[1] > 4 * n + 64:  # all that are no less than the n-th, of which equals are sorted
                least = np.partition(both, -n, axis=1)[:, -n]
                width = int((both >= least[:, None]).sum(1).max())
                some = np.argpartition(-both, width - 1, axis=1)[:, :width]
                both, numbers = np.take_along_axis(both, some, 1), np.take_along_axis(numbers, some, 1)
            order = np.lexsort((numbers, -both), axis=1)[:, :n]
            best, cosines = np.take_along_axis(numbers, order, 1), np.take_along_axis(both, order, 1)
        return best, np.clip(cosines, -np.inf, 1)


@dataclass(frozen=True)
class LatentColumn:
    """A number or a word for each latent, as a map is coloured by it."""

    sql: str
    """what was asked for"""
    values: np.ndarray = field(repr=False)
    """float32 [d_sae], NaN of latents that have none; of words the number of its category"""
    categories: tuple[str, ...] = ()
    """the commonest words; () of numbers. What is in none of them has the number after the last"""
    low: float = 0.0
    """where a scale begins: what 1 % are below"""
    high: float = 1.0
    """where it ends: what 1 % are above"""
    log: bool = False
    """whether the scale is one of logarithms, as of what is positive and spread over orders of magnitude"""

    def to_frame(self) -> pd.DataFrame:
        """One line for each latent: latent, value; the word of a category, "" of what is in none."""
        import pandas as pd

        words = np.array([*self.categories, ""], object)
        value = words[self.values.astype(int)] if self.categories else self.values
        return pd.DataFrame({"latent": np.arange(len(value)), "value": value})

    @property
    def title(self) -> str:
        """What it holds, with the unit."""
        return COLUMNS.get(self.sql, self.sql)


@checked(store=a_store, sql=text)
def latent_column(store: FeatureStore, sql: str, labels: Mapping[int, str] | None = None) -> LatentColumn:
    """A column of the table `latents`, or any SQL expression over latents (`saelab.stores.browsing`), such
    as "max / mean" or "len(tags)".

    Args:
        store: Of the latents.
        sql: The expression: of numbers, of truth values, or of words.
        labels: Latent -> label, on top of those of the store; "" for none.

    Returns:
        The column.

    Raises:
        ConfigError: It is no expression, or of another kind, or a label is no text.
        RangeError: A label is of no latent of the store.
    """
    column = typed(store, sql, None if labels is None else checked_labels(labels, store.n_latents))
    values = np.full(store.n_latents, np.nan, np.float32)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        words = column.to_pylist()
        common = tuple(word for word, _ in Counter(w for w in words if w is not None).most_common(CATEGORIES))
        number = {word: i for i, word in enumerate(common)}
        values[:] = [np.nan if w is None else number.get(w, len(common)) for w in words]
        return LatentColumn(sql, values, common, 0.0, float(len(common)))
    try:
        numbers = column.cast(pa.float64()).to_numpy()
    except pa.ArrowException as error:
        message = (
            f"A column must be of numbers, truth values or words. Got {sql!r}, of {column.type}. "
            "Cast it, as in (x)::double."
        )
        raise ConfigError(message) from error
    if pa.types.is_boolean(column.type):
        values[:] = 1 - numbers
        return LatentColumn(sql, values, ("true", "false"), 0.0, 2.0)
    values[:] = numbers
    values[np.isinf(values)] = np.nan
    known = values[np.isfinite(values)]
    if not len(known):
        return LatentColumn(sql, values)
    low, high = (float(v) for v in np.percentile(known, [1, 99]))
    positive = known[known > 0]
    log = len(positive) > 0 and float(known.min()) >= 0
    if log:  # what is 0, as of latents that never fire, lies below the scale
        low_of = float(np.percentile(positive, 1))
        log = high > WIDE * low_of
        low = low_of if log else low
    if not low < high:
        low, high = float(known.min()), float(known.max())
    return LatentColumn(sql, values, (), low, high if low < high else low + 1.0, log)


__all__ = ["COLUMNS", "LatentColumn", "Near", "Neighbourhood", "latent_column"]
