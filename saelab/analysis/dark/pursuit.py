"""Sparse codes by pursuit, and what it gives on an SAE's own decoder in its encoder's place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saelab.sae.pursuit import gradient_pursuit, nonnegative_least_squares, orthogonal_matching_pursuit

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from saelab.sae import SAE
    from saelab.types import Codes


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


__all__ = ["gradient_pursuit", "nonnegative_least_squares", "orthogonal_matching_pursuit", "pursued"]
