"""Measures of reconstructions, codes and dictionaries as tensors: no subject, no store, no SAE is needed.

Those of rows that `saelab.evaluate` gives beside a control are in `saelab.analysis.scores`. Names and
equations are those of the library that is named with each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from saelab.arguments import checked, matrix
from saelab.sae.metrics import fvu
from saelab.types import NonFiniteError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor


@checked(x=matrix, x_hat=matrix)
def explained_variance(x: Tensor, x_hat: Tensor) -> float:
    """1 - sum |x - x_hat|^2 / sum |x - mean x|^2 = 1 - FVU: the explained_variance of SAELens. A constant
    error counts; 1 is perfect, 0 is what the mean gives.

    Args:
        x: Activations [n d].
        x_hat: Their reconstruction [n d].

    Raises:
        ShapeError: The shapes differ, or there are no rows.
        NonFiniteError: One is NaN or infinite.
    """
    import torch

    first, second = _pair("x", x, "x_hat", x_hat)
    return 1 - fvu(torch.from_numpy(first), torch.from_numpy(second))


@checked(x=matrix, x_hat=matrix)
def frac_variance_explained(x: Tensor, x_hat: Tensor) -> float:
    """1 - sum_d Var(x_d - x_hat_d) / sum_d Var(x_d): the frac_variance_explained of dictionary_learning. A
    constant error is forgiven, so that it is never less than `explained_variance`.

    Args:
        x: Activations [n d].
        x_hat: Their reconstruction [n d].

    Returns:
        1 where they differ by a constant; of rows that are all equal 1 then, else -inf.

    Raises:
        ShapeError: The shapes differ, or there are no rows.
        NonFiniteError: One is NaN or infinite.
    """
    first, second = _pair("x", x, "x_hat", x_hat)
    left, whole = float((first - second).var(0).sum()), float(first.var(0).sum())
    if whole == 0:
        return 1.0 if left == 0 else -np.inf
    return 1 - left / whole


@checked(codes=matrix)
def hoyer(codes: Tensor) -> np.ndarray:
    """Sparsity of each row, (sqrt(m) - |f|_1 / |f|_2) / (sqrt(m) - 1): 0 where all codes are equal, 1 where
    one alone is not 0 (Hoyer 2004, section 3.1).

    Args:
        codes: [n m], m >= 2.

    Returns:
        float64 [n]; NaN of a row of zeros.

    Raises:
        ShapeError: There are fewer than two latents.
        NonFiniteError: A code is NaN or infinite.
    """
    found = _finite("codes", codes)
    m = found.shape[1]
    if m < 2:
        message = f"Codes must be of two latents or more. Got {m}. Pass all codes of a row."
        raise ShapeError(message)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(found).sum(1) / np.sqrt(np.square(found).sum(1))
    return (np.sqrt(m) - ratio) / (np.sqrt(m) - 1)


@checked(directions=matrix)
def collinearity(directions: Tensor) -> np.ndarray:
    """|cosine| of each direction with the most alike of the others: the largest is overcomplete's
    dictionary_collinearity, and a dictionary that has collapsed has many near 1.

    Args:
        directions: [m d], m >= 2; an SAE's W_dec. One of norm 0 has a cosine of 0.

    Returns:
        float64 [m]. Random directions have some too: hold it beside `random_directions` or an untrained SAE.

    Raises:
        ShapeError: There are fewer than two directions.
        NonFiniteError: One is NaN or infinite.
    """
    found = _finite("directions", directions)
    if len(found) < 2:
        message = f"Directions must be two or more. Got {len(found)}. Pass a whole dictionary."
        raise ShapeError(message)
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    unit = found / np.where(norms > 0, norms, 1)
    out = np.empty(len(unit))
    for low in range(0, len(unit), 1024):  # the matrix of all pairs may not fit into memory
        part = np.abs(unit[low : low + 1024] @ unit.T)
        part[np.arange(len(part)), low + np.arange(len(part))] = 0
        out[low : low + 1024] = part.max(1)
    return out


@checked(codes=matrix)
def code_correlation(codes: Tensor) -> np.ndarray:
    """Pearson's correlations of latents over rows: overcomplete's codes_correlation_matrix, without what it
    adds below the line.

    Args:
        codes: [n m], n >= 2.

    Returns:
        float64 [m m]; NaN of a latent that does not vary.

    Raises:
        ShapeError: There are fewer than two rows.
        NonFiniteError: A code is NaN or infinite.
    """
    found = _several("codes", codes)
    centred = found - found.mean(0)
    product, size = centred.T @ centred, np.sqrt(np.square(centred).sum(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return product / np.outer(size, size)


@checked(codes=matrix, directions=matrix)
def energy(codes: Tensor, directions: Tensor) -> np.ndarray:
    """|mean f_j| ||d_j||, what each latent brings to the reconstruction on average: overcomplete's
    energy_of_codes.

    Args:
        codes: [n m].
        directions: [m d], W_dec.

    Returns:
        float64 [m].

    Raises:
        ShapeError: The codes are of another number of latents, or there are no rows.
        NonFiniteError: One is NaN or infinite.
    """
    f, d = _finite("codes", codes), _finite("directions", directions)
    if f.shape[1] != len(d) or not len(f):
        message = (
            f"Codes must be [n m] of m directions. Got {list(f.shape)} and {list(d.shape)}. Pass the codes "
            "and W_dec of one SAE."
        )
        raise ShapeError(message)
    return np.abs(f.mean(0)) * np.linalg.norm(d, axis=1)


@checked(codes=matrix, others=matrix)
def wasserstein(codes: Tensor, others: Tensor) -> np.ndarray:
    """Wasserstein-1 distance of each latent's codes in two sets of rows, mean |f_(i) - g_(i)| over their
    order: the mean over latents is overcomplete's wasserstein_1d.

    Args:
        codes: [n m].
        others: [n m], as many rows.

    Returns:
        float64 [m], in units of codes. 0 is reached by no sample: hold it beside two halves of one set.

    Raises:
        ShapeError: The shapes differ, or there are no rows.
        NonFiniteError: One is NaN or infinite.
    """
    first, second = _pair("codes", codes, "others", others)
    return np.abs(np.sort(first, axis=0) - np.sort(second, axis=0)).mean(0)


@checked(codes=matrix, others=matrix)
def frechet(codes: Tensor, others: Tensor) -> float:
    """Frechet distance of two sets of rows as if both were normal, |mean - mean'|^2 + Tr(C + C' -
    2 (C C')^1/2): overcomplete's frechet_distance, its root by symmetric matrices, which has no imaginary
    part to drop.

    Args:
        codes: [n m], n >= 2.
        others: [n' m], n' >= 2.

    Returns:
        In squared units of codes; 0 for equal means and covariances.

    Raises:
        ShapeError: There are fewer than two rows, or the widths differ.
        NonFiniteError: One is NaN or infinite.
    """
    first, second = _several("codes", codes), _several("others", others)
    if first.shape[1] != second.shape[1]:
        widths = f"{first.shape[1]} and {second.shape[1]}"
        message = f"Both sets must have one width. Got {widths}. Pass codes of one SAE."
        raise ShapeError(message)
    one, two = (np.atleast_2d(np.cov(each.T)) for each in (first, second))
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    # (C C')^1/2 and (C^1/2 C' C^1/2)^1/2 have one trace
    shared = np.sqrt(np.linalg.eigvalsh(root @ two @ root).clip(0)).sum()
    apart = np.square(first.mean(0) - second.mean(0)).sum()
    return float(max(0.0, apart + np.trace(one) + np.trace(two) - 2 * shared))


def _finite(name: str, value: np.ndarray | Tensor) -> np.ndarray:
    found = np.asarray(value, dtype=np.float64)
    if not np.isfinite(found).all():
        message = f"{name} must be finite. Got NaN or infinity. Leave such rows out."
        raise NonFiniteError(message)
    return found


def _several(name: str, value: Tensor) -> np.ndarray:
    found = _finite(name, value)
    if len(found) < 2:
        message = f"{name} must have two rows or more. Got {len(found)}. Pass more rows."
        raise ShapeError(message)
    return found


def _pair(name: str, value: Tensor, second: str, other: Tensor) -> tuple[np.ndarray, np.ndarray]:
    one, two = _finite(name, value), _finite(second, other)
    if one.shape != two.shape or not len(one):
        message = (
            f"{name} and {second} must have one shape, and rows. Got {list(one.shape)} and "
            f"{list(two.shape)}. Pass the same rows."
        )
        raise ShapeError(message)
    return one, two


__all__ = [
    "code_correlation", "collinearity", "energy", "explained_variance", "frac_variance_explained", "frechet",
    "hoyer", "wasserstein",
]  # fmt: skip
