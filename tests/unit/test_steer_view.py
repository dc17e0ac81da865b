"""The steering view answers what the subject gives with the same edits."""

from __future__ import annotations

import json

import pytest
import torch

from saelab.analysis.steering.arms import AlongRandom
from saelab.analysis.steering.gate import calibrate_gate
from saelab.analysis.steering.session import FACTORS, Session
from saelab.analysis.steering.settings import Knob, Settings
from saelab.interventions import Clamp, Steer, load, save
from saelab.types import ConfigError, CorpusError, RangeError
from saelab.widgets import SteerView

PROMPT = "Tina gave the basket"


@pytest.fixture
def session(small_lab):
    return Session(small_lab.subject, small_lab.sae, small_lab.store)


@pytest.fixture(scope="module")
def fires(small_lab):
    """A latent that fires often, and its largest activation."""
    latent = int(small_lab.table.density.argmax())
    return latent, float(small_lab.store.latent(latent).max)


def made(latent, alpha=4.0, **more):
    return Settings(PROMPT, (Knob(latent, alpha),), tokens=12, **more)


def edit(small_lab, fires, alpha=4.0):
    return Steer(small_lab.sae, fires[0], alpha, "max", peak=fires[1])


def text(column):
    return PROMPT + "".join(column["tokens"])


def test_texts_are_those_of_generate(small_lab, session, fires):
    """Pulled piece by piece or whole, with the control beside them."""
    settings = made(fires[0]).json()
    told = session.begin(settings)
    assert [len(c["tokens"]) for c in told["columns"]] == [1, 1, 1]
    while not told["done"]:
        told = session.more(told["run"], 4)
    steer, subject = edit(small_lab, fires), small_lab.subject
    edits = ([], steer, AlongRandom([steer], subject))
    assert [text(c) for c in told["columns"]] == [subject.generate(PROMPT, e, 12) for e in edits]
    assert text(told["columns"][0]) != text(told["columns"][1])
    assert not any(told["columns"][0]["changed"])
    steered = told["columns"][1]
    assert any(steered["changed"])
    same = [t for t, new in zip(steered["tokens"], steered["changed"], strict=True) if not new]
    left = iter(told["columns"][0]["tokens"])
    assert all(token in left for token in same)  # each after the one before
    again = Session(subject, small_lab.sae, small_lab.store).written(settings)
    assert again["columns"] == told["columns"]


def test_an_older_run_is_stale(session, fires):
    first = session.begin(made(fires[0], 1.0).json())
    second = session.begin(made(fires[0], 2.0).json())
    assert session.more(first["run"]) == {"run": first["run"], "stale": True}
    session.stop(first["run"])
    assert "columns" in session.more(second["run"])
    session.stop(second["run"])
    assert session.more(second["run"])["stale"]
    assert session.kept == {}


def test_shifts_are_those_of_run(small_lab, session, fires):
    told = session.shifts(made(fires[0]).json())
    subject, hook = small_lab.subject, small_lab.sae.hook
    inputs = subject.prepare([PROMPT])
    runs = [subject.run(inputs, hook, e) for e in ((), edit(small_lab, fires))]
    before, after = (run.output[0, -1].double().softmax(-1) for run in runs)
    token = int((after - before).argmax())
    name, plain, steered, _ = told["rises"][0]
    assert name == subject.token_strings([token])[0]
    assert (plain, steered) == pytest.approx((float(before[token]), float(after[token])), rel=1e-4)
    kl = float((before * (before.log() - after.log())).sum())
    assert told["kl"][0] == pytest.approx(kl, rel=1e-3)
    x, y = (run.acts[str(hook)][0, 1:].norm(dim=-1) for run in runs)
    assert told["meter"][str(hook)][0]["norm"] == pytest.approx(float((y / x).mean()), rel=1e-4)
    assert (told["moved"], told["positions"]) == (len(x), len(x) + 1)


def test_the_control_moves_rows_as_far(small_lab, fires):
    subject, hook = small_lab.subject, small_lab.sae.hook
    two = [edit(small_lab, fires), Steer(small_lab.sae, fires[0], -1.0, gate="token", threshold=0.0)]
    inputs = subject.prepare([PROMPT])
    plain, own, control = (
        subject.run(inputs, hook, e).acts[str(hook)][0, 1:] for e in ((), two, AlongRandom(two, subject))
    )
    torch.testing.assert_close(
        (control - plain).norm(dim=-1), (own - plain).norm(dim=-1), rtol=1e-3, atol=1e-4
    )
    along = torch.nn.functional.normalize(control - plain, dim=-1)
    torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-2, atol=1e-3)


def test_doses_are_runs_of_their_own(small_lab, session, fires):
    told = session.dose(made(fires[0]).json())
    assert told["kl"]["steered"][0] == told["kl"]["random direction"][0] == 0
    subject = small_lab.subject
    inputs = subject.prepare([PROMPT])
    plain = subject.run(inputs).output[0, -1].double().log_softmax(-1)
    for factor, kl in zip(FACTORS, told["kl"]["steered"], strict=True):
        after = subject.run(inputs, (), edit(small_lab, fires, 4 * factor)).output[0, -1].double()
        want = float((plain.exp() * (plain - after.log_softmax(-1))).sum())
        assert kl == pytest.approx(want, rel=1e-3, abs=1e-6)
    ids = {name: i for i, name in enumerate(subject.token_strings(range(subject.d_vocab)))}
    chance = told["chance"]["steered"]
    assert chance[0] == pytest.approx(float(plain[ids[told["token"]]].exp()), rel=1e-4)
    assert chance[FACTORS.index(1.0)] > chance[0]


