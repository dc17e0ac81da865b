"""What is measured of an edit: frozen results with a text form, a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saelab.analysis.controls import Beside
from saelab.arguments import checked, maybe, real, text
from saelab.errors import headline, nearest
from saelab.types import ConfigError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

EDIT, NONE = "edit", "no edit"
# colours that the colour-blind tell apart (Okabe and Ito), each with a shape of its own
LOOKS = {
    EDIT: ("#0072b2", "circle"),
    NONE: ("#000000", "cross"),
    "random direction": ("#d55e00", "square"),
    "random latents": ("#cc79a7", "diamond"),
    "mean difference": ("#009e73", "triangle-up"),
}
WORTH = ("target", "output", "kl")
"""What an edit is for, the first that there is."""
HARM = ("clean perplexity ratio", "clean kl", "clean output", "kl", "output")
"""What it breaks, the first that there is."""


class Figure(NamedTuple):
    """A figure with its interval."""

    value: float
    interval: tuple[float, float]
    """95 %, by drawing the samples (of a random control its draws too) anew"""
    n: int
    """samples"""

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.4g} [{low:.4g}, {high:.4g}]"


class TokenShift(NamedTuple):
    """A token whose probability an edit changes."""

    token: str
    before: float
    """mean probability of it as the next token"""
    after: float
    interval: tuple[float, float]
    """95 % of after - before"""


@dataclass(frozen=True)
class Arm:
    """An edit, a control of it, or no edit."""

    name: str
    """"edit", "no edit", or which control: they move each row as far as the edit does"""
    alpha: float | None
    """the strength; None where there is only one, and without an edit"""
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class Effect:
    """What an edit does, beside controls that move activations as far.

    Figures by their names; those without "clean" are of the samples, those with it of clean ones:

    - target: the target metric; of a lexicon its words, for each word that was written
    - target any: the share of continuations with any word of the lexicon
    - kl: KL(untouched || edited) of the next token, nats a position
    - output: |change of the output| / |output|
    - identical: share of samples whose output keeps every bit
    - touched: share of rows that the edit changes; of these rows
    - norm: |edited| / |natural activation|
    - mahalanobis, nearest: distance from natural activations, and from the nearest of them, in units of what
      these distances are of natural activations of other samples
    - clean loss, clean perplexity, clean perplexity ratio: with the hooks running, and against without
    - distinct 2, repetition 4, words: of what is generated
    """

    hook: str
    n_samples: int
    n_clean: int
    arms: tuple[Arm, ...]
    tokens: tuple[TokenShift, ...] = ()
    """the next tokens whose probability the edit (of the largest |alpha|) changes most on the samples, raised
    ones first"""
    clean_tokens: tuple[TokenShift, ...] = ()
    """the same on clean samples"""
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    """arm -> continuations of the first samples (of the largest |alpha|)"""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """what could not be measured, and why"""

    @property
    def measures(self) -> list[str]:
        """Names of the figures."""
        return list(dict.fromkeys(name for arm in self.arms for name in arm.figures))

    @checked(name=text, alpha=maybe(real()))
    def arm(self, name: str = EDIT, alpha: float | None = None) -> Arm:
        """An arm by its name, and its strength where there are several.

        Args:
            name: "edit", "no edit" or a control.
            alpha: One of those that were measured; None where there is one.

        Raises:
            ConfigError: There is none.
        """
        named = [arm for arm in self.arms if arm.name == name and alpha in (None, arm.alpha)]
        if len(named) != 1:
            known = ", ".join(dict.fromkeys(arm.name for arm in self.arms))
            near = nearest(str(name), [arm.name for arm in self.arms])
            alphas = list(dict.fromkeys(arm.alpha for arm in self.arms if arm.alpha is not None))
            message = (
                f"An arm must be one of {known}" + (f", at an alpha of {alphas}" if alphas else "")
                + f". Got {name!r} with alpha={alpha!r}. {near}Pass one of these."
            )  # fmt: skip
            raise ConfigError(message)
        return named[0]

    @checked(measure=text)
    def figure_of(self, measure: str, name: str = EDIT, alpha: float | None = None) -> Figure:
        """A figure of an arm.

        Args:
            measure: One of `measures`.
            name: The arm.
            alpha: Its strength, where there are several.

        Raises:
            ConfigError: There is none.
        """
        found = self.arm(name, alpha).figures
        if measure not in found:
            near = nearest(str(measure), found)
            message = f"A figure must be one of {', '.join(found)}. Got {measure!r}. {near}Pass one of these."
            raise ConfigError(message)
        return found[measure]

    def beside(self, control: str = "random direction", alpha: float | None = None) -> dict[str, Beside]:
        """Every figure of the edit beside that of a control.

        Args:
            control: Which.
            alpha: The strength, where there are several.

        Raises:
            ConfigError: There is none.
        """
        one, other = self.arm(EDIT, alpha), self.arm(control, None if control == NONE else alpha)
        return {
            name: Beside(f.value, c.value, f.interval, c.interval, f.n, control)
            for name, f in one.figures.items()
            if (c := other.figures.get(name)) is not None
        }

    def to_frame(self) -> pd.DataFrame:
        """One line a figure: arm, alpha, measure, value, from, to, n."""
        import pandas as pd

        columns = ["arm", "alpha", "measure", "value", "from", "to", "n"]
        lines = [
            [arm.name, arm.alpha, name, figure.value, *figure.interval, figure.n]
            for arm in self.arms for name, figure in arm.figures.items()
        ]  # fmt: skip
        return pd.DataFrame(lines, columns=columns)

    @property
    def axes(self) -> tuple[str, str]:
        """The figures that say what the edit is for and what it breaks: those that `figure` shows."""
        known = self.measures
        worth = next((name for name in WORTH if name in known), "identical")
        return worth, next((name for name in HARM if name in known and name != worth), "touched")

    def frontier(self) -> list[Arm]:
        """The arms of which no other does at least as much for the target at less collateral, the least
        collateral first. More is what the strongest edit does to the target: less of it, or more."""
        worth, harm = self.axes
        strongest = max((a for a in self.arms if a.name == EDIT), key=lambda a: abs(a.alpha or 0))
        base = self.arm(NONE).figures[worth].value
        way = -1 if strongest.figures[worth].value < base else 1
        points = [(_harm(arm, harm), way * arm.figures[worth].value, arm) for arm in self.arms]
        points = [p for p in points if np.isfinite(p[0]) and np.isfinite(p[1])]
        found, best = [], -np.inf
        for _, value, arm in sorted(points, key=lambda p: (p[0], -p[1])):
            if value > best:
                found.append(arm)
                best = value
        return found

    def figure(self) -> go.Figure:
        """Target against collateral of every arm, with intervals, and the frontier of what is best."""
        import plotly.graph_objects as go

        worth, harm = self.axes
        figure = go.Figure()
        best = self.frontier()
        figure.add_scatter(
            x=[arm.figures[harm].value for arm in best], y=[arm.figures[worth].value for arm in best],
            mode="lines", name="frontier", line={"color": "#bbbbbb", "width": 6}, hoverinfo="skip",
        )  # fmt: skip
        for name in dict.fromkeys(arm.name for arm in self.arms):
            some = sorted((a for a in self.arms if a.name == name), key=lambda a: a.alpha or 0)
            colour, shape = LOOKS[name]
            bars = {}
            for axis, measure in (("error_x", harm), ("error_y", worth)):
                shown = [arm.figures[measure] for arm in some]
                bars[axis] = {
                    "type": "data", "symmetric": False, "width": 3, "thickness": 1,
                    "array": [max(f.interval[1] - f.value, 0) for f in shown],
                    "arrayminus": [max(f.value - f.interval[0], 0) for f in shown],
                }  # fmt: skip
            figure.add_scatter(
                x=[arm.figures[harm].value for arm in some], y=[arm.figures[worth].value for arm in some],
                text=["" if arm.alpha is None else f"{arm.alpha:g}" for arm in some], name=name,
                mode="lines+markers", line={"color": colour, "width": 1.5},
                marker={"symbol": shape, "size": 10, "line": {"width": 1, "color": "white"}}, **bars,
                hovertemplate=f"{name} %{{text}}<br>{harm} %{{x:.4g}}<br>{worth} %{{y:.4g}}<extra></extra>",
            )  # fmt: skip
        return figure.update_layout(
            title=f"{self.hook}: {self.n_samples} samples, {self.n_clean} clean", template="plotly_white",
            xaxis_title=f"collateral: {harm}", yaxis_title=worth, height=460,
        )  # fmt: skip

    def table(self) -> pd.DataFrame:
        """One line an arm and strength, one column a figure."""
        import pandas as pd

        index = pd.MultiIndex.from_tuples(
            [(arm.name, arm.alpha) for arm in self.arms], names=["arm", "alpha"]
        )
        shown = pd.DataFrame([{n: f.value for n, f in a.figures.items()} for a in self.arms], index=index)
        return shown if any(arm.alpha is not None for arm in self.arms) else shown.droplevel("alpha")

    __repr__ = headline

    def __str__(self) -> str:
        head = f"{self.hook}: {self.n_samples} samples, {self.n_clean} clean"
        table = self.table().T.to_string(float_format=lambda v: f"{v:.4g}", na_rep="-")
        lines = [head, table]
        edits = [arm for arm in self.arms if arm.name == EDIT]
        for arm in edits:
            at = "" if arm.alpha is None else f" at alpha {arm.alpha:g}"
            shown = (f"{name} {arm.figures[name]}" for name in self.axes if name in arm.figures)
            lines.append(f"95 % of the edit{at}: " + "; ".join(shown))
        for what, tokens in (("the samples", self.tokens), ("clean samples", self.clean_tokens)):
            if tokens:
                shifts = ", ".join(f"{t.token!r} {t.before:.2g} -> {t.after:.2g}" for t in tokens)
                lines.append(f"next tokens on {what}: {shifts}")
        return "\n".join([*lines, *(f"{name}: left out, {why}" for name, why in self.left_out.items())])


def _harm(arm: Arm, measure: str) -> float:
    return arm.figures[measure].value if measure in arm.figures else float("nan")


__all__ = ["EDIT", "NONE", "Arm", "Effect", "Figure", "TokenShift"]
