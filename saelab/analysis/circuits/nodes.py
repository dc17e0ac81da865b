"""The parts of a model that can be patched: heads, MLPs, and the latents and errors of SAEs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelab.sae import SAE
from saelab.types import ConfigError, HookError, HookPoint, nearest, short

KINDS = ("heads", "mlps")


class Node(NamedTuple):
    """A part of a model."""

    kind: str
    """head, mlp, latent or error"""
    hook: str
    """where it writes"""
    index: int
    """which head or latent; 0 of an MLP or an error"""

    def __str__(self) -> str:
        found = self.hook.split(".")
        layer = found[1] if len(found) > 1 and found[1].isdigit() else self.hook
        return {
            "head": f"{layer}.{self.index}",
            "mlp": f"mlp {layer}",
            "latent": f"{self.hook} #{self.index}",
            "error": f"{self.hook} error",
        }[self.kind]


class HeadEdge(NamedTuple):
    """What one head gives another directly."""

    sender: Node
    receiver: Node
    """of a later layer"""

    @property
    def kind(self) -> str:
        """An edge, where nodes have theirs."""
        return "edge"

    def __str__(self) -> str:
        return f"{self.sender} -> {self.receiver}"


Edits = list[tuple[str, Callable[[Tensor], Tensor]]]


class Site(ABC):
    """All nodes that write at one hook point, whose sum is what stands there."""

    nodes: tuple[Node, ...]
    writes: str

    @property
    def reads(self) -> tuple[str, ...]:
        """What of a pass it must know."""
        return (self.writes,)

    @abstractmethod
    def patched(self, now: Mapping[str, Tensor], other: Mapping[str, Tensor], kept: Tensor) -> Tensor:
        """What stands at `writes` when the nodes that are not kept have the values of another pass.

        Args:
            now: Of this pass, by hook point: [n, positions, width].
            other: Of the other.
            kept: bool [nodes].

        Returns:
            [n, positions, width].
        """

    @abstractmethod
    def first_order(self, now: Mapping[str, Tensor], other: Mapping[str, Tensor], grad: Tensor) -> Tensor:
        """What each node's change from this pass to the other is worth by the gradient at `writes`.

        Args:
            now: Of this pass, by hook point.
            other: Of the other.
            grad: [n, positions, width].

        Returns:
            [n, nodes].
        """

    def noted(self, acts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is worth keeping with what was read of a pass, since it is asked again and again.

        Args:
            acts: By hook point.
        """
        return {}

    def edits(self, other: Mapping[str, Tensor], kept: Tensor) -> Edits:
        """Of one pass: the nodes that are not kept take the values of another.

        Args:
            other: Of that pass, by hook point.
            kept: bool [nodes].
        """
        if bool(kept.all()):
            return []
        now: dict[str, Tensor] = {}

        def remember(hook: str) -> Callable[[Tensor], Tensor]:
            def read(acts: Tensor) -> Tensor:
                now[hook] = acts.clone()
                return acts

            return read

        def write(acts: Tensor) -> Tensor:
            return self.patched({**now, self.writes: acts}, other, kept).to(acts.dtype)

        before = [(hook, remember(hook)) for hook in self.reads if hook != self.writes]
        return [*before, (self.writes, write)]


