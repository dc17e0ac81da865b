"""A subject and an SAE of which it is known which latent stands for a concept, and which one moves the
output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import saelab

WIDTH, CONCEPT, LEVER, DEAD = 12, 3, 7, 11


class Net(nn.Module):
    """Positions are kept as they are; the output is the mean of one direction, and of another one little."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 2, bias=False)
        with torch.no_grad():
            self.body.weight.copy_(torch.eye(WIDTH))
            self.head.weight.zero_()
            self.head.weight[0, LEVER] = 1.0
            self.head.weight[0, CONCEPT] = 0.1
            self.head.weight[1] = 0.01

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


def subject() -> saelab.TorchModule:
    return saelab.TorchModule(Net(), example=torch.ones(1, 6, WIDTH))


def sae() -> saelab.SAE:
    """Codes are the coordinates that are above 0.5."""
    config = saelab.recipe("jumprelu", d_in=WIDTH, d_sae=WIDTH, hook="body")
    made = saelab.SAE.create(config).eval()
    with torch.no_grad():
        made.W_enc.copy_(torch.eye(WIDTH))
        made.W_dec.copy_(torch.eye(WIDTH))
        made.b_enc.zero_()
        made.b_dec.zero_()
        made.sparsifier.log_threshold.fill_(torch.tensor(0.5).log())
    return made


def texts(n: int, concept: bool, seed: int = 0) -> list[Tensor]:
    """Samples of 6 positions, at one of which the concept is where it is there."""
    rng = torch.Generator().manual_seed(2 * seed + concept)
    x = torch.rand(n, 6, WIDTH, generator=rng) * 1.2
    x[..., CONCEPT] = 0.4 * torch.rand(n, 6, generator=rng)
    x[..., DEAD] = 0
    if concept:
        x[torch.arange(n), torch.randint(6, (n,), generator=rng), CONCEPT] = 2.0
    return list(x)
