"""Rules: what a recipe does to an SAE around each optimizer step. Recipes name them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from saelab import dist
from saelab.sae.config import SAEConfig
from saelab.sae.dictionaries import Free, Scaled
from saelab.sae.model import SAE
from saelab.sae.network import Forward
from saelab.training.losses import Progress, n_nonzero, output, target
from saelab.training.optimizers import Optimizers
from saelab.types import ConfigError

PIECE = 2**17
"""Numbers of a matrix that are worked on at a time on CPU."""


class Rule:
    """Called around each step, without gradient: `before` the forward pass, `gradient` between backward pass
    and optimizer step, `after` the optimizer step. forward: the pass of the batch, without graph; where the
    batch is split into micro-batches that of the last, without `pre`."""

    def __init__(self, config: SAEConfig, progress: Progress) -> None:
        self.config, self.progress = config, progress

    def before(self, sae: SAE) -> None:
        """Change what the coming pass will use."""

    def gradient(self, sae: SAE, forward: Forward) -> None:
        """Change gradients in place."""

    def after(self, sae: SAE, forward: Forward, optimizer: Optimizers) -> None:
        """Change weights, and the optimizer's state of them, in place."""


class UnitNorm(Rule):
    """Free decoder rows keep norm 1: the part of each row's gradient along the row is removed (it would only
    change the norm, and Adam would count it), and rows are normalised after the step (Bricken et al. 2023;
    Gao et al. 2024). Other dictionaries have rules of their own."""

    @torch.no_grad()
    def gradient(self, sae: SAE, forward: Forward) -> None:
        if not isinstance(sae.dictionary, Free):
            return
        W_dec = sae.W_dec
        if W_dec.grad is not None:
            # on CPU by pieces that stay in the cache
            rows = len(W_dec) if W_dec.is_cuda else max(1, PIECE // W_dec.shape[1])
            for w, grad in zip(W_dec.split(rows), W_dec.grad.split(rows), strict=True):
                square = torch.linalg.vector_norm(w, dim=1, keepdim=True).square().clamp_min(1e-30)
                grad.addcmul_((grad * w).sum(1, keepdim=True) / square, w, value=-1)

    @torch.no_grad()
    def after(self, sae: SAE, forward: Forward, optimizer: Optimizers) -> None:
        if isinstance(sae.dictionary, Free):
            W_dec = sae.W_dec
            W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True).clamp_min(1e-30))


class Tied(Rule):
    """The encoder is w^T of a Scaled dictionary: its gradient is added to that of w, of which only the part
    across w is kept, as in UnitNorm; after the step w has unit norm again and is copied to the encoder."""

    @torch.no_grad()
    def gradient(self, sae: SAE, forward: Forward) -> None:
        w = _directions(sae)
        if sae.W_enc.grad is None or w.grad is None:
            return
        w.grad.add_(sae.W_enc.grad.t())
        w.grad.sub_(torch.linalg.vecdot(w.grad, w)[:, None] * w)
        sae.W_enc.grad.zero_()

    @torch.no_grad()
    def after(self, sae: SAE, forward: Forward, optimizer: Optimizers) -> None:
        w = _directions(sae)
        w.div_(torch.linalg.vector_norm(w, dim=1, keepdim=True).clamp_min(1e-30))
        sae.W_enc.copy_(w.t())


class EncoderIsDecoder(Rule):
    """W_enc = W_dec^T and b_enc = 0, for codes that are found with the dictionary alone."""

    @torch.no_grad()
    def before(self, sae: SAE) -> None:
        sae.W_enc.copy_(sae.W_dec.t())

    @torch.no_grad()
    def after(self, sae: SAE, forward: Forward, optimizer: Optimizers) -> None:
        sae.W_enc.copy_(sae.W_dec.t())


class AnnealK(Rule):
    """k falls linearly from k_start to k over the first `k_anneal` of the run."""

    def before(self, sae: SAE) -> None:
        options = self.config.options
        start, k = options["k_start"], options["k"]
        left = 1 - self.progress.ramp(options["k_anneal"])
        now = k if start is None else k + (start - k) * left
        sae.sparsifier.k = now if isinstance(k, float) else round(now)  # type: ignore[assignment]


