"""Sparsifier parts: which pre-activations become codes.

A sparsifier is a small module that owns whatever state it learns (thresholds, gates). `SAE` calls it; nothing
else of an architecture may live anywhere but in a sparsifier, a dictionary, a loss or a rule.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelab import dist
from saelab.sae.kernels import Sparse, batch_top_k, largest, to_csr, top_k, top_k_csr

DENSE = 16
"""In training, codes of which more than one in DENSE may differ from 0 are cheaper as a dense matrix."""


class Sparsifier(nn.Module, ABC):
    """pre [n d_sae] -> codes [n d_sae]. Rows are independent of each other in eval mode.

    `uses_dec_norm`: whether `dec_norm` (Euclidean norm of each decoder row, [d_sae]) is needed; else None
    is passed. `signed`: whether codes may be negative. `trains_biases`: whether b_enc and b_dec are weights
    like others; else they stay as they start and get no gradient.
    """

    uses_dec_norm: bool = False
    signed: bool = False
    trains_biases: bool = True

    @abstractmethod
    def forward(
        self,
        pre: Float[Tensor, "n d_sae"],
        x: Float[Tensor, "n d_in"],
        dec_norm: Float[Tensor, " d_sae"] | None,
    ) -> Float[Tensor, "n d_sae"]:
        """Dense codes, differentiable: the reference. x is the centred, normalised input."""

    def select(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """The fast path: (indptr [n + 1], indices [nnz]) of the entries whose codes may differ from 0,
        else None.

        The codes there are `activation(pre[row, index], index)`. Called without gradient.
        """
        return None

    def activation(self, pre: Float[Tensor, " nnz"], indices: Int[Tensor, " nnz"]) -> Tensor:
        """Elementwise: the codes of selected pre-activations; indices: their latents."""
        return pre

    def observe(self, codes: Float[Tensor, "n d_sae"] | Sparse) -> None:
        """Hook for learned thresholds: called once a training step with the step's codes, without
        gradient."""

    def scatter(self, pre: Tensor, indptr: Tensor, indices: Tensor) -> Float[Tensor, "n d_sae"]:
        """Dense codes of a selection, differentiable: zeros but for `activation` at the selected entries."""
        rows = torch.repeat_interleave(torch.arange(len(pre), device=pre.device), indptr.diff())
        values = self.activation(pre[rows, indices], indices)
        return torch.zeros_like(pre).index_put((rows, indices), values)


class TopK(Sparsifier):
    """Keep the k largest pre-activations of each row, clipped at zero (Gao et al. 2024, eq. 3).

    pre [n d_sae] -> codes [n d_sae], at most k non-zero in a row; ties go to the lower index.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> Tensor:
        return self.scatter(pre, *top_k_csr(pre.detach(), self.k))

    def select(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> tuple[Tensor, Tensor] | None:
        return top_k_csr(pre, self.k)

    def activation(self, pre: Tensor, indices: Tensor) -> Tensor:
        return pre.relu()

    def extra_repr(self) -> str:
        return f"k={self.k}"


class AbsTopK(Sparsifier):
    """Keep the k largest |pre| of each row with their signs: hard thresholding, the proximal step of an L0
    constraint without the sign constraint of TopK (AbsTopK, arXiv 2510.00404). One latent then holds both
    poles of an axis.

    pre [n d_sae] -> codes [n d_sae], at most k non-zero in a row; ties go to the lower index. Equal to TopK
    applied to [pre, -pre] and folded back.
    """

    signed = True

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> Tensor:
        indices = top_k(pre.detach().abs(), self.k)
        return torch.zeros_like(pre).scatter(1, indices, pre.gather(1, indices))

    def select(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> tuple[Tensor, Tensor] | None:
        return top_k_csr(pre.abs(), self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}"


class BatchTopK(Sparsifier):
    """In training, keep the k * n largest positive pre-activations of the whole batch, so that rows share
    the budget; in eval mode keep what exceeds a learned threshold, so that rows are independent (Bussmann et
    al. 2024).

    pre [n d_sae] -> codes [n d_sae], on training batches k non-zero a row on average.

    Buffers: threshold [], in units of `pre`, the moving average of the smallest code that each batch kept: a
    plain mean at first, then exponential with weight 1 - decay for the newest. seen []: how many batches
    there were. Before the first batch the threshold is 0 and every positive pre-activation counts.
    """

    def __init__(self, k: int, decay: float) -> None:
        super().__init__()
        self.k, self.decay = k, decay
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))
        self.threshold: Tensor
        self.seen: Tensor

    def forward(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> Tensor:
        if self.training:
            return self.scatter(pre, *self.select(pre.detach(), x, dec_norm))
        return torch.where(pre > self.threshold, pre, 0.0)

    def select(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> tuple[Tensor, Tensor]:
        n, d_sae = pre.shape
        flat = batch_top_k(pre, dist.rows.count(n) * self.k) if self.training else _above(pre, self.threshold)
        return to_csr(flat, n, d_sae)

    @torch.no_grad()
    def observe(self, codes: Tensor | Sparse) -> None:
        values = codes.values if isinstance(codes, Sparse) else codes
        values = values[values > 0]
        smallest = dist.ranks.least(values.min() if len(values) else values.new_full((), math.inf))
        if smallest < math.inf:
            weight = (1 / (self.seen + 1)).clamp_min(1 - self.decay)
            self.threshold.lerp_(smallest, weight)
            self.seen += 1

    def extra_repr(self) -> str:
        return f"k={self.k}, decay={self.decay}"


class ReLU(Sparsifier):
    """Clip at zero; sparsity comes from an L1 loss (Bricken et al. 2023)."""

    def forward(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> Tensor:
        return pre.relu()


class JumpReLU(Sparsifier):
    """Keep what exceeds a learned threshold of its latent, whole: f = pre * H(pre - theta) (Rajamanoharan et
    al. 2024b), with their straight-through gradients (K the unit box, eps the bandwidth):

        df/dpre = H(pre - theta)     df/dtheta = -(theta / eps) K((pre - theta) / eps)
                                     dH/dtheta = -(1 / eps) K((pre - theta) / eps)

    pre [n d_sae] -> codes [n d_sae]. Parameter: log_threshold [d_sae], theta = exp(log_threshold) in units
    of `pre`.
    """

    def __init__(self, d_sae: int, threshold: float, bandwidth: float) -> None:
        super().__init__()
        self.bandwidth = bandwidth
        self.log_threshold = nn.Parameter(torch.full((d_sae,), math.log(threshold)))

    @property
    def threshold(self) -> Float[Tensor, " d_sae"]:
        """theta, differentiable."""
        return self.log_threshold.exp()

    def forward(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> Tensor:
        return _Jump.apply(pre, self.threshold, self.bandwidth)  # type: ignore[return-value]

    def select(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> tuple[Tensor, Tensor] | None:
        # the box below the threshold too: there the code is 0, but not its gradient
        at = ((pre - self.threshold) / self.bandwidth > -0.5).reshape(-1).nonzero()[:, 0]
        if self.training and len(at) > pre.numel() // DENSE:
            return None
        return to_csr(at, *pre.shape)

    def activation(self, pre: Tensor, indices: Tensor) -> Tensor:
        return _Jump.apply(pre, self.threshold[indices], self.bandwidth)  # type: ignore[return-value]

    def count(self, codes: Tensor | Sparse, pre: Tensor) -> Tensor:
        """[]: how many codes are not 0, with a gradient for the thresholds alone; pre: of the same pass."""
        threshold = self.threshold
        if isinstance(codes, Sparse):
            pre, threshold = pre[codes.rows(), codes.indices], threshold[codes.indices]
        return _Step.apply(pre.detach(), threshold, self.bandwidth).sum()  # type: ignore[union-attr]

    def extra_repr(self) -> str:
        return f"bandwidth={self.bandwidth}"


class Gated(Sparsifier):
    """One path decides which latents are on, another how much: f = H(pre) * relu(exp(r_mag) * pre + b_mag)
    (Rajamanoharan et al. 2024a; W_mag is W_gate rescaled by latent, pre the gate's input).

    pre [n d_sae] -> codes [n d_sae]. Parameters: r_mag, b_mag [d_sae]. b_mag counts from the rescaled gate
    bias: the magnitude bias of the paper is exp(r_mag) * b_enc + b_mag, which spans the same functions.
    The gate itself gets no gradient here; the loss `gate` trains it.
    """

    def __init__(self, d_sae: int) -> None:
        super().__init__()
        self.r_mag = nn.Parameter(torch.zeros(d_sae))
        self.b_mag = nn.Parameter(torch.zeros(d_sae))

    def forward(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> Tensor:
        return torch.where(pre > 0, (self.r_mag.exp() * pre + self.b_mag).relu(), 0.0)

    def select(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> tuple[Tensor, Tensor] | None:
        at = _above(pre, 0)
        return None if self.training and len(at) > pre.numel() // DENSE else to_csr(at, *pre.shape)

    def activation(self, pre: Tensor, indices: Tensor) -> Tensor:
        return (self.r_mag[indices].exp() * pre + self.b_mag[indices]).relu()


class GroupBias(Sparsifier):
    """Group bias adaptation: no penalty and no gradient makes codes sparse, but biases b that feedback moves
    until each latent fires about as often as its group should (GBA, arXiv 2506.14002).

        f = pre * H(pre + b)  (magnitude "pre")    or    relu(pre + b)  (magnitude "biased")

    pre [n d_sae] -> codes [n d_sae]. Latents are divided into equal groups whose target frequencies fall
    geometrically from `high` to `low`. Every `every` batches, with p the share of rows on which a latent
    fired, r = max(0, max(pre + b)) and T the mean positive r of its group:

        b <- max(b - rate * r, -1)  where p > target;    b <- min(b + rate * T, 0)  where p < never

    Gradients reach no bias, b_dec included: through b_dec every latent could escape its own bias. Latents
    that are rare but alive are left alone. Where no latent of a group fired, T is the mean over all.

    Buffers: bias [d_sae] in [-1, 0], in units of pre; fired, peak [d_sae] and rows, batches [], the
    statistics since the last move.
    """

    trains_biases = False

    def __init__(self, d_sae: int, magnitude: str, target: Tensor, group: Tensor, rate: float, never: float,
                 every: int) -> None:  # fmt: skip
        super().__init__()
        self.magnitude, self.rate, self.never, self.every = magnitude, rate, never, every
        self.register_buffer("target", target, persistent=False)
        self.register_buffer("group", group, persistent=False)
        for name, shape in (
            ("bias", d_sae),
            ("fired", d_sae),
            ("peak", d_sae),
            ("rows", ()),
            ("batches", ()),
        ):
            self.register_buffer(name, torch.zeros(shape))
        self.bias: Tensor
        self.fired: Tensor
        self.peak: Tensor
        self.rows: Tensor
        self.batches: Tensor
        self.group: Tensor
        self.target: Tensor

    @classmethod
    def geometric(cls, d_sae: int, groups: int, high: float, low: float, **options: Any) -> GroupBias:
        """Equal groups (as equal as d_sae allows) with targets in geometric sequence."""
        group = torch.arange(d_sae) * groups // d_sae
        share = group / max(1, groups - 1)
        return cls(d_sae, target=high ** (1 - share) * low**share, group=group, **options)

    def forward(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> Tensor:
        on = pre + self.bias > 0
        return torch.where(on, pre if self.magnitude == "pre" else pre + self.bias, 0.0)

    def select(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> tuple[Tensor, Tensor] | None:
        at = _above(pre + self.bias, 0)
        return None if self.training and len(at) > pre.numel() // DENSE else to_csr(at, *pre.shape)

    def activation(self, pre: Tensor, indices: Tensor) -> Tensor:
        return pre if self.magnitude == "pre" else pre + self.bias[indices]

    @torch.no_grad()
    def observe(self, codes: Tensor | Sparse) -> None:
        d_sae = len(self.bias)
        if isinstance(codes, Sparse):
            on = codes.values != 0
            indices, values, n = codes.indices[on], codes.values[on], len(codes.indptr) - 1
        else:
            at = codes.reshape(-1, d_sae).nonzero()
            indices, values, n = (
                at[:, 1],
                codes.reshape(-1, d_sae)[at[:, 0], at[:, 1]],
                codes.numel() // d_sae,
            )
        height = values + self.bias[indices] if self.magnitude == "pre" else values
        told = dist.rows.total(nn.functional.pad(torch.bincount(indices, minlength=d_sae), (0, 1), value=n))
        self.fired += told[:-1]
        self.peak.copy_(dist.rows.most(self.peak.scatter_reduce(0, indices, height, "amax")))
        self.rows += told[-1]
        self.batches += 1
        if self.batches >= self.every and self.rows > 0:
            self._move()

    def _move(self) -> None:
        """One feedback step on the collected statistics, which start anew."""
        share = self.fired / self.rows
        alive = (self.peak > 0).to(self.peak.dtype)
        shape = int(self.group.max()) + 1
        count = torch.zeros(shape, device=self.bias.device).index_add_(0, self.group, alive)
        total = torch.zeros(shape, device=self.bias.device).index_add_(0, self.group, self.peak)
        overall = self.peak.sum() / alive.sum() if alive.any() else self.peak.new_ones(())
        rise = torch.where(count > 0, total / count.clamp_min(1), overall)[self.group]
        lower = (self.bias - self.rate * self.peak).clamp_min(-1)
        higher = (self.bias + self.rate * rise).clamp_max(0)
        self.bias.copy_(
            torch.where(share > self.target, lower, torch.where(share < self.never, higher, self.bias))
        )
        for buffer in (self.fired, self.peak, self.rows, self.batches):
            buffer.zero_()


class TopAFA(Sparsifier):
    """Keep as many latents of a row as bring the norm of its codes nearest to that of its input (top-AFA,
    arXiv 2503.24277). With near-orthogonal decoder rows d_j a good code has ||f * ||d||| = ||x||.

    With s = relu(pre) * ||d||, descending, and c_k the norm of its first k: k = argmin_k |c_k - ||x|||,
    the smallest among equals. x [n d_in] is the centred, normalised input; ties go to the lower index.
    """

    uses_dec_norm = True

    def forward(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> Tensor:
        return torch.where(self._kept(pre.detach(), x.detach(), dec_norm), pre, 0.0)

    def select(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> tuple[Tensor, Tensor] | None:
        at = self._kept(pre, x, dec_norm).reshape(-1).nonzero()[:, 0]
        return None if self.training and len(at) > pre.numel() // DENSE else to_csr(at, *pre.shape)

    @torch.no_grad()
    def _kept(self, pre: Tensor, x: Tensor, dec_norm: Tensor | None) -> Tensor:
        """bool [n d_sae]"""
        assert dec_norm is not None
        score = pre.relu() * dec_norm
        last, count = (
            score.new_zeros(len(pre), 1),
            torch.zeros(len(pre), 1, dtype=torch.long, device=pre.device),
        )
        todo, k = torch.arange(len(pre), device=pre.device), 64
        while len(
            todo
        ):  # most rows need few of their largest scores: the others are looked at again with more
            k = min(k, pre.shape[1])
            values = largest(score[todo], k)
            target = x[todo].norm(dim=1, keepdim=True)
            norms = values.double().square().cumsum(1).sqrt()
            best = (norms - target).abs().argmin(1, keepdim=True)
            last[todo], count[todo] = values.gather(1, best), best + 1
            enough = (norms[:, -1:] >= target) | (values[:, -1:] <= 0)
            todo, k = todo[~enough[:, 0]] if k < pre.shape[1] else todo[:0], 8 * k
        above = score > last
        ties = (score == last) & (last > 0)
        wanted = count - above.sum(1, keepdim=True)
        crowded = (ties.sum(1, keepdim=True) > wanted)[:, 0]
        ties[crowded] &= ties[crowded].cumsum(1) <= wanted[crowded]
        return above | ties


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(pre > threshold, pre, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        box = ((pre - threshold) / ctx.bandwidth).abs() < 0.5
        d_threshold = (grads[0] * box * (-threshold / ctx.bandwidth)).sum_to_size(threshold.shape)
        return torch.where(pre > threshold, grads[0], 0.0), d_threshold, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        box = ((pre - threshold) / ctx.bandwidth).abs() < 0.5
        return None, (grads[0] * box / -ctx.bandwidth).sum_to_size(threshold.shape), None


def _above(pre: Tensor, threshold: Tensor | float) -> Int[Tensor, " kept"]:
    """Flat indices, ascending, of the entries greater than a threshold ([] or [d_sae])."""
    return (pre > threshold).reshape(-1).nonzero()[:, 0]
