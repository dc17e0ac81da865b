"""How much of what is known of documents and rows stands in a few latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.controls import untrained
from saelab.analysis.probing import labelled, sparse
from saelab.analysis.probing.claims import (
    RANDOM,
    SHUFFLED,
    UNTRAINED,
    Shares,
    claim,
    few_enough,
    halves,
    settle,
)  # fmt: skip
from saelab.analysis.probing.gathered import Gathered, averages, codes_of, gather
from saelab.analysis.sources import Ground
from saelab.analysis.suites.registry import Found, Suite, register
from saelab.arguments import one_of
from saelab.types import ConfigError

if TYPE_CHECKING:
    from saelab.sae import SAE

DRAWS = 4
"""Of shuffled labels and of random latents, for each label."""
RAW = "coordinates of x"


@register("probing")
@dataclass(frozen=True)
class Probing(Suite):
    """Accuracy of probes that read k latents, and of one that reads the whole activation: does the SAE keep
    what is known of a text in few latents?

    A label is asked of documents (codes and activations are means over a document's rows) or of single rows.
    The k latents are those whose means differ most between fitted units with and without it; a logistic probe
    on them is judged on units of held-out documents, as many with the label as without, so that 0.5 is what
    knowing nothing gives (Gurnee et al. 2023, arXiv 2305.01610; sparse probing in SAEBench). `top_k` is the
    mean over labels; beside it stand an untrained SAE, labels shuffled among the fitted units, k latents
    drawn at random, and the k coordinates of x that differ most. `dense` is a probe on x: what there is to be
    found.

    Attributes:
        labels: None takes what documents bear themselves: their labels and kinds, and the spans of their
            texts for rows. Else a table of one's own: a list with one value a document or a row, or a dict or
            data frame of such lists; "" and None carry no label.
        ks: Numbers of latents.
        held_out: Share of the documents that judges.
        by: How latents are chosen: by the difference of their "means", as SAEBench does (large latents come
            first), or by their "effect", the difference in units of the standard deviation.
        most: Units with the label that a probe is fitted on, at most; as many without.
        rows: Rows that are read, at most.

    Raises:
        ConfigError: Nothing is labelled, all carry the same label, or there are fewer latents than a probe
            reads.
        ShapeError: A table of another length than documents or rows.
    """

    labels: Any = None
    ks: tuple[int, ...] = (1, 2, 5, 10)
    held_out: float = 0.3
    by: str = "means"
    most: int = 500
    rows: int = 30_000

    def __post_init__(self) -> None:
        settle(self, "ks", "most", "rows")
        one_of("means", "effect")("by", self.by)

    def run(self, sae: SAE, ground: Ground) -> Found:
        """Measure one SAE.

        Args:
            sae: The SAE.
            ground: What it is measured on.

        Raises:
            ConfigError: Nothing is labelled, all carry the same label, too few do, or ks exceeds d_sae.
            CorpusError: There are no rows.
            ShapeError: A table of another length than documents or rows.
        """
        few_enough("ks", self.ks, sae.d_sae)
        gathered = gather(sae, ground, self.rows)
        tasks = (
            labelled.annotated(gathered, ground.subject)
            if self.labels is None
            else labelled.tabled(gathered, self.labels)
        )
        control = untrained(sae, gathered.x, gathered.y, ground.seed)
        codes = {name: codes_of(each, gathered.x) for name, each in (("", sae), (UNTRAINED, control))}
        return probed(gathered, codes, tasks, self, ground.seed)


def probed(
    gathered: Gathered, codes: dict[str, Any], tasks: Sequence[labelled.Task], asked: Probing, seed: int
) -> Found:
    """The claims of `Probing`.

    Args:
        gathered: Rows.
        codes: "" -> [n d_sae] of the SAE, "untrained SAE" -> of its control.
        tasks: What is asked.
        asked: The options.
        seed: Of all draws.

    Raises:
        ConfigError: No task has units enough.
    """
    import pandas as pd

    ks, by = asked.ks, asked.by
    n_documents = max(len(gathered.documents), gathered.n_documents)
    judge = halves(n_documents, asked.held_out, seed)
    number = np.cumsum(judge) - 1
    x = gathered.x.double().numpy()
    mean = averages(gathered.document, n_documents)
    read = {
        "row": (codes, x, gathered.document),
        "document": ({name: mean @ each for name, each in codes.items()}, mean @ x, np.arange(n_documents)),
    }
    arms = {(k, name): Shares() for k in ks for name in ("", UNTRAINED, SHUFFLED, RANDOM, RAW)}
    dense = {name: Shares() for name in ("", SHUFFLED)}
    lines, left_out, judged = [], {}, set()
    for at, task in enumerate(tasks):
        own, acts, document = read[task.of]
        rng = np.random.default_rng([seed, at])
        parts = sparse.split(task, document, judge, asked.most, rng)
        if isinstance(parts, str):
            left_out[f"{task.label} ({task.of}s)"] = parts
            continue
        key, unit = f"{task.of} {task.label}", number[document[parts.test]]
        judged.update(unit.tolist())
        true = task.positive[parts.fit]
        wrong = [rng.permutation(true) for _ in range(DRAWS)]
        few = [min(k, acts.shape[1]) for k in ks]
        found = {
            "": [sparse.best(own[""], task.positive, parts, ks, true, by)],
            UNTRAINED: [sparse.best(own[UNTRAINED], task.positive, parts, ks, true, by)],
            SHUFFLED: [sparse.best(own[""], task.positive, parts, ks, labels, by) for labels in wrong],
            RANDOM: [sparse.drawn(own[""], task.positive, parts, ks, rng) for _ in range(DRAWS)],
            RAW: [sparse.best(acts, task.positive, parts, few, true, by)],
        }
        line = {"label": task.label, "of": task.of, "fitted": len(parts.fit), "judged": len(parts.test)}
        every = np.arange(acts.shape[1])
        for name, believed in (("", true), (SHUFFLED, wrong[0])):
            right = sparse.fitted(every, acts, task.positive, parts, believed).right
            dense[name].add(key, unit, right)
            line["dense" if not name else f"dense, {name}"] = right.mean()
        for name, draws in found.items():
            for at_k, k in enumerate(ks):
                right = np.mean([fits[at_k].right for fits in draws], axis=0)
                arms[k, name].add(key, unit, right)
                line[f"top {k}{name and f', {name}'}"] = right.mean()
        line["latents"] = " ".join(map(str, found[""][0][-1].columns))
        lines.append(line)
    if not lines:
        message = (
            f"Probing needs a label with units enough. Got none of {len(tasks)}: "
            f"{next(iter(left_out.items()), ('', 'nothing is labelled'))[1]}."
        )
        raise ConfigError(message)
    claims = {}
    for k in ks:
        others = {name: arms[k, name] for name in (UNTRAINED, SHUFFLED, RANDOM, RAW)}
        claims[f"top_{k}"] = claim(arms[k, ""], others, seed, len(judged))
    claims["dense"] = claim(dense[""], {SHUFFLED: dense[SHUFFLED]}, seed, len(judged))
    return Found(claims, left_out, {"labels": pd.DataFrame(lines)})


__all__ = ["Probing"]
