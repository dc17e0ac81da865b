"""Steering, clamping, swapping, erasing and where they act, against plain references and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import subjects_zoo as zoo
import torch
from test_sae_edits import MID, MLP_IN, MLP_OUT, rows, sae_of
from torch import Tensor

import saelab
from saelab.interventions import (
    Ablate,
    AddDirection,
    Clamp,
    Each,
    Erase,
    Scale,
    Steer,
    Substitute,
    Swap,
    latent_means,
    load,
    mean_difference,
    probe_direction,
    save,
)
from saelab.sae import SAE
from saelab.types import ConfigError, Context, HookError, HookPoint, Inputs, RangeError, ShapeError

RECIPES = ["topk", "relu", "abs_topk", "jumprelu", "batchtopk", "gated", "matching_pursuit"]


def at(hook: str = MID, **options) -> Context:
    return Context(HookPoint(hook), **options)


@pytest.mark.parametrize("recipe", ["topk", "relu", "abs_topk", "jumprelu", "batchtopk", "gated", "gba",
                                    "feature_choice", "group_max", "batch_abs_topk"])  # fmt: skip
def test_the_codes_of_some_latents_are_columns_of_all(recipe):
    options = {} if recipe in ("relu", "jumprelu", "gated", "gba") else {"k": 6}
    sae = SAE.create(saelab.recipe(recipe, d_in=32, d_sae=48, hook=MID, **options), seed=3).eval()
    with torch.no_grad():
        sae.b_enc += torch.randn(48, generator=torch.Generator().manual_seed(0)) * 0.2
        for name, buffer in sae.sparsifier.state_dict().items():
            if name in ("threshold", "bias"):  # thresholds that training would have moved
                buffer += -0.2 if name == "bias" else 0.3
    x, latents = rows(), [7, 0, 31, 2]
    full = sae.encode(x)[:, latents]
    assert (full != 0).any()
    assert (full == 0).any()
    torch.testing.assert_close(sae.encode_some(x, latents), full)
    with pytest.raises(RangeError, match=r"0\.\.47\. Got 48"):
        sae.encode_some(x, [48])


def by_hand(sae: SAE, x: Tensor, change) -> Tensor:
    """x + decode(z') - decode(z)"""
    z = sae.encode(x)
    return x + sae.decode(change(z.clone()), sae.scale(x)) - sae.decode(z, sae.scale(x))


def put(z: Tensor, latents, value) -> Tensor:
    z[:, latents] = value
    return z


def swapped(z: Tensor) -> Tensor:
    z[:, 4] += z[:, 1]
    z[:, 1] = 0
    return z


@pytest.mark.parametrize("normalise", ["scalar", "layernorm"])
@pytest.mark.parametrize("recipe", RECIPES)
@torch.no_grad()
def test_edits_of_codes_add_the_difference_of_two_decodings(recipe, normalise):
    sae = sae_of(recipe, normalise=normalise) if recipe != "gated" else gated_sae(normalise)
    x = rows()
    for edit, change in (
        (Clamp(sae, 3, -2.5), lambda z: put(z, 3, -2.5)),
        (Ablate(sae, [1, 5]), lambda z: put(z, [1, 5], 0)),
        (Ablate(sae, [5, 1], "mean", [0.5, -1]), lambda z: put(z, [5, 1], torch.tensor([0.5, -1]))),
        (Swap(sae, 1, 4), swapped),
        (Erase(sae, [1, 4], -3, "constant"), lambda z: put(z, [1, 4], z[:, [1, 4]] * -3)),
        (Steer(sae, 7, 1.75), lambda z: put(z, 7, z[:, 7] + 1.75)),
        (Steer(sae, 7, 0.5, "max", peak=3.5), lambda z: put(z, 7, z[:, 7] + 1.75)),
    ):
        found = edit(x[None].clone(), at())[0]
        torch.testing.assert_close(found, by_hand(sae, x, change), atol=2e-5, rtol=1e-5)


def gated_sae(normalise: str) -> SAE:
    config = saelab.recipe("gated", d_in=32, d_sae=48, hook=MID, normalise=normalise)
    return SAE.create(config, seed=3).eval()


def test_what_steering_adds_is_the_direction_and_nothing_elsewhere(gpt2):
    sae, inputs = sae_of(), gpt2.prepare(zoo.TEXTS)
    counted = torch.from_numpy(inputs.counted)
    plain = gpt2.run(inputs, read=MID).acts[MID]
    direction = (sae.W_dec[5] * sae.out_scale).detach()
    for edit, size in (
        (Steer(sae, 5, -2.0), -2.0),
        (Steer(sae, 5, 0.25, "max", peak=8), 2.0),
        (Steer(sae, 5, 0.5, "norm"), 0.5 * plain.norm(dim=-1, keepdim=True) / direction.norm()),
    ):
        delta = gpt2.run(inputs, read=MID, edits=edit).acts[MID] - plain
        expected = (torch.as_tensor(size) * direction).expand_as(plain)
        torch.testing.assert_close(delta[counted], expected[counted], atol=1e-6, rtol=1e-5)
        assert not delta[~counted].any()


@torch.no_grad()
def test_steering_and_erasing_by_a_gate():
    sae, x = sae_of("abs_topk"), rows(60).reshape(6, 10, 32)
    z = sae.encode(x)[..., 3].abs()
    threshold = float(z[z > 0].median())
    where = {"token": z > threshold, "input": (z.amax(1) > threshold)[:, None].expand(6, 10)}
    for gate, open_ in where.items():
        assert 0 < int(open_.sum()) < open_.numel()
        found = Steer(sae, 3, 2.0, gate=gate, threshold=threshold)(x.clone(), at())
        step = 2.0 * sae.W_dec[3] * sae.out_scale
        torch.testing.assert_close(found, torch.where(open_[..., None], x + step, x))
        assert torch.equal(found[~open_], x[~open_])

    latents = [3, 8]
    part = sae.encode(x)[..., latents] @ sae.W_dec[latents] * sae.out_scale
    size = part.norm(dim=-1)
    threshold = float(size.mean(1).median())
    edit = Erase(sae, latents, -1.0, threshold=threshold)
    torch.testing.assert_close(edit.signal(x.reshape(-1, 32)).reshape(6, 10), size)
    flagged = size.mean(1) > threshold
    found = edit(x.clone(), at())
    assert 0 < int(flagged.sum()) < 6
    assert torch.equal(found[~flagged], x[~flagged])
    torch.testing.assert_close(found[flagged], (x - 2 * part)[flagged], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_flagged_positions_become_the_natural_activation_nearest_to_what_is_left():
    sae, x, natural = sae_of(), rows(30).reshape(3, 10, 32), rows(25)
    latents = [0, 1, 2, 3]
    part = sae.encode(x)[..., latents] @ sae.W_dec[latents] * sae.out_scale
    threshold = float(part.norm(dim=-1).median())
    found = Substitute(sae, latents, natural, threshold=threshold)(x.clone(), at())
    for s in range(3):
        for p in range(10):
            expected = x[s, p]
            if part[s, p].norm() > threshold:
                expected = natural[(natural - (x[s, p] - part[s, p])).norm(dim=-1).argmin()]
            assert torch.equal(found[s, p], expected)


@torch.no_grad()
@pytest.mark.parametrize("make", [
    lambda sae: Scale(sae, [0, 1, 2], -2, "input", 0.4),
    lambda sae: Steer(sae, 1, 1.0, gate="input", threshold=0.4),
    lambda sae: Each([[], Erase(sae, [0, 1], 0, threshold=1.2),
                      Steer(sae, 2, 1.0, gate="input", threshold=0.4)]),
    lambda sae: Erase(sae, range(8), -1.0, threshold=2.3, probe=torch.linspace(-0.3, 0.3, 33)),
])  # fmt: skip
def test_an_input_that_is_still_being_written_opens_a_gate_alike_with_a_cache_and_without(make):
    """The prompt is one block; later positions open it for themselves and what comes after."""
    sae, x, prompt = sae_of("abs_topk"), rows(60).reshape(3, 20, 32), 5
    given = np.broadcast_to(np.arange(20) < prompt, (3, 20))
    edit = make(sae)
    whole = edit(x.clone(), at(inputs=Inputs({}, given=given)))
    past: dict = {}
    parts = [edit(x[:, :prompt].clone(), at(inputs=Inputs({}, given=given[:, :prompt]), past=past))]
    for p in range(prompt, 20):
        step = Inputs({}, positions=np.full((3, 1), p), given=given[:, p : p + 1])
        parts.append(edit(x[:, p : p + 1].clone(), at(inputs=step, past=past)))
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert torch.equal(torch.cat(parts, 1) != x, whole != x)
    changed = (whole != x).any(-1)
    assert changed.any()
    # the plain rule, for the edits of every sample
    if isinstance(edit, Steer):
        size = sae.encode(x)[..., 1].abs()
        reached = size.cummax(1).values.clone()
        reached[:, :prompt] = size[:, :prompt].amax(1, keepdim=True)
        assert torch.equal(changed, reached > 0.4)
        assert not torch.equal(changed, size > 0.4)
    elif isinstance(edit, Erase):
        probe = torch.linspace(-0.3, 0.3, 33)
        size = x @ probe[:-1] + probe[-1]
        mean = size.cumsum(1) / torch.arange(1, 21)
        mean[:, :prompt] = mean[:, prompt - 1 : prompt]
        flagged = mean.cummax(1).values > 2.3
        fires = (sae.encode(x)[..., :8] != 0).any(-1)
        assert torch.equal(changed, flagged & fires)
        # an input that was flagged stays so, though the mean has fallen since
        assert (changed & (mean < 2.3)).any()
        assert (fires & ~changed).any()


# --- where


def test_an_edit_may_be_kept_to_positions_tokens_and_masks(gpt2):
    inputs = gpt2.prepare(zoo.TEXTS)
    ids, lengths = inputs.data["input_ids"], torch.as_tensor(inputs.lengths)
    column = torch.arange(ids.shape[1])
    real = column < lengths[:, None]
    vector = torch.ones(32)
    plain = gpt2.run(inputs, read=MID).acts[MID]
    token = int(ids[0, 2])
    mask = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    special = torch.isin(ids, torch.tensor(sorted(gpt2.special_ids)))
    cases = [
        ({"positions": [0, 3]}, (column == 0) | (column == 3)),
        ({"positions": [-1]}, column == lengths[:, None] - 1),
        ({"tokens": [token]}, ids == token),
        ({"mask": mask}, mask),
        ({"mask": mask[0]}, mask[0].expand_as(mask)),
        ({"mask": mask, "positions": [1, 2, 3]}, mask & (column >= 1) & (column <= 3)),
    ]
    if inputs.special is not None:
        cases.append(({"special": True}, special))
    for said, expected in cases:
        edit = AddDirection(MID, vector).where(**said)
        found = gpt2.run(inputs, read=MID, edits=edit).acts[MID]
        changed = (found != plain).any(-1)
        assert torch.equal(changed, expected & real), said
        torch.testing.assert_close(found[changed], plain[changed] + 1)
        (again,) = load(edit.to_dict())
        assert torch.equal(gpt2.run(inputs, read=MID, edits=again).acts[MID], found)
    assert changed.any()


def test_a_gate_looks_where_an_edit_may_not_write():
    sae, x = sae_of("relu"), rows(20).reshape(2, 10, 32)
    z = sae.encode(x)[..., 0]
    threshold = float(z.amax(1).min()) - 1e-4
    strongest = int(z[0].argmax())
    other = (strongest + 1) % 10
    found = Steer(sae, 0, 1.0, gate="input", threshold=threshold).where(positions=[other])(x.clone(), at())
    changed = (found != x).any(-1)
    assert torch.equal(changed, (torch.arange(10) == other).expand(2, 10))


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ({}, ConfigError, "must say which"),
        ({"positions": 3}, ConfigError, "a list of integers"),
        ({"positions": []}, ConfigError, "a list of integers"),
        ({"tokens": [1.5]}, ConfigError, "a list of integers"),
        ({"mask": torch.ones(2, 3)}, ConfigError, "must be bool"),
        ({"special": 1}, ConfigError, "special"),
    ],
)
def test_where_refuses_nonsense(said, error, words):
    with pytest.raises(error, match=words):
        AddDirection(MID, torch.ones(32)).where(**said)


