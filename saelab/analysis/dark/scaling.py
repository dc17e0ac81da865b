"""Does a wider SAE err on the same rows? Norms of errors across widths, and the law that FVU follows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelab.analysis.controls import Beside, Sums, against, shuffled, with_interval
from saelab.analysis.dark.linear import Crossed, fold_of
from saelab.analysis.dark.results import DarkMatter
from saelab.arguments import an_integer, checked, mapping
from saelab.errors import headline, needing
from saelab.types import ConfigError, short

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

WIDTHS = 4
"""Of which a law of three unknowns can be wrong."""
ALIKE = 1.1
"""Largest ratio of L0s that count as one."""
DRAWS = 200
EXPONENTS = np.geomspace(0.02, 4, 200)


class Pair(NamedTuple):
    """Rows on which two SAEs err, the narrower and the wider."""

    narrow: str
    wide: str
    r2: Beside
    """of the wider one's error norms by those of the narrower: a line through both, fitted to other
    documents; beside a line through the norms of the rows themselves, and through errors of other rows"""
    gain: Beside
    """what the norms of the narrower one's nonlinear part add: the share of what the line missed; beside
    those of other rows"""


@dataclass(frozen=True, eq=False)
class ErrorScaling:
    """How errors change with the width of SAEs at one hook point, on the same rows."""

    hook: str
    n_rows: int
    table: pd.DataFrame
    """one line an SAE, the narrowest first: d_sae, l0, fvu, linear_r2, nonlinear_fvu, norm2_r2, and the mean
    error norm"""
    pairs: tuple[Pair, ...]
    """each SAE with the next wider one, and the narrowest with the widest"""
    law: Mapping[str, Beside]
    """fvu(W) = c + a W^-m over widths W, by least squares: `c`, `a`, `m`; of the widest SAE `absent` (a W^-m,
    what more latents would find), `linear` (c - nonlinear) and `nonlinear` (mean nonlinear_fvu of all SAEs).
    Beside the law of untrained SAEs, with intervals over documents. Nothing bounds `linear` at 0: where it is
    below, the three bands do not describe these SAEs"""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """what could not be measured, and why"""

    def to_frame(self) -> pd.DataFrame:
        """One line a pair and figure: value, interval, and each control."""
        import pandas as pd

        lines = [
            [pair.narrow, pair.wide, name, own.value, *own.interval, own.what, own.control]
            for pair in self.pairs
            for name, own in (("r2", pair.r2), ("gain", pair.gain))
        ]
        columns = ["narrow", "wide", "score", "value", "from", "to", "beside", "control"]
        return pd.DataFrame(lines, columns=columns)

    def figure(self) -> go.Figure:
        """FVU over width, and the part that stays nonlinear; the law where there is one.

        Raises:
            MissingDependency: plotly is not installed.
        """
        with needing("A figure", "plotly", "plotly"):
            import plotly.graph_objects as go
        figure, wide = go.Figure(), self.table["d_sae"].to_numpy(dtype=float)
        looks = (("fvu", "#d55e00", "circle"), ("nonlinear_fvu", "#0072b2", "square"))
        for name, colour, shape in looks:
            figure.add_scatter(
                x=wide, y=self.table[name], name=name, mode="markers", text=self.table.index,
                marker={"color": colour, "symbol": shape, "size": 10},
                hovertemplate=f"%{{text}}: {name} %{{y:.4f}}<extra></extra>",
            )  # fmt: skip
        if self.law:
            c, a, m = (self.law[name].value for name in "cam")
            at = np.geomspace(wide.min(), wide.max() * 8, 60)
            figure.add_scatter(
                x=at, y=c + a * at**-m, mode="lines", name=f"{c:.3f} + {a:.3g} W^-{m:.2f}",
                line={"color": "#d55e00", "dash": "dash"},
            )  # fmt: skip
        figure.update_layout(
            title=f"{self.hook}, {self.n_rows:,} rows", template="plotly_white", height=420,
            xaxis_title="latents (log)", yaxis_title="share of the variance",
        )  # fmt: skip
        figure.update_xaxes(type="log")
        return figure

    __repr__ = headline

    def __str__(self) -> str:
        lines = [
            f"{self.hook}, {self.n_rows:,} rows, {len(self.table)} SAEs",
            self.table.to_string(float_format=lambda v: f"{v:.4g}"),
        ]
        for pair in self.pairs:
            lines.append(f"{pair.narrow} -> {pair.wide}: R2 of error norms {pair.r2}")
            lines.append(f"  added by the nonlinear part: {pair.gain}")
        lines += [f"{name}: {value}" for name, value in self.law.items()]
        return "\n".join([*lines, *(f"{name}: left out, {why}" for name, why in self.left_out.items())])


@checked(found=mapping, seed=an_integer())
def error_scaling(found: Mapping[str, DarkMatter], *, seed: int = 0) -> ErrorScaling:
    """Put what `dark_matter` found of several SAEs side by side, row by row (arXiv 2410.14670).

    Args:
        found: By name, of SAEs of one hook point, on the same rows.
        seed: Of folds, shuffling and intervals.

    Returns:
        A table by width, how well error norms of one SAE foretell those of the next, and the law of FVU.

    Raises:
        ConfigError: There are fewer than two, or they are of different rows.
    """
    for name, each in found.items():
        if not isinstance(each, DarkMatter):
            message = (
                f"Errors are compared by what dark_matter gives. Got {short(each)} as {name!r}. Pass "
                "{'narrow': dark_matter(...), 'wide': dark_matter(...)}."
            )
            raise ConfigError(message)
    grounds = {(each.hook, each.n_rows, each.fingerprint) for each in found.values()}
    if len(found) < 2 or len(grounds) > 1:
        told = ", ".join(f"{name} ({each.n_rows:,} rows of {each.hook})" for name, each in found.items())
        message = (
            f"Errors are compared between at least two SAEs of one hook point on the same rows. Got {told}. "
            "Pass dark_matter of each on the same corpus with the same max_rows."
        )
        raise ConfigError(message)
    names = sorted(found, key=lambda name: found[name].d_sae)
    steps = list(itertools.pairwise(names))
    if len(names) > 2:
        steps.append((names[0], names[-1]))
    law, why = _law([found[name] for name in names], seed)
    first = found[names[0]]
    return ErrorScaling(
        hook=first.hook,
        n_rows=first.n_rows,
        table=_table({name: found[name] for name in names}),
        pairs=tuple(_pair(narrow, wide, found[narrow], found[wide], seed) for narrow, wide in steps),
        law=law,
        left_out={} if why is None else {"law": why},
    )


def _table(found: Mapping[str, DarkMatter]) -> pd.DataFrame:
    import pandas as pd

    scores = ("fvu", "linear_r2", "nonlinear_fvu", "norm2_r2")
    lines = {
        name: {"d_sae": each.d_sae, "l0": each.l0, **{score: each.scores[score].value for score in scores}}
        | {"error norm": each.rows["error"].to_numpy().mean()}
        for name, each in found.items()
    }
    return pd.DataFrame.from_dict(lines, orient="index")


def _pair(narrow: str, wide: str, one: DarkMatter, two: DarkMatter, seed: int) -> Pair:
    rows, target = one.rows, np.array(two.rows["error"])
    document = rows["document"].to_numpy()
    error, nonlinear, given = (rows[name].to_numpy() for name in ("error", "nonlinear", "input"))
    other = shuffled(np.arange(len(rows)), seed)
    folds = fold_of(document, one.folds, seed)
    left = {
        name: _left(folds, np.stack(columns, 1), target)
        for name, columns in {
            "error": [error], "input": [given], "shuffled": [error[other]],
            "both": [error, nonlinear], "both shuffled": [error, nonlinear[other]],
        }.items()
    }  # fmt: skip
    sums = Sums()
    sums.add(document, spread=left["error"][1], **{name: each[0] for name, each in left.items()})

    def of(score: Callable, controls: Mapping[str, Callable]) -> Beside:
        told = {what: with_interval(sums, other, seed) for what, other in controls.items()}
        return against(with_interval(sums, score, seed), told, sums.n_units)

    def r2(name: str) -> Callable[[Mapping[str, Any]], Any]:
        return lambda s: 1 - s[name] / s["spread"]

    def gain(name: str) -> Callable[[Mapping[str, Any]], Any]:
        return lambda s: (s["error"] - s[name]) / s["error"]

    return Pair(
        narrow,
        wide,
        of(r2("error"), {"norms of the rows": r2("input"), "errors of other rows": r2("shuffled")}),
        of(gain("both"), {"nonlinear parts of other rows": gain("both shuffled")}),
    )


def _left(folds: np.ndarray, x: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared misses [n] of a line fitted to the other folds, and of their mean."""
    import torch

    rows, wanted = torch.from_numpy(x), torch.from_numpy(target)[:, None]
    crossed = Crossed(int(folds.max()) + 1)
    crossed.add(folds, rows, wanted)
    left, spread = np.empty(len(x)), np.empty(len(x))
    for k, fit in enumerate(crossed.fits()):
        at = np.flatnonzero(folds == k)
        left[at] = (wanted[at] - fit(rows[at])).square()[:, 0].numpy()
        spread[at] = (wanted[at] - fit.target_mean).square()[:, 0].numpy()
    return left, spread


