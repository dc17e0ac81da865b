"""Edits as JSON: every field comes back, and what is no edit, or is another's, is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import mutations
import pytest
import subjects_zoo as zoo
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import saelab
from saelab import interventions
from saelab.interventions import Edit, MeanAblate, Reconstruct, Scale, counted, load, register, save
from saelab.sae import SAE
from saelab.types import ConfigError, Context, FormatError, HookPoint, Intervention, StoreError

HOOK = "blocks.1.hook_resid_post"


@dataclass(frozen=True)
class Window:
    """A dataclass of its own among an edit's fields."""

    first: int
    weights: Tensor | None = None


@register("test_everything")
@dataclass(frozen=True, eq=False)
class Everything(Edit):
    """An edit with a field of every kind; adds the sum of its numbers."""

    hook: HookPoint
    number: float = 0.0
    count: int = 0
    flag: bool = False
    word: str | None = None
    mode: Literal["a", "b"] = "a"
    latents: tuple[int, ...] = ()
    vectors: Mapping[str, Tensor] | None = None
    window: Window | None = None
    saes: tuple[SAE, ...] = ()
    masks: list[Tensor] | None = None
    inner: Edit | None = None
    either: Tensor | float = 0.0

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        return (self.hook,)

    def __call__(self, acts: Tensor, context: Context) -> Tensor:
        acts[counted(acts, context)] += self.number
        return acts


def sae_of(seed: int = 0, hook: str = HOOK) -> SAE:
    return SAE.create(saelab.recipe("topk", d_in=32, d_sae=48, k=6, hook=hook), seed=seed)


def through(edit: Edit, *saes: SAE) -> Edit:
    (again,) = load(json.loads(json.dumps(edit.to_dict(), allow_nan=False)), saes)
    return again


@given(
    number=st.floats(allow_nan=False, allow_infinity=False),
    count=st.integers(-(2**70), 2**70),
    flag=st.booleans(),
    word=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
    latents=st.lists(st.integers(0, 99)).map(tuple),
    first=st.integers(),
    io=st.sampled_from(["in", "out"]),
)
@settings(max_examples=60, deadline=None)
def test_plain_fields_come_back(number, count, flag, word, latents, first, io):
    hook = HookPoint("a.b@all", io, 3)
    edit = Everything(hook, number, count, flag, word, "b", latents, None, Window(first))
    again = through(edit)
    assert type(again) is Everything
    for name in ("hook", "number", "count", "flag", "word", "mode", "latents", "window"):
        assert getattr(again, name) == getattr(edit, name)


@pytest.mark.parametrize("dtype", interventions.registry._DTYPES.values(), ids=str)
def test_tensors_come_back_bit_for_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (6 * dtype.itemsize,), generator=generator, dtype=torch.uint8)  # NaNs too
    tensor = (raw % 2 == 1 if dtype == torch.bool else raw.view(dtype)).reshape(2, 3)
    scalar, turned = tensor[0, 0], tensor.T
    vectors = {"whole": tensor, "turned": turned}
    window = Window(1, scalar)
    edit = Everything(HookPoint("a"), vectors=vectors, either=scalar, masks=[turned], window=window)
    again = through(edit)
    for found, expected in (
        (again.vectors["whole"], tensor), (again.vectors["turned"], turned), (again.either, scalar),
        (again.masks[0], turned), (again.window.weights, scalar),
    ):  # fmt: skip
        assert found.dtype == dtype
        assert found.shape == expected.shape
        a, b = (t.contiguous().reshape(-1).view(torch.uint8) for t in (found, expected))
        assert torch.equal(a, b)


def test_saes_and_edits_within_edits_come_back():
    one, two = sae_of(1), sae_of(2)
    edit = Everything(HookPoint("a"), saes=(two, one), inner=Scale(one, [3, 4], 0.5, "token", 0.25))
    again = through(edit, one, two)
    assert again.saes == (two, one)
    assert again.inner.sae is one
    assert (again.inner.latents, again.inner.factor, again.inner.threshold) == ((3, 4), 0.5, 0.25)
    assert isinstance(again.inner, Scale)


