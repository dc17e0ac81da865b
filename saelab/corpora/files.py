"""Files that corpora are read from: which they are, what they are called, and their text."""

from __future__ import annotations

import codecs
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from saelab.files import path_of
from saelab.types import CorpusError, nearest

COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
"""Read as what is in them, by the end of their name."""
PEEKED = 8_000
"""Bytes in which a NUL says that a file is binary; the rule, and the number, are git's."""
CHUNK = 2**20

_hashes: dict[tuple[str, int, int], str] = {}


@dataclass(frozen=True)
class File:
    """A file as it was when its corpus was made."""

    path: Path
    name: str
    """its path from the folder that holds all files of the corpus, with /"""
    size: int
    mtime_ns: int

    @property
    def hash(self) -> str:
        """SHA-256 of its bytes, once a process as long as it stays the same."""
        self.check()
        key = (str(self.path), self.size, self.mtime_ns)
        if key not in _hashes:
            with self.path.open("rb") as opened:
                _hashes[key] = hashlib.file_digest(opened, "sha256").hexdigest()
        return _hashes[key]

    def check(self) -> None:
        """Raises CorpusError where the file is gone or another one: a corpus is the same at each reading."""
        found = _stat(self.path)
        if (found.st_size, found.st_mtime_ns) != (self.size, self.mtime_ns):
            message = (
                f"A corpus's files must stay as they are. Got {self.path} changed since the corpus was made: "
                f"{found.st_size:,} bytes, then {self.size:,}. Make the corpus again."
            )
            raise CorpusError(message)


def find(paths: str | Path | Iterable[str | Path], suffix: str | None) -> list[File]:
    """The files of a path, a folder (all in it that end in `suffix`, or all; hidden ones left out), a glob,
    or a list of those: in the order of the list, sorted within each, each file once. Raises CorpusError."""
    several = [paths] if isinstance(paths, str | Path) else paths
    if not isinstance(several, Iterable) or isinstance(several, bytes):
        message = f"paths must be a path, a glob or a list of them. Got {paths!r}. Pass e.g. 'folder/*.txt'."
        raise CorpusError(message)
    bases, found = [], []
    for path in several:
        base, matches = _matches(path, suffix)
        bases.append(base)
        found += matches
    if not found:
        message = f"A corpus needs at least one file. Got {paths!r}. Pass a path, a folder or a glob."
        raise CorpusError(message)
    common = os.path.commonpath(bases)
    files = []
    for path in dict.fromkeys(found):
        stat = _stat(path)
        name = Path(os.path.relpath(path, common)).as_posix()
        files.append(File(path, name, stat.st_size, stat.st_mtime_ns))
    return files


def check_encoding(encoding: str) -> None:
    """Raises CorpusError for a name that Python does not know."""
    try:
        known = isinstance(encoding, str) and bool(io.TextIOWrapper(io.BytesIO(), encoding))
    except (LookupError, ValueError):  # also for a codec that makes no text, such as "hex"
        known = False
    if not known:
        message = (
            f"encoding must be one that Python knows. Got {encoding!r}. Pass e.g. 'utf-8', 'latin-1' or "
            "'utf-16'."
        )
        raise CorpusError(message)


@contextmanager
def reading(file: File, encoding: str) -> Iterator[io.TextIOWrapper]:
    """The file's text, unpacked, line ends as "\\n", without a byte order mark. Raises CorpusError for what
    is binary, in another encoding, damaged or gone."""
    codec = codecs.lookup(encoding).name
    try:
        with _unpacked(file) as raw:
            _check_text(file, raw.peek(PEEKED)[:PEEKED], codec)
            yield io.TextIOWrapper(raw, "utf-8-sig" if codec == "utf-8" else codec)
    except UnicodeDecodeError:
        raise _undecodable(file, encoding) from None
    except OSError as error:
        raise unreadable(file.path, error) from error


def unreadable(path: Path | str, error: Exception) -> CorpusError:
    """What to raise for a file that its reader refuses."""
    message = f"A corpus's files must be readable. Got {path}: {error}. Get the file again, or leave it out."
    return CorpusError(message)


def _matches(path: str | Path, suffix: str | None) -> tuple[Path, list[Path]]:
    """(the folder that they are named from, the files)."""
    if not isinstance(path, str | Path):
        message = f"Each path must be a string or a Path. Got {path!r}. Pass e.g. 'folder/*.txt'."
        raise CorpusError(message)
    path = path_of(path, "A corpus's path", CorpusError).expanduser().absolute()
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        try:
            inside = [p for p in sorted(path.rglob("*")) if p.is_file() and not _hidden(p.relative_to(path))]
        except OSError as error:
            raise unreadable(path, error) from error
        wanted = [p for p in inside if suffix in (None, _suffix_within(p))]
        if not wanted:
            ends = ", ".join(sorted({p.suffix or p.name for p in inside})[:8]) or "nothing"
            message = (
                f"A folder must hold {suffix or ''} files. Got {path}, which holds {ends}. "
                f"Pass a glob of the files that are meant, such as '{path}/*.md'."
            )
            raise CorpusError(message)
        return path, wanted
    # a folder that is there by that very name is no pattern
    there = next(p for p in path.parents if p.is_dir())
    wild = [i for i, name in enumerate(path.parts) if i >= len(there.parts) and any(c in name for c in "*?[")]
    base = Path(*path.parts[: wild[0]]) if wild else path.parent
    found = sorted(p for p in base.glob("/".join(path.parts[wild[0] :])) if p.is_file()) if wild else []
    if not found:
        beside = [p.name for p in base.iterdir()] if base.is_dir() else []
        message = (
            f"A path must match a file. Got {path}, which matches none. {nearest(path.name, beside)}"
            f"Pass a file, a folder or a glob that is there{'' if base.is_dir() else f'; {base} is not'}."
        )
        raise CorpusError(message)
    return base, found


def _hidden(path: Path) -> bool:
    return any(name.startswith(".") for name in path.parts)


def _suffix_within(path: Path) -> str:
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix.lower()


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise unreadable(path, error) from error


def _unpacked(file: File) -> io.BufferedReader:
    import pyarrow

    file.check()
    compression = "detect" if file.path.suffix in COMPRESSED else None
    stream = pyarrow.input_stream(str(file.path), compression=compression)
    return io.BufferedReader(stream, CHUNK)


def _check_text(file: File, head: bytes, codec: str) -> None:
    remedy = "Leave it out."
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        remedy = "It begins as UTF-16 does: pass encoding='utf-16'."
    if b"\0" in head and not codec.startswith(("utf-16", "utf-32")):
        at = f"byte {head.index(0):,} of {file.path}"
        message = f"A text file must hold no NUL bytes, which binary files do. Got one at {at}. {remedy}"
        raise CorpusError(message)


def _undecodable(file: File, encoding: str) -> CorpusError:
    """Reads the file again up to the first byte that is no text, which its reader cannot tell."""
    decoder = codecs.getincrementaldecoder(encoding)()
    before, what = 0, "bytes"
    with _unpacked(file) as raw:
        chunk = b"-"
        while chunk:
            chunk = raw.read(CHUNK)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                before += error.start - pending
                what = f"byte 0x{error.object[error.start]:02x}"
                break
            before += len(chunk)
    message = (
        f"Text must be in its encoding, here {encoding}. Got {what} at byte {before:,} of {file.path}. "
        "Pass the file's own encoding= (old Western files are 'cp1252'), or leave the file out."
    )
    return CorpusError(message)
