"""Files that appear whole or not at all, and JSON that is read with care.

What is written gets its name by a rename, once it is complete and on the disk: its place holds the old
content or all of the new. What is read back is limited in size, UTF-8, and JSON without NaN; a file of ours
states its format and version (`Stamp`), by which another file, or one of a newer saelab, is known.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from saelab.errors import FormatError, SaelabError, StoreError, short

TENSOR_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".gz")
"""Of files that tensors of SAEs are read from."""
MAX_JSON_BYTES = 2**28
"""Bytes of a JSON file of ours, at most."""
_NUMBERS = itertools.count()


def path_of(path: Any, what: str = "A path", error: type[SaelabError] = StoreError) -> Path:
    """A path that the system can take, whether or not something is there.

    Args:
        path: What was given.
        what: What it is, for the message.
        error: What is raised.

    Raises:
        SaelabError: `error`, for something else than a path, and where a name is too long, has a NUL or half
            of a surrogate pair, or is a link that leads back to itself.
    """
    if isinstance(path, bytes):
        message = f"{what} must be a str or a pathlib.Path. Got bytes, {short(path)}. Pass os.fsdecode(path)."
        raise error(message)
    try:
        found = Path(path)
        os.fsencode(found)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            found.stat()
    except (TypeError, ValueError, OSError) as fault:
        got = fault.strerror if isinstance(fault, OSError) and fault.strerror else str(fault)
        message = f"{what} must be a path. Got {short(path)} ({got}). Pass a str or a pathlib.Path."
        raise error(message) from fault
    return found


def user_folder(kind: Literal["cache", "data"]) -> Path:
    """$SAELAB_CACHE or $SAELAB_DATA, else the user's folder of that kind on this system."""
    import platformdirs

    own = os.environ.get(f"SAELAB_{kind.upper()}")
    return Path(own).expanduser() if own else getattr(platformdirs, f"user_{kind}_path")("saelab")


def is_installed(path: Path) -> bool:
    """Whether it lies in saelab's own package, into which nothing is written."""
    return path.resolve().is_relative_to(Path(__file__).resolve().parent)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary file to write, which takes the place of `path` once it is complete and on the disk.

    Args:
        path: Its place, in a folder that exists. Where the block raises, it is left as it was.

    Yields:
        The temporary file's path, beside `path`.

    Raises:
        OSError: Where it cannot be written.
    """
    temporary = _beside(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """A temporary folder to fill, which takes the place of `path` once the block ends.

    Args:
        path: Its place. Where the block raises, it is left as it was.
        temporary: Where to make it, by default beside `path`. What is there is removed.

    Yields:
        The temporary folder's path.

    Raises:
        OSError: Where it cannot be written.
    """
    temporary = _beside(path) if temporary is None else temporary
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Where a folder lies while another takes its place: a process that was killed may leave it there."""
    return path.with_name(f".{path.name}-old")


def replace_folder(new: Path, path: Path) -> None:
    """Put the folder `new` at `path`; what was there goes only once the new one is in place.

    Where the system can exchange two folders (Linux, on most disks), one or the other is there at every
    moment. Elsewhere a process that is killed between two renames leaves none: see `restore_folder`.

    Args:
        new: A complete folder on the same disk; it is moved.
        path: Its place.

    Raises:
        OSError: Where it cannot; what was there is then in its place again.
    """
    old = set_aside(path)
    if not path.exists():
        new.replace(path)
    elif _exchange(new, path):
        # `new` is what was there, under a name by which it could be taken for an unfinished one
        shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(OSError):
            new.replace(old)
        shutil.rmtree(new, ignore_errors=True)
    else:
        shutil.rmtree(old, ignore_errors=True)
        path.replace(old)
        try:
            new.replace(path)
        except OSError:
            old.replace(path)
            raise
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(path: Path) -> None:
    """Put back what a process that was killed in `replace_folder` had set aside, or remove it where the new
    folder is in place. Only for whoever may write `path`.

    Raises:
        OSError: Where it cannot.
    """
    old = set_aside(path)
    if old.exists() and not path.exists():
        old.replace(path)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the disk cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # no Linux, or an old one
        return False
    here, exchange = -100, 2
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    if os.name == "nt":  # where folders cannot be opened
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def claim(path: Path, size: int) -> None:
    """Have the disk keep room for a file before anything is written to it: a full disk says so here, rather
    than in the middle, or by the signal that ends a process whose mapped file finds no room.

    Args:
        path: The file, which is made where it is not there; what it holds stays.
        size: Bytes that it will have.

    Raises:
        StoreError: Where there is not so much room.
        OSError: Where it cannot be written.
    """
    with path.open("ab") as file:
        if not hasattr(os, "posix_fallocate") or not size:  # not on this system
            return
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # not on this disk
                return
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            free = shutil.disk_usage(path.parent).free
            message = (
                f"The disk of {path} must have room for {size:,} bytes. Got {free:,} bytes free "
                f"({error.strerror}). Free some space or choose another folder."
            )
            raise StoreError(message) from error


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file, and the folders above it where they are missing.

    Args:
        path: Its place. What is there stays until all of the new file is on the disk.
        data: Its content.

    Raises:
        StoreError: Where it cannot be written (full disk, no rights).
    """
    path = path_of(path)
    with writing(path), new_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON, and the folders above it where they are missing.

    Args:
        path: Its place, as for `write_bytes`.
        data: What JSON can hold: None, booleans, finite numbers, strings, lists, and dicts of them.

    Raises:
        StoreError: Where it cannot be written (full disk, no rights).
        ValueError: It holds NaN or infinity.
    """
    write_bytes(path, json_bytes(data))


