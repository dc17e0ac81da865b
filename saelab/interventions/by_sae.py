"""What edits by an SAE have in common: where they read and write, and which rows they see."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from dataclasses import dataclass, field

from torch import Tensor

from saelab.interventions.registry import Edit, counted
from saelab.sae import SAE
from saelab.types import ConfigError, Context, HookError, HookPoint


@dataclass(frozen=True, eq=False)
class SAEEdit(Edit):
    """An edit by an SAE: of the rows x that the SAE reads it makes what takes the place of the rows y that
    the SAE stands for.

    These are the same activations but for a transcoder, which reads at its hook point and writes at its
    target. A crosscoder is refused: what it writes at its first hook point depends on the last, which comes
    later in a pass.

    Attributes:
        sae: The SAE.
        hook: Where it works, if not where the SAE says; not with a transcoder.

    Raises:
        ConfigError: It is a crosscoder, or a transcoder with a hook.
        HookError: Neither the SAE nor `hook` names a hook point.
    """

    sae: SAE
    hook: HookPoint | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.sae, SAE):
            message = f"sae must be an SAE. Got a {type(self.sae).__name__}. Load it: saelab.load_sae(...)."
            raise ConfigError(message)
        if self.hook is not None:
            object.__setattr__(self, "hook", HookPoint.of(self.hook))
        if self.hook is not None and self.sae.config.d_out is not None:
            message = (
                "A transcoder edits where it says: it reads at one hook point and writes at another. Got "
                f"hook={self.hook.name!r}. Leave hook out."
            )
            raise ConfigError(message)
        if self.sae.config.widths or not self.hooks:  # which raises where neither the SAE nor `hook` says one
            several = ", ".join(map(str, self.sae.config.hooks)) or "several hook points"
            message = (
                f"{type(self).__name__} needs an SAE that reads one hook point. Got a crosscoder of "
                f"{several}: what it writes at the first depends on the last. Read them in one pass, and put "
                "what you make of them there by Replace in another."
            )
            raise ConfigError(message)

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        if self.hook is not None:
            return (self.hook,)
        return tuple(dict.fromkeys([*self.sae.reads, *self.sae.writes]))

    @abstractmethod
    def rows(self, x: Tensor, y: Tensor, sample: Tensor) -> Tensor:
        """What is put in the place of y.

        Args:
            x: [n, d_in], what the SAE reads at the rows that count.
            y: [n, d_out], what is at the place that it writes: x but for a transcoder.
            sample: int64 [n], which sample each row is of, ascending.

        Returns:
            [n, d_out].
        """

    def __call__(self, acts: Tensor, context: Context) -> Tensor:
        reads, writes = self.hooks[0], self.hooks[-1]
        if reads != writes and context.hook == reads:
            # in order: of hook points that are met at several calls, the first call that reads belongs to the
            # first that writes
            context.shared.setdefault(self, deque()).append(acts.clone())
            return acts
        x = acts if reads == writes else self._read(acts, context)
        here = counted(acts, context)
        if here.any():
            sample, device = here.nonzero()[:, 0], self.sae.device
            new = self.rows(x[here].to(device), acts[here].to(device), sample.to(device))
            acts[here] = new.to(acts)
        return acts

    def _read(self, acts: Tensor, context: Context) -> Tensor:
        """What was read at the other hook point for what is written now."""
        waiting = context.shared.get(self)
        if not waiting or waiting[0].shape[:-1] != acts.shape[:-1]:
            got = f"activations of shape {list(waiting[0].shape)}" if waiting else "nothing"
            message = (
                f"{self.hooks[0].name!r} must be read before {context.hook.name!r} is written, at the same "
                f"positions. Got {got} for {list(acts.shape)}. Pass a transcoder whose target comes after "
                "what it reads."
            )
            raise HookError(message)
        return waiting.popleft()


__all__ = ["SAEEdit"]
