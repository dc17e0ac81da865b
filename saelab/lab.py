"""The Lab: one session over a subject, SAEs and their feature stores. Every view starts here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.capabilities import HasTokens, need
from saelab.config import boolean, integer
from saelab.files import path_of
from saelab.progress import in_notebook
from saelab.subjects.ahead import Ahead, is_small
from saelab.types import ConfigError, RangeError, StoreError, nearest, short
from saelab.widgets import LabViews, SampleView, Selection
from saelab.widgets.selection import Mirror
from saelab.widgets.source import Source

if TYPE_CHECKING:
    import pandas as pd

    from saelab.analysis.logits import KeptLenses
    from saelab.analysis.results import FeatureCard, LatentTable, SampleCodes
    from saelab.analysis.searches import Found
    from saelab.sae import SAE
    from saelab.stores import FeatureStore
    from saelab.types import Subject

    SAEs = SAE | str | Path | Sequence[Any] | Mapping[str, Any]
    Stores = FeatureStore | str | Path | Sequence[Any] | Mapping[str, Any]


class Lab(LabViews):
    """A subject, SAEs on its hook points, and the stores of their latents over a corpus.

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
        subject: Subject | str | Path,
        saes: SAEs,
        stores: Stores | None = None,
        *,
        labels: Mapping[Any, Any] | None = None,
        preload: bool | None = None,
    ) -> None:
        """A Lab of one SAE or many.

        Args:
            subject: the model.
            saes: an SAE, several, or a mapping of names to SAEs. Without names they are called by the hook
                points that they read.
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
        named = _named(saes, stores)
        self.stores: dict[str, FeatureStore] = {name: s for name, (_, s) in named.items() if s is not None}
        self.saes: Mapping[str, SAE] = _Loaded({name: sae for name, (sae, _) in named.items()}, self._fitting)
        self.selection = Selection(sae=next(iter(named)))
        self._given = _labels(labels, self)
        self._choices = {name: Mirror(self.selection, name).own for name in named}
        for sae, store in named.values():
            for thing in (subject, sae):
                if isinstance(thing, bytes):
                    path_of(thing, "What a Lab is made of")
                if store is not None and not isinstance(thing, str | Path):
                    store.check(thing)
        self._loading = Ahead(self._load)
        if isinstance(subject, str | Path) and (in_notebook() if preload is None else preload):
            self._loading.start(whole=preload is True or is_small(subject))
        self._sources: dict[str, Source] = {}
        self._tables: dict[str, LatentTable] = {}
        self._kept: dict[str, KeptLenses] = {}
        # every view asks for the same cards, hovering and prefetching: keep the latest
        self._cached_card = lru_cache(maxsize=512)(self._card)

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

    @property
    def subject(self) -> Subject:
        """The model, loaded when first asked for. Raises SubjectError."""
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
        return self.saes[self._name(None)]

    @property
    def store(self) -> FeatureStore:
        """The chosen SAE's store. Raises StoreError where it has none."""
        return self._store(self._name(None))

    @property
    def labels(self) -> dict[int, str]:
        """Latent -> label, of the chosen SAE."""
        return self._labels_of(self._name(None))

    def tokens(
        self,
        text: str,
        latent: int | None = None,
        *,
        sae: str | None = None,
        with_card: bool = False,
        follow: bool = False,
    ) -> SampleView:
        """`show` of a text, for subjects that read texts.

        Args:
            text: Any.
            latent: Colours the text; the view is pinned to it.
            sae: Its name; by default the chosen one.
            with_card: Show the latent's card beside it.
            follow: Choose the latent in all linked views, and follow them.

        Raises:
            SubjectError: The subject reads no texts.
        """
        need(self.subject, HasTokens, "A heatmap of tokens")
        return self.show(text, latent, sae=sae, with_card=with_card, follow=follow)

    def card(self, latent: int, *, sae: str | None = None) -> FeatureCard:
        """Everything that a card shows of one latent.

        Args:
            latent: Its number.
            sae: Its name; by default the chosen one.

        Raises:
            RangeError: The latent is out of range.
            StoreError: The SAE has no store.
        """
        return self._cached_card(integer("latent", latent, 0, error=RangeError), self._name(sae))

    def codes(self, sample: Any, *, sae: str | None = None) -> SampleCodes:
        """The codes of every latent on each position of a sample: what `show` shows.

        Args:
            sample: As the subject's `prepare` takes it.
            sae: Its name; by default the chosen one.

        Raises:
            CorpusError: The sample holds nothing to read.
        """
        from saelab.analysis import sample_codes

        return sample_codes(self.subject, self.saes[self._name(sae)], sample)

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
        from saelab.stores.search import search as search_store

        name = self._name(sae)
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
            found = self._found(sample, name, 50 if n is None else n)
            return pd.DataFrame(found, columns=["latent", "score", "value", "share", "lift"])
        labels = self._labels_and_sources(name)
        return search_store(self._store(name), 20 if n is None else n, labels, **asked)

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
        name = self._name(sae)
        latent = self._checked(name, latent)
        if text is not None:
            from saelab.stores.labels import checked_label

            text = checked_label(text, latent)
            given = self._given.setdefault(name, {})
            given.pop(latent, None)
            if name in self.stores:
                self.stores[name].attach_labels({latent: text})
            elif text:
                given[latent] = text
            self._relabel(name, latent)
        return self._labels_of(name).get(latent, "")

    def _relabel(self, name: str, latent: int) -> None:
        """Tell every view of an SAE what a latent is called now."""
        self._tables.pop(name, None)
        self._cached_card.cache_clear()
        label = called = self._labels_of(name).get(latent, "")
        if not label and name in self.stores:
            called = self._table(name).names[latent]
        edits = self.source(name).edits
        edits.edited = {**edits.edited, str(latent): {"label": label, "name": called}}

    @property
    def table(self) -> LatentTable:
        """One line for each latent of the chosen SAE: what the browser lists."""
        return self._table(self._name(None))

    def _table(self, name: str) -> LatentTable:
        from saelab.analysis import latent_table

        if name not in self._tables:
            self._tables[name] = latent_table(self._store(name), self._labels_of(name))
        return self._tables[name]

    def _found(self, sample: Any, name: str, n: int = 50) -> list[Found]:
        from saelab.analysis import search

        n = integer("n", n, 1, error=RangeError)
        return search(self.subject, self.saes[name], sample, n, store=self.stores.get(name))

    def _labels_of(self, name: str) -> dict[int, str]:
        from saelab.stores.labels import newest

        attached = newest(self.stores[name].labels()) if name in self.stores else {}
        return attached | self._given.get(name, {})

    def _labels_and_sources(self, name: str) -> pd.DataFrame:
        """The store's labels, but those that were given to this Lab where it has its own."""
        from saelab.stores.labels import with_own

        return with_own(self._store(name).labels(), self._given.get(name, {}))

    def source(self, sae: str | None = None) -> Source:
        """What views of an SAE are made of.

        Args:
            sae: name of the SAE; None: the chosen one.

        Raises:
            ConfigError: The name is unknown.
        """
        name = self._name(sae)
        if name not in self._sources:
            questions = {
                "card": lambda latent: self._cached_card(latent, name),
                "cards": lambda latents: self._cards(latents, name),
                "documents": lambda numbers: self._store(name).documents(numbers),
                "labels": lambda: self._labels_of(name),
                "session": lambda kind: self._session(kind, name),
                "search": lambda text: [(each.latent, each.value) for each in self._found(text, name)],
            }
            self._sources[name] = Source(
                lambda: self._table(name),
                lambda sample: self.codes(sample, sae=name),
                questions,
                self._choices[name],
                lambda latent: self._checked(name, latent),
                lambda latent: self._choose(name, latent),
            )
        return self._sources[name]

    def _session(self, kind: str, name: str) -> Any:
        from saelab.analysis.steering.sessions import SESSIONS

        return SESSIONS[kind](self.subject, self.saes[name], self.stores.get(name))

    def _card(self, latent: int, name: str) -> FeatureCard:
        return self._cards([latent], name)[0]

    def _cards(self, latents: list[int], name: str) -> list[FeatureCard]:
        from saelab.analysis import cards

        store = self._store(name)
        # the table of latents is asked first, so that a wrong one is refused without the model
        lenses = self._lenses(name)([store.latent(latent).latent for latent in latents])
        return cards(store, latents, lenses=lenses, labels=self._labels_of(name))

    def _lenses(self, name: str) -> KeptLenses:
        from saelab.analysis.logits import KeptLenses

        if name not in self._kept:
            self._kept[name] = KeptLenses(self._store(name), lambda: self.saes[name], lambda: self.subject)
        return self._kept[name]

    def _checked(self, name: str, latent: int) -> int:
        if name in self.stores:
            return self.stores[name].latent(latent).latent
        remedy = "Pass a latent of this SAE."
        return integer("latent", latent, 0, self.saes[name].d_sae - 1, error=RangeError, remedy=remedy)

    def _choose(self, name: str, latent: int) -> None:
        self.selection.sae = name
        self._choices[name].latent = latent

    def _name(self, sae: str | None) -> str:
        """The name of an SAE of this Lab. Raises ConfigError."""
        name = self.selection.sae if sae is None else sae
        if not isinstance(name, str) or name not in list(self.saes):
            message = (
                f"sae must name one of the Lab's SAEs, {', '.join(self.saes)}. Got {name!r}. "
                f"{nearest(str(name), self.saes)}Leave it out for the chosen one."
            )
            raise ConfigError(message)
        return name

    def _store(self, name: str) -> FeatureStore:
        if name not in self.stores:
            message = (
                f"This needs a store of the SAE {name!r}. Got none in this Lab. Make one by "
                "saelab.index(...) and pass it: Lab(subject, saes, stores)."
            )
            raise StoreError(message)
        return self.stores[name]

    def _fitting(self, name: str, sae: SAE) -> SAE:
        """The SAE itself, if its store was indexed with it."""
        if name in self.stores:
            self.stores[name].check(sae)
        return sae

    def __repr__(self) -> str:
        def called(thing: object) -> str:
            return Path(thing).name if isinstance(thing, str | Path) else repr(thing).splitlines()[0]

        name = self._name(None)
        store = self.stores.get(name)
        over = f", {store.n_latents:,} latents over {store.n_rows:,} rows" if store is not None else ""
        more = f" (of {len(self.saes)} SAEs)" if len(self.saes) > 1 else ""
        return f"Lab({called(self._subject)}; {name}{more}{over})"


