"""What a norm multiplies and adds after it has normalised, by asking the norm and not its attributes.

LayerNorm and RMSNorm give n * gain + bias of n = (x - mean) / deviation or x / root mean square; some store
gain - 1, some no bias. Of x = +-c in turn, whose mean is 0, n is +-1 whatever the kind: two such rows tell
both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from saelab.subjects.hooks import View

if TYPE_CHECKING:
    from torch import Tensor, nn

SIZE = 32.0
"""Of the rows that are asked about: an epsilon of 1e-5 is 1e-8 of their square."""


def gain(norm: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """(gain [width], bias [width]) in float32. like: a tensor [.. width] that the norm reads.

    Hooks of the norm are not called.
    """
    width = like.shape[-1]
    even = width - width % 2
    row = torch.ones(width, device=like.device)
    row[1::2] = -1
    row[even:] = 0
    rows = torch.stack([row, row.roll(1)])[: 1 + width % 2]
    n = rows * (width / max(even, 1)) ** 0.5
    asked = (rows * SIZE).to(like.dtype)
    with torch.no_grad():
        up, down = (norm.forward(sign * asked[None])[0].float() for sign in (1, -1))
    told = (up - down) / 2
    gains = torch.where(n != 0, told / torch.where(n != 0, n, 1), 0)
    first = gains[0] if width == even else torch.where(rows[0] != 0, gains[0], gains[1])
    return first, ((up + down) / 2)[0]


def normalised(norm: nn.Module) -> View:
    """Between what a norm gives and what it has normalised, before its gain and bias."""

    def to(acts: Tensor) -> Tensor:
        by, plus = (t.to(acts.dtype) for t in gain(norm, acts))
        return (acts - plus) / by

    def back(acts: Tensor, own: Tensor) -> Tensor:
        by, plus = (t.to(acts.dtype) for t in gain(norm, own))
        new = acts * by + plus
        # what is not changed comes back bit for bit, and gradients take the way through `acts`
        return torch.where(acts == to(own), new + (own - new).detach(), new)

    return View(to, back)


def divides_out(norm: nn.Module, read: Tensor, given: Tensor) -> bool:
    """Whether what it gives, without gain and bias, is what it read, centred or not, of another length.

    False for a module that is no norm, or whose gain is 0 somewhere, where nothing can be told.
    """
    try:
        by, plus = gain(norm, given)
    except Exception:  # of any module that is no norm
        return False
    if by.shape != given.shape[-1:] or not (by.abs() > 1e-6 * by.abs().max()).all():
        return False
    n, x = (given.float() - plus) / by, read.float()
    close = 1 - 64 * torch.finfo(given.dtype).eps - 1e-5
    centred = x - x.mean(-1, keepdim=True)
    return any(bool((torch.cosine_similarity(n, of, dim=-1) > close).all()) for of in (x, centred))


__all__ = ["divides_out", "gain", "normalised"]
