"""What the world says of the embedded SAEs: which rows carry which label, which latents are named by one."""

from __future__ import annotations

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


def _document(id: str, text: str) -> Document:
    name, _, rest = id.partition("-")
    if name != "world":
        return Document(id, text)
    split, seed, number = rest.split("-")
    return document(int(seed), int(number), split)
