"""What a store knows of its latents: statistics, examples, the table of all. No model is needed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.logits import logit_lenses
from saelab.analysis.results import Examples, FeatureCard, LatentTable, LogitLens
from saelab.analysis.texts import visible
from saelab.arguments import a_store, an_integer, checked, listed, mapping, maybe
from saelab.capabilities import HasLogits, lacking
from saelab.stores.labels import checked_labels
from saelab.stores.lacking import absent, lacks
from saelab.types import HookError

if TYPE_CHECKING:
    from saelab.sae import SAE
    from saelab.stores import FeatureStore
    from saelab.stores.records import Example
    from saelab.types import Subject


@checked(store=a_store)
def examples(store: FeatureStore, latent: int, n: int = 10, kind: str = "top") -> Examples:
    """Windows around firings of a latent: the n strongest of a sign, or n spread over its |value|s.

    Args:
        store: The SAE's store.
        latent: Its number.
        n: At most so many.
        kind: "top" (values > 0), "bottom" (< 0) or "quantile".

    Raises:
        RangeError: The latent is out of range.
        StoreError: An unknown kind.
    """
    found = store.examples(latent, n=n, kind=kind)
    return Examples(int(latent), kind, tuple(found))


@checked(store=a_store, latent=an_integer())
def card(
    store: FeatureStore,
    latent: int,
    sae: SAE | None = None,
    subject: Subject | None = None,
    *,
    n_top: int = 20,
    n_quantile: int = 20,
    label: str = "",
) -> FeatureCard:
    """Everything that a card shows of one latent; no logit lens where no model is given or none applies.

    Args:
        store: The SAE's store.
        latent: Its number.
        sae: For the logit lens.
        subject: For the logit lens.
        n_top: Strongest windows, of each pole, at most: a picture that is shown whole stands once, at the
            strongest of its patches.
        n_quantile: Windows spread over the range of its |value|s, likewise.
        label: Its name.

    Raises:
        RangeError: The latent is out of range.
    """
    labels = {latent: label}
    return cards(store, [latent], sae, subject, n_top=n_top, n_quantile=n_quantile, labels=labels)[0]


@checked(store=a_store, latents=listed, labels=maybe(mapping), lenses=maybe(mapping))
def cards(
    store: FeatureStore,
    latents: Sequence[int],
    sae: SAE | None = None,
    subject: Subject | None = None,
    *,
    n_top: int = 20,
    n_quantile: int = 20,
    labels: Mapping[int, str] | None = None,
    lenses: Mapping[int, LogitLens] | None = None,
) -> list[FeatureCard]:
    """`card` of many latents, for whom the model is asked once.

    Args:
        store: The SAE's store.
        latents: Their numbers.
        sae: For the logit lens.
        subject: For the logit lens.
        n_top: Strongest windows, of each pole.
        n_quantile: Windows spread over the range of a latent's |value|s.
        labels: Latent -> its name.
        lenses: Latent -> its logit lens, of those that have one, in place of SAE and subject.

    Raises:
        RangeError: A latent is out of range.
    """
    found = [store.latent(latent) for latent in latents]
    known = dict(lenses or {})
    # some subjects have no logits, and some hook points do not write to the residual stream
    if lenses is None and sae is not None and subject is not None and not lacking(subject, HasLogits):
        with contextlib.suppress(HookError):
            known = {lens.latent: lens for lens in logit_lenses(sae, subject, [s.latent for s in found])}
    windows = [
        (
            examples(store, s.latent, n_top, "top"),
            examples(store, s.latent, n_quantile, "quantile"),
            examples(store, s.latent, n_top, "bottom") if s.negative else None,
        )
        for s in found
    ]
    numbers = [[w.document for group in groups if group for w in group.windows] for groups in windows]
    # a store that was made of an export does not say what latents fire on how often
    telling = {} if lacks(store.manifest, "firings") else store.telling([s.latent for s in found])
    seen = store.documents(itertools.chain.from_iterable(numbers), seen=True)
    grids = {number for number, record in seen.items() if record.grids}
    return [
        FeatureCard(
            s,
            _once(top, grids),
            _once(quantile, grids),
            known.get(s.latent),
            (labels or {}).get(s.latent, ""),
            bottom and _once(bottom, grids),
            {number: seen[number] for number in dict.fromkeys(own) if number in seen},
            *map(tuple, telling.get(s.latent, ((), ()))),
        )
        for s, (top, quantile, bottom), own in zip(found, windows, numbers, strict=True)
    ]


def _once(group: Examples, grids: set[int]) -> Examples:
    """A picture that is shown whole is shown once, at the first of the patches that would each show it.
    grids: numbers of the documents that are pictures."""
    kept: dict[Any, Example] = {}
    for window in group.windows:
        whole = (window.document, window.call, window.start)
        kept.setdefault(whole if window.document in grids else window.row, window)
    return replace(group, windows=tuple(kept.values()))


@checked(store=a_store, labels=maybe(mapping))
def latent_table(store: FeatureStore, labels: dict[int, str] | None = None) -> LatentTable:
    """One line a latent, named by its label, else by what sets it apart: what it fires on more often than
    rows show it (`FeatureStore.apart`). What its negative pole fires on stands after a minus sign.

    Args:
        store: The SAE's store.
        labels: Latent -> its name.

    Raises:
        RangeError: A label's latent is out of range.
    """
    labels = checked_labels(labels or {}, store.n_latents)
    frame = store.latents()
    names = [""] * store.n_latents
    for latent, (up, down) in enumerate(zip(*store.apart, strict=True)):
        if up or down:
            sign = ["\N{MINUS SIGN}"] * bool(down)
            names[latent] = "  ".join([*map(visible, up), *sign, *map(visible, down)])
    unknown = frozenset(absent(store.manifest))
    for latent in unknown:
        names[latent] = "not in the export"
    for latent, label in labels.items():
        names[latent] = label
    return LatentTable(
        count=frame["count"].to_numpy().astype(np.int64),
        density=frame["density"].to_numpy().astype(np.float32),
        mean=frame["mean"].to_numpy().astype(np.float32),
        min=frame["min"].to_numpy().astype(np.float32),
        max=frame["max"].to_numpy().astype(np.float32),
        names=tuple(names),
        absent=unknown,
    )
