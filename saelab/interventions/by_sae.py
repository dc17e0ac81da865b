"""What edits by an SAE have in common: where they read and write, and which rows they see."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from saelab.arguments import floats, is_listed
from saelab.config import integer, is_number
from saelab.interventions.gates import Gate, Rows, checked_gate, opened
from saelab.interventions.places import given_of
from saelab.interventions.registry import Edit, counted
from saelab.sae import SAE
from saelab.types import ConfigError, Context, HookError, HookPoint, RangeError, ShapeError, short


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

    ACROSS: ClassVar[bool] = False
    """whether it has a meaning for crosscoders: it writes at each of their hook points, and reads at none"""

    sae: SAE
    hook: HookPoint | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.sae, SAE):
            message = f"sae must be an SAE. Got a {type(self.sae).__name__}. Load it: saelab.load_sae(...)."
            raise ConfigError(message)
        if self.hook is not None:
            object.__setattr__(self, "hook", HookPoint.of(self.hook))
        if self.hook is not None and (self.sae.config.d_out is not None or self.sae.config.widths):
            message = (
                "Transcoders and crosscoders edit where they say: they read and write at several hook "
                f"points. Got hook={self.hook.name!r}. Leave hook out."
            )
            raise ConfigError(message)
        across = self.ACROSS and bool(self.sae.config.widths)
        # `hooks` raises where neither the SAE nor `hook` names one
        if (self.sae.config.widths and not across) or not self.hooks:
            several = ", ".join(map(str, self.sae.config.hooks)) or "several hook points"
            kind, why = "a crosscoder", "what it writes at the first depends on the last"
            if self.sae.config.d_out is not None:
                kind, why = "a cross-layer transcoder", "its latents write at several"
            message = (
                f"{type(self).__name__} needs an SAE that reads one hook point. Got {kind} of {several}: "
                f"{why}. Read them in one pass, and put what you make of them there by Replace in another."
            )
            raise ConfigError(message)

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        if self.hook is not None:
            return (self.hook,)
        return tuple(dict.fromkeys([*self.sae.reads, *self.sae.writes]))

    @abstractmethod
    def rows(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        """What is put in the place of y.

        Args:
            x: [n, d_in], what the SAE reads at the rows that count.
            y: [n, d_out], what is at the place that it writes: x but for a transcoder.
            rows: Which rows they are.

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
            sample, position = here.nonzero().to(self.sae.device).unbind(1)
            given = given_of(acts, context)
            past = context.past.setdefault((self, context.hook.name, context.call), {})
            given = None if given is None else given[here].to(sample.device)
            rows = Rows(sample, position, given, past, (acts.shape[0], acts.shape[1]))
            own = acts[here].to(self.sae.device)
            acts[here] = self.rows(own if x is acts else x[here].to(own.device), own, rows).to(acts)
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


@dataclass(frozen=True, eq=False)
class LatentEdit(SAEEdit):
    """An edit of some latents of an SAE.

    Attributes:
        sae: The SAE.
        hook: Where it works, if not where the SAE says; not with a transcoder.
    """

    @property
    @abstractmethod
    def touched(self) -> tuple[int, ...]:
        """The latents that it reads or writes, in the order of the columns of codes that it is given."""

    def decoded(self, codes: Tensor, x: Tensor) -> Tensor:
        """What codes of these latents make of the output, [n, d_out] in raw units: decode(z + codes) -
        decode(z).

        Args:
            codes: [n, m].
            x: [n, d_in], by which a row is normalised.
        """
        delta = codes @ self.sae.W_dec[list(self.touched)] * self.sae.out_scale
        scale = self.sae.scale(x)
        return delta if scale is None else delta * scale.norm


@dataclass(frozen=True, eq=False)
class CodeEdit(LatentEdit):
    """x' = x + decode(z') - decode(z): an edit that says what becomes of the codes. The error of the SAE
    stays, and a row whose codes do not change keeps every bit.

    Attributes:
        sae: The SAE.
        hook: Where it works, if not where the SAE says; not with a transcoder.
    """

    @abstractmethod
    def change(self, z: Tensor, x: Tensor, rows: Rows) -> Tensor:
        """What is added to the codes.

        Args:
            z: [n, m], the codes of the latents that it touches.
            x: [n, d_in], what the SAE reads.
            rows: Which rows they are.

        Returns:
            [n, m], z' - z.
        """

    def rows(self, x: Tensor, y: Tensor, rows: Rows) -> Tensor:
        z = self.sae.encode_some(x, self.touched)
        return moved(y, self.decoded(self.change(z, x, rows), x))


class Several(LatentEdit):
    """An edit whose field `latents` names those that it touches.

    Attributes:
        sae: The SAE.
        hook: Where it works, if not where the SAE says; not with a transcoder.
        latents: Which.
    """

    latents: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "latents", latents_of(self.sae, self.latents))

    @property
    def touched(self) -> tuple[int, ...]:
        return self.latents


