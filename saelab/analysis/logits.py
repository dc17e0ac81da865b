"""The direct path from a latent to the output tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.results import LogitLens
from saelab.arguments import an_sae, checked, listed, whole
from saelab.config import integer
from saelab.types import HasLogits, RangeError, need

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.sae import SAE


@checked(sae=an_sae, n=whole())
def logit_lens(sae: SAE, subject: Any, latent: int, n: int = 10) -> LogitLens:
    """Tokens that a latent's decoder row raises and lowers most by the direct path to the logits.

    logits = norm'(W_dec[latent]) @ W_U, its mean over the vocabulary removed, where norm' is the linear part
    of the final normalisation (centring for LayerNorm, and the elementwise gain); the division by the norm
    depends on the text and is left out. Latents on `hook_z` pass through the layer's output projection first
    (nostalgebraist 2020, "interpreting GPT: the logit lens"; for SAE latents Bricken et al. 2023).

    Args:
        sae: Its decoder rows are what latents write.
        subject: A model with logits.
        latent: Its number.
        n: Tokens on each side.

    Raises:
        RangeError: The latent is out of range.
        HookError: The hook point does not write to the residual stream.
    """
    latent = integer("latent", latent, 0, sae.config.d_sae - 1, error=RangeError)
    return logit_lenses(sae, subject, [latent], n)[0]


def logit_lenses(sae: SAE, subject: Any, latents: list[int], n: int = 10) -> list[LogitLens]:
    """`logit_lens` of many latents by one product. Raises HookError."""
    out = []
    for latent, effect in zip(latents, direct_logits(sae, subject, latents), strict=True):
        order = np.argsort(-effect, kind="stable")
        top, bottom = order[:n].tolist(), order[::-1][:n].tolist()
        strings = subject.token_strings([*top, *bottom])
        pairs = list(zip(strings, effect[[*top, *bottom]].tolist(), strict=True))
        out.append(LogitLens(latent, tuple(pairs[: len(top)]), tuple(pairs[len(top) :]), float(effect.std())))
    return out


@checked(sae=an_sae, latents=listed)
def direct_logits(sae: SAE, subject: Any, latents: list[int]) -> np.ndarray:
    """Direct effect on the logits of one unit of each latent; rows have mean 0.

    Args:
        sae: Its decoder rows are what latents write.
        subject: A model with logits.
        latents: Their numbers.

    Returns:
        float32 [len(latents) d_vocab].
    """
    import torch

    need(subject, HasLogits, "A logit lens")
    most = sae.W_dec.shape[0] - 1
    latents = [integer("latent", latent, 0, most, error=RangeError) for latent in latents]
    with torch.no_grad():
        hook = sae.writes[-1]  # of a crosscoder the last place, which all before reach too
        rows = sae.W_dec[torch.as_tensor(latents, device=sae.device)]
        directions: Tensor = subject.to_residual(hook, rows[:, -subject.width(hook) :].float())
        logits = subject.residual_to_logits(directions)
        return (logits - logits.mean(-1, keepdim=True)).float().cpu().numpy()
