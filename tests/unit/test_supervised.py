"""Supervised dictionaries: planted directions, brute force, hooks of torch's own, and rules that refuse."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

import saelab
from saelab import corpora
from saelab.analysis import (
    AgainstSupervised,
    Location,
    Stood,
    against_supervised,
    attribute_f1,
    attribute_task,
    supervised_dictionary,
)
from saelab.analysis.suites import registered
from saelab.analysis.supervised.edits import aware_edit, greedy_edit
from saelab.analysis.supervised.f1 import described, f1_of
from saelab.analysis.supervised.tasks import answers, read_at
from saelab.analysis.supervised.toys import occlusion, over_splitting
from saelab.corpora import attributed_prompts
from saelab.corpora import world_families as families
from saelab.corpora import world_lexicon as lexicon
from saelab.types import ConfigError, CorpusError, HookError, NonFiniteError, ShapeError, SubjectError

HERE = Location("blocks.1.attn.hook_z", -1, 6)
RESID = "blocks.2.hook_resid_post"


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def prompts(subject):
    return attributed_prompts(subject.to_tokens, "train", 400), attributed_prompts(subject.to_tokens, n=48)


@pytest.fixture(scope="module")
def tasks(subject, prompts):
    return tuple(attribute_task(subject, each) for each in prompts)


def blank(width, hook=HERE.hook, d_sae=32, k=4):
    return saelab.SAE.create(saelab.recipe("topk", d_in=width, d_sae=d_sae, k=k, hook=hook), 0).eval()


# dictionaries


def planted(rows, seed=0):
    """Activations that are a sum of a direction for each of two attributes, whose values are given by row."""
    directions = normal(3, 8, seed=seed), normal(4, 8, seed=seed + 1)
    acts = 2 + directions[0][[a for a, _ in rows]] + directions[1][[b for _, b in rows]]
    attributes = {"a": [str(a) for a, _ in rows], "b": [f"b{b}" for _, b in rows]}
    return acts, attributes, directions


def test_means_and_least_squares_agree_where_attributes_are_balanced_and_independent():
    acts, attributes, directions = planted(list(itertools.product(range(3), range(4))) * 5)
    acts = acts + 0.3 * normal(*acts.shape, seed=9)
    mean, mse = (supervised_dictionary(acts, attributes, method) for method in ("mean", "mse"))
    for key in attributes:
        torch.testing.assert_close(mean.vectors[key], mse.vectors[key], atol=1e-5, rtol=0)
    centred = directions[0] - directions[0].mean(0)
    assert (mean.vectors["a"] - centred).abs().max() < 0.3
    assert mean.values == {"a": ("0", "1", "2"), "b": ("b0", "b1", "b2", "b3")}


def test_least_squares_take_apart_what_goes_together_and_means_do_not():
    rng = np.random.default_rng(0)
    rows = [(a, a if rng.random() < 0.7 else int(rng.integers(4))) for a in rng.integers(0, 3, 300).tolist()]
    acts, attributes, directions = planted(rows)
    mean, mse = (supervised_dictionary(acts, attributes, method) for method in ("mean", "mse"))
    torch.testing.assert_close(mse.reconstruct(attributes), acts, atol=1e-4, rtol=0)
    # of a value what counts is how it differs from another
    away = mse.vectors["a"][1] - mse.vectors["a"][0]
    torch.testing.assert_close(away, directions[0][1] - directions[0][0], atol=1e-4, rtol=0)
    assert (mean.reconstruct(attributes) - acts).abs().max() > 0.5
    assert (mean.vectors["a"] - mse.vectors["a"]).abs().max() > 0.2
    old, new = ["0"] * 300, ["2"] * 300
    moved = mse.edited(acts, "a", attributes["a"], new)
    torch.testing.assert_close(moved, acts - directions[0][[a for a, _ in rows]] + directions[0][2],
                               atol=1e-4, rtol=0)  # fmt: skip
    random = mse.random(3)
    assert torch.allclose(random.vectors["b"].norm(dim=1), mse.vectors["b"].norm(dim=1), atol=1e-5)
    assert not torch.allclose(random.edited(acts, "a", old, new), mse.edited(acts, "a", old, new), atol=0.1)


@pytest.mark.parametrize(
    ("acts", "attributes", "method", "error", "said"),
    [
        (torch.zeros(3, 2), {"a": ["x"] * 3}, "mse", ConfigError, "'x' alone of 'a'"),
        (torch.zeros(3, 2), {"a": ["x", "y"]}, "mse", ShapeError, "Got 2 of 'a'"),
        (torch.zeros(3), {"a": ["x", "y", "x"]}, "mse", ShapeError, "must be"),
        (torch.full((2, 2), torch.nan), {"a": ["x", "y"]}, "mse", NonFiniteError, "finite"),
        (torch.zeros(2, 2), {}, "mse", ConfigError, "Got none"),
        (torch.zeros(2, 2), {"a": "xy"}, "mse", ConfigError, "must be a list"),
        (torch.zeros(2, 2), {"a": ["x", "y"]}, "mes", ConfigError, "Did you mean 'mse'"),
    ],
)
def test_dictionaries_refuse_what_they_cannot_be_made_of(acts, attributes, method, error, said):
    with pytest.raises(error, match=said):
        supervised_dictionary(acts, attributes, method)


def test_dictionaries_refuse_values_that_they_do_not_know():
    found = supervised_dictionary(torch.eye(2), {"a": ["x", "y"]})
    with pytest.raises(ConfigError, match=r"\['z'\] besides"):
        found.reconstruct({"a": ["x", "z"]})
    with pytest.raises(ConfigError, match="Got none of a"):
        found.reconstruct({"b": ["x", "z"]})
    with pytest.raises(ConfigError, match="Got 'b'"):
        found.edited(torch.eye(2), "b", ["x", "y"], ["y", "x"])


# edits


def all_edits(source, target, s, t, directions, k):
    """The least distance over all sets of at most k latents, each taken out, put in, or both."""
    options = [[(0.0,), *((c,) for c in {-a, b, b - a} - {0.0})] for a, b in zip(s, t, strict=True)]
    best = np.inf
    for chosen in itertools.product(*[[c for (c,) in each] for each in options]):
        if sum(c != 0 for c in chosen) <= k:
            best = min(best, float((source + np.array(chosen) @ directions - target).__pow__(2).sum()))
    return best


@pytest.mark.parametrize(("k", "orthonormal"), [(1, False), (1, True), (2, True), (3, True)])
def test_a_greedy_edit_is_the_best_one_of_one_latent_and_on_orthonormal_directions(k, orthonormal):
    directions = normal(6, 6)
    directions = torch.linalg.qr(directions)[0] if orthonormal else directions
    s, t = (normal(12, 6, seed=seed).clamp_min(0) * (normal(12, 6, seed=seed + 9) > 0) for seed in (1, 2))
    source, target = (
        s @ directions + 0.1 * normal(12, 6, seed=3),
        t @ directions + 0.1 * normal(12, 6, seed=4),
    )
    found = greedy_edit(source, target, s, t, directions, k)
    assert found.latents.max() <= k
    for i in range(12):
        best = all_edits(*(x[i].double().numpy() for x in (source, target, s, t)), directions.numpy(), k)
        assert float((source[i] + found.change[i] - target[i]).square().sum()) == pytest.approx(
            best, abs=1e-4
        )


def test_edits_go_no_further_than_they_help_and_say_what_they_removed():
    directions = torch.eye(4)
    s, t = torch.tensor([[3.0, 4.0, 0, 0]]), torch.tensor([[3.0, 0, 2.0, 0]])
    found = greedy_edit(s, t, s, t, directions, 4)
    assert found.latents.tolist() == [2]
    assert found.change.tolist() == [[0, -4, 2, 0]]
    assert found.weight[0] == pytest.approx(16 / 25)
    one = greedy_edit(s, t, s, t, directions, 1)
    assert one.change.tolist() == [[0, -4, 0, 0]]


def test_an_aware_edit_takes_what_tells_the_values_among_what_fires():
    directions = torch.eye(5)
    s, t = torch.tensor([[1.0, 2, 3, 0, 0]]), torch.tensor([[0.0, 0, 3, 4, 5]])
    old, new = torch.tensor([[0.9, 0.5, 0.1, 1.0, 0]]), torch.tensor([[1.0, 0, 0.2, 0.7, 0.3]])
    found = aware_edit(s, t, directions, old, new, 2)
    assert found.change.tolist() == [[-1, 0, 0, 4, 0]]
    assert found.weight[0] == pytest.approx(1 / 14)
    assert aware_edit(s, t, directions, old, new, 1).change.tolist() == [[0, 0, 0, 4, 0]]
    # a latent that tells nothing is left, and one that both have is set to what the target has
    found = aware_edit(s, t, directions, old, new, 6)
    assert found.change.tolist() == [[-1, -2, 0, 4, 5]]
    assert found.latents.tolist() == [5]


# F1


def test_f1_is_that_of_sklearn_and_descriptions_that_of_trying_all():
    rng = np.random.default_rng(0)
    values, two = rng.choice(list("uvwx"), 60), rng.choice(["l", "r"], 60)
    codes = rng.normal(size=(60, 7)) * (rng.random((60, 7)) < 0.4)
    codes[:, 0] = np.isin(values, ["u", "w"])
    codes[:, 1] = -((values == "v") & (two == "r")).astype(float)
    codes[:, 2] = 0
    found = attribute_f1(codes, values)
    for i, value in enumerate(found.values):
        for j in range(7):
            assert found.f1[i, j] == pytest.approx(f1_score(values == value, codes[:, j] != 0), abs=1e-12)
    best = described(codes, {"of": values, "side": two})
    assert best[0] == ("of", best[0].values, 1.0)
    assert set(best[0].values) == {"u", "w"}
    assert best[1] == ("of & side", ("v & r",), 1.0)
    assert best[2] == ("", (), 0.0)
    columns = {"of": values, "side": two, "of & side": np.char.add(np.char.add(values, " & "), two)}
    for j in range(7):
        tried = [
            f1_score(np.isin(column, some), codes[:, j] != 0, zero_division=0.0)
            for column in columns.values()
            for n in range(1, len(set(column)) + 1)
            for some in itertools.combinations(sorted(set(column)), n)
        ]
        assert best[j].f1 == pytest.approx(max(tried))
    assert f1_of(codes, {"of": values, "side": two}, best) == pytest.approx([each.f1 for each in best])
    with pytest.raises(ShapeError, match="Got 3"):
        attribute_f1(codes, ["u"] * 3)


# prompts


def written_by(text, split):
    """Whether a template of the split gives the text."""
    openings, actions = (
        [t for i, t in enumerate(of) if (i % 5 == 4) == (split == "heldout")]
        for of in (families.IOI_OPENINGS, families.IOI_ACTIONS)
    )
    for opening, action in itertools.product(openings, actions):
        parts = re.split(r"{\w+}", opening + action.replace(" {io}.", ""))
        if re.fullmatch("[A-Za-z]+".join(map(re.escape, parts)), text):
            return True
    return False


def mixed(text, io, giver):
    """The first mention of each with the other's name."""
    first, second = sorted((io, giver), key=text.index)
    return text.replace(first, "*", 1).replace(second, first, 1).replace("*", second)


