"""Memory that one training step leaves to the next, and one piece of an encoding to the next.

A matrix of pre-activations is tens of megabytes. Memory of that size goes back to the system when it is freed
and comes back in pages that are mapped and cleared one by one, which on CPU takes longer than most of what is
done to the matrix: a dense step spent a third of its time so.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import threading
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

LEAST = 2**20
"""Bytes below which the allocator does as well."""
ALIGNED = 64
"""Bytes: what a piece of memory begins at a multiple of."""
_here = threading.local()


class Kept:
    """Pieces of main memory, each lent to one tensor at a time and lent again when nothing refers to that
    tensor, its views and its storage any more. Belongs to one training session and ends with it."""

    def __init__(self) -> None:
        self._pieces: list[np.ndarray] = []

    def lend(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialised memory as a contiguous tensor with a storage of its own."""
        size = math.prod(shape) * dtype.itemsize
        for piece in self._pieces:
            if len(piece) == size + ALIGNED and sys.getrefcount(piece) == _unused():
                break
        else:
            piece = np.empty(size + ALIGNED, dtype=np.uint8)
            self._pieces.append(piece)
        start = -piece.ctypes.data % ALIGNED
        lent = piece[start : start + size].view(_NUMPY[dtype]).reshape(shape)
        return torch.from_numpy(lent)

    @property
    def nbytes(self) -> int:
        """What is kept."""
        return sum(piece.nbytes for piece in self._pieces)


@functools.cache
def _unused() -> int:
    """References to a piece that no tensor uses: the list's, the loop variable's and the question's,
    not all of which Python 3.14 counts."""
    pieces, counts = [np.empty(1, np.uint8)], []
    for piece in pieces:
        counts.append(sys.getrefcount(piece))
    return counts[0]


_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


@contextlib.contextmanager
def kept(memory: Kept) -> Iterator[None]:
    """Within it, on this thread, the large results of `empty` lie in kept memory, and `active` says so."""
    before = getattr(_here, "memory", None)
    _here.memory = memory
    try:
        yield
    finally:
        _here.memory = before


def kept_anew(like: Tensor) -> contextlib.AbstractContextManager[None]:
    """`kept` with memory of its own, which ends with it, for work without gradient on tensors like this one.
    Nothing is kept for other devices than the CPU, nor under autocast, which reaches no result that is
    written to given memory; memory that is kept already stays in use."""
    if active() or like.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return contextlib.nullcontext()
    return kept(Kept())


def active() -> bool:
    """Whether this thread is within `kept`."""
    return getattr(_here, "memory", None) is not None


def empty(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised memory of the kind of a tensor, by default of its shape too."""
    shape = shape or tuple(like.shape)
    memory = getattr(_here, "memory", None)
    large = math.prod(shape) * like.element_size() >= LEAST
    if memory is None or not large or like.device.type != "cpu" or like.dtype not in _NUMPY:
        return like.new_empty(shape)
    return memory.lend(shape, like.dtype)
