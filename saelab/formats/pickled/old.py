"""Pickles that are no zip files, read without running anything that they name: of `pickle.dump`, where each
tensor's storage is a torch.save of its own within bytes, and of torch.save before torch 1.6.

mats_sae_training, SAELens to 0.3, PatchSAE and ViT-Prisma write `.pkl` or `.pkl.gz` with pickle.dump. The
old torch.save is five pickles, a magic number, a version, the machine, the object and the keys of its
storages, and then each storage, how many numbers it has and these. torch's own reader of it looks into source
files and archives that a file names, and allocates what a pickle claims, so this one is our own.

A storage may claim no more than the bytes that are left of its file, all of them together no more than the
file; tensors lie within their storages. A pickle.dump takes the tensors' memory twice while it is read, their
bytes as pickled and their numbers, as with pickle itself.
"""

from __future__ import annotations

import io
import struct
import types
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from saelab.formats.pickled.unpickling import Kept, Unpickler, check_pickle
from saelab.formats.reading import refuse
from saelab.types import short

MAX_PICKLE = 2**20
"""Bytes of the pickles of a file, without its numbers."""

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}  # fmt: skip


class _Stream:
    """A file that refuses to read beyond its end, where others would first allocate what is asked for."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = file.seek(0, io.SEEK_END)
        file.seek(0)
        self.tell, self.seek, self.readline = file.tell, file.seek, file.readline

    def left(self) -> int:
        return self.size - self.tell()

    def read(self, n: int) -> bytes:
        self._within(n)
        return self._file.read(n)

    def skim(self, n: int) -> bytes | range:
        """`read`, but of numbers only how many they are."""
        if n <= MAX_PICKLE:
            return self.read(n)
        self._within(n)
        self._file.seek(n, io.SEEK_CUR)
        return range(n)

    def readinto(self, buffer: Any) -> int:
        self._within(len(buffer))
        return self._file.readinto(buffer)  # type: ignore[attr-defined]

    def _within(self, n: int) -> None:
        if not 0 <= n <= self.left():
            msg = f"{n:,} bytes, of which {self.left():,} are there"
            raise EOFError(msg)


class _Storage(Kept):
    """A storage, as a flat tensor."""

    __slots__ = ()


class _Call:
    """A function that a pickle can call but not alter."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)

    def __call__(self, *args: Any) -> Any:
        return object.__getattribute__(self, "_function")(*args)


