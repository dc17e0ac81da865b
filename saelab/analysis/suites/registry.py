"""What a suite of `saelab.evaluate` is, and which there are.

A suite asks one question of an SAE ("does it hold what a probe finds?") and answers it by claims, each a
figure beside its control. Its options are the fields of a frozen dataclass, so that a report can say with
which it was run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from saelab.analysis.controls import Alone, Beside
from saelab.arguments import is_listed
from saelab.capabilities import lacking
from saelab.types import ConfigError, nearest, short

if TYPE_CHECKING:
    import pandas as pd

    from saelab.analysis.panels import Drawing
    from saelab.analysis.sources import Ground
    from saelab.sae import SAE

S = TypeVar("S", bound="type[Suite]")
_SUITES: dict[str, type[Suite]] = {}
CORE = "core"
"""The scores that every report has (`saelab.analysis.scores`): no suite of this folder."""


@dataclass(frozen=True)
class Found:
    """What a suite found of one SAE."""

    claims: Mapping[str, Beside | Alone]
    """by name: a figure beside its control, or one that says why it has none"""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """figures that could not be measured, and why"""
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """what lies behind the claims, by what each table is of"""

    def __post_init__(self) -> None:
        for name, claim in self.claims.items():
            if not isinstance(claim, Beside) and not (isinstance(claim, Alone) and claim.why):
                message = (
                    f"A claim must stand beside its control, or say why it has none. Got {short(claim)} as "
                    f"{name!r}. Give a Beside, or an Alone with a reason."
                )
                raise ConfigError(message)


class Suite(ABC):
    """One suite, a frozen dataclass: its docstring is what people read, its fields are its options."""

    name: ClassVar[str] = ""
    needs: ClassVar[tuple[type, ...]] = ()
    """what the subject must be able to do (`saelab.capabilities.HasLoss`, ...); none: rows alone suffice"""

    def lacks(self, ground: Ground) -> str | None:
        """Why it can't be run on that ground; None where it can."""
        if not self.needs:
            return None
        if ground.subject is None:
            return "activations alone do not suffice: pass the subject and a corpus"
        missing = [name for need in self.needs for name in lacking(ground.subject, need)]
        kind = type(ground.subject).__name__
        return f"a {kind} lacks {', '.join(dict.fromkeys(missing))}" if missing else None

    @classmethod
    def drawings(cls, found: Found) -> tuple[Drawing, ...]:
        """What is drawn of what it found, where a report is shown; nothing by default.

        Args:
            found: Of `run`, or of a report that was read.
        """
        return ()

    @abstractmethod
    def run(self, sae: SAE, ground: Ground) -> Found:
        """Measure one SAE. A SaelabError leaves the suite out of the report, with the error's words."""


def register(name: str) -> Callable[[S], S]:
    """A class decorator, to stand above `@dataclass(frozen=True)`, that adds a suite to `saelab.evaluate`.

    Args:
        name: of the suite, as reports have it.

    Raises:
        ConfigError: The class is no Suite, no frozen dataclass, has no docstring of its own, or another
            suite has the name.
    """

    def decorated(cls: S) -> S:
        old = _SUITES.get(name)
        taken = name == CORE or (
            old is not None and (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__)
        )
        frozen = is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
        said = bool(cls.__doc__) and not cls.__doc__.startswith(f"{cls.__name__}(")  # what dataclass writes
        if not (isinstance(cls, type) and issubclass(cls, Suite)) or not frozen or not said or taken:
            message = (
                "A suite must be a frozen dataclass below saelab.analysis.suites.Suite with a docstring and "
                f"a name of its own. Got {cls.__name__} as {name!r}. Say in the docstring what it asks."
            )
            raise ConfigError(message)
        cls.name = name
        _SUITES[name] = cls
        return cls

    return decorated


def registered() -> dict[str, type[Suite]]:
    """Every suite, by its name."""
    return dict(_SUITES)


def chosen(suites: Sequence[str | Suite] | str | Suite) -> list[Suite]:
    """The suites that are meant, without the core, which every report has.

    Args:
        suites: Names, or suites with options of their own.

    Raises:
        ConfigError: One is unknown, is neither, or comes twice.
    """
    found: dict[str, Suite] = {}
    for each in suites if is_listed(suites) else [suites]:  # type: ignore[union-attr]
        if isinstance(each, str) and each == CORE:
            continue
        if isinstance(each, str) and each in _SUITES:
            suite = _SUITES[each]()
        elif isinstance(each, Suite):
            suite = each
        else:
            like = nearest(each, [CORE, *_SUITES]) if isinstance(each, str) else ""
            message = (
                f"A suite must be one of {', '.join([CORE, *sorted(_SUITES)])}, or a suite with options. "
                f"Got {short(each)}. {like}Pass e.g. suites=('core',)."
            )
            raise ConfigError(message)
        if suite.name in found:
            message = f"A suite runs once. Got {suite.name!r} twice. Pass it with one set of options."
            raise ConfigError(message)
        found[suite.name] = suite
    return list(found.values())


__all__ = ["CORE", "Found", "Suite", "chosen", "register", "registered"]
