"""Generation from a cache gives what the plain way gives; edits are told where they are; streams, chats."""

from __future__ import annotations

import re
import threading

import families
import numpy as np
import pytest
import subjects_zoo as zoo
import torch
from torch import nn

from saelab.subjects import LanguageModel
from saelab.subjects import memory as memories
from saelab.subjects.writing import Sampling, Writer
from saelab.types import ConfigError, CorpusError, HookError, Inputs, NonFiniteError

HOOK = "blocks.1.hook_resid_post"
UNEQUAL = ["Once upon a time, there was", "Tim ran", "The sun"]
EQUAL = ["qq", "zz"]


def endless(model: nn.Module) -> LanguageModel:
    """A subject whose texts end with the context alone."""
    subject = LanguageModel(model, zoo.byte_tokenizer(), n_ctx=64)
    subject.model.generation_config.eos_token_id = None  # type: ignore[union-attr]
    subject.tokenizer.eos_token = None
    return subject


@pytest.fixture(scope="module")
def gpt2():
    return endless(zoo.causal_lm("gpt2"))


def shift(acts, context):
    """Different at every position, sample by sample, whatever the pass holds of them."""
    where = context.inputs.positions
    if where is None:
        where = np.broadcast_to(np.arange(acts.shape[1]), acts.shape[:2])
    return acts * (1.2 + 0.1 * torch.tensor(where)[..., None])


# --- with a cache as without


def tokens(subject, prompt, edits=(), **options):
    """Random models write bytes that are no text: what they choose, [samples][tokens]."""
    steps = subject.stream(prompt, edits, **options)
    return np.array([step.ids for step in steps]).T.tolist()


@pytest.mark.parametrize("kind", zoo.ARCHITECTURES)
def test_cached_generations_are_those_of_the_plain_way(kind):
    subject = endless(zoo.causal_lm(kind))
    edits = [(HOOK, shift), ("blocks.0.attn.hook_z", lambda a: -a)]
    sampled = {"temperature": 1.0, "top_p": 0.9, "seed": 3}
    for prompt, changes, options in ((UNEQUAL, edits, {}), (EQUAL, (), {}), (UNEQUAL, edits, sampled)):
        options["max_new_tokens"] = 5
        found = tokens(subject, prompt, changes, **options)
        assert found == tokens(subject, prompt, changes, use_cache=False, **options)
        if options is not sampled:
            assert found == [tokens(subject, each, changes, **options)[0] for each in prompt]
    assert set(subject._remembers.values()) == {True}, "it has gone on from its cache"


@pytest.mark.parametrize("family", ["mamba", "jamba", "qwen3_next"])
def test_families_that_keep_states_are_right_with_whatever_they_can(family):
    model = families.build(family)
    assert model is not None
    subject = endless(model)
    for prompt in (UNEQUAL, "Tim ran"):
        found = tokens(subject, prompt, (HOOK, shift), max_new_tokens=5)
        assert found == tokens(subject, prompt, (HOOK, shift), max_new_tokens=5, use_cache=False)


def test_a_cache_that_goes_on_wrongly_is_not_used():
    """One that forgets: every step reads as if it were the first token."""
    subject = endless(zoo.causal_lm("gpt2"))
    plain = tokens(subject, EQUAL, max_new_tokens=6)
    forward = subject.model.forward
    subject.model.forward = lambda **kw: forward(**{k: v for k, v in kw.items() if k != "past_key_values"})
    subject._remembers.clear()
    assert tokens(subject, EQUAL, max_new_tokens=6) == plain
    assert subject._remembers == {(False, frozenset()): False}


def test_a_model_that_pads_wrongly_runs_unequal_prompts_the_plain_way():
    subject = endless(zoo.causal_lm("gpt2"))
    plain = tokens(subject, UNEQUAL, max_new_tokens=6, use_cache=False)
    forward = subject.model.forward
    subject.model.forward = lambda **kw: forward(**{k: v for k, v in kw.items() if k != "position_ids"})
    assert tokens(subject, UNEQUAL, max_new_tokens=6) == plain
    tokens(subject, EQUAL, max_new_tokens=6)
    assert subject._remembers == {(True, frozenset()): False, (False, frozenset()): True}


def test_points_of_the_bridge_are_edited_without_a_cache(gpt2):
    edit = ("blocks.1.attn.hook_q", lambda acts: acts * 2)
    text = tokens(gpt2, "Tim ran", edit, max_new_tokens=3)
    assert text == tokens(gpt2, "Tim ran", edit, max_new_tokens=3, use_cache=False)


# --- what an edit is told


def told(subject, prompt, **options):
    met = []
    edit = (HOOK, lambda acts, context: met.append((tuple(acts.shape[:2]), context)) or acts)
    subject.generate(prompt, edit, **options)
    return met


