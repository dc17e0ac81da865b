"""A browser over all latents."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets

from saelab.analysis.results import LatentTable
from saelab.types import ConfigError, CorpusError, StoreError, nearest
from saelab.widgets import still
from saelab.widgets.base import View, checked_questions
from saelab.widgets.cards import asks_card, card_answers
from saelab.widgets.marks import asks_marks
from saelab.widgets.questions import Ask
from saelab.widgets.source import HasSources
from saelab.widgets.wire import Packed, clean

if TYPE_CHECKING:
    import pandas as pd

KNOWN = ("latent", "name", "density", "mean", "max", "min", "count", "strongest")
"""Columns that the table has; every other one is an expression of SQL."""
WAYS = ("text", "token", "example", "label", "latent")
PAGE_CARDS = 4_096
"""Latents whose cards an exported page holds, at most."""
FILES = {"csv": "text/csv", "json": "application/json", "parquet": "application/vnd.apache.parquet"}


class FeaturesView(View):
    """All latents as a list to sort, filter and search, beside the card of the chosen one; where several are
    chosen, or a list of them is, these alone.

    What is set in the browser is set here, and the other way round.

    Args:
        table: One line a latent.
        questions: {"card": latent -> FeatureCard, "search": text -> [(latent, value)], "find": way, value ->
            latent and score, "columns", "column", "where": those of `saelab.stores.browsing`, "notes",
            "tags", "lists"}. All but the first may be left out, and the browser does without.
        options: See `View`.

    Attributes:
        columns: What the list shows beside names: of KNOWN, or any expression of SQL.
        where: Only latents of which this expression of SQL is true; "" for all.
        sort: The column that it is sorted by; "score" for how well a search finds them.
        descending: The largest first.
        words: What stands in the box.
        way: How that is searched for: "" in names, as it is typed, else one of WAYS.

    Raises:
        ConfigError: A question is missing, or an option unknown.
    """

    kind = "features"
    follows = ("latent", "row", "document", "latents", "list")

    columns = traitlets.List(traitlets.Unicode(), ["density"]).tag(sync=True)
    where = traitlets.Unicode("").tag(sync=True)
    sort = traitlets.Unicode("density").tag(sync=True)
    descending = traitlets.Bool(True).tag(sync=True)
    words = traitlets.Unicode("").tag(sync=True)
    way = traitlets.Unicode("").tag(sync=True)
    begins = traitlets.Int(None, allow_none=True).tag(sync=True)
    """the latent whose card is shown until one is chosen"""
    able = traitlets.List(traitlets.Unicode()).tag(sync=True)
    """which questions are answered, of those that need not be"""

    def __init__(
        self, table: LatentTable, questions: Mapping[str, Callable[..., Any]], **options: Any
    ) -> None:
        self.table = table
        self.questions = checked_questions(questions, "card")
        able = [name for name in ("search", "find", "where", "column", "notes") if name in questions]
        super().__init__(**options, begins=table.telling(), able=able)

    @staticmethod
    def of(
        lab: HasSources,
        *,
        sae: str | None = None,
        columns: Sequence[str] = ("density",),
        where: str = "",
        sort: str = "density",
    ) -> FeaturesView:
        """A browser over all latents: sort, filter, search, read their cards, note, tag and list them.

        Args:
            lab: whose latents they are.
            sae: name of the SAE; None: the chosen one.
            columns: what it shows of each: "count", "density", "mean", "max", "min", or any expression of SQL
                over the table `described` of a store, such as "label", "tags" or "max / mean".
            where: only the latents of which this expression of SQL is true.
            sort: the column that they are sorted by.

        Raises:
            StoreError: The SAE has no store.
            ConfigError: A column or the filter is no such expression.
        """
        source = lab.source(sae)
        view = FeaturesView(
            source.table(),
            questions=source.questions,
            selection=source.selection,
            edits=source.edits,
            columns=_texts("columns", columns),
            where=_text("where", where),
            sort=_text("sort", sort),
        )
        # says now what is wrong with an expression
        if view.where.strip():
            view._asked("where")(view.where)
        for name in view._own():
            view._column(name)
        return view

    # ---- what is shown

    @property
    def selected(self) -> tuple[int, ...]:
        """The latents that the list holds, in its order.

        Raises:
            ConfigError: The filter or the column that it is sorted by is no expression of SQL.
        """
        found = self._searched()
        latents = np.arange(len(self.table)) if found is None else np.array([j for j, _ in found], np.int64)
        scope = self.latents
        keep = np.ones(len(self.table), bool) if scope is None else np.zeros(len(self.table), bool)
        if scope is not None:
            keep[[j for j in scope if j < len(self.table)]] = True
        if self.where.strip():
            true = np.zeros(len(self.table), bool)
            true[self._asked("where")(self.where)] = True
            keep &= true
        if found is None and self.words.strip():
            keep &= self._named(self.words.strip().lower())
        latents = latents[keep[latents]]
        if found is not None and self.sort == "score":
            return tuple(latents.tolist())
        values = self._column("density" if self.sort == "score" else self.sort)[latents]
        return tuple(latents[_order(values, latents, self.descending)].tolist())

    def frame(self) -> pd.DataFrame:
        """What the list shows: latent, name and its columns, a line for each of `selected`.

        Raises:
            ConfigError: An expression is no SQL.
        """
        import pandas as pd

        latents = np.array(self.selected, np.int64)
        names = [name for name in self.columns if name not in ("latent", "name")]
        made = {name: self._column(name)[latents] for name in names}
        called = [self.table.names[j] for j in latents.tolist()]
        return pd.DataFrame({"latent": latents, "name": called, **made})

    def _column(self, name: str) -> np.ndarray:
        """Of all latents."""
        table = self.table
        if name == "latent":
            return np.arange(len(table))
        if name == "name":
            return np.array(table.names, dtype=object)
        if name == "strongest":
            return np.maximum(table.max, -table.min)
        return getattr(table, name) if name in KNOWN else self._asked("column")(name)

    def _named(self, words: str) -> np.ndarray:
        """Whose number begins so, or whose name holds it."""
        digits = words.removeprefix("#")
        if digits.isdecimal() and digits.isascii():
            return np.array([str(j).startswith(digits) for j in range(len(self.table))], bool)
        return np.array([words in name.lower() for name in self.table.names], bool)

    def _searched(self) -> list[tuple[int, float]] | None:
        """What a search found, best first; None where none was made."""
        return self._find(self.words, self.way) if self.way and self.words.strip() else None

    def _find(self, words: str, way: str) -> list[tuple[int, float]]:
        if way not in WAYS:
            message = f"A search goes by {', '.join(WAYS)}. Got {way!r}. {nearest(way, WAYS)}Name one."
            raise ConfigError(message)
        if way == "text":
            if "search" not in self.questions:
                message = (
                    "Searching by a text needs the model. Got none. Make the view by a Lab: lab.features()."
                )
                raise CorpusError(message)
            return [(int(j), float(v)) for j, v in self.questions["search"](words)]
        value = _number(words) if way == "latent" else words
        found = self._asked("find")(way, value)
        return [(int(j), float(v)) for j, v in zip(found["latent"], found["score"], strict=True)]

    def _asked(self, question: str) -> Callable[..., Any]:
        if question not in self.questions:
            message = (
                f"A browser asks a store for {question!r}. Got none. Make the view by a Lab: lab.features()."
            )
            raise StoreError(message)
        return self.questions[question]

    # ---- what it answers

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        return {
            "table": lambda: pack_table(self.table),
            "names": lambda: Packed({}, {"names": list(map(clean, self.table.names))}),
            **card_answers(self.questions),
            "search": lambda text, way="text": Packed({"found": [list(x) for x in self._find(text, way)]}),
            "columns": lambda: Packed({"columns": [list(x) for x in self._asked("columns")().items()]}),
            "column": lambda sql: pack_column(self._asked("column")(sql)),
            "where": self._where,
            "file": self._file,
        }

    def first(self) -> Iterable[Ask]:
        latent = self.begins if self.latent is None else self.latent
        return [*self._lists(), *asks_card(latent)]

    def exported(self) -> Iterable[Ask]:
        where = [Ask("where", {"sql": self.where})] if self.where.strip() else []
        return [*self._lists(), *where, *(Ask("card", {"latent": j}) for j in self._carded())]

    def left_out(self) -> str:
        n, some = len(self.table) - len(self.table.absent), len(self._carded())
        return f"the cards of {n - some:,} latents, those that fire least" if some < n else ""

    def _carded(self) -> list[int]:
        """The latents whose cards a page holds: of many the most frequent ones, and the one that is shown."""
        known = np.setdiff1d(np.arange(len(self.table)), list(self.table.absent))
        if len(known) > PAGE_CARDS:
            order = np.argsort(-np.asarray(self.table.count)[known], kind="stable")
            shown = [j for j in (self.latent, self.begins) if j is not None]
            known = np.union1d(known[order[:PAGE_CARDS]], np.array(shown, known.dtype))
        return known.tolist()

    def _lists(self) -> list[Ask]:
        columns = [Ask("column", {"sql": name}) for name in self._own()]
        return [Ask("table"), Ask("names"), *asks_marks(self.questions), *columns]

    def _own(self) -> list[str]:
        """The columns that are expressions."""
        return list(dict.fromkeys(n for n in (*self.columns, self.sort) if n not in (*KNOWN, "score")))

    def _where(self, sql: str) -> Packed:
        true = np.zeros(len(self.table), bool)
        found = self._asked("where")(sql)
        true[found] = True
        return Packed({"n": len(found)}, {"bits": np.packbits(true, bitorder="little")})

    def _file(self, format: str) -> Packed:
        """`frame` as a file."""
        if format not in FILES:
            message = (
                f"A file is one of {', '.join(FILES)}. Got {format!r}. {nearest(format, FILES)}Name one."
            )
            raise ConfigError(message)
        frame, out = self.frame(), io.BytesIO()
        for name, values in frame.items():
            if values.dtype.kind not in "iufb":
                frame[name] = [clean(text) for text in values]
        if format == "csv":
            frame.to_csv(out, index=False)
        elif format == "json":
            frame.to_json(out, orient="records")
        else:
            frame.to_parquet(out, index=False)
        data = np.frombuffer(out.getvalue(), np.uint8)
        return Packed({"name": f"latents.{format}", "type": FILES[format]}, {"data": data})

    # ---- without a browser

    def text(self) -> str:
        table, listed = self.table, self.selected
        if self._is_plain():
            head = f"{len(table):,} latents, {table.dead:,} never fire; the most frequent:"
        else:
            head = f"{len(listed):,} of {len(table):,} latents; the first:"
        lines = [head]
        for j in listed[:10]:
            least = f"min {table.min[j]:7.3f}  " if table.signed else ""
            lines.append(f"{j:>7}  {table.density[j]:8.3%}  {least}max {table.max[j]:7.3f}  {table.names[j]}")
        return "\n".join(lines)

    def html(self) -> str:
        latent = self.begins if self.latent is None else self.latent
        shown = [] if latent is None else [still.card(self.questions["card"](latent))]
        listed = self.latents if self._is_plain() else self.selected
        return still.frame(still.table(self.table, listed), *shown)

    def _is_plain(self) -> bool:
        """Whether it shows all latents, the most frequent first."""
        plain = (self.latents, self.where.strip(), self.words.strip(), self.sort, self.descending)
        return plain == (None, "", "", "density", True)

    def _relabelled(self, change: Any) -> None:
        names = list(self.table.names)
        for latent, edited in change.new.items():
            names[int(latent)] = edited["name"]
        self.table = replace(self.table, names=tuple(names))
        super()._relabelled(change)


def pack_table(result: LatentTable) -> Packed:
    """Columns of all latents: 16 bytes a latent, or 20 where any is ever negative."""
    names = ("density", "mean", "max", "min") if result.signed else ("density", "mean", "max")
    columns = {name: np.asarray(getattr(result, name), np.float32) for name in names}
    return Packed({}, {"count": np.asarray(result.count, np.int32), **columns})


def pack_column(values: np.ndarray) -> Packed:
    """A column of all latents: numbers in half the bytes where that loses nothing, or texts."""
    if values.dtype == object:
        return Packed({}, {"values": list(map(clean, values))})
    short = values.astype(np.float32)
    return Packed({}, {"values": short if np.array_equal(short, values, equal_nan=True) else values})


def _order(values: np.ndarray, latents: np.ndarray, descending: bool) -> np.ndarray:
    """The order of values, of equals by latent; what is missing comes last either way."""
    if values.dtype == object:
        folded = np.array([text.lower() for text in values], dtype=object)
        missing, ranks = folded == "", np.unique(folded.astype(str), return_inverse=True)[1]
    else:
        missing, ranks = np.isnan(values.astype(np.float64)), values.astype(np.float64)
    ranks = np.where(missing, 0, -ranks if descending else ranks)
    return np.lexsort((latents, ranks, missing))


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        message = f"{name} must be a text. Got {type(value).__name__}. Pass e.g. {name}='density'."
        raise ConfigError(message)
    return value


def _texts(name: str, values: Any) -> list[str]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        message = f"{name} must be several texts. Got {values!r}. Pass e.g. {name}=['density', 'label']."
        raise ConfigError(message)
    return [_text(name, value) for value in values]


def _number(words: str) -> int:
    digits = words.strip().removeprefix("#")
    if not (digits.isdecimal() and digits.isascii()):
        message = f"A search like a latent takes its number. Got {words!r}. Write e.g. 7."
        raise ConfigError(message)
    return int(digits)
