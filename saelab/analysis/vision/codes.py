"""What latents come to in each document, an image or any other, beside what knows nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.controls import OWN, untrained
from saelab.analysis.sources import Ground, Passes, first_look
from saelab.arguments import an_integer, checked, flag, full_sae, maybe, sequence
from saelab.capabilities import HasTokens, lacking
from saelab.errors import fitting
from saelab.sae.kernels import Sparse
from saelab.types import ConfigError, CorpusError, ShapeError, short

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from saelab.analysis.blocks import Block
    from saelab.sae import SAE
    from saelab.stores import ActivationStore
    from saelab.types import Subject

Energies = Any
"""A csr_matrix of scipy, which its annotations do not know well."""
UNTRAINED, NEURONS = "untrained SAE", "raw neurons"


@dataclass(frozen=True, eq=False)
class Basis:
    """What documents were read by: the same for all that are compared."""

    sae: SAE
    untrained: SAE
    mean: Tensor
    """float64 [d_out]: of the rows that were read first"""
    key: str
    """equal for equal ones"""


@dataclass(frozen=True, eq=False)
class DocumentCodes:
    """Energies of latents in documents: the sum of |code| over the rows of each (of an image, all its
    positions), for an SAE and for what it stands beside."""

    hook: str
    documents: np.ndarray
    """int64 [n]: their numbers in the corpus, ascending; those without rows are not there"""
    ids: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    """of each document; () where it has none"""
    n_rows: np.ndarray
    """int64 [n]"""
    arms: Mapping[str, Energies]
    """float32 [n, width]: of "this SAE" and the "untrained SAE" [n d_sae]; of "raw neurons" [n 2 d_in], the
    positive and the negative part of each activation less its mean"""
    errors: Mapping[str, np.ndarray]
    """of both SAEs float64 [n]: sum |y - x_hat|^2 / sum |y - mean y|^2 over a document's rows"""
    confidence: np.ndarray | None
    """float64 [n]: the largest class probability that the subject gives; None where it was not asked for"""
    basis: Basis = field(repr=False)
    left_out: Mapping[str, str] = field(default_factory=dict)
    """what could not be read, and why"""

    def __len__(self) -> int:
        return len(self.documents)

    def __repr__(self) -> str:
        d_sae = self.basis.sae.d_sae
        return f"DocumentCodes({len(self):,} documents, {int(self.n_rows.sum()):,} rows, {d_sae:,} latents)"

    def to_frame(self) -> pd.DataFrame:
        """One line for each document: its number, id and labels, its rows, how many latents fire in it, their
        energy, the share of its variance that either SAE leaves over, and the largest class probability where
        it was asked for."""
        import pandas as pd

        own = self.arms[OWN]
        columns = {
            "document": self.documents, "id": self.ids, "labels": [", ".join(each) for each in self.labels],
            "rows": self.n_rows, "latents": np.diff(own.tocsr().indptr),
            "energy": np.asarray(own.sum(1), np.float64).ravel(),
            **{f"error, {name}": values for name, values in self.errors.items()},
        }  # fmt: skip
        if self.confidence is not None:
            columns["largest probability"] = self.confidence
        return pd.DataFrame(columns)

    def names(self, labels: Sequence[Any] | None = None) -> np.ndarray:
        """One label of each document.

        Args:
            labels: of each, in place of the first label of its own.

        Returns:
            str [n], "" of none.

        Raises:
            ShapeError: There is not one for each.
        """
        given = [each[0] if each else "" for each in self.labels] if labels is None else list(labels)
        if len(given) != len(self):
            message = f"labels must be one for each of {len(self)} documents. Got {len(given)}. Pass as many."
            raise ShapeError(message)
        return np.array([str(each) for each in given], dtype=str)

    def alike(self, other: DocumentCodes, what: str) -> None:
        """Refuse codes that were read by something else.

        Args:
            other: What they are compared with.
            what: They are, for the message.

        Raises:
            ConfigError: They were.
        """
        if self.basis.key != other.basis.key:
            message = (
                f"{what} must be read by one SAE beside one set of controls. Got two. Pass like=, the codes "
                "that were read first, to document_codes."
            )
            raise ConfigError(message)


def _codes(name: str, value: Any) -> DocumentCodes:
    if not isinstance(value, DocumentCodes):
        message = f"{name} must be what document_codes gives. Got {short(value)}. Pass its result."
        raise ConfigError(message)
    return value


