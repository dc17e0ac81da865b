"""The documents of a store: read from it without the model, or by the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.predictions import predictions
from saelab.analysis.results import LAYERS, Predictions, SampleCodes
from saelab.analysis.samples import sample_codes
from saelab.capabilities import HasLogits, HasLoss, HasTokens, lacking, need
from saelab.stores.documents import DocumentsFound, find_documents
from saelab.subjects.reading import How
from saelab.types import Codes, Shown, SubjectError

if TYPE_CHECKING:
    from saelab.stores import FeatureStore

SURPRISE = "surprise"
"""The order by mean loss of a row."""


def stored_codes(store: FeatureStore, document: int) -> SampleCodes:
    """A document as a store has it: its rows and their codes, without the model. BOS is no row, and of codes
    that were not kept there are none.

    Args:
        store: Any.
        document: Its number.

    Raises:
        RangeError: There is no such document.
    """
    record = store.document(document)
    rows = store.query(
        "select r.row, r.call, v.facet, v.name from rows r join vocabulary v using (shown) "
        "where r.document = ? order by r.row",
        [int(document)],
        format="arrow",
    )
    numbers = rows.column("row").to_numpy()
    shown = zip(rows.column("facet").to_pylist(), rows.column("name").to_pylist(), strict=True)
    first, n = int(numbers[0]) if len(numbers) else 0, len(numbers)
    codes = store.query(
        "select row, latent, value from codes_by_row where row >= ? and row < ? order by row, latent",
        [first, first + n],
        format="arrow",
    )
    counts = np.bincount(codes.column("row").to_numpy() - first, minlength=n)
    calls = int(rows.column("call").to_numpy().max(initial=0)) + 1
    return SampleCodes(
        record,
        tuple(Shown(*each) for each in shown),
        Codes(
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            codes.column("latent").to_numpy().astype(np.int32),
            codes.column("value").to_numpy().astype(np.float32),
            store.n_latents,
        ),
        np.ones(n, bool),
        calls,
    )


class StoredCorpus:
    """The documents of a store, as views ask for them.

    Args:
        store: Of an SAE over a corpus.
        sae: Gives the SAE.
        subject: Gives the model.
    """

    def __init__(self, store: FeatureStore, sae: Callable[[], Any], subject: Callable[[], Any]) -> None:
        self.store, self._sae, self._subject = store, sae, subject
        self.losses: dict[int, float] = {}
        """document -> its mean loss, in nats a row, of those that were asked for"""

    def find(self, way: str, words: str, sort: str, latent: int | None, descending: bool) -> DocumentsFound:
        """`find_documents`, and by "surprise": those whose loss is known first, by that.

        Args:
            way: As there.
            words: As there.
            sort: As there, or "surprise".
            latent: As there.
            descending: As there.

        Raises:
            StoreError, RangeError, ConfigError: As there.
        """
        if sort != SURPRISE:
            return find_documents(self.store, way, words, sort=sort, latent=latent, descending=descending)
        found = find_documents(self.store, way, words)
        score = np.array([self.losses.get(number, np.nan) for number in found.documents.tolist()])
        order = np.lexsort((found.documents, -score if descending else score))  # NaN comes last
        known = int(np.isfinite(score).sum())
        what = f"mean loss, nats a token; known of {known:,} of {len(score):,}"
        return DocumentsFound(found.documents[order], score[order], what)

    def surprise(self, documents: Sequence[int]) -> float:
        """Have the model read documents for their mean loss, those that are not known.

        Args:
            documents: Their numbers.

        Returns:
            Seconds that it took.

        Raises:
            SubjectError: The subject reads no tokens, or has no loss.
        """
        start = time.perf_counter()
        missing = [number for number in documents if number not in self.losses]
        if missing:
            subject = self._subject()
            need(subject, HasTokens, "Sorting by surprise")
            need(subject, HasLoss, "Sorting by surprise")
            held = self.store.documents(missing)
            texts = [held[number].text for number in missing]
            self.losses |= dict(zip(missing, mean_losses(subject, texts), strict=True))
        return time.perf_counter() - start

    def stored(self, document: int) -> SampleCodes:
        """`stored_codes` of a document.

        Args:
            document: Its number.
        """
        return stored_codes(self.store, document)

    def read(self, document: int) -> SampleCodes:
        """The codes of a document's text, by the model.

        Args:
            document: Its number.

        Raises:
            SubjectError: The store does not hold all that the model was given: its text is no sample.
        """
        return sample_codes(self._subject(), self._sae(), self._text(document))

    def predict(self, document: int) -> Predictions:
        """How the model predicts each token of a document's text.

        Args:
            document: Its number.
        """
        return predictions(self._subject(), self._text(document), self._sae())

    def layers(self) -> list[str]:
        """What `predict` knows, by name."""
        subject = self._subject()
        if lacking(subject, HasTokens) or lacking(subject, HasLogits):
            return []
        return [name for name in LAYERS if not name.startswith("edits_")]

    def _text(self, document: int) -> str:
        record = self.store.document(document)
        if lacking(self._subject(), HasTokens) or not record.text:
            message = f"The model can read texts alone again. Got {record.title}. Read it from the store."
            raise SubjectError(message)
        return record.text


def mean_losses(subject: Any, texts: Sequence[str]) -> list[float]:
    """Mean loss of the tokens of each text that something is before, in nats; NaN of none.

    Args:
        subject: A language model.
        texts: Each read as when it is harvested.
    """
    corpus = list(subject.corpus(texts))
    reading = subject.read(list(enumerate(corpus)), How(include_bos=True))
    total, n = np.zeros(len(texts)), np.zeros(len(texts))
    for samples, inputs in reading.passes():
        summed, counts = subject.loss(inputs)
        at = [reading.samples[sample].documents[0] for sample in samples]
        np.add.at(total, at, summed)
        np.add.at(n, at, counts)
    return [float(v) for v in np.divide(total, n, out=np.full(len(texts), np.nan), where=n > 0)]


__all__ = ["StoredCorpus", "mean_losses", "stored_codes"]
