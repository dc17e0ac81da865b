"""One code a sample and latent: what the codes of a sample's rows come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.corpora import Corpus
from saelab.harvesting.batches import batches, check_hooks, side_by_side
from saelab.types import ConfigError, StoreError

if TYPE_CHECKING:
    from saelab.corpora import Document
    from saelab.sae import SAE
    from saelab.stores import FeatureStore
    from saelab.types import Subject


RATED = 4096
"""Rows on which firing rates are measured, at most."""


@dataclass(frozen=True)
class Pooled:
    """Codes of samples, of the latents that fired in any of them."""

    latents: np.ndarray
    """int64 [live], ascending"""
    codes: np.ndarray
    """float32 [samples live]"""
    d_sae: int
    norm: float = float("nan")
    """mean Euclidean norm of the rows that were encoded, in raw units; NaN out of a store"""

    @property
    def signed(self) -> bool:
        """Whether any code is below 0."""
        return bool((self.codes < 0).any())

    def column(self, latent: int) -> np.ndarray:
        """float32 [samples] of one latent; zeros where it never fired."""
        at = int(np.searchsorted(self.latents, latent))
        known = at < len(self.latents) and self.latents[at] == latent
        return self.codes[:, at] if known else np.zeros(len(self.codes), np.float32)


def corpus_of(documents: Sequence[Document]) -> Corpus:
    """A corpus of these."""
    return Corpus(lambda: documents, f"{len(documents)} samples", n_documents=len(documents))


def pool(subject: Subject, sae: SAE, documents: Sequence[Document], pooling: str, batch_size: int) -> Pooled:
    """Run samples through a subject and an SAE. pooling: "max" (the code of the largest size) or "mean".

    Raises:
        HookError: The SAE has no hook point of this subject.
    """
    corpus = corpus_of(documents)
    hooks = check_hooks(subject, sae.reads, corpus)
    found, length, n_rows = [], 0.0, 0
    counts = np.zeros(len(documents), np.int64)
    for batch in batches(subject, corpus, hooks, batch_size=batch_size):
        x = side_by_side(batch.acts, hooks)
        codes = sae.encode_sparse(x)
        sample = batch.rows.origin[:, 0]
        counts += np.bincount(sample, minlength=len(documents))
        found.append((sample[codes.row_ids()], codes.indices.astype(np.int64), codes.values))
        length, n_rows = length + float(x.double().norm(dim=-1).sum()), n_rows + len(x)
    sample, latent, value = (np.concatenate(each) for each in zip(*found, strict=True))
    return _pooled(sample, latent, value, counts, sae.config.d_sae, pooling, length / max(n_rows, 1))


def rates(subject: Subject, sae: SAE, documents: Sequence[Document], batch_size: int) -> np.ndarray:
    """float64 [d_sae]: share of the rows of some samples at which each latent is on."""
    corpus = corpus_of(documents)
    hooks = check_hooks(subject, sae.reads, corpus)
    on, n = np.zeros(sae.config.d_sae), 0
    for batch in batches(subject, corpus, hooks, batch_size=batch_size, max_rows=RATED):
        codes = sae.encode_sparse(side_by_side(batch.acts, hooks))
        on += np.bincount(codes.indices, minlength=len(on))
        n += len(codes)
    return on / max(n, 1)


def pool_of_store(store: FeatureStore, documents: Sequence[int], pooling: str) -> Pooled:
    """The same out of a store, of documents by their numbers.

    Raises:
        StoreError: The store has no codes of every row, or no such document.
    """
    store.need_codes()
    sql = (
        "select r.document, c.latent, c.value from codes_by_latent c join rows r on c.row = r.row "
        "where r.document in (select unnest(?::bigint[]))"
    )
    wanted = sorted(set(documents))
    rows = store.query(
        "select document, count(*) n from rows where document in (select unnest(?::bigint[])) group by 1",
        [wanted],
    )
    if len(rows) < len(wanted):
        missing = sorted(set(wanted) - set(rows["document"].tolist()))
        message = f"Documents must have rows in the store. Got {missing[:5]}. Pass numbers of its documents."
        raise StoreError(message)
    place = {document: at for at, document in enumerate(documents)}
    counts = np.zeros(len(documents), np.int64)
    counts[[place[d] for d in rows["document"].tolist()]] = rows["n"].to_numpy()
    codes = store.query(sql, [wanted])
    sample = np.array([place[d] for d in codes["document"].tolist()], np.int64)
    latent, value = codes["latent"].to_numpy().astype(np.int64), codes["value"].to_numpy()
    return _pooled(sample, latent, value, counts, store.n_latents, pooling, float("nan"))


def _pooled(
    sample: np.ndarray, latent: np.ndarray, value: Any, counts: np.ndarray, d_sae: int, pooling: str,
    norm: float,
) -> Pooled:  # fmt: skip
    if pooling not in ("max", "mean"):
        message = f"pooling must be 'max' or 'mean'. Got {pooling!r}. Pass pooling='max'."
        raise ConfigError(message)
    live, column = np.unique(latent, return_inverse=True)
    out = np.zeros((len(counts), len(live)), np.float32)
    if pooling == "mean":
        np.add.at(out, (sample, column), value)
        out /= np.maximum(counts, 1)[:, None]
    else:
        # by size, so that what is written last to a place is the largest; its sign is kept
        order = np.argsort(np.abs(value), kind="stable")
        out[sample[order], column[order]] = value[order]
    return Pooled(live, out, d_sae, norm)


__all__ = ["Pooled", "corpus_of", "pool", "pool_of_store", "rates"]
