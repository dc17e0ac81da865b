"""What `dark_matter` gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saelab.analysis.classes import CLASSES, ordered
from saelab.analysis.controls import Beside, Sums, framed, interval, shuffled
from saelab.analysis.dark.linear import Fit
from saelab.arguments import an_integer, checked, floats, full_sae
from saelab.errors import headline, needing
from saelab.types import ShapeError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from torch import Tensor

    from saelab.sae import SAE

LEAST_ROWS = 20
"""A class of fewer rows is not told of."""


class ErrorParts(NamedTuple):
    """Rows, taken apart: x = x_hat + linear + nonlinear. All [n d_in], in raw units."""

    x_hat: Tensor
    """what the SAE says"""
    linear: Tensor
    """what a linear map foretells of the SAE's error"""
    nonlinear: Tensor
    """the rest"""


class Losses(NamedTuple):
    """What the subject loses with something in the place of the rows, mean over targets, in nats for
    language models."""

    clean: float
    """untouched"""
    sae: float
    """the SAE's reconstruction"""
    linear: float
    """the reconstruction and the linear part of the error"""
    nonlinear: float
    """the reconstruction and the nonlinear part"""
    both: float
    """the reconstruction and all of its error, which is the subject untouched"""
    ablated: float
    """the mean of the rows"""


