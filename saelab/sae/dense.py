"""Dense arithmetic of a training step: each function beside its plain formula, which it equals.

What they save is memory traffic: results lie in memory that is kept from step to step (`saelab.sae.memory`),
passes over the matrix are few, and gradients that follow from small ones are not products of large ones. The
plain formula is what runs outside of a training step, and where a gradient is to be differentiated again.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.sae import dispatch, memory


def product(
    x: Float[Tensor, "n d_in"], W: Float[Tensor, "d_in d_sae"], b: Float[Tensor, " d_sae"]
) -> Float[Tensor, "n d_sae"]:
    """x @ W + b. In a training step without gradient: see `affine`."""
    if torch.is_grad_enabled() or not memory.active():
        return torch.addmm(b, x, W)
    return torch.addmm(b, x, W, out=memory.empty(x, len(x), W.shape[1]))


def affine(
    pre: Float[Tensor, "n d_sae"],
    x: Float[Tensor, "n d_in"],
    b_in: Float[Tensor, " d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
) -> Float[Tensor, "n d_sae"]:
    """(x - b_in) @ W_enc + b_enc, which `pre` is already, with gradients for b_in, W_enc and b_enc.

    That of b_in is -W_enc @ (the sum of the rows' gradients), not a product of the whole gradient. x itself
    gets none.
    """
    return _Affine.apply(pre, x, b_in, W_enc, b_enc)  # type: ignore[return-value]


def decode(codes: Float[Tensor, "n d_sae"], W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "n d_in"]:
    """codes @ W_dec."""
    return _Decode.apply(codes, W_dec) if memory.active() else codes @ W_dec  # type: ignore[return-value]


def column_sums(codes: Float[Tensor, "n d_sae"]) -> Float[Tensor, " d_sae"]:
    """codes.sum(0)."""
    return _ColumnSums.apply(codes) if memory.active() else codes.sum(0)  # type: ignore[return-value]


def relu(pre: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_sae"]:
    """pre.relu()."""
    return _Relu.apply(pre) if memory.active() else pre.relu()  # type: ignore[return-value]


def gated(
    pre: Float[Tensor, "n d_sae"],
    gate: Float[Tensor, "n d_sae"],
    scale: Float[Tensor, " d_sae"],
    bias: Float[Tensor, " d_sae"],
) -> Float[Tensor, "n d_sae"]:
    """relu(scale * pre + bias) where gate > 0, else 0. The gate gets no gradient."""
    if memory.active() or not torch.is_grad_enabled():
        return _Gated.apply(pre, gate.detach(), scale, bias)  # type: ignore[return-value]
    return torch.where(gate > 0, (scale * pre + bias).relu(), 0.0)


def jump(pre: Tensor, threshold: Tensor, bandwidth: float, to_input: bool = False) -> Tensor:
    """pre where it exceeds the threshold, else 0; the gradients of `sparsifiers.JumpReLU`. Any shape to which
    the threshold can be broadcast. to_input: whether the box gives pre its gradient too."""
    return _Jump.apply(pre, threshold, bandwidth, to_input)  # type: ignore[return-value]


def step(pre: Tensor, threshold: Tensor, bandwidth: float, to_input: bool = False) -> Tensor:
    """1 where pre exceeds the threshold, else 0; likewise, without to_input with a gradient for the threshold
    alone."""
    return _Step.apply(pre, threshold, bandwidth, to_input)  # type: ignore[return-value]


@torch.no_grad()
def fired(codes: Float[Tensor, "n d_sae"]) -> Int[Tensor, " d_sae"]:
    """(codes != 0).sum(0): on how many rows each latent is on."""
    if len(codes) > 2**24 or not codes.is_floating_point():  # float32 counts no further
        return (codes != 0).sum(0)
    # sums of bools are slow: 20 times as slow as the comparison
    on = torch.ne(codes, 0, out=memory.empty(codes))
    return on.sum(0).long()


def _where_positive(values: Tensor, gate: Tensor, out: Tensor | None = None) -> Tensor:
    """values where gate > 0, else 0, of one shape. On CPU torch.where takes ten times as long."""
    if torch.is_grad_enabled():
        return torch.where(gate > 0, values, 0.0)
    out = memory.empty(gate) if out is None else out
    return torch.ops.aten.threshold_backward.grad_input(values, gate, 0, grad_input=out)


def _in_box(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """1 where |pre - threshold| < bandwidth / 2, else 0."""
    if torch.is_grad_enabled():
        return (((pre - threshold) / bandwidth).abs() < 0.5).to(pre.dtype)
    return torch.sub(pre, threshold, out=memory.empty(pre)).div_(bandwidth).abs_().lt_(0.5)


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, x: Tensor, b_in: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
        ctx.save_for_backward(x, b_in, W_enc)
        return pre.view_as(pre)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, b_in, W_enc = ctx.saved_tensors
        grad = grads[0]
        d_b_enc = grad.sum(0)
        d_W = (grad.t() @ (x - b_in)).t() if ctx.needs_input_grad[3] else None
        d_b_in = -(W_enc @ d_b_enc) if ctx.needs_input_grad[2] else None
        return None, None, d_b_in, d_W, d_b_enc


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codes: Tensor, W_dec: Tensor) -> Tensor:
        ctx.save_for_backward(codes, W_dec)
        return codes @ W_dec

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        codes, W_dec = ctx.saved_tensors
        grad, d_codes = grads[0], None
        if ctx.needs_input_grad[0]:
            out = None if torch.is_grad_enabled() else memory.empty(codes)
            d_codes = torch.mm(grad, W_dec.t(), out=out)
        return d_codes, codes.t() @ grad if ctx.needs_input_grad[1] else None


class _ColumnSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codes: Tensor) -> Tensor:
        ctx.save_for_backward(codes)
        return codes.sum(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (codes,) = ctx.saved_tensors
        whole = grads[0].expand_as(codes)
        # written out, autograd adds the other gradients of the codes in place
        return whole if torch.is_grad_enabled() else memory.empty(codes).copy_(whole)


class _Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor) -> Tensor:
        codes = torch.clamp_min(pre, 0, out=memory.empty(pre))
        ctx.save_for_backward(codes)
        return codes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _where_positive(grads[0], ctx.saved_tensors[0])


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, gate: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        size = torch.mul(pre, scale, out=memory.empty(pre)).add_(bias).clamp_min_(0)
        codes = _where_positive(size, gate, out=size)
        ctx.save_for_backward(pre, scale, codes)
        return codes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre, scale, codes = ctx.saved_tensors
        d_size = _where_positive(grads[0], codes)
        d_bias = d_size.sum(0)
        if torch.is_grad_enabled():
            return d_size * scale, None, (d_size * pre).sum(0), d_bias
        d_scale = torch.mul(d_size, pre, out=memory.empty(pre)).sum(0)
        return d_size.mul_(scale), None, d_scale, d_bias


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float, to_input: bool) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input
        return _exceeding(pre, pre, threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        if not (ctx.needs_input_grad[1] or ctx.to_input):
            return _exceeding(grads[0], pre, threshold), None, None, None
        return *_back(grads[0], pre, threshold, ctx.bandwidth, ctx.to_input, True), None, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float, to_input: bool) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input
        return torch.gt(pre, threshold, out=memory.empty(pre))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pre, threshold = ctx.saved_tensors
        return *_back(grads[0], pre, threshold, ctx.bandwidth, ctx.to_input, False), None, None


def _back(*given: Any) -> tuple[Tensor | None, Tensor]:
    """`_gradients`, by whichever way is faster here."""
    _, pre, threshold, *_ = given
    alike = threshold.shape == pre.shape[-1:]
    return dispatch.run("steps.jump_gradients", _gradients, *given) if alike else _gradients(*given)


def _gradients(
    grad: Tensor, pre: Tensor, threshold: Tensor, bandwidth: float, to_input: bool, whole: bool
) -> tuple[Tensor | None, Tensor]:
    """(of pre, of the threshold) of `jump`, or, not whole, of `step`. None is 0."""
    d_pre = _exceeding(grad, pre, threshold) if whole else None
    box = _in_box(pre, threshold, bandwidth)
    inside = grad * box if torch.is_grad_enabled() else box.mul_(grad)
    summed = inside.sum_to_size(threshold.shape)
    if d_pre is None:
        return inside / bandwidth if to_input else None, summed / -bandwidth
    if to_input:
        d_pre = d_pre + inside * (threshold / bandwidth)
    return d_pre, summed * (-threshold / bandwidth)


def _exceeding(values: Tensor, pre: Tensor, threshold: Tensor) -> Tensor:
    """values where pre > threshold, else 0."""
    if threshold.shape == pre.shape[-1:] and values.shape == pre.shape:
        return dispatch.run("steps.exceeding", _exceeding_of_torch, values, pre, threshold)
    return _exceeding_of_torch(values, pre, threshold)


def _exceeding_of_torch(values: Tensor, pre: Tensor, threshold: Tensor) -> Tensor:
    """The sign of a difference is exact, whatever it rounds to."""
    if torch.is_grad_enabled():
        return torch.where(pre > threshold, values, 0.0)
    difference = torch.sub(pre, threshold, out=memory.empty(pre))
    return torch.ops.aten.threshold_backward.grad_input(values, difference, 0, grad_input=difference)
