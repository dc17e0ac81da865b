"""Absorption: the latents of a letter stay silent on some of its words, and latents of those words bear the
letter instead (Chanin et al. 2024, arXiv 2409.14507; as SAEBench measures it).

For a letter with the direction p of a probe on activations, what latent j brings to a word is z_j d_j . p,
in raw units, and what there is to be brought is (x - b) . p, where b is what the decoder gives of no code.
(SAEBench takes x . p, which is the same for an SAE without a bias.) What is said of letters and words here
holds of any label and the rows that bear it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

ALIGNED, PART, ABSORBERS, FULLY_ALIGNED = 0.1, 0.4, 3, 0.025
"""SAEBench's: the least cosine of an absorber with the probe; the least part of the whole that they bring
together; how many they are at most; the least cosine of the one that absorbs all."""
JUMP, MOST_MAIN, FOLDS = 0.03, 10, 3
"""A further latent is one that the letter is split into where F1 rises by more; latents at most; folds in
which that is measured on fitted words."""
STRENGTH = 0.01
"""Of the L1 penalty on the mean loss of the probe that ranks latents."""


class Word(NamedTuple):
    """What absorption was found on words."""

    fraction: np.ndarray
    """float64 [n], 0 to 1: how much of what the letter's latents and the absorbers bring is the absorbers'"""
    full: np.ndarray
    """bool [n]: the letter's latents are silent, and one other latent bears the letter"""


def absorption(
    weighed: np.ndarray, main: np.ndarray, cosine: np.ndarray, length: np.ndarray, whole: np.ndarray
) -> Word:
    """Absorption on words of one letter.

    Args:
        weighed: float64 [n d_sae], codes in raw units.
        main: int64 [m], the letter's latents.
        cosine: float64 [d_sae], of each latent's direction with the probe's.
        length: float64 [d_sae], of each direction.
        whole: float64 [n], (x - b) . p.
    """
    brought = weighed * (cosine * length)
    own = brought[:, main].sum(1)
    others = np.where(cosine >= ALIGNED, brought, 0)
    others[:, main] = 0
    few = min(ABSORBERS, others.shape[1])
    top = np.maximum(np.partition(others, -few, axis=1)[:, -few:], 0).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        enough = (top / whole >= PART) & (own < whole)
        taken = np.minimum(top, whole - own)
        part = np.clip(taken / (taken + own), 0, 1)
    fraction = np.where(enough, np.where(own <= 0, 1.0, part), 0.0)
    first = brought.argmax(1)
    most = brought[np.arange(len(brought)), first]
    silent = ~(weighed[:, main] != 0).any(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        full = silent & (cosine[first] >= FULLY_ALIGNED) & (whole >= 0) & (most / whole >= PART)
    return Word(np.nan_to_num(fraction), full)


def main_latents(codes: Any, positive: np.ndarray, seed: int) -> np.ndarray:
    """int64 [m], 1 to 10: the latents that a letter is split into.

    They are ranked by the weights of an L1 probe; there are as many as it takes until a further one raises
    the F1 of a logistic probe on them by no more than 0.03 (in three folds).

    Args:
        codes: [n d_sae], a sparse matrix.
        positive: bool [n].
        seed: Of the folds.
    """
    from scipy.sparse import csr_matrix, diags
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    largest = np.asarray(abs(codes).max(0).todense()).ravel()
    scaled = csr_matrix(codes @ diags(1 / np.where(largest > 0, largest, 1)))
    ranker = LogisticRegression(
        l1_ratio=1, solver="liblinear", C=1 / (STRENGTH * len(positive)), class_weight="balanced",
        random_state=seed,
    )  # fmt: skip
    order = np.argsort(-ranker.fit(scaled, positive).coef_[0], kind="stable")
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    before = 0.0
    for k in range(1, MOST_MAIN + 1):
        probe = LogisticRegression(class_weight="balanced", max_iter=500)
        said = cross_val_predict(probe, scaled[:, order[:k]].toarray(), positive, cv=folds)
        reached = f1(np.asarray(said), positive)
        if k > 1 and reached - before <= JUMP:
            return order[: k - 1]
        before = reached
    return order[:MOST_MAIN]


def f1(said: np.ndarray, true: np.ndarray) -> float:
    """2 |said and true| / (|said| + |true|), 0 where both are empty."""
    return float(2 * (said & true).sum() / max(said.sum() + true.sum(), 1))


__all__ = ["Word", "absorption", "f1", "main_latents"]
