"""Figures of generated texts: how often words of a list come, how varied and how long they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from saelab.arguments import an_integer, checked, listed, text
from saelab.types import ConfigError, short

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


def words_of(text: str) -> list[str]:
    """Words in lower case, and punctuation marks."""
    return _WORD.findall(text.lower())


@checked(text=text, n=an_integer(1))
def distinct_n(text: str, n: int = 2) -> float:
    """Share of the n-grams of words that are different ones (Li et al. 2016): 1 where none comes again.

    Args:
        text: Any.
        n: Words in a row.

    Returns:
        0 to 1; NaN of a text of fewer than n words.
    """
    grams = _grams(words_of(text), n)
    return len(set(grams)) / len(grams) if grams else float("nan")


@checked(text=text, n=an_integer(1))
def repetition(text: str, n: int = 4) -> float:
    """Share of the n-grams of words that came before in the text: 1 - distinct_n.

    Args:
        text: Any.
        n: Words in a row.

    Returns:
        0 to 1; NaN of a text of fewer than n words.
    """
    return 1 - distinct_n(text, n)


@checked(text=text, lexicon=listed)
def lexicon_count(text: str, lexicon: Iterable[str]) -> int:
    """How often words or phrases of a list come in a text, as whole words, whatever their case.

    Args:
        text: Any.
        lexicon: Words or phrases. Of phrases within each other each counts.

    Raises:
        ConfigError: It is empty, or holds something that is no word.
    """
    phrases = [tuple(words_of(entry)) for entry in checked_lexicon(lexicon)]
    words = words_of(text)
    found = {n: Counter(_grams(words, n)) for n in {len(phrase) for phrase in phrases}}
    return sum(found[len(phrase)][phrase] for phrase in dict.fromkeys(phrases))


def checked_lexicon(lexicon: Iterable[str]) -> tuple[str, ...]:
    """The entries.

    Raises:
        ConfigError: It is empty, or holds something that is no word.
    """
    entries = tuple(lexicon)
    for entry in entries:
        if not isinstance(entry, str) or not words_of(entry):
            message = f"A lexicon must hold words. Got {short(entry)}. Pass strings such as 'please'."
            raise ConfigError(message)
    if not entries:
        message = "A lexicon must hold at least one word. Got none. Pass e.g. ['please', 'thank you']."
        raise ConfigError(message)
    return entries


def _grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


__all__ = ["checked_lexicon", "distinct_n", "lexicon_count", "repetition", "words_of"]