def test_a_wrapped_edit_may_be_any_intervention():
    @register("test_wrapped")
    @dataclass(frozen=True)
    class Wrapped(Everything):
        other: Intervention | None = None

    edit = Wrapped(HookPoint("a"), other=MeanAblate("b", torch.ones(3)))
    assert isinstance(through(edit).other, MeanAblate)
    data = Everything(HookPoint("a")).to_dict()
    with pytest.raises(FormatError, match="registered kind"):
        load(data | {"inner": {"kind": "nothing like it"}})


def test_only_plain_finite_data_become_json():
    for change in (
        {"number": float("nan")}, {"word": b"bytes"}, {"vectors": {"a": torch.empty(0)}}, {"latents": {3}},
        {"either": torch.zeros(2, 2).to_sparse()}, {"either": torch.zeros(2, dtype=torch.cfloat)},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="Everything"):
            Everything(HookPoint("a"), **change).to_dict()


def test_loading_takes_one_or_several():
    sae = sae_of()
    data = [Reconstruct(sae).to_dict(), MeanAblate(HOOK, torch.ones(32)).to_dict()]
    assert [type(edit) for edit in load(data, [sae])] == [Reconstruct, MeanAblate]
    assert [type(edit) for edit in load(data[0], sae)] == [Reconstruct]
    assert load([]) == []


# --- another SAE, another subject


def test_another_sae_is_refused_by_both_fingerprints():
    sae, other = sae_of(1), sae_of(2, "blocks.0.hook_mlp_out")
    data = Scale(sae, [0], 0).to_dict()
    with pytest.raises(ConfigError) as error:
        load(data, [other])
    said = str(error.value)
    assert sae.fingerprint()[:12] in said
    assert other.fingerprint()[:12] in said
    assert HOOK in said
    assert "blocks.0.hook_mlp_out" in said
    assert "saes=[sae]" in said
    with pytest.raises(ConfigError, match="Got no SAE"):
        load(data)
    with pytest.raises(ConfigError, match="saes must be SAEs"):
        load(data, ["folder"])


def test_a_file_is_for_its_subject(tmp_path, gpt2, llama):
    sae = sae_of()
    edits = [Scale(sae, [1, 2], 0.0), MeanAblate("blocks.0.hook_mlp_out", torch.linspace(0, 1, 32))]
    path = save(edits, tmp_path / "new" / "edits.json", gpt2)
    inputs = gpt2.prepare(zoo.TEXTS)
    runs = [gpt2.run(inputs, edits=found).output for found in (edits, load(path, sae, gpt2), load(path, sae))]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
    with pytest.raises(ConfigError) as error:
        load(path, sae, llama)
    assert gpt2.fingerprint()[:12] in str(error.value)
    assert llama.fingerprint()[:12] in str(error.value)
    save(edits[1], path)
    (only,) = load(str(path), subject=llama)
    assert isinstance(only, MeanAblate)
    assert [p.name for p in path.parent.iterdir()] == ["edits.json"]


def test_what_is_no_registered_edit_is_not_saved(tmp_path, gpt2):
    @dataclass(frozen=True, eq=False)
    class Mine(Everything):
        pass

    for edit in ((HOOK, torch.zeros_like), Mine(HookPoint("a")), "edit"):
        with pytest.raises(ConfigError, match="registered"):
            save([edit], tmp_path / "edits.json")
    assert not any(tmp_path.iterdir())


def test_large_values_are_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(interventions.storage, "MAX_BYTES", 10_000)
    small, large = (MeanAblate(HOOK, torch.ones(n)) for n in (1_000, 2_000))
    path = save(small, tmp_path / "edits.json")
    with pytest.raises(StoreError, match="10,000 bytes"):
        save([large], path)
    assert torch.equal(load(path)[0].mean, small.mean), "what was there stays"
    path.write_text(" " * 10_001)
    with pytest.raises(FormatError, match="10,000 bytes"):
        load(path)


# --- what is no edit


