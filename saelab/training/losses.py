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
from saelab.sae import dense
from saelab.sae.batchwise import zipf
from saelab.sae.config import SAEConfig
from saelab.sae.kernels import Sparse, sparse_decode, top_k_csr
from saelab.sae.model import SAE
from saelab.sae.network import Forward
from saelab.sae.sparsifiers import Gated, Gaussian, JumpReLU

Loss = Callable[[SAE, Forward], Tensor]


class Firing:
    """How often latents fire (code != 0), and which are dead.

    since: int64 [d_sae], rows seen since each last fired. density: float32 [d_sae], share of rows on which
    each fires, a moving average over about `dead_after` rows (a plain mean at first). rows: seen so far.
    dead_after: rows without firing after which a latent counts as dead.
    """

    def __init__(self, d_sae: int, dead_after: int, device: torch.device | str = "cpu") -> None:
        self.since = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.density = torch.zeros(d_sae, device=device)
        self.rows = 0
        self.dead_after = dead_after

    @torch.no_grad()
    def update(self, *batches: Tensor | Sparse) -> None:
        """Count the rows of one batch, given by the codes of its micro-batches."""
        n, fired = 0, torch.zeros_like(self.since)
        for codes in batches:
            if isinstance(codes, Sparse):
                fired += torch.bincount(codes.indices[codes.values != 0], minlength=len(fired))
                n += len(codes.indptr) - 1
            else:
                fired += dense.fired(codes)
                n += len(codes)
        told = dist.rows.total(F.pad(fired, (0, 1), value=n))
        fired, n = told[:-1], int(told[-1])
        if not n:
            return
        self.since += n
        self.since[fired > 0] = 0
        self.rows += n
        self.density.lerp_(fired / n, n / min(self.rows, max(self.dead_after, n)))

    @property
    def dead(self) -> Tensor:
        """bool [d_sae]"""
        return self.since >= self.dead_after


@dataclass
class Progress:
    """What losses may know about the run besides the SAE and its pass.

    step: steps done. steps: steps in all. variance: mean squared distance of the targets from their mean, in
    normalised units.
    """

    steps: int
    variance: float
    firing: Firing
    step: int = 0
    aim: tuple[float, float] = (0.0, 0.0)
    """of the rule `aim`: how far the logarithm of a sparsity penalty's weight was moved for good, and for the
    moment"""

    @property
    def pressure(self) -> float:
        """By which the weight of a sparsity penalty is multiplied."""
        return math.exp(sum(self.aim))

    def ramp(self, share: float) -> float:
        """Factor in [0, 1] of the step under way: it rises linearly over the first `share` of the run."""
        return min(1.0, (self.step + 1) / (share * self.steps)) if share else 1.0


def n_nonzero(codes: Tensor | Sparse) -> int:
    """Codes that are not 0."""
    return int((codes.values != 0).sum() if isinstance(codes, Sparse) else dense.fired(codes).sum())


def target(sae: SAE, forward: Forward) -> Tensor:
    """[n d_out]: what the decoder should give, in normalised units."""
    return sae.target(forward.x, forward.y)


def output(sae: SAE, forward: Forward) -> Tensor:
    """[n d_out]: x_hat in normalised units."""
    x_hat = forward.x_hat
    if forward.scale is not None:
        return (x_hat - forward.scale.mean) / forward.scale.norm
    return x_hat / sae.out_scale


def mse(config: SAEConfig, progress: Progress) -> Loss:
    """Normalised squared error: mean_i ||x_i - x_hat_i||^2 / variance, in normalised units. An estimate of
    the FVU (Gao et al. 2024, 2.1).

    The variance is estimated once, on the rows that the run starts with, so that every batch has the same
    weight.
    """

    def loss(sae: SAE, forward: Forward) -> Tensor:
        error = target(sae, forward) - output(sae, forward)
        return error.square().sum() / (len(forward.x) * progress.variance)

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
        wanted = target(sae, forward) - sae.b_dec
        error = (wanted - _nested(sae, forward.codes, lengths)).square().sum()
        if config.options["bias_level"]:
            error = error + wanted.square().sum()
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
    rows of one sparse product, and summed up. Where ranks divide latents, each has its part of a prefix."""
    start, end = dist.latents.bounds(lengths[-1])
    lengths = [min(max(length, start), end) - start for length in lengths]
    return dist.latents.summed(_nested_own(sae, codes, lengths))


def _nested_own(sae: SAE, codes: Tensor | Sparse, lengths: list[int]) -> Tensor:
    """The part of this rank's latents."""
    if isinstance(codes, Tensor):
        starts = [0, *lengths[:-1]]
        decoded = [codes[:, a:b] @ sae.W_dec[a:b] for a, b in zip(starts, lengths, strict=True)]
        return torch.stack(decoded).cumsum(0)
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
    return _revival(config, lambda: progress.firing.dead)


