"""Kinds of rows: where they are in their document, how common their token is, what kind of document it is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from saelab.analysis.blocks import Block
from saelab.analysis.sources import Passes, Rows
from saelab.capabilities import HasTokens, lacking

QUARTERS = ("commonest quarter", "2nd quarter", "3rd quarter", "rarest quarter")
"""Of the rows, by how often their token occurs in them."""


class RowClasses:
    """What kinds the rows of a source are of, block by block, in their order."""

    def __init__(self, source: Rows | Passes) -> None:
        self._source = source
        self._units: list[np.ndarray] = []
        self._positions: list[np.ndarray] = []
        self._tokens: list[np.ndarray] = []

    def add(self, block: Block) -> None:
        """Count the rows of a block."""
        self._units.append(block.unit)
        if block.kept is None or block.inputs is None:
            return
        self._positions.append(block.kept.nonzero()[:, 1].numpy())
        source = self._source
        if isinstance(source, Passes) and not lacking(source.subject, HasTokens):
            ids = block.inputs.data["input_ids"].cpu()
            if ids.shape == block.kept.shape:
                self._tokens.append(ids[block.kept].numpy())

    def columns(self) -> dict[str, np.ndarray]:
        """Of all rows: `document` and, where there is such a thing, `position` int64 and `token`, its id; and
        of each kind of class, by its name ("position band", "token frequency", "document kind"), the class of
        each row."""
        unit = np.concatenate([np.zeros(0, np.int64), *self._units])
        found = {"document": unit}
        if self._positions:
            found["position"] = position = np.concatenate(self._positions)
            found["position band"] = bands(position)
        if self._tokens:
            found["token"] = token = np.concatenate(self._tokens)
            found["token frequency"] = frequency(token)
        kinds = self._kinds(int(unit.max(initial=-1)) + 1)
        if any(kinds):
            found["document kind"] = np.array([*kinds], object)[unit]
        return found

    def _kinds(self, n: int) -> Sequence[str]:
        source = self._source
        if not isinstance(source, Passes):
            return []
        return [getattr(each, "kind", "") for each in itertools.islice(iter(source.corpus), n)]


CLASSES = ("position band", "token frequency", "document kind")


def bands(position: np.ndarray) -> np.ndarray:
    """Positions in bands that double: 0, 1, 2-3, 4-7, 8-15, ...

    Args:
        position: int [n].

    Returns:
        str [n].
    """
    power = np.floor(np.log2(np.maximum(position, 1))).astype(int)
    names = ["1", *(f"{2**p}-{2 ** (p + 1) - 1}" for p in range(1, power.max(initial=0) + 1))]
    return np.where(position < 1, "0", np.array(names, object)[power])


def frequency(token: np.ndarray) -> np.ndarray:
    """The quarter of the rows that each token is in, when tokens are sorted by how many rows they have.

    Args:
        token: int [n].

    Returns:
        str [n], of `QUARTERS`.
    """
    _, at, counts = np.unique(token, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    before = np.empty(len(counts), np.int64)
    before[order] = np.cumsum(counts[order]) - counts[order]
    quarter = np.minimum(4 * before // max(1, len(token)), 3)
    return np.array(QUARTERS, object)[quarter[at]]


def ordered(values: np.ndarray) -> list[str]:
    """The classes that there are, bands and quarters in their order, others by name.

    Args:
        values: The class of each row.
    """
    known: Mapping[str, int] = {name: i for i, name in enumerate(QUARTERS)}

    def key(name: str) -> tuple[int, str]:
        head = name.split("-")[0]
        return (known.get(name, int(head) if head.isdecimal() else 0), name)

    return sorted(set(values.tolist()), key=key)


__all__ = ["CLASSES", "QUARTERS", "RowClasses", "bands", "frequency", "ordered"]