class _Reader:
    """What is read of one file, and what may still be: bytes of pickles besides their payload, bytes of
    storages."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.header, self.storages = path, MAX_PICKLE, size

    def pickled(self, stream: _Stream, unpickler: Callable[[Any], Unpickler]) -> Any:
        """The next pickle of a stream."""
        start = stream.tell()
        skimmed = types.SimpleNamespace(read=stream.skim, readline=stream.readline, tell=stream.tell)
        self.header -= check_pickle(self.path, skimmed, self.header)
        stream.seek(start)
        return unpickler(stream).load()

    def saved(self, stream: _Stream) -> Any:
        """The object of an old torch.save, whose magic number was read, to the end of the stream."""
        version, machine = (self.pickled(stream, Unpickler) for _ in range(2))
        if version != _VERSION or not isinstance(machine, dict) or machine.get("little_endian") is not True:
            refuse(f"{self.path} must be a torch.save of version {_VERSION}, little endian", short(version))
        unpickler = _OfSave(stream, self)
        data = self.pickled(stream, lambda _: unpickler)
        keys = self.pickled(stream, Unpickler)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            refuse(f"{self.path} must name its storages", short(keys))
        if sorted(keys) != sorted(unpickler.storages):
            refuse(f"{self.path} must store what its tensors lie in", f"{len(keys)} others")
        for key in keys:
            numbers = unpickler.storages[key].tensor
            if struct.unpack("<q", stream.read(8)) != (len(numbers),):
                refuse(f"Storages in {self.path} must be as large as tensors say", "another size")
            stream.readinto(numbers.view(torch.uint8).numpy())
        self.ended(stream)
        return data

    def ended(self, stream: _Stream) -> None:
        if stream.left():
            refuse(f"{self.path} must end where its pickle does", f"{stream.left():,} bytes after it")

    def storage(self, dtype: Any, numel: Any) -> _Storage:
        """Room for numbers, which are read later."""
        if not isinstance(dtype, torch.dtype) or type(numel) is not int or numel < 0:
            refuse(f"Storages in {self.path} must be of a known type and size", short((dtype, numel)))
        self.storages -= numel * dtype.itemsize
        if self.storages < 0:
            refuse(f"Storages in {self.path} must lie within it", f"{numel:,} numbers of {dtype}")
        return _Storage(torch.empty(numel, dtype=dtype))

    def nested(self, data: Any) -> _Storage:
        """The storage that bytes within a pickle are."""
        if not isinstance(data, bytes):
            refuse(f"Storages in {self.path} must be bytes", short(type(data).__name__))
        stream = _Stream(io.BytesIO(data))
        if self.pickled(stream, Unpickler) != _MAGIC:
            refuse(f"Storages in {self.path} must be those of torch.save", "other bytes")
        found = self.saved(stream)
        if not isinstance(found, _Storage):
            refuse(f"Storages in {self.path} must be storages", short(type(found).__name__))
        return found


class _Old(Unpickler):
    def __init__(self, stream: _Stream, reader: _Reader) -> None:
        super().__init__(stream)  # type: ignore[arg-type]
        self.reader = reader

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.cuda") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _Call(self._rebuild)
        return super().find_class(module, name)

    def _rebuild(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Kept:
        shaped = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= 8
        if not (
            isinstance(storage, _Storage)
            and shaped
            and all(type(n) is int and 0 <= n < 2**48 for n in (offset, *size, *stride))
        ):
            refuse(f"Tensors in {self.reader.path} must lie in storages", short((offset, size, stride)))
        return Kept(storage.tensor.as_strided(size, stride, offset))  # refuses what is not within it


class _OfDump(_Old):
    """Of pickle.dump: storages are nested."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _Call(self.reader.nested)
        return super().find_class(module, name)


class _OfSave(_Old):
    """Of the old torch.save: storages come after the pickle."""

    def __init__(self, stream: _Stream, reader: _Reader) -> None:
        super().__init__(stream, reader)
        self.storages: dict[str, _Storage] = {}

    def persistent_load(self, pid: Any) -> Any:
        fields = list(pid) if isinstance(pid, tuple) else []
        if fields[:1] == ["module"] and len(fields) == 4:  # a class and its source, which is not looked at
            return fields[1]
        if fields[:1] != ["storage"] or not 5 <= len(fields) <= 6:
            refuse(f"{self.reader.path} must refer to nothing but storages", short(pid))
        dtype, key, numel, view = fields[1], fields[2], fields[4], fields[5:]
        if not isinstance(key, str) or view not in ([], [None]):
            refuse(f"Storages in {self.reader.path} must be whole", short(view))
        if key not in self.storages:
            self.storages[key] = self.reader.storage(dtype, numel)
        found = self.storages[key]
        if found.tensor.dtype != dtype or len(found.tensor) != numel:
            refuse(f"Storages in {self.reader.path} must have one size each", short((dtype, numel)))
        return found


def load(path: Path, at: Path) -> Any:
    """What was pickled. at: the file; path: its name for messages. Raises FormatError, or what pickle
    raises."""
    with at.open("rb") as file:
        stream = _Stream(file)
        reader = _Reader(path, stream.size)
        found = reader.pickled(stream, lambda it: _OfDump(it, reader))
        if type(found) is int and found == _MAGIC:
            return reader.saved(stream)
        reader.ended(stream)
        return found
