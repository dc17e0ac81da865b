"""What the rows of a feature store are, from the labels of the documents that it was indexed on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from saelab.arguments import a_store, checked
from saelab.capabilities import HasTokens, need
from saelab.corpora import Document, as_corpus, token_labels
from saelab.types import CorpusError

if TYPE_CHECKING:
    from saelab.stores import FeatureStore


@checked(store=a_store)
def row_labels(subject: Any, store: FeatureStore, corpus: Iterable[Document]) -> list[str]:
    """One label for each row of a store, "" where its token carries none.

    Args:
        subject: the language model that the store was indexed with.
        store: whose rows are labelled.
        corpus: the one that was indexed; its documents' `spans` say what parts of them are.

    Raises:
        CorpusError: A document of the store is not in the corpus.
        SubjectError: The subject does not read tokens.
    """
    need(subject, HasTokens, "Labelling rows by the spans of texts")
    wanted = store.query("select document, id from documents order by document")
    rows = store.query("select document, position from rows order by row")
    by_id = {}
    missing = set(wanted["id"])
    for document in as_corpus(corpus):
        if document.id in missing:
            missing.discard(document.id)
            by_id[document.id] = token_labels(document, subject.offsets(document.text))
            if not missing:
                break
    if missing:
        message = (
            f"The corpus must be the one that the store was indexed on. Got one without {len(missing)} of "
            f"the store's documents, such as {next(iter(missing))!r}. Pass the corpus that was given to "
            "saelab.index."
        )
        raise CorpusError(message)
    labels = dict(zip(wanted["document"], (by_id[i] for i in wanted["id"]), strict=True))
    return [labels[d][p] for d, p in zip(rows["document"], rows["position"], strict=True)]
