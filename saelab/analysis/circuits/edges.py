"""Direct edges between heads: exactly, by path patching, and by gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.analysis.circuits.nodes import HeadEdge, Heads, Node, head_edges, sites_of
from saelab.analysis.circuits.patching import read, scored
from saelab.analysis.circuits.results import Effects
from saelab.analysis.circuits.tasks import Batch, Task
from saelab.arguments import a_subject, checked, flag
from saelab.types import ConfigError, short


@checked(subject=a_subject, through_mlps=flag)
def path_patching(
    subject: Any, task: Task, *, only: Sequence[HeadEdge] | None = None, through_mlps: bool = False
) -> Effects:
    """What the score of a task loses when one head alone is told of another head's corrupt output: exact
    (Wang et al. 2022, section 3.1; Goldowsky-Dill et al. 2023).

    What the sender adds to the residual stream is that of the corrupt prompt for the one receiver's queries,
    keys and values; all between the two, heads and MLPs, is as on the clean prompt, so that nothing is told
    on a way round. What comes after the receiver runs free::

        x'  = x + write_s(corrupt) - write_s(clean)         what the receiver reads, x the stream there
        effect = score - score with z_r = z_r(x')

    at all positions at once. The cost is a pass for each edge, and two short ones for each sender and layer.

    Args:
        subject: A language model.
        task: See `prompt_task`.
        only: The edges that are asked for; None: all between heads.
        through_mlps: Whether MLPs between the two are told, too, and pass on what they make of it, as Wang et
            al. have it; other heads never are.

    Returns:
        The effect of each edge.

    Raises:
        ConfigError: There is no such edge.
        HookError: The subject has no heads.
    """
    sites, every = _heads(subject)
    asked = every if only is None else list(only)
    known = set(every)
    for edge in asked:
        if edge not in known:
            message = (
                f"An edge must go from a head to one of a later layer. Got {short(edge)}. "
                "head_edges(nodes) lists them."
            )
            raise ConfigError(message)
    effects = np.zeros((len(asked), len(task.pairs)))
    rows = {edge: row for row, edge in enumerate(asked)}
    senders = dict.fromkeys(edge.sender for edge in asked)
    for batch in task.batches(subject):
        stream = _Stream(subject, sites, batch)
        for sender in senders:
            change = None if through_mlps else stream.change(sender)
            told = [edge for edge in rows if edge.sender == sender]
            for hook in dict.fromkeys(edge.receiver.hook for edge in told):
                new = stream.alone(sender, hook) if change is None else stream.reading(hook, change)
                for edge in (edge for edge in told if edge.receiver.hook == hook):
                    score = scored(subject, task, batch, stream.one(edge.receiver, new))
                    effects[rows[edge], batch.at] = task.clean[batch.at] - score
    method = "path patching through MLPs" if through_mlps else "path patching"
    return Effects(task.name, tuple(asked), effects, task.clean - task.corrupt, method)


@checked(subject=a_subject, through_mlps=flag)
def edge_attribution(subject: Any, task: Task, *, through_mlps: bool = False) -> Effects:
    """What `path_patching` would find of every edge, by gradients: what the sender's change is worth by the
    gradient of the score at what the receiver alone gives, taken back through all that is told on the way
    (edge attribution patching, Syed et al. 2023).

    Args:
        subject: A language model.
        task: See `prompt_task`.
        through_mlps: As for `path_patching`.

    Returns:
        An estimate of the effect of each edge, in the order of `head_edges`.

    Raises:
        HookError: The subject has no heads.
    """
    sites, every = _heads(subject)
    effects = np.zeros((len(every), len(task.pairs)))
    rows = {edge: row for row, edge in enumerate(every)}
    for batch in task.batches(subject):
        stream = _Stream(subject, sites, batch)
        for receiver, gradients in stream.gradients(task, through_mlps):
            for hook, gradient in gradients.items():
                site = stream.sites[hook]
                worth = -site.first_order(stream.clean, stream.corrupt, gradient).double().numpy(force=True)
                for sender in site.nodes:
                    effects[rows[HeadEdge(sender, receiver)], batch.at] = worth[:, sender.index]
    method = "edge attribution through MLPs" if through_mlps else "edge attribution"
    return Effects(task.name, tuple(every), effects, task.clean - task.corrupt, method)


def _heads(subject: Any) -> tuple[list[Heads], list[HeadEdge]]:
    sites = [site for site in sites_of(subject, "heads") if isinstance(site, Heads)]
    return sites, head_edges([node for site in sites for node in site.nodes])


class _Stream:
    """A batch's clean and corrupt passes, and what a head's write changes of what another reads."""

    def __init__(self, subject: Any, sites: Sequence[Heads], batch: Batch) -> None:
        self.subject, self.batch = subject, batch
        self.sites = {site.writes: site for site in sites}
        self.corrupt = read(subject, sites, batch)
        hooks = [_beside(site.writes, name) for site in sites for name in ("hook_resid_pre", "hook_attn_out")]
        hooks += self.sites
        self.clean = dict(subject.run(batch.clean, read=hooks, output=False).acts)

    def change(self, sender: Node) -> Tensor:
        """[n, positions, d_model]: what the residual stream gets more of a head on the corrupt prompt."""
        out = _beside(sender.hook, "hook_attn_out")
        edits = self.one(sender, self.corrupt)
        acts = self.subject.run(self.batch.clean, read=[out], edits=edits, output=False).acts
        return acts[out] - self.clean[out]

    def reading(self, hook: str, change: Tensor) -> dict[str, Tensor]:
        """What a layer's heads give where what they read has changed, by hook point."""
        start = _beside(hook, "hook_resid_pre")
        edits = [(start, lambda acts: acts + change)]
        return dict(self.subject.run(self.batch.clean, read=[hook], edits=edits, output=False).acts)

    def alone(self, sender: Node, hook: str) -> dict[str, Tensor]:
        """What a layer's heads give where of all heads before it the sender alone is corrupt."""
        order = list(self.sites)
        between = order[order.index(sender.hook) + 1 : order.index(hook)]
        edits = self.one(sender, self.corrupt)
        edits += [(each, lambda acts, of=self.clean[each]: of) for each in between]
        return dict(self.subject.run(self.batch.clean, read=[hook], edits=edits, output=False).acts)

    def one(self, node: Node, other: dict[str, Tensor]) -> list[Any]:
        """Of one pass: a head alone takes the values of another."""
        site = self.sites[node.hook]
        kept = torch.ones(len(site.nodes), dtype=torch.bool)
        kept[node.index] = False
        return site.edits(other, kept)

    def gradients(self, task: Task, through_mlps: bool) -> Iterator[tuple[Node, dict[str, Tensor]]]:
        """Of each head but the first layer's the gradient of the score at what it alone gives, taken back to
        the heads before it, by hook point: [n, positions, width]."""
        order = list(self.sites)
        with torch.enable_grad():
            run = self.subject.run(self.batch.clean, read=order[1:], grad=True)
            score = task.measure(run.output, self.batch.at).sum()
            ends = torch.autograd.grad(score, [run.acts[hook] for hook in order[1:]])
        for number, (hook, end) in enumerate(zip(order[1:], ends, strict=True), 1):
            before = order[:number]
            # what is as on the clean prompt passes no gradient on
            silent = [] if through_mlps else [_beside(each, "hook_mlp_out") for each in before]
            edits = [(each, Tensor.detach) for each in (*before, *silent)]
            with torch.enable_grad():
                run = self.subject.run(
                    self.batch.clean, read=[*before, hook], edits=edits, grad=True, output=False
                )
                starts = [run.acts[each] for each in before]
                width = end.shape[-1] // self.sites[hook].n
                for node in self.sites[hook].nodes:
                    mask = torch.zeros_like(end)
                    mask[..., node.index * width : (node.index + 1) * width] = 1
                    back = torch.autograd.grad(run.acts[hook], starts, end * mask, retain_graph=True)
                    yield node, dict(zip(before, back, strict=True))


def _beside(hook: str, name: str) -> str:
    """Another hook point of the same block."""
    return f"{hook.split('.attn.')[0]}.{name}"


__all__ = ["edge_attribution", "path_patching"]