def _law(found: list[DarkMatter], seed: int) -> tuple[dict[str, Beside], str | None]:
    wide = np.array([each.d_sae for each in found], dtype=float)
    l0 = [each.l0 for each in found]
    if len(set(wide.tolist())) < WIDTHS:
        return {}, f"a law of three unknowns needs {WIDTHS} widths, got {len(set(wide.tolist()))}"
    if max(l0) > ALIKE * min(l0):
        return {}, f"SAEs of one law must have one L0, got {min(l0):.3g} to {max(l0):.3g}"
    document = found[0].rows["document"].to_numpy()
    arms = {}
    for arm, norms in {
        "error": ("input", "error", "nonlinear"),
        "untrained": ("input", "untrained", "untrained_nonlinear"),
    }.items():
        sums = Sums()
        for i, each in enumerate(found):
            sums.add(document, **{f"{name} {i}": each.rows[name].to_numpy() ** 2 for name in norms})
        arms[arm] = np.stack([sums.of(name) for name in sums.names()], 1).reshape(-1, len(found), 3)
    n = len(arms["error"])
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS)
    weights = np.concatenate([np.ones((1, n)), weights])
    values, ends = {}, {}
    for arm, table in arms.items():
        told = np.array([_bands(wide, drawn) for drawn in np.einsum("bn,nsk->bsk", weights, table)])
        values[arm], ends[arm] = told[0], np.percentile(told[1:], [2.5, 97.5], axis=0).T
    law = {}
    for i, name in enumerate(("c", "a", "m", "absent", "linear", "nonlinear")):
        own, control = (values[arm][i] for arm in ("error", "untrained"))
        (low, high), (under, over) = ends["error"][i], ends["untrained"][i]
        both = (float(low), float(high)), (float(under), float(over))
        law[name] = Beside(float(own), float(control), *both, n, "untrained SAEs")
    return law, None


