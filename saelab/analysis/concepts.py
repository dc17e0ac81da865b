"""Which latents stand for what a corpus's labels name, beside what chance would find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saelab.analysis.controls import shuffled
from saelab.arguments import a_store, an_integer, checked, sequence
from saelab.types import ShapeError

if TYPE_CHECKING:
    import pandas as pd

    from saelab.stores import FeatureStore

POLES = ("", "+", "-")


@dataclass(frozen=True)
class Concept:
    """The latent whose firing agrees best with one label."""

    label: str
    latent: int
    pole: str
    """"+" or "-" where firing means that sign alone, "" where it means either"""
    precision: float
    """of the rows where the latent fires, the share that carry the label"""
    recall: float
    """of the rows that carry the label, the share where the latent fires"""
    f1: float
    base_rate: float
    """share of all rows that carry the label: the precision of a latent that fires at random"""
    f1_shuffled: float
    """the best F1 of any latent when the labels are shuffled among the rows: the control"""


@dataclass(frozen=True)
class Concepts:
    """The best latent of each label, best label first."""

    found: tuple[Concept, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a label."""
        import pandas as pd

        return pd.DataFrame([vars(c) for c in self.found], columns=list(Concept.__dataclass_fields__))

    def __getitem__(self, label: str) -> Concept:
        return next(c for c in self.found if c.label == label)

    def __repr__(self) -> str:
        best = f"; the best: {self.found[0].label!r}, F1 {self.found[0].f1:.2f}" if self.found else ""
        return f"Concepts({len(self.found)} labels{best})"

    def __str__(self) -> str:
        return self.to_frame().to_string(index=False, float_format=lambda v: f"{v:.3f}")


@checked(store=a_store, labels=sequence, min_rows=an_integer(1), seed=an_integer())
def concepts(store: FeatureStore, labels: Sequence[str], *, min_rows: int = 20, seed: int = 0) -> Concepts:
    """For each label, the latent with the best F1 between "fires" and "carries the label" over all rows.

    A latent fires where it is != 0. One that is ever negative may stand for two things: its poles > 0 and < 0
    take part too, in the control as well. The control repeats the search with labels shuffled among the rows
    (same base rates, no truth).

    Args:
        store: With the codes of every row.
        labels: One string a row of the store, "" for none.
        min_rows: Labels on fewer rows are left out.
        seed: Seed of the shuffling.

    Raises:
        ShapeError: The number of labels is not the number of rows.
        StoreError: The store has no codes of every row.
    """
    labels_of_rows = np.asarray(labels, dtype=object)
    if labels_of_rows.shape != (store.n_rows,):
        message = (
            f"labels must hold one string a row of the store, n_rows={store.n_rows}. "
            f"Got shape {labels_of_rows.shape}. Label the rows of store.query('select * from rows')."
        )
        raise ShapeError(message)
    names, group = np.unique(labels_of_rows.astype(str), return_inverse=True)
    store.need_codes()
    codes = store.query("select latent, row, value from codes_by_latent")
    n, latent, row = store.n_latents, codes["latent"].to_numpy(), codes["row"].to_numpy()
    if store.signed:
        # the poles are two more lots of latents; of equals the first is taken, which is both poles
        negative = codes["value"].to_numpy() < 0
        latent, row = np.r_[latent, latent + n * (1 + negative)], np.r_[row, row]
        n *= len(POLES)

    together = _counts(latent, group[row], n, len(names))
    shuffled_group = shuffled(group, seed)
    by_chance = _counts(latent, shuffled_group[row], n, len(names))
    fires = np.bincount(latent, minlength=n)
    carries = np.bincount(group, minlength=len(names))

    f1 = _f1(together, fires, carries)
    f1_chance = _f1(by_chance, fires, carries)
    found = []
    for at, name in enumerate(names):
        if not name or carries[at] < min_rows:
            continue
        best = int(f1[:, at].argmax())
        hits = together[best, at]
        found.append(
            Concept(
                label=str(name),
                latent=best % store.n_latents,
                pole=POLES[best // store.n_latents],
                precision=float(hits / max(fires[best], 1)),
                recall=float(hits / carries[at]),
                f1=float(f1[best, at]),
                base_rate=float(carries[at] / store.n_rows),
                f1_shuffled=float(f1_chance[:, at].max()),
            )
        )
    return Concepts(tuple(sorted(found, key=lambda c: (-c.f1, c.label))))


def _counts(latent: np.ndarray, group: np.ndarray, n_latents: int, n_groups: int) -> np.ndarray:
    """int64 [n_latents n_groups]: rows where a latent fires and a label stands."""
    pair = latent.astype(np.int64) * n_groups + group
    return np.bincount(pair, minlength=n_latents * n_groups).reshape(n_latents, n_groups)


def _f1(together: np.ndarray, fires: np.ndarray, carries: np.ndarray) -> np.ndarray:
    """F1 = 2 |A and B| / (|A| + |B|), 0 where both are empty."""
    return 2 * together / np.maximum(fires[:, None] + carries[None, :], 1)