def test_edits_of_a_cached_generation_know_where_they_are():
    subject = endless(zoo.causal_lm("gpt2"))
    met = told(subject, ["Tim ran<|user|>", "a"], max_new_tokens=3)
    long, short = (len(subject.to_tokens(text)) for text in ("Tim ran<|user|>", "a"))
    (shape, first), *steps = met
    pad = long - short
    assert shape == (2, long)
    assert pad > 0
    assert first.inputs.positions.tolist() == [[*range(long)], [-1] * pad + [*range(short)]]
    assert first.inputs.lengths.tolist() == [long, short]
    assert first.inputs.given.all()
    assert np.argwhere(first.inputs.special).tolist() == [[0, 0], [0, long - 1], [1, pad]]
    assert (~first.counted).nonzero().tolist() == [[0, 0], *([1, i] for i in range(pad + 1))], "BOS, padding"
    for i, (shape, context) in enumerate(steps):
        assert shape == context.inputs.data["input_ids"].shape == (2, 1)
        assert context.inputs.positions.tolist() == [[long + i], [short + i]]
        assert not context.inputs.given.any()
        assert context.counted.all()
    assert all(context.past is first.past for _, context in met), "one for the whole generation"
    assert len({id(context.shared) for _, context in met}) == 3, "one for each pass"


def test_edits_of_the_plain_way_know_what_was_given():
    subject = endless(zoo.causal_lm("gpt2"))
    n = len(subject.to_tokens("Tim ran"))
    met = told(subject, "Tim ran", max_new_tokens=3, use_cache=False)
    assert [context.inputs.given.tolist() for _, context in met] == [
        [[True] * n + [False] * i] for i in range(3)
    ]
    assert len({id(context.past) for _, context in met}) == 3


def test_a_batch_stays_as_it_is_when_a_sample_has_ended():
    subject = zoo.language_model("gpt2")
    eos = subject.tokenizer.eos_token_id
    goal = torch.stack([subject.unembed[:, eos], subject.unembed[:, 5]])
    met = []

    def one_ends(acts, context):
        met.append((tuple(acts.shape[:2]), context.inputs, context.counted))
        return acts * 0 + 100 * goal[:, None]

    for use_cache in (True, False):
        met.clear()
        edits = ("ln_final.hook_out", one_ends)
        steps = list(subject.stream(["Tim", "Tim ran"], edits, max_new_tokens=3, use_cache=use_cache))
        assert [step.ids.tolist() for step in steps] == [[-1, 5]] * 3
        assert [shape[0] for shape, _, _ in met] == [2] * 3
    met.clear()
    subject.generate(["Tim", "Tim ran"], edits, max_new_tokens=3)
    shape, inputs, counted = met[-1]
    assert (shape, inputs.positions[0, 0], counted.tolist()) == ((2, 1), -1, [[False], [True]])


def test_a_sample_that_a_stop_string_ends_is_padded_on():
    subject = endless(zoo.causal_lm("gpt2"))
    one, other = (subject.to_tokens(text, bos=False)[0] for text in "ab")
    goal, met = torch.stack([subject.unembed[:, one], subject.unembed[:, other]]), []
    edit = ("ln_final.hook_out", lambda a, context: met.append(context.inputs) or a * 0 + 100 * goal[:, None])
    steps = list(subject.stream(["Tim", "Tim ran"], edit, max_new_tokens=3, stop="a"))
    assert [step.ids.tolist() for step in steps] == [[one, other], [-1, other], [-1, other]]
    assert [step.texts for step in steps] == [("", "b")] * 3
    assert [inputs.positions[0].tolist() for inputs in met[1:]] == [[-1], [-1]]


def test_padding_on_the_left_is_told_from_what_is_real(gpt2):
    """Inputs of a user's own, whose `lengths` alone would count from the wrong side."""
    ids = torch.tensor([[0, 0, 5, 6], [1, 2, 3, 4]])
    inputs = Inputs(
        {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 1, 1], [1] * 4]),
         "position_ids": torch.tensor([[0, 0, 0, 1], [0, 1, 2, 3]])},
        np.array([2, 4]),
        positions=np.array([[-1, -1, 0, 1], [0, 1, 2, 3]]),
    )  # fmt: skip
    seen = []
    gpt2._with_masks = lambda bridged: False  # these positions are those of no segments
    try:
        gpt2.run(inputs, edits=(HOOK, lambda acts, context: seen.append(context.counted) or acts))
        losses, n = gpt2.loss(inputs)
    finally:
        del gpt2._with_masks
    assert seen[-1].tolist() == [[False, False, True, True], [True] * 4]
    alone = [gpt2.loss(gpt2.prepare_tokens([row])) for row in ([5, 6], [1, 2, 3, 4])]
    assert n.tolist() == [1, 3]
    assert losses == pytest.approx([float(loss[0]) for loss, _ in alone], rel=1e-5)


