"""Forward hooks that read and edit: the one place that knows what modules take and return.

`run_hooked` runs a forward pass with hooks on `Site`s and removes them whatever happens. Libraries differ in
what a module returns (a tensor, a tuple, a dict, a ModelOutput; transformers 5 returns a bare tensor where 4
returned a tuple); `main_tensor` finds the tensor that is meant and can put another in its place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from saelab.types import HookError, HookPoint, ShapeError

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Site:
    """One side of one module.

    in_place: write edits into the tensor itself. Needed where the residual stream is seen as the input of a
    norm (`hook_resid_mid`): the skip connection holds the same tensor and must see the edit too.
    """

    module: nn.Module
    io: str = "out"
    in_place: bool = False
    view: View | None = None
    """Where it differs from the subject's own."""


class View(NamedTuple):
    """Between a module's own tensor and the canonical [samples, positions, width]."""

    to: Callable[[Tensor], Tensor]
    back: Callable[[Tensor, Tensor], Tensor]
    """(canonical, the module's own tensor) -> a tensor of the module's own shape."""


class Traffic(NamedTuple):
    """What happens at a site during one pass: `edits` in order, then reading under each name of `names`."""

    site: Site
    names: tuple[str, ...]
    edits: tuple[Edit, ...]


class _Stop(BaseException):
    """All has been read. A BaseException, so that no `except Exception` of a model swallows it."""


def main_tensor(value: Any) -> tuple[Tensor | None, Callable[[Tensor], Any]]:
    """The first tensor of a tensor, tuple, list, mapping or ModelOutput, and how to put another there."""
    if isinstance(value, Tensor):
        return value, lambda new: new
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, Tensor):
                return item, lambda new, key=key: _with_item(value, key, new)
    elif isinstance(value, (tuple, list)):
        for i, item in enumerate(value):
            if isinstance(item, Tensor):
                return item, lambda new, i=i: _with_index(value, i, new)
    return None, lambda new: new


def all_tensors(value: Any) -> list[Tensor]:
    """Every tensor of nested tuples, lists, mappings and ModelOutputs, in order."""
    if isinstance(value, Tensor):
        return [value]
    items = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    )
    return [tensor for item in items for tensor in all_tensors(item)]


def normalise_edits(edits: Any) -> list[tuple[HookPoint, Edit]]:
    """(hook point, callable) of objects with a `.hook` or pairs (hook, callable): one or a sequence."""
    if callable(edits) or (
        isinstance(edits, tuple) and len(edits) == 2 and isinstance(edits[0], (str, HookPoint))
    ):
        edits = [edits]
    pairs = []
    for edit in edits:
        if isinstance(edit, tuple) and len(edit) == 2 and callable(edit[1]):
            pairs.append((HookPoint.of(edit[0]), edit[1]))
        elif callable(edit) and isinstance(getattr(edit, "hook", None), (str, HookPoint)):
            pairs.append((HookPoint.of(edit.hook), edit))
        else:
            msg = (
                "An edit must be a callable with a `.hook`, or a pair (hook, callable). "
                f"Got {edit!r}. Pass edits=[('blocks.0.hook_resid_post', lambda acts: ...)]."
            )
            raise HookError(msg)
    return pairs


def normalise_reads(read: Any) -> list[HookPoint]:
    """Hook points of one name, one HookPoint, or a sequence of either; repeated ones once."""
    hooks = [HookPoint.of(h) for h in ([read] if isinstance(read, (str, HookPoint)) else read)]
    unique = list(dict.fromkeys(hooks))
    names = [h.name for h in unique]
    for name in names:
        if len({h.io for h in unique if h.name == name}) > 1:
            msg = (
                f"One pass reads one side of a module. Got {name!r} with io='in' and io='out'. "
                "Read them in two passes."
            )
            raise HookError(msg)
    return list({h.name: h for h in unique}.values())


def plan(
    reads: Iterable[HookPoint], edits: Iterable[tuple[HookPoint, Edit]], site: Callable[[HookPoint], Site]
) -> list[Traffic]:
    """Reads and edits gathered by site, so that each site carries one hook and the order of edits is kept."""
    sites: dict[tuple[int, str, bool], tuple[Site, list[str], list[Edit]]] = {}
    for hook in reads:
        s = site(hook)
        sites.setdefault((id(s.module), s.io, s.in_place), (s, [], []))[1].append(hook.name)
    for hook, edit in edits:
        s = site(hook)
        sites.setdefault((id(s.module), s.io, s.in_place), (s, [], []))[2].append(edit)
    return [Traffic(s, tuple(names), tuple(fns)) for s, names, fns in sites.values()]


