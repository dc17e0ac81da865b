"""Dictionary parts: where the decoder's rows come from."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Dictionary(nn.Module, ABC):
    """() -> W_dec [d_sae d_in], differentiable in its own parameters.

    `tied`: whether the encoder is a function of the dictionary (a rule keeps it so).
    """

    tied: bool = False

    @abstractmethod
    def forward(self) -> Float[Tensor, "d_sae d_in"]:
        """The decoder matrix."""

    @abstractmethod
    def set(self, W_dec: Float[Tensor, "d_sae d_in"]) -> None:
        """Take the nearest decoder matrix that this dictionary can express (used at initialisation)."""

    def project(self) -> None:
        """Bring the parameters back into the allowed set, after an optimizer step. Without gradient."""


class Free(Dictionary):
    """Every decoder row is a free parameter."""

    def __init__(self, d_sae: int, d_in: int) -> None:
        super().__init__()
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_in))

    def forward(self) -> Tensor:
        return self.W_dec

    @torch.no_grad()
    def set(self, W_dec: Tensor) -> None:
        self.W_dec.copy_(W_dec)


class Scaled(Dictionary):
    """W_dec = a * w: directions w [d_sae d_in] of unit norm and their scales a [d_sae], for encoders that are
    w^T (the rule `tied` keeps both so)."""

    tied = True

    def __init__(self, d_sae: int, d_in: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(d_sae, d_in))
        self.a = nn.Parameter(torch.ones(d_sae))

    def forward(self) -> Tensor:
        return self.a[:, None] * self.w

    @torch.no_grad()
    def set(self, W_dec: Tensor) -> None:
        self.a.copy_(W_dec.norm(dim=1))
        self.w.copy_(nn.functional.normalize(W_dec, dim=1))