@dataclass(frozen=True, eq=False)
class DarkMatter:
    """An SAE's error e = x - x_hat, in two parts: what a linear map of x foretells of it, and the rest.

    Every figure is of rows that had no part in the fit of their map. Scores, by name:

        fvu             sum |e|^2 / sum |x - mean x|^2
        linear_r2       1 - sum |e - lin(x)|^2 / sum |e - mean e|^2: how much of e is linear in x
        linear_r2_mean  the paper's measure: R2 of each coordinate, mean; intervals over coordinates
        norm2_r2        R2 of |e|^2 by a linear map of x
        norm_r2         R2 of |e| by another
        nonlinear_fvu   sum |e - lin(x)|^2 / sum |x - mean x|^2: what the SAE and the linear part leave
        linear_fvu      fvu - nonlinear_fvu
        linear_share    linear_fvu / fvu
        pursuit_...     the same with the codes of gradient pursuit on the SAE's decoder, each row with at
                        most the encoder's L0; beside the encoder, and pursuit on an untrained decoder
        loss_linear     (loss sae - loss sae and linear part) / (loss sae - loss clean): what the linear part
                        is worth to the subject, beside the linear parts of other rows
        loss_nonlinear  the same of the nonlinear part
    """

    hook: str
    n_rows: int
    d_in: int
    d_sae: int
    l0: float
    """latents != 0 of a row, mean; pursuit has `pursuit_l0`"""
    pursuit_l0: float | None
    folds: int
    scores: Mapping[str, Beside]
    """beside an untrained SAE, shuffled errors (each row's is another's), or what `what` says"""
    left_out: Mapping[str, str]
    """scores that could not be measured, and why"""
    rows: pd.DataFrame
    """one row a row: document, position and token where there are such, the classes that it is of, and the
    norms `input` (of x - mean x), `error`, `linear`, `nonlinear`, and of the errors of others, `untrained`,
    `untrained_nonlinear` and `pursuit`"""
    losses: Losses | None
    """None where the subject has no loss"""
    identity: float
    """the largest | x - (x_hat + linear + nonlinear) |, in units of the largest | x |"""
    identity_loss: float | None
    """the largest | loss with the error added back - loss clean | of a sample, a target"""
    fit: Fit = field(repr=False)
    """of the error on x, by all rows; `parts` applies it to others"""
    fingerprint: str = ""
    """of what the rows are of, hex"""

    @checked(sae=full_sae, x=floats)
    def parts(self, sae: SAE, x: Tensor) -> ErrorParts:
        """Other rows, taken apart by the map that all rows of this analysis gave. Of these rows themselves it
        tells too much: the map has seen them.

        Args:
            sae: The same SAE.
            x: [n d_in].

        Raises:
            ShapeError: They, or what the SAE writes, are of another width.
        """
        import torch

        if sae.d_in != self.d_in or sae.d_out != self.d_in:
            message = (
                f"The map is of errors of width {self.d_in}. Got an SAE of {sae.d_in} -> {sae.d_out}. Pass "
                "the SAE whose error was taken apart."
            )
            raise ShapeError(message)
        with torch.no_grad():
            x_hat = sae(x).x_hat
            linear = self.fit(x.cpu()).to(x_hat)
        return ErrorParts(x_hat, linear, x.to(x_hat) - x_hat - linear)

    def to_frame(self) -> pd.DataFrame:
        """One line a score: this SAE, each control (NaN where there is none of that kind), 95 % interval."""
        return framed(self.scores)

    @checked(seed=an_integer())
    def classes(self, seed: int = 0) -> pd.DataFrame:
        """The error by classes of rows: position bands that double, quarters by the token's frequency, kinds
        of documents; those of at least 20 rows.

        Columns: rows, the mean norm of the error, its fvu with a 95 % interval over documents and, as
        control, the fvu with the classes shuffled over all rows, and the share of the error that is linear.

        Args:
            seed: Of intervals and shuffling.
        """
        import pandas as pd

        rows, lines = self.rows, []
        squares = {name: rows[name].to_numpy() ** 2 for name in ("input", "error", "nonlinear")}
        for by in (name for name in CLASSES if name in rows):
            other = shuffled(rows[by].to_numpy(), seed)
            for name in ordered(rows[by].to_numpy()):
                at = (rows[by] == name).to_numpy()
                if at.sum() < LEAST_ROWS:
                    continue
                sums = Sums()
                own = {key: value[at] for key, value in squares.items()}
                sums.add(np.unique(rows["document"].to_numpy()[at], return_inverse=True)[1], **own)
                total = {key: value.sum() for key, value in own.items()}
                low, high = interval(sums, lambda s: s["error"] / s["input"], seed)
                apart = other == name
                lines.append({
                    "by": by, "class": name, "rows": int(at.sum()),
                    "error norm": float(rows["error"].to_numpy()[at].mean()),
                    "fvu": total["error"] / total["input"], "from": low, "to": high,
                    "shuffled fvu": squares["error"][apart].sum() / squares["input"][apart].sum(),
                    "linear share": 1 - total["nonlinear"] / total["error"] if total["error"] else np.nan,
                })  # fmt: skip
        columns = ["by", "class", "rows", "error norm", "fvu", "from", "to", "shuffled fvu", "linear share"]
        return pd.DataFrame(lines, columns=columns)

    def figure(self) -> go.Figure:
        """The error in its parts (linear, nonlinear) of the SAE, of pursuit and of the controls, and, where
        rows have positions, by position; bars of whole errors carry their 95 % interval.

        Raises:
            MissingDependency: plotly is not installed.
        """
        with needing("A figure", "plotly", "plotly"):
            import plotly.graph_objects as go
            from plotly.subplots import make_subplots
        panels = [self._bars()]
        table = self.classes()
        at = table.query("by == 'position band'")
        if len(at):
            whole, share, ends = (at[name].to_numpy() for name in ("fvu", "linear share", ["from", "to"]))
            panels.append((list(at["class"]), whole * share, whole * (1 - share), ends))
        titles = ["of all rows", "by position"][: len(panels)]
        figure = make_subplots(cols=len(panels), horizontal_spacing=0.1, subplot_titles=titles)
        for column, (names, linear, nonlinear, ends) in enumerate(panels, start=1):
            for name, values, colour in (("nonlinear", nonlinear, "#0072b2"), ("linear", linear, "#e69f00")):
                bars = {}
                if name == "linear":  # on top: the interval is of the whole
                    whole = linear + nonlinear
                    bars["error_y"] = {
                        "type": "data", "symmetric": False, "color": "#777777",
                        "array": ends[:, 1] - whole, "arrayminus": whole - ends[:, 0],
                    }  # fmt: skip
                figure.add_trace(
                    go.Bar(
                        x=names, y=values, name=name, legendgroup=name, showlegend=column == 1,
                        marker_color=colour, hovertemplate=f"{name} %{{y:.4f}}<extra>%{{x}}</extra>", **bars,
                    ),
                    row=1, col=column,
                )  # fmt: skip
            figure.update_xaxes(type="category", row=1, col=column)
        figure.update_yaxes(title_text="share of the variance (FVU)", row=1, col=1)
        figure.update_layout(
            barmode="relative", template="plotly_white", height=420,
            title=f"{self.hook}: the error of {self.d_sae:,} latents at L0 {self.l0:.3g}",
        )  # fmt: skip
        return figure

    def _bars(self) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """(names, linear, nonlinear, ends of the interval of the whole) of the arms."""
        found = []
        for name, prefix in (("encoder", ""), ("pursuit", "pursuit_")):
            if f"{prefix}fvu" in self.scores:
                whole, rest = self.scores[f"{prefix}fvu"], self.scores[f"{prefix}nonlinear_fvu"]
                found.append((name, whole.value - rest.value, rest.value, whole.interval))
        whole, rest = self.scores["fvu"], self.scores["nonlinear_fvu"]
        found.append(("untrained SAE", whole.control - rest.control, rest.control, whole.control_interval))
        names, linear, nonlinear, ends = zip(*found, strict=True)
        return list(names), np.array(linear), np.array(nonlinear), np.array(ends)

    __repr__ = headline

    def __str__(self) -> str:
        share, r2 = self.scores["linear_share"], self.scores["linear_r2"]
        lines = [
            f"{self.hook}, {self.n_rows:,} rows: of the error (FVU {self.scores['fvu'].value:.4g}) "
            f"{share.value:.1%} is linear (R2 {r2.value:.3f}); L0 {self.l0:.4g}",
            self.to_frame().to_string(float_format=lambda v: f"{v:.4g}", na_rep=""),
        ]
        if self.losses is not None:
            told = ", ".join(f"{name} {value:.4f}" for name, value in self.losses._asdict().items())
            lines.append(f"loss: {told}")
        fitted = self.n_rows * (self.folds - 1) / self.folds
        if fitted < 20 * self.d_in:
            lines.append(
                f"Each fit has some {fitted:,.0f} rows for {self.d_in:,} dimensions: what is linear is told "
                "too low. Pass more rows."
            )
        return "\n".join([*lines, *(f"{name}: left out, {why}" for name, why in self.left_out.items())])


__all__ = ["DarkMatter", "ErrorParts", "Losses"]
