"""What an edit may be, and what it is told of the pass."""

from __future__ import annotations

import numpy as np
import pytest
import subjects_zoo as zoo
import torch
from subjects_zoo import samples
from torch import nn

from saelab.subjects import LanguageModel, TorchModule
from saelab.types import Context, HookError, HookPoint, Inputs


@pytest.mark.parametrize(
    "edit",
    [
        lambda acts: acts * 2,
        lambda acts, factor=2: acts * factor,
        lambda acts, context: acts * 2 if isinstance(context, Context) else None,
        lambda acts, context=None: acts * 2 if isinstance(context, Context) else None,
        lambda *args: args[0] * 2 if len(args) == 1 else None,
        torch.neg,
    ],
)
def test_functions_of_activations_alone_and_with_their_context(edit):
    subject = TorchModule(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), example=samples(1))
    inputs = subject.prepare(samples())
    plain = subject.run(inputs, read="0").acts["0"]
    expected = -plain if edit is torch.neg else plain * 2
    assert torch.equal(subject.run(inputs, read="0", edits=("0", edit)).acts["0"], expected)


@pytest.mark.parametrize("edit", [lambda: 0, lambda a, b, c: a, lambda acts, *, context: acts])
def test_functions_of_something_else_are_refused(edit):
    subject = zoo.cnn_subject()
    with pytest.raises(HookError, match=r"must take \(acts\) or \(acts, context\)"):
        subject.run(subject.prepare(zoo.images(1)), edits=("0", edit))


class Shared:
    """Adds at its later hook point what it met at the earlier one."""

    hooks = (HookPoint("0"), "1")

    def __call__(self, acts, context):
        if context.hook.name == "0":
            context.shared[self] = acts.clone()
            return acts
        return acts + context.shared[self]


def test_an_edit_of_several_hook_points_is_called_at_each():
    subject = zoo.cnn_subject()
    inputs = subject.prepare(zoo.images(2))
    plain = subject.run(inputs, read=["0", "1"]).acts
    edit = Shared()
    for _ in range(2):  # nothing is kept from one pass to the next
        run = subject.run(inputs, read=["0", "1"], edits=edit)
        assert torch.equal(run.acts["0"], plain["0"])
        assert torch.equal(run.acts["1"], plain["1"] + plain["0"])
    shared = []
    watch = [(name, lambda acts, context: shared.append(context.shared) or acts) for name in ("0", "1", "4")]
    subject.run(inputs, edits=watch)
    assert shared[0] is shared[1] is shared[2]


def test_edits_that_say_no_hook_point_or_take_no_context_are_refused():
    subject = zoo.cnn_subject()
    inputs = subject.prepare(zoo.images(1))

    class One:
        hook = "0"

        def __call__(self, acts):
            return acts

    with pytest.raises(HookError, match=r"must take \(acts, context\)"):
        subject.run(inputs, edits=[One()])
    for hooks in ((), None, ("0", 3), "0"):
        edit = Shared()
        edit.hooks = hooks
        with pytest.raises(HookError, match=r"with `\.hooks`"):
            subject.run(inputs, edits=[edit])


def test_counted_positions_are_those_of_the_inputs():
    bert = zoo.bert_subject()
    inputs = bert.prepare(zoo.TEXTS)
    met = {}

    def note(acts, context):
        met[context.hook.name] = context.counted
        return acts

    bert.run(inputs, edits=[("layer.0", note)])
    assert torch.equal(met["layer.0"], inputs.data["attention_mask"].bool())
    assert inputs.lengths.tolist() == inputs.counted.sum(1).tolist()

    pooled = TorchModule(
        nn.Sequential(nn.Linear(4, 4), nn.Flatten(1), nn.Linear(20, 6), nn.Unflatten(1, (6, 1)), nn.ReLU())
    )
    data = {"input": torch.stack(samples(2))}
    hooks = [(name, note) for name in ("0", "2", "3")]
    for kind, inputs in {
        "counted": Inputs(data, counted=np.array([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]], dtype=bool)),
        "lengths": Inputs(data, lengths=np.array([3, 5])),
        "neither": Inputs(data),
    }.items():
        pooled.run(inputs, edits=hooks)
        rows = {name: None if mask is None else mask.int().tolist() for name, mask in met.items()}
        assert (
            rows["0"]
            == {
                "counted": [[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]],
                "lengths": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]],
                "neither": None,
            }[kind]
        )
        assert rows["2"] is None, "a pooled vector is no position of the inputs"