BROKEN: list[Callable[[dict[str, Any]], Any]] = [
    lambda data: data | {"kind": "scael"},
    lambda data: data | {"kind": ["scale"]},
    lambda data: {k: v for k, v in data.items() if k != "kind"},
    lambda data: data | {"version": 3},
    lambda data: data | {"version": True},
    lambda data: data | {"another": 1},
    lambda data: {k: v for k, v in data.items() if k != "latents"},
    lambda data: data | {"latents": [48]},
    lambda data: data | {"latents": "3"},
    lambda data: data | {"latents": [True]},
    lambda data: data | {"factor": float("inf")},
    lambda data: data | {"gate": []},
    lambda data: data | {"hook": {"name": ""}},
    lambda data: data | {"hook": {"name": "a", "io": "up"}},
    lambda data: data | {"sae": {"fingerprint": 3}},
    lambda data: data | {"sae": [[]]},
    lambda data: [data],
    lambda data: 3,
]


@pytest.mark.parametrize("breaks", BROKEN)
def test_data_of_no_edit_are_refused(breaks):
    sae = sae_of()
    data = breaks(Scale(sae, [3], 0.5, "token", 0.1).to_dict())
    with pytest.raises(FormatError, match=r"Got|needs|no field"):
        load([data], sae)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [33]}, {"shape": [-32]}, {"shape": [0]}, {"shape": 32}, {"shape": [32, True]},
        {"shape": [32] + [1] * 8}, {"shape": [10**30, 10**30]}, {"dtype": "float8"}, {"dtype": ["float32"]},
        {"base64": "§§"}, {"base64": 3}, {"base64": "AAAA" * 10 + "A"}, {"another": 1}, {"base64": None},
    ],
)  # fmt: skip
def test_tensors_that_are_none_are_refused(change):
    data = MeanAblate(HOOK, torch.ones(32)).to_dict()
    with pytest.raises(FormatError, match="must be a tensor"):
        load(data | {"mean": data["mean"] | change})
    with pytest.raises(FormatError, match="must be a tensor"):
        load(data | {"mean": [1.0]})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(number):
    data = Everything(HookPoint("a")).to_dict()
    for change in ({"number": number}, {"either": number}):
        with pytest.raises(FormatError, match="must be finite"):
            load(data | change)


def test_files_of_something_else_are_refused(tmp_path):
    path = save([], tmp_path / "edits.json")
    good = json.loads(path.read_text())
    for change in (
        {"format": "else"}, {"kind": "features"}, {"version": 0}, {"version": "1"}, {"version": 2},
        {"edits": {}}, {"subject": {}}, {"subject": "llama"}, {"edits": [[[[]]]]},
    ):  # fmt: skip
        path.write_text(json.dumps(good | change))
        with pytest.raises(FormatError, match="Got"):
            load(path)
    for text in ("", "{", "[]", "null", "[" * 100_000, '{"edits": ' * 50_000):
        path.write_text(text)
        with pytest.raises(FormatError, match="Got"):
            load(path)
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(FormatError):
        load([{"kind": "scale", "sae": deep}])
    with pytest.raises(StoreError, match="must be readable"):
        load(tmp_path / "nowhere.json")
    with pytest.raises(StoreError, match="must be readable"):
        load(tmp_path)


def test_damaged_files_are_refused_or_hold_edits(tmp_path):
    sae = sae_of()
    folder = tmp_path / "whole"
    edits = [Scale(sae, [3], 0.5, "token", 0.1), MeanAblate(HOOK, torch.ones(4)), Everything(HookPoint("a"))]
    save(edits, folder / "edits.json")
    refused = 0
    for seed in range(300):
        said = mutations.mutate(folder, tmp_path / "damaged", seed)
        try:
            found = load(tmp_path / "damaged" / "edits.json", sae)
        except (FormatError, StoreError, ConfigError):
            refused += 1
            continue
        except Exception as error:
            message = f"seed {seed}: {said}"
            raise AssertionError(message) from error
        assert all(isinstance(edit, Edit) for edit in found)
    assert 100 < refused < 300


# --- the registry


