"""Circuits: an attribution graph by layer and position, the nodes that carry a task, or whether codes tell
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets

from saelab.arguments import is_listed, real
from saelab.files import path_of
from saelab.types import ConfigError, StoreError, nearest, short
from saelab.widgets import circuit_parts, still
from saelab.widgets.base import View
from saelab.widgets.cards import card_answers
from saelab.widgets.circuit_graph import GraphParts
from saelab.widgets.circuit_parts import CircuitParts, CodesParts
from saelab.widgets.questions import Ask
from saelab.widgets.source import HasSources, Source
from saelab.widgets.wire import Packed, clean, cleaned

if TYPE_CHECKING:
    from saelab.analysis.circuits.graphs import AttributionGraph

PAGE_CARDS = 2_000
"""Latents whose cards a page holds, at most: those of the most influence."""


def parts_of(result: Any) -> circuit_parts.Parts:
    """A result as the view takes it.

    Raises:
        ConfigError: It is none that the view shows, or has no nodes.
    """
    for parts in (GraphParts, CircuitParts, CodesParts):
        if all(hasattr(result, each) for each in parts.known_by):
            if not len(getattr(result, "nodes", (result,))):
                message = (
                    f"A circuit that is shown must have nodes. Got an empty {type(result).__name__}. Keep "
                    "more: prune less, or explain another text."
                )
                raise ConfigError(message)
            return parts(result)
    message = (
        f"A circuit view shows an AttributionGraph, a Circuit or a CodeTest. Got {short(result)}. Pass what "
        "attribution_graph, read_graph, circuit or head_codes(...).against(...) gives."
    )
    raise ConfigError(message)


class CircuitView(View):
    """A graph to prune, pin and group; or a circuit beside random sets; or ROC curves beside controls.

    Args:
        result: An `AttributionGraph`, a `Circuit` or a `CodeTest`.
        sources: SAEs whose latents may be nodes, and give their cards; the first is the one whose chosen
            latent is followed.
        options: `node` and `edge`, the shares of influence that pruning keeps; `pinned`, ids of nodes;
            `groups`, lists of a name and ids; `alone`, whether what is pinned is drawn alone; `told`, the id
            of the node that is told of; and those of `View`.

    Raises:
        ConfigError: The result is none of these, or has no nodes; or an option is unknown or out of range.
    """

    kind = "circuit"
    follows = ("latent", "row", "document")

    node = traitlets.Float(0.8).tag(sync=True)
    edge = traitlets.Float(0.98).tag(sync=True)
    pinned = traitlets.List().tag(sync=True)
    groups = traitlets.List().tag(sync=True)
    alone = traitlets.Bool().tag(sync=True)
    told = traitlets.Unicode("").tag(sync=True)

    def __init__(self, result: Any, sources: Sequence[Source] = (), **options: Any) -> None:
        self.result, self.parts, self.sources = result, parts_of(result), list(sources)
        self._refuse(options)
        self.places, self.notes = circuit_parts.placed(self.parts, self.sources)
        super().__init__(**{**self.parts.options(), **options})

    @staticmethod
    def of(
        lab: HasSources,
        result: Any,
        *,
        node: float = 0.8,
        edge: float = 0.98,
        pinned: Iterable[str] | None = None,
        sae: str | None = None,
    ) -> CircuitView:
        """What is found of a circuit: an attribution graph by layer and position, to prune, pin and group;
        the nodes that carry a task, beside random sets; or whether codes of heads tell them, beside controls.

        A latent of one of the Lab's SAEs is told of by its card. `export("graph.json")` writes a graph as
        circuit-tracer reads it, with what is pinned.

        Args:
            lab: whose SAEs the latents are of.
            result: Of `attribution_graph`, `read_graph`, `circuit` or `HeadCodes.against`.
            node: Of a graph, the share of the influence that nodes keep.
            edge: The share of the influence that edges keep.
            pinned: Ids of nodes; None: those that the graph itself names.
            sae: name of the SAE whose chosen latent is followed; None: the chosen one if it has latents in
                the result, else the first that has.

        Raises:
            ConfigError: The result is none of these, or has no nodes; or an option is out of range.
        """
        parts = parts_of(result)
        own = lab.source(sae)
        sources = [own, *(lab.source(name) for name in lab.saes if name != own.selection.sae)]
        hooks = {hook for hook, _ in parts.latents()}
        if sae is None and hooks:  # which loads the SAEs
            sources.sort(key=lambda each: not hooks.intersection(each.questions["hooks"]()))
        options: dict[str, Any] = {} if pinned is None else {"pinned": pinned}
        selection, edits = sources[0].selection, sources[0].edits
        return CircuitView(result, sources, node=node, edge=edge, selection=selection, edits=edits, **options)

    # ---- for the browser

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        cards = {
            f"{_prefix(number)}{question}": answer
            for number in sorted(set(self.places.values()))
            for question, answer in card_answers(self.sources[number].questions).items()
        }
        return {"circuit": self._circuit, "file": self._file, "choose": self._choose, **cards}

    def first(self) -> Iterable[Ask]:
        return [Ask("circuit")]

    def exported(self) -> Iterable[Ask]:
        yield from self.first()
        if isinstance(self.parts, GraphParts):
            yield Ask("file")
        for hook, latent in self.parts.latents()[:PAGE_CARDS]:
            if hook in self.places and self._named(self.places[hook]):
                yield Ask(f"{_prefix(self.places[hook])}card", {"latent": latent})

    def left_out(self) -> str:
        n = len(self.parts.latents())
        return f"the cards of all but {PAGE_CARDS:,} of {n:,} latents" if n > PAGE_CARDS else ""

    def text(self) -> str:
        lines = [str(self.result), *self.notes]
        if isinstance(self.parts, GraphParts):
            lines += self.parts.words(self.node, self.edge)
            for of, to, weight, n in self.parts.between(self.pinned, self.groups):
                lines.append(f"pinned: {weight:+.3g}  {of} -> {to}" + (f" ({n} edges)" if n > 1 else ""))
        return clean("\n".join(lines))

    def html(self) -> str:
        return still.frame(still.words(self.text()), self.parts.form())

    def export(self, path: str | Path) -> Path:
        """Write the view as a page that needs no kernel; or, where the file is called x.json, an attribution
        graph as circuit-tracer reads it, with what is pinned and grouped.

        Args:
            path: The file.

        Returns:
            The path.

        Raises:
            ConfigError: x.json, of what is no attribution graph.
            StoreError: It cannot be written.
        """
        if path_of(path, "The file of a view").suffix.lower() != ".json":
            return super().export(path)
        self._graph().to_json(path)
        return Path(path)

    # ---- answers

    def _circuit(self) -> Packed:
        names = {hook: self._named(number) for hook, number in self.places.items()}
        # of an SAE without a store there are no cards
        places = {hook: number for hook, number in self.places.items() if names[hook]}
        made = self.parts.packed(names, places)
        return made._replace(header={**made.header, "notes": cleaned(self.notes)})

    def _file(self) -> Packed:
        """The graph as its file has it; what is pinned is written into it in the browser."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "graph.json"
            self._graph().to_json(path)
            return Packed({"name": path.name}, {"data": np.frombuffer(path.read_bytes(), np.uint8)})

    def _choose(self, sae: int, latent: int) -> Packed:
        """Chooses a latent of another SAE than the one that is followed, in its own views."""
        self.sources[sae].choose(latent)
        return Packed({})

    def _graph(self) -> AttributionGraph:
        if not isinstance(self.parts, GraphParts):
            message = (
                f"A circuit-tracer file holds an attribution graph. Got {type(self.result).__name__}. Export "
                "x.html."
            )
            raise ConfigError(message)
        return self.parts.marked(self.pinned, self.groups, self.told)

    def _named(self, number: int) -> Sequence[str]:
        """What the latents of an SAE are called; nothing where it has no store."""
        try:
            return self.sources[number].table().names
        except StoreError:
            return ()

    def _refuse(self, options: dict[str, Any]) -> None:
        """Options as they are kept, if they are any. Raises ConfigError."""
        for name in ("node", "edge"):
            if real(0.0)(name, options.get(name, 0.5)) > 1:
                message = f"{name} must be a share, at most 1. Got {options[name]}. Pass e.g. {name}=0.8."
                raise ConfigError(message)
        groups = options.get("groups", ())
        pinned = options.get("pinned", ())
        for name, value in (("pinned", pinned), ("groups", groups)):
            if not is_listed(value):
                message = (
                    f"{name} must be a list. Got {short(value)}. Pass ids of nodes, as graph.ids has them."
                )
                raise ConfigError(message)
        if "pinned" in options:
            options["pinned"] = list(pinned)
        known = getattr(self.parts, "at", {})
        asked = [*pinned, *(each for _, ids in groups for each in ids)]
        asked += [options["told"]] if options.get("told") else []
        for each in asked:
            if each not in known:
                message = (
                    f"What is pinned must be ids of nodes. Got {short(each)}. {nearest(str(each), known)}"
                    "Pass some of graph.ids."
                )
                raise ConfigError(message)


def _prefix(number: int) -> str:
    """Of the questions of an SAE: those of the first are called as everywhere, so that a page holds their
    answers once."""
    return f"{number}_" if number else ""
