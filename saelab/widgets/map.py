"""A map of all latents: a picture that is moved, searched and encircled."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets

from saelab.arguments import one_of, text
from saelab.types import SaelabError
from saelab.widgets import still, still_map
from saelab.widgets.base import View, checked_questions
from saelab.widgets.questions import Ask, Shared
from saelab.widgets.source import HasSources
from saelab.widgets.still_map import NOWHERE
from saelab.widgets.wire import Packed, clean, rounded

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from saelab.analysis.maps.results import LatentMap

BY, METHODS = ("decoder", "cofiring", "tokens"), ("pca", "umap", "tsne")
PAGE_ABOUT = 4096
"""Latents whose neighbours and tokens a page holds: all of them, or the most frequent ones."""
PAGE_COLUMNS = 131_072
"""Latents up to which a page holds all columns and all names; of more those that it shows."""
FOUND = 20_000
"""Latents that a search gives, at most."""


class MapView(View):
    """All latents in a picture where alike ones are near, beside how far that can be trusted.

    Hovering, the arrow keys and a search tell of a latent what it fires on and who is near it in the whole
    space; a click chooses it, a line around some chooses these. PCA is shown at once; a slower method takes
    its place when it is there.

    Args:
        questions: {"map": (by, method) -> LatentMap}. If they are there: "start_map": (by, method) -> a job
            that makes it in the background (`done`, `progress`, `result()`, `cancel()`); "near": (latents,
            by) -> who is near them (`saelab.analysis.maps.looking.Near`); "firings": latent -> a frame of
            what it fires on (name, count, lift); "table": () -> LatentTable; "column": SQL -> LatentColumn;
            "columns": () -> name -> what it holds; "find": text -> latents.
        options: `by`, `method`, `colour` and `size` (a column or an SQL expression; "cluster" and ""),
            `engine` ("auto", "webgl" or "canvas"), and those of `View`.

    Raises:
        ConfigError: A question is missing, or an option unknown.
    """

    kind = "map"
    follows = ("latent", "latents")

    by = traitlets.Unicode("decoder").tag(sync=True)
    method = traitlets.Unicode("pca").tag(sync=True)
    colour = traitlets.Unicode("cluster").tag(sync=True)
    size = traitlets.Unicode("").tag(sync=True)
    engine = traitlets.Unicode("auto").tag(sync=True)
    columns = traitlets.List().tag(sync=True)

    def __init__(self, questions: Mapping[str, Callable[..., Any]], **options: Any) -> None:
        self.questions = checked_questions(questions, "map")
        for name, known in (("by", BY), ("method", METHODS), ("engine", ("auto", "webgl", "canvas"))):
            one_of(*known)(name, options.get(name, known[0]))
        for name in ("colour", "size"):
            text(name, options.get(name, ""))
        self._maps: dict[tuple[str, str], LatentMap] = {}
        self._jobs: dict[tuple[str, str], Any] = {}
        self._packed: dict[tuple[str, str], Packed] = {}
        known = self.questions["columns"]() if "columns" in self.questions else {}
        super().__init__(columns=[list(pair) for pair in known.items()], **options)

    @staticmethod
    def of(
        lab: HasSources,
        by: str = "decoder",
        method: str = "pca",
        *,
        colour: str = "cluster",
        size: str = "",
        sae: str | None = None,
        engine: str = "auto",
    ) -> MapView:
        """A map of all latents, in which alike ones are near: move, search, encircle, choose.

        Args:
            lab: whose latents they are.
            by: what they are alike by: "decoder" directions; "cofiring", the rows on which they fire; or
                "tokens", what they fire on.
            method: "pca", at once; "umap" or "tsne", made in the background and kept.
            colour: "cluster", a column of the store's table of latents, or an SQL expression over it.
            size: a column or expression; "" for one size.
            sae: name of the SAE; None: the chosen one.
            engine: "auto" draws by WebGL2 where a graphics card is behind it, else by the processor;
                "webgl" and "canvas" insist.

        Raises:
            StoreError: The SAE has no store, or the store nothing to place latents by.
            ConfigError: An option is none of these.
        """
        source = lab.source(sae)
        questions = {**source.questions, "table": source.table}
        questions |= {name: questions[f"map_{name}"] for name in ("column", "columns", "find")}
        return MapView(
            questions, by=by, method=method, colour=colour, size=size, engine=engine,
            selection=source.selection, edits=source.edits,
        )  # fmt: skip

    # ---- in Python

    @property
    def map(self) -> LatentMap:
        """The map that is shown: of a method that is still at work, PCA's."""
        return self._shown(self.by, self.method)[0]

    @property
    def selected(self) -> tuple[int, ...]:
        """The latents that are chosen in the map, or elsewhere; none where none are."""
        return tuple(self.latents or ())

    def figure(self) -> go.Figure:
        """The map that is shown as a plotly figure, for papers."""
        return self.map.figure()

    def picture(self) -> str:
        """The map that is shown as SVG, with the names of clusters."""
        return still_map.picture(self.map, self.latents, scale=3.0, labels=40)

    def export(self, path: str | Path) -> Path:
        """Write the map: `x.svg` and `x.png` as a picture with the names of clusters, else a page.

        A page keeps moving, hovering, searching and encircling. It holds every latent's place, cluster and
        name, the neighbours and tokens of 4,096 (the most frequent ones), and of up to 131,072 latents all
        columns: at most 80 bytes a latent and 4 MB.

        Args:
            path: The file.

        Returns:
            The path.

        Raises:
            MissingDependency: A PNG is wanted, and vl-convert-python is not installed.
            StoreError: It cannot be written.
        """
        return super().export(path)

    # ---- for the browser

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        near = self.questions.get("near")
        return {
            "points": self._points,
            "progress": self._progress,
            "cancel": self._cancel,
            "about": Shared(
                lambda latent, by: self._about([latent], by)[0],
                near or self,
                self._about_for_page,
                in_bulk=True,
            ),
            "column": lambda sql: pack_column(self.questions["column"](sql)),
            "names": lambda: Packed({}, {"names": list(map(clean, self._names()))}),
            "find": lambda text: Packed({}, {"latents": self._find(text)}),
        }

    def first(self) -> Iterable[Ask]:
        asked = [Ask("points", {"by": self.by, "method": self.method})]
        asked += [Ask("column", {"sql": sql}) for sql in self._columns()]
        return asked if self.latent is None else [*asked, *self._asks_about([self.latent])]

    def exported(self) -> Iterable[Ask]:
        shown = self.map
        few = len(shown.x) <= PAGE_COLUMNS
        yield Ask("points", {"by": self.by, "method": self.method})
        if "table" in self.questions:
            yield Ask("names")
        columns = [sql for sql, _ in self.columns] if few and "column" in self.questions else []
        for sql in dict.fromkeys([*self._columns(), *columns]):
            yield Ask("column", {"sql": sql})
        latents = shown.placed
        if len(latents) > PAGE_ABOUT:
            if "table" in self.questions:
                count = np.asarray(self.questions["table"]().count)[latents]
                latents = latents[np.argsort(-count, kind="stable")]
            latents = np.sort(latents[:PAGE_ABOUT])
        yield from self._asks_about(list(dict.fromkeys([*latents.tolist(), *self._chosen()])))

    def left_out(self) -> str:
        n, said = len(self.map.placed), []
        if n > PAGE_ABOUT:
            said.append(f"neighbours and tokens of all but {PAGE_ABOUT:,} of {n:,} latents")
        if len(self.map.x) > PAGE_COLUMNS and self.columns and "column" in self.questions:
            said.append("columns that are not shown")
        return " and ".join(said)

    def text(self) -> str:
        return str(self.map)

    def html(self) -> str:
        listed = (self.latents or ())[: still_map.LISTED]
        names = self._names() if listed else ()
        some = {int(j): str(names[j]) for j in listed if j < len(names)}
        return still.frame(still_map.form(self.map, self.latents, some))

    # ---- answers

    def _shown(self, by: str, method: str) -> tuple[LatentMap, Any]:
        """The map, and None; or what stands in for it, and the job that makes it."""
        one_of(*BY)("by", by)
        one_of(*METHODS)("method", method)
        key = by, method
        if key in self._maps:
            return self._maps[key], None
        if method == "pca" or "start_map" not in self.questions:
            self._maps[key] = self.questions["map"](by, method)
            return self._maps[key], None
        job = self._jobs.get(key)
        if job is None:
            self._jobs[key] = job = self.questions["start_map"](by, method)
        if job.done:
            del self._jobs[key]
            self._maps[key] = job.result()  # raises what went wrong; asked again, it begins anew
            return self._maps[key], None
        return self._shown(by, "pca")[0], job

    def _points(self, by: str, method: str) -> Packed:
        made, job = self._shown(by, method)
        key = by, made.method
        if key not in self._packed:
            self._packed[key] = pack_points(made)
        self.by, self.method = by, method
        header, fields, _ = self._packed[key]
        return Packed({**header, "job": None if job is None else _told(job)}, fields)

    def _progress(self, by: str, method: str) -> Packed:
        job = self._jobs.get((by, method))
        return Packed({"job": None if job is None else _told(job)})

    def _cancel(self, by: str, method: str) -> Packed:
        job = self._jobs.pop((by, method), None)
        if job is not None:
            job.cancel()
        self.method = "pca"
        return Packed({})

    def _about(self, latents: Sequence[int], by: str) -> list[Packed]:
        names = self._names()
        table = self.questions["table"]() if "table" in self.questions else None
        near: Sequence[Any] = [None] * len(latents)
        if "near" in self.questions:
            near = self.questions["near"](latents, by)
        called = partial(_name, names)
        out = []
        for latent, found in zip(latents, near, strict=True):
            header: dict[str, Any] = {"latent": int(latent), "name": called(latent), "tokens": []}
            if table is not None:
                header |= {
                    name: rounded(float(getattr(table, name)[latent])) for name in ("count", "density", "max")
                }
            if "firings" in self.questions:
                frame = self.questions["firings"](latent)
                columns = (frame[name].tolist() for name in ("name", "count", "lift"))
                header["tokens"] = [
                    [clean(token), int(n), rounded(float(lift))]
                    for token, n, lift in zip(*columns, strict=True)
                ]
            if found is not None:
                header["neighbours"] = [[int(j), rounded(float(c)), called(j)] for j, c in found.neighbours]
                header["control"] = rounded(float(found.control))
            out.append(Packed(header))
        return out

    def _about_for_page(self, args: Sequence[Mapping[str, Any]]) -> Iterable[Packed]:
        for by, some in itertools.groupby(args, key=lambda a: a["by"]):
            yield from self._about([a["latent"] for a in some], by)

    def _find(self, text: str) -> np.ndarray:
        """Latents whose number begins so, whose name holds it, or that fire on it."""
        words = text.strip().lower()
        names = self._names()
        found = [j for j, name in enumerate(names) if words in name.lower()] if words else []
        number = words.removeprefix("#")
        if number.isdecimal():
            found = [j for j in range(len(self.map.x)) if str(j).startswith(number)]
        elif words and "find" in self.questions:
            found += self.questions["find"](text)
        return np.array(sorted(dict.fromkeys(found))[:FOUND], np.int32)

    def _names(self) -> Sequence[str]:
        table = self.questions.get("table")
        names = table().names if table is not None else ()
        if self.labels and names:
            names = list(names)
            for latent, edited in self.labels.items():
                names[int(latent)] = edited["name"]
        return names

    def _columns(self) -> list[str]:
        """Those that are shown."""
        return [sql for sql in dict.fromkeys([self.colour, self.size]) if sql not in ("", "cluster")]

    def _chosen(self) -> list[int]:
        return [] if self.latent is None else [self.latent]

    def _asks_about(self, latents: Iterable[int]) -> list[Ask]:
        return [Ask("about", {"latent": latent, "by": self.by}) for latent in latents]