class _Loaded(Mapping[str, Any]):
    """SAEs by name, each loaded when it is first asked for."""

    def __init__(self, saes: dict[str, Any], fitting: Any) -> None:
        self._saes, self._fit = saes, fitting

    def __getitem__(self, name: str) -> SAE:
        sae = self._saes[name]
        if isinstance(sae, str | Path):
            from saelab.sae import SAE

            self._saes[name] = sae = self._fit(name, SAE.load(sae))
        return sae

    def __iter__(self) -> Iterator[str]:
        return iter(self._saes)

    def __len__(self) -> int:
        return len(self._saes)

    def __repr__(self) -> str:
        return f"SAEs({', '.join(self._saes)})"


def _named(saes: Any, stores: Any) -> dict[str, tuple[Any, FeatureStore | None]]:
    """name -> (SAE or where it is, its store or None). Raises ConfigError, StoreError."""
    if isinstance(saes, Mapping):
        given = stores if isinstance(stores, Mapping) else {}
        if stores is not None and not isinstance(stores, Mapping):
            if len(saes) != 1 or isinstance(stores, list | tuple):
                message = (
                    "The stores of named SAEs must be named alike. Got a "
                    f"{type(stores).__name__}. Pass {{name: store}}."
                )
                raise ConfigError(message)
            given = {next(iter(saes)): stores}
        unknown = [name for name in given if name not in saes]
        if unknown:
            message = (
                f"Every store must be of one of the SAEs, {', '.join(saes)}. Got {unknown[0]!r}. "
                f"{nearest(str(unknown[0]), saes)}Name stores as their SAEs."
            )
            raise ConfigError(message)
        pairs = [(str(name), sae, _opened(given.get(name))) for name, sae in saes.items()]
    else:
        each = list(saes) if isinstance(saes, list | tuple) else [saes]
        own = list(stores) if isinstance(stores, list | tuple) else [stores] * (1 if len(each) == 1 else 0)
        if isinstance(stores, Mapping) or len(own or each) != len(each) or (stores is not None and not own):
            message = (
                f"There must be one store for each SAE, or None. Got {type(stores).__name__} for {len(each)} "
                "SAEs. Pass as many, or {name: store} beside {name: SAE}."
            )
            raise ConfigError(message)
        pairs = []
        for sae, store in zip(each, own or [None] * len(each), strict=True):
            opened = _opened(store)
            pairs.append((_called(sae, opened), sae, opened))
    if not pairs:
        message = "A Lab needs at least one SAE. Got none. Pass an SAE, or {name: SAE}."
        raise ConfigError(message)
    names = [name for name, _, _ in pairs]
    return {
        name if names.count(name) == 1 else f"{name} ({names[:i].count(name) + 1})": (sae, store)
        for i, (name, sae, store) in enumerate(pairs)
    }


