"""The header of a GGUF file, read within bounds, before any library sees the file.

magic, version, counts; then key-value pairs; then of each tensor its name, shape, type and place. Nothing is
allocated on the word of a count or a length: each is held against what the file can still hold and against
limits far above those of real files, so that a hostile file costs no more time and memory than they allow.
Every fault is a FormatError that names the file.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from saelab.config import is_integer
from saelab.types import FormatError, short

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER = 2**28
"""Bytes before the tensors: a vocabulary of 262,144 tokens takes about 2**23."""
MAX_PAIRS = 2**14
MAX_TENSORS = 2**16
MAX_ITEMS = 2**21
"""Of all arrays together: 262,144 tokens with scores, kinds and merges are about 2**20.3."""
MAX_NAME = 2**10
"""Bytes of a key or of a tensor's name."""
MAX_TEXT = 2**24
"""Bytes of a value that is a string."""
MAX_AXES = 4

_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_KEPT = 2**12
"""Numbers of an array that are kept as values."""

Value = int | float | bool | str | list[int] | list[float] | None


class Block(NamedTuple):
    """How a type of tensor is stored."""

    name: str
    items: int
    """Numbers of a block; a row is a whole number of blocks."""
    size: int
    """Bytes of a block."""


class TensorInfo(NamedTuple):
    """What a header says of a tensor."""

    name: str
    shape: tuple[int, ...]
    """As torch orders axes: the last is contiguous."""
    block: Block
    start: int
    """Byte of the file at which it begins."""
    stop: int
    """Byte after its last one."""

    @property
    def numel(self) -> int:
        """Its numbers."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A header whose every promise the file can keep.

    pairs: key -> value; an array of strings, or of more than 4,096 numbers, stands as None.
    tensors: in the order of the file; none overlap, none ends beyond the file.
    """

    path: Path
    version: int
    pairs: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]

    @property
    def architecture(self) -> str:
        """`general.architecture`."""
        return str(self.pairs["general.architecture"])

    def number(self, key: str) -> int | None:
        """An integer of the architecture, as `block_count`, or None where there is none."""
        value = self.pairs.get(f"{self.architecture}.{key}")
        return value if is_integer(value) else None


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_header(path: Path, blocks: Mapping[int, Block]) -> Header:
    """Read and check the header of a GGUF file.

    Args:
        path: A regular file.
        blocks: How each type of tensor is stored, by its number.

    Returns:
        The header. Tensor data are not read.

    Raises:
        FormatError: The file is no GGUF file, is truncated, or its header breaks a rule of the format, a
            limit of this module, or names a type that is not in `blocks`.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            refuse(path, "must be a regular file", "something else")
        with path.open("rb") as file:
            return _Reader(path, file, size, blocks).header()
    except OSError as error:
        got = f"{type(error).__name__}: {error.strerror}"
        refuse(path, "must be readable", got, "Check its permissions.")


def refuse(path: Path, rule: str, got: str, remedy: str = "Get another copy of it.") -> NoReturn:
    """Raise the FormatError of a GGUF file."""
    message = f"{path} {rule}. Got {got}. {remedy}"
    raise FormatError(message)


class _Reader:
    """A position in a file, which never goes beyond its end or the limit of headers."""

    def __init__(self, path: Path, file: BinaryIO, size: int, blocks: Mapping[int, Block]) -> None:
        self.path, self.file, self.size, self.blocks = path, file, size, blocks
        self.end = min(size, MAX_HEADER)
        self.at = 0
        self.items = 0

    def header(self) -> Header:
        magic = self.file.read(4)
        if magic != MAGIC:
            refuse(
                self.path,
                "must begin with the letters GGUF",
                f"{magic!r}",
                "Pass a GGUF file, or the folder of a Hugging Face model.",
            )
        self.at = 4
        version = self.number("I", "the version")
        if version & 0xFFFF == 0:
            refuse(self.path, "must be little-endian", "a big-endian file", "Convert it on a usual machine.")
        if version not in VERSIONS:
            remedy = "Convert it by a current llama.cpp."
            refuse(self.path, "must be of version 2 or 3", f"version {version}", remedy)
        n_tensors = self.count("tensors", MAX_TENSORS, 8 + 1 + 4 + 8 + 4 + 8)
        n_pairs = self.count("key-value pairs", MAX_PAIRS, 8 + 1 + 4 + 1)
        pairs = self.pairs(n_pairs)
        alignment = self._alignment(pairs)
        found = [self.tensor() for _ in range(n_tensors)]
        base = -(-self.at // alignment) * alignment
        tensors = tuple(self._placed(base, alignment, *one) for one in found)
        self._check_apart(tensors)
        return Header(self.path, version, pairs, tensors)

    def pairs(self, n: int) -> dict[str, Value]:
        pairs: dict[str, Value] = {}
        for _ in range(n):
            key = self.text(MAX_NAME, "a key")
            if key in pairs:
                refuse(self.path, "must give each key once", f"{short(key)} twice")
            pairs[key] = self.value(self.number("I", f"the type of {short(key)}"), key)
        name = pairs.get("general.architecture")
        if not isinstance(name, str) or not (0 < len(name) <= 64 and _is_word(name)):
            refuse(self.path, "must name its general.architecture by a word", short(name))
        return pairs

    def value(self, kind: int, key: str) -> Value:
        if kind == _STRING:
            return self.text(MAX_TEXT, short(key))
        if kind == _ARRAY:
            return self.array(key)
        if kind not in _NUMBERS:
            refuse(self.path, f"must give {short(key)} a type of the format", f"type {kind}")
        number = self.number(_NUMBERS[kind], short(key))
        if kind == _BOOL:
            if number not in (0, 1):
                refuse(self.path, f"must give {short(key)} a truth value", f"{number}")
            return bool(number)
        return number

    def array(self, key: str) -> Value:
        kind = self.number("I", f"the type of {short(key)}")
        if kind == _ARRAY:
            refuse(self.path, f"must hold no array of arrays, as {short(key)} is", "one", "Convert it anew.")
        if kind != _STRING and kind not in _NUMBERS:
            refuse(self.path, f"must give the items of {short(key)} a type of the format", f"type {kind}")
        width = 8 if kind == _STRING else struct.calcsize(_NUMBERS[kind])
        n = self.count(f"items of {short(key)}", MAX_ITEMS, width)
        self.items += n
        if self.items > MAX_ITEMS:
            refuse(self.path, f"must hold at most {MAX_ITEMS:,} items in its arrays", f"{self.items:,}")
        if kind == _STRING:
            for _ in range(n):
                self.text(MAX_TEXT, f"an item of {short(key)}")
            return None
        data = self.take(n * width, short(key))
        return list(struct.unpack(f"<{n}{_NUMBERS[kind]}", data)) if n <= _KEPT else None

    def tensor(self) -> tuple[str, tuple[int, ...], Block, int]:
        name = self.text(MAX_NAME, "a tensor's name")
        axes = self.number("I", f"the axes of {short(name)}")
        if not 1 <= axes <= MAX_AXES:
            refuse(self.path, f"must give {short(name)} 1 to {MAX_AXES} axes", f"{axes}")
        shape = tuple(self.number("Q", f"the shape of {short(name)}") for _ in range(axes))[::-1]
        if not all(1 <= length < 2**40 for length in shape):
            refuse(self.path, f"must give {short(name)} axes of 1 and more", f"the shape {shape}")
        kind = self.number("I", f"the type of {short(name)}")
        if kind not in self.blocks:
            known = ", ".join(sorted(block.name for block in self.blocks.values()))
            refuse(
                self.path,
                f"must store {short(name)} in a type that the installed gguf knows",
                f"type {kind}",
                f"Known are {known}. Quantise it to one of these, or update gguf.",
            )
        block = self.blocks[kind]
        if shape[-1] % block.items:
            rule = f"must store rows of {short(name)} in whole blocks of {block.items} ({block.name})"
            refuse(self.path, rule, f"rows of {shape[-1]}")
        return name, shape, block, self.number("Q", f"the place of {short(name)}")

    def _placed(
        self, base: int, alignment: int, name: str, shape: tuple[int, ...], block: Block, offset: int
    ) -> TensorInfo:
        start = base + offset
        stop = start + math.prod(shape) // block.items * block.size
        if offset % alignment:
            refuse(self.path, f"must align {short(name)} to {alignment} bytes", f"the offset {offset}")
        if stop > self.size:
            refuse(
                self.path,
                f"must hold {stop:,} bytes for {short(name)} of shape {shape} ({block.name})",
                f"a file of {self.size:,}",
                "It was truncated or is no model: get another copy of it.",
            )
        return TensorInfo(name, shape, block, start, stop)

    def _check_apart(self, tensors: tuple[TensorInfo, ...]) -> None:
        """Tensors that share bytes would unpack to many times the file."""
        seen: set[str] = set()
        for tensor in tensors:
            if tensor.name in seen:
                refuse(self.path, "must give each tensor once", f"{short(tensor.name)} twice")
            seen.add(tensor.name)
        ordered = sorted(tensors, key=lambda tensor: tensor.start)
        for one, other in itertools.pairwise(ordered):
            if other.start < one.stop:
                got = f"{short(one.name)} and {short(other.name)} in the same bytes"
                refuse(self.path, "must store each tensor in bytes of its own", got)

    def _alignment(self, pairs: Mapping[str, Value]) -> int:
        value = pairs.get("general.alignment", 32)
        if not is_integer(value) or not 8 <= value <= 2**20 or value & (value - 1):
            rule = "must give general.alignment a power of two from 8 to 1,048,576"
            refuse(self.path, rule, short(value))
        return value

    def count(self, what: str, most: int, each: int) -> int:
        """A count of things of at least `each` bytes."""
        n = self.number("Q", f"the number of {what}")
        if n > most:
            refuse(self.path, f"must hold at most {most:,} {what}", f"{n:,}")
        if n * each > self.end - self.at:
            rest = self.end - self.at
            refuse(self.path, f"must hold the {n:,} {what} that it counts", f"{rest:,} bytes for them")
        return n

    def text(self, most: int, what: str) -> str:
        length = self.number("Q", f"the length of {what}")
        if length > most:
            refuse(self.path, f"must hold {what} of at most {most:,} bytes", f"{length:,}")
        data = self.take(length, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            refuse(self.path, f"must hold {what} in UTF-8", f"{data[:40]!r}")

    def number(self, code: str, what: str) -> int:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code), what))[0]

    def take(self, n: int, what: str) -> bytes:
        """The next n bytes."""
        if n > self.end - self.at:
            whole = self.end == self.size
            rule = "its whole header" if whole else f"a header of at most {MAX_HEADER:,} bytes"
            remedy = "It was truncated or is no model: get another copy of it."
            refuse(self.path, f"must hold {rule}", f"an end within {what}", remedy)
        data = self.file.read(n)
        self.at += n
        if len(data) != n:
            refuse(self.path, "must stay as it is while it is read", f"an end within {what}")
        return data


def _is_word(text: str) -> bool:
    return text.isascii() and text.replace("-", "").replace("_", "").isalnum()


__all__ = ["Block", "Header", "TensorInfo", "is_gguf", "read_header", "refuse"]
