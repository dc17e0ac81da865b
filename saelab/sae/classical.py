"""Dictionaries that are fitted, not trained (PCA, NMF, k-means, ...): how they make codes, and their recipe.

`saelab.training.classical` fits them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.sae.config import Option, Recipe, SAEConfig, register
from saelab.sae.dictionaries import Dictionary, Free
from saelab.sae.kernels import top_k_csr
from saelab.sae.option_groups import ENCODER
from saelab.sae.options import flag, integer_from, one_of
from saelab.sae.pursuit import ENDLESS, by_gradients, by_least_squares, chosen_codes
from saelab.sae.sparsifiers import AbsTopK, Identity, Sparsifier
from saelab.types import ConfigError, nearest

LINEAR = ("pca", "svd", "ica", "sparse_pca")
"""Methods whose codes are a linear map of the row, of either sign, and whose latents are at most d_in."""
METHODS = {
    "pca": "the directions of the largest variance",
    "svd": "the same of rows that are not centred",
    "ica": "FastICA: directions whose codes are as independent as a linear map makes them",
    "sparse_pca": "PCA whose directions have few entries that are not 0",
    "nmf": "non-negative directions and codes, of rows that are not negative",
    "semi_nmf": "free directions, non-negative codes",
    "kmeans": "centres: a row's code is 1 at the nearest",
    "given": "those of another SAE (saelab.training.with_codes)",
}
"""Method -> one line."""
_TOLD = "; ".join(f"'{name}': {line}" for name, line in METHODS.items())
CODES = ("transform", "topk", "omp", "gradient_pursuit")


class Pursuit(Sparsifier):
    """Codes that are sought for each row anew on the decoder's directions, which makes them nearly the best
    that there are; no encoder foretells them.

    how: "omp", orthogonal matching pursuit (`saelab.analysis.orthogonal_matching_pursuit`),
    "gradient_pursuit" (`saelab.analysis.gradient_pursuit`), or "transform", non-negative least squares
    (`saelab.analysis.nonnegative_least_squares`), of which k is no bound. x must be less b_dec.

    x [n d_in] -> codes [n d_sae], at most k non-zero in a row. Gradients are those of the least-squares codes
    on the latents that are on: exact but for gradient pursuit, whose codes come near to these.
    """

    def __init__(self, how: str, k: int | None, signed: bool) -> None:
        super().__init__()
        self.how, self.k, self.signed = how, k, signed

    def forward(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> Tensor:
        W_dec = dictionary()
        wide = torch.promote_types(x.dtype, torch.float32)
        pursue = by_gradients if self.how == "gradient_pursuit" else by_least_squares
        most = np.full(len(x), ENDLESS if self.k is None else self.k)
        given = x.detach().to(wide), W_dec.detach().to(wide)
        row, latent, value = chosen_codes(*given, most, self.signed, pursue)
        value = value.to(x.dtype)
        if torch.is_grad_enabled() and (x.requires_grad or W_dec.requires_grad) and len(row):
            value = value + _no_more_than_gradients(x, W_dec, row, latent)
        return x.new_zeros(pre.shape).index_put((row, latent), value)

    def extra_repr(self) -> str:
        return f"how={self.how!r}, k={self.k}, signed={self.signed}"


class Nearest(Sparsifier):
    """1 at the largest pre-activation of a row, 0 elsewhere. With W_enc = W_dec^T and b_enc = -||d_j||^2 / 2
    that is the nearest of the directions d_j to x: ||x - d_j||^2 = ||x||^2 - 2 pre_j.

    pre [n d_sae] -> codes [n d_sae], one non-zero in a row; ties go to the lower index.
    """

    def forward(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> Tensor:
        return self.scatter(pre, *top_k_csr(pre.detach(), 1))

    def select(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> tuple[Tensor, Tensor]:
        return top_k_csr(pre, 1)

    def activation(self, pre: Tensor, indices: Tensor) -> Tensor:
        return torch.ones_like(pre)


def _no_more_than_gradients(x: Tensor, W_dec: Tensor, row: Tensor, latent: Tensor) -> Tensor:
    """Zeros [nnz] with the gradients of the least-squares codes on the latents of each row."""
    order = torch.argsort(row, stable=True)
    counts = torch.bincount(row, minlength=len(x))
    starts = counts.cumsum(0) - counts
    place = torch.empty_like(row)
    place[order] = torch.arange(len(row), device=row.device) - starts[row[order]]
    at = row.new_zeros(len(x), int(counts.max()))
    on = torch.zeros_like(at, dtype=torch.bool)
    at[row, place], on[row, place] = latent, True
    wide = torch.float64
    some = W_dec.to(wide)[at] * on[:, :, None]
    # in units of norm 1, so that a short direction is not taken for a dependent one
    size = some.detach().norm(dim=2, keepdim=True)
    some = some / size.where(size > 0, 1)
    system = some @ some.mT + torch.diag_embed((~on).to(wide) + 1e-10)
    found = torch.linalg.solve(system, (some @ x.to(wide)[:, :, None]))[:, :, 0]
    values = (found[row, place] / size[row, place, 0]).to(x.dtype)
    return values - values.detach()


def _codes(config: SAEConfig) -> str:
    """How codes are made, where nothing was said too."""
    asked, k = config.options["codes"], config.options["k"]
    return asked or ("transform" if k is None else "omp")


def _signed(config: SAEConfig) -> bool:
    asked, method = config.options["signed"], config.options["method"]
    return method in (*LINEAR, "given") if asked is None else asked


def _sparsifier(config: SAEConfig) -> Sparsifier:
    how, k, method = _codes(config), config.options["k"], config.options["method"]
    if how == "topk":
        return AbsTopK(k)
    if how == "transform" and method == "kmeans":
        return Nearest()
    if how == "transform" and method in LINEAR:
        return Identity()
    return Pursuit(how, k, _signed(config))


def _method(name: str, value: Any, config: SAEConfig) -> None:
    one_of(*METHODS)(name, value, config)
    if value in LINEAR and config.d_sae > config.d_in:
        message = (
            f"{value} has at most as many latents as dimensions. Got d_sae={config.d_sae} of "
            f"d_in={config.d_in}. Pass d_sae<={config.d_in}, or semi_nmf or kmeans."
        )
        raise ConfigError(message)


def _how(name: str, value: Any, config: SAEConfig) -> None:
    if value is not None and value not in CODES:
        message = (
            f"{name} must be one of {', '.join(map(repr, CODES))}, or None. Got {value!r}. "
            f"{nearest(str(value), CODES)}"
        )
        raise ConfigError(message.strip())
    how, k, method = _codes(config), config.options["k"], config.options["method"]
    if (how == "transform") != (k is None):
        remedy = "Leave k out" if how == "transform" else "Pass k=16"
        message = (
            f"The codes {how!r} take {'every latent' if how == 'transform' else 'k latents'}. Got k={k}. "
            f"{remedy}, or other codes."
        )
        raise ConfigError(message)
    if how == "transform" and method == "given":
        message = "A dictionary that is given has no transform of its own. Got k=None. Pass k=16."
        raise ConfigError(message)
    if how == "topk" and method not in LINEAR:
        message = (
            f"The codes 'topk' are the largest of a linear map, which {', '.join(LINEAR)} have. Got "
            f"{method!r}. Pass codes='omp'."
        )
        raise ConfigError(message)


def _sign(name: str, value: Any, config: SAEConfig) -> None:
    if value is None:
        return
    flag(name, value, config)
    if config.options["method"] != "given":
        message = (
            f"{name} is said of a dictionary that is given. Got {value} for {config.options['method']!r}, "
            "which says itself whether codes may be negative. Leave it out."
        )
        raise ConfigError(message)


register(
    "classical",
    Recipe(
        line="Classical dictionaries, fitted and not trained: PCA, SVD, ICA, NMF, k-means (scikit-learn).",
        options={
            "method": Option("kmeans", _method, f"{_TOLD}."),
            "k": Option(
                None, integer_from(1, "d_sae", optional=True), "Latents of a row; None: as many as there are."
            ),
            "codes": Option(
                None,
                _how,
                "'transform', the method's own; 'topk', the largest of these; 'omp' and 'gradient_pursuit', "
                "sought for each row on the directions. None means 'omp' with k, else 'transform'.",
            ),
            "signed": Option(
                None, _sign, "Whether codes on a given dictionary may be negative; None means they may."
            ),
            **{name: option for name, option in ENCODER.items() if name != "tied_init"},
        },
        sparsifier=_sparsifier,
        losses=lambda c: ("mse",),
        rules=lambda c: (),
        dictionary=lambda c: Free(c.d_sae, c.width_out),
        title=lambda c: f"{c.options['method']}, {_codes(c)}" if c.options["k"] else c.options["method"],
        fitted=True,
    ),
)

__all__ = ["CODES", "LINEAR", "METHODS", "Nearest", "Pursuit"]
