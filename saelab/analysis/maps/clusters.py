"""Clusters of a picture, and the names that set them apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.maps.profiles import firings
from saelab.analysis.texts import visible
from saelab.stores.lacking import lacks
from saelab.stores.naming import set_apart

if TYPE_CHECKING:
    from saelab.stores import FeatureStore

LEAST = 8
"""Latents of a cluster, at least, and one in `PART` of all."""
PART = 400
MOST = 20_000
"""Latents that are clustered by HDBSCAN itself; of more, the others go with the nearest of these."""


def clustered(picture: np.ndarray, seed: int = 0) -> np.ndarray:
    """Clusters of points by their density: HDBSCAN of scikit-learn.

    Of more than `MOST` points a sample is clustered, and each other point is of the cluster of the sample's
    nearest point, if it is as near to it as the sample's points are to each other there.

    Args:
        picture: float32 [m 2].
        seed: Of the sample.

    Returns:
        int32 [m] from 0 on, by size; -1 of none.
    """
    from sklearn.cluster import HDBSCAN
    from sklearn.neighbors import NearestNeighbors

    m = len(picture)
    at = np.arange(m)
    if m > MOST:
        at = np.sort(np.random.default_rng(seed).choice(m, MOST, replace=False))
    size = max(LEAST, len(at) // PART)
    labels = np.full(m, -1, np.int32)
    if len(at) < 2 * size:
        return labels
    made: Any = HDBSCAN(min_cluster_size=size, min_samples=LEAST, copy=True)  # type: ignore[arg-type]
    own = made.fit(picture[at]).labels_
    if len(at) == m:
        labels[:] = own
    else:
        tree = NearestNeighbors(n_neighbors=LEAST).fit(picture[at])
        reach = tree.kneighbors(picture[at])[0][:, -1]
        far, near = tree.kneighbors(picture, n_neighbors=1)
        labels[:] = np.where(far[:, 0] <= reach[near[:, 0]], own[near[:, 0]], -1)
    count = np.bincount(labels[labels >= 0], minlength=1)
    order = np.argsort(-count, kind="stable")
    number = np.empty(len(order), np.int32)
    number[order] = np.arange(len(order))
    return np.where(labels >= 0, number[labels], -1).astype(np.int32)


def named(store: FeatureStore, latents: np.ndarray, clusters: np.ndarray) -> list[str]:
    """What sets clusters apart (`saelab.stores.naming`): of the firings of all latents, those of a cluster's.

    Args:
        store: Of the latents.
        latents: [m].
        clusters: int [m], -1 of none.

    Returns:
        A name for each cluster: up to three of what it fires on, joined; of what never fires "".
    """
    latent, shown, count, words = _words(store)
    of = np.full(store.n_latents, -1)
    of[latents] = clusters
    wide = max(len(words), 1)
    everywhere = np.bincount(shown, count, wide).astype(np.int64)
    inside = of[latent] >= 0
    pair, at = np.unique(of[latent][inside] * wide + shown[inside], return_inverse=True)
    own = np.bincount(at, count[inside], len(pair)).astype(np.int64)
    names: list[list[str]] = [[] for _ in range(int(clusters.max(initial=-1)) + 1)]
    for each in pair[set_apart(pair // wide, pair % wide, own, everywhere, int(everywhere.sum()))].tolist():
        names[each // wide].append(visible(words[each % wide]))
    return list(map("  ".join, names))


def _words(store: FeatureStore) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """(latent, number of a name, how often, names) of what latents fire on.

    A store that was made of an export knows of each latent up to three names alone: those count once.
    """
    if not lacks(store.manifest, "firings"):
        words = store.query("select name from vocabulary order by shown", format="arrow")
        return *firings(store), words.column(0).to_pylist()
    number: dict[str, int] = {}
    own = store.top_names()
    shown = [number.setdefault(name, len(number)) for names in own.values() for name in names]
    latent = np.repeat(np.array(list(own), np.int64), [len(names) for names in own.values()])
    return latent, np.array(shown, np.int64), np.ones(len(shown), np.int64), list(number)


__all__ = ["clustered", "named"]