def test_twins_differ_in_one_attribute_and_splits_share_no_template_or_name(subject, prompts):
    used = []
    for split, each in zip(("train", "heldout"), prompts, strict=True):
        names = set(lexicon.names(split))
        for i, text in enumerate(each.prompts[:48]):
            io, giver = each.right[i][1:], each.wrong[i][1:]
            assert {io, giver} <= names
            assert (text.count(io), text.count(giver)) == (1, 2)
            assert (text.index(io) < text.index(giver)) == (each.attributes["Pos"][i] == "IO first")
            assert mixed(each.twins["Pos"][i], io, giver) == text
            assert sorted(each.twins["Pos"][i]) == sorted(text)
            other = each.twins["IO"][i]
            assert other.count(giver) == 2
            assert io not in other
            assert each.twins["S"][i].count(io) == 1
            assert giver not in each.twins["S"][i]
            for key, name in (("IO", io), ("S", giver)):
                assert name.startswith(each.attributes[key][i])
                assert each.attributes[key][i] != each.changed[key][i]
        used.append({name for side in (each.right, each.wrong) for name in side})
        other = "train" if split == "heldout" else "heldout"
        assert all(not written_by(text, other) for text in each.prompts)
        assert all(written_by(text, split) for text in each.prompts)
    assert not used[0] & used[1]
    with pytest.raises(CorpusError, match="at least four of them"):
        attributed_prompts(lambda text, bos=True: [1])


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"right": [" Anna"]}, CorpusError, "Got 1 for right"),
        ({"twins": {}}, CorpusError, "Give all three"),
        ({"changed": lambda p: p.attributes}, CorpusError, "another value"),
        ({"wrong": lambda p: p.right}, CorpusError, "must differ"),
        ({"prompts": lambda p: ["and " * 300, *p.prompts[1:]]}, CorpusError, "context of 256"),
    ],
)
def test_prompts_that_are_no_task_are_refused(subject, prompts, change, error, said):
    wrong = {key: value(prompts[1]) if callable(value) else value for key, value in change.items()}
    with pytest.raises(error, match=said):
        attribute_task(subject, prompts[1]._replace(**wrong))


