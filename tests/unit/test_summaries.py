"""What a feature store keeps of each latent, against plain sorts; the sorted file, at some size."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from saelab import seeds
from saelab.stores import FeatureStore, summaries
from saelab.stores.feature_writer import FeatureWriter, StoredRows
from saelab.stores.manifest import building
from saelab.stores.records import DocumentRecord
from saelab.types import (
    Codes,
    Shown,
)


def mixed(x):
    """SplitMix64's finaliser in Python's integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def test_draws_are_splitmix64():
    # the first outputs of the published generator for seed 1234567
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    state, outputs = 1234567, []
    for _ in published:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        outputs.append(mixed(state))
    assert outputs == published
    state = np.uint64(1234567) + np.uint64(seeds.GOLDEN) * np.arange(1, 4, dtype=np.uint64)
    np.testing.assert_array_equal(
        summaries.draws(np.uint64(0), state), [(x >> 11) / 2**53 for x in published]
    )
    found = summaries.row_keys(np.full(3, 1234567, np.uint64), np.arange(3))
    assert found.tolist() == published
    keys = summaries.latent_keys(7, np.array([0, 5]))
    assert keys.tolist() == [mixed(mixed(j + 1) ^ mixed(7)) for j in (0, 5)]


@st.composite
def sorted_codes(draw):
    """(fired, row, value, n): values from few levels, so that ties are many."""
    lengths = draw(st.lists(st.integers(0, 150), min_size=1, max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = rng.normal(size=draw(st.integers(1, 200))).astype(np.float32)
    fired = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    rows = [np.sort(rng.choice(1000, n, replace=False)) for n in lengths]
    value = rng.choice(levels, len(fired))
    return fired, np.concatenate(rows).astype(np.int64), value, len(lengths)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-300, 0, width=32) | st.just(0.0),
    st.floats(0.125, 100, width=32) | st.integers(1, 900).map(float),
)
def test_values_on_an_edge_fall_where_numpy_puts_them(low, high):
    ends = np.array([low, high], np.float32)
    steps = summaries.statistics(np.zeros(2, np.int32), ends, 1).edges[0].astype(np.float32)
    value = np.r_[steps, np.nextafter(steps, np.float32(-9)), np.nextafter(steps, np.float32(999))]
    value = value[(value != 0) & (value >= np.float32(low)) & (value <= np.float32(high))]
    fired = np.repeat(np.arange(2, dtype=np.int32), len(value))
    stats = summaries.statistics(fired, np.r_[value, value * 2], 2)
    for latent, values in enumerate((value, value * 2)):
        expected, _ = np.histogram(values, bins=stats.edges[latent])
        np.testing.assert_array_equal(stats.histogram[latent], expected)
        assert stats.histogram[latent].sum() == stats.count[latent] == len(values)
        below = stats.edges[latent][1:] <= 0  # no bin mixes the signs
        assert stats.histogram[latent][below].sum() == stats.negative[latent] == (values < 0).sum()


@settings(max_examples=60, deadline=None)
@given(sorted_codes(), st.integers(0, 30))
def test_strongest_equals_a_plain_sort(codes, keep):
    fired, row, value, n = codes
    at, rank = summaries.strongest(fired, value, n, keep)
    for latent in range(n):
        mine = np.flatnonzero(fired == latent)
        best = sorted(mine, key=lambda c: (-abs(value[c]), row[c]))[:keep]
        assert at[fired[at] == latent].tolist() == best
        assert rank[fired[at] == latent].tolist() == list(range(len(best)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), max_size=7), max_size=9), st.integers(0, 4))
def test_at_least_is_the_last_that_is_kept_of_a_stretch(stretches, keep):
    values = np.array([v for s in stretches for v in s], dtype=np.float32)
    limit = summaries.at_least(values, np.cumsum([0, *map(len, stretches)]), keep, -9)
    expected = [sorted(s)[-keep] if keep and len(s) > keep else -9 for s in stretches]
    np.testing.assert_array_equal(limit, expected)


@settings(max_examples=60, deadline=None)
@given(sorted_codes(), st.integers(0, 30), st.integers(0, 3))
def test_spread_takes_the_smallest_draws_of_each_stratum(codes, keep, seed):
    fired, row, value, n = codes
    draw = np.random.default_rng(seed).random(len(fired))
    stats = summaries.statistics(fired, value, n)
    at, rank, stratum = summaries.spread(fired, row, value, draw, stats.min_abs, stats.max_abs, keep)
    for latent in range(n):
        mine = np.flatnonzero(fired == latent)
        size = {c: abs(float(value[c])) for c in mine}
        groups = {}
        if len(mine):
            finest = 2.0 ** (math.floor(math.log2(max(size.values()))) - 23)
            step = finest
            while len(
                {math.floor(max(size.values()) / step) - math.floor(min(size.values()) / step)}
                - set(range(8))
            ):
                step *= 2
            first = math.floor(min(size.values()) / step)
            for c in mine:
                groups.setdefault(math.floor(size[c] / step) - first, []).append((draw[c], c))
        chosen = [c for group in groups.values() for _, c in sorted(group)[: math.ceil(keep / 5)]]
        chosen.sort(key=lambda c: (size[c], row[c]))
        here = fired[at] == latent
        assert at[here].tolist() == chosen
        assert rank[here].tolist() == list(range(len(chosen)))
        belongs = {c: s for s, group in groups.items() for _, c in group}
        assert stratum[here].tolist() == [belongs[c] for c in chosen]


