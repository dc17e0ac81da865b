"""Which latents fire together, counted out of sorted lists, against the definition."""

from __future__ import annotations

import numpy as np
import pytest

from saelab.stores import meetings, sampling, tables


def drawn(n_rows=400, n_latents=150, seed=0):
    """Latents that never fire, or on nearly all rows; many equally often; two that always fire together."""
    random = np.random.default_rng(seed)
    share = random.choice([0, 0.005, 0.02, 0.02, 0.1, 0.9], n_latents)
    fires = random.random((n_rows, n_latents)) < share
    fires[:, 40] = fires[:, 20] = random.random(n_rows) < 0.03
    fires[7] = False
    row, latent = fires.nonzero()
    indptr = np.r_[0, np.cumsum(fires.sum(1))]
    ones = np.ones(len(row), np.float32)
    sample = sampling.Sample(np.arange(n_rows), np.zeros(n_rows), indptr, latent.astype(np.int32), ones)
    return fires, sample


@pytest.mark.parametrize("partners", [1, 20, 200])
@pytest.mark.parametrize(
    ("pairs", "most"), [(1 << 22, (1 << 16) - 1), (700, 149), (100, 40)], ids=["one", "blocks", "among some"]
)
def test_partners_equal_the_definition(monkeypatch, tmp_path, partners, pairs, most):
    monkeypatch.setattr(meetings, "BLOCK_PAIRS", pairs)
    monkeypatch.setattr(meetings, "MOST", most)
    monkeypatch.setattr(sampling, "PARTNERS", partners)
    monkeypatch.setattr(sampling, "GROUP", 64)
    fires, sample = drawn()
    n_rows, n_latents = fires.shape
    with tables.writer(tmp_path, "coactivation") as out:
        sampling._write_partners(out, sample, n_latents)
    found = tables.opened(tmp_path, "coactivation").read().to_pydict()
    expected = []
    alone = fires.sum(0)
    for latent in range(n_latents):
        common = fires.T.astype(int) @ fires[:, latent]
        index = common / np.maximum(alone[latent] + alone - common, 1)
        others = [j for j in np.flatnonzero(common).tolist() if j != latent]
        others.sort(key=lambda j: (-index[j], -common[j], j))
        for rank, j in enumerate(others[:partners]):
            lift = common[j] * (n_rows / alone[latent]) / alone[j]
            expected.append((latent, rank, j, common[j], np.float32(index[j]), np.float32(lift)))
    assert len(expected) > 100
    assert list(zip(*found.values(), strict=True)) == expected


def test_nothing_fires(tmp_path):
    sample = sampling.Sample(
        *(np.zeros(n, t) for n, t in ((3, int), (3, float), (4, int), (0, int), (0, int)))
    )
    with tables.writer(tmp_path, "coactivation") as out:
        sampling._write_partners(out, sample, 5)
    assert not tables.opened(tmp_path, "coactivation").metadata.num_rows
