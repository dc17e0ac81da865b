"""Labels of latents: `labels.parquet`, a table that is attached to a store (see `attached`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from saelab.config import integer, is_unicode
from saelab.stores.attached import Attached, checked_source
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


def labels_of(store: Latents) -> pd.DataFrame:
    """latent, label, source of every label of a store, by latent; of one latent the newest last, and those
    that lie in the user's folder after the store's own. Raises StoreError."""
    return LABELS.all(store).to_pandas().sort_values("latent", kind="stable", ignore_index=True)


def count_labels(folder: Path, n_latents: int) -> dict[str, int]:
    """Source -> how many labels of a store are from there. Raises StoreError as `labels_of` does."""
    return dict(sorted(Counter(LABELS.read(folder, n_latents)["source"].to_pylist()).items()))


def attach(store: Latents, labels: Any, source: str | None, of: str | None) -> None:
    """See `FeatureStore.attach_labels`."""
    if isinstance(labels, str | Path):
        rows = read_export(store, labels, checked_source("neuronpedia" if source is None else source), of)
    elif isinstance(labels, Mapping) and of is None:
        name = checked_source("user" if source is None else source)
        rows = [(latent, text, name) for latent, text in labels.items()]
    else:
        got = f"of={of!r}" if isinstance(labels, Mapping) else f"a {type(labels).__name__}"
        message = (
            "Labels must be a mapping of latents to labels, or an export of Neuronpedia, and only that "
            f"takes of=. Got {got}. Pass {{7: 'names'}}, or the path of the export."
        )
        raise ConfigError(message)
    if (new := _table(rows, store.n_latents)) is not None:
        LABELS.change(store, lambda old: _with(old, new))


def write_labels(folder: Path, n_latents: int, labels: Iterable[tuple[int, str, str]]) -> None:
    """Write (latent, label, source)s into the store in a folder, beside those that it has."""
    if (new := _table(labels, n_latents)) is not None:
        LABELS.rewrite(folder, n_latents, lambda old: _with(old, new))


def _table(labels: Iterable[tuple[int, str, str]], n: int) -> pd.DataFrame | None:
    """Labels that were checked; None of none."""
    import pandas as pd

    rows = [(checked_latent(j, n), checked_label(text, j), source) for j, text, source in labels]
    return pd.DataFrame(rows, columns=LABELS.schema.names) if rows else None


def _with(table: pa.Table, new: pd.DataFrame) -> pa.Table:
    """Labels with new ones, which replace those of the same latent and source."""
    import pandas as pd

    old, given = table.to_pandas(), set(zip(new["latent"], new["source"], strict=True))
    stays = [pair not in given for pair in zip(old["latent"], old["source"], strict=True)]
    kept = pd.concat([old.loc[np.array(stays, dtype=bool)], new.loc[new["label"] != ""]], ignore_index=True)
    kept = kept.iloc[np.argsort(kept["latent"].to_numpy(np.int64), kind="stable")]
    return pa.Table.from_pandas(kept, LABELS.schema, preserve_index=False)


def newest(labels: pd.DataFrame) -> dict[int, str]:
    """latent -> the label that was attached last."""
    return dict(zip(labels["latent"].tolist(), labels["label"].tolist(), strict=True))


def with_own(labels: pd.DataFrame, own: Mapping[int, str]) -> pd.DataFrame:
    """Labels of a store, but a Lab's own of the latents that it has any of."""
    import pandas as pd

    kept = labels.loc[~labels["latent"].isin(list(own))]
    given = pd.DataFrame(list(own.items()), columns=["latent", "label"]).assign(source="lab")
    return pd.concat([kept, given], ignore_index=True)


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
    if not isinstance(text, str) or not is_unicode(text):
        got = "half a surrogate pair" if isinstance(text, str) else type(text).__name__
        message = f"A label must be a str. Got {got} of latent {latent}. Pass {{7: 'names'}}."
        raise ConfigError(message)
    return text.strip()
