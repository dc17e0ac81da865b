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


class Archetypal(Dictionary):
    """Directions near the convex hull of data points (relaxed archetypal SAE, Fel et al., arXiv 2502.12892):

        W_dec = exp(g) * (W C + R),   W >= 0 with rows that sum to 1,   ||R_i||_2 <= delta

    C [candidates d_out] are k-means centres of the first training rows and stay fixed; W [d_sae candidates],
    R [d_sae d_out] and the multiplier g [] are learned. delta = 0 is the pure archetypal dictionary. Rows are
    not of unit norm: g alone scales them.
    """

    def __init__(self, d_sae: int, d_out: int, candidates: int, delta: float) -> None:
        super().__init__()
        self.delta = delta
        self.register_buffer("C", torch.zeros(candidates, d_out))
        self.C: Tensor
        self.W = nn.Parameter(torch.zeros(d_sae, candidates))
        self.R = nn.Parameter(torch.zeros(d_sae, d_out))
        self.g = nn.Parameter(torch.zeros(()))

    def forward(self) -> Tensor:
        return self.g.exp() * (self.W @ self.C + self.R)

    @torch.no_grad()
    def set(self, W_dec: Tensor) -> None:
        """Without data there is no hull: the given rows (as many as fit) are its points."""
        self.C.copy_(W_dec[torch.arange(len(self.C)) % len(W_dec)])
        self._start(torch.arange(len(self.C)))

    @torch.no_grad()
    def fit(self, rows: Tensor, generator: torch.Generator) -> bool:
        """C becomes the centres of k-means on the rows, or the rows themselves (again from the first) where
        they are no more than its points; each latent starts at one of them."""
        from sklearn.cluster import MiniBatchKMeans

        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        if len(rows) <= len(self.C):
            self.C.copy_(rows[torch.arange(len(self.C)) % len(rows)])
        else:
            means = MiniBatchKMeans(len(self.C), batch_size=4096, n_init="auto", random_state=seed)
            with warnings.catch_warnings():  # fewer distinct rows than centres are no fault here
                warnings.simplefilter("ignore")
                means.fit(rows.double().cpu().numpy())
            self.C.copy_(torch.from_numpy(means.cluster_centers_))
        self._start(torch.randperm(len(self.C), generator=generator))
        # latents that start at the same centre would stay equal for ever
        again = torch.arange(len(self.R)) >= len(self.C)
        spread = self.C.norm(dim=1).mean() / self.C.shape[1] ** 0.5
        noise = 0.1 * spread * torch.randn(self.R.shape, generator=generator)
        self.R.copy_(torch.where(again[:, None], noise, 0.0))
        self.project()
        return True

    def _start(self, order: Tensor) -> None:
        """Latent i sits at candidate order[i], and again from the first where latents are more."""
        at = order[torch.arange(len(self.W)) % len(order)]
        self.W.zero_()
        self.W[torch.arange(len(at)), at] = 1
        self.R.zero_()
        self.g.zero_()

    @torch.no_grad()
    def project(self) -> None:
        self.W.clamp_min_(0)
        total = self.W.sum(1, keepdim=True)
        uniform = 1 / self.W.shape[1]
        self.W.copy_(torch.where(total > 1e-12, self.W / total.clamp_min(1e-12), uniform))
        self.R.mul_((self.delta / self.R.norm(dim=1, keepdim=True).clamp_min(1e-30)).clamp_max(1))
