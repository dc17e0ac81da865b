"""The k largest of each row, out of a matrix or straight out of the encoder product, of which no matrix is
made: `kernels.top_k`.

Columns are gone through from left to right. What exceeds the k-th largest so far (`least`) is put into a
short list of its row; a full list is cut to its k largest, which raises `least`. An equal value further right
never counts, and within a list equal values are ordered by column: ties go to the lower index. About
k * log(d_sae / k) values of a row are ever listed, so that lists are cut a few times only.
"""

# what is compiled from a function does not have its types
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false, reportIndexIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

NOTHING = tl.constexpr(-(2**63))
MATRIX, PRODUCT = (4, 256), (64, 128)
"""Rows and columns of the tiles that are looked at together: of a matrix, of the encoder product."""
SORTED = 2048
"""Entries of lists that are sorted together: what fits into registers."""


@triton.jit
def _push(values, columns, inside, rows, listed, places, count, least, C: tl.constexpr):
    """List what of a tile [BM BN] exceeds its row's `least`: the new counts."""
    wanted = inside & (values > least[:, None])
    at = rows[:, None] * C + count[:, None] + tl.cumsum(wanted.to(tl.int32), 1) - 1
    tl.store(listed + at, values, mask=wanted)
    tl.store(places + at, columns + tl.zeros_like(at).to(tl.int32), mask=wanted)
    return count + tl.sum(wanted.to(tl.int32), 1)


@triton.jit
def _cut(first, n, listed, places, counts, leasts, K, BM: tl.constexpr, SUB: tl.constexpr, KP: tl.constexpr,
         C: tl.constexpr):  # fmt: skip
    """Cut the lists of BM rows to their K largest, largest first."""
    tl.debug_barrier()
    for part in range(0, BM, SUB):
        rows = first + part + tl.arange(0, SUB)
        real = rows < n
        count = tl.load(counts + rows, mask=real, other=0)
        slots = tl.arange(0, C)
        at = rows[:, None] * C + slots[None, :]
        held = real[:, None] & (slots[None, :] < count[:, None])
        values = tl.load(listed + at, mask=held, other=0)
        # floats in the order of whole numbers, then the lower column first
        bits = values.to(tl.int32, bitcast=True)
        bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
        column = tl.load(places + at, mask=held, other=0).to(tl.int64)
        keys = tl.where(held, (bits << 32) | (0x7FFFFFFF - column), NOTHING)
        best = tl.topk(keys, KP)
        order = tl.arange(0, KP)
        kept = (order[None, :] < K) & (best != NOTHING)
        column = 0x7FFFFFFF - (best & 0x7FFFFFFF)
        bits = (best >> 32).to(tl.int32)
        bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        values = bits.to(tl.float32, bitcast=True)
        at = rows[:, None] * C + order[None, :]
        tl.debug_barrier()
        tl.store(listed + at, values, mask=kept & real[:, None])
        tl.store(places + at, column.to(tl.int32), mask=kept & real[:, None])
        full = tl.sum(kept.to(tl.int32), 1)
        last = tl.max(tl.where(kept & (order[None, :] == K - 1), values, float("-inf")), 1)
        tl.store(counts + rows, full, mask=real)
        tl.store(leasts + rows, last, mask=real)
    tl.debug_barrier()


@triton.jit
def _matrix(pre, listed, places, counts, leasts, n, d_sae, K, SIGNED: tl.constexpr, BM: tl.constexpr,
            BN: tl.constexpr, SUB: tl.constexpr, KP: tl.constexpr, C: tl.constexpr):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BM
    rows = first + tl.arange(0, BM)
    real = rows < n
    count = tl.zeros((BM,), tl.int32)
    least = tl.full((BM,), float("-inf"), tl.float32)
    for start in range(0, d_sae, BN):
        columns = start + tl.arange(0, BN)
        inside = real[:, None] & (columns < d_sae)[None, :]
        values = tl.load(pre + rows[:, None] * d_sae + columns[None, :], mask=inside, other=0)
        values = values.to(tl.float32)
        if SIGNED:
            values = tl.abs(values)
        values = tl.where(values == 0, 0.0, values)  # -0 is 0
        count = _push(values, columns[None, :], inside, rows, listed, places, count, least, C)
        if (tl.max(count, 0) > C - BN) | (start + BN >= d_sae):  # a full list, or the end
            tl.store(counts + rows, count, mask=real)
            _cut(first, n, listed, places, counts, leasts, K, BM, SUB, KP, C)
            count = tl.load(counts + rows, mask=real, other=0)
            least = tl.load(leasts + rows, mask=real, other=0)


