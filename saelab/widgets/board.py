"""Several views in one cell, in columns that can be resized and that are found again as they were left."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import traitlets

from saelab.arguments import an_integer, text
from saelab.files import parse_json, user_folder, write_bytes
from saelab.types import ConfigError, FormatError, SaelabError, short
from saelab.widgets import assets, paper, still
from saelab.widgets.base import WRITTEN, View
from saelab.widgets.export import Views, page
from saelab.widgets.questions import Ask
from saelab.widgets.selection import CHOICES, Selection, choose, chosen
from saelab.widgets.source import HasSources
from saelab.widgets.wire import Packed

MOST = 12
"""Views of a board."""
HEIGHTS = (120, 2000)
"""Pixels of a view, unless it is as high as it wants to be."""
DEFAULT = ("map", "features")


class BoardView(View):
    """Views beside and below each other. Those that share a selection are linked in the browser already.

    What it shows of each view is what the view shows in a cell of its own; columns are made wider, views
    higher, folded and moved by mouse and by keys. Its arrangement is kept in the user's data folder, by name
    and kinds of the views, and found again by the next board of that name.

    Args:
        views: 1 to `MOST` views, none of which is a board.
        columns: In how many columns they begin.
        name: What its arrangement is remembered by; "" for not at all.

    Raises:
        ConfigError: There is no view, too many, one that was closed, or something else.
    """

    kind = "board"
    follows = ()

    selections = traitlets.List().tag(sync=True)
    entries = traitlets.List().tag(sync=True)
    places = traitlets.Unicode().tag(sync=True)
    told = traitlets.Dict().tag(sync=True)
    """number of a view -> what it paints first, of those that told something since: a run that is watched"""

    def __init__(self, views: Sequence[View], *, columns: int = 2, name: str = "board") -> None:
        self.views = _checked(views)
        columns = an_integer(1, 6)("columns", columns)
        self._name = text("name", name)
        shared: dict[int, Selection] = {id(view.selection): view.selection for view in self.views}
        self._selections = list(shared.values())
        self._kinds = {view.kind: view.folder for view in self.views}
        self._start = [[j for j in range(len(self.views)) if j % columns == i] for i in range(columns)]
        super().__init__(selections=self._chosen(), entries=self._entries(), places=self._remembered())
        for each in self._selections:
            each.observe(self._chose, names=list(CHOICES))
        for view in self.views:
            view.observe(self._optioned, names=[*view.options(), *WRITTEN])
            view.observe(self._news, names="opening")
        self.observe(self._chosen_here, "selections")
        self.observe(self._optioned_here, "entries")
        self.observe(self._placed, "places")

    @staticmethod
    def of(lab: HasSources, *views: View, columns: int = 2, name: str = "board") -> BoardView:
        """Views in one cell, resizable; without any the map of all latents beside the browser over them.

        Args:
            lab: whose views they are.
            views: that were made by it, or by others: `lab.board(lab.map(), lab.feature(), lab.show(text))`.
            columns: in how many columns they begin; later they are as they were left.
            name: what the arrangement is remembered by; "" for not at all.

        Raises:
            ConfigError: There are too many, or something that is no view.
            StoreError: No view is given, and the chosen SAE has no store.
        """
        made = views or tuple(getattr(lab, kind)() for kind in DEFAULT if hasattr(lab, kind))
        return BoardView(made, columns=columns, name=name)

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        return {"of": self._of}

    def exported(self) -> Iterable[Ask]:
        """None: a page holds the views.

        Raises:
            ConfigError: Always.
        """
        message = "A page is made of views. Got a board. Pass its views, or write it by board.export(path)."
        raise ConfigError(message)

    def export(self, path: str | Path) -> Path:
        if Path(path).suffix.lower() in paper.SUFFIXES:
            return super().export(path)
        columns = [
            [each["view"] for each in column["views"]] for column in json.loads(self.places)["columns"]
        ]
        views = [self.views[number] for column in columns for number in column]
        return page(path, "Board", [Views("", views, columns=[len(column) for column in columns])])

    def text(self) -> str:
        return "\n\n".join(view.text() for view in self.views)

    def html(self) -> str:
        parts: list[str] = []
        left = still.MOST_BYTES - 2000
        for view in self.views:
            shown = still.bounded(view.html(), view.text())
            if len(shown.encode()) > left:
                shown = still.words(f"{view.kind}: left out here, a saved notebook has no room for it.")
            left -= len(shown.encode())
            parts.append(shown)
        return still.frame(*parts)

    def close(self) -> None:
        """Take the board away; its views stay, and nothing of them is watched any more."""
        if self._link is not None:
            for each in self._selections:
                each.unobserve(self._chose, names=list(CHOICES))
            for view in self.views:
                view.unobserve(self._optioned, names=[*view.options(), *WRITTEN])
                view.unobserve(self._news, names="opening")
        super().close()

    @traitlets.default("_esm")
    def _default_esm(self) -> str:
        return assets.board(self.kind, self._kinds)

    @traitlets.default("_css")
    def _default_css(self) -> str:
        return assets.css({self.kind: None, **self._kinds})

    def _opening(self) -> dict[str, Any]:
        """What its views came with."""
        asks = [(number, ask) for number, view in enumerate(self.views) for ask in view.first()]
        held = [(_asked(number, ask), self.views[number].opening.get(ask.key())) for number, ask in asks]
        return {ask.key(): answer for ask, answer in held if answer is not None}

    def _of(self, view: int, question: str, args: str) -> Packed:
        return self.views[an_integer(0, len(self.views) - 1)("view", view)].answer(question, json.loads(args))

    # ---- what is chosen and the views' options, here and in the views

    def _chosen(self) -> list[dict[str, Any]]:
        """As JSON has it, so that what comes back is the same."""
        taken = map(chosen, self._selections)
        return [{k: list(v) if isinstance(v, tuple) else v for k, v in each.items()} for each in taken]

    def _entries(self) -> list[dict[str, Any]]:
        numbers = {id(each): i for i, each in enumerate(self._selections)}
        return [
            {
                "kind": view.kind,
                "follows": list(view.follows),
                "options": {**view.options(), **{name: getattr(view, name) for name in WRITTEN}},
                "selection": numbers[id(view.selection)],
            }
            for view in self.views
        ]

    def _chose(self, change: Any) -> None:
        self.selections = self._chosen()

    def _news(self, change: Any) -> None:
        self.told = {**self.told, str(self.views.index(change.owner)): change.new}

    def _optioned(self, change: Any) -> None:
        self.entries = self._entries()

    def _chosen_here(self, change: Any) -> None:
        for each, said in zip(self._selections, change.new, strict=True):
            choose(each, {name: said.get(name) for name in CHOICES})

    def _optioned_here(self, change: Any) -> None:
        for view, entry in zip(self.views, change.new, strict=True):
            for name in view.options():
                if entry["options"][name] != getattr(view, name):
                    setattr(view, name, entry["options"][name])

    # ---- how it is arranged

    def _placed(self, change: Any) -> None:
        if self._name and (path := self._path()) is not None and _sound(change.new, len(self.views)):
            # an arrangement that can't be kept is no reason to stop
            with contextlib.suppress(SaelabError, OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, change.new.encode())

    def _remembered(self) -> str:
        path = self._path() if self._name else None
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path is not None and _sound(kept := path.read_text("utf-8"), len(self.views)):
                return kept
        columns = [
            {"width": 1, "views": [{"view": j, "height": None, "folded": False} for j in column]}
            for column in self._start
            if column
        ]
        return json.dumps({"columns": columns})

    def _path(self) -> Path | None:
        said = json.dumps([self._name, [view.kind for view in self.views]])
        with contextlib.suppress(SaelabError, OSError):
            return user_folder("data") / "boards" / f"{hashlib.sha256(said.encode()).hexdigest()[:24]}.json"
        return None


def _asked(number: int, ask: Ask) -> Ask:
    """A view's question as the board's."""
    args = json.dumps(dict(sorted(ask.args.items())), ensure_ascii=False, separators=(",", ":"))
    return Ask("of", {"view": number, "question": ask.question, "args": args})


def _checked(views: Sequence[View]) -> tuple[View, ...]:
    views = tuple(views)
    for view in views:
        if not isinstance(view, View) or isinstance(view, BoardView) or view._link is None:
            got = "a board" if isinstance(view, BoardView) else short(view)
            closed = isinstance(view, View) and view._link is None
            message = (
                f"A board is made of open views. Got {'a view that was closed' if closed else got}. "
                "Pass e.g. lab.features(), lab.map()."
            )
            raise ConfigError(message)
    if not 1 <= len(views) <= MOST or len(set(map(id, views))) < len(views):
        message = (
            f"A board has 1 to {MOST} views, each once. Got {len(views)}, {len(set(map(id, views)))} of them "
            "different. Make another board for more."
        )
        raise ConfigError(message)
    return views


def _sound(places: str, n: int) -> bool:
    """Whether an arrangement is of n views, each once."""
    try:
        columns = parse_json(places.encode(), "the arrangement", of=dict)["columns"]
        each = [view for column in columns for view in column["views"]]
        widths = [column["width"] for column in columns]
        heights = [view["height"] for view in each if view["height"] is not None]
        return (
            sorted(view["view"] for view in each) == list(range(n))
            and all(type(view["view"]) is int and isinstance(view["folded"], bool) for view in each)
            and all(type(width) in (int, float) and 0 < width < 100 for width in widths)
            and all(type(height) in (int, float) and HEIGHTS[0] <= height <= HEIGHTS[1] for height in heights)
        )
    except (FormatError, KeyError, TypeError, AttributeError):
        return False


__all__ = ["BoardView"]
