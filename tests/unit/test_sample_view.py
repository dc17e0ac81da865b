"""The heatmap in Python: layers, several latents, long texts in chunks, what stands where nothing runs."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from shown import card, chunks, decoded, sample

from saelab.analysis.results import Changed, Predictions
from saelab.types import ConfigError, RangeError
from saelab.widgets import SampleView, Selection
from saelab.widgets.sides import CHUNK, PAGE_ALONG

HOSTILE = [
    "<img src=x onerror='window.hacked=1'>",
    "\u202eabc",
    "\n",
    "</script><script>window.hacked=2</script>",
]
TEXT = "Tina gave the basket to Hugo."


def predicted(n: int) -> Predictions:
    loss = np.linspace(0, 3, n, dtype=np.float32)
    loss[0] = np.nan
    changed = Changed(loss + 1, loss * 0.1, "the mean", loss + 2, loss)
    return Predictions(loss, loss * 0.5, changed)


def made(names, codes, **options):
    found = predicted(len(names))
    return SampleView(
        sample(names, codes), questions={"card": card}, predict=lambda: found, layers=found.names, **options
    )


def test_layers_go_over_the_wire_as_they_are():
    asked = []
    found = predicted(4)
    view = SampleView(
        sample(HOSTILE, np.eye(4)),
        questions={"card": card},
        predict=lambda: asked.append(1) or found,
        layers=found.names,
    )
    assert [name for name, _ in view.answers()["codes"]().header["layers"]] == found.names
    assert not asked, "the model runs when a layer is first shown"
    for name in found.names:
        for unit in ("nats", "bits"):
            header, buffers = view.answers()["layer"](name=name, unit=unit).encoded()
            layer = found.layer(name, unit)
            np.testing.assert_array_equal(decoded(header, buffers)["values"], layer.values)
            assert (header["unit"], header["beside"]) == (unit, layer.beside)
            assert header["control"] == pytest.approx(layer.control, rel=1e-5)
    assert asked == [1]
    without = SampleView(sample(HOSTILE, np.eye(4)), questions={"card": card})
    with pytest.raises(ConfigError, match="need a language model"):
        without.answers()["layer"](name="loss", unit="nats")


def test_the_static_forms_say_what_colours(tmp_path):
    codes = np.eye(4)
    by_loss = made(HOSTILE, codes, layer="loss", unit="bits")
    several = made(HOSTILE, codes, selection=Selection(latents=(0, 3)))
    for view, said in ((by_loss, "expected by the model itself"), (several, "<b>B</b></span> #3 up to 1")):
        form = view.html()
        assert said in form
        assert "<img" not in form
        assert "<script" not in form
        assert "\u202e" not in form
        assert len(form) < 60_000
    assert "bits" in by_loss.html()
    assert '<mark title="B 1"' in several.html()
    page = by_loss.export(tmp_path / "x.html").read_text()
    data = json.loads(re.search(r'id="saelab-data">(.*?)</script>', page, re.S)[1])
    (entry,) = data["views"]
    assert entry["options"]["layer"] == "loss"
    held = chunks(data["shelves"][entry["shelves"]["layer"]])
    assert len(held) == 2 * len(predicted(4).names)


def test_a_long_text_goes_in_chunks_and_a_page_of_it_is_bounded(tmp_path):
    n, d = 3 * CHUNK + 7, 300
    rng = np.random.default_rng(0)
    dense = np.zeros((n, d), np.float32)
    dense[np.arange(n), rng.integers(0, d, n)] = rng.standard_normal(n)
    view = SampleView(sample([" w"] * n, dense), questions={"card": card})
    first = view.answers()["codes"]()
    fields = decoded(*first.encoded())
    strongest = dense[np.arange(n), np.abs(dense).argmax(1)]
    np.testing.assert_array_equal(fields["strongest"], strongest)
    rows = []
    for number in range(4):
        own = fields if not number else decoded(*view.answers()["chunk"](number=number).encoded())
        for at, (low, high) in enumerate(zip(own["indptr"][:-1], own["indptr"][1:], strict=True)):
            row = np.zeros(d, np.float32)
            row[own["indices"][low:high]] = own["values"][low:high]
            rows.append((number * CHUNK + at, row))
    assert [at for at, _ in rows] == list(range(n))
    np.testing.assert_array_equal(np.stack([row for _, row in rows]), dense)
    along = decoded(*view.answers()["along"](latent=7).encoded())
    np.testing.assert_array_equal(along["positions"], np.flatnonzero(dense[:, 7]))
    np.testing.assert_array_equal(along["values"], dense[along["positions"], 7])
    with pytest.raises(ConfigError, match="below 4"):
        view.answers()["chunk"](number=4)
    asks = list(view.exported())
    assert [a.args["number"] for a in asks if a.question == "chunk"] == [1, 2, 3]
    kept = [a.args["latent"] for a in asks if a.question == "along"]
    assert len(kept) == PAGE_ALONG < d
    sums = np.abs(dense).sum(0)
    assert min(sums[kept]) >= np.sort(sums)[-PAGE_ALONG]
    assert "256 strongest of 300 latents" in view.sides[0].left_out
    assert view.opening == {}  # longer than what comes along


def test_a_lab_shows_layers_and_several_latents(small_lab):
    small_lab.selection.latents = None
    view = small_lab.tokens(TEXT, layer="loss")
    wanted = small_lab.source().questions["predictions"](TEXT)
    header = view.opening['layer?name="loss"&unit="nats"']
    np.testing.assert_array_equal(decoded(**header)["values"], wanted.layer("loss").values)
    pinned = small_lab.tokens(TEXT, latents=[3, 7])
    assert (pinned.latents, small_lab.selection.latents) == ((3, 7), None)
    linked = small_lab.tokens(TEXT)
    followed = small_lab.tokens(TEXT, latents=[5, 6], follow=True)
    assert followed.latents == linked.latents == small_lab.selection.latents == (5, 6)
    small_lab.selection.latents = None
    with pytest.raises(RangeError):
        small_lab.tokens(TEXT, latents=[3, 64])
    for wrong in ({"layer": "lozz"}, {"layer": "edits_kl"}, {"unit": "hartleys"}, {"latents": "37"}):
        with pytest.raises(ConfigError):
            small_lab.tokens(TEXT, **wrong)
