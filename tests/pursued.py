"""Gradient pursuit as one would write it down: a row after another."""

from __future__ import annotations

import torch
from torch import Tensor


def plain(x: Tensor, directions: Tensor, k: list[int], signed: bool = False) -> Tensor:
    """Codes [n m]."""
    norms = directions.norm(dim=1)
    unit, out = directions / norms[:, None], x.new_zeros(len(x), len(directions))
    for i, row in enumerate(x):
        taken, f, residual = [], x.new_zeros(0), row
        for _ in range(k[i]):
            products = unit @ residual
            best = int((products.abs() if signed else products).argmax())
            if best not in taken:
                taken.append(best)
                f = torch.cat([f, f.new_zeros(1)])
            gradient, some = products[taken], unit[taken]
            image = gradient @ some
            if not image.any():
                break
            f = f + gradient * (image @ residual) / (image @ image)
            f = f if signed else f.clamp(min=0)
            residual = row - f @ some
        out[i, taken] = f / norms[taken]
    return out
