"""Which hook points of the residual stream a model has, shown by the identities that they stand for.

    resid_pre + attn_out = resid_mid        resid_mid + mlp_out = resid_post
    or, where both branches read the same stream,    resid_pre + attn_out + mlp_out = resid_post

Before an MLP that has a norm of its own lie two more, as TransformerLens names them: hook_mlp_in, what the
norm reads, of which an edit reaches the MLP alone, and ln2.hook_normalized, what the norm gives before its
gain and bias. An MLP without a norm has the first.

Names of attributes do not say whether a norm, a factor or another branch lies between: one pass does. What
does not hold is no hook point, and the reason is what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from saelab.subjects.gains import divides_out, normalised
from saelab.subjects.hooks import Site, View, main_tensor

if TYPE_CHECKING:
    from torch import Tensor, nn

PRE, ATTENTION, MID, MLP, POST = (
    f"hook_{name}" for name in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
)
ENTRY, MLP_IN, NORMALISED = "mlp.hook_in", "hook_mlp_in", "ln2.hook_normalized"
NOISE = 0.1
"""Of the stream's size: what is added where the middle is seen, to see that the stream gets it."""


class Settled(NamedTuple):
    """What the points of one block turned out to be."""

    middle: nn.Module | None
    """reads the stream between attention and MLP"""
    missing: dict[str, str]
    """name without the block's -> why it is no hook point"""


def settle(
    layers: Sequence[nn.Module], points: Mapping[str, Site], view: View, forward: Callable[[], Any]
) -> tuple[dict[str, Site], dict[str, str]]:
    """The hook points that are what their names say.

    Args:
        layers: the blocks.
        points: name -> site, in the order of the pass; those of the stream are tried, the rest is kept.
        view: from a module's own tensor to [samples, positions, width].
        forward: one pass over a few tokens.

    Returns:
        The hook points with the middles of the stream, and why others do not exist.
    """
    values, reads, given = _pass(layers, points, view, forward, {})
    blocks = [_settled(values[i], reads[i]) for i in range(len(layers))]
    entries = [_entry(points, i, reads[i], given[i]) for i in range(len(layers))]
    for block, (_, missing) in zip(blocks, entries, strict=True):
        block.missing.update(missing)
    middles = {i: block.middle for i, block in enumerate(blocks) if block.middle is not None}
    shaken = _pass(layers, points, view, forward, middles)[0] if middles else []
    for i in middles:
        own, sound = shaken[i], MLP in values[i] and MLP not in blocks[i].missing
        if sound and not _adds((own[MID], own[MLP]), own[POST]):
            blocks[i].missing[MID] = (
                "an edit where the MLP reads the stream does not reach what goes around it"
            )
    told = ((f"blocks.{i}.{name}", why) for i, b in enumerate(blocks) for name, why in b.missing.items())
    missing = dict(told)
    out: dict[str, Site] = {}
    for name, site in points.items():
        block, _, own = name.removeprefix("blocks.").partition(".")
        middle = f"blocks.{block}.{MID}"
        if own in ("mlp.hook_in", POST) and middle not in out and middle not in missing:
            if (module := middles.get(int(block))) is not None:
                out[middle] = Site(module, "in", in_place=True)
        if own == ENTRY:
            out |= {f"blocks.{block}.{name}": site for name, site in entries[int(block)][0].items()}
        if name not in missing:
            out[name] = site
    return out, missing