def json_bytes(data: Any) -> bytes:
    """JSON as it is written into files: ASCII, indented.

    Raises:
        ValueError: It holds NaN or infinity.
    """
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Make the folders above `path`, then write there within the block.

    Raises:
        StoreError: In place of any OSError of the block, or of making the folders.
    """
    try:
        if not path_of(path).name:
            message = f"What is written must be a file. Got the folder {str(path)!r}. Pass a file's path."
            raise StoreError(message)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        what = f"The folder of {path}"
        raise unwritable(what, error) from error


def unwritable(what: object, error: OSError) -> StoreError:
    """What is raised where the system refuses to write: it says whether what is written was removed.

    Args:
        what: Of whom it is said that it must be writable.
        error: What the system said.
    """
    said = error.strerror or error
    if error.errno in (errno.ENOENT, errno.ESTALE):
        return StoreError(
            f"{what} must stay in its place while it is written. Got: {said}, it was removed or moved. Call "
            "again, and see that nothing removes it."
        )
    return StoreError(
        f"{what} must be writable and have room. Got: {said}. Free some space or choose another folder."
    )


def read_json(
    path: str | Path,
    what: str = "file",
    of: type = dict,
    most: int = MAX_JSON_BYTES,
    remedy: str = "It is truncated or was edited: write it again.",
    nan: bool = False,
) -> Any:
    """The content of a JSON file.

    Args:
        path: The file.
        what: What it is, for messages.
        of: What it must hold: `dict` for an object, `list` for an array, `object` for either.
        most: Its bytes, at most.
        remedy: What to do about another file.
        nan: Whether NaN and infinity are read, which others write into JSON.

    Raises:
        StoreError: Where it cannot be read.
        FormatError: Where it is something else.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        message = (
            f"The {what} must be readable. Got {error.strerror or error} at {path}. Check the path and its "
            "rights."
        )
        raise StoreError(message) from error
    if len(data) > most:
        message = f"The {what} must have at most {most:,} bytes. Got more at {path}. Do not trust this file."
        raise FormatError(message)
    return parse_json(data, path, what, of, remedy, nan=nan)