def test_masks_and_marks_of_other_inputs_are_refused(gpt2):
    inputs = gpt2.prepare(zoo.TEXTS)
    edit = AddDirection(MID, torch.ones(32))
    with pytest.raises(ShapeError, match="Make it for this batch"):
        gpt2.run(inputs, edits=edit.where(mask=torch.ones(3, 2, dtype=torch.bool)))
    cnn = zoo.cnn_subject()
    with pytest.raises(HookError, match="needs inputs that say it"):
        cnn.run(cnn.prepare(zoo.images(2)), edits=AddDirection("1.0", torch.ones(8)).where(tokens=[1]))


# --- each sample its own, other SAEs, directions


def test_each_sample_may_have_its_own_edits(gpt2):
    inputs = gpt2.prepare([zoo.TEXTS[0]] * 3)
    one = gpt2.prepare([zoo.TEXTS[0]])
    sae = sae_of()
    lists = [[], [Steer(sae, 5, 3.0)], [Scale(sae, range(20), 0), AddDirection(MID, torch.ones(32))]]
    run = gpt2.run(inputs, read=MID, edits=Each(lists))
    for i, edits in enumerate(lists):
        alone = gpt2.run(one, read=MID, edits=edits)
        torch.testing.assert_close(run.acts[MID][i], alone.acts[MID][0], atol=1e-5, rtol=1e-5)
    with pytest.raises(ShapeError, match="3 for a batch of 1"):
        gpt2.run(one, edits=Each(lists))
    for wrong in ([], [[]], 3, ["x"], [[3]]):
        with pytest.raises(ConfigError, match="for each sample"):
            Each(wrong)