def _pass(
    layers: Sequence[nn.Module],
    points: Mapping[str, Site],
    view: View,
    forward: Callable[[], Any],
    middles: Mapping[int, nn.Module],
) -> tuple[list[dict[str, Tensor]], list[list[tuple[nn.Module, Tensor]]], list[dict[nn.Module, Tensor]]]:
    """The values of each block by name, and what each module in it reads and gives. What `middles` read is
    shaken first, in place, and counted as the middle; what modules read and give is then left out."""
    values: list[dict[str, Tensor]] = [{} for _ in layers]
    reads: list[list[tuple[nn.Module, Tensor]]] = [[] for _ in layers]
    given: list[dict[nn.Module, Tensor]] = [{} for _ in layers]

    def keep(i: int, name: str, shake: bool = False) -> Any:
        def fn(*told: Any) -> None:
            value = main_tensor(told[-1])[0]
            if value is None or name in values[i]:
                return
            if shake:
                draw = torch.Generator().manual_seed(i)
                noise = torch.randn(value.shape, generator=draw).to(value)
                value.add_(noise * NOISE * value.abs().mean())
            values[i][name] = view.to(value).detach().clone()

        return fn

    def enter(i: int) -> Any:
        def fn(module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
            value = main_tensor(inputs or named.get("hidden_states"))[0]
            if value is not None and value.is_floating_point():
                reads[i].append((module, view.to(value).detach().clone()))

        return fn

    def leave(i: int) -> Any:
        def fn(module: nn.Module, inputs: Any, output: Any) -> None:
            value = main_tensor(output)[0]
            if value is not None and value.is_floating_point():
                given[i].setdefault(module, view.to(value).detach().clone())

        return fn

    with ExitStack() as stack:
        for i, block in enumerate(layers):
            for child in () if middles else block.children():  # known from the first pass
                stack.enter_context(child.register_forward_pre_hook(enter(i), with_kwargs=True))
                stack.enter_context(child.register_forward_hook(leave(i)))
            for name in (PRE, ATTENTION, MLP, POST):
                site = points.get(f"blocks.{i}.{name}")
                if site is not None:
                    at = site.module
                    register = at.register_forward_pre_hook if site.io == "in" else at.register_forward_hook
                    stack.enter_context(register(keep(i, name)))
            if i in middles:
                stack.enter_context(middles[i].register_forward_pre_hook(keep(i, MID, shake=True)))
        with torch.no_grad():
            forward()
    return values, reads, given


def _entry(
    points: Mapping[str, Site],
    i: int,
    reads: Sequence[tuple[nn.Module, Tensor]],
    given: Mapping[nn.Module, Tensor],
) -> tuple[dict[str, Site], dict[str, str]]:
    """(the points before the MLP, why others are none)"""
    entry, attention = (points.get(f"blocks.{i}.{name}") for name in (ENTRY, "attn.hook_in"))
    first: dict[nn.Module, Tensor] = {}
    for module, value in reads:
        first.setdefault(module, value)
    if entry is None or entry.module not in first:
        return {}, {}
    own, value = entry.module, first[entry.module]
    other = first.get(attention.module) if attention is not None else None
    if other is not None and _same(other, value):
        shared = "attention reads what the MLP reads"
        return {}, {NORMALISED: shared, MLP_IN: shared}
    found = next((m for m, out in given.items() if m is not own and m in first and _same(out, value)), None)
    if found is None:
        return {MLP_IN: Site(own, "in")}, {NORMALISED: "no norm gives what the MLP reads"}
    before = {MLP_IN: Site(found, "in")}
    if not divides_out(found, first[found], given[found]):
        return before, {NORMALISED: "what its norm gives cannot be divided by a gain"}
    return before | {NORMALISED: Site(found, inner=normalised(found))}, {}


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _settled(values: Mapping[str, Tensor], reads: Sequence[tuple[nn.Module, Tensor]]) -> Settled:
    pre, post = values.get(PRE), values.get(POST)
    if pre is None or post is None or pre.ndim != 3 or pre.shape != post.shape:
        lanes = "its blocks pass on something else than one stream [samples, positions, width]"
        return Settled(None, dict.fromkeys((PRE, ATTENTION, MID, MLP, POST), lanes))
    branches = [values.get(name) for name in (ATTENTION, MLP)]
    attention, mlp = (v if v is not None and v.shape == pre.shape else None for v in branches)
    reads = [(module, value) for module, value in reads if value.shape == pre.shape]
    found = None
    if attention is not None:
        found = next((r for r in reads if _adds((pre, attention), r[1])), None)
        if found is None and _adds((pre, attention, *(() if mlp is None else (mlp,))), post):
            return Settled(None, {MID: "its blocks run attention and MLP in parallel"})
    if found is None and mlp is not None:
        found = next((r for r in reads if _adds((post, -mlp), r[1])), None)
    if found is None and attention is not None:
        found = next((r for r in reads if _factor(pre, attention, r[1])), None)
    if found is None:
        nothing = "nothing in its blocks reads the stream between attention and MLP"
        return Settled(None, dict.fromkeys((ATTENTION, MID, MLP), nothing))
    missing: dict[str, str] = {}
    for name, before, branch, after in ((ATTENTION, pre, attention, found[1]), (MLP, found[1], mlp, post)):
        if branch is None or not _adds((before, branch), after):
            factor = None if branch is None else _factor(before, branch, after)
            missing[name] = (
                "what it gives is not what the stream gets there"
                if factor is None
                else f"what it gives is multiplied by {factor:.3g} before the stream gets it"
            )
    return Settled(found[0], missing)


def _adds(summands: Sequence[Tensor], total: Tensor) -> bool:
    """Whether these are the sum, but for rounding in the subject's dtype: the stream may be thousands of
    times as large as what is added to it."""
    size = torch.stack([each.abs() for each in summands]).sum(0)
    error = (sum(summands[1:], summands[0]) - total).abs()
    return bool((error <= 16 * torch.finfo(total.dtype).eps * (size + size.mean())).all())


def _factor(before: Tensor, branch: Tensor, after: Tensor) -> float | None:
    """c where before + c * branch = after, and c is neither 0 nor 1; else None."""
    added, branch = (after.double() - before.double()), branch.double()
    c = float((added * branch).sum() / branch.square().sum().clamp_min(1e-300))
    same = (added - c * branch).norm() <= 1e-2 * added.norm()
    return c if abs(c) > 1e-3 and abs(c - 1) > 1e-2 and bool(same) else None


__all__ = ["settle"]
