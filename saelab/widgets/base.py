"""What every view does: answer its questions, share the selection, print as text, export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import traitlets

from saelab.types import ConfigError, SaelabError, nearest
from saelab.widgets import assets
from saelab.widgets.encode import Packed

# a longer answer is not sent along with a view, but asked for
OPENING_BYTES = 100_000


class Selection(traitlets.HasTraits):
    """What is chosen, shared by the views of a Lab; each may be None."""

    sae = traitlets.Unicode(None, allow_none=True)
    latent = traitlets.Int(None, allow_none=True)
    latents = traitlets.Tuple(None, allow_none=True)
    row = traitlets.Int(None, allow_none=True)
    document = traitlets.Int(None, allow_none=True)


class View(anywidget.AnyWidget):
    """Base of the views.

    The front end sends `{id, ask, args}`; the kernel answers `{id, ok}` with binary buffers, or `{id,
    error}` (see docs/widgets.md). The only synchronised state is what is chosen, a few options, and the short
    answers that a view paints first: a kernel that goes on to the next cell answers nothing until it is done.
    """

    _css = assets.css()
    # the questions without arguments, whose answers a view paints first
    own: ClassVar[tuple[str, ...]] = ()
    latent = traitlets.Int(None, allow_none=True).tag(sync=True)
    opening = traitlets.Dict().tag(sync=True)

    def __init__(self, *, selection: Selection | None = None, **options: Any) -> None:
        known = [name for name in self.class_trait_names() if not name.startswith("_")]
        for name in options:
            if name not in known:
                message = f"Unknown option {name!r}. {nearest(name, known)}Leave it out."
                raise ConfigError(message)
        self.selection = selection if selection is not None else Selection()
        super().__init__(**options)
        if self.latent is not None:
            self.selection.latent = self.latent
        traitlets.link((self.selection, "latent"), (self, "latent"))
        self.opening = self._opening()
        self.on_msg(self._received)

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        """Question -> function of its arguments."""
        message = f"{type(self).__name__} is no view. Got no answers. Use one of saelab.widgets."
        raise ConfigError(message)

    def text(self) -> str:
        """The view in words."""
        return type(self).__name__

    def export(self, path: str | Path) -> Path:
        """Write the view as one HTML file that needs no kernel and no network, and holds all that it can
        show.

        Raises StoreError where it cannot be written.
        """
        from saelab.widgets.export import Views, page

        return page(path, type(self).__name__.removesuffix("View"), [Views("", [self])])

    def __repr__(self) -> str:
        return self.text()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if data is not None:
            data["text/plain"] = self.text()
        return bundle

    def _opening(self) -> dict[str, Any]:
        """Answers to send along, by question, "card:7" for a card."""
        asked: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in self.own]
        if self.latent is not None and getattr(self, "with_card", True):
            asked.append(("card", {"latent": self.latent}))
        packed = {":".join([q, *map(str, a.values())]): self.answers()[q](**a) for q, a in asked}
        short = {q: p for q, p in packed.items() if sum(map(len, p.buffers)) <= OPENING_BYTES}
        return {q: {"header": p.header, "buffers": p.buffers} for q, p in short.items()}

    def _received(self, _: Any, content: Any, buffers: Any) -> None:
        number = content.get("id") if isinstance(content, dict) else None
        try:
            packed = self.answers()[content["ask"]](**content.get("args", {}))
        except SaelabError as error:
            self.send({"id": number, "error": str(error)})
        except Exception as error:  # a view must show what went wrong, whatever it was
            self.send({"id": number, "error": f"{type(error).__name__}: {error}"})
        else:
            self.send({"id": number, "ok": packed.header}, packed.buffers)
