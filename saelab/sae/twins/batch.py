"""Choices over a whole matrix: a bound that just enough entries exceed, by a histogram, and the list of the
entries above it: `kernels.batch_top_k` and `kernels.above`."""

# what is compiled from a function does not have its types
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportIndexIssue=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

BINS = 4096
"""Of positive floats, by their exponent and the first four bits of their mantissa: a bin is 6 % wide."""
SHIFT = 19
BLOCK = 2048


@triton.jit
def _count_bins(flat, counts, size, per, BINS: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * per
    total = tl.zeros((BINS,), tl.int32)
    for start in range(first, tl.minimum(first + per, size), BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(flat + at, mask=at < size, other=0).to(tl.float32)
        bits = value.to(tl.int32, bitcast=True)
        total += tl.histogram(tl.where(value > 0, bits >> SHIFT, 0), BINS, mask=value > 0)
    bins = tl.arange(0, BINS)
    tl.atomic_add(counts + bins, total.to(tl.int64), mask=total > 0)


@triton.jit
def _count_above(flat, threshold, counts, size, d_sae, OWN: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(flat + at, mask=at < size, other=0).to(tl.float32)
    bound = tl.load(threshold + (at % d_sae if OWN else 0)).to(tl.float32)
    on = (value > bound) & (at < size)
    tl.store(counts + tl.program_id(0), tl.sum(on.to(tl.int32), 0))


@triton.jit
def _list_above(flat, threshold, ends, out, size, d_sae, OWN: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(flat + at, mask=at < size, other=0).to(tl.float32)
    bound = tl.load(threshold + (at % d_sae if OWN else 0)).to(tl.float32)
    on = (value > bound) & (at < size)
    own = on.to(tl.int32)
    place = tl.load(ends + tl.program_id(0)) - tl.sum(own, 0) + tl.cumsum(own, 0) - 1
    tl.store(out + place, at, mask=on)


def histogram(score: Float[Tensor, "n d_sae"]) -> Int[Tensor, " bins"]:
    """How many entries lie in each of `BINS` bins of positive floats, ascending; others are not counted."""
    flat = score.contiguous().reshape(-1)
    counts = torch.zeros(BINS, dtype=torch.int64, device=flat.device)
    if len(flat):
        programs = min(triton.cdiv(len(flat), BLOCK), 1024)
        per = triton.cdiv(triton.cdiv(len(flat), programs), BLOCK) * BLOCK
        _count_bins[(programs,)](
            flat, counts, len(flat), per, BINS=BINS, SHIFT=SHIFT, BLOCK=BLOCK, num_warps=8
        )
    return counts


def bound(counts: Int[Tensor, " bins"], total: int) -> Float[Tensor, ""]:
    """The highest bound of a bin, float32, that at least `total` of the counted entries exceed; 0 where fewer
    than that were counted."""
    enough = counts.flip(0).cumsum(0).flip(0) >= total
    highest = enough.sum() - 1  # they are the lowest bins
    bits = ((highest.clamp_min(0) << SHIFT) - 1).clamp_min(0).int()
    return bits.view(torch.float32)


def guess(flat: Float[Tensor, " size"], share: float) -> Float[Tensor, ""]:
    """A bound that a little more than `share` entries exceed, never fewer: `kernels._guess`."""
    return bound(histogram(flat), math.ceil(share)).to(flat.dtype)


def above(pre: Float[Tensor, "n d_sae"], threshold: Tensor | float) -> Int[Tensor, " kept"]:
    """Flat indices, ascending, of the entries greater than a threshold ([] or [d_sae])."""
    flat = pre.contiguous().reshape(-1)
    blocks = triton.cdiv(len(flat), BLOCK)
    if not blocks:
        return torch.empty(0, dtype=torch.int64, device=pre.device)
    counts = torch.empty(blocks, dtype=torch.int64, device=pre.device)
    threshold = torch.as_tensor(threshold, dtype=torch.float32, device=pre.device).contiguous()
    sizes = {"OWN": threshold.ndim > 0, "BLOCK": BLOCK}
    _count_above[(blocks,)](flat, threshold, counts, len(flat), pre.shape[-1], **sizes)
    ends = counts.cumsum(0)
    out = torch.empty(int(ends[-1]), dtype=torch.int64, device=pre.device)
    if len(out):
        _list_above[(blocks,)](flat, threshold, ends, out, len(flat), pre.shape[-1], **sizes)
    return out
