"""Sparsifier parts: which pre-activations become codes.

A sparsifier is a small module that owns whatever state it learns (thresholds, gates). `SAE` calls it; nothing
else of an architecture may live anywhere but in a sparsifier, a dictionary, a loss or a rule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.sae.kernels import top_k


class Sparsifier(nn.Module, ABC):
    """pre [n d_sae] -> codes [n d_sae]. Rows are independent of each other in eval mode.

    `uses_dec_norm`: whether `dec_norm` (Euclidean norm of each decoder row, [d_sae]) is needed; else None
    is passed.
    """

    uses_dec_norm: bool = False

    @abstractmethod
    def forward(
        self,
        pre: Float[Tensor, "n d_sae"],
        x: Float[Tensor, "n d_in"],
        dec_norm: Float[Tensor, " d_sae"] | None,
    ) -> Float[Tensor, "n d_sae"]:
        """Dense codes, differentiable: the reference. x is the centred, normalised input."""

    def select(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """The fast path: (indptr [n + 1], indices [nnz]) of the entries whose codes may differ from 0,
        else None.

        The codes there are `activation(pre[row, index])`. Called without gradient.
        """
        return None

    def activation(self, pre: Tensor) -> Tensor:
        """Elementwise: the code of a selected pre-activation."""
        return pre

    def observe(self, codes: Tensor) -> None:
        """Hook for learned thresholds: called once a training step with the step's codes, without
        gradient."""


class TopK(Sparsifier):
    """Keep the k largest pre-activations of each row, clipped at zero (Gao et al. 2024, eq. 3).

    pre [n d_sae] -> codes [n d_sae], at most k non-zero in a row; ties go to the lower index.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> Tensor:
        indices = top_k(pre.detach(), self.k)
        values = self.activation(pre.gather(1, indices))
        return torch.zeros_like(pre).scatter(1, indices, values)

    def select(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> tuple[Tensor, Tensor] | None:
        indices = top_k(pre, self.k)
        n, k = indices.shape
        return torch.arange(0, n * k + 1, k, device=pre.device), indices.reshape(-1)

    def activation(self, pre: Tensor) -> Tensor:
        return pre.relu()

    def extra_repr(self) -> str:
        return f"k={self.k}"


class ReLU(Sparsifier):
    """Clip at zero; sparsity comes from an L1 loss (Bricken et al. 2023)."""

    def forward(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> Tensor:
        return pre.relu()
