"""What a Lab is made of, as it is given: SAEs, stores and labels in any of their forms, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.types import ConfigError, SubjectError, nearest, short

if TYPE_CHECKING:
    from saelab.stores import FeatureStore


def named(saes: Any, stores: Any) -> dict[str, tuple[Any, FeatureStore | None]]:
    """name -> (SAE or where it is, or None; its store or None). Raises ConfigError, StoreError."""
    if saes is None:  # stores alone
        several = isinstance(stores, list | tuple | Mapping)
        if stores is None or (several and not len(stores)):
            message = "A Lab needs an SAE or a store. Got neither. Pass Lab(subject, saes, stores)."
            raise ConfigError(message)
        named_alike = isinstance(stores, Mapping)
        saes = dict.fromkeys(stores) if named_alike else [None] * (len(stores) if several else 1)
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
        pairs = [(str(name), sae, opened(given.get(name))) for name, sae in saes.items()]
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
            own_store = opened(store)
            pairs.append((called(sae, own_store), sae, own_store))
    if not pairs:
        message = "A Lab needs at least one SAE. Got none. Pass an SAE, or {name: SAE}."
        raise ConfigError(message)
    names = [name for name, _, _ in pairs]
    return {
        name if names.count(name) == 1 else f"{name} ({names[:i].count(name) + 1})": (sae, store)
        for i, (name, sae, store) in enumerate(pairs)
    }


def opened(store: Any) -> FeatureStore | None:
    from saelab.stores import FeatureStore

    return store if store is None or isinstance(store, FeatureStore) else FeatureStore.open(store)


def called(sae: Any, store: FeatureStore | None) -> str:
    """What an SAE is called that was given without a name: the hook points that it reads."""
    if store is not None:
        return store.hook.name
    if isinstance(sae, str | Path):
        return Path(sae).name
    return " + ".join(map(str, sae.reads))


def no_model() -> SubjectError:
    """What a Lab without a model says to whoever needs one."""
    message = "This needs the model. Got a Lab without one. Pass it: Lab(subject, saes, stores)."
    return SubjectError(message)


def labels_by_name(labels: Mapping[Any, Any] | None, names: Iterable[str]) -> dict[str, dict[Any, Any]]:
    """name -> latent -> label, as they are given. Raises ConfigError."""
    if not isinstance(labels, Mapping | None):
        message = f"Labels must be a mapping of latents to texts. Got {short(labels)}. Pass {{7: 'names'}}."
        raise ConfigError(message)
    given, names = dict(labels or {}), list(names)
    if any(isinstance(key, str) for key in given):
        return given
    if given and len(names) > 1:
        message = (
            f"Labels of several SAEs must be named. Got latents of {', '.join(names)}. Pass "
            "labels={name: {latent: label}}."
        )
        raise ConfigError(message)
    return {names[0]: given} if given else {}