# --- how it ends, and how tokens are chosen


def test_prompts_end_each_at_its_own_context(gpt2):
    texts = gpt2.generate(["Tim ran", "a" * 60], max_new_tokens=500)
    assert texts == [gpt2.generate(prompt, max_new_tokens=500) for prompt in ("Tim ran", "a" * 60)]
    steps = list(gpt2.stream(["Tim ran", "a" * 60], max_new_tokens=500))
    written = (np.stack([step.ids for step in steps]) >= 0).sum(0)
    assert written.tolist() == [64 - len(gpt2.to_tokens(p)) for p in ("Tim ran", "a" * 60)]


def test_text_is_cut_before_a_stop_string(stories):
    whole = stories.generate("Once upon a time", max_new_tokens=40)
    after = whole.removeprefix("Once upon a time")
    stop = after[9:14]  # in the middle of tokens, from one to the next
    wanted = "Once upon a time" + after[: after.index(stop)]
    for use_cache in (True, False):
        cut = stories.generate("Once upon a time", max_new_tokens=40, stop=stop, use_cache=use_cache)
        assert cut == wanted
    assert stories.generate("Once upon a time", max_new_tokens=40, stop=["no such text", stop]) == wanted
    texts = [s.texts[0] for s in stories.stream("Once upon a time", max_new_tokens=40, stop=stop)]
    assert "".join(texts) == wanted.removeprefix("Once upon a time"), "nothing of it was shown"
    beginning = after[:-1][-6:] + "\ue000"  # a stop string that only begins
    assert stories.generate("Once upon a time", max_new_tokens=40, stop=beginning) == whole


def test_top_p_leaves_the_likeliest_tokens():
    ids, chances = [7, 9, 11], [0.6, 0.3, 0.1]
    logits = torch.full((300,), -50.0)
    logits[ids] = torch.tensor(chances).log()

    def drawn(top_p):
        choose = Sampling(1, 1.0, 0, top_p, ()).chooser(0)
        return np.bincount([choose(logits) for _ in range(600)], minlength=300)[ids] / 600

    assert drawn(1.0) == pytest.approx(chances, abs=0.06)
    assert drawn(0.7) == pytest.approx([2 / 3, 1 / 3, 0], abs=0.06)
    assert drawn(0.6).tolist() == drawn(1e-9).tolist() == [1, 0, 0]


