"""All that saelab knows of torchrun: ranks, what they agree on, and sums over them.

Within `joined()` the processes of one launch act as one. They divide either the rows of a batch or the
latents of an SAE among them: `rows` and `latents` reduce over ranks where that is what is divided, `ranks` in
both cases. Elsewhere, and where there is one process, everything here is a no-op, so that callers need no
case for it. What is exact over ranks: docs/scale.md.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as td
from torch import Tensor

from saelab.types import RankError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others, of a group that saelab makes itself."""
PIECE = 2**26
"""Bytes, about, that are sent at a time where a whole tensor is put together."""


class _State:
    joined = False
    """Whether this process acts as one of several."""
    divided = "rows"
    """What they divide."""
    alone = False
    """Whether it acts by itself for the moment."""
    left = False
    """Whether it has closed its connections, for good."""
    shared: BaseException | None = None
    """The error that every rank has raised, or raises now."""


class _Lost(RankError):
    """The ranks can no longer speak to each other."""


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Act as one with the other processes of this launch; nothing where there is one process.

    A process group that exists is used, else one is made (gloo, and NCCL where there is CUDA) and kept for
    the next call. An error that the other ranks do not share closes the connections, so that they fail at
    once instead of waiting.

    Raises:
        RankError: This process failed in such a block before, or another rank is lost or does not come.
    """
    if _State.joined or not _launched():
        yield
        return
    if _State.left:
        message = (
            "A process that failed in a distributed run cannot join another. Got a second call. Start all "
            "ranks again; the run continues from its checkpoint."
        )
        raise RankError(message)
    if not td.is_initialized():
        # the optimizers import it on use; its default arguments would keep the group, and gloo's threads with
        # it, past the end of the interpreter, where one that still frees a tensor aborts the process
        import torch.distributed.nn.functional

        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(local_device())
        _call(td.init_process_group, backend, timeout=TIMEOUT)
        atexit.register(_leave)
    _State.joined, _State.divided = True, "rows"
    try:
        yield
    except BaseException as error:
        if error is not _State.shared:
            _State.left = True
            _leave()
        raise
    finally:
        _State.joined = False


def divide(what: str) -> None:
    """Say what the joined ranks divide: "rows" (the default) or "latents"."""
    _State.divided = what


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it this process acts by itself: for code that only some ranks run, or all on equal data."""
    before, _State.alone = _State.alone, True
    try:
        yield
    finally:
        _State.alone = before


@contextlib.contextmanager
def same_rows() -> Iterator[None]:
    """Within it every rank has all rows, the same: they are not divided."""
    if _State.divided == "rows":
        with alone():
            yield
    else:
        yield


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What fails on one rank fails on all: there with its own error, elsewhere with a RankError about it.

    Within it every rank must run the same collective calls, or none.
    """
    if ranks.size == 1:
        yield
        return
    error = None
    try:
        yield
    except _Lost:
        raise
    except Exception as caught:
        error = caught
    if not ranks.count(error is not None):
        return
    told = ranks.everyone(None if error is None else f"{type(error).__name__}: {error}")
    if error is None:
        failed, text = next((i, text) for i, text in enumerate(told) if text is not None)
        error = RankError(f"No rank must fail. Got on rank {failed}: {text}")
    _State.shared = error
    raise error


def first() -> bool:
    """Whether this is rank 0, the only one that writes and prints."""
    return not _State.joined or td.get_rank() == 0


def local_device() -> torch.device:
    """The device of this process: the CUDA device of its number on this machine, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number = os.environ.get("LOCAL_RANK") if _launched() else None
    return torch.device("cuda", torch.cuda.current_device() if number is None else int(number))


