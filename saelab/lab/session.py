"""The Lab: one session over a subject, SAEs and their feature stores. Every view starts here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.capabilities import HasTokens, need
from saelab.config import boolean, integer
from saelab.files import path_of
from saelab.lab.given import labels_by_name, named, no_model
from saelab.lab.opened import OpenedSAE
from saelab.progress import in_notebook
from saelab.subjects.ahead import Ahead, is_small
from saelab.types import ConfigError, RangeError, nearest
from saelab.widgets import LabViews, SampleView, Selection

if TYPE_CHECKING:
    import pandas as pd

    from saelab.analysis.results import FeatureCard, LatentTable, SampleCodes
    from saelab.sae import SAE
    from saelab.stores import FeatureStore
    from saelab.stores.annotations import Named, Notes
    from saelab.types import Subject
    from saelab.widgets.source import Source

    SAEs = SAE | str | Path | Sequence[Any] | Mapping[str, Any]
    Stores = FeatureStore | str | Path | Sequence[Any] | Mapping[str, Any]


class Lab(LabViews):
    """A subject, SAEs on its hook points, and the stores of their latents over a corpus.

    A store alone will do: `Lab(stores=store)` opens cards, the browser, densities and maps.

    Each part may be the object itself or where it is (a folder, for the subject also a hub id). Stores are
    opened at once; the model and the SAEs are loaded when they are first needed, so a Lab opens in a moment.
    In a notebook a model's folder is loaded in the background meanwhile, so that the first heatmap is not
    waited for; what is wrong with it is said where it is first used.

    `lab.selection` is shared by the linked views of this Lab: which SAE is chosen, which of its latents, a
    row, a document, a list of latents. Choosing a latent in one of them, by a click or a key, moves all
    others of its SAE. The views are the methods of `saelab.widgets.LabViews`.

    A call moves nothing that is shown already. A view whose call names a latent, such as `lab.feature(7)`,
    is pinned to it: clicks in it stay in it. With `follow=True` it is linked, and its latent is chosen for
    all. A view whose call names none, such as `lab.features()`, is linked.

    Attributes:
        saes: name -> SAE.
        stores: name -> FeatureStore, of those SAEs that have one.
        labels: latent -> label of the chosen SAE: those given, on top of those that its store has.
        selection: what is chosen.
    """

    def __init__(
        self,
        subject: Subject | str | Path | None = None,
        saes: SAEs | None = None,
        stores: Stores | None = None,
        *,
        labels: Mapping[Any, Any] | None = None,
        preload: bool | None = None,
    ) -> None:
        """A Lab of one SAE or many.

        Args:
            subject: the model; None: what needs it says so, as heatmaps and steering.
            saes: an SAE, several, or a mapping of names to SAEs. Without names they are called by the hook
                points that they read. None: stores alone, whose cards, lists and maps need no more.
            stores: of the SAEs, in the same form; None in a sequence, or no entry in a mapping, where an SAE
                has none.
            labels: latent -> label of the only SAE, or name -> such a mapping.
            preload: begin to load the model in the background: True, False, or None for doing so in a
                notebook, and there of a folder of at most 4 GB; of others only the libraries are.

        Raises:
            StoreError: A store cannot be opened, or is of another SAE or subject than the one given.
            ConfigError: There is no SAE, stores do not fit the SAEs, or a label is no text.
            RangeError: A label's latent is out of range.
        """
        self._subject = subject
        preload = None if preload is None else boolean("preload", preload)
        found = named(saes, stores)
        self.stores: dict[str, FeatureStore] = {name: s for name, (_, s) in found.items() if s is not None}
        self.selection = Selection(sae=next(iter(found)))
        for sae, store in found.values():
            for thing in (subject, sae):
                if isinstance(thing, bytes):
                    path_of(thing, "What a Lab is made of")
            if store is not None and not isinstance(subject, str | Path | None):
                store.check(subject)
        model = None if subject is None else lambda: self.subject
        self._opened = {
            name: OpenedSAE(name, sae, store, self.selection, model) for name, (sae, store) in found.items()
        }
        self.saes: Mapping[str, SAE] = _SAEs(self._opened)
        for name, own in labels_by_name(labels, found).items():
            self._one(name).give_labels(own)
        self._loading = Ahead(self._load)
        if isinstance(subject, str | Path) and (in_notebook() if preload is None else preload):
            self._loading.start(whole=preload is True or is_small(subject))

    @classmethod
    def embedded(cls, *, preload: bool | None = None) -> Lab:
        """The Lab of the shipped language model: offline, ready, with all its SAEs and their stores. See
        `saelab.embedded` for what it was trained on.

        Args:
            preload: Begin to load the model in the background; None for doing so in a notebook.
        """
        from saelab import embedded

        hooks = dict.fromkeys([embedded.STORE_HOOK, *embedded.SAE_HOOKS])
        return cls(
            embedded.model_folder(),
            {hook: embedded.sae_folder(hook) for hook in hooks},
            {hook: embedded.store_folder(hook) for hook in hooks},
            preload=preload,
        )

    @classmethod
    def embedded_vision(cls) -> Lab:
        """The Lab of the shipped vision transformer, which sees drawn figures: offline, ready, with an SAE on
        its patches and their store. `saelab.corpora.shapes` makes pictures to show it.
        """
        from saelab import embedded
        from saelab.subjects import VisionModel

        return cls(
            VisionModel.load(embedded.vision_folder(), rows="patches"),
            {embedded.VISION_HOOK: embedded.vision_sae_folder()},
            {embedded.VISION_HOOK: embedded.vision_store_folder()},
        )

    @property
    def subject(self) -> Subject:
        """The model, loaded when first asked for. Raises SubjectError."""
        if self._subject is None:
            raise no_model()
        return self._loading.get() if isinstance(self._subject, str | Path) else self._subject

    def _load(self) -> Subject:
        from saelab.subjects import load_subject

        subject = load_subject(str(self._subject))
        for store in self.stores.values():
            store.check(subject)
        return subject

    @property
    def sae(self) -> SAE:
        """The chosen SAE, loaded when first asked for. Raises FormatError."""
        return self._one().sae

    @property
    def store(self) -> FeatureStore:
        """The chosen SAE's store. Raises StoreError where it has none."""
        return self._one().store

    @property
    def labels(self) -> dict[int, str]:
        """Latent -> label, of the chosen SAE."""
        return self._one().labels()

    def tokens(self, text: Any, latent: int | None = None, **options: Any) -> SampleView:
        """`show` of a text, for subjects that read texts.

        Args:
            text: Any, or a dialogue.
            latent: Colours the text; the view is pinned to it.
            **options: Others of `show`.

        Raises:
            SubjectError: The subject reads no texts.
            CorpusError, RangeError, ConfigError: See `show`.
        """
        need(self.subject, HasTokens, "A heatmap of tokens")
        return self.show(text, latent, **options)

    def card(self, latent: int, *, sae: str | None = None) -> FeatureCard:
        """Everything that a card shows of one latent.

        Args:
            latent: Its number.
            sae: Its name; by default the chosen one.

        Raises:
            RangeError: The latent is out of range.
            StoreError: The SAE has no store.
        """
        return self._one(sae).card(integer("latent", latent, 0, error=RangeError))

    def codes(self, sample: Any, *, sae: str | None = None) -> SampleCodes:
        """The codes of every latent on each position of a sample: what `show` shows.

        Args:
            sample: As the subject's `prepare` takes it.
            sae: Its name; by default the chosen one.

        Raises:
            CorpusError: The sample holds nothing to read.
        """
        return self._one(sae).codes(sample)

    def search(
        self, sample: Any = None, *, n: int | None = None, sae: str | None = None, **asked: Any
    ) -> pd.DataFrame:
        """The latents that answer best to exactly one question, best first.

        Args:
            sample: a text, or what else the subject reads, that fires them: asks the model. Score: how
                specific they are to it, in bits (`saelab.analysis.search`), beside their strongest value,
                share of its rows, and lift over the corpus; where the SAE has no store the |value|.
            n: lines, at most: by default 50 of a sample, else 20.
            sae: name of the SAE; None: the chosen one.
            **asked: one of token=, value=, label=, example=, direction=, latent=, answered without the model:
                see `FeatureStore.search`; labels are those of this Lab.

        Returns:
            latent, score and the evidence.

        Raises:
            ConfigError: There is not one question.
            CorpusError: A bad sample or token.
            StoreError: The SAE has no store, which all but a sample need.
        """
        import pandas as pd

        from saelab.stores.search import WAYS

        one = self._one(sae)
        unknown = [way for way in asked if way not in WAYS]
        given = [way for way in asked if asked[way] is not None]
        if unknown or (sample is not None and given):
            got = f"{unknown[0]}=" if unknown else f"a sample and {given[0]}="
            message = (
                f"A search takes exactly one of a sample and {', '.join(f'{w}=' for w in WAYS)}. Got {got}. "
                "Pass e.g. token=' cat'."
            )
            raise ConfigError(message)
        if sample is not None:
            found = one.found(sample, 50 if n is None else n)
            return pd.DataFrame(found, columns=["latent", "score", "value", "share", "lift"])
        return one.search(20 if n is None else n, asked)

    def label(self, latent: int, text: str | None = None, *, sae: str | None = None) -> str:
        """The label of a latent; given a text, that is its label from now on, in every open view too.

        It is kept with the SAE's store, or where that may not be written in the user's data folder: see
        `FeatureStore.attach_labels`. Without a store it lasts as long as the Lab.

        Args:
            latent: Its number.
            text: The label; "" takes yours away, so that it is again what others called it.
            sae: Its name; by default the chosen one.

        Returns:
            The label; "" where it has none.

        Raises:
            RangeError: The latent is out of range.
            ConfigError: The label is no text.
            StoreError: It cannot be written.
        """
        one = self._one(sae)
        latent = one.checked(latent)
        if text is not None:
            one.relabel(latent, text)
        return one.labels().get(latent, "")

    @property
    def notes(self) -> Notes:
        """Latent -> what is noted of it, of the chosen SAE: `lab.notes[7] = "fires after Mr, too"`. Kept as
        labels are, and shown in every open view at once; so are tags and lists. Raises StoreError."""
        return self._one().notes

    @property
    def tags(self) -> Named:
        """Tag -> latents, of the chosen SAE: `lab.tags.add("to check", [7, 9])`. Raises StoreError."""
        return self._one().tags

    @property
    def lists(self) -> Named:
        """Name -> latents in their order, of the chosen SAE: `lab.lists["names"] = [7, 3]`. Raises
        StoreError."""
        return self._one().lists

    @property
    def table(self) -> LatentTable:
        """One line for each latent of the chosen SAE: what the browser lists."""
        return self._one().table

    def source(self, sae: str | None = None) -> Source:
        """What views of an SAE are made of.

        Args:
            sae: name of the SAE; None: the chosen one.

        Raises:
            ConfigError: The name is unknown.
        """
        return self._one(sae).source

    def _one(self, sae: str | None = None) -> OpenedSAE:
        """The SAE of a name; None: the chosen one. Raises ConfigError."""
        name = self.selection.sae if sae is None else sae
        if not isinstance(name, str) or name not in self._opened:
            message = (
                f"sae must name one of the Lab's SAEs, {', '.join(self._opened)}. Got {name!r}. "
                f"{nearest(str(name), self._opened)}Leave it out for the chosen one."
            )
            raise ConfigError(message)
        return self._opened[name]

    def __repr__(self) -> str:
        def called(thing: object) -> str:
            return Path(thing).name if isinstance(thing, str | Path) else repr(thing).splitlines()[0]

        name = self._one().name
        store = self.stores.get(name)
        over = f", {store.n_latents:,} latents over {store.n_rows:,} rows" if store is not None else ""
        more = f" (of {len(self.saes)} SAEs)" if len(self.saes) > 1 else ""
        of = "" if self._subject is None else f"{called(self._subject)}; "
        return f"Lab({of}{name}{more}{over})"


class _SAEs(Mapping[str, Any]):
    """SAEs by name, each loaded when it is first asked for."""

    def __init__(self, opened: Mapping[str, OpenedSAE]) -> None:
        self._opened = opened

    def __getitem__(self, name: str) -> SAE:
        return self._opened[name].sae

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened)

    def __len__(self) -> int:
        return len(self._opened)

    def __repr__(self) -> str:
        return f"SAEs({', '.join(self)})"


__all__ = ["Lab"]
