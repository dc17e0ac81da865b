"""All that saelab knows of torchrun: ranks, what they agree on, and sums over them.

Within `joined()` the processes of one launch act as one; outside of it, or where there is one process, every
function here is a no-op, so that callers need no case for it. What is exact over ranks: docs/scale.md.
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


class _Lost(RankError):
    """The ranks can no longer speak to each other."""


class _State:
    joined = False
    """Whether this process acts as one of several."""
    alone = False
    """Whether it does not for the moment."""
    left = False
    """Whether it has closed its connections, for good."""
    shared: BaseException | None = None
    """The error that every rank has raised, or raises now."""


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Act as one with the other processes of this launch; nothing where there is one process.

    A process group that exists is used, else one is made (gloo, and NCCL where there is CUDA) and kept for
    the next call. An error that the other ranks do not share closes the connections, so that they fail at
    once instead of waiting. Raises RankError.
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
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(local_device())
        _call(td.init_process_group, backend, timeout=TIMEOUT)
        atexit.register(_leave)
    _State.joined = True
    try:
        yield
    except BaseException as error:
        if error is not _State.shared:
            _State.left = True
            _leave()
        raise
    finally:
        _State.joined = False


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it this process acts by itself: for code that only some ranks run, or all on equal data."""
    before, _State.alone = _State.alone, True
    try:
        yield
    finally:
        _State.alone = before


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What fails on one rank fails on all: there with its own error, elsewhere with a RankError about it.

    Within it every rank must run the same collective calls, or none.
    """
    if size() == 1:
        yield
        return
    error = None
    try:
        yield
    except _Lost:
        raise
    except Exception as caught:
        error = caught
    if not count(error is not None):
        return
    told = everyone(None if error is None else f"{type(error).__name__}: {error}")
    if error is None:
        failed, text = next((i, text) for i, text in enumerate(told) if text is not None)
        error = RankError(f"No rank must fail. Got on rank {failed}: {text}")
    _State.shared = error
    raise error


def size() -> int:
    """How many ranks act as one."""
    return td.get_world_size() if _State.joined and not _State.alone else 1


def rank() -> int:
    """The number of this one, from 0."""
    return td.get_rank() if _State.joined else 0


def first() -> bool:
    """Whether this is rank 0, the only one that writes and prints."""
    return rank() == 0


def local_device() -> torch.device:
    """The device of this process: the CUDA device of its number on this machine, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) if _launched() and "LOCAL_RANK" in os.environ
                        else torch.cuda.current_device())  # fmt: skip


def bounds(n: int) -> tuple[int, int]:
    """Where this rank's part of n rows begins and ends; parts differ by at most one row."""
    i, of = rank() if size() > 1 else 0, size()
    return n * i // of, n * (i + 1) // of


def part(rows: Tensor) -> Tensor:
    """This rank's part of the rows."""
    start, end = bounds(len(rows))
    return rows if size() == 1 else rows[start:end]


def total(x: Tensor) -> Tensor:
    """Sum over ranks. x is left as it is."""
    return _reduced(x, td.ReduceOp.SUM)


def least(x: Tensor) -> Tensor:
    """Elementwise minimum over ranks."""
    return _reduced(x, td.ReduceOp.MIN)


def most(x: Tensor) -> Tensor:
    """Elementwise maximum over ranks."""
    return _reduced(x, td.ReduceOp.MAX)


def pooled(x: Tensor, n: int) -> Tensor:
    """A sum over this rank's n rows as it would be if they were like those of all ranks: total(x) n / N."""
    if size() == 1:
        return x
    whole, rows = total(torch.stack([x, x.new_tensor(n)]))
    return whole * n / rows


def sum_gradients(parameters: list[Tensor]) -> None:
    """Replace every gradient by its sum over ranks; small ones travel together."""
    small = []
    for parameter in parameters if size() > 1 else []:
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
            grad.copy_(total(grad))
    if small:
        joined = total(torch.cat([grad.reshape(-1) for grad in small]))
        for grad, summed in zip(small, joined.split([grad.numel() for grad in small]), strict=True):
            grad.copy_(summed.view_as(grad))


def from_first(tensors: list[Tensor]) -> None:
    """Overwrite tensors by those of rank 0."""
    for tensor in tensors if size() > 1 else []:
        sent = tensor.detach().contiguous()
        _call(td.broadcast, sent, 0)
        tensor.detach().copy_(sent)


def count(n: int) -> int:
    """Sum over ranks of a whole number (True counts 1)."""
    return int(n) if size() == 1 else int(total(torch.tensor(int(n), device=_device())))


def before(n: int) -> int:
    """Sum of the numbers of lower ranks."""
    if size() == 1:
        return 0
    numbers = torch.zeros(size(), dtype=torch.int64, device=_device())
    numbers[rank()] = n
    return int(total(numbers)[: rank()].sum())


def everyone(value: T) -> list[T]:
    """The values of all ranks, by rank. They must be picklable."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    _call(td.all_gather_object, values, value)
    return values


def share(value: T) -> T:
    """The value of rank 0. It must be picklable."""
    if size() == 1:
        return value
    values = [value if first() else None]
    _call(td.broadcast_object_list, values, 0)
    return value if first() else values[0]  # type: ignore[return-value]


def kth_largest(values: Tensor, k: int) -> Tensor:
    """[]: the k-th largest, from 1, of the positive floats [n] of all ranks together. There must be as many.

    Positive floats are ordered as their bits are. Byte by byte, the ranks count how many values have each
    byte: the bytes of the k-th largest follow from the sums alone.
    """
    if size() == 1:
        return values.kthvalue(len(values) - k + 1).values
    width = values.element_size()
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[width]
    bits, found = values.view(kind), 0
    for shift in range(8 * width - 8, -1, -8):
        byte = (bits >> shift) & 255
        counts = total(torch.bincount(byte, minlength=256))
        above = counts.flip(0).cumsum(0)  # how many have a byte of at least 255 - i
        i = int((above >= k).nonzero()[0])
        chosen = 255 - i
        k -= int(above[i] - counts[chosen])
        found = (found << 8) | chosen
        bits = bits[byte == chosen]
    return torch.tensor(found, dtype=kind, device=values.device).view(values.dtype)


def _launched() -> bool:
    """Whether this process is one of several."""
    if td.is_available() and td.is_initialized():
        return td.get_world_size() > 1
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ) and int(
        os.environ["WORLD_SIZE"]
    ) > 1


def _device() -> str:
    """Where small numbers lie to be sent."""
    return "cuda" if td.get_backend() == "nccl" else "cpu"


def _reduced(x: Tensor, op: Any) -> Tensor:
    if size() == 1:
        return x
    sent = x.detach().clone(memory_format=torch.contiguous_format)
    _call(td.all_reduce, sent, op)
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
