"""What an erasing view is told is what the subject gives with the same edits, on samples kept apart."""

from __future__ import annotations

import json
import math
import re

import planted
import pytest
import torch

import saelab
from saelab.analysis import effect
from saelab.analysis.steering.erasing import CONTROL, Erasing
from saelab.analysis.steering.erasing_settings import Settings
from saelab.analysis.steering.known import key_of
from saelab.corpora.world_lexicon import TOPIC_WORDS
from saelab.interventions import Erase, Scale, Substitute, load, save
from saelab.types import ConfigError, CorpusError, RangeError, SaelabError

TOPICS = ("cooking", "law")


def holds(text, *topics):
    return any(re.search(rf"\b{word}\b", text) for topic in topics for word in TOPIC_WORDS[topic])


@pytest.fixture(scope="module")
def texts():
    """Topic -> sentences that hold it; "none": sentences with neither."""
    documents = saelab.corpora.world(seed=10, n_documents=1_500, families=["topic"])
    sentences = sorted({d.text.split(". ")[0].rstrip(".") + "." for d in documents})
    found = {topic: [t for t in sentences if holds(t, topic)][:24] for topic in TOPICS}
    return found | {"none": [t for t in sentences if not holds(t, *TOPICS)][::9][:24]}


@pytest.fixture(scope="module")
def session(small_lab, texts):
    made = Erasing(small_lab.subject, small_lab.sae, small_lab.store)
    made.add("cooking", texts["cooking"], texts["none"], target=TOPIC_WORDS["cooking"], k=3)
    # what one concept is about is what another is not about
    made.add("law", texts["law"], [*texts["none"], *texts["cooking"]], k=3)
    return made


def settings(session, mode="scale", tau=-4.0, gate="input", on=("cooking",), **more):
    data = json.loads(session.settings(mode, tau, gate, 10))
    for concept in data["concepts"]:
        concept["on"] = concept["name"] in on
    return Settings.parse(json.dumps({**data, **more})).json()


def edits(session, made, tmp_path):
    """Those that whoever loads the recipe gets."""
    path = tmp_path / "recipe.json"
    path.write_text(session.recipe(made))
    return load(path, [session.sae], session.subject)


def test_each_sample_plays_one_part(session):
    """For all concepts: what latents are chosen or gates calibrated on is never shown or measured on."""
    sides = [side for c in session.concepts.values() for side in (c.positive, c.negative)]
    parts = {p: {key_of(d) for side in sides for d in getattr(side, p)} for p in sides[0]._fields}
    assert not parts["choose"] & parts["calibrate"]
    assert not (parts["choose"] | parts["calibrate"]) & parts["measure"]
    assert [len(part) for part in sides[0]] == [12, 6, 6]
    assert all(concept.selected.fitted <= parts["choose"] for concept in session.concepts.values())
    curves = list(session._curves.values())
    assert len(curves) >= 2
    assert all(curve.fitted <= parts["calibrate"] for curve in curves)
    law = session.concepts["law"].negative
    cooking = session.concepts["cooking"].positive
    assert {key_of(d) for d in cooking.measure} < {key_of(d) for d in law.measure}


def test_texts_are_those_of_generate(session, tmp_path):
    """With the edits of the recipe, which are all of the concepts that are on; the control moves as far."""
    made = settings(session, sample=2)
    told = session.begin(made)
    while not told["done"]:
        told = session.more(told["run"], 3)
    assert [column["name"] for column in told["columns"]] == ["before", "after", CONTROL]
    (one,) = edits(session, made, tmp_path)
    assert isinstance(one, Erase)
    assert (one.tau, one.latents) == (-4, session.concepts["cooking"].selected.latents)
    prompt = session.concepts["cooking"].positive.measure[2].text
    for column, given in zip(told["columns"], ((), one), strict=False):
        assert prompt + "".join(column["tokens"]) == session.subject.generate(prompt, given, 10)
    both = edits(session, settings(session, on=TOPICS), tmp_path)
    assert [edit.latents for edit in both] == [c.selected.latents for c in session.concepts.values()]
    assert session.begin(made)["done"], "what was written before is there at once"
    control = session._control(Settings.parse(made), [one], session._document(2))[0]
    inputs, hook = session.subject.prepare([prompt]), session.sae.hook
    plain, own, other = (session.subject.run(inputs, hook, e).acts[str(hook)] for e in ((), one, control))
    assert (own != plain).any()
    torch.testing.assert_close((other - plain).norm(dim=-1), (own - plain).norm(dim=-1), rtol=1e-3, atol=1e-4)
    assert not torch.equal(other, own)


