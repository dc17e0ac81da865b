"""One SAE of a Lab: loaded when it is first asked for, its store, its labels, and what views ask of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.config import integer
from saelab.types import RangeError, StoreError
from saelab.widgets import Selection
from saelab.widgets.selection import Mirror
from saelab.widgets.source import Source

if TYPE_CHECKING:
    import pandas as pd

    from saelab.analysis.logits import KeptLenses
    from saelab.analysis.results import FeatureCard, LatentTable, Relatives, SampleCodes
    from saelab.analysis.searches import Found
    from saelab.sae import SAE
    from saelab.stores import FeatureStore
    from saelab.types import Subject

NEAR = 1 << 14
"""Latents of an SAE whose cards say at once, without being unfolded, what is near."""


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
        sae: SAE | str | Path,
        store: FeatureStore | None,
        shared: Selection,
        subject: Callable[[], Subject],
    ) -> None:
        """An SAE, or where it is.

        Args:
            name: What it is called.
            sae: The SAE or its folder.
            store: Of its latents.
            shared: What is chosen in the Lab.
            subject: Gives the model.

        Raises:
            StoreError: The store is of another SAE.
        """
        self.name, self.has_store = name, store is not None
        self.given: dict[int, str] = {}
        self._sae, self._store, self._subject = sae, store, subject
        self._shared, self._mirror = shared, Mirror(shared, name)
        # every view asks for the same cards, hovering and prefetching: keep the latest
        self._cached_card = lru_cache(maxsize=512)(lambda latent: self.cards([latent])[0])
        self._cached_relatives = lru_cache(maxsize=64)(self._relatives)
        if store is not None and not isinstance(sae, str | Path):
            store.check(sae)

    @property
    def selection(self) -> Selection:
        """What its views share."""
        return self._mirror.own

    @property
    def sae(self) -> SAE:
        """The SAE. Raises FormatError, and StoreError where its store was not indexed with it."""
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
        return Source(
            lambda: self.table,
            self.codes,
            {
                "card": self.card,
                "cards": self.cards,
                "documents": lambda numbers: self.store.documents(numbers),
                "labels": self.labels,
                "session": self._session,
                "search": lambda text: [(each.latent, each.value) for each in self.found(text)],
                "relatives": self.relatives,
                "near": lambda latent: self.relatives(latent) if self.store.n_latents <= NEAR else None,
                "drawn": lambda latent, kind: self._windows("drawn_examples", latent, kind=kind),
                "whole": lambda latent, row: self._windows("whole_document", latent, row=row),
                "codes": self.codes,
                "relabel": self.relabel,
            },
            self.selection,
            self.checked,
            self._choose,
        )

    def _choose(self, latent: int) -> None:
        self._shared.sae = self.name
        self.selection.latent = latent

    # ---- its latents

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
        return self._cached_card(latent)

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

        return KeptLenses(self.store, lambda: self.sae, self._subject)

    def codes(self, sample: Any) -> SampleCodes:
        """The codes of every latent on each position of a sample. Raises CorpusError."""
        from saelab.analysis import sample_codes

        return sample_codes(self._subject(), self.sae, sample)

    def found(self, sample: Any, n: int = 50) -> list[Found]:
        """Latents that fire on a sample, the most specific first. Raises CorpusError, RangeError."""
        from saelab.analysis import search

        n = integer("n", n, 1, error=RangeError)
        return search(self._subject(), self.sae, sample, n, store=self._store)

    def search(self, n: int, asked: Mapping[str, Any]) -> pd.DataFrame:
        """`FeatureStore.search` by the labels of the Lab. Raises ConfigError, StoreError."""
        from saelab.stores.labels import with_own
        from saelab.stores.search import search

        return search(self.store, n, with_own(self.store.labels(), self.given), **asked)

    def _session(self, kind: str) -> Any:
        from saelab.analysis.steering.sessions import SESSIONS

        return SESSIONS[kind](self._subject(), self.sae, self._store)

    # ---- what they are called

    def labels(self) -> dict[int, str]:
        """Latent -> label: those given, on top of the newest in the store."""
        from saelab.stores.labels import newest

        attached = newest(self._store.labels()) if self._store is not None else {}
        return attached | self.given

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
        self._cached_card.cache_clear()
        self._cached_relatives.cache_clear()
        label = called = self.labels().get(latent, "")
        if not label and self.has_store:
            called = self.table.names[latent]
        edits = self.source.edits
        edits.edited = {**edits.edited, str(latent): {"label": label, "name": called}}
        return label


__all__ = ["OpenedSAE"]
