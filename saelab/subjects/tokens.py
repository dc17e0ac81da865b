"""Text to token ids and back to the readable text of each token alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from saelab.config import integer, is_integer
from saelab.types import CorpusError, RangeError, SubjectError

_BYTE_PIECE = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")


CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


def encode(tokenizer: Any, text: Any, bos_id: int | None) -> list[int]:
    """Token ids of one text; `bos_id` (if any) stands first exactly once, also where the text spells it out.

    Raises CorpusError on what is no string, is empty, or gives no token.
    """
    if not isinstance(text, str):
        msg = f"A text must be a str. Got {type(text).__name__}: {_short(text)}. {_remedy(text)}"
        raise CorpusError(msg)
    if not text:
        msg = "A text must not be empty. Got ''. Drop empty texts before passing them."
        raise CorpusError(msg)
    try:
        ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    except (UnicodeError, TypeError) as error:
        msg = (
            f"A text must be valid Unicode. Got {_short(text)} ({error}). "
            "Decode the file as UTF-8, or replace lone surrogates by text.encode('utf-8', 'replace')."
        )
        raise CorpusError(msg) from None
    if not ids:
        msg = f"A text must give at least one token. Got {_short(text)}. Drop it, it holds nothing to read."
        raise CorpusError(msg)
    return ids if bos_id is None or ids[0] == bos_id else [bos_id, *ids]


def token_text(tokenizer: Any) -> Callable[[int], str]:
    """A function from a token id to the text of this token alone, such that the texts concatenate for
    display.

    Byte-level tokens are decoded one by one, with the bytes of a split character escaped (`\\xe2`);
    sentencepiece's `▁` is a space and its `<0x0A>` the byte; special tokens show as written.
    """
    special = {int(i): str(t) for i, t in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    byte_level = _is_byte_level(tokenizer)
    byte_of = {char: byte for byte, char in _byte_chars().items()}

    @lru_cache(maxsize=1 << 18)
    def text(token_id: int) -> str:
        if token_id in special:
            return special[token_id]
        piece = tokenizer.convert_ids_to_tokens(token_id)
        if piece is None:  # ids that only pad the embedding matrix
            return f"[{token_id}]"
        if isinstance(piece, bytes):
            return piece.decode("utf-8", "backslashreplace")
        if byte_level and all(c in byte_of for c in piece):
            return bytes(byte_of[c] for c in piece).decode("utf-8", "backslashreplace")
        if match := _BYTE_PIECE.match(piece):
            return bytes([int(match[1], 16)]).decode("utf-8", "backslashreplace")
        return piece.replace("▁", " ")

    return text


def check_ids(ids: Any, d_vocab: int) -> np.ndarray:
    """Token ids of one sample as int64 [positions], each in 0..d_vocab-1.

    Raises CorpusError where they are none or no integers, RangeError outside of the vocabulary.
    """
    try:
        values = np.asarray(ids.cpu() if hasattr(ids, "cpu") else ids)
    except (TypeError, ValueError):
        values = np.empty((0, 0))
    if values.ndim == 1 and not len(values):
        msg = "A list of token ids must not be empty. Got []. Drop empty samples."
        raise CorpusError(msg)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        msg = f"Token ids must be a list of int. Got {_short(ids)}. Pass texts to prepare() instead."
        raise CorpusError(msg)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= d_vocab:
        msg = (
            f"Token ids must be in 0..{d_vocab - 1}. Got {low if low < 0 else high}. "
            "Check that the tokenizer belongs to the model."
        )
        raise RangeError(msg)
    return values.astype(np.int64, copy=False)


def check_texts(texts: Any) -> Sequence[Any]:
    """A list of texts; one string is a list of one. Raises CorpusError where there is none."""
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, (bytes, bytearray)) or texts is None or not hasattr(texts, "__iter__"):
        msg = f"Texts must be a list of str. Got {type(texts).__name__}: {_short(texts)}. {_remedy(texts)}"
        raise CorpusError(msg)
    listed = list(texts)
    if not listed:
        msg = "Texts must not be an empty list. Got []. Pass at least one text."
        raise CorpusError(msg)
    return listed


@lru_cache(maxsize=1)
def _byte_chars() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself where printable, else the next code point from 256
    on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    chars = {b: chr(b) for b in printable}
    for n, byte in enumerate(b for b in range(256) if b not in chars):
        chars[byte] = chr(256 + n)
    return chars


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hasattr(tokenizer, "byte_decoder")
    return "ByteLevel" in f"{backend.decoder!r}" or "ByteLevel" in f"{backend.pre_tokenizer!r}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _remedy(value: Any) -> str:
    if isinstance(value, (bytes, bytearray)):
        return "Decode it first: data.decode('utf-8')."
    return "Pass strings."


def context_length(config: Any, tokenizer: Any, n_ctx: int | None = None) -> int:
    """Tokens that a model takes at most, BOS included.

    Args:
        config: The model's.
        tokenizer: Asked where that does not say.
        n_ctx: What is asked for, at most as many.

    Raises:
        SubjectError: Neither knows, and nothing is asked for.
        ConfigError: More is asked for than the model takes.
    """
    named = (getattr(config, name, None) for name in CONTEXTS)
    limits = [value for value in named if is_integer(value) and value > 0][:1]
    limit = getattr(tokenizer, "model_max_length", None)
    if is_integer(limit) and 0 < limit < 1 << 30:
        limits.append(limit)
    if n_ctx is not None:
        return integer("n_ctx", n_ctx, 1, limits[0] if limits else None)
    if limits:
        return limits[0]
    msg = (
        f"The context length must be known. Got none in {type(config).__name__} nor in the tokenizer. "
        "Pass n_ctx=1024, or how long texts may be."
    )
    raise SubjectError(msg)


def eos_ids(model: Any, tokenizer: Any) -> set[int]:
    """Tokens at which a continuation ends, by the model's generation config and the tokenizer."""
    found: set[int] = set()
    for value in (
        getattr(model.generation_config, "eos_token_id", None),
        getattr(tokenizer, "eos_token_id", None),
    ):
        found.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    return found


__all__ = ["check_ids", "check_texts", "context_length", "encode", "eos_ids", "token_text"]
