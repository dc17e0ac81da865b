"""Labels of latents: `labels.parquet`, a table that is attached to a store (see `attached`).

Beside it lies, where labels were judged, `label_scores.parquet`: what a judge gave a label, such as the
share of examples that it told apart by the label alone. Nothing here computes such a score, or knows its
control.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from saelab.config import integer, is_number, is_unicode
from saelab.stores.attached import Attached, Label, checked_source, checked_text
from saelab.stores.neuronpedia import read_export
from saelab.stores.protocol import Latents
from saelab.types import ConfigError, RangeError, short

if TYPE_CHECKING:
    import pandas as pd

LABELS = Attached(
    "labels.parquet",
    "labels",
    pa.schema([("latent", pa.int32()), ("label", pa.string()), ("source", pa.string())]),
)


LABEL_SCORES = Attached(
    "label_scores.parquet",
    "scores of labels",
    pa.schema([*LABELS.schema, ("score", pa.string()), ("value", pa.float64())]),
)


def labels_of(store: Latents) -> pd.DataFrame:
    """latent, label, source of every label of a store, by latent; of one latent the newest last, and those
    that lie in the user's folder after the store's own. Raises StoreError."""
    return LABELS.all(store).to_pandas().sort_values("latent", kind="stable", ignore_index=True)


def scores_of(store: Latents) -> pd.DataFrame:
    """latent, label, source, score, value of every score of a label that a store has, by latent. Raises
    StoreError."""
    found = LABEL_SCORES.all(store).to_pandas()
    said = labels_of(store).drop_duplicates()  # a label that was replaced takes its scores with it
    return found.merge(said, on=LABELS.schema.names).sort_values("latent", kind="stable", ignore_index=True)


def judged_labels(store: Latents, latent: int | None = None) -> list[Label]:
    """Every label of a store, or of one latent, with its scores, in the order of `labels_of`. Raises
    StoreError."""
    labels, judged = labels_of(store), scores_of(store)
    if latent is not None:
        labels, judged = (frame.loc[frame["latent"] == latent] for frame in (labels, judged))
    scores: dict[tuple[Any, ...], dict[str, float]] = {}
    for *label, score, value in judged.itertuples(index=False, name=None):
        scores.setdefault(tuple(label), {})[score] = value
    return [(*label, scores.get(label, {})) for label in labels.itertuples(index=False, name=None)]


def count_labels(folder: Path, n_latents: int) -> dict[str, int]:
    """Source -> how many labels of a store are from there. Raises StoreError as `labels_of` does."""
    return dict(sorted(Counter(LABELS.read(folder, n_latents)["source"].to_pylist()).items()))


def attach(store: Latents, labels: Any, source: str | None, of: str | None, scores: Any) -> None:
    """See `FeatureStore.attach_labels`."""
    judged = _checked_scores(scores, labels)
    if isinstance(labels, str | Path):
        rows = read_export(store, labels, checked_source("neuronpedia" if source is None else source), of)
    elif isinstance(labels, Mapping) and of is None:
        name = checked_source("user" if source is None else source)
        rows = [(latent, text, name, judged.get(latent, {})) for latent, text in labels.items()]
    else:
        got = f"of={of!r}" if isinstance(labels, Mapping) else f"a {type(labels).__name__}"
        message = (
            "Labels must be a mapping of latents to labels, or an export of Neuronpedia, and only that "
            f"takes of=. Got {got}. Pass {{7: 'names'}}, or the path of the export."
        )
        raise ConfigError(message)
    new, of_new = _tables(rows, store.n_latents)
    if len(new):
        LABELS.change(store, lambda old: _with(old, new))
    if len(of_new) or len(LABEL_SCORES.all(store)):
        LABEL_SCORES.change(store, lambda old: _with(old, of_new, new))


def write_labels(folder: Path, n_latents: int, labels: Iterable[Label]) -> None:
    """Write labels into the store in a folder, beside those that it has."""
    new, of_new = _tables(labels, n_latents)
    if len(new):
        LABELS.rewrite(folder, n_latents, lambda old: _with(old, new))
    if len(of_new):
        LABEL_SCORES.rewrite(folder, n_latents, lambda old: _with(old, of_new, new))


def _tables(labels: Iterable[Label], n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Labels that were checked, and their scores."""
    import pandas as pd

    every = [
        (checked_latent(j, n), checked_label(text, j), source, scores) for j, text, source, scores in labels
    ]
    new = pd.DataFrame([each[:3] for each in every], columns=LABELS.schema.names)
    judged = [(*each[:3], name, value) for each in every for name, value in each[3].items()]
    return new, pd.DataFrame(judged, columns=LABEL_SCORES.schema.names)


