"""What the experiments share: tables of figures by seed, promises with bars, training and scoring."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

import saelab
from saelab.analysis import RecoveryScores, recovery
from saelab.corpora import Synthetic
from saelab.corpora.synthetic import HELD_OUT
from saelab.sae import SAE

FOUND = {
    "recovered_80": "cos >= .8", "recovered_90": ">= .9", "recovered_95": ">= .95", "fvu": "FVU", "l0": "L0",
    "dead": "dead",
}  # fmt: skip


class Promise(NamedTuple):
    """A sentence, its bar, and a figure for each seed."""

    text: str
    values: list[float]
    low: float
    high: float
    on_average: bool

    @property
    def kept(self) -> bool:
        """Whether every seed is within the bar, or their mean."""
        values = [statistics.mean(self.values)] if self.on_average else self.values
        return all(self.low <= v <= self.high for v in values)

    def cells(self) -> list[str]:
        if self.high == math.inf:
            bar = f">= {self.low:g}"
        else:
            bar = f"<= {self.high:g}" if self.low == -math.inf else f"{self.low:g} to {self.high:g}"
        bar += ", mean" if self.on_average else ""
        worst = f"{min(self.values):.3g} to {max(self.values):.3g}"
        return [self.text, bar, spread(self.values), worst, "PASS" if self.kept else "FALLS SHORT"]


class Report:
    """The table of one experiment, an arm a row, and its promises."""

    def __init__(self, title: str, setup: str, each: str = "seeds") -> None:
        self.title, self.setup, self.each = title, setup, each
        self.table: dict[str, list[dict[str, float]]] = {}
        self.promises: list[Promise] = []
        self.notes: list[str] = []

    def add(self, arm: str, values: Mapping[str, float]) -> None:
        """The figures of one more seed, or of what else the rows are of."""
        self.table.setdefault(arm, []).append(dict(values))

    def of(self, arm: str, column: str) -> np.ndarray:
        """One figure of an arm by seed."""
        return np.array([values[column] for values in self.table[arm]])

    def promise(
        self,
        text: str,
        values: Iterable[Any],
        low: float = -math.inf,
        high: float = math.inf,
        on_average: bool = False,
    ) -> None:
        """The values, one a seed, must lie in [low, high], each of them or their mean."""
        self.promises.append(Promise(text, [float(v) for v in values], low, high, on_average))

    def lines(self, command: str) -> list[str]:
        """Markdown."""
        columns = list(dict.fromkeys(c for runs in self.table.values() for run in runs for c in run))
        seeds = len(next(iter(self.table.values())))
        out = [
            f"## {self.title}",
            "",
            *textwrap.wrap(f"{command}, {seeds} {self.each}. {self.setup}", 118),
            "",
        ]
        out += [f"| SAE | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
        for arm, runs in self.table.items():
            cells = [spread([run.get(c, math.nan) for run in runs]) for c in columns]
            out.append(f"| {arm} | {' | '.join(cells)} |")
        out += ["", "| promise | bar | measured | of all seeds | |", "|---|---|---:|---:|---|"]
        out += [f"| {' | '.join(p.cells())} |" for p in self.promises]
        return out + [line for note in self.notes for line in ("", *textwrap.wrap(note, 118))]

    def plain(self) -> dict[str, Any]:
        """For JSON; NaN becomes None."""
        table = {
            arm: [{c: None if math.isnan(v) else float(v) for c, v in run.items()} for run in runs]
            for arm, runs in self.table.items()
        }
        promises = [{"promise": p.text, "values": p.values, "kept": p.kept} for p in self.promises]
        return {"table": table, "promises": promises}


def spread(values: list[float]) -> str:
    """Mean ± standard deviation of what is not NaN."""
    known = [v for v in values if not math.isnan(v)]
    if not known:
        return "-"
    digits = 1 if abs(statistics.mean(known)) >= 10 else 3
    text = f"{statistics.mean(known):.{digits}f}"
    return f"{text} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else text


def train(
    configs: Mapping[str, saelab.SAEConfig], acts: Tensor, steps: int, seed: int, **options: Any
) -> dict[str, SAE]:
    """Each config trained on the same batches."""
    options = {"batch_size": 512, "progress": False, **options}
    runs = saelab.train(list(configs.values()), acts, steps=steps, seed=seed, **options)
    return {name: run.sae for name, run in zip(configs, runs, strict=True)}


def score(report: Report, arm: str, sae: SAE, truth: Synthetic, seed: int, **more: float) -> None:
    """Add what the SAE and its untrained control recover of known features."""
    found = recovery(sae, truth, seed=seed)
    report.add(arm, {**named(found.sae), **more})
    report.add(f"{arm}, untrained", named(found.untrained))


def named(scores: RecoveryScores) -> dict[str, float]:
    return {title: getattr(scores, column) for column, title in FOUND.items()}


def held_out(truth: Synthetic, n: int = 16_384) -> Any:
    """Rows that no training has seen."""
    return truth.rows(n, HELD_OUT)
