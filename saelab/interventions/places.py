"""Where the positions of activations lie in their samples, and what is known of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.types import Context, HookError, Inputs


def positions_of(acts: Tensor, context: Context) -> Tensor:
    """The number of each position in its sample.

    Args:
        acts: [samples, positions, width].
        context: What the edit is told.

    Returns:
        int64 [samples, positions] from 0 on, -1 where it is padding. Where the activations do not have the
        positions of the inputs, they are numbered as they lie.
    """
    samples, n = acts.shape[:2]
    inputs = context.inputs
    if inputs is not None and inputs.positions is not None and inputs.positions.shape == (samples, n):
        return _tensor(inputs.positions, acts)
    numbers = torch.arange(n, device=acts.device).expand(samples, n)
    lengths = None if inputs is None else inputs.lengths
    if lengths is None or len(lengths) != samples or n < max(lengths):
        return numbers
    return torch.where(numbers < _tensor(lengths, acts)[:, None], numbers, -1)


def known_of(acts: Tensor, context: Context, what: str, remedy: str) -> Tensor:
    """A field of the inputs that says something of each position, as a tensor.

    Args:
        acts: [samples, positions, width].
        context: What the edit is told.
        what: The field: "special", "given", or a name in `Inputs.data`.
        remedy: For the message.

    Raises:
        HookError: The inputs say nothing of it, or the activations do not have their positions.
    """
    value = _field(context.inputs, what)
    shape = None if value is None else tuple(value.shape)
    if value is None or shape != tuple(acts.shape[:2]):
        message = (
            f"An edit by {what} needs inputs that say it of each of the {acts.shape[1]} positions of "
            f"{context.hook.name!r}. Got {'none' if shape is None else f'shape {list(shape)}'}. {remedy}"
        )
        raise HookError(message)
    return _tensor(value, acts)


def given_of(acts: Tensor, context: Context) -> Tensor | None:
    """bool [samples, positions], False where the subject wrote a position itself; None where all were
    given."""
    value = _field(context.inputs, "given")
    if value is None or tuple(value.shape) != tuple(acts.shape[:2]):
        return None
    return _tensor(value, acts)


def _field(inputs: Inputs | None, name: str) -> Any:
    value = None if inputs is None else getattr(inputs, name, inputs.data.get(name))
    return value if isinstance(value, np.ndarray | Tensor) else None


def _tensor(value: Any, acts: Tensor) -> Tensor:
    # arrays that cannot be written into make torch warn
    return value.to(acts.device) if isinstance(value, Tensor) else torch.tensor(value, device=acts.device)


__all__ = ["given_of", "known_of", "positions_of"]
