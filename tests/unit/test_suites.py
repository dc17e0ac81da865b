"""Suites of `saelab.evaluate`: what they may claim, and what becomes of one that can't run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import saelab
from saelab.analysis import suites
from saelab.analysis.controls import Alone, Beside, Control
from saelab.analysis.suites import Found, Suite, registry
from saelab.capabilities import HasLogits
from saelab.types import ConfigError, CorpusError

BESIDE = Beside(0.9, 0.5, (0.8, 1.0), (0.4, 0.6), 12, also=(Control("shuffled labels", 0.1, (0.0, 0.85)),))


@pytest.fixture
def own(monkeypatch):
    """Suites of this test's own, forgotten after it."""
    monkeypatch.setattr(registry, "_SUITES", dict(registry._SUITES))

    @suites.register("told")
    @dataclass(frozen=True)
    class Told(Suite):
        """What it is told."""

        share: float = 0.5

        def run(self, sae, ground):
            if self.share > 1:
                msg = "There must be rows. Got none. Pass some."
                raise CorpusError(msg)
            rows = sum(len(block.x) for block in ground.source(sae).blocks())
            return Found({"share": BESIDE, "rows": Alone(rows, "a count")}, {"more": "too few rows"})

    return Told


@pytest.fixture(scope="module")
def sae():
    return saelab.SAE.create(saelab.recipe("topk", d_in=4, d_sae=8, k=2), rows=torch.randn(50, 4))


@pytest.fixture(scope="module")
def rows():
    return torch.randn(60, 4, generator=torch.Generator().manual_seed(3))


def test_claims_of_a_suite_stand_in_the_report_by_name(own, sae, rows):
    report = saelab.evaluate(sae, rows, suites=("core", "told"), max_rows=40)
    assert report.scores == saelab.evaluate(sae, rows, max_rows=40).scores
    assert report.claims["told: share"] is BESIDE
    assert report.claims["told: rows"].value == 40
    assert report.left_out["told: more"] == "too few rows"
    line = report.to_frame().loc["told: share"]
    assert (line["this SAE"], line["untrained SAE"], line["shuffled labels"]) == (0.9, 0.5, 0.1)
    assert np.isnan(report.to_frame().loc["fvu", "shuffled labels"])
    assert "told: more: left out, too few rows" in str(report)
    assert not BESIDE.apart  # its interval meets that of the second control


def test_what_a_suite_refuses_is_left_out_and_the_others_run(own, sae, rows):
    @suites.register("spoken")
    @dataclass(frozen=True)
    class Spoken(Suite):
        """What a model says."""

        needs = (HasLogits,)

        def run(self, sae, ground):
            raise AssertionError

    report = saelab.evaluate(sae, rows, suites=(own(share=2), "spoken"))
    assert report.left_out["told"] == "There must be rows. Got none. Pass some."
    assert "pass the subject" in report.left_out["spoken"]
    assert report.suites == {}
    assert report.sae.fvu > 0


def test_several_saes_are_scored_on_the_same_rows(own, sae, rows):
    found = saelab.evaluate({"a": sae, "b": sae}, rows, suites="told")
    assert found["a"].rows == found["b"].rows
    assert found["a"].rows != saelab.evaluate(sae, rows[:59]).rows
    assert set(found.to_frame()["score"]) == {*found["a"].scores, "told: share", "told: rows"}


def test_passes_are_kept_apart_where_saes_read_the_same_hook_points_otherwise():
    """An autoencoder whose passes go on from the stream, beside a crosscoder that reads that stream too."""
    lab = saelab.Lab.embedded()
    places = ["blocks.2.attn.hook_z", "blocks.2.hook_resid_pre"]
    width = lab.subject.width(places[0])
    one = saelab.SAE.create(saelab.recipe("topk", d_in=width, d_sae=16, k=2, hook=places[0]))
    both = [width, lab.subject.width(places[1])]
    config = saelab.recipe("crosscoder", d_in=sum(both), d_sae=16, k=2, hooks=places, widths=both)
    texts = ["Tina gave the basket to Hugo.", "The river was long."]
    saes = {"one": one, "both": saelab.SAE.create(config)}
    found = saelab.evaluate(saes, lab.subject, texts)
    for name, each in saes.items():
        assert found[name].sae == saelab.evaluate(each, lab.subject, texts).sae


def test_suites_read_a_place_once_for_all_saes(monkeypatch):
    lab = saelab.Lab.embedded()
    twin = saelab.SAE.create(lab.sae.config, seed=5)
    corpus = saelab.corpora.world(seed=3, n_documents=60)
    asked = (
        suites.registered()["probing"](ks=(1,)),
        suites.registered()["tpp"](ns=(2,)),
        suites.registered()["absorption"](words=100, examples=2, rows=300),
    )
    alone = saelab.evaluate(twin, lab.subject, corpus, suites=asked, max_rows=1_500)
    read: list[int] = []
    run = type(lab.subject).run

    def counted(self, inputs, *args, **options):
        read.append(bool(options.get("read")))
        return run(self, inputs, *args, **options)

    monkeypatch.setattr(type(lab.subject), "run", counted)
    saelab.evaluate(lab.sae, lab.subject, corpus, suites=asked, max_rows=1_500)
    once = sum(read)
    read.clear()
    found = saelab.evaluate({"a": lab.sae, "b": twin}, lab.subject, corpus, suites=asked, max_rows=1_500)
    assert once > 0
    assert sum(read) == once
    for name, claim in alone.claims.items():
        assert found["b"].claims[name] == claim


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("tolt", "Did you mean 'told'"),
        (["told", "told"], "twice"),
        ([3], "Got 3"),
        (3, "Got 3"),
        (None, "Got None"),
        ([["told"]], "Got"),
    ],
)
def test_suites_that_are_none_are_refused(own, sae, rows, asked, said):
    with pytest.raises(ConfigError, match=said):
        saelab.evaluate(sae, rows, suites=asked)


def test_a_claim_without_its_control_is_refused(own):
    for claim in (0.5, Alone(0.5, ""), None):
        with pytest.raises(ConfigError, match="must stand beside its control"):
            Found({"share": claim})


def test_a_suite_has_a_name_of_its_own_and_says_what_it_asks(own):
    @dataclass(frozen=True)
    class Mute(Suite):
        def run(self, sae, ground):
            raise AssertionError

    @dataclass
    class Changing(Suite):
        """Options that change."""

        def run(self, sae, ground):
            raise AssertionError

    for cls, name in ((Mute, "mute"), (Changing, "changing"), (own, "core"), (int, "int")):
        with pytest.raises(ConfigError, match="A suite must be a frozen dataclass"):
            suites.register(name)(cls)
    with pytest.raises(ConfigError, match="Got none"):
        saelab.evaluate({}, torch.zeros(3, 4))
