"""TorchModule: names, structures, shapes, and the traps that the check of liveness is for."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest
import subjects_zoo as zoo
import torch
import transformers
from subjects_zoo import samples
from torch import nn

from saelab.subjects import TorchModule
from saelab.subjects.hooks import main_tensor
from saelab.types import CorpusError, HookError, HookPoint, Inputs, ShapeError, SubjectError


class Pair(NamedTuple):
    first: torch.Tensor
    second: str


class Gives(nn.Module):
    """A linear layer whose result is wrapped by `how`."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.how = how

    def forward(self, x: torch.Tensor) -> Any:
        return self.how(self.linear(x))


class Takes(nn.Module):
    """Gives' result unwrapped by `get`, then a head."""

    def __init__(self, how: Any, get: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = Gives(how)
        self.get = get
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.get(self.inner(x)))


STRUCTURES = {
    "tensor": (lambda t: t, lambda v: v),
    "tuple": (lambda t: (t, "extra"), lambda v: v[0]),
    "later": (lambda t: (None, t), lambda v: v[1]),
    "list": (lambda t: [t, t * 0], lambda v: v[0]),
    "namedtuple": (lambda t: Pair(t, "x"), lambda v: v.first),
    "dict": (lambda t: {"mask": None, "acts": t}, lambda v: v["acts"]),
    "ordered": (lambda t: OrderedDict(acts=t), lambda v: v["acts"]),
    "model output": (
        lambda t: transformers.modeling_outputs.BaseModelOutput(last_hidden_state=t, attentions=(t,)),
        lambda v: v.last_hidden_state,
    ),
}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_is_read_and_written_back(structure):
    how, get = STRUCTURES[structure]
    subject = TorchModule(Takes(how, get), example=samples(1))
    inputs = subject.prepare(samples())
    plain = subject.run(inputs, read="inner")
    linear = subject.run(inputs, read="inner.linear").acts["inner.linear"]
    assert torch.equal(plain.acts["inner"], linear)
    doubled = subject.run(inputs, edits=("inner", lambda a: a * 2)).output
    assert torch.equal(doubled, subject.run(inputs, edits=("linear", lambda a: a * 2)).output)
    assert not torch.equal(doubled, plain.output)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_rebuilding_keeps_the_rest(structure):
    how, get = STRUCTURES[structure]
    value = how(torch.zeros(2))
    own, rebuild = main_tensor(value)
    changed = rebuild(torch.ones(2))
    assert type(changed) is type(value)
    assert torch.equal(get(changed), torch.ones(2))
    assert torch.equal(own, torch.zeros(2))
    assert torch.equal(get(value), torch.zeros(2)), "the original is left alone"
    if structure == "tuple":
        assert changed[1] == "extra"
    if structure == "model output":
        assert torch.equal(changed.attentions[0], torch.zeros(2))


def test_no_tensor_is_no_hook_point():
    assert main_tensor({"a": 1})[0] is None
    assert main_tensor("text")[0] is None
    subject = TorchModule(Takes(lambda t: "nothing", lambda v: torch.zeros(3, 5, 4)))
    with pytest.raises(HookError, match="never called with a tensor"):
        subject.run(subject.prepare(samples()), read="inner")


# --- names


def test_names_are_unique_suffixes():
    subject = zoo.cnn_subject()
    assert subject.hook_point("1.0.conv") == HookPoint("1.0.conv")
    assert subject.hook_point("0.conv") == HookPoint("1.0.conv")
    assert subject.hook_point(HookPoint("0.conv", io="in")) == HookPoint("1.0.conv", io="in")
    inputs = subject.prepare(zoo.images(2))
    assert list(subject.run(inputs, read="0.conv").acts) == ["0.conv"]


def test_ambiguous_suffixes_list_the_candidates():
    subject = zoo.cnn_subject()
    with pytest.raises(HookError) as error:
        subject.width("conv")
    assert "1.0.conv, 1.1.conv" in str(error.value)