def _with(table: pa.Table, new: pd.DataFrame, replacing: pd.DataFrame | None = None) -> pa.Table:
    """Labels, or their scores, with new ones, which replace those of the same latent and source as they, or
    as some labels."""
    import pandas as pd

    those = new if replacing is None else replacing
    old, given = table.to_pandas(), set(zip(those["latent"], those["source"], strict=True))
    stays = [pair not in given for pair in zip(old["latent"], old["source"], strict=True)]
    kept = pd.concat([old.loc[np.array(stays, dtype=bool)], new.loc[new["label"] != ""]], ignore_index=True)
    kept = kept.iloc[np.argsort(kept["latent"].to_numpy(np.int64), kind="stable")]
    return pa.Table.from_pandas(kept, table.schema, preserve_index=False)


def newest(labels: pd.DataFrame) -> dict[int, str]:
    """latent -> the label that was attached last."""
    return dict(zip(labels["latent"].tolist(), labels["label"].tolist(), strict=True))


def with_own(labels: pd.DataFrame, own: Mapping[int, str]) -> pd.DataFrame:
    """Labels of a store, but a Lab's own of the latents that it has any of."""
    import pandas as pd

    kept = labels.loc[~labels["latent"].isin(list(own))]
    given = pd.DataFrame(list(own.items()), columns=["latent", "label"]).assign(source="lab")
    return pd.concat([kept, given], ignore_index=True)


def _checked_scores(scores: Any, labels: Any) -> Mapping[int, Mapping[str, float]]:
    """Latent -> name -> score, of latents that get a label. Raises ConfigError."""
    if scores is None:
        return {}
    remedy = "Pass {7: {'recall': 0.8}} beside the labels {7: 'names'}."
    if not isinstance(scores, Mapping) or not isinstance(labels, Mapping):
        message = f"scores must be a mapping, beside one of labels. Got {short(scores)}. {remedy}"
        raise ConfigError(message)
    for latent, each in scores.items():
        if latent not in labels or not isinstance(each, Mapping):
            got = f"{short(latent)}: {short(each)}"
            message = f"scores must be of latents that get a label, by name. Got {got}. {remedy}"
            raise ConfigError(message)
        for name, value in each.items():
            good = isinstance(name, str) and is_unicode(name) and is_number(value) and math.isfinite(value)
            if not good:
                message = f"A score must have a name and a finite value. Got {short(each)}. {remedy}"
                raise ConfigError(message)
    return scores


def checked_labels(labels: Any, n: int) -> dict[int, str]:
    """Latent -> label. Raises ConfigError, RangeError."""
    if not isinstance(labels, Mapping):
        message = f"Labels must be a mapping of latents to texts. Got {short(labels)}. Pass {{7: 'names'}}."
        raise ConfigError(message)
    return {checked_latent(j, n): checked_label(text, j) for j, text in labels.items()}


def checked_latent(latent: Any, n: int) -> int:
    """The latent of a label. Raises RangeError."""
    remedy = "Pass labels of this store's latents."
    return integer("A label's latent", latent, 0, n - 1, error=RangeError, remedy=remedy)


def checked_label(text: Any, latent: Any) -> str:
    """A label. Raises ConfigError."""
    return checked_text("A label", text, "{7: 'names'}", f" of latent {latent}")
