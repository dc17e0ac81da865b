"""Arguments of a Python function as keys of a TOML file and as flags, derived from its signature and
docstring."""

from __future__ import annotations

import functools
import inspect
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from saelab.commands.docstrings import entries, sections
from saelab.config import type_name, typed
from saelab.types import ConfigError, nearest

NEEDED = inspect.Parameter.empty


@dataclass(frozen=True)
class Argument:
    """One argument: its annotation, its default (NEEDED where there is none), a line about it."""

    hint: Any
    default: Any
    line: str


Arguments = Mapping[str, Argument]


def arguments_of(function: Callable[..., Any], leave_out: Iterable[str] = ()) -> dict[str, Argument]:
    """Name -> Argument, for each that is no `**options` and not left out."""
    unwrapped = inspect.unwrap(function)
    return {
        name: Argument(_hint(unwrapped, parameter), parameter.default, _lines(unwrapped).get(name, ""))
        for name, parameter in inspect.signature(unwrapped).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD and name not in set(leave_out)
    }


def check(given: Any, known: Arguments, where: str, prefix: str = "") -> dict[str, Any]:
    """All arguments, those that are not given by their default; each of its type.

    where: whose arguments they are, for the error; prefix: what stands before their names ("corpus.").
    Raises ConfigError for an unknown name (with the nearest), a value of another type, a missing one.
    """
    refuse_unknown(given, known, where, prefix)
    refuse_missing(missing(given, known, prefix), given, where, prefix)
    return {
        name: typed(argument.hint, storable(given[name], prefix + name), prefix + name)
        if name in given
        else argument.default
        for name, argument in known.items()
    }


def refuse_unknown(given: Any, known: Iterable[str], where: str, prefix: str = "") -> None:
    """Raises ConfigError for what is no table, and for a name that is not known, with the nearest."""
    if not isinstance(given, Mapping):
        message = f"{where} must be a table. Got {given!r}. Pass its arguments by name."
        raise ConfigError(message)
    for name in given:
        if name not in known:
            message = (
                f"{where} has no argument {prefix + name!r}. {nearest(name, known)}"
                f"It takes {', '.join(prefix + each for each in known)}."
            )
            raise ConfigError(message)


def missing(given: Mapping[str, Any], known: Arguments, prefix: str = "") -> dict[str, str]:
    """Dotted name -> type, of all that is needed and not given."""
    return {
        prefix + name: type_name(argument.hint)
        for name, argument in known.items()
        if argument.default is NEEDED and name not in given
    }


def refuse_missing(found: Mapping[str, str], given: Iterable[str], where: str, prefix: str = "") -> None:
    """Raises ConfigError that names them all, where any is missing."""
    if not found:
        return
    flags = _listed([f"--{name.replace('_', '-')}" for name in found])
    message = (
        f"{where} needs {_listed([f'{name} ({kind})' for name, kind in found.items()])}. "
        f"Got {', '.join(prefix + each for each in given) or 'nothing'}. "
        f"Pass {flags}, or write {'it' if len(found) == 1 else 'them'} into the job's file."
    )
    raise ConfigError(message)


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def from_flags(texts: list[str], hint: Any, name: str) -> Any:
    """The value that a flag's texts stand for: of all readings (a TOML value, the text itself, none, a list
    with commas) the first that the annotation allows. Raises ConfigError where it allows none."""
    if len(texts) > 1:
        readings: list[Any] = [[_toml(text)[0] for text in texts], texts]
    else:
        text = texts[0]
        items = [item.strip() for item in text.split(",") if item.strip()]
        listed = [[_toml(item)[0] for item in items], items]
        numbers = [listed[0]] if len(items) > 1 and not any(isinstance(p, str) for p in listed[0]) else []
        # where everything is allowed, "1,2" is meant as numbers and "a,b" as it stands
        readings = [*(numbers if hint is Any else []), *_toml(text), text]
        readings += [None] if text.lower() == "none" else []
        readings += listed
    error: ConfigError | None = None
    for reading in readings:
        try:
            return typed(hint, reading, name)
        except ConfigError as problem:
            error = error or problem
    assert error is not None
    raise error


def storable(value: Any, name: str = "an argument") -> Any:
    """Paths as strings, tuples as lists: what both TOML and JSON can hold. Raises ConfigError for what they
    cannot."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: storable(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item, name) for item in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and isfinite(value)):
        return value
    message = f"{name} must be text, a finite number, true, false or a list. Got {value}. Write one of these."
    raise ConfigError(message)


def is_flag(hint: Any) -> bool:
    """Whether true and false are all that it can be."""
    return hint is bool


def _toml(text: str) -> list[Any]:
    """[the value that TOML reads] with plain types only, else [the text]."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return [text]
    return [value if isinstance(value, bool | int | float | str | list) else text]


def _hint(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """The annotation, Any where it is of a type that only type checkers import."""
    if parameter.annotation is inspect.Parameter.empty:
        return Any
    holder = types.SimpleNamespace(__annotations__={"x": parameter.annotation})
    try:
        return typing.get_type_hints(holder, vars(inspect.getmodule(function)))["x"]
    except NameError:
        return Any


@functools.cache
def _lines(function: Callable[..., Any]) -> dict[str, str]:
    """Argument -> the first sentence about it in the docstring."""
    told = entries(sections(function).get("Args", ""))
    return {name: re.split(r"(?<!\.)\.(?= |$)", text)[0] for name, text in told.items()}
