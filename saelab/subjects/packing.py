"""Packing policies: how the tokens of documents are laid into the sequences that a model reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from saelab.config import integer
from saelab.types import ConfigError, CorpusError, nearest

if TYPE_CHECKING:
    from saelab.corpora import Document

BLOCK_DOCUMENTS = 256
LONG = ("error", "truncate", "split")
PACKINGS = {
    "document": "each document alone, padded beside others of like length",
    "dialogue": "each chat dialogue alone, by the chat template (FAST, arXiv 2506.07691)",
    "blocks": "documents one after another, cut into blocks of the context; tokens see earlier documents",
    "blocks_masked": "whole documents share a block, but tokens see their own document alone",
}


@dataclass
class TokenSequence:
    """What the model reads as one sample: token by token, where each comes from."""

    ids: list[int]
    documents: list[int]
    """number of the document in the corpus"""
    positions: list[int]
    """position in the document, BOS being 0"""
    counted: list[bool]
    """whether it is a row"""
    special: list[bool]
    """whether a template or the tokenizer wrote it, not the document"""
    segments: list[int] | None = None
    """tokens see only those of their own segment; None: all earlier ones"""

    def slice(self, start: int, end: int) -> TokenSequence:
        """Its tokens from start to end."""
        return TokenSequence(
            self.ids[start:end],
            self.documents[start:end],
            self.positions[start:end],
            self.counted[start:end],
            self.special[start:end],
        )


def check_packing(packing: str, long: str) -> None:
    """Raises ConfigError for an unknown name."""
    for name, value, known in (("packing", packing, PACKINGS), ("long", long, LONG)):
        if not isinstance(value, str) or value not in known:
            message = (
                f"{name} must be one of {', '.join(known)}. Got {value!r}. "
                f"{nearest(str(value), known)}Pass {name}={next(iter(known))!r}."
            )
            raise ConfigError(message)


class Packed(NamedTuple):
    """What the model is to read of some documents."""

    samples: list[TokenSequence]
    """rows of all, one after the other, are in the order of the documents"""
    cut: dict[int, int]
    """number of each document that was cut at the context -> tokens left out"""
    n_documents: int


def packed(
    subject: Any, documents: Sequence[tuple[int, Document]], packing: str, long: str, include_bos: bool
) -> Packed:
    """What a language model is to read of these (number, document).

    Raises:
        CorpusError: A document is too long, or no dialogue where one is needed.
    """
    pieces, cut = [], {}
    for number, document in documents:
        own, left_out = _pieces(subject, number, document, packing, long, include_bos)
        pieces += own
        if left_out:
            cut[number] = left_out
    if packing == "blocks":
        pieces = list(_blocks(pieces, subject.n_ctx))
    elif packing == "blocks_masked":
        pieces = list(_filled(pieces, subject.n_ctx))
    return Packed(pieces, cut, len(documents))


def stretch_size(batch_size: int, packing: str) -> int:
    """Documents that are packed together. Blocks depend on it, so there it must not follow from the batch
    size."""
    batch_size = integer("batch_size", batch_size, 1)
    return BLOCK_DOCUMENTS if packing.startswith("blocks") else 16 * batch_size


def _pieces(
    subject: Any, number: int, document: Document, packing: str, long: str, include_bos: bool
) -> tuple[list[TokenSequence], int]:
    """The document alone, and tokens left out: one sequence, or several where it is split; blocks cut it
    later."""
    ids, special = _tokens(subject, document, packing)
    n_ctx = subject.n_ctx
    has_bos = subject.bos_id is not None and ids[:1] == [subject.bos_id]
    counted = [include_bos or i != subject.bos_id for i in ids]
    whole = TokenSequence(ids, [number] * len(ids), list(range(len(ids))), counted, special)
    if len(ids) <= n_ctx or packing == "blocks":
        return [whole], 0
    if long == "error":
        message = (
            f"A document must fit the context of {n_ctx} tokens. Got {len(ids)} tokens in document "
            f"{document.id!r}. "
            "Pass long='split' to read it in pieces, or long='truncate'."
        )
        raise CorpusError(message)
    if long == "truncate":
        return [whole.slice(0, n_ctx)], len(ids) - n_ctx
    bos, room = whole.slice(0, int(has_bos)), n_ctx - has_bos
    pieces = []
    for first in range(int(has_bos), len(ids), room):
        pieces.append(_joined([bos, whole.slice(first, first + room)]))
        bos = replace(bos, counted=[False] * has_bos)  # the repeated BOS of a later piece is no row
    return pieces, 0


def _tokens(subject: Any, document: Document, packing: str) -> tuple[list[int], list[bool]]:
    if document.messages:
        return subject.chat_tokens(document.messages)
    if packing == "dialogue":
        message = (
            f"packing='dialogue' needs dialogues. Got document {document.id!r} without messages. Make the "
            "corpus by saelab.corpora.dialogues(...), or pass packing='document'."
        )
        raise CorpusError(message)
    ids = subject.to_tokens(document.text)
    marks = subject.special_ids
    return ids, [i in marks for i in ids]


def _blocks(pieces: list[TokenSequence], n_ctx: int) -> Iterator[TokenSequence]:
    """All tokens one after another, cut every n_ctx; the last block is shorter."""
    joined = _joined(pieces)
    for first in range(0, len(joined.ids), n_ctx):
        yield joined.slice(first, first + n_ctx)


def _filled(pieces: list[TokenSequence], n_ctx: int) -> Iterator[TokenSequence]:
    """Neighbouring pieces together as long as they fit."""
    held: list[TokenSequence] = []
    for piece in pieces:
        if held and sum(len(p.ids) for p in held) + len(piece.ids) > n_ctx:
            yield _joined(held, masked=True)
            held = []
        held.append(piece)
    if held:
        yield _joined(held, masked=True)


def _joined(pieces: list[TokenSequence], masked: bool = False) -> TokenSequence:
    def all_of(name: str) -> list[Any]:
        return [value for piece in pieces for value in getattr(piece, name)]

    segments = [i for i, piece in enumerate(pieces) for _ in piece.ids] if masked else None
    return TokenSequence(
        all_of("ids"),
        all_of("documents"),
        all_of("positions"),
        all_of("counted"),
        all_of("special"),
        segments,
    )
