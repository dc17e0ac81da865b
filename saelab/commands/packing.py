"""Parquet files written again as small as they get: the same tables, each column in the encoding that takes
the fewest bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from saelab.files import new_file

LEVEL = 19
"""Of zstd."""
WORTH = 0.05
"""Share of a file's bytes that must be saved, else it is left as it is."""
ENCODINGS: dict[str, dict[str, str]] = {
    "delta": {
        "INT32": "DELTA_BINARY_PACKED",
        "INT64": "DELTA_BINARY_PACKED",
        "BYTE_ARRAY": "DELTA_BYTE_ARRAY",
    },
    "split": {"FLOAT": "BYTE_STREAM_SPLIT", "DOUBLE": "BYTE_STREAM_SPLIT"},
    "plain": {},
}
"""Beside a dictionary: what is tried for columns of a physical type, else PLAIN."""


def pack(path: Path) -> int:
    """Write a Parquet file again, where that makes it smaller; groups of rows keep their size.

    Args:
        path: The file.

    Returns:
        Bytes saved.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    opened = pq.ParquetFile(path)
    table, told = opened.read(), opened.metadata
    rows = max([told.row_group(i).num_rows for i in range(told.num_row_groups)], default=1) or 1
    columns = [told.schema.column(i) for i in range(told.num_columns)]

    def written(dictionary: list[str], encoding: dict[str, str]) -> bytes:
        out = io.BytesIO()
        options: dict[str, Any] = {
            "use_dictionary": dictionary or False, "column_encoding": encoding or None,
            "compression": "zstd", "compression_level": LEVEL, "data_page_version": "2.0",
        }  # fmt: skip
        pq.write_table(table, out, row_group_size=rows, **options)
        return out.getvalue()

    names = [column.path for column in columns]
    tried: dict[str, list[tuple[int, str | None]]] = {name: [] for name in names}
    for kinds in (None, *ENCODINGS.values()):
        own = {c.path: (kinds or {}).get(c.physical_type, "PLAIN") for c in columns}
        made = pq.ParquetFile(io.BytesIO(written(names, {}) if kinds is None else written([], own)))
        for i, name in enumerate(names):
            groups = range(made.metadata.num_row_groups)
            size = sum(made.metadata.row_group(g).column(i).total_compressed_size for g in groups)
            tried[name].append((size, None if kinds is None else own[name]))
    best = {name: min(sizes, key=lambda each: each[0])[1] for name, sizes in tried.items()}
    encoding = {name: each for name, each in best.items() if each is not None}
    data = written([name for name in names if name not in encoding], encoding)
    again: pa.Table = pq.read_table(io.BytesIO(data))
    saved = path.stat().st_size - len(data)
    if saved < WORTH * path.stat().st_size or not again.equals(table):
        return 0
    with new_file(path) as temporary:
        temporary.write_bytes(data)
    return saved
