"""By what latents are near each other: their directions, the rows on which they fire, what they fire on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelab.stores.directions import unit_blocks
from saelab.stores.latent_tables import LatentTables
from saelab.types import StoreError

if TYPE_CHECKING:
    from saelab.stores import FeatureStore

BY = ("decoder", "cofiring", "tokens")
WIDTH = 64
"""Dimensions that sparse profiles are reduced to."""


class Profile(NamedTuple):
    """Unit vectors of the latents that have one; latents are near where the cosine is large."""

    latents: np.ndarray
    """int64 [m], ascending: those that are placed"""
    rows: np.ndarray
    """float32 [m width], of norm 1"""


def profile(store: FeatureStore, by: str, seed: int = 0) -> Profile:
    """What a map by this is made of.

    decoder: the directions. cofiring: the rows of the table `sample` on which a latent fires, 0 or 1. tokens:
    the square roots of how often it fires on what rows show. The last two are reduced to `WIDTH` dimensions
    by a truncated SVD of their unit rows, and leave out latents that never fire.

    Args:
        store: Of the latents.
        by: "decoder", "cofiring" or "tokens".
        seed: Of the SVD.

    Raises:
        StoreError: The store has no directions, or fewer than two latents have such a vector.
    """
    if by == "decoder":
        rows = np.concatenate([block for _, block in unit_blocks(store.directions)])
        latents = np.flatnonzero(np.einsum("ij,ij->i", rows, rows) > 0)
        found = Profile(latents, rows if len(latents) == len(rows) else rows[latents])
    else:
        latent, column, value = _cofiring(store) if by == "cofiring" else firings(store)
        found = _reduced(latent, column, np.sqrt(value, dtype=np.float32), store.n_latents, seed)
    if len(found.latents) < 2:
        message = (
            f"A map by {by} needs at least two latents that have such a vector. Got {len(found.latents)} of "
            f"{store.n_latents}. Map by 'decoder', or index a longer corpus."
        )
        raise StoreError(message)
    return found


def _cofiring(store: FeatureStore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(latent, column, value) of each firing on the sampled rows."""
    if store.kept == "full":
        sql = "select c.latent, c.row from codes_by_row c join sample using (row) where c.value != 0"
    else:
        sql = (
            "select latent, row from (select row, unnest(latents) as latent, unnest(values) as value "
            "from sample) where value != 0"
        )
    table = store.query(sql, format="arrow")
    latent, row = (table.column(i).to_numpy() for i in range(2))
    return latent, np.unique(row, return_inverse=True)[1], np.ones(len(row), np.float32)


def never_fire(store: FeatureStore) -> np.ndarray:
    """bool [n_latents]: the latents that fire on no row.

    Args:
        store: Of the latents.
    """
    # one column of the file: a database takes longer to open it than to read a million
    return LatentTables(store.folder).columns("latents", ("count",)).column(0).to_numpy() == 0


def firings(store: FeatureStore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(latent, number of what it fires on, how often) of each pair of a latent and what it fires on.

    Args:
        store: Of the latents.
    """
    table = store.query("select latent, shown, count from firings", format="arrow")
    latent, shown, count = (table.column(i).to_numpy() for i in range(3))
    return latent, shown, count


def _reduced(latent: np.ndarray, column: np.ndarray, value: np.ndarray, n: int, seed: int) -> Profile:
    from scipy.sparse import csr_array
    from sklearn.decomposition import TruncatedSVD
    from sklearn.preprocessing import normalize

    latents = np.unique(latent).astype(np.int64)
    wide = int(column.max(initial=-1)) + 1
    sparse: Any = normalize(csr_array((value, (latent, column)), shape=(n, wide))[latents])
    narrow = wide <= WIDTH or len(latents) <= WIDTH
    rows: Any = sparse.toarray() if narrow else TruncatedSVD(WIDTH, random_state=seed).fit_transform(sparse)
    rows = normalize(np.asarray(rows, np.float32))
    kept = np.einsum("ij,ij->i", rows, rows) > 0
    return Profile(latents[kept], rows[kept])


__all__ = ["BY", "Profile", "firings", "never_fire", "profile"]
