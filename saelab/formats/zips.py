"""Zip files that every reader takes for the same files.

A zip is found from its end, and readers differ in what they make of one that does not fit together: two
tables of contents, bytes before or after, names that come twice. What is judged by one reader could then
be another thing than what the next one reads. So all of it is looked at here first, byte by byte, and only a
zip that leaves no choice is read by anything.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from saelab.types import FormatError, short

MAX_TABLE = 2**24
"""Bytes of a table of contents, at most."""

_END, _END64, _PLACE64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_FILE, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"
_AFTER = 0x8
"""Flag of files whose sizes come after them."""
_FLAGS = _AFTER | 0x800
"""What may be set: this, and that names are UTF-8."""
_BEHIND = (12, 16, 20, 24)
"""Bytes of the sizes that come after a file: each of 4 or of 8, with or without a mark."""


class _Table(NamedTuple):
    """Where the table of contents is, and of how many files."""

    n: int
    size: int
    at: int


class _File(NamedTuple):
    """What the table of contents says of a file, and where it says it is."""

    name: bytes
    flags: int
    method: int
    packed: int
    at: int


def check_zip(path: Path, at: Path) -> None:
    """Refuse a zip that two readers could take for different files.

    Args:
        path: Its name, for messages.
        at: The file.

    Raises:
        FormatError: Anything lies before, between or after what its table of contents names; a name comes
            twice or is told otherwise at its file; or the records at its end disagree.
    """
    with at.open("rb") as file:
        table = _end(path, file)
        start, behind = 0, (0,)
        seen: set[bytes] = set()
        for each in sorted(_files(path, file, table), key=lambda f: f.at):
            # torch's reader does not tell capitals from others
            if (key := each.name.lower()) in seen:
                _unclear(path, f"{short(each.name)} twice")
            seen.add(key)
            if each.at - start not in behind:
                _unclear(path, f"{each.at - start} bytes before {short(each.name)} that are of no file")
            start = _data(path, file, each) + each.packed
            behind = _BEHIND if each.flags & _AFTER else (0,)
        if table.at - start not in behind:
            _unclear(path, f"{table.at - start} bytes before its table of contents that are of no file")


def _end(path: Path, file: BinaryIO) -> _Table:
    """The records at the very end of the file, all of which must say the same."""
    size = file.seek(0, 2)
    mark, disk, first, here, n, length, at, comment = _read(path, file, size - 22, "<4s4H2LH")
    if mark != _END or comment:
        _unclear(path, "another end than that of its table of contents")
    if disk or first or here != n:
        _unclear(path, "a part of several")
    found, end = _Table(n, length, at), size - 22
    if size >= 22 + 20 and _read(path, file, end - 20, "<4s")[0] == _PLACE64:
        _, disk, where, disks = _read(path, file, end - 20, "<4sLQL")
        end -= 20 + 56
        mark, left, _, _, first, other, here, n, length, at = _read(path, file, end, "<4sQ2H2L4Q")
        if where != end or mark != _END64 or left != 44 or disk or first or other or disks != 1 or here != n:
            _unclear(path, "records of a large zip that do not fit")
        large = _Table(n, length, at)
        for old, new, full in zip(found, large, (2**16 - 1, 2**32 - 1, 2**32 - 1), strict=True):
            if old not in (new, full):
                _unclear(path, "two records that disagree")
        found = large
    if found.at + found.size != end:
        _unclear(path, f"{end - found.size - found.at} bytes beside its table of contents")
    if found.size > MAX_TABLE:
        _unclear(path, f"a table of {found.size:,} bytes, more than {MAX_TABLE:,}")
    return found


def _files(path: Path, file: BinaryIO, table: _Table) -> list[_File]:
    """What the table of contents names."""
    file.seek(table.at)
    data = file.read(table.size)
    found, start = [], 0
    while start < len(data):
        mark, _, _, flags, method, _, _, _, packed, size, *lengths, disk, _, _, at = struct.unpack_from(
            "<4s6H3L5H2L", data, start
        )
        of_name, of_extra, of_comment = lengths
        name = data[start + 46 : start + 46 + of_name]
        extra = data[start + 46 + of_name : start + 46 + of_name + of_extra]
        wide = [value for value in (size, packed, at) if value == 2**32 - 1]
        if wide:  # the true ones come in this order, those that do not fit alone
            true = list(_large(path, extra, len(wide)))
            size, packed, at = (true.pop(0) if v == 2**32 - 1 else v for v in (size, packed, at))
        start += 46 + of_name + of_extra + of_comment
        if mark != _FILE or disk or flags & ~_FLAGS or start > len(data) or min(name, default=0) < 32:
            _unclear(path, f"an entry {short(name)} of another kind")
        if not method and packed != size:
            _unclear(path, f"two sizes of {short(name)}")
        found.append(_File(name, flags, method, packed, at))
    if len(found) != table.n:
        _unclear(path, f"{len(found)} files instead of {table.n}")
    return found


def _large(path: Path, extra: bytes, n: int) -> tuple[int, ...]:
    """The numbers of a file that are too large for the table of contents itself: its one record of these."""
    found, start = [], 0
    while start + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, start)
        if kind == 1:
            found.append(extra[start + 4 : start + 4 + length])
        start += 4 + length
    if start != len(extra) or len(found) != 1 or len(found[0]) != 8 * n:
        _unclear(path, "sizes that do not fit")
    return struct.unpack(f"<{n}Q", found[0])


def _data(path: Path, file: BinaryIO, each: _File) -> int:
    """Where a file's bytes begin, if what stands there says the same of it."""
    mark, _, flags, method, *_, of_name, of_extra = _read(path, file, each.at, "<4s5H3L2H")
    name = file.read(of_name)
    if (mark, flags, method, name) != (_LOCAL, each.flags, each.method, each.name):
        _unclear(path, f"{short(each.name)}, which is {short(name)} where it lies")
    return each.at + 30 + of_name + of_extra


def _read(path: Path, file: BinaryIO, at: int, form: str) -> tuple:
    size = struct.calcsize(form)
    if at < 0:
        _unclear(path, "too few bytes")
    file.seek(at)
    data = file.read(size)
    if len(data) != size:
        _unclear(path, "a place beyond its end")
    return struct.unpack(form, data)


def _unclear(path: Path, got: str) -> NoReturn:
    message = (
        f"{path} must be a zip with one table of contents at its end, and nothing beside its files. Got "
        f"{got}. Copy it again; if it stays so, do not trust it."
    )
    raise FormatError(message)
