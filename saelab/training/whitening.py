"""Training on whitened rows, with the whitening folded into the weights at the end.

Training sees z = (x - mu) S with S = C^-1/2, the symmetric root (ZCA), and C the covariance of the rows that
the run begins with, shrunk: C = (1 - a) cov + a tr(cov) / d_in I (Ledoit & Wolf 2004). Every direction of z
has variance 1, so that the loss counts each alike. The SAE that is given back reads and writes raw rows: with
s its input_scale,

    W_enc <- S W_enc,    W_dec <- W_dec S^-1,    b_dec <- b_dec S^-1 + mu / s

and, where b_dec is not subtracted from the input, b_enc <- b_enc - mu S W_enc / s. Its codes are those of the
whitened rows, and its reconstruction is theirs brought back. SAELens' covariance_whitening (arXiv
2511.13981) is the same up to a rotation of z, with 1e-3 added to each variance instead of the shrinkage.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from saelab import dist
from saelab.sae.config import SAEConfig
from saelab.sae.dictionaries import Free
from saelab.sae.model import SAE
from saelab.training.moving import Whitening
from saelab.types import ConfigError

LARGEST = 1e6
"""Ratio of the largest to the smallest variance beyond which float32 weights no longer hold both."""
PROBED = 512
"""Rows on which the folded SAE is compared."""


class Whitener(NamedTuple):
    """What whitens rows: z = (x - mean) @ forward."""

    mean: Tensor
    """[d_in]"""
    forward: Tensor
    """[d_in d_in], symmetric"""
    back: Tensor
    """[d_in d_in], its inverse"""

    def __call__(self, rows: Tensor) -> Tensor:
        """[n d_in], raw rows whitened."""
        return (rows - self.mean) @ self.forward

    def to(self, device: torch.device) -> Whitener:
        """On a device."""
        return Whitener(*(tensor.to(device) for tensor in self))

    @torch.no_grad()
    def fold(self, sae: SAE) -> SAE:
        """Make an SAE of whitened rows one of raw rows, in place."""
        S, back, scale = self.forward.to(sae.W_enc), self.back.to(sae.W_enc), sae.input_scale
        mean = self.mean.to(sae.W_enc) / scale
        sae.W_enc.copy_((S.double() @ sae.W_enc.double()).to(S))
        sae.W_dec.copy_((sae.W_dec.double() @ back.double()).to(S))
        sae.b_dec.copy_((sae.b_dec.double() @ back.double()).to(S) + mean)
        if not sae.config.options.get("apply_b_dec_to_input", False):
            sae.b_enc.sub_(mean @ sae.W_enc)
        return sae


def fit(rows: Tensor, whitening: Whitening) -> Whitener:
    """The whitening of rows [n d_in], alike on all ranks.

    Raises:
        ConfigError: Their covariance, shrunk, has no inverse that float32 holds.
    """
    x = rows.detach().cpu().double()
    mean, a = x.mean(0), whitening.shrinkage
    cov = (x - mean).t() @ (x - mean) / max(1, len(x) - 1)
    average = cov.diagonal().mean()
    cov = (1 - a) * cov + a * average * torch.eye(len(cov), dtype=cov.dtype)
    variances, axes = torch.linalg.eigh(cov)
    low, high = float(variances[0]), float(variances[-1])
    if not high > 0 or low <= high / LARGEST:
        message = (
            "Whitening divides by the deviation of every direction, and the largest variance may be "
            f"{LARGEST:.0e} times the smallest. Got {low:.2g} and {high:.2g} on {len(x)} rows with shrinkage="
            f"{a}. Pass whiten=saelab.training.Whitening(shrinkage={max(0.01, min(1.0, 10 * a))}) or more."
        )
        raise ConfigError(message)
    forward = (axes * variances.rsqrt()) @ axes.t()
    back = (axes * variances.sqrt()) @ axes.t()
    return Whitener(*(dist.ranks.spread(tensor.float()) for tensor in (mean, forward, back)))


def check(config: SAEConfig) -> None:
    """Raises ConfigError where a whitening cannot be folded into the weights."""
    options = config.options
    if config.d_out is not None or config.widths:
        message = (
            f"whiten is for SAEs that reconstruct what they read. Got {config.recipe!r}, whose inputs and "
            "targets are of several hook points. Leave it out."
        )
        raise ConfigError(message)
    for name, good in (("normalise", ("none", "scalar")), ("dictionary", ("free",))):
        value = options.get(name, good[-1])
        if value not in good:
            message = (
                f"whiten needs {name}={' or '.join(map(repr, good))}: another cannot be folded into the "
                f"weights. Got {value!r}. Change it, or leave whiten out."
            )
            raise ConfigError(message)


@torch.no_grad()
def check_folds(sae: SAE, whitener: Whitener, rows: Tensor) -> None:
    """Raises ConfigError where the folded SAE has other codes: where they depend on more than the
    pre-activations, such as the norms of rows or of decoder rows. rows: raw [n d_in]."""
    refuse = not isinstance(sae.dictionary, Free)
    if not refuse:
        some = rows[:PROBED]
        folded = SAE(sae.config)
        folded.load_state_dict(sae.state_dict())
        whitener.fold(folded)
        whole, own = sae.eval().encode(whitener(some)), folded.eval().encode(some)
        sae.train()
        # a code near the edge of what is chosen may be chosen otherwise after rounding
        off = ((whole - own).abs().amax(1) > 1e-3 * whole.abs().amax(1).clamp_min(1e-6)).double().mean()
        refuse = float(off) > 0.05
    if refuse:
        message = (
            "whiten needs codes that depend on pre-activations alone, so that it can be folded into the "
            f"weights. Got {sae.config.title!r}, whose codes see norms of rows or of the decoder. Leave it "
            "out."
        )
        raise ConfigError(message)


__all__ = ["Whitener", "check", "check_folds", "fit"]
