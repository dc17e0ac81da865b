"""Sparse arithmetic of SAEs: each fast path beside a plain reference of a few lines.

Codes with few entries a row are kept as CSR on the device (`Sparse`). Products with them cost O(nnz * d_in),
so that a training step is dominated by the one dense product x @ W_enc. All of them run as `embedding_bag`,
which on CPU beats a dense product, index_add and the CSR product (`python benchmarks/train.py --parts` prints
the comparison). On CUDA some have a Triton twin, taken where it is the faster one (`saelab.sae.dispatch`).
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from saelab import dist
from saelab.sae import dispatch

PIECE = 2**26
"""Numbers of a matrix of pre-activations that are made at a time where no whole one is: 256 MB."""


class Sparse(NamedTuple):
    """Codes of n rows in CSR form, differentiable in `values`. The torch twin of `types.Codes`; zeros are
    allowed."""

    indptr: Tensor
    """int64 [n + 1]; row i owns the entries indptr[i]:indptr[i + 1]."""
    indices: Tensor
    """int64 [nnz]: latent of each entry, in any order within a row, at most once."""
    values: Tensor
    """float [nnz]"""
    d_sae: int

    def dense(self) -> Tensor:
        """The same as a tensor [n d_sae]."""
        out = self.values.new_zeros(len(self.indptr) - 1, self.d_sae)
        return out.index_put((self.rows(), self.indices), self.values)

    def rows(self) -> Tensor:
        """int64 [nnz]: row of each entry."""
        return _rows(self.indptr, len(self.indices))


def top_k_reference(pre: Float[Tensor, "n d_sae"], k: int) -> Int[Tensor, "n k"]:
    """Indices of the k largest of each row, ascending; ties go to the lower index. The definition, slow."""
    order = torch.sort(pre, dim=1, descending=True, stable=True).indices[:, :k]
    return order.sort(dim=1).values


def top_k(pre: Float[Tensor, "n d_sae"], k: int, signed: bool = False) -> Int[Tensor, "n k"]:
    """Indices of the k largest of each row, in any order; ties at the boundary go to the lower index. signed:
    the largest of |pre|, of which no matrix is made."""
    d_sae = pre.shape[1]
    if k >= d_sae:
        return torch.arange(d_sae, device=pre.device).expand(pre.shape[0], d_sae)
    return dispatch.run("select.top_k", _top_k, pre, k, signed)


def _top_k(pre: Tensor, k: int, signed: bool) -> Tensor:
    """torch.topk leaves open which of several equal values it keeps. One value more than needed shows the
    rows where that matters (the k-th equals the next), and only these are selected again."""
    values, indices = _largest(pre, k + 1, signed)
    tied = values[:, k - 1] == values[:, k]
    indices = indices[:, :k]
    if tied.any():
        indices = indices.clone()
        indices[tied] = _top_k_of_tied(pre[tied].abs() if signed else pre[tied], k)
    return indices


def encode_top_k_reference(
    x: Float[Tensor, "n d_in"],
    W: Float[Tensor, "d_in d_sae"],
    b: Float[Tensor, " d_sae"],
    k: int,
    half: bool = False,
) -> tuple[Tensor, Tensor]:
    """(values, indices) [n k] of the k largest of each row of x @ W + b, in any order; ties go to the lower
    index. half: with the product in bfloat16, as under autocast. Of the product there are `PIECE` numbers
    at a time."""
    if half:
        b, W = b.bfloat16(), W.bfloat16()
    parts = []
    for rows in x.split(max(1, PIECE // W.shape[1])):
        pre = torch.addmm(b, rows.to(W.dtype), W).to(x.dtype)
        at = top_k(pre, k)
        parts.append((pre.gather(1, at), at))
    return torch.cat([values for values, _ in parts]), torch.cat([at for _, at in parts])


def encode_top_k(
    x: Float[Tensor, "n d_in"],
    W: Float[Tensor, "d_in d_sae"],
    b: Float[Tensor, " d_sae"],
    k: int,
    half: bool = False,
) -> tuple[Tensor, Tensor]:
    """The same, without the matrix where that is faster. Without gradient."""
    with torch.no_grad():
        return dispatch.run("select.encoded", encode_top_k_reference, x, W, b, k, half)


def top_k_csr(pre: Float[Tensor, "n d_sae"], k: int, signed: bool = False) -> tuple[Tensor, Tensor]:
    """The choice of `top_k` as (indptr [n + 1], indices).

    Where ranks share the latents, `pre` has this rank's columns and so has the result; k is of all columns
    and at most their number. The k largest of a row are among the k largest of each rank, whose values are
    all that is exchanged; joined in the order of latents, they are chosen from as one row.
    """
    n, d_sae = pre.shape
    at = top_k(pre, min(k, d_sae), signed)
    if dist.latents.size == 1:
        return torch.arange(0, at.numel() + 1, at.shape[1], device=pre.device), at.reshape(-1)
    at = at.sort(dim=1).values
    padding = int(dist.latents.most(torch.tensor(at.shape[1], device=at.device))) - at.shape[1]
    values = pre.gather(1, at).abs() if signed else pre.gather(1, at)
    values = dist.latents.gathered(F.pad(values, (0, padding), value=-torch.inf))
    joined = values.transpose(0, 1).reshape(n, -1)
    chosen = torch.zeros_like(joined, dtype=torch.bool).scatter_(1, top_k(joined, k), True)
    mine = chosen.view(n, len(values), -1)[:, dist.latents.rank, : at.shape[1]]
    return F.pad(mine.sum(1).cumsum(0), (1, 0)), at[mine]


def batch_top_k_reference(score: Float[Tensor, "n d_sae"], total: int) -> Int[Tensor, " kept"]:
    """Flat indices, ascending, of the `total` largest positive entries of the whole batch (all, where fewer
    are positive); ties go to the lower index. The definition, slow."""
    flat = score.reshape(-1)
    order = torch.sort(flat, descending=True, stable=True).indices[: min(total, int((flat > 0).sum()))]
    return order.sort().values


def batch_top_k(score: Float[Tensor, "n d_sae"], total: int) -> Int[Tensor, " kept"]:
    """Flat indices, ascending, of the `total` largest positive entries of the whole batch; ties as in the
    definition.

    Only what exceeds a bound is ranked, which a little more than `total` entries do. Where it lets too few
    pass, every positive entry is ranked instead, so the result is exact. Where ranks share the batch, `score`
    is this rank's part of it and so is the result.
    """
    flat = score.reshape(-1)
    if not total:
        return torch.empty(0, dtype=torch.int64, device=flat.device)
    bound = dist.ranks.least(dispatch.run("batch.guess", _guess, flat, total / dist.ranks.size))
    at = above(flat, bound)
    if dist.ranks.count(len(at)) < total and bound > 0:
        at = above(flat, 0)
    if dist.ranks.count(len(at)) <= total:
        return at
    values = flat[at]
    last = dist.ranks.kth_largest(values, total)
    keep = values > last
    ties = (values == last).nonzero()[:, 0]
    room = total - dist.ranks.count(int(keep.sum()))
    keep[ties[_first_of(at[ties] // score.shape[1], room, len(score))]] = True
    return at[keep]


def _guess(flat: Tensor, share: float) -> Tensor:
    """A bound that probably a little more than `share` entries exceed, from a strided sample."""
    sample = flat[::61]  # a prime: no latent is left out of the sample unless d_sae is a multiple of it
    rank = int(1.1 * share / 61 + 8 * (share / 61) ** 0.5) + 1
    if rank < len(sample) // 2:
        return sample.kthvalue(len(sample) - rank + 1).values.clamp_min(0)
    return flat.new_zeros(())


def column_top_k_reference(pre: Float[Tensor, "n d_sae"], m: Int[Tensor, " d_sae"]) -> Int[Tensor, " kept"]:
    """Flat indices, ascending, of the m_j largest positive entries of each column j (all, where fewer are
    positive); ties go to the lower row. The definition, slow."""
    rank = torch.sort(pre, dim=0, descending=True, stable=True).indices.argsort(0)
    return ((rank < m) & (pre > 0)).reshape(-1).nonzero()[:, 0]


def column_top_k(pre: Float[Tensor, "n d_sae"], m: Int[Tensor, " d_sae"]) -> Int[Tensor, " kept"]:
    """Flat indices, ascending, of the m_j largest positive entries of each column j, as in the definition."""
    last = column_order(pre, m)[0]
    keep = pre > last
    ties = (pre == last) & (last > 0)
    spare = m - keep.sum(0)
    crowded = (ties.sum(0) > spare).nonzero()[:, 0]
    if len(crowded):
        ties[:, crowded] &= ties[:, crowded].cumsum(0) <= spare[crowded]
    return (keep | ties).reshape(-1).nonzero()[:, 0]


def column_order(pre: Float[Tensor, "n d_sae"], m: Int[Tensor, " d_sae"]) -> tuple[Tensor, Tensor]:
    """(m_j-th, (m_j + 1)-th largest value, at least 0) of each column j: what is just kept, and what just
    not. Infinite, and the largest, where m_j is 0; 0 where there are no more.

    Columns with similar m are ranked together, so that few pay for a large m.
    """
    n, d_sae = pre.shape
    last, after = pre.new_zeros(d_sae), pre.new_zeros(d_sae)
    if not n:
        return last, after
    size = 1
    while size // 2 <= n:
        columns = ((m >= size // 2) & (m < size)).nonzero()[:, 0]  # of which size values are enough
        if len(columns):
            values = _largest(pre[:, columns].t().contiguous(), min(size, n))[0].clamp_min(0)
            values = F.pad(values, (1, max(0, size - n)))
            values[:, 0] = math.inf
            at = m[columns, None]
            last[columns], after[columns] = values.gather(1, at)[:, 0], values.gather(1, at + 1)[:, 0]
        size *= 2
    return last, after


def _first_of(rows: Int[Tensor, " ties"], room: int, n: int) -> Tensor:
    """Mask of the `room` ties with the lowest index among those of all ranks. rows: of this rank's ties,
    ascending."""
    place = torch.arange(len(rows), device=rows.device)
    if dist.rows.size > 1:
        counts = dist.rows.gathered(place.new_tensor([len(rows)]))[:, 0]
        place = place + counts[: dist.rows.rank].sum()
    if dist.latents.size > 1:  # in each row, those of lower ranks come first
        counts = dist.latents.gathered(torch.bincount(rows, minlength=n)).t()
        earlier = F.pad(counts.reshape(-1).cumsum(0), (1, 0))[:-1].view_as(counts)[:, dist.latents.rank]
        own = counts[:, dist.latents.rank]
        place = earlier[rows] + place - (own.cumsum(0) - own)[rows]
    return place < room


def above(pre: Float[Tensor, "n d_sae"], threshold: Tensor | float) -> Int[Tensor, " kept"]:
    """Flat indices, ascending, of the entries greater than a threshold ([] or [d_sae])."""
    return dispatch.run("batch.above", _above, pre, threshold)


def _above(pre: Tensor, threshold: Tensor | float) -> Tensor:
    on = (pre > threshold).reshape(-1)
    if on.device.type == "cpu":  # a quarter of the time of nonzero
        return torch.from_numpy(np.flatnonzero(on.numpy()))
    return on.nonzero()[:, 0]


def to_csr(flat: Int[Tensor, " kept"], n: int, d_sae: int) -> tuple[Tensor, Tensor]:
    """(indptr [n + 1], indices [kept]) of ascending flat indices into [n d_sae]."""
    starts = torch.arange(0, (n + 1) * d_sae, d_sae, device=flat.device)
    return torch.searchsorted(flat, starts), flat % d_sae


def largest(pre: Float[Tensor, "n d_sae"], k: int) -> Float[Tensor, "n k"]:
    """The k largest values of each row, descending."""
    return _largest(pre, k)[0]


def sparse_decode_reference(codes: Sparse, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "n d_in"]:
    """codes @ W_dec by the dense product."""
    return codes.dense() @ W_dec


def sparse_decode(codes: Sparse, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "n d_in"]:
    """codes @ W_dec, forward and both gradients in O(nnz * d_in)."""
    return _Decode.apply(codes.indptr, codes.indices, codes.values, W_dec)  # type: ignore[return-value]


def active_pre_reference(
    x: Float[Tensor, "n d_in"],
    b_in: Float[Tensor, " d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    indptr: Int[Tensor, " rows"],
    indices: Int[Tensor, " nnz"],
) -> Float[Tensor, " nnz"]:
    """((x - b_in) @ W_enc + b_enc) at the entries of a CSR pattern, by the dense product."""
    return ((x - b_in) @ W_enc + b_enc)[_rows(indptr, len(indices)), indices]


def active_pre(
    pre: Float[Tensor, "n d_sae"],
    x: Float[Tensor, "n d_in"],
    b_in: Float[Tensor, " d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    indptr: Int[Tensor, " rows"],
    indices: Int[Tensor, " nnz"],
) -> Float[Tensor, " nnz"]:
    """Pre-activations at a CSR pattern, read out of `pre` (already computed, without gradient), or, of one
    axis, these values themselves.

    The gradients for b_in, W_enc and b_enc come from the pattern alone in O(nnz * d_in), where autograd would
    multiply a dense [n d_sae] gradient that is zero nearly everywhere. x itself gets no gradient. x and the
    pattern may have several rows in turn for each row of `pre`.
    """
    return _ActivePre.apply(pre, x, b_in, W_enc, b_enc, indptr, indices)  # type: ignore[return-value]


def _largest(pre: Tensor, k: int, signed: bool = False) -> tuple[Tensor, Tensor]:
    """(values, indices) [n k] of the k largest of each row, descending; any choice among equals. signed: of
    |pre|.

    On CPU torch.topk is slow (its cost is that of the encoder product at d_in=128). The k largest of a row
    lie in the k groups with the largest maxima, and maxima of interleaved groups of eight are nearly free;
    they are ranked in the same way.
    """
    n, d_sae = pre.shape
    if pre.device.type != "cpu" or d_sae % 8 or d_sae // 8 < 2 * k or not pre.is_contiguous():
        return (pre.abs() if signed else pre).topk(k, dim=1)
    groups = pre.view(n, 8, d_sae // 8)
    # two passes over pre are cheaper than a matrix of |pre|
    most = torch.maximum(groups.amax(1), -groups.amin(1)) if signed else groups.amax(1)
    chosen = _largest(most, k)[1]
    candidates = groups.gather(2, chosen[:, None, :].expand(n, 8, k)).reshape(n, 8 * k)
    if signed:
        candidates = candidates.abs()
    values, at = candidates.topk(k, dim=1)
    return values, (at // k) * (d_sae // 8) + chosen.gather(1, at % k)


def _top_k_of_tied(pre: Tensor, k: int) -> Tensor:
    """top_k of rows in which the k-th value equals the next.

    Pre-activations that were rounded to bfloat16 are tied in every third row, nearly always by a few equals
    only: among somewhat more candidates than k the lower indices are found; longer ties go by the definition.
    """
    d_sae = pre.shape[1]
    values, indices = _largest(pre, min(2 * k + 32, d_sae))
    last = values[:, k - 1, None]
    order = torch.where(values > last, -1, torch.where(values == last, indices, d_sae))
    kept = indices.gather(1, order.topk(k, dim=1, largest=False).indices)
    long = values[:, -1:] == last
    if values.shape[1] < d_sae and long.any():
        kept[long[:, 0]] = top_k_reference(pre[long[:, 0]], k)
    return kept


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, indptr: Tensor, indices: Tensor, values: Tensor, W_dec: Tensor) -> Tensor:
        ctx.save_for_backward(indptr, indices, values, W_dec)
        return _bag(W_dec, indptr, indices, values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        indptr, indices, values, W_dec = ctx.saved_tensors
        grad = grads[0].contiguous()
        d_values = _sampled_product(grad, W_dec, indptr, indices) if ctx.needs_input_grad[2] else None
        d_W = None
        if ctx.needs_input_grad[3]:
            indptr_t, rows_t, order = _transpose(indptr, indices, len(W_dec))
            d_W = _bag(grad, indptr_t, rows_t, values[order])
        return None, None, d_values, d_W


class _ActivePre(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, x: Tensor, b_in: Tensor, W_enc: Tensor, b_enc: Tensor,
                indptr: Tensor, indices: Tensor) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, b_in, W_enc, indptr, indices)
        if pre.ndim == 1:
            return pre.clone()
        rows = _rows(indptr, len(indices))
        return pre[rows // (len(x) // max(1, len(pre)) or 1), indices]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, b_in, W_enc, indptr, indices = ctx.saved_tensors
        indptr_t, rows_t, order = _transpose(indptr, indices, W_enc.shape[1])
        weights = grads[0][order]
        # the gradient of b_enc is the column sums of the sparse gradient G; that of b_in is -W_enc @ (the
        # same sums)
        ones = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
        d_b_enc = _bag(ones, indptr_t, rows_t, weights)[:, 0]
        d_W = _bag(x - b_in, indptr_t, rows_t, weights).t() if ctx.needs_input_grad[3] else None
        d_b_in = -(W_enc @ d_b_enc) if ctx.needs_input_grad[2] else None
        return None, None, d_b_in, d_W, d_b_enc, None, None


def _rows(indptr: Tensor, nnz: int) -> Tensor:
    """int64 [nnz]: row of each entry. Its length is told, or a device would be waited for."""
    rows = torch.arange(len(indptr) - 1, device=indptr.device)
    return torch.repeat_interleave(rows, indptr.diff(), output_size=nnz)


def _bag(table: Tensor, indptr: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Row i of the result: the sum of weights[e] * table[indices[e]] over the entries e of row i."""
    return dispatch.run("rows.bag", _bag_of_torch, table, indptr, indices, weights)


