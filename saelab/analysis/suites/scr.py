"""Whether removing latents of a spurious label makes a misled probe right."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.controls import Sums, beside_each, untrained
from saelab.analysis.probing import labelled
from saelab.analysis.probing.claims import RANDOM, SHUFFLED, UNTRAINED, halves, settle
from saelab.analysis.probing.gathered import gather
from saelab.analysis.probing.linear import probe_of
from saelab.analysis.probing.removing import Pooled, autoencoder, orders, pooled
from saelab.analysis.probing.sparse import LEAST
from saelab.analysis.suites.registry import Found, Suite, register
from saelab.types import ConfigError, short

if TYPE_CHECKING:
    from saelab.analysis.sources import Ground
    from saelab.sae import SAE

MISLED = 0.05
"""How much less a misled probe is right than one that isn't, below which there is nothing to repair."""


@register("scr")
@dataclass(frozen=True)
class SCR(Suite):
    """Spurious correlation removal: a probe that learnt the wrong label, repaired by taking its latents out.

    Of two labels of documents, a probe is fitted where both go together, so that it can't know which is
    meant, and judged on held-out documents where they don't. The n latents that a probe of the spurious label
    rests on most are taken out of these: `scr_n` = (accuracy then - before) / (accuracy of a probe that was
    fitted where the labels are independent - before), 1 is a probe that was never misled and 0 one that still
    is (SAEBench's definition; of the two labels the one that misleads more is the spurious one), mean over
    pairs of labels. What is taken out moves the activations of all documents along the probe, which a bias
    that stays takes for an answer: `centred_n` is the same with the mean codes of the fitted documents in
    place of zeros. Beside it stand an untrained SAE, latents chosen by shuffled labels, and latents drawn at
    random.

    Attributes:
        pairs: Pairs of labels; None for those of which every combination has most documents.
        most_pairs: How many are taken, with pairs=None.
        labels: None takes the documents' labels and kinds, and which labels the spans of their texts have;
            else a dict of lists with one value a document.
        ns: Numbers of latents.
        held_out: Share of the documents that judges.
        most: Documents of each combination that a probe is fitted on, at most.
        rows: Rows that are read, at most.

    Raises:
        ConfigError: No pair has documents enough of every combination, none misleads, a label is unknown, or
            the SAE is a transcoder.
        ShapeError: A list of another length than the documents.
    """

    pairs: tuple[tuple[str, str], ...] | None = None
    most_pairs: int = 4
    labels: Any = None
    ns: tuple[int, ...] = (2, 5, 10, 20, 50)
    held_out: float = 0.3
    most: int = 300
    rows: int = 60_000

    def __post_init__(self) -> None:
        settle(self, "ns", "most", "most_pairs", "rows")

    def run(self, sae: SAE, ground: Ground) -> Found:
        """Measure one SAE.

        Args:
            sae: The SAE.
            ground: What it is measured on.

        Raises:
            ConfigError: No pair can be judged, a label is unknown, or it is no autoencoder.
            CorpusError: There are no rows.
            ShapeError: A list of another length than the documents.
        """
        autoencoder("SCR", sae)
        gathered = gather(sae, ground, self.rows)
        if self.labels is None:
            tasks = [*labelled.annotated(gathered, None), *labelled.borne(gathered, ground.subject)]
        else:
            tasks = labelled.tabled(gathered, self.labels)
        labels = {task.label: task.positive for task in tasks if task.of == "document"}
        n = max(len(gathered.documents), gathered.n_documents)
        judge = halves(n, self.held_out, ground.seed)
        pairs = _best_pairs(labels, judge, self.most_pairs) if self.pairs is None else self.pairs
        control = untrained(sae, gathered.x, seed=ground.seed)
        arms = {name: pooled(each, gathered, n) for name, each in (("", sae), (UNTRAINED, control))}
        return repaired(arms, labels, pairs, judge, self.ns, self.most, ground.seed)


def _best_pairs(labels: Mapping[str, np.ndarray], judge: np.ndarray, most: int) -> list[tuple[str, str]]:
    """Pairs whose least combination has most documents; each label is in one pair, while there are others."""
    sizes = {
        pair: min(
            int((cell & (judge == side)).sum())
            for cell in _cells(*(labels[k] for k in pair))
            for side in (0, 1)
        )
        for pair in itertools.combinations(sorted(labels), 2)
    }
    found: list[tuple[str, str]] = []
    for pair in sorted(sizes, key=lambda each: (-sizes[each], each)):
        if sizes[pair] >= LEAST and not set(pair) & set(itertools.chain(*found)):
            found.append(pair)
    return found[:most]


def _cells(one: np.ndarray, other: np.ndarray) -> list[np.ndarray]:
    """bool [documents] of both, one alone, the other alone, neither."""
    return [one & other, one & ~other, ~one & other, ~one & ~other]


