"""The one place where files of unknown origin are read: nothing in them is executed, and nothing is allocated
on the word of a header.

Every fault is a FormatError: a file that is missing, empty, truncated, a folder, of another kind or too
large; a tensor that is larger than what is stored of it, of a foreign dtype, or not finite.
"""

from __future__ import annotations

import contextlib
import math
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, NoReturn

import numpy as np
import safetensors
import torch
from torch import Tensor

from saelab.files import parse_json
from saelab.formats.zips import check_zip
from saelab.tensors import DTYPES, MAX_HEADER, is_finite
from saelab.types import FormatError, short

INDEX = ".index.json"
"""How the name of a file ends that lists the tensors of several files."""
MAX_JSON = 2**24
"""Bytes of a JSON file."""
MAX_DEPTH = 32
"""Levels of a JSON file."""
MAX_NPZ = 2**36
"""Bytes that an npz or gzip file may unpack to, at most."""
MAX_PACKING = 64
"""How many times its own size an npz or gzip file may unpack to, at most."""

_NAMES = {name: str(dtype).removeprefix("torch.") for name, dtype in DTYPES.items()}
"""What safetensors calls a dtype -> what torch does."""


class TensorInfo(NamedTuple):
    """What a header says of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    """As torch names it, without `torch.`."""


@dataclass(frozen=True)
class TensorFile:
    """A file of named tensors whose header was read and checked, but not its tensors. Tensors of nested dicts
    are named by their path, as in "state_dict.W_enc"."""

    path: Path
    info: Mapping[str, TensorInfo]
    _read: Callable[[str], Tensor]
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What a pickle holds besides tensors: numbers, strings and lists of these, named in the same way."""

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor on the CPU, each number read once; floating point in `dtype`, if given. Without
        conversion it stays mapped, as safetensors leaves it: what is written to it does not reach the file.
        Raises FormatError where it is missing, NaN or infinite."""
        if name not in self.info:
            refuse(f"{self.path} must hold the tensor {name!r}", f"only {short(sorted(self.info))}")
        with refusing(self.path):
            stored = self._read(name).detach()
            integral = not stored.is_floating_point()
            kind = stored.dtype if integral or dtype is None else dtype
            # another tensor may lie in the same memory
            alone = stored.untyped_storage().nbytes() == stored.numel() * stored.element_size()
            kept = stored if kind == stored.dtype and alone else torch.empty_like(stored, dtype=kind)
            # a piece is still in the cache when it is checked
            for to, by in _pieces(kept, stored):
                if to.data_ptr() != by.data_ptr():
                    to.copy_(by)
                if not integral and not is_finite(to):
                    refuse(
                        f"{name} in {self.path} must be finite in {str(kind).removeprefix('torch.')}",
                        "NaN or infinite values",
                        "Get another copy of it.",
                    )
        return kept

    def raw(self, name: str) -> Tensor:
        """A copy of one tensor as it is, NaN and all: for statistics, where NaN says that there are none."""
        with refusing(self.path):
            return self._read(name).detach().clone()

    def within(self, prefix: str) -> TensorFile:
        """The part of it whose names start with `prefix`, without it."""
        n = len(prefix)
        return TensorFile(
            self.path,
            {name[n:]: info for name, info in self.info.items() if name.startswith(prefix)},
            lambda name: self._read(prefix + name),
            {name[n:]: value for name, value in self.extra.items() if name.startswith(prefix)},
        )


def _pieces(copy: Tensor, stored: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both in pieces, flat, in the order of their memory: of 1 MB where one is copied to the other."""
    if stored.is_contiguous():
        copy, stored = copy.view(-1), stored.view(-1)
    elif stored.ndim == 2 and stored.t().is_contiguous():
        copy, stored = copy.t().reshape(-1), stored.t().reshape(-1)
    else:
        copy.copy_(stored)
        copy = stored = copy.reshape(-1)
    size = 2**18 if copy.data_ptr() != stored.data_ptr() else 2**24
    yield from zip(copy.split(size), stored.split(size), strict=True)