def test_other_things_than_prompts_and_models_are_refused(subject, prompts):
    with pytest.raises(ConfigError, match="must be AttributedPrompts"):
        attribute_task(subject, ["a text"])
    with pytest.raises(SubjectError, match="lacks"):
        attribute_task(saelab.TorchModule(torch.nn.Linear(2, 2), prepare=lambda raw: raw), prompts[1])


# the model


def test_what_is_read_and_written_is_what_hooks_of_torch_see(subject, tasks):
    task = tasks[1]
    layer = subject.model.transformer.h[1].attn.c_proj
    rows = read_at(subject, task.prompts, [HERE])[HERE]
    new = rows + 3 * normal(*rows.shape)
    given, of = answers(subject, task, {HERE: new}), answers(subject, task)
    own = slice(6 * 16, 7 * 16)
    assert np.abs(given.score - of.score).mean() > 0.5
    for i, ids in enumerate(task.prompts[:8]):
        seen = []

        def hook(module, inputs, i=i, seen=seen):
            seen.append(inputs[0][0, -1, own].clone())
            moved = inputs[0].clone()
            moved[0, -1, own] = new[i]
            return (moved,)

        handle = layer.register_forward_pre_hook(hook)
        with torch.no_grad():
            logits = subject.model(torch.tensor([ids])).logits[0, -1]
        handle.remove()
        torch.testing.assert_close(rows[i], seen[0], atol=1e-4, rtol=1e-4)
        assert given.score[i] == pytest.approx(float(logits[task.right[i]] - logits[task.wrong[i]]), abs=1e-3)
        assert given.top[i] == int(logits.argmax())


