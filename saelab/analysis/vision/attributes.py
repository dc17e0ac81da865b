"""What latents do, in the words of labels: named on one half of the documents, judged on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.controls import OWN, Beside, Measured, Sums, against, wilson, with_interval
from saelab.analysis.vision.codes import DocumentCodes, Energies
from saelab.arguments import an_integer, checked, is_listed, maybe, real, sequence
from saelab.errors import headline
from saelab.types import ConfigError, CorpusError, ShapeError, short

if TYPE_CHECKING:
    import pandas as pd

SHUFFLED = "shuffled labels"


@dataclass(frozen=True, eq=False)
class Attributes:
    """A label for each latent, and how true it is of documents that had no part in the naming. Arrays are
    [m], of the latents that fire in enough documents of the half that names."""

    latents: np.ndarray
    """int64, ascending"""
    labels: tuple[str, ...]
    """of each latent"""
    threshold: np.ndarray
    """float64, in units of codes: from it on a document is called so"""
    mcc: np.ndarray
    """float64: Matthews' correlation of being called so and being so, on the half that names"""
    precision: np.ndarray
    """float64, share of the held-out documents that are called so which are; NaN where none is"""
    recall: np.ndarray
    """float64, share of those which are that are called so"""
    base: np.ndarray
    """float64, share of all held-out documents which are: the precision of calling all so"""
    called: np.ndarray
    """int64: held-out documents that are called so"""
    figures: Mapping[str, Beside]
    """means over latents of precision, recall, precision less base, and share of latents whose precision is
    above base by its interval (Wilson 1927: by chance 2.5 %); beside labels that were shuffled among the
    documents, and beside the same of the controls"""
    n: tuple[int, int]
    """documents of either half: those that name, those that judge"""

    def to_frame(self) -> pd.DataFrame:
        """One line for each latent, the surest on the half that names first."""
        import pandas as pd

        columns = {"latent": self.latents, "label": self.labels, "precision": self.precision,
                   "recall": self.recall, "base": self.base, "called": self.called, "mcc": self.mcc,
                   "threshold": self.threshold}  # fmt: skip
        return pd.DataFrame(columns).sort_values("mcc", ascending=False, kind="stable", ignore_index=True)

    __repr__ = headline

    def __str__(self) -> str:
        head = (
            f"Attributes: {len(self.latents):,} latents named on {self.n[0]:,} documents, judged on "
            f"{self.n[1]:,}"
        )
        table = self.to_frame().head(20).to_string(index=False, float_format=lambda v: f"{v:.3g}")
        return "\n".join([head, *(f"  {name}: {figure}" for name, figure in self.figures.items()), table])


@checked(labels=maybe(sequence), held_out=real(0), least=an_integer(1), seed=an_integer())
def attributes(
    codes: Any,
    labels: Sequence[Any] | None = None,
    *,
    held_out: float = 0.5,
    least: int = 10,
    seed: int = 0,
) -> Attributes:
    """Name each latent by the label that it tells best, and judge the name on other documents.

    On one half of the documents, drawn by the seed, a latent's name is the label, and its threshold the code,
    of the largest Matthews correlation between "the code is above the threshold" and "the document has the
    label": unlike F1 it does not favour labels that most documents have. On the other half precision and
    recall are measured.

    Args:
        codes: Of `document_codes`; or numbers [documents latents], which are then held beside shuffled labels
            alone.
        labels: Of each document one or several; None: its own.
        held_out: Share of the documents that judge.
        least: Documents of the half that names in which a latent fires, and that have a label, to be counted.
        seed: Of the halves, the shuffling and the intervals.

    Returns:
        A label for each latent with precision and recall, beside shuffled labels, an untrained SAE and raw
        neurons.

    Raises:
        ShapeError: There are not labels for each document.
        CorpusError: Fewer than two documents in a half, no label that is there often enough, or no latent.
        ConfigError: The share is outside of 0..1.
    """
    if not 0 < held_out < 1:
        message = f"held_out must be between 0 and 1. Got {held_out:g}. Pass held_out=0.5."
        raise ConfigError(message)
    arms, given = _given(codes, labels)
    n = arms[OWN].shape[0]
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    split = n - round(n * held_out)
    if min(split, n - split) < 2:
        message = f"Each half must hold two documents or more. Got {split} and {n - split}. Pass more."
        raise CorpusError(message)
    halves = np.sort(order[:split]), np.sort(order[split:])
    names, has = _present(given, halves[0], least)
    own = _named(arms[OWN], has, halves, least)
    if not len(own.latents):
        message = f"Some latent must fire in least={least} documents. Got none that does. Pass a lower least."
        raise CorpusError(message)
    others = {SHUFFLED: _named(arms[OWN], has[rng.permutation(n)], halves, least)}
    others |= {name: _named(each, has, halves, least) for name, each in arms.items() if name != OWN}
    return Attributes(
        latents=own.latents,
        labels=tuple(names[i] for i in own.at),
        threshold=own.threshold,
        mcc=own.mcc,
        precision=own.precision,
        recall=own.recall,
        base=own.base,
        called=own.called,
        figures=_figures(own, {name: each for name, each in others.items() if len(each.latents)}, seed),
        n=(split, n - split),
    )


