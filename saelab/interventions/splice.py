"""SAEs in the place of what they stand for, for as long as a context lasts: their codes lie in every pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from saelab.arguments import checked, flag, is_listed
from saelab.interventions.by_sae import SAEEdit
from saelab.interventions.gates import Rows
from saelab.interventions.places import positions_of
from saelab.sae import SAE
from saelab.subjects.live import edited, standing
from saelab.types import ConfigError, Context, HookError, HookPoint, nearest, short


class ByHook(dict[str, Tensor]):
    """Hook point -> tensor; a HookPoint finds what its name does."""

    def __missing__(self, key: Any) -> Tensor:
        if isinstance(key, HookPoint) and key.name in self:
            return self[key.name]
        if not self:
            message = (
                f"What was spliced is there once a pass was made. Got none, asked for {short(key)}. Call the "
                "model within the context; errors are kept with error=True."
            )
            raise HookError(message)
        message = (
            "It must be the hook point of a spliced SAE, of a transcoder the one that it reads. Got "
            f"{short(key)}. {nearest(str(key), self)}They are {', '.join(self)}."
        )
        raise HookError(message)


class Splices:
    """What SAEs that are spliced into a model made of its last pass, by the hook points that they read.

    The tensors are those that the pass went through, on the devices of the SAEs: where it was recorded,
    `torch.autograd.grad(loss, codes)` and, after `loss.backward()`, `codes.grad` are there, also of a model
    and SAEs whose weights are frozen. They stay until the next pass, also when the context is left.
    """

    def __init__(self) -> None:
        self._pass: tuple[ByHook, ByHook] = ByHook(), ByHook()

    @property
    def codes(self) -> ByHook:
        """hook point -> [samples, positions, d_sae]; 0 at positions that are not spliced"""
        return self._pass[0]

    @property
    def errors(self) -> ByHook:
        """hook point -> [samples, positions, d_out], what the SAE leaves out, in raw units: a constant, with
        a gradient of its own. 0 at positions that are not spliced; nothing is kept with error=False"""
        return self._pass[1]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{hook} {list(codes.shape)}" for hook, codes in self.codes.items())
        return f"Splices({shapes or 'no pass yet'})"

    def of(self, context: Context) -> tuple[ByHook, ByHook]:
        """(codes, errors) of the pass that runs, which take the place of those before.

        Args:
            context: What an edit is told.
        """
        self._pass = context.shared.setdefault(self, (ByHook(), ByHook()))
        return self._pass


@contextmanager
@checked(error=flag, everywhere=flag)
def spliced(
    subject: Any, saes: Mapping[HookPoint | str, SAE] | Any, error: bool = True, *, everywhere: bool = False
) -> Iterator[Splices]:
    """SAEs in the place of what they stand for, in every pass of a model: a context.

        with spliced(model, {"blocks.3.hook_resid_post": sae}) as splices:
            loss = model(**inputs).loss
        torch.autograd.grad(loss, splices.codes["blocks.3.hook_resid_post"])

    With their error y - x_hat, a constant, the output is that without them to the last bit, and gradients go
    back through codes alone (Marks et al. 2024; `use_error_term` of SAELens). Without it x_hat stands there:

        y' = x_hat + (y - x_hat).detach()  or  y' = x_hat,    x_hat = decode(encode(x))

    with y = x but for a transcoder, which reads x at one hook point and writes at another.

    It holds for passes of the bare model, its `generate`, and `subject.run`, whose own edits come before, as
    does what it reads of a spliced hook point: what the model had there. Contexts nest, with each other and
    with `applied`: what is entered last sees what the others wrote. They hold for the thread that entered
    them; no hook is left afterwards.

    Args:
        subject: A subject, the Hugging Face model, or any torch module, as `applied` takes them.
        saes: Hook point -> SAE; a transcoder stands under the hook point that it reads. Or an SAE, or a list
            of them, each where it says.
        error: Whether their errors stay.
        everywhere: Whether rows that count as none, such as BOS, are spliced too, as SAELens does. Padding
            never is.

    Returns:
        The context manager; entered it gives the `Splices`.

    Raises:
        ConfigError: There is no SAE, or one is a crosscoder, which writes before it has read.
        HookError: A hook point is unknown, two SAEs write at it, here or in a context around this one, a
            transcoder reads at another than the one it is passed for, or an SAE is passed for every call of a
            module ("name@all").
        SubjectError: subject is none, and no torch module.
    """
    splices = Splices()
    edits = [Splice(sae, error, everywhere, splices, hook=hook) for hook, sae in _pairs(saes)]
    with edited(subject, edits):
        _refuse_shared_places(subject)
        yield splices


@dataclass(frozen=True, eq=False)
class Splice(SAEEdit):
    """What `spliced` does at one place.

    Attributes:
        sae: The SAE.
        error: Whether its error stays.
        everywhere: Whether rows that count as none are spliced too.
        splices: Where codes and errors are left.
        hook: Where it works, if not where the SAE says; not with a transcoder.
    """

    error: bool
    everywhere: bool
    splices: Splices = field(repr=False)

    def __call__(self, acts: Tensor, context: Context) -> Tensor:
        if self.everywhere:
            context = replace(context, counted=positions_of(acts, context) >= 0)
        codes, errors = self.splices.of(context)
        acts = super().__call__(acts, context)
        name = self.hooks[0].name
        if context.hook == self.hooks[-1] and name not in codes:  # not one row counts
            like = self.sae.W_enc.detach()
            codes[name] = like.new_zeros(*acts.shape[:2], self.sae.d_sae)
            if self.error:
                errors[name] = like.new_zeros(acts.shape)
        return acts

    def rows(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        codes, errors = self.splices._pass
        name = self.hooks[0].name
        codes[name], z = _on_grid(self.sae.encode(x), rows)
        x_hat = self.sae.decode(z, self.sae.scale(x), x)
        if not self.error:
            return x_hat
        errors[name], left = _on_grid((y - x_hat).detach(), rows)
        if not torch.is_grad_enabled():
            return y
        # its value is y, to the bit; its gradient that of x_hat and the error
        whole = x_hat + left
        return y.detach() + (whole - whole.detach())


def _on_grid(values: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Values of rows in their places, of which the same values are then taken, so that gradients reach them
    there.

    Args:
        values: [n, width].
        rows: Which they are.

    Returns:
        [samples, positions, width], 0 at other places, and [n, width].
    """
    samples, positions = rows.size
    n, at = samples * positions, rows.sample * positions + rows.position
    every = len(values) == n
    grid = values if every else values.new_zeros(n, values.shape[1]).index_copy_(0, at, values)
    grid = grid.reshape(samples, positions, -1)
    if not torch.is_grad_enabled():
        return grid, values
    # of frozen weights too, and a tensor that was computed keeps its gradient only where it is asked to
    (grid if grid.requires_grad else grid.requires_grad_()).retain_grad()
    flat = grid.flatten(0, 1)
    return grid, flat if every else flat[at]


