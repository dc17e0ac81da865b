"""SAE: the one class of sparse autoencoder, built of a sparsifier and a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab import dist
from saelab.sae import storage
from saelab.sae.kernels import Sparse, active_pre, sparse_decode
from saelab.sae.recipes import RECIPES, SAEConfig
from saelab.types import (
    Codes,
    ConfigError,
    HookError,
    HookPoint,
    NonFiniteError,
    RangeError,
    Scale,
    ShapeError,
    check_finite,
)

DRAWN = 2**14
"""Rows that are drawn at a time, a multiple of 16, where each rank needs few of them."""


class Forward(NamedTuple):
    """What one pass through an SAE gave. All are differentiable unless stated."""

    x: Tensor
    """[.. d_in]: the input as it came, in raw units."""
    pre: Tensor
    """[.. d_sae]: pre-activations, in units of the normalised input. Without gradient where codes are
    `Sparse`."""
    codes: Tensor | Sparse
    """[.. d_sae], or `Sparse` where `forward(x, sparse=True)` was asked for."""
    x_hat: Tensor
    """[.. d_in]: the reconstruction, in raw units."""
    scale: Scale | None
    """Per-row normalisation that the decoder undid, or None where the recipe has none."""


class SAE(nn.Module):
    """A sparse autoencoder: x -> codes -> x_hat.

        pre   = (x / input_scale - b_dec) @ W_enc + b_enc          (b_dec only with `apply_b_dec_to_input`)
        codes = sparsifier(pre)
        x_hat = (codes @ W_dec + b_dec) * input_scale

    Parameters: W_enc [d_in d_sae], b_enc [d_sae], W_dec [d_sae d_in] (of the dictionary), b_dec [d_in].
    Buffer: input_scale [], the mean Euclidean norm of the raw inputs that training began with (1 without
    normalisation); codes, biases and W_dec are in units of x / input_scale.

    Inputs have any leading shape; they must be floating point, finite, on the SAE's device and of width d_in
    (ShapeError, NonFiniteError). Make one by `SAE.create`, `SAE.load` or `saelab.train`; `SAE(config)` alone
    is all zeros, to be filled.
    """

    def __init__(self, config: SAEConfig) -> None:
        super().__init__()
        if not isinstance(config, SAEConfig):
            msg = f"An SAE is built from an SAEConfig. Got {config!r}. Make one by saelab.recipe(...)."
            raise ConfigError(msg)
        self.config = config
        self.stored_dtype = "float32"
        entry = RECIPES[config.recipe]
        self.sparsifier = entry.sparsifier(config)
        self.dictionary = entry.dictionary(config)
        # the memory is [d_sae d_in], so that the rows the sparse gradients touch are contiguous
        self.W_enc = nn.Parameter(torch.zeros(config.d_sae, config.d_in).t())
        learned = self.sparsifier.trains_biases
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae), requires_grad=learned)
        self.b_dec = nn.Parameter(torch.zeros(config.d_in), requires_grad=learned)
        self.register_buffer("input_scale", torch.ones(()))
        self.input_scale: Tensor

    @classmethod
    def create(cls, config: SAEConfig, seed: int = 0, rows: Float[Tensor, "n d_in"] | None = None) -> SAE:
        """An untrained SAE (the control of every score): random unit decoder rows, W_enc as the config says.

        rows: activations from which the input scale, b_dec and, with tied_init, the factor of W_enc are
        taken, as training does. The factor is the one whose reconstruction is best in least squares: latents
        overlap, so that W_enc = W_dec^T alone overshoots. Without rows the scale and factor are 1 and b_dec
        is 0. It comes in eval mode. The same seed gives the same weights, and the global random state is left
        alone.
        """
        sae = cls(config)
        # mixed, so that data drawn from the same small seed by the caller shares no number with the weights
        generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + 0x5AE1AB) % 2**63)
        W_dec = _directions(config.d_sae, config.d_in, generator)
        sae.dictionary.set(W_dec)
        other = _directions(config.d_sae, config.d_in, generator)
        with torch.no_grad():
            tied = config.options.get("tied_init", True)  # without the option the recipe is always tied
            sae.W_enc.copy_((sae.W_dec if tied else other).t())
            if rows is not None:
                rows, _ = sae._flat(rows)
                if config.options["normalise"] == "scalar":
                    sae.input_scale.fill_(rows.norm(dim=1).mean().clamp_min(torch.finfo(rows.dtype).tiny))
                sae.b_dec.copy_(_centre(rows / sae.input_scale, config.options["b_dec_init"]))
                gain = _gain(sae, rows[:4096]) if tied else 1
                if sae.dictionary.tied:
                    sae.dictionary.set(sae.W_dec * gain)
                else:
                    sae.W_enc.mul_(gain)
                if len(rows):  # so that a learned threshold fits the untrained SAE too
                    sae.sparsifier.observe(sae(rows[:4096], sparse=True).codes)
        return sae.eval()

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_in"]:
        """The decoder matrix: one direction a row, in units of the normalised input."""
        return self.dictionary()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and of the codes; inputs of other floating dtypes are converted."""
        return self.W_enc.dtype

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.config.d_in

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.config.d_sae

    @property
    def hook(self) -> HookPoint:
        """Where it reads. Raises HookError on an SAE that names no hook point."""
        if self.config.hook is None:
            message = (
                "An SAE must name the hook point that it reads. Got hook=None. Set it: "
                "saelab.recipe(..., hook=...)."
            )
            raise HookError(message)
        return self.config.hook

    def encode(self, x: Float[Tensor, "*lead d_in"]) -> Float[Tensor, "*lead d_sae"]:
        """Dense codes, differentiable."""
        flat, lead = self._flat(x)
        parts = [self._sparsify(*self._pre(chunk)) for chunk in self._chunks(flat)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(*lead, self.d_sae)

    @torch.no_grad()
    def encode_sparse(self, x: Float[Tensor, "*lead d_in"]) -> Codes:
        """The same codes as CSR rows on the CPU (leading axes flattened), without a dense code matrix where
        the sparsifier can select; pre-activations exist for a bounded number of rows at a time."""
        flat, _ = self._flat(x)
        parts = [self._codes(chunk) for chunk in self._chunks(flat)]
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(len(p.indices) for p in parts)])
        indptr = [parts[0].indptr, *(p.indptr[1:] + s for p, s in zip(parts[1:], starts[1:], strict=False))]
        return Codes(
            np.concatenate(indptr),
            np.concatenate([p.indices for p in parts]),
            np.concatenate([p.values for p in parts]),
            self.d_sae,
        )

    def decode(
        self, codes: Float[Tensor, "*lead d_sae"] | Sparse | Codes, scale: Scale | None = None
    ) -> Float[Tensor, "*lead d_in"]:
        """x_hat of dense codes of any leading shape, or [n d_in] of sparse ones, in raw units.

        scale: per-row normalisation to undo (x_hat * norm + mean), of the same leading shape.
        """
        if isinstance(codes, Codes):
            codes = Sparse(
                torch.from_numpy(np.ascontiguousarray(codes.indptr)).to(self.device),
                torch.from_numpy(codes.indices.astype(np.int64)).to(self.device),
                torch.from_numpy(np.ascontiguousarray(codes.values)).to(self.device, self.dtype),
                codes.d_sae,
            )
        if isinstance(codes, Sparse):
            if codes.d_sae != self.d_sae:
                msg = f"Codes must have d_sae={self.d_sae} latents. Got {codes.d_sae}. Encode with this SAE."
                raise ShapeError(msg)
            outside = (codes.indices < 0) | (codes.indices >= self.d_sae)
            if outside.any():
                bad = int(codes.indices[outside][0])
                msg = f"Latents must be in 0..{self.d_sae - 1}. Got {bad}. Encode with this SAE."
                raise RangeError(msg)
            check_finite(codes.values, "Codes")
        else:
            codes = self._checked(codes, self.d_sae, "d_sae", "Codes")
            check_finite(codes, "Codes")
        return self._decode(codes, scale)

    def forward(self, x: Float[Tensor, "*lead d_in"], *, sparse: bool = False) -> Forward:
        """Encode and decode. `x_hat` equals `decode(encode(x))`.

        sparse=True is the fast path for training: leading axes are flattened, codes are `Sparse` where the
        sparsifier can select, and the gradients of all weights cost O(nnz * d_in); the input gets no gradient
        then.
        """
        flat, lead = self._flat(x)
        if sparse:
            return self._forward_sparse(flat)
        pre, centred = self._pre(flat)
        codes = self._sparsify(pre, centred)
        x_hat = self._decode(codes, None)
        shape = (*lead, self.d_sae)
        return Forward(x, pre.reshape(shape), codes.reshape(shape), x_hat.reshape(*lead, self.d_in), None)

    def save(self, folder: str | Path, dtype: str = "float32") -> Path:
        """Write config.json and sae.safetensors into `folder`, each by a temporary file and a rename.

        dtype: "float32", or "float16" / "bfloat16" to halve the size (loads as float32, `stored_dtype`
        tells). Raises StoreError where the folder cannot be written, NonFiniteError for weights that are not
        finite (or overflow in float16).
        """
        return storage.save(self, Path(folder), dtype)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> SAE:
        """The SAE that `save` wrote, bit-equal. Raises StoreError where there is none, FormatError for a
        folder that is truncated, altered, inconsistent or of a newer version."""
        return storage.load(cls, Path(folder)).to(device)

    def fingerprint(self) -> str:
        """Hex SHA-256 of config and weights; equal for equal SAEs, whatever their device."""
        return storage.fingerprint(self)

    def check_parameters(self) -> None:
        """Raises NonFiniteError if any weight is NaN or infinite."""
        for name, tensor in self.state_dict().items():
            if not torch.isfinite(tensor).all():
                msg = (
                    f"Every weight of an SAE must be finite. Got NaN or infinity in {name}. "
                    "Train again with a lower lr, or load another checkpoint."
                )
                raise NonFiniteError(msg)

    def extra_repr(self) -> str:
        at = f", hook={self.config.hook.name!r}" if self.config.hook else ""
        return f"{self.config.recipe!r}, d_in={self.d_in}, d_sae={self.d_sae}{at}"

    def b_in(self) -> Float[Tensor, " d_in"]:
        """What is subtracted from the normalised input: b_dec, or zeros where the config says so."""
        return self.b_dec if self.config.options["apply_b_dec_to_input"] else torch.zeros_like(self.b_dec)

    def _flat(self, x: Tensor) -> tuple[Float[Tensor, "n d_in"], torch.Size]:
        """The one place where leading axes are flattened and inputs are checked."""
        x = self._checked(x, self.d_in, "d_in", "Activations")
        check_finite(x, "Activations")
        return x.reshape(-1, self.d_in), x.shape[:-1]

    def _checked(self, x: Tensor, width: int, name: str, what: str) -> Tensor:
        if not isinstance(x, Tensor):
            msg = f"{what} must be a torch tensor. Got {type(x).__name__}. Pass torch.as_tensor(x)."
            raise ShapeError(msg)
        if x.ndim < 1 or x.shape[-1] != width:
            msg = (
                f"{what} must be [..., {name}={width}]. Got shape {tuple(x.shape)}. "
                "Pass activations of the hook that this SAE was made for, the width last."
            )
            raise ShapeError(msg)
        if not x.is_floating_point():
            msg = f"{what} must be floating point. Got {x.dtype}. Pass x.float() if these are activations."
            raise ShapeError(msg)
        if x.device != self.device:
            msg = f"{what} must be on {self.device}, as the SAE. Got {x.device}. Pass x.to(sae.device)."
            raise ShapeError(msg)
        return x.to(self.dtype)

    def _chunks(self, flat: Tensor) -> Iterator[Tensor]:
        """Rows in pieces whose pre-activations take at most 64 MB in float32; one (empty) piece for no
        rows. In training mode one piece: the codes of a row may depend on the others."""
        size = max(1, len(flat) if self.training else 2**24 // self.d_sae)
        for start in range(0, max(1, len(flat)), size):
            yield flat[start : start + size]

    def _pre(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        centred = flat / self.input_scale - self.b_in()
        return torch.addmm(self.b_enc, centred, self.W_enc), centred

    def _dec_norm(self) -> Tensor | None:
        return self.W_dec.norm(dim=1) if self.sparsifier.uses_dec_norm else None

    def _sparsify(self, pre: Tensor, centred: Tensor) -> Tensor:
        return self.sparsifier(pre, centred, self._dec_norm())

    def _codes(self, flat: Tensor) -> Codes:
        pre, centred = self._pre(flat)
        selected = self.sparsifier.select(pre, centred, self._dec_norm())
        if selected is None:
            return Codes.from_dense(self._sparsify(pre, centred))
        indptr, indices = selected
        rows = torch.repeat_interleave(torch.arange(len(pre), device=pre.device), indptr.diff())
        values = self.sparsifier.activation(pre[rows, indices], indices)
        keep = values != 0
        rows, indices, values = rows[keep], indices[keep], values[keep]
        order = torch.argsort(rows * self.d_sae + indices)
        counts = torch.bincount(rows, minlength=len(pre))
        return Codes(
            nn.functional.pad(counts.cumsum(0), (1, 0)).cpu().numpy(),
            indices[order].int().cpu().numpy(),
            values[order].float().cpu().numpy(),
            self.d_sae,
        )

    def _decode(self, codes: Tensor | Sparse, scale: Scale | None) -> Tensor:
        product = sparse_decode(codes, self.W_dec) if isinstance(codes, Sparse) else codes @ self.W_dec
        x_hat = (dist.latents.summed(product) + self.b_dec) * self.input_scale
        return x_hat if scale is None else x_hat * scale.norm + scale.mean

    def _forward_sparse(self, flat: Tensor) -> Forward:
        with torch.no_grad():
            pre, centred = self._pre(flat)
            selected = self.sparsifier.select(pre, centred, self._dec_norm())
        if selected is None:
            pre, centred = self._pre(flat)
            codes: Tensor | Sparse = self._sparsify(pre, centred)
        else:
            codes = self.attach(flat, pre, *selected)
        return Forward(flat, pre, codes, self._decode(codes, None), None)

    def attach(
        self,
        flat: Float[Tensor, "n d_in"],
        pre: Tensor,
        indptr: Tensor,
        indices: Tensor,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> Sparse:
        """Codes at a chosen CSR pattern, differentiable in the weights. pre: this SAE's pre-activations of
        `flat`. activation: what makes a code of a pre-activation, by default the sparsifier's."""
        x = flat / self.input_scale
        b_in = dist.latents.used_by_all(self.b_in())
        at = active_pre(pre, x, b_in, self.W_enc, self.b_enc, indptr, indices)
        values = self.sparsifier.activation(at, indices) if activation is None else activation(at)
        return Sparse(indptr, indices, values, self.d_sae)


def _directions(d_sae: int, d_in: int, generator: torch.Generator) -> Tensor:
    """Random unit rows [d_sae d_in]. Where ranks share the latents, this rank's of those that one process
    would draw, of which it holds a few at a time."""
    whole = dist.latents.count(d_sae)
    start, end = dist.latents.bounds(whole)
    kept, at = [], 0
    while at < whole:
        # torch draws in blocks of 16 numbers, of which the last may be short: pieces end with a block
        n = DRAWN if whole - at >= 2 * DRAWN and dist.latents.size > 1 else whole - at
        drawn = torch.randn(n, d_in, generator=generator)
        kept.append(drawn[max(0, start - at) : max(0, end - at)].clone() if n < whole else drawn)
        at += n
    rows = torch.cat(kept) if len(kept) > 1 else kept[0][start:end]
    return nn.functional.normalize(rows, dim=1)


def _gain(sae: SAE, rows: Tensor) -> Tensor:
    """The factor a that minimises sum ||x - b - a (x_hat - b)||^2, b the decoder bias in raw units."""
    bias = sae.b_dec * sae.input_scale
    target, output = rows - bias, sae(rows).x_hat - bias
    gain = (target * output).sum() / output.square().sum()
    return gain if torch.isfinite(gain) and gain > 0 else torch.ones_like(gain)


def _centre(rows: Tensor, how: str) -> Tensor:
    """Mean, geometric median (Weiszfeld's iteration) or zeros of [n d_in]."""
    if how == "zeros" or not len(rows):
        return rows.new_zeros(rows.shape[1])
    centre = rows.mean(0)
    if how == "mean":
        return centre
    for _ in range(100):
        weights = 1 / (rows - centre).norm(dim=1, keepdim=True).clamp_min(1e-8)
        new = (weights * rows).sum(0) / weights.sum()
        moved, centre = (new - centre).norm(), new
        if moved <= 1e-6 * centre.norm():
            break
    return centre


__all__ = ["SAE", "Forward", "SAEConfig"]
