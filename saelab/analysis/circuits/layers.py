"""A cross-layer transcoder in its places of one text: latents of each layer, which write to later ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from saelab.analysis.circuits.walking import Stand
from saelab.sae.layered import CrossLayer

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.sae import SAE
    from saelab.sae.network import Forward


class LayerStand(Stand):
    """The latents of one layer of a cross-layer transcoder, and what it stands for there: what they and those
    of earlier layers give. Latents have the numbers that they have in the whole.

    Args:
        sae: The whole.
        out: Its pass, of float32 rows.
        x: float64 [positions d_in], what the whole reads.
        y: float64 [positions d_out], what it stands for.
        number: Which of its layers.
        below: Its stands of the layers before.
    """

    def __init__(
        self, sae: SAE, out: Forward, x: Tensor, y: Tensor, number: int, below: Sequence[LayerStand]
    ) -> None:
        assert isinstance(sae.dictionary, CrossLayer)
        self.sae, self.number, per = sae, number, sae.dictionary.per
        self._place(str(sae.reads[number]), str(sae.writes[number]))
        self.x, self.y = (each.chunk(sae.config.layers, 1)[number] for each in (x, y))
        self.codes, self.pre = out.codes.double().cpu(), out.pre.double().cpu()  # type: ignore[union-attr]
        first = number * per
        self.latents = [first + row[first : first + per].nonzero()[:, 0] for row in self.codes]
        scale = sae.out_scale.detach().double().cpu()
        block = sae.dictionary.blocks()[number].detach()
        self.written_to = []
        """by position: float64 [active, layers from here on, d], code times decoder row"""
        for codes, at in zip(self.codes, self.latents, strict=True):
            rows = block[(at - first).to(sae.device)].double().cpu() * scale[-block.shape[1] :]
            self.written_to.append((codes[at, None] * rows).unflatten(1, (-1, sae.dictionary.width)))
        self.given = [each[:, 0] for each in self.written_to]
        self.earlier = [
            (("mlp", other.layer), [each[:, number - other.number] for each in other.written_to])
            for other in below
        ]
        self.bias = (sae.b_dec.detach().double().cpu() * scale).chunk(sae.config.layers)[number]
        self.bias = self.bias.expand(len(x), -1)
        self.skip = None
        given = [self.given, *(each for _, each in self.earlier)]
        whole = sum(torch.stack([rows.sum(0) for rows in each]) for each in given)
        self.error = self.y - whole - self.bias

    def encoders(self, position: int, latents: Tensor) -> tuple[Tensor, Tensor]:
        at = latents.to(self.sae.device)
        scale = self.sae.input_scale.chunk(self.sae.config.layers)[self.number].detach().double().cpu()
        rows = self.sae.W_enc[:, at].detach().double().cpu().t()
        return rows / scale, self.sae.b_enc[at].detach().double().cpu()


def stands_of(sae: SAE, x: Tensor, y: Tensor) -> list[LayerStand]:
    """Those of all layers, the first one's first.

    Args:
        sae: A cross-layer transcoder.
        x: float64 [positions d_in], what it reads.
        y: float64 [positions d_out], what it stands for.
    """
    with torch.no_grad():
        out = sae(x.to(sae.W_enc))
    found: list[LayerStand] = []
    for number in range(sae.config.layers):
        found.append(LayerStand(sae, out, x, y, number, found))
    return found


__all__ = ["LayerStand", "stands_of"]
