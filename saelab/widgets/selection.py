"""What is chosen, and how views follow it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import traitlets

from saelab.types import ConfigError, short


class Number(traitlets.TraitType):
    """An integer >= 0, of numpy too, or None."""

    default_value = None
    allow_none = True

    def validate(self, obj: Any, value: Any) -> int:
        return _number(self.name or "", value)


class Numbers(traitlets.TraitType):
    """A tuple of integers >= 0, made of any sequence of them, or None."""

    default_value = None
    allow_none = True

    def validate(self, obj: Any, value: Any) -> tuple[int, ...]:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            message = f"{self.name} must be integers or None. Got {short(value)}. Pass e.g. (3, 7)."
            raise ConfigError(message)
        return tuple(_number(self.name or "", v) for v in value)


class Chosen(traitlets.HasTraits):
    """The five things that can be chosen; each may be None."""

    sae = traitlets.Unicode(None, allow_none=True).tag(sync=True)
    latent = Number().tag(sync=True)
    row = Number().tag(sync=True)
    document = Number().tag(sync=True)
    latents = Numbers().tag(sync=True)


CHOICES = ("sae", "latent", "row", "document", "latents")


class Selection(Chosen):
    """What is chosen, shared by views.

    sae: name of an SAE. latent: one of its latents. row: a row of its store. document: one of the store's.
    latents: several latents, such as a group that was found or is compared. Each may be None.
    """

    def __repr__(self) -> str:
        chosen = {name: getattr(self, name) for name in CHOICES}
        told = (f"{name}={short(value, 60)}" for name, value in chosen.items() if value is not None)
        return f"Selection({', '.join(told)})"


class Mirror:
    """What the views of one SAE share, `own`: the shared selection while this SAE is chosen, else what
    was chosen of it last."""

    def __init__(self, shared: Selection, name: str) -> None:
        self.shared, self.name = shared, name
        self.own = Selection(sae=name)
        self.own.observe(self._out, names=list(CHOICES[1:]))
        shared.observe(self._in)

    def _out(self, change: Any) -> None:
        with self.shared.hold_trait_notifications():
            self.shared.sae = self.name
            for trait in CHOICES[1:]:
                setattr(self.shared, trait, getattr(self.own, trait))

    def _in(self, change: Any) -> None:
        if self.shared.sae != self.name:
            return
        if change.name == "sae":  # this SAE is chosen again: what was chosen of it is shown
            self._out(change)
        else:
            setattr(self.own, change.name, change.new)


class Labels(traitlets.HasTraits):
    """Labels of one SAE that were edited while views of it were open, which show them instead of those that
    they came with."""

    edited = traitlets.Dict()
    """latent, as a string -> {"label", "name"}: its label, and what lists call it"""


class Link:
    """Keeps what a view has chosen and a selection the same, for what the view follows. What the view has
    chosen at first is chosen for all."""

    def __init__(self, selection: Selection, view: Chosen, follows: Sequence[str]) -> None:
        self.selection, self.view, self.follows = selection, view, list(follows)
        for name in self.follows:
            if (value := getattr(view, name)) is not None:
                setattr(selection, name, value)
            setattr(view, name, getattr(selection, name))
        selection.observe(self._selected, self.follows)
        view.observe(self._chosen, self.follows)

    def close(self) -> None:
        """Let go of both."""
        self.selection.unobserve(self._selected, self.follows)
        self.view.unobserve(self._chosen, self.follows)

    def _selected(self, change: Any) -> None:
        setattr(self.view, change.name, change.new)

    def _chosen(self, change: Any) -> None:
        setattr(self.selection, change.name, change.new)


def _number(name: str, value: Any) -> int:
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        message = f"{name} must be an integer >= 0 or None. Got {short(value)}. Pass e.g. 7."
        raise ConfigError(message)
    return number
