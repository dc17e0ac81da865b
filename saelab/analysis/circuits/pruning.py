"""The fewest nodes that carry a task, and whether as many others would have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from saelab.analysis.circuits.nodes import Site, edits_of, nodes_of, sites_of
from saelab.analysis.circuits.patching import attribution_patching, read, scored
from saelab.analysis.circuits.results import Circuit, Effects
from saelab.analysis.circuits.tasks import Task
from saelab.analysis.controls import Beside, Sums, interval
from saelab.arguments import a_subject, an_integer, checked
from saelab.sae import SAE
from saelab.types import ConfigError, CorpusError, short

LEAST = 8
"""Pairs below which there is nothing to choose on and to judge by."""
SIZES = 9
"""Numbers of nodes, from one to all, at which what the largest effects carry is held against random sets."""


@checked(subject=a_subject, random_sets=an_integer(2, 1000), seed=an_integer())
def circuit(
    subject: Any,
    task: Task,
    effects: Effects | None = None,
    nodes: str | Iterable[str] = "heads",
    *,
    saes: SAE | Sequence[SAE] = (),
    target: float = 0.8,
    random_sets: int = 20,
    seed: int = 0,
) -> Circuit:
    """The fewest nodes, of the largest effects, with which alone the model does a task.

    All other nodes have the values of the corrupt prompt (Wang et al. 2022; Conmy et al. 2023). Half of the
    pairs choose how many nodes it takes to exceed the target by a standard error, for the best of many looks
    better than it is; then those that are not needed are dropped, the weakest first. Faithfulness and
    completeness are those of the other half, beside random sets of as many nodes of the same kinds.

    Args:
        subject: A language model.
        task: See `prompt_task`.
        effects: By which nodes are ordered, those on the half of the pairs that chooses; None:
            `attribution_patching` with 5 steps.
        nodes: "heads", "mlps" or both, of which the circuit is a part. What is no node works as it does, on
            what the nodes give it.
        saes: SAEs whose latents, and error, are nodes.
        target: The faithfulness that is asked for.
        random_sets: How many are drawn.
        seed: Of the halves and the draws.

    Returns:
        The circuit; one that falls short says so.

    Raises:
        CorpusError: There are fewer than 8 pairs, or the model does not do the task: no gap between clean
            and corrupt prompts.
        ConfigError: The effects are of other nodes, or the target is not between 0 and 1.
    """
    if not 0 < target <= 1:
        message = f"target must be a share above 0. Got {short(target)}. Pass e.g. 0.8."
        raise ConfigError(message)
    refuse_undone(task)
    sites = sites_of(subject, nodes, saes)
    every = nodes_of(sites)
    half = np.random.default_rng(seed).permutation(len(task.pairs))
    fitted, judged = np.sort(half[: len(half) // 2]), np.sort(half[len(half) // 2 :])
    if effects is None:
        effects = attribution_patching(subject, part_of(task, fitted), nodes, saes=saes, steps=5)
    elif list(effects.nodes) != every or len(effects.gap) != len(task.pairs):
        message = (
            "Effects must be of all nodes that may be in the circuit, on all pairs of the task. Got "
            f"{len(effects.nodes)} of {len(every)} nodes on {len(effects.gap)} of {len(task.pairs)} pairs. "
            "Measure them with the same task, nodes and saes."
        )
        raise ConfigError(message)
    else:
        effects = effects.of_pairs(fitted)
    choosing, judging = _Scores(subject, task, sites, fitted), _Scores(subject, task, sites, judged)
    chosen, curve = _grown(choosing, effects.order(), target)
    kept = _mask(chosen, len(every))
    rng = np.random.default_rng(seed)
    others = [_alike(kept, every, rng) for _ in range(random_sets)]
    values = [judging.kept(mask) for mask in (kept, ~kept)]
    controls = [[judging.kept(m) for m in side] for side in (others, [~m for m in others])]
    faithfulness, completeness = (
        _beside(task, judged, value, control, seed) for value, control in zip(values, controls, strict=True)
    )
    growth = []
    for size in np.unique(np.geomspace(1, len(every), SIZES).round().astype(int)[:-1]).tolist():
        mask = _mask(effects.order()[:size].tolist(), len(every))
        sets = [judging.kept(_alike(mask, every, rng)) for _ in range(max(2, random_sets // 2))]
        growth.append((size, _beside(task, judged, judging.kept(mask), sets, seed)))
    return Circuit(
        task.name,
        tuple(every[i] for i in chosen),
        len(every),
        faithfulness,
        completeness,
        tuple(curve),
        target,
        effects.method,
        tuple(growth),
        effects,
    )


def refuse_undone(task: Task) -> None:
    """Say so where a task cannot have a circuit.

    Args:
        task: Any.

    Raises:
        CorpusError: There are too few pairs, or clean and corrupt prompts do not differ in their score.
    """
    if len(task.pairs) < LEAST:
        message = f"A circuit needs at least {LEAST} pairs. Got {len(task.pairs)}. Write more prompts."
        raise CorpusError(message)
    sums = Sums()
    sums.add(np.arange(len(task.pairs)), gap=task.clean - task.corrupt, n=np.ones(len(task.pairs)))
    low, _ = interval(sums, lambda of: of["gap"] / of["n"])
    if low <= 0:
        message = (
            f"A circuit needs a task that the model does: a score that the corrupt prompts take down. Got "
            f"{task.clean.mean():.3g} after clean and {task.corrupt.mean():.3g} after corrupt prompts, right "
            f"in {task.accuracy:.0%}. Choose another task, or another model."
        )
        raise CorpusError(message)


def part_of(task: Task, at: np.ndarray) -> Task:
    """A task of some of the pairs.

    Args:
        task: Of all.
        at: int64, their numbers.
    """
    pairs = tuple(task.pairs[i] for i in at)
    return Task(task.name, pairs, task.score, task.clean[at], task.corrupt[at])


class _Scores:
    """Scores of some pairs with some nodes kept. The corrupt passes are read once."""

    def __init__(self, subject: Any, task: Task, sites: Sequence[Site], at: np.ndarray) -> None:
        self.subject, self.task, self.sites, self.at = subject, task, sites, at
        self.batches = [(batch, read(subject, sites, batch)) for batch in task.batches(subject, at)]

    def kept(self, mask: np.ndarray) -> np.ndarray:
        """float64 [pairs]: the score with the nodes of a mask alone, minus that of the corrupt prompt."""
        found = np.zeros(len(self.task.pairs))
        for batch, other in self.batches:
            edits = edits_of(self.sites, other, mask)
            found[batch.at] = scored(self.subject, self.task, batch, edits) - self.task.corrupt[batch.at]
        return found[self.at]

    def faithfulness(self, mask: np.ndarray) -> tuple[float, float]:
        """Of all its pairs together, and its standard error, that of a ratio of means over pairs."""
        gap, kept = (self.task.clean - self.task.corrupt)[self.at], self.kept(mask)
        ratio = kept.sum() / gap.sum()
        return float(ratio), float(np.sqrt(((kept - ratio * gap) ** 2).sum()) / gap.sum())


def _grown(scores: _Scores, order: np.ndarray, target: float) -> tuple[list[int], list[tuple[int, float]]]:
    """The shortest beginning of an order that is faithful enough, without what it does not need; and what
    was tried."""
    curve: list[tuple[int, float]] = []

    def enough(chosen: Sequence[int]) -> bool:
        value, error = scores.faithfulness(_mask(chosen, len(order)))
        curve.append((len(chosen), value))
        return value - error >= target

    sizes = np.unique(np.geomspace(1, len(order), 24).round().astype(int))
    size = next((int(n) for n in sizes if enough(order[:n].tolist())), len(order))
    below = int(sizes[sizes < size].max()) if (sizes < size).any() else 0
    while size - below > 1 and size - below <= 32:
        middle = (size + below) // 2
        if enough(order[:middle].tolist()):
            size = middle
        else:
            below = middle
    chosen = [int(i) for i in order[:size]]
    # of many nodes only the weakest are tried: each costs a pass
    for node in reversed(chosen[-64:]):
        left = [i for i in chosen if i != node]
        if left and enough(left):
            chosen = left
    return chosen, sorted(curve)


def _mask(chosen: Sequence[int], n: int) -> np.ndarray:
    mask = np.zeros(n, dtype=bool)
    mask[list(chosen)] = True
    return mask


def _alike(kept: np.ndarray, every: Sequence[Any], rng: np.random.Generator) -> np.ndarray:
    """As many nodes of each kind, at random."""
    kinds = np.array([node.kind for node in every])
    mask = np.zeros_like(kept)
    for kind in np.unique(kinds):
        of = np.flatnonzero(kinds == kind)
        mask[rng.choice(of, int(kept[of].sum()), replace=False)] = True
    return mask


def _beside(task: Task, at: np.ndarray, value: np.ndarray, control: list[np.ndarray], seed: int) -> Beside:
    """A share of the gap, with its interval over pairs; of random sets that over sets."""
    gap = (task.clean - task.corrupt)[at]
    sums = Sums()
    sums.add(np.arange(len(at)), kept=value, gap=gap)
    shares = np.array([each.sum() / gap.sum() for each in control])
    low, high = np.percentile(shares, [2.5, 97.5])
    return Beside(
        float(value.sum() / gap.sum()),
        float(shares.mean()),
        interval(sums, lambda of: of["kept"] / of["gap"], seed),
        (float(low), float(high)),
        len(at),
        f"{len(control)} random sets",
    )


__all__ = ["circuit", "part_of", "refuse_undone"]
