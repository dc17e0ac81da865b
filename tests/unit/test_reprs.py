"""What a notebook prints of an object is a line that says what it is, and neither pixels nor an address."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from shown import card, codes, table

import saelab
from saelab.stores.records import DocumentRecord, RowRecord
from saelab.types import Inputs, Run
from saelab.widgets import Selection

HOOK = "blocks.2.hook_resid_post"


def results():
    shown = card()
    yield from (
        shown,
        shown.stats,
        shown.top,
        shown.top.windows[0],
        shown.lens,
        codes(),
        codes().codes,
        table(),
    )
    yield DocumentRecord(0, "0", "image", "x" * 9_000, "line", ("cat",), b"\x89PNG" + bytes(60_000))
    yield RowRecord(0, 0, 0, 0, "token", " a", 3, np.arange(5_000), np.ones(5_000))
    yield saelab.corpora.Document("a", "word " * 5_000)
    yield Inputs({"input_ids": torch.zeros(9, 500)}, counted=np.ones((9, 500), bool))
    yield Run({HOOK: torch.zeros(9, 500, 64)}, torch.zeros(9, 500, 99))
    yield Selection(latent=3, latents=range(5_000))


@pytest.mark.parametrize("result", list(results()), ids=lambda result: type(result).__name__)
def test_a_result_is_a_line(result):
    line = repr(result)
    assert line.startswith(f"{type(result).__name__}(")
    assert len(line) <= 160
    assert "\n" not in line
    assert " object at 0x" not in line
    assert "array(" not in line


CONFIGS = {
    "SAEConfig('topk', d_in=128, d_sae=512, hook='blocks.2.hook_resid_post', k=8)": saelab.recipe(
        "topk", d_in=128, d_sae=512, k=8, hook=HOOK
    ),
    "SAEConfig('relu', d_in=8, d_sae=16)": saelab.recipe("relu", d_in=8, d_sae=16),
    "SAEConfig('transcoder', d_in=8, d_sae=64, d_out=4, hook_out='b')": saelab.recipe(
        "transcoder", d_in=8, d_sae=64, d_out=4, hook_out="b"
    ),
}


@pytest.mark.parametrize("line", CONFIGS)
def test_a_configuration_says_what_differs_from_its_defaults(line):
    assert repr(CONFIGS[line]) == line


def test_parts_of_a_configuration_are_short():
    for name in saelab.recipes():
        entry = saelab.sae.config.RECIPES[name]
        for each in (entry, *entry.options.values()):
            assert len(repr(each)) <= 160
            assert " at 0x" not in repr(each)
    assert repr(saelab.HookPoint("a")) == "HookPoint('a')"
    heads = saelab.HookPoint("a", "in", 8)
    assert eval(repr(heads), {"HookPoint": saelab.HookPoint}) == heads


def test_no_public_class_is_called_by_its_address():
    """But those of which others are made: an edit says itself, a Lab's views and Labs have their own."""
    bases = {"Edit", "LabViews", "Made"}
    modules = [getattr(saelab, name) for name in saelab.__all__ if inspect.ismodule(getattr(saelab, name))]
    public = [getattr(m, name) for m in modules for name in dir(m) if name[0] != "_"]
    ours = {c for c in public if inspect.isclass(c) and c.__module__.startswith("saelab")}
    assert len(ours) > 60
    plain = {c.__name__ for c in ours if c.__repr__ is object.__repr__ and not getattr(c, "_is_protocol", 0)}
    assert plain == bases


def test_a_session_is_a_line_each(small_lab):
    for each in (
        small_lab,
        small_lab.store,
        small_lab.subject,
        small_lab.saes,
        small_lab.selection,
        small_lab.source(),
        small_lab.sae.config,
    ):
        assert len(repr(each)) <= 160, repr(each)
        assert " object at 0x" not in repr(each)
    assert len(repr(small_lab.sae).splitlines()) <= 6
    assert repr(small_lab.card(7)).startswith("FeatureCard(latent 7: ")
    # the whole is what print shows
    assert len(str(small_lab.card(7)).splitlines()) > 3
    compared = small_lab.store.compare(small_lab.store)
    assert len(repr(compared)) <= 160
    assert len(repr(compared.direction)) <= 160
