"""Rules: what a recipe does to gradients and weights around each optimizer step. Recipes name them."""

from __future__ import annotations

import torch
from torch import nn

from saelab.sae.model import SAE, Forward


class Rule:
    """`gradient` runs between backward pass and optimizer step, the call after the optimizer step. Both
    without grad."""

    def gradient(self, sae: SAE, forward: Forward, step: int) -> None:
        """Change gradients in place."""

    def __call__(self, sae: SAE, forward: Forward, step: int) -> None:
        """Change weights in place."""


class UnitNorm(Rule):
    """Decoder rows keep norm 1: the part of each row's gradient along the row is removed (it would only
    change the norm, and Adam would count it), and rows are normalised after the step (Bricken et al. 2023;
    Gao et al. 2024)."""

    @torch.no_grad()
    def gradient(self, sae: SAE, forward: Forward, step: int) -> None:
        W_dec = sae.W_dec
        if W_dec.grad is not None:
            along = torch.linalg.vecdot(W_dec.grad, W_dec) / torch.linalg.vecdot(W_dec, W_dec).clamp_min(
                1e-30
            )
            W_dec.grad.sub_(along[:, None] * W_dec)

    @torch.no_grad()
    def __call__(self, sae: SAE, forward: Forward, step: int) -> None:
        W_dec = sae.W_dec
        if isinstance(W_dec, nn.Parameter):
            W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True).clamp_min(1e-30))


RULES: dict[str, type[Rule]] = {"unit_norm": UnitNorm}
