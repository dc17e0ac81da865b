"""The direct path from the residual stream to the logits, measured on the model's own last steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.func import functional_call

from saelab.types import ShapeError, SubjectError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

SMALL = 0.5
"""Of the head's output, where the logits' own scale is measured: far below where soft caps bend."""

VOCABULARY = 2**14
"""Rows of the output embeddings that are held in float32 at a time."""


def project(module: torch.nn.Module, vectors: Tensor) -> Tensor:
    """The linear part of a module with a bias, in float32 where its weights are in half precision.

    Args:
        module: A linear layer of any class.
        vectors: [n d_in].

    Returns:
        [n d_out], of the dtype and device of vectors.
    """
    own = next(module.parameters())
    half = (torch.float16, torch.bfloat16)
    whole = {name: p.float() for name, p in module.named_parameters() if p.dtype in half}
    inputs = vectors.to(own.device, torch.float32 if own.dtype in half else own.dtype)
    with torch.no_grad():
        out, zero = (functional_call(module, whole, x) for x in (inputs, torch.zeros_like(inputs[:1])))
    return (out - zero).to(vectors)


@dataclass(frozen=True)
class Tail:
    """The linear part of what follows the last block: logits = scale * (x @ to_head) @ W_U."""

    to_head: Tensor
    """float32 [d_model d_head]: of the final norm, and of what else precedes the head"""
    scale: Tensor
    """float32 [d_vocab]: what the head's outputs are multiplied by"""

    def __call__(self, vectors: Tensor, W_U: Tensor) -> Tensor:
        """[n d_model] -> [n d_vocab], in the dtype of vectors; W_U: [d_vocab d_head].

        Half precision is that of weights alone: it would order tokens by its rounding.
        """
        d = self.to_head.shape[0]
        if vectors.ndim != 2 or vectors.shape[1] != d:
            message = f"Vectors of the stream must be [n {d}]. Got {list(vectors.shape)}. Pass this model's."
            raise ShapeError(message)
        h = (vectors.float() @ self.to_head.to(vectors.device)).to(W_U.device)
        logits = torch.cat([h @ some.float().t() for some in W_U.split(VOCABULARY)], 1)
        return (logits * self.scale.to(logits.device)).to(vectors.device, vectors.dtype)