Visit = Callable[[int, Tensor], Tensor]


def run_hooked(
    forward: Callable[[], Any],
    traffic: Sequence[Traffic],
    view: View,
    *,
    output: bool = True,
    grad: bool = False,
) -> tuple[dict[str, Tensor], Any]:
    """`run_visited` by hooks on the modules themselves, which are removed whatever happens."""

    def body(visit: Visit) -> Any:
        with _attached(traffic, visit):
            return forward()

    return run_visited(body, traffic, view, output=output, grad=grad)


def run_visited(
    body: Callable[[Visit], Any],
    traffic: Sequence[Traffic],
    view: View,
    *,
    output: bool = True,
    grad: bool = False,
) -> tuple[dict[str, Tensor], Any]:
    """Run a forward pass that calls `visit(i, tensor)` at traffic[i]:
    (name -> canonical activation, what the pass returned or None where it stopped early).

    output=False stops the pass by an exception raised in the last hook that is needed. A site that is edited
    is read after its edits. With grad=True the tensors read are those that flow on through the network, so
    that `torch.autograd.grad(metric, acts)` works; without it nothing is recorded.
    Raises HookError where a module is called never or more than once, ShapeError where an edit returns
    another shape.
    """
    acts: dict[str, Tensor] = {}
    wanted = {name for t in traffic for name in t.names}
    calls = [0] * len(traffic)
    stopped = False

    def visit(i: int, own: Tensor) -> Tensor:
        """Edit and read one tensor; returns the tensor that flows on."""
        nonlocal stopped
        site, names, edits = traffic[i]
        at = site.view or view
        calls[i] += 1
        if calls[i] > 1:
            msg = (
                "A hook point must be called once in a forward pass. "
                f"{_what(traffic[i])} is a module that is called again (it is shared). "
                "Hook its parent, or a module that is used once."
            )
            raise HookError(msg)
        flow = own
        if edits:
            acts_now = at.to(own)
            for edit in edits:
                acts_now = _apply(edit, acts_now, _what(traffic[i]))
            flow = _same_layout(at.back(acts_now, own), own)
            if site.in_place:
                flow = own.copy_(flow)
        if names:
            if grad:
                flow, seen = _on_path(flow, at, site, _what(traffic[i]))
            else:
                seen = at.to(flow.detach())
                if output or len(acts) + len(names) < len(wanted):
                    seen = seen.clone()  # a later in-place operation of the model must not change it
            acts.update(dict.fromkeys(names, seen))
            if not output and len(acts) == len(wanted):
                stopped = True
                raise _Stop
        return flow

    if not output and not wanted:
        return acts, None
    result = None
    with torch.enable_grad() if grad else torch.no_grad():
        try:
            result = body(visit)
        except _Stop:
            pass
    for t, n in zip(traffic, calls, strict=True):
        if n == 0 and not stopped:
            msg = (
                "A hook point must take part in the forward pass. "
                f"The module of {_what(t)} was never called with a tensor (its parent may use its weights "
                "directly, or skip it). Hook the parent instead."
            )
            raise HookError(msg)
    return acts, result


Rerun = Callable[[Sequence[tuple[HookPoint, Edit]]], list[Tensor]]


def ensure_live(run: Rerun, hook: HookPoint) -> None:
    """Refuse a hook point that does not influence the output. Raises HookError.

    run: edits -> every tensor of the model's output on a small input. Zeroing the hook point must change it
    (or, where the activation happens to be zero already, a large random perturbation). A hook can see a
    tensor that the network does not use: states that a library captured earlier, results that the parent
    module ignores. Edits there would be silent no-ops, and features read there would explain nothing.
    """

    def perturb(acts: Tensor) -> Tensor:
        noise = torch.randn(acts.shape, generator=torch.Generator().manual_seed(0)).to(
            acts.device, acts.dtype
        )
        scale = acts.float().square().mean().sqrt().nan_to_num(0.0).clamp(max=1e3).to(acts.dtype)
        return acts + noise * (10 * scale + 1)

    base = run([(hook, lambda acts: acts)])  # an edit, so that the pass takes the same route
    for edit in (torch.zeros_like, perturb):
        changed = run([(hook, edit)])
        same = len(base) == len(changed) and all(map(_same, base, changed))
        if not same:
            return
    msg = (
        f"A hook point must influence the output. Got {hook.name!r} (io={hook.io!r}): zeroing its "
        "activation, or adding large noise, leaves the model's output unchanged, so what is read there is "
        "not what the network uses (a side branch, a result that the parent ignores, or states that were "
        "captured before this hook). Choose a hook point on the path to the output, such as the parent "
        "module or the next block."
    )
    raise HookError(msg)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


