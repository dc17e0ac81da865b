"""Documents and corpora: texts with stable ids, which can be read again and again."""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saelab.arguments import checked, having, is_listed, listed, maybe, sequence
from saelab.config import integer, is_integer, shard_of
from saelab.types import CorpusError, RangeError, short


@dataclass(frozen=True)
class Span:
    """A labelled stretch of a document's text, in characters: text[start:end]."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Document:
    """A text with a stable id; `spans` say what parts of it are, `kind` what all of it is.

    messages: of a dialogue, (role, content) of each turn; `text` is for people then, the model reads the
    messages through its tokenizer's chat template. sample: what is no text (an image, a list of
    interactions), as the subject's `prepare` takes it; `text` is for people then too. labels: what it is
    called by those who know. media: a small picture of it for people, PNG, JPEG, GIF or WebP.
    """

    id: str
    text: str
    spans: tuple[Span, ...] = ()
    kind: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    sample: Any = field(default=None, compare=False, repr=False)
    labels: tuple[str, ...] = ()
    media: bytes | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        kind = f", {self.kind}" if self.kind else ""
        return f"Document({self.id!r}{kind}: {short(self.text, 80)})"

    @property
    def raw(self) -> Any:
        """What the subject's `prepare` takes."""
        return self.text if self.sample is None else self.sample


class Corpus:
    """Documents that can be iterated any number of times, always in the same order.

    Args:
        make: Called at each iteration, gives the documents afresh.
        name: For people.
        key: What determines the content, for the fingerprint, or a function that finds it out when it is
            asked for; the documents' texts themselves where it is None.
        n_documents: How many, where that is known without reading them; of files, their rows, also those that
            turn out to be empty and are left out.

    Raises:
        CorpusError: `make` is no function, or, when it is called, gives no documents.
    """

    def __init__(
        self,
        make: Callable[[], Iterable[Document]],
        name: str,
        key: str | Callable[[], str] | None = None,
        n_documents: int | None = None,
    ) -> None:
        if not callable(make):
            message = f"make must be a function that gives documents. Got {short(make)}. Pass lambda: [...]."
            raise CorpusError(message)
        self._make = make
        self.name = name
        self._key: Callable[[], str] | None = (lambda: key) if isinstance(key, str) else key
        self.n_documents = n_documents

    def __iter__(self) -> Iterator[Document]:
        made = self._make()
        if not is_listed(made):
            message = (
                f"A corpus must give documents. Got {short(made)} from {self.name}. Give a list of them."
            )
            raise CorpusError(message)
        return iter(made)

    def take(self, n: int) -> Corpus:
        """The first n documents.

        Raises:
            RangeError: n is below 1.
        """
        n = integer("n", n, 1, sys.maxsize, error=RangeError)
        kept = None if self.n_documents is None else min(n, self.n_documents)
        return self._subset(lambda: itertools.islice(iter(self), n), f"[:{n}]", kept)

    def shard(self, i: int, n: int) -> Corpus:
        """Every n-th document from the i-th on: the n shards hold each document once.

        Args:
            i: The shard's number, 0..n-1.
            n: How many shards.

        Raises:
            RangeError: Unless 0 <= i < n.
        """
        i, n = shard_of((i, n), error=RangeError)
        kept = None if self.n_documents is None else len(range(i, self.n_documents, n))
        return self._subset(lambda: itertools.islice(iter(self), i, None, n), f"[{i}::{n}]", kept)

    def _subset(self, make: Callable[[], Iterable[Document]], which: str, n_documents: int | None) -> Corpus:
        key_of_all = self._key
        key = None if key_of_all is None else lambda: f"{key_of_all()}{which}"
        return Corpus(make, f"{self.name}{which}", key, n_documents)

    def fingerprint(self) -> str:
        """Hex digest of what the corpus holds; equal for equal corpora."""
        digest = hashlib.sha256()
        if self._key is not None:
            digest.update(self._key().encode())
        else:
            for document in self:
                digest.update(f"{len(document.text)}:{document.text}".encode())
                if document.messages:
                    digest.update(repr(document.messages).encode())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"Corpus({self.name!r})"


def as_corpus(texts: Corpus | Iterable[str | Document] | str) -> Corpus:
    """A Corpus of what a user has: a Corpus, strings, Documents, dialogues, or one string as one document.

    A dialogue is a list of {"role": ..., "content": ...}; see `dialogues`.

    An iterator is read into memory, since it can be read only once.

    Raises:
        CorpusError: The corpus is empty, or a document is no string or holds nothing but whitespace.
    """
    if isinstance(texts, Corpus):
        return texts
    if isinstance(texts, str):
        texts = [texts]
    if not is_listed(texts) or isinstance(texts, dict):
        message = (
            f"A corpus must be strings or Documents. Got {type(texts).__name__}. Pass a list of strings."
        )
        raise CorpusError(message)
    documents = tuple(_document(i, text) for i, text in enumerate(texts))
    if not documents:
        message = "A corpus must hold at least one document. Got none. Pass a non-empty list of strings."
        raise CorpusError(message)
    return Corpus(lambda: documents, f"{len(documents)} documents", n_documents=len(documents))