@triton.jit
def _rounded(values):
    """To the nearest bfloat16, ties to even; the interpreter's own cast cuts off."""
    bits = values.to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def _product(x, W, b, listed, places, counts, leasts, n, d_in, d_sae, K, w_row, w_col,
             HALF: tl.constexpr, EXACT: tl.constexpr, WIDEN: tl.constexpr,
             BM: tl.constexpr,
             BN: tl.constexpr, BK: tl.constexpr, SUB: tl.constexpr, KP: tl.constexpr,
             C: tl.constexpr):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BM
    rows = first + tl.arange(0, BM)
    real = rows < n
    count = tl.zeros((BM,), tl.int32)
    least = tl.full((BM,), float("-inf"), tl.float32)
    for start in range(0, d_sae, BN):
        columns = start + tl.arange(0, BN)
        there = columns < d_sae
        values = tl.zeros((BM, BN), tl.float32)
        for k in range(0, d_in, BK):
            inner = k + tl.arange(0, BK)
            read = inner < d_in
            own = tl.load(x + rows[:, None] * d_in + inner[None, :],
                          mask=real[:, None] & read[None, :], other=0)  # fmt: skip
            weights = tl.load(W + inner[:, None] * w_row + columns[None, :].to(tl.int64) * w_col,
                              mask=read[:, None] & there[None, :], other=0)  # fmt: skip
            if WIDEN:  # the interpreter cannot multiply bfloat16
                own, weights = own.to(tl.float32), weights.to(tl.float32)
            if EXACT:
                values = tl.dot(own, weights, values, input_precision="ieee")
            else:
                values = tl.dot(own, weights, values, input_precision="tf32")
        values += tl.load(b + columns, mask=there, other=0).to(tl.float32)[None, :]
        if HALF:  # what the product under autocast rounds to
            values = _rounded(values)
        values = tl.where(values == 0, 0.0, values)
        inside = real[:, None] & there[None, :]
        count = _push(values, columns[None, :], inside, rows, listed, places, count, least, C)
        if (tl.max(count, 0) > C - BN) | (start + BN >= d_sae):  # a full list, or the end
            tl.store(counts + rows, count, mask=real)
            _cut(first, n, listed, places, counts, leasts, K, BM, SUB, KP, C)
            count = tl.load(counts + rows, mask=real, other=0)
            least = tl.load(leasts + rows, mask=real, other=0)


def largest(pre: Float[Tensor, "n d_sae"], k: int, signed: bool = False) -> tuple[Tensor, Tensor]:
    """(values float32, indices) [n k] of the k largest of each row, descending; ties go to the lower index.
    signed: of |pre|. Of a row that holds less than k values above minus infinity the rest is undefined."""
    pre = pre.contiguous()
    n, d_sae = pre.shape
    blocks = sizes(k, *MATRIX)
    lists = _lists(pre, blocks["C"])
    if n:
        _matrix[(triton.cdiv(n, blocks["BM"]),)](pre, *lists, n, d_sae, k, SIGNED=signed, **blocks)
    return lists[0][:, :k], lists[1][:, :k].long()


def top_k(pre: Float[Tensor, "n d_sae"], k: int, signed: bool = False) -> Int[Tensor, "n k"]:
    """The indices of `largest`."""
    return largest(pre, k, signed)[1]


def encoded(
    x: Float[Tensor, "n d_in"],
    W: Float[Tensor, "d_in d_sae"],
    b: Float[Tensor, " d_sae"],
    k: int,
    half: bool = False,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """(values float32, indices) [n k] of the k largest of each row of x @ W + b, without that matrix.

    Args:
        x: Rows.
        W: The encoder, in either memory layout.
        b: Its bias.
        k: How many, at most d_sae.
        half: Multiply in bfloat16 with float32 sums and round these to bfloat16, as autocast does.

    Returns:
        Values and latents, largest first; ties go to the lower latent.
    """
    if half:
        x, W, b = x.bfloat16(), W.bfloat16(), b.bfloat16()
    x = x.contiguous()
    (n, d_in), d_sae = x.shape, W.shape[1]
    blocks = sizes(k, *PRODUCT)
    lists = _lists(x, blocks["C"])
    exact = x.dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    if n:
        _product[(triton.cdiv(n, blocks["BM"]),)](
            x, W, b, *lists, n, d_in, d_sae, k, *W.stride(),
            HALF=half, EXACT=exact, WIDEN=half and interpreted(), BK=32, num_warps=8, **blocks,
        )  # fmt: skip
    return lists[0][:, :k], lists[1][:, :k].long()


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def sizes(k: int, rows: int, columns: int) -> dict[str, int]:
    """The sizes of blocks for tiles of so many rows and columns."""
    room = triton.next_power_of_2(k + 2 * columns)
    part = min(rows, max(1, SORTED // room))
    return {"BM": rows, "BN": columns, "SUB": part, "KP": triton.next_power_of_2(k), "C": room}


def _lists(like: Tensor, room: int) -> tuple[Tensor, ...]:
    """(values, columns, counts, least of each row's list)."""
    n, device = len(like), like.device
    return (
        torch.empty(n, room, dtype=torch.float32, device=device),
        torch.empty(n, room, dtype=torch.int32, device=device),
        torch.empty(n, dtype=torch.int32, device=device),
        torch.empty(n, dtype=torch.float32, device=device),
    )