def pack_points(made: LatentMap) -> Packed:
    """Where latents lie, and what the map says of itself: 7 bytes a latent.

    Returns:
        Fields of all latents: `x`, `y` uint16 in steps of a 65,534th of the wider side, 65535 twice of what
        has no place; `cluster` uint16, 65535 of none; `dead` uint8. Header: `clusters`, `[name, latents, x,
        y]`, the largest first; `verdict`, `trusted`, `controls`, one a picture and measure.
    """
    x, y = still_map.quantised(made.x, made.y)
    cluster = np.where(made.cluster >= 0, made.cluster, NOWHERE).astype(np.uint16)
    middles = still_map.centres(x, y, made.cluster, len(made.names))
    count = np.bincount(made.cluster[made.cluster >= 0], minlength=len(made.names))
    clusters = [
        [clean(name), int(n), *map(float, middle)]
        for name, n, middle in zip(made.names, count, middles, strict=True)
        if n
    ]
    frame = made.controls()
    controls = [
        [*row[:2], *map(rounded, row[2:])] for row in frame.itertuples(index=False, name=None)
    ]  # picture, measure, value, low, high
    header = {
        "by": made.by, "method": made.method, "latents": len(x), "placed": len(made.placed),
        "never": int(made.dead.sum()), "clusters": clusters, "verdict": made.verdict,
        "trusted": made.trusted, "controls": controls,
    }  # fmt: skip
    return Packed(header, {"x": x, "y": y, "cluster": cluster, "dead": made.dead})


def pack_column(column: Any) -> Packed:
    """A `LatentColumn`: `values` float32 [d_sae] and how to read them."""
    header = {
        "sql": clean(column.sql), "title": clean(column.title),
        "categories": list(map(clean, column.categories)),
        "low": rounded(column.low), "high": rounded(column.high), "log": column.log,
    }  # fmt: skip
    return Packed(header, {"values": np.asarray(column.values, np.float32)})


def _told(job: Any) -> dict[str, Any]:
    """How far a job is."""
    what, share, seconds = job.progress
    error = job.error
    said = "" if error is None else str(error) if isinstance(error, SaelabError) else repr(error)
    return {"what": what, "share": share, "seconds": seconds, "done": job.done, "error": said}


def _name(names: Sequence[str], latent: int) -> str:
    return clean(names[latent]) if latent < len(names) else ""