def test_crosscoders_steer_at_each_of_their_hook_points(gpt2):
    hooks = "blocks.0.hook_resid_post", MID
    config = saelab.recipe("crosscoder", d_in=64, d_sae=48, widths=(32, 32), hooks=hooks)
    sae = SAE.create(config, seed=1)
    inputs = gpt2.prepare(zoo.TEXTS)
    edit = Steer(sae, 9, 4.0)
    assert [str(hook) for hook in edit.hooks] == list(hooks)
    counted = torch.from_numpy(inputs.counted)
    early = gpt2.run(inputs, read=hooks[0]).acts[hooks[0]]
    run = gpt2.run(inputs, read=hooks, edits=edit)
    first, second = (sae.W_dec[9] * sae.out_scale).detach().split([32, 32])
    torch.testing.assert_close(
        (run.acts[hooks[0]] - early)[counted], (4 * first).expand(int(counted.sum()), 32)
    )
    halfway = gpt2.run(
        inputs, read=MID, edits=(hooks[0], lambda a: torch.where(counted[..., None], a + 4 * first, a))
    )
    delta = (run.acts[MID] - halfway.acts[MID])[counted]
    torch.testing.assert_close(delta, (4 * second).expand_as(delta), atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match="gate='constant' alone"):
        Steer(sae, 9, 1.0, gate="token", threshold=0.1)
    with pytest.raises(ConfigError, match="Leave hook out"):
        Steer(sae, 9, 1.0, hook=MID)


