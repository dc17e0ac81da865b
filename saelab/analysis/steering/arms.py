"""An edit beside its controls: at every row they move the activation as far as the edit does, elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saelab.analysis.controls import random_directions
from saelab.analysis.steering.known import flat, latents_of
from saelab.analysis.steering.passes import passes
from saelab.analysis.steering.selected import Contrast, Selected, documents_of
from saelab.interventions import Edit
from saelab.subjects.hooks import EditFn, normalise_edits
from saelab.types import ConfigError, Context, HookPoint

if TYPE_CHECKING:
    from saelab.corpora import Document
    from saelab.types import Subject

CONTROLS = ("random direction", "random latents", "mean difference")
PROBED = 16
"""Samples on which it is measured which way the edit moves activations."""
ALIKE = 20
"""Latents of the most similar firing rate, of which a random one is drawn."""
Edits = list[tuple[HookPoint, EditFn]]


def together(edits: Edits) -> Edits:
    """One edit for each hook point, which does what all do there, in their order.

    Args:
        edits: Any.
    """
    at: dict[HookPoint, list[EditFn]] = {}
    for hook, edit in edits:
        at.setdefault(hook, []).append(edit)
    return [(hook, _in_order(each)) for hook, each in at.items()]


def _in_order(edits: Sequence[EditFn]) -> EditFn:
    def all_of_them(acts: Tensor, context: Context) -> Tensor:
        for edit in edits:
            acts = edit(acts.clone(), context).to(acts)
        return acts

    return all_of_them


class AsOne(Edit):
    """Functions at hook points as one edit, which may stand for one sample of a batch.

    Args:
        edits: (hook, function), in their order.
    """

    def __init__(self, edits: Edits) -> None:
        self._at = dict(together(edits))

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        return tuple(self._at)

    def __call__(self, acts: Tensor, context: Context) -> Tensor:
        return self._at[context.hook](acts, context)


def matched(edits: Edits, directions: Mapping[str, Tensor]) -> Edits:
    """Edits that move each row as far as others do, but along one direction.

    Args:
        edits: The others; their gates say where these work too.
        directions: Name of a hook point -> unit vector [width].
    """
    return [(hook, _along(edit, directions[hook.name])) for hook, edit in edits]


def _along(edit: EditFn, direction: Tensor) -> EditFn:
    def along(acts: Tensor, context: Context) -> Tensor:
        wide = torch.promote_types(acts.dtype, torch.float32)
        size = (edit(acts.clone(), context) - acts).to(wide).norm(dim=-1, keepdim=True)
        moved = (acts.to(wide) + size * direction.to(acts.device, wide)).to(acts.dtype)
        return torch.where(size > 0, moved, acts)

    return along


class AlongRandom(AsOne):
    """The control of edits: moves each row as far as they do together, along one random direction.

    Args:
        edits: As a subject's `run` takes them, applied in their order at each of their hook points.
        subject: The model.
        seed: Of the direction.
    """

    def __init__(self, edits: Sequence[Any], subject: Any, seed: int = 0) -> None:
        own = together(normalise_edits(edits))
        directions = {
            hook.name: torch.from_numpy(random_directions(1, subject.width(hook), seed + i)[0])
            for i, (hook, _) in enumerate(own)
        }
        super().__init__(matched(own, directions))


def moved_by(subject: Any, edits: Edits, documents: Sequence[Document], batch_size: int) -> dict[str, Tensor]:
    """Name of a hook point -> float64 [width]: the sum of what the edits there add to some samples."""
    total: dict[str, Any] = {hook.name: 0.0 for hook, _ in edits}

    def watched(hook: HookPoint, edit: EditFn) -> Callable[[Tensor, Context], Tensor]:
        def watch(acts: Tensor, context: Context) -> Tensor:
            new = edit(acts.clone(), context)
            if not isinstance(new, Tensor) or new.shape != acts.shape:
                return new  # which the pass refuses by name
            total[hook.name] = total[hook.name] + (new - acts).double().sum((0, 1)).cpu()
            return new

        return watch

    hooks = list(dict.fromkeys(hook for hook, _ in edits))
    for each in passes(subject, documents[:PROBED], hooks, batch_size):
        with torch.no_grad():
            subject.run(each.inputs, edits=[(hook, watched(hook, edit)) for hook, edit in edits])
    return total


class Controls:
    """Makes the controls of edits at any strength, each time of the same random draws.

    Args:
        subject: The model.
        names: Which of `CONTROLS`.
        draws: Of each random one.
        contrast: Samples with and without a concept, for the mean difference.
        natural: Samples on which firing rates are measured.
        seed: Of the draws.
        batch_size: Samples of a pass.

    Raises:
        ConfigError: An unknown control, or a mean difference without samples.
    """

    def __init__(
        self, subject: Subject, names: Sequence[str], draws: int, contrast: Any, natural: Sequence[Document],
        seed: int, batch_size: int,
    ) -> None:  # fmt: skip
        unknown = [name for name in names if not (isinstance(name, str) and name in CONTROLS)]
        if unknown:
            message = (
                f"A control must be one of {', '.join(CONTROLS)}. Got {unknown[0]!r}. Pass one of these."
            )
            raise ConfigError(message)
        self.contrast = _contrast(subject, contrast)
        self.names = [name for name in names if name != "mean difference"]
        self.names += ["mean difference"] * (self.contrast is not None)
        self.subject, self.draws, self.natural = subject, draws, natural
        self.seed, self.batch_size = seed, batch_size
        self._differences: dict[str, Tensor] = {}
        self._rates: dict[int, np.ndarray] = {}

    def of(self, given: Sequence[Any], documents: Sequence[Document]) -> dict[str, list[Edits]]:
        """Control -> its edits, draw by draw; those that have no meaning for these edits are left out.

        Args:
            given: Edits as a user names them.
            documents: Samples on which it is measured which way they move activations.
        """
        edits = normalise_edits(list(given))
        if not edits or not self.names:
            return {}
        moved = moved_by(self.subject, edits, documents, self.batch_size)
        found: dict[str, list[Edits]] = {}
        if "random direction" in self.names:
            found["random direction"] = [
                matched(edits, self._random(moved, draw)) for draw in range(self.draws)
            ]
        sae, latents = _latents(given)
        if "random latents" in self.names and sae is not None and not sae.config.widths:
            found["random latents"] = [
                matched(edits, self._latent(moved, sae, latents, draw)) for draw in range(self.draws)
            ]
        if "mean difference" in self.names:
            found["mean difference"] = [matched(edits, self._difference(edits, moved))]
        return found

    def _random(self, moved: Mapping[str, Tensor], draw: int) -> dict[str, Tensor]:
        return {
            name: torch.from_numpy(
                random_directions(1, self._width(name, delta), self.seed + 1000 * draw + i)[0]
            )
            for i, (name, delta) in enumerate(moved.items())
        }

    def _width(self, name: str, delta: Any) -> int:
        return len(delta) if isinstance(delta, Tensor) else self.subject.width(name)

    def _latent(
        self, moved: Mapping[str, Tensor], sae: Any, latents: Sequence[int], draw: int
    ) -> dict[str, Tensor]:
        """The directions of other latents of the same SAE, each on about as often as one of its own,
        turned as the edit turns these."""
        rates = self._rates_of(sae)
        rng = np.random.default_rng(self.seed + draw)
        free = np.setdiff1d(np.flatnonzero(rates > 0), latents)
        free = free if len(free) else np.setdiff1d(np.arange(sae.d_sae), latents)
        others: list[int] = []
        for j in latents:
            near = np.setdiff1d(free, others)
            near = near[np.argsort(np.abs(rates[near] - rates[j]), kind="stable")[:ALIKE]]
            others += [int(rng.choice(near))] if len(near) else []
        rows = _unit((sae.W_dec.detach() * sae.out_scale).double().cpu())
        own, other = rows[list(latents)].sum(0), _unit(rows[others].sum(0))
        out = self._random(moved, draw)
        for hook in sae.writes:
            if isinstance(moved.get(hook.name), Tensor) and len(moved[hook.name]) == len(other):
                out[hook.name] = _turned(other, float(moved[hook.name] @ own))
        return out

    def _rates_of(self, sae: Any) -> np.ndarray:
        """float64 [d_sae]: share of natural rows at which each latent is on."""
        from saelab.analysis.steering.pooled import rates

        if id(sae) not in self._rates:
            self._rates[id(sae)] = rates(self.subject, sae, self.natural, self.batch_size)
        return self._rates[id(sae)]

    def _difference(self, edits: Edits, moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert self.contrast is not None
        hooks = list(dict.fromkeys(hook for hook, _ in edits))
        missing = [hook for hook in hooks if hook.name not in self._differences]
        if missing:
            yes, no = (_means(self.subject, side, missing, self.batch_size) for side in self.contrast)
            self._differences |= {name: yes[name] - no[name] for name in yes}
        found = {}
        for hook in hooks:
            vector, delta = _unit(self._differences[hook.name]), moved[hook.name]
            found[hook.name] = _turned(vector, float(delta @ vector) if isinstance(delta, Tensor) else 1.0)
        return found


def _contrast(subject: Any, given: Any) -> Contrast | None:
    if given is None or isinstance(given, Contrast):
        return given
    if isinstance(given, Selected):
        return given.fit
    if isinstance(given, tuple | list) and len(given) == 2:
        return Contrast(*(tuple(documents_of(side, subject.corpus)) for side in given))
    message = (
        f"contrast must be samples with a concept and samples without. Got a {type(given).__name__}. Pass "
        "(positive, negative), or what select_latents gave."
    )
    raise ConfigError(message)


def _means(
    subject: Any, documents: Sequence[Document], hooks: Sequence[HookPoint], batch_size: int
) -> dict[str, Tensor]:
    total: dict[str, Any] = {}
    n = 0
    for each in passes(subject, documents, hooks, batch_size):
        for name, acts in each.run.acts.items():
            total[name] = total.get(name, 0) + acts[each.kept].double().sum(0).cpu()
        n += int(each.kept.sum())
    return {name: value / max(n, 1) for name, value in total.items()}


def _latents(given: Sequence[Any]) -> tuple[Any, tuple[int, ...]]:
    """The SAE of the edits and the latents that they touch; None where there is none, or more than one."""
    found = [(edit.sae, latents_of(edit)) for edit in flat(given) if getattr(edit, "sae", None) is not None]
    saes = {id(sae) for sae, _ in found}
    latents = tuple(dict.fromkeys(j for _, some in found for j in some))
    return (found[0][0], latents) if len(saes) == 1 and latents else (None, ())


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def _turned(direction: Tensor, along: float) -> Tensor:
    """A direction, turned round where what it stands in for goes back along its own."""
    return -direction if along < 0 else direction


__all__ = ["CONTROLS", "AlongRandom", "AsOne", "Controls", "Edits", "matched", "moved_by"]
