"""Passes of a subject with something else in the place of the rows that an SAE stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelab.analysis.scores import Spliced
from saelab.capabilities import HasTargets, Resumes, lacking

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.analysis.blocks import Block
    from saelab.interventions import Replace
    from saelab.types import HookPoint


class Distribution(NamedTuple):
    """What a subject foretells."""

    p: Tensor
    """[samples positions d_vocab]: probabilities"""
    certainty: Tensor
    """[samples positions]: sum of p log p"""

    @classmethod
    def of(cls, logp: Tensor) -> Distribution:
        import torch

        p = logp.exp()
        return cls(p, torch.linalg.vecdot(p, logp))


@dataclass(frozen=True)
class Clean:
    """What a subject loses on some samples as it is. Arrays are [samples]."""

    n: np.ndarray
    """targets"""
    clean: np.ndarray
    says: Distribution | None
    """what the subject says as it is; None without `HasTargets`"""


@dataclass(frozen=True)
class Untouched(Clean):
    """What it loses as it is, and where nothing of the rows is left."""

    ablated: np.ndarray
    """with the mean in place of the rows"""
    zeroed: np.ndarray
    """with zeros in their place"""
    kl_zeroed: np.ndarray | None


class Splicing:
    """What a subject loses with other rows.

    Of a subject that tells logits from targets the KL is measured too. One that goes on from the middle of a
    pass computes no more of it than comes after the rows, from a stream that was read.

    Args:
        subject: The model.
        writes: Hook points whose activations are replaced.
        widths: Of each.
    """

    def __init__(self, subject: Any, writes: Sequence[HookPoint], widths: Sequence[int]) -> None:
        self.subject, self.writes, self.widths = subject, writes, list(widths)
        self._logits = not lacking(subject, HasTargets)
        self.block, self.stream = middle(subject, writes) if self._logits else (0, None)

    def clean(self, block: Block) -> Clean:
        """What the samples of a block lose as they are.

        Args:
            block: Of the pass.
        """
        if not self._logits:
            loss, n = self.subject.loss(block.inputs)
            return Clean(n, loss, None)
        logp = self._logp(block, None)
        n, loss, _ = self._told(block, logp, None)
        return Clean(n, loss, Distribution.of(logp))

    def untouched(self, block: Block, mean: Tensor) -> Untouched:
        """What the samples of a block lose as they are, with the mean [d_out], and with zeros.

        Args:
            block: Of the pass.
            mean: Of all rows.
        """
        base = self.clean(block)
        ablated = self.loss(block, mean.expand(len(block.y), -1))
        zeroed, kl = self.changed(block, block.y.new_zeros(1, 1).expand_as(block.y), base)
        return Untouched(base.n, base.clean, base.says, ablated, zeroed, kl)

    def spliced(self, block: Block, rows: Tensor, base: Untouched) -> Spliced:
        """What they lose with other rows, next to what they lose untouched.

        Args:
            block: Of the pass.
            rows: [rows d_out].
            base: What they lose without.
        """
        loss, kl = self.changed(block, rows, base)
        there = None if kl is None else base.kl_zeroed
        return Spliced(base.n, loss, base.clean, base.ablated, base.zeroed, kl=kl, kl_zeroed=there)

    def changed(self, block: Block, rows: Tensor, base: Clean) -> tuple[np.ndarray, np.ndarray | None]:
        """[samples] each: the summed loss with other rows, and the summed KL from what the subject says as it
        is; None without `HasTargets`.

        Args:
            block: Of the pass.
            rows: [rows d_out].
            base: What they lose without.
        """
        if base.says is None:
            return self.loss(block, rows), None
        _, loss, kl = self._told(block, self._logp(block, rows), base.says)
        return loss, kl

    def loss(self, block: Block, rows: Tensor) -> np.ndarray:
        """[samples]: the summed loss with other rows [rows d_out]."""
        if self._logits:
            return self._told(block, self._logp(block, rows), None)[1]
        return self.subject.loss(block.inputs, self._edits(block, rows))[0]

    def _told(
        self, block: Block, logp: Tensor, clean: Distribution | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Of each sample: targets, summed loss, and summed KL from what the subject says untouched."""
        import torch

        targets = self.subject.targets(block.inputs).to(logp.device)
        where = targets >= 0
        loss = -logp.gather(2, targets.clamp_min(0)[..., None])[..., 0]
        found = [where, loss.double().where(where, 0.0)]
        if clean is not None:
            kl = clean.certainty - torch.linalg.vecdot(clean.p, logp)
            found.append(kl.double().where(where, 0.0))
        n, loss, *kl = (each.sum(1).cpu().numpy() for each in found)
        return n, loss, kl[0] if kl else None

    def _logp(self, block: Block, rows: Tensor | None) -> Tensor:
        """[samples positions d_vocab]: log probabilities, with other rows or none."""
        edits = [] if rows is None else self._edits(block, rows)
        if self.stream is None:
            output = self.subject.run(block.inputs, edits=edits).output
        else:
            stream = block.acts[self.stream]
            # an edit of the stream itself is a stream that is known
            stream = next((edit.values for edit in edits if str(edit.hook) == self.stream), stream)
            rest = [edit for edit in edits if str(edit.hook) != self.stream]
            output = self.subject.resume(block.inputs, self.block, stream, rest).output
        return output.float().log_softmax(-1)

    def _edits(self, block: Block, rows: Tensor) -> list[Replace]:
        """The edits that put [rows d_out] where the rows are; the rest stays as it is."""
        from saelab.interventions import Replace

        edits: list[Replace] = []
        assert block.kept is not None
        for hook, own in zip(self.writes, rows.split(self.widths, 1), strict=True):
            values = block.acts[str(hook)].clone()
            values[block.kept.to(values.device)] = own.to(values)
            edits.append(Replace(hook, values))
        return edits


def middle(subject: Any, writes: Sequence[HookPoint]) -> tuple[int, str | None]:
    """(block, hook point of the stream that it reads) where a pass can go on with other rows; (0, None) where
    it has to begin anew.

    Args:
        subject: The model.
        writes: Hook points whose activations are replaced.
    """
    if lacking(subject, Resumes):
        return 0, None
    places = [re.fullmatch(r"blocks\.(\d+)\.(.+)", str(hook)) for hook in writes]
    # what follows a block begins with the next one
    first = min(int(m[1]) + (m[2] == "hook_resid_post") if m else 0 for m in places)
    before, at = f"blocks.{first - 1}.hook_resid_post", f"blocks.{first}.hook_resid_pre"
    stream = before if before in map(str, writes) else at
    return (first, stream) if all(places) and stream in subject.hooks() else (0, None)


__all__ = ["Clean", "Splicing", "Untouched", "middle"]
