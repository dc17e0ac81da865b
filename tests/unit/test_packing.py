"""Packing policies: what tokens see of each other, which rows count, and what the template wrote."""

from __future__ import annotations

import pytest
import torch

import saelab
from saelab.corpora import dialogues, natural, world
from saelab.harvesting.batches import batches
from saelab.subjects import chat
from saelab.subjects.packing import PACKINGS, packed
from saelab.types import ConfigError, CorpusError

HOOK = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def subject():
    return saelab.Lab.embedded().subject


@pytest.fixture(scope="module")
def texts():
    found = [d.text for d in world(seed=11, n_documents=40)]
    return [*found[:20], " ".join(found[20:40]), *list(d.text for d in natural().take(10))]


CHATS = [
    [
        {"role": "user", "content": "Who is at the market?"},
        {"role": "assistant", "content": "Mary is there."},
    ],
    [{"role": "user", "content": "user user <|end|> assistant"}, {"role": "assistant", "content": "  "}],
    [{"role": "assistant", "content": "x" * 2000}],
]


def _acts(subject, texts, **options):
    """(activations, rows) of everything, each document's rows together."""
    found = list(batches(subject, saelab.corpora.as_corpus(texts), subject_hooks(subject), **options))
    rows = torch.cat([torch.from_numpy(b.rows.origin) for b in found])
    return torch.cat([b.acts[HOOK] for b in found]), rows


def _change(acts, others):
    """Largest difference of a row, relative to its norm (10 to 100 here)."""
    return float(((acts - others).norm(dim=1) / others.norm(dim=1)).max())


def subject_hooks(subject):
    return [subject.hook_point(HOOK)]


def test_padding_changes_nothing(subject, texts):
    alone, rows = _acts(subject, texts, batch_size=1)
    padded, same = _acts(subject, texts, batch_size=7)
    assert torch.equal(rows, same)
    assert _change(padded, alone) < 1e-4


