"""Named tensors in safetensors files, written and read a piece at a time.

The format's own library makes a second copy of everything that it writes or reads in memory, and maps what it
reads from disk: a mapping has the layout of the file, follows what happens to it, and counts as memory once
it was read. Here memory holds one copy of the tensors and a piece of a few megabytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saelab.errors import FormatError, StoreError, short
from saelab.files import claim, parse_json

MAX_HEADER = 2**24
"""Bytes of a header, at most."""
PIECE = 2**22
"""Bytes, about, that are converted at a time."""
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
"""What the format calls a dtype -> torch's."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """A tensor in a file."""

    dtype: str
    """As the format calls it."""
    shape: tuple[int, ...]
    start: int
    """Where its bytes begin in the file."""
    end: int


@dataclass
class Pieces:
    """A whole tensor that is read once, piece by piece along its first axis."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Iterable[Tensor]


def blocks(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor in pieces of about PIECE bytes along its first axis."""
    if not tensor.ndim:
        return iter([tensor])
    row = tensor[:1].numel() * tensor.element_size()
    return iter(tensor.split(max(1, PIECE // max(row, 1))))


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite, found without memory of the tensor's size."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # what is not finite makes a sum that is not either; the sum of finite numbers may overflow
    return math.isfinite(float(tensor.sum())) or all(math.isfinite(float(end)) for end in tensor.aminmax())


def write(
    path: Path, tensors: Mapping[str, Tensor | Pieces], metadata: Mapping[str, str] | None = None
) -> str:
    """Write a file, to the disk.

    Args:
        path: Its place, as `files.new_file` gives it: what fails here leaves a part of the file.
        tensors: By name, in the order in which they are written; those with the widest numbers must come
            first, so that all lie at multiples of their size.
        metadata: What else the header says.

    Returns:
        Its SHA-256, in hex.

    Raises:
        StoreError: Where the disk has no room for it.
        OSError: Where it cannot be written.
    """
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name, tensor in tensors.items():
        end = at + math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    claim(path, 8 + len(text) + at)
    with path.open("rb+") as file:
        for data in (len(text).to_bytes(8, "little"), text):
            digest.update(data)
            file.write(data)
        for tensor in tensors.values():
            for piece in tensor.pieces if isinstance(tensor, Pieces) else blocks(tensor):
                data = memory(piece.detach().cpu().contiguous())
                digest.update(data)
                file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def entries(header: bytes, where: object, size: int | None = None) -> dict[str, Entry]:
    """What a header says, by name. Tensors must lie one after another and fill the file.

    Args:
        header: Its text.
        where: Where it is, for messages.
        size: Bytes of the file, if they are known.

    Raises:
        FormatError: Where it says anything else.
    """
    found: dict[str, Entry] = {}
    first = 8 + len(header)
    said = parse_json(header, where, "header of a safetensors file", unique=True)
    try:
        for name, entry in said.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                found[name] = Entry(entry["dtype"], tuple(entry["shape"]), first + start, first + end)
        at = first
        for entry in sorted(found.values(), key=lambda entry: (entry.start, entry.end)):
            sizes = (*entry.shape, entry.start, entry.end)
            if not all(type(n) is int and 0 <= n < 2**63 for n in sizes):
                raise ValueError(entry)
            if entry.start != at or entry.end - at != math.prod(entry.shape) * DTYPES[entry.dtype].itemsize:
                raise ValueError(entry)
            at = entry.end
        if size not in (None, at):
            raise ValueError(at)
    except (KeyError, TypeError, ValueError) as error:
        message = (
            f"{where} must be a safetensors file whose tensors fill it one after another. Got a header that "
            f"says otherwise: {short(str(error))}. Write it again."
        )
        raise FormatError(message) from error
    return found


class Reader:
    """A file that is open to be read, its hash and header checked.

    Attributes:
        entries: What it holds, by name.
    """

    def __init__(self, path: Path, sha256: object) -> None:
        """Open a file.

        Args:
            path: The file.
            sha256: What its SHA-256 must be, in hex.

        Raises:
            StoreError: Where it cannot be read.
            FormatError: Where it has another hash or is no safetensors file.
        """
        self.path = path
        try:
            self._file = path.open("rb")
            with contextlib.ExitStack() as stack:
                stack.callback(self._file.close)
                found = hashlib.file_digest(self._file, "sha256").hexdigest()
                size = self._file.tell()
                if found != sha256:
                    message = (
                        f"{path} must have the SHA-256 that was noted when it was written "
                        f"({str(sha256)[:12]}...). Got {found[:12]}... in {size:,} bytes: truncated or "
                        "altered. Copy the whole folder again, or write it again."
                    )
                    raise FormatError(message)
                self._file.seek(0)
                length = int.from_bytes(self._file.read(8), "little")
                if not 2 <= length <= min(MAX_HEADER, size - 8):
                    message = (
                        f"{path} must be a safetensors file. Got a header of {length:,} bytes in {size:,}. "
                        "Write it again."
                    )
                    raise FormatError(message)
                self.entries = entries(self._file.read(length), path, size)
                stack.pop_all()
        except OSError as error:
            raise self._unreadable(error) from error

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read(self, name: str, out: Tensor | None = None) -> Tensor:
        """One tensor.

        Args:
            name: Its name.
            out: What it is read into, of its shape; of any layout, and any dtype of the same kind.

        Raises:
            StoreError: Where the file cannot be read any more.
        """
        entry = self.entries[name]
        dtype = DTYPES[entry.dtype]
        out = torch.empty(entry.shape, dtype=dtype) if out is None else out
        try:
            self._file.seek(entry.start)
            if out.dtype == dtype and out.is_contiguous():
                self._fill(out)
            else:
                for block in blocks(out):
                    piece = torch.empty(block.shape, dtype=dtype)
                    self._fill(piece)
                    block.copy_(piece)
        except OSError as error:
            raise self._unreadable(error) from error
        return out

    def _fill(self, tensor: Tensor) -> None:
        data = memory(tensor)
        if self._file.readinto(data) != len(data):
            message = "it became shorter"
            raise OSError(message)

    def _unreadable(self, error: OSError) -> StoreError:
        message = (
            f"{self.path} must be readable. Got: {error.strerror or error}. Copy the whole folder again."
        )
        return StoreError(message)


def memory(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
