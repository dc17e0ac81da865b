"""What sets latents apart: the names that they go by where nobody has labelled them.

Which names these are is computed once and kept: `.names-KEY.npy` in the store's folder is no part of the
store. It is int32 [poles n_latents NAMES], numbers in the table `vocabulary` with -1 for none, derived from
the files whose hashes KEY names, and made anew where anything in it is odd. Where the folder cannot be
written, or is one that was installed, it lies in the user's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saelab.stores import derived
from saelab.stores.lacking import lacks
from saelab.stores.latent_tables import LatentTables
from saelab.stores.summaries import at_least, first_of_each

COUNT = 5
"""Firings that a name must have, or as many as the most frequent has where that has fewer."""
NAMES = 3
VERSION = 1


class Apart(NamedTuple):
    """The names that set each latent apart, best first; of one that never fires there are none."""

    top: list[list[str]]
    """[n_latents] of what it is > 0 on"""
    bottom: list[list[str]]
    """[n_latents] of what it is < 0 on"""


class Telling(NamedTuple):
    """Something that sets a latent apart."""

    name: str
    """what rows show"""
    count: int
    """rows that show it, on which the latent fires"""
    share: float
    """of the rows that show it"""
    lift: float
    """how many times as often as on any row"""


def set_apart(
    group: np.ndarray, shown: np.ndarray, count: np.ndarray, everywhere: np.ndarray, rows: int, n: int = NAMES
) -> np.ndarray:
    """What sets groups apart: of the things that a group fires on at least `COUNT` times, and more often than
    of all rows show them, those whose presence tells most of its firing: the mutual information of "fires"
    and "shows it". So neither a rare thing with a high lift is among them, nor a common one that all fire on.

    Args:
        group: int [pairs], ascending.
        shown: int [pairs], the thing; once in a group.
        count: int [pairs], rows that show the thing and on which the group fires.
        everywhere: int [things], rows that show each.
        rows: All of them.
        n: Of each group, at most.

    Returns:
        int [found], numbers of pairs: by group, of each the best first, of equals the lower number shown.
    """
    fires = np.flatnonzero(count > 0)
    group, shown, count = group[fires], shown[fires], count[fires]
    n_groups = int(group[-1]) + 1 if len(group) else 0
    total = np.bincount(group, count, n_groups)
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]][: len(group)])
    floor = np.full(n_groups, COUNT)
    floor[group[starts]] = np.minimum(np.maximum.reduceat(count, starts) if len(starts) else 0, COUNT)

    at = np.flatnonzero(count >= floor[group])
    at = at[count[at] * float(rows) > total[group[at]] * everywhere[shown[at]]]
    told = _information(count[at], total[group[at]], everywhere[shown[at]], rows)
    bounds = np.searchsorted(group[at], np.arange(n_groups + 1))
    some = np.flatnonzero(told >= at_least(told, bounds, n, -np.inf)[group[at]])
    order = some[np.lexsort((shown[at[some]], -told[some], group[at[some]]))]
    best, _ = first_of_each(order, group[at], n)
    return fires[at[best]]


def _information(both: np.ndarray, one: np.ndarray, other: np.ndarray, rows: int) -> np.ndarray:
    """float64 [n]: rows times the mutual information, in nats, of two events of which so many rows have both,
    the one and the other."""
    told = np.zeros(len(both))
    for i, a in ((both, one), (other - both, rows - one)):
        for cell, b in ((i, other), (a - i, rows - other)):
            at = np.flatnonzero(cell)
            told[at] += cell[at] * np.log(cell[at] * float(rows) / a[at] / b[at])
    return told


def names_of(folder: Path, manifest: Mapping[str, Any]) -> Apart:
    """What sets each latent of a store apart from all others; of one that does not say how often latents fire
    on what, the names that it gives them.

    Args:
        folder: Of the store.
        manifest: Of the store.

    Raises:
        StoreError: A file of the store is not as it was written.
    """
    tables = LatentTables(folder)
    if lacks(manifest, "firings", "vocabulary"):  # then what it names is all there is
        said = tables.columns("latents", ("top_names", "bottom_names"))
        top, bottom = (column.to_pylist() for column in said)
        return Apart([own or [] for own in top], [own or [] for own in bottom])
    names = tables.vocabulary.column("name").to_pylist()
    return Apart(*(_spelt(pole, names) for pole in _numbers(tables, folder, manifest)))


def keep_names(folder: Path, manifest: Mapping[str, Any]) -> None:
    """See to it that `names_of` finds kept what it gives.

    Args:
        folder: Of a store that says how often latents fire on what.
        manifest: Of the store.

    Raises:
        StoreError: A file of the store is not as it was written.
    """
    _numbers(LatentTables(folder), folder, manifest)


def _numbers(tables: LatentTables, folder: Path, manifest: Mapping[str, Any]) -> np.ndarray:
    """int32 [poles n_latents NAMES], numbers in the vocabulary: those that are kept, else made and kept."""
    count = tables.vocabulary.column("count").to_numpy()
    shape, where = (2, manifest["n_latents"], NAMES), _places(manifest)
    best = _read(folder, where, shape, len(count))
    if best is None:
        made = best = _made(tables, count, manifest["n_rows"], shape)
        derived.write(folder, *where, lambda path: _save(path, made))
    return best


def telling(
    tables: LatentTables, latents: Sequence[int], rows: int, n: int = 10
) -> dict[int, tuple[list[Telling], list[Telling]]]:
    """What sets some latents apart, with figures.

    Args:
        tables: Of the store.
        latents: Their numbers.
        rows: Of the store.
        n: Of each pole, at most.

    Returns:
        latent -> (of what it is > 0 on, of what it is < 0 on), of each the largest lift first.

    Raises:
        StoreError: A file of the store is not as it was written.
    """
    asked = sorted(set(latents))
    parts = [tables.of("firings", latent) for latent in asked]
    group = np.repeat(np.arange(len(asked)), list(map(len, parts)))
    columns = ("shown", "count", "negative")
    shown, count, negative = (
        np.concatenate([np.zeros(0, np.int64), *(part.column(c).to_numpy() for part in parts)])
        for c in columns
    )
    names, everywhere = tables.vocabulary.column("name"), tables.vocabulary.column("count").to_numpy()
    out: dict[int, tuple[list[Telling], list[Telling]]] = {latent: ([], []) for latent in asked}
    for pole, often in enumerate((count - negative, negative)):
        total = np.bincount(group, often, len(asked))
        for at in set_apart(group, shown, often, everywhere, rows, n).tolist():
            own, share = int(often[at]), float(often[at] / everywhere[shown[at]])
            lift = share * rows / float(total[group[at]])
            out[asked[group[at]]][pole].append(Telling(names[int(shown[at])].as_py(), own, share, lift))
    for poles in out.values():
        for told in poles:
            told.sort(key=lambda each: (-each.lift, each.name))
    return out


def _spelt(pole: np.ndarray, names: list[str]) -> list[list[str]]:
    if pole.max(initial=-1) < 0:
        return [[]] * len(pole)
    return [[names[i] for i in own if i >= 0] for own in pole.tolist()]


def _made(tables: LatentTables, everywhere: np.ndarray, rows: int, shape: tuple[int, ...]) -> np.ndarray:
    """int32, numbers in the vocabulary. everywhere: rows that show each."""
    best = np.full(shape, -1, np.int32)
    for latent, shown, count, negative in _whole(tables):
        for pole, often in enumerate((count - negative, negative)):
            at = set_apart(latent - latent[0], shown, often, everywhere, rows)
            rank = np.arange(len(at)) - np.searchsorted(latent[at], latent[at])
            best[pole, latent[at], rank] = shown[at]
    return best


def _whole(tables: LatentTables) -> Iterator[tuple[np.ndarray, ...]]:
    """The columns latent, shown, count and negative of the table `firings`, some latents at a time."""
    left = [np.zeros(0, np.int64)] * 4
    for batch in tables.batches("firings", ("latent", "shown", "count", "negative")):
        columns = [np.r_[old, batch.column(i).to_numpy()] for i, old in enumerate(left)]
        cut = int(np.searchsorted(columns[0], columns[0][-1])) if len(columns[0]) else 0
        if cut:
            yield tuple(column[:cut] for column in columns)
        left = [column[cut:] for column in columns]  # the batch may end within a latent
    if len(left[0]):
        yield tuple(left)


def _places(manifest: Mapping[str, Any]) -> tuple[str, str]:
    """Name beside the store, and in the cache."""
    hashes = [manifest["files"][f"{name}.parquet"]["sha256"] for name in ("firings", "vocabulary")]
    key = hashlib.sha256(" ".join([str(VERSION), *hashes]).encode()).hexdigest()[:32]
    return f".names-{key}.npy", f"names/{key}.npy"


def _save(path: Path, best: np.ndarray) -> None:
    with path.open("wb") as file:  # to a path numpy adds a suffix
        np.save(file, best)


def _read(folder: Path, where: tuple[str, str], shape: tuple[int, ...], n_names: int) -> np.ndarray | None:
    """What is kept, if it is sound."""
    for path in derived.places(folder, *where):
        with contextlib.suppress(OSError, ValueError, EOFError):
            found = np.load(path, allow_pickle=False)
            sound = found.shape == shape and found.dtype == np.int32
            if sound and found.min(initial=0) >= -1 and found.max(initial=-1) < n_names:
                return found
    return None


__all__ = ["Apart", "Telling", "keep_names", "names_of", "set_apart", "telling"]
