"""Does a search by text find the latents that stand for what the text is?

python benchmarks/searching.py [--seeds 5] [--queries 12] [--log FILE.md]

The world's texts say of their words what they are (a person, a place, a rude phrase, a word of a topic). Each
query is such a word or phrase as a person would type it, out of documents that no SAE saw. Of the five
latents that answer best, precision is the share of the rows of the store on which they fire that carry the
query's label; beside it stand the ranking by the strongest value on the text alone, and as a control five
latents drawn at random from those that the text fires. Means over labels, with 95 % of drawing the queries
again; the ceiling is five latents of the embedded store that are best for the label, whatever the text.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

import saelab
from saelab.analysis.controls import Beside, Sums, beside
from saelab.commands.truth import grouped, labels_of_rows, precisions

BEST = 5
STRUCTURE = {"random word", "second copy", "topic word", "role marker", "rebuke", "assent"}
"""Labels of what a text does, not of what its words are."""


class Figures(NamedTuple):
    """Of one seed."""

    specific: Beside
    """beside latents at random"""
    value: Beside
    """the ranking by value beside the same"""
    ceiling: float
    n_labels: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=12, help="of each label, at most")
    parser.add_argument("--log", type=Path, help="append the table to this file")
    options = parser.parse_args()
    lab = saelab.Lab.embedded()
    labels = [grouped(label) for label in labels_of_rows(lab.store, lab.subject)]
    lines = [
        "| seed | specific | by value | at random | ceiling |",
        "|---|---:|---:|---:|---:|",
    ]
    for seed in range(1_000, 1_000 + options.seeds):
        found = measure(lab, labels, seed, options.queries)
        cells = [_told(found.specific.value, found.specific.interval)]
        cells += [_told(found.value.value, found.value.interval)]
        cells += [_told(found.specific.control, found.specific.control_interval), f"{found.ceiling:.3f}"]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    lines.append(f"\n{found.n_labels} labels, {found.specific.n} queries each seed.")
    print("\n".join(lines))
    if options.log:
        with options.log.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


def measure(lab: saelab.Lab, labels: list[str], seed: int, n_queries: int) -> Figures:
    """Precision at five of a seed's queries."""
    of = precisions(lab.store, labels)
    texts = defaultdict(set)
    for document in saelab.corpora.world(seed=seed, n_documents=600):
        for span in document.spans:
            texts[grouped(span.label)].add(document.text[span.start : span.end].strip())
    names = sorted(set(of) & set(texts) - STRUCTURE)
    rng = random.Random(seed)
    arms = {"specific": Sums(), "value": Sums(), "random": Sums()}
    n, ceiling = 0, []
    for name in names:
        queries = rng.sample(sorted(texts[name]), min(n_queries, len(texts[name])))
        ceiling.append(np.sort(of[name])[-BEST:].mean())
        for query in queries:
            plain = saelab.analysis.search(lab.subject, lab.sae, query, lab.sae.d_sae)
            chosen = {
                "specific": [
                    f.latent
                    for f in saelab.analysis.search(lab.subject, lab.sae, query, BEST, store=lab.store)
                ],
                "value": [f.latent for f in plain[:BEST]],
                "random": [f.latent for f in rng.sample(plain, min(BEST, len(plain)))],
            }
            # every label counts as much as any other
            weight = 1 / len(queries)
            for arm, latents in chosen.items():
                arms[arm].add([n], hits=[weight * of[name][latents].mean()], of=[weight])
            n += 1
    specific, value = (
        beside(arms[arm], arms["random"], _mean, seed, "latents at random") for arm in ("specific", "value")
    )
    return Figures(specific, value, float(np.mean(ceiling)), len(names))


def _mean(sums):
    return sums["hits"] / sums["of"]


def _told(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


if __name__ == "__main__":
    main()
