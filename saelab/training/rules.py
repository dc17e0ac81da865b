"""Rules: what a recipe does to gradients and weights around each optimizer step. Recipes name them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saelab.sae.dictionaries import Scaled
from saelab.sae.model import SAE, Forward
from saelab.types import ConfigError


class Rule:
    """`gradient` runs between backward pass and optimizer step, the call after the optimizer step. Both
    without grad. forward: the pass of the batch, without graph; where the batch is split into micro-batches
    that of the last, without `pre`."""

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


class Tied(Rule):
    """The encoder is w^T of a Scaled dictionary: its gradient is added to that of w, of which only the part
    across w is kept, as in UnitNorm; after the step w has unit norm again and is copied to the encoder."""

    @torch.no_grad()
    def gradient(self, sae: SAE, forward: Forward, step: int) -> None:
        w = _directions(sae)
        if sae.W_enc.grad is None or w.grad is None:
            return
        w.grad.add_(sae.W_enc.grad.t())
        w.grad.sub_(torch.linalg.vecdot(w.grad, w)[:, None] * w)
        sae.W_enc.grad.zero_()

    @torch.no_grad()
    def __call__(self, sae: SAE, forward: Forward, step: int) -> None:
        w = _directions(sae)
        w.div_(torch.linalg.vector_norm(w, dim=1, keepdim=True).clamp_min(1e-30))
        sae.W_enc.copy_(w.t())


def _directions(sae: SAE) -> Tensor:
    if not isinstance(sae.dictionary, Scaled):
        got = type(sae.dictionary).__name__
        msg = f"The rule 'tied' needs a Scaled dictionary. Got {got}. Give the recipe one."
        raise ConfigError(msg)
    return sae.dictionary.w


RULES: dict[str, type[Rule]] = {"unit_norm": UnitNorm, "tied": Tied}