def test_gates_and_places(small_lab, session, fires):
    """A closed gate moves nothing; of the positions one is named."""
    closed = Settings(PROMPT, (Knob(fires[0], 4.0, threshold=1e9),), gate="token", tokens=12)
    told = session.shifts(closed.json())
    assert (told["moved"], told["kl"], told["rises"]) == (0, [0, 0], [])
    assert session.dose(closed.json())["factors"] == []
    columns = session.written(closed.json())["columns"]
    assert columns[0]["tokens"] == columns[1]["tokens"] == columns[2]["tokens"]
    assert session.shifts(made(fires[0], positions=(-1,)).json())["moved"] == 1
    assert session.shifts(made(fires[0], special=True).json())["moved"] == 1  # BOS


def test_what_is_sampled_differs_by_the_edit_alone(session, fires):
    """All columns draw alike: without an edit they are the same text."""
    columns = session.written(made(fires[0], 0.0, temperature=1.0, seed=3).json())["columns"]
    assert columns[0]["tokens"] == columns[1]["tokens"] == columns[2]["tokens"]
    other = session.written(made(fires[0], 0.0, temperature=1.0, seed=4).json())["columns"]
    assert other[0]["tokens"] != columns[0]["tokens"]


def test_a_gate_stands_on_its_curve(small_lab, session, fires):
    clean = [f"The dog ran to the park {i}." for i in range(12)]
    target = [f"Tina gave the basket to Tom {i}." for i in range(12)]
    assert session.curve(fires[0], "input") == {}
    session.gauges.calibrated_on(clean, target)
    told = session.curve(fires[0], "input")
    want = calibrate_gate(
        Steer(small_lab.sae, fires[0], 1.0, gate="input", threshold=0.0), clean, target,
        subject=small_lab.subject,
    )  # fmt: skip
    assert (told["chosen"], told["auroc"][0]) == (want.threshold, want.auroc)
    with pytest.raises(ConfigError, match="clean and on target"):
        session.gauges.calibrated_on(clean, [])
    view = small_lab.steer(PROMPT, {fires[0]: 4}, gate="token", clean=clean, target=target)
    assert f'curve?gate="token"&latent={fires[0]}' in view.opening


def test_the_meter_says_how_far_from_natural(session, fires):
    """A push of four times the largest activation is far; a small one is not."""
    (near, _), (far, control) = (
        next(iter(session.shifts(made(fires[0], alpha).json())["meter"].values())) for alpha in (0.01, 8.0)
    )
    for name in ("mahalanobis", "nearest"):
        assert 0.3 < near[name] < 3
        assert far[name] > 1.5 * near[name]
        assert control[name] > 1.5 * near[name]


def test_a_recipe_comes_back(small_lab, session, fires, tmp_path):
    knobs = (Knob(fires[0], 1.5, 0.25), Knob(3, -2.0, 0.5))
    whole = Settings(PROMPT, knobs, "norm", "token", (0, -1), True, 12, 0.5, 7)
    text = session.recipe(whole.json())
    assert session.load(text, whole.json()) == whole.json()
    (tmp_path / "recipe.json").write_text(text)
    assert len(load(tmp_path / "recipe.json", [small_lab.sae], small_lab.subject)) == 2
    path = save(Clamp(small_lab.sae, 3, 1.0), tmp_path / "clamp.json")
    with pytest.raises(ConfigError, match="Steer edits"):
        session.load(path.read_text(), whole.json())


def test_the_view(small_lab, fires, tmp_path):
    view = small_lab.steer(PROMPT, {fires[0]: 4}, max_new_tokens=12)
    assert isinstance(view, SteerView)
    kept = {f"{n}?settings={json.dumps(view.settings)}" for n in ("written", "shifts", "dose")}
    assert set(view.opening) == {f"knob?latent={fires[0]}", *kept}
    plain, steered = (small_lab.subject.generate(PROMPT, e, 12) for e in ((), edit(small_lab, fires)))
    assert plain[len(PROMPT) :] in repr(view)
    assert steered[len(PROMPT) :] in repr(view)
    assert "<mark>" in view.html()
    other = view.settings.replace('"alpha":4', '"alpha":2')
    view.session.written(other)
    assert view.answers()["kept"]().fields["settings"] == [view.settings, other]
    assert len(list(view.exported())) == 1 + 1 + 2 * 3
    with pytest.raises(RangeError):
        small_lab.steer(PROMPT, {10**6: 1})
    with pytest.raises(CorpusError, match="prompt"):
        small_lab.steer("", {})
    with pytest.raises(ConfigError, match="gate"):
        small_lab.steer(PROMPT, {fires[0]: 1}, gate="sometimes")
