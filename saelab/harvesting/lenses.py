"""What latents raise and lower by the direct path to the logits, for many of them at once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saelab.capabilities import HasLogits, lacking, need
from saelab.stores import lenses as kept
from saelab.stores.lenses import Lenses
from saelab.types import HookError

if TYPE_CHECKING:
    from saelab.sae import SAE
    from saelab.stores import FeatureStore

N = 10
"""Tokens on each side."""
BLOCK = 64
"""Latents of one product at least: over a vocabulary of 100,000 they take 25 MB."""
BLOCK_LOGITS = 2**20
"""Of one product, where a vocabulary is so small that more latents take no more."""


def direct_effects(sae: SAE, subject: Any, latents: list[int]) -> Tensor:
    """Direct effect on the logits of one unit of each latent, float32 [n d_vocab]; rows have mean 0. Raises
    SubjectError where it has no logits, HookError where the hook point has no such path."""
    need(subject, HasLogits, "A logit lens")
    with torch.no_grad():
        rows = sae.W_dec[torch.as_tensor(latents, device=sae.device)].float()
        hook, widths = sae.writes[-1], sae.config.widths_out
        if sae.config.d_out is not None and widths:  # what a latent adds at each layer, in units of the last
            scale = sae.out_scale.expand(rows.shape[1])
            parts = zip(sae.writes, (rows * (scale / scale[-1])).split(list(widths), 1), strict=True)
            directions = torch.stack([subject.to_residual(at, part) for at, part in parts]).sum(0)
        else:  # of a crosscoder the last place, which all before reach too
            directions = subject.to_residual(hook, rows[:, -subject.width(hook) :])
        logits = subject.residual_to_logits(directions)
        return (logits - logits.mean(-1, keepdim=True)).float()


def lenses_of(sae: SAE, subject: Any, latents: list[int], n: int = N) -> Lenses:
    """The lens of each latent, at most n tokens on a side. Raises as `direct_effects` does.

    Args:
        sae: Its decoder rows are what latents write.
        subject: A model with logits.
        latents: Different ones.
        n: Tokens on each side.
    """
    ids, logits, spread = [], [], []
    order, first, step = sorted(latents), 0, BLOCK
    while first < len(order):
        effect = direct_effects(sae, subject, order[first : first + step])
        first, step = first + step, max(BLOCK, BLOCK_LOGITS // effect.shape[-1])
        wide = min(n, effect.shape[-1])
        top, bottom = (torch.topk(effect, wide, -1, largest=largest) for largest in (True, False))
        ids.append(torch.cat([top.indices, bottom.indices], -1).cpu().numpy())
        logits.append(torch.cat([top.values, bottom.values], -1).cpu().numpy())
        spread.append(effect.std(-1, correction=0).cpu().numpy())
    used, tokens = np.unique(np.concatenate(ids), return_inverse=True)
    return Lenses(
        np.array(order, np.int32),
        tokens.reshape(len(order), -1).astype(np.int32),
        np.concatenate(logits).astype(np.float32),
        np.concatenate(spread).astype(np.float32),
        subject.token_strings(used.tolist()),
    )


def keep_lenses(
    store: FeatureStore, sae: SAE, subject: Any, latents: list[int] | None = None, *, seconds: float = 2.0
) -> Lenses:
    """The lenses that are kept with a store, after those of `latents`, and of all others where that takes no
    longer than `seconds` as far as one can tell from a block, were added.

    Args:
        store: Of the SAE and the subject.
        sae: The SAE.
        subject: The model.
        latents: Those that are needed now; None for none.
        seconds: What the others may take.
    """
    found = kept.read(store)
    rest = found.lacks(list(range(store.n_latents)))
    if not rest:
        return found
    try:
        if lacking(subject, HasLogits):
            found = Lenses.none(applies=False)
        else:
            found = found.with_(_added(sae, subject, found.lacks(latents or []), rest, seconds))
    except HookError:  # of a point that does not write to the residual stream
        found = Lenses.none(applies=False)
    if len(found.latents) or not found.applies:
        kept.keep(store, found)
    return found


def _added(sae: SAE, subject: Any, needed: list[int], rest: list[int], seconds: float) -> Lenses:
    lenses_of(sae, subject, rest[:1])  # what is measured of a model once is no part of what each takes
    started = time.perf_counter()
    block = lenses_of(sae, subject, sorted({*needed, *rest[:BLOCK]}))
    took = (time.perf_counter() - started) / len(block.latents) * len(rest)
    if took > seconds:
        return block
    return block.with_(lenses_of(sae, subject, block.lacks(rest))) if block.lacks(rest) else block