def test_a_supervised_dictionary_does_what_random_directions_and_untrained_saes_do_not(subject, tasks):
    found = against_supervised(subject, *tasks, HERE, {"a": blank(16)}, k=[2])
    assert found.counted == ("S",)
    told, random, untrained = (
        found.of(name) for name in ("supervised, mse", "random directions", "a, untrained")
    )
    assert found.sufficiency("supervised, mse").value > 0.8
    assert found.necessity("supervised, mse").value > 0.8
    assert found.sufficiency("random directions").interval[1] < 0.3
    no_edit = found.accuracy("no edit", "S", "agnostic", 2)
    assert told.edit("S", "supervised", 1).agrees.mean() > no_edit.value + 0.15
    assert random.edit("S", "supervised", 1).agrees.mean() <= no_edit.value + 0.1
    assert untrained.edit("S", "agnostic", 2).latents.max() <= 2
    beside = found.beside("a", "a, untrained", "no edit", "random directions")
    assert set(beside) == {"sufficiency", "necessity", "S edit, agnostic, k=2", "S edit, aware, k=2"}
    assert [c.what for c in beside["S edit, agnostic, k=2"].also] == ["no edit", "random directions"]
    assert [c.what for c in beside["sufficiency"].also] == ["random directions"]
    frame = found.to_frame()
    assert set(frame.query("measure == 'edit'")["attribute"]) == {"S"}
    assert "IO 1.000 (does not count)" in str(found)
    assert set(found.f1["dictionary"]) == {"a", "a, untrained"}
    assert found.f1_beside("a", "S", "a, untrained").n == len(
        found.f1.query("dictionary == 'a' and attribute == 'S'")
    )


def test_several_locations_are_written_together(subject, tasks):
    other = Location("blocks.3.attn.hook_z", -1, 2)
    both = [HERE, other]
    found = against_supervised(subject, *tasks, both, {"a": {HERE: blank(16), other: blank(16)}}, k=[1])
    alone = against_supervised(subject, *tasks, HERE, {}, k=[1])
    assert abs(found.ablated.mean() - alone.ablated.mean()) > 0.1
    rows = read_at(subject, tasks[0].prompts, both)
    means = {at: rows[at].mean(0).expand(len(tasks[1].prompts), -1) for at in both}
    np.testing.assert_allclose(found.ablated, answers(subject, tasks[1], means).score, atol=1e-5)
    assert found.of("a").edit("S", "agnostic", 1).latents.max() == 1


def stood(rebuilt, removed):
    return Stood("SAE", np.asarray(rebuilt), np.asarray(removed), 0.1, 1.0, ())


def test_too_much_counts_as_little_as_too_little():
    clean, ablated = np.full(50, 10.0), np.full(50, 2.0)
    arms = {"more": stood(clean + 2.4, ablated - 1.6), "less": stood(clean - 2.4, ablated + 1.6)}
    found = AgainstSupervised((HERE,), clean, ablated, {}, arms, None)
    for name in arms:
        assert found.sufficiency(name).value == pytest.approx(0.7)
        assert found.necessity(name).value == pytest.approx(0.8)
    with pytest.raises(ConfigError, match="Did you mean 'more'"):
        found.sufficiency("mor")


