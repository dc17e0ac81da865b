"""Probes that read k of many columns: which, how they are fitted, and how well they do on held-out documents.

The measure of Gurnee et al. 2023 (arXiv 2305.01610) as SAEBench has it: the k columns whose means differ most
between the two kinds of fitted units, a logistic probe on these, and its accuracy on as many units of either
kind, so that 0.5 is what knowing nothing gives.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from saelab.analysis.probing.labelled import Task
from saelab.analysis.steering.ranking import FLOOR

LEAST = 10
"""Units of either kind on either side, without which a label is left out."""


@dataclass(frozen=True)
class Split:
    """Units that a probe of one task is fitted and judged on, as many of either kind."""

    fit: np.ndarray
    """int64 [n]: numbers of units"""
    test: np.ndarray
    """int64 [m], of other documents"""


def split(
    task: Task, document: np.ndarray, held_out: np.ndarray, most: int, rng: np.random.Generator
) -> Split | str:
    """Units for a task, drawn at random; why there is none where too few are of one kind.

    Args:
        task: The question.
        document: int64 [units], the document of each.
        held_out: bool [documents], those that judge.
        most: Units of either kind that are fitted on, at most; half as many judge.
        rng: Of the draw.
    """
    parts = []
    for side, limit in ((False, most), (True, most // 2)):
        here = held_out[document] == side
        kinds = [np.flatnonzero(here & (task.positive == kind)) for kind in (True, False)]
        size = min(limit, *map(len, kinds))
        if size < LEAST:
            where = "held-out" if side else "fitted"
            return (
                f"needs {LEAST} {where} {task.of}s with the label and {LEAST} without. Got "
                f"{len(kinds[0])} and {len(kinds[1])}: pass more documents"
            )
        parts.append(np.concatenate([rng.permutation(kind)[:size] for kind in kinds]))
    return Split(*parts)


class Fitted(NamedTuple):
    """A probe that was fitted."""

    columns: np.ndarray
    """int64 [k]: what it reads"""
    right: np.ndarray
    """bool [m]: whether it was right of each unit that judges"""


def differing(codes: Any, positive: np.ndarray, by: str) -> np.ndarray:
    """int64 [d]: columns by |mean of the positive - mean of the others|, the largest first; of equals the
    first.

    Args:
        codes: [n d], an array or a sparse matrix.
        positive: bool [n].
        by: "means", as they are; or "effect", in units of the standard deviation within both kinds.
    """
    from scipy.sparse import csr_matrix, issparse

    both = [codes[kind] if issparse(codes) else csr_matrix(codes[kind]) for kind in (positive, ~positive)]
    means = [np.asarray(own.mean(0), dtype=np.float64).ravel() for own in both]
    size = np.abs(means[0] - means[1])
    if by == "effect":
        squares = [np.asarray(own.power(2).mean(0), dtype=np.float64).ravel() for own in both]
        variance = sum(s - m * m for s, m in zip(squares, means, strict=True)) / 2
        largest = np.maximum(*(np.asarray(abs(own).max(0).todense()).ravel() for own in both))
        floor = np.where(largest > 0, FLOOR * largest, 1.0)
        size = size / np.maximum(np.sqrt(np.maximum(variance, 0)), floor)
    return np.argsort(-size, kind="stable")


def fitted(
    columns: np.ndarray, codes: Any, positive: np.ndarray, parts: Split, believed: np.ndarray | None = None
) -> Fitted:
    """A logistic probe on some columns, standardised by the fitted units.

    Args:
        columns: int64 [k].
        codes: [units d], an array or a sparse matrix.
        positive: bool [units].
        parts: What it is fitted and judged on.
        believed: bool [n], the labels that it is fitted to, if not the true ones.
    """
    x, held = (_dense(codes[part][:, columns]) for part in (parts.fit, parts.test))
    yes = positive[parts.fit] if believed is None else believed
    return Fitted(columns, predicted(x, yes, held) == positive[parts.test])


def predicted(x: np.ndarray, positive: np.ndarray, held: np.ndarray) -> np.ndarray:
    """bool [m]: what a logistic probe says of other rows (scikit-learn's, L2 penalty with C = 1).

    Args:
        x: [n d], what it is fitted on.
        positive: bool [n].
        held: [m d].
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    middle, spread = x.mean(0), x.std(0)
    spread = np.where(spread > 0, spread, 1)
    probe = LogisticRegression(max_iter=500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its accuracy says how far it came
        probe.fit((x - middle) / spread, positive)
    return np.asarray(probe.predict((held - middle) / spread))


def best(
    codes: Any, positive: np.ndarray, parts: Split, ks: Sequence[int], believed: np.ndarray, by: str
) -> list[Fitted]:
    """A probe for each k, of the columns that differ most on the fitted units.

    Args:
        codes: [units d].
        positive: bool [units].
        parts: What they are fitted and judged on.
        ks: Numbers of columns.
        believed: bool [n], the labels by which columns are chosen and probes are fitted.
        by: See `differing`.
    """
    order = differing(codes[parts.fit], believed, by)
    return [fitted(order[:k], codes, positive, parts, believed) for k in ks]


def drawn(
    codes: Any, positive: np.ndarray, parts: Split, ks: Sequence[int], rng: np.random.Generator
) -> list[Fitted]:
    """As `best`, of columns that are drawn at random among those that are not 0 on all fitted units.

    Args:
        codes: [units d], a sparse matrix.
        positive: bool [units].
        parts: What they are fitted and judged on.
        ks: Numbers of columns.
        rng: Of the draw.
    """
    alive = np.flatnonzero(np.diff(codes[parts.fit].tocsc().indptr))
    order = rng.permutation(alive if len(alive) >= max(ks) else codes.shape[1])
    return [fitted(order[:k], codes, positive, parts) for k in ks]


def _dense(x: Any) -> np.ndarray:
    return np.asarray(x.toarray() if hasattr(x, "toarray") else x, dtype=np.float64)


__all__ = ["LEAST", "Fitted", "Split", "best", "differing", "drawn", "fitted", "predicted", "split"]