def test_a_suffix_is_whole_parts_of_a_path():
    subject = zoo.cnn_subject()
    with pytest.raises(HookError, match="Did you mean"):
        subject.hook_point("0.onv")


def test_a_module_under_two_names_is_one_hook_point():
    shared = nn.Linear(4, 4)
    net = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = net

        def forward(self, x):
            return self.parts["a"](x) * 2

    subject = TorchModule(Net(), example=samples(1))
    assert subject.width("parts.a") == subject.width("b.0") == 4


def test_hooks_with_an_example_leave_out_what_takes_no_part():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.twice = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()

        def forward(self, x):
            return self.twice(self.used(self.twice(x)))

    assert TorchModule(Net()).hooks() == ["used", "unused", "twice"]
    subject = TorchModule(Net(), example=samples(1))
    assert subject.hooks() == ["used", "twice@all"]
    with pytest.raises(HookError, match="never called"):
        subject.width("unused")
    with pytest.raises(HookError, match="called again"):
        subject.width("twice")


def test_a_shared_module_is_refused_with_early_stop_too():
    shared = nn.ReLU()
    subject = TorchModule(nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared))
    with pytest.raises(HookError, match="called again"):
        subject.run(subject.prepare(samples()), read="1", output=False)


# --- shapes


def test_feature_maps_are_pixels_by_channels():
    subject = zoo.cnn_subject()
    inputs = subject.prepare(zoo.images(2))
    acts = subject.run(inputs, read="0").acts["0"]
    with torch.no_grad():
        own = subject.module[0](torch.stack(zoo.images(2)))
    assert acts.shape == (2, 64, 8)
    for position in (0, 7, 8, 63):
        assert torch.equal(acts[:, position], own[:, :, position // 8, position % 8])


def test_edits_of_feature_maps_are_mapped_back():
    subject = zoo.cnn_subject()
    inputs = subject.prepare(zoo.images(2))

    def one_pixel(acts):
        acts[:, 8 * 2 + 5] = 3.0
        return acts

    edited = subject.run(inputs, edits=[(HookPoint("1", io="in"), one_pixel)]).output
    with torch.no_grad():
        own = subject.module[0](torch.stack(zoo.images(2)))
        own[:, :, 2, 5] = 3.0
        expected = subject.module[1:](own)
    torch.testing.assert_close(edited, expected)


def test_vectors_have_one_position_and_volumes_many():
    subject = zoo.cnn_subject()
    acts = subject.run(subject.prepare(zoo.images(2)), read=["4", "2"]).acts
    assert acts["4"].shape == (2, 1, 5)
    assert acts["2"].shape == (2, 1, 8)
    volume = TorchModule(nn.Sequential(nn.Conv3d(2, 6, 1), nn.ReLU()), example=samples(1, 2, 3, 3, 3))
    assert volume.run(volume.prepare(samples(2, 2, 3, 3, 3)), read="0").acts["0"].shape == (2, 27, 6)
    assert volume.width("0") == 6
    assert volume.run(volume.prepare(samples(2, 2, 3, 3, 3)), read="0").spaces == {"0": (3, 3, 3)}
    assert subject.run(subject.prepare(zoo.images(2)), read=["0", "2", "4"]).spaces == {
        "0": (8, 8),
        "2": (1, 1),
    }


def test_in_place_layers_do_not_reach_what_was_read():
    subject = zoo.cnn_subject()
    acts = subject.run(subject.prepare(zoo.images(2)), read=["1.0.norm", "1.0.relu"]).acts
    assert (acts["1.0.norm"] < 0).any()
    assert not (acts["1.0.relu"] < 0).any()


def test_in_place_layers_after_a_read_keep_gradients_right():
    """The ReLU after the norm works in place: it must change neither the value read nor its gradient."""
    subject = zoo.cnn_subject()
    inputs = subject.prepare(zoo.images(2))
    run = subject.run(inputs, read="1.0.norm", grad=True)
    acts = run.acts["1.0.norm"]
    assert (acts < 0).any()
    (grad,) = torch.autograd.grad(run.output.sum(), acts)
    assert not grad[acts < 0].any()
    assert grad[acts > 0].any()


def test_an_edit_in_place_stays_at_its_hook():
    """A module in eval mode may return its very input, which others hold too."""

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return x + self.drop(x)

    subject = TorchModule(Skip(), example=samples(1))
    inputs = subject.prepare(samples())
    out = subject.run(inputs, edits=("drop", lambda a: a.zero_())).output
    assert torch.equal(out, torch.stack(samples()))


def test_inputs_and_outputs_of_a_module():
    subject = zoo.cnn_subject()
    inputs = subject.prepare(zoo.images(2))
    entering = HookPoint("1.1", io="in")
    assert torch.equal(
        subject.run(inputs, read=[entering]).acts["1.1"], subject.run(inputs, read="1.0").acts["1.0"]
    )
    assert subject.width(HookPoint("4", io="in")) == 8
    assert subject.width("4") == 5
    with pytest.raises(HookError, match="two passes"):
        subject.run(inputs, read=[entering, "1.1"])


def test_keyword_inputs_are_hooked():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Gives(lambda t: t)

        def forward(self, x):
            return self.inner(x=x)

    subject = TorchModule(Net(), example=samples(1))
    inputs = subject.prepare(samples())
    hook = HookPoint("inner", io="in")
    assert torch.equal(subject.run(inputs, read=[hook]).acts["inner"], inputs.data["x"])
    zeroed = subject.run(inputs, edits=[(hook, torch.zeros_like)]).output
    assert torch.equal(zeroed, subject.module.inner.linear.bias.expand_as(zeroed))


def test_tensors_that_mix_samples_are_refused():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(x.flatten(0, 1)).view_as(x)

    subject = TorchModule(Flat())
    with pytest.raises(ShapeError, match="Got shape"):
        subject.run(subject.prepare(samples()), read="inner")
    assert "inner" not in TorchModule(Flat(), example=samples(2)).hooks()


# --- liveness


class Bystander(nn.Module):
    """`probe` is called, but its parent goes on with what it computed itself (as fused kernels do)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.probe, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        self.probe(x)
        return self.head(nn.functional.linear(x, self.probe.weight, self.probe.bias))


def test_a_bystander_is_refused_and_its_neighbours_are_not():
    subject = TorchModule(Bystander())
    inputs = subject.prepare(samples())
    for options in (
        {"read": "probe"},
        {"read": "probe", "output": False},
        {"edits": ("probe", torch.zeros_like)},
    ):
        with pytest.raises(HookError, match="zeroing its activation") as error:
            subject.run(inputs, **options)
        assert "Choose a hook point on the path" in str(error.value)
    assert subject.run(inputs, read=["body", "head"]).acts["body"].shape == (3, 5, 4)


def test_weights_used_without_a_call_are_refused():
    """torch's attention uses out_proj.weight and never calls out_proj."""

    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    subject = TorchModule(Attends(), example=samples(1))
    with pytest.raises(HookError, match="never called"):
        subject.width("out_proj")
    assert subject.width("attention") == 4


class Penultimate(nn.Module):
    """The hidden state before the last block as the library captured it: what many vision models use."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, output_hidden_states=True).hidden_states[-2]


def test_states_that_a_library_captures_see_our_edits():
    """transformers captures hidden states by its own hooks: ours run first, whenever they registered."""
    model = zoo.causal_lm("llama").model
    subject = TorchModule(Penultimate(model), example=[torch.tensor([1, 2, 3])])
    inputs = subject.prepare([torch.tensor([1, 2, 3, 4])])
    plain = subject.run(inputs).output
    assert torch.equal(subject.run(inputs, read="layers.1").acts["layers.1"], plain)
    assert not subject.run(inputs, edits=("layers.1", torch.zeros_like)).output.any()
    assert not torch.equal(subject.run(inputs, edits=("layers.0", torch.zeros_like)).output, plain)


def test_what_comes_after_a_captured_state_is_refused():
    """The last block and the norm run, their results are recorded, and the output is made without them."""
    model = zoo.causal_lm("llama").model
    subject = TorchModule(Penultimate(model), example=[torch.tensor([1, 2, 3])])
    for name in ("layers.2", "norm", "layers.2.mlp.down_proj"):
        with pytest.raises(HookError, match="captured before this hook"):
            subject.width(name)


def test_a_state_captured_ahead_of_our_hook_is_refused():
    """A capturing hook that puts itself first at every call: edits at the module never reach the output."""

    class Captures(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.rest = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            kept = []
            handle = self.block.register_forward_hook(
                lambda m, a, out: kept.append(out.clone()), prepend=True
            )
            try:
                self.rest(self.block(x))
            finally:
                handle.remove()
            return kept[0] * 2

    subject = TorchModule(Captures())
    inputs = subject.prepare(samples())
    with pytest.raises(HookError, match="captured before this hook"):
        subject.run(inputs, read="block")
    assert subject.run(inputs, read=[HookPoint("block", io="in")]).acts["block"].shape == (3, 5, 4)


def test_the_check_runs_once_for_all_spellings():
    calls = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Gives(lambda t: t)

        def forward(self, x):
            calls.append(1)
            return self.inner(x) * 2

    subject = TorchModule(Net(), example=samples(1))
    inputs = subject.prepare(samples())
    subject.run(inputs, read="inner.linear")
    calls.clear()
    subject.run(inputs, read="linear")
    subject.run(inputs, read=HookPoint("linear"))
    assert len(calls) == 2


def test_torch_encoder_layers_give_the_same_bits_with_and_without_hooks():
    """In eval mode torch runs a layer as one fused kernel, unless one of its parts carries a hook."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[:, 12:] = True

    def prepare(raw):
        return {"src": torch.stack(list(raw)), "src_key_padding_mask": mask[: len(raw)]}

    subject = TorchModule(net, prepare=prepare, example=samples(1, 16, 64))
    inputs = subject.prepare(samples(3, 16, 64))
    plain = subject.run(inputs).output
    assert torch.equal(plain, subject.run(inputs, read=["layers.0", "0.linear2"]).output)
    assert subject.width("0.linear1") == 128
    assert torch.backends.mha.get_fastpath_enabled()


# --- inputs


def test_widths_need_an_example_or_a_run():
    subject = TorchModule(zoo.cnn())
    with pytest.raises(HookError, match="example"):
        subject.width("1.0")
    subject.run(subject.prepare(zoo.images(3)), read="0")
    assert subject.width("1.0") == 8


@pytest.mark.parametrize(
    "raw",
    [np.zeros((2, 3, 8, 8), np.float32), torch.zeros(2, 3, 8, 8), [np.zeros((3, 8, 8), np.float32)] * 2],
)
def test_arrays_and_tensors_need_no_prepare(raw):
    subject = zoo.cnn_subject()
    assert subject.run(subject.prepare(raw)).output.shape == (2, 5)


@pytest.mark.parametrize(
    "raw", [[], None, [torch.zeros(3), torch.zeros(4)], ["text"], 7, np.zeros((0, 3, 8, 8))]
)
def test_what_cannot_be_stacked_is_refused(raw):
    with pytest.raises(CorpusError, match="Got"):
        zoo.cnn_subject().prepare(raw)


def test_prepare_functions_may_give_inputs_mappings_or_tensors():
    net = zoo.cnn()
    stacked = torch.stack(zoo.images(2))
    expected = TorchModule(net).run(TorchModule(net).prepare(stacked)).output
    for made in (stacked, {"input": stacked}, Inputs({"input": stacked})):
        subject = TorchModule(net, prepare=lambda raw, made=made: made)
        assert torch.equal(subject.run(subject.prepare(["ignored"])).output, expected)
    with pytest.raises(SubjectError, match="prepare must give"):
        TorchModule(net, prepare=lambda raw: "text").prepare(["x"])


def test_forward_with_star_arguments():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, *args):
            return self.inner(args[0])

    subject = TorchModule(Net(), example=samples(1))
    assert subject.width("inner") == 4


def test_labels():
    inputs = zoo.cnn_subject().prepare(zoo.images(2))
    assert zoo.cnn_subject().label(inputs, 1, 9) == "position 9"
    subject = TorchModule(zoo.cnn(), label=lambda inputs, s, p: f"pixel {p // 8},{p % 8}")
    assert subject.label(inputs, 1, 9) == "pixel 1,1"


def test_a_trained_network_is_read_as_torch_computes_it(shared_data):
    """The first layers of a trained CIFAR-10 network."""
    path = shared_data / "models" / "resnet20_cifar10"
    files = sorted(p for p in path.rglob("*") if p.suffix in (".th", ".pt", ".pth"))
    state = torch.load(files[0], weights_only=True, map_location="cpu")["state_dict"]
    state = {k.removeprefix("module."): v for k, v in state.items()}
    net = nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, 16, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(16)))
    net.load_state_dict({k: v for k, v in state.items() if k.split(".")[0] in ("conv1", "bn1")})
    subject = TorchModule(net, example=zoo.images(1))
    acts = subject.run(subject.prepare(zoo.images(2)), read="conv1", output=False).acts["conv1"]
    expected = nn.functional.conv2d(torch.stack(zoo.images(2)), state["conv1.weight"], padding=1)
    torch.testing.assert_close(acts, expected.flatten(2).transpose(1, 2))


