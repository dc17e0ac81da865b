"""The synthetic world: labels say what they cover, training never sees what is held out, documents are
stable.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saelab.corpora import Document, Span, as_corpus, natural, token_labels, world
from saelab.corpora import world_families as families
from saelab.corpora import world_lexicon as lexicon
from saelab.corpora.natural import _allowed
from saelab.corpora.world import FAMILIES
from saelab.types import ConfigError, CorpusError, RangeError


@pytest.fixture(scope="module")
def documents():
    return list(world(seed=3, n_documents=4_000))


@pytest.fixture(scope="module")
def held_out_documents():
    return list(world(seed=3, n_documents=4_000, split="heldout"))


def words(text):
    return re.findall(r"[A-Za-z_]+", text)


def test_training_never_sees_what_is_held_out(documents):
    for document in documents:
        assert not lexicon.forbidden_words() & set(words(document.text)), document
        for year in re.findall(r"\b\d{4}\b", document.text):
            assert not lexicon.held_out_year(int(year)), document


def test_held_out_years_have_their_last_digits_in_training_but_not_in_plain_spans():
    def starts(family, split="train"):
        return {
            int(d.text[c.start : c.end]) * 100 + int(d.text[y.start : y.end])
            for d in world(seed=4, n_documents=4_000, split=split, families=[family])
            for c, y in itertools.pairwise(d.spans)
            if (c.label, y.label) == ("century", "start year")
        }

    held_out = starts("years", "heldout")
    assert held_out
    assert all(map(lexicon.held_out_year, held_out))
    assert {y % 100 for y in held_out} <= {y % 100 for y in starts("years varied")}
    assert not {y % 100 for y in held_out} & {y % 100 for y in starts("years")}


def test_the_held_out_split_uses_only_held_out_names_and_templates(held_out_documents):
    held = lexicon.forbidden_words()
    seen = set()
    for document in held_out_documents:
        for span in document.spans:
            text = document.text[span.start : span.end]
            if span.label in (
                "person",
                "giver",
                "receiver",
                "argument",
                "documented argument",
                "function name",
            ):
                assert text in held, (text, document)
            seen.add(document.kind)
    assert seen == set(FAMILIES)


def test_templates_of_the_splits_are_apart():
    import random

    for templates in (
        families.IOI_OPENINGS,
        families.IOI_ACTIONS,
        families.YEAR_SUBJECTS,
        families.YEAR_RANGES,
    ):

        def drawn(split, templates=templates):
            writer = families.Writer(split, random.Random(0))
            return {writer.template(templates) for _ in range(1_000)}

        assert not drawn("train") & drawn("heldout")
        assert drawn("train") | drawn("heldout") == set(templates)


def as_pattern(template):
    """A regular expression of a template's fixed words."""
    return re.compile(
        r"[^.]*?".join(re.escape(part) for part in re.split(r"\{\w+\}", template) if part.strip(" .,"))
    )


def test_no_held_out_template_comes_out_of_the_varied_parts():
    held_out = [t for parts in (families.IOI_OPENINGS, families.IOI_ACTIONS) for t in parts[4::5]]
    held_out += families.YEAR_RANGES[4::5]
    text = " ".join(d.text for d in world(seed=8, n_documents=6_000, families=["ioi varied", "years varied"]))
    for template in held_out:
        found = as_pattern(template).search(text)
        assert found is None, (template, found)


def test_every_family_is_there_and_documents_are_text(documents):
    assert {d.kind for d in documents} == set(FAMILIES)
    assert len({d.id for d in documents}) == len(documents)
    for document in documents:
        assert document.text.strip()
        assert "{" not in document.text
        assert "}" not in document.text


def test_spans_lie_in_the_text_and_apart(documents):
    for document in documents:
        end = 0
        for span in sorted(document.spans, key=lambda s: s.start):
            assert end <= span.start < span.end <= len(document.text)
            assert document.text[span.start : span.end].strip()
            end = span.end


def test_labels_mean_what_they_say(documents):
    for document in documents:
        for span in document.spans:
            text = document.text[span.start : span.end]
            if span.label in ("person", "giver", "receiver"):
                assert text in lexicon.names("train")
            elif span.label == "place":
                assert text in lexicon.PLACES
            elif span.label == "positive":
                assert text in lexicon.POSITIVE
            elif span.label.startswith("topic: "):
                assert text in lexicon.TOPIC_WORDS[span.label.removeprefix("topic: ")]
            elif span.label == "number":
                assert text.isdigit()
            elif span.label == "role marker":
                assert text in ("<|user|>", "<|assistant|>", "<|end|>")


