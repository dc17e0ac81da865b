"""Attributes swapped between entities: on a model whose attributes are known, and latents that carry them
alone, together, or not at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import saelab
from saelab.analysis import RAVEL
from saelab.analysis.disentangling.asking import Asked, Cases, ask, cases_of, passes
from saelab.analysis.disentangling.swapping import Swapping
from saelab.analysis.sources import Ground
from saelab.corpora import Fact, relation_facts, scene_facts
from saelab.types import ConfigError, CorpusError, FormatError, Inputs, Run, SubjectError

N = 5
"""Values of each of two attributes; every pair of them is an entity."""
ENTITIES = [(a, b) for a in range(N) for b in range(N)]
ASKS = {"colour": 1, "size": 2}
FIRST, WIDTH = 40, 2 * N
NAMES = [f"e{i:02}" for i in range(N * N)]


class Toy:
    """Reads "e07 colour" as an entity and a question: the answer's logit is what the activation at the entity
    says of the attribute. One entity is not known."""

    n_ctx, bos_id, special_ids = 8, 0, frozenset()

    def to_tokens(self, text, bos=True):
        words = {name: 3 + i for i, name in enumerate(NAMES)} | ASKS
        ids = [words[w] if w in words else FIRST + int(w[1:]) for w in text.split()]
        return [0] * bos + ids

    def offsets(self, text) -> Any:
        starts = np.cumsum([0, *(len(w) + 1 for w in text.split())])
        return [(0, 0), *((int(s), int(s) + len(w)) for s, w in zip(starts, text.split(), strict=False))]

    def token_strings(self, ids):
        return [str(i) for i in ids]

    def to_residual(self, hook, vectors):
        return vectors

    def residual_to_logits(self, vectors):
        return vectors

    def prepare_tokens(self, rows):
        ids = torch.tensor([[*row, *[0] * (3 - len(row))] for row in rows])
        return Inputs({"input_ids": ids}, np.array([len(row) for row in rows]))

    def prime(self, document):
        pass

    def width(self, hook):
        return WIDTH

    def run(self, inputs, read=(), edits=(), *, output=True, grad=False):
        ids = inputs.data["input_ids"]
        acts = torch.zeros(*ids.shape, WIDTH)
        for i, (a, b) in enumerate(ENTITIES):
            here = ids == 3 + i
            acts[..., a] += here
            acts[..., N + (b if i else (b + 1) % N)] += here  # of the first entity the size is not known
        kept = {str(h): acts.clone() for h in read}
        for _, edit in edits:
            acts = edit(acts)
        asked, of = ids[:, 2], acts[:, 1]
        logits = torch.zeros(len(ids), ids.shape[1], FIRST + WIDTH)
        for which, columns in ((1, slice(0, N)), (2, slice(N, WIDTH))):
            own = (asked == which)[:, None]
            parts = [torch.zeros(len(ids), FIRST), torch.zeros(len(ids), WIDTH)]
            parts[1] = parts[1].clone()
            parts[1][:, columns] = 10 * of[:, columns]
            logits = logits + torch.where(own, torch.cat(parts, 1), 0.0)[:, None]
        return Run(kept, logits)


def ground(subject: Any) -> Ground:
    return Ground(subject, ["e01"])


def facts() -> list[Fact]:
    return [
        Fact(NAMES[i], ask, f"{NAMES[i]} {ask}", f" v{value + offset}")
        for i, (a, b) in enumerate(ENTITIES)
        for ask, value, offset in (("colour", a, 0), ("size", b, N))
    ]


def dictionary(kind: str) -> saelab.SAE:
    """One latent for each value ("own"), for each entity ("entity"), or for colours alone ("colour")."""
    rows = torch.eye(WIDTH)
    if kind == "entity":
        rows = torch.stack([rows[a] + rows[N + b] for a, b in ENTITIES])
    elif kind == "colour":
        rows = rows[:N]
    made = saelab.SAE.create(saelab.recipe("relu", d_in=WIDTH, d_sae=len(rows), hook="h")).eval()
    with torch.no_grad():
        made.W_enc.copy_(rows.T)
        made.W_dec.copy_(rows)
        made.b_enc.fill_(-1.0 if kind == "entity" else 0.0)
        made.b_dec.zero_()
    return made


def run(kind: str, **options: Any) -> Any:
    suite = RAVEL(**({"facts": facts(), "held_out": 0.4, "steps": 60} | options))
    return suite.run(dictionary(kind), ground(Toy()))


def test_latents_of_one_attribute_each_carry_it_alone():
    found = run("own")
    for name, most in (("cause", 1.0), ("isolation", 1.0), ("disentangled", 1.0)):
        assert found.claims[name].value == most, name
    own = found.claims["disentangled"]
    assert own.apart
    assert dict(zip(("untrained SAE", "random latents", "no edit"), range(3), strict=True)).keys() == {
        own.what, *(each.what for each in own.also)
    }  # fmt: skip
    assert own.also[-1].value == 0.5
    assert found.claims["cause of all latents"].value == found.claims["cause of activations"].value == 1.0
    # the unknown fact is told, and its entity judges nothing
    assert found.tables["facts"].to_dict("list") == {
        "attribute": ["colour", "size"], "known": [N * N, N * N - 1], "of": [N * N, N * N]
    }  # fmt: skip


def test_latents_of_entities_carry_all_attributes_at_once():
    found = run("entity")
    lines = found.tables["attributes"].to_dict("records")
    for line in lines:
        # whatever is swapped goes along with the rest: what cause gains, isolation loses
        assert line["cause"] + line["isolation"] <= 1.2
    assert found.claims["disentangled"].value < 0.6
    assert found.claims["cause of all latents"].value == 1.0


def test_an_attribute_without_latents_is_not_caused():
    lines = {line["attribute"]: line for line in run("colour").tables["attributes"].to_dict("records")}
    assert (lines["colour"]["cause"], lines["colour"]["isolation"]) == (1.0, 1.0)
    assert (lines["size"]["cause"], lines["size"]["cause, activations"]) == (0.0, 1.0)


def test_pairs_differ_in_the_answer_alone_and_entities_that_judge_are_not_learnt_from():
    asked = ask(Toy(), facts(), "h", "last")
    assert [int(at[0]) for at in asked.at] == [1] * len(facts())
    assert torch.equal(asked.x[3][0], torch.eye(WIDTH)[0] + torch.eye(WIDTH)[N + 1])
    cases = cases_of(asked, ["colour", "size"], NAMES[:12], 30, np.random.default_rng(0))
    assert 0 < len(cases) <= 60
    for base, source, attribute in zip(cases.base, cases.source, cases.attribute, strict=True):
        one, other = asked.facts[base], asked.facts[source]
        assert one.entity != other.entity
        assert {one.entity, other.entity} <= set(NAMES[:12])
        assert one.attribute == other.attribute == ["colour", "size"][attribute]
        assert asked.answer[base] != asked.answer[source]
        assert asked.known[base]
        assert asked.known[source]
    first = [i for i in range(len(cases)) if "e00" in (asked.facts[cases.base[i]].entity,
                                                      asked.facts[cases.source[i]].entity)]  # fmt: skip
    assert first
    assert cases.swaps[first].tolist() == [[True, False]] * len(first)


@pytest.mark.parametrize("error", [True, False])
@pytest.mark.parametrize("normalise", ["none", "sphere"])
def test_the_edit_is_the_difference_of_two_decodings(normalise, error):
    config = saelab.recipe("topk", d_in=WIDTH, d_sae=24, k=4, hook="h", normalise=normalise)
    rows = torch.randn(2 * N * N, WIDTH, generator=torch.Generator().manual_seed(1)) + 0.5
    sae = saelab.SAE.create(config, 3, rows).eval()
    asked = replace(ask(Toy(), facts(), "h", "last"), x=list(rows[:, None]))
    swapping = Swapping(Toy(), sae, "h", asked, error=error)
    x, source = rows[: N * N], rows[N * N :]
    mask = torch.rand(24, generator=torch.Generator().manual_seed(2)) < 0.5
    with torch.no_grad():
        one, other = sae(x), sae(source)
        # codes are per unit of each row's own length, where rows are brought to one
        own, given = (each.codes * (1 if each.scale is None else each.scale.norm) for each in (one, other))
        mixed = torch.where(mask, given, own)
        change = (mixed - own) @ (sae.W_dec * sae.out_scale)
        expected = (x if error else one.x_hat) + change
        found = x + swapping._change(np.arange(N * N), np.arange(N * N, 2 * N * N), mask)
    assert torch.allclose(found, expected, atol=1e-5)
    assert (found - x).abs().max() > 0.1


def test_facts_of_scenes_stand_in_them_at_the_same_positions():
    subject: Any = saelab.load_subject(saelab.embedded.model_folder())
    told = scene_facts(subject.to_tokens, 40, seed=3)
    assert len(told) == 120
    by_form: dict[str, set[int]] = {}
    for fact in told:
        assert fact.entity in fact.prompt
        assert fact.answer[1:] in fact.entity
        form = f"{fact.attribute} {'table' in fact.entity}"
        by_form.setdefault(form, set()).add(len(subject.to_tokens(fact.prompt)))
    assert all(len(sizes) == 1 for sizes in by_form.values()), by_form
    asked = ask(subject, told, "blocks.2.hook_resid_post", "entity")
    assert asked.known.mean() > 0.95
    span = subject.token_strings([asked.ids[0][i] for i in asked.at[0]])
    assert "".join(span).strip() == told[0].entity
    last = ask(subject, told, "blocks.2.hook_resid_post", "last").at
    assert all(
        len(one) == 1 < len(all_) and one[0] == all_[-1] for one, all_ in zip(last, asked.at, strict=True)
    )
    assert told != scene_facts(subject.to_tokens, 40, seed=4)
    sizes: dict[str, int] = {}
    with pytest.raises(CorpusError, match="four words"):
        scene_facts(lambda text, bos=True: [1] * sizes.setdefault(text, len(sizes)))


def test_relations_are_read_as_facts_of_entities_with_several(tmp_path):
    import json

    for name, form, pairs in (
        ("capital", "The capital of {} is", {"France": "Paris", "Peru": "Lima", "Fiji": "Suva"}),
        ("language", "People in {} speak", {"France": "French", "Peru": "Spanish"}),
    ):
        samples = [{"subject": k, "object": v} for k, v in pairs.items()]
        data = {"name": name, "prompt_templates": [form, "Of {}:"], "samples": samples}
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    found = relation_facts(sorted(tmp_path.glob("*.json")))
    assert len(found) == 8
    assert found[0] == Fact("France", "capital", "The capital of France is", " Paris")
    (tmp_path / "bad.json").write_text('{"name": "x"}')
    with pytest.raises(FormatError, match="A relation must have"):
        relation_facts(tmp_path / "bad.json")


def test_a_table_of_facts_is_as_good_as_a_list():
    assert run("own", facts=pd.DataFrame(facts())).claims == run("own").claims


ONE = [fact for fact in facts() if fact.attribute == "colour"]
WRONG = [fact._replace(answer=" v1") if fact.attribute == "size" else fact for fact in facts()]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"facts": ONE}, ConfigError, "two attributes .* Got colour"),
        ({"facts": WRONG}, ConfigError, "size: the model answers 0 of 25 right"),
        ({"facts": facts()[:6]}, ConfigError, "needs 4 of either"),
        ({"facts": []}, CorpusError, "There must be facts"),
        ({"facts": ["text"]}, CorpusError, "entity, attribute, prompt and answer"),
        ({"facts": [("Peru", "capital", "The capital is", " Lima")]}, CorpusError, "must hold its entity"),
        (
            {"facts": [fact._replace(prompt=fact.prompt + " colour" * 9) for fact in facts()]},
            CorpusError,
            "fit",
        ),
        ({"where": "first"}, ConfigError, "where must be one of last"),
        ({"steps": 0}, ConfigError, "steps"),
        ({"held_out": 1.0}, ConfigError, "between 0 and 1"),
    ],
)
def test_what_cannot_be_disentangled_is_refused(options, error, said):
    with pytest.raises(error, match=said):
        run("own", **options)


def test_a_place_that_carries_nothing_a_transcoder_and_a_subject_without_offsets_are_refused():
    class Deaf(Toy):
        def run(self, inputs, read=(), edits=(), *, output=True, grad=False):
            return super().run(inputs, read)

    suite = RAVEL(facts=facts())
    with pytest.raises(ConfigError, match=r"follows the source in 0\.0%"):
        suite.run(dictionary("own"), ground(Deaf()))
    coder = saelab.SAE.create(
        saelab.recipe("transcoder", d_in=4, d_sae=8, d_out=4, hook="h", hook_out="g", k=2)
    )
    with pytest.raises(ConfigError, match="RAVEL is of an autoencoder"):
        suite.run(coder, ground(Toy()))

    class Blind(Toy):
        offsets: Any = None

    with pytest.raises(SubjectError, match="offsets"):
        suite.run(dictionary("own"), ground(Blind()))


@pytest.mark.parametrize("hook", ["blocks.2.hook_resid_post", "blocks.1.attn.hook_z"])
def test_passes_that_go_on_from_the_middle_say_what_whole_ones_say(hook):
    subject: Any = saelab.load_subject(saelab.embedded.model_folder())
    sae = saelab.SAE.load(saelab.embedded.sae_folder(hook))
    told = scene_facts(subject.to_tokens, 12, seed=3)
    begun = ask(subject, told, hook, "entity")
    assert begun.stream
    cases = cases_of(begun, ["person", "place"], [fact.entity for fact in told], 12, np.random.default_rng(0))
    assert len({len(begun.ids[i]) for i in cases.base}) > 1  # some are padded
    found = []
    for asked in (begun, replace(begun, stream=None)):
        swapping = Swapping(subject, sae, hook, asked, error=True)
        mask = torch.full((sae.d_sae,), 0.7, requires_grad=True)
        (batch,) = passes(subject, asked.ids, cases.base)
        logits = swapping._logits(cases, *batch, mask, grad=True)
        found += [logits.detach(), torch.autograd.grad(logits.square().sum(), [mask])[0]]
    assert torch.allclose(found[0], found[2], atol=1e-4)
    assert torch.allclose(found[1], found[3], rtol=1e-3, atol=1e-3 * float(found[3].abs().max()))
    assert float(found[1].abs().max()) > 0


def test_latents_of_the_embedded_model_carry_who_where_and_what():
    subject: Any = saelab.load_subject(saelab.embedded.model_folder())
    sae = saelab.SAE.load(saelab.embedded.sae_folder())
    texts = saelab.corpora.world(seed=77, n_documents=4)
    report = saelab.evaluate(sae, subject, texts, suites=(RAVEL(steps=40, pairs=40),))
    claim: Any = report.claims["ravel: disentangled"]
    assert claim.apart
    assert claim.value > 0.8
    assert all(each < 0.75 for each in (claim.control, *(other.value for other in claim.also)))


def test_entities_are_compared_by_one_form_of_prompt():
    told = [Fact(f"e{i}", "a", f"{form} e{i}", f" {i}") for i in range(4) for form in ("is", "was")]
    answer = np.arange(8) // 2
    asked = Asked(told, [[0]] * 8, [np.zeros(1, int)] * 8, answer, answer, [torch.zeros(1, 2)] * 8)
    cases = cases_of(asked, ["a"], [f"e{i}" for i in range(4)], 100, np.random.default_rng(0))
    assert len(cases) == 24
    assert all(base % 2 == source % 2 for base, source in zip(cases.base, cases.source, strict=True))


def test_latents_are_chosen_on_other_entities_than_those_that_judge(monkeypatch):
    seen: dict[str, set[str]] = {"learn": set(), "says": set()}

    def spied(name):
        own = getattr(Swapping, name)

        def call(self, cases, *rest):
            seen[name] |= {self.asked.facts[i].entity for i in np.r_[cases.base, cases.source]}
            return own(self, cases, *rest)

        monkeypatch.setattr(Swapping, name, call)

    for name in seen:
        spied(name)
    run("own", steps=2)
    assert seen["learn"]
    assert len(seen["says"]) == 10
    assert not seen["learn"] & seen["says"]


def test_cases_can_be_taken_apart():
    cases = Cases(np.arange(3), np.arange(3) + 1, np.zeros(3, int), np.ones((3, 2), bool))
    part = cases.of(np.array([2]))
    assert (part.base.tolist(), part.source.tolist(), len(part)) == ([2], [3], 1)
