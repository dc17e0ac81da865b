"""LanguageModel: tokens, batches of texts, generation."""

from __future__ import annotations

import re

import numpy as np
import pytest
import subjects_zoo as zoo
import torch

from saelab.subjects import LanguageModel
from saelab.types import ConfigError, CorpusError, RangeError


def test_bos_stands_first_exactly_once(gpt2):
    plain = gpt2.to_tokens("Tim ran", bos=False)
    assert gpt2.bos_id not in plain
    assert gpt2.to_tokens("Tim ran") == [0, *plain]
    assert gpt2.to_tokens("<|bos|>Tim ran") == [0, *plain]
    assert gpt2.prepare(["<|bos|>Tim ran"]).data["input_ids"][0].tolist() == [0, *plain]
    assert gpt2.to_tokens("<|bos|>") == [0]


def test_a_tokenizer_that_adds_bos_itself_does_not_double_it(stories):
    ids = stories.prepare(["Once upon a time"]).data["input_ids"][0].tolist()
    assert ids == [1, 403, 407, 261, 378] == stories.to_tokens("<s>Once upon a time")
    assert stories.to_tokens("Once upon a time", bos=False) == ids[1:]


def test_a_tokenizer_without_bos_adds_none():
    subject = LanguageModel(zoo.causal_lm("gpt2"), zoo.byte_tokenizer(bos=None))
    assert subject.bos_id is None
    assert len(subject.to_tokens("a")) == 1
    with pytest.raises(CorpusError, match="must not be empty"):
        subject.generate("")


@pytest.mark.parametrize(
    "text", ["Tim ran\nhome \t now", "<img onerror=alert(1)>", "a  b", "\u202etfel", "x\u200by"]
)
def test_token_strings_concatenate_to_the_text(gpt2, text):
    strings = gpt2.token_strings(gpt2.to_tokens(text, bos=False))
    shown = "".join(strings)
    if text.isascii():
        assert shown == text
    else:  # the bytes of a split character are shown escaped
        assert "\\x" in shown
        assert "�" not in shown
    assert gpt2.token_strings([0, 1]) == ["<|bos|>", "<|user|>"]


def test_split_characters_show_their_bytes(gpt2):
    ids = gpt2.to_tokens("é", bos=False)
    assert len(ids) == 2
    assert gpt2.token_strings(ids) == ["\\xc3", "\\xa9"]
    assert gpt2.token_strings([]) == []


def test_sentencepiece_shows_spaces_and_bytes(stories):
    ids = stories.to_tokens("Once upon\na time", bos=False)
    assert "".join(stories.token_strings(ids)) == " Once upon\na time"
    emoji = stories.token_strings(stories.to_tokens("🙂", bos=False))
    assert emoji[-4:] == ["\\xf0", "\\x9f", "\\x99", "\\x82"]


def test_every_token_has_text(stories, gpt2):
    for subject in (stories, gpt2):
        strings = subject.token_strings(range(subject.d_vocab))
        assert len(strings) == subject.d_vocab
        assert all(isinstance(s, str) and s for s in strings)


def test_labels_are_tokens(gpt2):
    inputs = gpt2.prepare(["Tim ran"])
    assert gpt2.label(inputs, 0, 0) == "<|bos|>"
    assert "".join(gpt2.label(inputs, 0, i) for i in range(1, inputs.lengths[0])) == "Tim ran"
    for row in ((1, 0), (0, 99), (-1, 0)):
        with pytest.raises(RangeError, match="Got"):
            gpt2.label(inputs, *row)


def test_ids_outside_the_vocabulary_are_refused(gpt2):
    for ids in ([300], [-1]):
        with pytest.raises(RangeError, match=r"0\.\.299"):
            gpt2.prepare_tokens([ids])
    with pytest.raises(RangeError):
        gpt2.token_strings([10_000])


# --- prepare


def test_texts_are_padded_on_the_right(gpt2):
    inputs = gpt2.prepare(["Tim ran", "T"])
    ids, mask = inputs.data["input_ids"], inputs.data["attention_mask"]
    assert inputs.lengths.tolist() == mask.sum(1).tolist() == [3, 2]
    assert mask[1].tolist() == [1, 1, 0]
    assert ids.dtype == torch.int64
    assert len(inputs) == 2


def test_one_string_is_one_text(gpt2):
    assert len(gpt2.prepare("Tim ran")) == 1


@pytest.mark.parametrize(
    "bad", [[""], ["fine", ""], [b"bytes"], [None], [3], None, b"bytes", 7, [], [["nested"]]]
)
def test_what_is_no_text_is_refused(gpt2, bad):
    with pytest.raises(CorpusError, match="Got"):
        gpt2.prepare(bad)


def test_bytes_are_told_how_to_become_text(gpt2):
    with pytest.raises(CorpusError, match="decode"):
        gpt2.prepare([b"Tim"])


def test_lone_surrogates_are_refused(gpt2):
    with pytest.raises(CorpusError, match="Unicode"):
        gpt2.prepare(["a\ud800b"])


