"""Classical dictionaries as SAEs, fitted in closed form or by scikit-learn; sparse codes on any dictionary.

They are what an SAE has to beat: `saelab.evaluate(..., suites=["classical"])` says by how much.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelab import dist
from saelab.arguments import an_integer, checked, full_sae, maybe, one_of, real
from saelab.sae.classical import LINEAR, METHODS
from saelab.sae.config import SAEConfig, recipe
from saelab.sae.model import SAE
from saelab.training.rows import as_rows
from saelab.training.semi_nmf import semi_nmf
from saelab.types import ConfigError, HookPoint, ShapeError

FITTED = tuple(name for name in METHODS if name != "given")
UNCENTRED = ("svd", "nmf")


class _Fit(NamedTuple):
    """What a method found, float64."""

    directions: np.ndarray
    """[d_sae d_in]"""
    encoder: np.ndarray | None = None
    """[d_in d_sae]; None: the transpose of the directions"""
    unit: bool = True
    """whether directions are brought to norm 1, and codes to their units"""


@checked(
    method=one_of(*FITTED),
    d_sae=an_integer(1),
    k=maybe(an_integer(1)),
    codes=maybe(one_of("transform", "topk", "omp", "gradient_pursuit")),
    max_rows=an_integer(2),
    iterations=an_integer(1),
    alpha=real(0),
    seed=an_integer(),
)
def classical(
    acts: Any,
    method: str = "pca",
    *,
    d_sae: int,
    k: int | None = None,
    codes: str | None = None,
    hook: HookPoint | str | None = None,
    max_rows: int = 20_000,
    iterations: int = 200,
    alpha: float = 1.0,
    seed: int = 0,
) -> SAE:
    """A classical dictionary of activations, as an SAE like every other: it saves, loads, evaluates, indexes.

    The methods, of rows x less their mean b (but for svd and nmf), codes f and directions d_j of norm 1
    (k-means: the centres):

        pca         the d_j of largest variance, f = (x - b) D^T; FVU is 1 less their share of the variance
        svd         the same of rows that are not centred (scikit-learn's TruncatedSVD)
        ica         FastICA of the first d_sae principal components, f = (x - b) W
        sparse_pca  min 1/2 ||X - F D||^2 + alpha |D|_1, f by ridge regression (MiniBatchSparsePCA)
        nmf         X ~ F D with F, D >= 0 by coordinate descent (NMF), f by non-negative least squares
        semi_nmf    the same with F >= 0 alone (Ding et al. 2010; solved as by Gillis and Kumar 2015, alg. 1)
        kmeans      f = 1 at the nearest centre (KMeans)

    With k, each row has at most k codes instead, sought on the directions by orthogonal matching pursuit (or
    by gradient pursuit), which is nearly the best that the dictionary can do: an SAE that beats it by its one
    product with W_enc does well. codes="topk" keeps the k largest of a linear map.

    Rows are a sample without repetition, which the seed draws. Memory is 8 bytes times max_rows times d_in,
    several times over, and of semi_nmf, nmf and kmeans max_rows times d_sae. Of 20,000 rows of width 128 and
    512 latents a core takes some seconds for kmeans and minutes for nmf and semi_nmf; pca, svd and ica of 128
    take seconds, sparse_pca some ten.

    Args:
        acts: An ActivationStore, a `saelab.stream`, or a floating tensor [n d_in].
        method: One of the above.
        d_sae: Latents; at most d_in of pca, svd, ica and sparse_pca.
        k: Codes of a row, at most; None for the method's own.
        codes: "transform", the method's own; "topk", "omp" or "gradient_pursuit" with k. None means "omp"
            with k, else "transform".
        hook: Which of a store's hook points; by default its only one.
        max_rows: Rows that it is fitted on, at most.
        iterations: Of ica, sparse_pca, nmf, semi_nmf and kmeans, at most.
        alpha: Weight of sparse_pca's penalty, for rows whose elements have a mean square of 1.
        seed: Of the sample, and of the start of each method.

    Returns:
        The SAE, in eval mode on the CPU. `sae.config.recipe` is "classical".

    Raises:
        ConfigError: The method or codes are unknown or do not go together, d_sae is more than d_in, more than
            the rows or more than the directions in which they vary, or nmf is given negative activations.
        ShapeError: The activations are no matrix or store.
        NonFiniteError: They are NaN or infinite.
        HookError: The store has several hook points, or not that one.
    """
    config = recipe(
        "classical",
        d_in=_width(acts, hook),
        d_sae=d_sae,
        hook=hook,
        method=method,
        k=k,
        codes=codes,
        b_dec_init="zeros" if method in UNCENTRED else "mean",
    )
    source, config = as_rows(acts, config)
    with dist.alone():
        count = min(max_rows, source.n_rows)
        rows = source.first(count, count, seed).cpu() if count else torch.zeros(0, config.d_in)
    _enough(config, rows)
    sae = SAE(config)
    with torch.no_grad():
        sae.input_scale.copy_(rows.norm(dim=1).mean().clamp_min(torch.finfo(rows.dtype).tiny))
        if method not in UNCENTRED:
            sae.b_dec.copy_((rows / sae.input_scale).mean(0))
        x = ((rows.double() / sae.input_scale.double()) - sae.b_dec.double()).numpy()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit = METHOD[method](x, d_sae, iterations, alpha, seed)
    if method == "ica" and any("converge" in str(each.message) for each in told):
        # others come nearer with each round; what ICA has before it converges may be no direction at all
        message = (
            f"ICA did not converge in iterations={iterations}. Pass more, or a smaller d_sae than {d_sae}."
        )
        warnings.warn(message, stacklevel=3)
    return _filled(sae, fit)


@checked(sae=full_sae, codes=one_of("omp", "gradient_pursuit"), k=an_integer(1))
def with_codes(sae: SAE, codes: str = "omp", *, k: int) -> SAE:
    """An SAE with the dictionary of another, whose codes are sought for each row: nearly the best that any
    encoder could do with these directions at that sparsity, against which its own can be held.

    Codes may be negative where those of the SAE may.

    Args:
        sae: An autoencoder; it stays as it is.
        codes: "omp" for orthogonal matching pursuit, or "gradient_pursuit".
        k: Codes of a row, at most.

    Raises:
        ConfigError: k is more than d_sae, or the SAE is a transcoder or crosscoder.
    """
    old = sae.config
    if old.d_out is not None or old.widths:
        message = (
            f"Codes are sought for the rows of an autoencoder. Got a {old.recipe}. Pass an SAE that "
            "reconstructs what it reads."
        )
        raise ConfigError(message)
    config = recipe(
        "classical",
        d_in=sae.d_in,
        d_sae=sae.d_sae,
        hook=old.hook,
        method="given",
        k=k,
        codes=codes,
        signed=sae.sparsifier.signed,
        normalise=old.options["normalise"],
    )
    W_dec = sae.W_dec.detach().clone()
    tensors = {
        "dictionary.W_dec": W_dec,
        "W_enc": W_dec.clone().t(),
        "b_enc": sae.b_enc.detach().new_zeros(sae.d_sae),
        "b_dec": sae.b_dec.detach().clone(),
        "input_scale": sae.input_scale.detach().clone(),
    }
    return SAE.from_tensors(config, tensors)


def _width(acts: Any, hook: HookPoint | str | None) -> int:
    """d_in of activations. Raises ShapeError of what are none."""
    if isinstance(acts, torch.Tensor | np.ndarray) and acts.ndim > 1 and acts.shape[-1]:
        return int(acts.shape[-1])
    store: Any = acts
    if not hasattr(store, "hooks") or not hasattr(store, "width"):
        got = list(store.shape) if hasattr(store, "shape") else type(store).__name__
        message = (
            f"Activations must be an ActivationStore, a stream or a tensor [n, d_in]. Got {got}. Make a "
            "store by saelab.harvest(...)."
        )
        raise ShapeError(message)
    named = [str(each) for each in store.hooks]
    at = named[0] if hook is None else str(HookPoint.of(hook))
    # what is missing or left open is refused by as_rows, by name
    return store.width(at if at in named else named[0])


def _enough(config: SAEConfig, rows: Tensor) -> None:
    """Raises ConfigError where there are too few rows, or they vary in too few directions."""
    method, n = config.options["method"], len(rows)
    if config.d_sae > n or n < 2:
        message = (
            f"d_sae must be at most the number of rows, and these at least 2. Got d_sae={config.d_sae} of "
            f"{n} rows. Pass more rows, or a larger max_rows."
        )
        raise ConfigError(message)
    low = float(rows.min())
    if method == "nmf" and low < 0:
        message = (
            f"nmf takes activations that are not negative. Got {low:.4g}. Pass method='semi_nmf', whose "
            "directions may have any sign, or activations after a ReLU."
        )
        raise ConfigError(message)
    if method in LINEAR:
        centred = rows.double() if method == "svd" else rows.double() - rows.double().mean(0)
        values = torch.linalg.eigvalsh(centred.t() @ centred)
        rank = int((values > 1e-10 * values[-1].clamp_min(torch.finfo(values.dtype).tiny)).sum())
        if rank < config.d_sae:
            message = (
                f"{method} has as many latents as directions in which rows vary, at most. Got "
                f"d_sae={config.d_sae} of {rank}. Pass d_sae<={max(1, rank)}, or more rows."
            )
            raise ConfigError(message)


@torch.no_grad()
def _filled(sae: SAE, fit: _Fit) -> SAE:
    directions = torch.from_numpy(fit.directions)
    encoder = directions.t() if fit.encoder is None else torch.from_numpy(fit.encoder)
    if fit.unit:
        norms = directions.norm(dim=1)
        norms = norms.where(norms > 0, 1)
        directions = directions / norms[:, None]
        encoder = directions.t() if fit.encoder is None else encoder * norms
    sae.dictionary.set(directions.float())
    sae.W_enc.copy_(encoder)
    # a product with the nearest centre is the largest: ||x - d||^2 = ||x||^2 - 2 (<x, d> - ||d||^2 / 2)
    sae.b_enc.copy_(-directions.square().sum(1) / 2 if not fit.unit else torch.zeros(sae.d_sae))
    sae.check_parameters()
    return sae.eval()


def _principal(x: np.ndarray, d_sae: int, iterations: int, alpha: float, seed: int) -> _Fit:
    """Eigenvectors of X^T X, the largest first; the entry of largest size of each is positive."""
    _, vectors = np.linalg.eigh(x.T @ x)
    found = vectors.T[::-1][:d_sae]
    largest = np.take_along_axis(found, np.abs(found).argmax(1)[:, None], 1)
    return _Fit(found * np.sign(largest))


def _independent(x: np.ndarray, d_sae: int, iterations: int, alpha: float, seed: int) -> _Fit:
    from sklearn.decomposition import FastICA

    options: dict[str, Any] = {"whiten": "unit-variance", "max_iter": iterations, "random_state": seed}
    ica: Any = FastICA(d_sae, **options).fit(x)
    return _Fit(ica.mixing_.T, ica.components_.T)


def _sparse(x: np.ndarray, d_sae: int, iterations: int, alpha: float, seed: int) -> _Fit:
    from sklearn.decomposition import MiniBatchSparsePCA

    size = float(np.sqrt(np.mean(x * x)))
    options: dict[str, Any] = {"alpha": alpha, "batch_size": 256, "max_no_improvement": None}
    pca = MiniBatchSparsePCA(d_sae, max_iter=iterations, random_state=seed, **options).fit(x / size)
    directions = pca.components_
    system = directions @ directions.T + pca.ridge_alpha * np.eye(d_sae)
    return _Fit(directions, np.linalg.solve(system, directions).T)


def _nonnegative(x: np.ndarray, d_sae: int, iterations: int, alpha: float, seed: int) -> _Fit:
    from sklearn.decomposition import NMF

    start = "nndsvda" if d_sae <= min(x.shape) else "random"
    options: dict[str, Any] = {"n_components": d_sae, "init": start, "random_state": seed}
    return _Fit(NMF(max_iter=iterations, **options).fit(x).components_)


def _semi(x: np.ndarray, d_sae: int, iterations: int, alpha: float, seed: int) -> _Fit:
    centres = _means(x, d_sae, min(iterations, 20), alpha, seed).directions
    return _Fit(semi_nmf(torch.from_numpy(x), torch.from_numpy(centres), iterations).numpy())


def _means(x: np.ndarray, d_sae: int, iterations: int, alpha: float, seed: int) -> _Fit:
    from sklearn.cluster import KMeans

    options: dict[str, Any] = {"n_init": 1, "random_state": seed}
    return _Fit(KMeans(d_sae, max_iter=iterations, **options).fit(x).cluster_centers_, unit=False)


METHOD = {
    "pca": _principal,
    "svd": _principal,
    "ica": _independent,
    "sparse_pca": _sparse,
    "nmf": _nonnegative,
    "semi_nmf": _semi,
    "kmeans": _means,
}

__all__ = ["FITTED", "classical", "with_codes"]
