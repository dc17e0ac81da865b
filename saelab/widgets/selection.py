"""What is chosen, and how views follow it."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Mapping, Sequence
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
    """The six things that can be chosen; each may be None."""

    sae = traitlets.Unicode(None, allow_none=True).tag(sync=True)
    latent = Number().tag(sync=True)
    row = Number().tag(sync=True)
    document = Number().tag(sync=True)
    latents = Numbers().tag(sync=True)
    list = traitlets.Unicode(None, allow_none=True).tag(sync=True)


CHOICES = ("sae", "latent", "row", "document", "latents", "list")
STEPS = ("sae", "latent", "latents", "list")
"""What it is a step to choose another of; a row and a document go with the step that they were chosen in."""
KEPT_STEPS = 100


def chosen(of: Chosen) -> dict[str, Any]:
    """All that is chosen, by name."""
    return {name: getattr(of, name) for name in CHOICES}


def choose(of: Chosen, values: Mapping[str, Any]) -> None:
    """Choose these at once."""
    with of.hold_trait_notifications():
        for name, value in values.items():
            setattr(of, name, value)


class Selection(Chosen):
    """What is chosen, shared by views.

    sae: name of an SAE. latent: one of its latents. row: a row of its store. document: one of the store's.
    latents: several latents, such as a group that was found or is compared. list: the name of the list that
    these are, of those of a Lab. Each may be None.
    """

    def __init__(self, **chosen: Any) -> None:
        self.history = History(self)
        super().__init__(**chosen)
        self.history = History(self)

    def back(self) -> bool:
        """Choose again what was chosen before.

        Returns:
            Whether anything was.
        """
        return self.history.move(self.history.past, self.history.future)

    def forward(self) -> bool:
        """Choose again what `back` went away from.

        Returns:
            Whether there is any.
        """
        return self.history.move(self.history.future, self.history.past)

    def notify_change(self, change: Any) -> None:
        """Tell everybody who follows; then it is a step, whatever they have chosen in turn."""
        super().notify_change(change)
        self.history.note()

    def __repr__(self) -> str:
        told = (f"{name}={short(value, 60)}" for name, value in chosen(self).items() if value is not None)
        return f"Selection({', '.join(told)})"


class History:
    """What was chosen, step by step.

    Args:
        selection: Whose.

    Attributes:
        past: What was chosen before, the last one last.
        future: What `back` went away from, the next one last.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.past: list[dict[str, Any]] = []
        self.future: list[dict[str, Any]] = []
        self.now = chosen(selection)
        self.held = False

    def note(self) -> None:
        """Go on from what is chosen now, if that is another step."""
        if self.held:
            return
        now = chosen(self.selection)
        if any(now[name] != self.now[name] for name in STEPS):
            self.past = [*self.past, self.now][-KEPT_STEPS:]
            self.future = []
        self.now = now

    @contextlib.contextmanager
    def one_step(self) -> Iterator[None]:
        """What is chosen within is one step."""
        outer, self.held = self.held, True
        try:
            yield
        finally:
            self.held = outer
            self.note()

    def move(self, out: list[dict[str, Any]], to: list[dict[str, Any]]) -> bool:
        """Choose the last of `out`, and keep what is chosen in `to`."""
        if not out:
            return False
        to.append(self.now)
        self.now = out.pop()
        self.held = True
        try:
            # whoever is told of an SAE chooses what was chosen of it last
            self.selection.sae = self.now["sae"]
            choose(self.selection, self.now)
        finally:
            self.held = False
        self.now = chosen(self.selection)
        return True


class Mirror:
    """What the views of one SAE share, `own`: the shared selection while this SAE is chosen, else what
    was chosen of it last."""

    def __init__(self, shared: Selection, name: str) -> None:
        self.shared, self.name = shared, name
        self.own = Selection(sae=name)
        self.own.history = shared.history
        self.own.observe(self._out, names=list(CHOICES[1:]))
        shared.observe(self._in)

    def _out(self, change: Any) -> None:
        choose(self.shared, {**chosen(self.own), "sae": self.name})

    def _in(self, change: Any) -> None:
        if self.shared.sae != self.name:
            return
        if change.name == "sae":  # this SAE is chosen again: what was chosen of it is shown
            self._out(change)
        else:
            setattr(self.own, change.name, change.new)


class Labels(traitlets.HasTraits):
    """What was written of one SAE's latents while views of it were open: they show it instead of what they
    came with."""

    edited = traitlets.Dict()
    """latent, as a string -> {"label", "name"}: its label, and what lists call it"""
    written = traitlets.Int()
    """how many times notes, tags and lists were written"""


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
        # what the view chose at once is chosen at once
        choose(self.selection, {name: getattr(self.view, name) for name in self.follows})


def _number(name: str, value: Any) -> int:
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        message = f"{name} must be an integer >= 0 or None. Got {short(value)}. Pass e.g. 7."
        raise ConfigError(message)
    return number