def test_transcoders_steer_at_their_target(gpt2):
    sae = sae_of("transcoder", MLP_IN, d_out=32, hook_out=MLP_OUT)
    inputs = gpt2.prepare(zoo.TEXTS)
    counted = torch.from_numpy(inputs.counted)
    plain = gpt2.run(inputs, read=MLP_OUT).acts[MLP_OUT]
    edit = Steer(sae, 2, 3.0)
    assert [str(hook) for hook in edit.hooks] == [MLP_OUT]
    delta = gpt2.run(inputs, read=MLP_OUT, edits=edit).acts[MLP_OUT] - plain
    expected = (3 * sae.W_dec[2] * sae.out_scale).detach().expand_as(plain)
    torch.testing.assert_close(delta[counted], expected[counted])
    gated = Steer(sae, 2, 3.0, gate="token", threshold=0.0)
    assert [str(hook) for hook in gated.hooks] == [MLP_IN, MLP_OUT]
    x = gpt2.run(inputs, read=MLP_IN).acts[MLP_IN]
    fires = (sae.encode(x)[..., 2] > 0) & counted
    changed = (gpt2.run(inputs, read=MLP_OUT, edits=gated).acts[MLP_OUT] != plain).any(-1)
    assert torch.equal(changed, fires)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda sae: Steer(sae, 48, 1.0), RangeError, r"0\.\.47\. Got 48"),
        (lambda sae: Steer(sae, 1, float("nan")), ConfigError, "finite"),
        (lambda sae: Steer(sae, 1, float("inf")), ConfigError, "finite"),
        (lambda sae: Steer(sae, 1, 1.0, "mox"), ConfigError, "Did you mean 'max'"),
        (lambda sae: Steer(sae, 1, 1.0, "max"), ConfigError, "A peak"),
        (lambda sae: Steer(sae, 1, 1.0, peak=2.0), ConfigError, "A peak"),
        (lambda sae: Steer(sae, 1, 1.0, gate="tokens", threshold=1), ConfigError, "Did you mean 'token'"),
        (lambda sae: Steer(sae, 1, 1.0, gate="input"), ConfigError, "needs a threshold"),
        (lambda sae: Erase(sae, [1]), ConfigError, "needs a threshold"),
        (lambda sae: Erase(sae, [], threshold=1), ConfigError, "at least one"),
        (lambda sae: Erase(sae, [1], threshold=1, probe=torch.ones(32)), ShapeError, "33 finite"),
        (lambda sae: Erase(sae, [1], threshold=1, probe=torch.full((33,), torch.nan)), ShapeError, "finite"),
        (lambda sae: Clamp(sae, 1, None), ConfigError, "finite"),
        (lambda sae: Clamp(sae, True, 1), RangeError, "an integer"),
        (lambda sae: Ablate(sae, [1], "mean"), ConfigError, "needs 1 means"),
        (lambda sae: Ablate(sae, [1], "zero", [1.0]), ConfigError, "needs 0 means"),
        (lambda sae: Ablate(sae, [1], "median"), ConfigError, "'zero', 'mean'"),
        (lambda sae: Swap(sae, 1, 1), ConfigError, "for another"),
        (lambda sae: Substitute(sae, [1], torch.ones(3, 31), threshold=1), ShapeError, r"rows \[n, 32\]"),
        (lambda sae: AddDirection(MID, torch.ones(2, 32)), ShapeError, r"\[width\]"),
        (lambda sae: AddDirection(MID, torch.ones(32), "x"), ConfigError, "finite"),
    ],
)  # fmt: skip
def test_edits_refuse_nonsense(make, error, words):
    with pytest.raises(error, match=words):
        make(sae_of())


