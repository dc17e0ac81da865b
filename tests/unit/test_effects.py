"""Effects of edits where they are known: closed forms, a planted concept, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import planted
import pytest
import torch
from planted import CONCEPT, LEVER

from saelab.analysis import (
    calibrate_gate,
    distinct_n,
    dose_response,
    effect,
    lexicon_count,
    repetition,
    select_latents,
    side_effects,
)
from saelab.analysis.steering.natural import Natural, shrunk_covariance
from saelab.interventions import AddDirection, Erase, Scale
from saelab.types import ConfigError, CorpusError, NonFiniteError, ShapeError

HOOK = "blocks.2.hook_resid_post"
TEXTS = [
    "The dog went to the market.",
    "Anna gave the book to Tom.",
    "A ship came over the sea.",
    "It rained.",
]


@pytest.fixture(scope="module")
def net():
    return planted.subject()


@pytest.fixture(scope="module")
def sae():
    return planted.sae()


def test_figures_of_texts():
    assert distinct_n("a b a b", 2) == pytest.approx(2 / 3)
    assert repetition("a b a b", 2) == pytest.approx(1 / 3)
    assert distinct_n("one, two", 1) == 1
    assert np.isnan(distinct_n("a", 2))
    assert lexicon_count("Get lost! you GET LOST, getlost", ["get lost", "you"]) == 3
    assert lexicon_count("classic", ["ass"]) == 0
    with pytest.raises(ConfigError, match="must hold words"):
        lexicon_count("a", [""])


def test_mahalanobis_distances_are_those_of_the_gaussian():
    """In 4 dimensions the mean distance is sqrt(2) Gamma(2.5) / Gamma(2) = 1.88."""
    rng = torch.Generator().manual_seed(0)
    mix = torch.randn(4, 4, generator=rng, dtype=torch.float64)
    mean = torch.tensor([1.0, -2.0, 0.0, 5.0], dtype=torch.float64)
    x = torch.randn(20_000, 4, generator=rng, dtype=torch.float64) @ mix + mean
    natural = Natural.fit(x[:15_000], x[15_000:])
    assert natural.mahalanobis_of_others == pytest.approx(1.880, rel=0.02)
    inverse = torch.linalg.inv(mix.T @ mix)
    point = torch.tensor([[3.0, 0.0, 1.0, 4.0]], dtype=torch.float64)
    d = (point - mean)[0]
    assert float(natural.mahalanobis(point)) == pytest.approx(float((d @ inverse @ d).sqrt()), rel=0.03)
    plain = (natural.rows - point.float()).norm(dim=1).min()
    assert float(natural.nearest(point)) == pytest.approx(float(plain), rel=1e-4)
    far = natural.ratios(mean + 50 * d[None])
    assert float(far["mahalanobis"]) > 20 < float(far["nearest"])


def test_the_covariance_is_shrunk_as_by_ledoit_and_wolf():
    covariance = pytest.importorskip("sklearn.covariance")
    x = np.random.default_rng(0).normal(size=(12, 20)) * np.linspace(1, 3, 20)
    np.testing.assert_allclose(
        shrunk_covariance(torch.from_numpy(x)), covariance.ledoit_wolf(x)[0], atol=1e-10
    )


def test_kl_and_loss_are_those_of_the_logits(subject):
    vector = torch.randn(128, generator=torch.Generator().manual_seed(1))
    push = AddDirection(HOOK, vector, 0.7)
    found = effect(subject, push, TEXTS[:3], clean=TEXTS[1:], controls=[], max_new_tokens=0)
    total = n = 0
    for text in TEXTS[:3]:
        inputs = subject.prepare([text])
        p, q = (subject.run(inputs, edits=e).output[0, 1:].double().log_softmax(-1) for e in ([], push))
        total, n = total + float((p.exp() * (p - q)).sum()), n + len(p)
    assert found.figure_of("kl").value == pytest.approx(total / n, rel=1e-4)
    loss, targets = subject.loss(subject.prepare(TEXTS[1:]), push)
    before, _ = subject.loss(subject.prepare(TEXTS[1:]))
    assert found.figure_of("clean loss").value == pytest.approx(loss.sum() / targets.sum(), rel=1e-5)
    ratio = np.exp((loss - before).sum() / targets.sum())
    assert found.figure_of("clean perplexity ratio").value == pytest.approx(ratio, rel=1e-5)
    low, high = found.figure_of("kl").interval
    assert low < total / n < high
    # a token's shift is that of its mean probability
    shift = found.tokens[0]
    (token,) = [i for i in range(subject.d_vocab) if subject.token_strings([i]) == [shift.token]][:1]
    means = [
        torch.cat(
            [subject.run(subject.prepare([t]), edits=e).output[0, 1:].softmax(-1) for t in TEXTS[:3]]
        ).mean(0)
        for e in ([], push)
    ]
    assert [shift.before, shift.after] == pytest.approx([float(m[token]) for m in means], rel=1e-3)
    assert shift.after - shift.before == pytest.approx(float((means[1] - means[0]).max()), rel=1e-3)


def test_no_edit_is_no_effect(subject):
    null = AddDirection(HOOK, torch.ones(128), 0.0)
    found = effect(subject, null, TEXTS, clean=TEXTS, max_new_tokens=4)
    for name in ("edit", "random direction", "no edit"):
        arm = found.arm(name)
        assert arm.figures["kl"].value == arm.figures["touched"].value == 0
        assert arm.figures["identical"].value == arm.figures["clean perplexity ratio"].value == 1
        assert np.isnan(arm.figures["norm"].value) if "norm" in arm.figures else True
    assert found.texts["edit"] == found.texts["no edit"] == found.texts["random direction"]


def test_controls_move_every_row_as_far_as_the_edit(net, sae):
    from saelab.analysis.steering.arms import Controls, normalise_edits
    from saelab.analysis.steering.selected import documents_of

    samples = planted.texts(12, True)
    documents = documents_of(samples, net.corpus)
    edit = Scale(sae, (CONCEPT,), 0.0)
    controls = Controls(net, ["random direction", "random latents", "mean difference"], 2,
                        (samples, planted.texts(12, False)), documents, 0, 4)  # fmt: skip
    found = controls.of([edit], documents)
    assert {name: len(draws) for name, draws in found.items()} == {
        "random direction": 2, "random latents": 2, "mean difference": 1,
    }  # fmt: skip
    inputs = net.prepare(samples)
    before = net.run(inputs, ["body"]).acts["body"]

    def moved(edits):
        return net.run(inputs, ["body"], edits).acts["body"] - before

    size = moved(normalise_edits([edit])).norm(dim=-1)
    assert (size > 0).sum() == 12
    for draws in found.values():
        for edits in draws:
            torch.testing.assert_close(moved(edits).norm(dim=-1), size, atol=1e-5, rtol=1e-5)
    # the mean difference is the concept's axis, taken away as the edit takes it
    along = moved(found["mean difference"][0]).amin((0, 1))
    assert int(along.argmin()) == CONCEPT
    assert float(along[CONCEPT]) < -1.5
    latents = moved(found["random latents"][0])
    axis = (latents.abs().amax((0, 1)) > 1e-6).nonzero().flatten().tolist()
    assert len(axis) == 1
    assert axis != [CONCEPT]
    assert float(latents[..., axis[0]].min()) == pytest.approx(-2, abs=1e-5)


def test_a_planted_effect_is_found_and_no_control_has_it(net, sae):
    """The latent that the output is made of, in a network without logits or loss."""
    samples, clean = planted.texts(30, True), planted.texts(30, False)
    found = effect(net, Scale(sae, (LEVER,), 0.0), samples, clean=clean, target=lambda output: output[:, 0])
    x = torch.stack(samples)
    codes = torch.where(x[..., LEVER] > 0.5, x[..., LEVER], 0)
    lost = float((codes * (1 + 0.0)).mean())
    fall = found.figure_of("target", "no edit").value - found.figure_of("target").value
    assert fall == pytest.approx(lost, rel=1e-4)
    random = found.figure_of("target", "no edit").value - found.figure_of("target", "random direction").value
    assert abs(random) < fall / 2
    assert found.beside()["target"].apart
    assert "kl" not in found.measures
    assert found.figure_of("touched").value == pytest.approx(float((codes != 0).float().mean()))
    assert found.left_out == {"continuations": "a TorchModule lacks generate"}
    assert found.figure_of("norm").value < 1
    assert "95 % of the edit: target" in str(found)
    with pytest.raises(ConfigError, match="Words are counted in texts"):
        effect(net, Scale(sae, (LEVER,), 0.0), samples, target=["a"])
    only = side_effects(net, Scale(sae, (LEVER,), 0.0), clean)
    assert all(name.startswith("clean") for name in only.measures)


def test_doses_share_their_baseline_and_lie_on_a_frontier(net, sae):
    samples, clean = planted.texts(20, True), planted.texts(20, False)
    how = {"target": lambda output: output[:, 0], "clean": clean, "draws": 2}
    found = dose_response(net, lambda a: Scale(sae, (LEVER,), 1 - a), [0.0, 0.5, 1.0], samples, **how)
    falls = [found.figure_of("target", alpha=alpha).value for alpha in (0.0, 0.5, 1.0)]
    assert falls[0] == found.figure_of("target", "no edit").value
    assert falls[0] - falls[1] == pytest.approx((falls[0] - falls[2]) / 2, rel=1e-4)
    alone = effect(net, Scale(sae, (LEVER,), 0.0), samples, **how)
    assert alone.arm().figures["target"] == found.arm("edit", 1.0).figures["target"]
    points = [(a.figures["clean output"].value, a.figures["target"].value, a) for a in found.arms]
    best = [
        arm for x, y, arm in points
        if not any((u <= x and v <= y and (u < x or v < y)) for u, v, _ in points)
    ]  # fmt: skip
    assert {(a.figures["clean output"].value, a.figures["target"].value) for a in found.frontier()} == {
        (a.figures["clean output"].value, a.figures["target"].value) for a in best
    }
    assert found.axes == ("target", "clean output")
    assert len(found.figure().data) == 1 + 4
    assert set(found.to_frame()["alpha"].dropna()) == {0.0, 0.5, 1.0}
    with pytest.raises(ConfigError, match="alphas must be different finite numbers"):
        dose_response(net, lambda a: [], [1, 1], samples)


def test_what_was_fitted_on_is_refused(net):
    own = planted.sae()
    yes, no = planted.texts(12, True), planted.texts(12, False)
    chosen = select_latents(own, yes, no, k=1, subject=net)
    edit = Erase(own, chosen.latents, gate="input", threshold=0.0)
    fitted, free = chosen.fit.positive, chosen.held_out.positive
    with pytest.raises(CorpusError, match=r"must not be what the latents or the gate .* Got 8 of 8"):
        effect(net, [edit], fitted)
    assert effect(net, [edit], fitted, allow_fitted=True, controls=[]).n_samples == 8
    assert effect(net, [edit], free, controls=[]).n_samples == 4
    with pytest.raises(CorpusError, match=r"Got 8 of 8"):  # within another edit too
        effect(net, edit.where(positions=[0]), fitted)
    # other latents of the same SAE were not fitted on anything
    other = dataclasses.replace(edit, latents=(CONCEPT + 1,))
    assert effect(net, [other], fitted, controls=[]).n_samples == 8
    more = planted.texts(16, True, seed=3), planted.texts(16, False, seed=3)
    gate = calibrate_gate(edit, more[1], more[0], subject=net)
    with pytest.raises(CorpusError, match="the latents or the gate"):
        effect(net, gate, more[0])
    held_out = effect(net, gate, gate.held_out[1], clean=gate.held_out[0], controls=[])
    assert held_out.figure_of("clean identical").value == 1
    assert held_out.figure_of("identical").value == 0


def test_words_are_counted_in_what_is_written(subject):
    prompts = [text[:12] for text in TEXTS]
    push = (HOOK, lambda acts: acts * 1.0)
    found = effect(subject, [push], prompts, target=["the"], max_new_tokens=8, controls=[])
    written = [subject.generate(p, max_new_tokens=8).removeprefix(p) for p in prompts]
    assert found.texts["edit"] == tuple(written)
    words = sum(round(len(text_words(text))) for text in written)
    hits = sum(lexicon_count(text, ["the"]) for text in written)
    assert found.figure_of("target").value == pytest.approx(hits / words)
    assert found.figure_of("words").value == pytest.approx(words / len(prompts))
    longest = effect(subject, [push], prompts, target=lambda texts: list(map(len, texts)), max_new_tokens=8)
    assert longest.figure_of("target").value == pytest.approx(np.mean(list(map(len, written))))
    with pytest.raises(ShapeError, match="one number for each of 4 texts"):
        effect(subject, [push], prompts, target=lambda texts: 1, max_new_tokens=1)
    with pytest.raises(NonFiniteError, match="The output under an edit"):
        effect(subject, (HOOK, lambda acts: acts * float("inf")), prompts, max_new_tokens=0, controls=[])
    with pytest.raises(ConfigError, match="Did you mean 'random direction'"):
        longest.arm("random directions")


def text_words(text):
    from saelab.analysis.steering.texts import words_of

    return words_of(text)


def test_an_interval_of_draws_holds_that_draws_differ():
    from saelab.analysis.steering.sheets import Sheet, figures

    def of(*values):
        return [Sheet(50, {"output": np.full(50, v), "samples": np.ones(50)}) for v in values]

    assert figures(of(1.0), 0)["output"].interval == (1, 1)
    low, high = figures(of(0.0, 1.0, 2.0), 0)["output"].interval
    assert low < 0.5 < 1.5 < high
