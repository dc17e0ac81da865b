"""Some rows at a time, and what is kept of a subject's passes while it fits into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from saelab.types import Inputs

T = TypeVar("T")
MOST_KEPT = 256 << 20


@dataclass(frozen=True)
class Block:
    """Some rows, and where they are in a pass of the subject."""

    x: Tensor
    y: Tensor
    unit: np.ndarray
    """int64 [rows]: number of the sample that each is of"""
    inputs: Inputs | None = None
    acts: Mapping[str, Tensor] = field(default_factory=dict)
    """hook name -> [samples positions width]"""
    kept: Tensor | None = None
    """bool [samples positions]: which positions are rows"""
    samples: Sequence[int] = ()
    """number of each sample of the pass"""
    n_read: int = 0
    """documents that were read until then"""

    @property
    def size(self) -> int:
        """Bytes."""
        tensors = {id(each): each for each in (self.x, self.y, *self.acts.values())}
        return sum(each.numel() * each.element_size() for each in tensors.values())


class Kept:
    """What a subject's passes gave and is asked for again, by other suites and SAEs, while it fits into
    memory.

    Args:
        most: Bytes.
    """

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._left = most
        self._blocks: dict[Any, list[Block]] = {}
        self._values: dict[Any, Any] = {}

    def blocks(self, key: Any, make: Callable[[], Iterator[Block]]) -> Iterator[Block]:
        """The blocks that `make` gives, made once where they fit.

        Args:
            key: What they are of.
            make: Called where they are not kept.
        """
        if key in self._blocks:
            yield from self._blocks[key]
            return
        found: list[Block] | None = []
        left = self._left
        for block in make():
            left -= block.size
            if found is not None:
                found.append(block)
            if left < 0:
                found = None
            yield block
        if found is not None:
            self._left, self._blocks[key] = left, found

    def value(self, key: Any, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """What `make` gives, made once where it fits.

        Args:
            key: What it is of.
            make: Called where it is not kept.
            size: Its bytes.
        """
        if key in self._values:
            return self._values[key]
        found = make()
        if size(found) <= self._left:
            self._left -= size(found)
            self._values[key] = found
        return found


__all__ = ["Block", "Kept"]
