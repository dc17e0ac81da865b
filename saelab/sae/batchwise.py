"""Sparsifier parts that look at a whole batch in training, and learn from batches what they need to treat
rows one by one afterwards.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from saelab import dist
from saelab.sae.dictionaries import Dictionary
from saelab.sae.kernels import Sparse, above, batch_top_k, column_order, column_top_k, to_csr, top_k
from saelab.sae.sparsifiers import Sparsifier, few

POLYNOMIAL = 9.0
"""Of the average of the threshold: 0 would be a plain mean over the run, which lags behind."""


class BatchTopK(Sparsifier):
    """In training, keep the k * n largest positive pre-activations of the whole batch, so that rows share
    the budget; in eval mode keep what exceeds a learned threshold, so that rows are independent (Bussmann et
    al. 2024; the rule of mutual choice, arXiv 2411.02124, too).

    pre [n d_sae] -> codes [n d_sae], on training batches k, which may be no whole number, non-zero a row on
    average. by_norm: rank
    pre * dictionary.norms() instead of pre.

    Buffers: threshold [], in units of what is ranked, the moving average of the smallest code that each batch
    kept, with weight (1 + POLYNOMIAL) / (seen + POLYNOMIAL) for the newest, at least 1 - decay: an average
    over the last tenth of a run (polynomial decay, Shamir and Zhang 2013), which does not lag behind in short
    ones, and in long ones over the last 1 / (1 - decay) batches. seen []: how many batches there were. Before
    the first batch the threshold is 0 and every positive pre-activation counts.
    """

    def __init__(self, k: float, decay: float, by_norm: bool = False) -> None:
        super().__init__()
        self.k, self.decay, self.by_norm = k, decay, by_norm
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))
        self.threshold: Tensor
        self.seen: Tensor

    def ranked(self, pre: Tensor) -> Tensor:
        """The values by which pre-activations are compared: the largest, where above 0, are kept."""
        return pre

    def forward(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> Tensor:
        return self.scatter(pre, *self.select(pre.detach(), x, dictionary))

    @torch.no_grad()
    def select(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> tuple[Tensor, Tensor]:
        n, d_sae = pre.shape
        score = self.ranked(pre)
        score = score * dictionary.norms() if self.by_norm else score
        flat = (
            batch_top_k(score, int(dist.rows.count(n) * self.k))
            if self.training
            else above(score, self.threshold)
        )
        return to_csr(flat, n, d_sae)

    def some(self, pre: Tensor, latents: Tensor, dictionary: Dictionary) -> Tensor | None:
        score = self.ranked(pre)
        score = score * dictionary.norms()[latents] if self.by_norm else score
        return torch.where(score > self.threshold, pre, 0)

    @torch.no_grad()
    def observe(self, codes: Tensor | Sparse, pre: Tensor, dictionary: Dictionary) -> None:
        if isinstance(codes, Sparse):
            values = codes.values * dictionary.norms()[codes.indices] if self.by_norm else codes.values
        else:
            values = codes * dictionary.norms() if self.by_norm else codes
        values = self.ranked(values)
        values = values[values > 0]
        smallest = dist.ranks.least(values.min() if len(values) else values.new_full((), math.inf))
        if smallest < math.inf:
            self.seen += 1
            newest = (1 + POLYNOMIAL) / (self.seen + POLYNOMIAL)
            self.threshold.lerp_(smallest, newest.clamp_min(1 - self.decay))

    def split(self, m: int) -> dict[str, Tensor] | None:
        return {"threshold": self.threshold / m, "seen": self.seen}

    def extra_repr(self) -> str:
        return f"k={self.k}, decay={self.decay}"


class BatchAbsTopK(BatchTopK):
    """AbsTopK (arXiv 2510.00404) under the budget of a batch: in training the k * n largest |pre| of the
    batch are kept with their signs, in eval mode what exceeds the learned threshold in magnitude. Equal to
    BatchTopK applied to [pre, -pre] and folded back.

    pre [n d_sae] -> codes [n d_sae], of either sign; buffers as there.
    """

    signed = True

    def ranked(self, pre: Tensor) -> Tensor:
        return pre.abs()


class FlooredBatchTopK(BatchTopK):
    """BatchTopK of which no row goes without: each keeps its `floor` largest positive pre-activations, and
    the rest of the k * n goes to the largest of the batch; in eval mode a row keeps its `floor` largest and
    what exceeds the learned threshold, so that rows are independent. Rows of weak pre-activations, to which
    BatchTopK gives nothing, are rebuilt from something.

    pre [n d_sae] -> codes [n d_sae], on training batches k non-zero a row on average, `floor` at least where
    as many are positive. Buffers as there; the threshold is learned of the codes beyond each row's floor, and
    of the largest code where there is none.
    """

    def __init__(self, k: float, decay: float, floor: int) -> None:
        super().__init__(k, decay)
        self.floor = floor

    @torch.no_grad()
    def select(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> tuple[Tensor, Tensor]:
        best = top_k(pre, self.floor)
        sizes = pre.gather(1, best)
        score = pre.scatter(1, best, torch.where(sizes > 0, math.inf, sizes))
        if not self.training:
            return to_csr(above(score, self.threshold), *pre.shape)
        return to_csr(batch_top_k(score, int(dist.rows.count(len(pre)) * self.k)), *pre.shape)

    def some(self, pre: Tensor, latents: Tensor, dictionary: Dictionary) -> Tensor | None:
        return None

    @torch.no_grad()
    def observe(self, codes: Tensor | Sparse, pre: Tensor, dictionary: Dictionary) -> None:
        if isinstance(codes, Sparse):
            order = codes.values.argsort(descending=True)
            order = order[codes.rows()[order].argsort(stable=True)]
            place = torch.arange(len(order), device=order.device) - codes.indptr[codes.rows()]
            values, beyond = codes.values, codes.values[order][place >= self.floor]
        else:
            values, beyond = codes, codes.scatter(1, top_k(codes, self.floor), 0)
        if not (beyond > 0).any() and values.numel():
            beyond = values.max()[None]
        super().observe(beyond, pre, dictionary)

    def split(self, m: int) -> dict[str, Tensor] | None:
        return None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, floor={self.floor}"


class FeatureChoice(Sparsifier):
    """In training, latent j keeps its m_j largest positive pre-activations of the batch, sum_j m_j = k * n,
    so that no latent goes without (feature choice, arXiv 2411.02124); in eval mode each latent keeps what
    exceeds a threshold of its own, so that rows are independent.

        m_j proportional to (j + bump)^-alpha, j from 1 (Zipf columns; uniform with alpha 0)

    The first latents are the frequent ones. The m_j are whole numbers by largest remainders, at least 1 where
    the budget allows, at most n. pre [n d_sae] -> codes [n d_sae].

    Buffers: threshold t [d_sae], in units of `pre`, moved by feedback until each latent exceeds it on m_j
    rows of a batch: with c_j of them, t_j += rate * tail_j * (c_j - m_j) / m_j, from the middle between the
    last value kept and the first one left out. tail [d_sae]: moving average of m_j times the distance of
    these two, by which t_j changes c_j by a factor e where tails are exponential. seen []: how many batches
    there were; rate is 1 / seen, at least 1 - decay. (An average of the middles alone keeps too few or too
    many of a rare latent, by the shape of its tail.)
    """

    observes_pre = True

    def __init__(self, d_sae: int, k: float, alpha: float, bump: float, decay: float) -> None:
        super().__init__()
        self.k, self.alpha, self.bump, self.decay = k, alpha, bump, decay
        self.register_buffer("threshold", torch.zeros(d_sae))
        self.register_buffer("tail", torch.zeros(d_sae))
        self.register_buffer("seen", torch.zeros(()))
        self.threshold: Tensor
        self.tail: Tensor
        self.seen: Tensor

    def forward(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> Tensor:
        return self.scatter(pre, *self.select(pre.detach(), x, dictionary))

    def select(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> tuple[Tensor, Tensor]:
        flat = column_top_k(pre, self._budget(pre)) if self.training else above(pre, self.threshold)
        return to_csr(flat, *pre.shape)

    def some(self, pre: Tensor, latents: Tensor, dictionary: Dictionary) -> Tensor | None:
        return torch.where(pre > self.threshold[latents], pre, 0)

    @torch.no_grad()
    def observe(self, codes: Tensor | Sparse, pre: Tensor, dictionary: Dictionary) -> None:
        if not len(pre):
            return
        m = self._budget(pre)
        last, after = column_order(pre, m)
        barred = m == 0
        self.seen += 1
        rate = (1 / self.seen).clamp_min(1 - self.decay)
        self.tail.lerp_(torch.where(barred, 0, m * (last - after)), rate)
        if self.seen == 1:
            moved = (last + after) / 2
        else:
            excess = ((pre > self.threshold).sum(0) - m) / m.clamp_min(1)
            moved = (self.threshold + rate * self.tail * excess.clamp(-1, 5)).clamp_min(0)
        self.threshold.copy_(torch.where(barred, after.maximum(self.threshold), moved))

    def _budget(self, pre: Tensor) -> Tensor:
        n, d_sae = pre.shape
        share = zipf(d_sae, self.alpha, self.bump)
        return column_budget(int(n * self.k), n, share).to(pre.device)

    def extra_repr(self) -> str:
        return f"k={self.k}, alpha={self.alpha}, bump={self.bump}, decay={self.decay}"


def zipf(d_sae: int, alpha: float, bump: float) -> Float[Tensor, " d_sae"]:
    """Shares (r + bump)^-alpha of ranks r = 1..d_sae, adding up to 1, float64."""
    weights = (torch.arange(1, d_sae + 1, dtype=torch.float64) + bump) ** -alpha
    return weights / weights.sum()


def column_budget(total: int, n: int, share: Float[Tensor, " d_sae"]) -> Int[Tensor, " d_sae"]:
    """Whole numbers in 0..n that add up to `total` <= n * d_sae, as near to total * share as that allows (by
    largest remainders); at least 1 each where total >= d_sae. share: descending, adding up to 1."""
    least = 1 if total >= len(share) and n else 0
    rest, room = total - least * len(share), float(n - least)
    wanted = rest * share
    full = torch.zeros(len(share), dtype=torch.bool)
    while (over := (wanted > room) & ~full).any():  # what one column cannot hold goes to the others
        full |= over
        left = share[~full].sum().clamp_min(1e-300)
        wanted = torch.where(full, room, share / left * (rest - room * int(full.sum())))
    counts = (wanted + 1e-9).floor()  # a whole number may come out a rounding error below itself
    spare = rest - int(counts.sum())
    extra = torch.sort(wanted - counts, descending=True, stable=True).indices[:spare]
    counts[extra] += 1
    return counts.long() + least


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

    def forward(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> Tensor:
        on = pre + self.bias > 0
        return torch.where(on, pre if self.magnitude == "pre" else pre + self.bias, 0.0)

    def select(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> tuple[Tensor, Tensor] | None:
        biased = pre + self.bias
        return few(biased, 0) if self.training else to_csr(above(biased, 0), *pre.shape)

    def activation(self, pre: Tensor, indices: Tensor) -> Tensor:
        return pre if self.magnitude == "pre" else pre + self.bias[indices]

    def some(self, pre: Tensor, latents: Tensor, dictionary: Dictionary) -> Tensor | None:
        return torch.where(pre + self.bias[latents] > 0, self.activation(pre, latents), 0)

    @torch.no_grad()
    def observe(self, codes: Tensor | Sparse, pre: Tensor, dictionary: Dictionary) -> None:
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
        told = dist.rows.total(F.pad(torch.bincount(indices, minlength=d_sae), (0, 1), value=n))
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