@fitting("A batch", "Pass a lower batch_size, or an SAE of less latents.")
@checked(
    sae=full_sae, labels=maybe(sequence), like=maybe(_codes), outputs=flag, max_rows=maybe(an_integer(1)),
    batch_size=an_integer(1), seed=an_integer(),
)  # fmt: skip
def document_codes(
    sae: SAE,
    subject: Subject | ActivationStore | Tensor,
    corpus: Any = None,
    *,
    labels: Sequence[Any] | None = None,
    like: DocumentCodes | None = None,
    outputs: bool = False,
    max_rows: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> DocumentCodes:
    """Read documents by an SAE, an untrained one of its configuration, and raw neurons.

    The energy of a latent in a document is the sum of |code| over its rows (Bohacek et al., arXiv 2506.19708,
    who sum over all tokens of an image).

    Args:
        sae: By which they are read.
        subject: The model; or activations: a store, a tensor [documents d_in], a row each, or
            [documents rows d_in].
        corpus: What the subject reads; none with activations.
        labels: Of each document, in place of the corpus' own.
        like: Codes that these are to be compared with, which have the same controls then.
        outputs: Whether the subject's largest class probability is wanted, which takes a second pass.
        max_rows: Stop after this many rows.
        batch_size: Samples of a pass.
        seed: Of the untrained SAE.

    Returns:
        The energies of each document.

    Raises:
        DeviceMemoryError: A batch does not fit into memory.
        HookError: The SAE names no hook point, or one that the subject does not have.
        ShapeError: The activations have another width than the SAE; there is not a label for each document.
        CorpusError: There are no rows.
        ConfigError: A subject without a corpus, activations with one, or `like` of another SAE.
    """
    import torch

    subject, per_document = _flat(subject)
    ground = Ground.of(subject, corpus, max_rows, batch_size, seed)
    source = ground.source(sae)
    basis = _basis(sae, source, seed) if like is None else like.basis
    if basis.sae is not sae and basis.sae.fingerprint() != sae.fingerprint():
        message = "like must be of the same SAE. Got another's. Read both with one."
        raise ConfigError(message)
    saes = {OWN: _Arm(sae), UNTRAINED: _Arm(basis.untrained)}
    arms: dict[str, _Arm | _Neurons] = {**saes, NEURONS: _Neurons(2 * len(basis.mean))}
    n_rows = np.zeros(0, np.int64)
    mode = sae.training
    sae.eval()
    try:
        with torch.no_grad():
            for block in source.blocks():
                unit = block.unit // per_document
                counts = np.bincount(unit, minlength=len(n_rows))
                counts[: len(n_rows)] += n_rows
                n_rows = counts
                for arm in arms.values():
                    arm.add(block, unit, basis.mean)
    finally:
        sae.train(mode)
    documents = np.flatnonzero(n_rows)
    ids, own = _told(source, documents)
    if labels is not None:
        if len(labels) <= (documents[-1] if len(documents) else 0):
            last = f"{len(labels)} for document number {documents[-1]}"
            message = (
                f"labels must be one for each document. Got {last}. Pass as many as there are documents."
            )
            raise ShapeError(message)
        own = tuple(_several(labels[i]) for i in documents.tolist())
    confidence, left_out = None, {}
    if outputs:
        confidence, why = _confidence(source, len(n_rows), batch_size)
        confidence = None if confidence is None else confidence[documents]
        left_out = {} if why is None else {"max softmax": why}
    return DocumentCodes(
        hook=source.name,
        documents=documents,
        ids=ids,
        labels=own,
        n_rows=n_rows[documents],
        arms={name: arm.found(documents) for name, arm in arms.items()},
        errors={name: arm.error(documents) for name, arm in saes.items()},
        confidence=confidence,
        basis=basis,
        left_out=left_out,
    )


def read(
    name: str, given: Any, sae: Any, subject: Any, like: DocumentCodes | None, **options: Any
) -> DocumentCodes:
    """Documents that are codes already, or are read: a corpus of the subject, or activations without one.

    Args:
        name: What they are, for messages.
        given: See above.
        sae: By which they are read.
        subject: That reads them, or None.
        like: Codes that they are compared with.
        **options: Of `document_codes`.

    Raises:
        ConfigError: There is no SAE to read them by, or they were read by another.
    """
    if isinstance(given, DocumentCodes):
        if like is not None:
            given.alike(like, name)
        return given
    if sae is None:
        message = (
            f"{name} must be codes of documents where there is no SAE. Got {short(given)}. Pass sae=, and "
            "the subject that it reads, or what document_codes gives."
        )
        raise ConfigError(message)
    where = (given,) if subject is None else (subject, given)
    return document_codes(sae, *where, like=like, **options)


class _Sums:
    """What rows come to in each document.

    Args:
        width: Of a row.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._parts: list[Energies] = []

    def keep(self, unit: np.ndarray, column: Tensor, value: Tensor) -> None:
        """Add numbers.

        Args:
            unit: int64 [nnz], the document of each.
            column: int64 [nnz].
            value: float [nnz].
        """
        from scipy.sparse import coo_matrix

        told = (value.float().cpu().numpy(), (unit, column.cpu().numpy()))
        shape = (int(unit.max(initial=-1)) + 1, self._width)
        self._parts.append(coo_matrix(told, shape=shape).tocsr())  # sums what is there twice

    def found(self, documents: np.ndarray) -> Energies:
        """The sums [documents, width]."""
        from scipy.sparse import coo_matrix

        parts = [part.tocoo() for part in self._parts]
        value, row, column = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("data", "row", "col")
        )
        shape = (int(documents.max(initial=-1)) + 1, self._width)
        return coo_matrix((value, (row, column)), shape=shape).tocsr()[documents]


class _Arm(_Sums):
    """Codes of an SAE, and what it leaves."""

    def __init__(self, sae: SAE) -> None:
        super().__init__(sae.d_sae)
        self.sae = sae
        self._errors = np.zeros((0, 2))

    def add(self, block: Block, unit: np.ndarray, mean: Tensor) -> None:
        """Read some rows. unit: the document of each; mean: of all rows."""
        forward = self.sae(block.x.to(self.sae.device), sparse=True)
        codes = forward.codes
        if isinstance(codes, Sparse):
            row, latent, value = codes.rows(), codes.indices, codes.values
        else:
            row, latent = codes.nonzero(as_tuple=True)
            value = codes[row, latent]
        self.keep(unit[row.cpu().numpy()], latent, value.abs())
        y = block.y.double().cpu()
        error = (y - forward.x_hat.double().cpu()).square().sum(1).numpy()
        deviation = (y - mean).square().sum(1).numpy()
        size = max(len(self._errors), int(unit.max(initial=-1)) + 1)
        self._errors = np.pad(self._errors, ((0, size - len(self._errors)), (0, 0)))
        for column, each in enumerate((error, deviation)):
            self._errors[:, column] += np.bincount(unit, each, size)

    def error(self, documents: np.ndarray) -> np.ndarray:
        """float64 [documents]: squared error over squared deviation from the mean."""
        error, deviation = self._errors[documents].T
        exact = np.where(error > 0, np.inf, 0.0)
        return np.where(deviation > 0, error / np.where(deviation > 0, deviation, 1), exact)


class _Neurons(_Sums):
    """Positive and negative parts of activations less their mean."""

    def add(self, block: Block, unit: np.ndarray, mean: Tensor) -> None:
        """Read some rows. unit: the document of each; mean: of all rows."""
        import torch

        x = block.y.double().cpu() - mean
        parts = torch.cat([x.clamp_min(0), -x.clamp_max(0)], 1).float()
        row, column = parts.nonzero(as_tuple=True)
        self.keep(unit[row.numpy()], column, parts[row, column])


def _basis(sae: SAE, source: Any, seed: int) -> Basis:
    look = first_look(source)
    mean = look.mean.cpu()
    digest = hashlib.sha256(f"{sae.fingerprint()} {seed}".encode() + mean.numpy().tobytes()).hexdigest()
    return Basis(sae, untrained(sae, *look.first, seed=seed), mean, digest)


def _flat(subject: Any) -> tuple[Any, int]:
    """Activations with a row a line, and how many lines a document has."""
    if getattr(subject, "ndim", 0) != 3:
        return subject, 1
    n, rows, width = subject.shape
    return subject.reshape(n * rows, width), max(1, int(rows))


def _told(source: Any, documents: np.ndarray) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """(id, labels) of each document."""
    if not isinstance(source, Passes):
        return tuple(map(str, documents.tolist())), ((),) * len(documents)
    wanted, found = set(documents.tolist()), []
    for i, document in enumerate(source.corpus):
        if i in wanted:
            found.append((document.id, tuple(document.labels)))
        if len(found) == len(wanted):
            break
    ids, labels = zip(*found, strict=True) if found else ((), ())
    return tuple(ids), tuple(labels)


def _several(given: Any) -> tuple[str, ...]:
    return (
        (str(given),) if isinstance(given, str) or not hasattr(given, "__iter__") else tuple(map(str, given))
    )


def _confidence(source: Any, n: int, batch_size: int) -> tuple[np.ndarray | None, str | None]:
    """(float64 [n] largest class probability, why there is none)."""
    if not isinstance(source, Passes):
        return None, "activations alone have no output: pass the subject and a corpus"
    if not lacking(source.subject, HasTokens):
        return None, "the output of a language model is no class of a document"
    found: list[np.ndarray] = []
    for some in _stretches(source.corpus, n, batch_size):
        inputs = source.subject.prepare([document.raw for document in some])
        logits = source.subject.run(inputs).output
        if logits is None or logits.ndim != 2 or logits.shape[1] < 2:
            shape = None if logits is None else list(logits.shape)
            return None, f"the subject's output is no logit for each class of each document: {shape}"
        found.append(logits.double().softmax(1).amax(1).cpu().numpy())
    return np.concatenate(found), None


def _stretches(corpus: Any, n: int, size: int) -> Iterator[list[Any]]:
    held: list[Any] = []
    for i, document in enumerate(corpus):
        if i == n:
            break
        held.append(document)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


def need_labels(codes: DocumentCodes, labels: np.ndarray, what: str) -> None:
    """Refuse documents of which some have no label.

    Args:
        codes: Theirs.
        labels: str [n].
        what: Needs them, for the message.

    Raises:
        CorpusError: Some have none.
    """
    bare = np.flatnonzero(labels == "")
    if len(bare):
        message = (
            f"{what} needs a label for each document. Got {len(bare)} of {len(codes)} without, such as "
            f"{codes.ids[bare[0]]!r}. Pass labels=, or a corpus of labelled documents."
        )
        raise CorpusError(message)


__all__ = [
    "NEURONS", "OWN", "UNTRAINED", "Basis", "DocumentCodes", "Energies", "document_codes", "need_labels",
    "read",
]  # fmt: skip
