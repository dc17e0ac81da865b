"""A batch of texts that grow together and are not read anew: the model's cache, and what edits keep.

Families of models keep what they have read in different ways, and some do not. Whether a subject goes on from
its cache as it would from the whole text is measured on it, once for each hook point that is edited.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saelab.config import is_integer
from saelab.subjects.alone import WINDOWS
from saelab.subjects.hooks import EditFn, main_tensor, plan
from saelab.subjects.passes import run_hooked
from saelab.types import Context, HookPoint, Inputs

if TYPE_CHECKING:
    from torch import Tensor

CACHES = ("past_key_values", "cache_params", "state", "mems")
"""What models call the cache that they return and take."""
STEPS, READ = 3, 12
"""Tokens that the proof goes on from a cache, and tokens that it has read before."""
LONGEST = 40
"""The widest window of attention that the proof fills; how wider ones move on is the library's own code."""

Changes = Sequence[tuple[HookPoint, EditFn]]


class Memory:
    """What was read of a batch of samples, and the passes that go on from there.

    Args:
        subject: A `LanguageModel`.
        rows: Ids of each sample; the shorter ones are padded on the left.
    """

    def __init__(self, subject: Any, rows: Sequence[Sequence[int]]) -> None:
        self._subject = subject
        self._padded = len({len(ids) for ids in rows}) > 1
        # asked of a cache alone, those of recurrent models do not know
        self._positions = "position_ids" in inspect.signature(subject.module.forward).parameters
        self._real = np.zeros((len(rows), 0), dtype=bool)
        self._cache: dict[str, Any] = {}
        self._past: dict[Any, Any] = {}
        width = max(map(len, rows))
        self._next = np.zeros((len(rows), width), dtype=np.int64)
        self._is = np.arange(width) >= width - np.array([[len(ids)] for ids in rows])
        for i, ids in enumerate(rows):
            self._next[i, width - len(ids) :] = ids

    def add(self, ids: np.ndarray) -> None:
        """One more token of each sample, int64 [samples]; -1 where a sample has ended, which pads it on."""
        self._next, self._is = np.maximum(ids, 0)[:, None], ids[:, None] >= 0

    def read(self, changes: Changes) -> Tensor:
        """Logits [samples, positions, d_vocab] of what was not read yet."""
        subject, new, real = self._subject, self._next, self._is
        before = self._real.sum(1, keepdims=True)
        number = np.where(real, before + real.cumsum(1) - 1, -1)
        self._real = np.concatenate([self._real, real], 1)
        data = {"input_ids": torch.from_numpy(new)}
        if self._padded:
            data["attention_mask"] = torch.from_numpy(self._real).long()
        if self._padded or self._positions:
            # an ended sample's tokens stand at 0: its context may be full
            data["position_ids"] = torch.from_numpy(np.maximum(number, 0))
        first = not self._cache
        bos = -1 if subject.bos_id is None else subject.bos_id
        inputs = Inputs(
            data,
            real.sum(1),
            counted=real & (new != bos),
            positions=number,
            given=np.full(new.shape, first),
            special=real & np.isin(new, list(subject.special_ids)),
        )
        own = subject._to_device(data) | self._cache
        if subject.module.training:
            subject.module.eval()
        out = run_hooked(
            lambda: subject.module(**own, use_cache=True),
            plan([], changes, subject._site),
            subject._view(inputs),
            inputs,
            past=self._past,
        ).output
        kept = ((name, getattr(out, name, None)) for name in CACHES)
        self._cache = {name: cache for name, cache in kept if cache is not None}
        if not self._cache:
            raise NoCache
        logits: Any = main_tensor(out)[0]
        return logits


class NoCache(Exception):
    """A model that returns no cache."""


def remembers(subject: Any, rows: Sequence[Sequence[int]], changes: Changes) -> bool:
    """Whether these samples can go on from the model's cache, edited as they are.

    Measured on the subject at the first use of each hook point: reading some tokens and going on from there
    must give the logits of the whole text, with an edit at the hook points in both; and where samples differ
    in length, each must have in a batch padded on the left what it has alone.
    """
    known: dict[Any, bool] = subject._remembers
    padded = len({len(ids) for ids in rows}) > 1
    sites = {subject._key(hook): hook for hook, _ in changes}
    for wanted in (frozenset(), frozenset(sites)):
        if (padded, wanted) not in known:
            hooks = [sites[key] for key in sorted(wanted)]
            known[padded, wanted] = subject.n_ctx > STEPS + 1 and _goes_on(subject, hooks, padded)
        if not known[padded, wanted]:
            return False
    return True


def _goes_on(subject: Any, hooks: Sequence[HookPoint], padded: bool) -> bool:
    config = subject.model.config
    windows = [w for w in (getattr(config, name, None) for name in WINDOWS) if is_integer(w)]
    n = max([READ, *(w + STEPS for w in windows if w <= LONGEST)])
    n = min(n, subject.n_ctx - STEPS)
    draw = np.random.default_rng(0)
    lengths = [max(n // 2, 1), n] if padded else [n]
    texts = [draw.integers(subject.d_vocab, size=length + STEPS).tolist() for length in lengths]
    changes = [(hook, _nudge) for hook in hooks]
    try:
        memory = Memory(subject, [ids[:-STEPS] for ids in texts])
        found = [memory.read(changes)[:, -1]]
        for step in range(STEPS):
            memory.add(np.array([ids[step - STEPS] for ids in texts]))
            found.append(memory.read(changes)[:, -1])
    except Exception:  # a model that takes no such arguments says so in its own way
        return False
    for i, ids in enumerate(texts):
        whole: Any = main_tensor(subject._forward(subject.padded([ids]), [], changes, True, False).output)[0]
        alone = whole[0, -STEPS - 1 :].float()
        error = (torch.stack(found, 1)[i].float() - alone).norm(dim=-1)
        size = alone.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        tolerance = 1e-3 if next(subject.module.parameters()).dtype.itemsize > 2 else 0.05
        if not float((error / size).max()) <= tolerance:
            return False
    return True


def _nudge(acts: Tensor, context: Context) -> Tensor:
    """A change of every position that follows from that position alone."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(acts.shape[-1], generator=draw).to(acts)
    return acts + 0.5 * acts.norm(dim=-1, keepdim=True) * noise / noise.norm()


__all__ = ["Memory", "remembers"]
