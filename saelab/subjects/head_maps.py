"""The linear maps between heads and the stream, measured on the model's own modules.

    stream --norm--> what attention reads --W_V--> values --heads--> z --W_O--> --norm--> the stream
    stream --norm--> what the MLP reads                    what the MLP gives --norm--> the stream

A norm may be missing in any of these places. With the scale of a norm frozen all of it is linear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from saelab.subjects.direct import project
from saelab.subjects.gains import gain
from saelab.subjects.hooks import Site, main_tensor

if TYPE_CHECKING:
    from torch import Tensor, nn

LONGEST = 256
"""Tokens of the text on which what values are made of is measured."""


class Norm(NamedTuple):
    """y = gain * n + bias, with n = (x - mean) / s or x / s."""

    gain: Tensor
    """float64 [width]"""
    bias: Tensor
    """float64 [width]"""
    centred: bool


class LayerMaps(NamedTuple):
    """What one layer's heads read and write through; float64, on the CPU."""

    read: Tensor | None
    """[d_model kv_heads d_head]: value = x @ read + read_bias of what attention reads; None where values are
    not linear in it: they are normed, or mixed between positions"""
    read_bias: Tensor
    """[kv_heads d_head]"""
    write: Tensor
    """[heads d_head d_model]: z @ write + write_bias, before a norm behind it"""
    write_bias: Tensor
    """[d_model]"""
    norms: Mapping[str, Norm | None]
    """of "attn_in", "mlp_in", "attn_out" and "mlp_out", where it is known: the norm before or behind; None:
    there is none"""
    mlp_reads: str
    """where in the block the MLP reads the stream: "mid", "pre", or "" where that is not known"""


def measured(subject: Any) -> dict[int, LayerMaps]:
    """Layer -> its maps.

    Values are v = x W + b. Every position of a text asks for another coordinate of v in one backward pass,
    whose gradient at that position is a column of W; b is what is left of v. Both are tried on another text.
    """
    hooks = [f"blocks.{i}.attn.hook_in" for i in range(subject.n_layers)]
    n = min(LONGEST, subject.n_ctx)
    seen = subject.attend(subject.padded(_tokens(subject, n, 1)), hooks, grad=True)
    other = subject.attend(subject.padded(_tokens(subject, n, 2)), hooks)
    places = _places(subject, _tokens(subject, min(24, n), 3))
    found = {}
    for i, hook in enumerate(hooks):
        x, value = seen.run.acts[hook], seen.values[i]
        v, x1, v1 = _rows(value), other.run.acts[hook][0].double(), _rows(other.values[i]).double()
        columns = []
        for some in torch.arange(v.shape[1], device=v.device).split(len(v)):
            wanted = v[: len(some)].gather(1, some[:, None]).sum()
            columns.append(torch.autograd.grad(wanted, x, retain_graph=True)[0][0, : len(some)].double())
        read = torch.cat(columns).t()
        bias = (v.detach().double() - x[0].detach().double() @ read).mean(0)
        error = float((x1 @ read + bias - v1).norm() / v1.norm().clamp_min(1e-300))
        linear = error < (1e-3 if value.dtype.itemsize > 2 else 0.05)
        heads, d_head = seen.patterns[i].shape[1], value.shape[-1]
        out = subject._arch.points[f"blocks.{i}.attn.hook_z"].module
        unit = torch.eye(heads * d_head, dtype=torch.float64, device=v.device)
        norms, reads = places[i]
        found[i] = LayerMaps(
            read.unflatten(1, (-1, d_head)).cpu() if linear else None,
            bias.unflatten(0, (-1, d_head)).cpu(),
            project(out, unit.float()).double().unflatten(0, (heads, d_head)).cpu(),
            _constant(out, unit[:1].to(value.dtype)),
            norms,
            reads,
        )
    return found


def _tokens(subject: Any, n: int, seed: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(subject.d_vocab, (n,), generator=draw).tolist()]


def _rows(value: Tensor) -> Tensor:
    """[positions kv_heads * d_head]"""
    return value[0].transpose(0, 1).flatten(1)