def refuse(rule: str, got: str, remedy: str = "The file is damaged or of another format.") -> NoReturn:
    """Raise FormatError: rule, value received, remedy."""
    msg = f"{rule}. Got {got}. {remedy}"
    raise FormatError(msg)


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file (they raise anything) into a FormatError."""
    try:
        yield
    except FormatError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        msg = f"{path} must be readable and whole. Got {said}. Copy it again, or check what it is."
        raise FormatError(msg) from error


def inside(root: Path, name: str | None) -> Path:
    """`root / name` for a relative name that stays within root; root for None. Raises FormatError."""
    if name is None:
        return root
    parts = PurePosixPath(name.replace("\\", "/")) if isinstance(name, str) else None
    if (
        parts is None
        or parts.is_absolute()
        or ".." in parts.parts
        or "\0" in str(name)
        or re.match(r"[A-Za-z]:", name)
    ):
        refuse("A subfolder must be a relative path within its folder", short(name), "Pass its name.")
    return root / parts


def regular(path: Path, limit: int | None = None) -> int:
    """Size in bytes of a regular file (links are followed, as the hub's cache needs). Raises FormatError."""
    with refusing(path):
        if not path.exists():
            refuse(f"{path} must exist", "no such file", "Copy the whole folder again.")
        if not path.is_file():
            refuse(f"{path} must be a file", "a folder" if path.is_dir() else "something else")
        size = path.stat().st_size
    if size == 0:
        refuse(f"{path} must hold something", "an empty file", "Copy it again.")
    with refusing(path):
        _check_start(path, size)
    if limit is not None and size > limit:
        refuse(f"{path} must be of at most {limit:,} bytes", f"{size:,}")
    return size


def _check_start(path: Path, size: int) -> None:
    """What is saved in place of a file when a download goes wrong is said to be that."""
    with path.open("rb") as file:
        start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        stated = re.search(rb"size (\d{1,15})", start)
        what = f" of {int(stated[1]):,} bytes" if stated else ""
        refuse(
            f"{path} must be the file itself",
            f"a Git LFS pointer, {size} bytes that stand for a file{what}",
            "Fetch it: git lfs pull, or huggingface_hub.hf_hub_download.",
        )
    if re.match(rb"<(!doctype html|html|head|\?xml)\b", start, re.IGNORECASE):
        refuse(
            f"{path} must be the file itself",
            "a web page that was saved in its place, as of a login or an error",
            "Download it by its direct link: /resolve/main/ instead of /blob/main/ on the Hugging Face hub.",
        )


def json_file(path: Path) -> dict[str, Any]:
    """A JSON object: at most MAX_JSON bytes and MAX_DEPTH levels, no NaN, no key twice in an object."""
    regular(path, MAX_JSON)
    with refusing(path):
        data = parse_json(path.read_bytes(), path, unique=True)
    level: list[Any] = [data]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            refuse(f"{path} must have at most {MAX_DEPTH} levels", "more")
        inner = [list(v.values()) if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
        level = [item for items in inner for item in items]
    return data


def yaml_file(path: Path) -> dict[str, Any]:
    """A YAML mapping of at most MAX_JSON bytes, without aliases, which can stand for any number of values."""
    import yaml

    regular(path, MAX_JSON)
    with refusing(path):
        text = path.read_bytes().decode("utf-8")
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                refuse(f"{path} must have no aliases", f"*{short(event.anchor)}")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                refuse(f"{path} must have at most {MAX_DEPTH} levels", "more")
        data = yaml.safe_load(text)
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        refuse(f"{path} must hold a YAML mapping", short(data))
    return data


def safetensors_file(path: Path) -> TensorFile:
    """A safetensors file; its own library checks that header and data fit each other."""
    size = regular(path)
    with refusing(path), path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        refuse(f"The header of {path} must lie within the file and {MAX_HEADER:,} bytes", f"{length:,} bytes")
    with refusing(path), path.open("rb") as file:
        file.seek(8)
        # of a name that comes twice, readers take one or the other
        parse_json(file.read(length), path, "header of a safetensors file", unique=True)
    info = {}
    with refusing(path), safetensors.safe_open(str(path), framework="pt") as file:
        for name in file.keys():
            lazy = file.get_slice(name)
            info[name] = described(path, name, lazy.get_shape(), _NAMES.get(lazy.get_dtype()))

    def read(name: str) -> Tensor:
        with safetensors.safe_open(str(path), framework="pt") as file:
            return file.get_tensor(name)

    return TensorFile(path, info, read)


def npz_file(path: Path) -> TensorFile:
    """A numpy archive without object arrays, which unpacks to at most MAX_PACKING times its own size."""
    size = regular(path)
    info = {}
    with refusing(path):
        check_zip(path, path)
    with refusing(path), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        total = sum(entry.file_size for entry in entries)
        if total > min(MAX_NPZ, MAX_PACKING * size):
            refuse(f"{path} must unpack to at most {min(MAX_NPZ, MAX_PACKING * size):,} bytes", f"{total:,}")
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            if name == entry.filename or name in info:
                refuse(f"{path} must hold .npy arrays, each once", short(entry.filename))
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }
                shape, _, dtype = header[version](file)
            info[name] = described(path, name, shape, dtype.name)
            if math.prod(shape) * dtype.itemsize > entry.file_size:
                refuse(f"{short(name)} in {path} must be stored whole", f"shape {shape}, less data")

    def read(name: str) -> Tensor:
        with np.load(path, allow_pickle=False) as arrays:
            return torch.from_numpy(arrays[name])

    return TensorFile(path, info, read)


def described(path: Path, name: str, shape: Any, dtype: str | None) -> TensorInfo:
    if dtype is None or dtype not in _NAMES.values():
        refuse(
            f"{short(name)} in {path} must be of a dtype out of {', '.join(_NAMES.values())}", short(dtype)
        )
    return TensorInfo(tuple(int(n) for n in shape), dtype)
