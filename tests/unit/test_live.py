"""`applied`: every pass of a model is edited as the subject would, and nothing is left behind."""

from __future__ import annotations

import contextlib
import threading
import types

import numpy as np
import pytest
import subjects_zoo as zoo
import torch
import transformers

from saelab.interventions import AddDirection, applied
from saelab.subjects import TorchModule
from saelab.types import HookError, SubjectError

HOOK = "blocks.1.hook_resid_post"
TOLD = ("bos_token_id", "eos_token_id", "convert_ids_to_tokens")
FAULT = "of the edit's own"
EDIT = (HOOK, lambda acts: acts * 1.5)
PROMPTS = ["Once upon a time, there was", "Tim ran"]


@pytest.fixture(scope="module")
def gpt2():
    return zoo.language_model("gpt2")


def padded(subject, prompts):
    """As tokenizers pad for generation."""
    rows = [subject.to_tokens(text) for text in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def generated(subject, prompts, **options):
    given = padded(subject, prompts)
    own = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0} | options
    return subject.model.generate(**given, **own)[:, given["input_ids"].shape[1] :].tolist()


def steered(acts, context):
    """By where each position is, whether it was given, and how often the sample was met before."""
    inputs, met = context.inputs, context.past.setdefault("met", torch.zeros(len(acts)))
    where = torch.tensor(inputs.positions).clamp_min(0)[..., None]
    met += 1
    return acts * (
        1.1 + 0.05 * where + 0.2 * torch.tensor(inputs.given)[..., None] + 0.1 * met[:, None, None]
    )


@pytest.mark.parametrize("bare", [False, True])
def test_the_library_generates_what_the_subject_does(subject, bare):
    for edits in (("blocks.2.hook_resid_post", steered), [EDIT, ("blocks.3.attn.hook_z", torch.zeros_like)]):
        with applied(subject.model if bare else subject, edits):
            found = generated(subject, PROMPTS)
        steps = list(subject.stream(PROMPTS, edits, max_new_tokens=8))
        assert found == np.stack([step.ids for step in steps], 1).tolist()
        assert found != generated(subject, PROMPTS)
    edit = (HOOK, lambda acts, context: acts * (1 + torch.tensor(context.inputs.given)[..., None]))
    with applied(subject, edit):
        whole = generated(subject, PROMPTS, use_cache=False)
    assert whole == np.stack([s.ids for s in subject.stream(PROMPTS, edit, max_new_tokens=8)], 1).tolist()
    assert not zoo.hooks_of(subject.model)


def test_edits_are_told_what_the_call_says(gpt2):
    met = []
    with applied(gpt2, (HOOK, lambda acts, context: met.append((context.inputs, context)) or acts)):
        generated(gpt2, PROMPTS, max_new_tokens=3)
        gpt2.model(torch.tensor([[5, 6]]))
        kept = gpt2.model(torch.tensor([[5, 6]])).past_key_values
        gpt2.model(torch.tensor([[7]]), past_key_values=kept)
        own = transformers.DynamicCache(config=gpt2.model.config)
        for _ in range(2):
            gpt2.model(torch.tensor([[7]]), past_key_values=own, return_dict=False)
    long, short = (len(gpt2.to_tokens(text)) for text in PROMPTS)
    (first, context), (second, later), (_, last), *alone = met
    assert first.positions.tolist() == [[*range(long)], [-1] * (long - short) + [*range(short)]]
    assert first.lengths.tolist() == [long, short]
    assert first.given.all()
    assert not context.counted[1, : long - short + 1].any()
    assert np.argwhere(first.special).tolist() == [[0, 0], [1, long - short]]
    assert second.positions.tolist() == [[long], [short]]
    assert not second.given.any()
    assert context.past is later.past is last.past
    assert [inputs.positions.tolist() for inputs, _ in alone] == [[[0, 1]], [[0, 1]], [[2]], [[0]], [[1]]]
    assert [inputs.given.all() for inputs, _ in alone] == [True, True, False, True, False]
    one, two, three, four, five = (context.past for _, context in alone)
    assert one is not two
    assert two is three is not context.past
    assert four is five is not three