def test_spread_finds_its_quota_where_low_draws_are_missing():
    """Where the first guess at a stratum's low draws holds too few, all of the stratum are sorted."""
    n = 5000
    fired, row = np.zeros(n, np.int32), np.arange(n)
    value = np.linspace(1, 1.99, n).astype(np.float32)
    draw = 1 - 1e-6 * (row + 1.0)
    at, _, stratum = summaries.spread(fired, row, value, draw, value[:1], value[-1:], 10)
    assert np.bincount(stratum).tolist() == [2] * 8
    assert at[-2:].tolist() == [n - 2, n - 1]


@settings(max_examples=100, deadline=None)
@given(sorted_codes(), st.integers(1, 5), st.integers(0, 2**32))
def test_statistics_of_parts_are_those_of_the_whole(codes, n_parts, seed):
    """However the rows are divided: counts, ranges and histograms exactly, sums but for rounding."""
    fired, row, value, n = codes
    whole = summaries.statistics(fired, value, n)
    of = np.random.default_rng(seed).integers(0, n_parts, 1000)[row]
    parts = [summaries.statistics(fired[of == p], value[of == p], n) for p in range(n_parts)]
    for found in (summaries.combined(parts), summaries.combined([summaries.combined(parts[:1]), *parts[1:]])):
        for name, expected, got in zip(whole._fields, whole, found, strict=True):
            if name.startswith("sum"):
                np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
            else:
                np.testing.assert_array_equal(got, expected, err_msg=name)


@settings(max_examples=60, deadline=None)
@given(sorted_codes(), st.integers(0, 30), st.integers(1, 5), st.integers(0, 2**32))
def test_what_spread_takes_of_parts_holds_what_it_takes_of_the_whole(codes, keep, n_parts, seed):
    fired, row, value, n = codes
    rng = np.random.default_rng(seed)
    draw, of = rng.random(len(fired)), rng.integers(0, n_parts, 1000)[row]

    def chosen(some):
        stats = summaries.statistics(fired[some], value[some], n)
        columns = (x[some] for x in (fired, row, value, draw))
        return some[summaries.spread(*columns, stats.min_abs, stats.max_abs, keep)[0]]

    whole = chosen(np.arange(len(fired)))
    kept = np.sort(np.concatenate([chosen(np.flatnonzero(of == p)) for p in range(n_parts)]))
    stats = summaries.statistics(fired, value, n)
    columns = (x[kept] for x in (fired, row, value, draw))
    again = kept[summaries.spread(*columns, stats.min_abs, stats.max_abs, keep)[0]]
    assert again.tolist() == whole.tolist()


def write(folder, codes, d_sae, size=10_000, **options):
    """A store of codes alone: one document a batch."""
    with building(folder) as temporary:
        writer = FeatureWriter(temporary, d_sae, **options)
        for number, first in enumerate(range(0, len(codes), size)):
            part = codes[first : first + size]
            n = len(part)
            origin = np.stack([np.full(n, number), np.arange(n), np.zeros(n, int)], 1)
            rows = StoredRows(origin, np.zeros(n, int), [Shown("token", "t")], np.zeros(n, int))
            document = [DocumentRecord(number, str(number), "", "", "line")]
            writer.add(Codes.from_dense(part), rows, document)
        hook = {"name": "h", "io": "out", "n_heads": None}
        writer.finish({"hook": hook, "sae": "s", "subject": "m", "corpus": None})
    return FeatureStore.open(folder)


def test_the_sort_holds_across_row_groups(tmp_path):
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(30_000, 40)).astype(np.float32)
    dense[rng.random(dense.shape) < 0.6] = 0
    store = write(tmp_path / "s", dense, 40)
    assert pq.ParquetFile(store.folder / "codes_by_latent.parquet").num_row_groups > 1
    frame = pd.read_parquet(store.folder / "codes_by_latent.parquet")
    latent, row = np.nonzero(dense.T)
    np.testing.assert_array_equal(frame["latent"], latent)
    np.testing.assert_array_equal(frame["row"], row)
    np.testing.assert_array_equal(frame["value"], dense[row, latent])


def test_no_latent_fires(tmp_path):
    store = write(tmp_path / "s", np.zeros((20, 3), np.float32), 3)
    assert [store.latent(j).count for j in range(3)] == [0, 0, 0]
    assert store.examples(1) == []
    assert store.top_names() == {}
    assert len(store.codes(2)[0]) == len(store.rows(19).latents) == 0
