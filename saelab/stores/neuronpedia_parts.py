"""The lines of an export as tables, a file of the export after the other: what `neuronpedia_store` sorts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saelab.files import new_file
from saelab.stores.neuronpedia import Scanner, origin_of, refusing
from saelab.stores.neuronpedia_fields import Feature, Window, feature_of, window_of
from saelab.types import FormatError

URL = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com/index.html?prefix=v1/"
REMEDY = f"Get MODEL/SOURCE with its folders features, activations and explanations from {URL}."
FLUSH_VALUES = 1 << 19
"""Tokens and numbers that wait in memory to be written."""
SHIFT = 40
"""A line's place is (number of its file << SHIFT) + its number there."""
_LOGITS = pa.list_(pa.struct([("token", pa.string()), ("logit", pa.float32())]))
FEATURES = pa.schema(
    [
        ("place", pa.int64()),
        ("latent", pa.int32()),
        ("share", pa.float64()),
        ("most", pa.float64()),
        ("heights", pa.list_(pa.int64())),
        ("edges", pa.list_(pa.float64())),
        ("raised", _LOGITS),
        ("lowered", _LOGITS),
        ("spread", pa.float64()),
        ("vector", pa.list_(pa.float32())),
        ("hook", pa.string()),
    ]
)
WINDOWS = pa.schema(
    [
        ("place", pa.int64()),
        ("latent", pa.int32()),
        ("kind", pa.string()),
        ("bin", pa.float64()),
        ("peak", pa.int32()),
        ("value", pa.float32()),
        ("key", pa.binary()),
        ("tokens", pa.list_(pa.string())),
        ("values", pa.list_(pa.float32())),
    ]
)


def written(
    file: Path,
    number: int,
    out: Path,
    kind: str,
    *,
    of: str | None,
    skip: bool,
    told: Callable[[int], object] | None,
) -> dict[str, Any]:
    """A file of an export as a table. What was written of it before is read.

    Args:
        file: Of the export.
        number: Among those of its kind.
        out: The table's path.
        kind: "features" or "activations".
        of: MODEL/SOURCE that it must be of; None: that of its first line.
        skip: Leave out lines whose fields are not as they must be.
        told: Called with the bytes that were read since.

    Returns:
        `of`, `lines`, `skipped`, `first` (the first line that was skipped, and why) and `silent` (windows in
        which nothing fires).

    Raises:
        FormatError: A line is not as it must be, or of another SAE.
    """
    if out.is_file():
        if told is not None:
            told(file.stat().st_size)
        return json.loads(pq.read_metadata(out).metadata[b"said"])
    said: dict[str, Any] = {"of": of, "lines": 0, "skipped": 0, "first": "", "silent": 0}
    rows = _rows(file, kind, number, said, skip, told)
    schema = FEATURES if kind == "features" else WINDOWS
    with new_file(out) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as table:
        for some in _blocks(rows):
            columns = [list(column) for column in zip(*some, strict=True)]
            arrays = [pa.array(column, f.type) for column, f in zip(columns, schema, strict=True)]
            table.write_table(pa.Table.from_arrays(arrays, schema=schema))
        table.add_key_value_metadata({"said": json.dumps(said)})
    return said


def _rows(
    file: Path,
    kind: str,
    number: int,
    said: dict[str, Any],
    skip: bool,
    told: Callable[[int], object] | None,
) -> Iterator[tuple[Any, ...]]:
    scan = Scanner(file, told)
    read: Callable[[dict[str, Any]], Feature | Window | None]
    read = feature_of if kind == "features" else window_of
    with refusing(scan, kind, REMEDY):
        for line, row in enumerate(scan.objects()):
            said["lines"] += 1
            try:
                of = origin_of(row)
                found = read(row)
            except (ValueError, TypeError) as error:
                if not skip:
                    raise
                said["skipped"] += 1
                said["first"] = said["first"] or f"line {scan.line} of {file}: {str(error)[:200]}"
                continue
            if of != (said["of"] or of):
                message = (
                    f"An export must be of one SAE. Got {said['of']} and, at line {scan.line} of {file}, "
                    f"{of}. Pass the folder of one model and source."
                )
                raise FormatError(message)
            said["of"] = of
            if found is None:
                said["silent"] += 1
            else:
                yield ((number << SHIFT) + line, *_columns(found))


def _columns(found: Feature | Window) -> Iterable[Any]:
    if isinstance(found, Window):
        return found
    sides = {
        name: [{"token": token, "logit": value} for token, value in getattr(found, name)]
        for name in ("raised", "lowered")
    }
    return found._replace(**sides)


def _blocks(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """So many at a time that FLUSH_VALUES of what their lists hold wait in memory."""
    some, size = [], 0
    for row in rows:
        some.append(row)
        size += 16 + sum(len(value) for value in row if hasattr(value, "__len__"))
        if size >= FLUSH_VALUES:
            yield some
            some, size = [], 0
    if some:
        yield some
