"""What steering a latent does to a subject's output, measured rather than guessed from where it fires."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saelab.analysis.steering.passes import Pass, counted_of, passes
from saelab.capabilities import HasLogits, HasTokens, lacking
from saelab.types import ConfigError, ShapeError, short

if TYPE_CHECKING:
    from saelab.corpora import Document
    from saelab.sae import SAE
    from saelab.types import Subject

Metric = Callable[[Any], Any]
"""From a subject's output [samples, ...] to a number for each sample."""
PROMPTS = 16
"""Samples on which steering is tried."""


@dataclass(frozen=True)
class Outputs:
    """A subject on the samples on which latents are steered one by one."""

    subject: Any
    sae: SAE
    kept: list[Pass]
    size: float
    """Euclidean norm of what is added, the same for every latent"""
    metric: Metric | None
    """None: log-probabilities of the next token"""

    @property
    def d_out(self) -> int:
        """Width of the output: of a language model its vocabulary."""
        return int(self.kept[0].run.output.shape[-1])  # type: ignore[union-attr]

    def screened(self, weights: np.ndarray | None) -> np.ndarray | None:
        """float64 [d_sae]: the effect of each latent to first order, by one backward pass; None where the
        subject keeps no graph.

        Args:
            weights: Of the tokens [d_vocab]; None with a metric.
        """
        if not getattr(self.subject, "module", None):
            return None
        sae, hook, total = self.sae, self.sae.writes[0], None
        for each in self.kept:
            run = self.subject.run(each.inputs, read=[hook], grad=True)
            acts = run.acts[str(hook)]
            value = self._values(run.output, each, weights)
            if not (value.requires_grad and acts.requires_grad):
                return None
            (slope,) = torch.autograd.grad(value.sum(), acts)
            summed = torch.where(each.kept[..., None], slope, 0).sum((0, 1)).double()
            total = summed if total is None else total + summed
        assert total is not None
        directions = self._directions(range(sae.d_sae))
        n = sum(len(each.samples) for each in self.kept)
        return (directions.double() @ total.to(directions.device) * self.size / n).cpu().numpy()

    def measured(self, latents: Sequence[int], poles: Sequence[int]) -> np.ndarray:
        """What steering does: float32 [latents d_vocab], the change of the mean log-probability of every next
        token; with a metric float32 [latents 1], its mean change.

        Args:
            latents: Steered one by one.
            poles: 1 or -1 of each: which way.
        """
        hook, found = self.sae.writes[0], []
        directions = self._directions(latents) * self.size
        clean = self._mean([each.run.output for each in self.kept])
        for direction, pole in zip(directions, poles, strict=True):
            push = _push(pole * direction)
            outputs = []
            with torch.no_grad():
                for each in self.kept:
                    outputs.append(self.subject.run(each.inputs, edits=[(hook, push)]).output)
            found.append(self._mean(outputs) - clean)
        return np.stack(found) if found else np.zeros((0, len(clean)), np.float32)

    def _mean(self, outputs: Sequence[Any]) -> np.ndarray:
        """Over all samples: of log-probabilities [d_vocab], or of the metric [1]."""
        if self.metric is not None:
            some = [
                values_of(self.metric, out, len(e.samples)) for out, e in zip(outputs, self.kept, strict=True)
            ]
            return np.array([torch.cat(some).double().mean().item()], np.float32)
        total, n = None, 0
        for out, each in zip(outputs, self.kept, strict=True):
            here = counted_of(each.inputs, out.shape[:2], out.device)
            summed = out[here].float().log_softmax(-1).double().sum(0)
            total, n = summed if total is None else total + summed, n + int(here.sum())
        assert total is not None
        return (total / max(n, 1)).float().cpu().numpy()

    def _values(self, output: Any, each: Pass, weights: np.ndarray | None) -> Tensor:
        if self.metric is not None:
            return values_of(self.metric, output, len(each.samples))
        here = counted_of(each.inputs, output.shape[:2], output.device)
        of_tokens = torch.as_tensor(weights, dtype=torch.float32, device=output.device)
        each_row = torch.where(here, output.float().log_softmax(-1) @ of_tokens, 0)
        return each_row.sum(1) / here.sum(1).clamp_min(1)

    def _directions(self, latents: Sequence[int] | range) -> Tensor:
        """Unit directions [n d_out] in units of the activations."""
        rows = (self.sae.W_dec.detach()[list(latents)] * self.sae.out_scale).float()
        return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def why_no_outputs(subject: Any, sae: SAE, metric: Metric | None) -> str | None:
    """Why the effect on the output cannot be measured; None where it can."""
    if subject is None:
        return "a store has no model: pass the SAE and the subject"
    if not hasattr(sae, "out_scale"):
        return "the SAE has no decoder"
    if sae.config.widths:
        return "a crosscoder writes at several hook points"
    if metric is None and (missing := lacking(subject, HasLogits) + lacking(subject, HasTokens)):
        return (
            f"a {type(subject).__name__} lacks {', '.join(missing)}: pass metric=, a function of its output"
        )
    return None