def _bands(wide: np.ndarray, sums: np.ndarray) -> tuple[float, ...]:
    """(c, a, m, absent, linear, nonlinear) of sums [SAEs 3]: input, error, nonlinear."""
    fvu, rest = sums[:, 1] / sums[:, 0], float((sums[:, 2] / sums[:, 0]).mean())
    c, a, m = power_law(wide, fvu)
    return c, a, m, float(a * wide[-1] ** -m), c - rest, rest


def power_law(wide: np.ndarray, fvu: np.ndarray) -> tuple[float, float, float]:
    """(c, a, m) >= 0 of least squares fvu ~ c + a wide^-m: for each of 200 exponents m between 0.02 and 4 the
    best c and a follow.

    Args:
        wide: float [n].
        fvu: float [n].
    """
    power = wide[:, None] ** -EXPONENTS
    x, y = power - power.mean(0), fvu - fvu.mean()
    a = np.maximum((x * y[:, None]).sum(0) / (x * x).sum(0), 0)
    c = fvu.mean() - a * power.mean(0)
    through = (power * fvu[:, None]).sum(0) / (power * power).sum(0)  # where c would be below 0
    a, c = np.where(c < 0, through, a), np.maximum(c, 0)
    best = int(((c + a * power - fvu[:, None]) ** 2).sum(0).argmin())
    return float(c[best]), float(a[best]), float(EXPONENTS[best])


__all__ = ["ErrorScaling", "Pair", "error_scaling", "power_law"]
