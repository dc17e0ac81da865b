"""What latents are called where nobody has labelled them: what sets them apart, against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from letters import ALWAYS, N_LATENTS, NEVER, SIGNED
from sklearn.metrics import mutual_info_score

from saelab.analysis import latent_table
from saelab.analysis.maps.clusters import named
from saelab.stores import FeatureStore, naming
from saelab.stores.latent_tables import LatentTables


def apart(fires, rows, n=3):
    """By definition: the names that tell most of `fires`, of those that are frequent enough and more frequent
    than elsewhere. fires: bool [rows]; rows: what each shows."""
    rows = np.array(rows)
    own = {name: int(fires[rows == name].sum()) for name in sorted(set(rows.tolist()))}
    floor = min(5, max(own.values()))
    told = {
        name: mutual_info_score(fires, rows == name)
        for name, count in own.items()
        if count >= max(floor, 1) and fires[rows == name].mean() > fires.mean()
    }
    return sorted(told, key=lambda name: (-round(told[name], 9), name))[:n]


@pytest.fixture
def shown(store):
    """(what each row shows, codes [rows latents])."""
    rows = store.query("select name from rows join vocabulary using (shown) order by row")["name"].tolist()
    codes = np.zeros((len(rows), N_LATENTS))
    for latent in range(N_LATENTS):
        at, values = store.codes(latent)
        codes[at, latent] = values
    return rows, codes


def test_names_are_those_of_the_definition(store, shown):
    rows, codes = shown
    for pole, sign in ((store.apart.top, 1), (store.apart.bottom, -1)):
        for latent in range(N_LATENTS):
            fires = codes[:, latent] * sign > 0
            assert pole[latent] == apart(fires, rows), latent
    assert store.apart.top[NEVER] == store.apart.top[ALWAYS] == []
    assert store.apart.bottom[SIGNED]
    table = latent_table(store, {2: "mine"})
    assert table.names[2] == "mine"
    assert table.names[NEVER] == ""
    assert " \N{MINUS SIGN} " in table.names[SIGNED]


def test_what_all_fire_on_is_no_name():
    """Of 1,000 rows 400 show 0. A group that fires on half of everything and on all of 2 is called by 2; one
    that fires on 0 at the same rate as on the rest, by nothing."""
    everywhere = np.array([400, 500, 60, 40])
    group, thing = np.repeat([0, 1], 4), np.tile(np.arange(4), 2)
    count = np.array([200, 250, 60, 20, 40, 50, 6, 4])
    assert naming.set_apart(group, thing, count, everywhere, 1000).tolist() == [2]
    # four of four rows of a rare thing are a chance, but where the group has no more firings than these
    rare = np.array([400, 500, 96, 4])
    assert naming.set_apart(group[:4], thing[:4], np.array([10, 10, 9, 4]), rare, 1000).tolist() == [2]
    assert naming.set_apart(group[:4], thing[:4], np.array([0, 0, 1, 4]), rare, 1000).tolist() == [3]
    none = np.zeros(0, np.int64)
    assert naming.set_apart(none, none, none, everywhere, 1000).tolist() == []


def test_what_sets_a_latent_apart_has_figures(store, shown):
    rows, codes = np.array(shown[0]), shown[1]
    found = store.telling(range(N_LATENTS))
    for latent, poles in found.items():
        for sign, told in zip((1, -1), poles, strict=True):
            fires = codes[:, latent] * sign > 0
            assert {t.name for t in told} == set(apart(fires, rows.tolist(), 10))
            for name, count, share, lift in told:
                assert count == fires[rows == name].sum()
                assert share == pytest.approx(fires[rows == name].mean())
                assert lift == pytest.approx(share / fires.mean())
            assert [t.lift for t in told] == sorted((t.lift for t in told), reverse=True)


def test_clusters_are_named_alike(store, shown):
    rows, codes = shown
    clusters = np.array([0, 1, -1])
    latents = np.array([2, SIGNED, 7])
    names = named(store, latents, clusters)
    # each firing of any latent is a row of its own
    at, of = np.nonzero(codes)
    for number, latent in enumerate(latents[:2]):
        assert names[number].split("  ") == apart(of == latent, [rows[i] for i in at])


def test_names_are_kept_and_made_anew_where_they_are_odd(store, monkeypatch):
    first = store.apart
    (kept,) = store.folder.glob(".names-*.npy")
    found = np.load(kept)
    store.verify()

    found[0, 5] = found[0, 6]
    np.save(kept, found)
    assert FeatureStore.open(store.folder).apart.top[5] == first.top[6]
    whole = kept.read_bytes()
    found[0, 0, 0] = 10_000
    for odd in (whole[:-5], b"", b"\x93NUMPY and no more", None):
        np.save(kept, found) if odd is None else kept.write_bytes(odd)
        # batches that end within latents give the same
        batches = LatentTables.batches
        monkeypatch.setattr(LatentTables, "batches", lambda *a, size=7, of=batches: of(*a, size))
        assert FeatureStore.open(store.folder).apart == first
        monkeypatch.undo()
