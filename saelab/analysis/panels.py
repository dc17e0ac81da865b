"""What is shown of a result: figures beside their controls, tables, drawings. One place knows how.

A result is whatever has a `to_frame()`; that is all that it must have. What more it says of itself is found
by what it is made of: figures that stand beside controls, wherever they are in it, and drawings, where it has
`drawings()`. One that knows better how it is shown says so by `panels()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np

from saelab.analysis.controls import OWN, SCORE, Alone, Beside
from saelab.arguments import is_listed
from saelab.types import ConfigError, short

if TYPE_CHECKING:
    import pandas as pd


class Curve(NamedTuple):
    """One series of a drawing."""

    name: str
    x: np.ndarray
    y: np.ndarray
    """float64 [n] both"""
    kind: str = "points"
    """"points", "line" (marks that a line joins), "guide" (a thin line that things are held against) or
    "steps\""""
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    """ends of the 95 % intervals of y, NaN where there is none"""


@dataclass(frozen=True)
class Drawing:
    """Points and lines over two axes."""

    kind: ClassVar[str] = "drawing"
    title: str
    x: str
    y: str
    """what the axes are, with units"""
    curves: tuple[Curve, ...]
    log: bool = False
    """whether x is logarithmic"""


@dataclass(frozen=True)
class Table:
    """Lines under the names of their columns."""

    kind: ClassVar[str] = "table"
    title: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class Figures:
    """Figures of one SAE or several, each beside its controls."""

    kind: ClassVar[str] = "figures"
    claims: Mapping[str, Mapping[str, Beside | Alone]]
    """of each SAE ("" of one that stands alone) by what the figure is called"""
    heads: tuple[str, ...] = ()
    """what all of them are of"""
    left_out: tuple[tuple[str, str, str], ...] = ()
    """SAE, figure, why"""
    same_rows: bool = True
    title: str = field(default="figures")


Panel = Figures | Table | Drawing


@runtime_checkable
class Tabled(Protocol):
    """Any result of an analysis."""

    def to_frame(self) -> pd.DataFrame:
        """It as a table."""
        ...


@runtime_checkable
class Drawn(Protocol):
    """A result that is more than its table."""

    def drawings(self) -> tuple[Drawing, ...]:
        """What is drawn of it."""
        ...


@runtime_checkable
class Panelled(Protocol):
    """A result that says itself how it is shown."""

    def panels(self) -> tuple[Panel, ...]:
        """What is shown of it, in this order."""
        ...


def panels_of(result: Any) -> tuple[Panel, ...]:
    """What is shown of a result.

    Args:
        result: With `panels()`, or with `to_frame()`; a list of such, or several by name; a data frame.

    Raises:
        ConfigError: It is none.
    """
    if isinstance(result, Panelled):
        return result.panels()
    claims = claims_of(result)
    frame = frame_of(result)
    shown: list[Panel] = [Figures({"": claims})] if claims else []
    if not (claims and list(frame.columns[:2]) == [SCORE, OWN]):  # else it says the same again
        shown.append(Table(type(result).__name__, frame))
    return (*shown, *(result.drawings() if isinstance(result, Drawn) else ()))


def claims_of(result: Any) -> dict[str, Beside | Alone]:
    """The figures of a result that stand beside controls, by the names of its fields, or as it names them.

    Args:
        result: Any; what is no dataclass has none.
    """
    found: dict[str, Beside | Alone] = {}
    for each in fields(result) if is_dataclass(result) else ():
        value = getattr(result, each.name)
        named = value if isinstance(value, Mapping) else {each.name: value}
        found |= {str(k): v for k, v in named.items() if isinstance(v, Beside | Alone)}
    return found


def frame_of(result: Any) -> pd.DataFrame:
    """A result as one table, its index as columns where that has names.

    Args:
        result: With `to_frame()`; a list of such, or of named tuples, which are a line each; several by name;
            or a data frame.

    Raises:
        ConfigError: It is none.
    """
    import pandas as pd

    if isinstance(result, Tabled):
        frame = result.to_frame()
    elif isinstance(result, pd.DataFrame):
        frame = result
    elif isinstance(result, Mapping) and result:
        parts = {str(name): frame_of(each) for name, each in result.items()}
        return pd.concat(parts, names=["name"]).reset_index("name").reset_index(drop=True)
    elif is_listed(result) and len(result) and not isinstance(result, np.ndarray):
        lines = [each for each in result if hasattr(each, "_fields") and not isinstance(each, Tabled)]
        if len(lines) == len(result):
            return pd.DataFrame(lines)
        return pd.concat([frame_of(each) for each in result], ignore_index=True)
    else:
        message = (
            f"A report is shown of a result with a table. Got {short(result)}. Pass what "
            "saelab.evaluate or saelab.analysis gives."
        )
        raise ConfigError(message)
    return frame.reset_index() if any(name is not None for name in frame.index.names) else frame


def in_words(result: Any) -> str:
    """A result as text: as it prints itself, or else its name and its table.

    Args:
        result: As `frame_of`.

    Raises:
        ConfigError: It is none.
    """
    if type(result).__str__ is not object.__str__ and not isinstance(result, Mapping | Sequence):
        return str(result)
    table = frame_of(result).to_string(max_rows=MOST_WORDS, float_format=lambda v: f"{v:.4g}", na_rep="")
    return f"{type(result).__name__}\n{table}"


MOST_WORDS = 60
"""Lines of a table in words, at most."""

__all__ = [
    "Curve",
    "Drawing",
    "Figures",
    "Panel",
    "Panelled",
    "Table",
    "Tabled",
    "claims_of",
    "frame_of",
    "in_words",
    "panels_of",
]
