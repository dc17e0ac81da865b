"""Files of torch.save and of pickle.dump, gzipped or not: which reader reads them, and what is in them.

A plain state dict in a zip is read by torch's own reader of weights; what names other things, and what is
older, by that of unpickling.py, for which such names stand for nothing that runs.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
import tempfile
import types
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.formats.pickled import old
from saelab.formats.pickled.unpickling import Inert, Kept, Unpickler, check_pickle, names_only_tensors
from saelab.formats.reading import (
    MAX_NPZ,
    MAX_PACKING,
    TensorFile,
    TensorInfo,
    described,
    refuse,
    refusing,
    regular,
)
from saelab.formats.zips import check_zip
from saelab.tensors import MAX_HEADER
from saelab.types import short

_PIECE = 2**20
MAX_LEVELS = 64
"""Levels of dicts and modules, one within another."""


# what torch.load asks of a pickle module
_RESTRICTED = types.SimpleNamespace(__name__="restricted", Unpickler=Unpickler)


def torch_file(path: Path) -> TensorFile:
    """The tensors of a file of torch.save or pickle.dump, those of nested dicts and modules too, and the
    plain values beside them.

    A gzipped one is unpacked into a temporary file first, to at most MAX_PACKING times its size. Of a zip,
    which torch.save writes since torch 1.6, the storages are mapped, not read: torch takes their sizes from
    the pickle, and only within a mapping a wrong one cannot reach beyond the file. It must be stored
    uncompressed, as torch writes it. Others are read into memory, see old.py.
    """
    regular(path)
    with refusing(path), _unpacked(path) as at:
        stored = None
        if _starts(at, b"PK\x03\x04"):
            data, stored = _zipped(path, at)
        elif _starts(at, b"ustar", 257):
            refuse(
                f"{path} must be a file of torch 0.1.10 or later", "a tar file", "Load it with that torch."
            )
        else:
            data = old.load(path, at)
        if isinstance(data, (list, tuple)) and all(isinstance(item, dict) for item in data):
            data = dict(enumerate(data))
        if isinstance(data, dict) and all(type(key) is int for key in data):  # of a model's layers
            data = {str(key): item for key, item in data.items()}
        tensors: dict[str, Tensor] = {}
        extra: dict[str, Any] = {}
        for name, value in _leaves(path, data, "", 0, set()):
            if name in tensors or name in extra:
                refuse(f"{path} must have each name once", short(name))
            (tensors if isinstance(value, Tensor) else extra)[name] = value
    if not tensors:
        refuse(f"{path} must hold a dict of named tensors", short(type(data).__name__))
    info: dict[str, TensorInfo] = {}
    for name, value in tensors.items():
        if value.layout != torch.strided or value.device.type != "cpu":
            refuse(f"{path} must hold only dense tensors", f"{short(name)}, {value.layout}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            refuse(f"{short(name)} in {path} must be stored whole", f"shape {tuple(value.shape)}, less data")
        info[name] = described(path, name, value.shape, str(value.dtype).removeprefix("torch."))
    if stored is None:
        return TensorFile(path, info, tensors.__getitem__, extra)
    storages = {s.data_ptr(): s.nbytes() for s in (value.untyped_storage() for value in tensors.values())}
    # a storage that no tensor is read from may be there: an optimizer's, in a list
    left = list(stored)
    for nbytes in sorted(storages.values(), reverse=True):
        if nbytes not in left:
            refuse(f"The tensors in {path} must be as large as what is stored of them", "other sizes")
        left.remove(nbytes)
    return TensorFile(path, info, tensors.__getitem__, extra)


def _starts(path: Path, magic: bytes, at: int = 0) -> bool:
    with path.open("rb") as file:
        file.seek(at)
        return file.read(len(magic)) == magic


def _zipped(path: Path, at: Path) -> tuple[Any, list[int]]:
    """(what was saved, sizes of the storages) of a zip of torch.save. path: its name for messages."""
    size = at.stat().st_size
    check_zip(path, at)
    with zipfile.ZipFile(at) as archive:
        entries = archive.infolist()
        if any(e.filename.endswith("constants.pkl") for e in entries):
            refuse(f"{path} must hold tensors", "a TorchScript program", "Save its state_dict instead.")
        if any(e.compress_type != zipfile.ZIP_STORED or e.file_size > size for e in entries):
            refuse(f"{path} must be stored uncompressed, as torch writes it", "packed entries")
        pickles = [e for e in entries if e.filename.endswith("data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MAX_HEADER:
            refuse(f"{path} must hold one data.pkl of at most {MAX_HEADER:,} bytes", f"{len(pickles)} files")
        pickled = archive.read(pickles[0])
        check_pickle(path, pickled, MAX_HEADER)
        stored = sorted(e.file_size for e in entries if "/data/" in e.filename)
    _check_alike(path, at, [e.filename for e in entries], pickles[0].filename, pickled)
    load = functools.partial(torch.load, str(at), mmap=True, map_location="cpu")
    if names_only_tensors(pickled):
        with contextlib.suppress(pickle.UnpicklingError):  # of what it does not know
            return load(weights_only=True), stored
    return load(weights_only=False, pickle_module=_RESTRICTED), stored


def _check_alike(path: Path, at: Path, names: list[str], name: str, pickled: bytes) -> None:
    """What was looked at by Python's reader must be what torch's reads."""
    seen = torch._C.PyTorchFileReader(str(at))
    folder = name.removesuffix("data.pkl")
    found = [folder + record for record in seen.get_all_records()]
    if found != names or seen.get_record("data.pkl") != pickled:
        refuse(f"{path} must have one table of contents", "another for torch than for Python")


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """The file itself, or what it unpacks to where it is gzipped: one member, whole, and nothing after it."""
    if not _starts(path, b"\x1f\x8b"):
        yield path
        return
    limit = min(MAX_NPZ, MAX_PACKING * path.stat().st_size)
    # mapped storages outlive the folder, where the system lets them
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        at = Path(folder) / "unpacked"
        unpack = zlib.decompressobj(wbits=31)
        written = 0
        with path.open("rb") as packed, at.open("wb") as file:
            while not unpack.eof:
                piece = unpack.unconsumed_tail or packed.read(_PIECE)
                out = unpack.decompress(piece, _PIECE)
                written += file.write(out)
                if written > limit:
                    refuse(f"{path} must unpack to at most {limit:,} bytes", "more", "Unpack it first.")
                if not (piece or out):
                    refuse(f"{path} must be a whole gzip file", "one that is cut off", "Copy it again.")
            if unpack.unused_data or packed.read(1):
                refuse(f"{path} must be one gzip member", "bytes after it")
        yield at


def _leaves(path: Path, value: Any, name: str, level: int, above: set[int]) -> Iterator[tuple[str, Any]]:
    """(name, tensor or plain value) of everything in dicts and modules, names joined by dots."""
    value = value.tensor if isinstance(value, Kept) else value
    if isinstance(value, Tensor) or value is None or isinstance(value, (bool, int, float, str)):
        yield name or "tensor", value
    elif isinstance(value, (dict, Inert)):
        if level > MAX_LEVELS or id(value) in above:
            refuse(f"{path} must have at most {MAX_LEVELS} levels of dicts", "more")
        above = above | {id(value)}
        for key, item in _items(value):
            if isinstance(key, str):
                inner = f"{name}.{key}" if name else key
                yield from _leaves(path, item, inner, level + 1, above)
    elif isinstance(value, (list, tuple)) and all(isinstance(v, (bool, int, float, str)) for v in value):
        yield name, list(value)
    elif isinstance(value, torch.dtype):
        yield name, str(value)
    elif isinstance(value, type) and issubclass(value, Inert):  # a function or class, by its name
        yield name, value.__qualname__


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    """What a value holds: parameters, buffers and submodules of a module, not the dicts they are kept in."""
    if isinstance(value, dict):
        yield from value.items()
        return
    yield "__class__", type(value).__qualname__
    attributes = vars(value)
    members = ("_parameters", "_buffers", "_modules", "_items")
    for member in members:
        if isinstance(attributes.get(member), dict):
            yield from attributes[member].items()
    for key, item in attributes.items():
        if key not in members and not (key.startswith("_") and isinstance(item, dict)):
            yield key, item
