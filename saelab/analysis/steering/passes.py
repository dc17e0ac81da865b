"""Samples through an untouched subject, pass by pass, so that edited passes over the same inputs compare."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saelab.harvesting.batches import check_hooks
from saelab.subjects.reading import How
from saelab.types import HookPoint, Inputs, Run, SubjectError

if TYPE_CHECKING:
    from saelab.corpora import Document
    from saelab.types import Subject


@dataclass(frozen=True)
class Pass:
    """Some samples and what the untouched subject makes of them."""

    samples: Sequence[int]
    """the number of each"""
    inputs: Inputs
    run: Run
    """with the activations at the hook points that were asked for, and the output"""
    kept: Tensor
    """bool [samples positions]: which positions of the hook points are rows"""


def passes(
    subject: Subject, documents: Sequence[Document], hooks: Sequence[HookPoint], batch_size: int
) -> Iterator[Pass]:
    """All samples, each once and cut at the context.

    Raises:
        HookError: The subject has no such hook point.
    """
    from saelab.analysis.steering.pooled import corpus_of

    check_hooks(subject, hooks, corpus_of(documents))
    how, done = How(batch_size, long="truncate"), 0
    numbered, size = iter(enumerate(documents)), subject.stretch(how)
    while stretch := list(itertools.islice(numbered, size)):
        reading = subject.read(stretch, how)
        for samples, inputs in reading.passes():
            with torch.no_grad():
                run = subject.run(inputs, read=hooks)
            if run.output is None:
                message = (
                    f"An effect is measured on a subject's output. Got a {type(subject).__name__} that gives "
                    "none. Pass a model."
                )
                raise SubjectError(message)
            first = next(iter(run.acts.values()))
            kept = torch.zeros(first.shape[:2], dtype=torch.bool)
            calls = run.calls.get(str(hooks[0]), 1)
            for at, sample in enumerate(samples):
                kept[at].view(calls, -1)[:, reading.kept(sample, at, inputs, run)] = True
            yield Pass([done + sample for sample in samples], inputs, run, kept.to(first.device))
        done += reading.n_samples


def counted_of(inputs: Inputs, shape: Sequence[int], device: Any) -> Tensor:
    """bool [samples positions] of an output: the positions that count; all where nothing says it of them."""
    if inputs.counted is not None and tuple(inputs.counted.shape) == tuple(shape):
        return torch.as_tensor(inputs.counted, device=device)
    return torch.ones(tuple(shape), dtype=torch.bool, device=device)


__all__ = ["Pass", "counted_of", "passes"]
