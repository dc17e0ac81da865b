"""Sparse codes by gradient pursuit: nearly the best that any encoder could do with a given decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.arguments import an_integer, checked, either, flag, floats, integers
from saelab.types import Codes, ConfigError, ShapeError, check_finite

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.sae import SAE

CACHED, MOST, FAST = 1 << 20, 1 << 24, 256
"""Numbers of a piece that stay in or near the cache; those that it takes at most, to have rows enough for a
fast product; rows that are enough."""


@checked(x=floats, directions=floats, k=either(an_integer(0, 2**62), integers()), signed=flag)
def gradient_pursuit(x: Tensor, directions: Tensor, k: Any, *, signed: bool = False) -> Codes:
    """Sparse codes f >= 0 with x ~ f @ directions, at most k of a row.

    From f = 0 and r = x, k times, with unit directions u_j (Blumensath and Davies 2008; as in 2410.14670):

        S = S + {argmax_j <r, u_j>},   g = <r, u_j> for j in S,   c = sum_S g_j u_j,
        f = max(0, f + g <c, r> / <c, c>),   r = x - f u,

    a step along the gradient on the chosen directions, as long as the line search says: without the clamp it
    never makes ||r|| longer. On orthonormal directions the result is the projection on the k with the largest
    positive products. Rows go together, each with its own k.

    Args:
        x: [n d], less what a decoder adds to every row (b_dec).
        directions: [m d], of any norms > 0; codes are in their units.
        k: directions that each row may take, an integer or [n] of them: an encoder's L0 of each row, to
            compare at equal L0.
        signed: take the largest |<r, u_j>|, and leave out the clamp: codes of either sign.

    Returns:
        The codes of n rows. A row has fewer than k where a direction came twice or was clamped to 0.

    Raises:
        ShapeError: x and the directions are no matrices of one width, or k is not of n rows.
        ConfigError: k is no integer, or not in 0..m.
        NonFiniteError: x or the directions are NaN or infinite.
    """
    import torch

    if x.ndim != 2 or directions.ndim != 2 or x.shape[1] != directions.shape[1] or not len(directions):
        message = (
            "x and directions must be [n d] and [m d], m >= 1. "
            f"Got {list(x.shape)} and {list(directions.shape)}. Pass rows less b_dec, and W_dec."
        )
        raise ShapeError(message)
    check_finite(x, "Activations")
    check_finite(directions, "Directions")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    directions = directions.to(x)
    most = _most(k, len(x), len(directions))
    with torch.no_grad():
        norms = directions.norm(dim=1)
        # a direction of norm 0 has no product with anything, and its code stays 0
        unit = directions / norms.clamp_min(torch.finfo(norms.dtype).tiny)[:, None]
        # rows that take the most come first, so that those still at work are always the first ones
        across = unit.t().contiguous()
        order = np.argsort(-most, kind="stable")
        wide = max(len(directions), x.shape[1] * max(1, int(most.max(initial=0))))
        size = max(1, CACHED // wide, min(FAST, MOST // wide))
        rows, latents, values = [], [], []
        for low in range(0, len(x), size):
            at = order[low : low + size]
            chosen, codes = _pursued(x[torch.from_numpy(at).to(x.device)], unit, across, most[at], signed)
            row, place = (codes != 0).nonzero(as_tuple=True)
            latent = chosen[row, place]
            rows.append(at[row.cpu().numpy()])
            latents.append(latent.cpu().numpy())
            values.append((codes[row, place] / norms[latent]).float().cpu().numpy())
    return _sparse(len(x), len(directions), rows, latents, values)


def pursued(sae: SAE, x: Tensor, k: np.ndarray) -> Codes:
    """The codes of an autoencoder's rows by gradient pursuit on its decoder, in the encoder's place.

    Args:
        sae: Whose decoder.
        x: Activations [n d_in], raw.
        k: int [n], latents that each row may take.
    """
    import torch

    with torch.no_grad():
        target = sae.target(x.to(sae.dtype)) - sae.b_dec
        return gradient_pursuit(target, sae.W_dec, k, signed=sae.sparsifier.signed)


def _pursued(
    x: Tensor, unit: Tensor, across: Tensor, most: np.ndarray, signed: bool
) -> tuple[Tensor, Tensor]:
    """(directions int64 [n k], their codes [n k], 0 where there is none). across: the unit directions, as
    columns in memory; most: of each row, descending."""
    import torch

    steps = int(most.max(initial=0))
    chosen = torch.zeros(len(x), steps, dtype=torch.int64, device=x.device)
    new = torch.zeros(len(x), steps, dtype=x.dtype, device=x.device)  # 1, or 0 where it was there already
    codes, held = torch.zeros_like(new), x.new_zeros(len(x), steps, x.shape[1])
    residual = x.clone()
    for step in range(steps):
        n = int(np.searchsorted(-most, -step))  # rows that take more than `step`
        r, S = residual[:n], held[:n, : step + 1]
        products = r @ across
        best = _largest(products.abs() if signed else products)
        again = ((chosen[:n, :step] == best[:, None]) & (new[:n, :step] > 0)).any(1)
        chosen[:n, step], new[:n, step] = best, (~again).to(x)
        S[:, step] = unit[best]
        g = products.gather(1, chosen[:n, : step + 1]) * new[:n, : step + 1]
        c = torch.bmm(g[:, None], S)[:, 0]
        length = (c * r).sum(1) / c.square().sum(1).clamp_min(torch.finfo(x.dtype).tiny)
        f = codes[:n, : step + 1].addcmul_(length[:, None], g)
        if not signed:
            f.clamp_(min=0)
        residual[:n] = x[:n] - torch.bmm(f[:, None], S)[:, 0]
    return chosen, codes


def _largest(products: Tensor) -> Tensor:
    """Place of the largest of each row; NumPy finds it in a third of torch's time on a CPU."""
    import torch

    if products.device.type == "cpu":
        return torch.from_numpy(products.numpy().argmax(1))
    return products.argmax(1)


def _most(k: int | Tensor, n: int, m: int) -> np.ndarray:
    """int64 [n]: how many of m directions each row may take."""
    found = np.full(n, k) if isinstance(k, int) else k.numpy()
    if found.shape != (n,):
        message = f"k must be one number, or one for each of {n} rows. Got {len(found)}. Pass codes.l0."
        raise ShapeError(message)
    if n and not 0 <= found.min() <= found.max() <= m:
        message = (
            f"k must be between 0 and the {m} directions that there are. Got {found.min()}..{found.max()}. "
            "Pass e.g. k=16, or codes.l0."
        )
        raise ConfigError(message)
    return found


def _sparse(n: int, m: int, rows: list, latents: list, values: list) -> Codes:
    """Entries in any order as CSR."""
    empty = [np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)]
    row, latent, value = (
        np.concatenate([e, *p]) for e, p in zip(empty, (rows, latents, values), strict=True)
    )
    order = np.lexsort((latent, row))
    indptr = np.concatenate([[0], np.bincount(row, minlength=n).cumsum()])
    return Codes(indptr, latent[order].astype(np.int32), value[order].astype(np.float32), m)


__all__ = ["gradient_pursuit", "pursued"]
