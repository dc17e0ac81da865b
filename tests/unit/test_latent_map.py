"""Maps of latents: planted groups are found, and a picture says how far it can be trusted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.manifold import trustworthiness

from saelab.analysis import latent_map
from saelab.analysis.maps.clusters import clustered
from saelab.analysis.maps.faithful import NEIGHBOURS, faith
from saelab.analysis.maps.layouts import laid, principal
from saelab.analysis.maps.profiles import BY, profile
from saelab.types import ConfigError


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def grouped(n, groups, width, noise, seed=0):
    """Unit vectors about the directions of some groups, and the group of each."""
    rng = np.random.default_rng(seed)
    of = np.arange(n) % groups
    return unit(unit(rng.standard_normal((groups, width)))[of] + noise * rng.standard_normal((n, width))), of


def tell(what, share):
    assert 0 <= share <= 1


@settings(max_examples=10, deadline=None)
@given(st.integers(4, 300), st.integers(2, 40), st.integers(0, 2**16))
def test_trust_is_that_of_scikit_learn(n, width, seed):
    rng = np.random.default_rng(seed)
    rows = unit(rng.standard_normal((n, width)))
    picture = rng.standard_normal((n, 2)).astype(np.float32)
    found = faith(rows, picture)
    k = max(1, min(NEIGHBOURS, (n - 1) // 2))
    want = trustworthiness(rows, picture, n_neighbors=k, metric="cosine")
    assert found.trustworthiness.value == pytest.approx(want, abs=1e-5)
    assert found.continuity.value == pytest.approx(trustworthiness(picture, rows, n_neighbors=k), abs=1e-5)
    for share in found:
        assert share.low - 1e-9 <= share.value <= share.high + 1e-9
    near = np.argsort(-(rows @ rows.T) + 9 * np.eye(n), 1)[:, : min(NEIGHBOURS, n - 1)]
    gaps = ((picture[:, None] - picture[None]) ** 2).sum(-1) + 1e9 * np.eye(n)
    drawn = np.argsort(gaps, 1)[:, : near.shape[1]]
    kept = np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(near, drawn, strict=True)])
    assert found.kept.value == pytest.approx(kept, abs=0.02)  # ties and float32 may change a neighbour


def test_principal_components_are_those_of_the_svd():
    rows, _ = grouped(200, 5, 12, 0.5)
    centred = rows - rows.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    found = principal(rows, 3)
    np.testing.assert_allclose(np.abs(found), np.abs(u[:, :3] * s[:3]), atol=1e-4)
    assert principal(rows[:, :1], 2).shape == (200, 2)


@pytest.mark.parametrize("method", ["umap", "tsne"])
def test_planted_groups_are_drawn_apart(method):
    """More groups than PCA can show: the picture keeps what PCA cannot, the same again with its seed."""
    rows, of = grouped(240, 12, 32, 0.06)
    threads = torch.get_num_threads()
    picture = laid(rows, method, seed=3, n_neighbors=10, tell=tell)
    assert torch.get_num_threads() == threads
    flat = laid(rows, "pca", seed=3, n_neighbors=10, tell=tell)
    random = laid(rows, "random", seed=3, n_neighbors=10, tell=tell)
    own, pca, chance = (faith(rows, each).trustworthiness for each in (picture, flat, random))
    assert own.low > pca.high
    assert own.low > chance.high
    clusters = clustered(picture)
    assert clusters.max() + 1 == 12
    for group in range(12):
        assert len(set(clusters[of == group].tolist())) == 1
    assert (laid(rows, method, seed=3, n_neighbors=10, tell=tell) == picture).all()


def test_many_points_are_clustered_by_a_sample(monkeypatch):
    from saelab.analysis.maps import clusters

    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [20, 0], [0, 20]], np.float32)
    of = np.arange(3000) % 3
    picture = (centres[of] + rng.standard_normal((3000, 2))).astype(np.float32)
    monkeypatch.setattr(clusters, "MOST", 600)
    found = clusters.clustered(picture)
    assert set(found.tolist()) <= {-1, 0, 1, 2}
    for group in range(3):
        own = found[of == group]
        assert (own == -1).mean() < 0.2
        assert len(set(own[own >= 0].tolist())) == 1
    assert clusters.clustered(picture[:10]).tolist() == [-1] * 10


@pytest.mark.parametrize("by", BY)
def test_a_map_of_a_store(small_lab, by, tmp_path, monkeypatch):
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path))
    store = small_lab.store
    heard = []
    made = latent_map(store, by, progress=lambda what, share: heard.append(what))
    assert heard[0] == "profiles"
    assert heard[-1] == "done"
    own = profile(store, by)
    np.testing.assert_allclose(np.linalg.norm(own.rows, axis=1), 1, rtol=1e-3)
    assert (made.placed == own.latents).all()
    assert set(made.faith) == {"pca", "random"}
    assert made.faith["pca"] == faith(own.rows, np.stack([made.x, made.y], 1)[own.latents])
    frame = made.to_frame()
    assert frame["name"].tolist() == [made.names[c] if c >= 0 else "" for c in made.cluster]
    assert made.verdict in str(made)
    assert "neighbours" in made.figure().layout.title.text
    again = latent_map(store, by, progress=lambda what, share: pytest.fail("it was kept"))
    assert (again.x == made.x)[made.placed].all()
    assert again.names == made.names
    assert again.faith["pca"].kept.value == pytest.approx(made.faith["pca"].kept.value)
    kept = next(store.folder.glob(".map-*"), None) or next((tmp_path / "maps").iterdir())
    kept.write_bytes(kept.read_bytes()[:-3])
    assert latent_map(store, by).names == made.names
    for path in store.folder.glob(".map-*"):
        path.unlink()


def test_what_lies_says_so(small_lab):
    """A picture that is a random projection itself is not trusted."""
    made = latent_map(small_lab.store, "decoder", keep=False)
    lying = type(made)(**{**vars(made), "faith": {**made.faith, "pca": made.faith["random"]}})
    assert not lying.trusted
    assert "do not read nearness" in lying.verdict


def test_what_cannot_be_mapped(small_lab):
    for wrong in ({"by": "colour"}, {"method": "mds"}, {"n_neighbors": 1}, {"seed": -1}):
        with pytest.raises(ConfigError):
            latent_map(small_lab.store, **wrong)