def _constant(module: nn.Module, like: Tensor) -> Tensor:
    """What a linear layer gives of zeros."""
    with torch.no_grad():
        return module.forward(torch.zeros_like(like)[None])[0, 0].double().cpu()


def _places(subject: Any, ids: Sequence[Sequence[int]]) -> list[tuple[dict[str, Norm | None], str]]:
    """Of each layer the norms that lie before and behind its branches, and where its MLP reads the stream."""
    points, layers = subject._arch.points, subject._arch.layers
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(module: nn.Module, args: Any, named: dict[str, Any], output: Any) -> None:
        given, read = main_tensor(output)[0], main_tensor(args)[0]
        read = main_tensor(named)[0] if read is None else read
        if read is not None and given is not None and read.is_floating_point():
            seen.setdefault(module, (read.detach().clone(), given.detach().clone()))

    with ExitStack() as stack:
        for module in {m for layer in layers for m in layer.modules()}:
            stack.enter_context(module.register_forward_hook(keep, with_kwargs=True))
        subject.run(subject.padded(ids))
    return [_of_layer(i, layer, points, seen) for i, layer in enumerate(layers)]


def _of_layer(
    i: int, layer: nn.Module, points: Mapping[str, Site], seen: Mapping[nn.Module, tuple[Tensor, Tensor]]
) -> tuple[dict[str, Norm | None], str]:
    own = [(m, *seen[m]) for m in layer.modules() if m in seen]

    def at(name: str) -> Tensor | None:
        site = points.get(f"blocks.{i}.{name}")
        return None if site is None or site.module not in seen else seen[site.module][site.io != "in"]

    pre, added = at("hook_resid_pre"), at("hook_attn_out")
    middle = None if pre is None or added is None else pre + added.view(pre.shape)
    raw = seen.get(points[f"blocks.{i}.attn.hook_z"].module, (None, None))[1]
    norms: dict[str, Norm | None] = {}
    for name, start, end in (
        ("attn_in", pre, at("attn.hook_in")),
        ("mid", middle, at("mlp.hook_in")),
        ("pre", pre, at("mlp.hook_in")),
        ("attn_out", raw, at("hook_attn_out")),
        ("mlp_out", at("mlp.hook_out"), at("hook_mlp_out")),
    ):
        if start is not None and end is not None and start.numel() == end.numel():
            if _close(start, end):
                norms[name] = None
            elif (norm := _norm(own, start, end)) is not None:
                norms[name] = norm
    reads = next((name for name in ("mid", "pre") if name in norms), "")
    if reads:
        norms["mlp_in"] = norms[reads]
    return {name: norm for name, norm in norms.items() if name not in ("mid", "pre")}, reads


def _close(a: Tensor, b: Tensor) -> bool:
    a, b = a.double().flatten(), b.double().flatten()
    return bool((a - b).norm() <= 64 * torch.finfo(torch.float32).eps * b.norm())


def _norm(own: Sequence[tuple[nn.Module, Tensor, Tensor]], start: Tensor, end: Tensor) -> Norm | None:
    """The norm that makes `end` of `start`, of the modules of a layer with what they read and gave."""
    for module, read, given in own:
        if given.numel() != end.numel() or read.shape != given.shape or not _close(given, end):
            continue
        if not _close(read, start):
            continue
        try:
            by, plus = (each.double().cpu() for each in gain(module, given))
        except Exception:  # of a module that is no norm
            continue
        x, y = (each.double().cpu().flatten(0, -2) for each in (read, given))
        if by.shape == y.shape[-1:]:
            # of rows whose mean is next to nothing both pass, and one is exact
            norm = max((Norm(by, plus, centred) for centred in (False, True)), key=lambda e: _like(e, x, y))
            if _like(norm, x, y) > 1 - 1e-5:
                return norm
    return None


def _like(norm: Norm, x: Tensor, y: Tensor) -> float:
    """How nearly it gives y of x, but for a factor of each row: 1, exactly; of the worst row."""
    n = norm.gain * (x - x.mean(-1, keepdim=True) if norm.centred else x)
    return float(torch.cosine_similarity(n, y - norm.bias, dim=-1).min())


__all__ = ["LayerMaps", "Norm", "measured"]