def measure(subject: Any) -> Tail:
    """By derivatives, whatever the norm is called and whatever scales the logits.

    A final norm is N(x) = L x / s(x), s(x) the root mean square of x, of which LayerNorm takes the mean
    first. At x0 of mean 0 and mean square 1 both have dN(v) = L v - mean(x0 v) L x0, so that
    L v = dN(v) + mean(x0 v) N_odd(x0), with N_odd the part that changes its sign with x0 (a norm's bias does
    not). Without a norm dN is L. dN comes from one backward pass in which each position asks for another
    coordinate of the head's input, and L is tried on another stream. The scale is the ratio of two logits to
    the head's outputs put in their place; a soft cap does not count, since it is the identity where logits
    are small.

    Raises:
        SubjectError: The model never calls its output embeddings, does more than norm the stream before, or
            reads something else than the stream there.
    """
    head: Any = subject.model.get_output_embeddings()  # type: ignore[operator]
    hook = f"blocks.{subject.n_layers - 1}.hook_resid_post"
    d = subject.width(hook)
    x0, x1 = torch.randn(2, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x0, x1 = ((x - x.mean()) / x.std(correction=0) for x in (x0, x1))
    x0 = x0.to(subject.device, next(subject.module.parameters()).dtype)

    def odd_of(x: Tensor, token: int = 0) -> Tensor:
        with torch.no_grad():
            up, down = (_head_input(subject, sign * x[None], token) for sign in (1, -1))
            return (up - down)[0].float() / 2

    odd = odd_of(x0)
    rows = []
    for some in torch.arange(len(odd), device=x0.device).split(subject.n_ctx):
        x = x0.expand(len(some), d).clone().requires_grad_()
        with torch.enable_grad():
            wanted = _head_input(subject, x).gather(1, some[:, None]).sum()
        rows.append(torch.autograd.grad(wanted, x)[0].float())
    derivative = torch.cat(rows).t()
    # of what is normed, twice as much is the same
    normed = bool((odd_of(2 * x0) - odd).norm() < 0.5 * odd.norm())
    to_head = derivative + x0.float()[:, None] / d * odd if normed else derivative
    expected, elsewhere = odd_of(x1.to(x0)), odd_of(x1.to(x0), 1)
    if not (elsewhere - expected).norm() < 1e-3 * expected.norm():
        message = (
            "A logit lens needs a model whose logits follow from the stream after its last block. Got "
            f"{type(subject.model).__name__}, which reads what came before it again. "
            "Compute logits from Run.output instead."
        )
        raise SubjectError(message)
    error = float((x1.to(to_head) @ to_head - expected).norm() / expected.norm())
    if not error < (1e-2 if x0.dtype.itemsize > 2 else 0.1):
        message = (
            "A logit lens needs a model that norms the stream, or does nothing, between its last block and "
            f"its output embeddings. Got {type(subject.model).__name__}, where the linear part is off by "
            f"{error:.2g}. Compute logits from Run.output instead."
        )
        raise SubjectError(message)
    return Tail(to_head.detach(), _scale(subject, head))


def _head_input(subject: Any, x: Tensor, token: int = 0) -> Tensor:
    """What the head reads [n d_head] where the last block gives x [n d], of a text of one token."""
    head: Any = subject.model.get_output_embeddings()
    hook, seen = f"blocks.{subject.n_layers - 1}.hook_resid_post", []
    ids = subject.padded([[token] * len(x)])
    with head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        subject.run(ids, edits=[(hook, lambda acts: x[None].to(acts.dtype))], grad=x.requires_grad)
    if not seen:
        message = (
            "A logit lens needs a model that calls its output embeddings. Got "
            f"{type(subject.model).__name__}, which does not. Compute logits from Run.output instead."
        )
        raise SubjectError(message)
    return seen[-1].reshape(len(x), -1)


class End(NamedTuple):
    """What follows one row x of the stream after the last block, the scale of the final norm frozen there:
    logits, before a soft cap, are scale * (W_U (x @ to_head + constant) + bias)."""

    to_head: Tensor
    """float64 [d_model d_head]"""
    constant: Tensor
    """float64 [d_head]"""
    W_U: Tensor
    """[d_vocab d_head]"""
    scale: Tensor
    """float64 [d_vocab]"""
    bias: Tensor
    """float64 [d_vocab]"""

    def readings(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(w float64 [n d_model], c [n]): of each token the logit less the mean logit is w . x + c.

        Args:
            ids: Of the tokens.
        """
        mean = (self.scale.to(self.W_U.device, torch.float32) @ self.W_U.float()).double().cpu()
        own = self.W_U[list(ids)].double().cpu() * self.scale[list(ids), None] - mean / len(self.scale)
        bias = self.scale * self.bias
        return own @ self.to_head.t(), own @ self.constant + bias[list(ids)] - bias.mean()


def end_at(subject: Any, tail: Tail, x: Tensor) -> End:
    """What follows a row of the stream: the norm's odd part tells its scale, the even part its bias.

    Args:
        subject: The model.
        tail: Its linear part.
        x: float64 [d_model].

    Raises:
        SubjectError: It is not what the tail says.
    """
    head: Any = subject.model.get_output_embeddings()
    like = next(subject.module.parameters())
    with torch.no_grad():
        up, down = (_head_input(subject, sign * x[None].to(like))[0].double().cpu() for sign in (1, -1))
        bias = head.forward(torch.zeros_like(head.weight[:1])).double().cpu()[0]
    to_head = tail.to_head.double().cpu()
    odd, plain = (up - down) / 2, x @ to_head
    scale = (odd @ plain) / (plain @ plain).clamp_min(1e-300)
    if not (plain * scale - odd).norm() <= 1e-3 * odd.norm():
        message = (
            "What follows the last block must be a norm, or nothing. Got "
            f"{type(subject.model).__name__}, where it is something else. Use dfa on an SAE instead."
        )
        raise SubjectError(message)
    return End(to_head * scale, (up + down) / 2, head.weight.detach(), tail.scale.double().cpu(), bias)


def _scale(subject: Any, head: Any) -> Tensor:
    """[d_vocab]"""

    def small(_: Any, __: Any, out: Tensor) -> Tensor:
        signs = out.new_tensor([SMALL, -SMALL])
        return signs[:, None, None].expand_as(out)

    with torch.no_grad(), head.register_forward_hook(small):
        out: Any = subject.run(subject.padded([[0], [0]])).output
    return (out[0, 0] - out[1, 0]).float() / (2 * SMALL)


__all__ = ["End", "Tail", "end_at", "measure", "project"]
