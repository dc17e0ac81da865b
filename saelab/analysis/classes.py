"""Kinds of rows: where they are in their document, how common their token is, what kind of document it is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from saelab.analysis.blocks import Block
from saelab.analysis.sources import Passes, Rows
from saelab.capabilities import HasTokens, lacking

QUARTERS = ("commonest quarter", "2nd quarter", "3rd quarter", "rarest quarter")
"""Of the rows, by how often their token occurs in them."""
CLASSES = ("token kind", "position band", "token frequency", "document kind")
"""Kinds of classes."""


class RowClasses:
    """What kinds the rows of a source are of. The first reading counts tokens, the second is told of each
    block; of rows nothing is kept.

    Args:
        source: Whose blocks come.
    """

    def __init__(self, source: Rows | Passes) -> None:
        subject = source.subject if isinstance(source, Passes) else None
        self._special: np.ndarray | None = None
        if subject is not None and not lacking(subject, HasTokens):
            self._special = np.array(sorted(getattr(subject, "special_ids", ())), np.int64)
        self._documents = iter(source.corpus) if isinstance(source, Passes) else iter(())
        self._kinds: list[str] = []
        self._counts = np.zeros(0, np.int64)
        self._quarters: np.ndarray | None = None

    def add(self, block: Block) -> None:
        """Count the tokens of a block of the first reading."""
        ids = self._tokens(block)
        if ids is not None:
            found = np.bincount(ids, minlength=len(self._counts))
            found[: len(self._counts)] += self._counts
            self._counts = found

    def of(self, block: Block) -> dict[str, np.ndarray]:
        """Of each row of a block of the second reading: `document` and, where there is such a thing,
        `position` int64 and `token`, its id; and of each kind of class (`CLASSES`) the one that it is of.

        Args:
            block: Of the same source.
        """
        found = {"document": block.unit}
        if block.kept is not None:
            found["position"] = position = block.kept.nonzero()[:, 1].numpy()
            found["position band"] = bands(position)
        ids = self._tokens(block)
        if ids is not None and self._special is not None:
            if self._quarters is None:
                self._quarters = quarters(self._counts)
            found["token"] = ids
            found["token frequency"] = np.array(QUARTERS, object)[self._quarters[ids]]
            found["token kind"] = np.where(np.isin(ids, self._special), SPECIAL, "ordinary").astype(object)
        kinds = self._kinds_until(int(block.unit.max(initial=-1)) + 1)
        if any(kinds):
            found["document kind"] = np.array(kinds, object)[block.unit]
        return found

    def _tokens(self, block: Block) -> np.ndarray | None:
        if self._special is None or block.kept is None or block.inputs is None:
            return None
        ids = block.inputs.data["input_ids"].cpu()
        return ids[block.kept].numpy() if ids.shape == block.kept.shape else None

    def _kinds_until(self, n: int) -> list[str]:
        more = itertools.islice(self._documents, max(0, n - len(self._kinds)))
        self._kinds += [getattr(each, "kind", "") for each in more]
        return self._kinds


SPECIAL = "special"
"""Tokens that the tokenizer knows as its own: BOS, role markers, ends of turns."""


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


def quarters(counts: np.ndarray) -> np.ndarray:
    """The quarter of the rows that each token is in, when tokens are sorted by how many rows they have.

    Args:
        counts: int [d_vocab]: rows of each token.

    Returns:
        int [d_vocab], of `QUARTERS`.
    """
    order = np.argsort(-counts, kind="stable")
    before = np.empty(len(counts), np.int64)
    before[order] = np.cumsum(counts[order]) - counts[order]
    return np.minimum(4 * before // max(1, int(counts.sum())), 3)


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


__all__ = ["CLASSES", "QUARTERS", "RowClasses", "bands", "ordered", "quarters"]
