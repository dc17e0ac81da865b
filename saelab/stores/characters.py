"""Text as people read it: characters that a tokenizer has split over several tokens, put together again.

A token of a byte-level tokenizer may hold a part of a character. Alone it shows its bytes (`\\xe6`); beside
its neighbours it is the character.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

BYTES = r"\\x[89a-f][0-9a-f]"
_BYTE = re.compile(BYTES)
_LEADING, _TRAILING = re.compile(rf"^(?:{BYTES})+"), re.compile(rf"(?:{BYTES})+$")
CUT = "\N{REPLACEMENT CHARACTER}"
_LENGTHS = (range(0x00, 0x80), range(0xC2, 0xE0), range(0xE0, 0xF0), range(0xF0, 0xF5))


def joined(names: Sequence[str]) -> list[str | None]:
    """What neighbouring positions show, each character at the first position that holds a part of it.

    Args:
        names: What each position shows alone.

    Returns:
        As many; None for a position that only goes on with the character before it. Bytes that make no
        character stay as they are.
    """
    out: list[str | None] = list(names)
    split = [i for i, name in enumerate(names) if "\\x" in name and _BYTE.search(name)]
    for first, last in _runs(split):
        out[first:last] = _decoded(names[first:last])
    return out


def read(names: Sequence[str], *, window: bool = False) -> str:
    """The text of neighbouring positions.

    Args:
        names: What each position shows alone.
        window: Whether they were cut out of a text; then a part of a character at an end shows as `�`.
    """
    shown = window_names(names) if window else joined(names)
    return "".join(name for name in shown if name is not None)


def window_names(names: Sequence[str]) -> list[str | None]:
    """`joined` of a window that was cut out of a text: parts of characters at its ends show as `�`."""
    out = joined(names)
    for order, broken in ((range(len(out)), _LEADING), (range(len(out) - 1, -1, -1), _TRAILING)):
        cut: list[int] = []
        for i in order:
            name = out[i]
            found = broken.search(name) if name is not None and "\\x" in name else None
            if found is None or name is None:
                break
            cut.append(i)
            out[i] = broken.sub("", name) or None
            if len(found[0]) < len(name):
                break
        if cut:
            at = min(cut)
            out[at] = f"{CUT}{out[at] or ''}" if broken is _LEADING else f"{out[at] or ''}{CUT}"
    return out


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbouring numbers as (first, last + 1)."""
    found: list[tuple[int, int]] = []
    for n in numbers:
        if found and found[-1][1] == n:
            found[-1] = (found[-1][0], n + 1)
        else:
            found.append((n, n + 1))
    return found


def _decoded(names: Sequence[str]) -> list[str | None]:
    """`joined` of names all of which hold bytes."""
    data, owner = bytearray(), []
    for i, name in enumerate(names):
        own = _bytes(name)
        data += own
        owner += [i] * len(own)
    out, at = [""] * len(names), 0
    while at < len(data):
        size = next((n for n, leads in enumerate(_LENGTHS, 1) if data[at] in leads), 1)
        try:
            character = bytes(data[at : at + size]).decode("utf-8")
        except UnicodeDecodeError:
            character, size = f"\\x{data[at]:02x}", 1
        out[owner[at]] += character
        at += size
    return [text or None for text in out]


def _bytes(name: str) -> bytes:
    """What a name stands for, its escaped bytes as such."""
    pieces, at = [], 0
    for found in _BYTE.finditer(name):
        pieces += [name[at : found.start()].encode("utf-8", "replace"), bytes([int(found[0][2:], 16)])]
        at = found.end()
    return b"".join([*pieces, name[at:].encode("utf-8", "replace")])