class Aim(Rule):
    """Moves the weight of the sparsity penalty until a batch's L0 is `target_l0`: with e the logarithm of
    L0 / target, between -1 and 1, the weight is that of the options times exp(sum of r e + mean of the last
    e), r = 30 / steps and at most .02 (a controller of integral and proportion).

    It begins once the penalty's own warm-up is over. In 1,000 steps L0 comes within 5 % of the target; a run
    of some hundred steps may be too short for the thresholds to move that far.
    """

    FOR_GOOD, AT_MOST, PAST = 30.0, 0.02, 0.9

    @torch.no_grad()
    def after(self, sae: SAE, forward: Forward, optimizer: Optimizers) -> None:
        options = self.config.options
        ramp = max(options.get("l1_warmup", 0.0), options.get("l0_warmup", 0.0))
        if self.progress.step < ramp * self.progress.steps:
            return
        found, n = dist.ranks.count(n_nonzero(forward.codes)), dist.rows.count(len(forward.x))
        ratio = found / (n * options["target_l0"])
        off = math.log(min(max(ratio, math.exp(-1)), math.e))
        moved, lately = self.progress.aim
        moved += min(self.FOR_GOOD / self.progress.steps, self.AT_MOST) * off
        self.progress.aim = moved, self.PAST * lately + (1 - self.PAST) * off


class Resample(Rule):
    """Every `resample_every` steps, up to half of the run, each dead latent starts anew at a row of the
    batch, drawn with probability in proportion to the square of its loss: the decoder row becomes the
    direction of that row's centred target, the encoder column the direction of its centred input with
    `resample_scale` times the mean norm of living columns, the bias 0 and the optimizer's moments 0 (neuron
    resampling, Bricken et al. 2023).

    The draw follows from the step alone, so that a resumed run draws the same.
    """

    @torch.no_grad()
    def after(self, sae: SAE, forward: Forward, optimizer: Optimizers) -> None:
        step, firing = self.progress.step + 1, self.progress.firing
        every = self.config.options["resample_every"]
        if every is None or step % every or 2 * step > self.progress.steps:
            return
        wanted = target(sae, forward)
        error = (wanted - output(sae, forward)).square().sum(1)
        usable = int((error > 0).sum())
        dead = firing.dead.nonzero()[:usable, 0]
        if not len(dead):
            return
        generator = torch.Generator().manual_seed(step)
        weights = (error / error.max()).double().square().cpu()
        weights = weights.clamp_min(1e-12 * (weights > 0))
        rows = torch.multinomial(weights, len(dead), generator=generator).to(dead.device)
        alive = ~firing.dead
        norms = sae.W_enc.norm(dim=0)
        size = self.config.options["resample_scale"] * (norms[alive] if alive.any() else norms).mean()
        inputs = sae.centred(forward.x[rows])[0]
        unit = nn.functional.normalize
        sae.W_enc[:, dead] = unit(inputs, dim=1).t() * size
        sae.b_enc[dead] = 0
        W_dec = sae.W_dec
        W_dec[dead] = unit(wanted[rows] - sae.b_dec, dim=1) * W_dec.norm(dim=1).mean()
        for parameter, at in ((sae.W_enc, (slice(None), dead)), (sae.b_enc, dead), (W_dec, dead)):
            for kept in optimizer.state(parameter).values():
                if kept.ndim:  # no count of steps
                    kept[at] = 0
        firing.since[dead] = 0


def _directions(sae: SAE) -> Tensor:
    if not isinstance(sae.dictionary, Scaled):
        got = type(sae.dictionary).__name__
        msg = f"The rule 'tied' needs a Scaled dictionary. Got {got}. Give the recipe one."
        raise ConfigError(msg)
    return sae.dictionary.w


RULES: dict[str, type[Rule]] = {
    "unit_norm": UnitNorm,
    "tied": Tied,
    "encoder_is_decoder": EncoderIsDecoder,
    "anneal_k": AnnealK,
    "aim": Aim,
    "resample": Resample,
}
