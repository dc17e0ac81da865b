"""Which latents a sample is about: those that fire on it more often than on a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelab.arguments import a_store, a_subject, an_integer, an_sae, checked, maybe
from saelab.capabilities import HasTokens, lacking
from saelab.harvesting.batches import batches, check_hooks, side_by_side

if TYPE_CHECKING:
    from saelab.sae import SAE
    from saelab.stores import FeatureStore
    from saelab.types import Subject

SHORT = 16
"""Rows of a text, at most, that is read behind openings."""
OPENINGS = 8
LENGTHS = (20, 90)
"""Characters of the shortest and of the longest opening, at most."""
TRIED = 64
"""Documents that are asked for an opening."""


class Found(NamedTuple):
    """A latent that a sample fires."""

    latent: int
    score: float
    """with a store in bits, see `search`; without one |value|"""
    value: float
    """the strongest, with its sign"""
    share: float
    """of the sample's rows, those on which it fires"""
    lift: float
    """that share by the latent's share of the store's rows; NaN without a store"""


@checked(subject=a_subject, sae=an_sae, n=an_integer(), store=maybe(a_store))
def search(
    subject: Subject, sae: SAE, sample: Any, n: int = 50, *, store: FeatureStore | None = None
) -> list[Found]:
    """The latents that a sample fires, those first that are specific to it.

    With f_j the share of the sample's rows on which latent j fires, and d_j that of the store's N rows, of
    which it fires on c_j::

        score_j = f_j log2(f_j / d_j),    d_j = (c_j + 1) / (N + 1)

    what j adds to the Kullback-Leibler divergence of the sample from the corpus, in bits a row. So a latent
    that fires everywhere scores 0, and one that fires on the first row alone next to nothing on a long text.

    A short text (up to `SHORT` tokens) stands alone at the first positions, where latents of the position
    fire instead of its own. It is read behind `OPENINGS` openings of the store's documents, and its rows in
    all of them are the sample's.

    Args:
        subject: The model that the SAE reads.
        sae: With the hook points that it reads.
        sample: What the subject reads; see `sample_codes`.
        n: How many, at most.
        store: Of the SAE; without one, latents are ranked by their strongest |value| on the sample.

    Returns:
        Best first, of equals the stronger, then the lower number; positions that are no rows are left out.

    Raises:
        CorpusError, HookError: See `sample_codes`.
    """
    latents, values, rows = _fired(subject, sae, [sample], [0])
    if store is not None and rows <= SHORT and isinstance(sample, str) and not lacking(subject, HasTokens):
        texts, firsts = _behind(subject, openings(store), sample)
        if texts:
            latents, values, rows = _fired(subject, sae, texts, firsts)
    order = np.lexsort((-np.abs(values), latents))
    latents, starts, counts = np.unique(latents[order], return_index=True, return_counts=True)
    value, share = values[order][starts], counts / max(rows, 1)
    if store is None:
        lift, score = np.full(len(latents), np.nan), np.abs(value).astype(np.float64)
    else:
        fires = store.latents()["count"].to_numpy()[latents]
        lift = share * (store.n_rows + 1) / (fires + 1)
        score = share * np.log2(lift)
    best = np.lexsort((latents, -np.abs(value), -score))[:n]
    columns = (each[best].tolist() for each in (latents, score, value, share, lift))
    return [Found(*line) for line in zip(*columns, strict=True)]


def openings(store: FeatureStore) -> list[str]:
    """How documents of a store begin: up to OPENINGS, of several lengths, cut after a space where there is
    one; the same ones each time."""
    numbers = np.unique(np.linspace(0, store.n_documents - 1, min(TRIED, store.n_documents)).astype(int))
    documents = store.documents(numbers.tolist())
    texts = [documents[i].text for i in numbers.tolist() if len(documents[i].text) >= LENGTHS[0]]
    spread = texts[:: max(1, len(texts) // OPENINGS)][:OPENINGS]
    rooms = np.linspace(*LENGTHS, OPENINGS).astype(int).tolist()
    cuts = (text[:room] for text, room in zip(spread, rooms, strict=False))
    return [cut[: cut.rfind(" ") + 1] or cut for cut in cuts]


def _behind(subject: Any, before: Sequence[str], text: str) -> tuple[list[str], list[int]]:
    """A text behind each of these where that fits the context, and at which position its own rows begin."""
    texts, firsts = [], []
    for opening in before:
        whole = (opening.rstrip(" ") if text[0].isspace() else opening) + text
        ids, alone = subject.to_tokens(whole), subject.to_tokens(opening)
        # a space belongs to the word after it, and other ends may be in one token with the text too
        first = next((i for i, (a, b) in enumerate(zip(ids, alone, strict=False)) if a != b), len(alone))
        if len(ids) <= subject.n_ctx:
            texts.append(whole)
            firsts.append(first)
    return texts, firsts


def _fired(
    subject: Subject, sae: SAE, data: Sequence[Any], firsts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Latents and values of every code on the rows of some samples, each from a position on, and how many
    rows these are."""
    import torch

    corpus = subject.corpus(data)
    hooks = check_hooks(subject, sae.reads, corpus)
    latents, values, n = [], [], 0
    for batch in batches(subject, corpus, hooks):
        own = batch.rows.origin[:, 1] >= np.array(firsts)[batch.rows.origin[:, 0]]
        codes = sae.encode_sparse(side_by_side(batch.acts, hooks)[torch.from_numpy(own)])
        latents.append(codes.indices)
        values.append(codes.values)
        n += len(codes)
    return np.concatenate(latents), np.concatenate(values), n
