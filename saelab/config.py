"""Frozen dataclasses to JSON and back: versioned, migrated, unknown keys refused.

A configuration is a frozen dataclass of plain values (None, bool, int, float, str, lists, mappings with
string keys, other dataclasses). Two optional class variables govern its life on disk:

    VERSION: ClassVar[int]            the version that this code writes (1 where absent)
    MIGRATIONS: ClassVar[dict[int, Callable[[dict], dict]]]   from version v to v + 1
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard, TypeVar

from saelab.errors import ConfigError, SaelabError, nearest, short
from saelab.files import check_version

T = TypeVar("T")
# what values besides plain ones are written as, and read from; NotImplemented leaves a value to this module
Write = Callable[[Any, str], Any]
Read = Callable[[Any, Any, str], Any]


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether it is an integer, of Python or NumPy; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold it: half of a surrogate pair it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a real number, of Python or NumPy, NaN and infinity among them; True and False are
    none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def holds_float32(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number that a float32 holds."""
    return is_number(value) and abs(value) < 3e38


def integer(
    name: str,
    value: Any,
    low: int,
    high: int | None = None,
    *,
    error: type[SaelabError] = ConfigError,
    remedy: str | None = None,
) -> int:
    """An integer in a range, as Python's.

    Args:
        name: What it is, for the message.
        value: What was given.
        low: The least that it may be.
        high: The most, or None for no bound.
        error: What is raised.
        remedy: What to do instead, by default to pass one in the range.

    Raises:
        SaelabError: `error`, where it is none or out of range.
    """
    if is_integer(value) and low <= value and (high is None or value <= high):
        return int(value)
    bound = f">= {low}" if high is None else f"in {low}..{high}"
    remedy = remedy or f"Pass {name}={low} or {'more' if high is None else f'up to {high}'}."
    message = f"{name} must be an integer {bound}. Got {short(value)}. {remedy}"
    raise error(message)


def integer_or_none(name: str, value: Any, low: int, *, error: type[SaelabError] = ConfigError) -> int | None:
    """As `integer`, with None left as it is.

    Args:
        name: What it is, for the message.
        value: What was given.
        low: The least that an integer may be.
        error: What is raised.

    Raises:
        SaelabError: `error`, where it is neither None nor an integer >= low.
    """
    return None if value is None else integer(name, value, low, error=error)


def boolean(name: str, value: Any) -> bool:
    """True or False, of Python or NumPy.

    Args:
        name: What it is, for the message.
        value: What was given.

    Raises:
        ConfigError: It is neither.
    """
    if type(value).__name__ not in ("bool", "bool_"):
        message = f"{name} must be True or False. Got {short(value)}. Pass {name}=True."
        raise ConfigError(message)
    return bool(value)


def shard_of(shard: Any, *, error: type[SaelabError] = ConfigError) -> tuple[int, int]:
    """Which part of how many: (i, n), as Python's integers.

    Args:
        shard: What was given; None for all.
        error: What is raised.

    Raises:
        SaelabError: `error`, unless 0 <= i < n.
    """
    if shard is None:
        return 0, 1
    if isinstance(shard, tuple | list) and len(shard) == 2 and all(map(is_integer, shard)):
        i, n = map(int, shard)
        if 0 <= i < n:
            return i, n
    message = f"shard must be (i, n) with 0 <= i < n. Got {short(shard)}. Pass (0, 1) for all."
    raise error(message)