def aux_zipf(config: SAEConfig, progress: Progress) -> Loss:
    """auxk for latents that are dying as well as dead: those whose density is below zipf_floor times the one
    that a Zipf law gives to their rank, min(1, k d_sae-th share of (rank + bump)^-alpha) (arXiv 2411.02124).
    With zipf_floor 0 it is auxk."""
    options = config.options
    expected = (options["k"] * zipf(config.d_sae, options["alpha"], options["bump"])).clamp_max(1).float()

    def chosen() -> Tensor:
        firing = progress.firing
        rank = torch.sort(firing.density, descending=True, stable=True).indices.argsort()
        floor = options["zipf_floor"] * expected.to(rank.device)[rank]
        return firing.dead | ((firing.density < floor) & (firing.rows >= firing.dead_after))

    return _revival(config, chosen)


def _revival(config: SAEConfig, chosen: Callable[[], Tensor]) -> Loss:
    """The loss of auxk for chosen latents (bool [d_sae])."""
    coefficient = config.options["aux_coefficient"]
    k_aux = config.options["k_aux"] or max(1, config.d_in // 2)

    def loss(sae: SAE, forward: Forward) -> Tensor:
        latents = chosen().nonzero()[:, 0]
        error = (target(sae, forward) - output(sae, forward)).detach()
        energy = dist.rows.pooled(error.square().sum(), len(error))
        found = dist.latents.count(len(latents))
        if not found or not energy > 0:
            return forward.x_hat.new_zeros(())
        signed = sae.sparsifier.signed
        k = min(k_aux, found)
        if len(forward.pre):
            pre = forward.pre.detach()
            indptr, at = top_k_csr(pre[:, latents], k, signed)
            at = latents[at]
        else:
            pre, at = (part.reshape(-1) for part in sae.largest(forward.x, k, latents))
            indptr = torch.arange(0, len(at) + 1, k, device=at.device)
        codes = sae.attach(forward.x, pre, indptr, at, torch.clone if signed else torch.relu)
        return coefficient * (error - sae.product(codes)).square().sum() / energy

    return loss


def multi_topk(config: SAEConfig, progress: Progress) -> Loss:
    """multi_topk * the normalised squared error of keeping 4 k latents instead of k, so that codes stay
    progressive beyond k (Gao et al. 2024, 6.3)."""
    weight, k = config.options["multi_topk"], min(4 * config.options["k"], config.d_sae)

    def loss(sae: SAE, forward: Forward) -> Tensor:
        pre = forward.pre.detach()
        by_norm = config.options["by_norm"]
        score = pre * sae.dictionary.norms().detach() if by_norm else pre
        codes = sae.attach(forward.x, pre, *top_k_csr(score, k), torch.relu)
        error = target(sae, forward) - sae.b_dec - sae.product(codes)
        return weight * error.square().sum() / (len(pre) * progress.variance)

    return loss


def kl(config: SAEConfig, progress: Progress) -> Loss:
    """kl * mean_i KL(N(mu_i, sigma_i^2) || N(0, 1)) over all latents, its weight rising over the warm-up
    (vSAE, arXiv 2509.22994). Without sampling it is kl / 2 * mean_i ||mu_i||^2: an L2 penalty."""

    def loss(sae: SAE, forward: Forward) -> Tensor:
        assert isinstance(sae.sparsifier, Gaussian)
        weight = config.options["kl"] * progress.ramp(config.options["kl_warmup"])
        return weight * sae.sparsifier.kl(forward.pre, sae.centred(forward.x)[0]).mean()

    return loss


def l1(config: SAEConfig, progress: Progress) -> Loss:
    """Sparsity penalty: l1 * mean_i sum_j |f_ij| * ||W_dec_j|| / sqrt(variance), its weight rising over
    the warm-up.

    With `decoder_norm_weighted=False` the norms are left out (decoder rows keep unit norm by a rule instead).
    With p_end < 1 the sum is of (|f_ij| ||W_dec_j||)^p, p falling from 1 to p_end over the run after its
    first fifth, times the factor that keeps its size that of the L1 penalty (p-annealing, Karvonen et al.
    2024).
    """
    options = config.options
    weight, weighted = options["l1"], options.get("decoder_norm_weighted", True)
    p_end = options["p_end"]

    def loss(sae: SAE, forward: Forward) -> Tensor:
        codes = forward.codes
        ramp = progress.pressure * progress.ramp(options["l1_warmup"])
        norms = sae.dictionary.norms() if weighted else None
        past = max(0.0, progress.step / progress.steps - 0.2) / 0.8
        p = 1 + (p_end - 1) * past
        if isinstance(codes, Tensor) and p == 1 and not sae.sparsifier.signed:
            sums = dense.column_sums(codes)
            total = dist.latents.summed(sums.sum() if norms is None else sums @ norms)
            return weight * ramp * total / (len(forward.x) * progress.variance**0.5)
        sizes = (codes.values if isinstance(codes, Sparse) else codes).abs()
        if norms is not None:
            sizes = sizes * (norms[codes.indices] if isinstance(codes, Sparse) else norms)
        total = sizes.sum()
        if p < 1:
            # the slope of a power below 1 is infinite at 0
            powers = sizes.clamp_min(torch.finfo(sizes.dtype).tiny).pow(p).masked_fill(sizes == 0, 0).sum()
            size, of = dist.ranks.total(torch.stack([total, powers]).detach())
            total = powers * (size / of.clamp_min(torch.finfo(sizes.dtype).tiny))
        return weight * ramp * dist.latents.summed(total) / (len(forward.x) * progress.variance**0.5)

    return loss


def l0(config: SAEConfig, progress: Progress) -> Loss:
    """l0 * mean_i ||f_i||_0 of JumpReLU codes, its weight rising over the warm-up; with target_weight instead
    target_weight * (mean_i ||f_i||_0 / target_l0 - 1)^2, as dictionary_learning has it. Only the thresholds
    get a gradient, by a straight-through estimate (Rajamanoharan et al. 2024b), with ste_to_input the encoder
    too."""
    options = config.options

    def loss(sae: SAE, forward: Forward) -> Tensor:
        assert isinstance(sae.sparsifier, JumpReLU)
        n, ramp = len(forward.x), progress.ramp(options["l0_warmup"])
        found = dist.latents.summed(_on(sae, sae.sparsifier, forward).sum()) / n
        if options["target_weight"] is None:
            return options["l0"] * progress.pressure * ramp * found
        # where ranks share a batch its whole L0 decides, and each part has its own gradient
        whole = dist.rows.pooled(found.detach() * n, n) / n
        off = (whole + found - found.detach()) / options["target_l0"] - 1
        return options["target_weight"] * ramp * off.square()

    return loss


def _on(sae: SAE, sparsifier: JumpReLU, forward: Forward) -> Tensor:
    """1 for each code that is on, with the gradients of `JumpReLU.on`."""
    codes = forward.codes
    if not isinstance(codes, Sparse):
        return sparsifier.on(forward.pre)
    if not sparsifier.to_input:
        return sparsifier.on(forward.pre[codes.rows(), codes.indices], codes.indices)
    return sae.attach(
        forward.x, forward.pre, codes.indptr, codes.indices, lambda at: sparsifier.on(at, codes.indices)
    ).values


def pre_act(config: SAEConfig, progress: Progress) -> Loss:
    """pre_act_loss * mean_i sum_j relu(theta_j - pre_ij) ||W_dec_j|| / sqrt(variance) over dead latents (as
    in SAELens), or over all (Anthropic, January 2025): the only gradient of a latent that never fires.
    Anthropic's 3e-6, of inputs of norm sqrt(d_in), is 3e-6 / sqrt(d_in) here."""
    weight, every = config.options["pre_act_loss"], config.options["pre_act_of"] == "all"

    def loss(sae: SAE, forward: Forward) -> Tensor:
        sparsifier = sae.sparsifier
        assert isinstance(sparsifier, JumpReLU)
        chosen = torch.ones_like(progress.firing.dead) if every else progress.firing.dead
        latents = chosen.nonzero()[:, 0]
        if not len(latents):
            return forward.x_hat.new_zeros(())
        if isinstance(forward.codes, Sparse):  # whose pre-activations come without a gradient
            pre = sae.some_pre(sae.centred(forward.x)[0], latents)
        else:
            pre = forward.pre[:, latents]
        below = (sparsifier.threshold[latents] - pre).relu() * sae.dictionary.norms()[latents]
        return weight * below.sum() / (len(forward.x) * progress.variance**0.5)

    return loss


def tanh(config: SAEConfig, progress: Progress) -> Loss:
    """l0 * mean_i sum_j tanh(c sqrt(d_in) f_ij ||W_dec_j||), its weight rising over the warm-up: about the
    number of codes, but smooth, so that every weight gets a gradient (Anthropic, January 2025; there inputs
    have norm sqrt(d_in), here 1, hence the factor)."""
    scale = config.options["tanh_scale"] * config.d_read**0.5

    def loss(sae: SAE, forward: Forward) -> Tensor:
        weight = config.options["l0"] * progress.pressure * progress.ramp(config.options["l0_warmup"])
        norms = sae.dictionary.norms()
        if isinstance(forward.codes, Sparse):
            sizes = forward.codes.values * norms[forward.codes.indices]
        else:
            sizes = forward.codes * norms
        return weight * dist.latents.summed((scale * sizes).tanh().sum()) / len(forward.x)

    return loss


def gate(config: SAEConfig, progress: Progress) -> Loss:
    """What trains the gate of a Gated SAE, g = relu(pre): an L1 penalty on g, as `l1` without norms, and the
    error of reconstructing from g by the decoder held fixed, ||x - x_hat(g)||^2 / variance, so that what is
    on is what can explain x (Rajamanoharan et al. 2024a)."""

    def loss(sae: SAE, forward: Forward) -> Tensor:
        sparsifier = sae.sparsifier
        assert isinstance(sparsifier, Gated)
        if isinstance(forward.codes, Sparse):
            indptr, indices = forward.codes[:2]
            on: Tensor | Sparse = sae.attach(
                forward.x, forward.pre, indptr, indices, lambda at: sparsifier.gate(at, indices).relu()
            )
            total = on.values.sum()
            product = sparse_decode(on, sae.W_dec.detach())
        else:
            on = dense.relu(sparsifier.gate(forward.pre))
            total = dense.column_sums(on).sum()
            product = dense.decode(on, sae.W_dec.detach())
        penalty = config.options["l1"] * progress.pressure * progress.ramp(config.options["l1_warmup"])
        product, total = dist.latents.summed(product), dist.latents.summed(total)
        error = (target(sae, forward) - product - sae.b_dec.detach()).square().sum() / progress.variance
        return (error + penalty * total / progress.variance**0.5) / len(forward.x)

    return loss


def afa(config: SAEConfig, progress: Progress) -> Loss:
    """afa * d_in * mean_i (||f_i * ||d||| - ||x_i||)^2, so that codes are as long as their inputs (top-AFA,
    arXiv 2503.24277; there inputs have norm sqrt(d_in), here 1, hence the factor). x is centred and
    normalised as the selection sees it, and a target: it gets no gradient."""

    def loss(sae: SAE, forward: Forward) -> Tensor:
        norms, codes = sae.dictionary.norms(), forward.codes
        if isinstance(codes, Sparse):
            squares = (codes.values * norms[codes.indices]).square()
            total = squares.new_zeros(len(forward.x)).index_add(0, codes.rows(), squares)
        else:
            total = (codes * norms).square().sum(1)
        # the slope of a root is infinite at 0
        length = total.clamp_min(torch.finfo(total.dtype).tiny).sqrt()
        wanted = sae.centred(forward.x)[0].norm(dim=1).detach()
        return config.options["afa"] * config.d_in * (length - wanted).square().mean()

    return loss


def orthogonality(config: SAEConfig, progress: Progress) -> Loss:
    """orthogonality * mean_i max_{j != i} max(0, cos(d_i, d_j))^2 over decoder directions, j of the chunk of
    i; chunks are drawn anew each step (after OrtSAE, arXiv 2509.22033). They follow from the step
    alone, so that ranks, and a resumed run, draw the same."""
    weight = config.options["orthogonality"]

    def loss(sae: SAE, forward: Forward) -> Tensor:
        W_dec = sae.W_dec
        generator = torch.Generator().manual_seed(progress.step)
        order = torch.randperm(len(W_dec), generator=generator).to(W_dec.device)
        pieces = order.tensor_split(-(-len(W_dec) // config.options["chunk"]))
        total = W_dec.new_zeros(())
        for latents in pieces:
            directions = F.normalize(W_dec[latents], dim=1)
            with torch.no_grad():
                cosines = directions @ directions.t()
                nearest = cosines.fill_diagonal_(-1).argmax(1)
            cosine = (directions * directions[nearest]).sum(1)
            if len(latents) > 1:
                total = total + cosine.clamp_min(0).square().sum()
        return weight * total / len(W_dec)

    return loss


LOSSES: dict[str, Callable[[SAEConfig, Progress], Loss]] = {
    "mse": mse,
    "prefixes": prefixes,
    "auxk": auxk,
    "aux_zipf": aux_zipf,
    "multi_topk": multi_topk,
    "kl": kl,
    "l1": l1,
    "l0": l0,
    "tanh": tanh,
    "pre_act": pre_act,
    "gate": gate,
    "afa": afa,
    "orthogonality": orthogonality,
}
