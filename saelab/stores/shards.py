"""What a store of activations is made of: shards, files of safetensors with so many rows each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saelab.types import StoreError

KIND = "activations"
SAFETENSORS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""dtype of a store -> what safetensors calls it."""
DTYPES = tuple(SAFETENSORS)
SHARD_ROWS = 65_536
MAX_HEADER_BYTES = 2**20


@dataclass
class Job:
    """Where a long job writes."""

    folder: Path
    """Here."""
    size: Callable[[str], int | None]
    """name -> bytes of a file that is there already, else None."""
    publish: Callable[[str], None] = lambda name: None
    """Puts a whole file of the folder where it belongs."""


def shard_name(number: int) -> str:
    """Of the shard's file."""
    return f"shard-{number:05}.safetensors"


def expected_tensors(n: int, dtype: str, widths: Mapping[str, int]) -> dict[str, tuple[str, list[int]]]:
    """Name -> (dtype, shape) of what a shard of n rows holds: each hook point's activations, and `rows`."""
    kind = SAFETENSORS[dtype]
    return {hook: (kind, [n, width]) for hook, width in widths.items()} | {"rows": ("I64", [n, 2])}


def check_tensors(found: Mapping[str, Any], expected: Mapping[str, Any], where: object) -> None:
    """Tensors, (dtype, shape) by name, must be those that the manifest says.

    Raises:
        StoreError: Where a shard holds others.
    """
    if found != expected:
        other = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
        message = (
            f"{where} must hold what its manifest says. Got {other[0]!r}: {found.get(other[0])} for "
            f"{expected.get(other[0])}. Write the store again."
        )
        raise StoreError(message)