def repaired(
    arms: Mapping[str, Pooled],
    labels: Mapping[str, np.ndarray],
    pairs: Sequence[tuple[str, str]],
    judge: np.ndarray,
    ns: Sequence[int],
    most: int,
    seed: int,
) -> Found:
    """The claims of `SCR`.

    Args:
        arms: "" -> documents as the SAE sees them, "untrained SAE" -> as its control does.
        labels: Label -> bool [documents].
        pairs: Labels that are set against each other.
        judge: bool [documents], those held out.
        ns: Numbers of latents.
        most: Documents of each combination that a probe is fitted on.
        seed: Of all draws.

    Raises:
        ConfigError: A label is unknown, or no pair can be judged.
    """
    import pandas as pd

    rng = np.random.default_rng(seed)
    number = np.cumsum(judge) - 1
    names = ("", UNTRAINED, SHUFFLED, RANDOM)
    kinds = ("scr", "centred")
    sums = {(kind, n, name): Sums() for kind in kinds for n in ns for name in names}
    lines, left_out, known, judged = [], {}, [], set()
    for pair in pairs:
        found = _pair(arms, labels, pair, judge, max(ns), most, rng)
        said = " and ".join(pair)
        if isinstance(found, str):
            left_out[said] = found
            continue
        known.append(said)
        judged.update(found.test.tolist())
        unit = number[found.test]
        for name, ranked in found.order.items():
            own = arms[name if name == UNTRAINED else ""]
            for n, kind in itertools.product(ns, kinds):
                like = found.fit if kind == "centred" else None
                after = found.right(own.without(ranked[:n], found.test, like))
                values = {"after": after, "before": found.before, "oracle": found.oracle}
                sums[kind, n, name].add(unit, **{f"{key} {said}": each for key, each in values.items()})
                found.line[f"{kind} {n}{name and f', {name}'}"] = after.mean()
        lines.append(found.line)
    if not known:
        message = (
            f"SCR needs two labels of documents in every combination, {LEAST} fitted and {LEAST} held-out "
            f"ones of each, one of which misleads. Got {short(left_out or 'no such pair')}. Pass more "
            "documents, or labels=."
        )
        raise ConfigError(message)

    def score(of: Mapping[str, Any]) -> Any:
        parts = [
            (of[f"after {k}"] - of[f"before {k}"]) / (of[f"oracle {k}"] - of[f"before {k}"]) for k in known
        ]
        return np.mean(parts, axis=0)

    claims = {}
    for n, kind in itertools.product(ns, kinds):
        controls = {name: sums[kind, n, name] for name in names[1:]}
        claims[f"{kind}_{n}"] = beside_each(sums[kind, n, ""], controls, score, seed, len(judged))
    return Found(claims, left_out, {"pairs": pd.DataFrame(lines)})


@dataclass(frozen=True)
class _Misled:
    """A probe that took one label for another."""

    fit: np.ndarray
    """int64: documents of each combination that are fitted on"""
    test: np.ndarray
    """int64: documents that judge, as many of each combination"""
    target: np.ndarray
    """bool, of these: the label that is meant"""
    probe: Any
    before: np.ndarray
    oracle: np.ndarray
    order: dict[str, np.ndarray]
    """arm -> its latents, the first to go first"""
    line: dict[str, Any]

    def right(self, x: np.ndarray) -> np.ndarray:
        return self.probe.says(x) == self.target


def _pair(
    arms: Mapping[str, Pooled],
    labels: Mapping[str, np.ndarray],
    pair: tuple[str, str],
    judge: np.ndarray,
    largest: int,
    most: int,
    rng: np.random.Generator,
) -> _Misled | str:
    unknown = [name for name in pair if name not in labels]
    if unknown or len(pair) != 2:
        message = (
            f"pairs must name two labels of documents. Got {short(pair)}. There are {', '.join(labels)}."
        )
        raise ConfigError(message)
    x = arms[""].x
    cells = _cells(*(labels[name] for name in pair))
    sides = []
    for side, limit in ((False, most), (True, most)):
        own = [np.flatnonzero(cell & (judge == side)) for cell in cells]
        size = min(limit, *map(len, own))
        if size < LEAST:
            return f"needs {LEAST} documents of each combination on either side. Got {size}"
        sides.append([rng.permutation(each)[:size] for each in own])
    fit, test = np.concatenate(sides[0]), np.concatenate(sides[1])
    # both or neither: the two labels are one
    together = np.concatenate([sides[0][0], sides[0][3]])
    misled = probe_of(x[together], labels[pair[0]][together])
    found = []
    for target, spurious in (pair, pair[::-1]):
        truth = labels[target][test]
        before = misled.says(x[test]) == truth
        oracle = probe_of(x[fit], labels[target][fit]).says(x[test]) == truth
        found.append((before.mean(), target, spurious, truth, before, oracle))
    _, target, spurious, truth, before, oracle = min(found, key=lambda each: each[0])
    if oracle.mean() - before.mean() < MISLED:
        return (
            f"{spurious} misleads no probe of {target}: right {before.mean():.2f}, else {oracle.mean():.2f}"
        )
    of_spurious = probe_of(x[fit], labels[spurious][fit])
    order = orders(arms, of_spurious, labels[spurious], fit, largest, rng, either=True)
    line = {
        "target": target, "spurious": spurious, "before": before.mean(), "oracle": oracle.mean(),
        "latents": " ".join(map(str, arms[""].latents[order[""][:10]])),
    }  # fmt: skip
    return _Misled(fit, test, truth, misled, before, oracle, order, line)


__all__ = ["SCR"]
