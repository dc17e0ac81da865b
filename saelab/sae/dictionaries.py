"""Dictionary parts: where decoder directions come from."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.sae import dense
from saelab.sae.kernels import Sparse, sparse_decode

Draw = Callable[[int, int], Tensor]
"""(rows, width) -> that many random unit rows."""


class Dictionary(nn.Module, ABC):
    """() -> W_dec [d_sae d_out], one decoder direction a row. `tied`: whether the encoder is made of the same
    directions."""

    tied: bool = False

    @abstractmethod
    def forward(self) -> Float[Tensor, "d_sae d_out"]:
        """The decoder matrix."""

    @abstractmethod
    def set(self, W_dec: Float[Tensor, "d_sae d_out"]) -> None:
        """Take the nearest decoder matrix that this dictionary can express (used at initialisation)."""

    def start(self, draw: Draw) -> None:
        """Take random directions."""
        self.set(draw(*self().shape))

    def fit(self, rows: Float[Tensor, "n d_out"], generator: torch.Generator) -> bool:
        """Start anew from centred, normalised training rows, if this dictionary is made of data; says
        whether."""
        return False

    def norms(self) -> Float[Tensor, " d_sae"]:
        """The size of each direction, by which codes are compared and penalised: the Euclidean norm."""
        return self().norm(dim=1)

    def decode(self, codes: Float[Tensor, "*lead d_sae"] | Sparse) -> Float[Tensor, "*lead d_out"]:
        """codes @ W_dec."""
        if isinstance(codes, Sparse):
            return sparse_decode(codes, self())
        return dense.decode(codes, self()) if codes.ndim == 2 else codes @ self()

    def project(self) -> None:
        """Bring the parameters back into the allowed set, after an optimizer step. Without gradient."""


class Free(Dictionary):
    """Every decoder row is a free parameter."""

    def __init__(self, d_sae: int, d_out: int) -> None:
        super().__init__()
        self.W_dec = nn.Parameter(torch.zeros(d_sae, d_out))

    def forward(self) -> Tensor:
        return self.W_dec

    @torch.no_grad()
    def set(self, W_dec: Tensor) -> None:
        self.W_dec.copy_(W_dec)


class Frozen(Dictionary):
    """Directions that stay as they were drawn, while the encoder learns: the control of a trained decoder
    (Makelov et al., arXiv 2405.08366)."""

    def __init__(self, d_sae: int, d_out: int) -> None:
        super().__init__()
        self.register_buffer("W_dec", torch.zeros(d_sae, d_out))
        self.W_dec: Tensor

    def forward(self) -> Tensor:
        return self.W_dec

    @torch.no_grad()
    def set(self, W_dec: Tensor) -> None:
        self.W_dec.copy_(W_dec)


class Joint(Free):
    """Free rows that write to several places at once (a crosscoder): row i is the concatenation of a
    direction for each place, and its size is the sum of their norms (Lindsey et al. 2024), so that a latent
    that serves one place alone is not favoured; whole: the norm of the row as one direction, the loss that
    Lindsey et al. compare with, under which a latent pays least for writing to many places at once."""

    def __init__(self, d_sae: int, widths: tuple[int, ...], whole: bool = False) -> None:
        super().__init__(d_sae, sum(widths))
        self.widths, self.whole = widths, whole

    def norms(self) -> Tensor:
        if self.whole:
            return super().norms()
        return torch.stack([place.norm(dim=1) for place in self().split(self.widths, dim=1)]).sum(0)


class Scaled(Dictionary):
    """W_dec = a * w: directions w [d_sae d_out] of unit norm and their scales a [d_sae], for encoders that
    are w^T (the rule `tied` keeps both so)."""

    tied = True

    def __init__(self, d_sae: int, d_out: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(d_sae, d_out))
        self.a = nn.Parameter(torch.ones(d_sae))

    def forward(self) -> Tensor:
        return self.a[:, None] * self.w

    @torch.no_grad()
    def set(self, W_dec: Tensor) -> None:
        self.a.copy_(W_dec.norm(dim=1))
        self.w.copy_(nn.functional.normalize(W_dec, dim=1))


MOST_CENTRES = 4096
"""Candidates that are found by k-means; more of them are training rows, drawn without repeats: k-means of
tens of thousands of centres takes hours."""
NEAR_AT_ONCE = 256


class Archetypal(Dictionary):
    """Directions near the convex hull of data points (relaxed archetypal SAE, Fel et al., arXiv 2502.12892):

        W_dec = exp(g) * (W C + R),   W >= 0 with rows that sum to 1,   ||R_i||_2 <= delta

    C [candidates d_out] are k-means centres of the first training rows, or rows, and stay fixed; W, R
    [d_sae d_out] and the multiplier g [] are learned. delta = 0 is the pure archetypal dictionary. Rows are
    not of unit norm: g alone scales them.

    W is [d_sae candidates]: of 32,000 latents and as many candidates 4 GB, and three times that more for its
    gradient and moments. With `mixed` a latent mixes so many candidates alone, those nearest to where it
    starts: W is [d_sae mixed], and `at` [d_sae mixed] says which they are.
    """

    def __init__(
        self, d_sae: int, d_out: int, candidates: int, delta: float, mixed: int | None = None
    ) -> None:
        super().__init__()
        self.delta = delta
        self.register_buffer("C", torch.zeros(candidates, d_out))
        self.C: Tensor
        self.at: Tensor | None
        if mixed is None:
            self.at = None
        else:
            self.register_buffer("at", torch.zeros(d_sae, min(mixed, candidates), dtype=torch.int64))
        self.W = nn.Parameter(torch.zeros(d_sae, candidates if self.at is None else self.at.shape[1]))
        self.R = nn.Parameter(torch.zeros(d_sae, d_out))
        self.g = nn.Parameter(torch.zeros(()))

    def forward(self) -> Tensor:
        return self.g.exp() * (self.mixtures() + self.R)

    def mixtures(self) -> Tensor:
        """W C [d_sae d_out], points of the hull."""
        if self.at is None:
            return self.W @ self.C
        return nn.functional.embedding_bag(self.at, self.C, per_sample_weights=self.W, mode="sum")

    @torch.no_grad()
    def set(self, W_dec: Tensor) -> None:
        """Without data there is no hull: the given rows (as many as fit) are its points."""
        n = len(self.C)
        self.C.copy_(W_dec[torch.arange(n) % len(W_dec)])
        # of random directions none are nearer than others
        near = None if self.at is None else (torch.arange(n)[:, None] + torch.arange(self.at.shape[1])) % n
        self._start(torch.arange(n), near)

    @torch.no_grad()
    def fit(self, rows: Tensor, generator: torch.Generator) -> bool:
        """C becomes the centres of k-means on the rows, or rows where more than 4,096 candidates are asked
        for (all of them, again from the first, where they are no more); each latent starts at one of them."""
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        if len(rows) <= len(self.C):
            self.C.copy_(rows[torch.arange(len(self.C)) % len(rows)])
        elif len(self.C) > MOST_CENTRES:
            drawn = torch.randperm(len(rows), generator=generator)[: len(self.C)]
            self.C.copy_(rows[drawn.to(rows.device)])
        else:
            self.C.copy_(_centres(rows, len(self.C), seed))
        order = torch.randperm(len(self.C), generator=generator)
        self._start(order, None if self.at is None else _nearest(self.C, self.at.shape[1]))
        # latents that start at the same centre would stay equal for ever
        again = torch.arange(len(self.R)) >= len(self.C)
        spread = self.C.norm(dim=1).mean() / self.C.shape[1] ** 0.5
        noise = 0.1 * spread * torch.randn(self.R.shape, generator=generator)
        self.R.copy_(torch.where(again[:, None], noise, 0.0))
        self.project()
        return True

    def _start(self, order: Tensor, near: Tensor | None) -> None:
        """Latent i sits at candidate order[i], and again from the first where latents are more. near: int64
        [candidates mixed], what is mixed by a latent that sits at each, itself first."""
        at = order[torch.arange(len(self.W)) % len(order)]
        self.W.zero_()
        if self.at is None or near is None:
            self.W[torch.arange(len(at)), at] = 1
        else:
            self.at.copy_(near[at])
            self.W[:, 0] = 1
        self.R.zero_()
        self.g.zero_()

    @torch.no_grad()
    def project(self) -> None:
        self.W.clamp_min_(0)
        total = self.W.sum(1, keepdim=True)
        uniform = 1 / self.W.shape[1]
        self.W.copy_(torch.where(total > 1e-12, self.W / total.clamp_min(1e-12), uniform))
        self.R.mul_((self.delta / self.R.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp_max(1))


def _centres(rows: Tensor, n: int, seed: int) -> Tensor:
    """[n d_out]: of k-means."""
    from sklearn.cluster import MiniBatchKMeans

    means = MiniBatchKMeans(n, batch_size=4096, n_init="auto", random_state=seed)
    with warnings.catch_warnings():  # fewer distinct rows than centres are no fault here
        warnings.simplefilter("ignore")
        means.fit(rows.double().cpu().numpy())
    return torch.from_numpy(means.cluster_centers_)


def _nearest(points: Tensor, n: int) -> Tensor:
    """int64 [points n]: the nearest points of each, Euclidean, itself first."""
    found = []
    for low in range(0, len(points), NEAR_AT_ONCE):
        some = points[low : low + NEAR_AT_ONCE]
        apart = torch.cdist(some, points)
        apart[torch.arange(len(some)), low + torch.arange(len(some))] = -1
        found.append(apart.topk(n, largest=False, sorted=True).indices)
    return torch.cat(found)
