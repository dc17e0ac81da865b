"""One forward pass with hooks that read and edit, which are removed whatever happens; and the check that a
hook point is alive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from saelab.subjects.hooks import EditFn, Site, Traffic, View, main_tensor, within
from saelab.types import Context, HookError, HookPoint, Inputs, ShapeError


class Passed(NamedTuple):
    """What one forward pass gave: of each name that was read its activations, the grid of their positions
    (where they are one) and, of name@all, the number of calls; and what the model returned, or None."""

    acts: dict[str, Tensor]
    output: Any
    spaces: dict[str, tuple[int, ...]]
    calls: dict[str, int]


class _Stop(BaseException):
    """All has been read. A BaseException, so that no `except Exception` of a model swallows it."""


Visit = Callable[[int, Tensor], Tensor]

LIVE: dict[int, Any] = {}
"""id of a module -> what edits its passes now, whoever makes them"""


def run_hooked(
    forward: Callable[[], Any],
    traffic: Sequence[Traffic],
    view: View,
    inputs: Inputs,
    *,
    output: bool = True,
    grad: bool = False,
    past: dict[Any, Any] | None = None,
) -> Passed:
    """`run_visited` by hooks on the modules themselves, which are removed whatever happens."""

    def body(visit: Visit) -> Any:
        with attached(traffic, visit):
            return forward()

    return run_visited(body, traffic, view, inputs, output=output, grad=grad, past=past)


def run_visited(
    body: Callable[[Visit], Any],
    traffic: Sequence[Traffic],
    view: View,
    inputs: Inputs,
    *,
    output: bool = True,
    grad: bool = False,
    past: dict[Any, Any] | None = None,
) -> Passed:
    """Run a forward pass that calls `visit(i, tensor)` whenever the module of traffic[i] is called.

    Args:
        body: The pass.
        traffic: What to read and edit.
        view: Of the tensors, where a site has none of its own.
        inputs: What the pass is run on, for the edits.
        output: False stops the pass by an exception raised in the last hook that is needed; `name@all` needs
            every call, whose number nobody knows before the end.
        grad: The tensors read are those that flow on through the network, so that
            `torch.autograd.grad(metric, acts)` works; without it nothing is recorded.
        past: What edits are told as `Context.past`, of passes that go on from a cache.

    Returns:
        What was read, a site that is edited after its edits, and what the pass returned.

    Raises:
        HookError: A module is called never, fewer times than a hook point says, or several times where it
            does not say which; or `name@all` with grad.
        ShapeError: An edit returns another shape, or calls that are read as one differ in theirs.
    """
    for hook in (hook for t in traffic for hook in t.reads):
        if grad and hook.call == "all":
            msg = (
                f"Gradients are taken at one call. Got {hook.name!r}. Read the calls that you need by name, "
                f"{hook.module}@0, {hook.module}@1, ..., in one pass."
            )
            raise HookError(msg)
    state = Pass(traffic, view, inputs, output, grad, past)
    if not output and not state.pending:
        return state.passed(None)
    result = None
    with torch.enable_grad() if grad else torch.no_grad():
        with suppress(_Stop):
            result = body(state.visit)
    state.check_calls()
    return state.passed(result)


class Pass:
    """The state of one forward pass; the arguments are those of `run_visited`."""

    def __init__(
        self,
        traffic: Sequence[Traffic],
        view: View,
        inputs: Inputs,
        output: bool,
        grad: bool,
        past: dict[Any, Any] | None = None,
    ) -> None:
        self.traffic, self.view, self.inputs, self.output, self.grad = traffic, view, inputs, output, grad
        self.pieces: dict[str, list[Tensor]] = {}
        self.spaces: dict[str, tuple[int, ...]] = {}
        self.pending = {hook.name for t in traffic for hook in t.reads}
        self.calls = [0] * len(traffic)
        self.shared: dict[Any, Any] = {}
        self.past: dict[Any, Any] = {} if past is None else past
        self.stopped = False

    def visit(self, i: int, own: Tensor) -> Tensor:
        """Edit and read one tensor; returns the tensor that flows on."""
        traffic, call = self.traffic[i], self.calls[i]
        self.calls[i] += 1
        for hook in traffic.hooks() if call else ():
            if hook.call is None:
                name = hook.name
                msg = (
                    "A hook point must be called once in a forward pass, or say which call is meant. "
                    f"{_what(hook, traffic.site)} is a module that is called again (it is shared). Name a "
                    f"call: '{name}@0' is the first, '{name}@1' the second, '{name}@all' every one."
                )
                raise HookError(msg)
        view = traffic.site.view or self.view
        if traffic.site.inner is not None:
            view = within(view, traffic.site.inner)
        edits = [(hook, edit) for hook, edit in traffic.edits if hook.call in (None, call, "all")]
        reads = [hook for hook in traffic.reads if hook.call in (None, call, "all")]
        flow = self._edited(own, edits, view, traffic.site, call) if edits else own
        if not reads:
            return flow
        self.pending -= {hook.name for hook in reads if hook.call != "all"}
        self.stopped = not self.output and not self.pending
        if self.grad:
            flow, seen = _on_path(flow, view, traffic.site, _what(reads[0], traffic.site))
        else:
            seen = view.to(flow.detach())
            if not self.stopped:
                seen = seen.clone()  # a later in-place operation of the model must not change it
        for hook in reads:
            self._keep(hook, seen, view.space(own))
        if self.stopped:
            raise _Stop
        return flow

    def _edited(
        self, own: Tensor, edits: Sequence[tuple[HookPoint, EditFn]], view: View, site: Site, call: int
    ) -> Tensor:
        acts = view.to(own)
        for hook, edit in edits:
            context = Context(hook, self.inputs, _counted(self.inputs, acts), call, self.shared, self.past)
            acts = _apply(edit, acts, context, _what(hook, site))
        flow = _same_layout(view.back(acts, own), own)
        return own.copy_(flow) if site.in_place else flow

    def _keep(self, hook: HookPoint, seen: Tensor, space: tuple[int, ...]) -> None:
        pieces = self.pieces.setdefault(hook.name, [])
        pieces.append(seen)
        if self.spaces.setdefault(hook.name, space) != space or seen.shape != pieces[0].shape:
            msg = (
                f"Calls that are read as one must be alike. Got {hook.name!r} with shape "
                f"{list(pieces[0].shape)} at call 0 and {list(seen.shape)} at call {len(pieces) - 1}. Read "
                f"the calls by name: {hook.module}@0, {hook.module}@1, ..."
            )
            raise ShapeError(msg)

    def check_calls(self) -> None:
        """Raises HookError where a module was called never, or fewer times than a hook point says."""
        if self.stopped:  # all that was to be read was reached; what comes later is checked at first use
            return
        for traffic, n in zip(self.traffic, self.calls, strict=True):
            for hook in traffic.hooks():
                if n == 0:
                    msg = (
                        "A hook point must take part in the forward pass. "
                        f"The module of {_what(hook, traffic.site)} was never called with a tensor (its "
                        "parent may use its weights directly, or skip it). Hook the parent instead."
                    )
                    raise HookError(msg)
                if isinstance(hook.call, int) and hook.call >= n:
                    made = f"{n} times, '{hook.module}@0' to '{hook.module}@{n - 1}'" if n > 1 else "once"
                    msg = (
                        f"A call must be one that the pass makes. Got {hook.name!r}, a module that is called "
                        f"{made}. Name one of these, or '{hook.module}@all'."
                    )
                    raise HookError(msg)

    def passed(self, result: Any) -> Passed:
        """What was read, the calls of name@all one after another."""
        acts = {name: pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)
                for name, pieces in self.pieces.items()}  # fmt: skip
        spaces = {name: space for name, space in self.spaces.items() if space}
        at_all = [hook.name for t in self.traffic for hook in t.reads if hook.call == "all"]
        return Passed(acts, result, spaces, {name: len(self.pieces[name]) for name in at_all})


def real(inputs: Inputs, samples: int, positions: int) -> np.ndarray | None:
    """Which positions are no padding, on whichever side that lies.

    Args:
        inputs: Of the pass.
        samples: How many the activations have.
        positions: How many the activations have.

    Returns:
        bool [samples positions], or None where the inputs do not say it of so many.
    """
    if inputs.positions is not None:
        there = np.asarray(inputs.positions) >= 0
        return there if there.shape == (samples, positions) else None
    if inputs.lengths is None or len(inputs.lengths) != samples or positions < max(inputs.lengths):
        return None
    return np.arange(positions) < np.asarray(inputs.lengths)[:, None]


def _counted(inputs: Inputs, acts: Tensor) -> Tensor | None:
    """See `Context.counted`."""
    if acts.ndim != 3:
        return None
    samples, positions = acts.shape[:2]
    if inputs.counted is None:
        mask = real(inputs, samples, positions)
    else:
        mask = np.asarray(inputs.counted)
    if mask is None or mask.shape != (samples, positions):
        return None
    return torch.tensor(mask, dtype=torch.bool, device=acts.device)


Rerun = Callable[[Sequence[tuple[HookPoint, EditFn]]], list[Tensor]]


def ensure_live(run: Rerun, hook: HookPoint) -> None:
    """Refuse a hook point that does not influence the output. Raises HookError.

    run: edits -> every tensor of the model's output on a small input. Zeroing the hook point must change it
    (or, where the activation happens to be zero already, a large random perturbation). A hook can see a
    tensor that the network does not use: states that a library captured earlier, results that the parent
    module ignores. Edits there would be silent no-ops, and features read there would explain nothing.
    """

    def zero(acts: Tensor, context: Context) -> Tensor:
        return torch.zeros_like(acts)

    def perturb(acts: Tensor, context: Context) -> Tensor:
        noise = torch.randn(acts.shape, generator=torch.Generator().manual_seed(0)).to(
            acts.device, acts.dtype
        )
        scale = acts.float().square().mean().sqrt().nan_to_num(0.0).clamp(max=1e3).to(acts.dtype)
        return acts + noise * (10 * scale + 1)

    base = run([(hook, lambda acts, context: acts)])  # an edit, so that the pass takes the same route
    for edit in (zero, perturb):
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


def _apply(edit: EditFn, acts: Tensor, context: Context, where: str) -> Tensor:
    # A copy goes in, so that an edit may write in place without reaching other users of the same tensor.
    new = edit(acts.clone(), context)
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


def _what(hook: HookPoint, site: Site) -> str:
    return f"{hook.name!r} (io={site.io!r})"


@contextmanager
def attached(traffic: Sequence[Traffic], visit: Visit) -> Iterator[None]:
    """Hooks that call `visit(i, tensor)` whenever the module of traffic[i] is called."""
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
    "LIVE",
    "Pass",
    "Passed",
    "Visit",
    "attached",
    "ensure_live",
    "no_fast_path",
    "real",
    "run_hooked",
    "run_visited",
]
