"""Sparsifier parts: which pre-activations become codes.

A sparsifier is a small module that owns whatever state it learns (thresholds, gates). `SAE` calls it; nothing
else of an architecture may live anywhere but in a sparsifier, a dictionary, a loss or a rule.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelab.sae import dense
from saelab.sae.dictionaries import Dictionary
from saelab.sae.kernels import Sparse, above, largest, to_csr, top_k, top_k_csr
from saelab.seeds import OWN

DENSE = 16
"""Codes of which more than one in DENSE may differ from 0 are cheaper as a dense matrix."""
SAMPLE = 16
"""One row in so many is looked at first, to see that codes are dense."""


class Sparsifier(nn.Module, ABC):
    """pre [n d_sae] -> codes [n d_sae]. Rows are independent of each other in eval mode.

    `signed`: whether codes may be negative. `trains_biases`: whether b_enc and b_dec are weights like others;
    else they stay as they start and get no gradient. `observes_pre`: whether `observe` reads pre-activations;
    else they may be empty [0 d_sae] there.
    """

    signed: bool = False
    observes_pre: bool = False
    trains_biases: bool = True

    @abstractmethod
    def forward(
        self,
        pre: Float[Tensor, "n d_sae"],
        x: Float[Tensor, "n d_in"],
        dictionary: Dictionary,
    ) -> Float[Tensor, "n d_sae"]:
        """Dense codes, differentiable: the reference. x is the centred, normalised input, dictionary the
        SAE's, for parts that need its directions or their norms."""

    def select(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> tuple[Tensor, Tensor] | None:
        """The fast path: (indptr [n + 1], indices [nnz]) of the entries whose codes, or gradients, may differ
        from 0, else None.

        The codes there are `activation(pre[row, index], index)`. pre comes without gradient; whether the
        codes will be asked for one is what torch.is_grad_enabled() says.
        """
        return None

    def of_largest(self) -> int | None:
        """k, where the codes of a row are `activation` of its k largest pre-activations: no others are
        needed then."""
        return None

    def activation(self, pre: Float[Tensor, " nnz"], indices: Int[Tensor, " nnz"]) -> Tensor:
        """Elementwise: the codes of selected pre-activations; indices: their latents."""
        return pre

    def some(
        self, pre: Float[Tensor, "n m"], latents: Int[Tensor, " m"], dictionary: Dictionary
    ) -> Tensor | None:
        """The codes [n m] of a few latents in eval mode, of their own pre-activations alone; None where the
        code of a latent depends on the others."""
        return None

    def observe(
        self, codes: Float[Tensor, "n d_sae"] | Sparse, pre: Float[Tensor, "n d_sae"], dictionary: Dictionary
    ) -> None:
        """Hook for learned thresholds: called once a training step with the step's codes and
        pre-activations, without gradient."""

    def split(self, m: int) -> dict[str, Tensor] | None:
        """What it learned, for m latents in place of each, of pre-activations that are an m-th: name ->
        [d_sae] or []. None where their codes do not add up to that of the one."""
        return None

    def scatter(self, pre: Tensor, indptr: Tensor, indices: Tensor) -> Float[Tensor, "n d_sae"]:
        """Dense codes of a selection, differentiable: zeros but for `activation` at the selected entries."""
        rows = torch.repeat_interleave(torch.arange(len(pre), device=pre.device), indptr.diff())
        values = self.activation(pre[rows, indices], indices)
        return torch.zeros_like(pre).index_put((rows, indices), values)


class TopK(Sparsifier):
    """Keep the k largest pre-activations of each row, clipped at zero (Gao et al. 2024, eq. 3). by_norm:
    those of the largest pre * dictionary.norms(), what they add to the output.

    pre [n d_sae] -> codes [n d_sae], at most k non-zero in a row; ties go to the lower index.
    """

    def __init__(self, k: int, by_norm: bool = False) -> None:
        super().__init__()
        self.k, self.by_norm = k, by_norm

    def forward(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> Tensor:
        return self.scatter(pre, *self.select(pre.detach(), x, dictionary))

    @torch.no_grad()
    def select(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> tuple[Tensor, Tensor]:
        return top_k_csr(pre * dictionary.norms() if self.by_norm else pre, self.k)

    def of_largest(self) -> int | None:
        return None if self.by_norm else self.k

    def activation(self, pre: Tensor, indices: Tensor) -> Tensor:
        return pre.relu()

    def split(self, m: int) -> dict[str, Tensor] | None:
        return {}

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

    def forward(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> Tensor:
        indices = top_k(pre.detach(), self.k, signed=True)
        return torch.zeros_like(pre).scatter(1, indices, pre.gather(1, indices))

    def select(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> tuple[Tensor, Tensor] | None:
        return top_k_csr(pre, self.k, signed=True)

    def split(self, m: int) -> dict[str, Tensor] | None:
        return {}

    def extra_repr(self) -> str:
        return f"k={self.k}"


class GroupMax(Sparsifier):
    """Divide the latents into k neighbouring groups, as equal as d_sae allows, and keep the largest
    pre-activation of each, clipped at zero: TopK without a sort (sparsify's groupmax).

    pre [n d_sae] -> codes [n d_sae], at most k non-zero in a row; ties go to the lower index.
    """

    def __init__(self, d_sae: int, k: int) -> None:
        super().__init__()
        self.k = k
        starts = torch.arange(k + 1) * d_sae // k
        width = -(-d_sae // k)
        # [k width]: the latents of each group, the last one again where a group is smaller
        members = (starts[:-1, None] + torch.arange(width)).minimum(starts[1:, None] - 1)
        self.register_buffer("members", members, persistent=False)
        self.members: Tensor

    def forward(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> Tensor:
        return self.scatter(pre, *self.select(pre.detach(), x, dictionary))

    def select(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> tuple[Tensor, Tensor]:
        n = len(pre)
        best = pre[:, self.members].argmax(-1)
        indices = self.members.expand(n, *self.members.shape).gather(2, best[..., None])[..., 0]
        return torch.arange(0, n * self.k + 1, self.k, device=pre.device), indices.reshape(-1)

    def activation(self, pre: Tensor, indices: Tensor) -> Tensor:
        return pre.relu()

    def extra_repr(self) -> str:
        return f"k={self.k}"


class Gaussian(Sparsifier):
    """A variational code: in training z = mu + sigma * eps with mu = relu(pre) and eps standard normal, in
    eval mode z = mu; of it the k largest of each row are kept, clipped at zero (vSAE, arXiv 2509.22994).

    sigma: a number, or None for a second linear encoder, log sigma^2 = x @ W_var + b_var in [-10, 2]. With
    sampling=False nothing is drawn, sigma is 1 and the divergence (`kl`) is an L2 penalty: a deterministic
    TopK under another name.

    pre [n d_sae] -> codes [n d_sae]. Parameters, without sigma: W_var [d_in d_sae], b_var [d_sae]. Buffer:
    draws [], how many training batches were drawn, from which the noise of the next follows.
    """

    def __init__(
        self, d_in: int, d_sae: int, k: int, sampling: bool, sigma: float | None, start: float
    ) -> None:
        super().__init__()
        self.k, self.sampling, self.sigma = k, sampling, sigma
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self.draws: Tensor
        if sigma is None:
            self.W_var = nn.Parameter(torch.zeros(d_in, d_sae))
            self.b_var = nn.Parameter(torch.full((d_sae,), start))

    def log_variance(self, x: Float[Tensor, "n d_in"]) -> Tensor:
        """log sigma^2: [n d_sae], or [] for a fixed one."""
        if self.sigma is None:
            return (x @ self.W_var + self.b_var).clamp(-10, 2)
        return x.new_tensor(2 * math.log(self.sigma))

    def forward(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> Tensor:
        z = pre.relu()
        if self.training and self.sampling:
            generator = torch.Generator(pre.device).manual_seed(OWN + int(self.draws))
            self.draws += 1
            eps = torch.randn(pre.shape, generator=generator, device=pre.device, dtype=pre.dtype)
            z = z + (self.log_variance(x) / 2).exp() * eps
        indices = top_k(z.detach(), self.k)
        return torch.zeros_like(z).scatter(1, indices, z.gather(1, indices).relu())

    def kl(self, pre: Float[Tensor, "n d_sae"], x: Float[Tensor, "n d_in"]) -> Float[Tensor, " n"]:
        """KL(N(mu, sigma^2) || N(0, 1)) of each row, over all latents, kept or not:
        1/2 sum_j (mu_j^2 + sigma_j^2 - 1 - log sigma_j^2)."""
        log_variance = self.log_variance(x)
        rest = (log_variance.exp() - 1 - log_variance).expand_as(pre)
        return 0.5 * (pre.relu().square() + rest).sum(1)

    def extra_repr(self) -> str:
        return f"k={self.k}, sampling={self.sampling}, sigma={self.sigma}"


class MatchingPursuit(Sparsifier):
    """Codes by pursuit on the decoder directions d_j: again and again the direction with the largest inner
    product with the residual r takes its share of it (MP-SAE, Costa et al., arXiv 2506.03093):

        j = argmax <r, d_j>,   v = max(0, <r, d_j>) / ||d_j||^2,   f_j += v,   r -= v d_j,   from r = x

    A row ends after `max_iterations`, or when ||r|| <= residual_threshold (in units of the normalised input),
    or when no direction has a positive product, or, with stop_on_duplicate, when a direction would be taken
    twice. With finish_step these are looked at after a step, not before it, so that the first one is always
    taken and the one that takes a direction again counts, as in SAELens. Gradients flow through the chain of
    residuals. With whole_product v is <r, d_j> itself, of any sign, and every row takes all steps, as in
    overcomplete: the same only for directions of norm 1, products > 0 and a threshold of 0.

    The encoder is not used: a rule keeps it at W_dec^T, so that `pre` are the products of the
    first iteration.

    pre [n d_sae], x [n d_in] -> codes [n d_sae]
    """

    def __init__(
        self,
        max_iterations: int,
        residual_threshold: float,
        stop_on_duplicate: bool,
        finish_step: bool = False,
        whole_product: bool = False,
    ) -> None:
        super().__init__()
        self.finish_step, self.whole_product, self.signed = finish_step, whole_product, whole_product
        self.max_iterations, self.residual_threshold = max_iterations, residual_threshold
        self.stop_on_duplicate = stop_on_duplicate

    def forward(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> Tensor:
        W_dec = dictionary()
        squares = W_dec.detach().square().sum(1).clamp_min(torch.finfo(x.dtype).tiny)
        if self.whole_product:
            squares = torch.ones_like(squares)
        todo = torch.arange(len(x), device=x.device)
        residual, product = x, x.detach() @ W_dec.detach().t()
        rows, latents, values = [], [], []
        taken = torch.zeros(pre.shape, dtype=torch.bool, device=pre.device)
        ends = torch.zeros(len(x), dtype=torch.bool, device=x.device)  # rows whose last step was their last
        for iteration in range(self.max_iterations):
            best, chosen = product.max(1)
            go = (best > 0) & ~ends
            if iteration or not self.finish_step:
                go &= residual.detach().norm(dim=1) > self.residual_threshold
            again = taken[todo, chosen] if self.stop_on_duplicate else torch.zeros_like(go)
            if not self.finish_step:
                go &= ~again
            if self.whole_product:
                go = torch.ones_like(go)
            todo, chosen, residual, ends = todo[go], chosen[go], residual[go], again[go]
            if not len(todo):
                break
            taken[todo, chosen] = True
            direction = W_dec[chosen]
            value = (residual * direction).sum(1) / squares[chosen]
            residual = residual - value[:, None] * direction
            rows.append(todo)
            latents.append(chosen)
            values.append(value)
            product = residual.detach() @ W_dec.detach().t()
        codes = torch.zeros_like(pre)
        if not rows:
            return codes
        return codes.index_put((torch.cat(rows), torch.cat(latents)), torch.cat(values), accumulate=True)

    def extra_repr(self) -> str:
        return f"max_iterations={self.max_iterations}, residual_threshold={self.residual_threshold}"


class ReLU(Sparsifier):
    """Clip at zero; sparsity comes from an L1 loss (Bricken et al. 2023)."""

    def forward(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> Tensor:
        return dense.relu(pre)

    def select(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> tuple[Tensor, Tensor] | None:
        return few(pre, 0.0)

    def activation(self, pre: Tensor, indices: Tensor) -> Tensor:
        return pre.relu()

    def some(self, pre: Tensor, latents: Tensor, dictionary: Dictionary) -> Tensor | None:
        return pre.relu()

    def split(self, m: int) -> dict[str, Tensor] | None:
        return {}


class Identity(Sparsifier):
    """The pre-activations themselves: a linear autoencoder, the baseline without sparsity."""

    signed = True

    def forward(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> Tensor:
        return pre.clone()

    def some(self, pre: Tensor, latents: Tensor, dictionary: Dictionary) -> Tensor | None:
        return pre

    def split(self, m: int) -> dict[str, Tensor] | None:
        return {}


class JumpReLU(Sparsifier):
    """Keep what exceeds a learned threshold of its latent, whole: f = pre * H(pre - theta) (Rajamanoharan et
    al. 2024b), with their straight-through gradients (K the unit box, eps the bandwidth):

        df/dpre = H(pre - theta)     df/dtheta = -(theta / eps) K((pre - theta) / eps)
                                     dH/dtheta = -(1 / eps) K((pre - theta) / eps)

    With to_input -df/dtheta is added to df/dpre, and dH/dpre = -dH/dtheta: what the difference pre - theta
    learns reaches the encoder too (Anthropic, January 2025; SAELens' jumprelu_ste_to_input).

    pre [n d_sae] -> codes [n d_sae]. Parameter: log_threshold [d_sae], theta = exp(log_threshold) in units
    of `pre`. With log=False it is raw_threshold [d_sae] instead, theta = max(0, raw_threshold): no logarithm
    holds the thresholds of other libraries, which may be 0 or less (then relu(pre) * H(pre - theta) is
    relu(pre)) and which exp(log(theta)) misses by a rounding error, enough to turn on what equals them.
    """

    log_threshold: nn.Parameter
    raw_threshold: nn.Parameter

    def __init__(
        self, d_sae: int, threshold: float, bandwidth: float, log: bool = True, to_input: bool = False
    ) -> None:
        super().__init__()
        self.bandwidth, self.log, self.to_input = bandwidth, log, to_input
        start = torch.full((d_sae,), math.log(threshold) if log else threshold)
        self.register_parameter("log_threshold" if log else "raw_threshold", nn.Parameter(start))

    @property
    def threshold(self) -> Float[Tensor, " d_sae"]:
        """theta, differentiable."""
        return self.log_threshold.exp() if self.log else self.raw_threshold.clamp_min(0)

    def forward(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> Tensor:
        return dense.jump(pre, self.threshold, self.bandwidth, self.to_input)

    def select(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> tuple[Tensor, Tensor] | None:
        threshold = self.threshold.detach()
        if not self.training and not torch.is_grad_enabled():
            return few(pre, threshold)
        # the box below the threshold too: there the code is 0, but not its gradient. Rounding may lose none
        lowest = threshold - 0.5 * self.bandwidth
        lowest = lowest - 8 * torch.finfo(pre.dtype).eps * (threshold + self.bandwidth)
        return few(pre, lowest) if self.training else to_csr(above(pre, lowest), *pre.shape)

    def activation(self, pre: Tensor, indices: Tensor) -> Tensor:
        return dense.jump(pre, self.threshold[indices], self.bandwidth, self.to_input)

    def some(self, pre: Tensor, latents: Tensor, dictionary: Dictionary) -> Tensor | None:
        return self.activation(pre, latents)

    def split(self, m: int) -> dict[str, Tensor] | None:
        if self.log:
            return {"log_threshold": self.log_threshold - math.log(m)}
        return {"raw_threshold": self.raw_threshold / m}

    def on(self, pre: Tensor, indices: Tensor | None = None) -> Tensor:
        """H(pre - theta), with the gradients above; of selected pre-activations with their latents."""
        threshold = self.threshold if indices is None else self.threshold[indices]
        return dense.step(pre if self.to_input else pre.detach(), threshold, self.bandwidth, self.to_input)

    def extra_repr(self) -> str:
        return f"bandwidth={self.bandwidth}"


class Gated(Sparsifier):
    """One path decides which latents are on, another how much: f = H(pre) * relu(exp(r_mag) * pre + b_mag)
    (Rajamanoharan et al. 2024a; W_mag is W_gate rescaled by latent, pre the gate's input).

    pre [n d_sae] -> codes [n d_sae]. Parameters: r_mag, b_mag [d_sae]. b_mag counts from the rescaled gate
    bias: the magnitude bias of the paper is exp(r_mag) * b_enc + b_mag, which spans the same functions.
    With own_bias=True the gate is H(pre + b_gate) with a bias of its own, b_gate [d_sae]: with b_enc = 0
    these are the biases of the paper as other libraries store them, taken and given back bit for bit.
    The gate itself gets no gradient here; the loss `gate` trains it.
    """

    def __init__(self, d_sae: int, own_bias: bool = False) -> None:
        super().__init__()
        self.r_mag = nn.Parameter(torch.zeros(d_sae))
        self.b_mag = nn.Parameter(torch.zeros(d_sae))
        self.b_gate = nn.Parameter(torch.zeros(d_sae)) if own_bias else None

    def gate(self, pre: Tensor, indices: Tensor | None = None) -> Tensor:
        """What is above 0 where a latent is on; of selected pre-activations with their latents."""
        if self.b_gate is None:
            return pre
        return pre + (self.b_gate if indices is None else self.b_gate[indices])

    def forward(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> Tensor:
        return dense.gated(pre, self.gate(pre), self.r_mag.exp(), self.b_mag)

    @torch.no_grad()
    def select(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> tuple[Tensor, Tensor] | None:
        return few(self.gate(pre), 0.0)

    def activation(self, pre: Tensor, indices: Tensor) -> Tensor:
        return (self.r_mag[indices].exp() * pre + self.b_mag[indices]).relu()

    def some(self, pre: Tensor, latents: Tensor, dictionary: Dictionary) -> Tensor | None:
        return torch.where(self.gate(pre, latents) > 0, self.activation(pre, latents), 0)

    def split(self, m: int) -> dict[str, Tensor] | None:
        own = {} if self.b_gate is None else {"b_gate": self.b_gate / m}
        return {"r_mag": self.r_mag, "b_mag": self.b_mag / m, **own}


class TopAFA(Sparsifier):
    """Keep as many latents of a row as bring the norm of its codes nearest to that of its input (top-AFA,
    arXiv 2503.24277). With near-orthogonal decoder rows d_j a good code has ||f * ||d||| = ||x||.

    With s = relu(pre) * ||d||, descending, and c_k the norm of its first k: k = argmin_k |c_k - ||x|||,
    the smallest among equals. x [n d_in] is the centred, normalised input; ties go to the lower index.
    """

    def forward(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> Tensor:
        return torch.where(self._kept(pre.detach(), x.detach(), dictionary), pre, 0.0)

    def select(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> tuple[Tensor, Tensor] | None:
        return few(self._kept(pre, x, dictionary), 0)

    @torch.no_grad()
    def _kept(self, pre: Tensor, x: Tensor, dictionary: Dictionary) -> Tensor:
        """bool [n d_sae]"""
        score = pre.relu() * dictionary.norms()
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


def few(pre: Float[Tensor, "n d_sae"], threshold: Tensor | float) -> tuple[Tensor, Tensor] | None:
    """The entries greater than a threshold ([] or [d_sae]) as (indptr [n + 1], indices), or None where they
    are more than one in DENSE."""
    n, d_sae = pre.shape
    if n >= 16 * SAMPLE:  # to list the entries of a dense matrix takes longer than to multiply by it
        sample = pre[::SAMPLE]
        if DENSE * int(torch.count_nonzero(sample > threshold)) > 2 * sample.numel():
            return None
    at = above(pre, threshold)
    return None if len(at) > pre.numel() // DENSE else to_csr(at, n, d_sae)