@pytest.mark.parametrize("long", ["truncate", "split"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_masked_blocks_are_each_document_alone(subject, texts, long, attention):
    model = subject.module
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        alone, rows = _acts(subject, texts, batch_size=1, long=long)
        packed, same = _acts(subject, texts, batch_size=4, packing="blocks_masked", long=long)
    finally:
        model.set_attn_implementation(before)
    assert torch.equal(rows, same)
    assert _change(packed, alone) < 1e-4


def test_masked_blocks_are_packed(subject, texts):
    numbered = list(enumerate(saelab.corpora.as_corpus(texts)))
    read, cut, _ = packed(subject, numbered, "blocks_masked", "truncate", False)
    assert len(read) < len(texts) / 2
    longer = {
        i: n - subject.n_ctx for i, t in enumerate(texts) if (n := len(subject.to_tokens(t))) > subject.n_ctx
    }
    assert cut == longer
    assert longer
    assert all(len(s.ids) <= subject.n_ctx for s in read)


def test_plain_blocks_leave_the_first_document_and_change_the_others(subject, texts):
    short = [t for t in texts if len(subject.to_tokens(t)) < 60][:6]
    alone, rows = _acts(subject, short, batch_size=1)
    packed, same = _acts(subject, short, packing="blocks")
    assert torch.equal(rows, same)
    first = rows[:, 0] == 0
    assert _change(packed[first], alone[first]) < 1e-4
    for number in range(1, len(short)):
        at = rows[:, 0] == number
        change = (packed[at] - alone[at]).norm() / alone[at].norm()
        assert float(change) > 0.1


@pytest.mark.parametrize("packing", ["document", "blocks", "blocks_masked"])
def test_every_token_is_a_row_once(subject, texts, packing):
    long = "split"
    for size in (1, 5):
        found = list(
            batches(
                subject, saelab.corpora.as_corpus(texts), subject_hooks(subject), packing=packing, long=long,
                batch_size=size,
            )
        )  # fmt: skip
        rows = [tuple(r) for b in found for r in b.rows.origin[:, :2].tolist()]
        ids = [i for b in found for i in b.rows.ids.tolist()]
        expected = [subject.to_tokens(t) for t in texts]
        assert rows == [(n, p) for n, each in enumerate(expected) for p in range(1, len(each))]
        assert ids == [i for each in expected for i in each[1:]]


def test_dialogues_go_through_the_template(subject):
    corpus = dialogues(CHATS)
    (batch,) = batches(subject, corpus, subject_hooks(subject), packing="dialogue", long="truncate")
    ids, special = subject.chat_tokens(next(iter(corpus)).messages)
    text = "<|user|>Who is at the market?<|end|><|assistant|>Mary is there.<|end|>"
    assert ids == subject.to_tokens(text)
    strings = subject.token_strings(ids)
    assert [s for s, m in zip(strings, special, strict=True) if m][-4:] == [
        "<|user|>", "<|end|>", "<|assistant|>", "<|end|>",
    ]  # fmt: skip
    assert sum(special) == 4 + (subject.bos_id is not None)
    assert len(batch.cut) == 1
    own = batch.rows.origin[:, 0] == 0
    assert batch.rows.special[own].sum() == 4  # BOS is no row
    assert [int(i) for i in batch.rows.ids[own]] == ids[1:]
    plain = saelab.corpora.as_corpus(["hi there"])
    with pytest.raises(CorpusError, match=r"needs dialogues\. Got document '0' without messages"):
        list(batches(subject, plain, subject_hooks(subject), packing="dialogue"))


class Template:
    """A tokenizer of characters with a template that a test chooses."""

    is_fast = True

    def __init__(self, template):
        self.chat_template = template

    def apply_chat_template(self, messages, tokenize):
        return self.chat_template([(m["role"], m["content"]) for m in messages])

    def __call__(self, text, **options):
        return {"input_ids": [ord(c) for c in text], "offset_mapping": [(i, i + 1) for i in range(len(text))]}


def _llama(messages):
    return "".join(f"[head]{role}[/head]\n\n{content}[eot]" for role, content in messages)


def test_what_the_template_wrote_is_found_and_not_guessed():
    messages = [("user", "user[eot]assistant"), ("assistant", ""), ("user", "[head]user[/head]")]
    ids, special = chat.encode(Template(_llama), messages, None)
    text = "".join(map(chr, ids))
    assert text == _llama(messages)
    content = "".join(c for c, s in zip(text, special, strict=True) if not s)
    assert content == "user[eot]assistant[head]user[/head]"


def test_a_template_that_strips_is_followed_and_one_that_rewrites_is_refused():
    strips = Template(lambda ms: "".join(f"<{r}>{c.strip()}" for r, c in ms))
    assert chat.render(strips, [("a", " x "), ("b", "y")]) == ("<a>x<b>y", [(3, 4), (7, 8)])
    for template, words in (
        (lambda ms: "".join(c.upper() for _, c in ms), "changes them"),
        (lambda ms: "".join(f"{c}{c}" for _, c in ms), "once and in order"),
        (lambda ms: "".join(c for _, c in ms[1:]), "once and in order"),
        (lambda ms: "".join(c for _, c in reversed(ms)), "once and in order"),
    ):
        with pytest.raises(CorpusError, match=words):
            chat.render(Template(template), [("a", "one"), ("b", "two")])
    with pytest.raises(CorpusError, match="without one"):
        chat.render(Template(None), [("a", "one")])


def test_the_policy_is_written_down_and_a_wrong_one_refused(subject, tmp_path):
    how = {"packing": "dialogue", "long": "truncate", "progress": False}
    with pytest.warns(UserWarning, match="are no rows"):
        store = saelab.harvest(subject, dialogues(CHATS), [HOOK], tmp_path / "a", **how)
    assert store.manifest["packing"] == "dialogue"
    assert store.manifest["documents_cut"] == 1
    assert 0 < store.manifest["special_rows"] < store.n_rows
    with pytest.raises(ConfigError, match=r"packing must be one of document, .*Did you mean 'blocks'"):
        saelab.harvest(subject, ["hi there"], [HOOK], tmp_path / "b", packing="block", progress=False)
    assert set(PACKINGS) == {"document", "dialogue", "blocks", "blocks_masked"}


@pytest.mark.parametrize("bad", [[], "hello", [{"role": "user"}], [{"role": "user", "content": 3}], [3]])
def test_what_is_no_dialogue_is_refused(bad):
    with pytest.raises(CorpusError, match="A dialogue must be a non-empty list"):
        dialogues([bad])
    with pytest.raises(CorpusError, match="at least one dialogue"):
        dialogues([])


@pytest.mark.parametrize("packing", ["blocks", "blocks_masked"])
def test_a_stream_of_blocks_goes_on_where_it_was(subject, texts, packing):
    stream = saelab.stream(subject, texts * 30, HOOK, buffer_rows=2_000, packing=packing)
    whole = stream.batches(256, seed=3)
    expected = [next(whole) for _ in range(12)]
    whole.close()
    later = stream.batches(256, seed=3, start=9)
    for batch in expected[9:]:
        torch.testing.assert_close(next(later), batch, rtol=0, atol=1e-5)
    later.close()


# special tokens


def test_special_tokens_are_scored_apart_against_brute_force(subject):
    corpus = dialogues(CHATS[:2] * 3)
    sae = saelab.SAE.load(saelab.embedded.ASSETS / "saes" / HOOK)
    found = saelab.analysis.special_tokens(sae, subject, corpus)
    x, special, ids = [], [], []
    for chat_ in list(corpus):
        own, marks = subject.chat_tokens(chat_.messages)
        acts = subject.run(subject.prepare_tokens([own]), read=[HOOK], output=False).acts[HOOK][0]
        x, special, ids = [*x, *acts[1:]], [*special, *marks[1:]], [*ids, *own[1:]]
    x, special = torch.stack(x).double(), torch.tensor(special)
    forward = sae(x.float())
    for kind, scores in ((True, found.special), (False, found.other)):
        own = special == kind
        error = (x - forward.x_hat.double())[own].square()
        assert scores.n_rows == int(own.sum())
        assert scores.mse == pytest.approx(float(error.mean().detach()), rel=1e-4)
        about = (x - x.mean(0))[own].square().sum()
        assert scores.fvu == pytest.approx(float((error.sum() / about).detach()), rel=1e-4)
        assert scores.l0 == pytest.approx(float((forward.codes[own] != 0).sum(1).double().mean()))
    assert found.special.fvu < found.untrained_special.fvu
    # the same token inside of a content is not the template's
    end = torch.tensor([subject.token_strings([i]) == ["<|end|>"] for i in ids]) & special
    means = forward.codes.detach()[end].mean(0)
    assert found.latents["<|end|>"][0][0] == int(means.argmax())
    assert found.latents["<|end|>"][0][1] == pytest.approx(float(means.max()), rel=1e-4)
    assert "untrained" in str(found)
    with pytest.raises(CorpusError, match="Got 0 special"):
        saelab.analysis.special_tokens(sae, subject, ["hello there"], packing="document")
