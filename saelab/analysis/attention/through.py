"""What edges of attention are worth to a latent through all that comes after them: one gradient for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saelab.analysis.attention.direct import Asked, asked_of, fired_of, in_text
from saelab.analysis.results_attention import EdgeEffects
from saelab.arguments import a_subject, an_integer, checked, full_sae, maybe
from saelab.arguments import text as a_text

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.sae import SAE


@checked(subject=a_subject, sae=full_sae, text=a_text, dest=maybe(an_integer()))
def edge_effects(subject: Any, sae: SAE, text: str, latent: int, dest: int | None = None) -> EdgeEffects:
    """What a latent's pre-activation would lose without each edge, to first order.

    With A[head, dest, source] the weight of one source at the destination, which is scaled by 1 + s::

        effect = d pre / d s  at s = 0

    through everything behind it: norms, MLPs and later heads run free, unlike in `dfa`, which tells what was
    written to the latent directly (edge attribution patching against zero, Syed et al. 2023). One pass and
    one gradient, whatever the number of edges; `edge_changes` says how well both foretell what happens.

    Args:
        subject: A language model whose heads can be read.
        sae: On any hook point of its layers.
        text: Any.
        latent: Its number.
        dest: The position, BOS counted; None: where its code is largest.

    Raises:
        SubjectError: The subject has no attention that can be read.
        HookError: The SAE is on none of this subject's hook points.
        ShapeError: The SAE is of another width.
        CorpusError: The text is empty, too long, or has fewer than two tokens.
        RangeError: The latent or position is out of range, or the latent fires nowhere and no dest is given.
    """
    asked = asked_of(subject, sae, text, latent)
    if dest is None:
        x = subject.run(asked.inputs, [asked.place.hook], output=False).acts[asked.place.hook][0]
        dest = fired_of(sae, x, asked, None).dest
    return effects_at(subject, sae, asked, in_text(dest, asked))[0]


def effects_at(subject: Any, sae: SAE, asked: Asked, dest: int) -> tuple[EdgeEffects, dict[int, Tensor]]:
    """`edge_effects` at a position, and the weights of its sources by layer: [heads positions].

    Args:
        subject: The model.
        sae: The SAE.
        asked: What was asked.
        dest: The position.
    """
    hook = asked.place.hook
    scales: dict[int, Tensor] = {}

    def scaled(layer: int, pattern: Tensor) -> Tensor:
        scales[layer] = torch.ones_like(pattern[0, :, dest]).requires_grad_()
        # out of place: what pattern was made by needs it as it was
        row = (pattern[:, :, dest] * scales[layer])[:, :, None]
        return torch.cat([pattern[:, :, :dest], row, pattern[:, :, dest + 1 :]], 2)

    with torch.enable_grad():
        seen = subject.attend(asked.inputs, [hook], patterns=scaled, output=False, grad=True)
        pre = sae(seen.run.acts[hook][:, dest].to(sae.W_enc)).pre[0, asked.latent]
        layers = sorted(scales) if pre.requires_grad else []
        found = torch.autograd.grad(pre, [scales[i] for i in layers], allow_unused=True) if layers else ()
    fired = fired_of(sae, seen.run.acts[hook][0].detach(), asked, dest)
    reached = {i: grad for i, grad in zip(layers, found, strict=True) if grad is not None}
    parts = [grad.double().cpu().numpy() for grad in reached.values()]
    heads = next((each.shape[0] for each in parts), 0)
    effects = EdgeEffects(
        asked.latent, hook, asked.tokens, dest, tuple(reached),
        np.stack(parts) if parts else np.zeros((0, heads, len(asked.tokens))), fired.pre, fired.code,
    )  # fmt: skip
    return effects, {i: pattern[0, :, dest].float().cpu() for i, pattern in seen.patterns.items()}


__all__ = ["edge_effects", "effects_at"]
