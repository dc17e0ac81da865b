"""JumpReLU and its straight-through gradient in one pass over the matrix (`dense.jump`, `dense.step`)."""

# what is compiled from a function does not have its types
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

ROWS = 64
"""Rows of a matrix whose gradients of thresholds one program adds up."""


@triton.jit
def _exceed(values, pre, threshold, out, size, d_sae, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    own = tl.load(pre + at, mask=inside, other=0).to(tl.float32)
    on = own > tl.load(threshold + at % d_sae, mask=inside, other=0).to(tl.float32)
    value = tl.load(values + at, mask=inside & on, other=0)
    tl.store(out + at, value, mask=inside)


@triton.jit
def _jump_back(grad, pre, threshold, d_pre, sums, n, d_sae, bandwidth, WHOLE: tl.constexpr,
               TO_INPUT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """WHOLE: of f = pre H(pre - theta), else of H(pre - theta). sums: of grad within the box, a row for each
    block of rows."""
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < d_sae
    theta = tl.load(threshold + columns, mask=inside, other=0).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    first = tl.program_id(0).to(tl.int64) * ROWS
    for row in range(first, tl.minimum(first + ROWS, n)):
        at = row * d_sae + columns
        value = tl.load(pre + at, mask=inside, other=0).to(tl.float32)
        given = tl.load(grad + at, mask=inside, other=0).to(tl.float32)
        boxed = tl.where(tl.abs((value - theta) / bandwidth) < 0.5, given, 0.0)
        total += boxed
        if WHOLE:
            back = tl.where(value > theta, given, 0.0)
            if TO_INPUT:
                back += boxed * (theta / bandwidth)
            tl.store(d_pre + at, back.to(d_pre.dtype.element_ty), mask=inside)
        elif TO_INPUT:
            tl.store(d_pre + at, (boxed / bandwidth).to(d_pre.dtype.element_ty), mask=inside)
    tl.store(sums + tl.program_id(0).to(tl.int64) * d_sae + columns, total, mask=inside)


def exceeding(
    values: Float[Tensor, "*lead d_sae"],
    pre: Float[Tensor, "*lead d_sae"],
    threshold: Float[Tensor, " d_sae"],
) -> Float[Tensor, "*lead d_sae"]:
    """values where pre > threshold, else 0: `dense.jump`, forward."""
    out = torch.empty_like(values, memory_format=torch.contiguous_format)
    if out.numel():
        values, pre = values.contiguous(), pre.contiguous()
        _exceed[(triton.cdiv(out.numel(), 1024),)](
            values, pre, threshold.contiguous(), out, out.numel(), pre.shape[-1], BLOCK=1024
        )
    return out


def jump_gradients(
    grad: Float[Tensor, "*lead d_sae"],
    pre: Float[Tensor, "*lead d_sae"],
    threshold: Float[Tensor, " d_sae"],
    bandwidth: float,
    to_input: bool,
    whole: bool,
) -> tuple[Tensor | None, Float[Tensor, " d_sae"]]:
    """Gradients (of pre, of theta) of f = pre H(pre - theta), or, not whole, of H(pre - theta), as
    `sparsifiers.JumpReLU` defines them; that of theta is added up in float32. None is 0."""
    grad, pre = grad.contiguous(), pre.contiguous()
    d_sae = pre.shape[-1]
    n = pre.numel() // max(1, d_sae)
    d_pre = torch.empty_like(pre) if whole or to_input else None
    sums = torch.empty(triton.cdiv(n, ROWS), d_sae, dtype=torch.float32, device=pre.device)
    if sums.numel():
        _jump_back[(len(sums), triton.cdiv(d_sae, 256))](
            grad, pre, threshold.contiguous(), pre if d_pre is None else d_pre, sums, n, d_sae, bandwidth,
            WHOLE=whole, TO_INPUT=to_input, ROWS=ROWS, BLOCK=256,
        )  # fmt: skip
    factor = -threshold / bandwidth if whole else -1 / bandwidth
    return d_pre, (sums.sum(0) * factor).to(threshold.dtype)
