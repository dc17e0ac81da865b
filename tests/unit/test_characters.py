"""Characters that a tokenizer has split: shown and searched as people read them."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import duckdb
import numpy as np
import pytest
from shown import card, decoded, decoded_windows, sample, window

import saelab
from saelab.analysis.results import Examples
from saelab.stores.characters import joined, read, window_names
from saelab.stores.search import APART, WORDS
from saelab.widgets import SampleView
from saelab.widgets.cards import card as pack_card
from saelab.widgets.sides import pack_codes

TEXT = "日本語 привет, שלום مرحبا 😀👍🏽 naïve \\xe6 x"


def split(text: str, seed: int) -> list[str]:
    """Tokens of random bytes, each shown alone as a tokenizer's is."""
    data, rng, at, names = text.encode(), random.Random(seed), 0, []
    while at < len(data):
        size = rng.randint(1, 5)
        names.append(data[at : at + size].decode("utf-8", "backslashreplace"))
        at += size
    return names


@pytest.mark.parametrize("seed", range(20))
def test_split_characters_are_joined_at_their_first_token(seed):
    text = TEXT.replace("\\xe6", "")  # bytes that are written out in a text cannot be told from a token's
    names = split(text, seed)
    shown = joined(names)
    assert len(shown) == len(names)
    assert read(names) == text
    # each character begins in the token that holds its first byte
    at, begins = 0, []
    for name in names:
        own = len(re.sub(r"\\x[89a-f][0-9a-f]", "?", name).encode())
        begins.append([c for i, c in starts(text) if at <= i < at + own])
        at += own
    assert [list(name or "") for name in shown] == begins


def starts(text: str) -> list[tuple[int, str]]:
    out, at = [], 0
    for character in text:
        out.append((at, character))
        at += len(character.encode())
    return out


def test_what_is_no_part_of_a_character_stays():
    assert joined(["a", "\\xff", "b"]) == ["a", "\\xff", "b"]
    assert joined(["\\xe6", "b"]) == ["\\xe6", "b"]
    assert joined(["\\x41", "c:\\xylophone"]) == ["\\x41", "c:\\xylophone"]
    assert joined([]) == window_names([]) == []
    # parts that a window has cut off
    alone = [bytes([b]).decode("utf-8", "backslashreplace") for b in "日x日".encode()]
    assert window_names(alone[1:-1]) == ["\ufffd", None, "x", "\ufffd", None]
    assert window_names(["\\xa5a", "\\xe6"]) == ["\ufffda", "\ufffd"]


def test_views_show_characters_and_keep_the_values_of_tokens():
    names = ["<bos>", "\\xe6", "\\x97", "\\xa5", " a"]
    dense = np.zeros((5, 2))
    dense[1:4, 0] = 1, 2, 3
    result = sample(names, dense)
    fields = decoded(*pack_codes(result).encoded())
    assert fields["names"] == ["<bos>", "日", None, None, " a"]
    np.testing.assert_array_equal(fields["values"], [1, 2, 3])
    form = SampleView(result, questions={"card": card}, latent=0).html()
    assert "\\x" not in form
    assert form.count("<mark") == 3
    made = window(0, [*names, *names, *names], np.arange(15, dtype=np.float32))
    shown = replace(card(windows=0), top=Examples(3, "top", (made,)))
    ((told, values),) = decoded_windows(*pack_card(shown).encoded())
    assert told == ["<bos>", "日", None, None, " a"] * 3
    np.testing.assert_array_equal(values, made.values)
    assert "\\x" not in str(shown)
    assert "日" in str(shown)


def words(text: str) -> list[str]:
    with duckdb.connect() as connection:
        found = connection.execute(f"select {WORDS.format('$text')}", {"text": text}).fetchone()
    assert found is not None
    return found[0]


def test_words_of_any_script():
    assert APART.count("Han") == 1
    assert words("Hello World_1, naïve") == ["hello", "world_1", "naïve"]
    assert words("Привет, мир") == ["привет", "мир"]
    assert words("私は日本人") == list("私は日本人")
    assert words("مرحبا 😀ok") == ["مرحبا", "😀", "ok"]


@pytest.fixture(scope="module")
def unicode_store(subject, small_sae, tmp_path_factory):
    texts = [
        "Он сказал привет, мир.",
        "私は日本人です。",
        "مرحبا بالعالم",
        "well done 😀 my friend",
        "Plain words.",
    ]
    corpus = saelab.corpora.Corpus(
        lambda: [saelab.corpora.Document(str(i), t) for i, t in enumerate(texts)], "texts"
    )
    return saelab.index(subject, small_sae, corpus, tmp_path_factory.mktemp("unicode") / "store")


@pytest.mark.parametrize("asked", ["привет", "日本", "مرحبا", "😀"])
def test_a_text_is_found_whose_characters_are_split(unicode_store, asked):
    found = unicode_store.search(example=asked)
    assert len(found)
    assert all(asked in text for text in found["window"])
    assert not found["window"].str.contains(r"\\x", regex=True).any()
