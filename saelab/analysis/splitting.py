"""What becomes of a narrow SAE's latents in a wider one: one latent, several, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelab.types import ShapeError

if TYPE_CHECKING:
    from scipy.sparse import spmatrix


class Pieces(NamedTuple):
    """Which latents of a wider SAE are pieces of which latents of a narrower one."""

    of: np.ndarray
    """int64 [wider]: the narrow latent that each wide one is a piece of, -1 where it is a piece of none"""
    firing: np.ndarray
    """bool [wider]: which wide latents fire often enough to be looked at"""
    latents: np.ndarray
    """int64 [m]: the narrow latents that fire often enough"""
    pieces: np.ndarray
    """int64 [m]: how many pieces each of these has"""
    covered: np.ndarray
    """float64 [m]: the share of its rows at which one of its pieces fires"""


def pieces(narrow: spmatrix, wide: spmatrix, within: float = 0.7, least: int = 10) -> Pieces:
    """Find the pieces of each narrow latent among the latents of a wider SAE, by the rows at which they fire.

    A wide latent i is a piece of a narrow j where P(j fires | i fires) >= `within`; of the narrow latents for
    which that holds it is given to the one with which it correlates most (phi of the two firings), so that a
    narrow latent that is nearly always on takes no pieces of others. That a feature of a narrow dictionary
    comes back as several in a wider one is feature splitting (Bricken et al. 2023, "Towards
    Monosemanticity"); the measure is ours.

    Args:
        narrow: Codes [n d_sae] of the narrower SAE, sparse.
        wide: Codes of the wider one at the same rows, sparse.
        within: Share of a wide latent's firings at which the narrow one fires as well, at least.
        least: Firings below which a latent of either is not looked at.

    Raises:
        ShapeError: The two are not of the same rows.
    """
    a, b = _firing(narrow), _firing(wide)
    if a.shape[0] != b.shape[0]:
        message = (
            "Codes that are compared must be of the same rows. Got "
            f"{a.shape[0]:,} and {b.shape[0]:,}. Encode the same activations."
        )
        raise ShapeError(message)
    n, m, w = a.shape[0], *(np.asarray(each.sum(0)).ravel().astype(np.int64) for each in (a, b))
    both = (a.T @ b).tocoo()
    j, i, together = both.row, both.col, both.data
    keep = (together >= within * w[i]) & (w[i] >= least) & (m[j] >= least)
    j, i, together = j[keep], i[keep], together[keep]
    p, q = m[j] / n, w[i] / n
    with np.errstate(divide="ignore", invalid="ignore"):  # on at every row: it tells nothing
        phi = np.nan_to_num((together / n - p * q) / np.sqrt(p * (1 - p) * q * (1 - q)))
    of = np.full(b.shape[1], -1)
    order = np.lexsort((-j, phi))  # the best last, of equal ones the first latent
    of[i[order]] = j[order]
    latents = np.flatnonzero(m >= least)
    owned = np.flatnonzero(of >= 0)
    found = np.bincount(of[owned], minlength=a.shape[1])
    return Pieces(
        of, w >= least, latents, found[latents], (_met(a, b, of, owned) / np.maximum(m, 1))[latents]
    )


def _firing(codes: spmatrix) -> Any:
    """int64 csr_matrix: 1 where a latent fires."""
    from scipy.sparse import csr_matrix

    held: Any = csr_matrix(codes)
    at = csr_matrix((held.data != 0, held.indices, held.indptr), held.shape)
    at.eliminate_zeros()
    return at.astype(np.int64)


def _met(a: Any, b: Any, of: np.ndarray, owned: np.ndarray) -> np.ndarray:
    """int64 [narrow]: rows at which a latent and one of its pieces fire."""
    from scipy.sparse import csr_matrix

    owner: Any = csr_matrix((np.ones(len(owned), np.int64), (owned, of[owned])), (b.shape[1], a.shape[1]))
    return np.asarray((a.multiply(b @ owner) > 0).sum(0)).ravel()


__all__ = ["Pieces", "pieces"]
