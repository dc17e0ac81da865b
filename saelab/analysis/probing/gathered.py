"""Rows in memory, with the documents that they are of: what probes are fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.harvesting.batches import batches, check_hooks, side_by_side
from saelab.types import CorpusError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from torch import Tensor

    from saelab.analysis.sources import Ground, Passes, Rows
    from saelab.corpora import Document
    from saelab.sae import SAE

ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class Gathered:
    """Some rows of a corpus, in its order."""

    x: Tensor
    """float32 [n d_in], on the CPU: what the SAE reads"""
    y: Tensor
    """float32 [n d_out]: what it stands for, x itself but for a transcoder"""
    document: np.ndarray
    """int64 [n]: number of the document that each is of"""
    position: np.ndarray
    """int64 [n]: in its document; zeros where activations alone are given"""
    documents: Sequence[Document] = ()
    """those that were read, by their numbers; none where activations alone are given"""

    def __len__(self) -> int:
        return len(self.x)

    @property
    def size(self) -> int:
        """Bytes of the activations."""
        return sum(
            each.numel() * each.element_size() for each in {id(t): t for t in (self.x, self.y)}.values()
        )

    @property
    def n_documents(self) -> int:
        """Numbers of documents that occur, the last and all before it."""
        return int(self.document.max()) + 1 if len(self.document) else 0


def gather(sae: SAE, ground: Ground, most: int) -> Gathered:
    """The first rows of what an evaluation is measured on, read once for all SAEs of a place.

    Args:
        sae: Whose hook points are read.
        ground: Of the evaluation; its `max_rows` holds too.
        most: Rows that are kept in memory, at most.

    Raises:
        CorpusError: There is none.
        HookError: The SAE has no hook point of the subject.
        ShapeError: The activations have another width than the SAE.
    """
    most = most if ground.max_rows is None else min(most, ground.max_rows)
    source = ground.source(sae)  # checks hook points and widths
    if ground.subject is None:
        return _of_activations(source, ground, most)
    key = ("gathered", tuple(map(str, sae.reads)), tuple(map(str, sae.writes)), most)
    return ground.kept.value(key, lambda: _of_subject(sae, ground, most), lambda found: found.size)


def _of_activations(source: Rows | Passes, ground: Ground, most: int) -> Gathered:
    x, y, document = [], [], []
    left = most
    for block in source.blocks():
        x.append(block.x[:left].float().cpu())
        y.append(x[-1] if block.y is block.x else block.y[:left].float().cpu())
        document.append(np.asarray(block.unit[:left]))
        left -= len(x[-1])
        if left <= 0:
            break
    return _whole(ground, x, y, document, [np.zeros(len(each), np.int64) for each in x], [])


def _of_subject(sae: SAE, ground: Ground, most: int) -> Gathered:
    x, y, document, position = [], [], [], []
    documents: list[Document] = []
    subject: Any = ground.subject
    corpus = subject.corpus(ground.corpus)
    reads, writes = (check_hooks(subject, hooks, corpus) for hooks in (sae.reads, sae.writes))
    every = list(dict.fromkeys([*reads, *writes]))
    for batch in batches(
        subject, corpus, every, batch_size=ground.batch_size, max_rows=most, long="truncate"
    ):
        x.append(side_by_side(batch.acts, reads).float().cpu())
        y.append(x[-1] if reads == writes else side_by_side(batch.acts, writes).float().cpu())
        document.append(batch.rows.origin[:, 0])
        position.append(batch.rows.origin[:, 1])
        documents += batch.documents
    return _whole(ground, x, y, document, position, documents)


def _whole(
    ground: Ground, x: list[Tensor], y: list[Tensor], document: list[np.ndarray],
    position: list[np.ndarray], documents: list[Document],
) -> Gathered:  # fmt: skip
    import torch

    if not any(map(len, x)):
        message = f"There must be rows to score. Got none in {ground.corpus!r}. Pass longer texts, or more."
        raise CorpusError(message)
    rows = torch.cat(x)
    targets = rows if all(a is b for a, b in zip(x, y, strict=True)) else torch.cat(y)
    return Gathered(rows, targets, np.concatenate(document), np.concatenate(position), documents)


def codes_of(sae: SAE, x: Tensor) -> csr_matrix:
    """float32 [n d_sae]: the codes of rows, piece by piece on the SAE's device."""
    from scipy.sparse import csr_matrix, vstack

    pieces = []
    for rows in x.split(ROWS_AT_ONCE):
        found = sae.encode_sparse(rows.to(sae.device))
        pieces.append(csr_matrix((found.values, found.indices, found.indptr), (len(rows), found.d_sae)))
    return csr_matrix(vstack(pieces, format="csr"))


def directions_of(sae: SAE) -> np.ndarray:
    """float64 [d_sae d_out]: what a code of 1 adds to x_hat, in raw units (before a row's own norm)."""
    return (sae.W_dec * sae.out_scale).detach().double().cpu().numpy()


def weighed(sae: SAE, codes: csr_matrix, x: Tensor) -> csr_matrix:
    """Codes times the norm that the decoder gives back to each row, so that `weighed @ directions_of(sae)` is
    what the latents add to x_hat in raw units, whatever the normalisation."""
    from scipy.sparse import csr_matrix, diags

    scale = sae.scale(x.to(sae.device))
    return codes if scale is None else csr_matrix(diags(scale.norm[:, 0].detach().cpu().numpy()) @ codes)


def averages(unit: np.ndarray, n: int) -> csr_matrix:
    """float32 [n rows]: times rows it gives the mean of each unit's; zeros for a unit without rows."""
    from scipy.sparse import csr_matrix

    counts = np.bincount(unit, minlength=n)
    weights = (1 / np.maximum(counts, 1))[unit].astype(np.float32)
    return csr_matrix((weights, (unit, np.arange(len(unit)))), (n, len(unit)))


__all__ = ["Gathered", "averages", "codes_of", "directions_of", "gather", "weighed"]