def _apply(edit: Edit, acts: Tensor, where: str) -> Tensor:
    # A copy goes in, so that an edit may write in place without reaching other users of the same tensor.
    new = edit(acts.clone())
    if not isinstance(new, Tensor) or new.shape != acts.shape:
        got = f"shape {list(new.shape)}" if isinstance(new, Tensor) else type(new).__name__
        msg = (
            f"An edit must return a tensor of the shape it receives, {list(acts.shape)}. "
            f"Got {got} at {where}. Return the edited activations (also after writing in place)."
        )
        raise ShapeError(msg)
    return new.to(acts.device, acts.dtype)


def _same_layout(new: Tensor, own: Tensor) -> Tensor:
    """`new` with the strides of `own`: kernels choose by strides, and the null edit must not change a bit."""
    if new.shape != own.shape or new.stride() == own.stride():
        return new
    return torch.empty_like(own).copy_(new)


def _on_path(flow: Tensor, view: View, site: Site, where: str) -> tuple[Tensor, Tensor]:
    """(what flows on, what is read): the one computed from the other, so gradients reach it."""
    if not flow.requires_grad:
        flow = flow.requires_grad_() if site.in_place else flow.detach().requires_grad_()
    seen = view.to(flow)
    if not site.in_place:
        return view.back(seen, flow).clone(), seen  # a clone, for the model may go on in place
    if seen is not flow:
        msg = (
            "Gradients need a tensor that flows on as it is read. "
            f"Got {where}, which this architecture reshapes. "
            "Read hook_resid_pre or hook_resid_post with grad=True instead."
        )
        raise HookError(msg)
    return flow, seen


def _what(traffic: Traffic) -> str:
    name = traffic.names[0] if traffic.names else type(traffic.site.module).__name__
    return f"{name!r} (io={traffic.site.io!r})"


@contextmanager
def _attached(traffic: Sequence[Traffic], visit: Visit) -> Iterator[None]:
    handles = []
    try:
        for i, t in enumerate(traffic):
            # prepend: hooks of a library that captures hidden states must see what our edits wrote
            if t.site.io == "out":
                handles.append(t.site.module.register_forward_hook(_after(i, visit), prepend=True))
            else:
                handles.append(
                    t.site.module.register_forward_pre_hook(_before(i, visit), prepend=True, with_kwargs=True)
                )
        yield
    finally:
        for handle in handles:
            handle.remove()


def _after(i: int, visit: Visit) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        own, rebuild = main_tensor(output)
        if own is None:
            return None
        flow = visit(i, own)
        return None if flow is own else rebuild(flow)

    return hook


def _before(i: int, visit: Visit) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        own, rebuild = main_tensor(args)
        if own is not None:
            flow = visit(i, own)
            return None if flow is own else (rebuild(flow), kwargs)
        own, rebuild = main_tensor(kwargs)
        if own is None:
            return None
        flow = visit(i, own)
        return None if flow is own else (args, rebuild(flow))

    return hook


def _with_item(value: Any, key: str, new: Tensor) -> Any:
    changed = copy.copy(value)
    changed[key] = new
    return changed


def _with_index(value: Any, i: int, new: Tensor) -> Any:
    items = [*value[:i], new, *value[i + 1 :]]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def no_fast_path() -> Any:
    """Within it torch's fused encoder layer, which skips the hooks of its parts, is off; so hooks change no
    bits."""
    backend = getattr(torch.backends, "mha", None)
    if backend is None:
        return nullcontext()

    @contextmanager
    def off() -> Iterator[None]:
        before = backend.get_fastpath_enabled()
        backend.set_fastpath_enabled(False)
        try:
            yield
        finally:
            backend.set_fastpath_enabled(before)

    return off()


__all__ = [
    "Edit", "Site", "Traffic", "View", "Visit", "all_tensors", "ensure_live", "main_tensor", "no_fast_path",
    "normalise_edits", "normalise_reads", "plan", "run_hooked", "run_visited",
]  # fmt: skip
