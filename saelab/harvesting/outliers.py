"""Rows of outlier norm: attention sinks and massive activations, one of which weighs as much as thousands of
others in a loss and in FVU (Sun et al. 2024, arXiv 2402.17762)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saelab.config import is_number
from saelab.types import ConfigError, short

if TYPE_CHECKING:
    from torch import Tensor

FIRST_ROWS = 4096
"""Rows of which the median norm is, where not all are at hand: the first of the corpus."""


def multiple_or_none(name: str, value: Any) -> float | None:
    """A multiple of the median norm beyond which rows are left out, or None for all rows.

    Raises:
        ConfigError: It is no finite number above 1.
    """
    if value is None or (is_number(value) and 1 < value < math.inf):
        return None if value is None else float(value)
    message = (
        f"{name} is a multiple of the median norm, a finite number above 1, or None for all rows. Got "
        f"{short(value)}. Pass {name}=10."
    )
    raise ConfigError(message)


@dataclass(frozen=True)
class Limits:
    """The norms that rows may have.

    Args:
        multiple: Of the median.
        norms: Hook name -> the largest norm of a row that counts: multiple * median |x|.
    """

    multiple: float
    norms: Mapping[str, float]

    @classmethod
    def of_first(cls, multiple: float, acts: Iterable[Mapping[str, Tensor]]) -> Limits:
        """Those of rows that come in parts.

        Args:
            multiple: Of the median norm (the lower one of an even number).
            acts: Parts, each hook name -> [n width].

        Raises:
            ConfigError: The median norm at a hook point is 0.
        """
        import torch

        parts = [{hook: lengths(x).cpu() for hook, x in each.items()} for each in acts]
        hooks = parts[0] if parts else {}
        return cls(multiple, {h: limit(multiple, torch.cat([part[h] for part in parts]), h) for h in hooks})

    def kept(self, acts: Mapping[str, Tensor]) -> Tensor:
        """Which rows count, bool [n]: those that are within the limit at every hook point.

        Args:
            acts: Hook name -> [n width].
        """
        import torch

        within = [lengths(acts[hook]) <= norm for hook, norm in self.norms.items()]
        return torch.stack([each.to(within[0].device) for each in within]).all(0)


def lengths(x: Tensor) -> Tensor:
    """Euclidean norms, float32 [n], of rows [n width]; also where squares overflow or halves are given."""
    x = x.float()
    largest = x.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    return (x / largest).norm(dim=-1) * largest[:, 0]


def limit(multiple: float, norms: Tensor, of: str) -> float:
    """The largest norm that counts: a multiple of the median.

    Args:
        multiple: Of the median.
        norms: [n].
        of: What they are of, for the error.

    Raises:
        ConfigError: The median is 0.
    """
    median = float(norms.median())
    if median > 0:
        return multiple * median
    message = (
        f"max_norm needs rows whose median norm is above 0. Got 0 at {of}: half of the rows are zeros. Leave "
        "max_norm out."
    )
    raise ConfigError(message)


__all__ = ["FIRST_ROWS", "Limits", "lengths", "limit", "multiple_or_none"]
