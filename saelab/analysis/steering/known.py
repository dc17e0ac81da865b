"""Which samples a choice was fitted on: by hash, so that a measurement can refuse them."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.types import CorpusError, short

if TYPE_CHECKING:
    from saelab.corpora import Document

# of each SAE in this process: the latents that were fitted, and on what
_FITTED: weakref.WeakKeyDictionary[Any, list[tuple[frozenset[int], frozenset[str]]]] = (
    weakref.WeakKeyDictionary()
)
# and of each SAE by its fingerprint, where it was chosen out of a store
_BY_PRINT: dict[str, list[tuple[frozenset[int], frozenset[str]]]] = {}
LEAST = 4
"""Samples of a kind, at least: two to fit on and two to test on."""


def key_of(document: Document) -> str:
    """A hash of what a document holds, whatever its id: equal for texts that differ in outer space alone."""
    if document.messages:
        told = repr(document.messages).encode()
    elif document.sample is None:
        told = document.text.strip().encode("utf-8", "surrogatepass")
    else:
        told = _told(document.sample)
    return hashlib.sha256(told).hexdigest()


def _told(sample: Any) -> bytes:
    if isinstance(sample, dict):
        return b"".join(str(name).encode() + _told(value) for name, value in sorted(sample.items()))
    if hasattr(sample, "__array__"):
        array = np.asarray(sample)
        return f"{array.dtype} {array.shape}".encode() + array.tobytes()
    return repr(sample).encode("utf-8", "surrogatepass")


def distinct(name: str, documents: Iterable[Document]) -> tuple[list[Document], list[str]]:
    """Documents of which none is there twice, and their hashes: a copy would be fitted and tested on.

    Raises:
        CorpusError: There are too few.
    """
    found = {key_of(document): document for document in documents}
    if len(found) < LEAST:
        message = (
            f"{name} must hold at least {LEAST} different samples, some to fit on and some to test on. Got "
            f"{len(found)}. Pass more."
        )
        raise CorpusError(message)
    return list(found.values()), list(found)


def apart(first: str, one: Sequence[str], second: str, other: Sequence[str]) -> None:
    """Refuse samples that are on both sides.

    Raises:
        CorpusError: There are some.
    """
    both = set(one) & set(other)
    if both:
        message = (
            f"A sample must be in {first} or in {second}. Got {len(both)} that are in both. Drop them from "
            "one side."
        )
        raise CorpusError(message)


def parts(n: int, held_out: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Which of n samples are fitted on, and which are tested on; two of each at least."""
    order = rng.permutation(n)
    kept = min(max(round(n * held_out), 2), n - 2)
    return np.sort(order[kept:]), np.sort(order[:kept])


def remember(sae: Any, latents: Iterable[int], keys: Iterable[str]) -> None:
    """Keep in mind that these latents were fitted on these samples.

    Args:
        sae: Theirs, or its fingerprint.
        latents: Which.
        keys: Hashes of the samples.
    """
    kept = _BY_PRINT.setdefault(sae, []) if isinstance(sae, str) else _FITTED.setdefault(sae, [])
    kept.append((frozenset(map(int, latents)), frozenset(keys)))


def fitted_on(edits: Iterable[Any]) -> frozenset[str]:
    """Hashes of the samples on which latents of these edits were chosen or their gates calibrated."""
    found: set[str] = set()
    for edit in flat(edits):
        sae, latents = getattr(edit, "sae", None), latents_of(edit)
        if sae is None or not latents:
            continue
        of_stores = _BY_PRINT.get(sae.fingerprint(), []) if _BY_PRINT else []
        for fitted, keys in [*_FITTED.get(sae, ()), *of_stores]:
            if fitted & set(latents):
                found |= keys
    return frozenset(found)


def latents_of(edit: Any) -> tuple[int, ...]:
    """The latents that an edit by an SAE touches; () of any other."""
    found = getattr(edit, "touched", getattr(edit, "latents", ()))
    return tuple(found) if isinstance(found, tuple) else ()


def flat(edits: Iterable[Any]) -> list[Any]:
    """Edits, and those within them: of a restricted edit, or of one that holds several."""
    found = []
    for edit in edits:
        if isinstance(edit, list | tuple):
            found += flat(edit)
            continue
        found.append(edit)
        inner = [getattr(edit, "edit", None), getattr(edit, "edits", None)]
        found += flat(each for each in inner if each is not None)
    return found


def check_unseen(documents: Sequence[Document], keys: frozenset[str], what: str) -> None:
    """Refuse samples that something was fitted on.

    Args:
        documents: That are to be measured on.
        keys: Of what it was fitted on.
        what: It is, for the message.

    Raises:
        CorpusError: There are some.
    """
    seen = [document for document in documents if key_of(document) in keys]
    if seen:
        message = (
            f"What is measured on must not be what {what} was fitted on. Got {len(seen)} of "
            f"{len(documents)} samples that were, such as {short(seen[0].text, 60)}. Pass others, such as "
            "`held_out` of the selection, or allow_fitted=True."
        )
        raise CorpusError(message)


__all__ = [
    "apart", "check_unseen", "distinct", "fitted_on", "flat", "key_of", "latents_of", "parts", "remember",
]  # fmt: skip
