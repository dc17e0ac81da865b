"""Writes what a feature store says of its latents, block after block of them: the tables latents, firings,
vocabulary and examples."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from saelab.stores import tables
from saelab.stores.summaries import ShownCounts, Statistics, top_names
from saelab.types import Shown

# rows of a row group, which is what a reader of one latent has to read
GROUPS = {"latents": 512, "firings": 16_384, "examples": 2_560}


class Vocabulary(NamedTuple):
    """What rows of a store show, sorted by facet, then name."""

    facets: np.ndarray
    """object [v] of str"""
    names: np.ndarray
    """object [v] of str"""
    counts: np.ndarray
    """int64 [v], rows that show each"""

    @classmethod
    def of(cls, found: Mapping[Shown, int]) -> Vocabulary:
        """Of what is shown -> how many rows show it."""
        ordered = sorted(found)
        facets, names = (np.array([s[i] for s in ordered], dtype=object) for i in (0, 1))
        return cls(facets, names, np.array([found[s] for s in ordered], dtype=np.int64))


class SummaryWriter(contextlib.AbstractContextManager["SummaryWriter"]):
    """n_rows: of the store. vocabulary: what they show."""

    def __init__(self, folder: Path, n_rows: int, vocabulary: Vocabulary) -> None:
        self.n_rows, self.vocabulary = n_rows, vocabulary
        tables.write(folder, "vocabulary", np.arange(len(vocabulary.names)), *vocabulary)
        self._files = {name: tables.writer(folder, name) for name in ("latents", "firings", "examples")}
        self._waiting: dict[str, list[pa.Table]] = {name: [] for name in GROUPS}
        # encoding and compressing take a third of a summary's time, and need no lock of Python's
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def add(self, low: int, stats: Statistics, counts: ShownCounts, examples: Iterable[pa.Table]) -> None:
        """The next latents, from `low` on. examples: of them, sorted as in the table."""
        n, names = len(stats.count), self.vocabulary.names
        fires = np.maximum(stats.count, 1)
        of_latents = {
            "latent": np.arange(low, low + n, dtype=np.int32),
            "count": stats.count,
            "density": stats.count / max(self.n_rows, 1),
            "mean": stats.sum / fires,
            "min": stats.min,
            "max": stats.max,
            "negative": stats.negative,
            "mean_abs": stats.sum_abs / fires,
            "min_abs": stats.min_abs,
            "sum": stats.sum,
            "sum_abs": stats.sum_abs,
            "histogram": tables.lists(stats.histogram),
            "edges": tables.lists(stats.edges),
            "top_names": top_names(counts, names, n),
            "bottom_names": top_names(counts, names, n, negative=True),
        }
        share = counts.count / stats.count[counts.latent]
        lift = share * self.n_rows / self.vocabulary.counts[counts.shown]
        firings = {
            "latent": counts.latent + low,
            "shown": counts.shown,
            "count": counts.count,
            "negative": counts.negative,
            "lift": lift.astype(np.float32),
        }
        latents = tables.named("latents", of_latents)
        for name, some in (
            ("latents", [latents]),
            ("firings", [tables.named("firings", firings)]),
            ("examples", examples),
        ):
            for table in some:
                self._put(name, table)

    def _put(self, name: str, table: pa.Table) -> None:
        self._waiting[name].append(table)
        if sum(map(len, self._waiting[name])) >= GROUPS[name]:
            self._flush(name)

    def _flush(self, name: str) -> None:
        some, self._waiting[name] = self._waiting[name], []
        if some:
            self._written()  # one at a time, so that no more wait in memory
            table, size = pa.concat_tables(some), GROUPS[name]
            self._writing = self._thread.submit(self._files[name].write_table, table, size)

    def _written(self) -> None:
        """What is being written is. Raises what went wrong."""
        if self._writing is not None:
            self._writing.result()

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                for name in GROUPS:
                    self._flush(name)
                self._written()
        finally:
            self._thread.shutdown()
            for file in self._files.values():
                file.close()
