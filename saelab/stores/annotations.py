"""What readers of a store write beside its latents: notes, tags and named lists of them.

They lie in one table, `annotations.parquet`, which is attached to a store as labels are (see `attached`):
`kind` is "note", "tag" or "list", `name` the tag, the list or the text of the note; who wrote it and when
stands beside it. A tag or a list is there as long as a latent has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from saelab.stores.attached import Attached, checked_latents, checked_source, checked_text
from saelab.stores.protocol import Latents
from saelab.types import ConfigError, short

if TYPE_CHECKING:
    from pathlib import Path

ANNOTATIONS = Attached(
    "annotations.parquet",
    "annotations",
    pa.schema(
        [
            ("kind", pa.string()),
            ("latent", pa.int32()),
            ("name", pa.string()),
            ("source", pa.string()),
            ("time", pa.timestamp("ms")),
        ]
    ),
)


def described(latents: str) -> str:
    """Latents with what is said of them, in SQL: the newest label and note, tags and lists by name.

    Args:
        latents: The table of them.
    """
    return f"""
        select l.*, label, note, coalesce(t.tags, []) as tags, coalesce(i.lists, []) as lists
        from {latents} l
        left join (select latent, arg_max(label, rowid) as label from labels group by latent)
            using (latent)
        left join (
            select latent, arg_max(name, rowid) as note from annotations where kind = 'note' group by latent
        ) using (latent)
        left join (
            select latent, list(distinct name order by name) as tags from annotations where kind = 'tag'
            group by latent
        ) t using (latent)
        left join (
            select latent, list(distinct name order by name) as lists from annotations where kind = 'list'
            group by latent
        ) i using (latent)
    """


VIEWS = {
    "notes": "select latent, name as note, source, time from annotations where kind = 'note'",
    "tags": "select latent, name as tag, source, time from annotations where kind = 'tag'",
    "lists": "select name as list, latent, source, time from annotations where kind = 'list'",
    "described": described("latents"),
}
"""Tables of them in SQL, each in the order in which it was written."""
LONGEST = {"note": 20_000, "tag": 200, "list": 200}
"""Characters of a text, at most."""

Line = tuple[str, int, str, str, Any]
"""kind, latent, name, source, time"""


class Notes(MutableMapping[int, str]):
    """Latent -> what is noted of it: of several sources the newest. `notes[7] = "text"` writes one of the
    user's; "" takes it away.

    Args:
        store: Whose latents.
        written: Called after each change.
    """

    def __init__(self, store: Latents, written: Callable[[], None] | None = None) -> None:
        self._store, self._written = store, written

    def write(self, latent: int, text: str, *, source: str = "user") -> None:
        """Note something of a latent, instead of what this source had noted.

        Args:
            latent: Its number.
            text: The note; "" takes it away.
            source: Who says it.

        Raises:
            RangeError: The latent is out of range.
            ConfigError: The note or the source is no text, or too long.
            StoreError: It cannot be written.
        """
        (latent,) = checked_latents([latent], self._store.n_latents, "A note's latent")
        text, source = _checked("note", text), checked_source(source)
        new = [("note", latent, text, source, _now())] if text else []

        def change(lines: list[Line]) -> list[Line]:
            return [x for x in lines if (x[0], x[1], x[3]) != ("note", latent, source)] + new

        _change(self._store, change, self._written)

    def __getitem__(self, latent: int) -> str:
        return self._all()[latent]

    def __setitem__(self, latent: int, text: str) -> None:
        self.write(latent, text)

    def __delitem__(self, latent: int) -> None:
        self.write(latent, "")

    def __iter__(self) -> Iterator[int]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return f"Notes({short(self._all(), 200)})"

    def _all(self) -> dict[int, str]:
        return {latent: name for _, latent, name, _, _ in _lines(self._store, "note")}


class Named(MutableMapping[str, tuple[int, ...]]):
    """Name -> latents: the tags of a store, or its lists, whose latents are in the order in which they were
    added. `lists["odd"] = [3, 7]` sets the user's.

    Args:
        store: Whose latents.
        kind: Which of both.
        written: Called after each change.
    """

    def __init__(
        self, store: Latents, kind: Literal["tag", "list"], written: Callable[[], None] | None = None
    ) -> None:
        self._store, self._kind, self._written = store, kind, written

    def add(self, name: str, latents: int | Iterable[int], *, source: str = "user") -> None:
        """Add latents to those of a name; those that it has stay where they are.

        Args:
            name: A tag or list, there or not.
            latents: One or several.
            source: Who says it.

        Raises:
            RangeError: A latent is out of range.
            ConfigError: The name or the source is no text, or too long.
            StoreError: It cannot be written.
        """
        self._write(name, latents, source, lambda old, new: [*old, *(j for j in new if j not in set(old))])

    def remove(self, name: str, latents: int | Iterable[int], *, source: str = "user") -> None:
        """Take latents from those that this source gave a name.

        Args:
            name: A tag or list, there or not.
            latents: One or several.
            source: Who had said it.

        Raises:
            RangeError: A latent is out of range.
            ConfigError: The name or the source is no text, or too long.
            StoreError: It cannot be written.
        """
        self._write(name, latents, source, lambda old, gone: [j for j in old if j not in set(gone)])

    def of(self, latent: int) -> tuple[str, ...]:
        """The names that a latent has.

        Args:
            latent: Its number.

        Raises:
            RangeError: It is out of range.
        """
        (latent,) = checked_latents([latent], self._store.n_latents, f"A {self._kind}'s latent")
        return tuple(name for name, latents in self._all().items() if latent in latents)

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return tuple(self._all()[name])

    def __setitem__(self, name: str, latents: int | Iterable[int]) -> None:
        self._write(name, latents, "user", lambda _, new: list(new))

    def __delitem__(self, name: str) -> None:
        self[name] = ()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        told = ", ".join(f"{short(name, 60)}: {len(latents):,}" for name, latents in self._all().items())
        return f"{self._kind.title()}s({told})"

    def _all(self) -> dict[str, dict[int, None]]:
        found: dict[str, dict[int, None]] = {}
        for _, latent, name, _, _ in _lines(self._store, self._kind):
            found.setdefault(name, {})[latent] = None
        return found

    def _write(self, name: str, latents: Any, source: str, change: Any) -> None:
        """change: the latents that the name has from this source, and those given -> those that it has."""
        kind, name, source = self._kind, _checked(self._kind, name), checked_source(source)
        if not name:
            message = f"A {kind} must have a name. Got {name!r}. Pass e.g. 'to check'."
            raise ConfigError(message)
        given, now = checked_latents(latents, self._store.n_latents, f"A {kind}'s latent"), _now()

        def changed(lines: list[Line]) -> list[Line]:
            own = {x[1]: x for x in lines if (x[0], x[2], x[3]) == (kind, name, source)}
            rest = [x for x in lines if (x[0], x[2], x[3]) != (kind, name, source)]
            return rest + [own.get(j, (kind, j, name, source, now)) for j in change(list(own), given)]

        _change(self._store, changed, self._written)


def add_annotations(folder: Path, n_latents: int, table: pa.Table) -> None:
    """Write annotations into the store in a folder, beside those that it has; those that are said already are
    not said twice."""

    def change(old: pa.Table) -> pa.Table:
        said = {(kind, latent, name, source) for kind, latent, name, source, _ in _rows(old)}
        return _table(_rows(old) + [line for line in _rows(table) if line[:4] not in said])

    if len(table):
        ANNOTATIONS.rewrite(folder, n_latents, change)


def _lines(store: Latents, kind: str) -> list[Line]:
    return [line for line in _rows(ANNOTATIONS.all(store)) if line[0] == kind]


def _change(store: Latents, change: Any, written: Callable[[], None] | None) -> None:
    ANNOTATIONS.change(store, lambda table: _table(change(_rows(table))))
    if written is not None:
        written()


def _rows(table: pa.Table) -> list[Line]:
    return list(zip(*(table[name].to_pylist() for name in ANNOTATIONS.schema.names), strict=True))


def _table(lines: list[Line]) -> pa.Table:
    columns = zip(*lines, strict=True) if lines else ([] for _ in ANNOTATIONS.schema)
    schema = ANNOTATIONS.schema
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _checked(kind: str, text: Any) -> str:
    """A note, or the name of a tag or list. Raises ConfigError."""
    text = checked_text(f"A {kind}", text, "e.g. 'to check'")
    if len(text) > LONGEST[kind]:
        message = (
            f"A {kind} must have at most {LONGEST[kind]:,} characters. Got {len(text):,}. Make it shorter."
        )
        raise ConfigError(message)
    return text


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


__all__ = ["ANNOTATIONS", "VIEWS", "Named", "Notes", "add_annotations"]
