"""Another edit for each sample of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.arguments import is_listed
from saelab.interventions.registry import Edit, register
from saelab.types import ConfigError, Context, HookPoint, Inputs, ShapeError, short


@register("each")
@dataclass(frozen=True, eq=False)
class Each(Edit):
    """The i-th edit, or list of edits, works on the i-th sample of the batch alone: one prompt at several
    strengths in one pass, `subject.generate([prompt] * 3, Each([[], weak, strong]))`.

    Attributes:
        edits: For each sample an edit, or a list of edits in their order, which may be empty.

    Raises:
        ConfigError: There is no edit, or one is none that is registered.
        ShapeError: In a pass, the batch has another number of samples.
    """

    edits: tuple[tuple[Edit, ...], ...]

    def __post_init__(self) -> None:
        given = list(self.edits) if is_listed(self.edits) else []
        lists = [(each,) if isinstance(each, Edit) else each for each in given]
        sound = all(is_listed(each) and all(isinstance(e, Edit) for e in each) for each in lists)
        if not sound or not any(len(tuple(each)) for each in lists):
            message = (
                "Each needs a list with an edit, or a list of edits, for each sample. Got "
                f"{short(self.edits)}. Pass e.g. Each([[], edit]), with at least one edit."
            )
            raise ConfigError(message)
        object.__setattr__(self, "edits", tuple(tuple(each) for each in lists))

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        return tuple(dict.fromkeys(hook for each in self.edits for edit in each for hook in edit.hooks))

    def __call__(self, acts: Tensor, context: Context) -> Tensor:
        if len(acts) != len(self.edits):
            message = (
                f"Each must have an edit for each sample. Got {len(self.edits)} for a batch of {len(acts)}. "
                "Pass as many, [] for a sample that is left alone."
            )
            raise ShapeError(message)
        out = list(acts.split(1))
        for i, edits in enumerate(self.edits):
            for number, edit in enumerate(edits):
                if context.hook in edit.hooks:
                    out[i] = edit(out[i].clone(), self._alone(context, i, number)).to(acts)
        return torch.cat(out)

    def _alone(self, context: Context, i: int, number: int) -> Context:
        """What the edit of one sample is told."""
        key = (self, i, number)
        return replace(
            context,
            inputs=None if context.inputs is None else _sample(context.inputs, i, len(self.edits)),
            counted=None if context.counted is None else context.counted[i : i + 1],
            shared=context.shared.setdefault(key, {}),
            past=context.past.setdefault(key, {}),
        )


def _sample(inputs: Inputs, i: int, n: int) -> Inputs:
    def part(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: part(each) for key, each in value.items()}
        own = isinstance(value, Tensor | np.ndarray | Sequence) and len(value) == n
        return value[i : i + 1] if own else value

    return Inputs(**{field.name: part(getattr(inputs, field.name)) for field in fields(inputs)})


__all__ = ["Each"]