def test_a_text_longer_than_the_context(gpt2):
    text = "x " * 200
    with pytest.raises(CorpusError) as error:
        gpt2.prepare(["short", text])
    n = len(gpt2.to_tokens(text))
    for part in (f"{n} tokens", "64 tokens", "sample 1", "truncate=True", "Split"):
        assert part in str(error.value)
    cut = gpt2.prepare([text], truncate=True)
    assert cut.lengths.tolist() == [64]
    assert cut.data["input_ids"][0].tolist() == gpt2.to_tokens(text)[:64]
    exact = gpt2.prepare_tokens([[5] * 64])
    assert gpt2.run(exact).output.shape == (1, 64, 300)
    with pytest.raises(CorpusError, match="65 tokens"):
        gpt2.prepare_tokens([[5] * 65])


def test_token_lists(gpt2):
    rows = gpt2.prepare_tokens([[0, 5, 6], [0, 7]])
    assert rows.data["input_ids"].tolist() == [[0, 5, 6], [0, 7, 0]]
    assert gpt2.prepare_tokens(torch.tensor([[0, 5]])).data["input_ids"].tolist() == [[0, 5]]
    for bad in ([], [[]], ["text"], [[1.5]], [[True]], [5], [["a"]]):
        with pytest.raises(CorpusError, match="Got"):
            gpt2.prepare_tokens(bad)


def test_segments_are_one_for_each_token(gpt2):
    rows = [[0, 5, 6], [0, 7]]
    found = gpt2.prepare_tokens(rows, [np.array([0, 0, 1]), torch.tensor([2, 2])])
    assert found.data["position_ids"].tolist() == [[0, 1, 0], [0, 1, 0]]
    for bad, got in (
        ([[0, 0, 1, 1], [0, 0]], "4 for 3 tokens in sample 0"),
        ([[0, 0, 1], [0]], "1 for 2 tokens in sample 1"),
        ([[0, 0, 1]], "1 for 2 samples"), (3, "3"), ("ab", "'ab'"), ([[0, 0, 1.5], [0, 0]], "in sample 0"),
        ([[[0]] * 3, [0, 0]], "in sample 0"), ({0: [0, 0, 1], 1: [0, 0]}, "{0"),
    ):  # fmt: skip
        with pytest.raises(CorpusError, match=rf"Segments must be .*Got .*{re.escape(got)}.* Pass e"):
            gpt2.prepare_tokens(rows, bad)


# --- generate


def test_generate_is_the_plain_loop(stories):
    prompt, ids = "Once upon a time", stories.to_tokens("Once upon a time")
    edit = ("blocks.2.hook_resid_post", lambda a: -a)
    for _ in range(12):
        logits = stories.run(stories.prepare_tokens([ids]), edits=[edit]).output
        ids.append(int(logits[0, -1].argmax()))
    text = stories.generate(prompt, edits=[edit], max_new_tokens=12)
    assert text == stories.tokenizer.decode(ids[1:])
    assert text != stories.generate(prompt, max_new_tokens=12)


def test_edits_apply_at_every_generated_position(gpt2):
    seen = []

    def watch(acts):
        seen.append(acts.shape[1])
        return acts

    gpt2.run(gpt2.prepare(["x"]), read="hook_embed")
    subject = zoo.language_model("gpt2")
    subject.width("hook_embed")
    n = len(subject.to_tokens("Tim"))
    subject.model.generation_config.eos_token_id = None
    subject.tokenizer.eos_token = None
    text = subject.generate("Tim", edits=("hook_embed", watch), max_new_tokens=4, use_cache=False)
    assert seen == [n, n + 1, n + 2, n + 3]
    seen.clear()
    assert subject.generate("Tim", edits=("hook_embed", watch), max_new_tokens=4) == text
    assert seen == [n, 1, 1, 1], "with a cache each position is met once"


def test_sampling_follows_the_seed(stories):
    one, same, other = (
        stories.generate("The", max_new_tokens=20, temperature=1.0, seed=s) for s in (1, 1, 2)
    )
    assert one == same != other
    assert stories.generate("The", max_new_tokens=5, temperature=1e-4) == stories.generate(
        "The", max_new_tokens=5
    )


def test_generation_ends_with_eos_and_with_the_context():
    subject = zoo.language_model("gpt2")
    eos = subject.tokenizer.eos_token_id
    always = ("ln_final.hook_out", lambda a: a * 0 + 100 * subject.unembed[:, eos])
    steps = []
    count = ("hook_embed", lambda a: steps.append(1) or a)
    subject.width("hook_embed"), subject.width("ln_final.hook_out")
    assert subject.generate("Tim ran", edits=[always, count], max_new_tokens=5) == "Tim ran"
    assert len(steps) == 1
    never = ("ln_final.hook_out", lambda a: a * 0 + 100 * subject.unembed[:, 5])
    text = subject.generate("Tim ran", edits=[never], max_new_tokens=500)
    assert len(subject.to_tokens(text)) <= subject.n_ctx
    assert text == "Tim ran" + subject.token_strings([5])[0] * (64 - 3)


def test_generate_refuses_nonsense(gpt2):
    with pytest.raises(ConfigError, match="temperature"):
        gpt2.generate("x", temperature=-1)
    with pytest.raises(ConfigError, match="temperature"):
        gpt2.generate("x", temperature=float("nan"))
    with pytest.raises(ConfigError, match="max_new_tokens"):
        gpt2.generate("x", max_new_tokens=-1)
    with pytest.raises(CorpusError, match="64 tokens"):
        gpt2.generate("x " * 100)
    assert gpt2.generate("x", max_new_tokens=0) == "x"