def _opened(store: Any) -> FeatureStore | None:
    from saelab.stores import FeatureStore

    return store if store is None or isinstance(store, FeatureStore) else FeatureStore.open(store)


def _called(sae: Any, store: FeatureStore | None) -> str:
    """What an SAE is called that was given without a name: the hook points that it reads."""
    if store is not None:
        return store.hook.name
    if isinstance(sae, str | Path):
        return Path(sae).name
    return " + ".join(map(str, sae.reads))


def _labels(labels: Mapping[Any, Any] | None, lab: Lab) -> dict[str, dict[int, str]]:
    """name -> latent -> label. Raises ConfigError, RangeError."""
    from saelab.stores.labels import checked_labels

    if not isinstance(labels, Mapping | None):
        message = f"Labels must be a mapping of latents to texts. Got {short(labels)}. Pass {{7: 'names'}}."
        raise ConfigError(message)
    given = dict(labels or {})
    if not any(isinstance(key, str) for key in given):
        if given and len(lab.saes) > 1:
            message = (
                f"Labels of several SAEs must be named. Got latents of {', '.join(lab.saes)}. Pass "
                "labels={name: {latent: label}}."
            )
            raise ConfigError(message)
        given = {next(iter(lab.saes)): given} if given else {}
    for name, own in given.items():
        n = lab._store(lab._name(name)).n_latents
        given[name] = checked_labels(own, n)
    return given
