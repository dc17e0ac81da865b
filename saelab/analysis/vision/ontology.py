"""Whether latents follow a hierarchy of classes: how high the lowest class is that their top labels share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.controls import (
    CONFIDENCE,
    DRAWS,
    OWN,
    Beside,
    Control,
    Measured,
    Sums,
    wilson,
    with_interval,
)
from saelab.analysis.vision.codes import DocumentCodes, need_labels
from saelab.analysis.vision.trees import Tree
from saelab.arguments import an_integer, checked, mapping, maybe, sequence
from saelab.errors import headline
from saelab.types import ConfigError, ShapeError, short

if TYPE_CHECKING:
    import pandas as pd

PERMUTED = "permuted labels"


@dataclass(frozen=True, eq=False)
class Ontology:
    """How high, in a tree of classes, the lowest class is that the top documents of each latent share."""

    tree: Tree
    latents: np.ndarray
    """int64 [m]: those that fire in as many documents as are looked at"""
    shared: np.ndarray
    """int64 [m]: the node of the tree that the labels of each one's top documents are all of"""
    height: np.ndarray
    """int64 [m]: its height over the leaves; 0: the top documents are of one class"""
    p: np.ndarray
    """float64 [m]: share of the permutations in which a latent's height is no higher"""
    figures: Mapping[str, Beside]
    """"mean height" of latents, and "coverage": share of the tree's classes above the leaves that are what
    some latent's top documents share. Beside permuted labels (95 % of them) and the controls; the other
    intervals are over latents, by drawing them anew, and over classes (Wilson 1927)"""
    percentile: float
    """share of the permutations whose mean height is no higher than that of the latents, from 0 to 1"""
    n: int
    """documents that are looked at of each latent"""
    seen: frozenset[int] = field(default=frozenset(), repr=False)
    """the classes above the leaves that the labels can share"""

    def to_frame(self) -> pd.DataFrame:
        """One line for each latent: what its top documents share, its height, p."""
        import pandas as pd

        names = [self.tree.names[i] for i in self.shared]
        columns = {"latent": self.latents, "shared": names, "height": self.height, "p": self.p}
        return pd.DataFrame(columns)

    __repr__ = headline

    def __str__(self) -> str:
        counts = {name: int((self.shared == i).sum()) for i, name in enumerate(self.tree.names)}
        told = ", ".join(f"{name or 'root'} {n}" for name, n in counts.items() if n)
        lines = [
            f"Ontology: {len(self.latents):,} latents, top {self.n} documents each; mean height at the "
            f"{100 * self.percentile:.3g}th percentile of permuted labels"
        ]
        lines += [f"  {name}: {figure}" for name, figure in self.figures.items()]
        return "\n".join([*lines, f"  shared: {told}"])


@checked(
    labels=maybe(sequence), controls=maybe(mapping), n=an_integer(2), permutations=an_integer(100),
    seed=an_integer(),
)  # fmt: skip
def ontology(
    codes: Any,
    tree: Any,
    labels: Sequence[Any] | None = None,
    *,
    controls: Mapping[str, Any] | None = None,
    n: int = 10,
    permutations: int = DRAWS,
    seed: int = 0,
) -> Ontology:
    """The height of the lowest common hypernym of each latent's top labels, beside that of permuted labels.

    The labels of the `n` documents in which a latent's code is largest are all of some classes of the tree;
    the lowest one has a height, the number of edges to its farthest leaf. A latent that is of one class alone
    has 0, one that is of anything has the root's. The name of the score is that of Olson et al. (arXiv
    2505.15970, "lowest common hypernym height"), whose definition could not be read: this one is ours.

    Args:
        codes: Of `document_codes`; or numbers [documents, latents].
        tree: {"thing": {"animal": ["cat", "dog"]}}, or {"cat": "animal", "animal": "thing"}.
        labels: Of each document; None: the first of its own.
        controls: What each is -> numbers [documents, width] of what knows nothing, such as an untrained SAE;
            None with what document_codes gives: those that are in it.
        n: Documents that are looked at. Latents that fire in fewer are left out.
        permutations: Of the labels among the documents.
        seed: Of the permutations and the intervals.

    Returns:
        What each latent's top documents share, and the mean height and coverage beside those of the controls.

    Raises:
        ConfigError: The tree is none, a label is not in it, or no latent fires in n documents.
        ShapeError: There is not a label for each document.
        CorpusError: A document has no label.
    """
    found = Tree.of(tree)
    own, others, names = _given(codes, labels, controls)
    nodes = found.at(names)
    latents, top = _top(own, n)
    if not len(latents):
        message = f"Some latent must fire in n={n} documents. Got none that does. Pass a lower n."
        raise ConfigError(message)
    shared = _shared(found, nodes[top])
    height = found.heights[shared]
    inner = _reachable(found, nodes)
    rng = np.random.default_rng(seed)
    mean, coverage, lower = np.empty(permutations), np.empty(permutations), np.zeros(len(latents))
    for draw in range(permutations):
        by_chance = _shared(found, rng.permutation(nodes)[top])
        heights = found.heights[by_chance]
        mean[draw], coverage[draw] = heights.mean(), _coverage(by_chance, inner)
        lower += heights <= height
    arms = {OWN: shared}
    for name, each in others.items():
        _, its = _top(each, n)
        if len(its):
            arms[name] = _shared(found, nodes[its])
    heights = {name: _mean_height(found, each, seed) for name, each in arms.items()}
    covered = {name: _covered(each, inner) for name, each in arms.items()}
    figures = {
        "mean height": _figure(heights, mean, len(latents)),
        "coverage": _figure(covered, coverage, len(inner)),
    }
    return Ontology(
        tree=found,
        latents=latents,
        shared=shared,
        height=height,
        p=(lower + 1) / (permutations + 1),
        figures=figures,
        percentile=float((mean <= height.mean()).mean()),
        n=n,
        seen=frozenset(inner.tolist()),
    )


