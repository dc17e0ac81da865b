"""Sums of table rows and products with them, at the entries of a CSR pattern: `kernels._bag` and
`kernels._sampled_product`, of which sparse decoding and all sparse gradients are made."""

# what is compiled from a function does not have its types
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

LONG = 256
"""Entries of a row beyond which it is summed in pieces, side by side: a latent may be on in every row."""


@triton.jit
def _sums(table, starts, ends, indices, weights, out, width, HAS: tl.constexpr, E: tl.constexpr,
          BLOCK: tl.constexpr):  # fmt: skip
    """out[i, cols] = sum over e in starts[i]..ends[i] of weights[e] * table[indices[e], cols], in float32.
    Not HAS: of table[e, cols], nothing where there are no entries."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < width
    start, end = tl.load(starts + row), tl.load(ends + row)
    if HAS or end > start:
        total = tl.zeros((BLOCK,), tl.float32)
        for at in range(start, end, E):
            e = at + tl.arange(0, E)
            real = e < end
            index, weight = e, tl.full((E,), 1.0, tl.float32)
            if HAS:
                index = tl.load(indices + e, mask=real, other=0).to(tl.int64)
                weight = tl.load(weights + e, mask=real, other=0).to(tl.float32)
            place = table + index[:, None] * width + cols[None, :]
            rows = tl.load(place, mask=real[:, None] & inside[None, :], other=0).to(tl.float32)
            total += tl.sum(weight[:, None] * rows, 0)
        tl.store(out + row * width + cols, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _products(a, b, indptr, indices, out, width, E: tl.constexpr, BLOCK: tl.constexpr):
    """out[e] = <a[row of e], b[indices[e]]> for the entries e of one row, in float32."""
    row = tl.program_id(0).to(tl.int64)
    start, end = tl.load(indptr + row), tl.load(indptr + row + 1)
    for at in range(start, end, E):
        e = at + tl.arange(0, E)
        real = e < end
        index = tl.load(indices + e, mask=real, other=0).to(tl.int64)
        total = tl.zeros((E,), tl.float32)
        for first in range(0, width, BLOCK):
            cols = first + tl.arange(0, BLOCK)
            inside = cols < width
            own = tl.load(a + row * width + cols, mask=inside, other=0).to(tl.float32)
            place = b + index[:, None] * width + cols[None, :]
            other = tl.load(place, mask=real[:, None] & inside[None, :], other=0).to(tl.float32)
            total += tl.sum(own[None, :] * other, 1)
        tl.store(out + e, total.to(out.dtype.element_ty), mask=real)


def bag(
    table: Float[Tensor, "m width"],
    indptr: Int[Tensor, " rows"],
    indices: Int[Tensor, " nnz"],
    weights: Float[Tensor, " nnz"],
) -> Float[Tensor, "n width"]:
    """Row i: the sum of weights[e] * table[indices[e]] over the entries e of row i, added up in float32.

    Rows of more than `LONG` entries are summed in pieces and these added in their order, so that results are
    the same every time.
    """
    table = table.contiguous()
    n, width, nnz = len(indptr) - 1, table.shape[1], len(indices)
    out = table.new_empty(n, width)
    if not n or not width:
        return out
    starts, ends = indptr[:-1].contiguous(), indptr[1:].contiguous()
    block, entries = _sizes(width)
    grid = triton.cdiv(width, block)
    if nnz <= LONG:  # no row is long
        _sums[(n, grid)](table, starts, ends, indices, weights, out, width, HAS=True, E=entries, BLOCK=block)
        return out
    lengths = ends - starts
    pieces = torch.where(lengths > LONG, (lengths + LONG - 1) // LONG, 0)
    last = pieces.cumsum(0)
    # how many there are stays on the device; a long row has at most two pieces for each LONG of its entries
    number = torch.arange(2 * nnz // LONG, device=table.device)
    of = torch.searchsorted(last, number, right=True).clamp_max(n - 1)
    first = starts[of] + (number - last[of] + pieces[of]) * LONG
    until = torch.minimum(first + LONG, ends[of])
    until = torch.where(number < last[-1], until, first)
    partial = torch.empty(len(number), width, dtype=torch.float32, device=table.device)
    _sums[(len(number), grid)](
        table, first, until, indices, weights, partial, width, HAS=True, E=entries, BLOCK=block
    )
    short = torch.where(lengths > LONG, starts, ends)
    _sums[(n, grid)](table, starts, short, indices, weights, out, width, HAS=True, E=entries, BLOCK=block)
    _sums[(n, grid)](
        partial, last - pieces, last, indices, weights, out, width, HAS=False, E=entries, BLOCK=block
    )
    return out


def sampled_product(
    a: Float[Tensor, "n width"],
    b: Float[Tensor, "m width"],
    indptr: Int[Tensor, " rows"],
    indices: Int[Tensor, " nnz"],
) -> Float[Tensor, " nnz"]:
    """<a[row of e], b[indices[e]]> for every entry e of a CSR pattern, added up in float32."""
    out = a.new_empty(len(indices))
    if len(indices):
        block, entries = _sizes(a.shape[1])
        a, b = a.contiguous(), b.contiguous()
        _products[(len(a),)](a, b, indptr, indices, out, a.shape[1], E=entries, BLOCK=block)
    return out


def _sizes(width: int) -> tuple[int, int]:
    """Columns, and entries, that are looked at together."""
    block = min(triton.next_power_of_2(max(1, width)), 1024)
    return block, min(64, max(4, 4096 // block))
