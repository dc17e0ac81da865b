"""The suite "classes"."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.classes import CLASSES, RowClasses, ordered
from saelab.analysis.controls import Beside, Sums, beside_each, shuffled, untrained
from saelab.analysis.scores import Seen
from saelab.analysis.sources import Look, first_look
from saelab.analysis.suites.registry import Found, Suite, register
from saelab.types import CorpusError

if TYPE_CHECKING:
    import pandas as pd

    from saelab.analysis.blocks import Block
    from saelab.analysis.sources import Ground, Passes, Rows
    from saelab.sae import SAE

ANY = "rows of any class"
UNTRAINED = "untrained SAE"


@register("classes")
@dataclass(frozen=True)
class Classes(Suite):
    """Which rows does the SAE rebuild badly: special tokens, which positions, rare tokens, which documents?

    "fvu, ..." is sum |y - x_hat|^2 / sum |y - mean y|^2 over the rows of a class, the mean being that of
    all rows. It stands beside the untrained SAE's on the same rows and beside as many rows of any class,
    drawn by shuffling the classes of each pass. Bands of positions double, quarters of rows are by how often
    their token occurs, special are the tokenizer's own tokens; kinds are those of the documents. Activations
    without a subject have none of these.

    Fields:
        least: Rows; of a class with fewer nothing is said.
    """

    least: int = 100

    def run(self, sae: SAE, ground: Ground) -> Found:
        import torch

        source, mode = ground.source(sae), sae.training
        sae.eval()
        try:
            with torch.no_grad():
                sums = _summed(sae, source, ground.seed)
        finally:
            sae.train(mode)
        claims, left_out = {}, {}
        for by in CLASSES:
            named = ordered(np.array([name for kind, name in sums if kind == by], object))
            if not named:
                left_out[by] = "the rows have no such classes"
            elif len(named) == 1:
                left_out[by] = f"all rows are of one: {named[0]}"
            else:
                for name in named:
                    arms, title = sums[by, name], f"fvu, {by}, {name}"
                    if (n := int(arms["this"].total("rows"))) < self.least:
                        left_out[title] = f"{n} rows, fewer than {self.least}"
                    elif not all(arm.total("deviation") > 0 for arm in arms.values()):
                        left_out[title] = "all its rows are the mean of all rows"
                    else:
                        claims[title] = _fvu(arms, ground.seed)
        if not claims:
            message = f"Classes of rows are compared. Got none: {left_out}. Pass a subject and a corpus."
            raise CorpusError(message)
        return Found(claims, left_out, {"classes": _table(sums)})


def _summed(sae: SAE, source: Rows | Passes, seed: int) -> dict[tuple[str, str], dict[str, Sums]]:
    """(kind of class, class) -> arm -> sums over its rows."""
    classes = RowClasses(source)
    look = first_look(source, classes.add)
    arms = {"this": sae, UNTRAINED: untrained(sae, *look.first, seed=seed)}
    sums: dict[tuple[str, str], dict[str, Sums]] = defaultdict(lambda: defaultdict(Sums))
    for number, block in enumerate(each for each in source.blocks() if len(each.y)):
        found = {name: _of_rows(arm, block, look) for name, arm in arms.items()}
        for by, values in classes.of(block).items():
            if by in CLASSES:
                mixed = shuffled(values, seed + number)
                for name in np.unique(values):
                    told = sums[by, name]
                    for arm, at in (("this", values), (UNTRAINED, values), (ANY, mixed)):
                        here = at == name
                        of = found["this" if arm == ANY else arm]
                        told[arm].add(block.unit[here], **{key: each[here] for key, each in of.items()})
    return sums


def _of_rows(sae: SAE, block: Block, look: Look) -> dict[str, np.ndarray]:
    x = block.x.to(sae.device)
    forward = sae(x, sparse=True)
    seen = Seen(x, block.y.to(x.device), forward.x_hat, forward.codes, look.mean.to(x.device), look.ordinary)
    found = {"error": seen.error, "deviation": seen.deviation, "on": seen.on}
    return {name: each.cpu().numpy() for name, each in found.items()} | {"rows": np.ones(len(x))}


def _fvu(arms: Mapping[str, Sums], seed: int) -> Beside:
    controls = {UNTRAINED: arms[UNTRAINED], ANY: arms[ANY]}
    having = int((arms["this"].of("rows") > 0).sum())
    return beside_each(arms["this"], controls, lambda s: s["error"] / s["deviation"], seed, having)


def _table(sums: Mapping[tuple[str, str], Mapping[str, Sums]]) -> pd.DataFrame:
    """One line for each class: its rows, and of these mean squared error a row, L0 and FVU."""
    import pandas as pd

    lines: list[dict[str, Any]] = []
    for by in CLASSES:
        for name in ordered(np.array([name for kind, name in sums if kind == by], object)):
            own = sums[by, name]["this"]
            n = own.total("rows")
            fvu = own.total("error") / own.total("deviation") if own.total("deviation") else np.nan
            told = {"rows": int(n), "squared error": own.total("error") / n, "l0": own.total("on") / n}
            lines.append({"by": by, "class": name, **told, "fvu": fvu})
    return pd.DataFrame(lines)
