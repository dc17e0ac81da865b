"""Parquet files written again as small as they get: the same rows, in groups of the same size."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from saelab.commands.packing import pack


def test_a_packed_table_is_the_same_and_smaller(tmp_path):
    rng = np.random.default_rng(0)
    table = pa.table({
        "row": np.arange(9_000),
        "value": rng.random(9_000).astype(np.float32),
        "names": [["a", "b"][: i % 3] for i in range(9_000)],
        "kind": ["top" if i % 7 else None for i in range(9_000)],
        "call": np.zeros(9_000, np.int16),
    })  # fmt: skip
    path = tmp_path / "t.parquet"
    pq.write_table(table, path, row_group_size=2_000, compression="zstd", use_dictionary=False)
    before = path.stat().st_size
    saved = pack(path)
    assert saved > 0.1 * before
    assert path.stat().st_size == before - saved
    assert pq.read_table(path).equals(table)
    assert pq.read_metadata(path).num_row_groups == 5
    data = path.read_bytes()
    assert pack(path) == 0
    assert path.read_bytes() == data


def test_an_empty_table_is_left_alone(tmp_path):
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "e.parquet")
    pack(tmp_path / "e.parquet")
    assert pq.read_table(tmp_path / "e.parquet").num_rows == 0