def test_figures_are_those_of_effect(session, tmp_path):
    """On the held-out samples of each concept and on clean ones, which hold nothing that is erased."""
    made = settings(session)
    told = session.measure(made)
    shares = [told["share"]]
    while not told["done"]:
        told = session.more(told["run"], 1)
        shares.append(told["share"])
    assert shares == sorted(shares)
    assert len(shares) > 8
    groups = {group["title"]: group for group in told["groups"]}
    assert {t: (g["kind"], g["n"]) for t, g in groups.items()} == {
        "cooking": ("erased", 6), "law": ("kept", 6), "clean samples": ("clean", 6)
    }  # fmt: skip
    concept = session.concepts["cooking"]
    want = effect(
        session.subject, edits(session, made, tmp_path), concept.positive.measure,
        target=TOPIC_WORDS["cooking"], clean=concept.negative.measure, controls=[CONTROL], draws=2,
        max_new_tokens=10, allow_fitted=True,
    )  # fmt: skip
    for group, prefix in (("cooking", ""), ("clean samples", "clean ")):
        rows = {row["measure"]: row["arms"] for row in groups[group]["rows"]}
        assert {"identical", "kl", "norm"} <= rows.keys()
        for measure, arms in rows.items():
            for arm, name in (("after", "edit"), (CONTROL, CONTROL)):
                figure = want.figure_of(prefix + measure, name)
                if math.isfinite(figure.value):
                    assert arms[arm] == pytest.approx([figure.value, *figure.interval]), (measure, arm)
    assert groups["cooking"]["texts"][0][2] == want.texts["edit"][0]
    assert session.measured(made) == {k: v for k, v in told.items() if k != "run"}
    # law is judged by its gate, since no words were given
    before = next(r for r in groups["law"]["rows"] if r["measure"] == "target")["arms"]["before"]
    assert 0 <= before[0] <= 1


def test_a_later_run_wins_and_what_is_stopped_stays_so(session):
    first = session.measure(settings(session, tau=-1.5))
    second = session.begin(settings(session, tau=-1.75))
    assert session.more(first["run"]) == {"run": first["run"], "stale": True}
    session.stop(first["run"])
    assert "columns" in session.more(second["run"])
    session.stop()
    assert session.more(second["run"])["stale"]


def test_a_gate_says_what_it_leaves_alone(session):
    """A threshold of its own beyond all signals leaves every sample bit-identical; without one it is the
    calibrated one."""
    shut = json.loads(settings(session))
    shut["concepts"][0]["threshold"] = 1e9
    told = session.measured(json.dumps(shut))
    for group in told["groups"]:
        rows = {row["measure"]: row["arms"] for row in group["rows"]}
        assert rows["identical"]["after"][0] == rows["identical"][CONTROL][0] == 1
        assert rows["touched"]["after"][0] == 0
    texts = session.written(json.dumps(shut))["columns"]
    assert texts[0]["tokens"] == texts[1]["tokens"] == texts[2]["tokens"]
    whole, tokens = (session.gate("cooking", gate) for gate in ("input", "token"))
    assert tokens["chosen"] > whole["chosen"]
    (edit,) = session._edits(Settings.parse(settings(session)))
    assert edit.threshold == whole["chosen"]
    assert edit.probe is not None


@pytest.mark.parametrize("mode", ["scale", "ablate", "replace"])
def test_a_recipe_comes_back(session, mode, tmp_path):
    made = settings(session, mode, gate="token", on=TOPICS)
    assert session.load(session.recipe(made), made) == made
    own = json.loads(settings(session, mode))
    own["concepts"][0] |= {"threshold": 2.5 if mode != "ablate" else None}
    own["concepts"][0]["latents"].pop()
    own = Settings.parse(json.dumps(own)).json()
    assert session.load(session.recipe(own), own) == own


