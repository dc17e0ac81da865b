"""Semi-non-negative matrix factorisation: free directions, non-negative codes (Ding, Li and Jordan 2010)."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_AT_ONCE = 256
"""Rows whose codes stay in the cache while they are gone through."""
STILL = 1e-6
"""Share of the rows' squares that a round must take off the error, or it was the last."""


@torch.no_grad()
def semi_nmf(x: Tensor, start: Tensor, iterations: int) -> Tensor:
    """The directions D of min ||X - F D||^2 with F >= 0, by block coordinate descent (Gillis and Kumar 2015,
    algorithm 1): D is least squares given F; then each code is, given the others, for each row

        f_j = max(0, f_j + (<x, d_j> - sum_i f_i <d_i, d_j>) / ||d_j||^2).

    Neither step makes the error longer. Codes start at 1 for the nearest of the first directions, and D as
    these.

    Args:
        x: float64 [n d].
        start: float64 [m d], directions to start from, such as the centres of k-means.
        iterations: Rounds, at most; it ends where one takes off less than 1e-6 of the squares of x.

    Returns:
        float64 [m d]. A direction that no row has is 0.
    """
    directions, before, total = start, float("inf"), float(x.square().sum())
    nearest = (x @ start.t() - start.square().sum(1) / 2).argmax(1)
    codes = x.new_zeros(len(start), len(x))  # a row each latent: what is gone through lies together
    codes[nearest, torch.arange(len(x))] = 1
    for _ in range(iterations):
        gram, product = directions @ directions.t(), directions @ x.t()
        for low in range(0, len(x), ROWS_AT_ONCE):
            part = slice(low, low + ROWS_AT_ONCE)
            own, aim = codes[:, part].contiguous(), product[:, part]
            for j, size in enumerate(gram.diagonal().tolist()):
                if size > 0:
                    own[j] = (own[j] + (aim[j] - gram[j] @ own) / size).clamp_min_(0)
            codes[:, part] = own
        directions = fitted(x, codes)
        error = float((x - codes.t() @ directions).square().sum())
        if before - error <= STILL * total:
            break
        before = error
    return directions


def fitted(x: Tensor, codes: Tensor) -> Tensor:
    """The directions [m d] of least squares given codes [m n]; 0 of a latent that no row has."""
    system = codes @ codes.t()
    used = system.diagonal() > 0
    # a small ridge, so that latents that go together share what is theirs
    ridge = 1e-10 * system.diagonal().max().clamp_min(1e-300)
    system = system + torch.diag_embed(ridge.where(used, 1.0))
    return torch.linalg.solve(system, codes @ x) * used[:, None]


__all__ = ["fitted", "semi_nmf"]