def test_each_sample_draws_by_itself(gpt2):
    options = {"temperature": 1.0, "max_new_tokens": 8, "seed": 5}
    same = tokens(gpt2, ["Tim ran"] * 3, **options)
    assert len(set(map(tuple, same))) == 3
    assert same[:2] == tokens(gpt2, ["Tim ran"] * 2, **options)
    assert same[:1] == tokens(gpt2, "Tim ran", **options)
    alike = tokens(gpt2, ["Tim ran"] * 3, **{**options, "seed": [5, 6, 5]})
    assert alike[0] == alike[2] == same[0]
    assert alike[1] == tokens(gpt2, "Tim ran", **{**options, "seed": 6})[0]
    with pytest.raises(ConfigError, match="one for each prompt"):
        gpt2.generate(["Tim ran"] * 3, seed=[1, 2])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"top_p": 0}, "top_p must be a number in (0, 1]"), ({"top_p": float("nan")}, "top_p"),
        ({"top_p": True}, "top_p"), ({"stop": ""}, "stop must be strings that are not empty. Got ''"),
        ({"stop": ["a", 3]}, "stop"), ({"stop": 3}, "stop"), ({"temperature": -1}, "temperature"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"), ({"use_cache": 1}, "use_cache"), ({"seed": "x"}, "seed"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_before_anything_runs(gpt2, wrong, message):
    for function in (gpt2.generate, gpt2.stream):
        with pytest.raises(ConfigError, match=re.escape(message)):
            function("Tim", **wrong)


def test_wrong_prompts_and_edits_are_refused_before_the_first_step(gpt2):
    for prompt, error, message in (
        ([], CorpusError, "Prompts must not be an empty list"), (["a", 3], CorpusError, "must be a str"),
        (["a", "x " * 100], CorpusError, "context of 64 tokens"), (["a", ""], None, ""),
        (3, CorpusError, "int"),
    ):  # fmt: skip
        if error is None:
            gpt2.stream(prompt)
            continue
        with pytest.raises(error, match=message):
            gpt2.stream(prompt)
    with pytest.raises(HookError, match="blocks"):
        gpt2.stream("a", ("blocks.77.hook_resid_post", torch.zeros_like))
    with pytest.raises(NonFiniteError, match="Logits must be finite"):
        gpt2.generate("a", (HOOK, lambda a: a * float("nan")))


# --- streams


def test_streams_go_on_side_by_side_and_leave_nothing(gpt2):
    more = (HOOK, lambda a: a * 2)
    alone = [[int(s.ids[0]) for s in gpt2.stream("Tim ran", e, max_new_tokens=8)] for e in ((), more)]
    both = [gpt2.stream("Tim ran", e, max_new_tokens=8) for e in ((), more)]
    together = [[int(step.ids[0]) for step in steps] for steps in zip(*both, strict=True)]
    assert [list(texts) for texts in zip(*together, strict=True)] == alone
    assert alone[0] != alone[1]
    found: dict[int, list[int]] = {}

    def work(i, edits):
        found[i] = [int(s.ids[0]) for s in gpt2.stream("Tim ran", edits, max_new_tokens=8)]

    threads = [threading.Thread(target=work, args=(i, e)) for i, e in enumerate([(), more] * 2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert [found[i] for i in range(4)] == alone * 2
    stream = gpt2.stream("Tim ran", more, max_new_tokens=8)
    next(stream)
    stream.close()
    assert not list(stream)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in gpt2.model.modules())
    assert gpt2._lock.acquire(blocking=False)
    gpt2._lock.release()


def test_a_character_is_shown_when_it_is_whole(gpt2):
    text = "é😀 ü"
    ids = gpt2.to_tokens(text, bos=False)
    assert len(ids) > len(text)
    writer = Writer(gpt2.tokenizer, gpt2.to_tokens("Tim"), ())
    shown = [writer.add(token) for token in ids]
    assert [piece for piece in shown if piece] == list(text)
    assert "".join(shown) + writer.end() == text
    broken = Writer(gpt2.tokenizer, [], ())
    assert [broken.add(token) for token in ids[:1]] == [""]
    assert broken.end() == "\ufffd", "a character that never comes"


def test_streamed_texts_are_the_decoded_whole(stories):
    """A tokenizer whose words hold the space before them."""
    ids = stories.to_tokens("Once upon a time there was a naïve dog 😀 called Tim.")
    writer = Writer(stories.tokenizer, ids[:4], ())
    text = stories.tokenizer.decode(ids[:4], skip_special_tokens=True)
    text += "".join([writer.add(i) for i in ids[4:]]) + writer.end()
    assert text == stories.tokenizer.decode(ids, skip_special_tokens=True)


# --- chat


def test_an_answer_is_what_follows_the_opened_turn(subject):
    messages = [("user", "What is the sun?")]
    ids, template = subject.chat_tokens(messages, answer=True)
    opened = subject.tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert ids[:-1] == subject.chat_tokens(messages)[0]
    assert (ids[-1], template[-1]) == (opened, True)
    eos = subject.tokenizer.eos_token_id
    for edits in ((), ("blocks.2.hook_resid_post", lambda a: a * 1.5)):
        row = list(ids)
        while len(row) < len(ids) + 12:
            new = int(subject.run(subject.prepare_tokens([row]), edits=edits).output[0, -1].argmax())
            if new == eos:
                break
            row.append(new)
        assert subject.chat(messages, edits, max_new_tokens=12) == subject.tokenizer.decode(row[len(ids) :])


def test_a_turn_ends_where_the_template_says(gpt2):
    """With a token that is no EOS of the tokenizer's."""
    gpt2.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] + '<|user|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '>' }}{% endif %}"
    )
    end = gpt2.tokenizer.convert_tokens_to_ids("<|user|>")
    steps = []
    edit = ("ln_final.hook_out", lambda a: steps.append(1) or a * 0 + 100 * gpt2.unembed[:, end])
    try:
        assert gpt2.chat([("user", "a")], edit, max_new_tokens=5) == ""
        assert len(steps) == 1
        assert list(gpt2.stream("a", edit, max_new_tokens=5))[-1].ids.tolist() == [end], (
            "in a text it ends none"
        )
        for wrong in ([], "hello", [("user",)], [("user", 3)], 5):
            with pytest.raises(CorpusError):
                gpt2.chat(wrong)
    finally:
        gpt2.tokenizer.chat_template = None
    with pytest.raises(CorpusError, match="chat template"):
        gpt2.chat([("user", "a")])


def test_the_proof_fails_where_one_of_its_parts_is_wrong(gpt2, monkeypatch):
    """What the measurement compares is not what it has given itself."""
    gpt2._remembers.clear()
    monkeypatch.setattr(memories, "_nudge", lambda acts, context: acts + torch.rand(acts.shape))
    assert memories.remembers(gpt2, [[1]], [])
    assert not memories.remembers(gpt2, [[1]], [(gpt2.hook_point(HOOK), lambda a, c: a)])
    gpt2._remembers.clear()