def test_natural_activations_hold_nothing_that_is_erased(session, texts):
    """Those of law are of cooking too, unless that is erased as well."""
    alone, both = (
        session._natural_of(Settings.parse(settings(session, "replace", on=on))) for on in (("law",), TOPICS)
    )
    assert len(both) < len(alone)
    hook, subject = session.sae.hook, session.subject
    chosen = session.concepts["law"].negative.choose
    cooking = [d for d in chosen if holds(d.text, "cooking")]
    assert cooking
    row = subject.run(subject.prepare([cooking[0].text]), hook).acts[str(hook)][0, -1]
    near = [float((rows - row).norm(dim=1).min()) for rows in (alone, both)]
    assert near[0] < 1e-4 < near[1]


def test_recipes_that_are_none_of_the_view(session, signed_lab, tmp_path):
    made, (sae, latents) = settings(session), (session.sae, session.concepts["cooking"].selected.latents)
    other = [j for j in range(64) if j not in {*latents, *session.concepts["law"].selected.latents}]
    natural = torch.zeros(4, 128)
    probe = session._curve("cooking", "input").edit.probe
    for edit, match in (
        (Scale(sae, latents, 0.5), "Got Scale"),
        (Erase(sae, other[:2], 0.0, threshold=1.0), "Add the concept first"),
        (Erase(sae, latents, 0.0, threshold=1.0), "must go by the probe"),
        (Substitute(sae, latents, natural, threshold=1.0, probe=probe), "view's own samples"),
        ([Erase(sae, latents, t, threshold=1.0) for t in (0.0, 1.0)], "all of one kind"),
        (Erase(signed_lab.sae, latents, 0.0, threshold=1.0), "must be the SAE that the edit was made with"),
    ):
        path = save(edit, tmp_path / "recipe.json")
        with pytest.raises(SaelabError, match=match):
            session.load(path.read_text(), made)


def test_the_view(small_lab, texts, tmp_path):
    view = small_lab.erase("cooking", texts["cooking"], texts["none"], tau=-4, k=2, max_new_tokens=8)
    hostile = "<img src=x onerror=alert(1)>\udc80"
    assert view.add(hostile, texts["law"], texts["none"], k=2) is view
    made = json.loads(view.settings)
    assert [(c["name"], c["on"], len(c["latents"])) for c in made["concepts"]] == [
        ("cooking", True, 2), (hostile.replace("\udc80", "?"), True, 2)
    ]  # fmt: skip
    assert {key.partition("?")[0] for key in view.opening} == {"told", "written", "compared", "gate"}
    assert f"written?settings={json.dumps(view.settings, ensure_ascii=False)}" in view.opening
    text, form = repr(view), view.html()
    assert "erasing cooking, <img" in text
    assert "before: " in text
    assert "samples)" not in text, "not measured yet"
    assert "<img" not in form
    assert "&lt;img" in form
    made["concepts"][1]["on"] = False
    other = Settings.parse(json.dumps(made)).json()
    view.session.written(other)
    asks = {ask.question for ask in view.exported()}
    assert asks == {"told", "kept", "written", "compared", "measured", "gate", "card"}
    assert view.answers()["kept"]().fields["settings"][:2] == [view.settings, other]
    frame = view.figures()
    assert set(frame["kind"]) == {"erased", "clean"}
    assert set(frame["arm"]) == {"before", "after", CONTROL}
    assert "(erased, 6 samples)" in repr(view)
    page = view.export(tmp_path / "erase.html").read_text()
    assert "<img src=x" not in page


def test_what_the_view_refuses(small_lab, texts):
    for more, match in (({"tau": math.nan}, "tau"), ({"mode": "forget"}, "mode"), ({"gate": 3}, "gate")):
        with pytest.raises(ConfigError, match=match):
            small_lab.erase("cooking", texts["cooking"], texts["none"], **more)
    with pytest.raises(CorpusError, match="positive must hold"):
        small_lab.erase("cooking", [], texts["none"])