@checked(chats=listed)
def dialogues(chats: Iterable[Sequence[Mapping[str, str]]] | Corpus, name: str = "dialogues") -> Corpus:
    """A corpus of chat dialogues.

    The model reads them through its tokenizer's chat template. An iterator is read into memory, since it can
    be read only once.

    Args:
        chats: Each a list of {"role": ..., "content": ...}.
        name: The corpus's name, for people.

    Raises:
        CorpusError: A dialogue is empty or no such list.
    """
    documents = tuple(dialogue(str(i), chat, f"index {i}") for i, chat in enumerate(chats))
    if not documents:
        message = "A corpus must hold at least one dialogue. Got none. Pass lists of role and content."
        raise CorpusError(message)
    return Corpus(lambda: documents, name, n_documents=len(documents))


@checked(items=listed, ids=maybe(sequence))
def samples(items: Iterable[Any] | Corpus, name: str = "samples", ids: Sequence[str] | None = None) -> Corpus:
    """A corpus of what is no text: lists of interactions, tensors, anything that a subject's `prepare` takes.

    (`images` makes one of images.) The fingerprint is of the bytes of arrays and tensors, and of what other
    items print as.

    Args:
        items: A sequence (also one that loads an item when it is asked for, such as a torch data set), else
            it is read into memory. Documents are taken as they are.
        name: The corpus's name, for people.
        ids: The id of each; by default its number.

    Raises:
        CorpusError: There is none, or another number of ids.
    """
    if isinstance(items, Corpus):
        return items
    if isinstance(items, Mapping):
        message = f"Samples must be a sequence. Got {short(items)}. Pass a list of samples."
        raise CorpusError(message)
    known: Any = items if hasattr(items, "__getitem__") and hasattr(items, "__len__") else list(items)
    n = len(known)
    if not n:
        message = "A corpus must hold at least one sample. Got none. Pass a non-empty sequence of samples."
        raise CorpusError(message)
    if ids is not None and len(ids) != n:
        message = f"ids must hold one string a sample. Got {len(ids)} for {n}. Pass ids=None to number them."
        raise CorpusError(message)

    def make() -> Iterator[Document]:
        for i in range(n):
            id = str(i) if ids is None else str(ids[i])
            given = known[i]
            own = isinstance(given, Document)
            yield given if own else Document(id, f"sample {id}", kind="sample", sample=given)

    def key() -> str:
        digest = hashlib.sha256()
        for i in range(n):
            item = known[i].raw if isinstance(known[i], Document) else known[i]
            digest.update(np.asarray(item).tobytes() if hasattr(item, "__array__") else repr(item).encode())
        return digest.hexdigest()

    return Corpus(make, name, key, n)


def dialogue(id: str, chat: object, where: str) -> Document:
    """The document of one list of {"role": ..., "content": ...}. where: said in the CorpusError that anything
    else raises."""
    good = isinstance(chat, Sequence) and not isinstance(chat, str) and len(chat) > 0
    turns = list(chat) if good else []  # type: ignore[call-overload]
    for turn in turns:
        good = (
            good
            and isinstance(turn, Mapping)
            and all(isinstance(turn.get(key), str) for key in ("role", "content"))
        )
    if not good:
        message = (
            "A dialogue must be a non-empty list of {'role': str, 'content': str}. "
            f"Got {str(chat)[:80]!r} at {where}. Convert it first."
        )
        raise CorpusError(message)
    messages = tuple((turn["role"], turn["content"]) for turn in turns)
    text = "\n".join(f"{role}: {content}" for role, content in messages)
    return Document(id, text, kind="dialogue", messages=messages)


@checked(document=having("a document", "Pass one of a corpus.", "spans", "text"), offsets=listed)
def token_labels(document: Document, offsets: Sequence[tuple[int, int]]) -> list[str]:
    """What each token is: the label of the span that covers most of it, "" where none does.

    Where spans cover a token equally, the first counts. A space that a token begins with is not counted.

    Args:
        document: With its spans.
        offsets: (start, end) characters of each token in the document's text, (0, 0) for special tokens that
            a tokenizer added.

    Raises:
        RangeError: They lie outside of the text.
    """
    spans = sorted(document.spans, key=lambda s: (s.start, s.end))
    labels = []
    for pair in offsets:
        start, end = _span(pair, len(document.text))
        while start < end and document.text[start].isspace():
            start += 1
        best, covered = "", 0
        for span in spans:
            if span.start >= end:
                break
            shared = min(end, span.end) - max(start, span.start)
            if shared > covered:
                best, covered = span.label, shared
        labels.append(best)
    return labels


def _span(pair: Any, n: int) -> tuple[int, int]:
    """Characters of a token. Raises RangeError where a text of n has them not."""
    start, end = pair if isinstance(pair, tuple | list) and len(pair) == 2 else (None, None)
    if not (is_integer(start) and is_integer(end) and 0 <= start <= n and 0 <= end <= n):
        message = (
            f"Offsets must be (start, end) within the text's {n} characters. Got {short(pair)}. Pass those "
            "of the same text."
        )
        raise RangeError(message)
    return int(start), int(end)


def _document(i: int, text: object) -> Document:
    if isinstance(text, list | tuple) and text and all(isinstance(turn, Mapping) for turn in text):
        return dialogue(str(i), text, f"index {i}")
    document = text if isinstance(text, Document) else None
    content = document.text if document else text
    if not isinstance(content, str):
        message = (
            f"Each document must be a string or a Document. Got {type(content).__name__} at index {i}. "
            "Convert it to str first."
        )
        raise CorpusError(message)
    if not content.strip():
        message = f"A document must hold some text. Got {content!r} at index {i}. Leave empty documents out."
        raise CorpusError(message)
    return document or Document(str(i), content)
