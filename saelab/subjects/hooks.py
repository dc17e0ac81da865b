"""What is read and edited where: hook points and edits as users name them, gathered by the side of a module
that they mean, and the tensor that is meant there.

Libraries differ in what a module returns (a tensor, a tuple, a dict, a ModelOutput; transformers 5 returns a
bare tensor where 4 returned a tuple); `main_tensor` finds the tensor and can put another in its place.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from saelab.arguments import is_listed
from saelab.types import Context, HookError, HookPoint, short

EditFn = Callable[[Tensor, Context], Tensor]


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
    inner: View | None = None
    """From what the view gives to what is read and edited, as a norm's output without its gain."""


class View(NamedTuple):
    """Between a module's own tensor and the canonical [samples, positions, width]."""

    to: Callable[[Tensor], Tensor]
    back: Callable[[Tensor, Tensor], Tensor]
    """(canonical, the module's own tensor) -> a tensor of the module's own shape."""
    space: Callable[[Tensor], tuple[int, ...]] = lambda own: ()
    """The height and width of the module's own tensor, where its positions are a grid; else ()."""


class Traffic(NamedTuple):
    """What happens at a site during one pass, at the calls that the hook points name: `edits` in order, then
    `reads`."""

    site: Site
    reads: tuple[HookPoint, ...]
    edits: tuple[tuple[HookPoint, EditFn], ...]

    def hooks(self) -> list[HookPoint]:
        """Every hook point that means this site, those that are read first."""
        return [*self.reads, *(hook for hook, _ in self.edits)]


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


def normalise_edits(edits: Any) -> list[tuple[HookPoint, EditFn]]:
    """What a user passes as edits, as one (hook point, function of activations and context) for each hook
    point.

    Args:
        edits: One or a sequence of: objects with `.hooks` (or one `.hook`) that are called with (acts,
            context), and pairs (hook, callable) of which the callable takes (acts) or (acts, context).

    Raises:
        HookError: It is something else.
    """
    if callable(edits) or _is_pair(edits):
        edits = [edits]
    if not is_listed(edits):
        msg = f"edits must be a list of edits. Got {short(edits)}. Pass edits=[...]."
        raise HookError(msg)
    found: list[tuple[HookPoint, EditFn]] = []
    for edit in edits:
        if _is_pair(edit):
            found.append((HookPoint.of(edit[0]), _with_context(edit[1], alone=True)))
            continue
        hooks: Any = getattr(edit, "hooks", (getattr(edit, "hook", None),))
        named = isinstance(hooks, (tuple, list)) and all(isinstance(h, (str, HookPoint)) for h in hooks)
        if not (callable(edit) and named and hooks):
            msg = (
                "An edit must be a callable with `.hooks`, or a pair (hook, callable). "
                f"Got {edit!r}. Pass edits=[('blocks.0.hook_resid_post', lambda acts: ...)]."
            )
            raise HookError(msg)
        call = _with_context(edit, alone=False)
        found += [(HookPoint.of(hook), call) for hook in hooks]
    return found


def _is_pair(edit: Any) -> bool:
    pair = isinstance(edit, tuple) and len(edit) == 2
    return pair and isinstance(edit[0], (str, HookPoint)) and callable(edit[1])


def _with_context(fn: Callable[..., Any], alone: bool) -> EditFn:
    """A function of (acts, context). alone: whether `fn` may take acts alone. Raises HookError where it takes
    something else."""
    try:
        signature = inspect.signature(fn)
    except ValueError:  # of a builtin, such as torch.zeros_like
        return (lambda acts, context: fn(acts)) if alone else fn

    def takes(n: int) -> bool:
        with suppress(TypeError):
            return signature.bind(*range(n)) is not None
        return False

    # a second parameter with a default is a lambda's way to keep a value, unless its name says otherwise
    asks = not alone or not takes(1) or list(signature.parameters)[1:2] == ["context"]
    if takes(2) and asks:
        return fn
    if takes(1) and alone:
        return lambda acts, context: fn(acts)
    wanted = "(acts) or (acts, context)" if alone else "(acts, context)"
    msg = f"An edit must take {wanted}. Got {fn!r}, which takes {signature}. Give it these parameters."
    raise HookError(msg)


def normalise_reads(read: Any) -> list[HookPoint]:
    """Hook points of one name, one HookPoint, or a sequence of either; repeated ones once."""
    single = isinstance(read, (str, HookPoint))
    if not single and not is_listed(read):
        msg = f"read must be hook points. Got {short(read)}. Pass names out of subject.hooks()."
        raise HookError(msg)
    hooks = [HookPoint.of(h) for h in ([read] if single else read)]
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
    reads: Iterable[HookPoint], edits: Iterable[tuple[HookPoint, EditFn]], site: Callable[[HookPoint], Site]
) -> list[Traffic]:
    """Reads and edits gathered by site, so that each site carries one hook and the order of edits is kept."""
    sites: dict[tuple[int, str, bool], tuple[Site, list[HookPoint], list[tuple[HookPoint, EditFn]]]] = {}

    def at(hook: HookPoint) -> tuple[Site, list[HookPoint], list[tuple[HookPoint, EditFn]]]:
        s = site(hook)
        return sites.setdefault((id(s.module), s.io, s.in_place), (s, [], []))

    for hook in reads:
        at(hook)[1].append(hook)
    for hook, edit in edits:
        at(hook)[2].append((hook, edit))
    # the hook that is registered last is called first: others at the same place see what is edited in place
    ordered = sorted(sites.values(), key=lambda found: found[0].in_place)
    return [Traffic(s, tuple(hooks), tuple(pairs)) for s, hooks, pairs in ordered]


def _with_item(value: Any, key: str, new: Tensor) -> Any:
    changed = copy.copy(value)
    changed[key] = new
    return changed


def _with_index(value: Any, i: int, new: Tensor) -> Any:
    items = [*value[:i], new, *value[i + 1 :]]
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def within(view: View, inner: View) -> View:
    """What lies within another view: to one, then the other, and back."""
    return View(
        lambda own: inner.to(view.to(own)),
        lambda acts, own: view.back(inner.back(acts, view.to(own)), own),
        view.space,
    )


def stream_view(samples: int, positions: int) -> View:
    """[samples, positions, width] of what blocks pass on.

    OPT flattens samples and positions in its MLP; position embeddings come as one sample for all.
    """

    def to(own: Tensor) -> Tensor:
        if own.ndim == 2:
            return (
                own.reshape(samples, positions, -1)
                if len(own) == samples * positions
                else own.expand(samples, -1, -1)
            )
        return own.expand(samples, -1, -1) if own.ndim == 3 and own.shape[0] != samples else own

    def back(acts: Tensor, own: Tensor) -> Tensor:
        return acts.reshape(own.shape) if own.ndim == 2 and own.numel() == acts.numel() else acts

    return View(to, back)


__all__ = [
    "EditFn", "Site", "Traffic", "View", "all_tensors", "main_tensor", "normalise_edits", "normalise_reads",
    "plan", "stream_view", "within",
]  # fmt: skip
