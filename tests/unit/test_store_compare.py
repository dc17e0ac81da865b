"""Two SAEs side by side: planted permutations are found, strangers are at the control's level."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from letters import Letters
from scipy import stats

import saelab
from saelab.sae import SAE
from saelab.stores import cofiring, compare, directions, meetings, nearest
from saelab.types import Codes, ConfigError, HookPoint, RangeError, StoreError

N, WIDTH = 300, 24
TEXTS = ["".join(chr(33 + (7 * i + 11 * j * j) % 90) for j in range(17)) + f"{i:03}" for i in range(150)]


class Noise(Letters):
    """Activations that are independent normal numbers, the same whenever a text is read again."""

    def width(self, hook):
        return 2 * N

    def run(self, inputs, read=(), edits=(), *, output=True):
        found = super().run(inputs, read, edits, output=output)
        ids = inputs.data["input_ids"]
        acts = torch.zeros(*ids.shape, 2 * N)
        for sample, row in enumerate(ids.tolist()):
            of_text = torch.Generator().manual_seed(hash(tuple(i for i in row if i != 777)) % 2**31)
            length = sum(i != 777 for i in row)
            acts[sample, :length] = torch.randn(length, 2 * N, generator=of_text)
        return type(found)({name: acts for name in found.acts}, None)


class Threshold:
    """An SAE whose latents each fire where one coordinate of a half of the activations is large.

    Latent 0 never fires, latent 1 always does, latent 2 has no direction.
    """

    hook, reads, writes = SAE.hook, SAE.reads, SAE.writes

    def __init__(self, seed, half=0, order=None, width=WIDTH, d_sae=N):
        self.config = SimpleNamespace(hook=HookPoint("h"), hooks=(), d_in=2 * N, d_sae=d_sae, d_out=None)
        random = torch.Generator().manual_seed(seed)
        self.W_dec = torch.randn(d_sae, width, generator=random)
        self.W_dec[2] = 0
        self.limit = 0.3 + torch.rand(d_sae, generator=random)
        self.limit[0], self.limit[1] = torch.inf, -torch.inf
        self.half, self.seed = half, seed
        self.order = torch.arange(d_sae) if order is None else order
        self.W_dec, self.limit = self.W_dec[self.order], self.limit[self.order]

    def encode_sparse(self, x):
        pre = x[:, N * self.half :][:, self.order]
        codes = torch.where(pre > self.limit, torch.where(torch.isinf(self.limit), 1.0, pre), 0.0)
        codes[:, 5::7] *= -1  # firing is being unequal 0, whatever the sign
        return Codes.from_dense(codes)

    def fingerprint(self):
        return f"{self.seed} {self.half} {self.order.tolist()}"


def stored(tmp_path_factory, sae, texts=TEXTS, **options):
    folder = tmp_path_factory.mktemp("store") / "s"
    return saelab.index(Noise(), sae, texts, folder, n_examples=1, n_quantile=1, progress=False, **options)


@pytest.fixture(scope="module")
def order():
    return torch.randperm(N, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return stored(tmp_path_factory, Threshold(0))


@pytest.fixture(scope="module")
def permuted(tmp_path_factory, order):
    return stored(tmp_path_factory, Threshold(0, order=order))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return stored(tmp_path_factory, Threshold(1, half=1))


def test_a_permutation_of_an_sae_is_matched_latent_by_latent(store, permuted, order):
    found = store.compare(permuted)
    place = np.argsort(order.numpy())  # of each latent of ours among theirs
    without = {"direction": [2], "cofiring": [0, 1]}
    for name, left in without.items():
        matches = getattr(found, name)
        taken = np.setdiff1d(np.arange(N), left)
        np.testing.assert_array_equal(matches.partner[taken, 0], place[taken])
        np.testing.assert_allclose(matches.score[taken, 0], 1, atol=1e-6)
        assert matches.partner[left].tolist() == [[-1]] * len(left)
        assert np.isnan(matches.score[left]).all()
        assert np.isnan(matches.control[left]).all()
        assert matches.share == 1
        assert matches.threshold < 0.9
    assert str(found).startswith("decoder cosine: 100.0% of 299 latents have a partner above 0.")
    assert "co-firing, phi: 100.0% of 298 latents" in str(found)


def test_strangers_are_at_the_level_of_the_control(store, stranger):
    found = store.compare(stranger, seed=3)
    for matches in (found.direction, found.cofiring):
        n = int(np.isfinite(matches.score[:, 0]).sum())
        # one percent of them by chance, up to three standard deviations
        assert matches.share <= 0.01 + 3 * np.sqrt(0.01 * 0.99 / n)
        spread = np.nanstd(matches.control) + np.nanstd(matches.score[:, 0])
        assert abs(np.nanmean(matches.score[:, 0]) - np.nanmean(matches.control)) < 3 * spread / np.sqrt(n)


@pytest.mark.parametrize(("others", "width"), [(1, 1), (5, 1), (1, 2), (40, 2), (300, 24)])
def test_the_control_of_directions_is_that_of_directions_which_are_drawn(others, width):
    fast = compare.chance_cosine(2_000, others, width, np.random.default_rng(1))
    slow = compare.chance_cosine_reference(500, others, width, np.random.default_rng(2))
    if width == 1:
        assert set(fast) <= {-1.0, 1.0}
        assert abs((fast > 0).mean() - (1 - 2.0**-others)) < 3 * 0.5 / np.sqrt(len(fast))
    assert stats.ks_2samp(fast, slow).pvalue > 0.01
    assert np.isnan(compare.chance_cosine(3, 0, width, np.random.default_rng(1))).all()


def test_a_control_is_of_as_many_directions_as_there_are(store, permuted):
    control = store.compare(permuted).direction.control
    half, n = (WIDTH - 1) / 2, N - 1  # but latent 2, which has none
    taken = control[np.isfinite(control)]
    known = stats.kstest(taken, lambda c: stats.beta.cdf((c + 1) / 2, half, half) ** n)
    assert len(taken) == n
    assert known.pvalue > 0.01


def dense(store):
    codes = store.query("select row, latent from codes_by_row")
    out = np.zeros((store.n_rows, store.n_latents))
    out[codes["row"], codes["latent"]] = 1
    return out


@pytest.mark.parametrize(
    "blocks", [(1 << 25, 1 << 22, 1 << 22, (1 << 16) - 1), (6_000, 30_000, 1_000, 70)], ids=["one", "many"]
)
def test_phi_cosine_and_controls_equal_brute_force(store, stranger, monkeypatch, blocks):
    monkeypatch.setattr(meetings, "BLOCK_PAIRS", blocks[0])
    monkeypatch.setattr(cofiring, "CHUNK_CODES", blocks[1])
    monkeypatch.setattr(directions, "BLOCK_VALUES", blocks[2])
    monkeypatch.setattr(meetings, "MOST", blocks[3])
    found = store.compare(stranger, n=4, min_rows=400, seed=7)
    ours, theirs = dense(store), dense(stranger)
    shift = int(np.random.default_rng(7).integers(store.n_rows // 4, 3 * store.n_rows // 4 + 1))
    taken = [(400 <= x.sum(0)) & (x.sum(0) < len(x)) for x in (ours, theirs)]
    assert 10 < taken[0].sum() < N - 10
    assert 0 < shift < store.n_rows
    with np.errstate(all="ignore"):
        phi = np.corrcoef(ours.T, theirs.T)[:N, N:]
        chance = np.corrcoef(ours.T, np.roll(theirs, -shift, axis=0).T)[:N, N:]
    for scores in (phi, chance):
        scores[~taken[0]] = scores[:, ~taken[1]] = -np.inf
    best = np.argsort(-phi, axis=1, kind="stable")[:, :4]
    score = np.take_along_axis(phi, best, 1)
    none = ~np.isfinite(score)
    np.testing.assert_array_equal(found.cofiring.partner, np.where(none, -1, best))
    np.testing.assert_allclose(found.cofiring.score, np.where(none, np.nan, score), atol=1e-9)
    top = chance.max(1)
    np.testing.assert_allclose(found.cofiring.control, np.where(np.isfinite(top), top, np.nan), atol=1e-9)

    a, b = (s.directions.astype(np.float64) for s in (store, stranger))
    with np.errstate(all="ignore"):
        cosine = (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    cosine[~np.isfinite(cosine)] = -np.inf
    best = np.argsort(-cosine, axis=1, kind="stable")[:, :4]
    alive = np.arange(N) != 2
    np.testing.assert_array_equal(found.direction.partner[alive], best[alive])
    expected = np.take_along_axis(cosine, best, 1)[alive]
    np.testing.assert_allclose(found.direction.score[alive], expected, atol=1e-6)


def test_the_frame_has_a_line_a_latent_and_rank(store, stranger):
    found = store.compare(stranger, n=3)
    frame = found.to_frame()
    assert list(frame) == [
        *("latent", "rank", "direction_partner", "direction_score", "direction_control"),
        *("cofiring_partner", "cofiring_score", "cofiring_control"),
    ]
    assert frame["latent"].tolist() == np.repeat(np.arange(N), 3).tolist()
    assert frame["rank"].tolist() == [0, 1, 2] * N
    at = frame[frame["latent"] == 9]
    assert at["direction_partner"].tolist() == found.direction.partner[9].tolist()
    assert at["cofiring_score"].tolist() == found.cofiring.score[9].tolist()
    assert set(at["cofiring_control"]) == {found.cofiring.control[9]}


def test_seeds_draw_the_controls_alone(store, stranger):
    first, same, other = (store.compare(stranger, seed=s) for s in (1, 1, 2))
    assert first.to_frame().equals(same.to_frame())
    for name in ("direction", "cofiring"):
        one, two = getattr(first, name), getattr(other, name)
        np.testing.assert_array_equal(one.partner, two.partner)
        assert not np.array_equal(one.control, two.control, equal_nan=True)


def test_what_cannot_be_compared_is_left_out_with_its_reason(store, tmp_path_factory):
    narrow = stored(tmp_path_factory, Threshold(0, width=6))
    found = store.compare(narrow)
    assert found.direction is None
    assert "Got 24 and 6" in found.reasons[0]
    assert found.cofiring.share == 1
    assert "direction_score" not in found.to_frame()

    elsewhere = stored(tmp_path_factory, Threshold(0), [*TEXTS[:-1], "another text"])
    found = store.compare(elsewhere)
    assert found.cofiring is None
    assert found.direction.share == 1
    assert "another corpus" in str(found)
    fewer = stored(tmp_path_factory, Threshold(0), max_rows=900)
    assert "another n_rows" in store.compare(fewer).reasons[0]
    with pytest.raises(StoreError, match=r"one width.*same rows"):
        narrow.compare(elsewhere)


def test_other_numbers_of_latents(store, tmp_path_factory):
    small = stored(tmp_path_factory, Threshold(0, d_sae=40))
    assert store.compare(small).cofiring.partner.max() < 40
    every = small.compare(store, n=N).direction
    assert every.partner.shape == (40, N)
    # but latent 2, which has no direction
    assert sorted(every.partner[7]) == [-1, 0, 1, *range(3, N)]
    assert np.isnan(every.score[:, -1]).all()


@pytest.mark.parametrize("asked", [{"n": 0}, {"n": N + 1}, {"n": 1.0}, {"n": True}, {"min_rows": 0}])
def test_wrong_numbers(store, stranger, asked):
    with pytest.raises(RangeError, match="must be an integer in 1"):
        store.compare(stranger, **asked)
    with pytest.raises(ConfigError, match="compared with another"):
        store.compare(None)


class Side:
    """Firings that are drawn: of few latents, so that many never fire together."""

    def __init__(self, seed, n_rows=60, n_latents=90):
        random = np.random.default_rng(seed)
        self.matrix = random.random((n_rows, n_latents)) < random.choice([0.03, 0.1, 0.6], n_latents)
        self.matrix[:, 7] = self.matrix[:, 3]  # equal partners: the lower comes first
        self.n_rows, self.n_latents = n_rows, n_latents
        self.latents = np.flatnonzero(self.matrix.any(0) & (np.arange(n_latents) % 5 > 0))
        self.count = self.matrix.sum(0)[self.latents].astype(np.float64)

    def by_latent(self):
        for low in range(0, len(self.latents), 40):
            place, row = self.matrix[:, self.latents[low : low + 40]].T.nonzero()
            yield place + low, row

    def by_row(self):
        for low in range(0, self.n_rows, 25):
            some = self.matrix[low : low + 25][:, self.latents]
            yield len(some), *some.nonzero()


@pytest.mark.parametrize("n", [1, 3, 40, 90])
@pytest.mark.parametrize(
    ("pairs", "codes", "most", "layers"),
    [(1 << 23, 1 << 25, (1 << 16) - 1, 8), (300, 200, 20, 2), (300, 200, 20, 90), (2_000, 200, 71, 8)],
)
def test_partners_that_hardly_fire_together_equal_brute_force(
    monkeypatch, tmp_path, n, pairs, codes, most, layers
):
    for name, value in {"BLOCK_PAIRS": pairs, "MOST": most}.items():
        monkeypatch.setattr(meetings, name, value)
    for name, value in {"CHUNK_CODES": codes, "LAYERS": layers}.items():
        monkeypatch.setattr(cofiring, name, value)
    mine, their = Side(1), Side(2)
    firings = cofiring.Firings(tmp_path, mine, their)
    assert len(firings.lines) == -(-len(their.latents) // most)
    for shift in (0, 17):
        partner, score = cofiring.best_cofiring(firings, n, shift)
        a, b = mine.matrix.astype(float), np.roll(their.matrix, -shift, axis=0).astype(float)
        together, ours, theirs, total = a.T @ b, a.sum(0)[:, None], b.sum(0), len(a)
        with np.errstate(all="ignore"):
            phi = (total * together - ours * theirs) / np.sqrt(
                ours * (total - ours) * theirs * (total - theirs)
            )
        for x, side in ((phi, mine), (phi.T, their)):
            x[np.setdiff1d(np.arange(90), side.latents)] = -np.inf
        best = np.argsort(-phi, axis=1, kind="stable")[:, :n]
        known = np.take_along_axis(phi, best, 1)
        none = ~np.isfinite(known)
        np.testing.assert_array_equal(partner, np.where(none, -1, best))
        np.testing.assert_array_equal(score, np.where(none, np.nan, known))


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_nearest_of_many_directions_equal_the_definition(monkeypatch, kind, n):
    monkeypatch.setattr(nearest, "_fast", lambda width: kind)
    monkeypatch.setattr(nearest, "BLOCK_SCORES", 1 << 15)
    taken = []
    monkeypatch.setattr(
        nearest, "_in_blocks", lambda *a, plain=nearest._in_blocks: (taken.append(len(a[0])), plain(*a))[1]
    )
    random = np.random.default_rng(0)

    def unit(x):
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    a, b = unit(random.normal(size=(300, 48))), unit(random.normal(size=(2_003, 48)))
    close = b.copy()
    close[1000:1200] = unit(a[:200] + 1e-4 * random.normal(size=(200, 48)))
    close[1200:1400], close[1400:1600] = unit(a[:200] + 1e-4 * random.normal(size=(200, 48))), a[:200]
    close[1700:1703] = close[:3]  # equal: the lower comes first
    cases = {"random": (a, b), "close": (a, close), "opposite": (np.abs(a), -np.abs(b))}
    for name, (ours, theirs) in cases.items():
        found, known = nearest.nearest(ours, theirs, n), nearest.nearest_reference(ours, theirs, n)
        np.testing.assert_array_equal(found[0], known[0], err_msg=name)
        np.testing.assert_array_equal(found[1], known[1], err_msg=name)
    assert not taken
    alike = np.repeat(b[:1], 2_003, axis=0)
    np.testing.assert_array_equal(nearest.nearest(a, alike, n)[0], np.tile(np.arange(n), (300, 1)))
    assert sum(taken) == 300
    assert nearest.nearest(a[:0], b, n)[0].shape == (0, n)
