"""Reports as JSON: versioned, with NaN, intervals, controls and tables as they were.

    {"format": "saelab-report", "version": 1, "report": {...}}      of one SAE
    {"format": "saelab-report", "version": 1, "reports": {name: {...}}}      of several

What is in a report is written by the names of its fields. JSON has no NaN and no infinity: they are the words
"NaN", "Infinity" and "-Infinity" where a number stands. A table is a list of columns, each with its name,
dtype and values, and its index where it has one of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from saelab.analysis.controls import Alone, Beside, Control
from saelab.analysis.suites.registry import Found
from saelab.config import from_dict, is_integer, is_number, is_unicode, to_dict, typed
from saelab.files import Stamp, json_bytes, write_bytes
from saelab.types import ConfigError, FormatError, short

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
STAMP = Stamp("saelab-report", 1, remedy="Pass a file that report.save wrote.")
WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
NUMBERS = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()
TEXT = ("object", "str")
DEEPEST = 64
"""Lists and objects within each other, at most."""


def plain(report: Any) -> dict[str, Any]:
    """A report as JSON can hold it.

    Args:
        report: A `Report`.

    Raises:
        ConfigError: A table of a suite holds what is neither number, boolean, text nor missing.
    """
    return to_dict(report, _write)


def options_of(suite: Any) -> dict[str, Any]:
    """The options of a suite as JSON can hold them; what it cannot (a model, a table) is told in words.

    Args:
        suite: A frozen dataclass.
    """
    return to_dict(suite, _told)


def save(path: str | Path, data: Mapping[str, Any]) -> Path:
    """Write one report or several, atomically.

    Args:
        path: The file, x.json.
        data: `{"report": ...}` or `{"reports": {name: ...}}`, of `plain`.

    Raises:
        StoreError: It cannot be written.
    """
    write_bytes(path, dumped(data).encode())
    return Path(path)


def dumped(data: Mapping[str, Any]) -> str:
    """As `save`, the content of the file."""
    return json_bytes({**STAMP.fields(), **data}).decode()


def parsed(text: str | bytes, where: object = "the text") -> dict[str, Any]:
    """What a file of reports says, as far as it can be told without knowing what a report is.

    Args:
        text: Its content.
        where: Where it is from, for messages.

    Raises:
        FormatError: It is no such file, or of a newer saelab.
    """
    if not isinstance(text, str | bytes):
        message = f"A report must be read from text. Got {short(text)}. Pass what report.to_json() gave."
        raise FormatError(message)
    data = text.encode("utf-8", "replace") if isinstance(text, str) else text
    return STAMP.parse(data, where, "report")


def part(data: Mapping[str, Any], name: str, where: object = "the text") -> Any:
    """What a file of reports holds under "report" or "reports".

    Args:
        data: Of `parsed`.
        name: Which of the two is wanted.
        where: Where it is from, for messages.

    Raises:
        FormatError: It holds the other, or neither.
    """
    if set(data) != {*STAMP.fields(), name} or not isinstance(data[name], Mapping):
        other = "one SAE" if name == "report" else "several SAEs"
        message = (
            f"The file must hold the report of {other}, {name!r}. Got {short(sorted(data))} in {where}. Read "
            "it by saelab.analysis.read_report, which takes either."
        )
        raise FormatError(message)
    return data[name]


def report_of(cls: type[T], data: Any, where: object = "the text") -> T:
    """A report that `plain` wrote.

    Args:
        cls: `Report`.
        data: Its plain data.
        where: Where it is from, for messages.

    Raises:
        FormatError: It is none: wrong types, missing or unknown fields, a claim that is neither beside a
            control nor says why it has none, columns of different lengths.
    """
    check_text(data, 0)
    try:
        return from_dict(cls, data, _read)
    except (ConfigError, OverflowError) as error:
        message = f"A report must be one that saelab wrote. Got in {where}: {error}"
        raise FormatError(message) from error


def check_text(value: Any, depth: int) -> None:
    """See that every text in it can be printed and written again, and nothing is nested beyond reason.

    Args:
        value: What JSON gave.
        depth: How deep it lies itself.

    Raises:
        FormatError: A text holds half of a surrogate pair, or lists and objects lie too deep.
    """
    if depth > DEEPEST:
        message = f"A report must be nested {DEEPEST} deep at most. Got more. {STAMP.remedy}"
        raise FormatError(message)
    if isinstance(value, str) and not is_unicode(value):
        message = (
            f"A report must hold Unicode. Got half of a surrogate pair in {short(value)}. {STAMP.remedy}"
        )
        raise FormatError(message)
    if isinstance(value, Mapping):
        for key, each in value.items():
            check_text(key, depth + 1)
            check_text(each, depth + 1)
    elif isinstance(value, list):
        for each in value:
            check_text(each, depth + 1)


def _write(value: Any, where: str) -> Any:
    import pandas as pd

    if is_number(value) and not math.isfinite(value):
        return _word(float(value))
    if isinstance(value, Control):
        return {
            "what": value.what,
            "value": _number(value.value),
            "interval": list(map(_number, value.interval)),
        }
    if isinstance(value, pd.DataFrame):
        return _frame(value, where)
    return NotImplemented


def _told(value: Any, where: str) -> Any:
    if is_number(value) and not math.isfinite(value):
        return _word(float(value))
    keyed = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    listed = isinstance(value, Sequence) and not isinstance(value, bytes | bytearray)
    if value is None or is_number(value) or isinstance(value, bool) or listed or keyed or is_dataclass(value):
        return NotImplemented
    return short(value)


def _read(hint: Any, value: Any, where: str) -> Any:
    """What `_write` wrote, and what needs more than its type."""
    import pandas as pd

    if hint is pd.DataFrame:
        return _read_frame(value, where)
    if hint is float:
        if isinstance(value, str) and value in WORDS:
            return WORDS[value]
        return NotImplemented
    if hint is int and is_integer(value) and where.endswith((".n", ".n_rows")) and value < 0:
        message = f"{where} must be a count. Got {short(value)}. {STAMP.remedy}"
        raise ConfigError(message)
    if hint == Beside | Alone:
        kind = Alone if isinstance(value, Mapping) and "why" in value else Beside
        return typed(kind, value, where, _read)
    if hint is Control:
        said = _keys(value, ("what", "value", "interval"), where)
        of = typed(tuple[float, float], said["interval"], where, _read)
        return Control(typed(str, said["what"], where), typed(float, said["value"], where, _read), of)
    if hint is Found:
        said = _keys(value, ("claims", "left_out", "tables"), where)
        return Found(
            typed(Mapping[str, Beside | Alone], said["claims"], f"{where}.claims", _read),
            typed(Mapping[str, str], said["left_out"], f"{where}.left_out"),
            typed(Mapping[str, pd.DataFrame], said["tables"], f"{where}.tables", _read),
        )
    return NotImplemented


def _keys(value: Any, keys: Sequence[str], where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or set(value) != set(keys):
        got = sorted(value) if isinstance(value, Mapping) else value
        message = f"{where} must be an object of {', '.join(keys)}. Got {short(got)}. {STAMP.remedy}"
        raise ConfigError(message)
    return value


def _frame(frame: pd.DataFrame, where: str) -> dict[str, Any]:
    """A table as columns, and its index where that is more than numbers from 0 on."""
    import pandas as pd

    if not all(isinstance(name, str) for name in frame.columns) or not frame.columns.is_unique:
        got = short(list(frame.columns))
        message = f"{where} must have names of its own for all columns. Got {got}. Name them."
        raise ConfigError(message)
    columns = [
        {"name": name, **_column(frame[name].to_numpy(), frame[name].dtype, f"{where}[{name!r}]")}
        for name in frame.columns
    ]
    index = frame.index
    if isinstance(index, pd.RangeIndex) and index.equals(pd.RangeIndex(len(frame))) and index.name is None:
        return {"n": len(frame), "columns": columns}
    levels = [index.get_level_values(i) for i in range(index.nlevels)]
    told = [
        {"name": level.name, **_column(level.to_numpy(), level.dtype, f"{where}.index")} for level in levels
    ]
    return {"n": len(frame), "columns": columns, "index": told}


def _column(values: np.ndarray, dtype: Any, where: str) -> dict[str, Any]:
    if str(dtype) in NUMBERS:
        plain_ones = values.tolist()
        return {
            "dtype": str(dtype),
            "values": [_number(v) if isinstance(v, float) else v for v in plain_ones],
        }
    if str(dtype) in TEXT:
        return {"dtype": str(dtype), "values": [_cell(value, where) for value in values]}
    message = f"{where} must hold numbers, booleans or text. Got {dtype}. Turn it into one of them by astype."
    raise ConfigError(message)


def _cell(value: Any, where: str) -> Any:
    """One value of a column of text, or of several kinds."""
    if value is None or isinstance(value, bool | str):
        return value
    if is_integer(value):
        return int(value)
    if is_number(value):
        return float(value) if math.isfinite(value) else {"number": _word(float(value))}
    message = f"{where} must hold numbers, booleans or text. Got {short(value)}. Turn it into text."
    raise ConfigError(message)


def _read_frame(value: Any, where: str) -> pd.DataFrame:
    import pandas as pd

    _keys(
        value,
        ("n", "columns", *(("index",) if isinstance(value, Mapping) and "index" in value else ())),
        where,
    )
    n, columns, index = value["n"], value["columns"], value.get("index")
    if not (is_integer(n) and n >= 0 and isinstance(columns, list) and isinstance(index, list | None)):
        message = (
            f"{where} must have a count of rows, columns and perhaps an index. Got others. {STAMP.remedy}"
        )
        raise ConfigError(message)
    found = [_read_column(each, n, where) for each in columns]
    names = [each["name"] for each in columns]
    if len(set(names)) < len(names) or None in names:
        message = f"{where} must have names of its own for all columns. Got {short(names)}. {STAMP.remedy}"
        raise ConfigError(message)
    levels = [_read_column(each, n, where) for each in index or ()]
    titles = [each["name"] for each in index or ()]
    if not levels:
        at: Any = pd.RangeIndex(n)
    elif len(levels) == 1:
        at = pd.Index(levels[0], name=titles[0])
    else:
        at = pd.MultiIndex.from_arrays(levels, names=titles)
    if n > 0 and not names and not levels:
        message = f"{where} must have columns for its {n:,} rows. Got none. {STAMP.remedy}"
        raise ConfigError(message)
    return pd.DataFrame(dict(zip(names, found, strict=True)), index=at)


def _read_column(value: Any, n: int, where: str) -> Any:
    import pandas as pd

    _keys(value, ("name", "dtype", "values"), where)
    name, dtype, values = value["name"], value["dtype"], value["values"]
    where = f"{where}[{name!r}]"
    if not isinstance(name, str | None) or not isinstance(values, list) or len(values) != n:
        message = f"{where} must have a name and {n:,} values. Got others. {STAMP.remedy}"
        raise ConfigError(message)
    if dtype in TEXT:
        cells = np.empty(n, dtype=object)
        cells[:] = [_read_cell(each, where) for each in values]
        if dtype == "object":
            return cells
        if not all(isinstance(each, str) or each != each for each in cells):
            message = f"{where} must hold text. Got {short(values)}. {STAMP.remedy}"
            raise ConfigError(message)
        return pd.array(cells, dtype="str")
    if dtype not in NUMBERS:
        message = (
            f"{where} must have a dtype of {', '.join((*NUMBERS, *TEXT))}. Got {short(dtype)}. {STAMP.remedy}"
        )
        raise ConfigError(message)
    kind = {"b": bool, "f": float}.get(np.dtype(dtype).kind, int)
    checked = [typed(kind, each, where, _read) for each in values]
    if kind is int and checked:
        bounds = np.iinfo(dtype)
        if not bounds.min <= min(checked) <= max(checked) <= bounds.max:
            message = f"{where} must hold what {dtype} can. Got {short(checked)}. {STAMP.remedy}"
            raise ConfigError(message)
    return np.array(checked, dtype=dtype)


def _read_cell(value: Any, where: str) -> Any:
    if isinstance(value, Mapping) and list(value) == ["number"] and value["number"] in WORDS:
        return WORDS[value["number"]]
    if value is None or isinstance(value, bool | str | float) or is_integer(value):
        return value
    message = f"{where} must hold numbers, booleans or text. Got {short(value)}. {STAMP.remedy}"
    raise ConfigError(message)


def _word(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _number(value: float) -> Any:
    return float(value) if math.isfinite(value) else _word(value)


__all__ = ["STAMP", "check_text", "dumped", "options_of", "parsed", "part", "plain", "report_of", "save"]
