"""A job: what a command was given, by a TOML file and flags, checked and completed.

`--a.b VALUE` is `a.b = VALUE` of the file, and wins. Paths are relative to where the command runs.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from saelab.commands.arguments import (
    NEEDED,
    Argument,
    Arguments,
    arguments_of,
    check,
    from_flags,
    missing,
    refuse_missing,
    refuse_unknown,
    storable,
)
from saelab.config import integer_or_none
from saelab.types import ConfigError, RangeError, nearest

SHORT = {"subject": "name", "sae": "path", "recipe": "name"}
"""`subject = "gpt2"` is short for `subject = {name = "gpt2"}`."""
ROWS = ("subject", "corpus", "stream")
"""The tables that stand for rows to train on, in place of `acts`."""
DECIDING = {"corpus": "kind", "recipe": "name"}
"""The argument of a table on which it depends what others there are."""
KINDS = ("text", "jsonl", "parquet", "hub", "world", "natural")


@dataclass(frozen=True)
class Job:
    """command: its name. given: as the file and the flags said. values: checked, defaults filled in."""

    command: str
    given: dict[str, Any]
    values: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _completed(self.command, self.given))

    def to_toml(self) -> str:
        """A file that gives the same job. What is None is left out, as it is by default."""
        return f"# saelab {self.command}\n{tomli_w.dumps(_present(storable(self.values)))}"

    def differences(self, other: Job) -> list[str]:
        """`name: ours -> theirs` of all that changes what comes out."""
        ours, theirs = (dict(_flat(storable(job.values))) for job in (self, other))
        names = [name for name in {**ours, **theirs} if name not in ("progress", "overwrite", "resume")]
        return [f"{n}: {ours.get(n)!r} -> {theirs.get(n)!r}" for n in names if ours.get(n) != theirs.get(n)]

    def seeds(self) -> dict[str, int]:
        """Every seed by its name."""
        return {name: v for name, v in _flat(storable(self.values)) if name.split(".")[-1] == "seed"}


def read(path: str | Path) -> dict[str, Any]:
    """The content of a TOML file. Raises ConfigError where it cannot be read or is no TOML."""
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        message = (
            f"A job's file must be readable. Got {error.strerror or error} at {path}. Check the path; "
            "arguments are given by flags, --name value."
        )
        raise ConfigError(message) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"A job's file must be TOML. Got {path}, of which: {error}. Correct it there."
        raise ConfigError(message) from error


def merged(command: str, given: Mapping[str, Any], flags: Mapping[str, list[str]]) -> dict[str, Any]:
    """What the file gives, with the flags (dotted name -> texts) in place of what they name."""
    out = {name: _table(name, value) for name, value in given.items()}
    known = flag_arguments(command)
    for name, texts in flags.items():
        first, _, rest = name.partition(".")
        first, rest = (first, SHORT.get(first, rest)) if not rest else (first, rest)
        value = from_flags(texts, known[name].hint, name)
        if not rest:
            out[first] = value
            continue
        table = out.setdefault(first, {})
        if not isinstance(table, dict):
            message = (
                f"--{name} changes one table. Got {first} with {len(table)} of them. Write it into the file."
            )
            raise ConfigError(message)
        out[first] = table | {rest: value}
    return out


def flag_arguments(command: str) -> dict[str, Argument]:
    """Every argument that there may be, by its dotted name."""
    found = dict(_own(command))
    for name in _tables(command):
        if name in SHORT:
            first = _arguments(name, None)[SHORT[name]]
            found[name] = Argument(first.hint, NEEDED, first.line or "its " + SHORT[name])
        choices: Any = {"corpus": KINDS, "recipe": _recipes()}.get(name, (None,))
        for choice in choices:
            for key, argument in _arguments(name, choice).items():
                found.setdefault(f"{name}.{key}", argument)
    return found


def _own(command: str) -> dict[str, Argument]:
    """The arguments of the command's function that stand for themselves."""
    handled = ("subject", "sae", "corpus", "config", "callbacks")
    own = arguments_of(_function(command), handled)
    if command == "eval":
        own["suites"] = Argument(list[str], ["core"], own["suites"].line)
        line = "a folder that keeps each report once it is there, so that the same command goes on"
        own["out"] = Argument(str | None, None, line)
        own["overwrite"] = Argument(bool, False, "begin anew")
        own["progress"] = Argument(bool, True, "show how many are done")
    if command == "train":
        own["out"] = Argument(str, NEEDED, own["out"].line)
        line = "the folder of an activation store; without it rows are made from subject and corpus"
        own["acts"] = Argument(str | None, None, line)
        own["start"] = Argument(str | None, None, "the folder or file of an SAE from which runs start")
        own["held_out"] = Argument(int | str | None, None, "rows of acts to hold out, or a store's folder")
    return own


def _tables(command: str) -> list[str]:
    names = arguments_of(_function(command))
    given = [name for name in ("subject", "sae", "corpus") if name in names]
    return ["recipe", *ROWS] if command == "train" else given


def _function(command: str) -> Callable[..., Any]:
    if command == "train":
        from saelab.training import train

        return train
    if command == "eval":
        from saelab.analysis import evaluate

        return evaluate
    from saelab import harvesting

    return getattr(harvesting, command)


def _recipes() -> Mapping[str, Any]:
    from saelab.sae.config import RECIPES

    return {name: entry for name, entry in RECIPES.items() if not entry.fitted}


