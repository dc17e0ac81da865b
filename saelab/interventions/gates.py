"""Gates: where an edit by an SAE acts, by what a latent, or a concept, does there."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from saelab.config import is_number
from saelab.types import ConfigError, nearest, short

Gate = Literal["constant", "input", "token"]


class Rows(NamedTuple):
    """The rows that an edit by an SAE sees: positions that count, in order."""

    sample: Tensor
    """int64 [n], which sample each row is of, ascending"""
    position: Tensor
    """int64 [n], its place among the positions of this pass"""
    given: Tensor | None = None
    """bool [n], False where the subject wrote the position itself; None: all were given"""
    past: dict[Any, Any] | None = None
    """what earlier passes of the same generation left, under a key of this edit's own"""
    size: tuple[int, int] = (0, 0)
    """how many samples and positions this pass has"""


def opened(
    gate: Gate, threshold: float | None, size: Tensor, rows: Rows, pool: Literal["max", "mean"] = "max"
) -> Tensor:
    """Where a gate is open.

    "constant": everywhere. "token": where the signal exceeds the threshold. "input": where that of the input
    so far does or once did, its largest or its mean over positions. What was given is one input; at a
    position that the subject wrote itself the input is all up to and with this one. So a text is generated
    alike with a cache and without, and one that was flagged stays flagged.

    Args:
        gate: Which.
        threshold: None with "constant".
        size: [n, g], the signal of each row, >= 0.
        rows: Which rows they are.
        pool: What an input's signal is, with "input".

    Returns:
        bool [n, g].
    """
    if gate == "constant" or threshold is None:
        return torch.ones_like(size, dtype=torch.bool)
    if gate == "token":
        return size > threshold
    if pool == "max":
        return so_far(size, rows, "max") > threshold
    total = so_far(torch.cat([size, torch.ones_like(size[:, :1])], 1), rows, "sum")
    return so_far(total[:, :-1] / total[:, -1:], rows, "max") > threshold


def so_far(size: Tensor, rows: Rows, how: Literal["max", "sum"]) -> Tensor:
    """The largest, or the sum, over the input so far of each row.

    Args:
        size: [n, g], >= 0.
        rows: Which rows they are. What later passes need of it is left in `rows.past`.
        how: Which.

    Returns:
        [n, g].
    """
    sample, before = rows.sample, None if rows.past is None else rows.past.get(how)
    n_samples = max(int(sample[-1]) + 1, 0 if before is None else len(before))
    whole = size.new_zeros(n_samples, size.shape[1])
    if before is not None:
        whole[: len(before)] = before
    given = torch.ones_like(sample, dtype=torch.bool) if rows.given is None else rows.given
    index = sample[:, None].expand_as(size)
    whole = whole.scatter_reduce(0, index[given], size[given], "amax" if how == "max" else "sum")
    reached = whole[sample]
    if not given.all():
        # own positions in their order: each sample a line, along which it grows
        written = size.new_zeros(n_samples, int(rows.position.max()) + 1, size.shape[1])
        written[sample[~given], rows.position[~given]] = size[~given]
        if how == "max":
            running = written.cummax(1).values.maximum(whole[:, None])
        else:
            running = written.cumsum(1) + whole[:, None]
        reached = torch.where(given[:, None], reached, running[sample, rows.position])
        whole = running[:, -1]
    if rows.past is not None:
        rows.past[how] = whole
    return reached


def checked_gate(gate: Any, threshold: Any) -> tuple[Gate, float | None]:
    """A gate and its threshold, as edits hold them.

    Args:
        gate: "constant", "input" or "token".
        threshold: A number >= 0; None or 0 with "constant".

    Raises:
        ConfigError: It is no gate, or the threshold is missing, or stands beside a constant gate.
    """
    if gate not in get_args(Gate):
        message = (
            f"gate must be one of {', '.join(get_args(Gate))}. Got {short(gate)}. "
            f"{nearest(str(gate), get_args(Gate))}Pass one of these."
        )
        raise ConfigError(message)
    if gate == "constant":
        if threshold is None or (is_number(threshold) and threshold == 0):
            return gate, None
        message = (
            f"A threshold must stand beside gate='input' or 'token'. Got {short(threshold)} with "
            "gate='constant'. Leave it out, or pass gate='token' to act where a latent exceeds it."
        )
        raise ConfigError(message)
    if not is_number(threshold) or not 0 <= threshold < math.inf:
        message = (
            f"A gate needs a threshold >= 0, in the units of codes. Got {short(threshold)} with "
            f"gate={gate!r}. Pass one, or have it measured: saelab.analysis.calibrate_gate."
        )
        raise ConfigError(message)
    return gate, float(threshold)


__all__ = ["Gate", "Rows", "checked_gate", "opened", "so_far"]