def parse_json(
    data: bytes,
    where: object,
    what: str = "file",
    of: type = dict,
    remedy: str = "It is truncated or was edited: write it again.",
    *,
    unique: bool = False,
    nan: bool = False,
) -> Any:
    """What JSON says: UTF-8, by default without NaN and infinity.

    Args:
        data: The text.
        where: Where it is from, for messages.
        what: What it is, for messages.
        of: What it must hold: `dict` for an object, `list` for an array, `object` for either.
        remedy: What to do about another text.
        unique: Whether a key that comes twice in an object is refused.
        nan: Whether NaN and infinity are read, which others write into JSON.

    Raises:
        FormatError: Where it is something else.
    """
    try:
        pairs, constant = _pairs if unique else None, None if nan else _constant
        found = json.loads(data.decode("utf-8"), parse_constant=constant, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8 are a ValueError
        message = (
            f"The {what} must be valid JSON. Got {len(data):,} bytes that are not ({error}) in {where}. "
            f"{remedy}"
        )
        raise FormatError(message) from error
    if not isinstance(found, of):
        kind = "a JSON object" if of is dict else "a JSON array"
        message = f"The {what} must hold {kind}. Got {short(found)} in {where}. {remedy}"
        raise FormatError(message)
    return found


def read_json_or_none(source: Path | bytes | None) -> dict[str, Any] | None:
    """A JSON object that may be missing or half written: None where it is not there, or is anything else."""
    try:
        if source is None:
            return None
        return read_json(source) if isinstance(source, Path) else parse_json(source, "memory")
    except (StoreError, FormatError):
        return None


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Stamp:
    """What a JSON file of ours says of itself.

    Attributes:
        format: Its name.
        version: The newest one, in which files are written; those from 1 on can be read.
        kind: Which of several files of that format it is, or None.
        remedy: What to do about another file.
        error: What is raised for another file, or one of a newer version.
    """

    format: str
    version: int
    kind: str | None = None
    remedy: str = "Pass one that saelab wrote."
    error: type[SaelabError] = FormatError

    def fields(self) -> dict[str, Any]:
        """What a file begins with."""
        kind = {} if self.kind is None else {"kind": self.kind}
        return {"format": self.format, **kind, "version": self.version}

    def read(self, path: Path, what: str, most: int = MAX_JSON_BYTES) -> dict[str, Any]:
        """The content of a file that says this of itself.

        Args:
            path: The file.
            what: What it is, for messages.
            most: Its bytes, at most.

        Raises:
            StoreError: Where it cannot be read.
            SaelabError: `error`, where it is another, or of a newer version.
        """
        with self._raising():
            data = read_json(path, what, most=most, remedy=self.remedy)
        self.check(data, path)
        return data

    def parse(self, data: bytes, where: object, what: str) -> dict[str, Any]:
        """As `read`, of the content of a file.

        Args:
            data: The content.
            where: Where it is from, for messages.
            what: What it is, for messages.

        Raises:
            SaelabError: `error`, where it is another, or of a newer version.
        """
        with self._raising():
            found = parse_json(data, where, what, remedy=self.remedy)
        self.check(found, where)
        return found

    def check(self, data: dict[str, Any], where: object) -> int:
        """The version of a file with this content.

        Args:
            data: The content.
            where: Where it is from, for messages.

        Returns:
            An integer in 1..`version`.

        Raises:
            SaelabError: `error`, where it is another, or of a newer version.
        """
        wanted = {"format": self.format} | ({} if self.kind is None else {"kind": self.kind})
        for name, value in wanted.items():
            if data.get(name) != value:
                message = f"{where} must say {name} {value!r}. Got {short(data.get(name))}. {self.remedy}"
                raise self.error(message)
        return check_version(data.get("version"), self.version, where, self.error)

    @contextlib.contextmanager
    def _raising(self) -> Iterator[None]:
        try:
            yield
        except FormatError as error:
            raise self.error(*error.args) from error


SAE_STAMP = Stamp("saelab", 1, remedy="Pass a folder that sae.save wrote.")
"""Of an SAE's config.json; here, so that it is known for one without what loads it."""


def check_version(version: Any, newest: int, where: object, error: type[SaelabError] = FormatError) -> int:
    """A version between 1 and the newest that this saelab knows.

    Args:
        version: What a file states.
        newest: The newest version that is known.
        where: Where it is from, for messages.
        error: What is raised.

    Raises:
        SaelabError: `error`, where it is another, or none.
    """
    if type(version) is not int or version < 1:
        message = (
            f"{where} must state a version, an integer >= 1. Got version {short(version)}. Write it again."
        )
        raise error(message)
    if version > newest:
        message = (
            f"{where} must be of version {newest} or older. Got version {version}: a newer saelab wrote it. "
            "Upgrade saelab."
        )
        raise error(message)
    return version


def _beside(path: Path) -> Path:
    """A name in the same folder that no other process or thread uses."""
    return path.with_name(f".{path.name}.{os.getpid()}-{next(_NUMBERS)}.tmp")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        message = "a key that comes twice"
        raise ValueError(message)
    return data


def _constant(name: str) -> NoReturn:
    message = f"{name}, which is no number of JSON"
    raise ValueError(message)