class Heads(Site):
    """The heads of a layer, side by side at hook_z.

    Args:
        hook: That hook point.
        n: How many they are.
    """

    def __init__(self, hook: str, n: int) -> None:
        self.writes, self.n = hook, n
        self.nodes = tuple(Node("head", hook, i) for i in range(n))

    def patched(self, now: Mapping[str, Tensor], other: Mapping[str, Tensor], kept: Tensor) -> Tensor:
        z, theirs = now[self.writes], other[self.writes]
        mask = kept.to(z.device).repeat_interleave(z.shape[-1] // self.n)
        return torch.where(mask, z, theirs.to(z))

    def first_order(self, now: Mapping[str, Tensor], other: Mapping[str, Tensor], grad: Tensor) -> Tensor:
        change = (other[self.writes] - now[self.writes]).float() * grad.float()
        return change.unflatten(-1, (self.n, -1)).sum((1, 3))


class Whole(Site):
    """What stands at a hook point, as one node.

    Args:
        hook: That hook point.
    """

    def __init__(self, hook: str) -> None:
        self.writes = hook
        self.nodes = (Node("mlp", hook, 0),)

    def patched(self, now: Mapping[str, Tensor], other: Mapping[str, Tensor], kept: Tensor) -> Tensor:
        return now[self.writes] if bool(kept[0]) else other[self.writes].to(now[self.writes])

    def first_order(self, now: Mapping[str, Tensor], other: Mapping[str, Tensor], grad: Tensor) -> Tensor:
        change = (other[self.writes] - now[self.writes]).float() * grad.float()
        return change.sum((1, 2))[:, None]


class Latents(Site):
    """The latents of an SAE, and its error, whose sum is what stands where it writes (Marks et al. 2024,
    sparse feature circuits)::

        y = sum_j z_j d_j + rest,    z = encode(x)

    with d_j in units of the activations (of an SAE that normalises rows, times the row's norm). The rest is
    the error and what is the same for all rows; it is one node.

    Args:
        sae: An SAE or a transcoder.
    """

    def __init__(self, sae: SAE) -> None:
        if sae.config.widths or not sae.reads or not sae.writes:
            got = "one of several" if sae.config.widths else "one without"
            message = (
                f"Latents are patched where their SAE reads and writes one hook point. Got {got}. Pass an "
                "SAE or a transcoder with its hook."
            )
            raise HookError(message)
        self.sae = sae
        self.read, self.writes = sae.reads[0].name, sae.writes[0].name
        self._noted = f"latents of {self.writes}"
        latents = (Node("latent", self.writes, j) for j in range(sae.d_sae))
        self.nodes = (*latents, Node("error", self.writes, 0))

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.writes,) if self.read == self.writes else (self.read, self.writes)

    def patched(self, now: Mapping[str, Tensor], other: Mapping[str, Tensor], kept: Tensor) -> Tensor:
        y, theirs = now[self.writes].to(self.sae.dtype), other[self.writes].to(self.sae.dtype)
        change = self._values(other) - self._values(now)
        gone = ~kept[:-1].to(change.device)
        new = y + (change * gone) @ self._decoder()
        if not bool(kept[-1]):
            # the rest is what the latents leave of the whole
            new = new + (theirs - y) - change @ self._decoder()
        return new

    def first_order(self, now: Mapping[str, Tensor], other: Mapping[str, Tensor], grad: Tensor) -> Tensor:
        grad = grad.to(self.sae.dtype)
        change = self._values(other) - self._values(now)
        of_latents = (change * (grad @ self._decoder().T)).sum(1)
        whole = ((other[self.writes] - now[self.writes]).to(grad) * grad).sum((1, 2))
        return torch.cat([of_latents, (whole - of_latents.sum(1))[:, None]], 1)

    def noted(self, acts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {self._noted: self._values(acts)}

    @torch.no_grad()
    def _values(self, acts: Mapping[str, Tensor]) -> Tensor:
        """[n, positions, d_sae]: how far each latent goes along its direction."""
        if self._noted in acts:
            return acts[self._noted]
        x = acts[self.read].to(self.sae.dtype)
        codes, scale = self.sae.encode(x), self.sae.scale(x)
        return codes if scale is None else codes * scale.norm

    @torch.no_grad()
    def _decoder(self) -> Tensor:
        return self.sae.W_dec * self.sae.out_scale


def sites_of(subject: Any, nodes: str | Iterable[str], saes: SAE | Sequence[SAE] = ()) -> list[Site]:
    """The nodes of a model, by hook point in the order of the layers.

    Args:
        subject: A language model.
        nodes: "heads", "mlps", or both; () for SAEs alone.
        saes: SAEs and transcoders whose latents are nodes.

    Raises:
        ConfigError: There is no such kind of node, or none at all.
        HookError: The subject has no such hook points, or two SAEs write at one.
    """
    kinds = [nodes] if isinstance(nodes, str) else list(nodes)
    for kind in kinds:
        if kind not in KINDS:
            message = (
                f"nodes must be among {', '.join(KINDS)}. Got {short(kind)}. {nearest(str(kind), KINDS)}Pass "
                "nodes=('heads', 'mlps'), and latents by saes=[...]."
            )
            raise ConfigError(message)
    found: list[Site] = []
    if "heads" in kinds:
        points = (subject.hook_point(f"blocks.{i}.attn.hook_z") for i in range(subject.n_layers))
        found += [Heads(point.name, int(point.n_heads)) for point in points]
    if "mlps" in kinds:
        found += [Whole(subject.hook_point(f"blocks.{i}.hook_mlp_out").name) for i in range(subject.n_layers)]
    found += [Latents(sae) for sae in ([saes] if isinstance(saes, SAE) else saes)]
    if not found:
        message = "There must be nodes to patch. Got none. Pass nodes=('heads', 'mlps') or saes=[...]."
        raise ConfigError(message)
    seen: dict[str, Site] = {}
    for site in found:
        for hook in site.reads:
            subject.hook_point(HookPoint.of(hook))
        if site.writes in seen:
            message = (
                f"What stands at a hook point can be taken apart in one way only. Got two at "
                f"{site.writes!r}. Leave one of them out."
            )
            raise HookError(message)
        seen[site.writes] = site
    return found


def head_edges(nodes: Sequence[Node]) -> list[HeadEdge]:
    """Every pair of heads of which the second is of a later layer, senders in the order of the nodes.

    Args:
        nodes: Heads, in the order of the layers.
    """
    order = {hook: i for i, hook in enumerate(dict.fromkeys(node.hook for node in nodes))}
    return [HeadEdge(s, r) for s in nodes for r in nodes if order[s.hook] < order[r.hook]]


def nodes_of(sites: Sequence[Site]) -> list[Node]:
    """Every node, in order.

    Args:
        sites: Where they write.
    """
    return [node for site in sites for node in site.nodes]


def edits_of(sites: Sequence[Site], other: Mapping[str, Tensor], kept: np.ndarray) -> Edits:
    """Of one pass: all nodes that are not kept take the values of another.

    Args:
        sites: Whose nodes.
        other: Of that pass, by hook point.
        kept: bool [nodes].
    """
    found: Edits = []
    start = 0
    for site in sites:
        found += site.edits(other, torch.as_tensor(kept[start : start + len(site.nodes)]))
        start += len(site.nodes)
    return found


__all__ = [
    "HeadEdge", "Heads", "Latents", "Node", "Site", "Whole", "edits_of", "head_edges", "nodes_of", "sites_of",
]  # fmt: skip
