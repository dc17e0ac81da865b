"""What the world says of the embedded SAEs: which rows carry which label, which latents are named by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saelab.analysis import row_labels
from saelab.corpora import Document
from saelab.corpora.world import document
from saelab.stores import FeatureStore

GROUPS = {
    "giver": "person", "receiver": "person", "documented argument": "argument",
    "century": "year", "start year": "year", "end year": "year",
}  # fmt: skip
"""Labels that say what part something plays -> what it is."""

MOST = 0.5
LEAST_ROWS = 20


def labels_of_rows(store: FeatureStore, subject: Any) -> list[str]:
    """The world's label of each row of an embedded store, "" where it has none; natural text has none.

    Args:
        store: Whose documents are of the world or natural.
        subject: The embedded language model.
    """
    kept = store.documents(range(store.n_documents)).values()
    return row_labels(subject, store, [_document(each.id, each.text) for each in kept])


def grouped(label: str) -> str:
    """What a label's part is, such as a person for a giver."""
    return GROUPS.get(label, label)


def precisions(store: FeatureStore, labels: Any) -> dict[str, np.ndarray]:
    """Label -> float64 [n_latents]: of the rows where each latent fires, the share that carry the label.

    Args:
        store: With the codes of every row.
        labels: One string a row, "" for none.
    """
    codes = store.query("select latent, row from codes_by_latent")
    latent, here = codes["latent"].to_numpy(), np.asarray(labels, dtype=object)[codes["row"]]
    fires = np.maximum(np.bincount(latent, minlength=store.n_latents), 1)
    names = sorted(set(labels) - {""})
    return {
        name: np.bincount(latent[np.equal(here, name)], minlength=store.n_latents) / fires for name in names
    }


def names(store: FeatureStore, labels: Sequence[str]) -> dict[int, str]:
    """Latent -> the label that most of the rows carry on which it fires.

    A latent is named where it fires on LEAST_ROWS and at least half of them carry one label, or one once
    parts are taken together (`grouped`). No label is on more than a tenth of the rows, so that half is far
    from chance: of labels shuffled among the rows no latent should get a name.

    Args:
        store: With the codes of every row.
        labels: One string a row, "" for none.
    """
    count = store.latents()["count"].to_numpy()
    found: dict[int, str] = {}
    # the exact label, where there is one, is written last
    for of in (precisions(store, list(map(grouped, labels))), precisions(store, labels)):
        for label, precision in of.items():
            named = (precision >= MOST) & (count >= LEAST_ROWS)
            found |= dict.fromkeys(np.flatnonzero(named).tolist(), label)
    return found


def agreement(store: FeatureStore, labels: Sequence[str], named: Mapping[int, str]) -> float:
    """Of the rows on which named latents fire, the mean share that carry the name; those that never fire are
    left out."""
    count = store.latents()["count"].to_numpy()
    of = precisions(store, list(map(grouped, labels)))
    none = np.zeros(store.n_latents)
    shares = [of.get(grouped(label), none)[j] for j, label in named.items() if count[j]]
    return float(np.mean(shares))


def _document(id: str, text: str) -> Document:
    name, _, rest = id.partition("-")
    if name != "world":
        return Document(id, text)
    split, seed, number = rest.split("-")
    return document(int(seed), int(number), split)
