"""Codes of some latents, given from one prompt to another; and which latents these should be.

The codes z of base and source at the positions of the entity, in units of the activations, give the edit

    x' = x + sum_j m_j (z_j(source) - z_j(base)) d_j,    m_j = 1 for the latents that are swapped

with the base's own error kept, or left away: x' = x_hat + sum_j ....
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.analysis.disentangling.asking import Asked, Cases, passes
from saelab.analysis.probing.gathered import codes_of, directions_of, weighed
from saelab.analysis.supervised.edits import coded
from saelab.sae import SAE
from saelab.seeds import mixed

LEARNING_RATE, HALF = 0.05, 16
"""Of learning masks, and cases of either kind in a step."""
AT_ONCE = 2048
"""Rows that are decoded together."""
COLDEST = 0.01
"""What the temperature of the masks falls to, from 1."""


class Swapping:
    """A model whose activations are edited by an SAE's codes.

    Args:
        subject: The model.
        sae: An autoencoder of one hook point; None: activations themselves are swapped.
        asked: The facts.
        error: Whether the base's error stays.
    """

    def __init__(self, subject: Any, sae: SAE | None, hook: str, asked: Asked, *, error: bool):
        self.subject, self.sae, self.hook, self.asked = subject, sae, hook, asked
        self._x = torch.cat(list(asked.x))
        self._first = list(itertools.accumulate(map(len, asked.x), initial=0))
        if sae is None:
            return
        self._codes = weighed(sae, codes_of(sae, self._x), self._x)
        self._directions = torch.from_numpy(directions_of(sae)).float()
        # what is left away with the error, row by row
        self._error = (
            None if error else torch.cat([rows - coded(sae, rows).x_hat for rows in self._x.split(AT_ONCE)])
        )

    def says(self, cases: Cases, mask: np.ndarray | None) -> np.ndarray:
        """int64 [n]: the likeliest token after each base's prompt.

        Args:
            cases: Which pairs.
            mask: bool [d_sae], the latents that are swapped; None: all.
        """
        swapped = None if mask is None else torch.from_numpy(mask)
        out = np.zeros(len(cases), dtype=np.int64)
        with torch.no_grad():
            for places, inputs, ends in passes(self.subject, self.asked.ids, cases.base):
                out[places] = self._logits(cases, places, inputs, ends, swapped).argmax(-1).cpu().numpy()
        return out

    def _logits(self, cases: Cases, places: np.ndarray, inputs: Any, ends: list[int], masks: Any, *,
                grad: bool = False) -> Tensor:  # fmt: skip
        """[n d_vocab] after the last token of each base."""
        asked = self.asked
        at = [asked.at[i] for i in cases.base[places]]
        sizes = [len(each) for each in at]
        sample = torch.repeat_interleave(torch.arange(len(at)), torch.tensor(sizes))
        position = torch.from_numpy(np.concatenate(at))
        base, source = (
            np.concatenate([np.arange(self._first[i], self._first[i + 1]) for i in side[places].tolist()])
            for side in (cases.base, cases.source)
        )
        if masks is not None and masks.ndim == 2:
            masks = masks[sample]
        change = self._change(base, source, masks)

        def write(acts: Tensor) -> Tensor:
            acts = acts.clone()
            acts[sample, position] = acts[sample, position] + change.to(acts)
            return acts

        run = self._run(cases.base[places], inputs, write, grad=grad)
        return run.output[torch.arange(len(at)), torch.tensor(ends)].float()

    def _run(self, base: np.ndarray, inputs: Any, write: Callable[[Tensor], Tensor], *, grad: bool) -> Any:
        """A pass with an edit, from the middle on where it is known."""
        asked = self.asked
        if asked.stream is None:
            return self.subject.run(inputs, edits=[(self.hook, write)], grad=grad)
        # positions beyond the end of a prompt are seen by none before
        stream = torch.nn.utils.rnn.pad_sequence([asked.streams[i] for i in base], batch_first=True)
        if asked.stream == self.hook:
            return self.subject.resume(inputs, asked.block, write(stream), grad=grad)
        return self.subject.resume(inputs, asked.block, stream, [(self.hook, write)], grad=grad)

    def _change(self, base: np.ndarray, source: np.ndarray, masks: Tensor | None) -> Tensor:
        """[n width]: what is added to rows, by the numbers of these and of their sources."""
        if self.sae is None:
            return self._x[source] - self._x[base]
        apart = torch.from_numpy((self._codes[source] - self._codes[base]).toarray()).float()
        change = (apart if masks is None else apart * masks.to(apart)) @ self._directions
        return change if self._error is None else change - self._error[base]

    def alive(self) -> np.ndarray:
        """int64: the latents that are on anywhere in these facts."""
        return np.flatnonzero(np.diff(self._codes.tocsc().indptr))

    def learn(self, cases: Cases, n_attributes: int, steps: int, seed: int) -> Tensor:
        """bool [attributes d_sae]: latents that are swapped for each attribute, as SAEBench chooses them: a
        mask sigmoid(theta / T), theta from 0 on by Adam and T falling to 0, that makes the source's answer
        likely where the attribute itself is asked for and the base's where another one is; of what is learnt
        the latents of theta > 0 are taken.

        Args:
            cases: Of the entities that are learnt from.
            n_attributes: How many attributes there are.
            steps: Of Adam, each of 32 cases, half of either kind.
            seed: Of the draws.
        """
        assert self.sae is not None
        draw = torch.Generator().manual_seed(mixed(seed))
        theta = torch.zeros(n_attributes, self.sae.d_sae, requires_grad=True)
        adam = torch.optim.Adam([theta], lr=LEARNING_RATE)
        others = cases.swaps.copy()
        others[np.arange(len(cases)), cases.attribute] = False
        kinds = [np.arange(len(cases)), np.flatnonzero(others.any(1))]
        for step in range(steps):
            drawn = [kind[torch.randint(len(kind), (HALF,), generator=draw).numpy()] for kind in kinds]
            turned = torch.multinomial(torch.from_numpy(others[drawn[1]]).float(), 1, generator=draw)[:, 0]
            which = np.concatenate(drawn)
            swapped = torch.cat([torch.from_numpy(cases.attribute[drawn[0]]), turned])
            right = np.concatenate([cases.source[drawn[0]], cases.base[drawn[1]]])
            target = torch.from_numpy(self.asked.answer[right])
            heat = COLDEST ** (step / max(1, steps - 1))
            mask = torch.sigmoid(theta / heat)
            loss = torch.zeros(())
            for places, inputs, ends in passes(self.subject, self.asked.ids, cases.base[which]):
                logits = self._logits(cases, which[places], inputs, ends, mask[swapped[places]], grad=True)
                loss = loss + torch.nn.functional.cross_entropy(
                    logits.cpu(), target[places], reduction="sum"
                ) / len(which)
            (theta.grad,) = torch.autograd.grad(loss, [theta])
            adam.step()
        return theta.detach() > 0


__all__ = ["Swapping"]