@dataclass(frozen=True, eq=False)
class _Names:
    latents: np.ndarray
    at: np.ndarray
    threshold: np.ndarray
    mcc: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    base: np.ndarray
    called: np.ndarray

    @property
    def surely(self) -> np.ndarray:
        """bool [m]: whether the interval of the precision lies above the base rate."""
        right = np.round(np.where(self.called > 0, self.precision, 0) * self.called).astype(int)
        low = np.array([wilson(*each)[0] for each in zip(right.tolist(), self.called.tolist(), strict=True)])
        return low > self.base


def _given(codes: Any, labels: Any) -> tuple[dict[str, Energies], list[tuple[str, ...]]]:
    """(codes by what they are of, labels of each document)."""
    from scipy.sparse import csc_matrix

    if isinstance(codes, DocumentCodes):
        arms, own = dict(codes.arms), codes.labels
    elif getattr(codes, "ndim", 0) == 2:
        arms, own = {OWN: codes}, ()
    else:
        said = short(codes)
        message = f"codes must be [documents latents]. Got {said}. Pass what document_codes gives."
        raise ShapeError(message)
    given = own if labels is None else labels
    n = arms[OWN].shape[0]
    if len(given) != n:
        message = f"There must be labels for each of {n} documents. Got {len(given)}. Pass labels=."
        raise ShapeError(message)
    told = [tuple(map(str, each)) if is_listed(each) else (str(each),) for each in given]
    return {name: csc_matrix(each) for name, each in arms.items()}, told


def _present(given: list[tuple[str, ...]], fit: np.ndarray, least: int) -> tuple[list[str], np.ndarray]:
    """(labels that are there often enough, float64 [documents labels] whether a document has each)."""
    names = sorted({label for each in given for label in each if label})
    at = {name: i for i, name in enumerate(names)}
    has = np.zeros((len(given), len(names)))
    for i, each in enumerate(given):
        has[i, [at[label] for label in each if label]] = 1
    some = has[fit].sum(0)
    often = np.flatnonzero((some >= least) & (some < len(fit)))
    if not len(often):
        message = (
            f"Some label must be of least={least} documents of the half that names, and not of all. Got none "
            f"of {len(names)}. Pass more documents, or a lower least."
        )
        raise CorpusError(message)
    return [names[i] for i in often], has[:, often]


def _named(codes: Energies, has: np.ndarray, halves: tuple[np.ndarray, np.ndarray], least: int) -> _Names:
    """Name on the first half, judge on the second."""
    fit, judge = halves
    truth, held = has[fit], has[judge]
    latents, lines = [], []
    for j in range(codes.shape[1]):
        column = codes[:, j].toarray().ravel().astype(np.float64)
        if (column[fit] > 0).sum() < least:
            continue
        label, threshold, mcc = best_label(column[fit], truth)
        called = column[judge] >= threshold
        right = (called * held[:, label]).sum()
        precision = right / called.sum() if called.any() else np.nan
        recall = right / held[:, label].sum() if held[:, label].any() else np.nan
        latents.append(j)
        lines.append((label, threshold, mcc, precision, recall, held[:, label].mean(), called.sum()))
    columns = [np.array(each) for each in zip(*lines, strict=True)] if lines else [np.zeros(0)] * 7
    label, threshold, mcc, precision, recall, base, called = columns
    told = {"threshold": threshold, "mcc": mcc, "precision": precision, "recall": recall, "base": base}
    of = np.array(latents, np.int64)
    return _Names(of, label.astype(np.int64), **told, called=called.astype(np.int64))


def best_label(codes: np.ndarray, has: np.ndarray) -> tuple[int, float, float]:
    """(label, threshold, Matthews' correlation) of the best of all labels and thresholds above 0.

    Args:
        codes: float64 [n] of one latent.
        has: float64 [n labels], 0 or 1.
    """
    order = np.argsort(-codes, kind="stable")
    value = codes[order]
    ends = np.flatnonzero((np.diff(value, append=-np.inf) < 0) & (value > 0))
    called, n = (ends + 1.0)[:, None], len(codes)
    right, having = np.cumsum(has[order], 0)[ends], has.sum(0)
    spread = called * (n - called) * having * (n - having)
    with np.errstate(divide="ignore", invalid="ignore"):
        mcc = np.where(spread > 0, (right * n - called * having) / np.sqrt(spread), 0)
    at, label = np.unravel_index(mcc.argmax(), mcc.shape)
    return int(label), float(value[ends[at]]), float(mcc[at, label])


def _figures(own: _Names, others: Mapping[str, _Names], seed: int) -> dict[str, Beside]:
    arms = {OWN: own, **others}
    of = {
        "precision": lambda each: each.precision,
        "recall": lambda each: each.recall,
        "precision less base": lambda each: each.precision - each.base,
        "share above base": lambda each: each.surely * 1.0,
    }
    found = {}
    for name, values in of.items():
        measured = {arm: _mean(values(each), seed) for arm, each in arms.items()}
        found[name] = against(measured.pop(OWN), measured, len(own.latents))
    return found


def _mean(values: np.ndarray, seed: int) -> Measured:
    known = np.isfinite(values)
    sums = Sums()
    sums.add(np.arange(len(values)), value=np.where(known, values, 0), n=known)
    return with_interval(sums, lambda s: s["value"] / s["n"], seed)


__all__ = ["Attributes", "attributes", "best_label"]
