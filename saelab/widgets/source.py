"""What views ask of a Lab: how the views that one makes are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MethodType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from saelab.arguments import flag
from saelab.widgets.selection import Labels, Selection

if TYPE_CHECKING:
    from saelab.analysis.results import LatentTable, SampleCodes

P = ParamSpec("P")
V = TypeVar("V")


@dataclass(frozen=True)
class Source:
    """One SAE of a Lab."""

    table: Callable[[], LatentTable]
    """one line for each latent; raises StoreError where the SAE has no store"""
    codes: Callable[[Any], SampleCodes]
    """of a sample that the subject reads"""
    questions: Mapping[str, Callable[..., Any]]
    """what views ask: "card", "cards", "documents", "search", "labels", "session", "layers", "predictions",
    "notes", "tags", "lists", "hooks"; the same functions each time, so that a page holds an answer once"""
    selection: Selection
    """what all views of the SAE share"""
    checked: Callable[[int], int]
    """a latent of the SAE; raises RangeError"""
    choose: Callable[[int], None]
    """chooses the SAE and a latent of it, in every linked view"""
    edits: Labels = field(default_factory=Labels)
    """what was written of its latents, which every view of the SAE shows"""

    def __repr__(self) -> str:
        return f"Source({self.selection.sae}; answers {len(self.questions)} questions)"

    def selection_for(self, latent: int | None, follow: bool) -> Selection:
        """What a new view shows: the shared selection where the call names no latent, or where it follows;
        else one of its own, so that nothing moves that is shown already.

        Args:
            latent: That the call names.
            follow: Choose it in every linked view, and follow what is chosen later.

        Raises:
            RangeError: The latent is out of range.
        """
        if latent is None:
            return self.selection
        latent = self.checked(latent)
        if not flag("follow", follow):
            return Selection(sae=self.selection.sae, latent=latent)
        self.choose(latent)
        return self.selection


class HasSources(Protocol):
    """A Lab, to its views."""

    @property
    def saes(self) -> Mapping[str, Any]:
        """The SAEs by name, each loaded when it is first asked for."""
        ...

    def source(self, sae: str | None = None) -> Source:
        """The SAE of a name; None: the chosen one."""
        ...


class Made(Generic[P, V]):
    """A view's `of` as a method of Labs, whose arguments editors and type checkers know."""

    def __init__(self, of: Callable[Concatenate[HasSources, P], V]) -> None:
        self.of = of

    def __get__(self, lab: HasSources | None, owner: type) -> Callable[P, V]:
        made: Any = self.of if lab is None else MethodType(self.of, lab)
        return made
