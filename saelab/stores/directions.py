"""The decoder directions of a store's latents: `directions.npy`, mapped rather than loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from saelab.files import claim
from saelab.stores.lacking import need_directions
from saelab.types import ShapeError, StoreError

NAME = "directions.npy"
BLOCK_VALUES = 1 << 22


def write_directions(folder: Path, W_dec: Any) -> None:
    """Write the rows of a decoder, [n_latents d_out] tensor or array, as unit vectors in float16: each entry
    is off by at most 2^-12 and a few 2^-25. Rows of zeros stay zeros; memory does not grow with the decoder.

    Raises ShapeError where it is no matrix, StoreError where the disk has no room.
    """
    if len(W_dec.shape) != 2:
        message = f"Directions must be [n_latents d_out]. Got {list(W_dec.shape)}. Pass the SAE's W_dec."
        raise ShapeError(message)
    shape = tuple(map(int, W_dec.shape))
    said = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)),
        "fortran_order": False,
        "shape": shape,
    }
    claim(folder / NAME, 2 * shape[0] * shape[1])
    step = max(1, BLOCK_VALUES // max(shape[1], 1))
    with (folder / NAME).open("rb+") as file:
        np.lib.format.write_array_header_1_0(file, said)
        for first in range(0, shape[0], step):
            some = W_dec[first : first + step]
            rows = np.asarray(
                some.detach().cpu().float() if hasattr(some, "detach") else some, dtype=np.float64
            )
            file.write(np.ascontiguousarray(_unit(rows), dtype=np.float16).data)


def open_directions(folder: Path, n_latents: int, manifest: Mapping[str, Any]) -> np.ndarray:
    """The directions of a store, float16 [n_latents d_out], mapped read-only.

    Raises StoreError where there are none, or those of other latents.
    """
    path = folder / NAME
    if not path.is_file():
        need_directions(manifest)
        message = (
            f"A store must hold {NAME} to be asked for directions. Got {folder}, which has none: an older "
            "version wrote it. Index the corpus again with saelab.index."
        )
        raise StoreError(message)
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        message = f"{path} must be as it was written. Got: {error}. Write the store again."
        raise StoreError(message) from error
    if found.ndim != 2 or len(found) != n_latents or found.dtype != np.float16:
        message = (
            f"{path} must be float16 [{n_latents} d_out]. Got {found.dtype} {list(found.shape)}. "
            "Write the store again."
        )
        raise StoreError(message)
    return found


def unit_blocks(directions: np.ndarray, rows: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, float32 unit rows) of all directions, so many rows at a time; rows of zeros stay zeros."""
    step = rows or max(1, BLOCK_VALUES // max(directions.shape[1], 1))
    for first in range(0, len(directions), step):
        yield first, _unit(directions[first : first + step].astype(np.float32))


def cosines(directions: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """float32 [n_latents]: of each direction with a unit vector float32 [d_out]; -inf where it has none."""
    found = np.empty(len(directions), np.float32)
    for first, rows in unit_blocks(directions):
        found[first : first + len(rows)] = np.where(rows.any(1), rows @ unit, -np.inf)
    return found


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
