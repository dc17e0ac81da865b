"""The Lab: one session over a subject, an SAE and a feature store. Every widget starts here."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from saelab.types import RangeError
from saelab.widgets import CardView, FeaturesView, Selection, TokensView

if TYPE_CHECKING:
    from saelab.analysis.results import FeatureCard, LatentTable, TokenCodes
    from saelab.sae import SAE
    from saelab.stores import FeatureStore
    from saelab.subjects import LanguageModel


class Lab:
    """A subject, an SAE on one of its hook points, and the store of the SAE's latents over a corpus.

    Each of the three may be the object itself or where it is (a folder, for the subject also a hub id). The
    store is opened at once; the model and the SAE are loaded when first needed, so a Lab opens in a moment.

    `lab.selection` is shared by every view of this Lab: choosing a latent in one moves all the others.

    Raises StoreError where the store cannot be opened, or is of another SAE or subject than the one given.
    """

    def __init__(
        self,
        subject: LanguageModel | str | Path,
        sae: SAE | str | Path,
        store: FeatureStore | str | Path,
        *,
        labels: dict[int, str] | None = None,
    ) -> None:
        from saelab.stores import FeatureStore

        self._subject, self._sae = subject, sae
        self.store = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
        self.labels = dict(labels or {})
        self.selection = Selection()
        for latent in self.labels:
            if not 0 <= latent < self.store.n_latents:
                message = (
                    f"A label's latent must be in 0..{self.store.n_latents - 1}. Got {latent}. "
                    "Pass labels of this store's latents."
                )
                raise RangeError(message)
        for part in (subject, sae):
            if not isinstance(part, str | Path):
                self._check_same(part)
        # every view asks for the same cards, hovering and prefetching: keep the latest
        self.card = lru_cache(maxsize=512)(self._card)

    @classmethod
    def embedded(cls) -> Lab:
        """The Lab of the shipped language model: offline, ready. See `saelab.embedded` for what it was
        trained on.
        """
        from saelab import embedded

        return cls(embedded.model_folder(), embedded.sae_folder(embedded.STORE_HOOK), embedded.store_folder())

    @cached_property
    def subject(self) -> LanguageModel:
        """The model, loaded when first asked for. Raises SubjectError."""
        if not isinstance(self._subject, str | Path):
            return self._subject
        from saelab.subjects import load_subject

        return self._check_same(load_subject(str(self._subject)))

    @cached_property
    def sae(self) -> SAE:
        """The SAE, loaded when first asked for. Raises FormatError."""
        if not isinstance(self._sae, str | Path):
            return self._sae
        from saelab.sae import SAE

        return self._check_same(SAE.load(self._sae))

    def tokens(self, text: str, latent: int | None = None, *, with_card: bool = False) -> TokensView:
        """A heatmap of the text: hover over a token for its latents, click one to colour the text by it.

        latent: chosen at the start, in every view of this Lab. with_card: show the chosen latent's card.
        Raises CorpusError on an empty or non-string text or one longer than the model's context, RangeError
        on a latent out of range.
        """
        self._choose(latent)
        return TokensView(
            self.codes(text),
            questions={"card": self.card},
            selection=self.selection,
            with_card=with_card,
        )

    def features(self) -> FeaturesView:
        """A browser over all latents: sort, search by a text that fires them, read their cards."""
        questions = {"card": self.card, "search": self.search}
        return FeaturesView(self.table, questions=questions, selection=self.selection)

    def feature(self, latent: int) -> CardView:
        """The card of one latent; it follows the selection. Raises RangeError."""
        self._choose(latent)
        return CardView(latent, questions={"card": self.card}, selection=self.selection)

    def codes(self, text: str) -> TokenCodes:
        """The codes of every latent on each token of a text: what `tokens` shows. Raises CorpusError."""
        from saelab.analysis import token_codes

        return token_codes(self.subject, self.sae, text)

    def search(self, text: str) -> list[tuple[int, float]]:
        """(latent, strongest value) of the latents that a text fires, strongest first. Raises CorpusError."""
        from saelab.analysis import search

        return search(self.subject, self.sae, text)

    @cached_property
    def table(self) -> LatentTable:
        """One line a latent: what the browser lists."""
        from saelab.analysis import latent_table

        return latent_table(self.store, self.labels)

    def _card(self, latent: int) -> FeatureCard:
        from saelab.analysis import card

        return card(self.store, latent, self.sae, self.subject, label=self.labels.get(latent, ""))

    def _choose(self, latent: int | None) -> None:
        if latent is not None:
            self.selection.latent = self.store.latent(latent).latent

    def _check_same(self, part):
        """The part itself, if the store was indexed with it."""
        self.store.check(part)
        return part

    def __repr__(self) -> str:
        def name(part: object) -> str:
            return Path(part).name if isinstance(part, str | Path) else repr(part).splitlines()[0]

        return (
            f"Lab({name(self._subject)}, {name(self._sae)}, "
            f"{self.store.n_latents:,} latents over {self.store.n_rows:,} tokens)"
        )