class Gated(LatentEdit):
    """An edit of latents that acts where a gate is open. A subclass has the fields `gate` and `threshold`,
    after its own.

    Attributes:
        sae: The SAE.
        hook: Where it works, if not where the SAE says; not with a transcoder.
        gate: Where it acts: everywhere ("constant"), in inputs in which the signal exceeds the threshold
            anywhere ("input"), or at the positions where it does ("token"). Of a text that is being written
            the input is all that was given, and from then on all up to each position.
        threshold: What the signal must exceed, >= 0; None with gate="constant".
    """

    POOL: ClassVar[Literal["max", "mean"]] = "max"
    """what the signal of an input is, with gate="input": over its positions"""

    gate: Gate
    threshold: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        gate, threshold = checked_gate(self.gate, self.threshold)
        object.__setattr__(self, "gate", gate)
        object.__setattr__(self, "threshold", threshold)

    def signal(self, x: Tensor) -> Tensor:
        """What the gate compares with its threshold.

        Args:
            x: [n, d_in], what the SAE reads.

        Returns:
            [n, g], >= 0: the size of each latent's code, or one column for all.
        """
        return self.size(self.sae.encode_some(x, self.touched), x)

    def size(self, z: Tensor, x: Tensor) -> Tensor:
        """The signal, of codes that are known already.

        Args:
            z: [n, m], the codes of the latents that it touches.
            x: [n, d_in], what the SAE reads.

        Returns:
            [n, g]. Below 0 it opens no gate.
        """
        return z.detach().abs()

    def open(self, z: Tensor, x: Tensor, rows: Rows) -> Tensor:
        """bool [n, g]: where the gate is open.

        Args:
            z: [n, m], the codes of the latents that it touches.
            x: [n, d_in], what the SAE reads.
            rows: Which rows they are.
        """
        return opened(self.gate, self.threshold, self.size(z, x), rows, self.POOL)


class OfConcept(Gated, Several):
    """A gated edit whose latents stand for one concept: its gate has one signal for all, and judges an input
    by the mean over its positions (the largest alone is noise of a single position). An input that has been
    flagged stays flagged, whatever is written afterwards.

    Attributes:
        sae: The SAE.
        hook: Where it works, if not where the SAE says; not with a transcoder.
        latents: Those of the concept.
        gate: As `Gated` has it.
        threshold: What the concept must exceed; None with gate="constant".
        probe: [d_in + 1], what the gate looks at: at each position the product of the activation that the SAE
            reads with all but the last, plus the last (`saelab.analysis.calibrate_gate` fits it). None: it
            looks at ||sum_j z_j d_j||, what the latents make of the activation, in its units.
    """

    POOL: ClassVar[Literal["max", "mean"]] = "mean"

    probe: Tensor | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probe is None:
            return
        probe, wanted = floats("probe", self.probe).detach(), self.sae.config.d_in + 1
        if probe.shape != (wanted,) or not probe.isfinite().all():
            message = (
                f"probe must be {wanted} finite numbers, the last a constant. Got {short(self.probe)}. Have "
                "it fitted: saelab.analysis.calibrate_gate."
            )
            raise ShapeError(message)
        object.__setattr__(self, "probe", probe)

    def size(self, z: Tensor, x: Tensor) -> Tensor:
        if self.probe is None:
            return self.decoded(z.detach(), x).norm(dim=-1, keepdim=True)
        probe = self.probe.to(x.device)
        return x.detach().to(probe) @ probe[:-1, None] + probe[-1]


def moved(y: Tensor, delta: Tensor) -> Tensor:
    """y + delta in the wider of their dtypes, given back in y's; rows to which nothing is added keep every
    bit.

    Args:
        y: [..., width].
        delta: What is added, of a shape that y can be added to.
    """
    total = (y.to(torch.promote_types(y.dtype, delta.dtype)) + delta).to(y.dtype)
    return torch.where((delta != 0).any(-1, keepdim=True), total, y)


def latents_of(sae: SAE, latents: Any) -> tuple[int, ...]:
    """Latents as edits hold them.

    Args:
        sae: Whose.
        latents: A list of them.

    Raises:
        ConfigError: There is none, or one stands twice.
        RangeError: One is none of the SAE's.
    """
    if not is_listed(latents):
        message = f"latents must be a list. Got {short(latents)}. Pass e.g. [3]."
        raise ConfigError(message)
    found = tuple(latent_of(sae, j) for j in latents)
    if not found or len(set(found)) < len(found):
        message = f"latents must name at least one, each once. Got {short(latents)}. Drop repeated ones."
        raise ConfigError(message)
    return found


def latent_of(sae: SAE, latent: Any) -> int:
    """A latent as edits hold it.

    Args:
        sae: Whose.
        latent: Its number.

    Raises:
        RangeError: It is none of the SAE's.
    """
    remedy = "Pass a latent of this SAE."
    return integer("A latent", latent, 0, sae.d_sae - 1, error=RangeError, remedy=remedy)


def finite(name: str, value: Any) -> float:
    """A finite number.

    Args:
        name: Of the field, for the message.
        value: Any.

    Raises:
        ConfigError: It is none.
    """
    if not is_number(value) or not math.isfinite(value):
        message = f"{name} must be a finite number. Got {short(value)}. Pass e.g. 1.0."
        raise ConfigError(message)
    return float(value)


__all__ = [
    "CodeEdit", "Gated", "LatentEdit", "OfConcept", "SAEEdit", "Several", "finite", "latent_of", "latents_of",
    "moved",
]  # fmt: skip
