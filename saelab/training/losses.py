"""Losses: `Loss(SAE, Forward) -> scalar`, each dimensionless, added up by the trainer. Recipes name them.

Each is a mean over the rows of its pass, so that the loss of a batch that is divided among ranks is the mean
of theirs, weighted by rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from saelab import dist
from saelab.sae.kernels import Sparse, sparse_decode, top_k_csr
from saelab.sae.model import SAE, Forward
from saelab.sae.recipes import SAEConfig
from saelab.sae.sparsifiers import JumpReLU

Loss = Callable[[SAE, Forward], Tensor]


class Firing:
    """Rows seen since each latent last fired (code != 0), and which latents are dead by that.

    since: int64 [d_sae]. dead_after: rows without firing after which a latent counts as dead.
    """

    def __init__(self, d_sae: int, dead_after: int, device: torch.device | str = "cpu") -> None:
        self.since = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.dead_after = dead_after

    @torch.no_grad()
    def update(self, codes: Tensor | Sparse) -> None:
        """Count the rows of one batch."""
        if isinstance(codes, Sparse):
            fired = torch.zeros_like(self.since, dtype=torch.bool)
            fired[codes.indices[codes.values != 0]] = True
            n = len(codes.indptr) - 1
        else:
            fired = (codes != 0).any(0)
            n = len(codes)
        told = dist.rows.total(F.pad(fired.long(), (0, 1), value=n))
        self.since += told[-1]
        self.since[told[:-1] > 0] = 0

    @property
    def dead(self) -> Tensor:
        """bool [d_sae]"""
        return self.since >= self.dead_after


@dataclass
class Progress:
    """What losses may know about the run besides the SAE and its pass.

    step: steps done. steps: steps in all. variance: mean squared distance of the raw inputs from their mean.
    """

    steps: int
    variance: float
    firing: Firing
    step: int = 0

    def ramp(self, share: float) -> float:
        """Factor in [0, 1] of the step under way: it rises linearly over the first `share` of the run."""
        return min(1.0, (self.step + 1) / (share * self.steps)) if share else 1.0


def mse(config: SAEConfig, progress: Progress) -> Loss:
    """Normalised squared error: mean_i ||x_i - x_hat_i||^2 / variance. An estimate of the FVU (Gao et al.
    2024, 2.1).

    The variance is estimated once, on the rows that the run starts with, so that every batch has the same
    weight.
    """

    def loss(sae: SAE, forward: Forward) -> Tensor:
        return (forward.x - forward.x_hat).square().sum() / (len(forward.x) * progress.variance)

    return loss


def prefixes(config: SAEConfig, progress: Progress) -> Loss:
    """Matryoshka: the mean, over nested prefixes of the latents, of the normalised squared error of the
    reconstruction from that prefix alone (Bussmann et al. 2025). The last prefix is all latents; with
    `bias_level` the empty one counts too.

    Random prefixes depend on the step alone, so that a resumed run draws the same.
    """
    fixed = prefix_lengths(config)

    def loss(sae: SAE, forward: Forward) -> Tensor:
        lengths = fixed
        if config.options["random_prefixes"]:
            uniform = torch.rand(len(fixed) - 1, generator=torch.Generator().manual_seed(progress.step))
            inner = (config.d_sae**uniform).long().clamp_max(config.d_sae)
            lengths = [*sorted(inner.tolist()), config.d_sae]
        x_hat = (_nested(sae, forward.codes, lengths) + sae.b_dec) * sae.input_scale
        error = (forward.x - x_hat).square().sum()
        if config.options["bias_level"]:
            error = error + (forward.x - sae.b_dec * sae.input_scale).square().sum()
        levels = len(lengths) + config.options["bias_level"]
        return error / (levels * len(forward.x) * progress.variance)

    return loss


def prefix_lengths(config: SAEConfig) -> list[int]:
    """How many latents each nested prefix of a matryoshka config has, ascending, the last d_sae."""
    groups = config.options["groups"]
    if groups is not None:
        return list(itertools.accumulate(groups))
    return sorted({math.ceil(config.d_sae / 2**i) for i in range(5)})


def _nested(sae: SAE, codes: Tensor | Sparse, lengths: list[int]) -> Tensor:
    """[levels n d_in]: codes @ W_dec of each prefix. The groups between prefixes are decoded at once, as the
    rows of one sparse product, and summed up."""
    if isinstance(codes, Tensor):
        starts = [0, *lengths[:-1]]
        parts = [codes[:, a:b] @ sae.W_dec[a:b] for a, b in zip(starts, lengths, strict=True)]
        return torch.stack(parts).cumsum(0)
    n = len(codes.indptr) - 1
    group = torch.bucketize(codes.indices, torch.tensor(lengths, device=codes.indices.device), right=True)
    row = group * n + codes.rows()
    order = torch.argsort(row, stable=True)
    indptr = F.pad(torch.bincount(row, minlength=len(lengths) * n).cumsum(0), (1, 0))
    grouped = Sparse(indptr, codes.indices[order], codes.values[order], codes.d_sae)
    return sparse_decode(grouped, sae.W_dec).unflatten(0, (len(lengths), n)).cumsum(0)


def auxk(config: SAEConfig, progress: Progress) -> Loss:
    """Auxiliary loss that revives dead latents (Gao et al. 2024, appendix A.2).

    The k_aux dead latents with the largest pre-activations of each row predict what the SAE left over:
    ||e - e_hat||^2 / ||e||^2 with e = x - x_hat (without gradient: the error is a target, not something to
    enlarge) and e_hat = relu(pre_dead) @ W_dec without the bias; where codes are signed, the largest
    |pre_dead| with their signs. 0 while nothing is dead or left over.
    """
    coefficient = config.options["aux_coefficient"]
    k_aux = config.options["k_aux"] or max(1, config.d_in // 2)

    def loss(sae: SAE, forward: Forward) -> Tensor:
        dead = progress.firing.dead.nonzero()[:, 0]
        error = ((forward.x - forward.x_hat) / sae.input_scale).detach()
        energy = dist.rows.pooled(error.square().sum(), len(error))
        n_dead = dist.latents.count(len(dead))
        if not n_dead or not energy > 0:
            return forward.x_hat.new_zeros(())
        signed = sae.sparsifier.signed
        with torch.no_grad():
            pre = forward.pre.detach()
            score = pre[:, dead].abs() if signed else pre[:, dead]
            indptr, at = top_k_csr(score, min(k_aux, n_dead))
        codes = sae.attach(forward.x, pre, indptr, dead[at], torch.clone if signed else torch.relu)
        e_hat = dist.latents.summed(sparse_decode(codes, sae.W_dec))
        return coefficient * (error - e_hat).square().sum() / energy

    return loss


def l1(config: SAEConfig, progress: Progress) -> Loss:
    """Sparsity penalty: l1 * mean_i sum_j |f_ij| * ||W_dec_j|| / sqrt(variance), its weight rising over
    the warm-up.

    With `decoder_norm_weighted=False` the norms are left out (decoder rows keep unit norm by a rule instead).
    """
    weight, weighted = config.options["l1"], config.options["decoder_norm_weighted"]

    def loss(sae: SAE, forward: Forward) -> Tensor:
        assert isinstance(forward.codes, Tensor)
        ramp = progress.ramp(config.options["l1_warmup"])
        sizes = forward.codes.abs().sum(0)
        total = (sizes * sae.W_dec.norm(dim=1)).sum() if weighted else sizes.sum()
        return weight * ramp * total * sae.input_scale / (len(forward.x) * progress.variance**0.5)

    return loss


def l0(config: SAEConfig, progress: Progress) -> Loss:
    """l0 * mean_i ||f_i||_0 of JumpReLU codes, its weight rising over the warm-up. Only the thresholds get a
    gradient, by a straight-through estimate (Rajamanoharan et al. 2024b)."""

    def loss(sae: SAE, forward: Forward) -> Tensor:
        assert isinstance(sae.sparsifier, JumpReLU)
        weight = config.options["l0"] * progress.ramp(config.options["l0_warmup"])
        return weight * sae.sparsifier.count(forward.codes, forward.pre) / len(forward.x)

    return loss


def tanh(config: SAEConfig, progress: Progress) -> Loss:
    """l0 * mean_i sum_j tanh(c sqrt(d_in) f_ij ||W_dec_j||), its weight rising over the warm-up: about the
    number of codes, but smooth, so that every weight gets a gradient (Anthropic, January 2025; there inputs
    have norm sqrt(d_in), here 1, hence the factor)."""
    scale = config.options["tanh_scale"] * config.d_in**0.5

    def loss(sae: SAE, forward: Forward) -> Tensor:
        weight = config.options["l0"] * progress.ramp(config.options["l0_warmup"])
        norms = sae.W_dec.norm(dim=1)
        if isinstance(forward.codes, Sparse):
            sizes = forward.codes.values * norms[forward.codes.indices]
        else:
            sizes = forward.codes * norms
        return weight * (scale * sizes).tanh().sum() / len(forward.x)

    return loss


def gate(config: SAEConfig, progress: Progress) -> Loss:
    """What trains the gate of a Gated SAE, g = relu(pre): an L1 penalty on g, as `l1` without norms, and the
    error of reconstructing from g by the decoder held fixed, ||x - x_hat(g)||^2 / variance, so that what is
    on is what can explain x (Rajamanoharan et al. 2024a)."""

    def loss(sae: SAE, forward: Forward) -> Tensor:
        if isinstance(forward.codes, Sparse):
            on: Tensor | Sparse = sae.attach(forward.x, forward.pre, *forward.codes[:2], torch.relu)
            total = on.values.sum()
            product = sparse_decode(on, sae.W_dec.detach())
        else:
            on = forward.pre.relu()
            total = on.sum()
            product = on @ sae.W_dec.detach()
        x_hat = (product + sae.b_dec.detach()) * sae.input_scale
        penalty = config.options["l1"] * progress.ramp(config.options["l1_warmup"])
        error = (forward.x - x_hat).square().sum() / progress.variance
        return (error + penalty * total * sae.input_scale / progress.variance**0.5) / len(forward.x)

    return loss


def afa(config: SAEConfig, progress: Progress) -> Loss:
    """afa * mean_i (||f_i * ||d||| - ||x_i||)^2, so that codes are as long as their inputs (top-AFA, arXiv
    2503.24277). x is centred and normalised as the selection sees it, and a target: it gets no gradient."""

    def loss(sae: SAE, forward: Forward) -> Tensor:
        norms, codes = sae.W_dec.norm(dim=1), forward.codes
        if isinstance(codes, Sparse):
            squares = (codes.values * norms[codes.indices]).square()
            total = squares.new_zeros(len(forward.x)).index_add(0, codes.rows(), squares)
        else:
            total = (codes * norms).square().sum(1)
        # the slope of a root is infinite at 0
        length = total.clamp_min(torch.finfo(total.dtype).tiny).sqrt()
        target = (forward.x / sae.input_scale - sae.b_in()).norm(dim=1).detach()
        return config.options["afa"] * (length - target).square().mean()

    return loss


LOSSES: dict[str, Callable[[SAEConfig, Progress], Loss]] = {
    "mse": mse,
    "prefixes": prefixes,
    "auxk": auxk,
    "l1": l1,
    "l0": l0,
    "tanh": tanh,
    "gate": gate,
    "afa": afa,
}
