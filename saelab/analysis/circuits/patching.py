"""What each part of a model does for a task: exactly, by patching it, and by gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.analysis.circuits.nodes import Node, Site, edits_of, nodes_of, sites_of
from saelab.analysis.circuits.results import Effects
from saelab.analysis.circuits.tasks import Batch, Task
from saelab.arguments import a_subject, an_integer, checked
from saelab.sae import SAE
from saelab.types import ConfigError, short


@checked(subject=a_subject)
def activation_patching(
    subject: Any,
    task: Task,
    nodes: str | Iterable[str] = ("heads", "mlps"),
    *,
    saes: SAE | Sequence[SAE] = (),
    only: Sequence[Node] | None = None,
) -> Effects:
    """What the score of a task loses when one node alone has the values of the corrupt prompt, at all
    positions (resample ablation): exact, at one pass for each node.

    Args:
        subject: A language model.
        task: See `prompt_task`.
        nodes: "heads", "mlps" or both.
        saes: SAEs whose latents, and error, are nodes.
        only: The nodes that are asked for; of an SAE's latents there are many, of which
            `attribution_patching` says where to look. None: all.

    Returns:
        The effect of each node.

    Raises:
        ConfigError: There is no such node.
        HookError: The subject has no such hook points.
    """
    sites = sites_of(subject, nodes, saes)
    every = nodes_of(sites)
    number = {node: i for i, node in enumerate(every)}
    asked = every if only is None else list(only)
    for node in asked:
        if node not in number:
            message = f"A node must be one of those that are patched. Got {short(node)}. Pass nodes or saes."
            raise ConfigError(message)
    effects = np.zeros((len(asked), len(task.pairs)))
    for batch in task.batches(subject):
        other = read(subject, sites, batch)
        for row, node in enumerate(asked):
            kept = np.ones(len(every), dtype=bool)
            kept[number[node]] = False
            score = scored(subject, task, batch, edits_of(sites, other, kept))
            effects[row, batch.at] = task.clean[batch.at] - score
    return Effects(task.name, tuple(asked), effects, task.clean - task.corrupt, "activation patching")


@checked(subject=a_subject, steps=an_integer(1, 256))
def attribution_patching(
    subject: Any,
    task: Task,
    nodes: str | Iterable[str] = ("heads", "mlps"),
    *,
    saes: SAE | Sequence[SAE] = (),
    steps: int = 1,
) -> Effects:
    """What the score would lose if one node alone had the values of the corrupt prompt, by gradients: of all
    nodes at once, at two passes forward and one backward (Nanda 2023; Syed et al. 2023)::

        effect = -sum (corrupt - clean) . d score / d value

    With steps > 1 the gradient is the mean over as many points between the two prompts' embeddings
    (integrated gradients, as Hanna et al. 2024 take them over inputs: EAP-IG), at a pass forward and backward
    each.

    Args:
        subject: A language model.
        task: See `prompt_task`.
        nodes: "heads", "mlps" or both.
        saes: SAEs whose latents, and error, are nodes.
        steps: Points at which the gradient is taken, in the middle of as many equal parts of the way; 1: at
            the clean prompt.

    Returns:
        An estimate of the effect of each node.

    Raises:
        HookError: The subject has no such hook points.
    """
    sites = sites_of(subject, nodes, saes)
    count = len(nodes_of(sites))
    effects = np.zeros((count, len(task.pairs)))
    for batch in task.batches(subject):
        if steps == 1:
            other = read(subject, sites, batch)
            now, grads = _gradients(subject, task, batch, sites, [])
        else:
            start = subject.hook_point("blocks.0.hook_resid_pre").name
            now, other = (
                _acts(subject, inputs, [*_reads(sites), start]) for inputs in (batch.clean, batch.corrupt)
            )
            grads = {site.writes: torch.zeros_like(now[site.writes]) for site in sites}
            for step in range(steps):
                share = (step + 0.5) / steps
                between = now[start] + share * (other[start] - now[start])
                _, found = _gradients(subject, task, batch, sites, [(start, lambda acts, x=between: x)])
                for hook, grad in found.items():
                    grads[hook] += grad / steps
        parts = [site.first_order(now, other, grads[site.writes]) for site in sites]
        effects[:, batch.at] = -torch.cat(parts, 1).T.double().numpy(force=True)
    method = "attribution patching" if steps == 1 else f"integrated gradients, {steps} steps"
    return Effects(task.name, tuple(nodes_of(sites)), effects, task.clean - task.corrupt, method)


def read(subject: Any, sites: Sequence[Site], batch: Batch) -> dict[str, Tensor]:
    """What the sites need to know of the corrupt pass, by hook point.

    Args:
        subject: The model.
        sites: Whose nodes are patched.
        batch: Pairs of prompts.
    """
    acts = _acts(subject, batch.corrupt, _reads(sites))
    for site in sites:
        acts |= site.noted(acts)
    return acts


def scored(subject: Any, task: Task, batch: Batch, edits: Sequence[Any]) -> np.ndarray:
    """float64 [n]: the score after the clean prompts of a batch, with edits.

    Args:
        subject: The model.
        task: What is measured.
        batch: Pairs of prompts.
        edits: As for `run`.
    """
    output = subject.run(batch.clean, edits=edits).output
    return task.measure(output, batch.at).double().numpy(force=True)


def _reads(sites: Sequence[Site]) -> list[str]:
    return list(dict.fromkeys(hook for site in sites for hook in site.reads))


def _acts(subject: Any, inputs: Any, hooks: Sequence[str]) -> dict[str, Tensor]:
    return dict(subject.run(inputs, read=list(dict.fromkeys(hooks)), output=False).acts)


def _gradients(
    subject: Any, task: Task, batch: Batch, sites: Sequence[Site], edits: Sequence[Any]
) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
    """What a clean pass holds, and the gradient of its score at each site; edits: those of the pass."""
    with torch.enable_grad():
        run = subject.run(batch.clean, read=_reads(sites), edits=edits, grad=True)
        at = [run.acts[site.writes] for site in sites]
        score = task.measure(run.output, batch.at).sum()
        found = torch.autograd.grad(score, at)
    acts = {hook: value.detach() for hook, value in run.acts.items()}
    return acts, {site.writes: grad for site, grad in zip(sites, found, strict=True)}


__all__ = ["activation_patching", "attribution_patching", "read", "scored"]