# --- of language models


def test_padding_and_bos_do_not_count(gpt2):
    inputs = gpt2.prepare(["The sun", "Tim ran <|bos|> away"])
    mask = inputs.data["attention_mask"].bool()
    expected = mask.clone()
    expected &= inputs.data["input_ids"] != gpt2.bos_id
    assert torch.equal(torch.from_numpy(inputs.counted), expected)
    assert inputs.counted.sum() == inputs.lengths.sum() - 3, "a BOS within the text is BOS too"
    met = []
    gpt2.run(inputs, edits=("blocks.1.hook_mlp_out", lambda acts, context: met.append(context) or acts))
    assert torch.equal(met[0].counted, expected)
    assert met[0].inputs is inputs
    assert met[0].hook == HookPoint("blocks.1.hook_mlp_out")
    assert gpt2.prepare_tokens([[5, 6], [0, 7]]).counted.tolist() == [[True, True], [False, True]]
    bare = LanguageModel(zoo.causal_lm("gpt2"), zoo.byte_tokenizer(bos=None))
    assert bare.prepare(["Tim"]).counted.all()


def test_every_document_of_a_packed_block_has_its_bos():
    llama = zoo.language_model("llama")
    rows = llama.prepare_tokens([[0, 5, 6, 0, 7], [0, 8]], [[0, 0, 0, 1, 1], [0, 0]])
    assert rows.counted.tolist() == [[False, True, True, False, True], [False, True, False, False, False]]
    within = llama.prepare_tokens([[0, 5, 0, 7]], [[0, 0, 0, 0]])
    assert within.counted.tolist() == [[False, True, False, True]]


def test_the_bridge_tells_edits_the_same(gpt2):
    inputs = gpt2.prepare(zoo.TEXTS)
    met = []
    names = [f"blocks.1.attn.hook_{x}" for x in ("q", "pattern", "v")]
    note = [(name, lambda acts, context: met.append((acts.shape, context)) or acts) for name in names]
    gpt2.run(inputs, edits=note)
    by_name = {context.hook.name: (shape, context) for shape, context in met}
    for name in (names[0], names[2]):
        assert by_name[name][0] == (*inputs.counted.shape, 32)
        assert torch.equal(by_name[name][1].counted, torch.from_numpy(inputs.counted))
    shape, context = by_name[names[1]]
    assert shape == (3, 4, inputs.counted.shape[1], inputs.counted.shape[1])
    assert context.counted is None
    assert context.inputs is inputs
    assert len({id(context.shared) for _, context in met}) == 1


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_mid", "blocks.1.attn.hook_pattern"])
def test_a_point_of_a_language_model_is_met_once(gpt2, name):
    inputs = gpt2.prepare(["Tim ran"])
    acts = gpt2.run(inputs, read=[name, f"{name}@0", f"{name}@all"]).acts
    assert torch.equal(acts[name], acts[f"{name}@0"])
    assert torch.equal(acts[name], acts[f"{name}@all"])
    edited = [gpt2.run(inputs, edits=(n, lambda acts: acts * 2)).output for n in (name, f"{name}@0")]
    assert torch.equal(*edited)
    assert not torch.equal(edited[0], gpt2.run(inputs).output)
    assert gpt2.hook_point(f"{name}@0") == gpt2.hook_point(name)
    with pytest.raises(HookError, match="meets once"):
        gpt2.run(inputs, read=f"{name}@1")


def test_edits_count_the_positions_of_every_step_of_a_generation(gpt2):
    met = []
    edit = ("blocks.0.hook_resid_post", lambda acts, context: met.append(context.counted) or acts)
    text = gpt2.generate("Tim ran", edit, max_new_tokens=3, use_cache=False)
    assert text == gpt2.generate("Tim ran", max_new_tokens=3)
    n = len(gpt2.to_tokens("Tim ran"))
    assert [mask.tolist() for mask in met] == [[[False] + [True] * (n - 1 + i)] for i in range(len(met))]