def test_the_digest_knows_names_shapes_and_dtypes():
    from saelab.subjects.base import _sha256

    x = torch.arange(6, dtype=torch.int32)
    tensors = [{"a": x}, {"b": x}, {"a": x.view(2, 3)}, {"a": x.view(3, 2)}, {"a": x.view(torch.float32)}]
    assert len({_sha256("net", t) for t in tensors} | {_sha256("other", tensors[0])}) == 6


class Chain(nn.Module):
    """Eight layers, one whose result nobody uses, and how often it was run."""

    def __init__(self, how=lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))
        self.aside, self.how, self.passes = nn.Linear(4, 4), how, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        for layer in self.layers:
            x = layer(x).tanh() + x
        self.aside(x)
        return self.how(x)


def test_many_hook_points_are_checked_by_one_gradient():
    """Which of a large model would take seconds each."""
    names = [f"layers.{i}" for i in range(8)]
    chain = Chain()
    subject = TorchModule(chain, example=samples(1, 4))
    inputs = subject.prepare(samples(2, 4))
    chain.passes = 0
    assert set(subject.run(inputs, names).acts) == set(names)
    # the first by passes of its own, the others by one, and the run; one by one they were 25
    assert chain.passes <= 6
    assert all(p.grad is None for p in chain.parameters())
    with pytest.raises(HookError, match=r"must influence the output\. Got 'aside'"):
        TorchModule(Chain(), example=samples(1, 4)).run(inputs, ["layers.0", "aside", "layers.3"])


def test_where_there_is_no_gradient_hook_points_are_checked_one_by_one():
    chain = Chain(how=lambda x: (10 * x).round().long())
    subject = TorchModule(chain, example=samples(1, 4))
    inputs = subject.prepare(samples(2, 4))
    chain.passes = 0
    assert len(subject.run(inputs, [f"layers.{i}" for i in range(8)]).acts) == 8
    assert chain.passes >= 24
    with pytest.raises(HookError, match=r"must influence the output\. Got 'aside'"):
        subject.run(inputs, ["layers.0", "aside"])
