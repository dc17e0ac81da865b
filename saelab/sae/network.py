"""What an SAE computes: its weights, and the passes through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelab import dist
from saelab.arguments import checked, listed
from saelab.config import integer
from saelab.devices import holding
from saelab.sae import dispatch, layered, memory
from saelab.sae.config import SAEConfig
from saelab.sae.kernels import Sparse, encode_top_k
from saelab.types import Codes, ConfigError, RangeError, Scale, ShapeError, check_finite, short

LARGE = 2**28
"""Numbers of a matrix of pre-activations beyond which none is made where codes do not need it: 1 GB."""
READ_NO_PRE = {"mse", "auxk"}
"""Losses that do without it."""


class Forward(NamedTuple):
    """What one pass through an SAE gave. All are differentiable unless stated."""

    x: Tensor
    """[.. d_in]: the input as it came, in raw units."""
    y: Tensor | None
    """[.. d_out]: what x_hat should be, in raw units: the input, or the target of a transcoder if given."""
    pre: Tensor
    """[.. d_sae]: pre-activations, in units of the normalised input. Without gradient where codes are
    `Sparse`; empty [0 d_sae] where these were found without them."""
    codes: Tensor | Sparse
    """[.. d_sae], or `Sparse` where `forward(x, sparse=True)` was asked for."""
    x_hat: Tensor
    """[.. d_out]: the reconstruction, in raw units."""
    scale: Scale | None
    """Per-row normalisation [.. 1] that the decoder undid, or None without normalise="layernorm"."""


class Network(nn.Module):
    """The weights of an SAE and the passes through them; see `saelab.sae.SAE`, which is one that can be made,
    saved and loaded."""

    def __init__(self, config: SAEConfig) -> None:
        super().__init__()
        if not isinstance(config, SAEConfig):
            msg = f"An SAE is built from an SAEConfig. Got {config!r}. Make one by saelab.recipe(...)."
            raise ConfigError(msg)
        self.config = config
        entry = config.entry
        self.sparsifier = entry.sparsifier(config)
        self.dictionary = entry.dictionary(config)
        # the memory is [d_sae d_in], so that the rows the sparse gradients touch are contiguous
        self.W_enc = nn.Parameter(torch.zeros(config.d_sae, config.d_read).t())
        learned = self.sparsifier.trains_biases
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae), requires_grad=learned)
        self.b_dec = nn.Parameter(torch.zeros(config.width_out), requires_grad=learned)
        self.register_buffer("input_scale", torch.ones((config.d_in,) if config.widths else ()))
        self.input_scale: Tensor
        if config.d_out is not None:
            self.register_buffer("output_scale", torch.ones((config.d_out,) if config.widths else ()))
        self.W_skip = nn.Parameter(torch.zeros(config.d_in, config.width_out)) if entry.skip else None

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_out"]:
        """The decoder matrix: one direction a row, in units of the normalised input."""
        return self.dictionary()

    @property
    def device(self) -> torch.device:
        """Where the weights are. Raises ConfigError for the meta device, where there are none."""
        return holding(self.W_enc.device, "An SAE")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and of the codes; inputs of other floating dtypes are converted."""
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
    def d_out(self) -> int:
        """Width of the reconstruction: d_in but for transcoders."""
        return self.config.width_out

    @property
    def out_scale(self) -> Tensor:
        """What normalised outputs are multiplied by: [], or [d_out] of several places."""
        return self.output_scale if self.config.d_out is not None else self.input_scale  # type: ignore[return-value]

    def encode(self, x: Float[Tensor, "*lead d_in"]) -> Float[Tensor, "*lead d_sae"]:
        """Dense codes, differentiable."""
        flat, lead = self._flat(x)
        pieces = [self._dense(chunk)[1] for chunk in self._chunks(flat)]
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).reshape(*lead, self.d_sae)

    @checked(latents=listed)
    def encode_some(self, x: Float[Tensor, "*lead d_in"], latents: Sequence[int]) -> Float[Tensor, "*lead m"]:
        """The codes of a few latents, as `encode(x)[..., latents]`, differentiable, by their columns of W_enc
        alone where the sparsifier looks at each latent by itself (relu, jumprelu, gated, and in eval mode the
        batchwise ones); where latents compete, as in topk, all pre-activations are needed.

        Args:
            x: Activations.
            latents: Which, in the order of the result.

        Raises:
            RangeError: A latent is none of the SAE's.
        """
        flat, lead = self._flat(x)
        remedy = "Pass latents of this SAE."
        listed = [integer("A latent", j, 0, self.d_sae - 1, error=RangeError, remedy=remedy) for j in latents]
        columns = torch.tensor(listed, dtype=torch.long, device=self.device)
        codes = None
        if not self.training:
            centred, _ = self.centred(flat)
            pre = self.some_pre(centred, columns)
            codes = self.sparsifier.some(pre, columns, self.dictionary)
        if codes is None:
            codes = self.encode(flat)[:, columns]
        return codes.reshape(*lead, len(listed))

    @torch.no_grad()
    def encode_sparse(self, x: Float[Tensor, "*lead d_in"]) -> Codes:
        """The same codes as CSR rows on the CPU (leading axes flattened), without a dense code matrix where
        the sparsifier can select; pre-activations exist for a bounded number of rows at a time."""
        flat, _ = self._flat(x)
        with memory.kept_anew(flat):  # by every piece
            pieces = [self._codes(chunk) for chunk in self._chunks(flat, cached=True)]
        if len(pieces) == 1:
            return pieces[0]
        starts = np.cumsum([0, *(len(p.indices) for p in pieces)])
        indptr = [pieces[0].indptr, *(p.indptr[1:] + s for p, s in zip(pieces[1:], starts[1:], strict=False))]
        return Codes(
            np.concatenate(indptr),
            np.concatenate([p.indices for p in pieces]),
            np.concatenate([p.values for p in pieces]),
            self.d_sae,
        )

    def decode(
        self,
        codes: Float[Tensor, "*lead d_sae"] | Sparse | Codes,
        scale: Scale | None = None,
        x: Float[Tensor, "*lead d_in"] | None = None,
    ) -> Float[Tensor, "*lead d_out"]:
        """x_hat of codes, in raw units.

        Args:
            codes: Dense, of any leading shape, or sparse ones of n rows.
            scale: Normalisation of each row to undo (x_hat * norm + mean), of the same leading shape:
                `scale(x)`.
            x: The inputs, which a skip connection needs.

        Returns:
            [.. d_out] of the same leading shape.

        Raises:
            ShapeError: Codes have another width, or scale or x is needed and missing.
            NonFiniteError: Codes are NaN or infinite.
            RangeError: Codes name a latent that there is not.
        """
        if self.W_skip is not None and x is None:
            msg = "The decoder of a skip transcoder needs the inputs. Got x=None. Pass decode(codes, x=x)."
            raise ShapeError(msg)
        if self.per_row and scale is None:
            msg = (
                f"The decoder of an SAE with normalise={self.config.options['normalise']!r} needs the rows' "
                "scale. Got scale=None. Pass decode(codes, scale=sae.scale(x))."
            )
            raise ShapeError(msg)
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
        if not (scale is None or isinstance(scale, Scale)):
            msg = f"scale must be what sae.scale(x) gives, or None. Got {short(scale)}. Leave it out."
            raise ConfigError(msg)
        if x is not None:
            flat, lead = self._flat(x)
            x = flat if isinstance(codes, Sparse) else flat.reshape(*lead, self.d_in)
        return self.restore(self.product(codes), scale, x)

    def forward(
        self,
        x: Float[Tensor, "*lead d_in"],
        y: Float[Tensor, "*lead d_out"] | None = None,
        *,
        sparse: bool = False,
    ) -> Forward:
        """Encode and decode; `x_hat` equals `decode(encode(x), scale(x), x)`.

        Args:
            x: Activations.
            y: The target of a transcoder, carried along for its loss.
            sparse: The fast path for training: leading axes are flattened, codes are `Sparse` where the
                sparsifier can select, and the gradients of all weights cost O(nnz * d_in); the input gets no
                gradient then.
        """
        flat, lead = self._flat(x)
        x = x if isinstance(x, Tensor) else flat.reshape(*lead, self.d_in)
        if self.config.d_out is None:
            y = None
        elif y is not None:
            y = self._checked(y, self.d_out, "d_out", "Targets")
        if sparse:
            return self._forward_sparse(flat, flat if self.config.d_out is None else _flattened(y))
        pre, codes, scale = self._dense(flat)
        x_hat = self.restore(self.product(codes), scale, flat).reshape(*lead, self.d_out)
        shape = (*lead, self.d_sae)
        if scale is not None:
            scale = Scale(scale.mean.reshape(*lead, 1), scale.norm.reshape(*lead, 1))
        target = x if self.config.d_out is None else y
        return Forward(x, target, pre.reshape(shape), codes.reshape(shape), x_hat, scale)

    def scale(self, x: Float[Tensor, "*lead d_in"]) -> Scale | None:
        """What `decode` needs to undo a per-row normalisation: mean and norm [*lead 1], None without one."""
        x = self._checked(x, self.d_in, "d_in", "Activations")
        return self.normalised(x)[1] if self.per_row else None

    def b_in(self) -> Float[Tensor, " d_in"]:
        """What is subtracted from the normalised input: b_dec, or zeros where the config says so."""
        if self.config.options.get("apply_b_dec_to_input", False):
            return self.b_dec
        return self.b_dec.new_zeros(self.d_in)

    @property
    def per_row(self) -> bool:
        """Whether each row is normalised by itself."""
        return self.config.options["normalise"] in ("layernorm", "zscore", "sphere")

    def normalised(self, x: Float[Tensor, "*lead d_in"]) -> tuple[Tensor, Scale | None]:
        """Inputs in the units that the weights see, and what undoes that for each row.

        They are x / input_scale, or

            layernorm   (x - mean) / ||x - mean||,         undone by * ||x - mean|| + mean
            zscore      (x - mean) / (std + 1e-5),         undone by * std + mean    (std with n - 1)
            sphere      x * sqrt(d_in) / ||x||,            undone by * ||x|| / sqrt(d_in).

        The last two are the layer_norm and constant_norm_rescale of SAELens, its epsilon included.
        """
        kind = self.config.options["normalise"]
        if not self.per_row:
            return x / self.input_scale, None
        mean = x.mean(-1, keepdim=True)
        if kind == "sphere":
            norm = x.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny) / self.d_in**0.5
            return x / norm, Scale(torch.zeros_like(mean), norm)
        centred = x - mean
        if kind == "zscore":
            std = centred.std(-1, keepdim=True, correction=min(1, self.d_in - 1))
            return centred / (std + 1e-5), Scale(mean, std)
        # squares of tiny numbers vanish: the largest entry is taken out first
        size = centred.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        norm = (centred / size).norm(dim=-1, keepdim=True).clamp_min(1) * size
        return centred / norm, Scale(mean, norm)

    def target(self, x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"] | None = None) -> Tensor:
        """What the decoder should give, in normalised units.

        Args:
            x: Inputs.
            y: Raw targets of a transcoder.

        Returns:
            [n d_out].

        Raises:
            ShapeError: A transcoder without y.
        """
        if self.config.d_out is None:
            return self.normalised(x)[0]
        if y is None:
            msg = "A transcoder's loss needs its targets. Got y=None. Pass sae(x, y)."
            raise ShapeError(msg)
        return y / self.out_scale

    def product(self, codes: Float[Tensor, "*lead d_sae"] | Sparse) -> Float[Tensor, "*lead d_out"]:
        """codes @ W_dec."""
        return dist.latents.summed(self.dictionary.decode(codes))

    def restore(self, product: Tensor, scale: Scale | None, x: Tensor | None) -> Tensor:
        """Normalised outputs without bias to outputs in raw units.

        Args:
            product: [.. d_out].
            scale: What undoes the rows' normalisation.
            x: Raw inputs [.. d_in], read where there is a skip connection.
        """
        out = product + self.b_dec
        if self.W_skip is not None and x is not None:
            out = out + (x / self.input_scale) @ self.W_skip
        out = out * self.out_scale
        return out if scale is None else out * scale.norm + scale.mean

    def _flat(self, x: Tensor) -> tuple[Float[Tensor, "n d_in"], torch.Size]:
        """The one place where leading axes are flattened and inputs are checked."""
        x = self._checked(x, self.d_in, "d_in", "Activations")
        check_finite(x, "Activations")
        return x.reshape(-1, self.d_in), x.shape[:-1]

    def _checked(self, x: Any, width: int, name: str, what: str) -> Tensor:
        if isinstance(x, np.ndarray) and x.dtype.kind in "fiu":
            x = torch.as_tensor(x).to(self.device)
        if not isinstance(x, Tensor):
            msg = f"{what} must be a tensor or an array. Got {type(x).__name__}. Pass torch.as_tensor(x)."
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

    def _chunks(self, flat: Tensor, cached: bool = False) -> Iterator[Tensor]:
        """Rows in pieces whose pre-activations take at most 64 MB in float32, on CUDA 1 GB; one (empty) piece
        for no rows. In training mode one piece: the codes of a row may depend on the others.

        cached: for pre-activations that are read once and dropped. On CPU a piece then takes 8 MB, which stay
        in the cache and in memory that is already mapped, but has rows enough for a fast product.
        """
        size = (2**28 if flat.is_cuda else 2**24) // self.d_sae
        if cached and flat.device.type == "cpu":
            size = min(size, max(256, 2**21 // self.d_sae))
        size = max(1, len(flat) if self.training else size)
        for start in range(0, max(1, len(flat)), size):
            yield flat[start : start + size]

    def centred(self, flat: Float[Tensor, "n d_in"]) -> tuple[Tensor, Scale | None]:
        """What the encoder multiplies [n d_in], and what undoes the rows' normalisation."""
        inputs, scale = self.normalised(flat)
        return inputs - self._b_in(), scale

    def _b_in(self) -> Tensor:
        """Of an encoder of which ranks may have a part each."""
        return dist.latents.used_by_all(self.b_in())

    def _pre(self, flat: Tensor) -> tuple[Tensor, Tensor, Scale | None]:
        centred, scale = self.centred(flat)
        # under torch.autocast the product is bfloat16; everything after it is not
        pre = layered.product(centred, self.W_enc, self.b_enc, self.config.layers)
        return pre.to(self.dtype), centred, scale

    def some_pre(self, centred: Float[Tensor, "n d_in"], latents: Int[Tensor, " m"]) -> Float[Tensor, "n m"]:
        """The pre-activations of a few latents.

        Args:
            centred: What the encoder multiplies, as the method of that name gives it.
            latents: Which, in the order of the result.
        """
        return layered.some(centred, self.W_enc, self.b_enc, latents, self.config.layers)

    def _dense(self, flat: Tensor) -> tuple[Tensor, Tensor, Scale | None]:
        """(pre, codes, scale) of a chunk, differentiable."""
        pre, centred, scale = self._pre(flat)
        return pre, self.sparsifier(pre, centred, self.dictionary), scale

    def _codes(self, flat: Tensor) -> Codes:
        if (k := self._of_largest(flat)) is not None:
            pre, indices = (found.reshape(-1) for found in self.largest(flat, k))
            rows = torch.arange(len(flat), device=flat.device).repeat_interleave(k)
        else:
            pre, centred, _ = self._pre(flat)
            selected = self.sparsifier.select(pre, centred, self.dictionary)
            if selected is None:
                return Codes.from_dense(self.sparsifier(pre, centred, self.dictionary))
            indptr, indices = selected
            rows = torch.repeat_interleave(torch.arange(len(pre), device=pre.device), indptr.diff())
            pre = pre[rows, indices]
        values = self.sparsifier.activation(pre, indices)
        keep = values != 0
        rows, indices, values = rows[keep], indices[keep], values[keep]
        place = rows * self.d_sae + indices
        if (place[1:] < place[:-1]).any():
            order = torch.argsort(place)
            indices, values = indices[order], values[order]
        counts = torch.bincount(rows, minlength=len(flat))
        return Codes(
            nn.functional.pad(counts.cumsum(0), (1, 0)).cpu().numpy(),
            indices.int().cpu().numpy(),
            values.float().cpu().numpy(),
            self.d_sae,
        )

    def largest(
        self, flat: Float[Tensor, "n d_in"], k: int, latents: Int[Tensor, " m"] | None = None
    ) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
        """The k largest pre-activations of each row, without gradient and without a matrix of all.

        Args:
            flat: Inputs.
            k: How many.
            latents: Those among which they are looked for, by default all.

        Returns:
            Values and latents, in any order; ties go to the lower latent.
        """
        half = torch.is_autocast_enabled(flat.device.type)
        W, b = (self.W_enc, self.b_enc) if latents is None else (self.W_enc[:, latents], self.b_enc[latents])
        with torch.no_grad():
            values, at = encode_top_k(self.centred(flat)[0], W, b, k, half)
        return values, at if latents is None else latents[at]

    def _of_largest(self, flat: Tensor) -> int | None:
        """k, where codes are found without a matrix of pre-activations: on a device that has kernels for it,
        or where the matrix would be too large."""
        k, size = self.sparsifier.of_largest(), len(flat) * self.d_sae
        few = k is not None and k < self.d_sae and self.config.layers == 1 and dist.latents.size == 1
        whole = set(self.config.entry.losses(self.config)) - READ_NO_PRE
        return k if few and not whole and (dispatch.possible(flat) or size > LARGE) else None

    def _forward_sparse(self, flat: Tensor, y: Tensor | None) -> Forward:
        if (k := self._of_largest(flat)) is not None:
            values, at = self.largest(flat, k)
            indptr = torch.arange(0, at.numel() + 1, k, device=flat.device)
            codes = self.attach(flat, values.reshape(-1).to(self.dtype), indptr, at.reshape(-1))
            scale = self.normalised(flat)[1]
            x_hat = self.restore(self.product(codes), scale, flat)
            return Forward(flat, y, flat.new_empty(0, self.d_sae), codes, x_hat, scale)
        training = memory.active()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not training):
            pre, centred, scale = self._pre(flat)
        selected = self.sparsifier.select(pre.detach(), centred.detach(), self.dictionary)
        if selected is not None:
            pre = pre.detach()
            codes = self.attach(flat, pre, *selected)
        else:
            if training:
                centred, scale = self.centred(flat)
                x, b_in = self.normalised(flat)[0], self._b_in()
                pre = layered.affine(pre, x, b_in, self.W_enc, self.b_enc, self.config.layers)
            codes = self.sparsifier(pre, centred, self.dictionary)
        return Forward(flat, y, pre, codes, self.restore(self.product(codes), scale, flat), scale)

    def attach(
        self,
        flat: Float[Tensor, "n d_in"],
        pre: Tensor,
        indptr: Tensor,
        indices: Tensor,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> Sparse:
        """Codes at a chosen CSR pattern, differentiable in the weights.

        Args:
            flat: Inputs.
            pre: This SAE's pre-activations of `flat`, [n d_sae], or those at the pattern, [nnz].
            indptr: int64 [n + 1], where each row's latents begin.
            indices: int64 [nnz], latents.
            activation: What makes a code of a pre-activation, by default the sparsifier's.
        """
        x, _ = self.normalised(flat)
        b_in = self._b_in()
        layers = self.config.layers
        at = layered.active(pre, x, b_in, self.W_enc, self.b_enc, indptr, indices, layers)
        values = self.sparsifier.activation(at, indices) if activation is None else activation(at)
        return Sparse(indptr, indices, values, self.d_sae)


def _flattened(y: Tensor | None) -> Tensor | None:
    return None if y is None else y.reshape(-1, y.shape[-1])