def test_a_subject_that_writes_nothing(tmp_path):
    """It is told what its output does: the samples are tensors, of which nothing is a text."""
    made = Erasing(planted.subject(), planted.sae())
    made.add("planted", planted.texts(40, True), planted.texts(40, False), k=1)
    assert made.concepts["planted"].selected.latents == (planted.CONCEPT,)
    assert not made.told()["generates"]
    one = made.settings("scale", 0.0, "input", 10)
    told = made.measured(one)
    rows = {row["measure"]: row["arms"] for row in told["groups"][0]["rows"]}
    assert rows["output"]["after"][0] > 0
    assert "target" not in rows
    assert any("continuations" in why for why in told["left_out"])
    compared = made.compared(one)
    inputs = made.subject.prepare([made.sample(0)])
    before, after = (
        made.subject.run(inputs, edits=e).output[0] for e in ((), made._edits(Settings.parse(one)))
    )
    name, *values = compared["top"][0]
    assert name == "output 0"
    assert values[:2] == pytest.approx([float(before[0]), float(after[0])], rel=1e-5)


BAD = [
    (lambda t: (t["cooking"][:0], t["none"]), {}, "positive must hold at least 10 different samples"),
    (lambda t: (t["cooking"], t["none"][:5]), {}, "negative must hold at least 10"),
    (lambda t: (t["cooking"], [*t["none"], t["cooking"][0]]), {}, "in positive or in negative"),
    (
        lambda t: (t["cooking"], t["none"]),
        {"held_out": lambda t: t["cooking"][:3]},
        "positive or in held_out",
    ),
    (lambda t: (t["cooking"], t["none"]), {"clean": lambda t: []}, "clean must hold samples"),
    (lambda t: (t["cooking"], t["none"]), {"target": lambda t: []}, "at least one word"),
    (lambda t: (t["cooking"], t["none"]), {"target": lambda t: 3}, "words or a function"),
    (lambda t: ("a text", t["none"]), {}, "must be a list"),
]


@pytest.mark.parametrize(("sides", "more", "match"), BAD, ids=[match for *_, match in BAD])
def test_a_concept_that_cannot_be(small_lab, texts, sides, more, match):
    made = Erasing(small_lab.subject, small_lab.sae)
    with pytest.raises(SaelabError, match=match):
        made.add("cooking", *sides(texts), **{name: of(texts) for name, of in more.items()})
    assert made.concepts == {}
    made.add("cooking", texts["cooking"], texts["none"], k=2)  # what was refused has left no trace


def test_what_was_chosen_on_is_never_measured_on_later(session, texts):
    chosen = [document.text for document in session.concepts["cooking"].positive.choose]
    with pytest.raises(CorpusError, match="for a concept before"):
        session.add("soup", texts["law"], texts["none"], held_out=chosen[:2])
    with pytest.raises(ConfigError, match="a name of its own"):
        session.add("law", texts["law"], texts["none"])
    assert list(session.concepts) == list(TOPICS)


def test_settings_that_are_none(session):
    for more, match in (
        ({"tau": math.nan}, "tau must be a finite number"),
        ({"gate": "sometimes"}, "gate must be one of"),
        ({"mode": "remove"}, "mode must be one of"),
        ({"sample": 99}, "sample must be below"),
        ({"sample": -1}, "sample"),
        ({"odd": 1}, "Settings must be those"),
    ):
        with pytest.raises((ConfigError, RangeError), match=match):
            session.written(json.dumps({**json.loads(settings(session)), **more}))
    far = json.loads(settings(session))
    far["concepts"][0]["latents"] = [10**6]
    with pytest.raises(RangeError):
        session.begin(json.dumps(far))
    far["concepts"][0] |= {"latents": [1], "name": "tennis"}
    with pytest.raises(ConfigError, match="must be one of cooking, law"):
        session.begin(json.dumps(far))
    assert session.measured(settings(session, on=()))["groups"] == []
    columns = session.written(settings(session, on=()))["columns"]
    assert columns[0]["tokens"] == columns[1]["tokens"]
