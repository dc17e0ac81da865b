"""The nearest of many unit vectors by cosine: a product in few bits leaves out what can't be among them, and
the rest is taken exactly."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

import numpy as np

from saelab.stores.summaries import first_of_each

if TYPE_CHECKING:
    from torch import Tensor, dtype

BLOCK_SCORES = 1 << 22
GROUP = 64
MOST_LEFT = 1 / 64
BLOCK_VALUES = 1 << 22


def nearest(ours: np.ndarray, theirs: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n largest cosines of each of our vectors with theirs, as `nearest_reference` finds them.

    A product in bfloat16, where that is the faster one, screens them. Both its rounding and that of its
    factors are bounded, by the sizes of what the factors lose. So the n largest maxima of groups of theirs
    give a value that the n-th largest is not below, and what lies below that by more than the bound is left
    out. Where that leaves much, as where all vectors are alike, the reference takes over.

    Args:
        ours: float32 [a d], unit vectors.
        theirs: float32 [b d], unit vectors.
        n: How many.

    Returns:
        (number of theirs int64 [a m], cosine float32 [a m]), m = min(n, b), largest first.
    """
    import torch

    n = min(n, len(theirs))
    groups = -(-len(theirs) // GROUP)
    step = max(1, BLOCK_SCORES // max(len(theirs), 1))
    if n >= groups:  # of theirs there are few
        return _in_blocks(ours, theirs, n)
    kind = _fast(ours.shape[1])
    b = torch.from_numpy(theirs)
    short = b.to(kind)
    lost, size = (b - short.float()).norm(dim=1).max(), short.float().norm(dim=1).max()
    product = torch.empty(len(theirs), step, dtype=kind)
    a = torch.from_numpy(ours)
    mine = a.to(kind)
    # |a . b - a' . b'| <= |a - a'| |b| + |a'| |b - b'|; then d products are added, and the sum is rounded
    bounds = (a - mine.float()).norm(dim=1) * 1.0001 + mine.float().norm(dim=1) * lost
    exact = torch.finfo(torch.float32).eps * (ours.shape[1] + 4)
    bounds += (exact + torch.finfo(kind).eps) * 1.01 * mine.float().norm(dim=1) * size
    found = []
    for low in range(0, len(ours), step):
        some, bound = mine[low : low + step], bounds[low : low + step]
        out = product if len(some) == step else product.new_empty(len(theirs), len(some))
        torch.mm(short, some.T, out=out)
        at, number = _left(out, bound, n)
        if len(at) > MOST_LEFT * out.numel() + GROUP * len(some):
            found.append(_in_blocks(ours[low : low + step], theirs, n))
            continue
        cosine = _cosines(ours[low : low + step], theirs, at, number)
        order = np.lexsort((number, -cosine, at))
        kept, _ = first_of_each(order, at, n)
        found.append((number[kept].reshape(-1, n), cosine[kept].reshape(-1, n)))
    number, cosine = (np.concatenate(x) for x in zip(*found, strict=True)) if found else _nothing(n)
    return number, cosine


def nearest_reference(ours: np.ndarray, theirs: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The definition, slow: cosines in float64, rounded to float32; of equals the lower number is first."""
    cosine = (ours.astype(np.float64) @ theirs.astype(np.float64).T).astype(np.float32)
    cosine = np.clip(cosine, np.float32(-1), np.float32(1))
    number = np.argsort(-cosine, axis=1, kind="stable")[:, :n]
    return number, np.take_along_axis(cosine, number, 1)


def _in_blocks(ours: np.ndarray, theirs: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    step = max(1, BLOCK_VALUES // max(len(theirs), 1))
    found = [nearest_reference(ours[low : low + step], theirs, n) for low in range(0, len(ours), step)]
    number, cosine = (np.concatenate(x) for x in zip(*found, strict=True)) if found else _nothing(n)
    return number, cosine


def _nothing(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((0, n), np.int64), np.zeros((0, n), np.float32)


def _left(product: Tensor, bound: Tensor, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(number of ours, number of theirs) of what may be among the n largest of a column, sorted by ours.

    product: [b a], each off by at most bound [a].
    """
    import torch

    b, a = product.shape
    whole = b // GROUP * GROUP
    kind = product.dtype

    def limits(table: Tensor) -> tuple[Tensor, Tensor]:
        most = table[:whole].view(-1, GROUP, a).amax(1)
        if whole < b:
            most = torch.cat([most, table[whole:].amax(0, keepdim=True)])
        of_n = most.amax(0) if n == 1 else most.view(kind).topk(n, dim=0).values[-1]
        return most, of_n.view(kind).float() - 2 * bound

    # floats above 0 are ordered as integers of the same bits, of which the machine compares more at once
    table = product.view(torch.int16 if kind == torch.bfloat16 else torch.int32)
    most, limit = limits(table)
    if (limit > 0).all():
        limit = limit.view(torch.int32)
        limit = (limit >> 16).short() if kind == torch.bfloat16 else limit  # rounded towards 0
    else:
        table = product
        most, limit = limits(table)
    group, at = (most >= limit).nonzero(as_tuple=True)
    place = group[:, None] * GROUP + torch.arange(GROUP)
    value = table.view(-1).take(place.clamp_max(b - 1) * a + at[:, None])
    hit, column = ((value >= limit[at][:, None]) & (place < b)).nonzero(as_tuple=True)
    at, number = at[hit].numpy(), place[hit, column].numpy()
    order = np.argsort(at, kind="stable")
    return at[order], number[order]


def _cosines(ours: np.ndarray, theirs: np.ndarray, at: np.ndarray, number: np.ndarray) -> np.ndarray:
    """float32: of the pairs (ours[at], theirs[number]), as in the reference."""
    out = np.empty(len(at), np.float32)
    step = max(1, BLOCK_VALUES // max(ours.shape[1], 1))
    for first in range(0, len(at), step):
        part = slice(first, first + step)
        a, b = ours[at[part]].astype(np.float64), theirs[number[part]].astype(np.float64)
        out[part] = np.einsum("ij,ij->i", a, b)
    return np.clip(out, np.float32(-1), np.float32(1))


@functools.cache
def _fast(width: int) -> dtype:
    """bfloat16 where the machine multiplies it faster than float32."""
    import torch

    x, y = torch.ones(256, max(width, 1)), torch.ones(max(width, 1), 256)
    took = {}
    for kind in (torch.float32, torch.bfloat16):
        a, b = x.to(kind), y.to(kind)
        turns = []
        for _ in range(4):
            start = time.perf_counter()
            torch.mm(a, b)
            turns.append(time.perf_counter() - start)
        took[kind] = min(turns[1:])
    return min(took, key=took.__getitem__)
