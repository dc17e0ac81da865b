"""One SAE of a Lab: loaded when it is first asked for, its store, its labels, and what views ask of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.capabilities import HasLogits, HasTokens, lacking
from saelab.config import integer
from saelab.lab.given import no_model
from saelab.stores.lacking import lacks
from saelab.types import ConfigError, CorpusError, RangeError, StoreError, nearest
from saelab.widgets import Selection
from saelab.widgets.selection import Mirror
from saelab.widgets.source import Source

if TYPE_CHECKING:
    import pandas as pd

    from saelab.analysis.compared import Compared
    from saelab.analysis.logits import KeptLenses
    from saelab.analysis.maps.background import MapJob
    from saelab.analysis.maps.looking import LatentColumn, Neighbourhood
    from saelab.analysis.maps.results import LatentMap
    from saelab.analysis.report import Report
    from saelab.analysis.reports import Reports
    from saelab.analysis.results import Difference, FeatureCard, LatentTable, Predictions, SampleCodes
    from saelab.analysis.results_near import Relatives
    from saelab.analysis.searches import Found
    from saelab.analysis.stored import StoredCorpus
    from saelab.sae import SAE
    from saelab.stores import FeatureStore
    from saelab.stores.annotations import Named, Notes
    from saelab.types import Subject

NEAR = 1 << 14
"""Latents of an SAE whose cards say at once, without being unfolded, what is near."""
KEPT_CARDS = 512
"""Cards that are kept, as views asked for them."""
SCORED_TEXTS, SCORED_ROWS = 256, 4096
"""Documents and rows on which two SAEs are scored side by side, at most."""


class OpenedSAE:
    """One SAE of a Lab.

    Attributes:
        name: what it is called in its Lab.
        has_store: whether it has one.
        given: latent -> label that the Lab was given, on top of those in the store.
    """

    def __init__(
        self,
        name: str,
        sae: SAE | str | Path | None,
        store: FeatureStore | None,
        shared: Selection,
        subject: Callable[[], Subject] | None,
    ) -> None:
        """An SAE, or where it is.

        Args:
            name: What it is called.
            sae: The SAE or its folder; None where only its store is at hand.
            store: Of its latents.
            shared: What is chosen in the Lab.
            subject: Gives the model; None where there is none.

        Raises:
            StoreError: The store is of another SAE.
        """
        self.name, self.has_store = name, store is not None
        self.given: dict[int, str] = {}
        self._sae, self._store, self._subject = sae, store, subject
        self._shared, self._mirror = shared, Mirror(shared, name)
        self._neighbourhoods: dict[str, Neighbourhood] = {}
        self.selection.observe(self._list_chosen, "list")
        self.selection.observe(self._latents_chosen, "latents")
        self._cards: dict[int, FeatureCard] = {}
        self._cached_relatives = lru_cache(maxsize=64)(self._relatives)
        if store is not None and not isinstance(sae, str | Path | None):
            store.check(sae)

    @property
    def selection(self) -> Selection:
        """What its views share."""
        return self._mirror.own

    @property
    def sae(self) -> SAE:
        """The SAE. Raises FormatError, StoreError where its store was not indexed with it, and ConfigError
        where only the store is at hand."""
        if self._sae is None:
            message = (
                f"This needs the SAE {self.name!r}. Got its store alone in this Lab. Pass it: "
                "Lab(subject, saes, stores)."
            )
            raise ConfigError(message)
        if isinstance(self._sae, str | Path):
            from saelab.sae import SAE

            loaded = SAE.load(self._sae)
            if self._store is not None:
                self._store.check(loaded)
            self._sae = loaded
        return self._sae

    @property
    def store(self) -> FeatureStore:
        """Its store. Raises StoreError where it has none."""
        if self._store is None:
            message = (
                f"This needs a store of the SAE {self.name!r}. Got none in this Lab. Make one by "
                "saelab.index(...) and pass it: Lab(subject, saes, stores)."
            )
            raise StoreError(message)
        return self._store

    @cached_property
    def source(self) -> Source:
        """What views of it are made of."""
        from saelab.stores import browsing

        return Source(
            lambda: self.table,
            self.codes,
            {
                "card": self.card,
                "cards": self.cards,
                "fetch": self.fetch,
                "documents": lambda numbers: self.store.documents(numbers),
                "labels": self.labels,
                "hooks": self.hooks,
                "layers": self.layers,
                "predictions": self.predictions,
                "difference": self.difference,
                "corpus": lambda: self.corpus,
                "session": self._session,
                "find": lambda way, value: self.search(200, {way: value})[["latent", "score"]],
                "columns": lambda: browsing.columns(self.store),
                "column": lambda sql: browsing.column(self.store, sql, self.given),
                "where": lambda sql: browsing.where(self.store, sql, self.given),
                "notes": lambda: self.notes,
                "tags": lambda: self.tags,
                "lists": lambda: self.lists,
                "store": lambda: self.store,
                "report": self._report,
                "compare": self._compare,
                "scores": self._scores,
                "search": lambda text: [(each.latent, each.value) for each in self.found(text)],
                "relatives": self.relatives,
                "beside": self._beside,
                "drawn": lambda latent, kind: self._windows("drawn_examples", latent, kind=kind),
                "whole": lambda latent, row: self._windows("whole_document", latent, row=row),
                "codes": self.codes,
                "relabel": self.relabel,
                **self._map_questions(),
            },
            self.selection,
            self.checked,
            self._choose,
        )

    def _choose(self, latent: int) -> None:
        with self._shared.history.one_step():
            self._shared.sae = self.name
            self.selection.latent = latent

    def _list_chosen(self, change: Any) -> None:
        """A list is chosen: its latents are."""
        if change.new is None:
            return
        if change.new not in self.lists:
            self.selection.list = None
            known = list(self.lists)
            there = ", ".join(map(repr, known)) or "none yet"
            message = (
                f"list must name one of the lists of {self.name!r}, {there}. Got {change.new!r}. "
                f"{nearest(change.new, known)}Make one: lab.lists[{change.new!r}] = [3, 7]."
            )
            raise ConfigError(message)
        self.selection.latents = self.lists[change.new]

    def _latents_chosen(self, change: Any) -> None:
        """Others are chosen than those of the list."""
        name = self.selection.list
        if name is not None and change.new != self.lists.get(name):
            self.selection.list = None

    # ---- its latents

    def hooks(self) -> tuple[str, ...]:
        """Where it reads and writes, by name; of a store alone where it reads."""
        if self._sae is None:
            return (self.store.hook.name,)
        return tuple(dict.fromkeys(point.name for point in (*self.sae.writes, *self.sae.reads)))

    def checked(self, latent: int) -> int:
        """A latent of it. Raises RangeError."""
        if self._store is not None:
            return self._store.latent(latent).latent
        remedy = "Pass a latent of this SAE."
        return integer("latent", latent, 0, self.sae.d_sae - 1, error=RangeError, remedy=remedy)

    @property
    def table(self) -> LatentTable:
        """One line a latent. Raises StoreError."""
        from saelab.analysis import latent_table

        if self._table is None:
            self._table = latent_table(self.store, self.labels())
        return self._table

    _table: LatentTable | None = None

    def card(self, latent: int) -> FeatureCard:
        """Everything that a card shows of a latent. Raises RangeError, StoreError."""
        if latent not in self._cards:
            self.fetch([latent])
        return self._cards[latent]

    def fetch(self, latents: list[int]) -> None:
        """Have the cards of several latents, which takes half as long as one by one. Raises RangeError,
        StoreError."""
        missing = [latent for latent in dict.fromkeys(latents) if latent not in self._cards]
        # every view asks for the same cards, hovering and prefetching: keep the latest
        while self._cards and len(self._cards) + len(missing) > KEPT_CARDS:
            self._cards.pop(next(iter(self._cards)))
        self._cards.update(zip(missing, self.cards(missing), strict=True))

    def cards(self, latents: list[int]) -> list[FeatureCard]:
        """The cards of several latents. Raises RangeError, StoreError."""
        from saelab.analysis import cards

        # the table of latents is asked first, so that a wrong one is refused without the model
        lenses = self._lenses([self.store.latent(latent).latent for latent in latents])
        return cards(self.store, latents, lenses=lenses, labels=self.labels())

    def relatives(self, latent: int) -> Relatives:
        """What is near a latent, beside chance. Raises RangeError, StoreError."""
        return self._cached_relatives(latent)

    def _relatives(self, latent: int) -> Relatives:
        from saelab.analysis import relatives

        return relatives(self.store, latent)

    def _windows(self, of: str, latent: int, **asked: Any) -> Any:
        """Windows that are made when they are asked for. Raises RangeError, StoreError."""
        from saelab.analysis import windows

        return getattr(windows, of)(self.store, latent, **asked)

    @cached_property
    def _lenses(self) -> KeptLenses:
        from saelab.analysis.logits import KeptLenses

        if self._sae is None or self._subject is None:  # those that are kept are all that there are
            return KeptLenses(self.store)
        return KeptLenses(self.store, lambda: self.sae, self._subject)

    def codes(self, sample: Any) -> SampleCodes:
        """The codes of every latent on each position of a sample. Raises CorpusError."""
        from saelab.analysis import sample_codes

        return sample_codes(self._model(), self.sae, sample)

    def layers(self) -> list[str]:
        """What `predictions` tells of a sample, by name; [] where the subject is no language model."""
        from saelab.analysis.results import LAYERS

        if self._subject is None or any(lacking(self._subject(), each) for each in (HasTokens, HasLogits)):
            return []
        return list(LAYERS)

    def predictions(self, sample: Any, edits: Any = ()) -> Predictions:
        """How the model predicts each token of a sample. Raises CorpusError, SubjectError."""
        from saelab.analysis import predictions

        return predictions(self._model(), sample, self.sae, edits)

    def difference(self, sample: Any, against: Any, edits: Any, control: Any) -> Difference:
        """How latents differ between two samples. Raises ConfigError, CorpusError."""
        from saelab.analysis import sample_difference

        return sample_difference(self._model(), self.sae, sample, against, edits=edits, control=control)

    @cached_property
    def corpus(self) -> StoredCorpus:
        """The documents of its store. Raises StoreError."""
        from saelab.analysis.stored import StoredCorpus

        return StoredCorpus(self.store, lambda: self.sae, self._model)

    def found(self, sample: Any, n: int = 50) -> list[Found]:
        """Latents that fire on a sample, the most specific first. Raises CorpusError, RangeError."""
        from saelab.analysis import search

        n = integer("n", n, 1, error=RangeError)
        return search(self._model(), self.sae, sample, n, store=self._store)

    def search(self, n: int, asked: Mapping[str, Any]) -> pd.DataFrame:
        """`FeatureStore.search` by the labels of the Lab. Raises ConfigError, StoreError."""
        from saelab.stores.labels import with_own
        from saelab.stores.search import search

        return search(self.store, n, with_own(self.store.labels(), self.given), **asked)

    def _session(self, kind: str) -> Any:
        from saelab.analysis.sessions import SESSIONS

        return SESSIONS[kind](self._model(), self.sae, self._store)

    def _beside(self, latent: int) -> Relatives | None:
        """What is near a latent, where it is known and found in no time."""
        store = self.store
        quick = store.n_latents <= NEAR and not lacks(store.manifest, "coactivation")
        return self.relatives(latent) if quick else None

    # ---- beside another SAE

    def _compare(self, other: Source) -> Compared:
        from saelab.analysis import compare

        return compare(self.store, other.questions["store"](), names=self._names(other))

    def _scores(self, other: Source) -> Reports:
        """Both on the first documents of our store, each with its own model."""
        from saelab.analysis import Reports

        sql = "select text from documents where text != '' order by document limit ?"
        samples = self.store.query(sql, [SCORED_TEXTS])["text"].tolist()
        both = (self._report(samples), other.questions["report"](samples))
        return Reports(dict(zip(self._names(other), both, strict=True)))

    def _report(self, samples: list[str]) -> Report:
        from saelab.analysis import evaluate

        return evaluate(self.sae, self._model(), samples, max_rows=SCORED_ROWS)

    def _names(self, other: Source) -> tuple[str, str]:
        name = str(other.selection.sae)
        return self.name, name if name != self.name else f"{name} (other)"

    def _model(self) -> Subject:
        """The Lab's subject. Raises SubjectError."""
        if self._subject is None:
            raise no_model()
        return self._subject()

    # ---- where they lie on a map

    def _map_questions(self) -> dict[str, Callable[..., Any]]:
        """What a map asks; what answers it is loaded when it is asked."""
        own: dict[str, Callable[..., Any]] = {}
        if self._store is not None and not lacks(self._store.manifest, "firings"):
            own = {"firings": lambda latent: self.store.firings(latent, 6)}
        return {
            **own,
            "map": self._map,
            "start_map": self._start_map,
            "near": lambda latents, by: self._neighbourhood(by).near(latents),
            "map_column": self._map_column,
            "map_columns": self._map_columns,
            "map_find": self._firing_on,
        }

    def _map(self, by: str, method: str) -> LatentMap:
        from saelab.analysis import latent_map

        return latent_map(self.store, by, method)

    def _start_map(self, by: str, method: str) -> MapJob:
        from saelab.analysis import start_map

        return start_map(self.store, by, method)

    def _map_column(self, sql: str) -> LatentColumn:
        from saelab.analysis import latent_column

        return latent_column(self.store, sql, self.given)

    def _map_columns(self) -> dict[str, str]:
        from saelab.analysis.maps.looking import COLUMNS

        return COLUMNS

    def _neighbourhood(self, by: str) -> Neighbourhood:
        from saelab.analysis.maps.looking import Neighbourhood

        if by not in self._neighbourhoods:
            self._neighbourhoods[by] = Neighbourhood(self.store, by)
        return self._neighbourhoods[by]

    def _firing_on(self, shown: str) -> list[int]:
        """The latents that answer best to what a row shows, with a space before it or without."""
        found = []
        for each in dict.fromkeys([shown, f" {shown.strip()}"]):
            with contextlib.suppress(CorpusError):  # of what no row shows
                found += self.store.search(value=each, n=50)["latent"].tolist()
        return found

    # ---- what they are called

    def labels(self) -> dict[int, str]:
        """Latent -> label: those given, on top of the newest in the store."""
        from saelab.stores import attached
        from saelab.stores.labels import newest

        if self._store is None:
            return dict(self.given)
        # every card asks, and a store may have a label for each latent: they are read where they are others
        now = attached.stamp(self._store)
        if self._attached is None or self._attached[0] != now:
            self._attached = now, newest(self._store.labels())
        return self._attached[1] | self.given

    _attached: tuple[Any, dict[int, str]] | None = None

    def give_labels(self, labels: Mapping[Any, Any]) -> None:
        """Take labels that are not kept in the store. Raises ConfigError, RangeError, StoreError."""
        from saelab.stores.labels import checked_labels

        self.given = checked_labels(labels, self.store.n_latents)

    def relabel(self, latent: int, text: str) -> str:
        """Call a latent so from now on, in the store and in every view; gives what it is called then.

        Raises RangeError, ConfigError, StoreError.
        """
        from saelab.stores.labels import checked_label

        latent, text = self.checked(latent), checked_label(text, latent)
        self.given.pop(latent, None)
        if self._store is not None:
            self._store.attach_labels({latent: text})
        elif text:
            self.given[latent] = text
        self._table = None
        self._cards.clear()
        self._cached_relatives.cache_clear()
        label = called = self.labels().get(latent, "")
        if not label and self.has_store:
            called = self.table.names[latent]
        edits = self.source.edits
        edits.edited = {**edits.edited, str(latent): {"label": label, "name": called}}
        return label

    @property
    def notes(self) -> Notes:
        """The store's, which views show at once. Raises StoreError."""
        from saelab.stores.annotations import Notes

        return Notes(self.store, self._written)

    @property
    def tags(self) -> Named:
        """As well. Raises StoreError."""
        from saelab.stores.annotations import Named

        return Named(self.store, "tag", self._written)

    @property
    def lists(self) -> Named:
        """As well. Raises StoreError."""
        from saelab.stores.annotations import Named

        return Named(self.store, "list", self._written)

    def _written(self) -> None:
        """What is shown of a list is what it holds now."""
        name = self.selection.list
        if name is not None:
            self.selection.latents = self.lists.get(name)
        self.source.edits.written += 1


__all__ = ["OpenedSAE"]
