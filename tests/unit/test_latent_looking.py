"""Who is near in the whole space of a map, and the columns that colour it."""

from __future__ import annotations

import numpy as np
import pytest

from saelab.analysis import latent_column
from saelab.analysis.maps.looking import Neighbourhood
from saelab.analysis.maps.profiles import BY, profile
from saelab.types import ConfigError, RangeError


@pytest.mark.parametrize("by", BY)
def test_neighbours_are_those_of_all_cosines(small_lab, by):
    store = small_lab.store
    own = profile(store, by)
    near = Neighbourhood(store, by)
    cosine = own.rows.astype(np.float64) @ own.rows.T.astype(np.float64)
    np.fill_diagonal(cosine, -np.inf)
    asked = own.latents[:: max(1, len(own.latents) // 9)].tolist()
    for found in near.near(asked, n=5):
        at = int(np.searchsorted(own.latents, found.latent))
        want = np.argsort(-cosine[at], kind="stable")[:5]
        assert [j for j, _ in found.neighbours] == own.latents[want].tolist()
        np.testing.assert_allclose([c for _, c in found.neighbours], cosine[at][want], atol=1e-5)
    assert 0 < near.control < 1
    assert near.near(asked[:1], n=store.n_latents)[0].neighbours[-1][1] == pytest.approx(
        cosine[0][np.isfinite(cosine[0])].min(), abs=1e-5
    )
    for latent in sorted(set(range(store.n_latents)) - set(own.latents.tolist()))[:1]:
        assert near.near([latent])[0].neighbours == []
    with pytest.raises(RangeError):
        near.near([store.n_latents])


def test_neighbours_come_out_of_many_blocks(small_lab, monkeypatch):
    store = small_lab.store
    whole = Neighbourhood(store).near(range(10), n=4)
    monkeypatch.setattr("saelab.stores.directions.BLOCK_VALUES", 7 * store.directions.shape[1])
    for found, want in zip(Neighbourhood(store).near(range(10), n=4), whole, strict=True):
        assert [j for j, _ in found.neighbours] == [j for j, _ in want.neighbours]
        np.testing.assert_allclose(found.neighbours, want.neighbours, atol=1e-6)


def test_a_random_direction_is_nearer_where_there_are_fewer_dimensions(small_lab):
    """The control is what chance gives: the largest of many cosines of random pairs."""
    store = small_lab.store
    rng = np.random.default_rng(5)
    drawn = rng.standard_normal((200, store.directions.shape[1]))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    rows = profile(store, "decoder").rows
    assert Neighbourhood(store).control == pytest.approx((drawn @ rows.T).max(1).mean(), abs=0.05)


def test_columns_are_what_the_store_holds(small_lab):
    store = small_lab.store
    table = store.latents()
    density = latent_column(store, "density")
    np.testing.assert_allclose(density.values, table["density"], rtol=1e-6)
    assert density.title == "how often it fires, share of rows"
    positive = table["density"][table["density"] > 0]
    assert density.log == (np.percentile(table["density"], 99) > 50 * np.percentile(positive, 1))
    ratio = latent_column(store, "max / nullif(mean, 0) -- a note")
    want = (table["max"] / table["mean"].where(table["mean"] != 0)).to_numpy()
    np.testing.assert_allclose(ratio.values, want, rtol=1e-5)
    assert ratio.low < ratio.high
    assert ratio.title == ratio.sql


def test_words_and_truth_values_are_categories(small_lab):
    store = small_lab.store
    table = store.latents()
    often = latent_column(store, "density > 0.02")
    assert often.categories == ("true", "false")
    np.testing.assert_array_equal(often.values == 0, table["density"] > 0.02)
    words = latent_column(store, "case when latent < 3 then null else 'w' || (latent % 11)::varchar end")
    assert len(words.categories) == 8
    assert np.isnan(words.values[:3]).all()
    named = np.array([*words.categories, "other"])[words.values[3:].astype(int)]
    want = [f"w{j % 11}" for j in range(3, store.n_latents)]
    assert all(a in (b, "other") for a, b in zip(named, want, strict=True))
    assert (named == "other").sum() == sum(w not in words.categories for w in want)


def test_what_is_no_column_is_refused(small_lab):
    for sql in ("nonsense", "1) from latents; drop table latents; --", "[1, 2]", "count(*) over", ""):
        with pytest.raises(ConfigError):
            latent_column(small_lab.store, sql)
    flat = latent_column(small_lab.store, "3")
    assert flat.low < flat.high
    none = latent_column(small_lab.store, "null::double")
    assert np.isnan(none.values).all()
    assert np.isnan(latent_column(small_lab.store, "1 / 0.0").values).all()