def test_plain_calls_are_edited_as_run_does(gpt2):
    inputs = gpt2.prepare(zoo.TEXTS)
    wanted = gpt2.run(inputs, edits=EDIT).output
    for model in (gpt2, gpt2.model):
        with applied(model, EDIT), torch.no_grad():
            assert torch.equal(gpt2.model(**inputs.data, use_cache=False).logits, wanted)
    vit = zoo.vit_subject()
    images = torch.stack(zoo.images(2))
    edit = ("layers.0" if "layers.0" in vit.hooks() else "layer.0", lambda acts: acts * 2)
    wanted = vit.run(vit.prepare(zoo.images(2)), edits=edit).output
    for model in (vit, vit.module):
        with applied(model, edit), torch.no_grad():
            assert torch.equal(vit.module(pixel_values=images).last_hidden_state, wanted)
    cnn = zoo.cnn().eval()
    again = ("1.0", lambda acts: acts * 2)
    with applied(cnn, again), torch.no_grad():
        found = cnn(images)
    own = TorchModule(cnn)
    assert torch.equal(found, own.run(own.prepare(images), edits=again).output)
    assert zoo.hooks_of(cnn) == zoo.hooks_of(vit.module) == zoo.hooks_of(gpt2.model) == 0


def test_contexts_nest_in_order(gpt2):
    inputs = gpt2.prepare(["Tim ran"])
    more, less = (HOOK, lambda a: a + 1), (HOOK, lambda a: a * 2)
    wanted = {name: gpt2.run(inputs, edits=edits).output for name, edits in
              (("both", [more, less]), ("one", [more]), ("other", [less, more]))}  # fmt: skip
    with torch.no_grad(), applied(gpt2.model, more):
        with applied(gpt2.model, less):
            assert torch.equal(gpt2.model(**inputs.data).logits, wanted["both"])
        assert torch.equal(gpt2.model(**inputs.data).logits, wanted["one"])
        assert torch.equal(gpt2.run(inputs, edits=less).output, wanted["other"]), "run's own come first"
    assert not zoo.hooks_of(gpt2.model)


def test_a_failing_edit_leaves_nothing(gpt2):
    def fails(acts):
        raise ValueError(FAULT)

    for model in [gpt2.model] * 50 + [gpt2] * 50:
        with pytest.raises(ValueError, match="own"), applied(model, [EDIT, (HOOK, fails)]):
            generated(gpt2, PROMPTS)
        assert not zoo.hooks_of(gpt2.model)
    assert "generate" not in vars(gpt2.model)
    with applied(gpt2, EDIT):
        with contextlib.suppress(ValueError), applied(gpt2, (HOOK, fails)):
            gpt2.model(torch.tensor([[5]]))
        with torch.no_grad():
            wanted = gpt2.run(gpt2.prepare_tokens([[5]])).output
            assert torch.equal(gpt2.model(torch.tensor([[5]])).logits, wanted), "the outer one goes on"


def test_another_thread_is_refused(gpt2):
    ids = torch.tensor([[5, 6]])
    refused = []

    def generated_in_own_context():
        with applied(gpt2.model, EDIT):
            gpt2.model.generate(ids, max_new_tokens=2)

    def stranger():
        for attempt in (
            lambda: gpt2.model(ids),
            lambda: gpt2.generate("Tim"),
            lambda: gpt2.model.generate(ids, max_new_tokens=2),
            generated_in_own_context,
        ):
            try:
                attempt()
            except HookError as error:
                refused.append(str(error))

    with applied(gpt2.model, EDIT), torch.no_grad():
        wanted = gpt2.model(ids).logits
        thread = threading.Thread(target=stranger)
        thread.start()
        thread.join()
        assert torch.equal(gpt2.model(ids).logits, wanted)
    assert ["thread that applied" in message for message in refused] == [True, True, True, False]
    assert "one thread at a time" in refused[-1]
    assert not zoo.hooks_of(gpt2.model)
    thread = threading.Thread(target=stranger)
    thread.start()
    thread.join()
    assert len(refused) == 4, "when it is left they go"
    assert not zoo.hooks_of(gpt2.model)


def test_reordered_samples_are_right_or_refused(subject):
    plain = ("blocks.2.hook_resid_post", lambda acts: acts * 1.3)
    keeps = ("blocks.2.hook_resid_post", steered)
    for options, what in (({"num_beams": 2}, "beam search"), ({"prompt_lookup_num_tokens": 2}, "assisted")):
        prompts = PROMPTS[:1]
        with applied(subject, keeps), pytest.raises(HookError, match=f"stay where they are. Got {what}"):
            generated(subject, prompts, **options)
        with applied(subject, plain):
            found = generated(subject, prompts, **options)
            if what == "assisted":
                assert found == generated(subject, prompts)
        changed = subject.model.transformer.h[2]
        handle = changed.register_forward_hook(
            lambda m, i, out: out * 1.3 if isinstance(out, torch.Tensor) else (out[0] * 1.3, *out[1:])
        )
        try:
            assert found == generated(subject, prompts, **options)
        finally:
            handle.remove()


