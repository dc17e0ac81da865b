"""Texts to run subjects on: a user's own, the labelled synthetic world, English from the standard library."""

from saelab.corpora.documents import Corpus, Document, Span, as_corpus, token_labels
from saelab.corpora.labels import row_labels
from saelab.corpora.natural import natural
from saelab.corpora.world import world

__all__ = ["Corpus", "Document", "Span", "as_corpus", "natural", "row_labels", "token_labels", "world"]