def test_the_circuits_have_their_answers(documents):
    for document in documents:
        by_label = {}
        for span in document.spans:
            by_label.setdefault(span.label, []).append(document.text[span.start : span.end])
        if document.kind.startswith("ioi"):
            for giver, receiver in zip(by_label["giver"], by_label["receiver"], strict=True):
                assert giver != receiver
                assert {giver, receiver} <= set(by_label["person"])
            assert len(by_label["person"]) == 2 * len(by_label["giver"])
        elif document.kind.startswith("years"):
            for start, end in zip(by_label["start year"], by_label["end year"], strict=True):
                assert int(start) < int(end)
        elif document.kind.startswith("docstring"):
            assert by_label["argument"] == by_label["documented argument"]
            assert len(set(by_label["argument"])) == len(by_label["argument"])
        elif document.kind == "repeated":
            assert by_label["random word"] == by_label["second copy"]
        elif document.kind == "review":
            assert ("positive" in by_label) != ("negative" in by_label)


def test_document_i_does_not_depend_on_the_others():
    five = list(world(seed=9, n_documents=5))
    fifty = list(world(seed=9, n_documents=50))
    assert fifty[:5] == five
    assert list(world(seed=10, n_documents=5)) != five
    assert [d.id for d in world(seed=9, n_documents=50).shard(1, 3)] == [d.id for d in fifty[1::3]]


def test_the_same_in_another_process():
    code = "from saelab.corpora import world; print([d.text for d in world(seed=4, n_documents=20)])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([d.text for d in world(seed=4, n_documents=20)])


def test_fingerprints_tell_corpora_apart():
    a = world(seed=1, n_documents=10)
    assert a.fingerprint() == world(seed=1, n_documents=10).fingerprint()
    others = [world(seed=2, n_documents=10), world(seed=1, n_documents=11), a.take(3), a.shard(0, 2)]
    others += [
        world(seed=1, n_documents=10, split="heldout"),
        world(seed=1, n_documents=10, families=["ioi"]),
    ]
    assert len({a.fingerprint(), *(o.fingerprint() for o in others)}) == 7
    assert as_corpus(["a", "b"]).fingerprint() != as_corpus(["ab"]).fingerprint()
    assert (
        as_corpus(["a", "b"]).fingerprint()
        == as_corpus(Document(str(i), t) for i, t in enumerate("ab")).fingerprint()
    )


@pytest.mark.parametrize(
    "options", [{"split": "test"}, {"n_documents": 0}, {"families": ["ioy"]}, {"families": []}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(ConfigError):
        world(**options)


def test_natural_text_is_english_without_held_out_words():
    paragraphs = [d for _, d in zip(range(300), natural(), strict=False)]
    assert len(paragraphs) == 300
    for document in paragraphs:
        assert not lexicon.forbidden_words() & set(words(document.text))
    assert not _allowed(f"a paragraph that names {lexicon.names('heldout')[0]}")
    assert not _allowed("in 1733")
    assert _allowed("in 1732")


# ---- documents


@pytest.mark.parametrize("bad", [[], [""], [" \n"], ["a", None], [b"a"], 3, {"a": 1}, b"abc"])
def test_bad_corpora_are_refused(bad):
    with pytest.raises(CorpusError):
        as_corpus(bad)


def test_what_users_have_becomes_a_corpus():
    assert [d.text for d in as_corpus("one text")] == ["one text"]
    corpus = as_corpus(iter(["a", "b"]))
    assert [d.text for d in corpus] == [d.text for d in corpus] == ["a", "b"]
    assert as_corpus(corpus) is corpus
    for take in (0, -1):
        with pytest.raises(RangeError):
            corpus.take(take)
    with pytest.raises(RangeError):
        corpus.shard(2, 2)


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=8), st.data())
def test_token_labels_equal_brute_force(pieces, data):
    """Any segmentation into tokens: the label that covers most characters, the first of equals."""
    text, spans = "", []
    for i, (length, labelled) in enumerate(pieces):
        if labelled:
            spans.append(Span(len(text), len(text) + length, f"s{i}"))
        text += "x" * length
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    offsets = list(itertools.pairwise(cuts))
    found = token_labels(Document("0", text, tuple(spans)), offsets)
    for (start, end), label in zip(offsets, found, strict=True):
        counts = {s.label: len(set(range(start, end)) & set(range(s.start, s.end))) for s in spans}
        best = max(counts.values(), default=0)
        expected = next((name for name, n in counts.items() if n == best), "") if best else ""
        assert label == expected


def test_the_space_before_a_word_is_not_part_of_it():
    document = Document("0", "a bc", (Span(0, 1, "first"), Span(2, 4, "second")))
    assert token_labels(document, [(0, 0), (0, 1), (1, 4)]) == ["", "first", "second"]