def _pairs(saes: Any) -> list[tuple[HookPoint | None, SAE]]:
    """(where an edit is told to work, SAE) of each. Raises ConfigError, HookError."""
    if isinstance(saes, SAE):
        saes = [saes]
    if isinstance(saes, Mapping):
        named = [(HookPoint.of(hook), sae) for hook, sae in saes.items()]
    elif is_listed(saes):
        named = [(None, sae) for sae in saes]
    else:
        named = []
    if not named:
        message = f"saes must be {{hook: sae}}, or a list of SAEs. Got {short(saes)}. Pass one at least."
        raise ConfigError(message)
    found: list[tuple[HookPoint | None, SAE]] = []
    for hook, sae in named:
        several = isinstance(sae, SAE) and (sae.config.d_out is not None or bool(sae.config.widths))
        if hook is not None and several:
            if not sae.config.widths and hook.name != sae.hook.name:
                message = (
                    f"A transcoder must be passed for the hook point that it reads, {sae.hook.name!r}. Got "
                    f"{hook.name!r}. Pass {{{sae.hook.name!r}: sae}}; it writes at its target."
                )
                raise HookError(message)
            hook = None
        found.append((hook, sae))
    return found


def _refuse_shared_places(subject: Any) -> None:
    """Raises HookError where two of the SAEs that are spliced now write at one hook point, or one SAE works
    at every call of a module."""
    seen = set()
    for key, hook, edit in standing(subject):
        if not isinstance(edit, Splice):
            continue
        if hook.call == "all":
            message = (
                f"An SAE is spliced into one call. Got {hook.name!r}. Name the calls that you need, "
                f"{hook.module}@0, {hook.module}@1, ..., each with the SAE."
            )
            raise HookError(message)
        if hook != edit.hooks[-1]:
            continue
        if key in seen:
            message = (
                "One SAE at a time takes the place of what stands at a hook point. Got two for "
                f"{hook.name!r}, here or in a context around this one. Leave one out, or leave the other's "
                "context first."
            )
            raise HookError(message)
        seen.add(key)


__all__ = ["ByHook", "Splice", "Splices", "spliced"]