def test_what_would_do_nothing_is_refused(gpt2):
    for wrong, message in (
        ("blocks.1.attn.hook_q", "only TransformerBridge has"), ("blocks.9.hook_resid_post", "blocks"),
    ):  # fmt: skip
        with pytest.raises(HookError, match=message), applied(gpt2.model, (wrong, torch.zeros_like)):
            pass
    with pytest.raises(SubjectError, match="torch module"), applied("gpt2", EDIT):
        pass
    with pytest.raises(HookError, match="a part of it alone"), applied(gpt2.model, EDIT):
        gpt2.model.transformer(torch.tensor([[5]]))
    assert not zoo.hooks_of(gpt2.model)


def test_the_mode_of_the_model_stays(gpt2):
    gpt2.model.train()
    try:
        with applied(gpt2.model, EDIT):
            assert all(m.training for m in gpt2.model.modules())
            gpt2.model(torch.tensor([[5, 6]])).logits.sum().backward()
    finally:
        gpt2.model.eval()
        gpt2.model.zero_grad()


def test_a_bare_model_learns_special_tokens_from_its_tokenizer(gpt2, subject):
    mark = gpt2.to_tokens("Tim")[-1]
    told = types.SimpleNamespace(**{name: getattr(gpt2.tokenizer, name) for name in TOLD})
    told.all_special_ids = [gpt2.bos_id, mark]
    push = AddDirection(HOOK, 3 * torch.arange(gpt2.width(HOOK), dtype=torch.float32).sin())
    edit = push.where(special=True)
    ids = torch.tensor([[gpt2.bos_id, 5, mark, 7, 8]])
    with torch.no_grad():
        wanted = gpt2.run(gpt2.prepare_tokens(ids.tolist()), edits=push.where(positions=[0, 2])).output
        with applied(gpt2.model, edit, told):
            found = gpt2.model(ids).logits
            with applied(gpt2.model, push, told):
                assert not torch.equal(gpt2.model(ids).logits, found)
            with pytest.raises(SubjectError, match="nest share"), applied(gpt2.model, edit, gpt2.tokenizer):
                pass
    assert torch.equal(found, wanted)
    wide = torch.arange(subject.width(HOOK), dtype=torch.float32).sin()
    start = AddDirection(HOOK, 20 * wide).where(special=True)
    with applied(subject.model, start, subject.tokenizer):
        found = generated(subject, PROMPTS)
    steps = list(subject.stream(PROMPTS, start, max_new_tokens=8))
    assert found == np.stack([step.ids for step in steps], 1).tolist()
    assert found != generated(subject, PROMPTS)
    with pytest.raises(HookError, match="to applied\\(\\) the model's tokenizer"), applied(gpt2.model, edit):
        generated(gpt2, PROMPTS)
    for model, tokenizer, message in (
        (gpt2, gpt2.tokenizer, "own tokenizer"),
        (gpt2.model, "gpt2", "must be the model's tokenizer. Got a str"),
    ):
        with pytest.raises(SubjectError, match=message), applied(model, edit, tokenizer):
            pass
    assert not zoo.hooks_of(gpt2.model)


def test_special_tokens_of_an_encoder():
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()
    told = types.SimpleNamespace(all_special_ids=[0, 2, 3], convert_ids_to_tokens=str)
    ids = {
        "input_ids": torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    }
    push, met = AddDirection("encoder.layer.1", torch.ones(8)).where(special=True), []
    look = ("encoder.layer.1", lambda acts, context: met.append(context.inputs.special) or acts)
    with torch.no_grad():
        plain = bert(**ids).last_hidden_state
        with applied(bert, [look, push], told):
            found = bert(**ids).last_hidden_state
    moved = [[True, False, False, True], [True, False, True, False]]
    assert met[-1].tolist() == moved
    torch.testing.assert_close(found - plain, torch.tensor(moved)[..., None].expand(-1, -1, 8).float())
