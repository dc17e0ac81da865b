"""Two coordinates for each of many unit vectors: PCA, UMAP, t-SNE, and a random projection as a control."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from saelab.errors import needing

METHODS = ("pca", "umap", "tsne")
WIDTH = 100
"""Dimensions that UMAP and t-SNE are given, at most: the first principal components."""
ITERATIONS = (250, 500)
"""Of t-SNE, with exaggeration and without."""
FEW = 4096
"""Rows below which UMAP would ask for every distance one by one: their neighbours are found here."""

Tell = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done."""


def laid(rows: np.ndarray, method: str, *, seed: int, n_neighbors: int, tell: Tell) -> np.ndarray:
    """Coordinates of unit vectors.

    Args:
        rows: float32 [m width].
        method: "pca", "umap", "tsne" or "random".
        seed: Of whatever is drawn.
        n_neighbors: Of UMAP; t-SNE's perplexity is twice as much, the number of neighbours that weigh in it.
        tell: Told of the progress.

    Returns:
        float32 [m 2], each axis centred, both divided by the same number so that the wider one has a standard
        deviation of 1.

    Raises:
        MissingDependency: umap-learn or openTSNE is not installed.
    """
    tell(method, 0.0)
    if method == "random":
        rng = np.random.default_rng(seed)
        found = rows @ rng.standard_normal((rows.shape[1], 2)).astype(np.float32)
    elif method == "pca":
        found = principal(rows, 2)
    else:
        near = min(n_neighbors, len(rows) - 1)
        rows = principal(rows, WIDTH) if rows.shape[1] > WIDTH else rows
        with _threads_kept():
            found = (_umap if method == "umap" else _tsne)(rows, near, seed, tell)
    found = np.asarray(found, np.float64)
    found -= found.mean(0)
    return (found / max(found.std(0).max(), 1e-30)).astype(np.float32)


@contextlib.contextmanager
def _threads_kept() -> Iterator[None]:
    """numba, on which UMAP runs, gives OpenMP a thread for every core, whatever it had; torch shares that."""
    torch = sys.modules.get("torch")
    before = None if torch is None else torch.get_num_threads()
    try:
        yield
    finally:
        if torch is not None:
            torch.set_num_threads(before)


def principal(rows: np.ndarray, n: int) -> np.ndarray:
    """The first n principal components of rows [m width], exact: float32 [m n], or fewer where rows have
    fewer dimensions."""
    mean = rows.mean(0, dtype=np.float64).astype(np.float32)
    centred = rows - mean
    values, vectors = np.linalg.eigh((centred.T @ centred).astype(np.float64))
    axes = vectors[:, np.argsort(-values)[:n]]
    # the sign of an axis is free: its largest entry is positive
    axes *= np.where(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    found = centred @ axes.astype(np.float32)
    return np.pad(found, ((0, 0), (0, max(0, 2 - found.shape[1]))))


class _Epochs(io.StringIO):
    """What tqdm writes, read as a share."""

    def __init__(self, name: str, tell: Tell) -> None:
        super().__init__()
        self._name, self._tell = name, tell

    def write(self, text: str) -> int:
        if found := re.search(r"(\d+)/(\d+)", text):
            self._tell(self._name, int(found[1]) / max(int(found[2]), 1))
        return len(text)


def _umap(rows: np.ndarray, near: int, seed: int, tell: Tell) -> np.ndarray:
    umap = _needed("umap", "umap-learn")
    # it counts its epochs where the bar is not disabled, and prints nothing else where it is not verbose; a
    # seed makes it run on one thread
    options: dict[str, Any] = {}
    if len(rows) < FEW:
        options["precomputed_knn"] = *_nearest(rows, max(2, near)), None
    made = umap.UMAP(
        n_neighbors=max(2, near), min_dist=0.1, metric="cosine", random_state=seed, n_jobs=1,
        init="spectral" if len(rows) > 10 else "random",
        tqdm_kwds={"file": _Epochs("umap", tell), "disable": False}, **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "precomputed_knn")  # is not for placing other rows later
        return made.fit_transform(rows)


def _nearest(rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of each row by cosine, itself the first: (indices, distances), exact."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    gaps = np.maximum(1 - unit @ unit.T, 0)
    np.fill_diagonal(gaps, -1)
    order = np.argsort(gaps, axis=1, kind="stable")[:, :k]
    found = np.maximum(np.take_along_axis(gaps, order, 1), 0)
    return order, found.astype(np.float32)


def _tsne(rows: np.ndarray, near: int, seed: int, tell: Tell) -> np.ndarray:
    tsne = _needed("openTSNE", "openTSNE")
    total, done = sum(ITERATIONS), [0]

    def told(iteration: int, error: float, embedding: Any) -> None:
        done[0] += 10
        tell("tsne", min(done[0] / total, 1.0))

    made = tsne.TSNE(
        perplexity=max(1.0, min(2.0 * near, (len(rows) - 1) / 3)), metric="cosine", random_state=seed,
        early_exaggeration_iter=ITERATIONS[0], n_iter=ITERATIONS[1], callbacks=told, callbacks_every_iters=10,
        initialization="pca",
    )  # fmt: skip
    return np.asarray(made.fit(rows))


def _needed(module: str, package: str) -> Any:
    import importlib

    with needing("This map", package, "'saelab[map]'"):
        return importlib.import_module(module)


__all__ = ["METHODS", "Tell", "laid", "principal"]
