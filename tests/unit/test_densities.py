"""The histogram of firing densities: every latent in the bin of its own, in a notebook and on a page."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from shown import chunks, decoded, table

from saelab.types import StoreError
from saelab.widgets import DensitiesView, Selection
from saelab.widgets.densities import PER_DECADE, pack_densities


def bins(density: np.ndarray) -> list[tuple[float, float, list[int]]]:
    """(low, high, latents) of each bin, as the browser reads them; the dead first."""
    packed = pack_densities(density)
    fields = decoded(*packed.encoded())
    dead, low = packed.header["dead"], packed.header["low"]
    cuts = np.split(fields["latents"], np.cumsum([dead, *fields["counts"]])[:-1])
    edges = 10.0 ** (low + np.arange(len(cuts)) / PER_DECADE)
    return [(0.0, 0.0, cuts[0].tolist())] + [
        (edges[i], edges[i + 1], cut.tolist()) for i, cut in enumerate(cuts[1:])
    ]


@pytest.mark.parametrize("seed", range(5))
def test_every_latent_is_in_the_bin_of_its_density(seed):
    rng = np.random.default_rng(seed)
    n_rows = 10 ** rng.integers(2, 8)
    density = rng.integers(0, n_rows + 1, 500) / n_rows * (10.0 ** -rng.integers(0, 7, 500))
    density = (np.round(density * n_rows) / n_rows).astype(np.float32)
    density[:3] = 0, 1, 1 / n_rows
    found = bins(density)
    assert sorted(j for *_, latents in found for j in latents) == list(range(500))
    assert found[0][2] == np.flatnonzero(density == 0).tolist()
    for low, high, latents in found[1:]:
        assert latents == sorted(latents)
        within = density[latents].astype(float)
        assert (low * (1 - 1e-12) < within).all()
        assert (within <= high * (1 + 1e-12)).all()
    assert found[1][2]  # no empty bins before the first
    assert found[-1][1] == 1


@pytest.mark.parametrize(("density", "edges"), [([0, 0], []), ([1.0], [0.5623]), ([0.1, 0.01], [0.005623])])
def test_few_latents(density, edges):
    found = bins(np.array(density, np.float32))
    assert [round(low, 4 if low > 0.1 else 6) for low, *_ in found[1:2]] == edges
    if density == [0.1, 0.01]:  # as float32 the first is above 0.1, the second below 0.01
        assert [len(latents) for *_, latents in found[1:]] == [1, 0, 0, 0, 0, 1, 0, 0, 0]


def test_it_prints_follows_and_is_exported(tmp_path):
    density = np.array([0.5, 0.004, 0, 0.005, 2e-5], np.float32)
    chosen = Selection(latents=(1, 3), latent=3)
    view = DensitiesView(replace(table(5), density=density), selection=chosen)
    lines = repr(view).splitlines()
    assert lines[0] == "5 latents, 1 never fire; log10 of the share of rows:"
    assert lines[10].split() == ["-2.50", "to", "-2.25", "2", "#" * 40]
    assert len(lines) == 1 + 4.75 * PER_DECADE
    assert (view.latents, view.latent, set(view.opening)) == ((1, 3), 3, {"densities"})
    text = view.export(tmp_path / "d.html").read_text()
    data = json.loads(re.search(r'id="saelab-data">(.*?)</script>', text, re.S)[1])
    assert data["selections"][0]["latents"] == [1, 3]
    (held,) = (chunks(shelf) for shelf in data["shelves"])
    assert decoded(*held["densities"])["latents"].tolist() == [2, 4, 1, 3, 0]


def test_a_lab_makes_it(signed_lab):
    view = signed_lab.densities()
    view.set_state({"latents": [4, 2]})
    assert signed_lab.selection.latents == (4, 2)
    assert signed_lab.features().latents == (4, 2)
    assert "never fire" in repr(view)
    with pytest.raises(StoreError, match="needs a store"):
        type(signed_lab)(signed_lab.subject, signed_lab.sae).densities()