def to_dict(config: Any, write: Write | None = None) -> dict[str, Any]:
    """A configuration as plain JSON data, `version` first.

    Args:
        config: A dataclass instance.
        write: (value, where) -> plain data, for values that are none; NotImplemented for others.

    Raises:
        ConfigError: It holds a value that JSON cannot.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        msg = f"Only dataclass instances can be saved. Got {config!r}. Make the config a frozen dataclass."
        raise ConfigError(msg)
    data: dict[str, Any] = (
        {"version": vars(type(config))["VERSION"]} if "VERSION" in vars(type(config)) else {}
    )
    for field in dataclasses.fields(config):
        where = f"{type(config).__name__}.{field.name}"
        data[field.name] = _json_value(getattr(config, field.name), where, write)
    return data


def from_dict(cls: type[T], data: Any, read: Read | None = None) -> T:
    """The configuration that `to_dict` gave, older versions migrated.

    Args:
        cls: Its class.
        data: The plain data.
        read: (annotation, data, where) -> value, for what `write` wrote; NotImplemented for others.

    Raises:
        ConfigError: It is anything else: wrong type, missing or unknown key (with the nearest known one),
            newer version.
    """
    name = cls.__name__
    if not isinstance(data, Mapping):
        msg = f"{name} must be a JSON object. Got {type(data).__name__}. Pass the dict that to_dict gave."
        raise ConfigError(msg)
    data = dict(data)
    if hasattr(cls, "VERSION"):
        data = _migrate(cls, data)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            msg = f"{name} has no field {key!r}. {nearest(str(key), known)}Its fields are {', '.join(known)}."
            raise ConfigError(msg)
    hints = typing.get_type_hints(cls)
    values = {}
    for key, field in known.items():
        if key in data:
            values[key] = typed(hints[key], data[key], f"{name}.{key}", read)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            msg = f"{name} needs the field {key!r}. Got only {sorted(data)}. Add it."
            raise ConfigError(msg)
    return cls(**values)


def _migrate(cls: type, data: dict[str, Any]) -> dict[str, Any]:
    version, current = data.pop("version", 1), cls.VERSION  # type: ignore[attr-defined]
    check_version(version, current, cls.__name__, ConfigError)
    migrations = getattr(cls, "MIGRATIONS", {})
    for v in range(version, current):
        if v not in migrations:
            msg = (
                f"{cls.__name__} must be of version {v + 1} or later. Got {version}, which no migration "
                f"knows. "
                "Write it again with an older saelab."
            )
            raise ConfigError(msg)
        data = migrations[v](data)
    return data


def _json_value(value: Any, where: str, write: Write | None = None) -> Any:
    if write is not None and (written := write(value, where)) is not NotImplemented:
        return written
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if is_integer(value):
        return int(value)
    if is_number(value):
        value = float(value)
        if not math.isfinite(value):
            msg = f"{where} must be finite. Got {value}. JSON has no such number."
            raise ConfigError(msg)
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value, write)
    if isinstance(value, Mapping):
        bad = [key for key in value if not isinstance(key, str)]
        if bad:
            msg = f"{where} must have string keys. Got {bad[0]!r}. Turn it into a string."
            raise ConfigError(msg)
        return {key: _json_value(item, f"{where}[{key!r}]", write) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_json_value(item, f"{where}[{i}]", write) for i, item in enumerate(value)]
    msg = f"{where} must be plain data. Got a {type(value).__name__}. Use numbers, strings, lists or dicts."
    raise ConfigError(msg)


def typed(hint: Any, value: Any, where: str, read: Read | None = None) -> Any:
    """`value` checked against the annotation, JSON lists turned into tuples and objects into dataclasses.

    Args:
        hint: The annotation.
        value: Plain data.
        where: What it is, for messages.
        read: As in `from_dict`.

    Raises:
        ConfigError: The annotation does not allow it.
    """
    if read is not None and (found := read(hint, value, where)) is not NotImplemented:
        return found
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        errors = []
        for choice in (a for a in args if a is not type(None)):
            try:
                return typed(choice, value, where, read)
            except ConfigError as error:
                errors.append(error)
        if len(errors) == 1 or isinstance(value, (Mapping, list, tuple)):
            raise errors[-1]  # which says what is wrong within it
        msg = f"{where} must be of type {type_name(hint)}. Got {value!r}. Correct the value."
        raise ConfigError(msg)
    if origin is typing.Literal:
        if value in args:
            return value
        raise ConfigError(
            f"{where} must be one of {args}. Got {value!r}. {nearest(str(value), map(str, args))}".strip()
        )
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_dict(hint, value, read)
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        if len(inner) != len(value):
            msg = f"{where} must have {len(inner)} entries. Got {len(value)}. Correct the list."
            raise ConfigError(msg)
        pairs = enumerate(zip(inner, value, strict=True))
        return tuple(typed(a, v, f"{where}[{i}]", read) for i, (a, v) in pairs)
    if origin in (list, Sequence, Iterable) and isinstance(value, list):
        return [typed(args[0], v, f"{where}[{i}]", read) for i, v in enumerate(value)]
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {key: typed(args[1], v, f"{where}[{key!r}]", read) for key, v in value.items()}
    if hint is float and is_number(value):
        return float(value)
    if hint is int and is_integer(value):
        return int(value)
    kind = origin or hint
    if (
        isinstance(kind, type)
        and isinstance(value, kind)
        and not (isinstance(value, bool) and kind is not bool)
        and not (isinstance(value, str) and kind in (Sequence, Iterable))
    ):
        return value
    msg = f"{where} must be of type {type_name(hint)}. Got {value!r}. Correct the value."
    raise ConfigError(msg)


def type_name(hint: Any) -> str:
    """The annotation for people: `int or None`."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join("None" if a is type(None) else type_name(a) for a in args)
    if not args or typing.get_origin(hint) is typing.Literal:
        return getattr(hint, "__name__", str(hint)) if not args else " or ".join(map(repr, args))
    name = {Iterable: "list", Sequence: "list"}.get(typing.get_origin(hint), typing.get_origin(hint))
    inner = ", ".join("..." if a is Ellipsis else type_name(a) for a in args)
    return f"{getattr(name, '__name__', name)}[{inner}]"