def test_an_edit_of_an_older_version_is_migrated():
    @register("test_migrated")
    @dataclass(frozen=True)
    class Migrated(Everything):
        VERSION: ClassVar[int] = 2
        MIGRATIONS: ClassVar[dict[int, Any]] = {1: lambda data: data | {"number": data["number"] * 2}}

    data = Migrated(HookPoint("a"), 3.0).to_dict()
    assert data["version"] == 2
    assert load(data)[0].number == 3.0
    assert load(data | {"version": 1})[0].number == 6.0
    with pytest.raises(FormatError, match="newer saelab"):
        load(data | {"version": 3})


def test_names_are_unique_but_a_cell_may_define_its_edit_anew():
    def define(scale: float) -> type[Edit]:
        @register("test_cell")
        @dataclass(frozen=True)
        class Cell(Everything):
            def __call__(self, acts: Tensor, context: Context) -> Tensor:
                return acts * scale

        return Cell

    define(1.0)
    again = define(2.0)
    assert type(load(again(HookPoint("a")).to_dict())[0]) is again
    with pytest.raises(ConfigError, match=r"'scale', which saelab\.interventions\.latents\.Scale has"):
        register("scale")(again)


def test_what_cannot_be_registered_is_said():
    @dataclass
    class Open(Edit):
        hook: HookPoint

    class Plain:
        pass

    @dataclass(frozen=True)
    class Taken(Edit):
        kind: str

    for cls, said in (
        (Open, "frozen"),
        (Plain, "frozen"),
        (Everything.__base__, "frozen"),
        (Taken, "kind or"),
    ):
        with pytest.raises(ConfigError, match=said):
            register("test_bad")(cls)

    @dataclass(frozen=True)
    class Unknown(Edit):
        what: Nowhere  # noqa: F821

    with pytest.raises(ConfigError, match="Nowhere"):
        register("test_bad")(Unknown)
    assert "test_bad" not in interventions.registered()


ONE_FILE = """
from dataclasses import dataclass

from saelab.interventions import Edit, counted, register
from saelab.types import HookPoint
from torch import Tensor


@register("test_one_file")
@dataclass(frozen=True, eq=False)
class Push(Edit):
    hook: HookPoint
    direction: Tensor
    threshold: float

    @property
    def hooks(self):
        return (self.hook,)

    def __call__(self, acts, context):
        along = acts @ self.direction
        here = counted(acts, context) & (along > self.threshold)
        acts[here] += self.direction
        return acts
"""


def test_an_edit_of_one_file_has_everything(tmp_path, monkeypatch, gpt2):
    (tmp_path / "my_push.py").write_text(ONE_FILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_push

    inputs = gpt2.prepare(zoo.TEXTS)
    push = my_push.Push(HookPoint(HOOK), torch.linspace(-1, 1, 32), 0.5)
    plain, edited = (gpt2.run(inputs, read=HOOK, edits=e).acts[HOOK] for e in ([], push))
    moved = (plain != edited).any(-1)
    assert moved.any()
    assert torch.equal(moved, torch.from_numpy(inputs.counted) & (plain @ push.direction > 0.5))
    (again,) = load(save(push, tmp_path / "push.json", gpt2), subject=gpt2)
    assert torch.equal(gpt2.run(inputs, edits=again).output, gpt2.run(inputs, edits=push).output)
    sys.modules.pop("my_push")


def test_every_file_of_the_folder_is_found():
    folder = Path(interventions.__file__).parent
    for kind, cls in interventions.registered().items():
        if cls.__module__.startswith("saelab."):
            assert getattr(interventions, cls.__name__) is cls, kind
            assert cls.__name__ in dir(interventions)
    files = {p.stem for p in folder.glob("*.py") if "@register(" in p.read_text() and p.stem != "registry"}
    files.add("registry")  # which holds Where
    assert files == {
        cls.__module__.rpartition(".")[2]
        for cls in interventions.registered().values()
        if cls.__module__.startswith("saelab.")
    }
    with pytest.raises(AttributeError, match="Nothing"):
        _ = interventions.Nothing