def _bag_of_torch(table: Tensor, indptr: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(
        indices,
        table,
        indptr,
        mode="sum",
        per_sample_weights=weights.to(table.dtype),
        include_last_offset=True,
    )


def _transpose(indptr: Tensor, indices: Tensor, d_sae: int) -> tuple[Tensor, Tensor, Tensor]:
    """CSR to CSC: (indptr [d_sae + 1], row of each entry, order of the entries), rows ascending within a
    latent."""
    latents, order = torch.sort(indices.int(), stable=True)  # int32 sorts twice as fast
    starts = torch.arange(d_sae + 1, dtype=torch.int32, device=indices.device)
    return torch.searchsorted(latents, starts), _rows(indptr, len(indices))[order], order


def _sampled_product(a: Tensor, b: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
    """[nnz]: <a[row of e], b[indices[e]]> for every entry e of a CSR pattern."""
    return dispatch.run("rows.sampled_product", _sampled_product_of_torch, a, b, indptr, indices)


def _sampled_product_of_torch(a: Tensor, b: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
    if a.device.type == "cpu" and torch.backends.mkl.is_available() and len(indices):
        zeros = torch.zeros_like(indices, dtype=a.dtype)
        with warnings.catch_warnings():  # "CSR support is in beta", once a process
            warnings.simplefilter("ignore", UserWarning)
            pattern = torch.sparse_csr_tensor(
                indptr, indices, zeros, size=(len(a), len(b)), check_invariants=False
            )
        return torch.sparse.sampled_addmm(pattern, a, b.t(), beta=0.0).values()
    rows = _rows(indptr, len(indices))
    step = max(1, 2**22 // max(1, a.shape[1]))  # entries gathered at a time: 16 MB each of a and b
    pieces = [(a[rows[i : i + step]] * b[indices[i : i + step]]).sum(1) for i in range(0, len(indices), step)]
    return torch.cat(pieces) if pieces else a.new_zeros(0)