def _arguments(table: str, choice: str | None) -> Arguments:
    """The arguments of a table, which depend on the corpus's kind or the recipe's name."""
    from saelab import corpora
    from saelab.formats import load_sae
    from saelab.sae import recipe
    from saelab.subjects import load_subject

    if table == "corpus":
        own = arguments_of(getattr(corpora, str(choice)))
        return {
            "kind": Argument(str, NEEDED, f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"),
            **own,
            "take": Argument(int | None, None, "only the first so many documents"),
            "shard": Argument(tuple[int, int] | None, None, "i,n: every n-th document from the i-th on"),
        }
    if table == "recipe":
        own = arguments_of(recipe)
        own["d_in"] = Argument(int | None, None, "width of the activations; by default the store's")
        if choice is None:
            return own
        options = _recipes()[choice].options.items()
        return own | {key: Argument(Any, option.default, option.line) for key, option in options}
    if table == "stream":
        from saelab.training import stream

        line = "one or several; by default those of the recipes"
        own = arguments_of(stream, ("subject", "corpus"))
        return own | {"hook": Argument(str | list[str] | None, None, line)}
    if table == "subject":
        return arguments_of(load_subject, ("progress",))
    return arguments_of(load_sae) | open_questions()


def open_questions() -> dict[str, Argument]:
    """What files of SAEs may leave open, as arguments."""
    from saelab.formats import options

    return {name: Argument(Any, None, line.rstrip(".")) for name, line in options().items()}


def _completed(command: str, given: Mapping[str, Any]) -> dict[str, Any]:
    own, tables = _own(command), _tables(command)
    optional = ROWS if command == "train" else ()
    known = own | {name: Argument(Any, None if name in optional else NEEDED, "") for name in tables}
    given = {name: _table(name, value) for name, value in given.items()}
    refuse_unknown(given, known, f"saelab {command}")
    refuse_missing(_missing(command, given), given, f"saelab {command}")
    values = check(given, known, f"saelab {command}")
    if command == "train":
        _check_rows(values)
    for name in tables:
        value = values[name]
        if value is None:
            continue
        several = name == "recipe" and isinstance(value, list)
        done = [_checked(name, each) for each in (value if several else [value])]
        values[name] = done if several else done[0]
    return {name: values[name] for name in (*tables, *own)}


def _missing(command: str, given: Mapping[str, Any]) -> dict[str, str]:
    """Dotted name -> type, of all that a job needs and is not given, in whatever table. Of several recipes
    each is told by itself, when it is checked."""
    found, firsts = {}, {"corpus": f"corpus.{DECIDING['corpus']}"}
    for name in _tables(command):
        if isinstance(given.get(name), Mapping):
            found |= _missing_in(name, given[name])
        elif name not in given and (command != "train" or name not in ROWS):
            found[firsts.get(name, name)] = "str" if name in SHORT else f"one of {', '.join(KINDS)}"
    found |= missing(given, _own(command))
    rows = [name for name in ("acts", "subject", "corpus") if given.get(name) is not None]
    if command == "train" and found and not rows:  # alone, `_check_rows` tells more of it
        found["acts"] = "str, or subject and corpus in its place"
    return found


def _missing_in(table: str, given: Mapping[str, Any]) -> dict[str, str]:
    key = DECIDING.get(table)
    choice = given.get(key) if key else None
    choices = {"corpus": KINDS, "recipe": tuple(_recipes())}.get(table, (None,))
    if key and key not in given:
        return {f"{table}.{key}": f"one of {', '.join(map(str, choices))}"}
    if choice not in choices:  # which is told when it is checked
        return {}
    known = _arguments(table, choice)
    refuse_unknown(given, known, f"{table} of {key} {choice!r}" if key else table, f"{table}.")
    return missing(given, known, f"{table}.")


def _check_rows(values: dict[str, Any]) -> None:
    """Rows come from one place: a store, or a model that reads a corpus."""
    named = [name for name in ("acts", *ROWS) if values[name] is not None]
    if values["acts"] is None and {"subject", "corpus"} <= set(named):
        values["stream"] = values["stream"] or {}
    elif named != ["acts"]:
        message = (
            f"saelab train reads rows from a store or makes them. Got {', '.join(named) or 'neither'}. Pass "
            "--acts FOLDER, or --subject and --corpus.kind, with --stream.buffer-rows and the like."
        )
        raise ConfigError(message)


def _checked(table: str, given: Any) -> dict[str, Any]:
    if table not in DECIDING or not isinstance(given, Mapping):
        return check(given, _arguments(table, KINDS[0] if table == "corpus" else None), table, f"{table}.")
    key, choices = DECIDING[table], {"corpus": KINDS, "recipe": tuple(_recipes())}[table]
    choice = given.get(key)
    if choice not in choices:
        message = (
            f"{table}.{key} must be one of {', '.join(choices)}. Got {choice!r}. "
            f"{nearest(str(choice), choices)}Pass e.g. --{table}.{key} {choices[0]}."
        )
        raise ConfigError(message)
    checked = check(given, _arguments(table, choice), f"{table} of {key} {choice!r}", f"{table}.")
    integer_or_none("corpus.take", checked.get("take"), 1, error=RangeError)
    return checked


def _table(name: str, value: Any) -> Any:
    return {SHORT[name]: value} if name in SHORT and isinstance(value, str) else value


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of all that is not None."""
    entries = enumerate(values) if isinstance(values, list) else values.items()
    for name, value in entries:
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value)):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value


def _present(value: Any) -> Any:
    """Without the entries of tables that are None, which TOML has not."""
    if isinstance(value, list):
        return [_present(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {name: _present(each) for name, each in value.items() if each is not None}