def outputs_of(
    subject: Subject,
    sae: SAE,
    documents: Sequence[Document],
    size: float,
    metric: Metric | None,
    batch_size: int,
) -> Outputs:
    """The subject, run on the first samples.

    Args:
        subject: The model.
        sae: Whose latents are steered.
        documents: Samples without the concept; at most 16 are used.
        size: Euclidean norm of what will be added.
        metric: See `Metric`; None: log-probabilities.
        batch_size: Samples of a pass.
    """
    kept = list(passes(subject, documents[:PROMPTS], [sae.writes[0]], batch_size))
    return Outputs(subject, sae, kept, size, metric)


def a_function(name: str, value: Any) -> None:
    """Refuse what cannot be called with one argument.

    Raises:
        ConfigError: It is no such function.
    """
    try:
        inspect.signature(value).bind(None)
    except (TypeError, ValueError):
        if callable(value) and isinstance(value, BuiltinFunctionType | type):
            return  # which may not say what they take
        message = f"{name} must be a function of one argument. Got {short(value)}. Pass lambda x: ..."
        raise ConfigError(message) from None


def values_of(metric: Metric, output: Any, n: int) -> Tensor:
    """A metric of n samples as a tensor [n].

    Raises:
        ShapeError: It gives another shape.
    """
    found = torch.as_tensor(metric(output))
    if found.shape != (n,):
        message = (
            f"A metric of an output must give one number for each of {n} samples. Got shape "
            f"{list(found.shape)}. Pass e.g. lambda output: output[:, 3]."
        )
        raise ShapeError(message)
    return found if found.is_floating_point() else found.double()


def token_weights(
    subject: Any, documents: Sequence[Document], positive: np.ndarray, d_vocab: int
) -> np.ndarray:
    """float64 [d_vocab], summing to 1: how far each token is more frequent in positive than in other samples.

    A token counts once a sample. Its weight is the difference of the two shares of samples that hold it,
    where that is more than two standard errors above 0; where none is, all that are above 0 count.

    Args:
        subject: Has tokens and logits.
        documents: All samples.
        positive: bool [samples].
        d_vocab: Of its output.

    Raises:
        ConfigError: The samples hold no token that is more frequent in the positive ones.
    """
    held = np.zeros((2, d_vocab))
    for document, is_positive in zip(documents, positive.tolist(), strict=True):
        ids = np.unique(subject.to_tokens(document.text, bos=False))
        held[int(is_positive), ids] += 1
    n = np.array([[(~positive).sum()], [positive.sum()]])
    share = held / n
    smoothed = (held + 0.5) / (n + 1)
    error = np.sqrt((smoothed * (1 - smoothed) / n).sum(0))
    more = share[1] - share[0]
    weights = np.where(more > 2 * error, more, 0)
    weights = weights if weights.any() else np.maximum(more, 0)
    if not weights.any():
        message = (
            "Some token must be more frequent in the positive samples, to score latents by what they raise. "
            "Got none. Pass metric=, a function of the subject's output."
        )
        raise ConfigError(message)
    return weights / weights.sum()


def _push(delta: Tensor) -> Callable[[Tensor, Any], Tensor]:
    def push(acts: Tensor, context: Any) -> Tensor:
        moved = acts + delta.to(acts)
        return moved if context.counted is None else torch.where(context.counted[..., None], moved, acts)

    return push


__all__ = ["Metric", "Outputs", "a_function", "outputs_of", "token_weights", "values_of", "why_no_outputs"]
