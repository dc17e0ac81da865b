"""What every registered suite of `saelab.evaluate` must keep, on the embedded model and on activations."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import pytest
import torch

import saelab
from saelab.analysis import suites
from saelab.analysis.controls import Alone, Beside
from saelab.analysis.suites import Found
from saelab.analysis.supervised.tasks import Location, attribute_task, read_at
from saelab.corpora import Document
from saelab.corpora.world_prompts import attributed_prompts

HOOK = "blocks.2.hook_resid_post"
SMALL: dict[str, dict[str, Any]] = {
    "absorption": {"words": 500, "examples": 0, "rows": 1000},
    "classical": {"methods": ("pca", "kmeans"), "rows": 1000},
    "cost": {"rounds": 1, "rows": 256},
    "norms": {"rows": 1000},
    "principled": {"n_train": 200, "n_test": 60, "k": (2,)},
    "probing": {"ks": (1, 5)},
    "ravel": {"steps": 20, "pairs": 30},
    "scr": {"ns": (10,), "held_out": 0.5},
    "splitting": {"steps": 20, "rows": 1000},
    "stability": {"steps": 5, "rows": 1000},
    "tpp": {"ns": (10,), "held_out": 0.5},
    "unlearning": {"ns": (5,), "held_out": 0.5},
}
"""Options with which a suite takes seconds; what is not here runs with its own."""
LABELLED = ("scr", "tpp", "unlearning")
"""Suites of labels of documents, which need more of these: short ones."""
TIMED = "a second"
"""In the names of figures that a clock gave."""


@cache
def subject() -> Any:
    return saelab.load_subject(saelab.embedded.model_folder())


@cache
def corpus(name: str = "") -> Any:
    """What a suite is measured on: documents as they come, or the beginnings of many of three kinds, every
    other three of which greet first."""
    if name not in LABELLED:
        return saelab.corpora.world(seed=77, n_documents=16)
    of_kinds = (
        saelab.corpora.world(seed=77, n_documents=80, families=[kind])
        for kind in ("story", "review", "manners")
    )
    texts = itertools.chain(*zip(*of_kinds, strict=True))
    return [
        Document(str(i), ("Hello. " if i // 3 % 2 else "") + each.text[:32], kind=each.kind)
        for i, each in enumerate(texts)
    ]


@cache
def sae(kind: str = "trained", name: str = "") -> Any:
    if kind == "trained":
        return saelab.SAE.load(saelab.embedded.sae_folder())
    rows = torch.cat([block.x for block in _blocks()])
    if name == "principled":
        # its controls know the mean of the task's prompts, far from that of other rows; so must this one
        train = attributed_prompts(subject().to_tokens, "train", SMALL[name]["n_train"], 4)
        (rows,) = read_at(subject(), attribute_task(subject(), train).prompts, [Location(HOOK, -1)]).values()
    config = saelab.SAE.load(saelab.embedded.sae_folder()).config
    return saelab.SAE.create(config, seed=12, rows=rows)


def _blocks() -> Any:
    from saelab.analysis.sources import Ground

    return Ground.of(subject(), corpus(), 1000, 16, 0).source(sae()).blocks()


def suite(name: str) -> Any:
    options = SMALL.get(name, {})
    if name == "scr":  # two labels in every combination, which documents as they come don't have
        read = corpus(name)
        review, greets = [each.kind == "review" for each in read], [each.text[:5] == "Hello" for each in read]
        options = {**options, "labels": {"review": review, "greets": greets}}
    return suites.registered()[name](**options)


@cache
def report(name: str, kind: str = "trained") -> Any:
    return saelab.evaluate(sae(kind, name), subject(), corpus(name), suites=(suite(name),), seed=4)


def found(name: str, kind: str = "trained") -> Found:
    given = report(name, kind)
    assert name in given.suites, given.left_out.get(name)
    return given.suites[name]


NAMES = sorted(suites.registered())


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_stands_beside_controls_with_intervals_or_says_why_not(name):
    claims = found(name).claims
    assert claims
    besides = [claim for claim in claims.values() if isinstance(claim, Beside)]
    assert not besides or any(claim.value != claim.control for claim in besides)  # not the SAE beside itself
    for title, claim in claims.items():
        if isinstance(claim, Alone):
            assert len(claim.why) > 10, title
            assert math.isfinite(claim.value), title
            continue
        assert isinstance(claim, Beside), title
        both = [(claim.value, claim.interval), (claim.control, claim.control_interval)]
        for value, (low, high) in [*both, *((each.value, each.interval) for each in claim.also)]:
            assert math.isfinite(value), title
            assert low <= high, title  # not NaN
            slack = 1e-9 + 1e-6 * abs(value) + 0.5 * (high - low)
            assert low - slack <= value <= high + slack, title
        assert claim.what, title
        assert all(each.what for each in claim.also), title
        assert claim.n > 1, title
    for title, why in found(name).left_out.items():
        assert title not in claims
        assert why
    assert type(found(name).tables) is dict


@pytest.mark.parametrize("name", NAMES)
def test_an_untrained_sae_is_as_good_as_its_control(name):
    """Where the control is another untrained SAE, figures of one that is untrained itself are near it."""
    claims = found(name, "untrained").claims
    trained = found(name).claims
    for title, claim in claims.items():
        if isinstance(claim, Beside) and claim.what == "untrained SAE" and title in trained:
            of_trained = trained[title]
            assert isinstance(of_trained, Beside)
            apart = abs(of_trained.value - of_trained.control)
            wide = (
                claim.interval[1] - claim.interval[0] + claim.control_interval[1] - claim.control_interval[0]
            )
            assert abs(claim.value - claim.control) <= max(0.25 * apart, wide), title


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_figures_and_leaves_the_sae_as_it_was(name):
    own = sae()
    before = own.fingerprint()
    own.train()  # it is scored in eval mode all the same
    try:
        again = saelab.evaluate(own, subject(), corpus(name), suites=(suite(name),), seed=4).suites[name]
        assert own.training
        assert own.fingerprint() == before
    finally:
        own.eval()
    one, other = ({k: v for k, v in each.claims.items() if TIMED not in k} for each in (found(name), again))
    assert one == other
    assert found(name).left_out == again.left_out


@pytest.mark.parametrize("name", NAMES)
def test_activations_alone_are_measured_or_it_is_said_what_is_missing(name):
    rows = torch.cat([block.x for block in _blocks()])
    assert suites.registered()[name]() is not None  # each option has a default
    given = saelab.evaluate(sae(), rows, suites=(suite(name),))
    assert (name in given.suites) != (name in given.left_out)
    assert given.sae.fvu < 0.2
    if name in given.left_out:
        assert len(given.left_out[name]) > 10
