"""What pickles may name and do here.

A pickle is a program that calls what it imports. Here imports give three things only: torch's own rebuilders
of tensors, plain containers, and for every other name an inert class that keeps what it is given. A module
that was saved whole is then a tree of dicts whose tensors are read off.
"""

from __future__ import annotations

import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.formats.reading import refuse
from saelab.tensors import DTYPES


class Kept:
    """A tensor, as something that a pickle can hand on but not alter: of a tensor it could set what it lies
    in."""

    __slots__ = ("tensor",)
    tensor: Tensor

    def __init__(self, tensor: Tensor) -> None:
        object.__setattr__(self, "tensor", tensor)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


class _RebuildTensor:
    """torch's function, as something that a pickle can call but not alter: pickles set attributes of what
    they import."""

    __slots__ = ()

    def __call__(self, *args: Any) -> Tensor:
        return torch._utils._rebuild_tensor_v2(*args)  # type: ignore[attr-defined]


class _RebuildParameter:
    """A parameter is its tensor here."""

    __slots__ = ()

    def __call__(self, data: Any, *args: Any) -> Any:
        return data


_SAFE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
}


_OF_TENSORS = {
    "collections OrderedDict", "torch Size", "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {name}Storage" for name in (
        "Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")),
    *(str(dtype).replace(".", " ") for dtype in DTYPES.values()),
}  # fmt: skip
"""What the pickle of a plain state dict names, as torch.save writes it."""
_NAMING = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"}
"""Operations that a plain state dict has no need of."""


def names_only_tensors(data: bytes) -> bool:
    """Whether a pickle names nothing but what makes tensors and dicts, so that what torch's reader of weights
    makes of it is no larger than the file."""
    for opcode, said, _ in pickletools.genops(data):
        if opcode.name in _NAMING or (opcode.name == "GLOBAL" and said not in _OF_TENSORS):
            return False
    return True


class Inert:
    """What stands for an object of a class that is not known: its attributes, and nothing that runs."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._items: dict[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        states = state if isinstance(state, tuple) else (state,)
        for each in states:
            if isinstance(each, dict):
                vars(self).update({key: value for key, value in each.items() if isinstance(key, str)})

    def __setitem__(self, key: Any, value: Any) -> None:
        vars(self).setdefault("_items", {})[key] = value

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return Inert()

    def append(self, value: Any) -> None:
        """Lists of unknown classes lose their items: no SAE has its weights there."""

    def extend(self, values: Any) -> None:
        """See `append`."""


class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _SAFE:
            return _SAFE[module, name]
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, torch.dtype):
            return value
        return type(Inert)("Inert", (Inert,), {"__qualname__": f"{module}.{name}"[:200]})


def check_pickle(path: Path, data: Any, limit: int) -> int:
    """Bytes of the first pickle in bytes or in a file, without those of its byte strings, for which a file
    may give ranges as long; more than `limit` are refused.

    Nested tuples beyond what torch.save writes are refused too: hashing a tuple of tuples of tuples, each
    twice the one before, takes for ever. Depths are followed through pickle's stack and memo."""
    stack: list[int | None] = []  # depths; None is a mark
    memo: dict[int, int] = {}
    depth = payload = size = start = 0
    for opcode, said, at in pickletools.genops(data):
        start = at or 0 if not size else start
        payload += len(said) if isinstance(said, bytes | bytearray | range) else 0
        size = (at or 0) + 1 - start
        if size - payload > limit:
            refuse(f"{path} must hold a pickle of at most {limit:,} bytes", "more")
        name, argument = opcode.name, said if isinstance(said, int) else -1
        if name in ("GET", "PUT", "DUP", "EXT1", "EXT2", "EXT4"):
            refuse(f"{path} must be a plain state dict", f"the pickle operation {name}")
        if name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1] or 0
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1] or 0
        elif name == "MARK":
            stack.append(None)
        else:
            taken: list[int] = []
            for before in reversed(opcode.stack_before):
                if before is pickletools.stackslice:
                    while (top := stack.pop()) is not None:
                        taken.append(top)
                elif before is not pickletools.markobject:
                    taken.append(stack.pop() or 0)
            depth = 1 + max(taken, default=0) if "TUPLE" in name else 0
            if depth > 8:
                refuse(f"{path} must be a plain state dict", "tuples within tuples")
            stack.extend([depth] * len(opcode.stack_after))
    return max(0, size - payload)