def test_places_saes_and_tasks_that_do_not_fit_are_refused(subject, tasks):
    train, test = tasks
    for at, error, said in (
        (Location(HERE.hook, 99, 6), CorpusError, "Got 99"),
        (Location(HERE.hook, -1, 8), HookError, "one of 8"),
        (Location(RESID, -1, 0), HookError, "one of 0"),
        (Location("blocks.0.attn.hook_z", 0), ConfigError, "carry 3%"),
        ("blocks.9.hook_z", HookError, "hook"),
        ([], ConfigError, "none"),
        ([HERE, HERE], ConfigError, "each once"),
        (3, ConfigError, "Got 3"),
    ):
        with pytest.raises(error, match=said):
            against_supervised(subject, train, test, at, {})
    for saes, error, said in (
        ({"a": blank(128)}, ShapeError, "Got 128"),
        ({"a": {}}, ConfigError, "for each location"),
        ({"a": 3}, ConfigError, "for each location"),
        ({"a": {HERE: 3}}, ConfigError, "of one place"),
    ):
        with pytest.raises(error, match=said):
            against_supervised(subject, train, test, HERE, saes)
    with pytest.raises(ConfigError, match="k must be"):
        against_supervised(subject, train, test, HERE, {}, k=[0])
    with pytest.raises(ConfigError, match="must be an AttributeTask"):
        against_supervised(subject, train, ["a"], HERE, {})
    undone = replace(test, score=-test.score)
    with pytest.raises(ConfigError, match="must do the task"):
        against_supervised(subject, train, undone, HERE, {})
    alone = replace(train, attributes=train.attributes | {"Pos": np.full(400, "IO first")})
    with pytest.raises(ConfigError, match="alone of 'Pos'"):
        against_supervised(subject, alone, test, HERE, {})
    unknown = replace(test, attributes=test.attributes | {"S": np.full(48, "Zzz")})
    with pytest.raises(ConfigError, match="'Zzz'"):
        against_supervised(subject, train, unknown, HERE, {})


# the suite


def test_the_suite_stands_beside_its_controls_and_leaves_out_what_says_nothing(subject):
    sae = blank(128, RESID, 64, 8)
    suite = registered()["principled"](n_train=300, n_test=32, k=(2,))
    report = saelab.evaluate(sae, subject, corpora.world(seed=1, n_documents=2), suites=(suite,), max_rows=60)
    assert "principled" not in report.left_out, report.left_out
    claim = report.claims["principled: sufficiency"]
    assert claim.what == "untrained SAE"
    assert [c.what for c in claim.also] == ["random directions"]
    assert report.claims["principled: supervised dictionary: sufficiency"].apart
    assert {"principled: F1 of S", "principled: F1 of IO"} <= set(report.claims)
    assert "says nothing" in report.left_out["principled: Pos edit"]
    assert "principled: IO edit, agnostic, k=2" not in report.claims


# toys


def test_the_larger_attribute_hides_the_smaller_one_the_more_the_larger_it_is():
    found = occlusion((0.1, 0.4, 0.6, 1.0), n_values=8, seeds=2, steps=300)
    mean = found.groupby("ratio").mean()
    assert (np.diff(mean["small"]) > 0).all()
    assert mean["small"].iloc[0] < 0.3
    assert mean["small"].iloc[-1] > 0.7
    assert (mean["large"] > 0.6).all()
    assert (mean["shuffled"] < 0.3).all()
    for ratios in ((0,), ("a",), (np.inf,)):
        with pytest.raises(ConfigError, match="A ratio must be"):
            occlusion(ratios)


def test_an_attribute_of_two_values_takes_more_latents_the_more_there_are():
    found = over_splitting((4, 16, 64), seeds=2, steps=200).groupby("width").mean()
    assert (np.diff(found["specific"]) > 0).all()
    assert found["specific"].loc[64] >= 10
    assert (np.diff(found["best"]) < 0).all()
    assert (found["supervised"] > 0.97).all()
    assert (found["shuffled"] == 0).all()
    # without noise two latents are all it takes
    assert over_splitting((16,), spread=0, seeds=1, steps=100)["specific"].item() == 2
    with pytest.raises(ConfigError, match="A width must be"):
        over_splitting((0,))
    with pytest.raises(ConfigError, match="spread must be"):
        over_splitting((4,), spread=-1)
