"""Encoders whose latents each read one of several layers, which lie side by side in a row.

Of L layers and F latents each, W_enc [d L*F] holds of every latent the column that it reads its own layer
with: latents l F .. l F + F - 1 read x[:, l d : (l + 1) d]. The block-diagonal matrix [L*d L*F] that x would
be multiplied with is never made. With one layer each function is that of `saelab.sae.dense` or
`saelab.sae.kernels`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from saelab.sae import dense, memory
from saelab.sae.dictionaries import Dictionary, Draw
from saelab.sae.kernels import Sparse, active_pre, sparse_decode


def product(
    x: Float[Tensor, "n d_in"], W: Float[Tensor, "d d_sae"], b: Float[Tensor, " d_sae"], layers: int
) -> Float[Tensor, "n d_sae"]:
    """Pre-activations of all latents."""
    if layers == 1:
        return dense.product(x, W, b)
    parts = list(zip(x.chunk(layers, 1), W.chunk(layers, 1), b.chunk(layers), strict=True))
    if torch.is_grad_enabled() or not memory.active():
        return torch.cat([torch.addmm(b_l, x_l, W_l) for x_l, W_l, b_l in parts], 1)
    pre = memory.empty(x, len(x), W.shape[1])
    for out, (x_l, W_l, b_l) in zip(pre.chunk(layers, 1), parts, strict=True):
        torch.addmm(b_l, x_l, W_l, out=out)
    return pre


def affine(
    pre: Float[Tensor, "n d_sae"],
    x: Float[Tensor, "n d_in"],
    b_in: Float[Tensor, " d_in"],
    W: Float[Tensor, "d d_sae"],
    b: Float[Tensor, " d_sae"],
    layers: int,
) -> Float[Tensor, "n d_sae"]:
    """What `product` gave of x - b_in, with the gradients of `dense.affine`."""
    if layers == 1:
        return dense.affine(pre, x, b_in, W, b)
    parts = zip(
        pre.chunk(layers, 1), x.chunk(layers, 1), b_in.chunk(layers), W.chunk(layers, 1), b.chunk(layers),
        strict=True,
    )  # fmt: skip
    return torch.cat([dense.affine(*part) for part in parts], 1)


def some(
    x: Float[Tensor, "n d_in"],
    W: Float[Tensor, "d d_sae"],
    b: Float[Tensor, " d_sae"],
    latents: Int[Tensor, " m"],
    layers: int,
) -> Float[Tensor, "n m"]:
    """Pre-activations of some latents, in their order."""
    if layers == 1:
        return x @ W[:, latents] + b[latents]
    of = latents // (W.shape[1] // layers)
    order = torch.argsort(of, stable=True)
    chosen = latents[order].split(torch.bincount(of, minlength=layers).tolist())
    found = [x_l @ W[:, at] for x_l, at in zip(x.chunk(layers, 1), chosen, strict=True)]
    return torch.cat(found, 1)[:, torch.argsort(order)] + b[latents]


def active(
    pre: Float[Tensor, "n d_sae"],
    x: Float[Tensor, "n d_in"],
    b_in: Float[Tensor, " d_in"],
    W: Float[Tensor, "d d_sae"],
    b: Float[Tensor, " d_sae"],
    indptr: Int[Tensor, " rows"],
    indices: Int[Tensor, " nnz"],
    layers: int,
) -> Float[Tensor, " nnz"]:
    """Pre-activations at a CSR pattern with the gradients of `active_pre`; of several layers b_in gets
    none."""
    if layers == 1:
        return active_pre(pre, x, b_in, W, b, indptr, indices)
    # each layer of a row is a row of its own, and owns the entries of its latents
    n, per = len(x), W.shape[1] // layers
    rows = torch.repeat_interleave(torch.arange(n, device=x.device), indptr.diff())
    part = rows * layers + indices // per
    order = torch.argsort(part, stable=True)
    starts = F.pad(torch.bincount(part, minlength=n * layers).cumsum(0), (1, 0))
    x = (x - b_in).reshape(n * layers, -1)
    found = active_pre(pre, x, x.new_zeros(x.shape[1]), W, b, starts, indices[order])
    return found[torch.argsort(order)]


class CrossLayer(Dictionary):
    """Directions of latents that write to their own layer and to all later ones (Ameisen et al. 2025,
    "Circuit Tracing"):

        y_hat[l'] = sum over l <= l' of codes[l] @ W_dec[l, l']

    of L layers with F latents each, all writing to d numbers a layer. Only the L (L + 1) / 2 blocks [F d]
    that exist are held: `W_dec` [F L (L + 1) / 2, d] has those of layer 0 first, and of each latent L - l
    rows, one for each layer that it writes to. As a matrix [d_sae L*d], which calling it gives, nearly half
    is zeros.
    A direction's size is the norm of all that a latent writes, as one vector.
    """

    def __init__(self, d_sae: int, d_out: int, layers: int) -> None:
        super().__init__()
        self.layers, self.per, self.width = layers, d_sae // layers, d_out // layers
        self.W_dec = torch.nn.Parameter(torch.zeros(self.per * layers * (layers + 1) // 2, self.width))

    def blocks(self) -> tuple[Float[Tensor, "F rest"], ...]:
        """Of each layer l the matrix [F (L - l) d] of what its latents write, their own layer first."""
        left = [self.layers - layer for layer in range(self.layers)]
        parts = self.W_dec.split([self.per * n for n in left])
        return tuple(p.reshape(self.per, n * self.width) for p, n in zip(parts, left, strict=True))

    def forward(self) -> Tensor:
        padded = [F.pad(block, (layer * self.width, 0)) for layer, block in enumerate(self.blocks())]
        return torch.cat(padded)

    @torch.no_grad()
    def set(self, W_dec: Tensor) -> None:
        for layer, (block, rows) in enumerate(zip(self.blocks(), W_dec.split(self.per), strict=True)):
            block.copy_(rows[:, layer * self.width :])

    @torch.no_grad()
    def start(self, draw: Draw) -> None:
        for block in self.blocks():
            block.copy_(draw(*block.shape))

    def norms(self) -> Tensor:
        return torch.cat([block.norm(dim=1) for block in self.blocks()])

    def decode(self, codes: Tensor | Sparse) -> Tensor:
        if isinstance(codes, Sparse):
            return self._of_sparse(codes)
        out = codes.new_zeros(*codes.shape[:-1], self.layers * self.width)
        parts = codes.split(self.per, -1)
        for layer, (own, block) in enumerate(zip(parts, self.blocks(), strict=True)):
            given = dense.decode(own, block) if own.ndim == 2 else own @ block
            out[..., layer * self.width :] += given
        return out

    def _of_sparse(self, codes: Sparse) -> Tensor:
        n, of, rows = len(codes.indptr) - 1, codes.indices // self.per, codes.rows()
        out = codes.values.new_zeros(n, self.layers * self.width)
        for layer, block in enumerate(self.blocks()):
            at = (of == layer).nonzero()[:, 0]
            indptr = F.pad(torch.bincount(rows[at], minlength=n).cumsum(0), (1, 0))
            indices = codes.indices[at] - layer * self.per
            own = Sparse(indptr, indices, codes.values[at], self.per)
            out[:, layer * self.width :] += sparse_decode(own, block)
        return out
