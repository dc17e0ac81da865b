"""Whether removing a class's latents harms its own probe alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.controls import untrained
from saelab.analysis.probing import labelled, sparse
from saelab.analysis.probing.claims import RANDOM, SHUFFLED, UNTRAINED, Shares, claim, halves, settle
from saelab.analysis.probing.gathered import gather
from saelab.analysis.probing.linear import probe_of
from saelab.analysis.probing.removing import Pooled, autoencoder, orders, pooled
from saelab.analysis.suites.registry import Found, Suite, register
from saelab.types import ConfigError

if TYPE_CHECKING:
    from saelab.analysis.sources import Ground
    from saelab.sae import SAE


@register("tpp")
@dataclass(frozen=True)
class TPP(Suite):
    """Targeted probe perturbation: are the latents of one class of documents its own?

    For each class a probe on mean activations tells it from the others. The n latents that the probe of class
    i rests on most, (mean code with the label - mean code without, where that is positive) d_j . w, are taken
    out of held-out documents, and each class's probe is judged again. `tpp_n` is what the probe of i loses
    less what the others lose on average, mean over classes (SAEBench's definition); 0 is what latents without
    a class give. `own_n` and `others_n` are the two parts. Beside them stand an untrained SAE, latents chosen
    by shuffled labels, and latents drawn at random.

    Attributes:
        labels: None takes the documents' labels and kinds; else a list with the class of each document, or a
            dict of such lists.
        ns: Numbers of latents.
        held_out: Share of the documents that judges.
        most: Documents of a class that a probe is fitted on, at most; as many others.
        rows: Rows that are read, at most.

    Raises:
        ConfigError: Fewer than two classes have documents enough, or the SAE is a transcoder.
        ShapeError: A list of another length than the documents.
    """

    labels: Any = None
    ns: tuple[int, ...] = (2, 5, 10, 20, 50)
    held_out: float = 0.3
    most: int = 500
    rows: int = 60_000

    def __post_init__(self) -> None:
        settle(self, "ns", "most", "rows")

    def run(self, sae: SAE, ground: Ground) -> Found:
        """Measure one SAE.

        Args:
            sae: The SAE.
            ground: What it is measured on.

        Raises:
            ConfigError: Fewer than two classes have documents enough, or it is no autoencoder.
            CorpusError: There are no rows.
            ShapeError: A list of another length than the documents.
        """
        autoencoder("TPP", sae)
        gathered = gather(sae, ground, self.rows)
        tasks = (
            labelled.annotated(gathered, None)
            if self.labels is None
            else labelled.tabled(gathered, self.labels)
        )
        n = max(len(gathered.documents), gathered.n_documents)
        control = untrained(sae, gathered.x, seed=ground.seed)
        arms = {name: pooled(each, gathered, n) for name, each in (("", sae), (UNTRAINED, control))}
        classes = [task for task in tasks if task.of == "document"]
        return perturbed(
            arms, classes, halves(n, self.held_out, ground.seed), self.ns, self.most, ground.seed
        )


def perturbed(
    arms: Mapping[str, Pooled],
    classes: Sequence[labelled.Task],
    judge: np.ndarray,
    ns: Sequence[int],
    most: int,
    seed: int,
) -> Found:
    """The claims of `TPP`.

    Args:
        arms: "" -> documents as the SAE sees them, "untrained SAE" -> as its control does.
        classes: Of the documents.
        judge: bool [documents], those held out.
        ns: Numbers of latents.
        most: Documents of a class that a probe is fitted on.
        seed: Of all draws.

    Raises:
        ConfigError: Fewer than two classes have documents enough.
    """
    import pandas as pd

    rng = np.random.default_rng(seed)
    x, number = arms[""].x, np.cumsum(judge) - 1
    left_out, known = {}, {}
    for task in classes:
        parts = sparse.split(task, np.arange(len(judge)), judge, most, rng)
        if isinstance(parts, str):
            left_out[task.label] = parts
            continue
        probe = probe_of(x[parts.fit], task.positive[parts.fit])
        known[task.label] = task, parts, probe, probe.says(x[parts.test]) == task.positive[parts.test]
    if len(known) < 2:
        why = f"; {next(iter(left_out.items()))}" if left_out else ""
        message = (
            f"TPP needs two classes of documents or more. Got {len(known)}{why}. Pass a corpus of several "
            "kinds, or labels=."
        )
        raise ConfigError(message)
    names = ("", UNTRAINED, SHUFFLED, RANDOM)
    shares = {(kind, n, name): Shares() for kind in ("tpp", "own", "others") for n in ns for name in names}
    lines = []
    for label, (task, parts, probe, _) in known.items():
        order = orders(arms, probe, task.positive, parts.fit, max(ns), rng, either=False)
        line: dict[str, Any] = {"class": label, "accuracy": known[label][3].mean()}
        for name, ranked in order.items():
            own = arms[name if name == UNTRAINED else ""]
            for n in ns:
                for other, (asked, cases, judged, clean) in known.items():
                    after = judged.says(own.without(ranked[:n], cases.test)) == asked.positive[cases.test]
                    lost, unit = clean.astype(float) - after, number[cases.test]
                    is_own = other == label
                    shares["tpp", n, name].add(f"{label} {other}", unit, lost, off=not is_own)
                    shares["own" if is_own else "others", n, name].add(f"{label} {other}", unit, lost)
                    if is_own:
                        line[f"loses by {n}{name and f', {name}'}"] = lost.mean()
        lines.append({**line, "latents": " ".join(map(str, arms[""].latents[order[""][:10]]))})
    n_units = len(np.unique(np.concatenate([parts.test for _, parts, _, _ in known.values()])))
    claims = {
        f"{kind}_{n}": claim(
            shares[kind, n, ""], {name: shares[kind, n, name] for name in names[1:]}, seed, n_units
        )
        for n in ns
        for kind in ("tpp", "own", "others")
    }
    return Found(claims, left_out, {"classes": pd.DataFrame(lines)})


__all__ = ["TPP"]