def _given(codes: Any, labels: Any, controls: Any) -> tuple[Any, dict[str, Any], list[str]]:
    """(codes, those of controls, label of each document)."""
    if isinstance(codes, DocumentCodes):
        names = codes.names(labels)
        need_labels(codes, names, "An ontology")
        own = codes.arms[OWN]
        others = {k: v for k, v in codes.arms.items() if k != OWN} if controls is None else dict(controls)
        return own, others, names.tolist()
    others = dict(controls or {})
    for what, each in {"codes": codes, **others}.items():
        if getattr(each, "ndim", 0) != 2 or labels is None or each.shape[0] != len(labels):
            said = list(getattr(each, "shape", ())) or short(each)
            n = "no labels" if labels is None else f"{len(labels)} labels"
            message = (
                f"{what} must be [documents latents], with a label for each document. Got {said} and {n}. "
                "Pass as many labels as documents."
            )
            raise ShapeError(message)
    return codes, others, [str(each) for each in labels]


def _top(codes: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [m] latents that fire in n documents, int64 [m n] the documents of their largest codes)."""
    from scipy.sparse import csc_matrix

    table: Any = csc_matrix(codes)
    latents, top = [], []
    for j in range(table.shape[1]):
        column = table[:, j].toarray().ravel()
        if (column != 0).sum() >= n:
            latents.append(j)
            top.append(np.argsort(-np.abs(column), kind="stable")[:n])
    return np.array(latents, np.int64), np.array(top, np.int64).reshape(-1, n)


def _shared(tree: Tree, nodes: np.ndarray) -> np.ndarray:
    """int64 [m]: the lowest node that all of each line [m n] are of."""
    out = nodes[:, 0]
    for column in nodes.T[1:]:
        out = tree.common[out, column]
    return out.astype(np.int64)


def _reachable(tree: Tree, nodes: np.ndarray) -> np.ndarray:
    """The nodes above leaves that two different labels can share lowest."""
    there = np.unique(nodes)
    pairs = tree.common[np.ix_(there, there)]
    return np.unique(pairs[~np.eye(len(there), dtype=bool)])


def _coverage(shared: np.ndarray, inner: np.ndarray) -> float:
    return float(np.isin(inner, shared).mean()) if len(inner) else float("nan")


def _mean_height(tree: Tree, shared: np.ndarray, seed: int) -> Measured:
    sums = Sums()
    sums.add(np.arange(len(shared)), height=tree.heights[shared], n=np.ones(len(shared)))
    return with_interval(sums, lambda s: s["height"] / s["n"], seed)


def _covered(shared: np.ndarray, inner: np.ndarray) -> Measured:
    found = np.isin(inner, shared)
    return Measured(_coverage(shared, inner), wilson(int(found.sum()), len(found)))


def _figure(arms: dict[str, Measured], chance: np.ndarray, n: int) -> Beside:
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(chance, [tail, 100 - tail])
    own, *others = arms.items()
    also = tuple(Control(name, *each) for name, each in others)
    value, interval = own[1]
    return Beside(value, float(chance.mean()), interval, (float(low), float(high)), n, PERMUTED, also)


__all__ = ["Ontology", "ontology"]