def test_a_dead_latent_is_allowed_with_a_warning():
    with pytest.warns(UserWarning, match="dead"):
        Steer(sae_of(), 1, 1.0, "max", peak=0.0)


def test_a_direction_of_another_width_or_model_is_refused(gpt2):
    inputs = gpt2.prepare(["a b"])
    with pytest.raises(ShapeError, match="width of the activations at"):
        gpt2.run(inputs, edits=AddDirection(MID, torch.ones(31)))
    wide = SAE.create(saelab.recipe("topk", d_in=64, d_sae=80, k=4, hook=MID))
    for edit in (Steer(wide, 1, 1.0), Clamp(wide, 1, 1.0)):
        with pytest.raises(ShapeError, match=r"32|d_in=64"):
            gpt2.run(inputs, edits=edit)


def test_files_hold_every_edit_and_refuse_another_sae(tmp_path, gpt2):
    sae = sae_of()
    edits = [Each([Steer(sae, 1, 2.0, "norm"), [Erase(sae, [2], threshold=0.2).where(positions=[1])]]),
             Substitute(sae, [1], rows(5), threshold=0.1)]  # fmt: skip
    path = save(edits, tmp_path / "edits.json", gpt2)
    inputs = gpt2.prepare([zoo.TEXTS[0]] * 2)
    again = load(path, [sae], gpt2)
    assert torch.equal(gpt2.run(inputs, edits=again).output, gpt2.run(inputs, edits=edits).output)
    with pytest.raises(ConfigError, match="must be the SAE that the edit was made with"):
        load(path, [sae_of("relu")])


def test_version_1_of_scale_is_read():
    sae = sae_of()
    old = Scale(sae, [1], 0).to_dict() | {"version": 1, "gate": "constant", "threshold": 0.0}
    assert load(old, [sae])[0].threshold is None
    assert load(old | {"gate": "token", "threshold": 0.5}, [sae])[0].threshold == 0.5


def test_directions_tell_a_concept_from_the_rest():
    generator = torch.Generator().manual_seed(0)
    axis = torch.zeros(16)
    axis[3] = 2.0
    negative = torch.randn(400, 16, generator=generator) * torch.linspace(0.5, 3, 16)
    positive = torch.randn(300, 16, generator=generator) * torch.linspace(0.5, 3, 16) + axis
    difference = mean_difference(positive, negative)
    torch.testing.assert_close(difference, positive.mean(0) - negative.mean(0))
    probe = probe_direction(positive, negative)
    cosine = torch.cosine_similarity
    assert cosine(probe, axis, dim=0) > 0.95
    assert cosine(probe, axis, dim=0) > cosine(difference, axis, dim=0), "noise does not mislead it"
    torch.testing.assert_close(probe @ probe, probe @ difference)
    for function in (mean_difference, probe_direction):
        with pytest.raises(ConfigError, match="hold a row"):
            function(positive[:0], negative)
        with pytest.raises(ShapeError, match=r"\[n, width\]"):
            function(positive, negative[:, :3])


def test_means_are_over_all_rows_of_a_store():
    lab = saelab.Lab.embedded()
    means = latent_means(lab.store, [3, 8])
    stats = [lab.store.latent(j) for j in (3, 8)]
    assert means == pytest.approx([each.mean * each.count / each.n_rows for each in stats])