class Axis:
    """Reductions over the ranks that divide something."""

    def __init__(self, divided: str | None) -> None:
        self._divided = divided

    @property
    def size(self) -> int:
        """How many ranks divide it."""
        on = _State.joined and not _State.alone and self._divided in (None, _State.divided)
        return td.get_world_size() if on else 1

    @property
    def rank(self) -> int:
        """The number of this one, from 0."""
        return td.get_rank() if self.size > 1 else 0

    def bounds(self, n: int, rank: int | None = None) -> tuple[int, int]:
        """Where the part of one rank begins and ends, of n that the ranks divide; parts differ by at most 1.

        Args:
            n: How many there are of all ranks.
            rank: Whose part, by default that of this one.

        Returns:
            (start, end) in 0..n, end excluded.
        """
        rank = self.rank if rank is None else rank
        return n * rank // self.size, n * (rank + 1) // self.size

    def own(self, x: Tensor) -> Tensor:
        """This rank's part of a tensor, along its first axis."""
        start, end = self.bounds(len(x))
        return x if self.size == 1 else x[start:end]

    def total(self, x: Tensor) -> Tensor:
        """Sum over ranks. x is left as it is."""
        return self._reduced(x, "SUM")

    def least(self, x: Tensor) -> Tensor:
        """Elementwise minimum over ranks."""
        return self._reduced(x, "MIN")

    def most(self, x: Tensor) -> Tensor:
        """Elementwise maximum over ranks."""
        return self._reduced(x, "MAX")

    def count(self, n: int) -> int:
        """Sum of a whole number (True counts 1)."""
        return int(n) if self.size == 1 else int(self.total(torch.tensor(int(n), device=_device())))

    def gathered(self, x: Tensor) -> Tensor:
        """[ranks ..]: the tensors of all ranks, of one shape."""
        if self.size == 1:
            return x[None]
        out = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        _call(td.all_gather, out, x.detach().contiguous())
        return torch.stack(out)

    def everyone(self, value: T) -> list[T]:
        """The values of all ranks, by rank. They must be picklable."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        _call(td.all_gather_object, values, value)
        return values

    def share(self, value: T) -> T:
        """The value of rank 0. It must be picklable."""
        if self.size == 1:
            return value
        values = [value if self.rank == 0 else None]
        _call(td.broadcast_object_list, values, 0)
        return value if self.rank == 0 else values[0]  # type: ignore[return-value]

    def spread(self, x: Tensor) -> Tensor:
        """A tensor of rank 0, on all."""
        return x if self.size == 1 else _sent(x, 0)

    def pooled(self, x: Tensor, n: int) -> Tensor:
        """A sum over this rank's rows as it would be if they were like those of all ranks.

        Args:
            x: [..] this rank's sum, which is left as it is.
            n: How many rows this rank has.

        Returns:
            [..]: n / N of the total over ranks, where N is how many rows all of them have.
        """
        if self.size == 1:
            return x
        total, n_rows = self.total(torch.stack([x, x.new_tensor(n)]))
        return total * n / n_rows

    def sum_gradients(self, parameters: list[Tensor]) -> None:
        """Replace every gradient by its sum over ranks; small ones travel together."""
        small = []
        for parameter in parameters if self.size > 1 else []:
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            grad = parameter.grad
            if grad.numel() < 2**18:
                small.append(grad)
            elif grad.is_contiguous():
                _call(td.all_reduce, grad)
            elif grad.t().is_contiguous():  # as W_enc lies in memory
                _call(td.all_reduce, grad.t())
            else:
                grad.copy_(self.total(grad))
        if small:
            joined = self.total(torch.cat([grad.reshape(-1) for grad in small]))
            for grad, summed in zip(small, joined.split([grad.numel() for grad in small]), strict=True):
                grad.copy_(summed.view_as(grad))

    def summed(self, x: Tensor) -> Tensor:
        """Sum over ranks, differentiable: every rank computes the same of it, so that the gradient of the sum
        is that of each part."""
        return x if self.size == 1 else _Summed.apply(self, x)  # type: ignore[return-value]

    def used_by_all(self, x: Tensor) -> Tensor:
        """x, which is equal on all ranks, where each goes on to compute its own part: the gradient is the sum
        of theirs."""
        return x if self.size == 1 else _Used.apply(self, x)  # type: ignore[return-value]

    def kth_largest(self, values: Tensor, k: int) -> Tensor:
        """The k-th largest of the positive floats of all ranks.

        Positive floats are ordered as their bits are. Byte by byte, the ranks count how many values have each
        byte: the bytes of the k-th largest follow from the sums alone.

        Args:
            values: [n] this rank's, of 2, 4 or 8 bytes each; n may differ between ranks.
            k: From 1 (the largest) to how many values all ranks have.

        Returns:
            [], of the dtype of `values`.
        """
        if self.size == 1:
            return values.kthvalue(len(values) - k + 1).values
        width = values.element_size()
        kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[width]
        bits, found = values.view(kind), 0
        for shift in range(8 * width - 8, -1, -8):
            byte = (bits >> shift) & 255
            counts = self.total(torch.bincount(byte, minlength=256))
            above = counts.flip(0).cumsum(0)  # how many have a byte of at least 255 - i
            i = int((above >= k).nonzero()[0])
            chosen = 255 - i
            k -= int(above[i] - counts[chosen])
            found = (found << 8) | chosen
            bits = bits[byte == chosen]
        return torch.tensor(found, dtype=kind, device=values.device).view(values.dtype)

    def pieces(self, x: Tensor, axis: int, n: int) -> Iterator[Tensor]:
        """A tensor that the ranks divide, in pieces along its first axis; every rank must read all of them.

        Args:
            x: This rank's part: [b - a ..] or [rows, b - a], where (a, b) are its `bounds` of n.
            axis: That which is divided, 0 or 1.
            n: Its length over all ranks.

        Yields:
            [at most rows ..] with all of `axis`: their concatenation is the tensor, on every rank.
        """
        lengths = [b - a for a, b in (self.bounds(n, rank) for rank in range(self.size))]
        shares = [(rank, length) for rank, length in enumerate(lengths)]
        for group in [[share] for share in shares] if axis == 0 else [shares]:
            rows = group[0][1] if axis == 0 else len(x)
            width = x[:1].numel() if axis == 0 else n
            step = max(1, PIECE // max(1, width * x.element_size()))
            for start in range(0, rows, step):
                end = min(rows, start + step)
                found = []
                for rank, length in group:
                    shape = (end - start, *x.shape[1:]) if axis == 0 else (end - start, length)
                    mine = rank == self.rank
                    sent = x[start:end] if mine else x.new_empty(shape)
                    found.append(sent.detach() if self.size == 1 else _sent(sent, rank))
                yield torch.cat(found, axis)

    def _reduced(self, x: Tensor, op: str) -> Tensor:
        if self.size == 1:
            return x
        sent = x.detach().clone(memory_format=torch.contiguous_format)
        _call(td.all_reduce, sent, getattr(td.ReduceOp, op))
        return sent


ranks, rows, latents = Axis(None), Axis("rows"), Axis("latents")


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, axis: Axis, x: Tensor) -> Tensor:
        return axis.total(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, grads[0]


class _Used(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, axis: Axis, x: Tensor) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, ctx.axis.total(grads[0])


def _launched() -> bool:
    """Whether this process is one of several."""
    if td.is_available() and td.is_initialized():
        return td.get_world_size() > 1
    told = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)
    return told and int(os.environ["WORLD_SIZE"]) > 1


def _device() -> str:
    """Where small numbers lie to be sent."""
    return "cuda" if td.get_backend() == "nccl" else "cpu"


def _sent(x: Tensor, source: int) -> Tensor:
    """The tensor of rank `source`, on all; x has its shape."""
    sent = x.detach().contiguous()
    sent = sent.clone() if sent.data_ptr() == x.data_ptr() else sent
    _call(td.broadcast, sent, source)
    return sent


def _leave() -> None:
    if td.is_initialized():
        with contextlib.suppress(RuntimeError):
            td.destroy_process_group()


def _call(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A call of torch.distributed. Raises RankError where another rank is lost or does not come."""
    try:
        return function(*args, **options)
    except RuntimeError as error:  # of every backend
        message = (
            f"Every rank must take part until the end. Got on rank {os.environ.get('RANK', '?')}: "
            f"{str(error)[:300]}. Look for the first error of the other ranks, then start all of them again: "
            "with out= the run continues."
        )
        raise _Lost(message) from error
