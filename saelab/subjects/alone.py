"""Documents that share a block: the positions that keep each alone, and the proof on the subject of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saelab.arguments import is_listed
from saelab.config import is_integer
from saelab.types import CorpusError, HookPoint, SubjectError, short

if TYPE_CHECKING:
    from torch import Tensor

WINDOWS = (
    "sliding_window", "attention_chunk_size", "local_attention", "attention_window_size", "window_size",
)  # fmt: skip
"""What configurations call the positions that a token sees."""
LONGEST = 1024
"""Tokens of a document of the proof: longer windows are not reached, which the library's own masks hold."""


def restarting(segments: Sequence[Any], width: int) -> Tensor:
    """Position ids [samples width] that start anew wherever the number of the segment changes, padding too.

    Given these and no mask, the masks that transformers builds keep every run of positions to itself, within
    the windows and chunks of each layer.
    """
    number = torch.full((len(segments), width), -1)
    for row, values in enumerate(segments):
        number[row, : len(values)] = torch.as_tensor(values)
    index = torch.arange(width)
    fresh = torch.ones_like(number, dtype=torch.bool)
    fresh[:, 1:] = number[:, 1:] != number[:, :-1]
    return index - torch.where(fresh, index, 0).cummax(1).values


def check_segments(segments: Any, lengths: Sequence[int]) -> list[np.ndarray]:
    """Numbers of segments, int64 [positions] for each sample. Raises CorpusError where they are not one for
    each of its tokens."""
    rule = "Segments must be a list of int for each sample, one for each of its tokens"
    remedy = "Pass e.g. segments=[[0, 0, 1]] with rows=[[5, 6, 7]]."
    if not is_listed(segments) or not hasattr(segments, "__len__") or isinstance(segments, Mapping):
        message = f"{rule}. Got {short(segments)}. {remedy}"
        raise CorpusError(message)
    if len(segments) != len(lengths):
        message = f"{rule}. Got {len(segments)} for {len(lengths)} samples. {remedy}"
        raise CorpusError(message)
    found = []
    for sample, (own, length) in enumerate(zip(segments, lengths, strict=True)):
        try:
            values = np.asarray(own.cpu() if hasattr(own, "cpu") else own)
        except (TypeError, ValueError):
            values = np.empty((0, 0))
        if values.ndim != 1 or values.dtype.kind not in "iu":
            message = f"{rule}. Got {short(own)} in sample {sample}. {remedy}"
            raise CorpusError(message)
        if len(values) != length:
            message = f"{rule}. Got {len(values)} for {length} tokens in sample {sample}. {remedy}"
            raise CorpusError(message)
        found.append(values.astype(np.int64))
    return found


def masks(model: Any, position_ids: Tensor) -> Any:
    """The masks that keep every run of positions to itself, for models that do not make them of positions:
    transformers' own, one, or one for each kind of layer, within its window."""
    from transformers.masking_utils import create_masks_for_generate

    dtype = next(model.parameters()).dtype
    shape = torch.empty(*position_ids.shape, 1, dtype=dtype, device=position_ids.device)
    return create_masks_for_generate(model.config, shape, None, None, position_ids=position_ids)


def difference(subject: Any, hook: HookPoint | str) -> str | None:
    """Why documents that share a block have not the rows that each has alone at this hook point; None: they
    have.

    Measured on the subject, since a model may carry more between positions than a mask can stop: a state, a
    convolution, biases that count from the start of the block.

    Raises:
        SubjectError: The model takes no positions.
    """
    name = type(subject.module).__name__
    remedy = "Run each document alone: packing='document'."
    if "position_ids" not in inspect.signature(subject.module.forward).parameters:
        message = f"Documents share a block only in models that take position_ids. Got {name}. {remedy}"
        raise SubjectError(message)
    documents = _documents(subject)
    together = [i for ids in documents for i in ids]
    segments = [number for number, ids in enumerate(documents) for _ in ids]
    try:
        found = _read(subject, together, segments, hook)
    except Exception as error:
        return (
            f"Documents share a block only in models that take positions which start anew. Got {name}, which "
            f"ends in {type(error).__name__}: {str(error)[:200]}. {remedy}"
        )
    alone = torch.cat([_read(subject, ids, None, hook) for ids in documents])
    size = alone.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    worst = float(((found - alone).norm(dim=-1) / size).max())
    if worst <= (1e-3 if next(subject.module.parameters()).dtype.itemsize > 2 else 0.05):
        return None
    return (
        "Documents that share a block must have the rows that each has alone. Got a difference of "
        f"{worst:.2g} of a row's length at {hook} of {name}, which carries more from position to position "
        f"than masks stop. {remedy}"
    )


def _documents(subject: Any) -> list[list[int]]:
    """Two documents that are longer than the model's window, where the context allows, and a short one."""
    config = subject.model.config
    found = [getattr(config, name, None) for name in WINDOWS]
    window = max([20, *(w for w in found if is_integer(w))])
    n = max(1, min(window + 5, LONGEST, (subject.n_ctx - 3) // 2))
    draw = torch.Generator().manual_seed(0)
    sizes = [n, n, 3] if subject.n_ctx >= 2 * n + 3 else [n, n][: subject.n_ctx]
    return [torch.randint(subject.d_vocab, (size,), generator=draw).tolist() for size in sizes]


def _read(subject: Any, ids: list[int], segments: list[int] | None, hook: HookPoint | str) -> Tensor:
    """float32 [positions width]: the activations of one sample."""
    inputs = subject.padded([ids], None if segments is None else [segments])
    return subject.run(inputs, read=[hook], output=False).acts[str(hook)][0].float().cpu()


__all__ = ["difference", "masks", "restarting"]
