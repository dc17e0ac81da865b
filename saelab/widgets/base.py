"""What every view does: answer its questions, follow the selection, print as text, export."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import traitlets

from saelab.files import path_of
from saelab.types import ConfigError, SaelabError, nearest, short
from saelab.widgets import assets, paper, still
from saelab.widgets.export import Views, page
from saelab.widgets.questions import Ask, Shared
from saelab.widgets.selection import CHOICES, Chosen, Labels, Link, Selection
from saelab.widgets.wire import Packed

WRITTEN = ("labels", "written")
"""Traits of every view that say what was written of latents since it was opened."""
# a longer answer is not sent along with a view, but asked for
OPENING_BYTES = 100_000
TOGETHER_S, TOGETHER_BYTES = 0.1, 1_000_000
"""Answers to questions that came together go together, until they took so long or are so many bytes."""


class View(anywidget.AnyWidget, Chosen):
    """Base of the views. A view says its kind, what it follows, its answers, and which of them go where.

    The front end sends `{id, ask, args}`; the kernel answers `{id, ok}` with binary fields, or `{id, error}`;
    several questions of one kind may come together (see docs/widgets.md). The only synchronised state is what
    is chosen, a few options, and the short answers that a view paints first: a kernel that goes on to the
    next cell answers nothing until it is done.

    To add one: write a subclass with its `kind` and its `answers`, the module `widgets/views/KIND.js`, and
    a line in `saelab/widgets/__init__.py`.

    Args:
        selection: What is chosen, shared with other views; None for one of its own.
        edits: Labels that are edited while the view is open; None for none.
        options: Traits of the view: those that it follows (chosen at the start, in all views of the
            selection) and those of the subclass.

    Raises:
        ConfigError: An option is unknown, or the view's kind names no module.
    """

    kind: str = ""
    """name of the view's module in the browser"""
    folder: ClassVar[Path | None] = None
    """where that module lies, for views that do not come with saelab"""
    follows: tuple[str, ...] = ("latent",)
    """which of the selection's traits the view shows or sets"""

    _link: Link | None = None

    opening = traitlets.Dict().tag(sync=True)
    labels = traitlets.Dict().tag(sync=True)
    written = traitlets.Int().tag(sync=True)
    _esm = traitlets.Unicode().tag(sync=True)
    _css = traitlets.Unicode().tag(sync=True)

    def __init__(
        self, *, selection: Selection | None = None, edits: Labels | None = None, **options: Any
    ) -> None:
        strange = {*CHOICES, *WRITTEN} - set(self.follows)
        known = [n for n in self.class_trait_names() if not n.startswith("_") and n not in strange]
        for name in options:
            if name not in known:
                message = f"Unknown option {name!r}. {nearest(name, known)}Leave it out."
                raise ConfigError(message)
        self.selection = selection if selection is not None else Selection()
        super().__init__(**options)
        self._link = Link(self.selection, self, self.follows)
        self._edits = Labels() if edits is None else edits
        self._edits.observe(self._relabelled, "edited")
        self._edits.observe(self._annotated, "written")
        self.opening = self._opening()
        self.on_msg(self._received)

    # ---- what a subclass says of itself

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        """Question -> function of its arguments by keyword, `Shared` where other views give the same.

        Raises:
            ConfigError: The class gives none.
        """
        message = f"{type(self).__name__} is no view. Got no answers. Use one of saelab.widgets."
        raise ConfigError(message)

    def first(self) -> Iterable[Ask]:
        """The questions whose answers the view paints first; sent along with it where they are short."""
        return ()

    def exported(self) -> Iterable[Ask]:
        """The questions that an exported page answers."""
        return self.first()

    def left_out(self) -> str:
        """What an exported page does not hold of the view, in words; "" where it holds all."""
        return ""

    def text(self) -> str:
        """The view in words."""
        return type(self).__name__

    def html(self) -> str:
        """The view as it stands, for pages that run nothing: HTML that is inert, with inline styles alone,
        and of `saelab.widgets.still.MOST_BYTES` at most. By default its words.
        """
        return still.frame(still.words(self.text()))

    def picture(self) -> str:
        """The view as SVG, for paper.

        Raises:
            ConfigError: It is none that is printed so.
        """
        message = (
            f"A picture for paper is of a view that draws one. Got {type(self).__name__}, which has words "
            "and tables. Export x.html, or take the figure() of what saelab.analysis gives."
        )
        raise ConfigError(message)

    # ---- what all do

    def options(self) -> dict[str, Any]:
        """The synchronised traits of the subclass: what its JavaScript reads beside what is chosen."""
        return {n: getattr(self, n) for n in self.keys if n not in View.class_trait_names() and n[0] != "_"}

    def answer(self, question: str, args: Mapping[str, Any]) -> Packed:
        """What the browser is answered: one of `answers`, or "step", which every view takes.

        Args:
            question: Its name.
            args: Of that question.

        Raises:
            ConfigError: The view has no such question.
        """
        answers = {**self.answers(), "step": self._step}
        if question not in answers:
            message = (
                f"A question must be one of {', '.join(answers)}. Got {short(question)}. Run the cell again."
            )
            raise ConfigError(message)
        return answers[question](**args)

    def export(self, path: str | Path) -> Path:
        """Write the view as one HTML file that needs no kernel and no network, and holds all that it can
        show; or as a picture for paper, where the file is called x.svg or x.png.

        Args:
            path: The file.

        Returns:
            The path.

        Raises:
            ConfigError: The view has no such picture.
            MissingDependency: What makes a PNG is not installed.
            StoreError: It cannot be written.
        """
        if path_of(path, "The file of a view").suffix.lower() in paper.SUFFIXES:
            return paper.write(path, self.picture())
        return page(path, type(self).__name__.removesuffix("View"), [Views("", [self])])

    def close(self) -> None:
        """Take the view away, in the browser too; the selection lets go of it."""
        if self._link is not None:
            self._link.close()
            self._link = None
            self._edits.unobserve(self._relabelled, "edited")
            self._edits.unobserve(self._annotated, "written")
        super().close()

    def __repr__(self) -> str:
        return self.text()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if data is not None:
            data["text/plain"] = self.text()
            # front ends show the widget where its model lives, and this where nothing runs
            data["text/html"] = still.bounded(self.html(), self.text())
        return bundle

    # files are read when the first view is made, not when its class is
    @traitlets.default("_esm")
    def _default_esm(self) -> str:
        return assets.module(self.kind, self.folder)

    @traitlets.default("_css")
    def _default_css(self) -> str:
        return assets.css({self.kind: self.folder})

    @traitlets.default("keys")
    def _synchronised(self) -> list[str]:
        left = set(CHOICES) - set(self.follows)
        return [name for name in self.traits(sync=True) if name not in left]

    def _relabelled(self, change: Any) -> None:
        """Show the labels that were edited."""
        self.labels = change.new

    def _annotated(self, change: Any) -> None:
        """Ask for notes, tags and lists anew."""
        self.written = change.new

    def _opening(self) -> dict[str, Any]:
        """The short ones of the first answers, by key."""
        answers, out = self.answers(), {}
        for ask in self.first():
            header, buffers = answers[ask.question](**ask.args).encoded()
            if sum(map(len, buffers)) <= OPENING_BYTES:
                out[ask.key()] = {"header": header, "buffers": buffers}
        return out

    def _step(self, by: int) -> Packed:
        """Go back or forward in what was chosen."""
        return Packed({"moved": self.selection.back() if by < 0 else self.selection.forward()})

    def _received(self, _: Any, content: Any, buffers: Any) -> None:
        content = content if isinstance(content, dict) else {}
        if not isinstance(many := content.get("many"), list):
            self.send(*self._answered(content, content))
            return
        with contextlib.suppress(Exception):  # each answer says what is wrong with it
            answer = self.answers()[content["ask"]]
            if isinstance(answer, Shared) and answer.fetch is not None:
                answer.fetch([each["args"] for each in many])
        answers, data, since = [], [], time.monotonic()
        for each in many:
            answer, fields = self._answered(content, each if isinstance(each, dict) else {})
            answers.append(answer)
            data += fields
            if time.monotonic() - since > TOGETHER_S or sum(map(len, data)) > TOGETHER_BYTES:
                self.send({"answers": answers}, data)
                answers, data, since = [], [], time.monotonic()
        if answers:
            self.send({"answers": answers}, data)

    def _answered(self, content: dict[str, Any], each: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """A question's answer, or what went wrong, and its buffers."""
        number = each.get("id")
        try:
            header, data = self.answer(content["ask"], each.get("args", {})).encoded()
        except SaelabError as error:
            return {"id": number, "error": str(error)}, []
        except Exception as error:  # a view must show what went wrong, whatever it was
            return {"id": number, "error": f"{type(error).__name__}: {error}"}, []
        return {"id": number, "ok": header}, data


def checked_questions(
    questions: Mapping[str, Callable[..., Any]], *needed: str
) -> Mapping[str, Callable[..., Any]]:
    """The questions, if those that a view cannot do without are there. Raises ConfigError."""
    for name in needed:
        if not callable(questions.get(name)):
            message = (
                f"questions must hold a function {name!r}. Got {sorted(questions)}. Pass "
                f"{{{name!r}: function}}."
            )
            raise ConfigError(message)
    return dict(questions)
